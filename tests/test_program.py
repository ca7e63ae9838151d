"""The recorder: what it appends, and what it refuses."""

import math

import numpy as np
import pytest

from glmlite.errors import FormatError
from glmlite.program import Recorder, Rope, Value, Yarn

SHAPES = {
    "embd": (10, 8),
    "places": (4, 8),
    "norm": (8,),
    "short": (7,),
    "a": (6, 8),
    "a.bias": (6,),
    "b": (2, 8),
    "b.bias": (2,),
    "qkv": (32, 8),
    "odd": (7, 8),
    "head": (4,),
    "factors": (2,),
    "prefix": (3, 8),
    "prefix.long": (4, 8),
    "router": (4, 8),
    "router.bias": (4,),
    "routers": (2**24, 8),
    "gate": (4, 6, 8),
    "up": (4, 6, 8),
    "up.short": (4, 5, 8),
    "gate_up": (4, 12, 8),
    "odd_experts": (4, 7, 8),
    "few": (3, 6, 8),
    "down": (4, 8, 6),
    "heads": (2, 5, 3),
    "latent": (3,),
}


@pytest.fixture
def r():
    return Recorder(SHAPES)


def test_ops_are_listed_with_their_slots(r):
    x = r.embed("embd", ["places"])
    y = r.linear(r.rms_norm(x, "norm", 1e-5), ["a", "b"], bias=["a.bias", "b.bias"], add=x, alpha=2)
    assert (y.id, y.width) == (2, 8)
    embed, norm, linear = r.ops
    assert embed.weights == {"table": ("embd",), "positions": ("places",)}
    assert (norm.inputs, norm.attrs) == ({"x": x}, {"eps": 1e-5})
    assert linear.inputs == {"x": norm.out, "add": x}
    assert linear.weights == {"w": ("a", "b"), "b": ("a.bias", "b.bias")}
    assert linear.attrs == {"alpha": 2.0}


def test_slots_not_given_are_absent(r):
    r.linear(r.embed("embd"), "a")
    assert r.ops[0].weights == {"table": ("embd",)}
    assert r.ops[1].weights == {"w": ("a",)} and r.ops[1].inputs.keys() == {"x"}


def test_a_program_prints(r):
    r.rms_norm(r.embed("embd"), "norm", 1e-5)
    assert [str(op) for op in r.ops] == ["%0[8] = embed(table=embd)", "%1[8] = rms_norm(x=%0, w=norm, eps=1e-05)"]


def attention(r, **changes):
    arguments = {"layer": 3, "heads": 4, "kv_heads": 2, "head_dim": 4, "rope": Rope(4, 1e4, True)} | changes
    return r.attention(r.linear(r.embed("embd"), "qkv"), **arguments)


def test_attention(r):
    y = attention(r, q_norm="head", k_norm="head", norm_eps=1e-6, prefix=("prefix", "prefix"))
    op = r.ops[-1]
    assert y.width == 16
    assert op.weights == {"q_norm": ("head",), "k_norm": ("head",), "prefix": ("prefix", "prefix")}
    assert op.attrs["scale"] == 0.5 and op.attrs["layer"] == 3


def routing(r, x, **changes):
    return r.route(x, "router", "router.bias", **({"used": 2, "scale": 1.5} | changes))


def test_experts(r):
    x = r.embed("embd")
    chosen = routing(r, x)
    y = r.moe(x, chosen, ["gate", "up"], "down", add=x)
    fused = r.moe(x, chosen, "gate_up", "down")
    assert (chosen.width, y.width, fused.width) == (4, 8, 8)
    route, two, one = r.ops[1:]
    assert route.weights == {"gate": ("router",), "bias": ("router.bias",)}
    assert route.attrs == {"used": 2, "scale": 1.5}
    assert two.inputs == {"x": x, "routing": chosen, "add": x} and two.attrs == {"used": 2}
    assert two.weights == {"gate_up": ("gate", "up"), "down": ("down",)}
    assert one.weights == {"gate_up": ("gate_up",), "down": ("down",)} and one.inputs == {"x": x, "routing": chosen}


def latent_attention(r, q=14, kv=7, **changes):
    """Two heads of 3 + 4 columns."""
    sizes = {"heads": 2, "latent": 3, "rope": Rope(4, 1e4, True), "scale": 0.5, "norm": "latent", "norm_eps": 1e-5}
    return r.latent_attention(Value(0, q), Value(0, kv), 3, **(sizes | changes))


def test_latent_attention(r):
    y = latent_attention(r, rope=Rope(4, 1e4, True, factors="factors"))
    op = r.ops[-1]
    assert y.width == 6 and [v.width for v in op.inputs.values()] == [14, 7]
    assert op.weights == {"w": ("latent",), "rope_factors": ("factors",)}
    assert (op.attrs["layer"], op.attrs["heads"], op.attrs["latent"], op.attrs["scale"]) == (3, 2, 3, 0.5)


