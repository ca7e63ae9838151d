"""Rows as they are read from files, one after another: memory does not grow with the file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..files import special

__all__ = [
    "PEEKED",
    "Given",
    "Lines",
    "Parquet",
    "Row",
    "Source",
    "Table",
    "arrow",
    "kind_of",
    "source_of",
    "values_of",
]

ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet", ".pq": "parquet"}
LARGEST = 64 << 20  # bytes of a field of CSV
BATCH = 1024  # rows of a Parquet file that are in memory at a time
PEEKED = 100  # rows that may be looked at before anything begins


class Row(NamedTuple):
    """number: from 0. where: what messages call it. values: its columns. error: why it could not be read, instead."""

    number: int
    where: str
    values: dict[str, Any]
    error: str | None = None


class Source(Protocol):
    """Rows that can be read again. name: of the file, for messages. columns: those that all rows have; None: each has
    its own."""

    name: str
    columns: Sequence[str] | None

    def rows(self) -> Iterator[Row]: ...

    def measure(self) -> tuple[int, str]:
        """How many rows there are, and a digest of what they hold. Raises OSError."""


def kind_of(path: Path) -> str:
    """ "jsonl", "csv" or "parquet", by a name's ending. Raises ValueError."""
    kind = ENDINGS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: a file of rows ends with .jsonl, .csv or .parquet")
    return kind


def source_of(path: Path) -> Source:
    """Raises OSError, ValueError (of another kind, damaged) and ModuleNotFoundError (needs glmlite[batch])."""
    kind = kind_of(path)
    if path.is_dir():
        raise IsADirectoryError(21, "is a folder, expected a file of rows", str(path))
    if special(path):  # it is read several times
        raise ValueError(
            f"{path}: is no regular file, expected one; JSON lines from a pipe are read as - (an open file)"
        )
    return Lines(path) if kind == "jsonl" else Table(path) if kind == "csv" else Parquet(path)


