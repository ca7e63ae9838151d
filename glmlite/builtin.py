"""The model in the package: a small GLM that is there without a download. `examples/builtin_model` makes it."""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path

from ._package import is_frozen

__all__ = ["NAME", "NOTE", "announce", "is_it", "path"]

NAME = "builtin"  # in place of a path, in the commands
NOTE = (
    "this is the built-in model, a small demonstration; "
    "for a real one: `glmlite convert CHECKPOINT`, then `glmlite chat FILE.gguf`"
)
_FILE = Path(__file__).parent / "data" / "builtin.gguf"

log = logging.getLogger(__name__)


def path() -> Path:
    """The file. Raises FileNotFoundError where there is none."""
    if not _FILE.is_file():
        if is_frozen():
            raise FileNotFoundError(
                f"{_FILE}: this program was made without the built-in model; choose the .gguf file of another, or tell "
                "who made the program (glmlite's docs/embedding.md says how to put it in)"
            )
        raise FileNotFoundError(f"{_FILE}: the built-in model is missing; examples/builtin_model/make.py makes it")
    return _FILE


def is_it(file: str | os.PathLike[str]) -> bool:
    """Whether a path is the built-in model's."""
    return Path(file) == _FILE


@cache
def announce() -> None:
    """Logs what the built-in model is, once in a process."""
    log.warning(NOTE)
