"""From a file to a model: read its header, record its program, find where it fits, pack its weights."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

from . import builtin, models, packed, placement
from .cancel import Cancel, check_cancel
from .errors import Cancelled, FormatError
from .locate import model_file
from .mmproj import Found
from .mmproj import find as find_eyes
from .model import MOST_THREADS, Model
from .packed import EXPORTED, content_key
from .parameters import check_integer, sampling_defaults
from .scheduler import PREFILL_ALONE, PREFILL_GPU, PREFILL_STREAMED, Idle, Scheduler
from .tokenizer import Tokenizer

__all__ = ["aload", "load"]

log = logging.getLogger(__name__)

DEFAULT_CONTEXT = 4096
LEAST_CONTEXT = 512
PRIORITIES = ("normal", "background")
KV_TYPES = ("f16", "q8")
MOST_KV_TOKENS = 2**40  # the engine's bound
MOST = 2**31 - 1  # of other counts, which are int32 there
# Metadata that nothing needs once the tokenizer is made: GLM-4's 318,088 merges take 30 MB.
OF_THE_TOKENIZER = ("merges", "scores", "precompiled_charsmap")
HEADER = 0.1  # what reading the header and making the tokenizer count in the progress of a load

P = ParamSpec("P")


def load(
    path: str | bytes | os.PathLike[str] | None = None,
    *,
    mmproj: str | bytes | os.PathLike[str] | None = None,
    context: int | None = None,
    parallel: int = 4,
    max_queue: int | None = None,
    kv_tokens: int | None = None,
    kv_type: str = "f16",
    threads: int | None = None,
    adaptive: bool = True,
    priority: str = "normal",
    device: str = "auto",
    gpu_layers: int | None = None,
    packed: bool | None = None,
    idle_unload: float | None = None,
    progress: Callable[[float], object] | None = None,
    cancel: Cancel | None = None,
) -> Model:
    """Load a GGUF file; without a path the built-in model, a small demonstration.

    path: a GGUF file, or one that `glmlite export` has made of it (`~` is your home folder); "builtin": the built-in
        model; "smollm2": the sample model, which is downloaded when it is asked for the first time.
    mmproj: the file of the eyes of a vision model. Default: those that the model's file has itself, or else the one
        file `mmproj*.gguf` beside it that fits; `Model.images` tells whether there are any. They are loaded when the
        first image comes, until when the file has to stay; what memory they need is left free.
    context: tokens that one request may have, prompt and answer. Default: what the model was trained for, at most
        4096, and halved (not below 512) until the cache fits what the machine has free besides the weights. More than
        the model was trained for is cut to that, with a warning in the log; `Model.context` tells what came out.
    parallel: requests that run at the same time; more wait in line.
    max_queue: how many more than `parallel` are taken; the next one raises Busy. Default: any number.
    kv_tokens: room of the KV cache, shared by all requests and by what is kept for reuse. Default: `context`; a
        request that finds no room waits, or starts over later, so give `parallel * context` to serve several long ones.
    kv_type: "f16", or "q8", which takes half the memory, reads a long context faster and is as good as exact:
        keys (turned by a Hadamard matrix) and values in 8 bits, with one scale per token and head.
    threads: that a step has at most, 1 to 1024; `Model.threads` changes it later. Default: one for each physical core
        that this process may use and that is a fast one, within the quota of a container. The answers do not depend on
        it.
    adaptive: steps have fewer threads while other programs keep the cores busy, which is faster then. False: always
        all of them.
    priority: "normal", or "background": what computes, also while loading, does so when others leave a core free. Not
        your threads, nor those that call you.
    device: "cpu", "cuda" (the first GPU), "cuda:1", or "auto": the first GPU if this build can use one and the model
        fits into its memory, otherwise the CPU; the log says which, and why.
    gpu_layers: run only so many of the model's layers on the GPU, the last ones and the output, and the others on the
        CPU. Default: all.
    packed: on the CPU, take the weights from a file of them as the engine reads them, which is as large as the model
        and made the first time: beside it, `model.gguf.packed`, or in your cache folder where that cannot be written.
        Then a load is done at once, processes share the memory, and of a model that memory does not hold the disk gives
        what is missed; the log says at what speed. Answers are the same. Default: where the model does not fit.
    idle_unload: seconds after which a model that nobody used gives back its weights and its cache. The next request
        waits until they are loaded again, from the same file, and reads its prompt from the beginning; what cannot be
        loaded then is what the request fails with. Default: never.
    progress: called with 0 to 1 while loading; returning False cancels (Cancelled). What it raises ends the load.
    cancel: ends the load, from any thread (Cancelled).

    `progress` is called at once with 0, then every 20 to 50 ms, and `cancel` is heard as often. Both are for the loads
    after `idle_unload`, too, which call `progress` on the engine's thread; so does a cancel of the requests that wait.

    Raises FileNotFoundError, OSError (the file cannot be read, or was changed meanwhile), FormatError (not a model we
    run: what, and where in the file), ValueError (arguments), MemoryError (with the numbers), RuntimeError (the device
    cannot be had: why), Cancelled.
    """
    _check("path", path, str | bytes | os.PathLike | None, "the path of a .gguf file")
    _check("mmproj", mmproj, str | bytes | os.PathLike | None, "the path of a .gguf file")
    for name, value, least, most in (
        ("context", context, 1, MOST),
        ("max_queue", max_queue, 0, MOST),
        ("kv_tokens", kv_tokens, 1, MOST_KV_TOKENS),
        ("threads", threads, 1, MOST_THREADS),
        ("gpu_layers", gpu_layers, 0, MOST),
    ):
        if value is not None:
            check_integer(name, value, least, most)
    check_integer("parallel", parallel, 1, MOST)
    _check("adaptive", adaptive, bool, "True or False")
    _check("packed", packed, bool | None, "True, False or None")
    _check("device", device, str, "a name of one")
    for name, chosen, known in (("priority", priority, PRIORITIES), ("kv_type", kv_type, KV_TYPES)):
        if chosen not in known:
            raise ValueError(f"{name} is {chosen!r}, expected one of: {', '.join(known)}")
    if gpu_layers and device == "cpu":
        raise ValueError(f"gpu_layers is {gpu_layers} and device 'cpu', expected another device or no gpu_layers")
    if isinstance(idle_unload, bool) or not (idle_unload is None or hasattr(idle_unload, "__float__")):
        raise TypeError(f"idle_unload is {idle_unload!r}, expected seconds, or None")
    if idle_unload is not None and not idle_unload > 0:
        raise ValueError(f"idle_unload is {idle_unload}, expected seconds, more than 0, or None")
    if progress is not None and not callable(progress):
        raise TypeError(f"progress is {progress!r}, expected a function of a number from 0 to 1")
    check_cancel(cancel)
    report = Report(progress, cancel)
    report(0.0)
    native = placement.backend(device)
    file = model_file(path)
    asked = Asked(native, context, kv_tokens, kv_type, threads, adaptive, priority, device, gpu_layers, packed)
    with _opened(native, file, report) as gguf:
        header = Header.read(gguf, report)
        found = _eyes(file, gguf, header, mmproj, threads or 0, adaptive, priority)
        asked = replace(asked, reserved=0 if found.eyes is None else found.eyes.nbytes)
        engine, place, tokens = asked.engine(gguf, header, report)
        idle = None
        if idle_unload is not None:
            gpu_layers = 0 if place.device == "cpu" else gpu_layers
            same = replace(asked, context=tokens, gpu_layers=gpu_layers)
            again = Again(file.absolute(), content_key(gguf), header, same, place.device)
            idle = Idle(idle_unload, lambda threads, check: again.engine(threads, Report(progress, cancel, check)))
    named = header.metadata.get("general.name")
    name = named if isinstance(named, str) and named else file.stem
    if builtin.is_it(file):
        builtin.announce()
    log.info(
        "%s: loaded, %s, context %d, on %s (%s, %d threads)",
        *(file, header.recording.architecture, tokens, place.device, engine.isa, engine.threads),
    )
    if place.device != "cpu":
        chunk = PREFILL_GPU
    else:
        chunk = PREFILL_ALONE if place.arguments.get("weight_room", -1) < 0 else PREFILL_STREAMED
    return Model(
        path=file,
        name=name,
        metadata=header.metadata,
        recording=header.recording,
        tokenizer=header.tokenizer,
        defaults=header.defaults,
        context=tokens,
        device=place.device,
        native=native,
        scheduler=Scheduler(
            native,
            engine,
            parallel=parallel,
            name=name,
            chunk=chunk,
            max_queue=max_queue,
            idle=idle,
            eyes=found.eyes,
        ),
        eyes=found.eyes,
        blind=found.blind,
    )


def _eyes(file: Path, gguf: Any, header: Header, named: Any, threads: int, adaptive: bool, priority: str) -> Found:
    computing = {"adaptive": adaptive, "background": priority == "background"}
    return find_eyes(file, gguf, header.recording, header.metadata, named, threads=threads, **computing)


def _for_coroutines(load: Callable[P, Model]) -> Callable[P, Awaitable[Model]]:
    async def aload(*args: P.args, **kwargs: P.kwargs) -> Model:
        """`load` for coroutines: it runs on a thread of its own, which calls `progress`; a cancelled task ends it."""
        import asyncio

        cancel: Any = kwargs.get("cancel")
        check_cancel(cancel)
        kwargs["cancel"] = cancel = cancel or Cancel()
        running = asyncio.ensure_future(asyncio.to_thread(load, *args, **kwargs))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            cancel.cancel()
            with suppress(Exception):  # whatever the load came to, nobody waits for it any more
                (await running).close()
            raise

    return aload


aload = _for_coroutines(load)


class Report:
    """Tells how far a load is, and ends it where that is asked for."""

    def __init__(
        self,
        progress: Callable[[float], object] | None,
        cancel: Cancel | None,
        check: Callable[[], object] | None = None,
    ):
        """check: called with each report; what it raises ends the load, too."""
        self._progress = progress
        self._cancel = cancel
        self._check = check
        self._done = 0.0
        self._told = 0.0

    def again(self) -> None:
        """That the load has come no further, at most every 20 ms. Raises Cancelled."""
        if time.monotonic() - self._told >= 0.02:
            self(self._done)

    def part(self, end: float) -> Callable[[int, int], None]:
        """A function of (done, total) for what makes the load as good as `end` done."""
        begin = self._done
        return lambda done, total: self(begin + (end - begin) * (done / total if total else 1.0))

    def __call__(self, done: float) -> None:
        """Raises Cancelled."""
        self._done = done
        self._told = time.monotonic()
        if self._progress is not None and self._progress(done) is False:
            raise Cancelled("load: cancelled")
        if self._cancel is not None:
            self._cancel.check("load")
        if self._check is not None:
            self._check()


@contextmanager
def _opened(native: Any, file: Path, report: Report) -> Iterator[Any]:
    """A file, whose name stands in the errors of what is made of it."""
    gguf = native.Gguf(file, report.again)  # its errors name the file
    try:
        with closing(gguf):
            report(0.2 * HEADER)
            yield gguf
    except FormatError as error:
        raise FormatError(f"{file}: {str(error).removeprefix(f'{file}: ')}") from error


@dataclass(frozen=True)
class Header:
    """What a file says, made into what a model needs of it, weights apart."""

    metadata: Mapping[str, Any]  # without what only the tokenizer is made of
    shapes: Mapping[str, tuple[int, ...]]
    nbytes: int
    recording: models.Recording
    tokenizer: Tokenizer
    defaults: Mapping[str, float]

    @classmethod
    def read(cls, gguf: Any, report: Report) -> Header:
        metadata = gguf.read_metadata(report.again)
        report(0.4 * HEADER)
        shapes = {name: tuple(info.shape) for name, info in gguf.tensors.items()}
        recording = models.record(metadata, shapes)
        report(0.6 * HEADER)
        tokenizer = Tokenizer.from_metadata(metadata, report.again)
        report(0.9 * HEADER)
        defaults = sampling_defaults(metadata)
        for key in OF_THE_TOKENIZER:
            _forget(metadata.pop(f"tokenizer.ggml.{key}", None))
        return cls(metadata, shapes, gguf.nbytes, recording, tokenizer, defaults)


@dataclass(frozen=True)
class Asked:
    """What `load` was asked for, of an engine of this module."""

    native: Any
    context: int | None
    kv_tokens: int | None
    kv_type: str
    threads: int | None
    adaptive: bool
    priority: str
    device: str
    gpu_layers: int | None
    packed: bool | None
    reserved: int = 0  # bytes of memory that are to stay free

    def engine(self, gguf: Any, header: Header, report: Report) -> tuple[Any, placement.Placement, int]:
        """An engine with a file's weights, where it runs, and the tokens of its context."""
        native = self.native
        computing = {"threads": self.threads or 0, "background": self.priority == "background"}
        ops = placement.native_ops(header.recording.ops, gguf.dequantize)
        room = Room(self.context, self.kv_tokens, self.kv_type, header, native.Engine.page_tokens, self.reserved)
        gpu = _on_gpu(native, self.device, self.gpu_layers, gguf, ops, room)
        report(HEADER)
        place, tokens, cache = gpu or _on_cpu(native, self.packed, gguf, ops, header, room, computing, report)
        engine = native.Engine(
            gguf,
            ops,
            kv_tokens=cache,
            kv_type=self.kv_type,
            adaptive=self.adaptive,
            progress=report.part(1.0),
            **computing,
            **place.arguments,
        )
        return engine, place, tokens


