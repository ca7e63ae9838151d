"""Reading the files of a checkpoint: pieces of large ones, text, JSON."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np

from ..errors import FormatError
from ..files import UNFINISHED, kind_of, special

__all__ = [
    "MAX_SMALL",
    "Files",
    "dangling",
    "load_bytes",
    "load_json",
    "load_text",
    "missing",
    "parse_json",
    "short",
    "unfinished",
]

MAX_SMALL = 100_000_000  # bytes; safetensors' own limit for a header


def unfinished(path: Path) -> str:
    """For messages about a file that is cut off or missing: what beside it says that its download has not ended."""
    found = (name for ending in UNFINISHED if (name := f"{path.name}{ending}") and path.with_name(name).exists())
    return f" ({name!r} is beside it: the download has not ended)" if (name := next(found, None)) else ""


def dangling(link: Path) -> str:
    """What a link is whose target is not there."""
    target = os.readlink(link)
    what = "; `git annex get` fetches it" if ".git/annex/" in target.replace("\\", "/") else ""
    return f"a link to {target!r}, which is not there{what}"


def missing(path: Path) -> str:
    """For messages about a file that is not there: what stands in its place."""
    return f" ({dangling(path)})" if path.is_symlink() else unfinished(path)


class Files:
    """Files that several threads read pieces of. Read, not mapped: mapped pages count as memory of the process."""

    def __init__(self) -> None:
        self._files: dict[Path, BinaryIO] = {}
        self._lock = Lock()

    def read(self, path: Path, offset: int, out: np.ndarray) -> None:
        """Fills `out` (n,) with the bytes at `offset`. Raises FormatError where the file ends before."""
        with self._lock:
            if path not in self._files:
                self._files[path] = path.open("rb")
            file = self._files[path]
            file.seek(offset)
            count = file.readinto(out.view(np.uint8))
        if count != out.nbytes:
            raise FormatError(f"{path}: it became shorter while it was read")

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


def short(value: Any) -> str:
    """For messages: what a value looks like, in at most 60 characters."""
    text = repr(value) if isinstance(value, (str, int, float, list, tuple, type(None))) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


def load_bytes(path: Path) -> bytes:
    """All of a small file. Raises FormatError for one that is too large, or for what stands in the place of a file."""
    if (kind := special(path)) is not None:
        raise FormatError(f"{path}: is {kind}, expected a file")
    if (size := path.stat().st_size) > MAX_SMALL:
        raise FormatError(f"{path}: {size} bytes, expected at most {MAX_SMALL}")
    return path.read_bytes()


def load_text(path: Path) -> str:
    """The text in a file. Raises as `load_bytes`, and FormatError for what is not UTF-8."""
    data = load_bytes(path)
    if (kind := kind_of(path)) is not None:
        raise FormatError(f"{path}: {kind}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8: {error}") from None


def load_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises as `load_bytes`, and FormatError for what is no object, no text, too deep, or
    has a key twice."""
    return parse_json(load_bytes(path), path)


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise FormatError(f"{path}: {twice!r} is there twice")
        return found

    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=once)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()  # a lone one raises; a pair has become a character
    except RecursionError:
        raise FormatError(f"{path}: JSON nested too deep") from None
    except FormatError:
        raise
    except ValueError as error:  # not UTF-8, not JSON, a number of thousands of digits
        raise FormatError(f"{path}: {kind_of(path) or f'not JSON: {error}'}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path}: a JSON {type(value).__name__}, expected an object")
    return value
