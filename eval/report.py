"""An EvaluationReport as a terminal table, as JSON, and as a folder with figures and HTML."""

import base64
import html
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..router.threshold import format_threshold
from ..terminal import new_console, visible
from .calibrate import Calibration
from .fetch import write_atomically
from .plot import cost_quality_png
from .run import EvaluationReport

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = (
    "router",
    "APGR [95% CI]",
    "CPT(50%)",
    "CPT(80%)",
    "AUC",
    "ECE",
    "APGR - random [95% CI]",
)
# A terminal of 80 columns holds the first four; the rest is in the HTML and the JSON.
NARROW, WIDE, WIDE_FROM = COLUMNS[:4], COLUMNS[:6], 100

HOW_TO_READ = (
    (
        "Share of strong calls",
        "How many of the prompts go to the expensive model: 0% is the weak model alone.",
    ),
    (
        "Gap",
        "Mean reward of the strong model minus that of the weak one. PGR is the part of it that "
        "routing recovers at some share of strong calls.",
    ),
    (
        "APGR",
        "PGR, averaged over every share from 0 to 100%. Routing at random has 0.5, and so has a "
        "router that knows nothing; the oracle shows how much could be had at best.",
    ),
    (
        "CPT(50%), CPT(80%)",
        "The smallest share of strong calls that recovers 50% or 80% of the gap. Lower is cheaper.",
    ),
    (
        "AUC, ECE",
        "AUC: how often a prompt that needs the strong model scores above one that does not. ECE: "
        "how far scores are from probabilities; no threshold that is calibrated on your prompts "
        "depends on it.",
    ),
    (
        "Intervals",
        "95% percentile bootstrap over prompts. Differences are paired: both routers see the same "
        "resamples. An interval of a difference that holds 0 is no evidence either way. The band "
        "in the figure is that of the part of the gap that is recovered.",
    ),
)

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 64rem;
       margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.25rem; margin-top: 2.6rem; }
