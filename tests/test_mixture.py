"""Mixtures of experts, latent attention and drafting layers in the native engine: equal to the stored logits and to the
numpy executor, and to themselves on every bit whichever experts the rows crowd.

What all models share, `test_engine.py` asks of these, too.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from test_engine import Case, assert_close, causal

from glmlite import _native, models, reference
from glmlite.errors import FormatError
from glmlite.placement import native_ops

STORED = [
    path
    for path in sorted((Path(__file__).parent / "data").glob("*.npz"))
    if {"recipe", "tokens"} <= {*np.load(path)}
    and json.loads(str(np.load(path)["recipe"]))["architecture"] in tiny.MIXTURES
]
WHOLE = 5e-3  # keys and values are f16, 2^-11 of each
QUANTIZED = ("Q8_0", "Q4_0", "Q4_K")


def engine_of(gguf, recording, **options):
    return _native.Engine(gguf, native_ops(recording.ops, gguf.dequantize), kv_tokens=512, threads=2, **options)


def recordings(gguf):
    shapes = {name: tensor.shape for name, tensor in gguf.tensors.items()}
    return models.record(gguf.metadata, shapes), models.draft(gguf.metadata, shapes)


def logits_of(engine, tokens, start=0, rows=None, **more):
    work = _native.Work(engine.new_sequence(), tokens, causal(len(tokens), start), **more)
    return engine.step([work], range(len(tokens)) if rows is None else rows)


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_equals_stored_logits_and_drafts(tmp_path, path):
    stored = np.load(path)
    recipe = json.loads(str(stored["recipe"]))
    model = tiny.model(recipe["architecture"], **recipe["sizes"])
    gguf = _native.Gguf(tiny.write(tmp_path / "m.gguf", model))
    recording, draft = recordings(gguf)
    tokens = [int(t) for t in stored["tokens"]]
    engine = engine_of(gguf, recording)
    same = check(engine, gguf, recording, tokens, stored["logits"])
    if "drafts" in stored:
        hidden = normed_rows(engine, recording, tokens)[:-1]
        check(engine_of(gguf, draft), gguf, draft, tokens[1:], stored["drafts"] if same else None, 1, input=hidden)


def check(engine, gguf, recording, tokens, stored, start=0, **more):
    """Equal to numpy with a cache of f16, and, where every row went to the experts that the exact ones went to, to what
    is stored. Says whether they did: two experts may be so near to a row that the rounding of a key chooses."""
    weights = {name: gguf.dequantize(name) for name in gguf.tensors}
    positions, rows = causal(len(tokens), start), range(len(tokens))
    traces = []
    for kv_dtype in (np.float16, np.float32):
        numpy = reference.Reference(recording.ops, weights, kv_dtype=kv_dtype)
        traces.append(numpy.trace([reference.Work(numpy.new_sequence(), tokens, positions, **more)], rows))
    logits = logits_of(engine, tokens, start, **more)
    assert_close(logits, traces[0][-1][1], WHOLE)
    same = all(
        np.array_equal(a[:, : op.attrs["used"]], b[:, : op.attrs["used"]])
        for (op, a), (_, b) in zip(*traces)
        if op.kind == "route"
    )
    if same and stored is not None:
        assert_close(logits, stored, WHOLE)
    return same


def test_most_stored_cases_choose_alike(tmp_path):
    """So that most of the engine's logits are compared with those of others."""
    same = []
    for path in STORED:
        stored = np.load(path)
        recipe = json.loads(str(stored["recipe"]))
        gguf = _native.Gguf(tiny.write(tmp_path / path.stem, tiny.model(recipe["architecture"], **recipe["sizes"])))
        recording, _ = recordings(gguf)
        tokens = [int(t) for t in stored["tokens"]]
        same.append(check(engine_of(gguf, recording), gguf, recording, tokens, None))
    assert sum(same) >= len(STORED) - 2 > 3