def test_widths(r):
    x = r.embed("embd")
    assert r.swiglu(x).width == 4
    assert r.gelu(x).width == 8
    assert r.layer_norm(x, "norm", "norm", 1e-5).width == 8
    assert r.select(x).width == 8
    assert r.input(5).width == 5
    assert r.concat(x, r.linear(x, "odd")).width == 15
    assert r.head_linear(Value(0, 6), "heads").width == 10
    assert r.head_linear(Value(0, 14), "heads", keep=4).width == 18


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r, x: r.embed("nowhere"), "embed: the file has no tensor 'nowhere'"),
        (lambda r, x: r.embed("norm"), r"'norm' is \(8,\), expected \(any, any\)"),
        (lambda r, x: r.embed("embd", ["odd", "factors"]), r"'factors' is \(2,\), expected \(any, 8\)"),
        (lambda r, x: r.rms_norm(x, "short", 1e-5), r"rms_norm: 'short' is \(7,\), expected \(8\)"),
        (lambda r, x: r.rms_norm(x, "norm", math.nan), "eps is nan"),
        (lambda r, x: r.rms_norm(x, "norm", -1), "eps is -1"),
        (lambda r, x: r.layer_norm(x, "norm", "short", 1e-5), "layer_norm: 'short'"),
        (lambda r, x: r.linear(x, "norm"), r"linear: 'norm' is \(8,\), expected \(any, 8\)"),
        (lambda r, x: r.linear(x, "a", bias="b.bias"), r"'b.bias' is \(2,\), expected \(6\)"),
        (lambda r, x: r.linear(x, "a", add=x), "'a' makes 6 columns, what is added has 8"),
        (lambda r, x: r.swiglu(r.linear(x, "odd")), "7 columns do not split"),
        (
            lambda r, x: attention(r, heads=5, kv_heads=1),
            r"layer 3: qkv has 32 columns, 5 \+ 2 \* 1 heads",
        ),
        (lambda r, x: attention(r, rope=Rope(6, 1e4, True)), "rope turns 6 columns, a head has 4"),
        (lambda r, x: attention(r, rope=Rope(4, 1e4, True, factors="head")), r"'head' is \(4,\), expected \(2\)"),
        (lambda r, x: attention(r, q_norm="norm"), r"'norm' is \(8,\), expected \(4\)"),
        (lambda r, x: attention(r, prefix=("prefix", "prefix.long")), r"expected \(3, 8\)"),
        (lambda r, x: r.head_linear(x, "a"), r"head_linear: 'a' is \(6, 8\), expected \(any, any, any\)"),
        (lambda r, x: r.head_linear(x, "heads", keep=2), r"2 heads of 3 \+ 2 columns need 10, what it gets has 8"),
        (lambda r, x: latent_attention(r, q=13), r"layer 3: q has 13 columns, 2 of 3 \+ 4 need 14"),
        (lambda r, x: latent_attention(r, kv=8), r"layer 3: kv has 8 columns, 1 of 3 \+ 4 need 7"),
        (lambda r, x: latent_attention(r, norm="head"), r"latent_attention: 'head' is \(4,\), expected \(3\)"),
        (lambda r, x: latent_attention(r, norm_eps=math.nan), "latent_attention: eps is nan"),
        (
            lambda r, x: latent_attention(r, rope=Rope(4, 1e4, True, factors="head")),
            r"'head' is \(4,\), expected \(2\)",
        ),
        (lambda r, x: routing(r, Value(0, 7)), r"route: 'router' is \(4, 8\), expected \(any, 7\)"),
        (lambda r, x: r.route(x, "router", "b.bias", used=2), r"route: 'b.bias' is \(2,\), expected \(4\)"),
        (lambda r, x: routing(r, x, used=5), "'router' has 4 rows, expected 5 or more experts"),
        (lambda r, x: r.route(x, "routers", used=5), r"'routers' has 16777216 rows, .* below 2\^24"),
        (lambda r, x: r.moe(x, routing(r, x), "few", "down"), r"moe: 'few' is \(3, 6, 8\), expected \(4, any, 8\)"),
        (lambda r, x: r.moe(x, routing(r, x), ["gate", "up.short"], "down"), r"expected \(4, 6, 8\)"),
        (lambda r, x: r.moe(x, routing(r, x), "odd_experts", "down"), "7 rows an expert, which do not split"),
        (lambda r, x: r.moe(x, routing(r, x), "gate", "down"), r"'down' is \(4, 8, 6\), expected \(4, any, 3\)"),
        (lambda r, x: r.moe(x, routing(r, x), "gate_up", "down", add=Value(0, 9)), "'down' makes 8 columns"),
    ],
)
def test_a_file_that_does_not_fit(r, call, message):
    with pytest.raises(FormatError, match=message):
        call(r, r.embed("embd"))


