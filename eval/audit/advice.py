"""What to do after an audit: steps in words, each with a command where there is one."""

import shlex
from collections.abc import Callable

from ...router.threshold import format_threshold
from .command import Audited

# (what to do, the command or "").
Step = tuple[str, str]


def next_steps(audited: Audited) -> list[Step]:
    """The steps that follow from the verdict and its reason, the first to do first.

    Words in capitals in a command are the reader's to fill in.
    """
    return _STEPS[audited.verdict.verdict](audited)


def _pair(audited: Audited) -> str:
    strong, weak = audited.benchmark.strong_model, audited.benchmark.weak_model
    sides = (shlex.quote(side.replace(", ", ",")) for side in (strong, weak))
    return "--data LABELS --strong {} --weak {}".format(*sides)


def _router(audited: Audited) -> str:
    return f"--router {shlex.quote(audited.router)}"


def _route_steps(audited: Audited) -> list[Step]:
    verdict, router = audited.verdict, _router(audited)
    at = format_threshold(verdict.threshold)
    steps = [
        (
            "Serve it, at first with shadow: true in thriftroute.yaml: the strong model answers, "
            "and what would have been routed is recorded.",
            f"thriftroute serve {router} --threshold {at} --strong-model STRONG --weak-model WEAK",
        ),
        (
            "A threshold from all labels may save more with the same promise; half of them chose "
            "this one.",
            f"thriftroute calibrate {router} {_pair(audited)} "
            f"--min-quality {verdict.min_quality:g} --confidence {verdict.confidence:g}",
        ),
        (
            "Watch for drift: the promise is one about prompts like these.",
            f"thriftroute watch {router}",
        ),
    ]
    better = [warning for warning in verdict.warnings if "keeps more quality" in warning]
    if better:
        steps.append(
            (
                "A simpler way does better here (see above): train on labels of your own, and "
                "audit the result on others.",
                f"thriftroute train mf {_pair(audited)} --out my-router",
            )
        )
    return steps


def _weak_steps(audited: Audited) -> list[Step]:
    saved = f"{audited.verdict.saving:.1%}"
    unit = "the cost" if audited.verdict.saving_of == "usd" else "the strong calls"
    return [
        (f"Move this traffic to the weak model; that saves {saved} of {unit}.", ""),
        ("Label a small sample every month: what is asked changes, and so do models.", ""),
        ("Look at the groups above: one where the weak model falls short may stay strong.", ""),
    ]


def _train(audited: Audited) -> list[Step]:
    return [
        (
            "Train a router on labels of your own, from about 300 on, and audit it on labels that "
            "it has not seen.",
            f"thriftroute train mf {_pair(audited)} --out my-router",
        ),
        ("Try another weak model: a better one leaves less to lose.", ""),
        (
            f"Or ask for less: a quality of {audited.verdict.min_quality:.0%} may be more than "
            "this traffic needs.",
            "",
        ),
    ]


def _strong_steps(audited: Audited) -> list[Step]:
    reason, steps = audited.verdict.reason, _train(audited)
    if reason == "weak-not-cheaper":
        return [("Choose a weak model that costs less, or check the prices.", "")]
    # Where the weak model is what fails, no router mends it.
    return steps[1:] if reason == "too-much-quality-lost" else steps


def _label_steps(audited: Audited) -> list[Step]:
    verdict = audited.verdict
    assert verdict.needed_n is not None
    total = verdict.needed_n
    more = total - verdict.n
    return [
        (
            f"Label about {more:,} more prompts of the same traffic, drawn at random.",
            "thriftroute label LOG --strong STRONG --weak WEAK --judge JUDGE --max-usd USD "
            f"--out LABELS --n {total}",
        ),
        (
            "Audit again, with the old labels and the new.",
            f"thriftroute audit {_router(audited)} {_pair(audited)}",
        ),
        ("Until then the strong model is the safe choice.", ""),
    ]


_STEPS: dict[str, Callable[[Audited], list[Step]]] = {
    "route": _route_steps,
    "weak-only": _weak_steps,
    "strong-only": _strong_steps,
    "label-more": _label_steps,
}
