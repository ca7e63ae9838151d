"""Row kernels against their twins, and every instruction set against scalar, bit for bit."""

import math

import numpy as np
import pytest
import twins_rows as twins

from glmlite import _native

WIDTHS = [1, 15, 16, 17, 33, 64, 1000, 4096]


def bits(a):
    return a.view(np.uint32)


def check(kernel, args, twin):
    """kernel(isa, *args) for every set: within the twin's bound, and all the same bits."""
    want, bound = twin
    scalar = kernel("scalar", *args)
    assert scalar.dtype == np.float32 and scalar.shape == want.shape
    off = np.abs(scalar - want)
    assert (off <= bound).all(), f"off by {np.max(off / bound)} of the bound"
    for isa in _native.isas():
        np.testing.assert_array_equal(bits(kernel(isa, *args)), bits(scalar), err_msg=isa)
    return scalar


def f64(*arrays):
    return [a if a is None else a.astype(np.float64) for a in arrays]


def normal(rng, *shape, scale=1.0):
    return (rng.standard_normal(shape) * scale).astype(np.float32)


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("with_add", [False, True])
def test_rms_norm(n, with_add):
    rng = np.random.default_rng(n)
    x, w = normal(rng, 3, n), normal(rng, n)
    x[1] *= 1e-12  # eps decides
    x[2] *= 1e12
    add = normal(rng, 3, n) if with_add else None
    eps = float(np.float32(1e-5))
    check(_native.kernel_rms_norm, (x, w, add, eps), twins.rms_norm(*f64(x, w, add), eps))


def test_rms_norm_of_zero_is_zero():
    x, w = np.zeros((1, 40), np.float32), np.ones(40, np.float32)
    assert not check(_native.kernel_rms_norm, (x, w, None, 1e-6), twins.rms_norm(*f64(x, w, None), 1e-6)).any()


@pytest.mark.parametrize("n", WIDTHS)
def test_layer_norm(n):
    rng = np.random.default_rng(n)
    x, w, b = normal(rng, 3, n), normal(rng, n), normal(rng, n)
    x[1] += 100  # a mean far above the spread
    x[2] = 7.25  # no spread at all: eps decides
    eps = float(np.float32(1e-5))
    check(_native.kernel_layer_norm, (x, w, b, eps), twins.layer_norm(*f64(x, w, b), eps))


@pytest.mark.parametrize("n", WIDTHS)
def test_swiglu(n):
    rng = np.random.default_rng(n)
    x = normal(rng, 3, 2 * n, scale=3)
    x[1, :n] = np.linspace(-120, 120, n)
    check(_native.kernel_swiglu, (x,), twins.swiglu(*f64(x)))


@pytest.mark.parametrize("n", WIDTHS)
def test_gelu(n):
    rng = np.random.default_rng(n)
    x = normal(rng, 3, n, scale=3)
    x[1] = np.linspace(-15, 15, n)
    x[2] *= 1e-6  # where 1 + tanh is 1: the relative error must hold
    want, bound = twins.gelu(*f64(x))
    plain = 0.5 * f64(x)[0] * (1 + np.tanh(np.sqrt(2 / np.pi) * (f64(x)[0] + 0.044715 * f64(x)[0] ** 3)))
    assert (np.abs(plain - want) <= 1e-14 * np.maximum(np.abs(x), 1)).all()  # the twin is the formula
    check(_native.kernel_gelu, (x,), (want, bound))


@pytest.mark.parametrize("n", WIDTHS)
def test_exact_gelu(n):
    rng = np.random.default_rng(n)
    x = normal(rng, 3, n, scale=3)
    x[1] = np.linspace(-15, 15, n)
    x[2] *= 1e-6
    check(exact_gelu, (x,), twins.gelu_erf(*f64(x)))


