"""What a training run is asked for, and what it gives."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..router.bundle import Bundle
from .encoder import DEFAULT_ENCODER, MAX_TOKENS
from .models.bert import BertSettings
from .models.mf import MFSettings

KINDS = ("mf", "bert")


@dataclass(frozen=True)
class TrainRequest:
    """What to train, on what. `strong` and `weak` are models, or tiers of several.

    against: evaluation prompts by name; training prompts that match one are dropped.
    weak_fails: share, in [0, 1], of the label "the weak answer falls short" (1 - its score) beside
        "strong wins". Where strong often fails too, as on hard problems, "strong wins" teaches that
        hard prompts need it less, which is wrong for ordinary traffic. Scores are calibrated to
        "strong wins" either way.
    source_weights: factor on the weight of a source's prompts (default 1).
    dedupe: drop prompts that repeat an earlier one in other words or with other options.
    own_logs: allow evaluation-only data as training data, for the own-logs protocol.
    notes: lines for the card (what is known of the data, limits).
    base: the bundle that mf starts from, by name or folder: its encoder, and its direction, from
        which few labels depart little. None: the one in the box, or none where `encoder` is given.
    encoder: the encoder of bert, and of an mf that starts from no bundle.
    """

    kind: str
    data: Sequence[str]
    strong: tuple[str, ...]
    weak: tuple[str, ...]
    out: Path
    seed: int = 0
    encoder: str | None = None
    base: str | None = None
    max_tokens: int = MAX_TOKENS
    validation: float = 0.1
    settings: MFSettings | BertSettings | None = None
    against: dict[str, list[str]] = field(default_factory=dict)
    source_weights: dict[str, float] = field(default_factory=dict)
    weak_fails: float = 0.0
    own_logs: bool = False
    dedupe: bool = False
    skip_bad: bool = False
    rejects: Path | None = None
    overwrite: bool = False
    command: str = ""
    notes: tuple[str, ...] = ()

    @property
    def encoder_name(self) -> str:
        """The encoder that is meant: the one that is named, or the default."""
        return DEFAULT_ENCODER if self.encoder is None else self.encoder


@dataclass(frozen=True)
class TrainResult:
    """The bundle and its summary, which also stands in its manifest and card."""

    bundle: Bundle
    summary: dict[str, Any]
