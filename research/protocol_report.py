"""What the protocols found, as terminal tables and as JSON."""

import json
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING

from ..eval.own_logs import OwnLogsReport, OwnLogsRow
from ..eval.report import WIDE_FROM, difference_text, interval_text
from ..terminal import new_console
from .languages import LanguageReport, show_languages
from .new_model import NewModelReport
from .other_pairs import RANDOM, ROUTER, PairsReport
from .own_calibration import CalibrationReport, Int8Report

if TYPE_CHECKING:
    from rich.console import Console

ProtocolReport = (
    OwnLogsReport | PairsReport | NewModelReport | CalibrationReport | Int8Report | LanguageReport
)


def to_json(report: ProtocolReport) -> str:
    """Strict JSON: what a protocol's `--json` prints. NaN is null."""
    return json.dumps(report.to_dict(), ensure_ascii=False, allow_nan=False, indent=2)


def show(report: ProtocolReport, console: "Console | None" = None) -> None:
    """Print tables, with rich. `console`: a rich Console, by default stdout's."""
    if isinstance(report, OwnLogsReport):
        show_own_logs(report, console)
    elif isinstance(report, PairsReport):
        show_pairs(report, console)
    elif isinstance(report, NewModelReport):
        show_new_model(report, console)
    elif isinstance(report, CalibrationReport):
        show_calibration(report, console)
    elif isinstance(report, Int8Report):
        _line(
            _console(console),
            f"{report.benchmark} (n = {report.n:,}): APGR {report.int8:.4f} in int8, "
            f"{report.fp32:.4f} in fp32, difference {report.int8 - report.fp32:+.4f}",
        )
    else:
        show_languages(report, console)


def show_calibration(report: CalibrationReport, console: "Console | None" = None) -> None:
    """ECE before and after calibrating on a few labels."""
    out = _console(console)
    _line(out, f"calibration on {report.benchmark} (n = {report.n:,})", style="bold")
    rows = [
        ["none (the bundle's own)", f"{report.before:.3f}", "", f"{report.before_floor:.3f}", ""]
    ]
    rows += [
        [
            f"{row.labels:,}",
            f"{row.ece:.3f}",
            f"{row.ece_range[0]:.3f} to {row.ece_range[1]:.3f}",
            f"{row.floor:.3f}",
            str(row.failed),
        ]
        for row in report.rows
    ]
    _table(out, ["labels", "ECE of the rest", "over draws", "floor", "failed"], rows)
    _line(
        out,
        f"Mean of {report.draws} draws, Platt's method, seed {report.seed}. floor: what a "
        "perfectly calibrated score shows on as many prompts.",
        style="dim",
    )


def show_own_logs(report: OwnLogsReport, console: "Console | None" = None) -> None:
    """A table a size: methods by falling APGR, and their differences from those they are set
    against; on a narrow terminal from the first of these alone."""
    out = _console(console)
    wide = out.width >= WIDE_FROM
    others = report.against if wide else report.against[:1]
    for size, group in groupby(report.rows, key=lambda row: row.size):
        _line(
            out,
            f"own logs of {size:,} from {report.benchmark} (n = {report.n:,}): {report.draws} "
            f"draws, tested on the other {report.tested[size]:,}",
            style="bold",
        )
        _line(out, f"strong {report.strong_model}, weak {report.weak_model}")
        columns = ["method", "APGR [95% CI]", "sd"]
        columns += ["min to max"] if wide else []
        for other in others:
            columns += [f"- {other}", "worse"]
        rows = sorted(group, key=lambda row: -row.mean)
        _table(out, columns, (_own_cells(row, others, wide) for row in rows))
    _line(
        out,
        "Intervals: 95%, over draws of labels and over test prompts, "
        f"{report.bootstraps} resamples a draw; the JSON has those over draws alone, too. sd: of "
        "the APGR from draw to draw. Differences are paired; worse: in how many of "
        f"{report.draws} draws it was below 0. Random routing has 0.5. Seed {report.seed}.",
        style="dim",
    )


def show_pairs(report: PairsReport, console: "Console | None" = None) -> None:
    """A row for each pair, and a summary: means over pairs, differences, and sign tests."""
    out = _console(console)
    _line(
        out,
        f"{report.data}: {len(report.pairs)} pairs of {report.models} models, {report.prompts:,} "
        f"prompts; chosen from {report.eligible:,} pairs",
        style="bold",
    )
    names = [name for name in report.mean if name != RANDOM]
    _table(
        out,
        ["strong - weak", "n", "gap", *names],
        (
            [
                f"{pair.strong} - {pair.weak}",
                f"{pair.n:,}",
                f"{pair.strong_mean - pair.weak_mean:.3f}",
                *(f"{pair.apgr[name]:.3f}" for name in names),
            ]
            for pair in report.pairs
        ),
    )
    summary = []
    for name, mean in report.mean.items():
        cells = [name, f"{mean:.3f} {interval_text(report.ci[name])}", "", "", ""]
        if name != ROUTER:
            sign = report.sign[name]
            cells[2] = difference_text(report.difference[name], report.difference_ci[name])
            tied = f", {sign.ties} equal" if sign.ties else ""
            cells[3] = f"{sign.wins}/{len(report.pairs)}{tied}"
            cells[4] = f"{sign.p:.2g}"
        summary.append(cells)
    columns = ["mean", "APGR [95% CI]", "router - it", "ahead", "p"]
    _table(out, columns, summary)
    _line(
        out,
        f"Intervals: 95%, {report.bootstraps:,} resamples of the prompts, the same for all pairs; "
        f"seed {report.seed}. ahead: pairs in which the router is better. p: exact two-sided sign "
        "test; the pairs share prompts and models, so it is optimistic.",
        style="dim",
    )


def show_new_model(report: NewModelReport, console: "Console | None" = None) -> None:
    """APGR by the number of comparisons of the new model, as the mean over pairs and draws."""
    out = _console(console)
    _line(
        out,
        f"{report.data}: a new model, {len(report.pairs)} pairs, {report.draws} draws",
        style="bold",
    )
    columns = ["comparisons", "APGR [95% CI]", "- all"]
    _table(
        out,
        columns,
        (
            [
                point.size,
                f"{point.mean:.3f} {interval_text(point.prompts_ci)}",
                difference_text(point.difference, point.difference_prompts_ci),
            ]
            for point in report.points
        ),
    )
    _table(
        out,
        ["new against known", "to fit", "to test", *(point.size for point in report.points)],
        (
            [
                f"{pair.new} {'>' if pair.new_is_strong else '<'} {pair.known}",
                f"{pair.n_train:,}",
                f"{pair.n_test:,}",
                *(f"{sum(values) / len(values):.3f}" for values in pair.apgr.values()),
            ]
            for pair in report.pairs
        ),
    )
    _line(
        out,
        f"Intervals: 95%, over draws and over test prompts, {report.bootstraps} resamples; seed "
        f"{report.seed}. > or <: which of the two is the strong model.",
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


def _console(console: "Console | None") -> "Console":
    return new_console() if console is None else console


def _line(out: "Console", text: str, style: str | None = None) -> None:
    from rich.markup import escape

    out.print(escape(text), style=style, highlight=False)


def _table(out: "Console", columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for number, column in enumerate(columns):
        table.add_column(
            escape(column), justify="right" if number else "left", overflow="fold",
            no_wrap=number > 0,
        )  # fmt: skip
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    out.print(table)
