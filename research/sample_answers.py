"""Make answers.jsonl of data/samples, on which docs/second-look.md trains a look.

    python -m thriftroute.research.sample_answers             # writes it there
    python -m thriftroute.research.sample_answers OTHER_DIR

The same bytes on every run. Answers are simulated by the rules of `testing.sums`.
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..testing.sums import STRONG, WEAK, answer, is_right, prompt_of
from . import samples

SEED = 20242
N = 300


def rows() -> Iterator[dict[str, Any]]:
    """Three rows a prompt: the strong model, the weak one, and the weak one again."""
    rng = random.Random(SEED)  # noqa: S311 - not for secrets
    asked: dict[str, None] = {}
    while len(asked) < N:
        asked[prompt_of((rng.randint(3, 40), rng.randint(12, 90), rng.randint(5, 30)))] = None
    for number, prompt in enumerate(asked):
        for model, again in ((STRONG, False), (WEAK, False), (WEAK, True)):
            text, probability = answer(model, prompt, again=again)
            yield {
                "prompt_id": f"sum-{number:03d}",
                "prompt": prompt,
                "model": f"openai/{model}",
                "answer": text,
                "score": float(is_right(prompt, text)),
                "confidence": round(probability, 4),
            }


def make(folder: Path) -> None:
    """Write answers.jsonl into `folder`."""
    text = "".join(json.dumps(row) + "\n" for row in rows())
    (folder / "answers.jsonl").write_bytes(text.encode())


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else samples.FOLDER)
