"""What a run writes: a part for each chunk, and all parts joined into one file at the end.

Parquet or JSONL: a row for each row of the log, in its order, {id, score, familiarity?, cluster?,
embedding?}.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import require_extra
from ...files import private, whole_file

# Parts are joined to row groups of about so many rows, fewer where each has an embedding.
_GROUP_ROWS = 131_072
_GROUP_ROWS_EMBEDDED = 16_384
_COPY = 4 << 20


def write_part(path: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Any]) -> None:
    """Write the rows of one chunk.

    columns: for Parquet, the type of each by its name in Arrow, or the width of an embedding;
    empty for JSONL.
    """
    with whole_file(path, opener=private) as file:
        if not columns:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            return
        arrow = require_extra("pyarrow", "eval")
        types = {
            name: arrow.list_(arrow.float16(), kind) if isinstance(kind, int) else kind
            for name, kind in columns.items()
        }
        table = arrow.Table.from_pylist(rows, schema=arrow.schema(list(types.items())))
        require_extra("pyarrow.parquet", "eval").write_table(table, file, compression="zstd")


def join_parts(parts: Iterable[Path], out: Path, about: Mapping[str, str]) -> None:
    """Join parts of Parquet, in order, to one file with `about` as its metadata."""
    arrow = require_extra("pyarrow", "eval")
    parquet = require_extra("pyarrow.parquet", "eval")
    with whole_file(out, opener=private) as file:
        writer: Any = None
        held: list[Any] = []
        for part in parts:
            held.append(parquet.read_table(part))
            schema = held[0].schema
            if writer is None:
                schema = schema.with_metadata(dict(about))
                writer = parquet.ParquetWriter(file, schema, compression="zstd")
            most = _GROUP_ROWS_EMBEDDED if "embedding" in schema.names else _GROUP_ROWS
            if sum(table.num_rows for table in held) >= most:
                writer.write_table(arrow.concat_tables(held))
                held = []
        if held:
            writer.write_table(arrow.concat_tables(held))
        writer.close()


def join_files(parts: Iterable[Path], out: Path) -> None:
    """Join those of the parts that are there, byte by byte, to one file."""
    with whole_file(out, opener=private) as file:
        for part in parts:
            if part.exists():
                with part.open("rb") as source:
                    while block := source.read(_COPY):
                        file.write(block)
