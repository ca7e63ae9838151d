"""What each CUDA kernel must compute, in numpy, in the kernels' order: csrc/cuda.

The products, the quantizer and the stores into KV pages are exact, so equality can be asked for; what has an
exponential or a root in it returns (value, bound) as in twins_rows.py.
"""

from __future__ import annotations

import numpy as np
import twins
import twins_rows
from twins_rows import EXP, SECOND_ORDER, TINY, U

SEGMENTS = 8
SUPER = 256
THREADS = 1024  # that share a row of a norm
PAGE = 64

# Formats that are packed as another one.
PACKED = {"Q5_0": "Q8_0", "Q4_1": "Q5_1", "Q3_K": "Q6_K"}


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c in f32, rounded once. The product is exact in f64; the sum is rounded to odd, so that a second rounding
    does no harm (Boldo and Melquiond 2008)."""
    p, c = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    s = p + c
    t = s - p
    error = (p - (s - t)) + (c - t)
    even = (s.view(np.int64) & 1) == 0
    away = np.where(error > 0, np.inf, -np.inf)
    s = np.where((error != 0) & even, np.nextafter(s, away), s)
    return s.astype(np.float32)


def _segments(units: int) -> list[tuple[int, int]]:
    return [(units * s // SEGMENTS, units * (s + 1) // SEGMENTS) for s in range(SEGMENTS)]


def _float_linear(format: str, rows: np.ndarray, x: np.ndarray) -> np.ndarray:
    w = twins.float_weights(format, rows)
    step = 4 if format == "F32" else 8
    y = np.zeros((len(x), len(w)), np.float32)
    for begin, end in _segments(-(-w.shape[1] // step)):
        part = np.zeros_like(y)
        for k in range(begin * step, min(end * step, w.shape[1])):
            part = fma(w[None, :, k], x[:, None, k], part)
        y = y + part
    return y


def linear(format: str, rows: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(n, bytes), (T, k) -> (T, n). Exact."""
    if format in twins.FLOATS:
        return _float_linear(format, rows, x)
    w, codes, m = twins.fields(format, rows)  # w (n, g), codes (n, g, values)
    n, groups, values = codes.shape
    q, d, sums = twins.quantize(x)
    q = q.reshape(len(x), groups, values).astype(np.int64)
    d = np.repeat(d, 32 // values, axis=1)
    sums = sums.reshape(len(x), groups, -1).sum(-1)
    per_super = SUPER // values
    y = np.zeros((len(x), n), np.float32)
    for begin, end in _segments(-(-groups // per_super)):
        part = np.zeros_like(y)
        for g in range(begin * per_super, min(end * per_super, groups)):
            dot = (q[:, g] @ codes[:, g].astype(np.int64).T).astype(np.float32)
            part = fma(w[None, :, g] * d[:, g, None], dot, part)
            if m is not None:
                products = d[:, g] * sums[:, g].astype(np.float32)
                part = fma(np.broadcast_to(m[None, :, g], part.shape), products[:, None], part)
        y = y + part
    return y


def epilogue(y: np.ndarray, bias: np.ndarray | None, add: np.ndarray | None, alpha: float) -> np.ndarray:
    if bias is not None:
        y = y + bias
    return y if add is None else fma(np.full_like(y, alpha), add, y)


# ---- rows


def _block_sum(n: int) -> float:
    """Relative error of a sum of n terms of one sign by a block: a chain in each thread, then ten levels of a tree."""
    return (-(-n // THREADS) + 10) * U


def rms_norm(x, w, add, eps: float):
    n = x.shape[1]
    y = x / np.sqrt((x * x).mean(1, keepdims=True) + eps) * w
    # the sum, / n and + eps under a root, which halves them; the root, its inverse, and two products
    bound = np.abs(y) * ((_block_sum(n) + 2 * U) / 2 + 4 * U)
    if add is not None:
        y = y + add
    return y, (bound + U * np.abs(y)) * SECOND_ORDER + TINY


def layer_norm(x, w, b, eps: float):
    n = x.shape[1]
    mean = x.mean(1, keepdims=True)
    v = x - mean
    var = (v * v).mean(1, keepdims=True)
    scale = 1 / np.sqrt(var + eps)
    mean_off = (_block_sum(n) + U) * np.abs(x).mean(1, keepdims=True)
    v_off = mean_off + U * np.abs(v)
    var_off = (2 * np.abs(v) * v_off + v_off**2).mean(1, keepdims=True) + (_block_sum(n) + 2 * U) * (var + eps)
    scale_off = var_off / (var + eps) / 2 + 2 * U
    y = v * scale * w + b
    return y, (np.abs(w) * scale * (v_off + np.abs(v) * (scale_off + U)) + U * np.abs(y)) * SECOND_ORDER + TINY


swiglu, gelu, gelu_erf = twins_rows.swiglu, twins_rows.gelu, twins_rows.gelu_erf


# ---- attention


def turned(x: np.ndarray, norm: np.ndarray | None, eps: float, pairs, cos, sin):
    """Heads (..., head_dim) after the norm and the turns; (value, bound)."""
    bound = np.zeros(x.shape)
    x = x.astype(np.float64)
    if norm is not None:
        flat, off = rms_norm(x.reshape(-1, x.shape[-1]), norm.astype(np.float64), None, eps)
        x, bound = flat.reshape(x.shape), off.reshape(x.shape)
    if pairs is None:
        return x, bound
    first, second = pairs
    a, b, y, off = x[..., first], x[..., second], x.copy(), bound.copy()
    y[..., first], y[..., second] = a * cos - b * sin, a * sin + b * cos
    # cos and sin, rounded to f32; the product and the fma
    off[..., first] = 3 * U * (np.abs(a * cos) + np.abs(b * sin)) + bound[..., first] + bound[..., second]
    off[..., second] = 3 * U * (np.abs(a * sin) + np.abs(b * cos)) + bound[..., first] + bound[..., second]
    return y, off * SECOND_ORDER + 2 * TINY


MMA_GPU = 48 * U
"""The error of one matrix instruction of f16, relative to the sum of its terms' sizes: up to 24 terms and sums of terms
are cut to 24 bits of the largest (Fasi et al. 2021, Numerical behavior of NVIDIA tensor cores)."""
MMA_EMULATED = U
HALF = 2.0**-11  # a rounding to f16


def attend(q, k, v, visible, scale: float, kv_type: str, mma: float):
    """q (M, head_dim) f32; k, v (ctx, head_dim) f32 of one KV head, before the store; visible (M,) -> (value, bound).

    q8: q is turned as the keys are. mma: the error of a matrix instruction.
    """
    if kv_type == "q8":
        q, k, v = (a.astype(np.float64) for a in (twins_rows.rotate(q), twins_rows.stored_q8(twins_rows.rotate(k)), v))
        v = twins_rows.stored_q8(v.astype(np.float32)).astype(np.float64)
    else:
        q, k, v = q.astype(np.float64), twins_rows.stored(k), twins_rows.stored(v)
    scale = float(np.float32(scale))
    ctx, head_dim = k.shape
    steps, merges = (64 if head_dim <= 64 else 128) // 16, -(-ctx // PAGE) + -(-ctx // (8 * PAGE))
    sees = np.arange(ctx) < visible[:, None]
    scores = np.where(sees, q @ k.T * scale, -np.inf)
    below = scores.max(1, keepdims=True) - scores
    p = np.exp(-below)
    weight = p / p.sum(1, keepdims=True)
    y = weight @ v
    # A query is two f16, of which the second ends 2^-25 below a power of two above the largest. Then a chain of matrix
    # instructions for each, their sum, three products (four with the rounded scale of q8's twin) and log2 e.
    of_query = 2.0**-22 * np.abs(q) + 2.0**-24 * np.abs(q).max(1, keepdims=True)
    score_off = abs(scale) * (of_query + (steps * mma + 6 * U) * np.abs(q)) @ np.abs(k).T
    # The difference to the maximum, 2^x and the rounding of the weight; then per merge a difference (together not more
    # than `below`), 2^x, product and fma.
    below = np.where(sees, below, 0)
    weight_off = np.where(sees, np.expm1(score_off + 2 * U * below + EXP + HALF + merges * (EXP + 2 * U)), 0)
    bound = (weight * weight_off) @ np.abs(v) + (weight * weight_off).sum(1, keepdims=True) * np.abs(y)
    # The chains over a page, products with powers and scales, the quotient; and weights that f16 has no bits for.
    bound += (PAGE // 16 * mma + 4 * U) * (weight @ np.abs(v) + np.abs(y)) + 2 * U * np.abs(y)
    return y, bound * SECOND_ORDER + ctx * (2.0**-38 + 2 * TINY) * (np.abs(v).max() + 1)
