"""How long sessions of agents go on: the law behind `router.switching.further_steps`.

    python -m thriftroute.research.session_length agent_steps.parquet

The chance that a session ends with the step after n others is taken to be 1 / (A + B n), and fitted
by maximum likelihood. Errors of A and B, and of the steps that are expected, are of a bootstrap
over sessions; the loss is that of each session under a fit to all others, beside that of a constant
chance. Seconds.
"""

import argparse
import sys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..data.logs.steps import read_steps
from ..errors import require_extra
from ..eval.bootstrap import interval
from ..router.switching import HORIZON, further_steps

Floats = npt.NDArray[np.float64]
DONE = (0, 5, 20, 100)


def main() -> None:
    """Print the fit and its errors."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sessions", nargs="+", help="what `thriftroute replay` reads")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sessions = read_steps(given.sessions).sessions()
    lengths = np.diff(sessions.starts).astype(np.float64)
    turns = int(sessions.turn.sum())
    usage = sessions.usage
    first = np.zeros(sessions.steps, np.bool_)
    first[sessions.starts[:-1]] = True
    added = np.maximum(np.diff(usage.prompt), 0)[~first[1:]].mean()
    for line in (
        f"{sessions.steps:,} steps of {sessions.n:,} sessions, the longest has {lengths.max():.0f}",
        f"a step adds {added:,.0f} tokens and answers with {usage.output.mean():,.0f}; "
        f"{sessions.steps / turns:.1f} steps a turn",
        *report(lengths, given.resamples, given.seed),
    ):
        sys.stdout.write(f"{line}\n")


def report(lengths: Floats, resamples: int, seed: int) -> Iterator[str]:
    """Lines that tell the fit to the lengths of n sessions, float64[n]."""
    a, b = fit(lengths)
    rng = np.random.default_rng(seed)
    drawn = np.array([fit(rng.choice(lengths, lengths.size)) for _ in range(resamples)])
    for name, value, samples in (("A", a, drawn[:, 0]), ("B", b, drawn[:, 1])):
        low, high = interval(samples)
        yield f"{name} = {value:.2f} [{low:.2f}, {high:.2f}]"
    for done in DONE:
        rest = [float(further_steps(done, *each)) for each in drawn]
        low, high = interval(rest)
        yield (
            f"after {done} steps {float(further_steps(done, a, b)):.0f} more of at most {HORIZON} "
            f"[{low:.0f}, {high:.0f}]"
        )
    others = [np.delete(lengths, i) for i in range(lengths.size)]
    law = np.mean([loss(n, *fit(rest)) for n, rest in zip(lengths, others, strict=True)])
    flat = np.mean([loss(n, rest.mean(), 0.0) for n, rest in zip(lengths, others, strict=True)])
    yield f"loss of a session that was left out: {law:.2f} nats; {flat:.2f} of a constant chance"


def fit(lengths: Floats) -> tuple[float, float]:
    """(A, B) of greatest likelihood."""
    optimize = require_extra("scipy.optimize", "eval")

    # How many sessions of each length there are: a resample repeats many.
    longest = int(lengths.max())
    ended = np.bincount(lengths.astype(np.int64) - 1, minlength=longest)
    went_on = lengths.size - np.cumsum(ended)

    def total(logs: Floats) -> float:
        a, b = 1 + np.exp(logs[0]), np.exp(logs[1])
        ends = _ends(longest, a, b)
        return float(-(ended @ np.log(ends) + went_on @ np.log1p(-ends)))

    found = optimize.minimize(total, [1.0, 0.0], method="Nelder-Mead").x
    # A law without growth has no closed form for the steps to come.
    return float(1 + np.exp(found[0])), max(float(np.exp(found[1])), 0.02)


def loss(length: float, a: float, b: float) -> float:
    """Minus the logarithm of the chance of a session of that length."""
    ends = _ends(int(length), a, b)
    return float(-np.log(ends[-1]) - np.log1p(-ends[:-1]).sum())


def _ends(n: int, a: float, b: float) -> Floats:
    """The chance that a session ends with its first, second ... n-th step, where it gets there."""
    return np.asarray(1 / np.maximum(a + b * np.arange(n), 1 + 1e-9), np.float64)


if __name__ == "__main__":
    main()
