"""What the protocols found, as terminal tables and as JSON."""

import json
from typing import TYPE_CHECKING

from ..eval.own_logs import OwnLogsReport, print_own_logs
from ..eval.printing import difference_text, interval_text, line, table
from ..terminal import new_console
from .languages import LanguageReport, print_languages
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


def print_protocol(report: ProtocolReport, console: "Console | None" = None) -> None:
    """Print tables, with rich. `console`: a rich Console, by default stdout's."""
    if isinstance(report, OwnLogsReport):
        print_own_logs(report, console)
    elif isinstance(report, PairsReport):
        print_pairs(report, console)
    elif isinstance(report, NewModelReport):
        print_new_model(report, console)
    elif isinstance(report, CalibrationReport):
        print_own_calibration(report, console)
    elif isinstance(report, Int8Report):
        line(
            console or new_console(),
            f"{report.benchmark} (n = {report.n:,}): APGR {report.int8:.4f} in int8, "
            f"{report.fp32:.4f} in fp32, difference {report.int8 - report.fp32:+.4f}",
        )
    else:
        print_languages(report, console)


def print_own_calibration(report: CalibrationReport, console: "Console | None" = None) -> None:
    """ECE before and after calibrating on a few labels."""
    out = console or new_console()
    line(out, f"calibration on {report.benchmark} (n = {report.n:,})", style="bold")
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
    table(out, ["labels", "ECE of the rest", "over draws", "floor", "failed"], rows)
    line(
        out,
        f"Mean of {report.draws} draws, Platt's method, seed {report.seed}. floor: what a "
        "perfectly calibrated score shows on as many prompts.",
        style="dim",
    )


def print_pairs(report: PairsReport, console: "Console | None" = None) -> None:
    """A row for each pair, and a summary: means over pairs, differences, and sign tests."""
    out = console or new_console()
    line(
        out,
        f"{report.data}: {len(report.pairs)} pairs of {report.models} models, {report.prompts:,} "
        f"prompts; chosen from {report.eligible:,} pairs",
        style="bold",
    )
    names = [name for name in report.mean if name != RANDOM]
    table(
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
    table(out, columns, summary)
    line(
        out,
        f"Intervals: 95%, {report.bootstraps:,} resamples of the prompts, the same for all pairs; "
        f"seed {report.seed}. ahead: pairs in which the router is better. p: exact two-sided sign "
        "test; the pairs share prompts and models, so it is optimistic.",
        style="dim",
    )


def print_new_model(report: NewModelReport, console: "Console | None" = None) -> None:
    """APGR by the number of comparisons of the new model, as the mean over pairs and draws."""
    out = console or new_console()
    line(
        out,
        f"{report.data}: a new model, {len(report.pairs)} pairs, {report.draws} draws",
        style="bold",
    )
    columns = ["comparisons", "APGR [95% CI]", "- all"]
    table(
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
    table(
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
    line(
        out,
        f"Intervals: 95%, over draws and over test prompts, {report.bootstraps} resamples; seed "
        f"{report.seed}. > or <: which of the two is the strong model.",
        style="dim",
    )
