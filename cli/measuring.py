"""The commands `evaluate` and `calibrate`: what a router is worth, and its threshold."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

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

if TYPE_CHECKING:
    from ..eval.command import Target
    from ..eval.guarantee.promises import Promise
    from ..eval.look_command import LookOptions
    from ..eval.own_logs import OwnLogsReport

INFEASIBLE = 3  # exit status
Text = str | None
Texts = list[str] | None
Number = float | None
# Protocols that the documentation's figures are from; `research` has them.
RESEARCH = ("other-pairs", "new-model", "calibration", "int8", "languages")


def add_commands(app: typer.Typer) -> None:
    """Put the commands of this module on `app`."""
    app.command(rich_help_panel="Measure")(evaluate)
    app.command(rich_help_panel="Measure")(calibrate)


def evaluate(
    router: Annotated[
        Texts, Option(help="A built-in one or a bundle's folder; several times.")
    ] = None,
    benchmark: BenchmarkOption = None,
    data: Annotated[Text, Option(help="A file of scores or comparisons.")] = None,
    strong: StrongOption = None,
    weak: WeakOption = None,
    train_data: Annotated[Texts, Option(help="What the routers learned from, for a kNN.")] = None,
    out: Annotated[Path | None, Option(help="For curves (PNG), report.html, results.json.")] = None,
    seed: SeedOption = 0,
    bootstraps: Annotated[int, Option(min=100, help="Resamples.")] = 1000,
    knn: Annotated[bool, Option(help="With the kNN and ridge baselines.")] = True,
    protocol: Annotated[Text, Option(help="own-logs: what N labels are worth ('train').")] = None,
    sizes: Annotated[Text, Option(help="Of a protocol: numbers of labels, as 100,300.")] = None,
    draws: Annotated[int, Option(min=2, help="Of a protocol.")] = 10,
    second_look: Annotated[Text, Option(help="A bundle with a second look; needs --data.")] = None,
    second: Annotated[Text, Option(help="second-look: the model of the second answers.")] = None,
    price_ratio: Annotated[Number, Option(help="second-look: strong call in weak ones.")] = None,
    scores: Annotated[Path | None, Option(help="second-look: scores and looks, Parquet.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure routers beside all baselines, with intervals; needs the extra 'eval'.

    Example: thriftroute evaluate --router mf --benchmark gsm8k --out report

    Example: thriftroute evaluate --protocol own-logs --benchmark mmlu --sizes 300,1500

    Example: thriftroute evaluate --second-look looks --data F --strong S --weak W --price-ratio 20
    """
    if second_look is not None:
        from ..eval.look_command import LookOptions

        others: dict[str, object] = {
            "--router": router,
            "--benchmark": benchmark,
            "--train-data": train_data,
        }
        others |= {"--out": out, "--protocol": protocol, "--sizes": sizes}
        _unused("--second-look has no use for it", others)
        look = LookOptions(second_look, data, names(strong), names(weak), second, price_ratio)
        _evaluate_look(look, scores, seed, bootstraps, as_json)
        return
    _unused(
        "only with --second-look",
        {"--second": second, "--price-ratio": price_ratio, "--scores": scores},
    )
    if protocol is None and sizes is not None:
        raise ConfigError("--sizes is of a protocol: give --protocol, such as own-logs")
    if protocol is not None:
        unused = {"--out": out, "--strong": strong, "--weak": weak, "--train-data": train_data}
        _unused("--protocol has no use for it", unused)
        reports = _run_protocol(protocol, router or ["mf"], benchmark, sizes, draws, seed)
        if as_json:
            print_json([one.to_dict() for one in reports])
            return
        from ..eval.own_logs import print_own_logs

        for one in reports:
            print_own_logs(one)
        return

    require_extra("scipy", "eval")
    if out is not None:
        # Before the work, not after it.
        require_extra("matplotlib", "eval")
        out.mkdir(parents=True, exist_ok=True)
    from ..eval import report
    from ..eval.command import Target, run_evaluation

    target = Target(benchmark or (), data, names(strong), names(weak))
    settings: dict[str, Any] = {"seed": seed, "bootstraps": bootstraps, "knn": knn}
    result = run_evaluation(router or ["mf"], target, train_data=train_data or (), **settings)
    written = report.save(result, out) if out is not None else {}
    if as_json:
        say(report.to_json(result))
        return
    report.print_report(result)
    for path in written.values():
        say(f"wrote {path}")


