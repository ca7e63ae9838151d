"""`glmlite doctor`: for every check a file that is well, and one that is broken in exactly that way."""

import hashlib
import json
import struct

import numpy as np
import pytest
import tiny
import vocab
from test_convert import FORMS, make

import glmlite
from glmlite import _native as native
from glmlite import chat, doctor, families
from glmlite.chat import dialects, template, templates
from glmlite.chat.dialects import FORMATS
from glmlite.cli import main
from glmlite.convert import convert, writer
from glmlite.convert.formats import TYPES
from glmlite.doctor import Severity, text, values
from glmlite.doctor.subject import Subject
from glmlite.errors import Cancelled, FormatError
from glmlite.tokenizer import Tokenizer

MESSAGES = [{"role": "user", "content": "the 你好"}]
TEMPLATE = tiny.TEMPLATES["glm4"]


def well(architecture="chatglm", *, tensors=None, metadata=None, **sizes):
    """A tiny model with nothing wrong. metadata, tensors: what to replace, None to leave out."""
    model = tiny.model(architecture, **sizes)
    own = {}
    if (ends := tiny.token_id(model, "<|observation|>")) is not None:
        own["tokenizer.ggml.eom_token_id"] = ends
    every = model.metadata | own | (metadata or {})
    named = model.tensors | (tensors or {})
    return tiny.Tiny(
        {key: value for key, value in every.items() if value is not None},
        {name: x for name, x in named.items() if x is not None},
    )


def write(folder, model, format="F32", name="model.gguf"):
    return tiny.write(folder / name, model, format)


def subject_of(model):
    arrays = {
        key: np.array(value, np.int32)
        for key, value in model.metadata.items()
        if isinstance(value, list) and isinstance(value[0], int)
    }
    return Subject(model.metadata | arrays, model.shapes)


def ids(model, *texts):
    return [tiny.token_id(model, text) for text in texts]


def checks(report):
    return [finding.check for finding in report.findings]


# ---- well files --------------------------------------------------------------------------------------------------

SIZES = [
    ("chatglm", {}),
    ("chatglm", {"prefix": 3}),
    ("chatglm", {"bias": False, "rope_dim": 32, "tied": True, "fused": False}),
    ("chatglm1", {"head_dim": 16}),
    ("glm", {"head_dim": 16}),
    ("glm4", {}),
    ("glm4moe", {}),
    ("glm4moe", {"drafting": True, "dense": 2, "layers": 4, "head_norms": True}),
    ("deepseek2", {}),
    ("deepseek2", {"drafting": True}),
    ("llama", {}),
    ("llama", {"tied": True, "bias": True}),
]


@pytest.mark.parametrize(("architecture", "sizes"), SIZES)
def test_well_files_have_no_findings(tmp_path, architecture, sizes):
    report = doctor.examine(write(tmp_path, well(architecture, **sizes)))
    assert report.findings == () and report.ok and report.architecture == architecture
    assert report.glm == (architecture != "llama")
    assert report.weight_bytes > 0 and report.unread == ()


@pytest.mark.parametrize("type", ["f32", "bf16", "q8_0"])
@pytest.mark.parametrize("case", FORMS)
def test_what_glmlite_converts_has_no_findings(tmp_path, case, type):
    _, folder = make(tmp_path / "copy", case)
    assert doctor.examine(convert(folder, tmp_path / "out.gguf", type)).findings == ()


def test_what_glmlite_converts_without_a_template_has_one(tmp_path):
    _, folder = make(tmp_path / "copy", "glm4-9b")
    (folder / "tokenizer_config.json").unlink()
    assert doctor.examine(convert(folder, tmp_path / "out.gguf", "f16")).findings == ()


# ---- broken in one way -------------------------------------------------------------------------------------------

ADD_BOS = {"tokenizer.ggml.add_bos_token": True}


def bos(model):
    return ADD_BOS | {"tokenizer.ggml.bos_token_id": ids(model, "[gMASK]")[0]}


def types(model, kind, *texts):
    out = list(model.metadata["tokenizer.ggml.token_type"])
    for i in ids(model, *texts):
        out[i] = kind
    return {"tokenizer.ggml.token_type": out}


def fewer_tokens(model):
    keys = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type")
    return {key: model.metadata[key][:-20] for key in keys}


def ends(model, **named):
    keys = {"eos": None, "eot": None, "eom": None} | named
    return {
        f"tokenizer.ggml.{name}_token_id": None if text is None else ids(model, text)[0] for name, text in keys.items()
    }


T = "tokenizer.chat_template"
# name -> architecture, what is changed in a well model's metadata, check, severity
BROKEN = {
    "no prefix": ("chatglm", lambda m: {T: TEMPLATE.removeprefix("[gMASK]<sop>")}, "prefix-missing", "error"),
    "half a prefix": ("glm4", lambda m: {T: TEMPLATE.replace("<sop>", "", 1)}, "prefix-missing", "error"),
    "prefix twice": ("glm4", lambda m: {T: "[gMASK]<sop>" + TEMPLATE}, "prefix-doubled", "error"),
    "sop twice": ("glm4", lambda m: {T: TEMPLATE.replace("<sop>", "<sop><sop>")}, "prefix-doubled", "error"),
    "bos and prefix": ("glm4", bos, "prefix-doubled", "error"),
    "another bos": (
        "chatglm",
        lambda m: ADD_BOS | {"tokenizer.ggml.bos_token_id": ids(m, "<|endoftext|>")[0]},
        "prefix-wrong",
        "error",
    ),
    "eos behind": ("chatglm", lambda m: {"tokenizer.ggml.add_eos_token": True}, "prefix-wrong", "error"),
    "single eos": ("chatglm", lambda m: ends(m, eos="<|endoftext|>"), "stop-ids", "warning"),
    "eot is eos": ("glm4", lambda m: ends(m, eos="<|endoftext|>", eot="<|endoftext|>"), "stop-ids", "warning"),
    "only user": ("glm4", lambda m: ends(m, eos="<|user|>"), "stop-ids", "warning"),
    "no observation": ("chatglm", lambda m: ends(m, eos="<|endoftext|>", eot="<|user|>"), "stop-ids", "note"),
    "observation is no id": (
        "glm4",
        lambda m: {"tokenizer.ggml.eom_token_id": 2**32 - 1},
        "stop-ids",
        "error",
    ),
    "ends of another type": (
        "glm4",
        lambda m: ends(m, eos="<|endoftext|>", eot="<|user|>") | {"tokenizer.ggml.eos_token_ids": [0.5]},
        "stop-ids",
        "error",
    ),
    "no eos": ("chatglm1", lambda m: ends(m), "stop-ids", "error"),
    "eos of nothing": ("glm", lambda m: {"tokenizer.ggml.eos_token_id": 5000}, "stop-ids", "error"),
    "specials are text": ("chatglm", lambda m: types(m, 1, "[gMASK]", "<|user|>"), "token-type", "error"),
    "specials of the user": ("glm4", lambda m: types(m, 4, "<|user|>"), "token-type", "warning"),
    "no types": ("glm4", lambda m: {"tokenizer.ggml.token_type": None}, "token-type", "warning"),
    "no pre": ("chatglm", lambda m: {"tokenizer.ggml.pre": None}, "pre", "error"),
    "default pre": ("glm4", lambda m: {"tokenizer.ggml.pre": "default"}, "pre", "error"),
    "pre of a number": ("glm4", lambda m: {"tokenizer.ggml.pre": 4}, "pre", "error"),
    "another pre": ("glm", lambda m: {"tokenizer.ggml.pre": "default"}, "pre", "error"),
    "no template": ("glm4", lambda m: {T: None}, "template-missing", "warning"),
    "a template's name": ("glm4", lambda m: {T: "chatglm4"}, "template-name", "error"),
    "another name": ("chatglm", lambda m: {T: " GLM4 "}, "template-name", "error"),
    "an empty template": ("chatglm", lambda m: {T: ""}, "template-missing", "warning"),
    "a template cut off": ("glm4", lambda m: {T: TEMPLATE[:100]}, "template-syntax", "error"),
    "half a prefix, cut off": ("glm4", lambda m: {T: TEMPLATE[7:100]}, "template-syntax", "error"),
    "fewer tokens": ("chatglm", fewer_tokens, "vocabulary-size", "error"),
    "another vocab_size": ("chatglm", lambda m: {"chatglm.vocab_size": 300}, "vocabulary-size", "warning"),
    "a temperature without bounds": (
        "glm4",
        lambda m: {"general.sampling.temp": float("inf")},
        "sampling",
        "error",
    ),
    "no part turns": ("chatglm", lambda m: {"chatglm.rope.dimension_count": None}, "rotary-part", "error"),
    "all turns": ("glm4", lambda m: {"glm4.rope.dimension_count": 32}, "rotary-part", "error"),
}
# Wrong in a way that no two programs need to agree on: only the fixed file must be as the well one.
SIZED = {"chatglm1": {"head_dim": 16}, "glm": {"head_dim": 16}}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_named_and_corrected(tmp_path, case):
    architecture, change, check, severity = BROKEN[case]
    sizes = SIZED.get(architecture, {})
    good = well(architecture, **sizes)
    path = write(tmp_path, well(architecture, metadata=change(good), **sizes))
    before = path.read_bytes()

    report = doctor.examine(path)
    assert [(f.check, f.severity.value) for f in report.findings] == [(check, severity)]
    (finding,) = report.findings
    assert finding.fix and finding.changes and finding.means.endswith(".") and "\n" not in finding.what
    assert report.ok == (severity == "note")

    fixed = doctor.fix(report, tmp_path / "fixed.gguf")
    assert doctor.examine(fixed).findings == ()
    assert path.read_bytes() == before
    with glmlite.load(write(tmp_path, good, name="well.gguf")) as want, glmlite.load(fixed) as got:
        assert got.tokenizer.eos_ids == want.tokenizer.eos_ids
        prompt = want.prompt_ids("the 你好")
        assert got.prompt_ids("the 你好") == prompt
        assert np.array_equal(got.logits(prompt), want.logits(prompt))
        # A template of our own has no line end before the answer; the tiny one has.
        if want.chat_format and check not in ("template-missing", "template-name", "template-syntax"):
            prompt = want.chat_ids(MESSAGES)
            assert got.chat_ids(MESSAGES) == prompt
            assert np.array_equal(got.logits(prompt), want.logits(prompt))


