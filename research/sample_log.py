"""Make own-logs.jsonl of data/samples, the log that docs/own-logs.md walks through.

    python -m thriftroute.research.sample_log             # writes it there
    python -m thriftroute.research.sample_log OTHER_DIR

The same bytes on every run. The requests are the templates of `samples`, filled in anew. Answers
are simulated by the rules of `testing.practice`, never measured: see data/samples/README.md. Beside
the log stands how hard each of its requests is, for those rules.
"""

import json
import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ..testing.practice import CONTACT, DIFFICULTIES, answer, request_key, tokens
from . import samples

SEED = 20241
N = 1500
START = datetime(2026, 3, 2, tzinfo=UTC)
DAYS = 28
PRICES = (2.5, 10.0)  # USD per million tokens in and out, of strong-sim
# Which of the team's programs asks for what.
APPS = {
    "helpdesk": ("greeting", "email", "rewriting", "translation", "not-english", "conversation"),
    "analytics": ("sql", "analysis", "summary", "planning"),
    "engineering": ("code", "logic", "proof", "arithmetic"),
    "everyday": ("fact", "conversion", "ideas"),
}


def requests(n: int = N) -> Iterator[tuple[str, float, list[dict[str, str]]]]:
    """(app, difficulty, messages) of n requests, one in twelve a repeat of an earlier one."""
    # Not for secrets: a seeded generator is the point.
    rng = random.Random(SEED)  # noqa: S311
    apps = {category: app for app, categories in APPS.items() for category in categories}
    flat = [
        (apps[category], difficulty, text)
        for templates in (samples.LABELLED, samples.UNLABELLED)
        for category, items in templates.items()
        for difficulty, text in items
    ]
    made: list[tuple[str, float, list[dict[str, str]]]] = []
    while len(made) < n:
        if made and rng.random() < 1 / 12:
            made.append(rng.choice(made))
            continue
        app, difficulty, text = rng.choice(flat)
        asked = samples.request(text, rng)
        messages = asked.get("messages") or [{"role": "user", "content": asked["prompt"]}]
        if rng.random() < 0.03:
            name = rng.choice(samples.WORDS["name"]).lower()
            contact = rng.choice([f"{name}@example.com.", f"212-555-0{rng.randint(100, 199)}."])
            messages[-1] = {**messages[-1], "content": messages[-1]["content"] + CONTACT + contact}
        made.append((app, difficulty, messages))
    yield from made


def entries() -> Iterator[dict[str, Any]]:
    """The log, as a gateway writes it: what strong was asked and said, and what went wrong."""
    rng = random.Random(SEED + 1)  # noqa: S311
    times = sorted(_moment(rng) for _ in range(N))
    for number, (time, (app, _, messages)) in enumerate(zip(times, requests(), strict=True)):
        model = "strong-sim"
        entry: dict[str, Any] = {"id": f"req-{number:05d}", "timestamp": time.isoformat()}
        entry["metadata"] = {"task": app, "session_id": f"s-{rng.randrange(400):03d}"}
        entry["request"] = {
            "model": model,
            "messages": messages,
            "user": f"team-{rng.choice('abc')}",
        }
        if rng.random() < 0.02:
            yield {**entry, "status_code": rng.choice([429, 500, 503]), "response": None}
            continue
        if rng.random() < 0.02:
            text = messages[-1]["content"]
            entry["request"] = {"model": "embedder-sim", "input": text}
            yield {**entry, "status_code": 200, "response": {"object": "list", "data": []}}
            continue
        tokens_in, tokens_out = tokens(model, messages)
        price_in, price_out = PRICES
        said = {"role": "assistant", "content": answer(model, messages)}
        entry["response"] = {
            "model": model,
            "choices": [{"index": 0, "message": said, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": tokens_in, "completion_tokens": tokens_out},
        }
        entry["status_code"] = 200
        entry["cost_usd"] = round((tokens_in * price_in + tokens_out * price_out) / 1e6, 8)
        if rng.random() < 0.05:
            entry["feedback"] = "up" if rng.random() < 0.85 else "down"
        yield entry


def make(folder: Path) -> None:
    """Write own-logs.jsonl, and the difficulties of its requests, into `folder`."""
    hard = {request_key(messages): difficulty for _, difficulty, messages in requests()}
    (folder / DIFFICULTIES.name).write_text(json.dumps(hard, indent=0) + "\n", encoding="utf-8")
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries()]
    (folder / "own-logs.jsonl").write_bytes(("\n".join(lines) + "\n").encode())


def _moment(rng: random.Random) -> datetime:
    """Some time in the four weeks, mostly by day."""
    day, hour = rng.randrange(DAYS), rng.choice([*range(24), *range(8, 18), *range(8, 18)])
    return START + timedelta(days=day, hours=hour, seconds=rng.randrange(3600))


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else samples.FOLDER)
