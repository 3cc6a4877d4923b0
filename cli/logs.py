"""Commands around a user's own logs: `logs import`, `logs report`; `logs score` is scale's."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError, MissingExtraError, RoutingError
from ..terminal import new_console
from . import scale
from .options import JsonOption, SeedOption
from .output import print_json
from .sections import Sections

FilesArgument = Annotated[
    list[Path], typer.Argument(help="Log files: JSONL, JSON or CSV, also .gz.", show_default=False)
]
FormatOption = Annotated[
    str,
    typer.Option("--format", help="auto, openai, litellm, langfuse, otel, agent, records or logs."),
]
RouterOption = Annotated[
    str, typer.Option("--router", help="The bundle that embeds: mf, bert, fast or a folder.")
]
ClustersOption = Annotated[
    int | None, typer.Option("--clusters", min=1, help="Kinds of request; by default up to 20.")
]
MaskOption = Annotated[
    bool, typer.Option("--mask", help="Mask e-mail addresses, phone and card numbers, keys.")
]
SkipOption = Annotated[
    bool, typer.Option("--skip-bad", help="Skip and count bad entries instead of stopping.")
]
RejectsOption = Annotated[
    Path | None, typer.Option("--rejects", help="Where skipped entries are written (JSONL).")
]

logs = typer.Typer(
    cls=Sections, help="Your own logs: import, sample, report.", no_args_is_help=True
)


def add_commands(app: typer.Typer) -> None:
    """Put the commands of this module on `app`."""
    scale.add_commands(logs)
    app.add_typer(logs, name="logs", rich_help_panel="Logs")


@logs.command("import")
def import_(
    files: FilesArgument,
    out: Annotated[Path, typer.Option("--out", help="The JSONL file to write.")],
    format: FormatOption = "auto",
    sample: Annotated[
        int | None,
        typer.Option("--sample", min=1, help="So many requests, that stand for all of them."),
    ] = None,
    at_least: Annotated[
        int, typer.Option("--at-least", min=0, help="So many of each cluster in the sample.")
    ] = 0,
    mask: MaskOption = False,
    report: Annotated[
        bool, typer.Option("--report", help="Also print what the traffic looks like.")
    ] = False,
    clusters: ClustersOption = None,
    router: RouterOption = "mf",
    skip_bad: SkipOption = False,
    rejects: RejectsOption = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Processes that parse lines of JSON.")
    ] = 1,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Read logs of other tools into one file of distinct requests, all of them or a sample.

    Interrupted or killed, the same command goes on where it stopped.

    Example: thriftroute logs import spend.jsonl --out logs.jsonl --sample 500 --mask --report
    """
    from ..data.logs.importing import import_logs
    from ..data.logs.show import show_import

    if rejects is not None and not skip_bad:
        raise ConfigError("--rejects takes what --skip-bad skips: give both")
    with _progress() as progress:
        result = import_logs(
            files,
            out,
            _options(
                skip_bad,
                format=format,
                sample=sample,
                report=report,
                at_least=at_least,
                clusters=clusters,
                mask=mask,
                rejects=rejects,
                seed=seed,
            ),
            embedder=_embedder(router) if report or sample is not None else None,
            language=_language() if report else None,
            workers=workers,
            progress=progress,
        )
    if as_json:
        print_json({"out": str(out), **result.to_dict()})
    else:
        show_import(result, out)


@logs.command("report")
def report_(
    files: FilesArgument,
    format: FormatOption = "auto",
    mask: MaskOption = False,
    clusters: ClustersOption = None,
    router: RouterOption = "mf",
    skip_bad: SkipOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Print what the traffic of a log looks like: models, cost, lengths, languages, clusters.

    Example: thriftroute logs report logs.jsonl
    """
    from ..data.logs.importing import describe_logs
    from ..data.logs.show import show_traffic

    options = _options(skip_bad, format=format, clusters=clusters, mask=mask, seed=seed)
    with _progress() as progress:
        traffic = describe_logs(
            files, options, embedder=_embedder(router), language=_language(), progress=progress
        )
    if as_json:
        print_json(asdict(traffic))
    else:
        show_traffic(traffic)


def _options(skip_bad: bool, **options: Any) -> Any:
    from ..data.logs.import_rows import ImportSettings

    return ImportSettings(on_bad="skip" if skip_bad else "stop", **options)


def _embedder(name: str) -> Any:
    """A bundle as what embeds; what it embedded once it keeps on disk, by hash, without text."""
    from ..eval.scored import CachedScorer
    from ..router.routers import BundleRouter, load_router

    router = load_router(name)
    if not isinstance(router, BundleRouter):
        raise RoutingError(f"router {name!r} does not embed: give a bundle's name or folder")
    return CachedScorer(router.scorer)


def _language() -> Callable[[str], str | None] | None:
    """What tells languages, where the extra that brings it is installed."""
    from ..router.languages import Languages

    try:
        return Languages().of
    except MissingExtraError:
        return None


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """A line on a terminal's stderr that says how far it is; elsewhere a line now and then."""
    console = new_console(stderr=True)
    status = console.status("starting")
    told = began = time.monotonic()
    earlier = 0  # entries that an earlier run read

    def show(stage: str, done: int, total: int | None) -> None:
        nonlocal told, began, earlier
        now = time.monotonic()
        if stage == "resumed":
            earlier, began = done, now
            line = f"going on after {done:,} entries, which an earlier run read"
            console.print(line, highlight=False, soft_wrap=True)
            return
        line = f"{stage}: {done:,}" + ("" if total is None else f" of {total:,}")
        if stage == "reading" and now > began:
            line += f", {(done - earlier) / (now - began):,.0f} a second"
        if console.is_terminal:
            status.update(line)
        elif now - told >= scale.LINE_EVERY_S:
            told = now
            console.print(line, highlight=False, soft_wrap=True)

    with status if console.is_terminal else contextlib.nullcontext():
        yield show
