"""Make own-logs.jsonl, the log that docs/own-logs.md walks through, and answer as its models do.

    python data/samples/simulate.py             # writes it beside this file
    python data/samples/simulate.py OTHER_DIR

Standard library only, and the same bytes on every run. The requests are the templates of make.py,
filled in anew; answers and verdicts are simulated by the rules here, never measured: see README.md.
`python -m thriftroute.testing.practice` serves the same rules as a local provider.
"""

import hashlib
import importlib.util
import json
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

SEED = 20241
N = 1500
START = datetime(2026, 3, 2, tzinfo=UTC)
DAYS = 28
PRICES = {"strong-sim": (2.5, 10.0), "weak-sim": (0.15, 0.6), "judge-sim": (2.5, 10.0)}
CONTACT = " Reach me at "
# Which of the team's programs asks for what.
APPS = {
    "helpdesk": ("greeting", "email", "rewriting", "translation", "not-english", "conversation"),
    "analytics": ("sql", "analysis", "summary", "planning"),
    "engineering": ("code", "logic", "proof", "arithmetic"),
    "everyday": ("fact", "conversion", "ideas"),
}
_QUALITY = re.compile(r"quality (-?\d+\.\d)")
_WIN = 2.55  # points of quality by which an answer must be better to win


def _templates() -> Any:
    """make.py, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("make", Path(__file__).with_name("make.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def key(messages: Sequence[Mapping[str, Any]]) -> str:
    """What a request is known by: the user's words, without how to reach the user."""
    texts = [str(m["content"]).split(CONTACT)[0] for m in messages if m["role"] == "user"]
    return " ".join(" ".join(texts).lower().split())


def requests(n: int = N) -> Iterator[tuple[str, float, list[dict[str, str]]]]:
    """(app, difficulty, messages) of n requests, one in twelve a repeat of an earlier one."""
    make = _templates()
    # Not for secrets: a seeded generator is the point.
    rng = random.Random(SEED)  # noqa: S311
    apps = {category: app for app, categories in APPS.items() for category in categories}
    flat = [
        (apps[category], difficulty, text)
        for templates in (make.LABELLED, make.UNLABELLED)
        for category, items in templates.items()
        for difficulty, text in items
    ]
    made: list[tuple[str, float, list[dict[str, str]]]] = []
    while len(made) < n:
        if made and rng.random() < 1 / 12:
            made.append(rng.choice(made))
            continue
        app, difficulty, text = rng.choice(flat)
        asked = make.request(text, rng)
        messages = asked.get("messages") or [{"role": "user", "content": asked["prompt"]}]
        if rng.random() < 0.03:
            name = rng.choice(make.WORDS["name"]).lower()
            contact = rng.choice([f"{name}@example.com.", f"212-555-0{rng.randint(100, 199)}."])
            messages[-1] = {**messages[-1], "content": messages[-1]["content"] + CONTACT + contact}
        made.append((app, difficulty, messages))
    yield from made


@cache
def difficulties() -> dict[str, float]:
    """How hard each request of the log is, from 0 to 10: what its template's author thought."""
    return {key(messages): difficulty for _, difficulty, messages in requests()}


def difficulty_of(messages: Sequence[Mapping[str, Any]]) -> float:
    """The author's where the log has it; else the longer the harder."""
    words = key(messages)
    return difficulties().get(words, min(9.0, len(words.split()) / 20))


def quality(model: str, messages: Sequence[Mapping[str, Any]]) -> float:
    """The stated rule: strong is worth 8 to 9 of 10; weak less by the difficulty plus noise.

    The gap is difficulty - 2.85 + noise, the noise of mean 0 and standard deviation 2, always the
    same for a request: a win of strong as often as in make.py's comparisons.
    """
    rng = _seeded("quality", key(messages))
    strong = 8.0 + rng.random()
    # Uniform sums instead of a Gaussian: no logarithm or cosine that may differ between platforms.
    noise = 2.0 * 3.0**0.5 * (sum(rng.random() for _ in range(4)) - 2.0)
    gap = difficulty_of(messages) - 2.85 + noise
    return strong - (gap if model == "weak-sim" else 0.0)


def answer(model: str, messages: Sequence[Mapping[str, Any]]) -> str:
    """What a model says: how good it is."""
    return f"A simulated answer of quality {quality(model, messages):.1f}."


def verdict(text: str) -> str:
    """What the judge says of the two answers in `text`: the clearly better one, else a tie.

    One time in twenty it is careless and takes the first, whatever it says.
    """
    found = [float(number) for number in _QUALITY.findall(text)][-2:]
    if len(found) < 2:
        return "There are no two answers.\nVERDICT: TIE"
    lead = found[0] - found[1]
    if _seeded("careless", text).random() < 0.05:
        lead = 10.0
    said = "1" if lead > _WIN else "2" if lead < -_WIN else "TIE"
    return f"By the quality that is stated.\nVERDICT: {said}"


def tokens(model: str, messages: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Tokens of a request and of its answer, which is longer the harder; verdicts are short."""
    asked = sum(len(str(m["content"])) for m in messages) // 4 + 4 * len(messages)
    if model == "judge-sim":
        return asked, 40
    rate = 36.0 if model == "weak-sim" else 45.0
    return asked, round(40 + rate * difficulty_of(messages))


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
        price_in, price_out = PRICES[model]
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
    """Write own-logs.jsonl into `folder`."""
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries()]
    (folder / "own-logs.jsonl").write_bytes(("\n".join(lines) + "\n").encode())


def _moment(rng: random.Random) -> datetime:
    """Some time in the four weeks, mostly by day."""
    day, hour = rng.randrange(DAYS), rng.choice([*range(24), *range(8, 18), *range(8, 18)])
    return START + timedelta(days=day, hours=hour, seconds=rng.randrange(3600))


def _seeded(*what: str) -> random.Random:
    digest = hashlib.sha256("\0".join(what).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))  # noqa: S311


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
