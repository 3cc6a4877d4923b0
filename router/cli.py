"""The command `thriftroute`. What is heavy is imported by the command that needs it."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from . import cli_audit, cli_label, cli_logs, cli_serve, cli_watch
from .errors import ConfigError, RoutingError, ThriftrouteError

USAGE = 2
INFEASIBLE = 3
INTERRUPTED = 130


class _Commands(TyperGroup):
    """Turns what a command raises on purpose into a line on stderr and an exit status.

    Here and not around `app()`, since typer has its own ideas about Ctrl-C and closed pipes. What
    nobody expected keeps its traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        """Exit status 0, 1 (failed), 2 (wrong usage) or 130 (interrupted)."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except (RoutingError, ConfigError) as error:
            _fail(error, USAGE)
        except ThriftrouteError as error:
            # By name: importing the trainer to compare classes would bring torch.
            interrupted = type(error).__name__ == "TrainingInterruptedError"
            _fail(error, INTERRUPTED if interrupted else 1)
        except KeyboardInterrupt:
            _fail("interrupted", INTERRUPTED)
        except BrokenPipeError:
            # Whoever reads has enough, such as `head`.
            _drop_output()
            sys.exit(0)
        except OSError as error:
            _drop_output()
            where = "" if error.filename is None else f"{error.filename}: "
            _fail(f"{where}{error.strerror or error}", 1)
        return result


app = typer.Typer(
    name="thriftroute",
    cls=_Commands,
    help="A trained router for LLM calls: strong model where it pays, weak model elsewhere.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RouterOption = Annotated[
    str, typer.Option("--router", help="mf, bert, random, a bundle's folder, or another's name.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
StrongOption = Annotated[
    str | None,
    typer.Option("--strong", help="Strong model as the data names it; several: A,B (a tier)."),
]
WeakOption = Annotated[
    str | None, typer.Option("--weak", help="Weak model as the data names it; several: A,B.")
]
BenchmarkOption = Annotated[
    list[str] | None,
    typer.Option("--benchmark", help="mmlu, gsm8k or mt-bench; may be given again."),
]
ContextOption = Annotated[
    str,
    typer.Option("--context", help="What of a conversation is scored: last, conversation or full."),
]


def main() -> NoReturn:
    """Run the command; exit status 0, 1 (failed), 2 (wrong usage) or 130 (interrupted)."""
    with contextlib.suppress(AttributeError):
        # Text that the terminal cannot show, such as half of a surrogate pair, is no reason to die.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        app()
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    sys.exit(0)


@app.command()
def route(
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; '-' reads it from standard input.")
    ] = None,
    router: RouterOption = "mf",
    threshold: Annotated[
        float, typer.Option("--threshold", help="Strong where score >= threshold, 0 to 1.")
    ] = 0.5,
    messages: Annotated[
        Path | None, typer.Option("--messages", help="A JSON file with OpenAI messages instead.")
    ] = None,
    strong_model: Annotated[
        str, typer.Option("--strong-model", help="Name to print for the strong model.")
    ] = "strong",
    weak_model: Annotated[
        str, typer.Option("--weak-model", help="Name to print for the weak model.")
    ] = "weak",
    context: ContextOption = "conversation",
    as_json: JsonOption = False,
) -> None:
    """Decide which model should answer one prompt; no model is called.

    Example: thriftroute route --json --router mf --threshold 0.5 "What is 2+2?"
    """
    from .controller import Controller

    controller = Controller([router], strong_model, weak_model, context=context)
    decision = controller.decide(_prompt(prompt, messages), router, threshold)
    if as_json:
        _print_json(decision.to_dict())
        return
    score = "-" if decision.score is None else f"{decision.score:.4f}"
    typer.echo(
        f"{decision.model}  score {score}, threshold {decision.threshold:g}, router "
        f"{decision.router}, {decision.latency_ms:.1f} ms: {decision.reason}"
    )


@app.command()
def score(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts to score.")] = None,
    router: RouterOption = "mf",
    data: Annotated[
        str | None,
        typer.Option("--data", help="A file of prompts: .txt (one a line), JSONL, CSV, Parquet."),
    ] = None,
    context: ContextOption = "conversation",
    as_json: JsonOption = False,
) -> None:
    """Print the score of each prompt: the probability that strong's answer is preferred.

    Example: thriftroute score --router mf --data prompts.txt --json > scores.jsonl
    """
    from .routers import checked_scores, load_router
    from .text import as_conversation, validate_context

    if bool(prompts) == bool(data):
        raise ConfigError("give prompts as arguments, or a file with --data")
    loaded = load_router(router, context=validate_context(context))
    texts: Iterator[str] = iter(prompts or ())
    if data:
        from ..data.readers import read_prompts

        texts = read_prompts(data)
    index = 0
    # In blocks, so that a file of any length starts to print at once and is never held whole.
    while block := [text for _, text in zip(range(256), texts, strict=False)]:
        scores = checked_scores(loaded.scores([as_conversation(t) for t in block]), len(block))
        for value, text in zip(scores.tolist(), block, strict=True):
            if as_json:
                _print_json({"index": index, "score": value}, indent=None)
            else:
                typer.echo(f"{value:.4f}  {_short(text)}")
            index += 1


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder, or mf or bert.")],
    card: Annotated[bool, typer.Option("--card", help="Print the whole card.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Verify a bundle's files against its manifest, and print what it says; loads no model.

    Example: thriftroute inspect out/my-router
    """
    import dataclasses

    from .bundle import CARD, Bundle
    from .routers import BUNDLED, CHECKPOINTS

    in_box = str(bundle) in BUNDLED and not bundle.exists()
    found = Bundle.open(CHECKPOINTS / bundle if in_box else bundle)
    manifest = found.manifest
    if as_json:
        whole = {"path": str(found.path), "verified": True, **dataclasses.asdict(manifest)}
        _print_json(whole)
        return
    if card:
        typer.echo(found.file(CARD).read_text(encoding="utf-8"))
        return
    validation = manifest.training.get("validation", {})
    lines = {
        "kind": f"{manifest.kind}, format {manifest.format}, by {manifest.written_by}",
        "encoder": f"{manifest.encoder}, {manifest.dim}-d, {manifest.max_tokens} tokens",
        "pair": f"{manifest.strong} (strong), {manifest.weak} (weak)",
        "models": f"{len(manifest.models)}: {_short(', '.join(manifest.models), 200)}",
        "calibration": json.dumps(
            {k: v for k, v in manifest.calibration.items() if k in "methodab"}
        ),
        "thresholds": ", ".join(manifest.thresholds) or "none",
        "validation": ", ".join(f"{k} {v}" for k, v in validation.items()) or "none recorded",
        "files": ", ".join(f"{n} ({e.bytes:,} bytes)" for n, e in manifest.files.items()),
        "verified": "all sizes and SHA-256 agree with the manifest",
    }
    for key, text in lines.items():
        typer.echo(f"{key + ':':<13}{text}")


