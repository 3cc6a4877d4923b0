"""The commands `audit` and `report`: whether routing pays on labelled prompts."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from ..errors import ConfigError
from ..files import private, whole_file
from .options import (
    JsonOption,
    RouterOption,
    StrongModelOption,
    StrongOption,
    StrongPriceOption,
    TokensOption,
    WeakModelOption,
    WeakOption,
    WeakPriceOption,
    names,
)
from .output import print_json, say

if TYPE_CHECKING:
    from ..eval.audit.command import Audited

DataOption = Annotated[str | None, Option(help="Labels that the router was not trained on.")]
BenchmarkOption = Annotated[list[str] | None, Option(help="mmlu, gsm8k or mt-bench instead.")]
QualityOption = Annotated[float, Option(help="Least part of strong's mean reward, as 0.95.")]
ConfidenceOption = Annotated[float, Option(help="With which --min-quality must be shown.")]
SavingOption = Annotated[float, Option(help="Least saving that is worth a router.")]
LabelsOption = Annotated[int, Option(min=1, help="Most labels that you would pay for.")]
SessionsOption = Annotated[
    list[Path] | None, Option(help="Recorded sessions, as replay reads them: may they switch?")
]
SeedOption = Annotated[int, Option(min=0, help="Of the halves and intervals.")]


def add_commands(app: typer.Typer) -> None:
    """Put the commands of this module on `app`."""
    for command in (audit, report):
        app.command(rich_help_panel="Measure")(_with_options(command))


def audit(as_json: JsonOption = False, **options: Any) -> None:
    """Say whether routing pays here: route, weak alone, strong alone, or label so many more.

    One half of the labels chooses the threshold, the other measures it.

    Example: thriftroute audit --data labels.jsonl --strong gpt-4o --weak llama3 --router my-router
    """
    audited = _run(**options)
    if as_json:
        print_json(audited.to_dict())
        return
    from ..eval.audit.command import print_audit

    print_audit(audited)


def report(
    out: Annotated[Path, Option(help="The HTML page to write.")],
    examples: Annotated[bool, Option(help="With prompts of the data on it.")] = True,
    **options: Any,
) -> None:
    """Write the audit as one HTML page: money, quality, tasks, examples, and what to do next.

    Example: thriftroute report --data labels.jsonl --strong gpt-4o --weak llama3 --out report.html
    """
    if not out.parent.is_dir():
        # Before the work, not after it.
        raise ConfigError(f"--out {out}: there is no folder {out.parent}; make it first")
    audited = _run(**options)
    from ..eval.audit.page import to_html

    with whole_file(out, opener=private if examples else None) as file:
        file.write(to_html(audited, examples=examples).encode(errors="replace"))
    say(f"{audited.verdict.verdict}: {audited.verdict.why}")
    say(f"wrote {out}")


def _run(
    router: RouterOption = "mf",
    data: DataOption = None,
    strong: StrongOption = None,
    weak: WeakOption = None,
    benchmark: BenchmarkOption = None,
    min_quality: QualityOption = 0.95,
    confidence: ConfidenceOption = 0.9,
    min_saving: SavingOption = 0.05,
    max_labels: LabelsOption = 10_000,
    strong_model: StrongModelOption = None,
    weak_model: WeakModelOption = None,
    strong_price: StrongPriceOption = None,
    weak_price: WeakPriceOption = None,
    output_tokens: TokensOption = None,
    sessions: SessionsOption = None,
    seed: SeedOption = 0,
) -> "Audited":
    """What both commands do, with the options that both have."""
    from ..eval.audit.command import run_audit
    from ..eval.audit.verdict import AuditSettings
    from ..eval.command import Target
    from ..eval.pricing import CostOptions

    for flag, value in (("--min-quality", min_quality), ("--confidence", confidence)):
        if 1 < value <= 100:
            raise ConfigError(f"{flag} is a part of 1: for {value:g}% give {value / 100:g}")
    target = Target(benchmark or (), data, names(strong), names(weak))
    settings = AuditSettings(min_quality, confidence, min_saving, max_labels, seed=seed)
    cost = CostOptions(strong_model, weak_model, strong_price, weak_price, output_tokens)
    return run_audit(router, target, settings, cost, sessions or ())


def _with_options(command: Callable[..., None]) -> Any:
    """`command` as typer sees it: with the options of `_run` in place of `**options`."""
    own, shared = (dict(inspect.signature(one).parameters) for one in (command, _run))
    own.pop("options")
    every = sorted((own | shared).values(), key=lambda one: one.default is not one.empty)
    known: Any = command
    known.__signature__ = inspect.Signature(every)
    known.__annotations__ = {one.name: one.annotation for one in every}
    return known
