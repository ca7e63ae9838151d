"""Models run by the numpy executor, against implementations that know nothing of it."""

import dataclasses
import json
import math
from pathlib import Path

import independent
import numpy as np
import pytest
import tiny

from glmlite.errors import FormatError
from glmlite.models import ARCHITECTURES, draft, record, record_eyes
from glmlite.models.layout import causal
from glmlite.program import Recorder, Value
from glmlite.reference import Reference, Work, compare

# Written by the scripts in tests/oracles.
ORACLE = [p for p in sorted((Path(__file__).parent / "data").glob("*.npz")) if {"recipe", "tokens"} <= {*np.load(p)}]

# The stored logits are f32 sums of at most 128 products through at most 3 blocks of 4 matrices: errors of
# 128 * 12 * 2^-24 = 1e-4 of the largest logit at worst, were they all to go one way.
STORED_ERROR = 1e-4
# Both sides sum in f64; ours rounds the value of each op, at most 35 of them, to f32.
INDEPENDENT = 35 * 2**-23


def recording(model):
    return record(model.metadata, model.shapes)


def run(model, tokens, ops=None, kind=Reference):
    """Logits of every token of a prompt and its answer, as an engine would: the context first, then the rest."""
    rec = recording(model)
    layout = rec.layout(tokens, lambda text: tiny.token_id(model, text))
    reference = kind(ops or rec.ops, model.tensors)
    sequence = reference.new_sequence()
    works = [Work(sequence, tokens[: layout.context], layout.positions[: layout.context], layout.context)]
    works.append(Work(sequence, tokens[layout.context :], layout.positions[layout.context :]))
    return reference.step([work for work in works if len(work.tokens)], range(len(tokens)))


# Those with a drafting layer of their own.
DRAFTING = ["glm4", *tiny.MIXTURES]


def trunk_rows(model, tokens):
    """The rows after the last norm, which a drafting layer begins with."""
    reference = Reference(recording(model).ops, model.tensors)
    works = [Work(reference.new_sequence(), tokens, causal(tokens, special()).positions)]
    return reference.trace(works, range(len(tokens)))[-2][1]


def run_draft(model, tokens, rows, ops=None):
    """Logits of the drafting layer, of every token but the first; rows: the trunk's."""
    reference = Reference(ops or draft(model.metadata, model.shapes).ops, model.tensors)
    positions = causal(tokens, special()).positions
    work = Work(reference.new_sequence(), tokens[1:], positions[1:], input=rows[:-1])
    return reference.step([work], range(len(tokens) - 1))


def error(got, want):
    """The largest difference in units of the largest value; NaN stays NaN and fails every comparison."""
    assert got.shape == want.shape
    return np.max(np.abs(got - want)) / np.max(np.abs(want))


# ---- transformers and llama.cpp


def stored(path):
    """The model, the tokens, the logits."""
    data = np.load(path)
    recipe = json.loads(str(data["recipe"]))
    model = tiny.model(recipe["architecture"], **recipe["sizes"])
    assert tiny.checksum(model) == data["checksum"], "tests/tiny.py changed: run the scripts in tests/oracles again"
    return model, [int(t) for t in data["tokens"]], data["logits"]


def test_stored_logits_exist():
    want = {"chatglm3", "glm4-9b", "glm-4.5-air", "glm-4.7-flash", "llama", "llama-cpp-chatglm"}
    assert want <= {path.stem for path in ORACLE}


@pytest.mark.parametrize("path", ORACLE, ids=lambda path: path.stem)
def test_equals_stored_logits(path):
    model, tokens, logits = stored(path)
    assert error(run(model, tokens), logits) <= STORED_ERROR


DRAFTED = [path for path in ORACLE if "drafts" in np.load(path)]


@pytest.mark.parametrize("path", DRAFTED, ids=lambda path: path.stem)
def test_equals_stored_drafts(path):
    model, tokens, _ = stored(path)
    assert error(run_draft(model, tokens, trunk_rows(model, tokens)), np.load(path)["drafts"]) <= STORED_ERROR


# ---- the second implementation

TEXT = [17, 80, 3, 200, 41, 41, 9, 254, 120, 5]


def infilling_tokens(model):
    """A prompt with every mask in it, and an answer of two pieces (chatglm1: one)."""
    token = lambda text: tiny.token_id(model, text)  # noqa: E731
    if model.metadata["general.architecture"] == "glm":
        start = token("<|startofpiece|>")
        prompt = [*TEXT[:3], token("[MASK]"), *TEXT[3:6], token("[gMASK]"), *TEXT[6:]]
        return [*prompt, start, 60, 61, 62, start, 63, 64]
    return [*TEXT, token("[gMASK]"), 33, token("<sop>"), 60, 61, 62]


def independent_logits(model, tokens):
    token = lambda text: tiny.token_id(model, text)  # noqa: E731
    match model.metadata["general.architecture"]:
        case "chatglm":
            return independent.chatglm(model, tokens)
        case "chatglm1":
            return independent.chatglm1(model, tokens, token("[gMASK]"), token("<sop>"))
        case "glm":
            masks = [token(text) for text in ("[MASK]", "[sMASK]", "[gMASK]")]
            return independent.glm(model, tokens, masks, token("<|startofpiece|>"))


SECOND = {
    "chatglm": ("chatglm", {}),
    "chatglm-prefix": ("chatglm", {"prefix": 5, "kv_heads": 1}),
    "chatglm-edge": ("chatglm", {"rope_dim": 32, "bias": False, "tied": True}),
    "chatglm1": ("chatglm1", {}),
    "chatglm1-prefix": ("chatglm1", {"prefix": 5, "heads": 2, "layers": 3}),
    "glm": ("glm", {"layers": 3}),
    "glm-16-heads": ("glm", {"heads": 16}),
}


@pytest.mark.parametrize("case", SECOND)
def test_equals_second_implementation(case):
    architecture, sizes = SECOND[case]
    model = tiny.model(architecture, **sizes)
    tokens = TEXT if architecture == "chatglm" else infilling_tokens(model)
    assert error(run(model, tokens), independent_logits(model, tokens)) <= INDEPENDENT


# ---- that these comparisons can fail


def change(kind, **attrs):
    """Every op of a kind with other attributes."""
    return lambda op: dataclasses.replace(op, attrs=op.attrs | attrs) if op.kind == kind else op


def change_rope(**fields):
    def changed(op):
        if op.attrs.get("rope") is None:
            return op
        return dataclasses.replace(op, attrs=op.attrs | {"rope": dataclasses.replace(op.attrs["rope"], **fields)})

    return changed


def drop(kind, slot):
    """Every op of a kind without an optional slot."""

    def dropped(op):
        if op.kind != kind:
            return op
        inputs = {s: v for s, v in op.inputs.items() if s != slot}
        weights = {s: names for s, names in op.weights.items() if s != slot}
        return dataclasses.replace(op, inputs=inputs, weights=weights)

    return dropped


def swapped_tables(op):
    """The two position tables of `embed` in the other order."""
    if "positions" not in op.weights:
        return op
    return dataclasses.replace(op, weights=op.weights | {"positions": op.weights["positions"][::-1]})


