"""What arms of experiments and shadow mode add up to, summed in the database."""

from typing import Any

from sqlalchemy import ColumnElement, Engine, Float, case, cast, func, select

from ...eval.drift.arms import CONTROL, TREATMENT, Sums
from .table import decisions

_c = decisions.c
_answered = _c.model.is_not(None) & (_c.status < 400)


def _if(condition: ColumnElement[bool], value: Any = 1.0) -> ColumnElement[float]:
    return func.sum(case((condition, cast(value, Float(53))), else_=0.0))


# Metric -> (what a unit's requests add up to, how many of them have it).
_METRICS: dict[str, tuple[ColumnElement[float], ColumnElement[float]]] = {
    "cost": (func.sum(_c.cost), _if(_c.id.is_not(None))),
    "saving": (func.sum(_c.strong_cost - _c.cost), _if(_c.id.is_not(None))),
    "strong_share": (_if(_c.strong.is_(True)), _if(_c.strong.is_not(None))),
    "errors": (_if((_c.status >= 400) & (_c.status != 499)), _if(_c.id.is_not(None))),
    "latency_s": (_if(_answered, _c.latency_s), _if(_answered)),
    "feedback": (_if(_c.feedback.is_not(None), _c.feedback), _if(_c.feedback.is_not(None))),
}


def arms(
    engine: Engine | None,
    experiment: str,
    *,
    by: str = "session",
    since: float | None = None,
    until: float | None = None,
) -> dict[str, dict[str, Any]]:
    """ "control" and "treatment" -> {"units", "requests", "metrics": {name: Sums}} of the decisions
    of [since, until); an arm without any is missing.

    by: "session" or "tenant", what the experiment drew. Costs are USD a request, latency is that of
    answers, feedback of what was rated.
    """
    if engine is None:
        return {}
    names = {f"{experiment}/{arm}": arm for arm in (CONTROL, TREATMENT)}
    unit = _c.tenant if by == "tenant" else func.coalesce(_c.session_hash, _c.id)
    sums = [
        column.label(f"{name}_{part}")
        for name, pair in _METRICS.items()
        for part, column in zip("xd", pair, strict=True)
    ]
    query = select(_c.arm, func.count().label("requests"), *sums).where(_c.arm.in_(list(names)))
    query = query if since is None else query.where(_c.time >= since)
    query = query if until is None else query.where(_c.time < until)
    units = query.group_by(_c.arm, unit).subquery().c
    moments: list[ColumnElement[Any]] = []
    for name in _METRICS:
        x, d = units[f"{name}_x"], units[f"{name}_d"]
        parts = {"x": x, "d": d, "xx": x * x, "xd": x * d, "dd": d * d}
        moments += [func.sum(value).label(f"{name}_{part}") for part, value in parts.items()]
        moments.append(func.sum(case((d > 0, 1), else_=0)).label(f"{name}_units"))
    outer = select(
        units.arm, func.count().label("units"), func.sum(units.requests).label("requests"), *moments
    ).group_by(units.arm)
    found: dict[str, dict[str, Any]] = {}
    with engine.connect() as connection:
        for row in connection.execute(outer).mappings():
            found[names[row["arm"]]] = {
                "units": int(row["units"]),
                "requests": int(row["requests"]),
                "metrics": {
                    name: Sums(
                        int(row[f"{name}_units"]),
                        *(float(row[f"{name}_{part}"]) for part in ("x", "d", "xx", "xd", "dd")),
                    )
                    for name in _METRICS
                },
            }
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
    query = select(_c.router, func.count()).where(_c.score.is_not(None), _c.router.is_not(None))
    query = query if since is None else query.where(_c.time >= since)
    query = query if until is None else query.where(_c.time < until)
    with engine.connect() as connection:
        rows = connection.execute(query.group_by(_c.router)).all()
        return dict(sorted(((str(name), count) for name, count in rows), key=lambda row: -row[1]))


def shadow(
    engine: Engine | None, *, since: float | None = None, until: float | None = None
) -> dict[str, Any]:
    """What shadow mode would have done, of the answered decisions of [since, until).

    {"requests", "strong_share" (of what would have been routed), "cost", "routed_cost", "saving"
    (their difference) in USD, "saving_share" (of cost)}; shares are None without requests.
    """
    requests, strong, cost, routed_cost = 0, 0.0, 0.0, 0.0
    if engine is not None:
        stays = _c.strong.is_(True) & (_c.routed == _c.model)
        query = select(func.count(), _if(stays), func.sum(_c.cost), func.sum(_c.routed_cost))
        query = query.where(_c.routed.is_not(None), _c.routed_cost.is_not(None))
        query = query if since is None else query.where(_c.time >= since)
        query = query if until is None else query.where(_c.time < until)
        with engine.connect() as connection:
            requests, *sums = connection.execute(query).one()
        strong, cost, routed_cost = (float(value or 0) for value in sums)
    return {
        "requests": requests,
        "strong_share": strong / requests if requests else None,
        "cost": cost,
        "routed_cost": routed_cost,
        "saving": cost - routed_cost,
        "saving_share": (cost - routed_cost) / cost if cost > 0 else None,
    }
