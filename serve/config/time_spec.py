"""Points in time as people write them."""

import math
import re
import time
from datetime import UTC, datetime

EXPECTED = "expected seconds since 1970, a date such as 2026-01-31, or a time ago such as 7d"
_AGO = {"m": 60, "h": 3600, "d": 86_400}


def moment(value: str | None, *, now: float | None = None) -> float | None:
    """Seconds since the epoch, of a number of them, an ISO date (UTC), or a time ago: 90m, 24h, 7d.

    None for None, "" and "all". Raises ValueError for anything else.
    """
    if value is None or value in {"", "all"}:
        return None
    ago = re.fullmatch(r"(\d{1,6})([mhd])", value, re.ASCII)
    if ago is not None:
        return (time.time() if now is None else now) - int(ago[1]) * _AGO[ago[2]]
    try:
        found = float(value)
    except ValueError:
        try:
            date = datetime.fromisoformat(value)
            found = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            found = math.nan
    if not math.isfinite(found):
        raise ValueError(EXPECTED)
    return found