MUTATIONS = [
    ("chatglm", change_rope(interleaved=False)),
    ("chatglm", change_rope(dim=32)),
    ("chatglm", change_rope(theta=20000.0)),
    ("chatglm", change("rms_norm", eps=1.5625e-7)),
    ("chatglm", drop("linear", "b")),
    ("chatglm", drop("linear", "add")),
    ("chatglm-prefix", drop("attention", "prefix")),
    ("chatglm", change("attention", scale=1.0)),
    ("chatglm1", change_rope(interleaved=True)),
    ("chatglm1", change_rope(axes=(1, 0))),
    ("chatglm1", change_rope(axes=(0,))),
    ("chatglm1", change("linear", alpha=2.0)),
    ("chatglm1", change("layer_norm", eps=1e-6)),
    ("chatglm1", drop("linear", "b")),
    ("chatglm1-prefix", drop("attention", "prefix")),
    ("glm", drop("embed", "positions")),
    ("glm", swapped_tables),
    ("glm", drop("linear", "b")),
    ("glm", drop("linear", "add")),
    ("glm", change("layer_norm", eps=1e-6)),
]


@pytest.mark.parametrize("number", range(len(MUTATIONS)))
def test_wrong_program_is_caught(number):
    case, mutate = MUTATIONS[number]
    architecture, sizes = SECOND[case]
    model = tiny.model(architecture, **sizes)
    tokens = TEXT if architecture == "chatglm" else infilling_tokens(model)
    ops = [mutate(op) for op in recording(model).ops]
    assert error(run(model, tokens, ops), independent_logits(model, tokens)) > 10 * INDEPENDENT


@pytest.mark.parametrize(
    ("name", "mutate"),
    [
        ("glm4-yarn", change_rope(yarn=None)),
        ("llama-cpp-llama-linear", change_rope(scale=1.0)),
        ("llama3", drop("attention", "rope_factors")),
        ("llama", change_rope(interleaved=False)),
        ("glm4-9b", change_rope(interleaved=False)),
        ("glm4-9b", drop("rms_norm", "add")),
        ("llama-bias", drop("linear", "b")),
    ],
)
def test_wrong_program_is_caught_by_stored_logits(name, mutate):
    model, tokens, logits = stored(next(path for path in ORACLE if path.stem == name))
    ops = [mutate(op) for op in recording(model).ops]
    assert error(run(model, tokens, ops), logits) > 10 * STORED_ERROR


class BiasedWeights(Reference):
    """The bias moves the weights too."""

    def _route(self, step, x, gate, used, scale, bias):
        chosen = super()._route(step, x, gate, used, scale, bias)[:, :used].astype(int)
        scores = 1 / (1 + np.exp(-(x @ gate[0].T))) + bias[0]
        weights = np.take_along_axis(scores, chosen, axis=-1)
        return np.concatenate([chosen, weights / weights.sum(axis=-1, keepdims=True) * scale], axis=-1)


class NotNormalised(Reference):
    def _route(self, step, x, gate, used, scale, bias):
        chosen = super()._route(step, x, gate, used, scale, bias)[:, :used].astype(int)
        scores = 1 / (1 + np.exp(-(x @ gate[0].T)))
        return np.concatenate([chosen, np.take_along_axis(scores, chosen, axis=-1) * scale], axis=-1)


class BySoftmax(Reference):
    def _route(self, step, x, gate, used, scale, bias):
        scores = np.exp(x @ gate[0].T)
        scores = scores / scores.sum(axis=-1, keepdims=True)
        chosen = np.sort(np.argsort(-(scores + bias[0]), axis=-1)[:, :used], axis=-1)
        weights = np.take_along_axis(scores, chosen, axis=-1)
        return np.concatenate([chosen, weights / weights.sum(axis=-1, keepdims=True) * scale], axis=-1)


class TurnsFirst(Reference):
    """The turning columns of the cached row stand before the latent."""

    def _latent_attention(self, step, q, kv, rope, **more):
        return super()._latent_attention(step, q, np.roll(kv, -rope.dim, axis=-1), rope=rope, **more)


class LatentNotNormed(Reference):
    def _latent_attention(self, step, q, kv, w, latent, **more):
        self._rms_norm = lambda step, x, w, eps: x
        y = super()._latent_attention(step, q, kv, w, latent=latent, **more)
        del self._rms_norm
        return y


class NormsTurning(Reference):
    """The norm of the latent takes the turning columns in."""

    def _latent_attention(self, step, q, kv, latent, **more):
        factor = np.sqrt(np.mean(kv**2, axis=-1, keepdims=True))
        kv = np.concatenate([kv[:, :latent], kv[:, latent:] / factor], axis=-1)
        return super()._latent_attention(step, q, kv, latent=latent, **more)


class ValuesTurned(Reference):
    """The values are the last columns of the cached row, the turned ones among them."""

    def _remember_and_attend(self, step, layer, q, k, v, scale, before):
        return super()._remember_and_attend(step, layer, q, k, k[..., k.shape[-1] - v.shape[-1] :], scale, before)


def swapped_norms(op):
    """The norm before attention in the place of the one before the experts, and the other way round."""
    other = {"attn_norm.weight": "post_attention_norm.weight", "post_attention_norm.weight": "attn_norm.weight"}
    names = {slot: tuple(n[:6] + other.get(n[6:], n[6:]) for n in ns) for slot, ns in op.weights.items()}
    return dataclasses.replace(op, weights=names)


def low_query_not_normed(op):
    """What makes queries of their low rank reads it as it was before its norm."""
    if "attn_q_b" not in "".join(op.weights.get("w", ())):
        return op
    x = op.inputs["x"]
    return dataclasses.replace(op, inputs={"x": Value(x.id - 1, x.width)})


def reversed_names(kind, slot):
    """Every op of a kind with the tensors of a slot in the other order."""

    def reverse(op):
        if op.kind != kind:
            return op
        return dataclasses.replace(op, weights=op.weights | {slot: op.weights[slot][::-1]})

    return reverse


def times(part, factor):
    """Tensors whose names have `part`, times a factor."""
    return lambda name, x: factor * x if part in name else x


def reordered(part):
    """Tensors whose names have `part`, their first axis backwards."""
    return lambda name, x: x[::-1] if part in name else x


def run_wrong(model, tokens, op=lambda op: op, tensor=lambda name, x: x, kind=Reference):
    """With other ops, other tensors or another executor."""
    ops = [op(each) for each in recording(model).ops]
    tensors = {name: tensor(name, x) for name, x in model.tensors.items()}
    return run(tiny.Tiny(model.metadata, tensors), tokens, ops, kind)


