"""Many rows on many machines: `Generate` for Ray Data's pipelines, `Cluster` for `glmlite.batch`.

Both answer rows by what answers them on one machine (`glmlite.bulk`), and a row's seed comes from its number alone. So
its answer has the same bits, whichever node wrote it, beside whatever others, at the first try or at the third.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import builtin
from ..bulk import AT_ONCE
from ..bulk.asking import COLUMNS, Asking, Prompts, asked_of
from ..bulk.rows import Row, arrow, values_of
from ..bulk.running import Finished, answers
from ..bulk.work import Work
from ..bulk.writing import extended
from ..cancel import Cancel
from ..model import Model
from ..parameters import Parameters, check_integer
from . import node

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..bulk.asking import PromptOptions

__all__ = ["Cluster", "Generate"]

log = logging.getLogger("glmlite.ray")

AHEAD = 2  # batches that an actor has besides the one that it finishes, so that it always has rows to run at once
TRIES = 3  # actors that may be lost with a batch, and then with a row alone, until the row is what is wrong
TICK = 0.1  # seconds between two looks for a cancel


class Generate:
    """What answers a table of rows: an actor class for `map_batches` of Ray Data.

        ds.map_batches(
            glmlite.ray.Generate,
            fn_constructor_args=("/models/glm-4-9b.gguf",),
            fn_constructor_kwargs={"template": "Label it: {{ text }}", "number": "id", "max_tokens": 5},
            batch_format="pyarrow", batch_size=1024, num_cpus=8, compute=ray.data.ActorPoolStrategy(size=4),
        )

    Each actor loads the model, with as many threads as it has CPUs, or on the GPU that Ray gives it. The table gets the
    columns of `glmlite.batch`: answer, reasoning, ..., error. A row that fails has an error, and the others go on.

    model: a path or a name that means a file on each node, or an address (s3://, gs://, hdfs://, file://), which each
        node fetches once.
    parameters, and options of the prompts and of the answers (column, template, ..., max_tokens, ...): as for
        `glmlite.batch`; the column is "prompt" unless you say.
    number: the column of the row's number, of which its seed is made: `glmlite.batch` counts rows from 0. Without it
        the seed is made of the row's columns, so equal rows have equal answers.
    at_once: rows that run at the same time. loading: arguments of `glmlite.load`.

    Raises ValueError and TypeError (arguments, a column that is not there), and what `glmlite.load` raises.
    """

    def __init__(
        self,
        model: str = builtin.NAME,
        parameters: Parameters | None = None,
        *,
        number: str | None = None,
        at_once: int = AT_ONCE,
        loading: Mapping[str, Any] | None = None,
        **options: Unpack[PromptOptions],
    ):
        check_integer("at_once", at_once, 1)
        prompt, asked = asked_of(parameters, **options)
        if prompt.column is None and prompt.template is None:
            prompt = replace(prompt, column=COLUMNS[0])
        self._number = number
        self._at_once = at_once
        self._cancel = Cancel()
        self._model = _engine(model, at_once, loading or {})
        self._asking = Prompts(self._model, self._cancel, prompt, asked, Path())

    def __call__(self, table: Any) -> Any:
        """A table of pyarrow, with more columns; its rows stay in their order."""
        if not isinstance(table, arrow().Table):
            raise TypeError(f"rows are {type(table).__name__}, expected a table: map_batches(batch_format='pyarrow')")
        self._asking.check(Columns(table.column_names))
        if self._number is not None and self._number not in table.column_names:
            raise ValueError(f"there is no column {self._number!r} of numbers; there is {table.column_names}")
        rows = [self._row(i, *read) for i, read in enumerate(values_of(table))]
        found: dict[int, dict[str, Any]] = {}
        # Numbers may be there twice; places in the table are not.
        places = {id(row): i for i, row in enumerate(rows)}
        for finished in answers(iter(rows), self._asking, at_once=self._at_once, cancel=self._cancel):
            found |= {places[id(each.row)]: each.record for each in finished}
        return extended(table, self._asking, [found[i] for i in range(len(rows))])

    def _row(self, place: int, values: dict[str, Any], error: str | None) -> Row:
        if self._number is None:
            return Row(number_of(values), f"row {place + 1} of its batch", values, error)
        number = values[self._number]
        if not isinstance(number, int) or isinstance(number, bool):
            return Row(0, f"row {place + 1} of its batch", values, f"{self._number!r} is {number!r}, expected a number")
        return Row(number, f"row {number + 1}", values, error)


def number_of(values: Mapping[str, Any]) -> int:
    """A number for a row that has none: of its columns alone."""
    return int.from_bytes(hashlib.blake2b(repr(sorted(values.items())).encode(), digest_size=8).digest(), "little")


class Columns:
    """The columns of a table, in the shape of a source of rows."""

    name = "rows"

    def __init__(self, columns: Sequence[str]):
        self.columns: Sequence[str] | None = columns

    def rows(self) -> Iterator[Row]:
        return iter(())

    def measure(self) -> tuple[int, str]:
        return 0, ""


def _engine(model: str, at_once: int, loading: Mapping[str, Any]) -> Model:
    """A model with what Ray has given to this actor."""
    given = node.require("ray").get_runtime_context().get_assigned_resources()
    return node.engine(model, at_once, loading, cpus=given.get("CPU", 1), gpus=given.get("GPU", 0))


# ---- a cluster for `glmlite.batch`


class Answer(NamedTuple):
    """What an actor made of a row. See `Finished`."""

    number: int
    record: dict[str, Any]
    failed: bool
    read: int
    written: int


class Worker:
    """One engine: the actor of `Cluster`. Several calls run at once, on threads, and the engine joins their rows."""

    def __init__(self, model: str, recipe: Callable[[Model, Cancel], Asking], at_once: int, loading: Mapping[str, Any]):
        self._at_once = at_once
        self._cancel = Cancel()
        self._asking = recipe(_engine(model, at_once, loading), self._cancel)

    def ready(self) -> None:
        """Returns when the model is loaded."""

    def answer(self, rows: Sequence[Row]) -> list[Answer]:
        found = answers(iter(rows), self._asking, at_once=self._at_once, cancel=self._cancel)
        return [Answer(each.row.number, *each[1:]) for finished in found for each in finished]


@dataclass
class Batch:
    """Rows that go to an actor together. tries: actors that were lost with them."""

    rows: list[Row]
    tries: int = 0


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that answers the rows of a `glmlite.batch`.

        glmlite.batch("model.gguf", "in.parquet", "out.parquet", cluster=glmlite.ray.Cluster("auto", cpus=8))

    The program that calls it reads the rows and writes the answers, and keeps those that are finished, as it does
    without a cluster; so it may be stopped, and go on. Rows of an actor or a node that is lost are given to others. A
    row with which actor after actor is lost gets an error.

    address: of the cluster, as `ray.init` takes it; "auto": the one that this machine belongs to. A Ray that is
        initialized already is used as it is.
    model: where the nodes find it, if not where this program did: a path, or an address (s3://, gs://, hdfs://,
        file://), which each node fetches once.
    actors: engines; by default as many as the nodes that are there now have room for. cpus, gpus: of each; cpus by
        default those of the smallest node.
    loading: arguments of `glmlite.load`, of the engines.

    Raises ValueError and TypeError, naming the field.
    """

    address: str = "auto"
    model: str | None = None
    actors: int | None = None
    cpus: float | None = None
    gpus: float = 0
    loading: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.actors is not None:
            check_integer("actors", self.actors, 1)
        if self.cpus is not None and not self.cpus > 0:
            raise ValueError(f"cpus is {self.cpus}, expected more than 0")
        if not self.gpus >= 0:
            raise ValueError(f"gpus is {self.gpus}, expected 0 or more")

    def answers(self, rows: Iterator[Row], work: Work) -> Iterator[list[Finished]]:
        """See `glmlite.bulk.work.Cluster`. Raises ModuleNotFoundError (needs glmlite[ray]), ConnectionError,
        RuntimeError (no actor can begin: why), and what ends all rows in an actor."""
        ray = node.require("ray")
        ours = not ray.is_initialized()
        if ours:
            ray.init(address=self.address, log_to_driver=False)
        run = _Run(self, ray, rows, work)
        try:
            yield from run.run()
        finally:
            run.close()
            if ours:
                ray.shutdown()

    def places(self, nodes: Sequence[Mapping[str, Any]]) -> tuple[float, int]:
        """CPUs of an actor, and how many actors there are. nodes: as `ray.nodes()` tells them. Raises RuntimeError."""
        there = [each["Resources"] for each in nodes if each["Alive"]]
        able = [each for each in there if each.get("CPU", 0) > 0 and each.get("GPU", 0) >= self.gpus]
        cpus = self.cpus if self.cpus is not None else min((each["CPU"] for each in able), default=1.0)
        rooms = [min(each["CPU"] / cpus, each.get("GPU", 0) / self.gpus if self.gpus else 2**30) for each in able]
        count = self.actors if self.actors is not None else sum(map(int, rooms))
        if count < 1:
            what = f"{cpus:g} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")
            raise RuntimeError(f"no node of the cluster has room for an actor of {what}")
        return cpus, count


