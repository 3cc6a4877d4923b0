"""What the state of an agent's loop says beside the score of what its user said last.

A prompt's score knows nothing of how the work goes. The head moves it, in log odds, by numbers of
the step (`FEATURES`), each standardized by the steps that it was trained on, so that on average it
moves nothing and thresholds keep their meaning. It lies in `step.json` beside the bundle's graphs,
hashed as they are, and is fitted by `thriftroute train step` on rated steps of one's own sessions.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BundleFormatError, ConfigError
from .bundle import Bundle
from .second_look import log_odds
from .strict_json import is_finite, parse_json
from .threshold import sigmoid

STEP = "step.json"
VERSION = 1
# Messages so far; results of tools among them; those that failed in a row up to here, and of these
# the same call with the same words; characters of the last result.
FEATURES = ("messages", "tool_results", "failed", "repeated", "last_result")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StepHead:
    """`weights` of FEATURES in log odds a standard deviation (`scale`) from the mean (`center`).
    tells: the features were shown to say more than the score; else they move nothing. facts: n,
    losses and the like."""

    center: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    tells: bool
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, bundle: Bundle) -> "StepHead | None":
        """The bundle's; None where it has none. Raises BundleFormatError."""
        if STEP not in bundle.manifest.files:
            return None
        try:
            raw = parse_json(bundle.file(STEP).read_bytes())
            if not isinstance(raw, dict) or raw.get("version") != VERSION:
                raise ValueError("another version; upgrade thriftroute")
            columns = [tuple(map(float, raw[name])) for name in ("center", "scale", "weights")]
            head = cls(columns[0], columns[1], columns[2], bool(raw["tells"]), raw["facts"])
            fits = is_finite(raw) and all(len(each) == len(FEATURES) for each in columns)
            if not fits or min(head.scale) <= 0:
                raise ValueError("its columns do not fit together")
        except (ConfigError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
            problem = f"{STEP} is no step head of version {VERSION}: {error}"
            raise BundleFormatError(problem, bundle.path) from error
        return head

    def to_json(self) -> bytes:
        """What `of` reads."""
        return json.dumps({"version": VERSION, **asdict(self)}, allow_nan=False).encode()

    def moved(self, score: float, step: Mapping[str, float]) -> float:
        """The score, in (0, 1), of a step with these features."""
        if not self.tells:
            return score
        numbers = columns_of([step])
        x = np.array([numbers[name][0] for name in FEATURES])
        z = (x - np.array(self.center)) / np.array(self.scale)
        return float(sigmoid(log_odds(score) + z @ np.array(self.weights)))


def columns_of(steps: list[Mapping[str, float]]) -> dict[str, Floats]:
    """FEATURES of n steps as a head sees them, float64[n] each: log(1 + number)."""
    return {
        name: np.log1p(np.array([step[name] for step in steps], np.float64)) for name in FEATURES
    }
