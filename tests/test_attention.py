"""Attention over KV pages against its twin, and what must not change a bit of it."""

import numpy as np
import pytest
import twins_rows as twins

from glmlite import _native

QUERIES = [1, 2, 5, 16, 33]
CONTEXTS = [1, 31, 32, 33, 255, 256, 257, 700]


@pytest.fixture(params=["f16", "q8"])
def kv_type(request):
    return request.param


def attend(q, k, v, visible, scale=None, isa="scalar", kv_type="f16"):
    scale = 1 / np.sqrt(q.shape[1]) if scale is None else scale
    return _native.kernel_attend(isa, q, k, v, np.asarray(visible, np.int64), scale, kv_type)


def assert_same_bits(a, b, **why):
    np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32), **why)


def assert_within(got, twin):
    want, bound = twin
    off = np.abs(got - want)
    assert (off <= bound).all(), f"off by {np.max(off / bound)} of the bound"


def case(seed, m, head_dim, ctx, scale=1.0):
    rng = np.random.default_rng(seed)
    q, k, v = ((rng.standard_normal((n, head_dim)) * scale).astype(np.float32) for n in (m, ctx, ctx))
    visible = rng.integers(1, ctx, m, endpoint=True)
    visible[-1] = ctx
    return q, k, v, visible


@pytest.mark.parametrize("ctx", CONTEXTS)
@pytest.mark.parametrize("head_dim", [1, 32, 64, 80, 100, 128, 256])
def test_attend(head_dim, ctx, kv_type):
    for m in QUERIES:
        q, k, v, visible = case(m, m, head_dim, ctx)
        scalar = attend(q, k, v, visible, kv_type=kv_type)
        assert_within(scalar, twins.attend(q, k, v, visible, 1 / np.sqrt(head_dim), kv_type))
        for isa in _native.isas():
            got = attend(q, k, v, visible, isa=isa, kv_type=kv_type)
            assert_same_bits(got, scalar, err_msg=f"{isa}, {m} queries")


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("head_dim", [80, 128])
def test_a_query_depends_on_no_other(isa, head_dim, kv_type):
    q, k, v, visible = case(0, 33, head_dim, 700)
    together = attend(q, k, v, visible, isa=isa, kv_type=kv_type)
    for i in range(33):
        alone = attend(q[i : i + 1], k, v, visible[i : i + 1], isa=isa, kv_type=kv_type)
        assert_same_bits(together[i : i + 1], alone, err_msg=f"query {i}")


@pytest.mark.parametrize("isa", _native.isas())
def test_what_is_not_visible_has_no_influence(isa, kv_type):
    """Neither its values, nor how far the context goes on: a chunk of which a query sees nothing merges as nothing."""
    q, k, v, visible = case(1, 16, 64, 700)
    visible[:] = np.minimum(visible, 300)
    visible[0] = 10
    short = attend(q, k[:300], v[:300], visible, isa=isa, kv_type=kv_type)
    assert_same_bits(attend(q, k, v, visible, isa=isa, kv_type=kv_type), short)
    for i, n in enumerate(visible):
        garbage_k, garbage_v = k.copy(), v.copy()
        garbage_k[n:], garbage_v[n:] = -65504, 65504
        assert_same_bits(attend(q, garbage_k, garbage_v, visible, isa=isa, kv_type=kv_type)[i], short[i])


@pytest.mark.parametrize("isa", _native.isas())
def test_one_position_gives_its_value_as_f16(isa):
    """p = 1 and sum = 1, so the result is what the page keeps: every way a value can round."""
    half = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (half[:-1] + half[1:]) / 2  # ties
    v = np.concatenate(
        [
            half,
            between,
            np.nextafter(between, np.float32(0)),
            np.nextafter(between, np.float32(1e9)),
            np.float32([65504, 65519, 65520, 1e6, 3e38, 1e-9, 1e-40]),
        ]
    )
    v = np.concatenate([v, -v])[None]
    y = attend(np.ones_like(v), np.zeros_like(v), v, [1], isa=isa)
    np.testing.assert_array_equal(y, twins.stored(v))


@pytest.mark.parametrize("isa", _native.isas())
def test_one_position_gives_its_codes(isa):
    """p = 1, so the weight is the value's scale in whole numbers: the largest one, and so exact but for its factor."""
    v = np.random.default_rng(6).standard_normal((1, 256)).astype(np.float32)
    v[0, :3] = 3.5, 0, -3.5
    for x in (v, v * np.float32(1e-20), v * np.float32(1e30)):
        y = attend(np.ones_like(x), np.zeros_like(x), x, [1], isa=isa, kv_type="q8")
        want = twins.stored_q8(x).astype(np.float64)
        assert (np.abs(y - want) <= 6 * twins.U * np.abs(want)).all()
    assert (attend(v, v, np.zeros_like(v), [1], isa=isa, kv_type="q8") == 0).all()


