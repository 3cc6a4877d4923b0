"""Bundles with a second look, rows to train them from, and a provider's answers to look at."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from thriftroute.router.bundle import Bundle, write_bundle
from thriftroute.router.second_look import SECOND_LOOK, LookPolicy, SecondLook
from thriftroute.training.second_look import LookSettings, train_second_look
from thriftroute.training.settings import TrainSettings

STRONG, WEAK, SECOND = "openai/strong", "openai/weak", "openai/second"


def write_rows(path: Path, n: int, *, tells: bool, start: int = 0) -> str:
    """n prompts with answers of all three models; `tells`: whether confidence says anything of the
    weak one."""
    rng = np.random.default_rng(start)
    with path.open("w") as file:
        for i in range(start, start + n):
            right = bool(rng.random() < 0.6)
            truth, wrong, third = map(str, rng.choice(np.arange(1000, 10_000), 3, replace=False))
            known = right if tells else bool(rng.random() < 0.6)
            sure = float(rng.uniform(0.7, 0.99) if known else rng.uniform(0.3, 0.75))
            answers = {
                STRONG: (truth, 1.0 if rng.random() < 0.95 else 0.0, None),
                WEAK: (f"It is {truth if right else wrong}.", float(right), sure),
                SECOND: (truth if known else third, float(known), None),
            }
            for model, (answer, score, confidence) in answers.items():
                row = {"prompt_id": f"p{i}", "prompt": f"What is number {i} of the list?"}
                row |= {"model": model, "answer": answer, "score": score}
                row |= {} if confidence is None else {"confidence": confidence}
                file.write(json.dumps(row) + "\n")
    return str(path)


def fit(data: str, out: Path, router: str = "fast", second: str | None = None) -> Any:
    settings = TrainSettings("mf", [data], (STRONG,), (WEAK,), out, base=router, overwrite=True)
    return train_second_look(settings, LookSettings(second))


def with_policy(bundle: Path, policy: LookPolicy, out: Path) -> Path:
    """A copy of a bundle with a look, which goes by other thresholds."""
    found = Bundle.open(bundle)
    look = SecondLook.of(found)
    assert look is not None
    look = dataclasses.replace(look, policy=policy)
    files: dict[str, Any] = {name: found.file(name) for name in found.manifest.files}
    fields = dataclasses.asdict(found.manifest)
    fields = {n: v for n, v in fields.items() if n not in ("files", "format", "written_by")}
    write_bundle(out, files={**files, SECOND_LOOK: look.to_json()}, **fields)
    return out


def completion(text: str, probability: float | None = None) -> bytes:
    """A provider's answer, with the log-probability of its tokens where one is given."""
    told: Any = None
    if probability is not None:
        token = {"token": text, "logprob": float(np.log(probability)), "bytes": None}
        told = {"content": [{**token, "top_logprobs": []}]}
    choice = {"index": 0, "finish_reason": "stop", "logprobs": told}
    choice |= {"message": {"role": "assistant", "content": text}}
    whole = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return json.dumps({**whole, "choices": [choice], "usage": usage}).encode()
