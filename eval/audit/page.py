"""The audit as one HTML page for who decides: money, quality, curve, tasks, examples, next steps.

The page needs no other file, runs no script and asks no network. Everything that comes from the
data (prompts, names of models and tasks) is escaped. Figures of the routing, of the tasks and of
the examples come from the measured half alone; the curve is of all rows, and is only looked at.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from ...router.threshold import format_threshold
from ..metrics import Interval
from .advice import next_steps
from .chart import bars_html, curve_svg, text, whisker_svg
from .command import Audited, prompt_text
from .groups import Groups, by_cluster, by_task
from .measure import halves, measure
from .style import CSS
from .verdict import Verdict

HEADS = {
    "route": "Route",
    "weak-only": "Use the weak model alone",
    "strong-only": "Use the strong model alone",
    "label-more": "Not enough labels to tell",
}
# Examples of each kind, and characters of a prompt that are shown.
EXAMPLES, EXAMPLE_CHARACTERS = 3, 320
# Resamples for a group's interval: a page has many.
GROUP_RESAMPLES = 400
NO_SCRIPT = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def to_html(audited: Audited, *, examples: bool = True) -> str:
    """The page. `examples`: with prompts of the data on it; whoever gets the page can read them."""
    verdict = audited.verdict
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{NO_SCRIPT}">',
        f"<title>{text(HEADS[verdict.verdict])}: routing report</title>",
        f'<link rel="icon" href="data:,"><style>{CSS}</style></head><body><main>',
        _headline(audited),
        _tiles(audited),
        _money(audited),
        _curve(audited),
        _options(audited),
        _groups(audited),
        _examples(audited) if examples else "",
        _next(audited),
        _method(audited),
        "</main></body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def percent(value: float, digits: int = 1) -> str:
    """A share as text; a dash where it is not defined."""
    return f"{100 * value:.{digits}f}%" if math.isfinite(value) else "-"


def between(ends: Interval, digits: int = 1) -> str:
    """An interval of shares as text."""
    if not all(math.isfinite(end) for end in ends):
        return "no interval"
    return f"{100 * ends[0]:.{digits}f}% to {100 * ends[1]:.{digits}f}%"


def usd(value: float) -> str:
    """US dollars, with as many digits as a reader compares."""
    if not math.isfinite(value):
        return "-"
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${value:.3g}"


def _headline(audited: Audited) -> str:
    verdict, facts = audited.verdict, audited.benchmark
    why = verdict.why[:1].upper() + verdict.why[1:]
    warnings = "".join(f'<p class="warning">{text(warning)}.</p>' for warning in verdict.warnings)
    return (
        f'<section class="verdict {verdict.verdict}"><p class="kicker">Routing report: '
        f"{text(facts.name)}, {verdict.n:,} labelled prompts</p>"
        f"<h1>{text(HEADS[verdict.verdict])}</h1><p>{text(why)}.</p>"
        f'<p class="soft">Strong model: {text(facts.strong_model)}. Weak model: '
        f"{text(facts.weak_model)}. Router: {text(audited.router)}.</p>{warnings}</section>"
    )


def _tiles(audited: Audited) -> str:
    verdict = audited.verdict
    what = "of the cost" if verdict.saving_of == "usd" else "of strong calls"
    tiles: list[tuple[str, str, str]] = []
    option = verdict.candidate
    if verdict.verdict in ("route", "weak-only"):
        tiles += [
            ("Saving", percent(verdict.saving), f"{what}, {between(verdict.saving_ci)}"),
            ("Quality kept", percent(verdict.quality), between(verdict.quality_ci)),
        ]
    elif option is not None:
        tiles += [
            (
                "Routing: saving",
                percent(option.saving),
                f"{what}, {between(option.saving_ci)}",
            ),
            ("Routing: quality", percent(option.quality), between(option.quality_ci)),
        ]
    if verdict.verdict == "route":
        at = f"threshold {format_threshold(verdict.threshold)}"
        tiles.append(("Calls to the strong model", percent(verdict.strong_pct), at))
    low, high = verdict.facts["weak_quality_low"], verdict.facts["weak_quality_high"]
    if verdict.verdict != "weak-only":
        weak = percent(verdict.facts["weak_quality"])
        tiles.append(("Quality of the weak model alone", weak, between((low, high))))
    chance = verdict.against_random.get("share")
    if chance is not None and verdict.verdict != "weak-only":
        said = {True: "yes", False: "not shown", None: "nothing mixed"}[verdict.beats_random]
        ends = [100 * end for end in chance.difference.ci]
        note = f"{100 * chance.difference.value:+.1f} points of reward"
        if all(math.isfinite(end) for end in ends):
            note += f", {ends[0]:+.1f} to {ends[1]:+.1f}"
        tiles.append(("Better than a random mix?", said, note))
    labels = f"{verdict.n_chosen_on:,} chose, {verdict.n_measured:,} measured"
    if verdict.needed_n is not None:
        labels = f"about {verdict.needed_n:,} would tell"
    tiles.append(("Labels", f"{verdict.n:,}", labels))
    inside = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd><dd>{text(note)}</dd></div>"
        for name, value, note in tiles
    )
    return f'<dl class="tiles">{inside}</dl>'


def _money(audited: Audited) -> str:
    verdict, option = audited.verdict, audited.verdict.candidate
    if verdict.saving_of != "usd" or option is None:
        return ""
    ways = [
        ("Strong model alone", verdict.baselines["always-strong"], "strong"),
        (f"Routed at {format_threshold(verdict.candidate_threshold)}", option, "router"),
        ("Weak model alone", verdict.baselines["always-weak"], "weak"),
    ]
    rows = [(name, one.usd_per_1k, usd(one.usd_per_1k), kind) for name, one, kind in ways]
    saved = ways[0][1].usd_per_1k - option.usd_per_1k
    low, high = option.saving_ci
    whole = ways[0][1].usd_per_1k
    return (
        "<section><h2>Money, for 1,000 requests</h2>"
        f"<p>Routing costs {usd(option.usd_per_1k)} instead of {usd(whole)}: {usd(saved)} less"
        f" ({percent(option.saving)}, between {percent(low)} and {percent(high)}).</p>"
        f"{bars_html(rows)}</section>"
    )


def _curve(audited: Audited) -> str:
    verdict = audited.verdict
    band, option = verdict.curve, verdict.candidate
    if not math.isfinite(float(band.quality[0])):
        return ""  # the strong model earns nothing, and quality is no part of it
    point = None
    if option is not None:
        point = (option.strong_pct, option.quality, option.quality_ci)
    told = f"Quality from {percent(float(band.quality[0]))} with the weak model alone to 100%"
    if option is not None:
        told += f"; routed: {percent(option.quality)} at {percent(option.strong_pct)} strong calls"

    def drawn(width: int) -> str:
        return curve_svg(
            band.share.tolist(),
            band.quality.tolist(),
            band.low.tolist(),
            band.high.tolist(),
            wanted=verdict.min_quality,
            point=point,
            width=width,
            label=told,
        )

    keys = [("", "this router"), ("b", "95% interval"), ("r", "random mix"), ("w", "wanted")]
    if point is not None:
        keys.append(("c", "measured half, with 95% interval"))
    items = "".join(f'<li><i class="{kind}"></i>{text(name)}</li>' for kind, name in keys)
    return (
        "<section><h2>Quality against the share of strong calls</h2>"
        '<p class="soft">Quality is the mean reward, as a part of that of the strong model. A '
        "router is worth its keep where its curve is above the dashed line.</p>"
        f'<div class="wide">{drawn(900)}</div><div class="narrow">{drawn(340)}</div>'
        f'<ul class="key">{items}</ul></section>'
    )


def _options(audited: Audited) -> str:
    verdict = audited.verdict
    if verdict.candidate is None:
        return ""
    named = {
        "always-strong": "Strong model alone",
        "always-weak": "Weak model alone",
        "random": "Random mix of the same share",
        "prompt-length": "Longest prompts to strong",
        "knn-in-domain": "Nearest labelled prompts (kNN)",
        "oracle": "Best possible, knowing all answers",
    }
    at = format_threshold(verdict.candidate_threshold)
    options = {f"This router at {at}": verdict.candidate}
    options |= {named.get(name, name): option for name, option in verdict.baselines.items()}
    ends = [end for o in options.values() for end in o.quality_ci if math.isfinite(end)]
    scale = _scale(ends)
    money = verdict.saving_of == "usd"
    head = ["", "quality", "saving", *(["USD / 1,000"] if money else []), "strong calls", "95%"]
    rows = []
    for place, (name, option) in enumerate(options.items()):
        cells = [
            text(name),
            _with_interval(option.quality, option.quality_ci),
            percent(option.saving),
            *([usd(option.usd_per_1k)] if money else []),
            percent(option.strong_pct),
            whisker_svg(option.quality, option.quality_ci, scale, verdict.min_quality),
        ]
        rows.append(("own" if place == 0 else "", cells))
    return (
        "<section><h2>What else could be done with the same share</h2>"
        f'<p class="soft">On the {verdict.n_measured:,} prompts of the measured half. The tick '
        f"marks the wanted quality, {percent(verdict.min_quality, 0)}.</p>"
        f"{_table(head, rows)}</section>"
    )


def _with_interval(value: float, ends: Interval) -> str:
    """A share over its interval, as a cell's HTML."""
    if not all(math.isfinite(end) for end in ends) or ends[0] == ends[1]:
        return percent(value)
    return f"{percent(value)}<small>{100 * ends[0]:.1f} to {100 * ends[1]:.1f}</small>"