EXPERT_MISTAKES = {
    "choice without bias": ("glm-4.5", {"op": drop("route", "bias")}),
    "weights with bias": ("glm-4.5", {"kind": BiasedWeights}),
    "weights not normalised": ("glm-4.5", {"kind": NotNormalised}),
    "weights not scaled": ("glm-4.5", {"op": change("route", scale=1.0)}),
    "softmax": ("glm-4.7-flash", {"kind": BySoftmax}),
    "gate and up swapped": ("glm-4.7-flash", {"op": reversed_names("moe", "gate_up")}),
    "shared expert scaled": ("glm-4.7-flash", {"tensor": times("ffn_down_shexp", 1.8)}),
    "no shared expert": ("glm-4.5-tied", {"tensor": times("ffn_down_shexp", 0)}),
    "experts in another order": ("glm-4.5", {"tensor": reordered("ffn_down_exps")}),
    "glm4moe turns pairs": ("glm-4.5", {"op": change_rope(interleaved=True)}),
    "glm4moe turns all": ("glm-4.5", {"op": change_rope(dim=32)}),
    "norms swapped": ("glm-4.5", {"op": swapped_norms}),
    "query's heads not normed": ("glm-4.5", {"op": drop("attention", "q_norm")}),
    "key's heads not normed": ("glm-4.5", {"op": drop("attention", "k_norm")}),
    "no bias of q, k, v": ("glm-4.5-air", {"op": drop("linear", "b")}),
    "deepseek2 turns halves": ("glm-4.7-flash", {"op": change_rope(interleaved=False)}),
    "scale of the cached columns": ("glm-4.7-flash", {"op": change("latent_attention", scale=160**-0.5)}),
    "turning columns first": ("glm-4.7-flash", {"kind": TurnsFirst}),
    "latent not normed": ("glm-4.7-flash", {"kind": LatentNotNormed}),
    "norm takes the turning key in": ("glm-4.7-flash", {"kind": NormsTurning}),
    "turned columns in values": ("glm-4.7-flash", {"kind": ValuesTurned}),
    "low query not normed": ("glm-4.7-flash", {"op": low_query_not_normed}),
    "heads in another order": ("glm-4.7-flash", {"tensor": reordered("attn_k_b")}),
}


@pytest.mark.parametrize("mistake", EXPERT_MISTAKES)
def test_wrong_mixture_is_caught(mistake):
    case, wrong = EXPERT_MISTAKES[mistake]
    model, tokens, logits = stored(next(path for path in ORACLE if path.stem == case))
    assert error(run_wrong(model, tokens), logits) <= STORED_ERROR
    assert error(run_wrong(model, tokens, **wrong), logits) > 10 * STORED_ERROR


def swapped_columns(op):
    return dataclasses.replace(op, inputs={"x": op.inputs["y"], "y": op.inputs["x"]}) if op.kind == "concat" else op


def swapped_nextn(op):
    """The norms of the embedding and of the trunk's row in each other's place."""
    other = {"nextn.enorm.weight": "nextn.hnorm.weight", "nextn.hnorm.weight": "nextn.enorm.weight"}
    names = {slot: tuple(n[:6] + other.get(n[6:], n[6:]) for n in ns) for slot, ns in op.weights.items()}
    return dataclasses.replace(op, weights=names)


@pytest.mark.parametrize("case", ["glm-4.5-air", "glm-4.7-flash"])
@pytest.mark.parametrize("mistake", ["columns", "norms", "row of the same token", "trunk not normed"])
def test_wrong_draft_is_caught(case, mistake):
    path = next(path for path in ORACLE if path.stem == case)
    model, tokens, _ = stored(path)
    rows = trunk_rows(model, tokens)
    wrong = {"columns": swapped_columns, "norms": swapped_nextn}.get(mistake, lambda op: op)
    if mistake == "row of the same token":
        rows = np.roll(rows, -1, axis=0)
    elif mistake == "trunk not normed":
        rows = rows / model.tensors["output_norm.weight"]
    ops = [wrong(op) for op in draft(model.metadata, model.shapes).ops]
    assert error(run_draft(model, tokens, rows, ops), np.load(path)["drafts"]) > 10 * STORED_ERROR


@pytest.mark.parametrize("architecture", ["chatglm1", "glm"])
def test_causal_mask_over_a_context_is_caught(architecture):
    model = tiny.model(architecture)
    tokens = infilling_tokens(model)
    rec = recording(model)
    layout = rec.layout(tokens, lambda text: tiny.token_id(model, text))
    reference = Reference(rec.ops, model.tensors)
    works = [Work(reference.new_sequence(), tokens, layout.positions)]
    got = reference.step(works, range(len(tokens)))
    assert error(got, independent_logits(model, tokens)) > 10 * INDEPENDENT


# ---- what llama.cpp's files may hold


def test_split_qkv_equals_fused():
    fused = tiny.model("chatglm")
    tensors = {}
    for name, x in fused.tensors.items():
        if "attn_qkv" in name:
            for part, rows in zip("qkv", np.split(x, [128, 192])):
                tensors[name.replace("attn_qkv", f"attn_{part}")] = rows
        else:
            tensors[name] = x
    split = tiny.Tiny(fused.metadata, tensors)
    assert "blk.0.attn_k.bias" in tensors
    assert np.array_equal(run(split, TEXT), run(fused, TEXT))


def test_glm4_with_sections_turns_halves():
    """llama.cpp puts the even rows of each head's turning part before the odd ones and names sections."""
    plain = tiny.model("glm4", fused=False)
    turned, head_dim = 16, 32
    order = [*range(0, turned, 2), *range(1, turned, 2), *range(turned, head_dim)]
    tensors = {
        name: x.reshape(-1, head_dim, 64)[:, order].reshape(x.shape) if "attn_q" in name or "attn_k" in name else x
        for name, x in plain.tensors.items()
    }
    sections = {"glm4.rope.dimension_sections": np.array([2, 3, 3, 0], np.int32)}
    reordered = tiny.Tiny(plain.metadata | sections, tensors)
    assert error(run(reordered, TEXT), run(plain, TEXT)) <= INDEPENDENT


def test_drafting_layer_is_left_out():
    plain = tiny.model("glm4", layers=2)
    extra = tiny.model("glm4", layers=3, metadata={"glm4.nextn_predict_layers": 1})
    assert len(recording(extra).ops) == len(recording(plain).ops)
    assert np.array_equal(run(extra, TEXT), run(plain, TEXT))


def without(model, *parts, **metadata):
    """The model without the tensors whose names have one of `parts`, and with other keys; None: without the key."""
    prefix = model.metadata["general.architecture"]
    keys = model.metadata | {f"{prefix}.{key.replace('__', '.')}": value for key, value in metadata.items()}
    tensors = {name: x for name, x in model.tensors.items() if not any(part in name for part in parts)}
    return tiny.Tiny({key: value for key, value in keys.items() if value is not None}, tensors)


FLASH = {"layers": 47, "dim": 2048, "heads": 20, "head_dim": 256, "rope_dim": 64, "q_rank": 768, "latent": 512}
FLASH |= {"value_dim": 256, "ffn": 10240, "experts": 64, "used": 4, "expert_ffn": 1536, "vocab": 154880}
AIR = {"layers": 46, "dim": 4096, "heads": 96, "kv_heads": 8, "head_dim": 128, "ffn": 10944}
AIR |= {"experts": 128, "used": 8, "expert_ffn": 1408, "vocab": 151552}
LARGE = {"layers": 92, "dim": 5120, "heads": 96, "kv_heads": 8, "head_dim": 128, "ffn": 12288, "dense": 3}
LARGE |= {"experts": 160, "used": 8, "expert_ffn": 1536, "vocab": 151552, "head_norms": True}


