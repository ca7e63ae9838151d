"""A model as one file that a program without Python runs (docs/c-api.md): weights as the engine reads them, and beside
them the program, the tokenizer's tables and how the model is spoken to."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import models
from ..chat import dialects
from ..errors import Cancelled, FormatError
from ..families import about
from ..files import replacing
from ..infill import Infiller
from ..locate import model_file
from ..models.layout import causal
from ..packed import EXPORTED, refuse_exported
from ..parameters import Parameters, sampling_defaults
from ..placement import native_ops
from ..program import Op
from ..tokenizer import Tokenizer
from ..tokenizer.tables import tables
from . import turns, writer

__all__ = ["Exported", "export"]

VERSION = 1  # of the keys; csrc/exported.h has the same number
_UNPACKED = ("prefix", "rope_factors")  # slots whose tensors are read as they are stored
_ALIGNMENT = 4096  # of a memory page: what is packed is mapped
_I8 = 24  # GGUF's number of the type
_DROPPED = ("split.", "general.alignment", "glmlite.")
_KEPT = ("glmlite.chat_format",)


class Exported(NamedTuple):
    """What was written. chat_refused: why the C API does not chat with the model; None: it does."""

    path: Path
    chat_refused: str | None


def export(
    source: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    threads: int | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Exported:
    """Write a GGUF file's model for the C API, and for `glmlite.load`.

    source: as `glmlite.load` takes it. progress: called with the bytes read and those in all; returning False cancels
    (Cancelled). The file is as large as the model, and the same on all machines.

    Whatever goes wrong leaves no file. Raises FormatError (not a model that can be exported: why), OSError, Cancelled.
    """
    from .. import _native

    file, out = model_file(source), Path(out)
    if out.exists() and file.samefile(out):
        raise ValueError(f"{out}: is the model itself, expected another name")

    def report(done: int, total: int) -> None:
        if progress is not None and progress(done, total) is False:
            raise Cancelled(f"{out}: cancelled, nothing is left of it")

    with closing(_native.Gguf(file)) as gguf:
        refuse_exported(file, gguf.metadata)
        try:
            head, raw, ops, refused = _described(_native, gguf)
        except FormatError as error:
            raise FormatError(f"{file}: {error}") from error
        begin = len(head) + sum(-(-len(data) // _ALIGNMENT) * _ALIGNMENT for data in raw)
        size = begin + _native.packed_layout(gguf, ops)[2]
        free = shutil.disk_usage(out.absolute().parent).free
        if free < size:
            raise OSError(errno.ENOSPC, f"the disk has {free} bytes free, the file needs {size}", str(out))
        try:
            with replacing(out, buffering=0) as target:
                writer.put(target, head, out)
                for data in raw:
                    writer.put(target, data + bytes(-len(data) % _ALIGNMENT), out)
                _native.pack_at(gguf, ops, out, target.fileno(), begin, threads=threads or 0, progress=report)
        except FormatError as error:
            raise FormatError(f"{file}: {error}") from error
    return Exported(out, refused)


def _described(native: Any, gguf: Any) -> tuple[bytes, list[bytes], list[tuple[Any, ...]], str | None]:
    """All that stands before the packed weights: the head of the file, and the tensors that are not packed; the
    program; and why it does not chat."""
    metadata = {k: v for k, v in gguf.metadata.items() if k in _KEPT or not k.startswith(_DROPPED)}
    shapes = {name: tuple(info.shape) for name, info in gguf.tensors.items()}
    recording = models.record(metadata, shapes)
    ops = native_ops(recording.ops, gguf.dequantize)
    version, layout, nbytes = native.packed_layout(gguf, ops)
    used = {slot: set(_names(recording.ops, slot in _UNPACKED)) for slot in (*_UNPACKED, "")}
    unpacked = [info for name, info in gguf.tensors.items() if name in used[_UNPACKED[0]]]
    packed = [info for name, info in gguf.tensors.items() if name in used[""] and info not in unpacked]
    packed.sort(key=lambda info: (gguf.paths.index(info.path), info.offset))
    dims = [len(info.shape) for info in packed]
    keys = {
        EXPORTED: VERSION,
        "glmlite.packed.version": version,
        "glmlite.packed.layout": layout,
        "glmlite.packed.names": [info.name for info in packed],
        "glmlite.packed.types": np.array([info.type_id for info in packed], np.uint32),
        "glmlite.packed.dims": np.array(dims, np.uint32),
        "glmlite.packed.sizes": np.array([size for info in packed for size in info.shape], np.uint64),
        "glmlite.context": recording.context,
        "general.alignment": _ALIGNMENT,
    }
    tokenizer = Tokenizer.from_metadata(metadata)
    keys |= {**_program(ops), **_sampling(metadata), **_chat(metadata, tokenizer, recording.architecture)}
    keys |= _infilling(tokenizer, recording)
    metadata = {**metadata, **tables(metadata), **keys}
    # GGUF's floats have 32 bits here: a program that was recorded from others would differ where Python loads the file.
    rounded = {k: float(np.float32(v)) if isinstance(v, float) else v for k, v in metadata.items()}
    if models.record(rounded, shapes).ops != recording.ops:
        raise FormatError("metadata: has numbers of 64 bits that 32 do not hold")
    raw = [gguf.data(info.name).tobytes() for info in unpacked]
    entries = [writer.Entry(i.name, tuple(i.shape), i.type, lambda: (), (i.type_id, i.nbytes)) for i in unpacked]
    entries.append(writer.Entry("glmlite.packed", (nbytes,), "I8", lambda: (), (_I8, nbytes)))
    return writer.head(metadata, entries, _ALIGNMENT), raw, ops, keys.get("glmlite.chat.refused")


def _names(ops: Iterable[Op], unpacked: bool) -> Iterable[str]:
    return (
        name for op in ops for slot, names in op.weights.items() for name in names if (slot in _UNPACKED) is unpacked
    )


def _program(ops: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    """The program as tables: csrc/exported.cpp reads them."""
    at = "glmlite.program."
    inputs: list[tuple[int, str, int]] = []
    weights: list[tuple[int, str, str]] = []
    numbers: list[tuple[int, str, float]] = []
    rope: list[tuple[int, str, int]] = []
    ropes: list[dict[str, Any]] = []
    for number, (_, _, _, reads, names, attributes) in enumerate(ops):
        inputs += [(number, slot, value) for slot, value in reads.items()]
        weights += [(number, slot, name) for slot, every in names.items() if slot != "rope_factors" for name in every]
        for slot, value in attributes.items():
            if slot != "rope":
                numbers.append((number, slot, float(value)))
                continue
            same = (i for i, one in enumerate(ropes) if all(np.array_equal(one[k], value[k]) for k in value))
            which = next(same, len(ropes))
            if which == len(ropes):
                ropes.append(value)
            rope.append((number, slot, which))

    def joined(name: str, kind: type) -> np.ndarray:
        return np.concatenate([np.zeros(0, kind), *(np.asarray(one[name], kind) for one in ropes)])

    return {
        at + "kinds": [op[0] for op in ops],
        at + "widths": np.array([op[2] for op in ops], np.uint64),
        **_rows(at + "inputs", inputs, np.int32),
        **_rows(at + "weights", weights, None),
        **_rows(at + "numbers", numbers, np.float64),
        **_rows(at + "rope", rope, np.int32),
        at + "ropes.ends": np.cumsum([len(one["first"]) for one in ropes]).astype(np.uint32),
        at + "ropes.magnitudes": np.array([one["magnitude"] for one in ropes], np.float64),
        **{f"{at}ropes.{name}": joined(name, np.int32) for name in ("first", "second", "axis")},
        at + "ropes.freq": joined("freq", np.float64),
    }


def _rows(table: str, rows: Sequence[tuple[int, str, Any]], kind: type | None) -> dict[str, Any]:
    values = [value for _, _, value in rows]
    return {
        f"{table}.ops": np.array([op for op, _, _ in rows], np.uint32),
        f"{table}.slots": [slot for _, slot, _ in rows],
        f"{table}.values": values if kind is None else np.array(values, kind),
    }


def _sampling(metadata: Mapping[str, Any]) -> dict[str, Any]:
    options = Parameters().sampling(sampling_defaults(metadata))
    return {
        "glmlite.sampling.names": list(options),
        "glmlite.sampling.values": np.array(list(options.values()), np.float64),
    }


def _infilling(tokenizer: Tokenizer, recording: models.Recording) -> dict[str, Any]:
    """Of a model that reads a context in both directions: the tokens by which a prompt is made and laid out."""
    if recording.layout is causal:
        return {}
    blanks = about(recording.architecture).blanks
    assert blanks is not None
    infiller = Infiller(blanks, tokenizer)
    default = tokenizer.id_of(blanks.default)
    if default is None:
        raise FormatError(f"tokenizer: has no '{blanks.default}', which the model needs to fill blanks")
    at = "glmlite.infill."
    return {
        at + "start": infiller.start,
        at + "default": default,
        at + "masks": np.array(infiller.masks, np.int32),
        at + "before": np.array(infiller.before, np.int32),
        at + "after": np.array(infiller.after, np.int32),
        at + "several": blanks.several,
    }


def _chat(metadata: Mapping[str, Any], tokenizer: Tokenizer, architecture: str) -> dict[str, Any]:
    """How the model is spoken to, or why a program without templates cannot."""
    dialect = dialects.of(metadata, tokenizer, architecture)
    if dialect is None or dialect.chat_format is None:
        return {"glmlite.chat.refused": dialects.dialect.no_template(metadata, architecture)}
    try:
        found = turns.find(dialect)
    except ValueError as error:
        return {"glmlite.chat.refused": f"chat: {error}; render the prompt yourself"}
    ends = {i for end in dialect.ends if (i := tokenizer.id_of(end)) is not None}
    prompt = found.render(tokenizer, [{"role": "user", "content": "?"}])
    return {
        **found.metadata(),
        "glmlite.chat.end_ids": np.array(sorted(ends), np.int32),
        "glmlite.chat.marks": np.array(sorted(dialect.marks), np.int32),
        "glmlite.chat.trims": dialect.trims(prompt),
    }