def normed_rows(engine, recording, tokens):
    """The trunk's rows after `output_norm`."""
    norm = next(op for op in recording.ops if op.weights.get("w") == ("output_norm.weight",))
    work = _native.Work(engine.new_sequence(), tokens, causal(len(tokens)))
    return engine.trace([work], range(len(tokens)))[norm.out.id]


def test_a_program_wants_its_input(tmp_path):
    gguf = _native.Gguf(tiny.write(tmp_path / "m.gguf", tiny.model("deepseek2", drafting=True)))
    recording, draft = recordings(gguf)
    trunk, drafting = engine_of(gguf, recording), engine_of(gguf, draft)
    rows = np.zeros((3, 64), np.float32)
    for engine, given in ((trunk, rows), (drafting, None), (drafting, rows[:2])):
        with pytest.raises(ValueError, match="input of"):
            logits_of(engine, [1, 2, 3], input=given)
    assert np.isfinite(logits_of(drafting, [1, 2, 3], input=rows)).all()


def crowded(architecture, experts):
    """A model whose rows all go to these experts."""
    model = tiny.model(architecture, experts=8, used=len(experts), layers=3, head_dim=48, rope_dim=16)
    for name, tensor in model.tensors.items():
        if name.endswith("exp_probs_b.bias"):
            tensor[:] = -10
            tensor[list(experts)] = 10
    return model


@pytest.mark.parametrize("architecture", tiny.MIXTURES)
@pytest.mark.parametrize("experts", [(0,), (7,), (2, 5), (0, 1, 6, 7)], ids=str)
@pytest.mark.parametrize("format", ["F32", "Q8_0"])
def test_rows_may_all_go_to_one_expert(tmp_path, architecture, experts, format):
    model = crowded(architecture, experts)
    gguf = _native.Gguf(tiny.write(tmp_path / "m.gguf", model, format))
    recording, _ = recordings(gguf)
    engine = engine_of(gguf, recording)
    tokens = [int(t) for t in np.random.default_rng(2).integers(0, 256, 70)]
    values = engine.trace([_native.Work(engine.new_sequence(), tokens, causal(70))], range(70))
    routes = [values[op.out.id] for op in recording.ops if op.kind == "route"]
    assert all((chosen[:, : len(experts)] == experts).all() for chosen in routes)
    whole = logits_of(engine, tokens)
    one_by_one, sequence = [], engine.new_sequence()
    for i, token in enumerate(tokens):
        one_by_one.append(engine.step([_native.Work(sequence, [token], causal(1, i))], [0])[0])
    np.testing.assert_array_equal(whole.view(np.int32), np.array(one_by_one).view(np.int32))


@pytest.mark.parametrize("architecture", tiny.MIXTURES)
@pytest.mark.parametrize("format", ["F32", *QUANTIZED])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_crowd_beside_a_row_does_not_matter(tmp_path, architecture, format, threads):
    c = Case(tmp_path, architecture, format)
    engine = c.engine(threads=threads)
    tokens, crowd = [3, 200, 41, 7], [9] * 60  # the same token goes to the same experts
    alone = logits_of(engine, tokens)
    works = [_native.Work(engine.new_sequence(), ids, causal(len(ids))) for ids in (crowd, tokens, crowd[:33])]
    together = engine.step(works, range(60, 64))
    np.testing.assert_array_equal(alone.view(np.int32), together.view(np.int32))


def test_experts_in_one_tensor_equal_those_in_two(tmp_path):
    model = tiny.model("glm4moe", layers=3)
    fused = tiny.Tiny(model.metadata, {})
    for name, tensor in model.tensors.items():
        if "ffn_gate_exps" in name:
            up = model.tensors[name.replace("gate", "up")]
            fused.tensors[name.replace("gate", "gate_up")] = np.concatenate([tensor, up], axis=1)
        elif "ffn_up_exps" not in name:
            fused.tensors[name] = tensor
    tokens = list(range(40))
    for format in ("F32", "Q4_0"):
        results = []
        for i, m in enumerate((model, fused)):
            gguf = _native.Gguf(tiny.write(tmp_path / f"{format}{i}.gguf", m, format))
            results.append(logits_of(engine_of(gguf, recordings(gguf)[0]), tokens))
        np.testing.assert_array_equal(results[0].view(np.int32), results[1].view(np.int32))


