"""Attention over latent pages against its twin, and what must not change a bit of it."""

import numpy as np
import pytest
import twins_latent as twins
import twins_rows

from glmlite import _native

QUERIES = [1, 2, 5, 11, 20, 33]
CONTEXTS = [1, 15, 16, 17, 64, 81, 255, 256, 257, 700]
SHAPES = [(16, 2), (32, 8), (48, 30), (512, 64)]  # latent and rope columns


@pytest.fixture(params=["f16", "q8"])
def kv_type(request):
    return request.param


def attend(q, entries, latent, visible, scale=None, isa="scalar", kv_type="f16"):
    scale = 1 / np.sqrt(q.shape[1]) if scale is None else scale
    y = np.full((len(q), latent), np.nan, np.float32)
    _native.LatentPages(isa, entries, latent, kv_type).attend(q, np.asarray(visible, np.int64), scale, y)
    return y


def assert_same_bits(a, b, **why):
    np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32), **why)


def assert_within(got, twin):
    want, bound = twin
    off = np.abs(got - want)
    assert (off <= bound).all(), f"off by {np.max(off / bound)} of the bound"


def case(seed, m, latent, rope, ctx):
    """Rope columns are three times as large as latent ones."""
    rng = np.random.default_rng(seed)
    q, entries = (rng.standard_normal((n, latent + rope), np.float32) for n in (m, ctx))
    entries[:, latent:] *= 3
    visible = rng.integers(1, ctx, m, endpoint=True)
    visible[-1] = ctx
    return q, entries, latent, visible


@pytest.mark.parametrize("ctx", CONTEXTS)
@pytest.mark.parametrize("latent, rope", SHAPES)
def test_attend(latent, rope, ctx, kv_type):
    for m in QUERIES:
        args = case(m, m, latent, rope, ctx)
        scalar = attend(*args, kv_type=kv_type)
        assert_within(scalar, twins.attend(*args, 1 / np.sqrt(latent + rope), kv_type))
        for isa in _native.isas():
            assert_same_bits(attend(*args, isa=isa, kv_type=kv_type), scalar, err_msg=f"{isa}, {m} queries")


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("latent, rope", [(32, 8), (512, 64)])
def test_a_query_depends_on_no_other(isa, latent, rope, kv_type):
    """Nor on how many there are: more than a block, or a call, takes."""
    q, entries, _, visible = case(0, 70, latent, rope, 700)
    together = attend(q, entries, latent, visible, isa=isa, kv_type=kv_type)
    for count in (1, 3, 20):
        for i in range(0, 70 - count, 7):
            some = slice(i, i + count)
            alone = attend(q[some], entries, latent, visible[some], isa=isa, kv_type=kv_type)
            assert_same_bits(together[some], alone, err_msg=f"{count} queries from {i} on")


@pytest.mark.parametrize("isa", _native.isas())
def test_what_is_not_visible_has_no_influence(isa, kv_type):
    """Neither its values, nor how far the context goes on."""
    q, entries, latent, visible = case(1, 16, 64, 16, 700)
    visible[:] = np.minimum(visible, 300)
    visible[0] = 10
    short = attend(q, entries[:300], latent, visible, isa=isa, kv_type=kv_type)
    assert_same_bits(attend(q, entries, latent, visible, isa=isa, kv_type=kv_type), short)
    for i, n in enumerate(visible):
        garbage = entries.copy()
        garbage[n:] = np.where(np.arange(80) % 2, -65504, 65504)
        assert_same_bits(attend(q, garbage, latent, visible, isa=isa, kv_type=kv_type)[i], short[i])


@pytest.mark.parametrize("isa", _native.isas())
def test_one_position_gives_its_latent(isa):
    """p = 1, so the result is the value: as f16 keeps it, and in q8 its turned codes, turned back."""
    rng = np.random.default_rng(6)
    for size in (1, 1e-20, 1e30):
        x = (rng.standard_normal((1, 576)) * size).astype(np.float32)
        zero = np.zeros_like(x)
        np.testing.assert_array_equal(
            attend(zero, x, 512, [1], isa=isa), twins_rows.stored(x[:, :512]).astype(np.float32)
        )
        y = attend(zero, x, 512, [1], isa=isa, kv_type="q8")
        codes = twins.kept(x, 512)[:, :512]
        assert (np.abs(y - twins.turned(codes)) <= 20 * twins.U * np.abs(codes).sum() / np.sqrt(512)).all()
    for kv_type in ("f16", "q8"):
        assert (attend(x, zero, 512, [1], isa=isa, kv_type=kv_type) == 0).all()


