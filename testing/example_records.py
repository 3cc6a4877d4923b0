"""A database of decisions to try `thriftroute watch` on, as docs/watch.md does; nothing is called.

    python -m thriftroute.testing.example_records thriftroute.db

Two months of 2026: nine days in shadow mode, then routed; in the second month an experiment, and in
its last four days other prompts.
"""

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import ConfigError
from ..eval.drift.arms import CONTROL, TREATMENT
from ..serve.config.settings import RecordSettings
from ..serve.records.record import Record
from ..serve.records.writer import Recorder

START, DAYS, DECISIONS = 1_767_225_600.0, 59, 9000  # from 2026-01-01, UTC
SHADOW_DAYS, TRIAL_DAY, CHANGE_DAY = 9, 31, 55
THRESHOLD, LOWER = 0.4, 0.3
STRONG_PRICE, WEAK_PRICE = 1e-5, 6e-7  # USD a token


def main() -> None:
    """Write the database that is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path)
    try:
        write(parser.parse_args().path)
    except ConfigError as error:
        parser.error(str(error))


def write(path: Path) -> None:
    """Raises ConfigError where the file is there already."""
    if path.exists():
        raise ConfigError(f"{path} is there already; give another name")
    recorder = Recorder(RecordSettings(url=f"sqlite:///{path}", queue=DECISIONS))
    recorder.start()
    for record in records():
        recorder.put(record)
    recorder.close(60.0)


def records(seed: int = 0) -> Iterator[Record]:
    """The decisions, in the order of time."""
    random = np.random.default_rng(seed)
    for i in range(DECISIONS):
        day = i * DAYS / DECISIONS
        score = float(random.beta(4.0 if day >= CHANGE_DAY else 3.0, 5.0))
        tokens, session = int(random.integers(50, 800)), f"s{int(random.integers(1800))}"
        strong_cost, weak_cost = tokens * STRONG_PRICE, tokens * WEAK_PRICE
        record = Record(
            id=f"{i:032x}",
            time=START + day * 86_400,
            router="mf",
            score=score,
            threshold=THRESHOLD,
            prompt_hash=_hash(f"prompt {i}"),
            session_hash=_hash(session),
            completion_tokens=tokens,
            strong_cost=strong_cost,
            latency_s=float(random.lognormal(0.0, 0.5)),
        )
        if day >= TRIAL_DAY:
            treated = int(_hash(f"trial {session}")[:8], 16) % 10 == 0
            record.arm = f"lower-threshold/{TREATMENT if treated else CONTROL}"
            record.threshold = LOWER if treated else THRESHOLD
        routed = score >= (record.threshold or THRESHOLD)
        strong = routed or day < SHADOW_DAYS
        record.model, record.strong = "gpt-4o" if strong else "gpt-4o-mini", strong
        record.cost = strong_cost if strong else weak_cost
        if day < SHADOW_DAYS:
            record.choice = "shadow"
            record.routed = "gpt-4o" if routed else "gpt-4o-mini"
            record.routed_cost = strong_cost if routed else weak_cost
        yield record


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    main()
