"""The command `logs score`: scores of a log of any length, on many cores or on Ray."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from ..terminal import new_console
from .options import JsonOption
from .output import print_json, say

if TYPE_CHECKING:
    from ..data.batch.run import ScoreProgress, ScoreSummary

# Where nobody watches, such as in a service's journal: a line so many seconds apart.
LINE_EVERY_S = 30.0


def add_commands(logs: typer.Typer) -> None:
    """Put `score` on the group of commands for logs."""
    logs.command("score")(score)


def score(
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Logs: imported ones, JSONL that `logs import` reads, or Parquet."),
    ],
    out: Annotated[Path, Option(help="The file of scores: .parquet, or JSONL by another name.")],
    router: Annotated[str, Option(help="mf, bert, fast, or a bundle's folder.")] = "mf",
    strong: Annotated[str | None, Option(help="Strong, among the bundle's models.")] = None,
    weak: Annotated[str | None, Option(help="Weak, among the bundle's models.")] = None,
    context: Annotated[
        str, Option(help="What is scored: last, conversation or full.")
    ] = "conversation",
    format: Annotated[
        str, Option(help="auto, openai, litellm, langfuse, otel, records or logs.")
    ] = "auto",
    workers: Annotated[int | None, Option(min=1, help="Threads [as many as cores].")] = None,
    ray: Annotated[
        str | None, Option(help="Run on Ray: a cluster's address, auto, or local (extra 'ray').")
    ] = None,
    chunk_rows: Annotated[int, Option(min=1, help="Rows of a chunk: what a stop may lose.")] = 1024,
    embeddings: Annotated[
        bool, Option("--embeddings", help="Write each row's embedding (float16), too.")
    ] = False,
    clusters: Annotated[
        int | None, Option(min=1, help="Number the rows by so many kinds of prompt.")
    ] = None,
    centers: Annotated[
        Path | None, Option(help="Number them by an earlier run's OUT.centers.npy.")
    ] = None,
    skip_bad: Annotated[
        bool, Option("--skip-bad", help="Skip and count bad rows instead of stopping.")
    ] = False,
    rejects: Annotated[Path | None, Option(help="Where skipped rows are told (JSONL).")] = None,
    seed: Annotated[int, Option(min=0, help="Seed of the clusters.")] = 0,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Score every row of a log of any length: streamed, in bounded memory, on many cores.

    Interrupted or killed, the same command goes on where it stopped.

    Example: thriftroute logs score logs.jsonl --out scores.parquet --workers 2
    """
    from ..data.batch.run import score_logs
    from ..data.batch.settings import ScoreSettings

    settings = ScoreSettings(
        inputs=inputs,
        out=out,
        router=router,
        strong=strong,
        weak=weak,
        context=context,
        format=format,
        workers=workers or os.cpu_count() or 1,
        ray=ray,
        chunk_rows=chunk_rows,
        embeddings=embeddings,
        clusters=clusters,
        centers=centers,
        skip_bad=skip_bad,
        rejects=rejects,
        overwrite=overwrite,
        seed=seed,
    )
    with _bar() as progress:
        summary = score_logs(settings, progress)
    if as_json:
        print_json(asdict(summary))
    else:
        say(summary_line(summary))


def summary_line(summary: "ScoreSummary") -> str:
    """What a run did, for people."""
    text = f"wrote {summary.rows:,} scores to {summary.out}: {summary.rows_per_s:,.0f} rows/s"
    if summary.repeats:
        text += f", {summary.repeats:,} with a prompt that was just scored"
    if summary.resumed:
        text += f"; {summary.resumed:,} were there from an earlier run"
    if summary.left_out:
        text += f"; {summary.left_out:,} entries are no requests that were answered"
    if summary.bad:
        text += f"; {summary.bad:,} bad rows skipped, the first: {summary.problems[0]}"
    return text


@contextmanager
def _bar() -> Iterator[Callable[["ScoreProgress"], None]]:
    """A bar on a terminal, a line now and then elsewhere; on stderr."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn())
    console = new_console(stderr=True)
    told = 0.0
    with Progress(
        *columns, TextColumn("{task.description}"), console=console, disable=not console.is_terminal
    ) as bars:
        task = bars.add_task("", total=None)

        def show(at: "ScoreProgress") -> None:
            nonlocal told
            bars.update(task, completed=at.done, total=at.total, description=pace(at))
            if not console.is_terminal and at.seconds - told >= LINE_EVERY_S:
                told = at.seconds
                share = at.done / at.total
                say(f"{at.done:,} of {at.total:,} rows ({share:.1%}), {pace(at)}", err=True)

        yield show


def pace(at: "ScoreProgress") -> str:
    """Rows a second, and what is left, by what this run has done so far."""
    if at.left is None:
        return ""
    hours, rest = divmod(round(at.left), 3600)
    left = f"{hours} h {rest // 60:02} min" if hours else f"{rest // 60} min {rest % 60:02} s"
    return f"{at.rate:,.0f} rows/s, {left} left"
