"""Speed of the kernels of matrix products and attention; each result is checked against its numpy twin first.

    pytest benchmarks/ --benchmark-json=kernels.json
    pytest benchmarks/ -k "Q4_0 and T512"
    pytest benchmarks/ --benchmark-disable          # only checks, on small sizes

What is read once per token (products with a few tokens, attention of one token) lies in memory, random, several times
the size of the largest cache. Times are medians and include quantizing the activations. Other kernel sets:
GLMLITE_ISA.
"""

import numpy as np
import pytest
import twins
import twins_latent
import twins_rows
from test_linear import random_rows, random_x

from glmlite import _native

FORMATS = ["Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "F16"]
COLUMNS = 4096
STREAMED = 160 << 20  # bytes: 5 times 32 MB of last-level cache
FEW_TOKENS = 8  # so few that weights are read from memory for them; matrices for more are of a layer's size
HEAD_DIM = 128
SCALE = HEAD_DIM**-0.5
LATENT, ROPE, LATENT_HEADS = 512, 64, 20


def assert_within(got, want, bound):
    assert (np.abs(got - want) <= bound).all()  # false for NaN


@pytest.mark.parametrize("tokens", [1, 4, 8, 64, 512], ids="T{}".format)
@pytest.mark.parametrize("format", FORMATS)
def test_linear(format, tokens, threads, quick, measure):
    block, size, _ = twins.FORMATS[format]
    row_bytes = COLUMNS // block * size
    n = 256 if quick else STREAMED // row_bytes if tokens <= FEW_TOKENS else COLUMNS
    rows = np.resize(random_rows(format, 256, COLUMNS, 0), (n, row_bytes))  # the same rows over and over, all random
    x = random_x(tokens, COLUMNS)
    w = _native.PackedMatrix(_native.default_isa(), format, rows, threads)
    y = np.full((tokens, n), np.nan, np.float32)
    w.multiply(x, y)
    some = np.unique(np.linspace(0, n - 1, 24, dtype=int))
    few = np.unique(np.linspace(0, tokens - 1, 5, dtype=int))
    assert_within(y[np.ix_(few, some)], *twins.linear(format, rows[some], x[few]))
    assert np.isfinite(y).all()

    peak = "f32" if format in twins.FLOATS else "int8"
    measure(
        f"{format}, T = {tokens}", lambda: w.multiply(x, y), w.nbytes + x.nbytes + y.nbytes, 2 * y.size * COLUMNS, peak
    )


@pytest.mark.parametrize(
    "what, heads, queries", [("decode", 48, 4), ("decode", 48, 16), ("prefill", 4, 64)], ids="{}".format
)
@pytest.mark.parametrize("kv_type", ["f16", "q8"])
def test_attention(kv_type, what, heads, queries, threads, quick, measure):
    ctx, heads = (600, 2) if quick else (8192, heads)
    rng = np.random.default_rng(0)
    q = rng.standard_normal((heads, queries, HEAD_DIM), np.float32)
    k, v = (np.resize(rng.standard_normal((4, ctx, HEAD_DIM), np.float32), (heads, ctx, HEAD_DIM)) for _ in range(2))
    # Decoding: the query heads of one token that share a KV head. Prefill: of the last tokens, 4 heads each.
    visible = np.full(queries, ctx) if what == "decode" else ctx - 1 - np.arange(queries)[::-1] // 4
    pages = _native.KvPages(_native.default_isa(), k, v, kv_type, threads)
    y = np.full(q.shape, np.nan, np.float32)
    pages.attend(q, visible, SCALE, y)
    for head in {0, heads - 1}:
        assert_within(y[head], *twins_rows.attend(q[head], k[head], v[head], visible, SCALE, kv_type))
    assert np.isfinite(y).all()

    measure(
        f"attention {kv_type}, {what}, {queries} queries of {heads} KV heads, {ctx} positions",
        lambda: pages.attend(q, visible, SCALE, y),
        pages.nbytes,
        4 * heads * HEAD_DIM * int(visible.sum()),
        "f32",
    )


@pytest.mark.parametrize("tokens", [1, 3], ids="T{}".format)
@pytest.mark.parametrize("kv_type", ["f16", "q8"])
def test_latent_attention(kv_type, tokens, threads, quick, measure):
    """The entries of one layer: from the last-level cache, because what bounds it is arithmetic."""
    ctx = 600 if quick else 8192
    rng = np.random.default_rng(0)
    q = rng.standard_normal((tokens * LATENT_HEADS, LATENT + ROPE), np.float32)
    entries = rng.standard_normal((ctx, LATENT + ROPE), np.float32)
    visible = ctx - np.arange(len(q))[::-1] // LATENT_HEADS
    pages = _native.LatentPages(_native.default_isa(), entries, LATENT, kv_type, threads)
    y = np.full((len(q), LATENT), np.nan, np.float32)
    pages.attend(q, visible, SCALE, y)
    some = slice(None, None, LATENT_HEADS + 1)
    assert_within(y[some], *twins_latent.attend(q[some], entries, LATENT, visible[some], SCALE, kv_type))
    assert np.isfinite(y).all()

    measure(
        f"latent attention {kv_type}, {len(q)} queries, {ctx} positions",
        lambda: pages.attend(q, visible, SCALE, y),
        pages.nbytes,
        2 * (2 * LATENT + ROPE) * int(visible.sum()),
        "f32",
    )
