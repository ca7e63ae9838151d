"""A GGUF file as the source of another one: the same tensors and metadata, other types."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError
from ..files import downloading
from ..models.glm4v import TENSORS
from ..packed import refuse_exported
from .architectures import Contents, Tensor
from .architectures.eyes import KEYS, MMPROJ

__all__ = ["read_gguf"]

_DROPPED = ("split.", "general.file_type", "general.quantization_version", "general.alignment", "quantize.imatrix.")


def read_gguf(path: Path, opened: ExitStack) -> tuple[Contents | None, Contents | None]:
    """The text model in a GGUF file, which stays open until `opened` is closed, and the eyes: it may hold either, or
    both. Raises FormatError, OSError."""
    from .._native import Gguf, TensorInfo, dequantize
    from ..models import record, record_eyes

    if unfinished := downloading(path):
        raise FormatError(f"{path}: {unfinished}")
    gguf = Gguf(path)
    opened.callback(gguf.close)
    refuse_exported(path, gguf.metadata)
    metadata = {key: value for key, value in gguf.metadata.items() if not key.startswith(_DROPPED)}
    shapes = {name: tuple(info.shape) for name, info in gguf.tensors.items()}
    named = metadata.get("general.architecture")
    alone = isinstance(named, str) and named == MMPROJ["general.architecture"]
    sees = alone or any(key.startswith(KEYS) for key in metadata)
    try:
        if not alone:
            record(metadata, shapes)
        if sees:
            record_eyes(metadata, shapes)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error

    def reader(info: TensorInfo) -> Callable[[int, int], np.ndarray]:
        if len(info.shape) > 2 and info.supported:
            return lambda begin, end: dequantize(info.type, gguf.data(info.name, begin, end))
        return lambda begin, end: gguf.dequantize(info.name, begin, end)

    def contents(metadata: dict[str, Any], eyes: bool) -> Contents:
        chosen = (info for info in gguf.tensors.values() if alone or info.name.startswith(TENSORS) == (sees and eyes))
        tensors = [
            Tensor(info.name, tuple(info.shape), reader(info), [f"{info.path}: {info.name!r}"]) for info in chosen
        ]
        return Contents(metadata, tensors)

    own = {key: value for key, value in metadata.items() if key.startswith(KEYS)}
    if alone:
        return None, contents(metadata, True)
    text = contents({key: value for key, value in metadata.items() if key not in own}, False)
    name = {key: metadata[key] for key in ("general.name",) if key in metadata}
    return text, contents(MMPROJ | name | own, True) if sees else None
