"""The command `watch`: recorded decisions against a baseline, and an experiment's arms."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from ..errors import ConfigError, require_extra
from .exits import database_errors, error_lines
from .options import JsonOption
from .output import print_json, say
from .serve import CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Engine

    from ..serve.config.settings import Config

DRIFT = 4  # exit status


def add_commands(app: typer.Typer) -> None:
    """Put the commands of this module on `app`."""
    app.command(rich_help_panel="Measure")(watch)


def watch(
    url: Annotated[str | None, Option(help="The database of decisions; or --config's.")] = None,
    config: Annotated[Path | None, Option(help="The server's file [thriftroute.yaml].")] = None,
    router: Annotated[
        str | None, Option(help="Whose scores; its own table is the baseline [mf].")
    ] = None,
    baseline: Annotated[Path | None, Option(help="A file of --save-baseline instead.")] = None,
    since: Annotated[
        str | None, Option(help="24h, 7d, a date (UTC), or seconds since 1970.")
    ] = None,
    until: Annotated[str | None, Option(help="As --since.")] = None,
    alpha: Annotated[
        float | None, Option(help="Rate of false alarms, over all time [0.01].")
    ] = None,
    threshold: Annotated[
        float | None, Option(help="Whose strong share [the one most decisions had].")
    ] = None,
    save_baseline: Annotated[
        Path | None, Option(help="Write a baseline of these decisions, no test.")
    ] = None,
    experiment: Annotated[
        bool, Option("--experiment", help="Compare an experiment's arms instead.")
    ] = False,
    name: Annotated[str | None, Option(help="Of the experiment [the latest].")] = None,
    by: Annotated[
        str | None, Option(help="What it drew: session or tenant [the config's].")
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
    with database_errors():
        try:
            recorded = _Recorded(engine, span, settings, as_json)
            if experiment:
                recorded.compare_arms(name, by, alpha)
            elif save_baseline is not None:
                recorded.save_baseline(router, save_baseline)
            elif recorded.look_for_drift(router, baseline, alpha, threshold):
                sys.exit(DRIFT)
        finally:
            engine.dispose()


def _settings(url: str | None, config: Path | None) -> "Config | None":
    """The server's config: the one that is named, or without a URL the one that lies here."""
    from ..serve.config.loader import load_config

    if config is None and url is not None:
        return None
    if config is None and not CONFIG.is_file():
        raise ConfigError(
            "nothing to look at: give --url, such as sqlite:///thriftroute.db, or --config"
        )
    return load_config(config or CONFIG)


@dataclass(frozen=True)
class _Recorded:
    """The decisions of a time. settings: the server's, where they are known."""

    engine: "Engine"
    span: dict[str, float | None]
    settings: "Config | None"
    as_json: bool

    def look_for_drift(
        self, router: str | None, file: Path | None, alpha: float | None, threshold: float | None
    ) -> bool:
        """Print what differs from the baseline; whether anything does."""
        from ..eval.drift.baseline import Baseline, baseline_of
        from ..eval.drift.drift import examine, print_drift
        from ..router.routers import load_router, tables_of
        from ..router.threshold import validate_threshold
        from ..serve.records.arms import shadow

        own: dict[str, Any] = {}
        if self.settings is not None:
            watch, configured = self.settings.watch, self.settings.router
            alpha = watch.alpha if alpha is None else alpha
            if file is None and router is None and watch.baseline:
                file = Path(watch.baseline)
            if router is None:
                router = configured.name
                path = configured.checkpoint_path
                own = {} if path is None else {"checkpoint_path": path}
        if file is not None:
            against = Baseline.load(file)
        else:
            tables = tables_of(load_router(router or "mf", own))
            against = baseline_of(tables, router or "mf")
        if threshold is not None:
            validate_threshold(threshold)
        router = self._known_router(router)
        level = 0.01 if alpha is None else alpha
        report = examine(self._rows(), against, alpha=level, router=router, threshold=threshold)
        found = shadow(self.engine, **self.span)
        if self.as_json:
            plain = {**report.to_dict(), **self.span}
            print_json({**plain, "shadow": found if found["requests"] else None})
        else:
            print_drift(report)
            if found["requests"]:
                _print_shadow(found)
        return report.verdict == "drift"

    def save_baseline(self, router: str | None, path: Path) -> None:
        """Write a baseline of these decisions."""
        from ..eval.drift.drift import baseline_from

        baseline = baseline_from(self._rows(), path.stem, router=self._known_router(router))
        baseline.save(path)
        say(f"wrote {path}: {baseline.n:,} scores", err=True)

    def compare_arms(self, name: str | None, by: str | None, alpha: float | None) -> None:
        """Print the arms of an experiment side by side."""
        from ..eval.drift.arms import compare, print_arms
        from ..serve.records.arms import arms, experiments

        configured = None if self.settings is None else self.settings.experiment
        recorded = experiments(self.engine)
        if name is None and configured is not None:
            name = configured.name
        if name is None and not recorded:
            raise ConfigError("no decision is of an experiment; see `experiment` in docs/watch.md")
        name = name or recorded[0]
        if name not in recorded:
            known = ", ".join(recorded) or "none"
            raise ConfigError(f"no decision is of experiment {name!r}; recorded: {known}")
        own = configured is not None and configured.name == name
        unit = by or (configured.by if configured is not None and own else "session")
        if alpha is not None and not 0 < alpha < 1:
            raise ConfigError(f"--alpha {alpha!r}: expected a number between 0 and 1")
        sums = arms(self.engine, name, by=unit, **self.span)
        found = compare(name, sums, alpha=0.05 if alpha is None else alpha)
        if self.as_json:
            print_json({**found.to_dict(), **self.span, "by": unit})
        else:
            print_arms(found)

    def _rows(self) -> "Iterator[dict[str, Any]]":
        from ..eval.drift.drift import FIELDS
        from ..serve.records.stats import export

        since, until = self.span["since"], self.span["until"]
        return export(self.engine, since=since, until=until, only=FIELDS)

    def _known_router(self, router: str | None) -> str | None:
        """The name that decisions know it by: a bundle's folder may have been another then.

        Raises ConfigError where several routers scored, and none is the one that is asked for.
        """
        from ..serve.records.arms import scored_by

        there = scored_by(self.engine, **self.span)
        if router in there or len(there) < 2:
            return router if router in there else None
        listed = ", ".join(f"{name} ({count:,})" for name, count in there.items())
        wanted = "say which with --router" if router is None else f"none by {router!r}"
        raise ConfigError(f"several routers scored these decisions: {listed}; {wanted}")


def _print_shadow(shadow: "Mapping[str, Any]") -> None:
    share, strong = shadow["saving_share"], shadow["strong_share"]
    # Where rules or sessions decided all of them there is no strong share.
    gone = "" if strong is None else f"{strong:.1%} would have gone to the strong model, for "
    say(
        f"shadow mode: {shadow['requests']:,} requests cost ${shadow['cost']:.6g}; routed, "
        f"{gone}${shadow['routed_cost']:.6g}: ${shadow['saving']:.6g} saved"
        + ("" if share is None else f" ({share:.1%})")
    )
