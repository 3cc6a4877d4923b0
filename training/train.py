"""`thriftroute train`: read, fit, evaluate, export, write. Each stage gives a frozen value."""

import shutil
from collections.abc import Callable

from .models.mf import train_mf
from .prepare import Prepared, Start, prepare, start_of
from .progress import Progress
from .settings import TrainSettings
from .write_bundle import Trained, TrainResult, write_trained

Trainer = Callable[[TrainSettings, Start, Prepared, Progress], Trained]


def train(settings: TrainSettings, progress: Progress | None = None) -> TrainResult:
    """Train, calibrate, export, check and write a bundle to `settings.out`.

    State of an unfinished run is kept beside it in `<out>.run` and removed at the end. Raises
    DataError, TrainingError (among them TrainingInterruptedError and ExportError), BundleError.
    """
    say = progress or Progress()
    settings.check()
    start = start_of(settings)
    data = prepare(settings, start.scorer, say)
    trained = _trainer(settings.kind)(settings, start, data, say)
    result = write_trained(settings, trained, say)
    shutil.rmtree(settings.work, ignore_errors=True)
    return result


def _trainer(kind: str) -> Trainer:
    if kind != "bert":
        return train_mf
    from .models.bert import train_bert  # brings torch, which mf and fast do without

    return train_bert
