"""What comes out: comparisons as JSONL, and what was found about them and about the judge."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.logs.schema import LogRow
from ..files import private
from .active import weights
from .agreement import agreement
from .answers import Label
from .ledger import Ledger
from .plan import Estimate, Setup
from .votes import human_scores

Scores = Mapping[str, tuple[float, str, int]]  # row id -> strong's score, source, votes


def final_scores(labels: Mapping[str, Label], ledger: Ledger) -> Scores:
    """By row: strong's score and where it is from. People overrule checks and judges."""
    votes = human_scores(ledger, labels)
    found: dict[str, tuple[float, str, int]] = {}
    for item, label in labels.items():
        if item in votes:
            mean, count = votes[item]
            found[item] = (mean, "human", count)
        elif label.strong is not None:
            found[item] = (label.strong, label.source, 1)
    return found


def comparisons(
    setup: Setup, ledger: Ledger, rows: Sequence[LogRow], labels: Mapping[str, Label]
) -> list[dict[str, Any]]:
    """One object a label, as `data.readers` reads comparisons; model a is the strong one.

    `weight` is how much of the log the row stands for, with a mean of 1 over the labels: its own
    weight in the log times the inverse of its probability to be drawn.
    """
    scores = final_scores(labels, ledger)
    shares = weights(ledger.rounds, scores)
    weight = {row.id: row.weight * shares[row.id] for row in rows if row.id in scores}
    mean = sum(weight.values()) / max(1, len(weight))
    found = []
    for row in rows:
        if row.id not in scores:
            continue
        label, (strong, source, _) = labels[row.id], scores[row.id]
        plain = len(row.messages) == 1 and isinstance(row.messages[0].get("content"), str)
        record: dict[str, Any] = {"id": row.id}
        record |= {"prompt": row.prompt} if plain else {"messages": list(row.messages)}
        record |= {
            "model_a": setup.strong.name,
            "model_b": setup.weak.name,
            "outcome": {1.0: "a", 0.5: "tie", 0.0: "b"}.get(strong, round(strong, 6)),
            "weight": round(weight[row.id] / mean, 6),
            "source": source,
            "category": row.task or ("" if row.cluster is None else f"cluster {row.cluster}"),
            "tokens_a": label.strong_reply.output_tokens,
            "tokens_b": label.weak_reply.output_tokens,
            "cost_a": label.strong_reply.usd,
            "cost_b": label.weak_reply.usd,
            "time": row.time,
        }
        found.append({k: v for k, v in record.items() if v is not None and v != ""})
    return found


def checked_scores(
    setup: Setup, rows: Sequence[LogRow], labels: Mapping[str, Label]
) -> list[dict[str, Any]]:
    """Of what was checked, two objects a row as `data.readers` reads scores: right or not.

    A tie does not say whether both are right or both wrong; these do.
    """
    found = []
    for row in rows:
        label = labels.get(row.id)
        if label is None or label.checked is None:
            continue
        plain = len(row.messages) == 1 and isinstance(row.messages[0].get("content"), str)
        for side, right in zip(("strong", "weak"), label.checked, strict=True):
            reply = label.strong_reply if side == "strong" else label.weak_reply
            record: dict[str, Any] = {"item_id": row.id}
            record |= {"prompt": row.prompt} if plain else {"messages": list(row.messages)}
            record |= {
                "model": setup.strong.name if side == "strong" else setup.weak.name,
                "score": float(right),
                "source": label.source,
                "task": row.task,
                "input_tokens": reply.input_tokens,
                "output_tokens": reply.output_tokens,
                "cost_usd": reply.usd,
            }
            found.append({k: v for k, v in record.items() if v is not None and v != ""})
    return found


def write_jsonl(records: Iterable[Mapping[str, Any]], out: Path) -> None:
    """Write a file, whole or not at all. Raises OSError where it cannot be written."""
    part = Path(f"{out}.part")
    try:
        with open(part, "w", encoding="utf-8", opener=private) as file:
            for record in records:
                # ASCII, so that half a surrogate pair in a message can be written at all.
                file.write(json.dumps(record) + "\n")
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def summary(
    setup: Setup,
    ledger: Ledger,
    labels: Mapping[str, Label],
    reasons: Mapping[str, str],
    *,
    rows: int,
    stopped: str | None,
    cap: float | None,
    expected: Estimate,
) -> dict[str, Any]:
    """What was done, what it cost, and how good the labels are; as JSON."""
    scores = final_scores(labels, ledger)
    values = [strong for strong, _, _ in scores.values()]
    drawn = len(ledger.drawn)
    return {
        "rows": rows,
        "drawn": drawn,
        "labelled": len(scores),
        "stopped": stopped,
        "strong": setup.strong.name,
        "weak": setup.weak.name,
        "strong_better": sum(value > 0.5 for value in values),
        "tie": sum(value == 0.5 for value in values),
        "weak_better": sum(value < 0.5 for value in values),
        "sources": dict(Counter(source for _, source, _ in scores.values()).most_common()),
        "unlabelled": {
            **Counter(reasons.values()),
            **_left(drawn - len(scores) - len(reasons)),
        },
        "cut": sum(
            "length" in (label.strong_reply.finish, label.weak_reply.finish)
            for label in labels.values()
        ),
        "usd": {
            "estimated": round(expected.usd, 6),
            "cap": cap,
            "spent": round(ledger.spent, 6),
            "perhaps": round(ledger.lost, 6),
            "by_model": {name: round(usd, 6) for name, usd in ledger.by_model.items()},
        },
        "judge": _judge(setup, ledger, labels),
    }


def _left(count: int) -> dict[str, int]:
    return {"not compared yet": count} if count > 0 else {}


def _judge(setup: Setup, ledger: Ledger, labels: Mapping[str, Label]) -> dict[str, Any] | None:
    """How far the judge agrees with itself and with people."""
    verdicts = {item: label.verdict for item, label in labels.items() if label.verdict is not None}
    if setup.judge is None or not verdicts:
        return None
    each = [verdict.each for verdict in verdicts.values()]
    said = [said for v in verdicts.values() for said in (v.strong_first, v.weak_first)]
    decided = [place for place in said if place != "tie"]
    votes = human_scores(ledger, labels)
    both = [item for item in verdicts if item in votes]
    return {
        "model": setup.judge.name,
        "n": len(verdicts),
        "orders": agreement([a for a, _ in each], [b for _, b in each]).to_dict(),
        # A half where the place does not matter; of the verdicts that are no tie.
        "first_preferred": round(decided.count("1") / len(decided), 4) if decided else None,
        "against_people": None
        if not both
        else agreement(
            [verdicts[item].strong for item in both],
            [_side(votes[item][0]) for item in both],
        ).to_dict(),
    }


def _side(mean: float) -> float:
    """The majority of several people's votes."""
    return 0.5 if mean == 0.5 else float(mean > 0.5)