def _scale(values: Sequence[float]) -> Interval:
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = max(0.03 * (high - low), 0.005)
    return low - room, high + room


def _table(head: Iterable[str], rows: Iterable[tuple[str, list[str]]]) -> str:
    """`rows` are (class, cells), the cells already HTML."""
    top = "".join(f"<th>{text(name)}</th>" for name in head)
    body = "".join(
        f'<tr class="{kind}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        for kind, cells in rows
    )
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def _grouped(audited: Audited) -> Groups | None:
    if audited.tasks is not None:
        return by_task(audited.tasks)
    if audited.embeddings is None:
        return None
    prompts = [prompt_text(audited, i) for i in range(audited.rows.n)]
    return by_cluster(prompts, audited.embeddings, seed=audited.verdict.seed)


def _groups(audited: Audited) -> str:
    verdict = audited.verdict
    groups = _grouped(audited)
    if groups is None or verdict.candidate is None:
        return ""
    index = halves(verdict.n, verdict.seed)[1]
    held, member = audited.rows.take(index), groups.member[index]
    found = []
    for group, name in enumerate(groups.names):
        inside = np.flatnonzero(member == group)
        if not inside.size:
            continue
        rows = held.take(inside)
        sends = rows.sends(verdict.candidate_threshold)
        routed = measure(rows, sends, resamples=GROUP_RESAMPLES, seed=verdict.seed)
        alone = float(np.average(rows.weak, weights=rows.weight))
        best = float(np.average(rows.strong, weights=rows.weight))
        found.append((name, routed, best, alone))
    ends = [end for _, routed, _, _ in found for end in routed.reward.ci if math.isfinite(end)]
    scale = _scale([*ends, *(best for _, _, best, _ in found)])
    rows_html = [
        (
            "",
            [
                text(name),
                _with_interval(routed.reward.value, routed.reward.ci),
                percent(best),
                percent(alone),
                percent(routed.share.value, 0),
                f"{routed.n:,}",
                whisker_svg(routed.reward.value, routed.reward.ci, scale, best),
            ],
        )
        for name, routed, best, alone in found
    ]
    head = ["", "routed", "strong", "weak", "to strong", "prompts", "95%; tick: strong"]
    kind = "task" if groups.kind == "task" else "kind of prompt"
    note = (
        "Tasks as the data names them."
        if groups.kind == "task"
        else "Clusters of the prompts' embeddings, each named by words that set it apart."
    )
    return (
        f"<section><h2>By {kind}</h2>"
        f'<p class="soft">Mean reward of each model and of the routing at '
        f"{format_threshold(verdict.candidate_threshold)}, on the measured half. {note} Small "
        "groups say little: look at the intervals.</p>"
        f"{_table(head, rows_html)}</section>"
    )


