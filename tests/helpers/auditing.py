"""Labelled rows for the tests of audits: 'big' against 'small' on prompts that the tiny bundle
tells apart."""

import json
from pathlib import Path
from typing import Any

import numpy as np

PAIR = ("--strong", "big", "--weak", "small")


def prompt(i: int, *, hard: bool) -> str:
    """A prompt of its own, with few ties among scores; 'hard' ones score high."""
    words = ["prove", "the", "theorem"] if hard else ["hello", "the", "easy"]
    return " ".join([*words, *["the"] * (i % 11), *["is"] * (i % 7), f"q{i}"])


def write(
    path: Path,
    n: int,
    *,
    informed: bool = True,
    weak: float = 0.65,
    costs: bool = False,
    tasks: bool = False,
    weight: bool = False,
    seed: int = 0,
) -> Path:
    """`n` prompts with a score of either model, JSONL. `informed`: small fails on hard prompts,
    else anywhere, as often on the whole (`weak` is how often it is right)."""
    rng = np.random.default_rng((seed, 5))
    rows: list[dict[str, Any]] = []
    for i in range(n):
        hard = bool(rng.random() < 0.5)
        chance = weak + (-0.3 if hard else 0.3) * informed
        for model, right, usd in (("big", 0.9, 0.01), ("small", chance, 0.001)):
            row: dict[str, Any] = {
                "prompt": prompt(i, hard=hard), "model": model, "score": float(rng.random() < right)
            }  # fmt: skip
            if costs:
                row["cost_usd"] = usd
            if tasks:
                row["category"] = "<proofs>" if hard else "greetings"
            if weight:
                row["weight"] = 1.0 + i % 2
            rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
