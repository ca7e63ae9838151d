"""The models that are served, by name: one that is there, or files that are loaded when they are asked for.

Used on the event loop; loading and closing run on threads. A load is done once, however many wait for it. A model that
nobody uses goes when another needs its memory: the least recently used first. One that gives its memory back by itself
(`idle_unload` of `glmlite.load`) finds room in the same way when it is asked for again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .. import mmproj
from ..cancel import Cancel
from ..errors import Cancelled
from ..model import Model
from .errors import Refused
from .errors import of as refusal_of

__all__ = ["Lease", "Pool"]

log = logging.getLogger(__name__)

SPARE = 1.15  # times a file's bytes: its weights as they are packed, a cache and buffers
MAX_NAME = 4096  # characters of a model's name, which every part of a stream has
_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
_FIRST_PART = re.compile(r"-00001-of-\d{5}$")

Load = Callable[..., Model]


@dataclass
class Entry:
    """A model by its name. path: where it is loaded from; None: it is there and stays. eager: it is loaded at the
    beginning and stays. waits: a request waits for its load, instead of being told to come again. file: what it was
    loaded from, see `_stamp`."""

    name: str
    path: Path | None = None
    model: Model | None = None
    eager: bool = False
    waits: bool = True
    users: int = 0
    used: float = 0.0
    loading: asyncio.Task[None] | None = None
    problem: Exception | None = None
    created: int = 0
    file: tuple[int, ...] = ()


class Lease:
    """A model that stays while it is used. `release` may be called twice."""

    def __init__(self, entry: Entry, model: Model):
        self.name = entry.name
        self.model = model
        self._entry: Entry | None = entry

    def release(self) -> None:
        entry, self._entry = self._entry, None
        if entry is not None:
            entry.users -= 1
            entry.used = time.monotonic()


class Pool:
    """See the module. strict: a name that is none of a single model's is refused, too.

    load: as `glmlite.load`, of a path, with `cancel`.
    """

    def __init__(
        self,
        entries: Iterable[Entry],
        *,
        folder: Path | None = None,
        load: Load | None = None,
        strict: bool = False,
    ):
        self._entries = {entry.name: entry for entry in entries}
        self._folder = folder
        self._load = load
        self._strict = strict
        self._cancel = Cancel()
        self._room = asyncio.Lock()
        self._started = False
        self.closed = False

    @classmethod
    def of(cls, models: Model | Mapping[str, Model], *, strict: bool = False) -> Pool:
        """Models that are loaded, which their owner closes. A single one is called as its file is."""
        if not isinstance(models, Mapping):
            models = {name_of(Path(models.path.name)): models}
        return cls(
            [Entry(name, model=model, created=_created(model.path)) for name, model in models.items()], strict=strict
        )

    @classmethod
    def file(cls, path: Path, load: Load, *, strict: bool = False, waits: bool = False) -> Pool:
        """One file, which `start` loads. Until then requests wait, or are told to come again."""
        entry = Entry(name_of(path), path, eager=True, waits=waits, created=_created(path))
        return cls([entry], load=load, strict=strict)

    @classmethod
    def folder(cls, folder: Path, load: Load) -> Pool:
        """The GGUF files below a folder, each loaded when it is asked for. Files may come and go."""
        return cls([], folder=folder, load=load)

    # ---- names

    def entries(self) -> list[Entry]:
        """All, those of a folder as they are now."""
        if self._folder is not None:
            self._scan(self._folder)
        return list(self._entries.values())

    def _scan(self, folder: Path) -> None:
        found = {}
        for path in sorted(folder.rglob("*.gguf")):
            if not _LATER_PART.search(path.name) and not mmproj.is_named(path) and path.is_file():
                found[name_of(path.relative_to(folder))] = path
        for name in [name for name, entry in self._entries.items() if name not in found and not _alive(entry)]:
            del self._entries[name]
        for name, path in found.items():
            if name not in self._entries:
                self._entries[name] = Entry(name, path, created=_created(path))

    def find(self, name: str) -> Entry:
        """The entry that a client's name means. Raises Refused."""
        if len(name) > MAX_NAME:
            raise Refused(400, f"model has {len(name)} characters, expected at most {MAX_NAME}", param="model")
        known = self._entries.get(name)
        if known is not None and (known.path is None or known.path.exists()):
            return known
        entries = self.entries()
        plain = _plain(name)
        for entry in entries:
            if plain and plain in (_plain(entry.name), _plain(entry.name).rpartition("/")[2]):
                return entry
        if not entries:
            raise Refused(404, f"there is no model in {self._folder}", code="model_not_found")
        if len(entries) == 1 and not (self._strict and name):
            return entries[0]
        if not name:
            loaded = [entry for entry in entries if entry.model is not None]
            return max(loaded, key=lambda entry: entry.used) if loaded else entries[0]
        names = ", ".join(entry.name for entry in entries[:20])
        raise Refused(
            404, f"the model {name[:80]!r} does not exist; there is {names}", param="model", code="model_not_found"
        )

    # ---- models

    async def lease(self, name: str) -> Lease:
        """The model of a name, loaded if need be. Raises Refused."""
        if self.closed:
            raise Refused(503, "the server is ending")
        entry = self.find(name)
        entry.users += 1  # from here on nobody unloads it
        entry.used = time.monotonic()
        lease = None
        try:
            if self._outdated(entry):
                await self._close(entry)
            while entry.model is None or entry.model.closed:
                if self.closed:
                    raise Refused(503, "the server is ending")
                if entry.path is None:
                    raise Refused(503, f"the model {entry.name} was closed")
                self._begin(entry)
                assert entry.loading is not None
                if not entry.waits:
                    raise Refused(503, "Loading model", retry=1)
                await asyncio.wait([entry.loading])
                if entry.problem is not None:
                    raise refusal_of(entry.problem) or Refused(500, f"{entry.name}: {entry.problem}")
            if entry.path is not None and not entry.model.loaded:
                async with self._room:
                    await self._make_room(_needs(entry, entry.path))
            lease = Lease(entry, entry.model)
            return lease
        finally:
            if lease is None:
                entry.users -= 1

    def start(self) -> None:
        """Begins the load of a model that is to be there from the beginning. May be called again."""
        if self._started:
            return
        self._started = True
        for entry in self._entries.values():
            if entry.eager and entry.model is None:
                self._begin(entry)

    async def ready(self) -> None:
        """Waits for the model that is to be there from the beginning. Raises what its load failed with."""
        self.start()
        for entry in self._entries.values():
            if entry.eager and entry.loading is not None:
                await asyncio.wait([entry.loading])
                if entry.problem is not None:
                    raise entry.problem

    @property
    def loading(self) -> bool:
        """Whether a model that is to be there from the beginning is not there yet."""
        return any(entry.eager and entry.model is None for entry in self._entries.values())

    def _outdated(self, entry: Entry) -> bool:
        """Whether a model that gave its memory back, and that nobody else uses, cannot be had again as it was."""
        model, path = entry.model, entry.path
        return (
            model is not None
            and path is not None
            and not model.loaded
            and entry.users == 1
            and _stamp(path) != entry.file
        )

    def _begin(self, entry: Entry) -> None:
        if entry.loading is None or entry.loading.done():
            entry.problem = None
            entry.loading = asyncio.create_task(self._fetch(entry))

    async def _fetch(self, entry: Entry) -> None:
        """Loads a model, one at a time. What goes wrong is told to those who wait."""
        assert self._load is not None and entry.path is not None
        load = partial(self._load, entry.path, cancel=self._cancel)
        entry.file = _stamp(entry.path)
        try:
            async with self._room:
                await self._make_room(_needs(entry, entry.path))
                try:
                    model = await asyncio.to_thread(load)
                except MemoryError:
                    if not await self._unload_one():
                        raise
                    model = await asyncio.to_thread(load)
        except Cancelled:
            entry.problem = Refused(503, "the server is ending")
        except Exception as error:
            log.warning("%s: not loaded: %s", entry.name, error)
            entry.problem = error
        else:
            entry.model = model
            if self.closed:
                await self._close(entry)

    async def _make_room(self, need: float) -> None:
        from .._native import available_memory

        while need > available_memory() and await self._unload_one():
            pass

    async def _unload_one(self) -> bool:
        """Closes the least recently used of those that nobody uses; False: there is none."""
        idle = [
            entry
            for entry in self._entries.values()
            if entry.path and entry.model and not entry.users and not entry.eager
        ]
        if not idle:
            return False
        await self._close(min(idle, key=lambda entry: entry.used))
        return True

    async def _close(self, entry: Entry) -> None:
        model, entry.model = entry.model, None
        if model is not None:
            log.info("%s: unloaded", entry.name)
            await asyncio.to_thread(model.close)

    async def close(self) -> None:
        """Ends loads and closes the models that were loaded here, so that what runs on them fails."""
        self.closed = True
        self._cancel.cancel()
        own = [entry for entry in self._entries.values() if entry.path is not None]
        loading = [entry.loading for entry in own if entry.loading is not None]
        await asyncio.gather(*(self._close(entry) for entry in own), *loading)


