"""The commands `evaluate` and `calibrate`: what a router is worth, and its threshold."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError, require_extra
from .options import (
    BenchmarkOption,
    JsonOption,
    RouterOption,
    SeedOption,
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

INFEASIBLE = 3  # exit status
# Protocols that the documentation's figures are from; `research` has them.
RESEARCH = ("other-pairs", "new-model", "calibration", "int8", "languages")


def add_commands(app: typer.Typer) -> None:
    """Put the commands of this module on `app`."""
    app.command()(evaluate)
    app.command()(calibrate)


def evaluate(
    router: Annotated[
        list[str] | None,
        typer.Option("--router", help="mf, bert, or a bundle's folder; may be given again."),
    ] = None,
    benchmark: BenchmarkOption = None,
    data: Annotated[
        str | None, typer.Option("--data", help="A file of scores or comparisons.")
    ] = None,
    strong: StrongOption = None,
    weak: WeakOption = None,
    train_data: Annotated[
        list[str] | None,
        typer.Option(
            "--train-data", help="What the routers learned from, for a kNN on equal data."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for curves (PNG), report.html, results.json."),
    ] = None,
    seed: SeedOption = 0,
    bootstraps: Annotated[int, typer.Option("--bootstraps", min=100, help="Resamples.")] = 1000,
    knn: Annotated[
        bool, typer.Option("--knn/--no-knn", help="With the kNN and ridge baselines.")
    ] = True,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            help="own-logs: what N labels of your own are worth (extra 'train').",
        ),
    ] = None,
    sizes: Annotated[
        str | None, typer.Option("--sizes", help="Of a protocol: numbers of labels, as 100,300.")
    ] = None,
    draws: Annotated[int, typer.Option("--draws", min=2, help="Of a protocol.")] = 10,
    pairs: Annotated[int, typer.Option("--pairs", min=1, help="Of a protocol.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Measure routers beside all baselines, with intervals; needs the extra 'eval'.

    Example: thriftroute evaluate --router mf --benchmark gsm8k --out report

    Example: thriftroute evaluate --protocol own-logs --benchmark mmlu --sizes 300,1500
    """
    if protocol is None and sizes is not None:
        raise ConfigError("--sizes is of a protocol: give --protocol, such as own-logs")
    if protocol is not None:
        unused = {
            "--out": out,
            "--strong": strong,
            "--weak": weak,
            "--train-data": train_data,
        }
        if given := [name for name, value in unused.items() if value]:
            raise ConfigError(f"--protocol has no use for {', '.join(given)}: leave it out")
        _run_protocol(
            protocol,
            router or ["mf"],
            benchmark_names=benchmark or (),
            sizes=_sizes(sizes),
            draws=draws,
            seed=seed,
            as_json=as_json,
        )
        return

    require_extra("scipy", "eval")
    if out is not None:
        # Before the work, not after it.
        require_extra("matplotlib", "eval")
        out.mkdir(parents=True, exist_ok=True)
    from ..eval import report
    from ..eval.command import Target, run_evaluation

    target = Target(benchmark or (), data, names(strong), names(weak))
    result = run_evaluation(
        router or ["mf"],
        target,
        train_data=train_data or (),
        seed=seed,
        bootstraps=bootstraps,
        knn=knn,
    )
    written = report.save(result, out) if out is not None else {}
    if as_json:
        say(report.to_json(result))
    else:
        report.show(result)
        for path in written.values():
            say(f"wrote {path}")