p.lead, .note { color: #555; } img { max-width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; margin: .8rem 0;
                                     font-size: .88rem; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #e3e3e3;
         font-variant-numeric: tabular-nums; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
th { border-bottom: 2px solid #888; font-weight: 600; }
tr.router td { background: #f0f6fb; font-weight: 600; }
ul.note { font-size: .85rem; line-height: 1.4; padding-left: 1.1rem; }
dt { font-weight: 600; margin-top: .5rem; } dd { margin: 0; }
"""


def show(report: EvaluationReport, console: "Console | None" = None) -> None:
    """Print a table a benchmark, with rich. `console`: a rich Console, by default stdout's."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    console = new_console() if console is None else console
    columns = WIDE if console.width >= WIDE_FROM else NARROW
    for facts in report.benchmarks:
        console.print(escape(_headline(facts)), style="bold", highlight=False)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            left = column == "router"
            table.add_column(column, justify="left" if left else "right", no_wrap=not left)
        for row in _ordered(report, facts["name"]):
            style = "bold" if row["kind"] == "router" else "dim"
            cells = dict(zip(COLUMNS, _cells(row), strict=True))
            table.add_row(*(escape(visible(cells[column])) for column in columns), style=style)
        console.print(table)
        for note in _notes(report, facts["name"]):
            console.print(escape(note), style="dim", highlight=False)
        console.print()


def show_calibration(result: Calibration, console: "Console | None" = None) -> None:
    """Print a threshold, what it gives, and its neighbours."""
    from rich.table import Table

    out = console or new_console()
    low, high = result.interval
    out.print(
        f"threshold {format_threshold(result.threshold)}: {result.strong_pct:.1%} strong calls "
        f"(95% interval {low:.1%} to {high:.1%}) on n = {result.n:,} prompts",
        highlight=False,
    )
    if result.usd_per_1k is not None and result.usd_interval is not None:
        least, most = result.usd_interval
        out.print(
            f"{result.usd_per_1k:.4g} USD per 1,000 requests ({least:.4g} to {most:.4g})",
            highlight=False,
        )
    if result.warning:
        out.print(f"warning: {result.warning}", highlight=False, markup=False)
    table = Table("", "threshold", "strong calls", "95% interval", "USD / 1,000", "mean reward")
    for row in result.table:
        table.add_row(
            "->" if row.chosen else "",
            format_threshold(row.threshold),
            f"{row.strong_pct:.1%}",
            f"{row.interval[0]:.1%} to {row.interval[1]:.1%}",
            "-" if row.usd_per_1k is None else f"{row.usd_per_1k:.4g}",
            "-" if row.quality is None else f"{row.quality:.4f}",
        )
    out.print(table)


def to_json(report: EvaluationReport) -> str:
    """Strict JSON without the curves: what `evaluate --json` prints. NaN is null."""
    value = report.to_dict()
    del value["curves"]
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2)


def save(report: EvaluationReport, folder: str | Path) -> dict[str, Path]:
    """Write results.json, report.html and a PNG a benchmark; returns their paths by file name.

    Files of these names are replaced, others left alone. Raises MissingExtraError without
    matplotlib, and OSError where the folder cannot be written.
    """
    target = Path(folder)
    files: dict[str, bytes] = {}
    images: dict[str, bytes] = {}
    for facts in report.benchmarks:
        name = facts["name"]
        apgr = {row["router"]: row["apgr"] for row in _ordered(report, name)}
        images[name] = cost_quality_png(facts, report.curves[name], apgr)
        files[_file_name(name, files)] = images[name]
    files["report.html"] = to_html(report, images).encode(errors="replace")
    text = json.dumps(report.to_dict(), ensure_ascii=False, allow_nan=False, indent=1)
    files["results.json"] = text.encode(errors="replace")
    for file_name, body in files.items():
        write_atomically(target / file_name, body)
    return {file_name: target / file_name for file_name in files}


def to_html(report: EvaluationReport, images: Mapping[str, bytes]) -> str:
    """One HTML page that needs no other file; `images` are PNGs by benchmark name."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>thriftroute evaluation</title><style>{STYLE}</style></head><body>",
        "<h1>Evaluation</h1>",
        f'<p class="lead">{len(report.benchmarks)} benchmarks, {report.bootstraps:,} bootstrap '
        f"resamples, seed {report.seed}. Routers are highlighted; everything else is a baseline."
        "</p>",
    ]
    for facts in report.benchmarks:
        name = facts["name"]
        data = base64.b64encode(images[name]).decode("ascii")
        parts += [
            f"<h2>{_text(name)}</h2>",
            f"<p>{_text(_headline(facts))}</p>",
            f'<img alt="{_text(_alternative(report, facts))}" src="data:image/png;base64,{data}">',
            _html_table(
                COLUMNS,
                (
                    (row["kind"], [_text(cell) for cell in _cells(row)])
                    for row in _ordered(report, name)
                ),
            ),
        ]
        pairs = [pair for pair in report.comparisons if pair["benchmark"] == name]
        if pairs:
            rows = (
                (
                    "pair",
                    [
                        _text(f"{pair['a']} - {pair['b']}"),
                        signed_text(pair["apgr_difference"]),
                        interval_text(pair["ci"], "{:+.3f}"),
                    ],
                )
                for pair in pairs
            )
            parts += [
                "<h3>Paired differences of APGR</h3>",
                _html_table(("routers", "difference", "95% CI"), rows),
            ]
        notes = "".join(f"<li>{_text(note)}</li>" for note in _notes(report, name))
        parts.append(f'<ul class="note">{notes}</ul>')
    parts.append("<h2>How to read this</h2><dl>")
    parts += [f"<dt>{_text(term)}</dt><dd>{_text(what)}</dd>" for term, what in HOW_TO_READ]
    parts.append("</dl></body></html>")
    return "\n".join(parts)


def _html_table(columns: Iterable[str], rows: Iterable[tuple[str, list[str]]]) -> str:
    """`rows` are (class, cells), the cells already HTML."""
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = "\n".join(
        f'<tr class="{_text(kind)}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        for kind, cells in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>'


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _ordered(report: EvaluationReport, benchmark: str) -> list[dict[str, Any]]:
    """Routers first, then baselines, each by falling APGR; single models last."""
    rows = [row for row in report.results if row["benchmark"] == benchmark]

    def key(row: dict[str, Any]) -> tuple[bool, float]:
        apgr = row["apgr"]
        return row["kind"] != "router", math.inf if math.isnan(apgr) else -apgr

    return sorted(rows, key=key)


def _headline(facts: Mapping[str, Any]) -> str:
    return (
        f"{facts['name']}: n = {facts['n']:,}; strong {facts['strong_model']} "
        f"{facts['strong_mean']:.4f}, weak {facts['weak_model']} {facts['weak_mean']:.4f}"
    )


def _notes(report: EvaluationReport, benchmark: str) -> list[str]:
    facts = next(facts for facts in report.benchmarks if facts["name"] == benchmark)
    rows = _ordered(report, benchmark)
    notes = [f"{row['router']}: {row['note']}" for row in rows if row["note"]]
    notes += [f"left out: {count:,} {reason}" for reason, count in facts["dropped"].items()]
    costs = [
        f"{row['router']}: USD per 1,000 requests "
        + ", ".join(f"{key} {value:.3g}" for key, value in row["usd_per_1k"].items())
        for row in rows
        if row["usd_per_1k"]
    ]
    notes.append(f"95% intervals: {report.bootstraps:,} bootstrap resamples, seed {report.seed}")
    return costs + notes


def _alternative(report: EvaluationReport, facts: Mapping[str, Any]) -> str:
    """The figure in words, for a reader who does not see it."""
    told = ", ".join(
        f"{row['router']} {row['apgr']:.3f}"
        for row in _ordered(report, facts["name"])
        if math.isfinite(row["apgr"])
    )
    return f"Mean reward against the share of strong calls on {facts['name']}; APGR: {told}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    against = row["vs_random"]
    return [
        str(row["router"]),
        "-" if math.isnan(row["apgr"]) else f"{row['apgr']:.3f} {interval_text(row['apgr_ci'])}",
        _share(row["cpt50"], row["cpt50_ci"]),
        _share(row["cpt80"], row["cpt80_ci"]),
        number_text(row["auc"]),
        number_text(row["ece"]),
        "-"
        if math.isnan(against["difference"])
        else difference_text(against["difference"], against["ci"]),
    ]


def number_text(value: float) -> str:
    """Three decimals; "-" where it is undefined."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def signed_text(value: float) -> str:
    """As `number_text`, with its sign."""
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return "-" if math.isnan(value) else f"{round(value, 3) + 0.0:+.3f}"


def _share(value: float, ends: Iterable[float]) -> str:
    low, high = ends
    if math.isnan(value):
        return "-"
    middle = f"{value:.1%}"
    return middle if math.isnan(low) else f"{middle} [{100 * low:.0f}, {100 * high:.0f}]"


def interval_text(ends: Iterable[float], form: str = "{:.3f}") -> str:
    """Both ends in brackets; "-" where they are undefined."""
    low, high = ends
    return "-" if math.isnan(low) else f"[{form.format(low)}, {form.format(high)}]"


def difference_text(value: float, ends: Iterable[float]) -> str:
    """A difference beside its interval, all with their signs."""
    return f"{signed_text(value)} {interval_text(ends, '{:+.3f}')}"


def _file_name(benchmark: str, taken: Mapping[str, object]) -> str:
    """A plain file name: a benchmark may be named after a user's path."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", benchmark).strip("._")[:80] or "benchmark"
    name, count = f"{stem}.png", 2
    while name in taken:
        name, count = f"{stem}-{count}.png", count + 1
    return name
