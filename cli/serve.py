"""Commands around the server: `serve`, `init`, `models`, `check`, `prices`, `keys`, `records`."""

import io
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, require_extra
from ..files import private, whole_file
from .exits import database_errors, error_lines
from .options import JsonOption, ShareOption, ThresholdOption
from .output import print_json, say
from .sections import Sections

if TYPE_CHECKING:
    from ..serve.config.settings import Config

CONFIG = Path("thriftroute.yaml")

ConfigOption = Annotated[Path, typer.Option("--config", help="The server's config file.")]

prices = typer.Typer(
    cls=Sections, help="The map of prices: a newer one by command.", no_args_is_help=True
)
keys = typer.Typer(cls=Sections, help="Clients' API keys.", no_args_is_help=True)
records = typer.Typer(
    cls=Sections, help="The decisions that a server has written down.", no_args_is_help=True
)


def add_commands(app: typer.Typer) -> None:
    """Put the commands of this module on `app`."""
    app.command(rich_help_panel="Serve")(serve)
    app.command(rich_help_panel="Serve")(init)
    app.command(rich_help_panel="Serve")(models)
    app.command(rich_help_panel="Serve")(check)
    app.add_typer(prices, name="prices", rich_help_panel="Serve")
    app.add_typer(keys, name="keys", rich_help_panel="Serve")
    app.add_typer(records, name="records", rich_help_panel="Serve")


def serve(
    config: Annotated[
        Path | None, typer.Option("--config", help="thriftroute.yaml; or the flags below.")
    ] = None,
    strong_model: Annotated[
        str | None, typer.Option("--strong-model", help="The strong model, as LiteLLM names it.")
    ] = None,
    weak_model: Annotated[
        str | None, typer.Option("--weak-model", help="The weak model, as LiteLLM names it.")
    ] = None,
    router: Annotated[
        str | None, typer.Option("--router", help="mf, bert, fast, random or a bundle's folder.")
    ] = None,
    strong_share: ShareOption = None,
    threshold: ThresholdOption = None,
    strong_price: Annotated[
        str | None, typer.Option("--strong-price", help="IN,OUT in USD per million tokens.")
    ] = None,
    weak_price: Annotated[
        str | None, typer.Option("--weak-price", help="IN,OUT, where LiteLLM knows no price.")
    ] = None,
    api_base: Annotated[
        str | None, typer.Option("--api-base", help="Where both models are called.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", help="For both models; better in the provider's own variable."),
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes; they share through Redis.")
    ] = None,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="A line a request: no texts, no keys.")
    ] = False,
) -> None:
    """Serve an OpenAI-compatible API that routes between models, until a signal.

    Example: thriftroute serve --config thriftroute.yaml
    """
    require_extra("uvicorn", "serve")
    from ..serve.command import run_serve

    flags = {
        "strong_model": strong_model,
        "weak_model": weak_model,
        "router": router,
        "strong_share": strong_share,
        "threshold": threshold,
        "strong_price": strong_price,
        "weak_price": weak_price,
        "api_base": api_base,
        "api_key": api_key,
    }
    with error_lines():
        own = {"host": host, "port": port, "workers": workers, "access_log": access_log or None}
        settings, source = _settled(config, flags, own)
        run_serve(settings, source)


def _settled(
    config: Path | None, flags: dict[str, Any], server: dict[str, Any]
) -> tuple["Config", Path | None]:
    """The configuration of a file or of flags, and the file; `server`'s settings win over both.

    Without a file or models, thriftroute.yaml of this folder. Raises ConfigError.
    """
    from ..serve.config.loader import check, config_from_flags, load_config

    given = {name: value for name, value in flags.items() if value is not None}
    own = {name: value for name, value in server.items() if value is not None}
    if config is None and not given and CONFIG.is_file():
        config = CONFIG
    if config is None:
        if "strong_model" not in given or "weak_model" not in given:
            raise ConfigError(
                "nothing to serve: give --config FILE (`thriftroute init` writes one), or both "
                "--strong-model and --weak-model"
            )
        return config_from_flags({**given, **own}), None
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(
            f"{names}: set in {config} instead; beside --config there are only "
            "--host, --port, --workers and --access-log"
        )
    read = load_config(config)
    if own:
        read = read.model_copy(update={"server": read.server.model_copy(update=own)})
        check(read)
    return read, config