@pytest.mark.parametrize("rope_size", [1, 30])
def test_as_exact_as_other_pages(rope_size, kv_type):
    """Against exact attention: no further off than pages that keep keys and values apart, with one scale each."""
    rng = np.random.default_rng(3)
    q, entries = rng.standard_normal((20, 576), np.float32), rng.standard_normal((700, 576), np.float32)
    entries[:, 512:] *= rope_size
    visible, scale = np.full(20, 700), 1 / 16 / rope_size
    scores = q.astype(np.float64) @ entries.T * scale
    p = np.exp(scores - scores.max(1, keepdims=True))
    exact = p / p.sum(1, keepdims=True) @ entries[:, :512]
    values = np.concatenate([entries[:, :512], np.zeros((700, 64), np.float32)], 1)
    other = _native.kernel_attend(_native.default_isa(), q, entries, values, visible, scale, kv_type)[:, :512]
    mine = attend(q, entries, 512, visible, scale, _native.default_isa(), kv_type)
    assert np.linalg.norm(mine - exact) <= 1.02 * np.linalg.norm(other - exact)
    assert np.linalg.norm(mine - exact) <= {"f16": 1e-3, "q8": 0.02}[kv_type] * np.linalg.norm(exact)


@pytest.mark.parametrize("size", [1e-6, 100.0, 1e4])
def test_extreme_scores(size, kv_type):
    """Scores up to +-size, equal or far apart, the largest in any chunk: no NaN, and still within the bound."""
    rng = np.random.default_rng(2)
    q = np.ones((4, 80), np.float32)
    q[1], q[2] = -1, 0
    entries = np.repeat(rng.uniform(-size, size, (700, 1)) / 80, 80, axis=1).astype(np.float32)
    visible = np.full(4, 700)
    visible[3] = 256
    scalar = attend(q, entries, 64, visible, 1.0, kv_type=kv_type)
    assert_within(scalar, twins.attend(q, entries, 64, visible, 1.0, kv_type))
    for isa in _native.isas():
        assert_same_bits(attend(q, entries, 64, visible, 1.0, isa, kv_type), scalar, err_msg=isa)


@pytest.mark.parametrize("threads", [1, 3])
def test_stored_once(threads, kv_type):
    """Threads change nothing, nor does a call what the next one gives."""
    rng = np.random.default_rng(8)
    entries = rng.standard_normal((700, 80), np.float32)
    pages = _native.LatentPages("", entries, 64, kv_type, threads)
    assert pages.nbytes == {"f16": 11 * 64 * 80 * 2, "q8": 11 * 64 * (80 + 8)}[kv_type]
    for m in (70, 2):
        q, visible = rng.standard_normal((m, 80), np.float32), rng.integers(1, 700, m, endpoint=True)
        y = np.full((m, 64), np.nan, np.float32)
        pages.attend(q, visible, 0.125, y)
        assert_same_bits(y, attend(q, entries, 64, visible, 0.125, _native.default_isa(), kv_type))
    with pytest.raises(ValueError, match=r"y: shape is \(1, 64\), expected \(2, 64\)"):
        pages.attend(q, visible, 0.125, y[:1].copy())


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("column", [33, 70])
def test_a_bad_query_shows_and_stays_alone(isa, bad, column, kv_type):
    q, entries, latent, visible = case(3, 7, 64, 16, 300)
    want = attend(q, entries, latent, visible, isa=isa, kv_type=kv_type)
    q[4, column] = bad
    got = attend(q, entries, latent, visible, isa=isa, kv_type=kv_type)
    assert np.isnan(got[4]).all()
    assert_same_bits(np.delete(got, 4, 0), np.delete(want, 4, 0))


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("column", [0, 31, 32, 39])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_value_is_reported_when_stored(isa, column, bad, kv_type):
    args = list(case(4, 1, 32, 8, 70))
    args[1][66, column] = bad
    with pytest.raises(ValueError, match="entries: position 66 is not finite"):
        attend(*args, isa=isa, kv_type=kv_type)


@pytest.mark.parametrize("latent, columns", [(20, 28), (0, 8), (32, 32), (32, 35)])
def test_columns(latent, columns):
    with pytest.raises(ValueError, match=f"latent: {latent} of {columns} columns, expected a multiple of 16"):
        _native.LatentPages("", np.zeros((1, columns), np.float32), latent)


@pytest.mark.parametrize("visible", [0, 34])
def test_visible_must_be_within_the_context(visible):
    q, entries, latent, _ = case(5, 1, 32, 8, 33)
    with pytest.raises(ValueError, match=f"visible: {visible}, expected 1 to 33"):
        attend(q, entries, latent, [visible])