@pytest.mark.parametrize(
    "call",
    [
        lambda r, x: r.linear(x, ["a", "b"], bias=["a.bias"]),
        lambda r, x: attention(r, heads=0),
        lambda r, x: attention(r, heads=3, kv_heads=2),
        lambda r, x: r.select(r.select(x)),
        lambda r, x: Rope(0, 1e4, True),
        lambda r, x: r.input(0),
        lambda r, x: r.head_linear(x, "heads", keep=-1),
        lambda r, x: latent_attention(r, q=0, heads=0),
        lambda r, x: latent_attention(r, scale=0),
        lambda r, x: routing(r, x, used=0),
        lambda r, x: routing(r, x, scale=math.inf),
        lambda r, x: r.moe(x, x, "gate_up", "down"),
        lambda r, x: r.moe(x, routing(r, x), [], "down"),
        lambda r, x: r.moe(x, routing(r, x), ["gate", "up", "up"], "down"),
        lambda r, x: Rope(6, 1e4, True, axes=(0, 1)),
        lambda r, x: Rope(4, math.inf, True),
        lambda r, x: Rope(4, 1e4, True, scale=0),
    ],
)
def test_a_model_file_that_is_wrong(r, call):
    with pytest.raises(ValueError):
        call(r, r.embed("embd"))


def test_rope_pairs():
    interleaved = Rope(8, 1e4, True).table()
    assert interleaved.first.tolist() == [0, 2, 4, 6] and interleaved.second.tolist() == [1, 3, 5, 7]
    halves = Rope(8, 1e4, False).table()
    assert halves.first.tolist() == [0, 1, 2, 3] and halves.second.tolist() == [4, 5, 6, 7]
    for table in (interleaved, halves):
        assert np.allclose(table.freq, [1, 0.1, 0.01, 0.001], rtol=1e-15, atol=0)
        assert table.axis.tolist() == [0] * 4 and table.magnitude == 1
        assert table.first.dtype == table.second.dtype == table.axis.dtype == np.int32


def test_rope_sections_turn_by_their_own_axis():
    table = Rope(8, 1e4, False, axes=(0, 1)).table()
    assert table.first.tolist() == [0, 1, 4, 5] and table.second.tolist() == [2, 3, 6, 7]
    assert table.axis.tolist() == [0, 0, 1, 1]
    assert np.allclose(table.freq, [1, 0.01, 1, 0.01], rtol=1e-15, atol=0)


def test_rope_scale_and_factors_divide_the_frequencies():
    plain = Rope(8, 1e4, True).table().freq
    assert np.allclose(Rope(8, 1e4, True, scale=4).table().freq, plain / 4, rtol=1e-15, atol=0)
    factors = np.array([1, 2, 4, 8], np.float32)
    assert np.allclose(Rope(8, 1e4, True, factors="f").table(factors).freq, plain / factors, rtol=1e-15, atol=0)


def test_yarn_keeps_high_and_divides_low_frequencies():
    """Frequencies of more than beta_fast turns in the original context stay, of fewer than beta_slow are divided."""
    yarn = Yarn(factor=4.0, original_context=32768)
    plain, table = Rope(64, 1e4, True).table(), Rope(64, 1e4, True, yarn=yarn).table()
    turns = plain.freq * 32768 / (2 * np.pi)
    ratio = plain.freq / table.freq
    # The ramp's ends are rounded outwards to whole pairs, so the pair next to an end may lie on it.
    assert np.allclose(ratio[turns > 32 * 1e4 ** (1 / 32)], 1, rtol=1e-12, atol=0)
    assert np.allclose(ratio[turns < 1e4 ** (-1 / 32)], 4, rtol=1e-12, atol=0)
    assert np.all(np.diff(ratio) >= -1e-12) and np.any((ratio > 1.01) & (ratio < 3.99))
    assert table.magnitude == pytest.approx(0.1 * math.log(4) + 1, rel=1e-15)


def test_yarn_s_ramp_may_end_beyond_the_last_pair():
    """As transformers has it: the ramp runs from pair 22 to 35 here, though there are only 32 pairs."""
    yarn = Yarn(factor=4.0, original_context=131072)
    plain, table = Rope(64, 1e4, True).table(), Rope(64, 1e4, True, yarn=yarn).table()
    assert (table.freq / plain.freq)[[21, 22, 31]] == pytest.approx([1, 1, 25 / 52], rel=1e-12)
