"""What `thriftroute watch` prints."""

from collections.abc import Iterator, Mapping
from typing import Any

from .arms import CONTROL, TREATMENT, Experiment
from .drift import Finding, Report

_WORDS = {"scores": "scores", "strong_share": "strong share"}
_SHARES = {"strong_share", "errors"}


def lines(report: Report) -> Iterator[str]:
    """A report, a test a line."""
    yield (
        f"{report.n:,} prompts with a score, each counted once, of {report.decisions:,} decisions; "
        f"baseline {report.baseline!r}, n = {report.baseline_n:,}"
    )
    for finding in report.findings:
        yield f"  {_line(finding, report.threshold)}"
    said = {
        "ok": "no drift found",
        "drift": "traffic differs: calibrate again, on prompts of now (`thriftroute calibrate`)",
        "no-data": "nothing to look at yet",
    }[report.verdict]
    yield f"{report.verdict}: {said} (false alarms: at most {report.alpha:.3g} of streams, ever)"


def shadow_lines(shadow: Mapping[str, Any]) -> Iterator[str]:
    """What shadow mode found."""
    yield (
        f"shadow mode: {shadow['requests']:,} requests cost ${shadow['cost']:.6g}; routed, "
        f"{shadow['strong_share']:.1%} would have gone to the strong model, for "
        f"${shadow['routed_cost']:.6g}: ${shadow['saving']:.6g} saved"
        + (f" ({shadow['saving_share']:.1%})" if shadow["saving_share"] is not None else "")
    )


def experiment_lines(experiment: Experiment) -> Iterator[str]:
    """Arms side by side."""
    yield f"experiment {experiment.name!r}"
    for arm in (CONTROL, TREATMENT):
        units, requests = experiment.units[arm], experiment.requests[arm]
        yield f"  {arm:<9} {units:,} units, {requests:,} requests"
    level = f"{1 - experiment.alpha:.0%}"
    yield f"  {'a request':<13}{CONTROL:>12}{TREATMENT:>12}{'difference':>12}  {level} at all times"
    for one in experiment.differences:
        if one.control is None and one.treatment is None:
            continue
        cells = (one.control, one.treatment, one.difference)
        numbers = "".join(f"{_number(one.metric, value):>12}" for value in cells)
        span = "too few units"
        if one.interval is not None:
            span = "[{}, {}]".format(*(_number(one.metric, end) for end in one.interval))
        yield f"  {one.metric:<13}{numbers}  {span}{'  differs' if one.differs else ''}"


def _line(finding: Finding, threshold: float | None) -> str:
    name = _WORDS.get(finding.name, finding.name)
    end = "DRIFT" if finding.drift else "ok"
    if finding.p_value is not None:
        at = f", so at prompt {finding.alarm_at:,}" if finding.alarm_at is not None else ""
        end = f"p = {finding.p_value:.3g}, drift where <= {finding.alpha:.3g}{at}: {end}"
    if finding.expected is None:
        return f"{name}: {end}"
    where = ""
    if finding.name == "strong_share" and threshold is not None:
        where = f" at threshold {threshold:.6g}"
    return (
        f"{name}{where}: {_share(finding.observed, finding.observed_interval)}, expected "
        f"{_share(finding.expected, finding.expected_interval)}; {end}"
    )


def _share(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None or interval is None:
        return "unknown"
    return f"{value:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]"


def _number(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if metric in _SHARES else f"{value:.4g}"
