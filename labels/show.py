"""A run's summary as lines of text."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_STOPPED = {
    "estimate": "nothing was asked: this was the estimate",
    "cap": "stopped at --max-usd; the same command with a larger one goes on",
    "interrupted": "interrupted; the same command goes on",
    "failures": "stopped by failures; the same command goes on",
}


def show(summary: Mapping[str, Any], out: Path) -> Iterator[str]:
    """Lines to print."""
    usd, count = summary["usd"], summary["labelled"]
    if summary["stopped"] == "estimate":
        yield f"estimated: ${usd['estimated']:.4f} for {summary['drawn']:,} rows"
        return
    if count:
        yield (
            f"wrote {out}: {count:,} comparisons; {summary['strong']} better in "
            f"{summary['strong_better']:,}, {summary['weak']} in {summary['weak_better']:,}, "
            f"{summary['tie']:,} ties"
        )
        yield "labelled by: " + _counts(summary["sources"])
    else:
        yield f"no labels: nothing was written to {out}"
    if summary["unlabelled"]:
        yield "without a label: " + _counts(summary["unlabelled"])
    if summary["cut"]:
        yield f"{summary['cut']:,} rows have an answer that was cut off at --max-tokens"
    perhaps = f", and perhaps ${usd['perhaps']:.4f} by calls that never ended" * bool(
        usd["perhaps"]
    )
    cap = "" if usd["cap"] is None else f" of ${usd['cap']:g}"
    yield f"spent: ${usd['spent']:.4f}{cap}{perhaps}"
    if summary["judge"] is not None:
        yield from _judge(summary["judge"])
    if summary["stopped"]:
        yield _STOPPED[summary["stopped"]]


def _judge(judge: Mapping[str, Any]) -> Iterator[str]:
    preferred = judge["first_preferred"]
    place = "" if preferred is None else f"; the answer shown first won {preferred:.0%} of the rest"
    yield f"judge {judge['model']}, both orders: {_agreement(judge['orders'])}{place}"
    if judge["against_people"] is not None:
        yield f"judge against people: {_agreement(judge['against_people'])}"


def _agreement(found: Mapping[str, Any]) -> str:
    low, high = found["agreement_ci"]
    text = f"{found['agreement']:.0%} [{low:.0%}, {high:.0%}] agree of {found['n']:,}"
    if found["kappa"] is None:
        return f"{text}, kappa not defined: always the same verdict"
    low, high = found["kappa_ci"]
    return f"{text}, kappa {found['kappa']:.2f} [{low:.2f}, {high:.2f}]"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