@pytest.mark.parametrize(
    ("architecture", "sizes", "parameters", "active"),
    [("deepseek2", FLASH, 29.94, 3.58), ("glm4moe", AIR, 106.85, 12.8), ("glm4moe", LARGE, 352.80, 32.9)],
    ids=["GLM-4.7-Flash", "GLM-4.5-Air", "GLM-4.7"],
)
def test_published_models(architecture, sizes, parameters, active):
    """In billions: all, without the drafting layer, and what one token goes through, without the embeddings."""
    metadata, shapes = tiny.header(architecture, **sizes)
    rec = record(metadata, shapes)
    total = sum(math.prod(shape) for shape in shapes.values())
    assert total / 1e9 == pytest.approx(parameters, abs=0.005)
    idle = sum(math.prod(shape) for name, shape in shapes.items() if "_exps" in name)
    idle *= 1 - sizes["used"] / sizes["experts"]
    embeddings = math.prod(shapes["token_embd.weight"])
    assert (total - idle - embeddings) / 1e9 == pytest.approx(active, abs=0.05)
    attention = [op for op in rec.ops if "attention" in op.kind]
    assert len(attention) == sizes["layers"] and [op.attrs["layer"] for op in attention] == [*range(sizes["layers"])]
    assert {op.attrs["scale"] for op in attention} == {sizes["head_dim"] ** -0.5}
    mixtures = sum(op.kind == "moe" for op in rec.ops)
    assert mixtures == sizes["layers"] - sizes.get("dense", 1)
    metadata, shapes = tiny.header(architecture, **sizes, drafting=True)
    assert metadata[f"{architecture}.block_count"] == sizes["layers"] + 1
    assert record(metadata, shapes).ops == rec.ops
    assert draft(metadata, shapes).vocab == sizes["vocab"]


@pytest.mark.parametrize("architecture", DRAFTING)
def test_files_with_and_without_a_drafting_layer(architecture):
    """As llama.cpp has written them: with it, without it, with its key alone, with its tensors alone."""
    plain = tiny.model(architecture, layers=3)
    drafting = tiny.model(architecture, layers=3, drafting=True)
    want = recording(plain).ops
    assert draft(plain.metadata, plain.shapes) is None
    for model, drafts in (
        (drafting, True),
        (without(drafting, nextn_predict_layers=None), True),
        (without(drafting, nextn_predict_layers=0), True),
        (without(drafting, "blk.3."), False),
        (without(drafting, ".nextn."), False),
        (without(drafting, "blk.3.", block_count=3, nextn_predict_layers=None), False),
    ):
        assert recording(model).ops == want
        assert (draft(model.metadata, model.shapes) is not None) == drafts


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_layer_that_the_keys_leave_out_is_an_error(architecture):
    """Of a model cut short nobody would know, but for its answers."""
    model = tiny.model(architecture, layers=4)
    with pytest.raises(FormatError, match=f"'{architecture}.block_count' is 3, which makes 3 layers.*'blk.3."):
        recording(without(model, block_count=3))
    with pytest.raises(FormatError, match=f"'{architecture}.block_count' is 3, which makes 2 layers.*'blk.3."):
        recording(without(model, block_count=3, nextn_predict_layers=1))


@pytest.mark.parametrize("architecture", DRAFTING)
def test_a_layer_in_the_place_of_the_one_that_drafts_is_an_error(architecture):
    """The keys count the drafting layer once too often."""
    model = tiny.model(architecture, layers=3, drafting=True)
    with pytest.raises(FormatError, match=f"'{architecture}.block_count' is 3, which makes 2 layers.*'blk.2."):
        recording(without(model, block_count=3))


@pytest.mark.parametrize("architecture", DRAFTING)
def test_a_drafting_layer_may_have_its_own_embeddings_head_and_norm(architecture):
    model = tiny.model(architecture, layers=1, drafting=True)
    rows, w = trunk_rows(model, TEXT), "blk.1.nextn."
    trunks = {"embed_tokens": "token_embd", "shared_head_head": "output", "shared_head_norm": "output_norm"}
    own = {f"{w}{name}.weight": model.tensors[f"{trunk}.weight"] for name, trunk in trunks.items()}
    same = tiny.Tiny(model.metadata, model.tensors | own)
    bare = tiny.Tiny(model.metadata, {n: x for n, x in model.tensors.items() if n not in own})
    assert np.array_equal(run_draft(same, TEXT, rows), run_draft(bare, TEXT, rows))
    for name, x in own.items():
        other = tiny.Tiny(model.metadata, same.tensors | {name: np.roll(x, 1)})
        assert error(run_draft(other, TEXT, rows), run_draft(bare, TEXT, rows)) > 10 * STORED_ERROR


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("nextn.enorm.weight", None, "nextn.enorm"),
        ("nextn.hnorm.weight", (63,), "nextn.hnorm"),
        ("nextn.eh_proj.weight", (64, 64), "nextn.eh_proj"),
        ("attn_norm.weight", None, "blk.2.attn_norm"),
        ("nextn.embed_tokens.weight", (383, 64), "nextn.embed_tokens"),
        ("nextn.shared_head_head.weight", (383, 64), "nextn.shared_head_head"),
        ("nextn.other.weight", (64,), "nextn.other"),
    ],
)
@pytest.mark.parametrize("architecture", DRAFTING)
def test_a_drafting_layer_that_is_wrong_is_named(architecture, name, shape, message):
    model = tiny.model(architecture, drafting=True)
    shapes = {n: s for n, s in model.shapes.items() if n != f"blk.2.{name}"}
    if shape is not None:
        shapes[f"blk.2.{name}"] = shape
    with pytest.raises(FormatError, match=message):
        draft(model.metadata, shapes)
    assert recording(model).ops == record(model.metadata, shapes).ops  # which does not read it


def test_other_architectures_do_not_draft():
    model = tiny.model("chatglm", metadata={"chatglm.nextn_predict_layers": 1})
    assert draft(model.metadata, model.shapes | {"blk.1.nextn.eh_proj.weight": (64, 128)}) is None


@pytest.mark.parametrize("architecture", tiny.MIXTURES)
def test_fused_experts_equal_split_ones(architecture):
    split = tiny.model(architecture, dense=0)
    fused = dict(split.tensors)
    for i in range(2):
        gate, up = (fused.pop(f"blk.{i}.ffn_{name}_exps.weight") for name in ("gate", "up"))
        fused[f"blk.{i}.ffn_gate_up_exps.weight"] = np.concatenate([gate, up], axis=1)
    assert np.array_equal(run(tiny.Tiny(split.metadata, fused), TEXT), run(split, TEXT))


@pytest.mark.parametrize("architecture", tiny.MIXTURES)
def test_keys_that_old_files_of_the_family_lack(architecture):
    model = tiny.model(architecture, layers=3)
    old = without(
        model,
        expert_gating_func=None,
        expert_weights_norm=None,
        expert_shared_count=None,
        expert_feed_forward_length=None,
        attention__q_lora_rank=None,
        attention__head_count_kv=None if architecture == "deepseek2" else 2,
    )
    assert recording(old).ops == recording(model).ops


