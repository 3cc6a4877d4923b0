"""Records from Hugging Face datasets (extra `train`): on the hub by name, or in a local folder."""

from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError, MissingExtraError, require_extra
from .layouts import Raw

_FORM = "hf:owner/name, hf:owner/name:split or hf:owner/name/config:split"


def hub_records(name: str) -> Generator[Raw]:
    """Stream a dataset of the hub; `name` as in hf:owner/name[/config][:split], split train.
    Raises DataError where the name has another form, or the dataset cannot be read."""
    repository, _, split = name.removeprefix("hf:").partition(":")
    owner, *rest = repository.split("/")
    if len(rest) not in (1, 2) or not all((owner, *rest)):
        raise DataError(f"is no dataset name; expected {_FORM}", path=name)
    datasets = require_extra("datasets", "train")
    what = f"expected a dataset of the hub as {_FORM}, and a network"
    given = (f"{owner}/{rest[0]}", rest[1] if len(rest) == 2 else None)

    def load() -> Any:
        return datasets.load_dataset(*given, split=split or "train", streaming=True)

    return _records(name, load, what)


def folder_records(path: Path, split: str = "") -> Generator[Raw]:
    """Stream a folder that `save_to_disk` wrote, or one that holds a dataset's data files;
    `split` may be empty where there is one, or one named train. Raises DataError, listing the
    splits.
    """
    datasets = require_extra("datasets", "train")

    def load() -> Any:
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
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
        return splits[wanted]

    return _records(str(path), load, "expected a folder with a dataset's Parquet, JSONL or CSV")


def _records(
    name: str, load: Callable[[], Iterable[Mapping[str, Any]]], what: str
) -> Generator[Raw]:
    row = 0
    try:
        for row, record in enumerate(load(), 1):
            yield row, record, record
    except (DataError, MissingExtraError):
        raise
    # The library passes on what its transports and decoders raise; no common root covers them.
    except Exception as error:
        where = f" past row {row}" if row else ""
        told = f"cannot be read{where} ({type(error).__name__}: {error}); {what}"
        raise DataError(told, path=name) from error
