"""What stands between a recording and an executor: the executor itself, the form it wants ops in, sizes of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from .program import Op, Rope

# What keys and values are rounded to when they are cached: bytes of a row of head_dim. q8: a byte per value, in whole
# sixteens, and an f32 scale.
KV_TYPES: dict[str, Callable[[int], int]] = {
    "f16": lambda head_dim: 2 * head_dim,
    "q8": lambda head_dim: -(-head_dim // 16) * 16 + 4,
}


def executor(device: str) -> ModuleType:
    """The module that runs programs on `device`: "cpu", or "auto" for the best there is.

    Raises RuntimeError if the device cannot be had, ValueError for a name that is none.
    """
    if device not in ("cpu", "auto", "cuda"):
        raise ValueError(f"device is {device!r}, expected 'cpu', 'cuda' or 'auto'")
    if device == "cuda":
        raise RuntimeError("device 'cuda': this build of glmlite has no CUDA module; use device='cpu' or 'auto'")
    try:
        from . import _native
    except ImportError as error:
        raise RuntimeError(f"glmlite._native cannot be loaded, is the package built? {error}") from error
    return _native


def native_ops(ops: Sequence[Op], tensor: Callable[[str], np.ndarray]) -> list[tuple]:
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


def kv_bytes_per_token(ops: Sequence[Op], kv_type: str = "f16") -> int:
    """Bytes of KV cache that a token takes in all layers."""
    if kv_type not in KV_TYPES:
        raise ValueError(f"kv_type is {kv_type!r}, expected {' or '.join(map(repr, KV_TYPES))}")
    layers = (op.attrs for op in ops if op.kind == "attention")
    return sum(2 * a["kv_heads"] * KV_TYPES[kv_type](a["head_dim"]) for a in layers)


def prefix_tokens(ops: Sequence[Op], shape: Callable[[str], tuple[int, ...]]) -> int:
    """Cached entries that stand before every sequence (P-Tuning v2)."""
    prefixes = [op.weights["prefix"] for op in ops if op.kind == "attention" and "prefix" in op.weights]
    return shape(prefixes[0][0])[0] if prefixes else 0