def calibrate(
    router: RouterOption = "mf",
    benchmark: BenchmarkOption = None,
    prompts: Annotated[
        str | None, typer.Option("--prompts", help="Your own prompts; no labels needed.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="A labelled file instead.")] = None,
    strong: StrongOption = None,
    weak: WeakOption = None,
    strong_pct: Annotated[
        float | None, typer.Option("--strong-pct", help="Wanted share of strong calls, 0 to 1.")
    ] = None,
    usd_per_1k: Annotated[
        float | None, typer.Option("--usd-per-1k", help="Budget: mean USD per 1,000 requests.")
    ] = None,
    strong_model: StrongModelOption = None,
    weak_model: WeakModelOption = None,
    strong_price: StrongPriceOption = None,
    weak_price: WeakPriceOption = None,
    output_tokens: TokensOption = None,
    min_quality: Annotated[
        float | None,
        typer.Option("--min-quality", help="Promise this part of strong's mean reward, as 0.95."),
    ] = None,
    min_gap: Annotated[
        float | None,
        typer.Option("--min-gap", help="Promise this part of the gap between weak and strong."),
    ] = None,
    max_regret: Annotated[
        float | None,
        typer.Option("--max-regret", help="Promise to lose at most so much mean reward, as 0.02."),
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option("--confidence", help="Of a promise, or of a budget [0.9 for a promise]."),
    ] = None,
    max_request_usd: Annotated[
        float | None,
        typer.Option("--max-request-usd", help="Of a budget's promise: no request costs more."),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the table of shares into the bundle.")
    ] = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Turn a share of strong calls, a budget or a promise about quality into a threshold.

    A promise that these labels cannot show to be kept ends with exit status 3.

    Example: thriftroute calibrate --router mf --prompts prompts.jsonl --strong-pct 0.3

    Example: thriftroute calibrate --data F --strong A --weak B --min-quality 0.95 --confidence 0.9
    """
    from ..eval.command import CostOptions, Target, run_calibration

    target = Target(benchmark or (), data, names(strong), names(weak))
    cost = CostOptions(strong_model, weak_model, strong_price, weak_price, output_tokens)
    promised = (min_quality, min_gap, max_regret, confidence, max_request_usd)
    if any(value is not None for value in promised):
        from ..eval.guarantee.command import OPTIONS, print_guarantee, promise_of, run_guarantee

        if strong_pct is not None:
            raise ConfigError("--strong-pct promises nothing: leave it out, or the promise")
        given = dict(zip(OPTIONS, (min_quality, min_gap, max_regret, usd_per_1k), strict=True))
        promise = promise_of(given, confidence, max_request_usd)
        found = run_guarantee(
            router, target, promise, prompts=prompts, cost=cost, write=write, seed=seed
        )
        if as_json:
            print_json(found.to_dict())
        else:
            print_guarantee(found)
        if not found.feasible:
            say(found.message, err=True)
            raise typer.Exit(INFEASIBLE)
        return

    result = run_calibration(
        router,
        target,
        prompts=prompts,
        strong_pct=strong_pct,
        usd_per_1k=usd_per_1k,
        cost=cost,
        write=write,
        seed=seed,
    )
    if as_json:
        print_json(result.to_dict())
        return
    from ..eval.report import show_calibration

    show_calibration(result)


def _run_protocol(name: str, routers: list[str], *, as_json: bool, **options: Any) -> None:
    if name in RESEARCH:
        raise ConfigError(
            f"--protocol {name} is no part of the installed package; in a clone of the project: "
            f"python -m thriftroute.research.protocols {name}"
        )
    if name != "own-logs":
        raise ConfigError(f"no protocol {name!r}; there is own-logs")
    require_extra("torch", "train")
    from rich.console import Console

    from ..eval.own_logs_report import show_own_logs
    from ..training.own_logs import run_protocol
    from ..training.progress import Progress

    if len(routers) != 1:
        raise ConfigError(f"--protocol works on one router, got {', '.join(routers)}")
    reports = run_protocol(routers[0], progress=Progress(Console(stderr=True)), **options)
    if as_json:
        print_json([found.to_dict() for found in reports])
        return
    for found in reports:
        show_own_logs(found)


def _sizes(text: str | None) -> list[int]:
    try:
        return [] if text is None else [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--sizes {text!r}: expected whole numbers, as 100,300") from error
