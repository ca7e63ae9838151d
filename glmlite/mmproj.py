"""Which file has a model's eyes: the one that is named, the model's own, or `mmproj*.gguf` beside it, if one fits."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from . import models
from .errors import FormatError
from .locate import model_file
from .models import glm4v
from .packed import content_key
from .placement import backend, matrices_of_a_token, native_ops
from .vision.eyes import Eyes
from .vision.tower import Cost, Tower, kv_type_of

__all__ = ["Found", "beside", "find", "is_named", "sees"]

log = logging.getLogger(__name__)

PATTERN = "[mM][mM][pP][rR][oO][jJ]*.[gG][gG][uU][fF]"
MOST_TOLD = 3  # of files that were not taken
HOW = "pass its eyes as mmproj= (--mmproj), or put that file, mmproj*.gguf, beside it"


class Found(NamedTuple):
    """A model's eyes; None, and what to say of that where there is an image."""

    eyes: Eyes | None
    blind: str = ""


def find(
    path: Path,
    gguf: Any,
    recording: models.Recording,
    metadata: Mapping[str, Any],
    mmproj: Any = None,
    *,
    threads: int = 0,
    **computing: bool,
) -> Found:
    """The eyes of a text model, whose file is open. Of theirs only the header is read.

    mmproj: their file, as `glmlite.load` takes it. threads, computing: of `Tower`. Raises FileNotFoundError, OSError,
    FormatError, and ValueError where the model and the file that is named do not belong together.
    """
    if mmproj is not None:
        file = model_file(mmproj)
        if not recording.images:
            raise ValueError(f"mmproj is {str(file)!r}, expected none: {path} is a model for text alone")
        eyes = _read(file, path, gguf, recording, threads, computing)
        if eyes.config.width != (width := _width(gguf)):
            raise FormatError(f"{file}: rows of {eyes.config.width} columns, expected {width}, as {path} has them")
        return Found(eyes)
    if not recording.images:
        return Found(None, "it is a model for text alone")
    if "clip.projector_type" in metadata and glm4v.has_tower(gguf.tensors):
        return Found(_read(path, path, gguf, recording, threads, computing))
    fitting, others = [], []
    for file in beside(path):
        try:
            eyes = _read(file, path, gguf, recording, threads, computing)
        except (FormatError, OSError) as error:
            log.info("%s: not taken for the eyes of %s: %s", file, path, error)
            others.append(str(error).replace(str(file), file.name))  # which clients of a server may read
            continue
        if eyes.config.width == (width := _width(gguf)):
            fitting.append(eyes)
        else:
            others.append(f"{file.name}: rows of {eyes.config.width} columns, expected {width}")
    if len(fitting) == 1:
        log.info("%s: its eyes are %s", path, fitting[0].path)
        return Found(fitting[0])
    if fitting:
        names = ", ".join(eyes.path.name for eyes in fitting)
        return Found(None, f"several files beside it fit ({names}); pass one as mmproj= (--mmproj)")
    return Found(None, "; ".join([HOW, *(f"not taken: {other}" for other in others[:MOST_TOLD])]))


def beside(path: Path) -> list[Path]:
    """The files beside a model's that may have its eyes, by their names."""
    return sorted(path.parent.glob(PATTERN))


def is_named(path: Path) -> bool:
    """Whether a file is eyes, and no model, by its name."""
    return path.name.lower().startswith("mmproj")


def sees(path: Path, gguf: Any) -> bool:
    """Whether the model of a file, which is open, finds its eyes when it is loaded. Raises FormatError."""
    shapes = {name: tuple(info.shape) for name, info in gguf.tensors.items()}
    return find(path, gguf, models.record(gguf.metadata, shapes), gguf.metadata).eyes is not None


def _width(gguf: Any) -> int:
    return int(gguf.tensors["token_embd.weight"].shape[1])


def _read(
    file: Path, path: Path, text: Any, recording: models.Recording, threads: int, computing: Mapping[str, bool]
) -> Eyes:
    native = backend("cpu")
    with closing(native.Gguf(file)) as gguf:
        try:
            shapes = {name: tuple(info.shape) for name, info in gguf.tensors.items()}
            if not glm4v.has_tower(shapes):
                raise FormatError("has no tensor 'v.*', expected a model's eyes ('mmproj')")
            programs = models.record_eyes(gguf.metadata, shapes)
        except FormatError as error:
            raise FormatError(f"{file}: {error}") from error
        nbytes = 0
        for ops in (programs.tower, programs.merger):
            packed = native_ops(ops, gguf.dequantize)
            nbytes += native.weight_bytes(gguf, packed)[0]
        pages = -(-programs.config.most_patches // native.Engine.page_tokens)
        nbytes += pages * native.page_bytes(gguf, native_ops(programs.tower, gguf.dequantize), kv_type_of(gguf.tensors))
        token = math.fsum(
            share * math.prod(tensor.shape)
            for op, tensor, share in matrices_of_a_token(recording.ops, text.tensors)
            if op.kind != "head_linear"
        )
        key, cost = content_key(gguf), Cost.read(programs, gguf.tensors)

    def opened(threads: int, check: Callable[[], object]) -> Tower:
        log.info("%s: loading the eyes of %s", file, path)
        with closing(native.Gguf(file)) as gguf:
            if content_key(gguf) != key:
                raise FormatError(f"{file}: its tensors are not those that were there when the model was loaded")
            return Tower(gguf, threads=threads, progress=lambda done, total: check(), **computing)

    return Eyes(file.absolute(), key, nbytes, programs.config, cost, max(token, 1.0), opened, threads)
