"""The quantizers: equal to their numpy twins, decoded by the engine's reader, at most llama.cpp's errors."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import twins
import twins_quantize
from oracles import llamacpp_quantize as llamacpp

from glmlite import _native as native
from glmlite import quantize

BLOCKS = [name for name, family in quantize.FAMILIES.items() if family != "floats"]
LLAMA_CPP = json.loads((Path(__file__).parent / "data" / "llamacpp_quantize.json").read_text())
LOWER = ("q4_0", "q4_k", "iq4_xs")  # where less than llama.cpp's error is wanted, not only as little


def decode(type, rows):
    return native.dequantize(type.upper(), rows)


def hard_matrix(n=5, k=768):
    """Rows of every kind: normal, heavy tails, an offset, one sign, zeros, tiny, huge, one outlier, few values."""
    rng = np.random.default_rng(7)
    rows = [
        rng.standard_normal(k),
        rng.standard_t(2, k),
        rng.standard_normal(k) + 5,
        -np.abs(rng.standard_normal(k)),
        np.zeros(k),
        rng.standard_normal(k) * 1e-7,
        np.full(k, 1e-44),
        rng.uniform(-65504, 65504, k),
        np.eye(1, k, 40)[0] * 1000,
        rng.integers(-2, 3, k),
        np.where(np.arange(k) // 32 % 2, rng.standard_normal(k), 0),
        np.where(np.arange(k) // 16 % 3, rng.standard_normal(k) * 1e-3, 60000.0),
    ]
    return np.array(rows, np.float32)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("type", BLOCKS)
def test_equals_twin(type, weighted):
    x = hard_matrix()
    importance = None
    if weighted:
        importance = np.exp(2 * np.random.default_rng(8).standard_normal(x.shape[1])).astype(np.float32)
        importance[64:128] = 0
    family = quantize.FAMILIES[type]
    arguments = import_module(f"glmlite.quantize.{family}").ARGUMENTS[type][weighted]
    seen = quantize._importance(importance, x.shape[1]) if weighted else None
    want = twins_quantize.fields(family, arguments, x, seen)
    rows = quantize.quantize(x, type, importance)
    got = twins.fields(type.upper(), rows)
    for name, a, b in zip(("scales", "codes", "minimums"), got, want):
        assert (a is None) == (b is None)
        if a is None:
            continue
        live = np.ones_like(a, bool)
        if name == "codes":  # of a zero scale they say nothing
            live &= (want[0] != 0)[..., None]
        assert np.array_equal(a[live], b[live]), name
    w, q, m = want
    values = w[..., None] * q.astype(np.float32)
    values = (values if m is None else values + m[..., None]).reshape(x.shape)
    assert np.array_equal(decode(type, rows), values)


@pytest.mark.parametrize("type", BLOCKS)
def test_error_is_at_most_llama_cpps(type):
    for case in llamacpp.CASES:
        x, importance = llamacpp.matrix(case)
        error = quantize.rms_error(x, quantize.quantize(x, type, importance), type, importance)
        bar = LLAMA_CPP[type][case]
        assert error <= bar * (0.99 if type in LOWER else 1), case


@pytest.mark.parametrize("type", BLOCKS)
def test_gguf_decodes_the_same(type):
    import gguf

    rows = quantize.quantize(hard_matrix(), type)
    theirs = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[type.upper()])
    assert np.array_equal(decode(type, rows), theirs)


@pytest.mark.parametrize("type", list(quantize.FAMILIES))
def test_threads_do_not_change_bytes(type):
    x = np.random.default_rng(1).standard_normal((67, 1280), np.float32)
    rows = quantize.quantize(x, type, threads=1)
    assert rows.shape == (67, quantize.row_bytes(type, 1280))
    for threads in (2, 5):
        out = np.full_like(rows, 0xAB)
        assert quantize.quantize(x, type, threads=threads, out=out) is out
        assert np.array_equal(out, rows)
    # A row's bytes depend on that row only.
    assert np.array_equal(quantize.quantize(x[40:41], type), rows[40:41])


def test_float_formats():
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((3, 70)) * 10.0 ** rng.integers(-9, 4, (3, 70))).astype(np.float32)
    x[0, :4] = 65504, -65504, 0, -0.0
    assert np.array_equal(quantize.quantize(x, "f32").view(np.float32), x)
    assert np.array_equal(quantize.quantize(x, "f16").view(np.uint16), x.astype(np.float16).view(np.uint16))
    got = decode("bf16", quantize.quantize(x, "bf16"))
    unit = np.exp2(np.floor(np.log2(np.abs(np.where(x == 0, 1, x)).astype(np.float64))) - 7)
    assert (np.abs(got - x.astype(np.float64)) <= unit / 2).all()
    ties = np.array([[1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8]], np.float32)
    assert decode("bf16", quantize.quantize(ties, "bf16")).tolist() == [[1, 1 + 2**-6, -1]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65505.0 * 2, -1e30])
@pytest.mark.parametrize("type", list(quantize.FAMILIES))
def test_refuses_what_it_cannot_store(type, value):
    x = np.random.default_rng(3).standard_normal((300, 512), np.float32)
    x[200, 300] = x[250, 7] = value
    if type in ("f32", "bf16") and np.isfinite(value):
        assert np.allclose(decode(type, quantize.quantize(x, type)), x, rtol=2**-8)
        return
    for threads in (1, 3):
        with pytest.raises(ValueError, match=rf"row 200, column 300 is .*; {type} stores finite"):
            quantize.quantize(x, type, threads=threads)


def test_refuses_wrong_arguments():
    x = np.zeros((2, 96), np.float32)
    with pytest.raises(ValueError, match="unknown type 'q9'; known: f32, f16"):
        quantize.quantize(x, "q9")
    with pytest.raises(ValueError, match="rows of 96 values, q4_k needs a multiple of 256"):
        quantize.quantize(x, "q4_k")
    with pytest.raises(ValueError, match="x is float64"):
        quantize.quantize(x.astype(np.float64), "q4_0")
    with pytest.raises(ValueError, match="not contiguous"):
        quantize.quantize(np.zeros((96, 32), np.float32).T, "q4_0")
    with pytest.raises(ValueError, match=r"importance is \(95,\), expected \(96,\)"):
        quantize.quantize(x, "q4_0", np.ones(95, np.float32))
    for bad in (np.nan, np.inf, -1):
        importance = np.ones(96, np.float32)
        importance[3] = bad
        with pytest.raises(ValueError, match=r"importance\[3\]"):
            quantize.quantize(x, "q4_0", importance)
    with pytest.raises(ValueError, match="threads is 0, expected at least 1"):
        quantize.quantize(x, "q4_0", threads=0)
    with pytest.raises(ValueError, match=r"out is uint8 \(2, 53\), expected .* \(2, 54\)"):
        quantize.quantize(x, "q4_0", out=np.zeros((2, 53), np.uint8))


def test_takes_a_read_only_array_that_is_not_aligned():
    x = np.random.default_rng(4).standard_normal((2, 64), np.float32)
    mapped = np.frombuffer(b"." + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(2, 64)
    assert not mapped.flags.aligned and not mapped.flags.writeable
    assert np.array_equal(quantize.quantize(mapped, "q4_0"), quantize.quantize(x, "q4_0"))


def test_importance_matters_by_its_ratios_only():
    x = np.random.default_rng(5).standard_normal((4, 256), np.float32)
    importance = np.exp(np.random.default_rng(6).standard_normal(256)).astype(np.float32)
    rows = quantize.quantize(x, "q4_k", importance)
    assert np.array_equal(quantize.quantize(x, "q4_k", importance * 2**60), rows)
    assert not np.array_equal(quantize.quantize(x, "q4_k"), rows)
    assert np.array_equal(
        quantize.quantize(x, "q4_k", np.zeros(256, np.float32)),
        quantize.quantize(x, "q4_k", np.ones(256, np.float32)),
    )


def test_numba_is_imported_only_for_blocks(tmp_path):
    """And compiles where no folder can be written: an install that is read-only, with no home."""
    code = """if True:
        import sys, numpy as np
        from glmlite import quantize
        x = np.ones((1, 32), np.float32)
        quantize.quantize(x, "f16")
        assert "numba" not in sys.modules
        import numba.core.caching as caching
        for locator in caching.CacheImpl._locator_classes:
            locator.from_function = classmethod(lambda cls, function, path: None)
        assert quantize.quantize(x, "q4_0").shape == (1, 18)
        print("done")
    """
    path = os.pathsep.join([str(Path(quantize.__file__).parents[2]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.stdout == "done\n", done.stderr


def test_types_in_any_case():
    x = np.random.RandomState(0).randn(2, 256).astype(np.float32)
    assert quantize.row_bytes("Q4_K", 256) == quantize.row_bytes("q4_k", 256)
    assert np.array_equal(quantize.quantize(x, "Q4_K"), quantize.quantize(x, "q4_k"))
