"""thriftroute: a trained router for LLM calls.

from thriftroute import Controller

client = Controller(routers=["mf"], strong_model="gpt-4o", weak_model="gpt-4o-mini")
client.chat.completions.create(model="router-mf-0.5", messages=[...])
"""

import os
from typing import TYPE_CHECKING, Any

from . import _moved
from ._version import __version__
from .errors import (
    BundleError,
    BundleFormatError,
    BundleIntegrityError,
    CalibrationError,
    ConfigError,
    DataError,
    EvaluationError,
    ExportError,
    MissingExtraError,
    RoutingError,
    ThresholdError,
    ThriftrouteError,
    TrainingError,
    TrainingInterruptedError,
    UnknownRouterError,
)
from .router.bundle import Bundle
from .router.controller import Controller
from .router.decision import Decision, decision_of
from .router.routers import Router

if TYPE_CHECKING:
    from .router.scorer import Scorer

# Libraries that report their use to their makers, or write an id of this machine, unless told not
# to before they are imported. Nothing above imports one of them, and no module of this package,
# in whatever process, is imported before this one. What the user has set stays.
for _name, _value in {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(_name, _value)

_moved.install()

__all__ = [
    "Bundle",
    "BundleError",
    "BundleFormatError",
    "BundleIntegrityError",
    "CalibrationError",
    "ConfigError",
    "Controller",
    "DataError",
    "Decision",
    "EvaluationError",
    "ExportError",
    "MissingExtraError",
    "Router",
    "RoutingError",
    "Scorer",
    "ThresholdError",
    "ThriftrouteError",
    "TrainingError",
    "TrainingInterruptedError",
    "UnknownRouterError",
    "__version__",
    "decision_of",
]


def __getattr__(name: str) -> Any:
    # It brings onnxruntime, which a router that is no bundle does without.
    if name == "Scorer":
        from .router.scorer import Scorer

        return Scorer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