@pytest.mark.parametrize("architecture", tiny.MIXTURES)
@pytest.mark.parametrize("shared", [0, 3])
def test_any_number_of_shared_experts(architecture, shared):
    model = tiny.model(architecture, shared=shared)
    assert len(recording(model).ops) == len(recording(tiny.model(architecture)).ops) - 3 * (not shared)
    assert np.isfinite(run(model, TEXT)).all()


WRONG_MIXTURES = [
    ("glm4moe", {"expert_gating_func": 1}, "'glm4moe.expert_gating_func' is 1, expected 2, sigmoid"),
    ("deepseek2", {"expert_gating_func": 1}, "'deepseek2.expert_gating_func' is 1"),
    ("glm4moe", {"expert_weights_norm": False}, "'glm4moe.expert_weights_norm' is False, expected true"),
    ("glm4moe", {"expert_weights_norm": 1}, "'glm4moe.expert_weights_norm'"),
    ("glm4moe", {"expert_weights_scale": None}, "no key 'glm4moe.expert_weights_scale'"),
    ("glm4moe", {"expert_weights_scale": 0.0}, "'glm4moe.expert_weights_scale'"),
    ("glm4moe", {"expert_weights_scale": 1e7}, "'glm4moe.expert_weights_scale' is 10000000.0, expected .* at most 1e"),
    ("glm4moe", {"expert_used_count": None}, "no key 'glm4moe.expert_used_count'"),
    ("glm4moe", {"expert_used_count": 9}, "'glm4moe.expert_used_count' is 9, expected an integer in 1..8"),
    ("glm4moe", {"expert_count": None}, "no key 'glm4moe.expert_count'"),
    ("glm4moe", {"expert_count": 7}, "'glm4moe.expert_count' is 7, expected 8, as 'blk.1.ffn_down_exps.weight' has"),
    ("glm4moe", {"expert_feed_forward_length": 64}, "'glm4moe.expert_feed_forward_length' is 64, expected 32"),
    ("glm4moe", {"leading_dense_block_count": 3}, "'glm4moe.leading_dense_block_count' is 3"),
    ("glm4moe", {"leading_dense_block_count": 0}, "blk.0.ffn_gate_inp.weight"),
    ("glm4moe", {"leading_dense_block_count": 2}, "blk.1.ffn_gate.weight"),
    ("glm4moe", {"expert_group_count": 8}, "'glm4moe.expert_group_count' is 8, expected 1"),
    ("deepseek2", {"expert_group_used_count": 4}, "'deepseek2.expert_group_used_count' is 4, expected 1"),
    ("deepseek2", {"attention__head_count_kv": 4}, "'deepseek2.attention.head_count_kv' is 4, expected 1"),
    ("deepseek2", {"attention__key_length": 64}, "'deepseek2.attention.key_length' is 64, expected 80"),
    ("deepseek2", {"attention__value_length": 32}, "'deepseek2.attention.value_length' is 32, expected 64"),
    (
        "deepseek2",
        {"attention__key_length_mla": 64},
        r"'blk.0.attn_k_b.weight' is \(4, 64, 16\), expected \(4, 64, 48\)",
    ),
    ("deepseek2", {"attention__value_length_mla": 16}, "'blk.0.attn_v_b.weight'"),
    ("deepseek2", {"attention__kv_lora_rank": None}, "no key 'deepseek2.attention.kv_lora_rank'"),
    ("deepseek2", {"attention__key_length_mla": 1 << 17}, "'deepseek2.attention.key_length_mla' is 131072"),
    ("deepseek2", {"attention__kv_lora_rank": 1 << 17}, "'deepseek2.attention.kv_lora_rank' is 131072"),
    ("deepseek2", {"attention__q_lora_rank": 31}, "'deepseek2.attention.q_lora_rank' is 31, expected 32"),
    ("deepseek2", {"rope__dimension_count": 32}, "'deepseek2.rope.dimension_count' is 32"),
    ("deepseek2", {"rope__dimension_count": 15}, "'deepseek2.attention.key_length'"),
    ("deepseek2", {"rope__scaling__type": "yarn"}, "'deepseek2.rope.scaling.factor'"),
]


@pytest.mark.parametrize("number", range(len(WRONG_MIXTURES)))
def test_wrong_mixture_names_its_key(number):
    architecture, keys, message = WRONG_MIXTURES[number]
    with pytest.raises(FormatError, match=message):
        recording(without(tiny.model(architecture), **keys))


def test_a_mixture_without_its_first_block_or_with_unsplit_heads_is_an_error():
    drafting = tiny.model("glm4moe", drafting=True)
    # llama.cpp's "mtp-*.gguf"
    with pytest.raises(FormatError, match=r"holds the block that drafts and not the model.*blk\.0\.attn_norm\.weight"):
        recording(without(drafting, "blk.0.", "blk.1.", block_count=47))
    model = tiny.model("deepseek2")
    with pytest.raises(FormatError, match=r"'blk\.0\.attn_kv_b\.weight'.*expected attn_k_b and attn_v_b.*doctor --fix"):
        record(model.metadata, without(model, "attn_k_b", "attn_v_b").shapes | {"blk.0.attn_kv_b.weight": (192, 64)})
    with pytest.raises(FormatError, match=r"blk\.1\.exp_probs_b\.bias"):
        recording(without(model, "exp_probs_b"))


def test_deepseek2_of_other_makers_runs_where_it_is_the_same():
    glm = tiny.model("deepseek2")
    other = without(glm, "exp_probs_b")
    other.metadata["tokenizer.ggml.tokens"] = ["a", "b"]
    assert [op.kind for op in recording(other).ops] == [op.kind for op in recording(glm).ops]
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 64}
    for keys, message in (
        (
            {"expert_gating_func": None},
            "'deepseek2.expert_gating_func' is missing, which means 1, expected 2, sigmoid",
        ),  # DeepSeek-V2
        ({"expert_weights_norm": None}, "'deepseek2.expert_weights_norm' is missing, which means False, expected true"),
        ({"expert_group_count": 8}, "'deepseek2.expert_group_count' is 8"),  # DeepSeek-V3
        (yarn, "'deepseek2.rope.scaling.type' is 'yarn', expected none or linear"),  # Kimi K2
    ):
        with pytest.raises(FormatError, match=message):
            recording(without(other, **keys))


def test_head_dim_and_kv_heads_have_defaults():
    left_out = {f"llama.attention.{key}": None for key in ("key_length", "value_length", "head_count_kv")}
    model = tiny.model("llama", dim=128, kv_heads=4, metadata=left_out | {"llama.rope.dimension_count": None})
    rec = recording(model)
    attention = rec.ops[3].attrs
    assert (attention["head_dim"], attention["kv_heads"], attention["rope"].dim) == (32, 4, 32)


# ---- layouts


def special(**ids):
    return lambda text: ids.get(text)


def test_causal_layout():
    layout = causal([7, 7, 7], special())
    assert layout.positions.dtype == np.int32
    assert layout.positions.tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert (layout.context, layout.next_position, layout.position_step) == (0, (3, 3, 3), (1, 1, 1))


