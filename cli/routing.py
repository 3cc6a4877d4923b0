"""The commands `try`, `route`, `score` and `inspect`: a router that is there, at work."""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, require_extra
from .options import ContextOption, JsonOption, RouterOption, ShareOption, ThresholdOption
from .output import print_json, say, short

if TYPE_CHECKING:
    from ..router.controller import Controller
    from ..router.decision import Decision
    from ..testing.try_it import Tried


def add_commands(app: typer.Typer) -> None:
    """Put the commands of this module on `app`."""
    app.command("try", rich_help_panel="Route")(try_)
    app.command(rich_help_panel="Route")(route)
    app.command(rich_help_panel="Route")(score)
    app.command(rich_help_panel="Route")(inspect)


def try_(
    log: Annotated[
        str | None,
        typer.Option("--log", help="Your own log or prompts: where each would go; calls nothing."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print and end; keep no server.")] = False,
) -> None:
    """See what routing does, in a minute: no key, no training, nothing leaves this machine.

    Example: thriftroute try --once
    """
    require_extra("uvicorn", "serve")
    from ..testing.try_it import ANSWER_TOKENS, STRONG, WEAK, Trial, mix, would_route

    if log is not None:
        tried = would_route(log)
        _examples(tried, STRONG, WEAK)
        say(f"{tried.strong} of {len(tried.routed)} requests would go to the strong model")
        say("what that saves, and what it costs in quality: `thriftroute audit`")
        return
    prompts = mix()
    say(f"starting a server, and a stub that plays {STRONG} and {WEAK}: no model is called")
    with Trial() as trial:
        tried = trial.send(prompts)
        _examples(tried, STRONG, WEAK)
        say(
            f"${tried.cost:.4f} instead of ${tried.always_strong:.4f}; {tried.strong} of "
            f"{len(tried.routed)} went to the strong model"
        )
        say(
            f"Prices are the models' own; the answers are simulated, {ANSWER_TOKENS} tokens each: "
            "of quality this says nothing."
        )
        if not once:
            say(f"The page: {tried.page}  (Ctrl-C ends all)")
            with contextlib.suppress(KeyboardInterrupt):
                trial.wait()


def _examples(tried: "Tried", strong: str, weak: str) -> None:
    for name, to_strong in ((weak, False), (strong, True)):
        say(f"to {name}, for example:")
        for one in tried.examples(strong=to_strong):
            harder = "    " if one.harder is None else f"{min(one.harder, 0.99):>4.0%}"
            say(f"  {harder}  {short(one.prompt)}")
    say("(the share of ordinary prompts that the router takes for easier)")


def route(
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; '-' reads it from standard input.")
    ] = None,
    router: RouterOption = "mf",
    strong_share: ShareOption = None,
    threshold: ThresholdOption = None,
    messages: Annotated[
        Path | None, typer.Option("--messages", help="A JSON file with OpenAI messages instead.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Many prompts instead: a file as of `score`; '-' reads a prompt a line."
        ),
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
    """Decide which model should answer a prompt; no model is called.

    With --data it warns where the prompts are unlike those that the router's table is of.

    Example: thriftroute route --json --router mf --strong-share 0.3 "What is 2+2?"
    """
    from ..router.controller import Controller

    if threshold is not None and strong_share is not None:
        raise ConfigError("give --threshold or --strong-share, and not both")
    controller = Controller([router], strong_model, weak_model, context=context)
    if data is not None:
        if prompt is not None or messages is not None:
            raise ConfigError("give --data, or a prompt or --messages, and not both")
        decisions = []
        for index, text in enumerate(_many(data)):
            decided = controller.decide(text, router, threshold, strong_share=strong_share)
            decisions.append(decided)
            if as_json:
                print_json({"index": index, **decided.to_dict()}, indent=None)
            else:
                score = "-" if decided.score is None else f"{decided.score:.4f}"
                say(f"{decided.model}  {score}  {short(text)}")
        if not decisions:
            raise ConfigError(f"--data {data}: no prompts in it; give one a line, or rows")
        _told_of_all(controller, router, decisions)
        return
    decision = controller.decide(
        _prompt(prompt, messages), router, threshold, strong_share=strong_share
    )
    if as_json:
        print_json(decision.to_dict())
        return
    _say_decision(decision)


def _many(data: str) -> Iterator[str]:
    if data != "-":
        from ..data.readers import read_prompts

        return read_prompts(data)
    lines = (line.decode(errors="replace").strip() for line in sys.stdin.buffer)
    return (line for line in lines if line)


def _told_of_all(controller: "Controller", router: str, decisions: Sequence["Decision"]) -> None:
    """How many went where, and whether that is what the router's table says; on standard error."""
    from ..eval.drift.baseline import baseline_of
    from ..eval.drift.drift import examine, unlike
    from ..router.routers import tables_of

    strong = [decision.choice == "strong" for decision in decisions]
    say(f"{sum(strong):,} of {len(strong):,} to the strong model", err=True)
    with contextlib.suppress(ConfigError):  # no table to compare with
        baseline = baseline_of(tables_of(controller.routers[router]), router)
        rows = [
            {"strong": to, "score": one.score, "threshold": one.threshold, "router": router}
            for to, one in zip(strong, decisions, strict=True)
        ]
        if (found := unlike(examine(rows, baseline))) is not None:
            more = "`thriftroute calibrate` reads a threshold off prompts of your own"
            say(f"warning: {found}: the router may know little of such prompts; {more}", err=True)


def _say_decision(decision: "Decision") -> None:
    from ..router.threshold import harder_than

    score = "-" if decision.score is None else f"{decision.score:.4f}"
    line = (
        f"{decision.model}  score {score}, threshold {decision.threshold:g}, router "
        f"{decision.router}, {decision.latency_ms:.1f} ms: {decision.reason}"
    )
    if decision.percentile is not None and decision.percentile_of is not None:
        line += f"; {harder_than(decision.percentile, decision.percentile_of)}"
    say(line)


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

    Where the bundle has a table of ordinary prompts, also the share of those that score lower.

    Example: thriftroute score --router mf --data prompts.txt --json > scores.jsonl
    """
    from ..router.routers import checked_scores, load_router, tables_of
    from ..router.text import as_conversation, validate_context
    from ..router.threshold import ORDINARY, percentile_table

    if bool(prompts) == bool(data):
        raise ConfigError("give prompts as arguments, or a file with --data")
    loaded = load_router(router, context=validate_context(context))
    table = percentile_table(tables_of(loaded))
    of = None if table is None else table.name
    texts: Iterator[str] = iter(prompts or ())
    if data:
        from ..data.readers import read_prompts

        texts = read_prompts(data)
    lines = enumerate(texts)
    # In blocks, so that a file of any length starts to print at once and is never held whole.
    while block := list(islice(lines, 256)):
        scores = loaded.scores([as_conversation(text) for _, text in block])
        for value, (index, text) in zip(checked_scores(scores, len(block)), block, strict=True):
            percentile = None if table is None else table.percentile(float(value))
            if as_json:
                own = {"percentile": percentile, "percentile_of": of}
                print_json({"index": index, "score": float(value), **own}, indent=None)
            elif percentile is not None and of == ORDINARY:
                say(f"{value:.4f}  {min(percentile, 0.99):>3.0%}  {short(text)}")
            else:
                say(f"{value:.4f}  {short(text)}")


def inspect(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder, or mf, bert or fast.")],
    card: Annotated[bool, typer.Option("--card", help="Print the whole card.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Verify a bundle's files against its manifest, and print what it says; loads no model.

    Example: thriftroute inspect out/my-router
    """
    import dataclasses

    from ..router.bundle import CARD, Bundle
    from ..router.routers import BUNDLED, CHECKPOINTS

    built_in = str(bundle) in BUNDLED and not bundle.exists()
    found = Bundle.open(CHECKPOINTS / bundle if built_in else bundle)
    manifest = found.manifest
    if as_json:
        whole = {"path": str(found.path), "verified": True, **dataclasses.asdict(manifest)}
        print_json(whole)
        return
    if card:
        say(found.file(CARD).read_text(encoding="utf-8", errors="replace"))
        return
    validation = manifest.training.get("validation")
    figures = validation if isinstance(validation, dict) else {}
    method = {k: v for k, v in manifest.calibration.items() if k in ("method", "a", "b")}
    tiers = (manifest.strong, manifest.weak) == ("strong", "weak")
    of_tiers = "; tiers of models: what it says of a pair that it never saw is what it says of them"
    lines = {
        "kind": f"{manifest.kind}, format {manifest.format}, by {manifest.written_by}",
        "encoder": f"{manifest.encoder}, {manifest.dim}-d, {manifest.max_tokens} tokens",
        "pair": f"{manifest.strong} (strong), {manifest.weak} (weak){of_tiers if tiers else ''}",
        "models": f"{len(manifest.models)}: {short(', '.join(manifest.models), 200)}",
        "calibration": json.dumps(method),
        "thresholds": ", ".join(manifest.thresholds) or "none",
        "validation": ", ".join(f"{k} {v}" for k, v in figures.items()) or "none recorded",
        "files": ", ".join(f"{n} ({e.bytes:,} bytes)" for n, e in manifest.files.items()),
        "verified": "all sizes and SHA-256 agree with the manifest",
    }
    for key, text in lines.items():
        say(f"{key + ':':<13}{text}")


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