class _Run:
    def __init__(self, cluster: Cluster, ray: Any, rows: Iterator[Row], work: Work):
        self._ray = ray
        self._rows = rows
        self._work = work
        cpus, self._count = cluster.places(ray.nodes())
        path = work.model.path
        model = cluster.model or (builtin.NAME if builtin.is_it(path) else str(path.absolute()))
        loading = {"context": work.model.context, **cluster.loading}
        actor = ray.remote(
            num_cpus=cpus,
            num_gpus=cluster.gpus,
            max_restarts=-1,
            max_concurrency=1 + AHEAD,
            scheduling_strategy="SPREAD",
        )(Worker)
        self._start: Callable[[], Any] = lambda: actor.remote(model, work.asking.recipe(), work.at_once, loading)
        self._actors: set[Any] = set()
        self._begun: set[Any] = set()  # those that have been ready once
        self._pending: dict[Any, tuple[Any, Batch | None]] = {}  # by reference; None: whether an actor is ready
        self._free: deque[Any] = deque()  # an actor for each batch that it could take
        self._again: deque[Batch] = deque()
        self._finished: list[Finished] = []

    def run(self) -> Iterator[list[Finished]]:
        for _ in range(self._count):
            self._add()
        while not self._work.cancel.cancelled:
            while self._free and (batch := self._next()) is not None:
                actor = self._free.popleft()
                self._pending[actor.answer.remote(batch.rows)] = (actor, batch)
            if self._finished:
                finished, self._finished = self._finished, []
                yield finished
            elif self._free and not any(batch for _, batch in self._pending.values()):
                return
            else:
                self._take()
                yield []

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)

    def _add(self) -> None:
        actor = self._start()
        self._actors.add(actor)
        self._pending[actor.ready.remote()] = (actor, None)

    def _next(self) -> Batch | None:
        """Rows that were lost before others."""
        if self._again:
            return self._again.popleft()
        rows = [row for _, row in zip(range(self._work.at_once), self._rows)]
        return Batch(rows) if rows else None

    def _take(self) -> None:
        """Waits for actors, not long."""
        done, _ = self._ray.wait(list(self._pending), timeout=TICK)
        for reference in done:
            actor, batch = self._pending.pop(reference)
            try:
                found = self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Exception) else error) from None
            except self._ray.exceptions.RayError as error:
                self._lost(actor, batch, error)
                continue
            if batch is None:
                self._begun.add(actor)
                self._free.extend([actor] * (1 + AHEAD))
                continue
            self._free.append(actor)
            rows = {row.number: row for row in batch.rows}
            self._finished += [Finished(rows[answer.number], *answer[1:]) for answer in found]

    def _lost(self, actor: Any, batch: Batch | None, error: Exception) -> None:
        if batch is not None:
            log.warning("an actor was lost; %d rows go to another: %s", len(batch.rows), error)
            self._put_back(batch)
        self._free = deque(each for each in self._free if each != actor)
        if isinstance(error, self._ray.exceptions.ActorDiedError):  # for good
            if actor not in self._begun:
                raise RuntimeError(f"no actor can begin: {error}")
            if actor in self._actors:
                self._actors.remove(actor)
                self._add()
        elif not any(each == actor and batch is None for each, batch in self._pending.values()):
            self._pending[actor.ready.remote()] = (actor, None)  # Ray starts it again, here or on another node

    def _put_back(self, batch: Batch) -> None:
        """One row may be what ends actors: then each is tried alone, so that the others are answered."""
        batch.tries += 1
        if batch.tries < TRIES:
            self._again.append(batch)
        elif len(batch.rows) > 1:
            self._again.extend(Batch([row]) for row in batch.rows)
        else:
            (row,) = batch.rows
            error = RuntimeError(f"{TRIES} actors were lost with it, one after another")
            self._finished.append(Finished(row, self._work.asking.failure(row, error), True))