def test_chatglm1_layout():
    ids = {"[gMASK]": 101, "[MASK]": 100, "<sop>": 104}
    layout = recording(tiny.model("chatglm1")).layout([5, 6, 101, 104], ids.get)
    assert layout.positions.tolist() == [[0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 1, 0]]
    assert (layout.context, layout.next_position, layout.position_step) == (3, (2, 2, 0), (0, 1, 0))
    layout = recording(tiny.model("chatglm1")).layout([5, 100, 6, 104, 7], ids.get)
    assert layout.positions.tolist() == [[0, 0, 0], [1, 0, 0], [2, 0, 0], [1, 1, 0], [1, 2, 0]]
    assert layout.next_position == (1, 3, 0)
    both = recording(tiny.model("chatglm1")).layout([100, 6, 101, 104], ids.get)
    assert both.positions.tolist()[-1] == [2, 1, 0]  # [gMASK] first, wherever it stands


def test_chatglm1_layout_of_the_published_model():
    """The prompt 你好 of ChatGLM-6B with the positions that its own code computes."""
    ids = {"[MASK]": 130000, "[gMASK]": 130001, "<sop>": 130004}
    layout = recording(tiny.model("chatglm1")).layout([74747, 83400, 66846, 130001, 130004], ids.get)
    assert layout.positions[:, 0].tolist() == [0, 1, 2, 3, 3]
    assert layout.positions[:, 1].tolist() == [0, 0, 0, 0, 1]
    assert (layout.context, layout.next_position) == (4, (3, 2, 0))


@pytest.mark.parametrize("tokens", [[5, 6, 101], [5, 6, 104], []])
def test_chatglm1_layout_needs_mask_and_start(tokens):
    with pytest.raises(ValueError, match="gMASK"):
        recording(tiny.model("chatglm1")).layout(tokens, {"[gMASK]": 101, "<sop>": 104}.get)


def test_glm_layout_fills_masks_in_turn():
    ids = {"[MASK]": 1, "[gMASK]": 2, "<|startofpiece|>": 3}
    layout = recording(tiny.model("glm")).layout([9, 1, 9, 2, 3, 8, 8, 3, 8], ids.get)
    assert layout.positions[:, 0].tolist() == [0, 1, 2, 3, 1, 1, 1, 3, 3]
    assert layout.positions[:, 1].tolist() == [0, 0, 0, 0, 1, 2, 3, 1, 2]
    assert (layout.context, layout.next_position, layout.position_step) == (4, (3, 3, 0), (0, 1, 0))


def test_glm_layout_needs_a_mask_for_each_piece():
    ids = {"[MASK]": 1, "<|startofpiece|>": 3}
    layout = recording(tiny.model("glm")).layout
    for tokens in ([9, 3], [9, 1], [1, 3, 8, 3]):
        with pytest.raises(ValueError, match="masks"):
            layout(tokens, ids.get)


# ---- steps of the executor


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_by_one_equals_prefill(architecture):
    model = tiny.model(architecture, prefix=3 if "chatglm" in architecture else 0)
    tokens = infilling_tokens(model) if architecture in ("chatglm1", "glm") else TEXT
    rec = recording(model)
    layout = rec.layout(tokens, lambda text: tiny.token_id(model, text))
    whole = run(model, tokens)
    reference = Reference(rec.ops, model.tensors)
    sequence, start, logits = reference.new_sequence(), layout.context, []
    if start:
        work = Work(sequence, tokens[:start], layout.positions[:start], start)
        logits.append(reference.step([work], range(start)))
    for i in range(start, len(tokens)):
        logits.append(reference.step([Work(sequence, tokens[i : i + 1], layout.positions[i : i + 1])], [0]))
    assert reference.length(sequence) == len(tokens)
    # BLAS may sum one row and many rows in different orders, so f64 sums differ before they are rounded to f32.
    assert error(np.concatenate(logits), whole) <= INDEPENDENT


class Exact(Reference):
    """Nothing is rounded to f32, but what the router compares."""

    def _run(self, op, step, values):
        inputs = {slot: values[v.id] for slot, v in op.inputs.items()}
        weights = {slot: [self.weights[name] for name in names] for slot, names in op.weights.items()}
        return getattr(self, f"_{op.kind}")(step, **inputs, **weights, **op.attrs)


@pytest.mark.parametrize("architecture", tiny.MIXTURES)
def test_chunks_equal_a_mixture_at_once(architecture):
    model = tiny.model(architecture, layers=3)
    tokens = np.random.RandomState(3).randint(0, 256, 23).tolist()
    positions = causal(tokens, special()).positions
    reference = Exact(recording(model).ops, model.tensors, kv_dtype=np.float64)
    whole = reference.step([Work(reference.new_sequence(), tokens, positions)], range(23))
    sequence = reference.new_sequence()
    chunks = []
    for begin, end in ((0, 7), (7, 8), (8, 21), (21, 23)):
        work = Work(sequence, tokens[begin:end], positions[begin:end])
        chunks.append(reference.step([work], range(end - begin)))
    assert error(np.concatenate(chunks), whole) <= 1e-12


@pytest.mark.parametrize("architecture", tiny.MIXTURES)
def test_drafts_one_by_one_equal_drafts_at_once(architecture):
    model = tiny.model(architecture, drafting=True)
    rows = trunk_rows(model, TEXT)
    whole = run_draft(model, TEXT, rows)
    reference = Reference(draft(model.metadata, model.shapes).ops, model.tensors)
    sequence, positions = reference.new_sequence(), causal(TEXT, special()).positions
    for i in range(1, len(TEXT)):
        work = Work(sequence, TEXT[i : i + 1], positions[i : i + 1], input=rows[i - 1 : i])
        assert error(reference.step([work], [0]), whole[i - 1 : i]) <= INDEPENDENT


def test_route():
    """The bias moves the choice alone; of equal scores, equal in f32, the lower index is chosen."""
    gate = np.array([[0, 0], [1, 0], [1, 0], [0, 1], [1, 0]], np.float32)
    weights = {"table": np.array([[1, 0], [40, 50], [-2000, 1]], np.float32), "gate": gate}
    weights["bias"] = np.array([0, 0, 0, 0.3, 0], np.float32)
    r = Recorder({name: x.shape for name, x in weights.items()})
    r.route(r.embed("table"), "gate", "bias", used=2, scale=3.0)
    reference = Reference(r.ops, weights)
    work = Work(reference.new_sequence(), [0, 1, 2], causal([0, 1, 2], special()).positions)
    chosen, shares = np.split(reference.step([work], []), 2, axis=-1)
    s = 1 / (1 + np.exp(-1.0))
    assert chosen.tolist() == [[1, 3], [1, 3], [0, 3]]
    want = [[3 * s / (s + 0.5), 1.5 / (s + 0.5)], [1.5, 1.5], [1.5 / (s + 0.5), 3 * s / (s + 0.5)]]
    assert np.allclose(shares, want, rtol=1e-6, atol=0)
    r = Recorder({name: x.shape for name, x in weights.items()})
    r.route(r.embed("table"), "gate", used=3)
    chosen = Reference(r.ops, weights)
    work = Work(chosen.new_sequence(), [0, 1], causal([0, 1], special()).positions)
    # sigmoid(40) and sigmoid(50) are both 1 in f32.
    assert chosen.step([work], [])[:, :3].tolist() == [[1, 2, 4], [1, 2, 3]]


