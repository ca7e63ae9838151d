"""Storage formats, quantizing, packing and products of every kernel set against their twins, and against each other."""

import functools
import os
from pathlib import Path

import numpy as np
import pytest
import twins

from glmlite import _native

ISAS = _native.isas()
QUANTIZED = [f for f in twins.FORMATS if f not in twins.FLOATS]
TOKENS = [1, 2, 3, 5, 7, 8, 9, 12, 13, 33]


def random_rows(format: str, n: int, k: int, seed: int, f16=None) -> np.ndarray:
    """(n, bytes) of random codes and scales; every f16 field is drawn from `f16`, by default normal numbers."""
    rng = np.random.default_rng([seed, n, k])
    values, size, halves = twins.FORMATS[format]
    if format in twins.FLOATS:
        w = rng.standard_normal((n, k)).astype(np.float32)
        if format == "F16":
            return w.astype(np.float16).view(np.uint8)
        return w.view(np.uint8) if format == "F32" else (w.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    b = rng.integers(0, 256, (n, k // values, size), dtype=np.uint8)
    for at in halves:
        d = rng.normal(0, 0.02, b.shape[:2]) if f16 is None else rng.choice(f16, b.shape[:2])
        b[..., at : at + 2] = np.ascontiguousarray(d.astype(np.float16)[..., None]).view(np.uint8)
    return b.reshape(n, -1)


def random_x(tokens: int, k: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, tokens, k])
    return rng.standard_normal((tokens, k)).astype(np.float32)


@functools.cache
def case(format: str, n: int, k: int, tokens: int):
    rows, x = random_rows(format, n, k, 1), random_x(tokens, k)
    return rows, x, *twins.linear(format, rows, x)


def assert_within(got, want, bound):
    ok = np.abs(got - want) <= bound  # false for NaN
    assert ok.all(), f"{(~ok).sum()} of {ok.size} off, the worst by {np.abs(got - want).max():.3g}"


def assert_same(got, want):
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


# Largest, smallest, subnormal and signed f16 scales.
EXTREMES = np.array([0, -0.0, 6e-8, -6e-8, 5.9e-5, -6.1e-5, 1, -1, 65504, -65504], np.float16)


@pytest.mark.parametrize("f16", [None, EXTREMES], ids=["normal", "extreme"])
@pytest.mark.parametrize("format", twins.FORMATS)
def test_dequantize_is_ggufs(format, f16):
    import gguf

    rows = random_rows(format, 40, 512, 2, f16)
    rows[3] = 0
    if format == "Q8_0":
        rows[4].reshape(-1, 34)[:, 2:] = 0x80
    want = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[format])
    assert np.isfinite(want).all()
    assert_same(_native.dequantize(format, rows), np.ascontiguousarray(want, np.float32))
    assert_same(twins.weights(format, rows), np.ascontiguousarray(want, np.float32))


@pytest.mark.parametrize("n", [1, 15, 16, 17, 257])
@pytest.mark.parametrize("format", twins.FORMATS)
def test_packing_loses_nothing(format, n):
    block = twins.FORMATS[format][0]
    k = max(block, 32) * (2 if block == 256 else 9)
    rows = random_rows(format, n, k, 3, EXTREMES)
    want = _native.dequantize(format, rows)
    for row in {0, n // 2, n - 1}:
        for isa in ISAS:
            assert_same(_native.kernel_unpack_row(isa, format, rows, k, row), want[row])


@pytest.mark.parametrize("isa", ISAS)
def test_quantize(isa):
    x = random_x(9, 256)
    x[1] = 0
    x[2, :32] = np.linspace(-127, 127, 32)  # d = 1: halves stay halves
    x[2, 32:64] = np.r_[127, np.arange(31) - 15.5]
    x[2, 64:96] = np.r_[127, np.nextafter(np.arange(31, dtype=np.float32) - 15.5, np.float32(0))]
    x[3] *= 1e-32
    x[4] *= 1e-37
    x[5] *= 1e37
    x[6] = np.float32(2.0**-149)
    x[7] = -x[0]
    for got, want in zip(_native.kernel_quantize(isa, x), twins.quantize(x)):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("isa", ISAS)
def test_what_is_not_finite_stays_visible(isa, value):
    x = random_x(2, 96)
    x[1, 40] = value
    for got, want in zip(_native.kernel_quantize(isa, x), twins.quantize(x)):
        np.testing.assert_array_equal(got, want)
    y = _native.kernel_linear(isa, "Q4_0", random_rows("Q4_0", 5, 96, 4), x)
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n, k, tokens", [(1, 256, 1), (15, 256, 2), (16, 768, 5), (17, 512, 13), (257, 256, 3)])
@pytest.mark.parametrize("format", twins.FORMATS)
def test_linear(isa, format, n, k, tokens):
    rows, x, want, bound = case(format, n, k, tokens)
    got = _native.kernel_linear(isa, format, rows, x)
    assert_within(got, want, bound)
    assert_same(got, _native.kernel_linear("scalar", format, rows, x))


@pytest.mark.parametrize("format", QUANTIZED)
def test_scales_of_weights_that_are_not_finite(format):
    """Their rows are not finite, the others are as ever, and a token's result does not depend on how many there are."""
    rows, x = random_rows(format, 35, 512, 6), random_x(40, 512)
    clean = _native.kernel_linear("scalar", format, rows, x)
    _, size, halves = twins.FORMATS[format]
    for row, value in ((3, np.inf), (18, np.nan), (34, -np.inf)):
        at = size + halves[0]  # in the second block
        rows[row, at : at + 2] = np.array([value], np.float16).view(np.uint8)
    want = _native.kernel_linear("scalar", format, rows, x)
    bad = np.isin(np.arange(35), (3, 18, 34))
    assert not np.isfinite(want[:, bad]).any()
    assert_same(want[:, ~bad], clean[:, ~bad])
    for isa in ISAS:
        for tokens in (1, 8, 40):
            np.testing.assert_array_equal(_native.kernel_linear(isa, format, rows, x[:tokens]), want[:tokens], isa)


# Columns that are no multiple of 256; the widest feed-forward of the family.
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n, k, tokens", [(16, 32, 1), (33, 96, 7), (18, 13696, 6), (18, 13696, 1)])
@pytest.mark.parametrize("format", [f for f in twins.FORMATS if twins.FORMATS[f][0] <= 32])
def test_linear_of_blocks_of_32(isa, format, n, k, tokens):
    rows, x, want, bound = case(format, n, k, tokens)
    got = _native.kernel_linear(isa, format, rows, x)
    assert_within(got, want, bound)
    assert_same(got, _native.kernel_linear("scalar", format, rows, x))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("format", twins.FLOATS)
def test_float_weights_of_any_width(isa, format, k):
    rows, x, want, bound = case(format, 19, k, 5)
    assert_within(_native.kernel_linear(isa, format, rows, x), want, bound)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", twins.FORMATS)
def test_a_row_does_not_depend_on_the_others(isa, format):
    rows, x = random_rows(format, 49, 512, 5), random_x(33, 512)
    alone = np.vstack([_native.kernel_linear(isa, format, rows, x[t : t + 1]) for t in range(33)])
    for tokens in TOKENS:
        assert_same(_native.kernel_linear(isa, format, rows, x[-tokens:]), alone[-tokens:])
    assert_same(_native.kernel_linear(isa, format, rows, x, threads=3), alone)


@pytest.mark.parametrize("threads", [1, 3])
def test_packed_once(threads):
    rows = random_rows("Q4_K", 300, 512, 8)
    w = _native.PackedMatrix("", "Q4_K", rows, threads)
    for tokens in (2, 40, 1):  # its room grows, and is used again
        x, y = random_x(tokens, 512), np.full((tokens, 300), np.nan, np.float32)
        w.multiply(x, y)
        assert_same(y, _native.kernel_linear("", "Q4_K", rows, x))
    with pytest.raises(ValueError, match=r"multiply: y is \(1, 300\), expected \(2, 300\)"):
        w.multiply(random_x(2, 512), y)
    with pytest.raises(ValueError, match="threads is 0, expected 1 to 1024"):
        _native.PackedMatrix("", "Q4_K", rows, 0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", QUANTIZED)
def test_largest_integers(isa, format):
    """Every code at its ends, every activation at +-127: no intermediate may saturate."""
    for code in (0x00, 0xFF, 0x80, 0x7F):
        rows = random_rows(format, 17, 512, 6, np.array([1], np.float16))
        blocks = rows.reshape(17, -1, twins.FORMATS[format][1])
        halves = {at + i for at in twins.FORMATS[format][2] for i in (0, 1)}
        blocks[..., [i for i in range(blocks.shape[-1]) if i not in halves]] = code
        for x in (np.ones(512), -np.ones(512), np.where(np.arange(512) % 2, 1, -1)):
            x = np.broadcast_to(x.astype(np.float32), (6, 512)).copy()
            for tokens in (1, 6):
                got = _native.kernel_linear(isa, format, rows, x[:tokens])
                assert_within(got, *twins.linear(format, rows, x[:tokens]))


@pytest.mark.parametrize("format", QUANTIZED)
def test_one_wrong_bit_is_seen(format):
    rows, x, want, bound = case(format, 16, 256, 1)
    wrong = rows.copy()
    wrong[5, 40 if format != "Q8_0" else 30] ^= 0x11
    got = _native.kernel_linear("scalar", format, wrong, x)
    assert (np.abs(got - want) > bound)[0, 5]


def is_amd():
    """Whether this is a CPU of AMD's, as Linux and Windows tell."""
    told = Path("/proc/cpuinfo")
    return "AuthenticAMD" in os.environ.get("PROCESSOR_IDENTIFIER", "") + (told.read_text() if told.exists() else "")


def test_default_isa(monkeypatch):
    monkeypatch.delenv("GLMLITE_ISA", raising=False)
    assert _native.default_isa() == next(isa for isa in ISAS if is_amd() or not isa.endswith("_amd"))
    for isa in ISAS:
        monkeypatch.setenv("GLMLITE_ISA", isa)
        assert _native.default_isa() == isa
    monkeypatch.setenv("GLMLITE_ISA", "abacus")
    with pytest.raises(ValueError, match=r"GLMLITE_ISA=abacus: no such kernel set; built: .*scalar"):
        _native.default_isa()
    for isa in set(_native.built_isas()) - set(ISAS):
        monkeypatch.setenv("GLMLITE_ISA", isa)
        with pytest.raises(ValueError, match="cannot run"):
            _native.default_isa()


def test_says_what_is_wrong():
    rows, x = np.zeros((2, 18), np.uint8), np.zeros((1, 64), np.float32)
    with pytest.raises(ValueError, match=r"multiply: x is \(1, 64\), expected \(T, 32\)"):
        _native.kernel_linear("scalar", "Q4_0", rows, x)
    with pytest.raises(ValueError, match=r"rows are \(2, 18\), expected .* multiple of 34"):
        _native.kernel_linear("scalar", "Q8_0", rows, x)
    with pytest.raises(ValueError, match="format 'Q9' is unknown; known: F32"):
        _native.kernel_linear("scalar", "Q9", rows, x)
    with pytest.raises(TypeError):
        _native.kernel_linear("scalar", "Q4_0", rows, x.astype(np.float64))
