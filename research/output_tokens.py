"""How well the length of an answer is predicted before it is there (`router.output_tokens`).

    python -m thriftroute.research.output_tokens ../shared/datasets/answers/*.parquet

Answers of real models, up to `--prompts` prompts a file, their tokens counted by LiteLLM's general
tokenizer. Predictions are fitted to half of the prompts and tried on the others: the mean absolute
error in parts of the mean length, with a 95% interval over prompts. Then pairs of models between
which a router chooses: what the strong one's answers to the prompts of the weak one add up to.
Seconds.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import permutations

import numpy as np
import numpy.typing as npt

from ..data.readers import raw_records
from ..errors import DataError
from ..eval.bootstrap import interval
from ..providers.completion import count_tokens
from ..router.output_tokens import DEFAULT_TOKENS, OutputTokens
from ..router.routers import load_router
from ..router.text import as_conversation
from ..router.threshold import STRONG_SHARE

Floats = npt.NDArray[np.float64]
Lengths = dict[str, dict[str, float]]  # model -> prompt -> tokens of its answer
LEAST = 400  # answers of a model that is told of
NAMES = (f"always {DEFAULT_TOKENS}", "its mean", "by prompt", "by prompt and score")


def main() -> None:
    """Print the errors, and what pairs of models add up to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", help="rows with prompt, model and answer")
    parser.add_argument("--prompts", type=int, default=300, help="of a file")
    parser.add_argument("--router", default="fast", help="whose score is used")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    lengths = read(given.files, given.prompts, rng)
    prompts = sorted({prompt for told in lengths.values() for prompt in told})
    sizes = {p: tokens(p) for p in prompts}
    found = load_router(given.router).scores([as_conversation(p) for p in prompts])
    scores = dict(zip(prompts, np.asarray(found).tolist(), strict=True))
    known = set(rng.permutation(prompts)[: len(prompts) // 2].tolist())
    lengths = {model: told for model, told in lengths.items() if len(told) >= LEAST}
    for line in report(lengths, sizes, scores, known, given.resamples, rng):
        sys.stdout.write(f"{line}\n")


def read(files: list[str], most: int, rng: np.random.Generator) -> Lengths:
    """Tokens of the answers to `most` prompts a file, drawn at random."""
    found: Lengths = defaultdict(dict)
    for file in files:
        rows = [record for _, record, _ in raw_records(file)[1]]
        told = [r for r in rows if not isinstance(r, DataError) and isinstance(r["answer"], str)]
        prompts = sorted({row["prompt"] for row in told})
        drawn = set(rng.permutation(prompts)[:most].tolist())
        for row in told:
            if row["prompt"] in drawn:
                found[row["model"]].setdefault(row["prompt"], tokens(row["answer"]))
    return found


def tokens(text: str) -> float:
    """About how many a text has."""
    messages = [{"role": "user", "content": text}]
    return float(count_tokens(messages, otherwise=len(text.encode()) // 3 + 10))


def report(
    lengths: Lengths,
    sizes: Mapping[str, float],
    scores: Mapping[str, float],
    known: set[str],
    resamples: int,
    rng: np.random.Generator,
) -> Iterator[str]:
    """Lines that tell the errors on the prompts that are not `known`."""
    rows = [
        (model, (sizes[p], length, scores[p]))
        for model, told in lengths.items()
        for p, length in told.items()
        if p in known
    ]
    fits = OutputTokens.fitted(rows)
    without = OutputTokens.fitted((model, (size, y, None)) for model, (size, y, _) in rows)
    yield f"{'model':34}{'n':>6}{'mean':>7}   " + "".join(f"{name:>24}" for name in NAMES)
    shares: list[list[float]] = []
    for model, told in sorted(lengths.items()):
        held = [p for p in told if p not in known]
        y = np.array([told[p] for p in held])
        guesses = (
            np.full(len(held), float(DEFAULT_TOKENS)),
            np.full(len(held), fits.arms[model].mean),
            np.array([without.tokens(model, sizes[p]) for p in held]),
            np.array([fits.tokens(model, sizes[p], scores[p]) for p in held]),
        )
        draws = rng.integers(0, len(held), (resamples, len(held)))
        off = [np.abs(guess - y) for guess in guesses]
        shares.append([float(each.sum() / y.sum()) for each in off])
        cells = [_cell(each, y, draws) for each in off]
        yield f"{model:34}{len(held):6,}{y.mean():7.0f}   " + "".join(f"{c:>24}" for c in cells)
    for name, column in zip(NAMES, np.transpose(shares), strict=True):
        told_of = f"{np.median(column):.2f} ({column.min():.2f} to {column.max():.2f})"
        yield f"median of {len(shares)} models, {name}: {told_of}"
    yield from routed(lengths, sizes, scores)


def routed(
    lengths: Lengths, sizes: Mapping[str, float], scores: Mapping[str, float]
) -> Iterator[str]:
    """Lines on ordered pairs of models, the first of which has the prompts of the highest scores:
    what its answers to the others would add up to, guessed from those that the second gave."""
    off: dict[str, list[float]] = defaultdict(list)
    for strong, weak in permutations(lengths, 2):
        both = sorted(lengths[strong].keys() & lengths[weak].keys(), key=lambda p: scores[p])
        if len(both) < LEAST:
            continue
        cut = round(len(both) * (1 - STRONG_SHARE))
        sides = ((weak, both[:cut]), (strong, both[cut:]))
        rows = [(m, (sizes[p], lengths[m][p], scores[p])) for m, side in sides for p in side]
        fits = OutputTokens.fitted(rows)
        given = sum(lengths[weak][p] for p in both[:cut])
        truth = sum(lengths[strong][p] for p in both[:cut])
        guesses = {
            "as long as the other's": given,
            "as its own, to its own prompts": cut * fits.arms[strong].mean,
            "times the ratio": given * fits.ratio(strong, weak),
        }
        for name, guess in guesses.items():
            off[name].append(float(np.log(guess / truth)))
    for name, logs in off.items():
        factors = np.exp(np.abs(logs))
        yield (
            f"{len(logs)} ordered pairs, answers {name}: totals are off by a factor of "
            f"{np.median(factors):.2f} at the median, {factors.max():.2f} at the most, and "
            f"{np.expm1(np.mean(logs)):+.0%} on the (geometric) average"
        )


def _cell(errors: Floats, y: Floats, draws: npt.NDArray[np.int64]) -> str:
    low, high = interval(errors[draws].sum(1) / y[draws].sum(1))
    return f"{errors.sum() / y.sum():.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