def test_sequences_do_not_see_each_other():
    model = tiny.model("chatglm")
    rec = recording(model)
    reference = Reference(rec.ops, model.tensors)
    a, b = reference.new_sequence(), reference.new_sequence()
    at = causal(range(20), special()).positions
    reference.step([Work(a, TEXT[:4], at[:4]), Work(b, TEXT[5:7], at[:2])], [])
    both = reference.step([Work(b, TEXT[7:], at[2:5]), Work(a, TEXT[4:], at[4:10])], [2, 8])
    assert error(both[:1], run(model, TEXT[5:])[-1:]) <= INDEPENDENT
    assert error(both[1:], run(model, TEXT)[-1:]) <= INDEPENDENT


def test_cache_in_half_precision_is_close():
    model = tiny.model("llama")
    rec = recording(model)
    work = [Work(0, TEXT, causal(TEXT, special()).positions)]
    exact, half, single = (
        Reference(rec.ops, model.tensors, kv_dtype=kv_dtype, dtype=dtype)
        for kv_dtype, dtype in ((np.float32, np.float64), (np.float16, np.float64), (np.float32, np.float32))
    )
    for reference in (exact, half, single):
        reference.new_sequence()
    want = exact.step(work, range(10))
    # A key's 32 columns and a value are each rounded by 2^-11 at most, in two layers.
    assert 0 < error(half.step(work, range(10)), want) <= 2 * 2 * 2**-11
    assert error(single.step(work, range(10)), want) <= STORED_ERROR


def test_fork_truncate_free():
    model = tiny.model("glm4")
    reference = Reference(recording(model).ops, model.tensors)
    at = causal(range(20), special()).positions
    a = reference.new_sequence()
    reference.step([Work(a, TEXT, at[:10])], [])
    b = reference.fork(a, 4)
    reference.truncate(a, 6)
    assert (reference.length(a), reference.length(b)) == (6, 4)
    logits = reference.step([Work(a, [1, 2], at[6:8]), Work(b, [3], at[4:5])], [1, 2])
    assert error(logits[:1], run(model, [*TEXT[:6], 1, 2])[-1:]) <= INDEPENDENT
    assert error(logits[1:], run(model, [*TEXT[:4], 3])[-1:]) <= INDEPENDENT
    reference.free(a)
    with pytest.raises(ValueError, match=f"sequence {a}"):
        reference.length(a)
    with pytest.raises(ValueError, match="has 5 tokens, not 6"):
        reference.fork(b, 6)


@pytest.mark.parametrize(
    ("work", "rows", "message"),
    [
        ({"tokens": [384]}, [0], "token 384"),
        ({"tokens": [-1]}, [0], "embeddings of 0 values, expected 64"),
        ({"tokens": [-2]}, [0], "token -2"),
        ({"sequence": 5}, [0], "sequence 5"),
        ({"tokens": []}, [], "0 tokens"),
        ({"positions": np.zeros((2, 3), int)}, [0], r"expected \(1, 3\)"),
        ({}, [1], "rows"),
        ({"visible": 2}, [0], "context of 2"),
        ({"positions": np.array([[257, 0, 0]])}, [0], "position 257"),
        ({"positions": np.array([[0, -1, 0]])}, [0], "position -1"),
        ({"input": np.zeros((1, 64))}, [0], r"input is \(1, 64\), expected None"),
    ],
)
def test_bad_steps_are_refused(work, rows, message):
    model = tiny.model("glm")
    reference = Reference(recording(model).ops, model.tensors)
    sequence = reference.new_sequence()
    whole = {"sequence": sequence, "tokens": [1], "positions": np.zeros((len(work.get("tokens", [1])), 3), int)} | work
    with pytest.raises(ValueError, match=message):
        reference.step([Work(**whole)], rows)
    assert reference.length(sequence) == 0


@pytest.mark.parametrize("input", [None, np.zeros((1, 63)), np.zeros((2, 64)), np.zeros(64)])
def test_rows_that_are_not_as_the_program_wants_them_are_refused(input):
    model = tiny.model("glm4moe", drafting=True)
    reference = Reference(draft(model.metadata, model.shapes).ops, model.tensors)
    sequence = reference.new_sequence()
    with pytest.raises(ValueError, match=r"input is .*, expected \(1, 64\)"):
        reference.step([Work(sequence, [1], np.zeros((1, 3), int), input=input)], [0])
    assert reference.length(sequence) == 0


def test_compare_names_the_first_op_that_differs():
    model = tiny.model("chatglm")
    rec = recording(model)
    work = [Work(0, TEXT, causal(TEXT, special()).positions)]

    def trace(ops):
        reference = Reference(ops, model.tensors)
        reference.new_sequence()
        return reference.trace(work, [9])

    same = trace(rec.ops)
    assert len(same) == len(rec.ops) and same[-1][1].shape == (1, rec.vocab)
    assert compare(same, trace(rec.ops)) is None
    other = dict(model.tensors)
    other["blk.1.ffn_up.weight"] = other["blk.1.ffn_up.weight"] * np.float32(1.01)
    reference = Reference(rec.ops, other)
    reference.new_sequence()
    assert "blk.1.ffn_up.weight" in compare(same, reference.trace(work, [9]))
    same[3][1][0, 0] = np.nan
    assert str(rec.ops[3]) in compare(same, trace(rec.ops))


# ---- files that are not what they say


def bad(architecture="chatglm", tensors=None, **metadata):
    model = tiny.model(architecture, metadata={key.replace("__", "."): value for key, value in metadata.items()})
    return tiny.Tiny(model.metadata, model.tensors | (tensors or {}))


HUGE = 10**9


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", None),
        ("block_count", 0),
        ("block_count", -1),
        ("block_count", HUGE),
        ("block_count", "2"),
        ("block_count", 2.0),
        ("block_count", True),
        ("block_count", np.array([2, 2])),
        ("context_length", None),
        ("context_length", 2**31),
        ("embedding_length", 65),
        ("embedding_length", None),
        ("attention.head_count", 0),
        ("attention.head_count", HUGE),
        ("attention.head_count", None),
        ("attention.head_count_kv", 3),
        ("attention.head_count_kv", 8),
        ("attention.value_length", 16),
        ("attention.layer_norm_rms_epsilon", None),
        ("attention.layer_norm_rms_epsilon", -1e-5),
        ("attention.layer_norm_rms_epsilon", float("nan")),
        ("attention.layer_norm_rms_epsilon", 2.0),
        ("attention.key_length", 1 << 17),
        ("rope.dimension_count", 64),
        ("rope.dimension_count", 15),
        ("rope.freq_base", 0.0),
        ("rope.freq_base", float("inf")),
        ("rope.scaling.type", "longrope"),
    ],
)
def test_bad_metadata_is_named(key, value):
    model = tiny.model("chatglm", metadata={f"chatglm.{key}": value})
    with pytest.raises(FormatError, match=f"'chatglm.{key}'"):
        recording(model)


