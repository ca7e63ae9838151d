"""Numpy twins, in float64, of the row, RoPE and attention kernels.

Each returns (value, bound): what the kernel should give and how far f32 may be from it. The bounds count roundings,
each at most U relative; products of roundings are covered by SECOND_ORDER. `exp` of the kernels is within 2 ulp, which
is EXP = 4 U.
"""

import math

import numpy as np
from numpy.typing import NDArray

U = 2.0**-24  # of one rounding to f32
EXP = 4 * U
SECOND_ORDER = 1.01
TINY = 2.0**-149  # the smallest f32: what a subnormal result may be off by
VANISHING = np.exp(-69.0)  # weights of attention below it are left out
LANES, CHUNK = 16, 256

Array = NDArray[np.float64]


def _lane_sum(n: int) -> float:
    """Relative error of a sum of n terms of one sign in 16 lanes and a tree of 4 levels."""
    return (n / LANES + 1 + 4) * U


def rms_norm(x: Array, w: Array, add: Array | None, eps: float) -> tuple[Array, Array]:
    """(rows, n), (n,) -> (rows, n)."""
    n = x.shape[1]
    y = x / np.sqrt((x * x).mean(1, keepdims=True) + eps) * w
    # the sum, / n and + eps under a root, which halves them; the root, its inverse, and x times it
    bound = np.abs(y) * ((_lane_sum(n) + 2 * U) / 2 + 3 * U)
    if add is not None:
        y = y + add
    return y, (bound + U * np.abs(y)) * SECOND_ORDER + TINY


def layer_norm(x: Array, w: Array, b: Array, eps: float) -> tuple[Array, Array]:
    n = x.shape[1]
    mean = x.mean(1, keepdims=True)
    v = x - mean
    var = (v * v).mean(1, keepdims=True)
    scale = 1 / np.sqrt(var + eps)
    mean_off = _lane_sum(n) * np.abs(x).mean(1, keepdims=True) + U * np.abs(mean)
    v_off = mean_off + U * np.abs(v)
    var_off = (2 * np.abs(v) * v_off + v_off**2).mean(1, keepdims=True) + (_lane_sum(n) + 2 * U) * (var + eps)
    scale_off = var_off / (var + eps) / 2 + 2 * U  # relative
    y = v * scale * w + b
    return y, (np.abs(w) * scale * (v_off + np.abs(v) * (scale_off + U)) + U * np.abs(y)) * SECOND_ORDER + TINY


def swiglu(x: Array) -> tuple[Array, Array]:
    gate, up = np.split(x, 2, axis=1)
    with np.errstate(over="ignore"):
        y = gate / (1 + np.exp(-gate)) * up
    # exp, 1 +, /, *; where e^-gate overflows f32, |silu| < 89 e^-88.7 < 2^-121
    return y, np.abs(y) * (EXP + 3 * U) * SECOND_ORDER + np.abs(up) * 2.0**-121 + TINY


def gelu(x: Array) -> tuple[Array, Array]:
    """0.5 x (1 + tanh u) as x / (1 + e^-2u), the same number, because 1 + tanh u cancels in float64 too."""
    z = -2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    with np.errstate(over="ignore"):
        e = np.exp(z)
        y = x / (1 + e)
        share = 1 / (1 + 1 / e)  # e / (1 + e): how much of e's error the sum has
    # z: two constants, x^2, fma, product: 5 U relative, at most U * 5 * 89 absolute where e is finite in f32
    z_off = 5 * U * np.minimum(np.abs(z), 89)
    return y, np.abs(y) * (share * (z_off + EXP) + 2 * U) * SECOND_ORDER + 2.0**-121


def gelu_erf(x: Array) -> tuple[Array, Array]:
    """max(x, 0) - |x| h, h = 0.5 erfc(|x| / sqrt 2): nothing cancels."""
    a = np.abs(x)
    h = 0.5 * np.vectorize(math.erfc)(a / math.sqrt(2))
    y = np.maximum(x, 0) - a * h
    # h: e^-z has the rounding of z and exp's own; t = 1 / (1 + a / 4) two, which t p(t) has up to 3.2 times; p's terms
    # are 1.3 times their sum, so 3 of its sums and 0.1 of its fit; two products. Then the fma.
    h_off = (a * a / 2 + 6.4 + 3 + 0.1 + 2) * U + EXP
    return y, (a * h * h_off + U * np.abs(y)) * SECOND_ORDER + 2.0**-96  # 12 Phi(-11.75), where h is left out