def test_exact_gelu_is_no_other():
    """It differs from the form with tanh by more than both bounds, and is erf's where Python has that."""
    x = np.linspace(-4, 4, 801, dtype=np.float32)[None]
    (exact, bound), (other, _) = twins.gelu_erf(*f64(x)), twins.gelu(*f64(x))
    plain = 0.5 * f64(x)[0] * (1 + np.vectorize(math.erf)(f64(x)[0] / math.sqrt(2)))
    assert np.abs(plain - exact).max() < 1e-14 and np.abs(exact - other).max() > 100 * bound.max()


def exact_gelu(isa, x):
    return _native.kernel_gelu(isa, x, exact=True)


def test_activations_of_extremes():
    """No finite input gives NaN, the tails are 0 and x itself, and the sign of zero is the same in all sets."""
    below, above = [-3.4e38, -1e30, -1e6, -1e4, -104, -88.8], [88.8, 104, 1e4, 1e6, 1e30, 3.4e38]
    far = np.array([[*below, -0.0, 0.0, *above]], np.float32)
    gate_up = np.hstack([far, np.ones_like(far)])
    silu = check(_native.kernel_swiglu, (gate_up,), twins.swiglu(*f64(gate_up)))
    gelu = check(_native.kernel_gelu, (far,), (np.maximum(far, 0).astype(np.float64), np.full(far.shape, 2.0**-121)))
    exact = check(exact_gelu, (far,), (np.maximum(far, 0).astype(np.float64), np.zeros(far.shape)))
    for y in (silu, gelu, exact):
        assert (np.abs(y[0, :6]) <= 2.0**-121).all() and (y[0, 6:8] == 0).all() and (y[0, 8:] == far[0, 8:]).all()


@pytest.mark.parametrize("isa", _native.isas())
def test_nan_stays(isa):
    """A NaN is seen in what it reaches: the row for a norm, the element for an activation."""
    x = np.ones((2, 40), np.float32)
    x[0, 37] = np.nan
    w = np.ones(40, np.float32)
    for y in (_native.kernel_rms_norm(isa, x, w, None, 1e-5), _native.kernel_layer_norm(isa, x, w, w, 1e-5)):
        assert np.isnan(y[0]).all() and np.isfinite(y[1]).all()
    assert (np.isnan(_native.kernel_gelu(isa, x)) == np.isnan(x)).all()
    assert (np.isnan(exact_gelu(isa, x)) == np.isnan(x)).all()
    assert (np.isnan(_native.kernel_swiglu(isa, np.hstack([x, np.ones_like(x)]))) == np.isnan(x)).all()
    assert (np.isnan(_native.kernel_swiglu(isa, np.hstack([np.ones_like(x), x]))) == np.isnan(x)).all()


@pytest.mark.parametrize("layout", ["interleaved", "halves"])
@pytest.mark.parametrize("pairs", [1, 16, 32, 33])
def test_rope(layout, pairs):
    rng = np.random.default_rng(pairs)
    x = normal(rng, 3, 2 * pairs + 5)  # the last columns turn with nobody
    i = np.arange(pairs, dtype=np.int32)
    first, second = (2 * i, 2 * i + 1) if layout == "interleaved" else (i, i + pairs)
    angle = rng.uniform(-100, 100, pairs)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    twin = twins.rope(f64(x)[0], first, second, *f64(cos, sin))
    y = check(_native.kernel_rope, (x, first, second, cos, sin), twin)
    np.testing.assert_array_equal(y[:, 2 * pairs :], x[:, 2 * pairs :])


def test_wrong_arguments_are_named():
    x, w = np.zeros((2, 32), np.float32), np.zeros(31, np.float32)
    with pytest.raises(ValueError, match=r"w: shape is \(31\), expected \(32\)"):
        _native.kernel_rms_norm("scalar", x, w, None, 1e-5)
    with pytest.raises(ValueError, match="no such kernel set"):
        _native.kernel_gelu("no-such-set", x)
    with pytest.raises(TypeError):
        _native.kernel_gelu("scalar", x.astype(np.float64))
    with pytest.raises(ValueError, match="column 32 of 32"):
        pair = np.array([32], np.int32)
        _native.kernel_rope("scalar", x, pair, pair, w[:1], w[:1])
