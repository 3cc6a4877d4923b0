"""What comes out: comparisons as JSONL, and what was found about them and about the judge."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.logs.schema import LogRow
from .agreement import agreement
from .asking import Label, Outcome
from .ledger import LabelLedger
from .planning import CostEstimate
from .sampling import weights
from .settings import LabelSetup
from .votes import human_scores

_STOPPED = {
    "cap": "stopped at --max-usd; the same command with a larger one goes on",
    "interrupted": "interrupted; the same command goes on",
    "failures": "stopped by failures; the same command goes on",
}


def final_scores(
    labels: Mapping[str, Label], ledger: LabelLedger
) -> Mapping[str, tuple[float, str]]:
    """By row: strong's score and where it is from. People overrule checks and judges."""
    judged = {item: (x.strong, x.source) for item, x in labels.items() if x.strong is not None}
    votes = human_scores(ledger, labels)
    voted = {item: (votes[item][0], "human") for item in labels if item in votes}
    return {item: (voted | judged | voted)[item] for item in labels if item in voted | judged}


def comparisons(
    setup: LabelSetup, ledger: LabelLedger, rows: Sequence[LogRow], labels: Mapping[str, Label]
) -> list[dict[str, Any]]:
    """One object a label, as `data.readers` reads comparisons; model a is the strong one.
    `weight` is how much of the log the row stands for, with a mean of 1 over the labels."""
    scores = final_scores(labels, ledger)
    shares = weights(ledger.rounds, scores)
    weight = {row.id: row.weight * shares[row.id] for row in rows if row.id in scores}
    mean = sum(weight.values()) / max(1, len(weight))

    def record(row: LogRow) -> dict[str, Any]:
        label, (strong, source) = labels[row.id], scores[row.id]
        return {
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
            **{f"{name}_b": value for name, value in _answer_of(label).items()},
        }

    return [_about(row, "id", record(row)) for row in rows if row.id in scores]


def checked_scores(
    setup: LabelSetup, rows: Sequence[LogRow], labels: Mapping[str, Label]
) -> list[dict[str, Any]]:
    """Of what was checked, two objects a row as `data.readers` reads scores: right or not, which a
    tie does not say."""
    found = []
    for row in rows:
        label = labels.get(row.id)
        if label is None or label.checked is None:
            continue
        sides = (setup.strong, label.strong_reply), (setup.weak, label.weak_reply)
        for (model, reply), right in zip(sides, label.checked, strict=True):
            told = {"model": model.name, "score": float(right), "source": label.source}
            tokens = {"input_tokens": reply.input_tokens, "output_tokens": reply.output_tokens}
            about = {**told, "task": row.task, **tokens, "cost_usd": reply.usd}
            about |= _answer_of(label) if reply is label.weak_reply else {}
            found.append(_about(row, "item_id", about))
    return found


def _answer_of(label: Label) -> dict[str, Any]:
    """What a second look is trained on, as `data.answers` reads it."""
    weak = label.weak_reply
    tokens = [{"token": token, "logprob": value} for token, value in weak.logprobs]
    told = {"confidence": weak.confidence, "logprobs": tokens or None}
    return {"answer": weak.text, **told, "second": label.second}