def test_several_at_once(tmp_path):
    good = well("chatglm")
    wrong = {T: None} | ends(good) | {"tokenizer.ggml.pre": "default", "chatglm.rope.dimension_count": None}
    wrong |= fewer_tokens(good) | ADD_BOS | {"tokenizer.ggml.bos_token_id": 3}
    report = doctor.examine(write(tmp_path, well("chatglm", metadata=wrong)))
    assert sorted(set(checks(report))) == [
        "pre",
        "prefix-wrong",
        "rotary-part",
        "stop-ids",
        "template-missing",
        "vocabulary-size",
    ]
    severities = [list(Severity).index(finding.severity) for finding in report.findings]
    assert severities == sorted(severities)
    assert doctor.examine(doctor.fix(report, tmp_path / "fixed.gguf")).findings == ()


def test_corrections_of_the_same_key_add_up(tmp_path):
    good = well("glm4")
    wrong = fewer_tokens(good)
    wrong["tokenizer.ggml.token_type"] = types(good, 4, "<|user|>")["tokenizer.ggml.token_type"][:-20]
    report = doctor.examine(write(tmp_path, well("glm4", metadata=wrong)))
    assert sorted(checks(report)) == ["token-type", "vocabulary-size"]
    assert doctor.examine(doctor.fix(report, tmp_path / "fixed.gguf")).findings == ()


# name -> architecture, sizes, keys that are changed in a well mixture, check, severity
MIXTURES = {
    "softmax": ("glm4moe", {}, {"expert_gating_func": 1}, "gating", "error"),
    "no gating": ("deepseek2", {}, {"expert_gating_func": None}, "gating", "warning"),
    "not normalised": ("glm4moe", {}, {"expert_weights_norm": False}, "expert-weights", "error"),
    "no norm": ("deepseek2", {}, {"expert_weights_norm": None}, "expert-weights", "error"),
    "no scale": ("deepseek2", {}, {"expert_weights_scale": None}, "expert-weights", "error"),
    "another scale": ("glm4moe", {}, {"expert_weights_scale": 1.0}, "expert-weights", "error"),
    "all turns": ("glm4moe", {}, {"rope.dimension_count": None}, "rotary-part", "error"),
    "no dense block": ("glm4moe", {}, {"leading_dense_block_count": 0}, "experts", "error"),
    "no word on dense blocks": ("deepseek2", {}, {"leading_dense_block_count": None}, "experts", "error"),
    "a dense block more": ("deepseek2", {"drafting": True}, {"leading_dense_block_count": 2}, "experts", "error"),
    "none but dense blocks": ("glm4moe", {}, {"leading_dense_block_count": 77}, "experts", "error"),
    "fewer experts": ("glm4moe", {}, {"expert_count": 4}, "experts", "error"),
    "no experts": ("deepseek2", {}, {"expert_count": None}, "experts", "error"),
    "narrow experts": ("deepseek2", {}, {"expert_feed_forward_length": 16}, "experts", "error"),
    "more are used": ("glm4moe", {}, {"expert_used_count": 4}, "experts", "warning"),
    "more are used than there are": ("glm4moe", {}, {"expert_used_count": 9}, "experts", "warning"),
    "no word on how many are used": ("deepseek2", {}, {"expert_used_count": None}, "experts", "error"),
    # A block that drafts, of which the keys say nothing; that they do not count; that they take for no layer.
    "a draft is a layer": ("deepseek2", {"drafting": True}, {"nextn_predict_layers": None}, "drafting", "error"),
    "none drafts": ("glm4moe", {"drafting": True}, {"nextn_predict_layers": 0}, "drafting", "error"),
    "not counted": (
        "deepseek2",
        {"drafting": True},
        {"block_count": 3, "nextn_predict_layers": None},
        "drafting",
        "error",
    ),
    "counted twice": ("glm4moe", {"drafting": True}, {"block_count": 3}, "drafting", "error"),
    "a layer is a draft": ("glm4moe", {}, {"nextn_predict_layers": 1}, "drafting", "error"),
    "a layer is left out": ("deepseek2", {}, {"block_count": 2}, "drafting", "error"),
    "a draft is lost": ("deepseek2", {}, {"block_count": 4, "nextn_predict_layers": 1}, "drafting", "warning"),
}


@pytest.fixture
def tiny_mixtures(monkeypatch):
    """Makes the tiny mixtures of three layers published models."""
    sizes = families.Sizes(3, 64, 4, 384)
    known = [
        families.Published("Tiny", kind, sizes, rope_dim=16, base=1e4, scale=1.8, used=2) for kind in tiny.MIXTURES
    ]
    monkeypatch.setattr(families, "PUBLISHED", known)


@pytest.mark.parametrize("case", MIXTURES)
def test_broken_mixtures_are_named_and_corrected(tmp_path, tiny_mixtures, case):
    architecture, sizes, change, check, severity = MIXTURES[case]
    good = well(architecture, layers=3, **sizes)
    changed = {f"{architecture}.{key}": value for key, value in change.items()}
    report = doctor.examine(write(tmp_path, well(architecture, layers=3, metadata=changed, **sizes)))
    assert [(f.check, f.severity.value) for f in report.findings] == [(check, severity)]
    fixed = native.Gguf(doctor.fix(report, tmp_path / "fixed.gguf"))
    for key, value in good.metadata.items():
        if key.startswith(f"{architecture}."):
            assert fixed.metadata[key] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), key
    assert f"{architecture}.nextn_predict_layers" in fixed.metadata or not sizes
    fixed.close()
    assert doctor.examine(tmp_path / "fixed.gguf").findings == ()


