"""What a node does once, however many of its processes want it: fetch a model's file, and pack its weights."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from ..bulk.work import load_for
from ..files import lock, replacing
from ..locate import model_file
from ..model import Model
from ..samples import place

__all__ = ["engine", "file_of", "locked", "require"]

_ADDRESS = re.compile(r"(?!\w:[\\/])\w[\w+.-]*://")
TICK = 0.1  # seconds between two looks at a lock
_PART = 1 << 22  # bytes that are fetched at a time


def require(name: str) -> Any:
    """A module of Ray's. Raises ModuleNotFoundError, which says how it is installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"glmlite.ray needs {error.name}: pip install 'glmlite[ray]'", name=error.name
        ) from None


def engine(model: str, at_once: int, loading: Mapping[str, Any], *, cpus: float, gpus: float) -> Model:
    """A model for so many requests at once, with a thread for each CPU, or on the GPU where it has one.

    model: as for `file_of`. loading: arguments of `glmlite.load`, before these. The weights on a CPU are taken from a
    packed file, which the first process of a node makes: so all of them share the memory.
    """
    path = file_of(model)
    own = {"device": "cuda"} if gpus else {"device": "cpu", "threads": max(1, int(cpus)), "packed": True}
    with locked(f"{path.name}.load"):
        return load_for(path, at_once, **{**own, **loading})


def file_of(model: str) -> Path:
    """The file of a model on this node: of a path or a name, as `glmlite.load` takes it, or of an address that pyarrow
    can read (s3://, gs://, hdfs://, file://), which is fetched once into the cache folder.

    Raises what `glmlite.locate.model_file` raises, OSError, and ValueError for an address of another kind.
    """
    if _ADDRESS.match(model):
        return _fetched(model)
    with locked("model"):  # "smollm2" may be downloaded
        return model_file(model)


def _fetched(address: str) -> Path:
    fs = require("pyarrow.fs")
    system, inside = fs.FileSystem.from_uri(address)
    found = system.get_file_info(inside)
    if not found.is_file:
        raise FileNotFoundError(2, "no such file", address)
    # A file that was changed has another name, so no process reads half of one and half of another.
    key = hashlib.blake2b(f"{address} {found.size} {found.mtime_ns}".encode(), digest_size=8).hexdigest()
    target = place() / f"{Path(inside).stem}-{key}.gguf"
    with locked(target.name):
        if not target.is_file():
            with replacing(target) as file, system.open_input_stream(inside) as source:
                while part := source.read(_PART):
                    file.write(part)
    return target


@contextmanager
def locked(name: str) -> Iterator[None]:
    """One process of this node, and user, at a time. A process that ends, however, leaves the lock."""
    folder = place()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f".{name}.lock", "ab") as file:
        while not lock(file):
            time.sleep(TICK)
        yield
