"""The command `replay`: what policies would have cost on recorded sessions of agents."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from ..errors import ConfigError
from ..files import whole_file
from ..terminal import new_console
from .exits import error_lines
from .options import JsonOption, SeedOption, StrongPriceOption, WeakPriceOption
from .output import print_json, say
from .scale import LINE_EVERY_S


def add_commands(app: typer.Typer) -> None:
    """Put the command on `app`."""
    app.command(rich_help_panel="Measure")(replay)


def replay(
    sessions: Annotated[
        list[Path],
        typer.Argument(
            help="Transcripts, records or spend logs: files, or folders that hold them.",
            show_default=False,
        ),
    ],
    strong: Annotated[str | None, Option(help="The strong model, as LiteLLM names it.")] = None,
    weak: Annotated[str | None, Option(help="The weak model, as LiteLLM names it.")] = None,
    router: Annotated[
        str | None, Option(help="Whose wishes are followed, where there are texts [none].")
    ] = None,
    threshold: Annotated[
        float | None, Option(help="Of its scores, from which on strong is wanted.")
    ] = None,
    strong_share: Annotated[
        float | None, Option(help="Or the share of strong calls that is wanted [0.3].")
    ] = None,
    config: Annotated[
        Path | None, Option(help="The server's file: its pair, prices and router.")
    ] = None,
    strong_price: StrongPriceOption = None,
    weak_price: WeakPriceOption = None,
    out: Annotated[Path | None, Option(help="An HTML page to write.")] = None,
    steps: Annotated[
        Path | None, Option(help="Every step of every policy, as .parquet or .csv.")
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Say what never switching, blind routing and priced routing would have cost on sessions.

    Reads transcripts of Claude Code, Codex and OpenCode, own records, LiteLLM's spend logs,
    OpenTelemetry, and tables of numbers. No model is called.

    Example: thriftroute replay ~/.claude/projects --strong claude-opus-4-6 --weak claude-haiku-4-5
    """
    from ..eval.replay.command import ReplaySettings, check_out, run_replay, write_steps

    check_out(out, "--out", (".html",))
    check_out(steps, "--steps", (".parquet", ".csv"))
    given = {
        **{"strong": strong, "weak": weak, "router": router, "threshold": threshold},
        **{"strong_share": strong_share, "strong_price": strong_price, "weak_price": weak_price},
    }
    known = {} if config is None else _of_config(config)
    if threshold is not None or strong_share is not None:
        known.pop("threshold", None)
        known.pop("strong_share", None)
    known["router_if_text"] = router is None
    known |= {name: value for name, value in given.items() if value is not None}
    for side in ("strong", "weak"):
        if not known.get(side):
            raise ConfigError(f"--{side} MODEL is missing; or give --config FILE")
    settings = ReplaySettings(**known, seed=seed)
    found = run_replay(sessions, settings, progress=_progress())
    if steps is not None:
        write_steps(found, steps)
    from ..eval.replay.show import print_replay, to_html

    if out is not None:
        with whole_file(out) as file:
            file.write(to_html(found).encode(errors="replace"))
    if as_json:
        print_json(found.to_dict())
        return
    print_replay(found)
    for path in filter(None, (steps, out)):
        say(f"wrote {path}")


def _of_config(path: Path) -> dict[str, Any]:
    """The pair, its prices and the router of a server's file."""
    from ..serve.config.loader import load_config
    from ..serve.registry import Registry

    with error_lines():
        config = load_config(path)
        registry = Registry.build(config, called=False)
    found: dict[str, Any] = {}
    for side in ("strong", "weak"):
        model = registry[getattr(registry, side)]
        found[side] = model.litellm_model
        found[f"{side}_price"] = model.price
    router = config.router
    return {
        **found,
        "router": router.checkpoint_path or router.name,
        **{name: getattr(router, name) for name in ("threshold", "strong_share")},
    }


def _progress() -> Any:
    console = new_console(stderr=True)
    told = time.monotonic()

    def show(entries: int) -> None:
        nonlocal told
        if entries % 1000 == 0 and (now := time.monotonic()) - told >= LINE_EVERY_S:
            told = now
            console.print(f"reading: {entries:,} entries", highlight=False, soft_wrap=True)

    return show
