"""The numpy twin, in float64, of latent attention: (value, bound), as in twins_rows."""

import numpy as np
import twins_rows as twins
from twins_rows import CHUNK, EXP, SECOND_ORDER, TINY, VANISHING, Array, U


def kept(x, latent: int) -> Array:
    """What q8 multiplies of queries or entries (n, latent + rope): the turned parts, each with a scale of its own."""
    parts = (twins.codes(twins.rotate(part)) for part in (x[:, :latent], x[:, latent:]))
    return np.concatenate([whole.astype(np.float64) * scale.astype(np.float64) for whole, scale in parts], 1)


def turned(x: Array) -> Array:
    """(..., n) turned by Hadamard matrices of as many columns as the largest power of two in n."""
    n, h = x.shape[-1] & -x.shape[-1], np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return (x.reshape(*x.shape[:-1], -1, n) @ h / np.sqrt(n)).reshape(x.shape)


def attend(q, entries, latent: int, visible, scale: float, kv_type: str = "f16") -> tuple[Array, Array]:
    """q (M, latent + rope), entries (ctx, latent + rope), visible (M,) -> (M, latent)."""
    if kv_type == "q8":
        q, k = kept(q, latent), kept(entries, latent)
    else:
        q, k = q.astype(np.float64), twins.stored(entries)
    v = k[:, :latent]
    scale = float(np.float32(scale))
    ctx, columns = k.shape
    chunks = -(-ctx // CHUNK)
    sees = np.arange(ctx) < visible[:, None]
    parts = q[:, :latent] @ v.T * scale, q[:, latent:] @ k[:, latent:].T * scale
    scores = np.where(sees, parts[0] + parts[1], -np.inf)
    below = scores.max(1, keepdims=True) - scores
    p = np.exp(-below)
    weight = p / p.sum(1, keepdims=True)
    y = weight @ v

    # A score: an fma for each column, and the scale; in q8 dot products are exact, each part then has three roundings
    # of its scales, and the sum one. The rest as in twins_rows.attend.
    if kv_type == "q8":
        score_off = 3 * U * (np.abs(parts[0]) + np.abs(parts[1]))
    else:
        score_off = columns * U * abs(scale) * (np.abs(q) @ np.abs(k).T)
    score_off += U * np.abs(np.where(sees, scores, 0))
    below = np.where(sees, below, 0)
    weight_off = np.where(sees, np.expm1(score_off + 2 * U * below + EXP + chunks * (EXP + 2 * U)), 0)
    bound = (weight * weight_off) @ np.abs(v) + (weight * weight_off).sum(1, keepdims=True) * np.abs(y)
    # acc is summed by position in f16, exactly in q8, and there rounded a few times; the sum and the division.
    bound += twins._lane_sum(CHUNK) * (weight @ np.abs(v)) + (twins._lane_sum(CHUNK) + U) * np.abs(y)
    if kv_type == "q8":
        # Weights times scales become whole numbers of up to 16256 in each chunk: off by half of one.
        scales = twins.codes(twins.rotate(entries[:, :latent]))[1][:, 0].astype(np.float64)
        for begin in range(0, ctx, CHUNK):
            part = slice(begin, begin + CHUNK)
            step = (weight[:, part] * scales[part]).max(1, keepdims=True) / 16256
            whole = np.abs(v[part]) / np.where(scales[part] > 0, scales[part], 1)[:, None]
            bound += 0.5 * step * (sees[:, part] @ whole)
    left_out = ctx * VANISHING * (np.abs(v).max() + np.abs(y))
    bound = bound * SECOND_ORDER + left_out + ctx * 2 * TINY * (np.abs(v).max() + 1)
    if kv_type != "q8":
        return y, bound
    # Turned back, each column is a sum of all of a block: log2(n) additions, then a product with a rounded number.
    n = latent & -latent
    sums = (bound + (np.log2(n) + 3) * U * np.abs(y)).reshape(len(y), -1, n).sum(2) / np.sqrt(n)
    return turned(y), np.repeat(sums, n, 1) * SECOND_ORDER
