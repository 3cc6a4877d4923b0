"""The command `logs score`: scores of a log of any length, on many cores or on Ray."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..terminal import new_console
from .options import JsonOption
from .output import say

if TYPE_CHECKING:
    from ..data.batch.run import State, Summary

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
    out: Annotated[
        Path, typer.Option("--out", help="The file of scores: .parquet, or JSONL by another name.")
    ],
    router: Annotated[str, typer.Option("--router", help="mf, bert, or a bundle's folder.")] = "mf",
    strong: Annotated[
        str | None, typer.Option("--strong", help="Strong, among the bundle's models.")
    ] = None,
    weak: Annotated[
        str | None, typer.Option("--weak", help="Weak, among the bundle's models.")
    ] = None,
    context: Annotated[
        str, typer.Option("--context", help="What is scored: last, conversation or full.")
    ] = "conversation",
    format: Annotated[
        str,
        typer.Option("--format", help="auto, openai, litellm, langfuse, otel, records or logs."),
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes; by default as many as there are cores."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray", help="Run on Ray: a cluster's address, auto, or local (extra 'ray')."
        ),
    ] = None,
    chunk_rows: Annotated[
        int, typer.Option("--chunk-rows", min=1, help="Rows of a chunk: what a stop may lose.")
    ] = 1024,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Write each row's embedding (float16), too.")
    ] = False,
    clusters: Annotated[
        int | None,
        typer.Option("--clusters", min=1, help="Number the rows by so many kinds of prompt."),
    ] = None,
    centers: Annotated[
        Path | None,
        typer.Option("--centers", help="Number them by an earlier run's OUT.centers.npy."),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip and count bad rows instead of stopping.")
    ] = False,
    rejects: Annotated[
        Path | None, typer.Option("--rejects", help="Where skipped rows are told (JSONL).")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the clusters.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file that is there.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Score every row of a log of any length: streamed, in bounded memory, on many cores.

    Interrupted or killed, the same command goes on where it stopped.

    Example: thriftroute logs score logs.jsonl --out scores.parquet --workers 2
    """
    from ..data.batch.run import score_logs

    with _progress() as progress:
        summary = score_logs(
            inputs,
            out,
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
            progress=progress,
        )
    if as_json:
        say(json.dumps(dataclasses.asdict(summary), indent=2, ensure_ascii=False))
        return
    say(_line(summary))


def _line(summary: "Summary") -> str:
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
def _progress() -> Iterator[Callable[["State"], None]]:
    """A bar on a terminal, a line now and then elsewhere; on stderr."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = new_console(stderr=True)
    if not console.is_terminal:
        told = 0.0

        def tell(state: "State") -> None:
            nonlocal told
            if state.seconds - told >= LINE_EVERY_S:
                told = state.seconds
                share = state.done / state.total
                say(
                    f"{state.done:,} of {state.total:,} rows ({share:.1%}), {_pace(state)}",
                    err=True,
                )

        yield tell
        return
    columns = (
        TextColumn("scoring"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("", total=None)

        def show(state: "State") -> None:
            bars.update(task, completed=state.done, total=state.total, description=_pace(state))

        yield show


def _pace(state: "State") -> str:
    """Rows a second, and what is left, by what this run has done so far."""
    if state.left is None:
        return ""
    hours, rest = divmod(round(state.left), 3600)
    left = f"{hours} h {rest // 60:02} min" if hours else f"{rest // 60} min {rest % 60:02} s"
    return f"{state.rate:,.0f} rows/s, {left} left"