@app.command()
def train(
    kind: Annotated[str, typer.Argument(help="mf or bert.")],
    data: Annotated[
        list[str],
        typer.Option(
            "--data", help="A file, hf:owner/name, or a known source; may be given again."
        ),
    ],
    strong: Annotated[str, typer.Option("--strong", help="Strong model; a tier: A,B,C.")],
    weak: Annotated[str, typer.Option("--weak", help="Weak model; a tier: A,B,C.")],
    out: Annotated[Path, typer.Option("--out", help="The bundle's folder.")],
    seed: SeedOption = 0,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="A sentence-transformers name or folder.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="The bundle that mf starts from; by default mf in the box."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=16, help="Length after truncation.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="At most so many.")] = None,
    min_evidence: Annotated[
        float | None,
        typer.Option(
            "--min-evidence",
            help="mf: stay with the base bundle unless the labels' log evidence is above; 0, 1.",
        ),
    ] = None,
    validation: Annotated[
        float, typer.Option("--validation", help="bert: share of the prompts kept for validation.")
    ] = 0.1,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", help="Drop prompts that this benchmark or file contains."),
    ] = None,
    source_weight: Annotated[
        list[str] | None, typer.Option("--source-weight", help="SOURCE=FACTOR; may be given again.")
    ] = None,
    weak_fails: Annotated[
        float, typer.Option("--weak-fails", help="Share of 'weak falls short' in the label.")
    ] = 0.0,
    note: Annotated[list[str] | None, typer.Option("--note", help="A line for the card.")] = None,
    own_logs: Annotated[
        bool, typer.Option("--own-logs", help="Allow evaluation data to stand in for own logs.")
    ] = False,
    dedupe: Annotated[
        bool, typer.Option("--dedupe", help="Drop near-duplicates among the training prompts.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip and count bad rows instead of stopping.")
    ] = False,
    rejects: Annotated[
        Path | None, typer.Option("--rejects", help="Where skipped rows are written (JSONL).")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the bundle that is there.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a router on preference data and write a verified bundle; needs the extra 'train'.

    Interrupted, the same command goes on where it stopped.

    Example: thriftroute train mf --data logs.jsonl --strong gpt-4o --weak llama3 --out my-router
    """
    from .errors import require_extra

    require_extra("torch", "train")
    from rich.console import Console

    from ..training.command import run_training

    options = {"encoder": encoder, "base": base, "max_tokens": max_tokens}
    result = run_training(
        kind=kind,
        data=data,
        strong=_models(strong),
        weak=_models(weak),
        out=out,
        seed=seed,
        epochs=epochs,
        min_evidence=min_evidence,
        validation=validation,
        against=against or [],
        source_weights=source_weight or [],
        weak_fails=weak_fails,
        notes=tuple(note or ()),
        own_logs=own_logs,
        dedupe=dedupe,
        skip_bad=skip_bad,
        rejects=rejects,
        overwrite=overwrite,
        console=Console(stderr=True),
        **{key: value for key, value in options.items() if value is not None},
    )
    if as_json:
        _print_json({"bundle": str(result.bundle.path), **result.summary})
        return
    measured = result.summary["validation"]
    typer.echo(
        f"wrote {result.bundle.path}: APGR {measured['apgr']} on {measured['n']} validation "
        f"prompts (prompt length {measured['apgr_prompt_length']}, random 0.5), "
        f"ECE {measured['ece'][1]:.3f}"
    )


@app.command("add-model")
def add_model(
    name: Annotated[str, typer.Argument(help="The new model, as the data names it.")],
    data: Annotated[str, typer.Option("--data", help="Comparisons or scores, as for train.")],
    out: Annotated[Path, typer.Option("--out", help="The new bundle's folder.")],
    router: RouterOption = "mf",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the bundle that is there.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fit a model that a bundle does not know from a few dozen comparisons; all else stays.

    Example: thriftroute add-model new-model --data votes.jsonl --router my-router --out grown
    """
    from .errors import ConfigError, require_extra

    require_extra("torch", "train")
    from ..training.add_model import add_model as fit
    from ..training.protocols import read_source
    from .routers import BundleRouter, load_router

    loaded = load_router(router)
    if not isinstance(loaded, BundleRouter):
        raise ConfigError(f"router {router!r} is no bundle: there is nothing to add a model to")
    added = fit(loaded.scorer.bundle, read_source(data), name, out, overwrite=overwrite)
    if as_json:
        _print_json(
            {
                "bundle": str(added.bundle.path),
                "model": added.name,
                "ability": added.ability,
                "ability_ci": [added.low, added.high],
                "comparisons": added.comparisons,
            }
        )
        return
    typer.echo(
        f"wrote {added.bundle.path}: {added.name} has ability {added.ability:+.2f} "
        f"[{added.low:+.2f}, {added.high:+.2f}] from {added.comparisons:,} comparisons, where the "
        "bundle's weak model has -0.50 and its strong one +0.50"
    )


@app.command()
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
            help="own-logs, other-pairs, new-model, calibration, int8, languages (extra 'train').",
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
    from .errors import ConfigError, require_extra

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
            data=[] if data is None else data.split(","),
            sizes=_sizes(sizes),
            draws=draws,
            pairs=pairs,
            seed=seed,
            bootstraps=bootstraps,
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

    target = Target(benchmark or (), data, _models(strong), _models(weak))
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
        typer.echo(report.to_json(result))
    else:
        report.show(result)
        for path in written.values():
            typer.echo(f"wrote {path}")


@app.command()
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
    strong_model: Annotated[
        str | None, typer.Option("--strong-model", help="Its price, from LiteLLM's map.")
    ] = None,
    weak_model: Annotated[
        str | None, typer.Option("--weak-model", help="Its price, from LiteLLM's map.")
    ] = None,
    strong_price: Annotated[
        str | None, typer.Option("--strong-price", help="IN,OUT in USD per 1,000,000 tokens.")
    ] = None,
    weak_price: Annotated[
        str | None, typer.Option("--weak-price", help="IN,OUT in USD per 1,000,000 tokens.")
    ] = None,
    output_tokens: Annotated[
        int | None,
        typer.Option("--output-tokens", min=0, help="Assumed length of an answer [300]."),
    ] = None,
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

    target = Target(benchmark or (), data, _models(strong), _models(weak))
    cost = CostOptions(strong_model, weak_model, strong_price, weak_price, output_tokens)
    promised = (min_quality, min_gap, max_regret, confidence, max_request_usd)
    if any(value is not None for value in promised):
        from ..audit.calibrate import Wish, run_guarantee, show, to_dict

        if strong_pct is not None:
            raise ConfigError("--strong-pct promises nothing: leave it out, or the promise")
        wish = Wish(min_quality, min_gap, max_regret, usd_per_1k, confidence, max_request_usd)
        found = run_guarantee(
            router, target, wish, prompts=prompts, cost=cost, write=write, seed=seed
        )
        if as_json:
            _print_json(to_dict(found))
        else:
            show(found)
        if not found.feasible:
            typer.echo(found.message, err=True)
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
        _print_json(result.to_dict())
        return
    from ..eval.report import show_calibration

    show_calibration(result)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for what the demo makes.")] = Path(
        "out/demo"
    ),
    bert: Annotated[bool, typer.Option("--bert/--no-bert", help="Also train a short bert.")] = True,
) -> None:
    """Train, evaluate, calibrate and route, on the samples in the box; minutes on 2 cores.

    Example: thriftroute demo --out out/demo
    """
    from .errors import require_extra

    require_extra("torch", "train")
    require_extra("matplotlib", "eval")
    from ..training.demo import run_demo

    run_demo(out, with_bert=bert)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from .._version import __version__

        typer.echo(f"thriftroute {__version__}")
        raise typer.Exit


