"""Records from Hugging Face datasets: on the hub by name, or in a local folder.

Needs the extra `train`, which brings `datasets`.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError, MissingExtraError, require_extra
from .layouts import Record

Raw = tuple[int, Record | DataError, Any]
_FORM = "hf:owner/name, hf:owner/name:split or hf:owner/name/config:split"


def hub_records(name: str) -> Generator[Raw]:
    """Stream a dataset of the hub; `name` as in hf:owner/name[/config][:split], split train.

    Raises DataError where the name has another form, or the dataset cannot be read.
    """
    repository, _, split = name.removeprefix("hf:").partition(":")
    parts = repository.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataError(f"is no dataset name; expected {_FORM}", path=name)
    datasets = require_extra("datasets", "train")
    config = parts[2] if len(parts) == 3 else None
    what = f"expected a dataset of the hub as {_FORM}, and a network"

    def load() -> Iterable[Mapping[str, Any]]:
        found: Iterable[Mapping[str, Any]] = datasets.load_dataset(
            "/".join(parts[:2]), config, split=split or "train", streaming=True
        )
        return found

    return _records(name, load, what)


def folder_records(path: Path, split: str = "") -> Generator[Raw]:
    """Stream a folder that `save_to_disk` wrote, or one that holds a dataset's data files.

    `split` may be empty where there is one split, or one named train. Raises DataError where the
    split does not exist or has to be named (lists those that do), or the folder cannot be read.
    """
    datasets = require_extra("datasets", "train")

    def load() -> Iterable[Mapping[str, Any]]:
        saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
        if saved:
            found = datasets.load_from_disk(str(path))
        else:
            found = datasets.load_dataset(str(path), streaming=True)
        # One split has columns of its own; several come as a dictionary of splits.
        splits: dict[str, Any] = found if isinstance(found, dict) else {split or "train": found}
        wanted = split or ("train" if len(splits) > 1 else next(iter(splits), "train"))
        if wanted not in splits:
            raise DataError(
                f"has no split {wanted!r}; name one as {path.name}:SPLIT, of "
                f"{', '.join(map(str, splits)) or 'none'}",
                path=path,
            )
        chosen: Iterable[Mapping[str, Any]] = splits[wanted]
        return chosen

    return _records(str(path), load, "expected a folder with a dataset's Parquet, JSONL or CSV")


def _records(
    name: str, load: Callable[[], Iterable[Mapping[str, Any]]], what: str
) -> Generator[Raw]:
    row = 0
    try:
        for record in load():
            row += 1
            yield row, record, record
    except (DataError, MissingExtraError):
        raise
    # The library passes on what its transports and decoders raise; no common root covers them.
    except Exception as error:
        where = f" past row {row}" if row else ""
        raise DataError(
            f"cannot be read{where} ({type(error).__name__}: {error}); {what}", path=name
        ) from error
