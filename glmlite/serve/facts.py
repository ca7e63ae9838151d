"""What is told of a model: from its file's header, also before it is loaded."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import mmproj
from ..errors import FormatError
from ..model import Model
from .errors import Refused
from .pool import Entry

if TYPE_CHECKING:
    from .answering import Service

__all__ = ["Facts", "of"]


@dataclass(frozen=True)
class Facts:
    """context: tokens that a request may have, of a model that is not loaded those it was trained for. capabilities:
    "tools", "thinking", "insert", "vision". size: its parameters in words."""

    name: str
    architecture: str
    parameters: int
    nbytes: int
    quantization: str
    context: int
    trained: int
    template: str
    capabilities: tuple[str, ...]
    created: int
    digest: str

    @property
    def size(self) -> str:
        unit = 1e9 if self.parameters >= 1e9 else 1e6
        return f"{self.parameters / unit:.1f}{'B' if unit == 1e9 else 'M'}"


async def of(service: Service, entry: Entry) -> Facts | None:
    """None: the file cannot be read."""
    model, path = entry.model, entry.path
    path = path or (model.path if model is not None else None)
    if path is None:
        return None
    try:
        stat = path.stat()
        eyes = tuple((file.name, file.stat().st_mtime_ns) for file in mmproj.beside(path))
        key = (path, stat.st_size, stat.st_mtime_ns, eyes)
        found = await service.work(lambda cancel: _header(*key))
    except (OSError, Refused):
        return None
    found = replace(found, name=entry.name, created=entry.created)
    if model is not None:
        found = replace(found, context=model.context, capabilities=_capabilities(found.template, model))
    return found


@lru_cache(maxsize=256)
def _header(path: Path, nbytes: int, changed: int, eyes: tuple[tuple[str, int], ...]) -> Facts:
    """eyes: what beside it may be its eyes. Raises FormatError and OSError."""
    from .._native import Gguf
    from ..chat import template

    gguf = Gguf(path)
    try:
        metadata: Mapping[str, Any] = gguf.metadata
        architecture = str(metadata.get("general.architecture", ""))
        types: Counter[str] = Counter()
        for tensor in gguf.tensors.values():
            types[tensor.type] += tensor.nbytes
        trained = metadata.get(f"{architecture}.context_length", 0)
        text = template.of(metadata) or ""
        return Facts(
            name=path.stem,
            architecture=architecture,
            parameters=sum(math.prod(tensor.shape) for tensor in gguf.tensors.values()),
            nbytes=gguf.nbytes,
            quantization=max(types, key=lambda kind: types[kind], default="unknown"),
            context=int(trained) if isinstance(trained, int) else 0,
            trained=int(trained) if isinstance(trained, int) else 0,
            template=text,
            capabilities=(*_capabilities(text, None), *(("vision",) if _sees(path, gguf) else ())),
            created=0,
            digest=hashlib.sha256(f"{path.name}/{nbytes}/{changed}".encode()).hexdigest(),
        )
    finally:
        gguf.close()


def _sees(path: Path, gguf: Any) -> bool:
    try:
        return mmproj.sees(path, gguf)
    except FormatError:  # of a model that cannot be loaded the rest is told
        return False


def _capabilities(template: str, model: Model | None) -> tuple[str, ...]:
    """Of a model that is not loaded, what its template lets expect."""
    if model is None:
        tools, thinking = "tools" in template, "<think>" in template or "enable_thinking" in template
        return tuple(name for name, has in (("tools", tools), ("thinking", thinking)) if has)
    found = () if model.dialect is None else tuple(model.dialect.capabilities)
    own = (("insert", model.fills_blanks), ("vision", model.images))
    return (*found, *(name for name, has in own if has))
