"""The commands `audit` and `report`: whether routing pays on labelled prompts."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError
from ..files import private
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

DataOption = Annotated[
    str | None,
    typer.Option("--data", help="Labelled prompts that the router was not trained on."),
]
BenchmarkOption = Annotated[
    list[str] | None, typer.Option("--benchmark", help="mmlu, gsm8k or mt-bench instead.")
]
QualityOption = Annotated[
    float,
    typer.Option("--min-quality", help="Least part of strong's mean reward to keep, as 0.95."),
]
ConfidenceOption = Annotated[
    float, typer.Option("--confidence", help="With which --min-quality must be shown.")
]
SavingOption = Annotated[
    float, typer.Option("--min-saving", help="Least saving that is worth a router.")
]
LabelsOption = Annotated[
    int, typer.Option("--max-labels", min=1, help="Most labels that you would pay for.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of the halves and intervals.")]


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
    audited = _run(
        router, data, strong, weak, benchmark, min_quality, confidence, min_saving, max_labels,
        (strong_model, weak_model, strong_price, weak_price, output_tokens), seed,
    )  # fmt: skip
    if as_json:
        print_json({**audited.verdict.to_dict(), "router": router})
        return
    from ..eval.audit.command import show

    show(audited)


def report(
    out: Annotated[Path, typer.Option("--out", help="The HTML page to write.")],
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
    examples: Annotated[
        bool, typer.Option("--examples/--no-examples", help="With prompts of the data on it.")
    ] = True,
    seed: SeedOption = 0,
) -> None:
    """Write the audit as one HTML page: money, quality, tasks, examples, and what to do next.

    Example: thriftroute report --data labels.jsonl --strong gpt-4o --weak llama3 --out report.html
    """
    if not out.parent.is_dir():
        # Before the work, not after it.
        raise ConfigError(f"--out {out}: there is no folder {out.parent}; make it first")
    audited = _run(
        router, data, strong, weak, benchmark, min_quality, confidence, min_saving, max_labels,
        (strong_model, weak_model, strong_price, weak_price, output_tokens), seed,
    )  # fmt: skip
    from ..eval.audit.page import to_html
    from ..eval.fetch import write_atomically

    page = to_html(audited, examples=examples).encode(errors="replace")
    write_atomically(out, page, opener=private if examples else None)
    say(f"{audited.verdict.verdict}: {audited.verdict.why}")
    say(f"wrote {out}")


def _run(
    router: str,
    data: str | None,
    strong: str | None,
    weak: str | None,
    benchmark: list[str] | None,
    min_quality: float,
    confidence: float,
    min_saving: float,
    max_labels: int,
    prices: tuple[Any, ...],
    seed: int,
) -> Any:
    from ..eval.audit.command import Wish, run_audit
    from ..eval.command import CostOptions, Target

    for option, value in (("--min-quality", min_quality), ("--confidence", confidence)):
        if 1 < value <= 100:
            raise ConfigError(f"{option} is a part of 1: for {value:g}% give {value / 100:g}")
    return run_audit(
        router,
        Target(benchmark or (), data, names(strong), names(weak)),
        Wish(min_quality, confidence, min_saving, max_labels),
        cost=CostOptions(*prices),
        seed=seed,
    )