@pytest.mark.parametrize("architecture", ["chatglm", "glm4moe"])
def test_layers_that_the_keys_leave_out_are_counted(tmp_path, architecture):
    """Of a model that nobody knows, too: its tensors tell."""
    report = doctor.examine(write(tmp_path, well(architecture, layers=4, metadata={f"{architecture}.block_count": 2})))
    assert [(f.check, f.severity.value) for f in report.findings] == [("drafting", "error")]
    doctor.fix(report, tmp_path / "fixed.gguf")
    assert doctor.examine(tmp_path / "fixed.gguf").findings == ()


@pytest.mark.parametrize("architecture", tiny.MIXTURES)
def test_a_block_that_has_lost_what_it_drafts_with(tmp_path, tiny_mixtures, architecture):
    """The number of layers of the published model tells that it is none."""
    model = well(architecture, layers=3, drafting=True)
    tensors = {name: None for name in model.tensors if ".nextn." in name}
    keys = {"layers": 3, "drafting": True, "tensors": tensors}
    (finding,) = doctor.examine(write(tmp_path, well(architecture, **keys))).findings
    assert (finding.check, finding.severity.value, finding.fix) == ("drafting", "warning", None)
    assert "fail" in finding.means  # of other programs
    path = write(tmp_path, well(architecture, **keys, metadata={f"{architecture}.nextn_predict_layers": None}))
    report = doctor.examine(path)
    assert [(f.check, f.severity.value) for f in report.findings] == [("drafting", "error")]
    (left,) = doctor.examine(doctor.fix(report, tmp_path / "fixed.gguf")).findings
    assert left.what == finding.what


@pytest.mark.parametrize(
    ("name", "shape", "check"),
    [
        ("nextn.enorm.weight", None, "tensor-missing"),
        ("attn_norm.weight", None, "tensor-missing"),
        ("ffn_down_exps.weight", None, "tensor-missing"),
        ("nextn.hnorm.weight", (63,), "tensor-shape"),
        ("nextn.eh_proj.weight", (64, 64), "tensor-shape"),
    ],
)
@pytest.mark.parametrize("architecture", tiny.MIXTURES)
def test_a_drafting_layer_that_is_wrong(tmp_path, architecture, name, shape, check):
    """It is a warning: the model runs without."""
    tensors = {f"blk.2.{name}": None if shape is None else np.ones(shape, np.float32)}
    path = write(tmp_path, well(architecture, drafting=True, tensors=tensors))
    (finding,) = doctor.examine(path).findings
    assert (finding.check, finding.severity.value, finding.where) == (check, "warning", f"blk.2.{name}")
    glmlite.load(path, context=16).close()


@pytest.mark.parametrize("architecture", tiny.MIXTURES)
@pytest.mark.parametrize("part", ["ffn_up_exps", "ffn_gate_inp", "ffn_down_exps"])
def test_a_tensor_of_a_mixture_missing(tmp_path, architecture, part):
    name = f"blk.1.{part}.weight"
    (finding,) = doctor.examine(write(tmp_path, well(architecture, tensors={name: None}))).findings
    assert (finding.check, finding.severity.value, finding.where) == ("tensor-missing", "error", name)


@pytest.mark.parametrize("architecture", tiny.MIXTURES)
def test_a_router_without_its_bias(tmp_path, architecture):
    (finding,) = doctor.examine(write(tmp_path, well(architecture, tensors={"blk.1.exp_probs_b.bias": None}))).findings
    assert finding.check == "router-bias" and finding.fix is None and "blk.1." in finding.where


def test_a_layer_less_than_told_is_not_corrected_in_a_model_nobody_knows(tmp_path):
    """Whether its last block is a layer cannot be seen."""
    path = write(tmp_path, well("glm4moe", metadata={"glm4moe.nextn_predict_layers": 1}))
    (finding,) = doctor.examine(path).findings
    assert (finding.check, finding.severity.value, finding.fix) == ("drafting", "error", None)


def test_a_block_that_drafts_alone(tmp_path):
    model = well("deepseek2", drafting=True)
    tensors = {name: x for name, x in model.tensors.items() if not name.startswith(("blk.0.", "blk.1."))}
    (finding,) = doctor.examine(write(tmp_path, tiny.Tiny(model.metadata, tensors))).findings
    assert (finding.check, finding.fix) == ("drafting-only", None) and "block 2 alone" in finding.what


def test_a_matrix_of_importance_from_before_sigmoid(tmp_path, capsys):
    """It stays a warning in a copy whose key is right."""
    keys = {"quantize.imatrix.file": "x.dat", "deepseek2.expert_gating_func": None}
    path = write(tmp_path, well("deepseek2", metadata=keys))
    assert sorted(checks(doctor.examine(path))) == ["gating", "imatrix-gating"]
    assert main(["doctor", str(path), "--fix", str(tmp_path / "out.gguf")]) == 1
    assert "1 warning; --fix corrects none" in capsys.readouterr().out.splitlines()[-1]
    keys["deepseek2.expert_gating_func"] = 2
    assert doctor.examine(write(tmp_path, well("deepseek2", metadata=keys))).findings == ()
    # Nobody took this architecture's experts for chosen by softmax.
    keys = {"quantize.imatrix.file": "x.dat", "glm4moe.expert_gating_func": None}
    assert checks(doctor.examine(write(tmp_path, well("glm4moe", metadata=keys)))) == ["gating"]


def unsplit(model, beside=False):
    """The file with its keys' and values' matrices in one, as they were in 2024; beside: with those it should have."""
    tensors, k_b = dict(model.tensors), "attn_k_b.weight"
    for name in [name for name in tensors if name.endswith(k_b)]:
        names = [name, name.replace("k_b", "v_b")]
        k, v = (tensors[n] if beside else tensors.pop(n) for n in names)
        both = np.concatenate([row for head in zip(k, v) for row in (head[0].T, head[1])])
        tensors[name.replace("k_b", "kv_b")] = np.ascontiguousarray(both)
    sizes = {"head_count_kv": 4, "key_length": 32, "value_length": 32, "key_length_mla": None, "value_length_mla": None}
    metadata = model.metadata | {f"deepseek2.attention.{key}": value for key, value in sizes.items()}
    return tiny.Tiny({key: value for key, value in metadata.items() if value is not None}, tensors)


@pytest.mark.parametrize("format", ["F32", "F16", "Q8_0"])
def test_keys_and_values_in_one_matrix_are_taken_apart(tmp_path, format):
    """Floats are moved as they are, blocks of values too; keys in blocks become F16."""
    model = well("deepseek2", drafting=True, latent=64)
    path = write(tmp_path, unsplit(model), format)
    report = doctor.examine(path)
    assert checks(report) == ["kv-b"]
    before, after = native.Gguf(path), native.Gguf(doctor.fix(report, tmp_path / "fixed.gguf"))
    assert {name: info.shape for name, info in after.tensors.items()} == model.shapes
    assert after.tensors["blk.1.attn_k_b.weight"].type == ("F16" if format == "Q8_0" else format)
    assert after.tensors["blk.1.attn_v_b.weight"].type == format
    for i in range(3):
        heads = before.dequantize(f"blk.{i}.attn_kv_b.weight").reshape(4, 16 + 32, 64)
        k_b, v_b = (after.dequantize(f"blk.{i}.attn_{part}_b.weight") for part in "kv")
        assert np.array_equal(k_b, heads[:, :16].transpose(0, 2, 1).astype(k_b.dtype if format == "F32" else "f2"))
        assert np.array_equal(v_b, heads[:, 16:])
    before.close(), after.close()
    assert doctor.examine(tmp_path / "fixed.gguf").findings == ()


