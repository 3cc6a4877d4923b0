"""What a run writes: a part for each chunk, and all parts joined into one file at the end.

Parquet where the file is to end in .parquet or .pq, JSONL otherwise: a row for each row of the log,
in its order, {id, score, familiarity?, cluster?, embedding?}. Every file is written beside its
place, synced to the disk and renamed: it is whole, or not there.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError, require_extra
from ..logs.folder import whole_file

PARQUET = (".parquet", ".pq")
# Parts are joined to row groups of about so many rows, fewer where each has an embedding.
_GROUP_ROWS = 131_072
_GROUP_ROWS_EMBEDDED = 16_384
_COPY = 4 << 20


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns there are beside id and score; `dim` is the width of the embeddings, None
    without them."""

    familiarity: bool
    cluster: bool
    dim: int | None


@dataclass(frozen=True, slots=True)
class Scored:
    """What is known of one row: score in (0, 1); familiarity in [0, 1], None where the bundle does
    not tell; cluster, None without centres; embedding float16[dim], None where none is wanted."""

    score: float
    familiarity: float | None
    cluster: int | None
    embedding: npt.NDArray[np.float16] | None


def is_parquet(path: Path) -> bool:
    """Whether a file of that name is written as Parquet."""
    return path.suffix.lower() in PARQUET


def write_part(
    path: Path, ids: Sequence[str], rows: Sequence[Scored], columns: Columns, *, parquet: bool
) -> None:
    """Write one chunk."""
    with whole_file(path) as file:
        if parquet:
            table = _table(ids, rows, columns)
            require_extra("pyarrow.parquet", "eval").write_table(table, file, compression="zstd")
            return
        for id_, row in zip(ids, rows, strict=True):
            found: dict[str, Any] = {"id": id_, "score": row.score}
            if row.familiarity is not None:
                found["familiarity"] = row.familiarity
            if row.cluster is not None:
                found["cluster"] = row.cluster
            file.write(json.dumps(found, ensure_ascii=False).encode() + b"\n")


def join_parts(parts: Iterable[Path], out: Path, *, about: Mapping[str, str]) -> None:
    """Join parts, in order, to one file. about: metadata of a Parquet file (what scored it)."""
    if not is_parquet(out):
        with whole_file(out) as file:
            for part in parts:
                _append(part, file)
        return
    arrow = require_extra("pyarrow", "eval")
    parquet = require_extra("pyarrow.parquet", "eval")
    with whole_file(out) as file:
        writer: Any = None
        held: list[Any] = []
        for part in parts:
            held.append(parquet.read_table(part))
            schema = held[0].schema
            if writer is None:
                writer = parquet.ParquetWriter(
                    file, schema.with_metadata(dict(about)), compression="zstd"
                )
            wide = "embedding" in schema.names
            if sum(t.num_rows for t in held) >= (_GROUP_ROWS_EMBEDDED if wide else _GROUP_ROWS):
                writer.write_table(arrow.concat_tables(held))
                held = []
        if held:
            writer.write_table(arrow.concat_tables(held))
        if writer is not None:
            writer.close()


def join_lines(parts: Iterable[Path], out: Path) -> None:
    """Join those of the parts that are there, byte by byte, to one file."""
    with whole_file(out) as file:
        for part in parts:
            if part.exists():
                _append(part, file)


def check_out(out: Path, *, embeddings: bool) -> None:
    """Raises ConfigError or MissingExtraError where a run could not write its file at the end."""
    if embeddings and not is_parquet(out):
        raise ConfigError(f"embeddings are written to Parquet only; name {out} .parquet")
    if is_parquet(out):
        require_extra("pyarrow.parquet", "eval")
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; expected the name of a file")
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: there is no folder {out.parent}")


def _append(part: Path, file: IO[bytes]) -> None:
    with part.open("rb") as source:
        while block := source.read(_COPY):
            file.write(block)


def _table(ids: Sequence[str], rows: Sequence[Scored], columns: Columns) -> Any:
    arrow = require_extra("pyarrow", "eval")
    found: dict[str, Any] = {
        "id": arrow.array(ids, arrow.string()),
        "score": arrow.array([row.score for row in rows], arrow.float64()),
    }
    if columns.familiarity:
        found["familiarity"] = arrow.array([row.familiarity for row in rows], arrow.float32())
    if columns.cluster:
        found["cluster"] = arrow.array([row.cluster for row in rows], arrow.int32())
    if columns.dim is not None:
        flat = np.array([row.embedding for row in rows], np.float16).reshape(-1)
        values = arrow.array(flat, arrow.float16())
        found["embedding"] = arrow.FixedSizeListArray.from_arrays(values, columns.dim)
    return arrow.table(found)
