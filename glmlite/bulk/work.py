"""One run over many rows: what is kept of it while it lasts, and what comes out."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from .. import journal
from ..cancel import Cancel
from ..files import named_where_full, refuse_to_overwrite, replacing
from ..loading import DEFAULT_CONTEXT, load
from ..model import Model
from ..parameters import Parameters
from .asking import Asking, Record
from .rows import Lines, Parquet, Row, Source, Table, kind_of
from .running import Finished, answers
from .writing import check_target, write

__all__ = [
    "Cluster",
    "Progress",
    "Result",
    "Summary",
    "Work",
    "check_out",
    "into_file",
    "journal_path",
    "load_for",
    "results",
    "spooled",
]

VERSION = 1
ROOM = 1024  # tokens of cache for each row that runs, unless more is asked for; rows that need more wait for each other
TELL_SECONDS = 0.1


class Progress(NamedTuple):
    """How far a run is. done: of `total` rows, 0 where nobody knows how many there are; kept: of those done, by a run
    before; failed: of those done. seconds: since it began. read: tokens of prompts that were not in the cache; written:
    tokens of answers."""

    done: int
    total: int
    kept: int
    failed: int
    seconds: float
    read: int
    written: int

    @property
    def rows_per_second(self) -> float:
        return (self.done - self.kept) / self.seconds if self.seconds > 0 else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of answers."""
        return self.written / self.seconds if self.seconds > 0 else 0.0

    def __str__(self) -> str:
        of = f" of {self.total:,}" if self.total else ""
        failed = f", {self.failed:,} failed" if self.failed else ""
        return (
            f"{self.done:,}{of} rows{failed}, {self.rows_per_second:.1f} rows/s, {self.tokens_per_second:.0f} tokens/s"
        )


@dataclass(frozen=True)
class Result:
    """A row and what a model made of it.

    number: the row's, from 0. values: the row as it is written to a file, with the columns of the answer, or in
    OpenAI's form. answer: the text, None where there is none. error: what went wrong, in a line that names the row.
    """

    number: int
    values: dict[str, Any]
    answer: str | None
    error: str | None


@dataclass(frozen=True)
class Summary:
    """What a run over a file came to. path: of what was written. progress: at its end. error: of the first row that
    failed."""

    path: Path
    progress: Progress
    error: str | None

    @property
    def rows(self) -> int:
        return self.progress.done

    @property
    def failed(self) -> int:
        return self.progress.failed

    def __str__(self) -> str:
        p = self.progress
        kept = f" ({p.kept:,} kept from before)" if p.kept else ""
        return (
            f"{self.path}: {p.done:,} rows{kept}, {p.failed:,} failed; {p.seconds:.1f} s, "
            f"{p.rows_per_second:.1f} rows/s; "
            f"tokens read {p.read:,}, written {p.written:,}, {p.tokens_per_second:.0f} tokens/s"
        )


class Cluster(Protocol):
    """Other machines that answer rows: `glmlite.ray.Cluster`."""

    def answers(self, rows: Iterator[Row], work: Work) -> Iterator[list[Finished]]:
        """As `running.answers`; each row once, in whatever order."""


@dataclass(frozen=True)
class Work:
    """A run. parameters: of all rows. ordered: rows come out in their order, and not as they are finished. cluster: the
    machines that answer; None: this process."""

    model: Model
    source: Source
    asking: Asking
    parameters: Parameters
    at_once: int
    ordered: bool
    cancel: Cancel
    progress: Callable[[Progress], object] | None
    cluster: Cluster | None = None

    def answers(self, rows: Iterator[Row]) -> Iterator[list[Finished]]:
        if self.cluster is not None:
            return self.cluster.answers(rows, self)
        return answers(rows, self.asking, at_once=self.at_once, cancel=self.cancel)


def results(work: Work) -> Iterator[Result]:
    """The rows with their answers. Nothing is kept of them. Raises Cancelled."""
    work.asking.check(work.source)
    rows = work.source.rows()
    return _in_order(_results(work, rows)) if work.ordered else _results(work, rows)


def _results(work: Work, rows: Iterator[Row]) -> Iterator[Result]:
    total = 0 if work.progress is None else work.source.measure()[0]
    meter = Meter(total, 0, 0, work.progress)
    for finished in work.answers(rows):
        meter.add(finished)
        for row, record, *_ in finished:
            asking = work.asking
            yield Result(row.number, asking.result(row, record), asking.text(record), asking.error(record))
    work.cancel.check("batch")
    meter.tell()