@pytest.mark.parametrize("kv_type", ["f16", "q8"])
@pytest.mark.parametrize("architecture", ["chatglm", *tiny.MIXTURES])
def test_the_cache_takes_what_a_page_is_said_to_take(tmp_path, architecture, kv_type):
    c = Case(tmp_path, architecture)
    engine = c.engine(kv_tokens=640, kv_type=kv_type)
    page = _native.page_bytes(c.gguf, native_ops(c.recording.ops, c.gguf.dequantize), kv_type)
    assert engine.kv_bytes == 10 * page
    if architecture == "deepseek2":  # one latent for all heads: 64 columns, and 16 that turn
        columns = {"f16": 2 * 80, "q8": 80 + 2 * 4}[kv_type]
        assert page == 2 * engine.page_tokens * columns


def test_the_seam_has_as_many_axes_as_the_recorder():
    from glmlite.program import AXES

    assert _native.AXES == AXES


def test_programs_of_experts_that_no_recorder_makes_are_refused(tmp_path):
    c = Case(tmp_path, "deepseek2")
    ops = native_ops(c.recording.ops, c.gguf.dequantize)
    at = {kind: next(i for i, op in enumerate(ops) if op[0] == kind) for kind in ("route", "moe", "latent_attention")}

    def changed(kind, slot, value):
        op = list(ops[at[kind]])
        op[slot] = value(op[slot])
        return [*ops[: at[kind]], tuple(op), *ops[at[kind] + 1 :]]

    wide = "blk.0.ffn_down.weight"
    for bad, error, message in [
        (changed("moe", 3, lambda inputs: inputs | {"routing": inputs["x"]}), ValueError, "comes from no route"),
        (changed("moe", 5, lambda attrs: {"used": 3}), ValueError, "has 2 experts for a row"),
        (changed("moe", 4, lambda w: w | {"down": [wide]}), FormatError, "expected"),
        (changed("moe", 4, lambda w: w | {"gate_up": w["gate_up"] + w["gate_up"]}), ValueError, "one or two weights"),
        (changed("route", 5, lambda attrs: attrs | {"used": 9}), ValueError, "chooses 9 of 8 experts"),
        (changed("route", 4, lambda w: w | {"bias": ["output_norm.weight"]}), FormatError, "expected"),
        (changed("latent_attention", 5, lambda attrs: attrs | {"heads": 3}), ValueError, "q has another width"),
        (changed("latent_attention", 5, lambda attrs: attrs | {"latent": 96}), ValueError, "kv has another width"),
    ]:
        with pytest.raises(error, match=message):
            _native.Engine(c.gguf, bad, kv_tokens=64)


def test_a_router_that_says_nothing_is_an_error_not_a_crash(tmp_path):
    model = tiny.model("glm4moe")
    for name, tensor in model.tensors.items():
        if "ffn_gate_inp" in name:
            tensor[:] = np.nan
    gguf = _native.Gguf(tiny.write(tmp_path / "m.gguf", model))
    engine = engine_of(gguf, recordings(gguf)[0])
    with pytest.raises(RuntimeError, match="not finite"):
        logits_of(engine, [1, 2, 3])


def test_drafts_equal_numpy(tmp_path):
    model = tiny.model("deepseek2", drafting=True)
    gguf = _native.Gguf(tiny.write(tmp_path / "m.gguf", model))
    _, draft = recordings(gguf)
    tokens, hidden = list(range(20)), np.random.default_rng(0).normal(0, 1, (20, 64)).astype(np.float32)
    numpy = reference.Reference(draft.ops, {name: gguf.dequantize(name) for name in gguf.tensors}, kv_dtype=np.float16)
    want = numpy.step([reference.Work(numpy.new_sequence(), tokens, causal(20, 1), input=hidden)], range(20))
    assert_close(logits_of(engine_of(gguf, draft), tokens, 1, input=hidden), want, WHOLE)