def calibrate(
    router: RouterOption = "mf",
    benchmark: BenchmarkOption = None,
    prompts: Annotated[Text, Option(help="Your own prompts; no labels needed.")] = None,
    data: Annotated[Text, Option(help="A labelled file instead.")] = None,
    strong: StrongOption = None,
    weak: WeakOption = None,
    strong_pct: Annotated[Number, Option(help="Wanted share of strong calls, 0 to 1.")] = None,
    usd_per_1k: Annotated[Number, Option(help="Budget: mean USD per 1,000 requests.")] = None,
    strong_model: StrongModelOption = None,
    weak_model: WeakModelOption = None,
    strong_price: StrongPriceOption = None,
    weak_price: WeakPriceOption = None,
    output_tokens: TokensOption = None,
    min_quality: Annotated[
        Number, Option(help="Promise this part of strong's reward, as 0.95.")
    ] = None,
    min_gap: Annotated[Number, Option(help="Promise this part of the gap, as 0.8.")] = None,
    max_regret: Annotated[
        Number, Option(help="Promise to lose at most so much reward, as 0.02.")
    ] = None,
    confidence: Annotated[Number, Option(help="Of a promise [0.9], or of a budget.")] = None,
    max_request_usd: Annotated[Number, Option(help="Of a budget: no request costs more.")] = None,
    second_look: Annotated[
        Text, Option(help="A bundle with a second look, whose policy is chosen and written.")
    ] = None,
    second: Annotated[Text, Option(help="second-look: the model of the second answers.")] = None,
    price_ratio: Annotated[Number, Option(help="second-look: strong call in weak ones.")] = None,
    write: Annotated[bool, Option("--write", help="Write the shares into the bundle.")] = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Turn a share of strong calls, a budget or a promise about quality into a threshold.

    A promise that these labels cannot show to be kept ends with exit status 3.

    Example: thriftroute calibrate --router mf --prompts prompts.jsonl --strong-pct 0.3

    Example: thriftroute calibrate --data F --strong A --weak B --min-quality 0.95 --confidence 0.9

    Example: thriftroute calibrate --second-look looks --data F --strong A --weak B --min-quality
    0.95 --confidence 0.9
    """
    from ..eval.command import Target, run_calibration
    from ..eval.pricing import CostOptions

    target = Target(benchmark or (), data, names(strong), names(weak))
    cost = CostOptions(strong_model, weak_model, strong_price, weak_price, output_tokens)
    if second_look is not None:
        others = {"--benchmark": benchmark, "--prompts": prompts, "--strong-pct": strong_pct}
        others |= {"--usd-per-1k": usd_per_1k, "--max-request-usd": max_request_usd}
        _unused("--second-look has no use for it", others)
        from ..eval.guarantee.command import OPTIONS, promise_of

        given = dict(zip(OPTIONS, (min_quality, min_gap, max_regret, None), strict=True))
        promise = promise_of(given, confidence, None)
        looked = {"second": second, "price_ratio": price_ratio, "cost": cost, "seed": seed}
        _calibrate_look(second_look, target, promise, looked, as_json)
        return
    _unused("only with --second-look", {"--second": second, "--price-ratio": price_ratio})
    shared: dict[str, Any] = {"prompts": prompts, "cost": cost, "write": write, "seed": seed}
    promised = (min_quality, min_gap, max_regret, confidence, max_request_usd)
    if any(value is not None for value in promised):
        from ..eval.guarantee.command import OPTIONS, print_guarantee, promise_of, run_guarantee

        if strong_pct is not None:
            raise ConfigError("--strong-pct promises nothing: leave it out, or the promise")
        given = dict(zip(OPTIONS, (min_quality, min_gap, max_regret, usd_per_1k), strict=True))
        promise = promise_of(given, confidence, max_request_usd)
        found = run_guarantee(router, target, promise, **shared)
        if as_json:
            print_json(found.to_dict())
        else:
            print_guarantee(found)
        if not found.feasible:
            say(found.message, err=True)
            raise typer.Exit(INFEASIBLE)
        return

    result = run_calibration(router, target, strong_pct=strong_pct, usd_per_1k=usd_per_1k, **shared)
    if as_json:
        print_json(result.to_dict())
        return
    from ..eval.report import print_calibration

    print_calibration(result)


def _unused(why: str, options: Mapping[str, object]) -> None:
    """Raise ConfigError where an option is given that has no use."""
    if given := [name for name, value in options.items() if value]:
        raise ConfigError(f"{', '.join(given)}: {why}; leave it out")


def _evaluate_look(
    options: "LookOptions", scores: Path | None, seed: int, bootstraps: int, as_json: bool
) -> None:
    from ..eval.look_command import print_look, run_look

    found = run_look(options, scores_out=scores, seed=seed, bootstraps=bootstraps)
    if as_json:
        print_json(found.to_dict())
    else:
        print_look(found)


def _calibrate_look(
    folder: str, target: "Target", promise: "Promise", options: dict[str, Any], as_json: bool
) -> None:
    from ..eval.guarantee.command import print_look_guarantee, run_look_guarantee

    found = run_look_guarantee(folder, target, promise, **options)
    if as_json:
        print_json(found.to_dict())
    else:
        print_look_guarantee(found)
    if not found.guarantee.feasible:
        say(found.guarantee.message, err=True)
        raise typer.Exit(INFEASIBLE)
    say(f"wrote the policy into {folder}", err=True)


def _run_protocol(
    name: str,
    routers: list[str],
    benchmarks: list[str] | None,
    sizes: str | None,
    draws: int,
    seed: int,
) -> "list[OwnLogsReport]":
    if name in RESEARCH:
        raise ConfigError(
            f"--protocol {name} is no part of the installed package; in a clone of the project: "
            f"python -m thriftroute.research.protocols {name}"
        )
    if name != "own-logs":
        raise ConfigError(f"no protocol {name!r}; there is own-logs")
    if len(routers) != 1:
        raise ConfigError(f"--protocol works on one router, got {', '.join(routers)}")
    try:
        numbers = [] if sizes is None else [int(part) for part in sizes.split(",")]
    except ValueError as error:
        raise ConfigError(f"--sizes {sizes!r}: expected whole numbers, as 100,300") from error
    require_extra("onnx", "fit")
    from rich.console import Console

    from ..training.own_logs import run_protocol
    from ..training.progress import Progress

    wanted: dict[str, Any] = {"benchmark_names": benchmarks or (), "sizes": numbers}
    wanted["progress"] = Progress(Console(stderr=True))
    return run_protocol(routers[0], **wanted, draws=draws, seed=seed)
