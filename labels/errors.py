"""What stops a labelling run."""

from ..errors import ThriftrouteError


class LabelError(ThriftrouteError):
    """A run that cannot go on: a provider that refuses or is down. What was paid for is kept."""
