"""What arms of experiments and shadow mode add up to, summed in the database."""

from typing import Any

from sqlalchemy import Engine, func, select

from ...eval.drift.arms import CONTROL, TREATMENT, ArmSums
from .database import answered, failed
from .stats import conditions
from .table import decisions

_c = decisions.c
_count = func.count()

# Metric -> (what a unit's requests add up to, how many of them have it).
_METRICS: dict[str, tuple[Any, Any]] = {
    "cost": (func.sum(_c.cost), _count),
    "saving": (func.sum(_c.strong_cost - _c.cost), _count),
    "strong_share": (_count.filter(_c.sent_strong.is_(True)), func.count(_c.sent_strong)),
    "errors": (_count.filter(failed), _count),
    "latency_s": (func.sum(_c.latency_s).filter(answered), _count.filter(answered)),
    "feedback": (func.sum(_c.feedback), func.count(_c.feedback)),
}


def arms(
    engine: Engine | None,
    experiment: str,
    by: str = "session",
    since: float | None = None,
    *,
    until: float | None = None,
) -> dict[str, dict[str, Any]]:
    """ "control" and "treatment" -> {"units", "requests", "metrics": {name: ArmSums}} of the
    decisions of [since, until); an arm without any is missing. by: "session" or "tenant"."""
    if engine is None:
        return {}
    names = {f"{experiment}/{arm}": arm for arm in (CONTROL, TREATMENT)}
    unit = _c.tenant if by == "tenant" else func.coalesce(_c.session_hash, _c.id)
    columns = [column.label(f"{name}_{part}") for name, pair in _METRICS.items()
               for part, column in zip("xd", pair, strict=True)]  # fmt: skip
    inside = (_c.arm.in_(list(names)), *conditions({"since": since, "until": until}))
    query = select(_c.arm, _count.label("requests"), *columns).where(*inside)
    units = query.group_by(_c.arm, unit).subquery().c
    moments: list[Any] = []
    for name in _METRICS:
        x, d = units[f"{name}_x"], units[f"{name}_d"]
        moments.append(_count.filter(d > 0))
        moments += [func.sum(value) for value in (x, d, x * x, x * d, d * d)]
    totals = select(units.arm, _count, func.sum(units.requests), *moments).group_by(units.arm)
    found: dict[str, dict[str, Any]] = {}
    with engine.connect() as connection:
        for arm, count, requests, *values in connection.execute(totals):
            metrics = {}
            for at, name in enumerate(_METRICS):
                having, *sums = values[6 * at : 6 * at + 6]
                metrics[name] = ArmSums(int(having), *(float(value or 0) for value in sums))
            found[names[arm]] = {"units": count, "requests": int(requests), "metrics": metrics}
    return found


def experiments(engine: Engine) -> list[str]:
    """Names of the experiments that decisions were recorded of, the latest first."""
    query = select(_c.arm, func.max(_c.time)).where(_c.arm.is_not(None)).group_by(_c.arm)
    with engine.connect() as connection:
        rows = sorted(connection.execute(query).all(), key=lambda row: -row[1])
    return list(dict.fromkeys(str(row[0]).rpartition("/")[0] for row in rows))


def scored_by(
    engine: Engine, *, since: float | None = None, until: float | None = None
) -> dict[str, int]:
    """Router -> how many decisions of [since, until) have its score, the most first."""
    scored = (_c.score.is_not(None), _c.router.is_not(None))
    query = select(_c.router, _count).where(*scored, *conditions({"since": since, "until": until}))
    with engine.connect() as connection:
        rows = connection.execute(query.group_by(_c.router).order_by(_count.desc())).all()
    return {str(name): int(count) for name, count in rows}


def shadow(
    engine: Engine | None, since: float | None = None, *, until: float | None = None
) -> dict[str, Any]:
    """What shadow mode would have done, of the answered decisions of [since, until). Money is USD;
    shares are None without requests."""
    requests, scored, strong, cost, routed_cost = 0, 0, 0, 0.0, 0.0
    if engine is not None:
        shares = (func.count(_c.sent_strong), _count.filter(_c.sent_strong.is_(True)))
        query = select(_count, *shares, func.sum(_c.cost), func.sum(_c.routed_cost))
        query = query.where(_c.routed.is_not(None), _c.routed_cost.is_not(None))
        with engine.connect() as connection:
            within = conditions({"since": since, "until": until})
            requests, scored, strong, *sums = connection.execute(query.where(*within)).one()
        cost, routed_cost = (float(value or 0) for value in sums)
    return {
        "requests": requests,
        "strong_share": strong / scored if scored else None,
        "cost": cost,
        "routed_cost": routed_cost,
        "saving": cost - routed_cost,
        "saving_share": (cost - routed_cost) / cost if cost > 0 else None,
    }