def test_one_matrix_beside_the_two_is_left_out(tmp_path):
    model = well("deepseek2")
    report = doctor.examine(write(tmp_path, unsplit(model, beside=True)))
    assert checks(report) == ["kv-b"] and "left out" in report.findings[0].fix
    fixed = native.Gguf(doctor.fix(report, tmp_path / "fixed.gguf"))
    assert {name: info.shape for name, info in fixed.tensors.items()} == model.shapes
    fixed.close()
    assert doctor.examine(tmp_path / "fixed.gguf").findings == ()


def test_matrices_that_do_not_fit_are_not_taken_apart(tmp_path):
    model = unsplit(well("deepseek2"))
    model.tensors["blk.1.attn_kv_b.weight"] = np.ones((9, 64), np.float32)
    report = doctor.examine(write(tmp_path, model))
    assert "kv-b" in checks(report) and not any(finding.fix or finding.splits for finding in report.findings)


@pytest.mark.parametrize("part", ["attn_k_b", "attn_v_b"])
def test_one_matrix_beside_one_of_the_two_is_not_taken_apart(tmp_path, part):
    model = unsplit(well("deepseek2"), beside=True)
    tensors = {name: x for name, x in model.tensors.items() if part not in name}
    report = doctor.examine(write(tmp_path, tiny.Tiny(model.metadata, tensors)))
    assert "kv-b" in checks(report) and not any(finding.fix or finding.splits for finding in report.findings)


def test_a_template_that_is_no_program(tmp_path):
    """Of any model; where we have none to put in, it stays."""
    wrong = "{% for m in messages %}{{ m.content }}"
    (finding,) = doctor.examine(write(tmp_path, well("llama", metadata={T: wrong}))).findings
    assert (finding.check, finding.severity.value, finding.fix) == ("template-syntax", "error", None)
    assert "endfor" in finding.what
    (finding,) = doctor.examine(write(tmp_path, well("glm4moe", metadata={T: "[gMASK]<sop>" + wrong}))).findings
    assert (finding.check, finding.fix) == ("template-syntax", None)


def test_a_template_without_tools(tmp_path):
    good = well("glm4moe")
    tokens = [*good.metadata["tokenizer.ggml.tokens"]]
    tokens[-1] = "<tool_call>"
    keys = {"tokenizer.ggml.tokens": tokens}
    (finding,) = doctor.examine(write(tmp_path, well("glm4moe", metadata=keys))).findings
    assert (finding.check, finding.severity.value) == ("template-tools", "warning")
    keys[T] = TEMPLATE + "{% for tool in tools %}{{ tool }}{% endfor %}"
    assert doctor.examine(write(tmp_path, well("glm4moe", metadata=keys))).findings == ()


# ---- what only a published model's sizes tell ---------------------------------------------------------------------


@pytest.fixture
def published(monkeypatch):
    """Makes the tiny chatglm a published model."""
    known = families.Published(
        "Tiny", "chatglm", families.Sizes(2, 64, 4, 384), rope_dim=16, bases={200: 5e6}, context=128, base=None
    )
    monkeypatch.setattr(families, "PUBLISHED", (known,))


CONTEXT = "chatglm.context_length"


@pytest.mark.parametrize(
    ("change", "check", "severity", "sizes"),
    [
        ({"chatglm.attention.layer_norm_rms_epsilon": 1e-6}, "eps", "warning", {}),
        ({"chatglm.attention.layer_norm_rms_epsilon": 0.0}, "eps", "error", {}),
        ({"chatglm.attention.layer_norm_rms_epsilon": None}, "eps", "error", {}),
        ({"chatglm.rope.freq_base": 1e4}, "rope-base", "error", {"context": 200}),
        ({"chatglm.rope.freq_base": None}, "rope-base", "error", {"context": 200}),
    ],
)
def test_constants_of_a_published_model(tmp_path, published, change, check, severity, sizes):
    right = {"chatglm.rope.freq_base": 5e6} if sizes else {}
    good = well(metadata=right, **({"context": 100} | sizes))
    assert doctor.examine(write(tmp_path, good)).findings == ()
    report = doctor.examine(write(tmp_path, well(metadata=right | change, **({"context": 100} | sizes)), name="x.gguf"))
    assert [(f.check, f.severity.value) for f in report.findings] == [(check, severity)]
    assert report.model == "Tiny"
    fixed = doctor.fix(report, tmp_path / "fixed.gguf")
    assert doctor.examine(fixed).findings == ()
    with glmlite.load(tmp_path / "model.gguf") as want, glmlite.load(fixed) as got:
        prompt = want.chat_ids(MESSAGES)
        assert np.array_equal(got.logits(prompt), want.logits(prompt))


def test_a_context_beyond_what_rope_reaches(tmp_path, published):
    (finding,) = doctor.examine(write(tmp_path, well(context=250))).findings
    assert finding.check == "rope-long" and finding.fix is None and "128 tokens" in finding.what


def test_yarn_without_its_length(tmp_path, published):
    yarn = {"chatglm.rope.scaling.type": "yarn", "chatglm.rope.scaling.factor": 2.0}
    report = doctor.examine(write(tmp_path, well(metadata=yarn, context=250)))
    assert checks(report) == ["rope-long"]
    assert doctor.examine(doctor.fix(report, tmp_path / "fixed.gguf")).findings == ()


def shaped(known, **changes):
    """Metadata and shapes of a published model, all its constants right; changes of keys, None to leave out."""
    sizes, architecture = known.sizes, known.architecture
    head_dim = 128
    eps = "layer_norm_epsilon" if architecture == "chatglm1" else "layer_norm_rms_epsilon"
    keys = {
        "block_count": sizes.layers,
        "context_length": next(iter(known.bases), 4096),
        "embedding_length": sizes.dim,
        "attention.head_count": sizes.heads,
        "attention.key_length": head_dim,
        f"attention.{eps}": known.eps,
        "rope.dimension_count": known.rope_dim,
        "rope.freq_base": next(iter(known.bases.values()), known.base),
    }
    if known.scale is not None:
        keys |= {"expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": known.scale}
        keys["expert_used_count"] = known.used
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    metadata = {f"{architecture}.{key}": value for key, value in keys.items() if value is not None}
    metadata |= {"general.architecture": architecture, "tokenizer.ggml.tokens": ["[gMASK]"]}
    shapes = {"token_embd.weight": (sizes.vocab, sizes.dim), "output_norm.weight": (sizes.dim,)}
    if not known.tied:
        shapes["output.weight"] = shapes["token_embd.weight"]
    return Subject(metadata, shapes)


@pytest.mark.parametrize("known", families.PUBLISHED, ids=lambda known: known.name)
def test_the_constants_of_each_published_model(known):
    def found(**changes):
        return {f.check: f for check in doctor.constants.CHECKS for f in check(shaped(known, **changes))}

    assert shaped(known).published == known and found() == {}
    eps = "layer_norm_epsilon" if known.architecture == "chatglm1" else "layer_norm_rms_epsilon"
    wrong = found(**{f"attention.{eps}": known.eps * 3})
    assert list(wrong) == ["eps"] and wrong["eps"].changes == {f"{known.architecture}.attention.{eps}": known.eps}
    if known.rope_dim:
        assert list(found(**{"rope.dimension_count": 32})) == ["rotary-part"]
        assert list(found(**{"rope.dimension_count": None})) == (["rotary-part"] if known.rope_dim != 128 else [])
    if known.base or known.bases:
        assert list(found(**{"rope.freq_base": 777.0})) == ["rope-base"]
    if known.context:
        assert list(found(**{"rope.freq_base": 1e4, "context_length": 100_000})) == ["rope-long"]
    if known.scale is not None:
        assert list(found(expert_gating_func=1)) == ["gating"]
        assert list(found(expert_gating_func=None)) == ["gating"]
        assert list(found(expert_weights_scale=7.0)) == ["expert-weights"]
        missing = found(expert_weights_scale=None)["expert-weights"]
        assert missing.severity == ("warning" if known.scale == 1 else "error")
        assert missing.changes == {f"{known.architecture}.expert_weights_scale": known.scale}
        assert list(found(expert_weights_norm=None)) == ["expert-weights"]
    untied = Subject(shaped(known).metadata, {"token_embd.weight": (known.sizes.vocab, known.sizes.dim)})
    missing = [f.check for f in doctor.tensors.output(untied)]
    assert missing == ([] if known.tied or known.architecture == "chatglm1" else ["output-missing"])