@pytest.mark.parametrize("key", ["attention.layer_norm_epsilon", "residual_alpha"])
def test_a_constant_that_no_executor_takes_is_named(key):
    model = tiny.model("chatglm1", metadata={f"chatglm1.{key}": 1e7})
    with pytest.raises(FormatError, match=f"'chatglm1.{key}' is 10000000.0, expected a positive number, at most 1"):
        recording(model)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaling_needs_its_factor(kind):
    model = tiny.model("glm4", metadata={"glm4.rope.scaling.type": kind})
    with pytest.raises(FormatError, match=r"'glm4.rope.scaling.factor'"):
        recording(model)


def short(architecture):
    """A model of one block; of a mixture, of one block of each kind."""
    return tiny.model(architecture, layers=2 if architecture in tiny.MIXTURES else 1)


ODD = [-1, 0, 1, 3, 2**31, 2**63, HUGE, 0.5, float("nan"), float("inf"), 1e300, "8", b"8", True, np.array([8, 8]), [8]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_odd_metadata_is_accepted_or_refused(architecture):
    """Whatever value stands in a key, recording ends soon, in a program or in FormatError."""
    model = short(architecture)
    keys = [key for key in model.metadata if key.startswith(architecture)]
    keys += [f"{architecture}.{key}" for key in ("nextn_predict_layers", "rope.dimension_sections")]
    if architecture in tiny.MIXTURES:
        keys += [f"{architecture}.{key}" for key in ("expert_group_count", "expert_group_used_count")]
    refused = 0
    for key in keys:
        for value in ODD:
            for extra in ({}, {f"{architecture}.rope.scaling.type": "yarn"}):
                try:
                    rec = record(model.metadata | extra | {key: value}, model.shapes)
                except FormatError:
                    refused += 1
                    continue
                for rope in [op.attrs["rope"] for op in rec.ops if op.attrs.get("rope") is not None]:
                    assert np.isfinite(rope.table().freq).all()
    assert refused > len(keys)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_odd_shapes_are_refused(architecture):
    model = short(architecture)
    for name, shape in model.shapes.items():
        for other in (
            (),
            (0,),
            (0, *shape[1:]),
            (*shape, 1),
            shape[:-1],
            (*shape[:-1], 0),
            (0,) * len(shape),
            (*shape[:-1], HUGE),
        ):
            with pytest.raises(FormatError):
                record(model.metadata, model.shapes | {name: other})


def test_unknown_architecture_lists_the_known():
    for architecture in ("bert", None, 7):
        with pytest.raises(FormatError, match="chatglm, chatglm1, deepseek2, glm, glm4, glm4moe, llama"):
            record({"general.architecture": architecture}, {})


@pytest.mark.parametrize("value", [np.array([1, 2]), np.zeros(5000, np.int32), "x\n" * 5000])
def test_metadata_of_another_type_is_named_in_one_line(value):
    for read, key in ((record, "general.architecture"), (record_eyes, "clip.projector_type")):
        with pytest.raises(FormatError, match=rf"'{key}' is (ndarray|'x\\n.*'), expected") as error:
            read({key: value}, {})
        assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_missing_tensor_is_named(architecture):
    model = tiny.model(architecture)
    optional = {"output.weight"}  # tied without it
    for name in model.tensors.keys() - optional:
        rest = {k: shape for k, shape in model.shapes.items() if k != name}
        if name.endswith(".bias") and architecture == "chatglm":
            continue  # optional there
        with pytest.raises(FormatError, match=name.replace("attn_qkv.weight", "attn_[qkv]")):
            record(model.metadata, rest)


@pytest.mark.parametrize("name", ["blk.1.attn_output.bias", "blk.0.attn_q_norm.weight", "rope_freqs.weight"])
def test_tensor_nobody_reads_is_an_error(name):
    model = tiny.model("chatglm")
    with pytest.raises(FormatError, match=name):
        record(model.metadata, model.shapes | {name: (64,)})


def test_other_vocabulary_at_the_output_is_an_error():
    model = tiny.model("llama")
    with pytest.raises(FormatError, match=r"output\.weight"):
        record(model.metadata, model.shapes | {"output.weight": (385, 64)})


def test_short_position_table_is_an_error():
    model = tiny.model("glm")
    with pytest.raises(FormatError, match=r"block_position_embd\.weight"):
        record(model.metadata, model.shapes | {"block_position_embd.weight": (256, 64)})


def test_heads_that_do_not_fit_the_matrix_are_an_error():
    with pytest.raises(FormatError, match="layer 0"):
        recording(tiny.model("chatglm", metadata={"chatglm.attention.head_count_kv": 4}))


# ---- tiny files

FORMATS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
FORMATS += ["IQ4_NL", "IQ4_XS"]


@pytest.mark.parametrize("format", FORMATS)
def test_tiny_file_of_every_format(format, tmp_path):
    import gguf

    model = tiny.wide("chatglm", layers=1)
    reader = gguf.GGUFReader(tiny.write(tmp_path / "tiny.gguf", model, format))
    read = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    assert {name: x.shape for name, x in read.items()} == model.shapes
    matrix = read["blk.0.ffn_up.weight"]
    # Rounding to two bits keeps the size of the values within a half.
    assert 0.5 <= np.std(matrix) / np.std(model.tensors["blk.0.ffn_up.weight"]) <= 1.5
    if format not in FORMATS[8:]:
        coarsest = 1 / 8  # of Q4_0, which has codes up to 7/8 of a block's largest value
        assert error(matrix, model.tensors["blk.0.ffn_up.weight"]) <= coarsest


@pytest.mark.parametrize("format", ["Q8_0", "Q4_K"])
@pytest.mark.parametrize("architecture", tiny.MIXTURES)
def test_tiny_file_of_a_mixture(architecture, format, tmp_path):
    import gguf

    model = tiny.wide(architecture)
    reader = gguf.GGUFReader(tiny.write(tmp_path / "tiny.gguf", model, format))
    types = {t.name: t.tensor_type.name for t in reader.tensors}
    assert {t.name: tuple(map(int, t.shape[::-1])) for t in reader.tensors} == model.shapes
    assert types["blk.1.ffn_gate_exps.weight"] == types["blk.1.ffn_gate_shexp.weight"] == format
    assert types["blk.1.ffn_gate_inp.weight"] == types["blk.1.exp_probs_b.bias"] == "F32"
    narrow = [types[name] for name in types if "attn_k_b" in name]  # rows of 192
    assert set(narrow) <= {"Q5_0" if format == "Q4_K" else format} and bool(narrow) == (architecture == "deepseek2")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiny_file_of_every_architecture(architecture, tmp_path):
    import gguf

    model = tiny.model(architecture)
    reader = gguf.GGUFReader(tiny.write(tmp_path / "tiny.gguf", model))
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: np.array(t.data) for t in reader.tensors}
    tokens = infilling_tokens(model) if architecture in ("chatglm1", "glm") else TEXT
    # The file holds f32 where the metadata in memory is f64, alpha and eps among them.
    assert error(run(tiny.Tiny(metadata, tensors), tokens), run(model, tokens)) <= INDEPENDENT


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiny_tokens_are_distinct(architecture):
    tokens = tiny.tokenizer(architecture, 384)["tokenizer.ggml.tokens"]
    assert len(tokens) == len(set(tokens)) == 384