def name_of(path: Path) -> str:
    """What a file is called by clients: its path without the ending, with slashes, and with U+FFFD for what is no
    text."""
    name = path.stem if path.is_absolute() else path.with_suffix("").as_posix()
    return _FIRST_PART.sub("", os.fsencode(name).decode("utf-8", "replace"))


def _plain(name: str) -> str:
    """A name without what clients add and how they spell it."""
    return name.lower().removesuffix(":latest").removesuffix(".gguf")


def _alive(entry: Entry) -> bool:
    return entry.model is not None or entry.users > 0 or (entry.loading is not None and not entry.loading.done())


def _stamp(path: Path) -> tuple[int, ...]:
    """What tells a file from another one in its place; empty where there is none."""
    try:
        told = path.stat()
    except OSError:
        return ()
    return told.st_ino, told.st_size, told.st_mtime_ns


def _created(path: Path) -> int:
    try:
        return int(path.stat().st_mtime)
    except OSError:
        return 0


def _needs(entry: Entry, path: Path) -> float:
    """Bytes of memory that a model takes, with its eyes where it has found some: they come with the first image."""
    eyes = mmproj.beside(path) if entry.model is not None and entry.model.images else []
    return SPARE * sum(map(_bytes, [path, *eyes]))


def _bytes(path: Path) -> int:
    """Of a file, or of all the parts of a split one."""
    with suppress(OSError):
        stem = _FIRST_PART.sub("", path.stem)
        parts = path.parent.glob(f"{_escaped(stem)}-*-of-*.gguf") if stem != path.stem else [path]
        return sum(os.stat(part).st_size for part in parts)
    return 0


def _escaped(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)