class Again(NamedTuple):
    """What is needed to make an engine of a file as the one before. key: of what its tensors hold."""

    file: Path
    key: bytes
    header: Header
    asked: Asked
    device: str

    def engine(self, threads: int, report: Report) -> Any:
        """Raises as `load` does, and FormatError where the file has other tensors."""
        report(0.0)
        with _opened(self.asked.native, self.file, report) as gguf:
            if content_key(gguf) != self.key:
                raise FormatError("its tensors are not those that were loaded at first")
            engine, place, _ = replace(self.asked, threads=threads).engine(gguf, self.header, report)
        if place.device != self.device:
            engine.close()
            raise MemoryError(f"{self.file}: ran on {self.device}, which has no room for it at the moment")
        log.info("%s: loaded again", self.file)
        return engine


def _forget(values: Any) -> None:
    """Empties a list in parts, between which other threads run: to let go of 300,000 strings at once takes 20 ms."""
    while isinstance(values, list) and values:
        del values[-10_000:]


class Room:
    """What a model's context needs of a cache. page: tokens of a page. reserved: bytes of the machine's memory that
    are not for it."""

    def __init__(
        self, context: int | None, kv_tokens: int | None, kv_type: str, header: Header, page: int, reserved: int
    ):
        self.reserved = reserved
        self.kv_type = kv_type
        self._context = context
        self._kv_tokens = kv_tokens
        self._trained = header.recording.context
        self.page = page
        # A sequence begins in the prefix's last page, of which it needs a copy.
        self._prefix = placement.prefix_tokens(header.recording.ops, header.shapes.__getitem__) % page

    def free(self, native: Any) -> int:
        """Bytes of the machine's memory that there are for it."""
        return max(0, int(native.available_memory()) - self.reserved)

    def sizes(self, page_bytes: int, fixed: int, free: int) -> tuple[int, int]:
        """Tokens of context and, in whole pages of so many bytes, of the cache, which lies beside `fixed` bytes in
        `free` bytes."""
        tokens = _context(self._context, self._trained, fixed, -(-page_bytes // self.page), free)
        if self._kv_tokens is not None and self._kv_tokens < tokens:
            raise ValueError(f"kv_tokens is {self._kv_tokens}, a context of {tokens} needs at least as many")
        return tokens, -(-((self._kv_tokens or tokens) + self._prefix) // self.page) * self.page


def _on_gpu(
    native: Any, device: str, gpu_layers: int | None, gguf: Any, ops: list[tuple[Any, ...]], room: Room
) -> tuple[placement.Placement, int, int] | None:
    """Where the model runs, the tokens of its context and of its cache; None: on the CPU."""
    if not hasattr(native, "memory_needed") or gpu_layers == 0:
        return None
    if EXPORTED in gguf.metadata:
        if device != "auto":
            raise ValueError(f"device is {device!r}, expected 'cpu': an exported file has its weights packed for that")
        return None
    try:
        gpu = placement.Gpu(native, device, gpu_layers, gguf, ops, room.kv_type)
        need = gpu.need(LEAST_CONTEXT)
    except (RuntimeError, ValueError) as error:  # a GPU that gives no memory, a shape without kernels
        if device != "auto":
            raise
        log.info("device 'auto': the CPU, because %s", error)
        return None
    tokens, cache = room.sizes(need["page"], need["total"] - need["kv"], gpu.free)
    place = gpu.place(cache)
    return None if place is placement.CPU else (place, tokens, cache)


def _on_cpu(
    native: Any,
    pack: bool | None,
    gguf: Any,
    ops: list[tuple[Any, ...]],
    header: Header,
    room: Room,
    computing: Mapping[str, Any],
    report: Report,
) -> tuple[placement.Placement, int, int]:
    """The same on the CPU, with the packed weights where they are asked for, or needed (None)."""
    page_bytes = native.page_bytes(gguf, ops, room.kv_type)
    weights, experts = native.weight_bytes(gguf, ops)
    inside = native.packed_in(gguf, ops)  # what `glmlite export` has made has its weights packed

    def sizes(fixed: int) -> tuple[int, int, packed.Budget]:
        free = room.free(native)
        tokens, cache = room.sizes(page_bytes, fixed, free)
        return tokens, cache, packed.Budget(weights, experts, cache // room.page * page_bytes, free)

    tokens, cache, budget = sizes(weights)
    if budget.cache > budget.free:
        raise MemoryError(
            f"the KV cache of {cache} tokens takes {budget.cache / 1e9:.2f} GB, "
            f"of which the machine has {budget.free / 1e9:.2f} GB free: ask for less (kv_tokens, context, kv_type='q8')"
        )
    if inside is None and (pack is False or (pack is None and budget.fits)):
        return placement.CPU, tokens, cache
    tokens, cache, budget = sizes(weights - experts if experts else 0)
    if not budget.fits:
        packed.warn(native, Path(os.fsdecode(gguf.paths[0])), budget, header.recording.ops, gguf.tensors)
    file = inside or packed.opened(native, gguf, ops, computing, report.part(0.9), report.again)
    budget = budget._replace(free=room.free(native))
    return placement.Placement("cpu", {"packed": file, "weight_room": budget.room}), tokens, cache


def _context(asked: int | None, trained: int, fixed: int, per_token: int, free: int) -> int:
    """Tokens of one request, `per_token` bytes each: what was asked for, or else what fits into `free` bytes beside
    `fixed` ones; never more than the model was trained for."""
    if asked is not None:
        if asked > trained:
            log.warning("context is %d, the model was trained for %d tokens and gets those", asked, trained)
        return min(int(asked), trained)
    context = min(trained, DEFAULT_CONTEXT)
    while context > LEAST_CONTEXT and fixed + context * per_token > free:
        context = max(context // 2, LEAST_CONTEXT)
    return context


def _check(name: str, value: Any, kind: Any, what: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r}, expected {what}")