def test_a_vision_model_turns_what_its_sections_say():
    known = next(known for known in families.PUBLISHED if known.name.startswith("GLM-4-9B-0414"))
    sections = np.array([16, 24, 24, 0], np.int32)
    for columns, want in ((128, []), (64, ["rotary-part"])):
        subject = shaped(known, rope__dimension_sections=sections, rope__dimension_count=columns)
        assert [f.check for f in doctor.constants.rotary_part(subject)] == want


# ---- tensors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "check", "where"),
    [
        ({"blk.1.ffn_norm.weight": None}, "tensor-missing", "blk.1.ffn_norm.weight"),
        ({"output_norm.weight": None}, "tensor-missing", "output_norm.weight"),
        ({"output.weight": None}, "output-missing", "output.weight"),
        ({"blk.1.ffn_down.weight": np.ones((64, 32), np.float32)}, "tensor-shape", "blk.1.ffn_down.weight"),
        ({"blk.0.ffn_gate.weight": np.ones((64, 64), np.float32)}, "tensor", "blk.0.ffn_gate.weight"),
        ({"output.weight": np.ones((100, 64), np.float32)}, "tensor-shape", "output.weight"),
    ],
)
def test_missing_and_misshapen_tensors(tmp_path, change, check, where):
    report = doctor.examine(write(tmp_path, well(layers=3, tensors=change)))
    assert len(report.findings) == 1
    (finding,) = report.findings
    assert finding.check.startswith(check) and finding.severity == "error" and where in finding.where + finding.what
    assert finding.fix is None and not report.ok
    with pytest.raises(ValueError, match="nothing that could be corrected"):
        doctor.fix(report, tmp_path / "fixed.gguf")
    assert not (tmp_path / "fixed.gguf").exists()


def test_a_whole_block_missing(tmp_path):
    model = well(layers=3)
    tensors = {name: x for name, x in model.tensors.items() if not name.startswith("blk.1.")}
    report = doctor.examine(write(tmp_path, tiny.Tiny(model.metadata, tensors)))
    assert "no tensors of block 1" in report.findings[0].what and set(checks(report)) == {"tensor-missing"}


def test_more_tokens_than_rows(tmp_path):
    model = well()
    tokens = [*model.metadata["tokenizer.ggml.tokens"], "more"]
    types = [*model.metadata["tokenizer.ggml.token_type"], 1]
    change = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    (finding,) = doctor.examine(write(tmp_path, well(metadata=change))).findings
    assert finding.check == "vocabulary-size" and finding.fix is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["blk.1.ffn_norm.weight", "output.weight", "blk.0.attn_qkv.bias"])
def test_weights_that_are_not_finite(tmp_path, name, value):
    model = well()
    x = model.tensors[name].copy()
    x[-1] = value
    report = doctor.examine(write(tmp_path, well(tensors={name: x})))
    (finding,) = report.findings
    assert (finding.check, finding.where, finding.fix) == ("not-finite", name, None)
    assert f"the first {'in row' if x.ndim == 2 else 'at'} {len(x) - 1} " in finding.what
    assert finding.what.startswith(f"{x[-1].size} of {x.size} values ")
    assert doctor.examine(tmp_path / "model.gguf", weights=False).findings == ()


def test_weights_of_zeros(tmp_path):
    model = well()
    zero = {name: np.zeros_like(model.tensors[name]) for name in ("blk.0.attn_output.weight", "blk.0.attn_qkv.bias")}
    (finding,) = doctor.examine(write(tmp_path, well(tensors=zero))).findings
    assert (finding.check, finding.where) == ("all-zero", "blk.0.attn_output.weight")


def test_block_sizes_are_those_of_the_converter():
    for name, type in TYPES.items():
        assert values.SCALES_AT[name].nbytes == type.nbytes, name


@pytest.mark.parametrize("format", TYPES)
def test_scales_are_where_the_format_has_them(format):
    """A NaN there, and nowhere else, makes values that the native dequantizer gives as NaN."""
    layout, blocks = values.SCALES_AT[format], 7
    rng = np.random.default_rng(1)
    floats = {"f4": "<f4", "f2": "<f2", "bf16": "<u2"}[layout.kind]
    nan = np.array([0x7FC0], "<u2") if layout.kind == "bf16" else np.array([np.nan], floats)
    one = np.array([0x3F80], "<u2") if layout.kind == "bf16" else np.array([1], floats)
    codes = rng.integers(1, 255, (blocks, layout.nbytes), np.uint8)
    size = one.itemsize

    def put(block, offset, value):
        codes[block, offset : offset + size] = value.view(np.uint8)

    def look():
        data = codes.reshape(1, -1)
        return values.examine_bytes(codes.reshape(-1).copy(), layout), native.dequantize(format, data)

    for block in range(blocks):
        for offset in layout.offsets:
            put(block, offset, one)
    seen, x = look()
    assert np.isfinite(x).all() and not seen.zero and seen.bad == 0 and seen.first == -1
    for offset in layout.offsets:
        put(4, offset, nan)
        seen, x = look()
        assert not np.isfinite(x).all()
        assert (seen.bad, seen.first) == (1, 4 * layout.nbytes)
        put(4, offset, one)
    for block in range(blocks):
        for offset in layout.offsets:
            put(block, offset, one * 0)
    seen, x = look()
    assert seen.zero and not x.any()


def test_a_weight_in_a_quantized_file(tmp_path):
    model = tiny.wide("chatglm")
    path = write(tmp_path, model, "Q4_0")
    gguf = native.Gguf(path)
    info = gguf.tensors["blk.1.ffn_up.weight"]
    row = info.nbytes // info.shape[0]
    at = info.offset + 5 * row
    gguf.close()
    data = bytearray(path.read_bytes())
    data[at : at + 2] = struct.pack("<e", float("inf"))
    path.write_bytes(data)
    findings = [f for f in doctor.examine(path, threads=2).findings if f.check == "not-finite"]
    assert len(findings) == 1 and findings[0].where == info.name
    assert f"1 of {info.nbytes // 18} block scales" in findings[0].what and "row 5 (Q4_0)" in findings[0].what


def test_parts_and_buffers_meet(tmp_path, monkeypatch):
    """Equal findings, however the file is cut."""
    x = np.ones((50, 64), np.float32)
    x[37, 3:5] = np.nan
    path = write(tmp_path, well(tensors={"blk.0.attn_output.weight": None, "blk.1.attn_output.weight": None, "x": x}))
    want = [f for f in doctor.examine(path, threads=1).findings if f.check == "not-finite"]
    assert "2 of 3200 values" in want[0].what and "row 37" in want[0].what
    for buffer, task in ((4096, 4096), (1000, 3000), (260, 12345)):
        monkeypatch.setattr(values, "_BUFFER", buffer)
        monkeypatch.setattr(values, "_TASK", task)
        got = [f for f in doctor.examine(path, threads=3).findings if f.check == "not-finite"]
        assert got == want


def test_progress_and_cancelling(tmp_path):
    path = write(tmp_path, well())
    seen = []
    report = doctor.examine(path, progress=lambda done, total: seen.append((done, total)))
    assert seen and seen[-1] == (report.weight_bytes, report.weight_bytes)
    with pytest.raises(Cancelled):
        doctor.examine(path, progress=lambda done, total: False)