def test_rotation_keeps_products_and_spreads_an_outlier():
    rng = np.random.default_rng(7)
    for head_dim in (1, 7, 64, 80, 128):
        q, k = rng.standard_normal((2, 9, head_dim)).astype(np.float32)
        kept = twins.rotate(q).astype(np.float64) @ twins.rotate(k).astype(np.float64).T
        size = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(k, axis=1)
        assert (np.abs(kept - q.astype(np.float64) @ k.T) <= 20 * twins.U * size).all()
    outlier = np.zeros((1, 128), np.float32)
    outlier[0, 5] = 8
    np.testing.assert_allclose(np.abs(twins.rotate(outlier)), 8 / np.sqrt(128), rtol=1e-6)


@pytest.mark.parametrize("isa", _native.isas())
def test_weights_are_exponentials(isa):
    """Two positions, head_dim 1: e^s / (1 + e^s), over all scores down to where it is 0, and never a subnormal."""
    for s in -np.linspace(0, 120, 700).astype(np.float16).astype(np.float32):
        y = attend(np.ones((1, 1), np.float32), np.float32([[0], [s]]), np.float32([[0], [1]]), [2], 1.0, isa)[0, 0]
        want = np.exp(np.float64(s)) / (1 + np.exp(np.float64(s)))
        if s < -69:
            assert y == 0
        else:
            assert abs(y - want) <= want * (2 * twins.EXP + 3 * twins.U)


@pytest.mark.parametrize("size", [100.0, 1e4])
def test_extreme_scores(size, kv_type):
    """Scores up to +-size, equal or far apart, the largest in any chunk: no NaN, and still within the bound."""
    rng = np.random.default_rng(2)
    q = np.ones((4, 64), np.float32)
    q[1], q[2] = -1, 0
    k = np.repeat(rng.uniform(-size, size, (700, 1)) / 64, 64, axis=1).astype(np.float32)
    v = rng.standard_normal((700, 64)).astype(np.float32)
    visible = np.full(4, 700)
    visible[3] = 256
    scalar = attend(q, k, v, visible, 1.0, kv_type=kv_type)
    assert np.isfinite(scalar).all()
    assert_within(scalar, twins.attend(q, k, v, visible, 1.0, kv_type))
    for isa in _native.isas():
        assert_same_bits(attend(q, k, v, visible, 1.0, isa, kv_type), scalar, err_msg=isa)


@pytest.mark.parametrize("threads", [1, 3])
def test_stored_once(threads, kv_type):
    """Heads and threads change nothing, nor does a call what the next one gives."""
    rng = np.random.default_rng(8)
    k, v = rng.standard_normal((2, 3, 700, 64), np.float32)
    pages = _native.KvPages("", k, v, kv_type, threads)
    for m in (70, 2):
        q, visible = rng.standard_normal((3, m, 64), np.float32), rng.integers(1, 700, m, endpoint=True)
        y = np.full_like(q, np.nan)
        pages.attend(q, visible, 0.125, y)
        for h in range(3):
            want = attend(q[h], k[h], v[h], visible, isa=_native.default_isa(), kv_type=kv_type)
            assert_same_bits(y[h], want, err_msg=f"head {h}")
    with pytest.raises(ValueError, match=r"y: shape is \(3, 1, 64\), expected \(3, 2, 64\)"):
        pages.attend(q, visible, 0.125, y[:, :1].copy())


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_query_shows_and_stays_alone(isa, bad, kv_type):
    q, k, v, visible = case(3, 7, 64, 300)
    want = attend(q, k, v, visible, isa=isa, kv_type=kv_type)
    q[4, 33] = bad
    got = attend(q, k, v, visible, isa=isa, kv_type=kv_type)
    assert np.isnan(got[4]).all()
    assert_same_bits(np.delete(got, 4, 0), np.delete(want, 4, 0))


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("side", [1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_value_is_reported_when_stored(isa, side, bad, kv_type):
    args = list(case(4, 1, 40, 70))
    args[side][66, 37] = bad
    with pytest.raises(ValueError, match="position 66"):
        attend(*args, isa=isa, kv_type=kv_type)


@pytest.mark.parametrize("visible", [0, 34])
def test_visible_must_be_within_the_context(visible):
    q, k, v, _ = case(5, 1, 32, 33)
    with pytest.raises(ValueError, match=f"visible: {visible}, expected 1 to 33"):
        attend(q, k, v, [visible])
