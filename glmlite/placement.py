"""What stands between a recording and an executor: the executor itself, the form it wants ops in, sizes of memory."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from .program import Op, Rope

log = logging.getLogger(__name__)

# The slots whose weights rows are multiplied with, by kind of op.
MATRICES = {"linear": ("w",), "head_linear": ("w",), "route": ("gate",), "moe": ("gate_up", "down")}


def backend(device: str) -> ModuleType:
    """The module that runs programs on `device`: "cpu", "cuda" (the first GPU), "cuda:1", or "auto": a GPU if one can
    be used.

    Raises RuntimeError if the device cannot be had, which says why, and ValueError or TypeError for what names none.
    """
    if not isinstance(device, str):
        raise TypeError(f"device is {device!r}, expected 'cpu', 'cuda', 'cuda:1' or 'auto'")
    if not re.fullmatch(r"cpu|auto|cuda(:\d+)?", device):
        raise ValueError(f"device is {device!r}, expected 'cpu', 'cuda', 'cuda:1' or 'auto'")
    if device != "cpu":
        try:
            return _cuda(gpu_index(device))
        except RuntimeError as error:
            if device != "auto":
                raise RuntimeError(f"device {device!r}: {error}; use device='cpu' or 'auto'") from error
            log.info("device 'auto': the CPU, because %s", error)
    try:
        from . import _native
    except ImportError as error:
        here = Path(__file__).parent
        raise RuntimeError(
            f"glmlite._native, the compiled engine, cannot be loaded: {error}; {here} has none beside it and none is "
            "installed for this Python: `pip install .` in the source folder builds one"
        ) from error
    return _native


def gpu_index(device: str) -> int:
    """The index that "cuda:1" names; "cuda" and "auto" mean the first."""
    return int(device.partition(":")[2] or 0)


def _cuda(index: int) -> ModuleType:
    """The module for GPUs, if that GPU can be used. Raises RuntimeError that says why it cannot."""
    try:
        module = import_module("glmlite._cuda")
    except ModuleNotFoundError:
        raise RuntimeError(
            "this build of glmlite has no CUDA module (GLMLITE_CUDA=ON when installing makes one)"
        ) from None
    except ImportError as error:
        raise RuntimeError(f"glmlite._cuda cannot be loaded: {error}") from error
    found = module.devices()
    if index >= len(found):
        names = ", ".join(f"cuda:{d['index']} ({d['name']})" for d in found)
        raise RuntimeError(f"there is no GPU cuda:{index}, this machine has {names}")
    return module


class Placement(NamedTuple):
    """Where a model runs. device: "cpu", "cuda:0", or "cpu + cuda:0", the last layers there; arguments: what `Engine`
    is told of it."""

    device: str
    arguments: dict[str, Any]


CPU = Placement("cpu", {})


class Gpu:
    """A model's memory on a GPU. native: `backend(device)`'s; gpu_layers: None: all layers; ops: `native_ops`."""

    def __init__(
        self,
        native: ModuleType,
        device: str,
        gpu_layers: int | None,
        gguf: Any,
        ops: Sequence[tuple[Any, ...]],
        kv_type: str,
    ):
        self.native = native
        self.index = gpu_index(device)
        self.auto = device == "auto"
        self.layers = -1 if gpu_layers is None else gpu_layers
        self.model = (gguf, ops)
        self.kv_type = kv_type
        self.free = native.free_memory(self.index)

    def need(self, kv_tokens: int) -> dict[str, int]:
        """Bytes for weights, kv, of which a page, scratch, reserve and in total, and layers and gpu_layers."""
        need: dict[str, int] = self.native.memory_needed(
            *self.model, kv_tokens=kv_tokens, kv_type=self.kv_type, gpu_layers=self.layers
        )
        return need

    def place(self, kv_tokens: int) -> Placement:
        """On this GPU; with "auto" on the CPU if the model, as it is asked for, does not fit. The log says why."""
        need = self.need(kv_tokens)
        if self.auto:
            what = f"{need['gpu_layers']} of {need['layers']} layers need {need['total'] / 1e9:.2f} GB of GPU memory"
            if need["total"] > self.free:
                fit = self.native.layers_that_fit(*self.model, self.free, kv_tokens=kv_tokens, kv_type=self.kv_type)
                log.info(
                    "device 'auto': the CPU, because %s and cuda:%d has %.2f GB free; gpu_layers=%d would fit",
                    *(what, self.index, self.free / 1e9, fit),
                )
                return CPU
            log.info("device 'auto': cuda:%d; %s, %.2f GB are free", self.index, what, self.free / 1e9)
        split = need["gpu_layers"] < need["layers"]
        return Placement(
            f"cpu + cuda:{self.index}" if split else f"cuda:{self.index}",
            {"device": self.index, "gpu_layers": self.layers},
        )


def native_ops(ops: Sequence[Op], tensor: Callable[[str], np.ndarray]) -> list[tuple[Any, ...]]:
    """The program as `_native.Engine` takes it.

    Per op: (kind, out id, width, {slot: value id}, {slot: [tensor names]}, {slot: attribute}). Attributes are numbers;
    `rope` is a dict of `program.RopeTable`'s fields, missing where there is no turn. tensor: f32 values by name, asked
    for the factors that a rope names.
    """
    return [
        (
            op.kind,
            op.out.id,
            op.out.width,
            {slot: value.id for slot, value in op.inputs.items()},
            {slot: list(names) for slot, names in op.weights.items()},
            {slot: _attribute(a, tensor) for slot, a in op.attrs.items() if a is not None},
        )
        for op in ops
    ]


def _attribute(value: Any, tensor: Callable[[str], np.ndarray]) -> Any:
    if not isinstance(value, Rope):
        return value
    return value.table(None if value.factors is None else tensor(value.factors))._asdict()


def matrices_of_a_token(ops: Iterable[Op], tensors: Mapping[str, Any]) -> Iterator[tuple[Op, Any, float]]:
    """The matrices that a token is multiplied with: the op, the tensor (`tensors` by name), and how much of it.

    The embedding's table is looked up, not multiplied; of experts a token has those that it is sent to.
    """
    for op in ops:
        for slot in MATRICES.get(op.kind, ()):
            for name in op.weights.get(slot, ()):
                tensor = tensors[name]
                yield op, tensor, op.attrs["used"] / tensor.shape[0] if op.kind == "moe" else 1.0


def kv_bytes_per_token(gguf: Any, ops: Sequence[Op], kv_type: str = "f16") -> int:
    """Bytes of KV cache that a token takes in all layers on the CPU."""
    native = backend("cpu")
    page: int = native.page_bytes(gguf, native_ops(ops, gguf.dequantize), kv_type)
    tokens: int = native.Engine.page_tokens
    return -(-page // tokens)


def prefix_tokens(ops: Sequence[Op], shape: Callable[[str], tuple[int, ...]]) -> int:
    """Cached entries that stand before every sequence (P-Tuning v2)."""
    prefixes = [op.weights["prefix"] for op in ops if op.kind == "attention" and "prefix" in op.weights]
    return shape(prefixes[0][0])[0] if prefixes else 0
