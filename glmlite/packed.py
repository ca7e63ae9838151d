"""Weights on disk as the engine reads them: packed once into a file beside the model, then mapped, or read expert by
expert. So a model that memory does not hold runs, and any model starts at once."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from . import samples
from .errors import FormatError
from .files import FULL, replacing
from .placement import matrices_of_a_token
from .program import Op

__all__ = ["EXPORTED", "Budget", "content_key", "opened", "refuse_exported", "weights_per_token"]

log = logging.getLogger(__name__)

# The key that tells a file of `glmlite export`.
EXPORTED = "glmlite.export.version"

_RESERVE = 8  # a part of what is free that is left to activations, and to other programs
_LEAST_EXPERTS = 32  # with room for a smaller part of the experts the engine maps them all
_NOT_THERE = (errno.EACCES, errno.EPERM, errno.EROFS)
_making = threading.Lock()  # a process has one name for a file that it makes


class Budget(NamedTuple):
    """Bytes: of the packed weights, those of experts among them, of the KV cache, and what the machine has free."""

    weights: int
    experts: int
    cache: int
    free: int

    @property
    def fits(self) -> bool:
        """Whether all of it stays in memory."""
        return self.weights + self.cache <= self.free

    @property
    def room(self) -> int:
        """For weights in memory; -1: for all of them, so that the file is mapped."""
        return -1 if self.fits else max(0, self.free - self.free // _RESERVE - self.cache)

    def missed(self, dense: float, experts: float) -> float:
        """Bytes that a token reads from the disk at least, of those that it needs of dense weights and of experts."""
        if self.fits:
            return 0.0
        kept = self.room - (self.weights - self.experts)  # of experts, as the engine has it
        if self.experts and kept >= self.experts // _LEAST_EXPERTS:
            return experts * max(0.0, 1 - kept / self.experts)
        return (dense + experts) * (1 - self.room / self.weights)


def refuse_exported(path: str | os.PathLike[str], metadata: Mapping[str, Any]) -> None:
    """Raises FormatError for the metadata of what `glmlite export` wrote: its tensors are packed, whatever their types
    say."""
    if EXPORTED in metadata:
        raise FormatError(f"{path}: is exported already, expected the .gguf file that it was made of")


def weights_per_token(ops: Iterable[Op], tensors: Mapping[str, Any]) -> tuple[float, float]:
    """Bytes of the matrices that a token is multiplied with: of those that all are, and of experts."""
    dense = experts = 0.0
    for op, tensor, share in matrices_of_a_token(ops, tensors):
        if op.kind == "moe":
            experts += share * tensor.nbytes
        else:
            dense += tensor.nbytes
    return dense, experts


def warn(native: Any, path: Path, budget: Budget, ops: Iterable[Op], tensors: Mapping[str, Any]) -> None:
    """Says in the log what to expect of a model that memory does not hold."""
    missed = budget.missed(*weights_per_token(ops, tensors))
    speed = native.read_speed(path)
    rate = f"; its disk gives {speed / 1e9:.2f} GB/s" if speed else ""
    if speed and missed:
        rate += f", so expect at most {_rounded(speed / missed)} tokens/s"
    log.warning(
        "%s: %.2f GB of weights do not fit into memory, of which %.2f GB are free; they are read from the disk%s",
        *(path, budget.weights / 1e9, budget.free / 1e9, rate),
    )


def _rounded(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def content_key(gguf: Any) -> bytes:
    """32 bytes that tell a file's tensors from others: a hash of what they are, and of some rows of each."""
    digest = hashlib.blake2b(digest_size=32)
    for name, tensor in gguf.tensors.items():
        digest.update(repr((name, tensor.type_id, tuple(tensor.shape))).encode())
        rows = gguf.data(name, 0, 0).ndim == 2
        count = tensor.nbytes // max(1, gguf.data(name, 0, 1).nbytes)
        step = 1 if rows else 4096
        for begin in sorted({0, count // 2, max(0, count - step)}):
            digest.update(gguf.data(name, begin, min(begin + step, count)).tobytes())
    return digest.digest()


def places(gguf: Any, key: bytes) -> list[Path]:
    """Where the packed weights of a file may lie, the best first."""
    model = Path(os.fsdecode(gguf.paths[0]))
    return [model.with_name(f"{model.name}.packed"), samples.place() / f"{model.stem}-{key.hex()[:16]}.packed"]


def opened(
    native: Any,
    gguf: Any,
    ops: Any,
    computing: Mapping[str, Any],
    progress: Callable[[int, int], object],
    again: Callable[[], object],
) -> Any:
    """The packed weights of a file, made if they are not there: beside the model, or in the user's cache folder where
    that cannot be written.

    ops: `placement.native_ops`. computing: `threads` and `background` of `_native.pack`. progress(done, total): while
    it is made, in bytes; again(): while another load makes it. What they raise ends it. Raises OSError, FormatError.
    """
    key = content_key(gguf)
    there = places(gguf, key)
    while not _making.acquire(timeout=0.02):
        again()
    try:
        for path in there:
            with suppress(OSError, FormatError):
                return native.PackedFile(gguf, ops, path, key)
        for path in there:
            try:
                return _made(native, gguf, ops, path, key, computing, progress)
            except OSError as error:
                if path == there[-1] or error.errno not in _NOT_THERE:
                    raise
        raise AssertionError
    finally:
        _making.release()


def _made(
    native: Any,
    gguf: Any,
    ops: Any,
    path: Path,
    key: bytes,
    computing: Mapping[str, Any],
    progress: Callable[[int, int], object],
) -> Any:
    with suppress(OSError):  # of another model or version, and as large as what is to come
        path.unlink()
    if path.parent == samples.place():
        path.parent.mkdir(parents=True, exist_ok=True)
    log.info("packing the weights into %s, once", path)
    try:
        with replacing(path, 0) as file:
            native.pack(gguf, ops, path, key, file.fileno(), progress=progress, **computing)
    except OSError as error:
        with suppress(OSError, FormatError):  # another process was faster, and Windows replaces no file in use
            return native.PackedFile(gguf, ops, path, key)
        if error.errno not in FULL:
            raise
        size = native.weight_bytes(gguf, ops)[0]
        reason = f"{error.strerror}: the packed weights take {size / 1e9:.2f} GB; packed=False makes no such file"
        raise OSError(error.errno, reason, str(path)) from None
    return native.PackedFile(gguf, ops, path, key)
