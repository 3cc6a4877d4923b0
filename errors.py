"""Every error that thriftroute raises on purpose, under one root.

    ThriftrouteError
    ├── DataError (ValueError)            a file or row that cannot be read: path, line, field
    ├── BundleError                       a bundle that cannot be used
    │   ├── BundleFormatError             not a bundle, a bad manifest, or a format of the future
    │   └── BundleIntegrityError          a missing or altered file
    ├── RoutingError (ValueError)         a request that names no usable router, model or threshold
    │   ├── UnknownRouterError            a router that is not loaded
    │   └── ThresholdError                a threshold that is no number in [0, 1]
    ├── ConfigError (ValueError)          a setting that cannot be used: file, key
    ├── CalibrationError (ValueError)     a threshold that cannot be computed from what was given
    ├── EvaluationError (ValueError)      a benchmark or metric that cannot be computed
    ├── TrainingError                     training cannot start or go on
    │   ├── TrainingInterruptedError      Ctrl-C: the same command goes on
    │   └── ExportError                   the exported graph disagrees with the trained model
    └── MissingExtraError (ImportError)   an optional dependency is not installed

A scoring failure inside a request is none of these: the request still goes out (see
`controller.Controller.decide`) and the decision's reason says what failed.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType


class ThriftrouteError(Exception):
    """Root of all errors raised on purpose by thriftroute."""


class DataError(ThriftrouteError, ValueError):
    """A file or a row that cannot be read.

    Attributes: `path` (file or dataset name), `line` (1-based line or row, None for the whole
    file), `field` (None where no single field is at fault), `problem`.
    """

    def __init__(
        self,
        problem: str,
        *,
        path: str | Path | None = None,
        line: int | None = None,
        field: str | None = None,
    ) -> None:
        self.problem = problem
        self.path = None if path is None else str(path)
        self.line = line
        self.field = field
        where = "" if self.path is None else self.path
        if line is not None:
            where += f":{line}" if where else f"row {line}"
        if field is not None:
            where += f"{', ' if where else ''}field {field!r}"
        super().__init__(f"{where}: {problem}" if where else problem)

    def at(self, path: str | Path, line: int | None = None) -> "DataError":
        """The same problem, of a row at that place."""
        return DataError(self.problem, path=path, line=line, field=self.field)


class BundleError(ThriftrouteError):
    """A bundle that cannot be used. `path` is its folder."""

    def __init__(self, problem: str, path: str | Path) -> None:
        self.path = Path(path)
        self.problem = problem
        super().__init__(f"bundle {self.path}: {problem}")


class BundleFormatError(BundleError):
    """Not a bundle, an invalid manifest, or a format newer than this version reads."""


class BundleIntegrityError(BundleError):
    """A file of the bundle is missing, or differs in size or hash from the manifest."""


class RoutingError(ThriftrouteError, ValueError):
    """A request that names no usable router, model or threshold."""


class UnknownRouterError(RoutingError):
    """A router that is not loaded. `available` lists those that are."""

    def __init__(self, name: str, available: tuple[str, ...]) -> None:
        self.name = name
        self.available = available
        listed = ", ".join(available) or "none"
        super().__init__(f"unknown router {name!r}; available: {listed}")


class ThresholdError(RoutingError):
    """A threshold that is no finite number in [0, 1]."""


class ConfigError(ThriftrouteError, ValueError):
    """A setting that cannot be used; the message names the key and what was expected.

    `loc` is its place in the config, as ("models", 1, "price"); () where it has none. `errors`:
    the single errors, where the message has a line for each of several.
    """

    def __init__(
        self,
        message: str,
        *,
        loc: tuple[str | int, ...] = (),
        errors: Sequence["ConfigError"] = (),
    ) -> None:
        self.loc = loc
        self.errors = tuple(errors)
        super().__init__(message)


class CalibrationError(ThriftrouteError, ValueError):
    """A threshold or a calibration that cannot be computed from what was given."""


class EvaluationError(ThriftrouteError, ValueError):
    """A benchmark that cannot be loaded, or a metric that is not defined on its data."""


class TrainingError(ThriftrouteError):
    """Training cannot start or go on."""


class TrainingInterruptedError(TrainingError):
    """Ctrl-C or SIGTERM: the state is saved; the same command goes on from there."""


class ExportError(TrainingError):
    """The exported graph disagrees with the trained model by more than the stated bound."""


class MissingExtraError(ThriftrouteError, ImportError):
    """An optional dependency is not installed. `extra` is the name to install."""

    def __init__(self, module: str, extra: str) -> None:
        self.extra = extra
        super().__init__(
            f"{module!r} is not installed; run: pip install 'thriftroute[{extra}]'", name=module
        )


def require_extra(module: str, extra: str) -> ModuleType:
    """Import `module`, or say which extra brings it.

    Raises MissingExtraError where the module itself is missing. An import error inside an
    installed module is passed on untouched: installing the extra again would not mend it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".", maxsplit=1)[0] != error.name.split(".")[0]:
            raise
        raise MissingExtraError(module, extra) from error
