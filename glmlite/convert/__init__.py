"""Make GGUF files from checkpoints. Nothing at run time imports this.

convert("chatglm3-6b", "chatglm3-6b-q8_0.gguf", type="q8_0")
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import imatrix
from .planning import Conversion, plan
from .working import unweighted, work_off

__all__ = ["Conversion", "convert", "imatrix", "plan", "unweighted", "work_off"]


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    type: str = "q8_0",
    *,
    progress: Callable[[int, int], Any] | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
    threads: int | None = None,
    **options: Any,
) -> Path:
    """Write the GGUF file of a checkpoint; options are those of `plan`. Returns `out`.

    A model that sees becomes a pair, unless `one_file`: its eyes are `mmproj-NAME-TYPE.gguf` beside `out`.

    progress: called with the bytes written and those in all; returning False cancels (Cancelled).
    importance: tensor name -> weights of its columns, for the quantized types: `imatrix.read(path).weights()`.
        Tensors that it has nothing for are quantized without.
    threads: that read and quantize, by default one per core; the bytes do not depend on it.

    Whatever goes wrong leaves no file, and none of two. Raises FormatError (the checkpoint's fault: file and tensor),
    ValueError, OSError, Cancelled.
    """
    work = plan(source, type, **options)
    try:
        return work_off(work, Path(out), progress=progress, importance=importance, threads=threads)
    finally:
        work.close()
