"""An import and its traffic on the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...terminal import new_console, one_line
from .import_rows import Imported
from .traffic_profile import Traffic


def show_import(result: Imported, out: Path, console: Console | None = None) -> None:
    """What was read, what was left out and why, and what was written."""
    console = console or new_console()
    if result.traffic is not None:
        show_traffic(result.traffic, console)
    told = f"{result.entries:,} entries read"
    if result.resumed:
        told += f" ({result.resumed:,} of them by an earlier run)"
    told += f", {result.distinct:,} distinct requests in {result.requests:,.0f}"
    if result.left_out:
        reasons = (f"{n:,} {reason}" for reason, n in result.left_out.most_common())
        told += f"; left out: {', '.join(reasons)}"
    if result.bad:
        told += f"; {result.bad:,} bad, the first: {result.problem}"
    if result.masked:
        told += f"; something masked in {result.masked:,}"
    whole = "" if result.written == result.distinct else f", which stand for {result.requests:,.0f}"
    formats = [f"{one_line(str(path))}: {format}" for path, format in result.formats.items()]
    _print(console, *formats, told, f"wrote {result.written:,} rows to {out}{whole}")


def show_traffic(traffic: Traffic, console: Console | None = None) -> None:
    """The report: a summary, a table of models, a table of clusters with examples."""
    console = console or new_console()
    _print(console, *_summary(traffic))
    models = Table("model", title="Models", title_justify="left")
    for name in ("requests", "tokens in", "tokens out", "USD", "USD per 1k"):
        models.add_column(name, justify="right")
    for name, use in traffic.models.items():
        models.add_row(escape(one_line(name)), *_model(use))
    console.print(models)
    clusters = Table(title="Clusters", title_justify="left", expand=True)
    clusters.add_column("kind of request", no_wrap=True, overflow="ellipsis", ratio=1)
    for name in ("share", "of cost", "characters"):
        clusters.add_column(name, justify="right")
    for cluster in traffic.clusters:
        lines = [f"[bold]{escape(one_line(', '.join(cluster.words)))}[/bold]"]
        lines += [f"  {escape(one_line(example))}" for example in cluster.examples]
        cost = "-" if cluster.cost_share is None else f"{cluster.cost_share:.0%}"
        cells = (f"{cluster.share:.0%}", cost, f"{cluster.characters:,.0f}")
        clusters.add_row("\n".join(lines), *cells, end_section=True)
    console.print(clusters)
    if traffic.described < traffic.rows:
        of = f"{traffic.described:,} of {traffic.rows:,} rows"
        _print(console, f"lengths, languages and clusters from {of}")


def _print(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _summary(traffic: Traffic) -> list[str]:
    p = traffic.characters
    lines = [
        f"{traffic.requests:,.0f} requests, {traffic.rows:,} rows",
        f"prompts of {p['p50']:,.0f} characters (10%: {p['p10']:,.0f}, 90%: {p['p90']:,.0f}, 99%: "
        f"{p['p99']:,.0f}); {traffic.conversations:.0%} of several turns, "
        f"{traffic.with_system:.0%} with a system text, {traffic.with_tools:.0%} with tool results",
        f"{traffic.answered:.0%} with an answer, {traffic.rated:.0%} with feedback",
    ]
    if traffic.start and traffic.end:
        lines[0] += f", {traffic.start[:16]} to {traffic.end[:16]} (UTC)"
    if traffic.feedback is not None:
        lines[2] += f" (mean {traffic.feedback:.2f})"
    if traffic.languages is None:
        lines.append("languages: not told; pip install 'thriftroute[serve]'")
    for name in ("languages", "tasks", "tenants"):
        if shares := list((getattr(traffic, name) or {}).items())[:8]:
            told = (f"{one_line(each)} {share:.0%}" for each, share in shares)
            lines.append(f"{name}: {', '.join(told)}")
    return lines


def _model(use: Mapping[str, Any]) -> list[str]:
    tokens = (use["mean_input_tokens"], use["mean_output_tokens"])
    cells = [f"{use['requests']:,.0f}", *("-" if t is None else f"{t:,.0f}" for t in tokens)]
    priced = use["requests"] - use["unpriced"]
    if not priced:
        return [*cells, "-", "-"]
    # What was not logged is marked, and what nobody knows is not taken for nothing.
    about, more = "~" * bool(use["estimated"]), ">" * bool(use["unpriced"])
    usd, per_1k = f"{use['cost']:,.2f}", f"{1000 * use['cost'] / priced:,.2f}"
    return [*cells, f"{more}{about}{usd}", f"{about}{per_1k}"]
