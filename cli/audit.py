"""The commands `audit` and `report`: whether routing pays on labelled prompts."""

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
SeedOption = Annotated[int, Option(min=0, help="Of the halves and intervals.")]


def add_commands(app: typer.Typer) -> None:
    """Put the commands of this module on `app`."""
    app.command()(audit)
    app.command()(report)


def audit(
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
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Say whether routing pays here: route, weak alone, strong alone, or label so many more.

    One half of the labels chooses the threshold, the other measures it.

    Example: thriftroute audit --data labels.jsonl --strong gpt-4o --weak llama3 --router my-router
    """
    audited = _run(**{key: value for key, value in locals().items() if key != "as_json"})
    if as_json:
        print_json({**audited.verdict.to_dict(), "router": router})
        return
    from ..eval.audit.command import print_audit

    print_audit(audited)


def report(
    out: Annotated[Path, Option(help="The HTML page to write.")],
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
    examples: Annotated[bool, Option(help="With prompts of the data on it.")] = True,
    seed: SeedOption = 0,
) -> None:
    """Write the audit as one HTML page: money, quality, tasks, examples, and what to do next.

    Example: thriftroute report --data labels.jsonl --strong gpt-4o --weak llama3 --out report.html
    """
    shared = {key: value for key, value in locals().items() if key not in ("out", "examples")}
    if not out.parent.is_dir():
        # Before the work, not after it.
        raise ConfigError(f"--out {out}: there is no folder {out.parent}; make it first")
    audited = _run(**shared)
    from ..eval.audit.page import to_html

    with whole_file(out, opener=private if examples else None) as file:
        file.write(to_html(audited, examples=examples).encode(errors="replace"))
    say(f"{audited.verdict.verdict}: {audited.verdict.why}")
    say(f"wrote {out}")


def _run(router: str, data: str | None, seed: int, **options: Any) -> "Audited":
    """The options that both commands have, as what they mean."""
    from ..eval.audit.command import run_audit
    from ..eval.audit.verdict import AuditSettings
    from ..eval.command import Target
    from ..eval.pricing import CostOptions

    for name in ("min_quality", "confidence"):
        value = options[name]
        if 1 < value <= 100:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is a part of 1: for {value:g}% give {value / 100:g}")
    strong, weak = names(options.pop("strong")), names(options.pop("weak"))
    target = Target(options.pop("benchmark") or (), data, strong, weak)
    asked = ("min_quality", "confidence", "min_saving", "max_labels")
    settings = AuditSettings(**{name: options.pop(name) for name in asked}, seed=seed)
    return run_audit(router, target, settings, CostOptions(**options))
