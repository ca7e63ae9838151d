"""Rows as they are written: JSON lines, CSV or Parquet, with what was answered."""

from __future__ import annotations

import base64
import csv
import datetime
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from .asking import FIELDS, Asking, OpenAI, Prompts, Record
from .rows import Parquet, Row, Source, arrow, kind_of

__all__ = ["check_target", "extended", "line_of", "write"]

BATCH = 1024  # rows that are written to a Parquet file together
GROUP = 64 * BATCH  # rows of a row group of it

Kept = Iterable[tuple[Row, Record]]


def check_target(path: Path, asking: Asking, ordered: bool) -> None:
    """Raises ValueError for a file that the rows cannot be written to, and ModuleNotFoundError."""
    kind = kind_of(path)
    if kind != "jsonl" and isinstance(asking, OpenAI):
        raise ValueError(f"{path}: answers to requests in OpenAI's form are JSON lines, expected a name with .jsonl")
    if kind != "jsonl" and not ordered:
        raise ValueError(f"{path}: rows as they are completed are JSON lines, expected a name with .jsonl")
    if kind == "parquet":
        arrow()


def line_of(result: Mapping[str, Any]) -> str:
    """A row as a line of JSON."""
    return _json(result) + "\n"


def write(file: BinaryIO, path: Path, asking: Asking, source: Source, kept: Kept) -> None:
    """The rows with what was kept of them, in the form that the path's ending says. kept: may be iterated once."""
    kind = kind_of(path)
    if kind == "jsonl":
        for row, record in kept:
            file.write(line_of(asking.result(row, record)).encode("utf-8", "replace"))
        return
    assert isinstance(asking, Prompts)
    columns = _columns(source, asking)
    if kind == "csv":
        _write_csv(file, columns, (asking.result(row, record) for row, record in kept))
    elif isinstance(source, Parquet):
        _extend_parquet(file, source, asking, (record for _, record in kept))
    else:
        _write_parquet(file, columns, (asking.result(row, record) for row, record in kept))


# ---- columns


class Column(NamedTuple):
    """type: "string", "int64", "float64" or "bool"; what is of several types, or of others, is its JSON text."""

    name: str
    type: str


TYPES = {bool: "bool", int: "int64", float: "float64", str: "string"}
ADDED = ("string", "string", "json", "string", "int64", "int64", "string")  # of `asking.FIELDS`


def _added(asking: Prompts) -> list[Column]:
    return [Column(name, kind) for name, kind in zip(asking.fields, ADDED)]


def _columns(source: Source, asking: Prompts) -> list[Column]:
    added = _added(asking)
    if source.columns is not None:
        return [*(Column(name, "string") for name in source.columns), *added]
    found: dict[str, str | None] = {}
    for row in source.rows():
        for name, value in row.values.items():
            if name not in asking.fields:
                found[name] = _wider(found.get(name), value)
    return [*(Column(name, kind or "string") for name, kind in found.items()), *added]


def _wider(kind: str | None, value: Any) -> str | None:
    """The type of a column that has this value, too."""
    if value is None:
        return kind
    own = TYPES.get(type(value), "json")
    if own == "int64" and not -(2**63) <= value < 2**63:
        own = "json"
    if kind is None or kind == own:
        return own
    return "float64" if {kind, own} == {"int64", "float64"} else "json"


def _json(value: Any) -> str:
    """JSON text; what is no number is null, as JSON has no word for it."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=_plain)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    """What JSON has no word for."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)


def _cell(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind in ("json", "string"):
        return _whole(value if kind == "string" else _json(value))
    return float(value) if kind == "float64" else value


def _whole(text: str) -> str:
    """Without halves of surrogate pairs, which JSON can name and UTF-8 cannot."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


# ---- files


def _write_csv(file: BinaryIO, columns: Sequence[Column], results: Iterable[Mapping[str, Any]]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
    rows = csv.writer(_Ends(text), lineterminator="\r\n")
    rows.writerow([column.name for column in columns])
    for result in results:
        cells = [result.get(column.name) for column in columns]
        rows.writerow([_text(cell) for cell in cells])
    text.flush()
    text.detach()


class _Ends:
    """Lines of CSV that end with a line feed. Python's csv may quote a carriage return only where lines end with one,
    and readers take one without quotes for the end of a line."""

    def __init__(self, file: io.TextIOWrapper):
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(line.removesuffix("\r\n") + "\n")


def _text(value: Any) -> Any:
    if isinstance(value, str | int | float | None):
        return value
    return _json(value) if isinstance(value, list | dict) else _plain(value)


def _schema(columns: Sequence[Column]) -> Any:
    pa = arrow()
    return pa.schema([(_whole(c.name), pa.type_for_alias("string" if c.type == "json" else c.type)) for c in columns])


def _write_parquet(file: BinaryIO, columns: Sequence[Column], results: Iterable[Mapping[str, Any]]) -> None:
    pa, schema = arrow(), _schema(columns)
    with pa.parquet.ParquetWriter(file, schema) as writer:
        for part in _parts(results, GROUP):
            cells = [[_cell(result.get(c.name), c.type) for result in part] for c in columns]
            writer.write_table(pa.table([pa.array(of, f.type) for of, f in zip(cells, schema)], schema=schema))


def _extend_parquet(file: BinaryIO, source: Parquet, asking: Prompts, records: Iterable[Record]) -> None:
    """The columns of the source stay as they are, whatever their types."""
    pa = arrow()
    schema = pa.schema([*source.schema, *_schema(_added(asking))], metadata=source.schema.metadata)
    rest = iter(records)
    with pa.parquet.ParquetWriter(file, schema) as writer:
        for batches in _parts(source.batches(), GROUP // BATCH):
            table = pa.Table.from_batches(batches, schema=source.schema)
            table = extended(table, asking, list(islice(rest, len(table))))
            writer.write_table(table.cast(schema), row_group_size=GROUP)


def extended(table: Any, asking: Prompts, records: Sequence[Record]) -> Any:
    """A table of pyarrow with the columns of the answers to its rows."""
    pa, columns = arrow(), _added(asking)
    for column, field, name in zip(columns, _schema(columns), FIELDS):
        cells = [_cell(record.get(name), column.type) for record in records]
        table = table.append_column(field, pa.array(cells, field.type))
    return table


def _parts(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part