def _in_order(found: Iterator[Result]) -> Iterator[Result]:
    waiting: dict[int, Result] = {}
    following = 0
    for result in found:
        waiting[result.number] = result
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def check_out(path: Path, force: bool) -> None:
    """Raises ValueError and OSError for what no rows are written to. Beside kept rows it may be there: it is written
    over when the others are answered."""
    kind_of(path)
    refuse_to_overwrite(path, force or journal_path(path).exists())


def into_file(work: Work, path: Path, *, force: bool = False, restart: bool = False) -> Summary:
    """Writes all rows with their answers to a file, which appears when it is whole.

    Finished rows are kept beside it meanwhile, and the next run over the same rows, with the same model and options,
    goes on after them. force: a file that is there is written over; restart: kept rows are given up.

    Raises what `check_out` raises, ValueError (kept rows are of another run), Cancelled, and what a model raises for
    good.
    """
    check_out(path, force)
    check_target(path, work.asking, work.ordered)
    work.asking.check(work.source)
    given = Unchanged(work.source)
    kept = Kept(journal_path(path), _header(work, given.digest), given.count, work.asking, restart)
    meter = Meter(given.count, len(kept.order), kept.failed, work.progress)
    try:
        rows = (row for row in given.rows() if row.number not in kept)
        for finished in work.answers(rows):
            kept.add(finished)
            meter.add(finished)
        work.cancel.check("batch")
        meter.tell()
        with replacing(path) as file:
            write(file, path, work.asking, work.source, kept.joined(given.rows(), work.ordered))
    except BaseException:
        kept.close()
        raise
    kept.journal.remove()
    return Summary(path, meter.progress, None if kept.first is None else kept.first[1])


class Unchanged:
    """The rows of a file while it is what it was. A row that comes out is one of the file that was measured, so what is
    kept stays of use when the file is put back.

    Raises OSError, also for a file that was changed.
    """

    def __init__(self, source: Source):
        assert isinstance(source, Lines | Table | Parquet)
        self._source = source
        self._stamp = self._look()
        self.count, self.digest = source.measure()

    def rows(self) -> Iterator[Row]:
        for row in self._source.rows():
            self._check()
            yield row
        self._check()

    def _look(self) -> tuple[int, ...]:
        found = os.stat(self._source.path)
        return found.st_size, found.st_mtime_ns, found.st_ino

    def _check(self) -> None:
        if (now := self._look()) == self._stamp:
            return
        if self._source.measure() != (self.count, self.digest):
            raise OSError(
                f"{self._source.name}: was changed while its rows were answered, expected the same content to the end; "
                "with that back, finished rows count"
            )
        self._stamp = now


class Kept:
    """The finished rows of a run over `count` rows, in its journal.

    order: their numbers, as they were finished. failed: how many of them did; first: the first of these, with its
    error.

    Raises ValueError where the journal is another run's, and OSError.
    """

    def __init__(self, path: Path, header: dict[str, Any], count: int, asking: Asking, restart: bool):
        self.order = array("q")
        self.failed = 0
        self.first: tuple[int, str] | None = None
        self._offsets = array("q", bytes(8 * count))  # of each row's record in the journal; 0: there is none
        self._asking = asking
        try:
            self.journal = journal.Journal(path, header, self._take, restart=restart)
        except journal.Other as other:
            raise ValueError(_why(path, other.header, header)) from None

    def __contains__(self, number: int) -> bool:
        return self._offsets[number] > 0

    def add(self, finished: Iterable[Finished]) -> None:
        records = [{"row": each.row.number, **each.record} for each in finished]
        for record, offset in zip(records, self.journal.add(records)):
            self._note(record, offset)

    def joined(self, rows: Iterator[Row], ordered: bool) -> Iterator[tuple[Row, Record]]:
        """All rows with their records, in their order, or as they were finished; those that come later wait."""
        waiting: dict[int, Row] = {}
        for number in range(len(self._offsets)) if ordered else self.order:
            while number not in waiting:
                row = next(rows)
                waiting[row.number] = row
            yield waiting.pop(number), self.journal.at(self._offsets[number])

    def close(self) -> None:
        """Keeps them for the next run; without any there is nothing to keep."""
        if self.order:
            self.journal.close()
        else:
            self.journal.remove()

    def _take(self, record: Record, offset: int) -> None:
        number = record["row"]
        if not 0 <= number < len(self._offsets) or number in self:
            raise ValueError(f"row {number}, expected another")
        self._note(record, offset)

    def _note(self, record: Record, offset: int) -> None:
        number = record["row"]
        self._offsets[number] = offset
        self.order.append(number)
        if (error := self._asking.error(record)) is not None:
            self.failed += 1
            self.first = min(self.first or (number, error), (number, error))


