"""The command `watch`: recorded decisions against a baseline, and an experiment's arms."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, require_extra
from .exits import database_errors, error_lines
from .options import JsonOption
from .output import print_json, say
from .serve import CONFIG

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from ..eval.drift.baseline import Baseline
    from ..serve.config.settings import Config

DRIFT = 4  # exit status


def add_commands(app: typer.Typer) -> None:
    """Put the commands of this module on `app`."""
    app.command()(watch)


def watch(
    url: Annotated[
        str | None, typer.Option("--url", help="The database of decisions; or --config's.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="The server's file [thriftroute.yaml].")
    ] = None,
    router: Annotated[
        str | None,
        typer.Option("--router", help="Whose scores; its own table is the baseline [mf]."),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="A file of --save-baseline instead.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="24h, 7d, a date (UTC), or seconds since 1970.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="As --since.")] = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", help="Rate of false alarms, over all time [0.01].")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", help="Whose strong share [the one most decisions had]."),
    ] = None,
    save_baseline: Annotated[
        Path | None,
        typer.Option("--save-baseline", help="Write a baseline of these decisions, no test."),
    ] = None,
    experiment: Annotated[
        bool, typer.Option("--experiment", help="Compare an experiment's arms instead.")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--name", help="Of the experiment [the latest].")
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", help="What it drew: session or tenant [the config's].")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether traffic is still what the router was calibrated on; exit status 4 where not.

    Example: thriftroute watch --url sqlite:///thriftroute.db --router mf --since 2026-01-31
    """
    require_extra("sqlalchemy", "serve")
    from ..serve.config.time_spec import moment
    from ..serve.records.database import open_recorded

    with error_lines():
        settings = _settings(url, config)
        found = url or (None if settings is None else settings.records.url)
        if found is None:
            raise ConfigError(f"{config or CONFIG}: records.url is not set: nothing is recorded")
        span: dict[str, float | None] = {}
        for flag, value in (("since", since), ("until", until)):
            try:
                span[flag] = moment(value)
            except ValueError as error:
                raise ConfigError(f"--{flag} {value!r}: {error}") from None
        if by not in {None, "session", "tenant"}:
            raise ConfigError(f"--by {by!r}: expected session or tenant")
        engine = open_recorded(found)
    drift = False
    with database_errors():
        try:
            if experiment:
                _experiment(engine, span, settings, name, by, alpha, as_json)
            elif save_baseline is not None:
                _save(engine, span, router, save_baseline)
            else:
                level = alpha if alpha is not None or settings is None else settings.watch.alpha
                against = _baseline(settings, router, baseline)
                drift = _drift(engine, span, against, level, threshold, as_json)
        finally:
            engine.dispose()
    if drift:
        sys.exit(DRIFT)


def _settings(url: str | None, config: Path | None) -> "Config | None":
    """The server's config: the one that is named, or without a URL the one that lies here."""
    if config is None and url is not None:
        return None
    from ..serve.config.loader import load_config

    if config is None and not CONFIG.is_file():
        raise ConfigError(
            "nothing to look at: give --url, such as sqlite:///thriftroute.db, or --config"
        )
    return load_config(config or CONFIG)


def _baseline(
    settings: "Config | None", router: str | None, file: Path | None
) -> "tuple[Baseline, str | None]":
    """(baseline, the router whose scores are looked at; None: whichever scored them)."""
    from ..eval.drift.baseline import Baseline, baseline_of

    if file is None and settings is not None and router is None and settings.watch.baseline:
        file = Path(settings.watch.baseline)
    configured = None if settings is None else settings.router
    name = router or (None if configured is None else configured.name)
    if file is not None:
        return Baseline.load(file), name
    from ..router.routers import BundleRouter, load_router

    own: dict[str, Any] = {}
    if router is None and configured is not None and configured.checkpoint_path is not None:
        own["checkpoint_path"] = configured.checkpoint_path
    loaded = load_router(name or "mf", own)
    tables = loaded.scorer.bundle.manifest.thresholds if isinstance(loaded, BundleRouter) else {}
    return baseline_of(tables, name or "mf"), name