# ---- other models -------------------------------------------------------------------------------------------------


def test_other_architectures_get_the_general_checks(tmp_path):
    model = well("llama", metadata={"general.architecture": "falcon", "llama.block_count": 2, "falcon.block_count": 3})
    report = doctor.examine(write(tmp_path, model))
    assert not report.glm and report.architecture == "falcon" and checks(report) == ["tensor-missing"]
    zero = np.zeros((64, 128), np.float32)
    model = well("llama", tensors={"blk.1.attn_output.weight": zero})
    assert checks(doctor.examine(write(tmp_path, model))) == ["all-zero"]


def test_llama_with_glm_like_words_is_not_corrected(tmp_path):
    """A Llama may begin with BOS and have one end."""
    change = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 265}
    assert doctor.examine(write(tmp_path, well("llama", metadata=change))).findings == ()


# ---- templates ----------------------------------------------------------------------------------------------------

CONVERSATIONS = [
    [{"role": "user", "content": "你好"}],
    [
        {"role": "system", "content": "the"},
        {"role": "user", "content": "in her"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "你"},
    ],
]
CALLS = [
    {"role": "user", "content": "the"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "where", "arguments": {"city": "上海", "n": 2}}}],
    },
    {"role": "tool", "content": "here"},
]
TOOLS = [{"type": "function", "function": {"name": "where", "parameters": {"type": "object", "x": ["上", 1]}}}]


@pytest.mark.parametrize("name", templates.TEMPLATES)
@pytest.mark.parametrize("case", ["short", "long", "tools"])
def test_templates_say_what_the_formats_say(name, case):
    if case == "tools" and name == "glm-edge":
        pytest.skip("GLM-Edge has no tools")
    messages = {"short": CONVERSATIONS[0], "long": CONVERSATIONS[1], "tools": CALLS}[case]
    tools = TOOLS if case == "tools" else None
    sizes = {"rope_dim": 32} if name == "glm-edge" else {}
    bare = {key: value for key, value in well("chatglm", **sizes).metadata.items() if key != T}
    bare["tokenizer.ggml.token_type"] = np.array(bare["tokenizer.ggml.token_type"], np.int32)
    own = bare | {"glmlite.chat_format": name}
    want = chat.render(own, Tokenizer.from_metadata(own), "chatglm", messages, tools=tools)
    told = bare | {T: templates.TEMPLATES[name]}
    assert chat.render(told, Tokenizer.from_metadata(told), "chatglm", messages, tools=tools) == want
    assert set(templates.TEMPLATES) < set(FORMATS)


# What the makers' templates make of CALLS after a round with a thought: GLM-4.5's, and GLM-4.7's.
THOUGHT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "yes", "reasoning_content": "hm"},
    *CALLS,
]
SPOKEN = {
    "glm45": (
        "[gMASK]<sop><|system|>\nbe brief<|user|>\nhello<|assistant|>\n<think></think>\nyes<|user|>\nthe<|assistant|>\n"
        "<think></think>\n<tool_call>where\n<arg_key>city</arg_key>\n<arg_value>上海</arg_value>\n<arg_key>n</arg_key>\n"
        "<arg_value>2</arg_value>\n</tool_call><|observation|>\n<tool_response>\nhere\n</tool_response><|assistant|>",
        "\n<think></think>",
    ),
    "glm47": (
        "[gMASK]<sop><|system|>be brief<|user|>hello<|assistant|></think>yes<|user|>the<|assistant|></think>"
        "<tool_call>where<arg_key>city</arg_key><arg_value>上海</arg_value><arg_key>n</arg_key><arg_value>2</arg_value>"
        "</tool_call><|observation|><tool_response>here</tool_response><|assistant|><think>",
        "</think>",
    ),
}


@pytest.mark.parametrize(("name", "own"), [("glm45", templates.GLM45), ("glm47", templates.GLM47)])
def test_templates_of_models_that_think(name, own):
    spoken, unthinking = SPOKEN[name]
    variables = {"messages": THOUGHT, "tools": None, "add_generation_prompt": True}
    assert template._run(own, variables) == spoken
    assert template._run(own, variables | {"enable_thinking": False}).endswith(f"<|assistant|>{unthinking}")
    offered = template._run(own, variables | {"tools": TOOLS})
    assert '<tools>\n{"type": "function", "function": {"name": "where", ' in offered
    assert offered.index("</tool_call><|system|>") < offered.index("be brief")
    bare = well("glm4moe", metadata={T: own}).metadata
    bare["tokenizer.ggml.token_type"] = np.array(bare["tokenizer.ggml.token_type"], np.int32)
    assert dialects.of(bare, Tokenizer.from_metadata(bare), "glm4moe").name == name
    assert list(text.prefix(Subject(bare, {}))) == []


@pytest.mark.parametrize(
    ("architecture", "name", "own"),
    [("glm4moe", "GLM-4.5-Air", templates.GLM45), ("deepseek2", "GLM-4.7-Flash", templates.GLM47)],
)
def test_a_published_mixture_gets_its_own_template(tmp_path, monkeypatch, architecture, name, own):
    sizes = families.Sizes(2, 64, 4, 384)
    known = families.Published(name, architecture, sizes, rope_dim=16, base=1e4, scale=1.8)
    monkeypatch.setattr(families, "PUBLISHED", [known])
    for told, check in ((None, "template-missing"), ("glm4", "template-name")):
        report = doctor.examine(write(tmp_path, well(architecture, metadata={T: told})))
        assert checks(report) == [check] and report.findings[0].changes == {T: own}
        assert doctor.examine(doctor.fix(report, tmp_path / "fixed.gguf")).findings == ()


def test_a_name_in_an_edge_file_becomes_its_own_template(tmp_path):
    sizes = {"bias": False, "rope_dim": 32, "tied": True}
    report = doctor.examine(write(tmp_path, well("chatglm", metadata={T: "chatglm4"}, **sizes)))
    (finding,) = report.findings
    assert (finding.check, finding.severity.value) == ("template-name", "error") and "'chatglm4'" in finding.what
    with glmlite.load(doctor.fix(report, tmp_path / "fixed.gguf")) as model:
        assert model.chat_format == "template"
        assert model.detokenize(model.chat_ids(MESSAGES)).startswith("<|user|>")


@pytest.mark.parametrize("name", ["chatglm3", "chatglm2"])
def test_a_name_in_a_sentencepiece_file(name):
    metadata = vocab.small_sentencepiece() | {T: name, "general.architecture": "chatglm"}
    roles = ["<|assistant|>", "<|system|>", "<|observation|>"]
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], *roles]
    metadata["tokenizer.ggml.token_type"] = np.append(metadata["tokenizer.ggml.token_type"], [3, 3, 3])
    metadata["tokenizer.ggml.scores"] = np.append(metadata["tokenizer.ggml.scores"], np.float32([0, 0, 0]))
    (finding,) = text.template(Subject(metadata, {}))
    assert (finding.check, finding.severity.value) == ("template-name", "error")
    if name == "chatglm2":
        assert finding.fix is None  # its rounds have no template
        return
    fixed = metadata | finding.changes
    template = {key: value for key, value in fixed.items() if key != "glmlite.chat_format"}
    rendered = [
        chat.render(told, Tokenizer.from_metadata(told), "chatglm", CONVERSATIONS[1])
        for told in (metadata, fixed, template)
    ]
    assert rendered[0] == rendered[1] == rendered[2]
    assert list(text.template(Subject(fixed, {}))) == [] == list(text.prefix(Subject(fixed, {})))


# ---- writing ------------------------------------------------------------------------------------------------------


def broken(folder, name="model.gguf", format="F32"):
    return write(folder, tiny.wide("chatglm", metadata={"chatglm.rope.dimension_count": None}), format, name)