def rope(x: Array, first, second, cos: Array, sin: Array) -> tuple[Array, Array]:
    """(rows, n); pair i is columns first[i], second[i]."""
    a, b = x[:, first], x[:, second]
    y, bound = x.copy(), np.zeros_like(x)
    y[:, first], y[:, second] = a * cos - b * sin, a * sin + b * cos
    bound[:, first] = U * (np.abs(b * sin) + np.abs(y[:, first]))
    bound[:, second] = U * (np.abs(b * cos) + np.abs(y[:, second]))
    return y, bound * SECOND_ORDER + 2 * TINY * (bound > 0)


def stored(x) -> Array:
    """What a KV page keeps of f32 values: f16, to nearest even, saturated."""
    return np.clip(x, -65504, 65504).astype(np.float16).astype(np.float64)


def rotate(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """(..., head_dim) turned by Hadamard matrices of n columns, n the largest power of two in head_dim. Exact."""
    head_dim = x.shape[-1]
    n, apart = head_dim & -head_dim, 1
    y = x.astype(np.float32)
    while apart < n:
        a, b = np.moveaxis(y.reshape(*x.shape[:-1], -1, 2, apart), -2, 0)
        y = np.stack([a + b, a - b], -2).reshape(x.shape)
        apart *= 2
    return y * (np.float32(1) / np.sqrt(np.float32(n)))


def codes(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(..., head_dim) -> whole numbers in -127..127 and the scale (..., 1) that a q8 page keeps of a row. Exact."""
    scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    largest = scale * np.float32(127)
    factor = np.divide(np.float32(127), largest, where=largest >= 2.0**-100, out=np.zeros_like(largest))
    return np.rint(x * factor), scale


def stored_q8(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a q8 page keeps of values; of keys, rotate(keys)."""
    whole, scale = codes(x)
    return whole * scale


def attend(q, k, v, visible, scale: float, kv_type: str = "f16") -> tuple[Array, Array]:
    """q (M, head_dim), k and v (ctx, head_dim), visible (M,) -> (M, head_dim)."""
    if kv_type == "q8":
        q, k, v = (x.astype(np.float64) for x in (stored_q8(rotate(q)), stored_q8(rotate(k)), stored_q8(v)))
    else:
        q, k, v = q.astype(np.float64), stored(k), stored(v)
    scale = float(np.float32(scale))
    ctx, head_dim = k.shape
    chunks = -(-ctx // CHUNK)
    sees = np.arange(ctx) < visible[:, None]
    scores = np.where(sees, q @ k.T * scale, -np.inf)
    below = scores.max(1, keepdims=True) - scores
    p = np.exp(-below)
    weight = p / p.sum(1, keepdims=True)
    y = weight @ v

    # A score: head_dim fma and the scale; in q8 the dot product is exact, and the scales of q and k are rounded into
    # it. Then the difference to the maximum and exp; then per merge a difference (together not more than `below`),
    # exp, product and fma.
    roundings = {"f16": head_dim, "q8": 4}[kv_type]
    score_off = roundings * U * abs(scale) * (np.abs(q) @ np.abs(k).T) + U * np.abs(np.where(sees, scores, 0))
    below = np.where(sees, below, 0)
    weight_off = np.where(sees, np.expm1(score_off + 2 * U * below + EXP + chunks * (EXP + 2 * U)), 0)
    # A weight that is off moves the sum and the divisor; each then has its own additions, and underflow.
    bound = (weight * weight_off) @ np.abs(v) + (weight * weight_off).sum(1, keepdims=True) * np.abs(y)
    bound += CHUNK * U * (weight @ np.abs(v)) + (_lane_sum(CHUNK) + U) * np.abs(y)
    if kv_type == "q8":
        # Weights times scales become whole numbers of up to 16256 in each chunk: off by half of one.
        scales = np.abs(v).max(1) / 127
        for begin in range(0, ctx, CHUNK):
            part = slice(begin, begin + CHUNK)
            step = (weight[:, part] * scales[part]).max(1, keepdims=True) / 16256
            whole = np.abs(v[part]) / np.where(scales[part] > 0, scales[part], 1)[:, None]
            bound += 0.5 * step * (sees[:, part] @ whole)
    left_out = ctx * VANISHING * (np.abs(v).max() + np.abs(y))
    return y, bound * SECOND_ORDER + left_out + ctx * 2 * TINY * (np.abs(v).max() + 1)