def _examples(audited: Audited) -> str:
    verdict = audited.verdict
    if verdict.candidate is None:
        return ""
    index = halves(verdict.n, verdict.seed)[1]
    rows = audited.rows
    scores, gain = rows.scores[index], (rows.strong - rows.weak)[index]
    strong = scores >= verdict.candidate_threshold
    kinds: list[tuple[str, str, np.ndarray, np.ndarray]] = [
        ("Sent to the strong model, and it helped", "highest scores", strong & (gain > 0), -scores),
        ("Kept on the weak model, at no loss", "lowest scores", ~strong & (gain <= 0), scores),
        ("Kept on the weak model, and quality was lost", "largest losses first",
         ~strong & (gain > 0), -gain),
        ("Sent to the strong model for nothing", "highest scores", strong & (gain <= 0), -scores),
    ]  # fmt: skip
    parts = []
    for title, order, chosen, key in kinds:
        picked = np.flatnonzero(chosen)
        picked = picked[np.argsort(key[picked], kind="stable")]
        share = percent(chosen.mean(), 0)
        items = "".join(_example(audited, int(index[i])) for i in picked[:EXAMPLES])
        shown = f'<ul class="examples">{items}</ul>' if items else '<p class="note">None.</p>'
        parts.append(
            f'<h3>{title} <span class="note">{share} of the prompts; {order}</span></h3>{shown}'
        )
    return (
        "<section><h2>Examples</h2>"
        '<p class="soft">Prompts of the measured half as they are in the data, cut where long.</p>'
        + "".join(parts)
        + "</section>"
    )