def arrow() -> Any:
    """pyarrow, with its module `parquet`. Raises ModuleNotFoundError, which says how it is installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Parquet files need {error.name}: pip install 'glmlite[batch]'", name=error.name
        ) from None
    return pyarrow


class Lines:
    """A file of JSON lines, each an object; empty lines are none."""

    columns: Sequence[str] | None = None

    def __init__(self, path: Path, name: str | None = None):
        self.path = path
        self.name = name or str(path)
        with open(path, "rb"):  # raises OSError where it cannot be read
            pass

    def rows(self) -> Iterator[Row]:
        number = 0
        with open(self.path, "rb") as file:
            for at, line in enumerate(file, 1):
                line = line.removeprefix(b"\xef\xbb\xbf") if at == 1 else line
                if not line.isspace() and line:
                    yield _of_line(number, f"line {at}", line)
                    number += 1

    def measure(self) -> tuple[int, str]:
        found, count = hashlib.sha256(), 0
        with open(self.path, "rb") as file:
            for at, line in enumerate(file, 1):
                found.update(line)
                line = line.removeprefix(b"\xef\xbb\xbf") if at == 1 else line
                count += bool(line) and not line.isspace()
        return count, found.hexdigest()


def _of_line(number: int, where: str, line: bytes) -> Row:
    try:
        values = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Row(number, where, {}, f"byte {error.start} is not UTF-8")
    except (ValueError, RecursionError) as error:
        return Row(number, where, {}, f"is no JSON: {error}")
    if not isinstance(values, dict):
        return Row(number, where, {}, f"is {type(values).__name__}, expected a JSON object")
    return Row(number, where, values)


class Table:
    """A CSV file: UTF-8, a line of names first."""

    def __init__(self, path: Path):
        self.path = path
        self.name = str(path)
        csv.field_size_limit(max(csv.field_size_limit(), LARGEST))
        try:
            with self._open() as file:
                names = self._names(self._reader(file))
        except csv.Error as error:
            raise ValueError(f"{path}: the line with the names of the columns is no CSV: {error}") from None
        if not names:
            raise ValueError(f"{path}: is empty, expected a line with the names of the columns")
        doubled = sorted(name for name, count in Counter(names).items() if count > 1)
        if doubled:
            raise ValueError(f"{path}: several columns are called {doubled[0]!r}, expected different names")
        if any(_damaged(name) for name in names):
            raise ValueError(f"{path}: the names of its columns are not UTF-8")
        self.columns: Sequence[str] | None = names

    def _open(self) -> io.TextIOWrapper:
        # What is not UTF-8 is told of the row that has it.
        return open(self.path, encoding="utf-8-sig", errors="surrogateescape", newline="")

    def _reader(self, file: Iterable[str]) -> Any:
        return csv.reader(file, strict=True)

    def _names(self, reader: Iterator[list[str]]) -> list[str]:
        """The first line that is not empty."""
        return next(filter(None, reader), [])

    def rows(self) -> Iterator[Row]:
        assert self.columns is not None
        with self._open() as file:
            reader = self._reader(file)
            self._names(reader)
            number = 0
            while True:
                where = f"line {reader.line_num + 1}"
                try:
                    fields = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield Row(number, where, {}, f"is no CSV: {error}")
                    number += 1
                    continue
                if fields:
                    yield self._row(number, where, fields)
                    number += 1

    def _row(self, number: int, where: str, fields: list[str]) -> Row:
        assert self.columns is not None
        values = {name: _shown(field) for name, field in zip(self.columns, fields)}
        if len(fields) != len(self.columns):
            return Row(number, where, values, f"has {len(fields)} fields, expected {len(self.columns)}")
        bad = next((name for name, field in zip(self.columns, fields) if _damaged(field)), None)
        return Row(number, where, values, None if bad is None else f"{bad!r} is not UTF-8")

    def measure(self) -> tuple[int, str]:
        return sum(1 for _ in self.rows()), _digest(self.path)


def _damaged(text: str) -> bool:
    return any("\udc80" <= c <= "\udcff" for c in text) if not text.isascii() else False


def _shown(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if _damaged(text) else text


class Parquet:
    """A Parquet file. Raises ValueError for one that is damaged or cut short."""

    def __init__(self, path: Path):
        self._arrow = arrow()
        self.path = path
        self.name = str(path)
        with open(path, "rb"):
            pass
        try:
            file = self._arrow.parquet.ParquetFile(path)
            with file:
                self.schema = file.schema_arrow
                self._count = file.metadata.num_rows
        except (self._arrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}: is no whole Parquet file: {error}") from None
        names = self.schema.names
        if len(set(names)) < len(names):
            raise ValueError(f"{path}: several columns have one name, expected different names")
        self.columns: Sequence[str] | None = names

    def batches(self) -> Iterator[Any]:
        """Record batches, of BATCH rows but for some. Raises ValueError where the file is damaged inside."""
        try:
            with self._arrow.parquet.ParquetFile(self.path) as file:
                yield from file.iter_batches(BATCH)
        except (self._arrow.ArrowException, OSError) as error:
            raise ValueError(f"{self.path}: is damaged: {error}") from None

    def rows(self) -> Iterator[Row]:
        number = 0
        for batch in self.batches():
            for values, error in values_of(batch):
                yield Row(number, f"row {number + 1}", values, error)
                number += 1

    def measure(self) -> tuple[int, str]:
        return self._count, _digest(self.path)


def values_of(table: Any) -> Iterator[tuple[dict[str, Any], str | None]]:
    """The columns of each row of a table or a record batch of pyarrow, and what is wrong with the row."""
    names, columns = table.schema.names, [_plain(column) for column in table.columns]
    damaged = [name for name, column in zip(names, columns) if _Unread in map(type, column)]
    for cells in zip(*columns) if columns else ([],) * table.num_rows:
        values = dict(zip(names, cells))
        error = None
        for name in damaged:
            if type(why := values[name]) is _Unread:
                values[name], error = None, error or f"{name!r} {why}"
        yield values, error


class _Unread(str):
    """Why there is no value."""


def _plain(column: Any) -> list[Any]:
    """Values of a column as Python has them; times that it has not, in the year 20000, as texts."""
    if (kind := _in_microseconds(column.type)) != column.type:
        column = column.cast(kind, safe=False)
    errors = (ValueError, OverflowError, arrow().ArrowException)
    try:
        found: list[Any] = column.to_pylist()
        return found
    except errors:
        pass
    text = arrow().string()

    def plain(scalar: Any) -> Any:
        try:
            return scalar.as_py()
        except UnicodeDecodeError:
            return _Unread("is not UTF-8")
        except errors as error:
            try:
                return scalar.cast(text).as_py()
            except errors:
                return _Unread(f"cannot be read: {error}")

    return [plain(scalar) for scalar in column]


def _in_microseconds(kind: Any) -> Any:
    """A type with its times in microseconds, which Python's have."""
    pa, types = arrow(), arrow().types
    if types.is_map(kind):
        return pa.map_(_inner(kind.key_field), _inner(kind.item_field), kind.keys_sorted)
    if types.is_struct(kind):
        return pa.struct([_inner(field) for field in kind])
    if types.is_fixed_size_list(kind):
        return pa.list_(_inner(kind.value_field), kind.list_size)
    if types.is_list(kind):
        return pa.list_(_inner(kind.value_field))
    if types.is_large_list(kind):
        return pa.large_list(_inner(kind.value_field))
    if getattr(kind, "unit", None) != "ns":
        return kind
    if types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return pa.time64("us") if types.is_time(kind) else pa.duration("us")


def _inner(field: Any) -> Any:
    return field.with_type(_in_microseconds(field.type))


class Given:
    """Rows of a program: mappings, or prompts. They are read once, but for the first ones, which are kept."""

    columns: Sequence[str] | None = None
    name = "rows"

    def __init__(self, rows: Iterable[Any]):
        self._count = len(rows) if isinstance(rows, Sized) else 0
        self._rest = iter(rows)
        self._first = list(islice(self._rest, PEEKED))

    def rows(self) -> Iterator[Row]:
        for number, row in enumerate(chain(self._first, self._rest)):
            where = f"row {number + 1}"
            if isinstance(row, str):
                row = {"prompt": row}
            if isinstance(row, Mapping):
                yield Row(number, where, dict(row))
            else:
                yield Row(number, where, {}, f"is {type(row).__name__}, expected a mapping or a prompt")

    def measure(self) -> tuple[int, str]:
        return self._count, ""


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()
