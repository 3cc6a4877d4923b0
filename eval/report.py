"""An EvaluationReport as a terminal table, as JSON, and as a folder with figures and HTML."""

import base64
import contextlib
import json
import math
import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError
from ..files import whole_file
from ..router.threshold import format_threshold
from ..terminal import new_console, visible
from .calibrate import Calibration
from .plot import cost_quality_png
from .printing import (
    difference_text,
    interval_text,
    line,
    number_text,
    render,
    simulated_note,
    table,
)
from .run import EvaluationReport

if TYPE_CHECKING:
    from rich.console import Console

TEMPLATE = Path(__file__).with_name("report.html")
COLUMNS = (
    *("router", "APGR [95% CI]", "CPT(50%)", "CPT(80%)", "AUC", "ECE"),
    "APGR - random [95% CI]",
)
# A terminal of 80 columns holds the first four; the rest is in the HTML and the JSON.
NARROW, WIDE, WIDE_FROM = 4, 6, 100


def print_report(report: EvaluationReport, console: "Console | None" = None) -> None:
    """Print a table a benchmark, with rich. `console`: a rich Console, by default stdout's."""
    console = console or new_console()
    count = WIDE if console.width >= WIDE_FROM else NARROW
    for facts in report.benchmarks:
        line(console, _headline(facts), style="bold")
        ordered = _ordered(report, facts["name"])
        rows = [[visible(cell) for cell in _cells(row)[:count]] for row in ordered]
        styles = ["bold" if row["kind"] == "router" else "dim" for row in ordered]
        table(console, COLUMNS[:count], rows, styles)
        for note in _notes(report, facts):
            line(console, note, style="dim")
        console.print()


def print_calibration(result: Calibration, console: "Console | None" = None) -> None:
    """Print a threshold, what it gives, and its neighbours."""
    out = console or new_console()
    low, high = result.interval
    line(
        out,
        f"threshold {format_threshold(result.threshold)}: {result.strong_pct:.1%} strong calls "
        f"(95% interval {low:.1%} to {high:.1%}) on n = {result.n:,} prompts",
    )
    if result.usd_per_1k is not None and result.usd_interval is not None:
        least, most = result.usd_interval
        line(out, f"{result.usd_per_1k:.4g} USD per 1,000 requests ({least:.4g} to {most:.4g})")
    if result.warning:
        line(out, f"warning: {result.warning}")
    rows = []
    for row in result.table:
        least, most = row.interval
        share = (f"{row.strong_pct:.1%}", f"{least:.1%} to {most:.1%}")
        usd = "-" if row.usd_per_1k is None else f"{row.usd_per_1k:.4g}"
        quality = "-" if row.quality is None else f"{row.quality:.4f}"
        mark = "->" if row.chosen else ""
        rows.append((mark, format_threshold(row.threshold), *share, usd, quality))
    columns = ("", "threshold", "strong calls", "95% interval", "USD / 1,000", "mean reward")
    table(out, columns, rows)


def to_json(report: EvaluationReport) -> str:
    """Strict JSON without the curves: what `evaluate --json` prints. NaN is null."""
    value = report.to_dict()
    del value["curves"]
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2)


def save(report: EvaluationReport, folder: str | Path) -> dict[str, Path]:
    """Write results.json, report.html and, where there is matplotlib, a PNG a benchmark; returns
    their paths by file name.

    Files of these names are replaced, others left alone. Raises OSError where the folder cannot be
    written.
    """
    files: dict[str, bytes] = {}
    images: dict[str, bytes] = {}
    for facts in report.benchmarks:
        name = facts["name"]
        apgr = {row["router"]: row["apgr"] for row in _ordered(report, name)}
        with contextlib.suppress(MissingExtraError):
            images[name] = cost_quality_png(facts, report.curves[name], apgr)
            files[file_name(name, files)] = images[name]
    files["report.html"] = to_html(report, images).encode(errors="replace")
    text = json.dumps(report.to_dict(), ensure_ascii=False, allow_nan=False, indent=1)
    files["results.json"] = text.encode(errors="replace")
    paths = {name: Path(folder) / name for name in files}
    for name, path in paths.items():
        with whole_file(path) as file:
            file.write(files[name])
    return paths