def _example(audited: Audited, i: int) -> str:
    said = prompt_text(audited, i).strip()
    if len(said) > EXAMPLE_CHARACTERS:
        said = said[: EXAMPLE_CHARACTERS - 1].rstrip() + "…"
    rows = audited.rows
    return (
        f'<li><p>{text(said)}</p><p class="note">score {rows.scores[i]:.3f}; reward strong '
        f"{rows.strong[i]:.2g}, weak {rows.weak[i]:.2g}</p></li>"
    )


def _next(audited: Audited) -> str:
    items = "".join(
        f"<li>{text(said)}{'' if not run else f'<pre><code>{text(run)}</code></pre>'}</li>"
        for said, run in next_steps(audited)
    )
    return f"<section><h2>What to do next</h2><ol>{items}</ol></section>"


def _method(audited: Audited) -> str:
    verdict = audited.verdict
    routing = [
        f"The {verdict.n:,} labelled prompts were split in halves at random (seed {verdict.seed}): "
        f"{verdict.n_chosen_on:,} chose the threshold, {verdict.n_measured:,} had no part in it "
        "and give the figures of the routing, their intervals and the test against a random mix.",
        f"The threshold is the least use of the strong model that is shown, with "
        f"{percent(verdict.confidence, 0)} confidence at any number of labels, to keep "
        f"{percent(verdict.min_quality, 0)} of its quality (fixed-sequence testing, arXiv "
        "2110.01052)."
        if verdict.guaranteed
        else "No threshold was shown to keep the wanted quality on the first half; the one that is "
        "drawn looked best there, and promises nothing.",
        _against(verdict),
    ]
    said = [
        *(routing if verdict.n_measured else ["So few are not split: no threshold was chosen."]),
        "Intervals are 95%, bootstrap over prompts and four more on which one model fails: few "
        "would look too certain. The curve is of all prompts and decides nothing.",
        "All of it is about prompts like these, graded as these were; a router that has learned "
        "from them would look better here than it is.",
    ]
    if verdict.weighted:
        said.append("Prompts count by their weights: they were not drawn with equal chances.")
    items = "".join(f"<li>{text(line)}</li>" for line in said if line)
    return (
        f'<section><h2>How this was found</h2><ul class="plain">{items}</ul></section>'
        "<footer>thriftroute report. No model was called for this page.</footer>"
    )


def _against(verdict: Verdict) -> str:
    told = [f"{found.p_value:.4f} (same {same})" for same, found in verdict.against_random.items()]
    if not told:
        return ""
    return f"Against a random mix: p = {', '.join(told)}, by permutation; .05 or less is shown."