def init(
    out: Annotated[Path, typer.Option("--out", help="Where to write it; '-' prints it.")] = CONFIG,
    force: Annotated[bool, typer.Option("--force", help="Replace the file that is there.")] = False,
) -> None:
    """Write a commented config that works as it stands.

    Example: thriftroute init --out thriftroute.yaml
    """
    from ..serve.config.template import TEMPLATE, write_template

    if str(out) == "-":
        say(TEMPLATE, nl=False)
        return
    write_template(out, force=force)
    say(f"wrote {out}; next: thriftroute models --config {out}")


def models(
    config: ConfigOption = CONFIG,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Ask each model once for log-probabilities; this costs."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the pool: prices, context window, capabilities, and where each is known from.

    Example: thriftroute models --config thriftroute.yaml --json
    """
    from ..serve.config.loader import lines_told, load_config
    from ..serve.registry import Registry
    from .model_table import as_dict, show

    with error_lines():
        settings = load_config(config)
        with lines_told(config):
            registry = Registry.build(settings)
    probes: dict[str, dict[str, Any]] = {}
    if probe:
        from .probing import probe_all, show_probes

        probes = probe_all(registry, settings.calls)
    if as_json:
        told = [as_dict(registry, model) for model in registry.values()]
        print_json([{**row, **probes.get(row["name"], {})} for row in told])
        return
    show(registry)
    if probe:
        show_probes(probes)


def check(
    config: ConfigOption = CONFIG,
    probe: Annotated[
        bool, typer.Option("--probe", help="Also ask each model once; this costs.")
    ] = False,
) -> None:
    """Say whether `serve` would start: the config, its prices, its router, and every model's key.

    Exit status 2 for a config that is wrong, 1 for a key that is missing or a model that fails.

    Example: thriftroute check --config thriftroute.yaml
    """
    require_extra("uvicorn", "serve")
    from ..serve.config.loader import lines_told, load_config
    from ..serve.registry import missing_key
    from ..serve.state import ServerState

    with error_lines():
        settings = load_config(config)
        with lines_told(config):
            registry = ServerState(settings).registry
    say(
        f"{config}: valid; {len(registry)} models, each with a price; router {settings.router.name}"
    )
    failed = False
    for model in registry.values():
        if missing := missing_key(model):
            failed = True
            say(f"error: model {model.name} has no API key: set {missing}", err=True)
    if probe:
        from .probing import probe_all

        for name, row in probe_all(registry, settings.calls).items():
            found = row["log_probabilities"]
            reached = found["outcome"] != "failed"
            failed |= not reached
            said = f"{name}: reached" if reached else f"error: {name}: {found['why']}"
            say(said, err=not reached)
    if failed:
        raise typer.Exit(1)


@prices.command("refresh")
def refresh_prices(
    url: Annotated[
        str | None, typer.Option("--url", help="Another map than LiteLLM's public one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Download LiteLLM's map of models and prices; used from the next start on.

    Example: thriftroute prices refresh
    """
    from ..providers.price_map import refresh

    done = refresh(url)
    if as_json:
        print_json(asdict(done))
        return
    say(
        f"wrote {done.path}: {done.models:,} models, {done.changed:,} with other prices than the "
        f"map that is installed, {done.added:,} new, {done.removed:,} gone"
    )


@prices.command("show")
def show_prices(
    names: Annotated[
        list[str] | None, typer.Argument(help="Models, as LiteLLM names them.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print which map is in use, or what it says of models.

    Example: thriftroute prices show gpt-4o anthropic/claude-sonnet-4-5
    """
    from ..providers import price_map as stored

    if not names:
        _show_map(stored.read()[0], as_json)
        return
    from ..serve.config.loader import pool_of
    from ..serve.registry import Registry
    from .model_table import as_dict, usd

    with error_lines():
        registry = Registry.build(pool_of(list(dict.fromkeys(names))), called=False)
    if as_json:
        # Nothing is strong or weak here.
        found = [as_dict(registry, model) for model in registry.values()]
        print_json([{k: v for k, v in model.items() if k != "side"} for model in found])
        return
    for model in registry.values():
        say(
            f"{model.name}: {usd(model.input_price)} in, {usd(model.output_price)} out, "
            f"{usd(model.cached_input_price)} cached in, USD per million tokens "
            f"({model.sources['price']})"
        )


@prices.command("reset")
def reset_prices() -> None:
    """Delete the downloaded map; the one that is installed with LiteLLM is used again.

    Example: thriftroute prices reset
    """
    from ..providers.price_map import map_path, reset

    say(f"deleted {map_path()}" if reset() else "there is no downloaded map")


@keys.command("new")
def new_key(
    name: Annotated[str, typer.Option("--name", help="Who it is for, in records and metrics.")],
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Without one each request may name its own.")
    ] = None,
    tier: Annotated[str | None, typer.Option("--tier", help="A tier of the config.")] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="May see statistics, decisions and the page.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make an API key: prints it once, and what belongs into the config (its hash).

    Example: thriftroute keys new --name alice --tenant acme --tier pro
    """
    import secrets

    import yaml
    from pydantic import ValidationError

    from ..serve.api.auth import digest
    from ..serve.config.settings import KeySettings

    key = f"tr-{secrets.token_urlsafe(32)}"
    settings: dict[str, Any] = {"name": name, "sha256": digest(key), "tenant": tenant, "tier": tier}
    settings = {k: v for k, v in settings.items() if v is not None}
    if admin:
        settings["admin"] = True
    try:
        KeySettings.model_validate(settings)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        raise ConfigError(f"--{wrong['loc'][0]}: {wrong['msg'].lower()}") from None
    if as_json:
        print_json({"key": key, "settings": settings})
        return
    # The key alone on its line, so that it can be copied and piped; it is kept nowhere.
    say(f"{key}\n")
    say("# The key is shown this once. Put this into thriftroute.yaml:")
    say(yaml.safe_dump({"keys": [settings]}, sort_keys=False, allow_unicode=True), nl=False)


@records.command("export")
def export_records(
    out: Annotated[Path, typer.Option("--out", help="A JSONL file; '-' prints.")],
    config: ConfigOption = CONFIG,
    url: Annotated[
        str | None, typer.Option("--url", help="The database, instead of the config's.")
    ] = None,
    since: Annotated[
        datetime | None, typer.Option("--since", help="From this moment on, UTC.")
    ] = None,
    until: Annotated[datetime | None, typer.Option("--until", help="Before it, UTC.")] = None,
    rated: Annotated[bool, typer.Option("--rated", help="Only those with feedback.")] = False,
) -> None:
    """Write the decisions, one JSON object a line: what came, what was chosen, and feedback.

    Example: thriftroute records export --since 2026-01-01 --out decisions.jsonl
    """
    require_extra("sqlalchemy", "serve")
    from ..serve.config.loader import load_config
    from ..serve.records.stats import export_jsonl

    with error_lines():
        found = url or load_config(config).records.url
    if found is None:
        raise ConfigError(f"{config}: records.url is not set: nothing is written down")
    start, end = (None if d is None else d.replace(tzinfo=UTC).timestamp() for d in (since, until))
    with database_errors():
        if str(out) == "-":
            export_jsonl(found, sys.stdout, since=start, until=end, rated=rated)
            return
        with whole_file(out, opener=private) as file:
            text = io.TextIOWrapper(file, encoding="utf-8")
            count = export_jsonl(found, text, since=start, until=end, rated=rated)
            text.detach()  # flushed; `whole_file` closes the file itself
    say(f"wrote {count:,} decisions to {out}", err=True)


def _show_map(found: Any, as_json: bool) -> None:
    if as_json:
        print_json(None if found is None else asdict(found))
    elif found is None:
        say("in use: the map that is installed with LiteLLM")
    else:
        say(
            f"in use: {found.path}, {found.models:,} models, from {found.url} at {found.fetched_at}"
        )
