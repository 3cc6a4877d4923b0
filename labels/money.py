"""A cap on what is spent: money is set aside before a call goes out, never after."""

from dataclasses import dataclass

_ROUNDING = 1e-12  # USD: sums of floats are no reason to stop


class Purse:
    """USD: `cap`, `spent` so far (also by earlier runs), `held` for calls that may go out.

    spent + held never passes the cap, so that the cap holds whatever the calls under way cost, as
    long as each costs no more than was set aside for it.
    """

    def __init__(self, cap: float, spent: float = 0.0) -> None:
        self.cap = cap
        self.spent = spent
        self._held = 0.0

    @property
    def held(self) -> float:
        """USD set aside now; 0 and not nearly 0 where all was settled."""
        return self._held if self._held > _ROUNDING else 0.0

    def hold(self, usd: float) -> "Hold | None":
        """Set `usd` aside; None where the cap does not allow it."""
        return Hold(self, usd) if self._set_aside(usd) else None

    def _set_aside(self, usd: float) -> bool:
        if self.spent + self.held + usd > self.cap + _ROUNDING:
            return False
        self._held += usd
        return True


@dataclass(slots=True)
class Hold:
    """Money set aside for one row's calls; `left` USD of it."""

    purse: Purse
    left: float

    def take(self, most: float) -> bool:
        """Whether a call of at most `most` USD may go out; from what is left, else from the cap."""
        missing = max(0.0, most - self.left)
        if missing > _ROUNDING:
            if not self.purse._set_aside(missing):
                return False
            self.left += missing
        self.left -= most
        return True

    def settle(self, most: float, usd: float) -> None:
        """The call that `most` was taken for cost `usd`."""
        self.purse._held -= most
        self.purse.spent += usd

    def close(self) -> None:
        """Give back what was not needed."""
        self.purse._held -= self.left
        self.left = 0.0
