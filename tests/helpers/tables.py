"""Tables that tests build."""

from collections.abc import Iterable, Sequence

from thriftroute.data.schema import Row
from thriftroute.data.tables import ComparisonTable, both_tables


def comparison_table(
    rows: Iterable[Row], strong: Sequence[str] | str, weak: Sequence[str] | str
) -> ComparisonTable:
    """All comparisons of the tiers."""
    return both_tables(rows, strong, weak)[1]
