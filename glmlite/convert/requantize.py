"""A GGUF file as the source of another one: the same tensors and metadata, other types."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np

from .architectures import Contents, Tensor
from .files import Files

__all__ = ["read_gguf"]

_DROPPED = ("split.", "general.file_type", "general.quantization_version", "general.alignment", "quantize.imatrix.")


def read_gguf(path: Path, opened: ExitStack) -> Contents:
    """The tensors and metadata of a GGUF file, which stays open until `opened` is closed. Raises FormatError."""
    from .._native import Gguf, TensorInfo, dequantize
    from ..models import record

    gguf = Gguf(path)
    opened.callback(gguf.close)
    files = Files()
    opened.callback(files.close)
    record(gguf.metadata, {name: tuple(info.shape) for name, info in gguf.tensors.items()})

    def reader(info: TensorInfo):
        def read(begin: int, end: int) -> np.ndarray:
            if len(info.shape) == 1:
                return gguf.dequantize(info.name)[begin:end]
            size = info.nbytes // info.shape[0]
            rows = np.empty((end - begin) * size, np.uint8)
            files.read(Path(info.path), info.offset + begin * size, rows)
            return dequantize(info.type, rows.reshape(-1, size))

        return read

    metadata = {key: value for key, value in gguf.metadata.items() if not key.startswith(_DROPPED)}
    tensors = [
        Tensor(name, tuple(info.shape), reader(info), f"{info.path}: {name!r}") for name, info in gguf.tensors.items()
    ]
    return Contents(metadata, tensors)