def to_html(report: EvaluationReport, images: Mapping[str, bytes]) -> str:
    """One HTML page that needs no other file; `images` are PNGs by benchmark name."""
    benchmarks = [
        {
            "name": facts["name"],
            "headline": _headline(facts),
            "known": [row for row in _ordered(report, facts["name"]) if row["apgr"] == row["apgr"]],
            "image": base64.b64encode(images.get(facts["name"], b"")).decode("ascii"),
            "rows": [(row["kind"], _cells(row)) for row in _ordered(report, facts["name"])],
            "pairs": [
                ("pair", (f"{p['a']} - {p['b']}", difference_text(p["apgr_difference"]),
                          interval_text(p["ci"], "{:+.3f}")))
                for p in report.comparisons if p["benchmark"] == facts["name"]
            ],
            "notes": _notes(report, facts),
        }
        for facts in report.benchmarks
    ]  # fmt: skip
    values = {"seed": report.seed, "bootstraps": report.bootstraps, "columns": COLUMNS}
    return render(TEMPLATE, {**values, "benchmarks": benchmarks})


def _ordered(report: EvaluationReport, benchmark: str) -> list[dict[str, Any]]:
    """Routers first, then baselines, each by falling APGR; single models last."""
    rows = [row for row in report.results if row["benchmark"] == benchmark]
    rows.sort(key=lambda row: math.inf if math.isnan(row["apgr"]) else -row["apgr"])
    return sorted(rows, key=lambda row: row["kind"] != "router")


def _headline(facts: Mapping[str, Any]) -> str:
    simulated = simulated_note(facts["strong_model"], facts["weak_model"])
    return (
        f"{facts['name']}: n = {facts['n']:,}; strong {facts['strong_model']} "
        f"{facts['strong_mean']:.4f}, weak {facts['weak_model']} {facts['weak_mean']:.4f}"
        f"{simulated and f' ({simulated})'}"
    )


def _notes(report: EvaluationReport, facts: Mapping[str, Any]) -> list[str]:
    rows = _ordered(report, facts["name"])
    costs = [
        f"{row['router']}: USD per 1,000 requests "
        + ", ".join(f"{key} {value:.3g}" for key, value in row["usd_per_1k"].items())
        for row in rows
        if row["usd_per_1k"]
    ]
    notes = [f"{row['router']}: {row['note']}" for row in rows if row["note"]]
    notes += [f"left out: {count:,} {reason}" for reason, count in facts["dropped"].items()]
    notes.append(f"95% intervals: {report.bootstraps:,} bootstrap resamples, seed {report.seed}")
    return costs + notes


def _cells(row: Mapping[str, Any]) -> list[str]:
    gain, ends = row["vs_random"]["difference"], row["vs_random"]["ci"]
    apgr = f"{row['apgr']:.3f} {interval_text(row['apgr_ci'])}"
    return [
        str(row["router"]),
        "-" if math.isnan(row["apgr"]) else apgr,
        *(_share(row[key], row[f"{key}_ci"]) for key in ("cpt50", "cpt80")),
        *(number_text(row[key]) for key in ("auc", "ece")),
        "-" if math.isnan(gain) else difference_text(gain, ends),
    ]


def _share(value: float, ends: Iterable[float]) -> str:
    low, high = ends
    if math.isnan(value):
        return "-"
    return f"{value:.1%}" + ("" if math.isnan(low) else f" [{100 * low:.0f}, {100 * high:.0f}]")


def file_name(benchmark: str, taken: Container[str]) -> str:
    """A plain file name that is not taken: a benchmark may be named after a user's path."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", benchmark).strip("._")[:80] or "benchmark"
    name, count = f"{stem}.png", 2
    while name in taken:
        name, count = f"{stem}-{count}.png", count + 1
    return name