def _about(row: LogRow, id_name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """The row's id and request with what was found; what is not known is left out."""
    plain = len(row.messages) == 1 and isinstance(row.messages[0].get("content"), str)
    request = {"prompt": row.prompt} if plain else {"messages": list(row.messages)}
    told = {name: value for name, value in found.items() if value is not None and value != ""}
    return {id_name: row.id, **request, **told}


def summary(
    setup: LabelSetup,
    ledger: LabelLedger,
    outcome: Outcome,
    *,
    rows: int,
    cap: float | None,
    expected: CostEstimate,
) -> dict[str, Any]:
    """What was done, what it cost, and how good the labels are; as JSON."""
    labels = outcome.labels
    scores = final_scores(labels, ledger)
    values = [strong for strong, _ in scores.values()]
    drawn = len(ledger.drawn)
    unlabelled = Counter(outcome.reasons.values())
    if (left := drawn - len(scores) - len(outcome.reasons)) > 0:
        unlabelled["not compared yet"] = left
    finishes = [{x.strong_reply.finish, x.weak_reply.finish} for x in labels.values()]
    return {
        "rows": rows,
        "drawn": drawn,
        "labelled": len(scores),
        "stopped": outcome.stopped,
        "strong": setup.strong.name,
        "weak": setup.weak.name,
        "strong_better": sum(value > 0.5 for value in values),
        "tie": sum(value == 0.5 for value in values),
        "weak_better": sum(value < 0.5 for value in values),
        "sources": dict(Counter(source for _, source in scores.values()).most_common()),
        "unlabelled": dict(unlabelled),
        "cut": sum("length" in finish for finish in finishes),
        "usd": {
            "estimated": round(expected.usd, 6),
            "left": round(outcome.left_usd, 6),
            "cap": cap,
            "spent": round(ledger.spent, 6),
            "perhaps": round(ledger.lost, 6),
            "by_model": {name: round(usd, 6) for name, usd in ledger.by_model.items()},
        },
        "judge": _judge(setup, ledger, labels),
    }


def _judge(
    setup: LabelSetup, ledger: LabelLedger, labels: Mapping[str, Label]
) -> dict[str, Any] | None:
    """How far the judge agrees with itself and with people."""
    verdicts = {item: label.verdict for item, label in labels.items() if label.verdict is not None}
    if setup.judge is None or not verdicts:
        return None
    ones, others = zip(*verdicts.values(), strict=True)
    # Whether the answer that stood first was preferred, of the verdicts that are no tie.
    firsts = [one == 1 for one in ones if one != 0.5] + [two == 0 for two in others if two != 0.5]
    # The majority of several people's votes.
    votes = human_scores(ledger, labels)
    people = {i: 0.5 if votes[i][0] == 0.5 else float(votes[i][0] > 0.5) for i in votes}
    both = [(verdicts[item].strong, people[item]) for item in verdicts if item in people]
    return {
        "model": setup.judge.name,
        "n": len(verdicts),
        "orders": agreement(ones, others),
        # A half where the place does not matter.
        "first_preferred": round(sum(firsts) / len(firsts), 4) if firsts else None,
        "against_people": agreement(*zip(*both, strict=True)) if both else None,
    }


def summary_lines(summary: Mapping[str, Any], out: Path) -> Iterator[str]:
    """A summary as lines to print."""
    usd, count = summary["usd"], summary["labelled"]

    def counts(name: str) -> str:
        return ", ".join(f"{each} {count:,}" for each, count in summary[name].items())

    if summary["stopped"] == "estimate":
        yield f"estimated: ${usd['estimated']:.4f} for {summary['drawn']:,} rows"
        return
    if count:
        yield (
            f"wrote {out}: {count:,} comparisons; {summary['strong']} better in "
            f"{summary['strong_better']:,}, {summary['weak']} in {summary['weak_better']:,}, "
            f"{summary['tie']:,} ties"
        )
        yield "labelled by: " + counts("sources")
    else:
        yield f"no labels: nothing was written to {out}"
    if summary["unlabelled"]:
        yield "without a label: " + counts("unlabelled")
    if summary["cut"]:
        yield f"{summary['cut']:,} rows have an answer that was cut off at --max-tokens"
    cap = "" if usd["cap"] is None else f" of ${usd['cap']:g}"
    lost = (
        f", and perhaps ${usd['perhaps']:.4f} by calls that never ended" if usd["perhaps"] else ""
    )
    left = f"; about ${usd['left']:.4f} more for the rest" if usd["left"] else ""
    yield f"spent: ${usd['spent']:.4f}{cap}{lost}{left}"
    if (judge := summary["judge"]) is not None:
        first = judge["first_preferred"]
        place = "" if first is None else f"; the answer shown first won {first:.0%} of the rest"
        yield f"judge {judge['model']}, both orders: {_agreement(judge['orders'])}{place}"
        if judge["against_people"] is not None:
            yield f"judge against people: {_agreement(judge['against_people'])}"
    if summary["stopped"]:
        yield _STOPPED[summary["stopped"]]


def _agreement(found: Mapping[str, Any]) -> str:
    low, high = found["agreement_ci"]
    text = f"{found['agreement']:.0%} [{low:.0%}, {high:.0%}] agree of {found['n']:,}"
    if found["kappa"] is None:
        return f"{text}, kappa not defined: always the same verdict"
    low, high = found["kappa_ci"]
    return f"{text}, kappa {found['kappa']:.2f} [{low:.2f}, {high:.2f}]"
