"""What the own-logs protocol found, as terminal tables."""

from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING

from ..terminal import new_console
from .own_logs import OwnLogsReport, OwnLogsRow
from .report import WIDE_FROM, difference_text, interval_text

if TYPE_CHECKING:
    from rich.console import Console


def show_own_logs(report: OwnLogsReport, console: "Console | None" = None) -> None:
    """A table a size: methods by falling APGR, and their differences from those they are set
    against; on a narrow terminal from the first of these alone."""
    out = out_or_stdout(console)
    wide = out.width >= WIDE_FROM
    others = report.against if wide else report.against[:1]
    for size, group in groupby(report.rows, key=lambda row: row.size):
        line(
            out,
            f"own logs of {size:,} from {report.benchmark} (n = {report.n:,}): {report.draws} "
            f"draws, tested on the other {report.tested[size]:,}",
            style="bold",
        )
        line(out, f"strong {report.strong_model}, weak {report.weak_model}")
        columns = ["method", "APGR [95% CI]", "sd"]
        columns += ["min to max"] if wide else []
        for other in others:
            columns += [f"- {other}", "worse"]
        rows = sorted(group, key=lambda row: -row.mean)
        table(out, columns, (_own_cells(row, others, wide) for row in rows))
    line(
        out,
        "Intervals: 95%, over draws of labels and over test prompts, "
        f"{report.bootstraps} resamples a draw; the JSON has those over draws alone, too. sd: of "
        "the APGR from draw to draw. Differences are paired; worse: in how many of "
        f"{report.draws} draws it was below 0. Random routing has 0.5. Seed {report.seed}.",
        style="dim",
    )


def _own_cells(row: OwnLogsRow, others: Iterable[str], wide: bool) -> list[str]:
    cells = [row.method, f"{row.mean:.3f} {interval_text(row.prompts_ci)}", f"{row.sd:.3f}"]
    cells += [f"{row.low:.3f} to {row.high:.3f}"] if wide else []
    for other in others:
        found = row.against.get(other)
        if found is None:
            cells += ["", ""]
        else:
            cells += [difference_text(found.mean, found.prompts_ci), str(found.worse)]
    return cells


def out_or_stdout(console: "Console | None") -> "Console":
    """`console`, by default stdout's."""
    return new_console() if console is None else console


def line(out: "Console", text: str, style: str | None = None) -> None:
    """Print one line as it stands: no markup, no colours of its own."""
    from rich.markup import escape

    out.print(escape(text), style=style, highlight=False)


def table(out: "Console", columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print rows of cells under their columns; all but the first are aligned right."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for number, column in enumerate(columns):
        found.add_column(
            escape(column), justify="right" if number else "left", overflow="fold",
            no_wrap=number > 0,
        )  # fmt: skip
    for row in rows:
        found.add_row(*(escape(cell) for cell in row))
    out.print(found)
