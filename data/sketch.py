"""Which prompts were trained on, in a few kB of the manifest: to tell whether others are known.

The smallest hashes of a set are a random sample of it, the same one whichever other set is held
against it (bottom-k sketch: Broder 1997; Cohen and Kaplan 2007).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .question_text import prompt_key

# Hashes that are kept, and hexadecimal digits of each: two prompts in a million share one.
KEPT, DIGITS = 512, 12


@dataclass(frozen=True, slots=True)
class Overlap:
    """`known` of `looked_at` prompts are in the sketched set; `whole`: all were looked at."""

    known: int
    looked_at: int
    whole: bool

    @property
    def share(self) -> float:
        """Of the prompts that are in the set: exact where `whole`, else estimated."""
        return self.known / self.looked_at if self.looked_at else 0.0


def sketch(prompts: Iterable[str]) -> list[str]:
    """Of distinct prompts (`stems.normalise`), the `KEPT` smallest hashes, in order."""
    return sorted({prompt_key(prompt)[:DIGITS] for prompt in prompts})[:KEPT]


def seen(kept: Sequence[str], prompts: Iterable[str]) -> Overlap:
    """How many of `prompts` are in the set of which `kept` is the sketch."""
    known, whole = set(kept), len(kept) < KEPT
    last = max(known, default="")
    keys = {prompt_key(prompt)[:DIGITS] for prompt in prompts}
    looked_at = keys if whole else {key for key in keys if key <= last}
    return Overlap(len(looked_at & known), len(looked_at), whole)