def _drift(
    engine: "Engine",
    span: dict[str, float | None],
    against: "tuple[Baseline, str | None]",
    alpha: float | None,
    threshold: float | None,
    as_json: bool,
) -> bool:
    from ..eval.drift.drift import FIELDS, examine
    from ..eval.drift.show import lines, shadow_lines
    from ..router.threshold import validate_threshold
    from ..serve.records.arms import shadow
    from ..serve.records.stats import export

    baseline, router = against
    if threshold is not None:
        validate_threshold(threshold)
    report = examine(
        export(engine, since=span["since"], until=span["until"], only=FIELDS),
        baseline,
        alpha=0.01 if alpha is None else alpha,
        router=_scored(engine, span, router),
        threshold=threshold,
    )
    found = shadow(engine, **span) if _upgraded(engine) else {"requests": 0}
    if as_json:
        print_json({**report.to_dict(), **span, "shadow": found if found["requests"] else None})
    else:
        for line in lines(report):
            say(line)
        for line in shadow_lines(found) if found["requests"] else ():
            say(line)
    return report.verdict == "drift"


def _save(engine: "Engine", span: dict[str, float | None], router: str | None, path: Path) -> None:
    from ..eval.drift.drift import FIELDS, baseline_from
    from ..serve.records.stats import export

    rows = export(engine, since=span["since"], until=span["until"], only=FIELDS)
    baseline = baseline_from(rows, path.stem, router=_scored(engine, span, router))
    baseline.save(path)
    say(f"wrote {path}: {baseline.n:,} scores", err=True)


def _experiment(
    engine: "Engine",
    span: dict[str, float | None],
    settings: "Config | None",
    name: str | None,
    by: str | None,
    alpha: float | None,
    as_json: bool,
) -> None:
    from ..eval.drift.arms import compare
    from ..eval.drift.show import experiment_lines
    from ..serve.records.arms import arms, experiments

    configured = None if settings is None else settings.experiment
    recorded = experiments(engine) if _upgraded(engine) else []
    if name is None and configured is not None:
        name = configured.name
    if name is None:
        if not recorded:
            raise ConfigError("no decision is of an experiment; see `experiment` in docs/watch.md")
        name = recorded[0]
    if name not in recorded:
        known = ", ".join(recorded) or "none"
        raise ConfigError(f"no decision is of experiment {name!r}; recorded: {known}")
    unit = by or (
        configured.by if configured is not None and configured.name == name else "session"
    )
    if alpha is not None and not 0 < alpha < 1:
        raise ConfigError(f"--alpha {alpha!r}: expected a number between 0 and 1")
    found = compare(
        name, arms(engine, name, by=unit, **span), alpha=0.05 if alpha is None else alpha
    )
    if as_json:
        print_json({**found.to_dict(), **span, "by": unit})
        return
    for line in experiment_lines(found):
        say(line)


def _scored(engine: "Engine", span: dict[str, float | None], router: str | None) -> str | None:
    """The name that decisions know the router by: a bundle's folder may have been another then.

    Raises ConfigError where several routers scored, and none is the one that is asked for.
    """
    from ..serve.records.arms import scored_by

    there = scored_by(engine, **span)
    if router in there or len(there) < 2:
        return router if router in there else None
    listed = ", ".join(f"{name} ({count:,})" for name, count in there.items())
    wanted = "say which with --router" if router is None else f"none by {router!r}"
    raise ConfigError(f"several routers scored these decisions: {listed}; {wanted}")


def _upgraded(engine: "Engine") -> bool:
    """Whether a server of this version has opened the database: it lacks columns otherwise."""
    from sqlalchemy import inspect

    from ..serve.records.table import decisions

    return "arm" in {column["name"] for column in inspect(engine).get_columns(decisions.name)}