cli_audit.add_commands(app)
cli_serve.add_commands(app)
cli_label.add_commands(app)
cli_logs.add_commands(app)
cli_watch.add_commands(app)


def _prompt(prompt: str | None, messages: Path | None) -> Any:
    if (prompt is None) == (messages is None):
        raise ConfigError("give a prompt, or a file with --messages")
    if messages is None:
        # Bytes that are no UTF-8 are no reason not to route.
        return sys.stdin.buffer.read().decode(errors="replace") if prompt == "-" else prompt
    try:
        found = json.loads(messages.read_text(encoding="utf-8"))
    # RecursionError: nested a thousand levels deep.
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--messages {messages}: not a readable JSON file: {error}") from error
    if not isinstance(found, list):
        raise ConfigError(f"--messages {messages}: expected a list of messages")
    return found


def _run_protocol(name: str, routers: list[str], *, as_json: bool, **options: Any) -> None:
    from .errors import ConfigError, require_extra

    require_extra("torch", "train")
    from rich.console import Console

    from ..eval import protocol_report
    from ..training.progress import Progress
    from ..training.protocols import run_protocol

    if len(routers) != 1:
        raise ConfigError(f"--protocol works on one router, got {', '.join(routers)}")
    progress = Progress(Console(stderr=True))
    reports = run_protocol(name, routers[0], progress=progress, **options)
    if as_json:
        _print_json([report.to_dict() for report in reports])
        return
    for report in reports:
        protocol_report.show(report)


def _sizes(text: str | None) -> list[int]:
    from .errors import ConfigError

    try:
        return [] if text is None else [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--sizes {text!r}: expected whole numbers, as 100,300") from error


def _models(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _short(text: str, width: int = 80) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _print_json(value: object, indent: int | None = 2) -> None:
    typer.echo(json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False))


def _fail(error: object, status: int) -> NoReturn:
    # One line, whatever a library put into its own message.
    typer.echo(f"error: {' '.join(str(error).split())}", err=True)
    sys.exit(status)


def _drop_output() -> None:
    """Where stdout cannot be written: forget what is buffered, or the interpreter tries again."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