@pytest.mark.parametrize("format", ["F32", "Q4_K", "IQ4_XS"])
def test_the_copy_has_the_same_tensors_and_metadata(tmp_path, format):
    path = broken(tmp_path, format=format)
    report = doctor.examine(path)
    before, after = native.Gguf(path), native.Gguf(doctor.fix(report, tmp_path / "fixed.gguf"))
    assert list(before.tensors) == list(after.tensors)
    for name, info in before.tensors.items():
        copy = after.tensors[name]
        assert (info.type, info.shape) == (copy.type, copy.shape)
        assert np.array_equal(before.data(name), after.data(name)), name
    changed = {key for finding in report.findings for key in finding.changes}
    assert list(before.metadata) == [key for key in after.metadata if key in before.metadata]
    for key, value in before.metadata.items():
        if key not in changed:
            assert np.array_equal(value, after.metadata[key]), key
    before.close(), after.close()


def test_a_number_that_no_float32_holds_is_copied(tmp_path):
    model = well()
    metadata = subject_of(model).metadata | {"chatglm.vocab_size": 7, "general.far": 1e300, "general.near": 0.1}
    writer.write(tmp_path / "m.gguf", metadata, entries(model.tensors))
    gguf = native.Gguf(doctor.fix(doctor.examine(tmp_path / "m.gguf"), tmp_path / "fixed.gguf"))
    assert gguf.metadata["general.far"] == 1e300 and gguf.metadata["general.near"] == np.float32(0.1)
    gguf.close()


@pytest.mark.parametrize("architecture", ["chatglm1", "glm4", "glm4moe"])
def test_more_blocks_that_draft_than_there_are(tmp_path, architecture):
    report = doctor.examine(write(tmp_path, well(architecture, metadata={f"{architecture}.nextn_predict_layers": 9})))
    assert any(f"{architecture}.nextn_predict_layers" in finding.where for finding in report.findings)


def test_types_without_kernels_are_copied(tmp_path):
    data = np.arange(2 * 66, dtype=np.uint8)
    for type_id, nbytes in ((16, 132), (99, 132)):  # IQ2_XXS; one that nobody knows
        path = tmp_path / f"{type_id}.gguf"
        entry = writer.Entry("blk.0.x.weight", (2, 256), "?", lambda: [data], (type_id, nbytes))
        model = well()
        writer.write(path, subject_of(model).metadata | {"chatglm.vocab_size": 7}, [entry, *entries(model.tensors)])
        report = doctor.examine(path)
        assert report.unread == (("type 99",) if type_id == 99 else ())
        (refused,) = [finding for finding in report.findings if finding.check == "model" and "to run" in finding.what]
        assert (refused.where, refused.severity) == ("blk.0.x.weight", "error")
        gguf = native.Gguf(doctor.fix(report, tmp_path / f"{type_id}-fixed.gguf"))
        assert gguf.tensors["blk.0.x.weight"].type_id == type_id
        assert bytes(gguf.data("blk.0.x.weight").reshape(-1)[:132]) == data.tobytes()
        gguf.close()


def test_types_of_eyes_without_kernels(tmp_path):
    eyes = tiny.eyes()
    metadata = {key: np.float32(x) if isinstance(x, list) else x for key, x in eyes.metadata.items()}
    odd = writer.Entry("mm.gate.weight", (128, 64), "?", lambda: [np.zeros(64, np.uint8)], (99, 64))
    rest = [entry for entry in entries(eyes.tensors) if entry.name != odd.name]
    writer.write(tmp_path / "mmproj.gguf", metadata, [odd, *rest])
    (finding,) = doctor.examine(tmp_path / "mmproj.gguf").findings
    assert (finding.check, finding.where) == ("model", "mm.gate.weight") and "type 99" in finding.what


def entries(tensors):
    return [writer.Entry(name, x.shape, "F32", lambda x=x: [x.view(np.uint8)]) for name, x in tensors.items()]


def split(folder):
    """A broken model in two files."""
    model = well(metadata={"chatglm.rope.dimension_count": None})
    every = entries(model.tensors)
    paths = []
    for no in range(2):
        part = {"split.no": no, "split.count": 2, "split.tensors.count": len(every)}
        paths.append(folder / f"m-0000{no + 1}-of-00002.gguf")
        metadata = subject_of(model).metadata if no == 0 else {}
        writer.write(paths[-1], metadata | part, every[no::2])
    return paths


def test_a_split_file_becomes_one(tmp_path):
    paths = split(tmp_path)
    report = doctor.examine(paths[1])
    assert checks(report) == ["rotary-part"] and len(report.paths) == 2
    fixed = doctor.fix(report, tmp_path / doctor.beside(report.paths[0]))
    assert fixed.name == "m-fixed.gguf" and doctor.examine(fixed).findings == ()
    with pytest.raises(ValueError, match="never written over"):
        doctor.fix(report, paths[1])


def test_the_source_is_never_written_to(tmp_path):
    path = broken(tmp_path)
    report = doctor.examine(path)
    link = tmp_path / "link.gguf"
    link.hardlink_to(path)
    before = path.read_bytes()
    for out in (path, link):
        with pytest.raises(ValueError, match="never written over"):
            doctor.fix(report, out)
    with pytest.raises(Cancelled):
        doctor.fix(report, tmp_path / "out.gguf", progress=lambda done, total: False)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.gguf", "model.gguf"]


# ---- hostile files ------------------------------------------------------------------------------------------------

ABSURD = [
    None,
    True,
    -1,
    0,
    2**63 - 1,
    2**64 - 1,
    1e-300,
    -1.0,
    float("nan"),
    float("inf"),
    "",
    "x" * 100_000,
    "[gMASK]" * 1000,
    "{{" * 1000,
    b"\xff\xfe",
    [],
    ["a", b"\xff"],
    [np.zeros(2), np.zeros(3)],
    [[["a"]]],
    np.zeros(0, np.int32),
    np.full(384, -1, np.int32),
    np.full(384, 2**62, np.int64),
    np.full(384, np.nan),
    np.zeros(3, bool),
]


@pytest.mark.parametrize(
    "architecture", ["chatglm", "chatglm1", "glm", "glm4", "llama", "glm4moe", "deepseek2", "kv_b"]
)
def test_absurd_metadata_is_a_finding_at_worst(architecture):
    if architecture == "kv_b":
        base, architecture = unsplit(well("deepseek2", drafting=True)), "deepseek2"
    else:
        base = well(architecture, **SIZED.get(architecture, {}))
    subject = subject_of(base)
    extra = ["rope.scaling.type", "rope.dimension_sections", "nextn_predict_layers", "vocab_size", "rope.freq_base"]
    keys = ["general.architecture", *(f"{architecture}.{key}" for key in extra)]
    if architecture in ("chatglm", "chatglm1"):
        keys += [*subject.metadata, "tokenizer.ggml.eos_token_ids"]
    else:
        keys += [key for key in subject.metadata if not key.startswith("tokenizer.")]
        del subject.metadata["tokenizer.ggml.model"]  # no tokenizer is made for each
    for key in keys:
        for value in ABSURD:
            metadata = {k: v for k, v in (subject.metadata | {key: value}).items() if v is not None}
            for finding in doctor.look(Subject(metadata, subject.shapes)):
                text = finding.where + finding.what + finding.means + (finding.fix or "")
                assert len(text) < 2000 and "\n" not in text, (key, value)


def test_absurd_tensors_are_findings_at_worst():
    base = subject_of(well())
    for shapes in (
        {},
        {"blk.99999999999999999999.x": (1,), "blk..": (1,), "blk.-1.x": (2,), "blk.٣.x": (2,), "blk": (1,)},
        dict.fromkeys(base.shapes, (1,)),
        dict.fromkeys(base.shapes, (2**62, 2**62)),
    ):
        assert doctor.look(Subject(base.metadata, shapes))