def journal_path(path: Path) -> Path:
    """Where finished rows are kept."""
    return path.with_name(f".{path.name}.rows")


def _header(work: Work, digest: str) -> dict[str, Any]:
    """What rows must have in common with those that are kept: parts that messages can name."""
    model, parameters = work.model, dict(work.parameters.__dict__)
    parameters.pop("on_progress")
    header = {
        "version": VERSION,
        "input": digest,
        "model": journal.content_of(model),
        "context": model.context,
        # In bytes of a token. The engine tells them, as `memory` does not, where the model is unloaded.
        "kv_type": model._engine.kv_bytes // model._engine.kv_tokens,
        "device": model.device,
        "prompts": work.asking.describe(),
        "options": parameters,
    }
    found: dict[str, Any] = json.loads(json.dumps(header, default=str))
    return found


def _why(path: Path, found: Any, wanted: dict[str, Any]) -> str:
    """Why kept rows are of no use."""
    begin = "--restart (restart=True) gives them up"
    if not isinstance(found, dict):
        return f"{path}: is no journal of ours; {begin}"
    differ = [name for name in wanted if found.get(name) != wanted[name]]
    for name in ("prompts", "options"):
        if name in differ and isinstance(found.get(name), dict) and isinstance(wanted[name], dict):
            inner = [key for key in wanted[name] if found[name].get(key) != wanted[name][key]]
            differ[differ.index(name)] = f"{name} ({', '.join(inner)})"
    return f"{path}: rows are kept from a run with another {' and another '.join(differ)}; {begin}"


class Meter:
    """Counts, and tells ten times a second at most, and at the end."""

    def __init__(self, total: int, kept: int, failed: int, tell: Callable[[Progress], object] | None):
        self._total = total
        self._kept = kept
        self._tell = tell
        self._began = self._told = time.monotonic()
        self._done, self._failed, self._read, self._written = kept, failed, 0, 0

    @property
    def progress(self) -> Progress:
        seconds = time.monotonic() - self._began
        return Progress(self._done, self._total, self._kept, self._failed, seconds, self._read, self._written)

    def add(self, finished: Iterable[Finished]) -> None:
        for each in finished:
            self._done += 1
            self._failed += each.failed
            self._read += each.read
            self._written += each.written
        if time.monotonic() - self._told >= TELL_SECONDS:
            self.tell()

    def tell(self) -> None:
        self._told = time.monotonic()
        if self._tell is not None:
            self._tell(self.progress)


# ---- what a run begins with


def load_for(path: Any, at_once: int, **loading: Any) -> Model:
    """`glmlite.load`, with room for so many rows at once, or for fewer where memory is short."""
    least = loading.get("context") or DEFAULT_CONTEXT
    room = 0 if "kv_tokens" in loading else at_once * ROOM
    while room > least:
        try:
            return load(path, parallel=at_once, kv_tokens=room, **{"packed": False, **loading})
        except MemoryError:
            room //= 2
    return load(path, parallel=at_once, **loading)


@contextmanager
def spooled(rows: Any) -> Iterator[Lines]:
    """Rows that can be read once, of a program or an open file, as a file of JSON lines that can be read again. Raises
    TypeError for what JSON has no word for, and for a file that is open as text."""
    with tempfile.TemporaryDirectory(prefix="glmlite-") as folder:
        path = Path(folder) / "rows.jsonl"
        with named_where_full(path), open(path, "wb") as file:
            if isinstance(rows, io.TextIOBase):
                raise TypeError("rows is a file that is open as text, expected one that is open as bytes ('rb')")
            if hasattr(rows, "read"):
                shutil.copyfileobj(rows, file)
            else:
                file.writelines(starmap(_line, enumerate(rows)))
        yield Lines(path, str(getattr(rows, "name", "rows")))


def _line(number: int, row: Any) -> bytes:
    row = {"prompt": row} if isinstance(row, str) else dict(row) if isinstance(row, Mapping) else row
    try:
        return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"row {number + 1}: cannot be written as JSON: {error}") from None