def test_a_file_that_is_cut_short(tmp_path, capsys):
    path = write(tmp_path, well())
    whole = path.read_bytes()
    for size in (0, 3, 20, 500, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError, match=r"model\.gguf"):
            doctor.examine(path)
        assert main(["doctor", str(path)]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1


# ---- the command --------------------------------------------------------------------------------------------------


def test_the_command_on_a_well_file(tmp_path, capsys):
    path = write(tmp_path, well())
    assert main(["doctor", str(path)]) == 0
    out = capsys.readouterr().out
    assert "nothing wrong found" in out and "GB/s" in out and str(path) in out
    assert main(["doctor", str(path), "--fix"]) == 0
    assert "no file written" in capsys.readouterr().out


def test_the_command_finds_and_fixes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = broken(tmp_path)
    before = hashlib.sha256(path.read_bytes()).digest()
    assert main(["doctor", str(path)]) == 1
    out = capsys.readouterr().out
    assert "error: rotary-part\n" in out and "chatglm.rope.dimension_count: missing" in out
    assert main(["doctor", str(path), "--fix"]) == 0
    assert "model-fixed.gguf: nothing wrong found" in capsys.readouterr().out
    assert main(["doctor", "model-fixed.gguf"]) == 0
    assert main(["doctor", str(path), "--fix"]) == 1
    assert "--force" in capsys.readouterr().err
    assert main(["doctor", str(path), "--fix", "other.gguf"]) == 0
    assert (tmp_path / "other.gguf").read_bytes() == (tmp_path / "model-fixed.gguf").read_bytes()
    assert main(["doctor", str(path), "other.gguf", "--fix", "--force"]) == 0
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert main(["doctor", str(path), "other.gguf"]) == 2
    assert "--fix" in capsys.readouterr().err


def test_the_command_says_what_it_cannot_fix(tmp_path, capsys):
    x = np.full((64, 128), np.nan, np.float32)
    path = write(tmp_path, well(tensors={"blk.0.attn_output.weight": x}, metadata={"tokenizer.ggml.pre": "default"}))
    assert main(["doctor", str(path), "--fix", str(tmp_path / "out.gguf")]) == 1
    assert "1 error; --fix corrects none" in capsys.readouterr().out.splitlines()[-1]


def test_the_command_as_json(tmp_path, capsys):
    path = broken(tmp_path)
    assert main(["doctor", str(path), "--json", "--fix", str(tmp_path / "out.gguf")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["findings"][0]["check"] == "rotary-part" and facts["findings"][0]["severity"] == "error"
    assert facts["fixed"]["findings"] == [] and facts["glm"] and not facts["ok"]
    path.write_bytes(b"nothing")
    assert main(["doctor", str(path), "--json"]) == 2
    assert "error" in json.loads(capsys.readouterr().out)
    assert main(["doctor", str(tmp_path / "missing.gguf")]) == 2


def test_mutated_files_are_findings_or_format_errors(tmp_path):
    """Bytes of the header changed at random: an answer, or FormatError, and nothing else."""
    whole = write(tmp_path, well("glm4", vocab=300, metadata={T: TEMPLATE})).read_bytes()
    rng = np.random.default_rng(7)
    header = whole.index(b"blk.1.post_ffw_norm.weight") + 60
    path = tmp_path / "mutated.gguf"
    answers = 0
    for _ in range(300):
        data = bytearray(whole)
        for at in rng.integers(0, header, rng.integers(1, 4)):
            data[at] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            report = doctor.examine(path)
        except FormatError:
            continue
        answers += 1
        if any(finding.changes for finding in report.findings):
            doctor.fix(report, tmp_path / "fixed.gguf")
    assert answers > 30


# ---- eyes --------------------------------------------------------------------------------------------------------

SECTIONS = {"glm4.rope.dimension_sections": [2, 3, 3, 0]}
PAIR = ("pair", Severity.WARNING, "glm4.embedding_length")


def found(report):
    return [(finding.check, finding.severity, finding.where) for finding in report.findings]


def seeing(folder, **others):
    """A well text model that takes images, in a folder with files of eyes: name -> model."""
    for name, eyes in others.items():
        write(folder, eyes, name=f"{name}.gguf")
    return write(folder, well("glm4", metadata=SECTIONS), name="text.gguf")


@pytest.mark.parametrize("options", [{}, {"side": 24, "bias": False}])
def test_eyes_that_are_well(tmp_path, options):
    report = doctor.examine(write(tmp_path, tiny.eyes(**options)))
    assert report.findings == () and report.glm and report.architecture == "clip"


@pytest.mark.parametrize(
    "change, where, what",
    [
        ({"clip.projector_type": "qwen2vl"}, "clip.projector_type", "'qwen2vl', expected 'glm4v'"),
        ({"clip.vision.block_count": 3}, "v.blk.2.ln1.weight", "no tensor"),
        ({"clip.vision.image_mean": [0.5]}, "clip.vision.image_mean", "three colours"),
        ({"clip.vision.attention.layer_norm_epsilon": 0.0}, "clip.vision.attention.layer_norm_epsilon", "positive"),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_eyes_that_are_not(tmp_path, change, where, what, beside):
    """Alone, and in the text model's file."""
    eyes, text = tiny.eyes(metadata=change), well("glm4", metadata=SECTIONS)
    if beside:
        keys = {key: value for key, value in eyes.metadata.items() if key.startswith("clip.")}
        eyes = tiny.Tiny(text.metadata | keys, text.tensors | eyes.tensors)
    report = doctor.examine(write(tmp_path, eyes))
    assert found(report) == [("eyes", Severity.ERROR, where)] and what in report.findings[0].what


def test_eyes_in_one_file_of_another_width(tmp_path):
    eyes, text = tiny.eyes(out=96), well("glm4", metadata=SECTIONS)
    keys = {key: value for key, value in eyes.metadata.items() if key.startswith("clip.")}
    report = doctor.examine(write(tmp_path, tiny.Tiny(text.metadata | keys, text.tensors | eyes.tensors)))
    assert found(report) == [("pair", Severity.ERROR, "glm4.embedding_length")]
    assert "64, but the eyes in the file make rows of 96" in report.findings[0].what


def test_a_pair_that_fits_and_one_that_does_not(tmp_path, capsys):
    path = seeing(tmp_path, mmproj=tiny.eyes())
    assert doctor.examine(path).findings == ()
    write(tmp_path, tiny.eyes(out=96), name="mmproj.gguf")
    (tmp_path / "MMPROJ-b.gguf").write_bytes(b"GGUF")
    report = doctor.examine(path)
    assert found(report) == [PAIR] and "mmproj.gguf: rows of 96 columns" in report.findings[0].what
    assert "MMPROJ-b.gguf" in report.findings[0].what and not report.ok
    write(tmp_path, tiny.eyes(), name="eyes.gguf")
    assert main(["doctor", str(path), "--mmproj", str(tmp_path / "eyes.gguf")]) == 0
    assert main(["doctor", str(path), "--mmproj", str(tmp_path / "mmproj.gguf")]) == 1
    assert "rows of 96 columns" in capsys.readouterr().out
    assert main(["doctor", str(path), "--mmproj", str(tmp_path / "none.gguf")]) == 2


def test_several_that_fit_are_a_note(tmp_path):
    report = doctor.examine(seeing(tmp_path, mmproj_a=tiny.eyes(), mmproj_b=tiny.eyes(), mmproj_c=tiny.eyes(out=96)))
    assert found(report) == [("pair", Severity.NOTE, "mmproj")] and "mmproj_a.gguf, mmproj_b.gguf" in str(report)


def test_a_model_for_text_alone_has_no_eyes(tmp_path):
    eyes = write(tmp_path, tiny.eyes(), name="mmproj.gguf")
    path = write(tmp_path, well("glm4"))
    assert doctor.examine(path).findings == ()
    assert found(doctor.examine(path, mmproj=eyes)) == [("pair", Severity.ERROR, "glm4.rope.dimension_sections")]
