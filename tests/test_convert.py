"""`glmlite convert`: every form of checkpoint, tiny and random, against the tensors it was made of; hostile files."""

import builtins
import errno
import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import checkpoints
import independent
import numpy as np
import pytest
import tiny
import vocab

from glmlite import _native as native
from glmlite.cli import main
from glmlite.convert import convert, formats, planning, recipes, text, working
from glmlite.convert.architectures import KINDS, Config
from glmlite.convert.checkpoint import Checkpoint
from glmlite.convert.files import load_json
from glmlite.errors import Cancelled, FormatError
from glmlite.models import record
from glmlite.reference import Reference, Work
from glmlite.tokenizer import Tokenizer

# name -> form of the checkpoint, arguments of tiny.model. The published configs leave no choice of some sizes.
OLD = {"head_dim": 16, "ffn": 256}
FORMS = {
    "chatglm3": ("chatglm", "chatglm", {"kv_heads": 1}),
    "chatglm-ptuning": ("chatglm", "chatglm", {"prefix": 5}),
    "glm-4-9b": ("chatglm", "chatglm", {"eps": 1.5625e-7, "layers": 3}),
    "chatglm-6b": ("chatglm1", "chatglm1", OLD),
    "chatglm-6b-ptuning": ("chatglm1", "chatglm1", {**OLD, "prefix": 3}),
    "glm-10b": ("glm", "glm", OLD),
    "glm-10b-wrapped": ("glm_wrapped", "glm", OLD),
    "glm-4-9b-hf": ("hf", "chatglm", {"fused": False}),
    "glm-edge": ("hf", "chatglm", {"fused": False, "bias": False, "rope_dim": 32, "tied": True}),
    "glm4-9b": ("hf", "glm4", {"fused": False, "bias": True, "kv_heads": 1}),
    "glm4-32b": ("hf", "glm4", {"fused": False, "heads": 16}),
    "glm-4.5": ("glm4_moe", "glm4moe", {"head_norms": True, "dense": 2, "layers": 4, "kv_heads": 1}),
    "glm-4.5-air": ("glm4_moe", "glm4moe", {"drafting": True, "layers": 3, "scale": 1.0}),
    "glm-4.5-fused": ("glm4_moe_fused", "glm4moe", {"drafting": True}),
    "glm-4.7-flash": ("glm4_moe_lite", "deepseek2", {"drafting": True, "layers": 3}),
    "glm-4.7-flash-fused": ("glm4_moe_lite_fused", "deepseek2", {"q_rank": 48, "value_dim": 24}),
    "llama": ("hf", "llama", {"kv_heads": 1}),
    "llama-tied-bias": ("hf", "llama", {"bias": True, "tied": True}),
}


def make(folder, case="chatglm3", **options):
    """(the tiny model, its checkpoint's folder)"""
    form, architecture, sizes = FORMS[case]
    model = tiny.model(architecture, **sizes)
    return model, checkpoints.write(folder, model, form, **options)


@pytest.fixture
def opened():
    """opened(path) -> the Gguf, closed after the test."""
    files = []

    def open_file(path):
        files.append(native.Gguf(path))
        return files[-1]

    yield open_file
    for file in files:
        file.close()


def tensors_of(gguf):
    return {name: gguf.dequantize(name) for name in gguf.tensors}


def same(got, want):
    if isinstance(want, float):
        return abs(got - want) <= 2**-23 * abs(want)  # f32 in the file
    return np.array_equal(got, want)


# ---- every form --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", ["safetensors", "torch"])
@pytest.mark.parametrize("case", FORMS)
def test_f32_is_exact(tmp_path, opened, case, files):
    model, folder = make(tmp_path / "copy", case, files=files)
    gguf = opened(convert(folder, tmp_path / "out.gguf", "f32"))
    got = tensors_of(gguf)
    assert set(got) == set(model.tensors)
    for name, x in model.tensors.items():
        assert np.array_equal(got[name], x), name
    architecture = model.metadata["general.architecture"]
    for key, value in model.metadata.items():
        if key.startswith(f"{architecture}.") or key == "general.architecture":
            assert same(gguf.metadata[key], value), key


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("files", ["safetensors", "torch"])
def test_half_precision_and_shards(tmp_path, opened, files, dtype):
    model, folder = make(tmp_path, "chatglm-6b", files=files, dtype=dtype, shards=3)
    got = tensors_of(opened(convert(folder, tmp_path / "out.gguf", "f32")))
    for name, x in model.tensors.items():
        assert np.array_equal(got[name], checkpoints.rounded(x, dtype)), name


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("case", ["chatglm-6b", "chatglm3"])
def test_packed_weights(tmp_path, opened, case, bits):
    """chatglm-6b-int4, -int8, chatglm2-6b-int4: exactly q times the scale of the row."""
    model, folder = make(tmp_path, case, dtype="F16", files="torch", bits=bits)
    got = tensors_of(opened(convert(folder, tmp_path / "out.gguf", "f32")))
    for name, x in model.tensors.items():
        packed = name.startswith("blk.") and x.ndim == 2
        want = checkpoints.unpacked(x, bits) if packed else checkpoints.rounded(x, "F16")
        assert np.array_equal(got[name], want), name


def test_chatglm_6b_with_quantized_embeddings(tmp_path, opened):
    model, folder = make(tmp_path, "chatglm-6b", bits=4)
    named, _ = checkpoints.chatglm1(model)
    named = checkpoints.pack(named, 4)
    name = "transformer.word_embeddings.weight"
    packed = checkpoints.pack({"layers.x.weight": named.pop(name)}, 4)
    named |= {name: packed["layers.x.weight"], f"{name}_scale": packed["layers.x.weight_scale"]}
    checkpoints.write_weights(folder, named)
    got = opened(convert(folder, tmp_path / "out.gguf", "f32")).dequantize("token_embd.weight")
    assert np.array_equal(got, checkpoints.unpacked(model.tensors["token_embd.weight"], 4))


# ---- logits ------------------------------------------------------------------------------------------------------

TEXT = [17, 80, 3, 200, 41, 41, 9, 254, 120, 5]
# The executors sum in f64 and round each of some 35 values to f32; see test_models.py.
EXACT = 35 * 2**-23
# The engine caches keys and values in f16: 2^-11 of each, and attention's errors go through two blocks.
ENGINE = 5e-3


def prompt(model):
    token = lambda text: tiny.token_id(model, text)  # noqa: E731
    match model.metadata["general.architecture"]:
        case "glm":
            return [*TEXT[:4], token("[MASK]"), *TEXT[4:], token("<|startofpiece|>"), 60, 61]
        case "chatglm1":
            return [*TEXT, token("[gMASK]"), token("<sop>"), 60, 61]
    return TEXT


def source_logits(model, ids):
    """By the second implementation where there is one, else by the numpy executor, from the source's own weights."""
    token = lambda text: tiny.token_id(model, text)  # noqa: E731
    architecture = model.metadata["general.architecture"]
    if architecture == "chatglm" and "blk.0.attn_qkv.weight" in model.tensors:
        return independent.chatglm(model, ids)
    if architecture == "chatglm1":
        return independent.chatglm1(model, ids, token("[gMASK]"), token("<sop>"))
    if architecture == "glm":
        return independent.glm(model, ids, [token("[MASK]")], token("<|startofpiece|>"))
    return executed(model.metadata, model.tensors, ids)


def executed(metadata, tensors, ids):
    """Logits of all tokens by the numpy executor."""
    recording = record(metadata, {name: x.shape for name, x in tensors.items()})
    tokens = [bytes(t).decode() if isinstance(t, bytes) else t for t in metadata["tokenizer.ggml.tokens"]]
    layout = recording.layout(ids, lambda text: tokens.index(text) if text in tokens else None)
    reference = Reference(recording.ops, tensors)
    sequence, n = reference.new_sequence(), layout.context
    works = [Work(sequence, ids[:n], layout.positions[:n], n)] * bool(n)
    works.append(Work(sequence, ids[n:], layout.positions[n:]))
    return reference.step(works, range(len(ids)))


def error(got, want):
    assert got.shape == want.shape
    return np.max(np.abs(got - want)) / np.max(np.abs(want))


@pytest.mark.parametrize("case", FORMS)
def test_logits_are_the_sources(tmp_path, opened, case):
    import glmlite

    model, folder = make(tmp_path, case)
    path = convert(folder, tmp_path / "out.gguf", "f32")
    ids = prompt(model)
    want = source_logits(model, ids)
    gguf = opened(path)
    assert error(executed(gguf.metadata, tensors_of(gguf), ids), want) <= EXACT
    with glmlite.load(path, context=64, threads=1) as loaded:
        assert error(loaded.logits(ids, all=True), want) <= ENGINE


# ---- mixtures of experts -----------------------------------------------------------------------------------------

MIXTURES = {"glm4moe": checkpoints.glm4_moe, "deepseek2": checkpoints.glm4_moe_lite}


def mixture(folder, architecture, **sizes):
    """(the tiny model, its checkpoint's tensors, its config), written into the folder."""
    model = tiny.model(architecture, **sizes)
    checkpoints.write(folder, model, MIXTURES[architecture].__name__)
    return model, *MIXTURES[architecture](model)


@pytest.mark.parametrize("architecture", MIXTURES)
def test_experts_apart_and_in_one_tensor_give_the_same_bytes(tmp_path, architecture):
    model, named, _ = mixture(tmp_path / "tiny", architecture, drafting=True)
    first = convert(tmp_path / "tiny", tmp_path / "a.gguf", "q8_0").read_bytes()
    fused, _ = MIXTURES[architecture](model, fused=True)
    assert "model.layers.1.mlp.experts.7.up_proj.weight" in named.keys() - fused.keys()
    checkpoints.write_weights(tmp_path / "tiny", fused)
    assert convert(tmp_path / "tiny", tmp_path / "b.gguf", "q8_0").read_bytes() == first


@pytest.mark.parametrize("architecture", MIXTURES)
def test_a_drafting_layers_own_embeddings_and_head_are_kept(tmp_path, opened, architecture):
    """Equal ones are left out, as test_f32_is_exact sees; here one value differs in each."""
    model, named, _ = mixture(tmp_path / "tiny", architecture, drafting=True)
    own = {f"model.layers.2.{part}.weight": f"blk.2.nextn.{name}.weight" for part, name in OWN.items()}
    for name in own:
        named[name] = named[name].copy()
        named[name][-1, 5] += 1
    checkpoints.write_weights(tmp_path / "tiny", named)
    got = tensors_of(opened(convert(tmp_path / "tiny", tmp_path / "out.gguf", "f32")))
    assert got.keys() - model.tensors.keys() == set(own.values())
    for theirs, ours in own.items():
        assert np.array_equal(got[ours], named[theirs])


OWN = {"embed_tokens": "embed_tokens", "shared_head.head": "shared_head_head"}


@pytest.mark.parametrize("architecture", MIXTURES)
def test_a_copy_that_lost_the_drafting_layer(tmp_path, opened, architecture):
    """transformers writes none, and leaves the config as it was."""
    model, named, _ = mixture(tmp_path / "tiny", architecture, drafting=True)
    checkpoints.write_weights(tmp_path / "tiny", {n: x for n, x in named.items() if "layers.2." not in n})
    gguf = opened(convert(tmp_path / "tiny", tmp_path / "out.gguf", "f32"))
    assert gguf.metadata[f"{architecture}.block_count"] == 2
    assert f"{architecture}.nextn_predict_layers" not in gguf.metadata
    assert set(gguf.tensors) == {name for name in model.tensors if not name.startswith("blk.2.")}


@pytest.mark.parametrize("architecture", MIXTURES)
def test_the_special_ids_of_a_mixture(tmp_path, architecture):
    """As llama.cpp's files name them, whatever a config's class had by default; nothing is put before a prompt."""
    model, _, config = mixture(tmp_path, architecture)
    (tmp_path / "config.json").write_text(json.dumps(config | {"bos_token_id": 0, "eos_token_id": 1}))
    metadata = planned(tmp_path)
    named = {name: metadata[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eot", "eom")}
    texts = {"bos": "[gMASK]", "eot": "<|user|>", "eom": "<|observation|>"}
    assert named == {name: tiny.token_id(model, text) for name, text in texts.items()}
    assert metadata["tokenizer.ggml.add_bos_token"] is False


def test_a_mixture_gguf_as_source(tmp_path, opened):
    """Experts as rows of one matrix after the other; gate and up in one tensor stay so."""
    model, *_ = mixture(tmp_path / "tiny", "deepseek2", drafting=True)
    half = convert(tmp_path / "tiny", tmp_path / "a.gguf", "f16")
    direct = convert(tmp_path / "tiny", tmp_path / "b.gguf", "q8_0").read_bytes()
    whole = convert(tmp_path / "tiny", tmp_path / "c.gguf", "f32")
    assert convert(whole, tmp_path / "d.gguf", "q8_0", threads=3).read_bytes() == direct
    assert convert(whole, tmp_path / "e.gguf", "f16").read_bytes() == half.read_bytes()
    gate, up = (model.tensors.pop(f"blk.1.ffn_{part}_exps.weight") for part in ("gate", "up"))
    model.tensors["blk.1.ffn_gate_up_exps.weight"] = both = np.concatenate([gate, up], axis=1)
    gguf = opened(convert(tiny.write(tmp_path / "fused.gguf", model), tmp_path / "f.gguf", "f16"))
    assert np.array_equal(gguf.dequantize("blk.1.ffn_gate_up_exps.weight"), both.astype(np.float16))
    assert "blk.1.ffn_gate_exps.weight" not in gguf.tensors


@pytest.mark.parametrize("kind", ["rows", "whole", "blocks"])
@pytest.mark.parametrize("architecture", MIXTURES)
def test_matrices_of_eight_bit_floats(tmp_path, architecture, kind):
    """The values that they stand for, to the bit; a config that names the method is no matter."""
    _, named, config = mixture(tmp_path / "tiny", architecture, drafting=True, dim=192, ffn=160)
    eights, values = checkpoints.float8(named, kind)
    assert sum(x.dtype == np.uint8 for x in eights.values()) > 40
    config["quantization_config"] = {"quant_method": "compressed-tensors"}
    checkpoints.write_weights(tmp_path / "tiny", eights)
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(config))
    got = convert(tmp_path / "tiny", tmp_path / "a.gguf", "f32").read_bytes()
    checkpoints.write_weights(tmp_path / "tiny", values)
    del config["quantization_config"]
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(config))
    assert convert(tmp_path / "tiny", tmp_path / "b.gguf", "f32").read_bytes() == got


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"weight_scale": None}, r"q_a_proj\.weight' is quantized \(F8_E4M3: FP8, by its tensors\)"),
        ({"weight_scale": (31, 1)}, r"q_a_proj\.weight' is quantized|q_a_proj\.weight_scale' is quantized"),
        ({"input_scale": (1,)}, r"q_a_proj\.input_scale' is quantized \(FP8"),
    ],
)
def test_eight_bit_floats_that_are_not_read(tmp_path, change, match):
    _, named, _ = mixture(tmp_path, "deepseek2")
    eights, _ = checkpoints.float8(named, "rows")
    for ending, shape in change.items():
        name = f"model.layers.1.self_attn.q_a_proj.{ending}"
        eights[name] = np.ones(shape or (), np.float32)
        if shape is None:
            del eights[name]
    checkpoints.write_weights(tmp_path, eights)
    refused(tmp_path, match)


def test_an_eight_bit_float_that_is_no_number(tmp_path):
    _, named, _ = mixture(tmp_path, "deepseek2")
    eights, _ = checkpoints.float8(named, "rows")
    eights[EXPERT][3, 5] = 0x7F
    checkpoints.write_weights(tmp_path, eights)
    refused(tmp_path, rf"'{EXPERT}': 1 values are NaN")


@pytest.mark.parametrize(("architecture", "scale"), [("glm4moe", 1.0), ("deepseek2", 1.8)])
def test_a_config_that_does_not_name_the_experts_scale(tmp_path, architecture, scale):
    """What transformers' class has for it."""
    _, _, config = mixture(tmp_path, architecture, scale=3.0)
    assert planned(tmp_path)[f"{architecture}.expert_weights_scale"] == 3.0
    del config["routed_scaling_factor"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert planned(tmp_path)[f"{architecture}.expert_weights_scale"] == scale


EXPERT = "model.layers.1.mlp.experts.5.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({EXPERT: None}, rf"no tensor '{EXPERT}', which becomes a part of 'blk.1.ffn_down_exps.weight'"),
        ({EXPERT: (64, 31)}, rf"'{EXPERT}' is \(64, 31\), expected a matrix, all of one shape"),
        ({EXPERT: (64, 32, 1)}, rf"'{EXPERT}' is \(64, 32, 1\), expected a matrix"),
        ({EXPERT: (64, 32)}, rf"model\.safetensors: '{EXPERT}': 2048 values are NaN"),
        (
            {EXPERT.replace("5", "8"): (64, 32)},
            r"experts\.8\.down_proj\.weight': 'deepseek2' models have no",
        ),
        ({"model.layers.1.mlp.gate.weight": None}, r"no tensor 'model\.layers\.1\.mlp\.gate\.weight', which becomes"),
        ({"model.layers.1.self_attn.kv_b_proj.weight": (191, 64)}, r"\(191, 64\), expected 192 rows: 4 times 48"),
        ({"model.layers.0.self_attn.kv_b_proj.weight": (192,)}, r"is \(192,\), expected 192 rows"),
        (
            {"model.layers.2.eh_proj.weight": None},
            "'num_hidden_layers' is 2, but the checkpoint has tensors of 3 layers",
        ),
        ({"model.layers.2.hnorm.weight": None}, r"no tensor 'model\.layers\.2\.hnorm\.weight'"),
        ({"model.layers.2.embed_tokens.weight": (384, 63)}, r"embed_tokens"),
    ],
)
def test_mixtures_that_do_not_fit(tmp_path, change, match):
    _, named, _ = mixture(tmp_path, "deepseek2", drafting=True)
    replaced = {name: shape and np.full(shape, np.nan, np.float32) for name, shape in change.items()}
    named = {name: x for name, x in (named | replaced).items() if x is not None}
    checkpoints.write_weights(tmp_path, named)
    refused(tmp_path, match)


@pytest.mark.parametrize(
    ("case", "key", "part"),
    [
        ("glm-4.5", "use_qk_norm", "q_norm.weight"),
        ("glm-4.5", "attention_bias", "k_proj.bias"),
        ("glm4-9b", "attention_bias", "v_proj.bias"),
        ("llama", "attention_bias", "q_proj.bias"),
    ],
)
def test_what_a_config_says_to_be_there_has_to_be(tmp_path, case, key, part):
    """A layer without runs, and is another model."""
    _, folder = make(tmp_path, case)
    config = json.loads((folder / "config.json").read_text())
    checkpoint = Checkpoint(folder)
    kind = re.compile(part.replace("q_", "[qk]_") if "norm" in part else r"[qkv]_proj\.bias")
    named = {name: checkpoint.read(name) for name in checkpoint.names}
    less = {name: x for name, x in named.items() if not (".layers.1." in name and kind.search(name))}
    checkpoints.write_weights(folder, less)
    (folder / "config.json").write_text(json.dumps(config | {key: False}))
    convert(folder, tmp_path / "out.gguf", "f16")
    (folder / "config.json").write_text(json.dumps(config | {key: True}))
    with pytest.raises(FormatError, match=r"no tensor 'model\.layers\.\d\.self_attn\."):
        convert(folder, tmp_path / "no.gguf", "f16")


def test_fused_experts_that_do_not_fit(tmp_path):
    _, folder = make(tmp_path, "glm-4.7-flash-fused")
    named, _ = checkpoints.glm4_moe_lite_fused(tiny.model("deepseek2", **FORMS["glm-4.7-flash-fused"][2]))
    for part, shape, match in (
        ("gate_up_proj", (8, 63, 64), r"\(8, 63, 64\), expected 512 rows: 8 times 64"),
        ("down_proj", (7, 64, 32), r"\(7, 64, 32\), expected 512 rows: 8 times 64"),
    ):
        checkpoints.write_weights(folder, named | {f"model.layers.1.mlp.experts.{part}": np.ones(shape, np.float32)})
        refused(folder, match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"scoring_func": "softmax"}, "'scoring_func' is 'softmax', expected 'sigmoid'"),
        ({"norm_topk_prob": False}, "'norm_topk_prob' is False, expected True"),
        ({"n_group": 8}, "'n_group' is 8, expected 1"),
        ({"n_routed_experts": 7}, r"experts\.7\.down_proj\.weight': 'deepseek2' models have no such tensor"),
        ({"n_routed_experts": 9}, r"no tensor 'model\.layers\.1\.mlp\.experts\.8\.gate_proj"),
        ({"rope_interleave": False}, "'rope_interleave' is False, expected True"),
        ({"qk_nope_head_dim": 17}, "expected 196 rows: 4 times 49"),
        ({"q_lora_rank": None}, "no 'q_lora_rank'"),
        ({"model_type": "deepseek_v3"}, "a model that glmlite cannot convert"),
    ],
)
def test_configs_of_mixtures_that_do_not_fit(tmp_path, change, match):
    _, folder = make(tmp_path, "glm-4.7-flash", config=change)
    refused(folder, match)


@pytest.mark.parametrize("case", ["glm-4.7-flash", "glm-4.7-flash-fused"])
def test_of_experts_no_more_is_read_than_a_piece(tmp_path, monkeypatch, case):
    """But for the heads of kv_b_proj, whose keys are transposed: one at a time."""
    _, folder = make(tmp_path, case)
    sizes = []
    real = Checkpoint._bytes
    monkeypatch.setattr(Checkpoint, "_bytes", lambda self, t, first, n: sizes.append(n) or real(self, t, first, n))
    monkeypatch.setattr(planning, "build", lambda *a, real=planning.build: (real(*a), sizes.clear())[0])
    monkeypatch.setattr(working, "_CHUNK", 512)
    convert(folder, tmp_path / "out.gguf", "f16")
    assert 0 < max(sizes) <= 16 * 64


def test_rows_of_several_matrices(tmp_path):
    """Counted through, also where a file has them transposed."""
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    checkpoints.write_safetensors(tmp_path / "model.safetensors", {"x": x})
    with Checkpoint(tmp_path) as checkpoint:
        for want in (x, x.transpose(0, 2, 1)):
            strides = None if want is x else (12, 1, 4)
            checkpoint._tensors["x"] = replace(checkpoint._tensors["x"], shape=want.shape, strides=strides)
            assert np.array_equal(checkpoint.read("x"), want)
            flat = want.reshape(-1, want.shape[-1])
            for rows in ([0], [3, 4, 1], range(2, 5), [5, 4], []):
                assert np.array_equal(checkpoint.read("x", rows), flat[list(rows)]), (strides, rows)


# ---- adapters ----------------------------------------------------------------------------------------------------


def write_lora(folder, targets, rank=3, config=None, seed=5):
    """A LoRA folder of PEFT for {module: (n, k)}; returns module -> B A."""
    folder.mkdir()
    random = np.random.RandomState(seed)
    named, deltas = {}, {}
    for module, (n, k) in targets.items():
        a, b = random.randn(rank, k).astype(np.float32), random.randn(n, rank).astype(np.float32)
        named |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
        deltas[module] = b.astype(np.float64) @ a
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": 6, "target_modules": ["query_key_value"]}
    (folder / "adapter_config.json").write_text(json.dumps(values | (config or {})))
    checkpoints.write_safetensors(folder / "adapter_model.safetensors", named)
    return deltas


@pytest.mark.parametrize("config, scale", [({}, 2.0), ({"use_rslora": True}, 6 / 3**0.5), ({"lora_alpha": 3}, 1.0)])
def test_lora_is_merged(tmp_path, opened, config, scale):
    model, folder = make(tmp_path / "base", "chatglm-6b")
    x = model.tensors["blk.1.attn_qkv.weight"]
    module = "transformer.layers.1.attention.query_key_value"
    deltas = write_lora(tmp_path / "lora", {module: x.shape}, config=config)
    got = tensors_of(opened(convert(folder, tmp_path / "out.gguf", "f32", lora=tmp_path / "lora")))
    named, _ = checkpoints.chatglm1(model)
    want = (named[f"{module}.weight"] + scale * deltas[module]).reshape(4, 3, 16, 64).swapaxes(0, 1).reshape(192, 64)
    assert np.max(np.abs(got["blk.1.attn_qkv.weight"] - want)) <= 1e-5 * np.abs(want).max()
    assert np.array_equal(got["blk.0.attn_qkv.weight"], model.tensors["blk.0.attn_qkv.weight"])


def test_lora_of_llama_follows_the_rows(tmp_path, opened):
    """q is reordered after the merge."""
    model, folder = make(tmp_path / "base", "llama")
    module = "model.layers.0.self_attn.q_proj"
    deltas = write_lora(tmp_path / "lora", {module: (128, 64)})
    named, _ = checkpoints.hf(model)
    merged = {**named, f"{module}.weight": (named[f"{module}.weight"] + 2 * deltas[module]).astype(np.float32)}
    shutil.copytree(folder, tmp_path / "merged")
    checkpoints.write_weights(tmp_path / "merged", merged)
    one = opened(convert(folder, tmp_path / "a.gguf", "f32", lora=tmp_path / "lora"))
    two = opened(convert(tmp_path / "merged", tmp_path / "b.gguf", "f32"))
    x, want = (gguf.dequantize("blk.0.attn_q.weight") for gguf in (one, two))
    assert np.max(np.abs(x - want)) <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize(
    "targets, config, message",
    [
        ({"transformer.encoder.layers.9.mlp.dense_4h_to_h": (64, 96)}, {}, "the model has no 'transformer.encoder.l"),
        ({"transformer.encoder.layers.0.mlp.dense_4h_to_h": (64, 95)}, {}, r"adapts \(64, 95\), but"),
        ({}, {"use_dora": True}, "'use_dora' is set, expected plain LoRA"),
        ({}, {"peft_type": "IA3"}, "'peft_type' is 'IA3', expected 'LORA'"),
        ({"transformer.output_layer": (384, 64)}, {"lora_alpha": "x"}, "'lora_alpha' is 'x'"),
    ],
)
def test_lora_that_does_not_fit(tmp_path, targets, config, message):
    _, folder = make(tmp_path / "base")
    write_lora(tmp_path / "lora", targets, config=config)
    with pytest.raises(FormatError, match=message):
        convert(folder, tmp_path / "out.gguf", "f32", lora=tmp_path / "lora")


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("case", ["chatglm-6b", "chatglm3"])
def test_ptuning_beside_the_model(tmp_path, opened, case, projected):
    """A P-Tuning v2 checkpoint holds nothing but the prefix encoder."""
    model, folder = make(tmp_path / "base", case)
    kv_heads = checkpoints._key(model, "attention.head_count_kv")
    head_dim = checkpoints._key(model, "attention.key_length")
    random = np.random.RandomState(3)
    width = 2 * 2 * kv_heads * head_dim
    table = random.randn(5, 24 if projected else width).astype(np.float32)
    root = "transformer.prefix_encoder."
    named = {f"{root}embedding.weight": table}
    if projected:
        w1, b1, w2, b2 = (random.randn(*s).astype(np.float32) / 5 for s in ((32, 24), (32,), (width, 32), (width,)))
        named |= {f"{root}trans.0.weight": w1, f"{root}trans.0.bias": b1}
        named |= {f"{root}trans.2.weight": w2, f"{root}trans.2.bias": b2}
        table = np.array([w2 @ np.tanh(w1 @ row + b1) + b2 for row in table.astype(np.float64)])
    (tmp_path / "ptuning").mkdir()
    checkpoints.write_weights(tmp_path / "ptuning", named, "torch")
    got = tensors_of(opened(convert(folder, tmp_path / "out.gguf", "f32", ptuning=tmp_path / "ptuning")))
    for token in range(5):
        for layer in range(2):
            for part in range(2):
                at = (2 * layer + part) * kv_heads * head_dim
                want = table[token, at : at + kv_heads * head_dim]
                x = got[f"blk.{layer}.prefix_{'kv'[part]}.weight"][token]
                assert np.max(np.abs(x - want)) <= 1e-5 * max(1, np.abs(want).max())


def test_a_prefix_that_is_no_number(tmp_path):
    model, folder = make(tmp_path / "base", "chatglm-ptuning")
    named, _ = checkpoints.chatglm(model)
    name = "transformer.prefix_encoder.embedding.weight"
    checkpoints.write_weights(folder, named | {name: named[name] * np.float32("nan")})
    refused(folder, rf"model\.safetensors: '{name}': .* values are NaN or infinite")


def test_ptuning_of_another_model(tmp_path):
    _, folder = make(tmp_path / "base")
    (tmp_path / "p").mkdir()
    named = {"transformer.prefix_encoder.embedding.weight": np.zeros((2, 7), np.float32)}
    checkpoints.write_weights(tmp_path / "p", named)
    with pytest.raises(FormatError, match="a prefix of 7 values a token, expected 128"):
        convert(folder, tmp_path / "out.gguf", "f32", ptuning=tmp_path / "p")
    checkpoints.write_weights(tmp_path / "p", {"x": np.zeros(2, np.float32)})
    with pytest.raises(FormatError, match=r"no tensor 'transformer\.prefix_encoder\.embedding"):
        convert(folder, tmp_path / "out.gguf", "f32", ptuning=tmp_path / "p")


# ---- metadata ----------------------------------------------------------------------------------------------------


def planned(folder):
    work = planning.plan(folder, "f32")
    work.close()
    return work.metadata


def test_rope_ratio_multiplies_the_base_or_divides_the_positions(tmp_path):
    _, folder = make(tmp_path, config={"rope_ratio": 500, "seq_length": 131072})
    metadata = planned(folder)
    assert metadata["chatglm.rope.freq_base"] == 5e6 and metadata["chatglm.context_length"] == 131072
    code = folder / "modeling_chatglm.py"
    code.write_text("base = base * self.rope_ratio\n")
    assert planned(folder)["chatglm.rope.freq_base"] == 5e6
    code.write_text("raise SystemExit('run')\nseq_idx = torch.arange(n) / self.rope_ratio\n")
    metadata = planned(folder)
    assert metadata["chatglm.rope.freq_base"] == 1e4
    assert metadata["chatglm.rope.scaling.type"] == "linear" and metadata["chatglm.rope.scaling.factor"] == 500


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_rope_scaling(tmp_path, key):
    _, folder = make(tmp_path, "glm4-9b", config={key: {**YARN, "attention_factor": 2.0, "rope_theta": 7.0}})
    rope = {k: v for k, v in planned(folder).items() if k.startswith("glm4.rope.")}
    assert rope.pop("glm4.rope.scaling.attn_factor") == pytest.approx(2 / (0.1 * math.log(4) + 1))
    assert rope == {
        "glm4.rope.dimension_count": 16,
        "glm4.rope.freq_base": 7.0,
        "glm4.rope.scaling.type": "yarn",
        "glm4.rope.scaling.factor": 4.0,
        "glm4.rope.scaling.original_context_length": 32,
        "glm4.rope.scaling.yarn_beta_fast": 32.0,
        "glm4.rope.scaling.yarn_beta_slow": 1.0,
    }


def test_llama3_factors(tmp_path, opened):
    _, folder = make(tmp_path, "llama", config={"rope_scaling": {"rope_type": "llama3", **LLAMA3}})
    got = opened(convert(folder, tmp_path / "out.gguf", "q8_0")).dequantize("rope_freqs.weight")
    for i, factor in enumerate(got):
        wavelength = 2 * math.pi * 10000 ** (2 * i / 32)
        if wavelength < 64 / 4:
            want = 1
        elif wavelength > 64:
            want = 8
        else:
            part = (64 / wavelength - 1) / (4 - 1)
            want = 1 / ((1 - part) / 8 + part)
        assert factor == pytest.approx(want, rel=1e-6)


def test_sliding_window_bounds_the_context(tmp_path):
    _, folder = make(tmp_path, "llama", config={"model_type": "mistral", "sliding_window": 100})
    assert planned(folder)["llama.context_length"] == 100


@pytest.mark.parametrize("case", FORMS)
def test_tokenizer_is_the_sources(tmp_path, opened, case):
    model, folder = make(tmp_path, case)
    got = Tokenizer.from_metadata(opened(convert(folder, tmp_path / "out.gguf", "f16")).metadata)
    want = Tokenizer.from_metadata(model.metadata)
    line = "the 你好 in[MASK]<|user|>ether\n"
    assert got.encode(line) == want.encode(line) and got.vocab_size == want.vocab_size == 384
    assert got.eos_ids == want.eos_ids
    if case not in ("glm-10b", "glm-10b-wrapped"):  # whose tiny model does not begin with [CLS]
        assert got.prefix_ids == want.prefix_ids


def test_all_stop_ids_and_sampling(tmp_path, opened):
    model, folder = make(tmp_path)
    ids = [tiny.token_id(model, token) for token in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids, "temperature": 0.5, "top_p": 0.7}))
    metadata = opened(convert(folder, tmp_path / "out.gguf", "f16")).metadata
    assert metadata["tokenizer.ggml.eos_token_id"] == ids[0] and metadata["tokenizer.ggml.eot_token_id"] == ids[1]
    assert metadata["tokenizer.ggml.eos_token_ids"].tolist() == ids
    assert metadata["general.sampling.temp"] == 0.5 and metadata["general.sampling.top_p"] == pytest.approx(0.7)
    assert metadata["tokenizer.chat_template"] == model.metadata["tokenizer.chat_template"]


@pytest.mark.parametrize(
    "name, architecture, ends, prefix",
    [
        ("chatglm-6b", "chatglm1", {130005}, ()),
        ("glm-4-9b-chat", "chatglm", {151329, 151336, 151338}, (151331, 151333)),
    ],
)
def test_real_configs(monkeypatch, name, architecture, ends, prefix):
    folder, metadata = vocab.folder(name), vocab.metadata(name)
    plain = {key: value for key, value in metadata.items() if not key.endswith("token_id")}
    monkeypatch.setattr(text.vocab, "from_folder", lambda *_, **__: plain)
    config = Config(load_json(folder / "config.json"), folder / "config.json")
    got = text.text_metadata(folder, config, architecture, vocab.VOCAB_SIZES[name])
    assert {key: got[key] for key in metadata if key.endswith("token_id")} == {
        key: value for key, value in metadata.items() if key.endswith("token_id")
    }
    tokenizer = Tokenizer.from_metadata(got)
    assert tokenizer.eos_ids >= ends and tokenizer.prefix_ids == prefix


def test_chatglm2_is_told_from_chatglm3_by_its_tokenizers_code(tmp_path):
    folder = vocab.folder("chatglm3-6b")
    shutil.copy(folder / "tokenizer.model", tmp_path)
    config = Config({}, tmp_path / "config.json")

    def chat_format():
        return text.text_metadata(tmp_path, config, "chatglm", 65024).get("glmlite.chat_format")

    assert chat_format() is None
    (tmp_path / "tokenization_chatglm.py").write_text('special_tokens = ["[MASK]", "[gMASK]", "sop", "eop"]')
    assert chat_format() == "chatglm2"
    (tmp_path / "tokenization_chatglm.py").write_text('special_tokens = ["[gMASK]", "<|user|>"]')
    assert chat_format() is None


def test_chatglm3_has_brackets_around_sop(tmp_path):
    """In its vocabulary and its template: other programs find the bare letters in the middle of "people"."""
    pieces = [("<unk>", 0.0, 2), *((f"<0x{b:02X}>", 0.0, 6) for b in range(256)), ("people", -1.0, 1)]
    (tmp_path / "tokenizer.model").write_bytes(checkpoints.sentencepiece_model(pieces, model_type=2))
    template = "[gMASK]sop<|user|>\n {{ messages[0].content }}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    metadata = text.text_metadata(tmp_path, Config({}, tmp_path / "config.json"), "chatglm", 65024)
    assert metadata["tokenizer.chat_template"].startswith("[gMASK]<sop><|user|>\n {{")
    tokens = metadata["tokenizer.ggml.tokens"]
    assert tokens[64790:64795] == ["[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>"]
    assert "sop" not in tokens and "eop" not in tokens
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.prefix_ids == (64790, 64792)
    assert tokenizer.encode("[gMASK]sop") == tokenizer.encode("[gMASK]<sop>") == [64790, 64792]


def test_recognised_by_tensors_never_by_name(tmp_path):
    _, folder = make(tmp_path / "llama-7b", "chatglm3", config={"model_type": "llama", "architectures": ["Mine"]})
    assert planned(folder)["general.architecture"] == "chatglm"


# ---- types and files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_simple_types(tmp_path, opened, kind):
    model, folder = make(tmp_path)
    gguf = opened(convert(folder, tmp_path / "out.gguf", kind))
    for name, x in model.tensors.items():
        assert gguf.tensors[name].type == (kind.upper() if x.ndim == 2 else "F32"), name
        got = gguf.dequantize(name)
        if x.ndim == 1 or kind != "q8_0":
            assert np.array_equal(got, checkpoints.rounded(x, "F32" if x.ndim == 1 else kind.upper())), name
        else:
            # A step of the block's: half of one by rounding, and at most as much by the search for a better scale.
            step = np.abs(x.reshape(-1, 32)).max(axis=1) / 127
            assert (np.abs(got - x).reshape(-1, 32) <= step[:, None]).all(), name
    assert gguf.metadata["general.file_type"] == recipes.RECIPES[kind].file_type


# The RMS error of normal weights in units of theirs: a step of 2 max / (2^bits - 1) over the square root of 12, where
# the largest of 32 values is 2.1; two fifths to spare for scales that are rounded themselves.
BITS = {"Q4_0": 4, "IQ4_NL": 4, "Q4_K": 4, "IQ4_XS": 4, "Q5_0": 5, "Q5_K": 5, "Q6_K": 6, "Q8_0": 8}
NOISE = {kind: 1.4 * 2 * 2.1 / (2**bits - 1) / 12**0.5 for kind, bits in BITS.items()}


@pytest.mark.parametrize("recipe", ["q4_k_m", "iq4_xs", "q4_0"])
def test_quantized_types(tmp_path, opened, recipe):
    model = tiny.wide("chatglm", layers=3, ffn=160, vocab=512)
    folder = checkpoints.write(tmp_path / "wide", model, "chatglm")
    gguf = opened(convert(folder, tmp_path / "out.gguf", recipe))
    for name, x in model.tensors.items():
        info = gguf.tensors[name]
        assert info.type == recipes.choose(name, x.shape, recipe, 3, tied=False)
        noise = np.sqrt(np.mean((gguf.dequantize(name) - x) ** 2)) / np.std(x)
        assert noise <= NOISE.get(info.type, 0), name
    assert gguf.metadata["general.quantization_version"] == 2


def test_importance_reaches_the_quantizer(tmp_path, monkeypatch):
    """The columns' weights of an imatrix go to the tensor of the same name."""
    _, folder = make(tmp_path)
    seen = {}
    monkeypatch.setattr(working, "encode", lambda x, kind, where, weights: seen.update({where: weights}) or real(x))
    real = lambda x: formats.encode(x, "Q8_0" if x.ndim == 2 else "F32", "")  # noqa: E731
    weights = np.arange(64, dtype=np.float32)
    convert(folder, tmp_path / "out.gguf", "q8_0", importance={"blk.1.ffn_up.weight": weights})
    ((where, given),) = ((where, w) for where, w in seen.items() if w is not None)
    assert np.array_equal(given, weights) and "layers.1.mlp.dense_h_to_4h" in where


def test_without_numba(tmp_path, monkeypatch):
    _, folder = make(tmp_path)
    for module in (planning, working, formats):
        monkeypatch.setattr(module, "can_quantize", lambda: False)
    convert(folder, tmp_path / "out.gguf", "q8_0")
    with pytest.raises(RuntimeError, match="q4_0: quantizing needs numba: pip install"):
        convert(folder, tmp_path / "no.gguf", "q4_0")
    with pytest.raises(RuntimeError, match="importance: quantizing with one needs numba: pip install"):
        convert(folder, tmp_path / "no.gguf", "q8_0", importance={"blk.1.ffn_up.weight": np.ones(64)})


def test_q8_0_is_the_published_one(monkeypatch):
    from gguf import quants

    monkeypatch.setattr(formats, "can_quantize", lambda: False)
    x = np.random.RandomState(0).randn(64, 96).astype(np.float32)
    x[3, :32] = 0
    want = quants.quantize(x, quants.GGMLQuantizationType.Q8_0)
    assert np.array_equal(formats.encode(x, "Q8_0", ""), want)


def test_the_gguf_package_reads_it(tmp_path):
    import gguf

    model, folder = make(tmp_path)
    reader = gguf.GGUFReader(convert(folder, tmp_path / "out.gguf", "f16"))
    assert {tensor.name for tensor in reader.tensors} == set(model.tensors)
    for tensor in reader.tensors:
        x = model.tensors[tensor.name]
        assert tuple(tensor.shape[::-1]) == x.shape and tensor.data_offset % 32 == 0
        assert np.array_equal(tensor.data.reshape(x.shape), x.astype(np.float16) if x.ndim == 2 else x)
    tokens = model.metadata["tokenizer.ggml.tokens"]
    assert reader.get_field("tokenizer.ggml.tokens").contents()[:270] == tokens[:270]


def test_same_bytes_in_pieces_of_any_size(tmp_path, monkeypatch):
    _, folder = make(tmp_path, "llama", dtype="BF16")
    first = convert(folder, tmp_path / "a.gguf", "q8_0").read_bytes()
    monkeypatch.setattr(working, "_CHUNK", 100)
    assert convert(folder, tmp_path / "b.gguf", "q8_0").read_bytes() == first


@pytest.mark.parametrize("recipe", ["f16", "q4_k_m", "q4_0"])
def test_same_bytes_with_any_number_of_threads(tmp_path, monkeypatch, recipe):
    monkeypatch.setattr(working, "_CHUNK", 10_000)
    folder = checkpoints.write(tmp_path / "wide", tiny.wide("chatglm", layers=3, ffn=160, vocab=512), "chatglm")
    first = convert(folder, tmp_path / "1.gguf", recipe, threads=1).read_bytes()
    for threads in (2, 5):
        assert convert(folder, tmp_path / f"{threads}.gguf", recipe, threads=threads).read_bytes() == first
    with pytest.raises(ValueError, match="threads is 0, expected at least 1"):
        convert(folder, tmp_path / "0.gguf", recipe, threads=0)


def test_reads_no_more_than_it_needs(tmp_path, monkeypatch):
    """Every read is of at most a chunk's rows, also where the rows are reordered."""
    _, folder = make(tmp_path, "llama")
    sizes = []
    real = Checkpoint._bytes
    monkeypatch.setattr(Checkpoint, "_bytes", lambda self, t, first, n: sizes.append(n) or real(self, t, first, n))
    monkeypatch.setattr(working, "_CHUNK", 32 * 64)
    convert(folder, tmp_path / "out.gguf", "f16")
    assert 0 < max(sizes) <= 32 * 64


def test_a_gguf_file_by_another_name_and_not_over_itself(tmp_path):
    source = tiny.write(tmp_path / "sha256-abc", tiny.model("chatglm"))
    before = source.read_bytes()
    convert(source, tmp_path / "out.gguf", "f16")
    for same in (source, tmp_path / "link.gguf"):
        if same != source:
            same.symlink_to(source)
        with pytest.raises(ValueError, match=f"{same.name}: is the source itself, expected another name"):
            convert(source, same, "q8_0")
    assert source.read_bytes() == before and (tmp_path / "out.gguf").stat().st_size < len(before)


def test_gguf_as_source(tmp_path, opened):
    _, folder = make(tmp_path, "chatglm-6b-ptuning")
    whole = convert(folder, tmp_path / "a.gguf", "f32")
    half = convert(whole, tmp_path / "b.gguf", "f16")
    assert half.read_bytes() == convert(folder, tmp_path / "c.gguf", "f16").read_bytes()
    again = opened(convert(half, tmp_path / "d.gguf", "q8_0"))
    direct = opened(convert(folder, tmp_path / "e.gguf", "q8_0"))
    assert again.metadata.keys() == direct.metadata.keys()
    assert again.tensors["blk.0.ffn_up.weight"].type == "Q8_0"
    with pytest.raises(ValueError, match="lora"):
        convert(half, tmp_path / "f.gguf", "f16", lora=folder)
    (tmp_path / "b.gguf.aria2").touch()
    with pytest.raises(FormatError, match=r"b\.gguf: 'b\.gguf\.aria2' is beside it: the download has not ended"):
        convert(half, tmp_path / "f.gguf", "f16")
    wrong = tiny.write(tmp_path / "wrong.gguf", tiny.model("glm4moe", metadata={"glm4moe.expert_count": 0}))
    with pytest.raises(FormatError, match=r"wrong\.gguf: metadata: 'glm4moe\.expert_count' is 0"):
        convert(wrong, tmp_path / "f.gguf", "f16")


@pytest.mark.parametrize(
    "name, shape, recipe, want",
    [
        ("token_embd.weight", (65024, 4096), "q4_k_m", "Q4_K"),
        ("output.weight", (65024, 4096), "q4_k_m", "Q6_K"),
        ("blk.0.attn_qkv.weight", (4608, 4096), "q4_k_m", "Q5_K"),
        ("blk.0.ffn_down.weight", (4096, 13696), "q4_k_m", "Q8_0"),  # 13696 is no multiple of 256
        ("blk.9.ffn_down.weight", (4096, 13696), "q4_k_m", "Q5_0"),
        ("blk.9.ffn_down.weight", (4096, 13696), "iq4_xs", "IQ4_NL"),
        ("blk.9.ffn_down.weight", (4096, 90), "q8_0", "F16"),
        ("blk.0.attn_qkv.bias", (4608,), "q4_k_m", "F32"),
        ("position_embd.weight", (1025, 1024), "q8_0", "F32"),
        ("blk.0.prefix_k.weight", (128, 256), "q4_0", "F32"),
        ("blk.9.ffn_gate_inp.weight", (64, 2048), "q8_0", "F32"),
        ("blk.9.ffn_gate_inp.weight", (64, 2048), "f16", "F32"),
        ("blk.9.exp_probs_b.bias", (64,), "q4_k_m", "F32"),
        ("blk.9.attn_k_b.weight", (20, 512, 192), "q4_k_m", "Q8_0"),
        ("blk.9.attn_v_b.weight", (20, 256, 512), "iq4_xs", "Q8_0"),
        ("blk.9.attn_k_b.weight", (20, 512, 192), "f16", "F16"),
        ("blk.9.attn_kv_a_mqa.weight", (576, 2048), "q4_0", "Q6_K"),
        ("blk.9.attn_q_a.weight", (768, 2048), "q4_k_s", "Q6_K"),
        ("blk.9.attn_q_b.weight", (5120, 768), "q4_k_m", "Q4_K"),
        ("blk.9.ffn_up_exps.weight", (64, 1536, 2048), "q4_k_m", "Q4_K"),
        ("blk.0.ffn_down_exps.weight", (64, 2048, 1536), "q4_k_m", "Q6_K"),
        ("blk.9.ffn_down_exps.weight", (64, 2048, 1536), "q4_k_m", "Q4_K"),
        ("blk.9.ffn_down_exps.weight", (64, 2048, 1536), "q4_k_s", "Q4_K"),
        ("blk.9.ffn_down_shexp.weight", (2048, 1536), "q4_k_s", "Q6_K"),
        ("blk.9.ffn_down_exps.weight", (128, 4096, 1408), "q4_k_m", "Q5_0"),  # nor are 1408 and 10944
        ("blk.9.ffn_down_exps.weight", (128, 4096, 1408), "iq4_xs", "IQ4_NL"),
        ("blk.0.ffn_down.weight", (4096, 10944), "q4_k_m", "Q8_0"),
        ("blk.28.nextn.shared_head_head.weight", (154880, 2048), "q4_k_m", "Q6_K"),
        ("blk.28.nextn.eh_proj.weight", (2048, 4096), "q4_k_m", "Q4_K"),
    ],
)
def test_recipes(name, shape, recipe, want):
    assert recipes.choose(name, shape, recipe, layers=28, tied=False) == want


def test_tied_embeddings_get_the_outputs_type():
    assert recipes.choose("token_embd.weight", (9, 256), "q4_0", 28, tied=True) == "Q6_K"


def test_recipes_know_only_types_that_can_be_written():
    for recipe in recipes.RECIPES.values():
        assert {recipe.base, *recipe.roles.values(), *recipe.more.values()} <= set(formats.TYPES)


def test_tensor_types(tmp_path, opened):
    _, folder = make(tmp_path)
    overrides = [("ffn", "f16"), ("blk.1.ffn_down*", "bf16")]
    gguf = opened(convert(folder, tmp_path / "out.gguf", "q8_0", tensor_types=overrides))
    types = {name: tensor.type for name, tensor in gguf.tensors.items()}
    assert types["blk.0.ffn_down.weight"] == types["blk.1.ffn_up.weight"] == "F16"
    assert types["blk.1.ffn_down.weight"] == "BF16" and types["output.weight"] == "Q8_0"
    for bad, message in ((("x", "q9"), "'q9' is not known"), (("ffn_up", "q4_k"), "no whole blocks of 256")):
        with pytest.raises(ValueError, match=message):
            convert(folder, tmp_path / "no.gguf", "q8_0", tensor_types=[bad])
    # As llama.cpp spells it, and a name of nothing: neither is left out without a word.
    for pattern in (r"blk\.(0|1)\.ffn_down", "ffn_dwon"):
        with pytest.raises(ValueError, match=r"--tensor-type: no tensor is called like .*, expected a part of a name"):
            convert(folder, tmp_path / "no.gguf", "q8_0", tensor_types=[("ffn", "f16"), (pattern, "f16")])
    with pytest.raises(ValueError, match=r"type: 'q3' is not known; known: f32, .*iq4_nl"):
        convert(folder, tmp_path / "no.gguf", "q3")


# ---- nothing is left behind --------------------------------------------------------------------------------------


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_progress_and_cancel(tmp_path):
    _, folder = make(tmp_path / "source")
    calls = []
    out = convert(folder, tmp_path / "out.gguf", "f16", progress=lambda done, total: calls.append((done, total)))
    assert all(a[0] < b[0] for a, b in pairwise(calls)) and 0 < calls[-1][0] <= calls[-1][1]
    assert calls[-1][1] == out.stat().st_size
    out.unlink()
    with pytest.raises(Cancelled, match="nothing is left"):
        convert(folder, out, "f16", progress=lambda done, total: len(calls) < 0)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(folder, out, "f16", progress=interrupt)
    assert left(tmp_path) == ["source"]


def test_full_disk(tmp_path, monkeypatch):
    _, folder = make(tmp_path / "source")
    out = tmp_path / "out.gguf"
    out.write_text("an older file")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="1000 bytes free, the file needs") as full:
        convert(folder, out, "f16")
    assert full.value.errno == errno.ENOSPC
    monkeypatch.undo()

    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(working, "encode", no_space)
    with pytest.raises(OSError, match="No space"):
        convert(folder, out, "f16")
    assert left(tmp_path) == ["out.gguf", "source"] and out.read_text() == "an older file"


@pytest.mark.parametrize("value, message", [(np.nan, "1 values are NaN or infinite"), (1e6, "too large for f16")])
def test_weights_that_are_no_numbers(tmp_path, value, message):
    model, folder = make(tmp_path / "source")
    named, _ = checkpoints.chatglm(model)
    name = "transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"
    named[name] = named[name].copy()
    named[name][7, 5] = value
    checkpoints.write_weights(folder, named)
    with pytest.raises(FormatError, match=rf"model\.safetensors: '{name}': .*{message}"):
        convert(folder, tmp_path / "out.gguf", "f16")
    assert left(tmp_path) == ["source"]


# ---- hostile files -----------------------------------------------------------------------------------------------


def refused(folder, match):
    with pytest.raises(FormatError, match=match) as error:
        convert(folder, folder / "out.gguf", "f16")
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000 and not (folder / "out.gguf").exists()


@pytest.mark.parametrize(
    "function, arguments, name",
    [
        (os.system, ("echo ran > ran",), r"(posix|nt)\.system"),
        (builtins.eval, ("open('ran', 'w')",), r"(__builtin__|builtins)\.eval"),
        (builtins.getattr, ("", "upper"), r"(__builtin__|builtins)\.getattr"),
        (shutil.rmtree, ("ran",), r"shutil\.rmtree"),
    ],
)
def test_a_pickle_that_calls_is_refused_by_name(tmp_path, monkeypatch, function, arguments, name):
    monkeypatch.chdir(tmp_path)
    _, folder = make(tmp_path / "source", files="torch")
    body = checkpoints.calls(function, *arguments)
    checkpoints.write_torch(folder / "pytorch_model.bin", {"x": np.zeros(2, np.float32)}, body)
    refused(folder, rf"pytorch_model\.bin: its pickle asks for '{name}'.*nothing of it was run")
    assert not (tmp_path / "ran").exists()


def test_pickles_that_misuse_what_is_allowed(tmp_path):
    _, folder = make(tmp_path, files="torch")
    ordered = b"\x80\x02ccollections\nOrderedDict\n"
    text = lambda s: b"X" + struct.pack("<I", len(s)) + s.encode()  # noqa: E731
    bodies = {
        "a state for a function": ordered + b"}" + text("_call") + b"K\x05sb.",
        "slots of a function": ordered + b"N}" + text("_call") + b"K\x05s\x86b.",
        "a state for the type": b"\x80\x02ctorch\nFloatStorage\n}" + text("name") + b"X\3\0\0\0BADsb.",
        "a number": b"\x80\x02K\x05.",
        "not a tensor inside": b"\x80\x02}" + text("x") + b"K\x05s.",
        "a tensor of nothing": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\1K\1K\1K\1tR.",
        "a storage that is none": b"\x80\x02}" + text("x") + b"K\1Qs.",
        "cut off": ordered,
        "itself": b"\x80\x02}q\0" + text("model") + b"h\0s.",
        "empty": b"",
    }
    from glmlite.convert import torchfile

    for what, body in bodies.items():
        checkpoints.write_torch(folder / "pytorch_model.bin", {}, body)
        with pytest.raises(FormatError, match=r"pytorch_model\.bin: "):
            pytest.fail(f"{what}: {torchfile.read(folder / 'pytorch_model.bin')}")
    # Nothing of that has changed what the next file gets.
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    checkpoints.write_torch(folder / "pytorch_model.bin", {"x": x})
    with Checkpoint(folder) as checkpoint:
        assert np.array_equal(checkpoint.read("x"), x)


def test_torch_files_that_lie(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    x = {"x": np.arange(600, dtype=np.float32)}

    def opened(match):
        with pytest.raises(FormatError, match=match) as error:
            Checkpoint(path)
        assert str(path) in str(error.value)

    checkpoints.write_torch(path, x, compressed=True)
    opened("'x': its storage is compressed")
    longer = checkpoints.torch_pickle({"x": np.zeros(700, np.float32)})
    checkpoints.write_torch(path, x, longer)
    opened(r"'x': \(700,\) of F32 with strides \(1,\), in a storage of 2400 bytes")
    repeated = longer.replace(b"J" + struct.pack("<i", 1) + b"t", b"J" + struct.pack("<i", 0) + b"t")
    checkpoints.write_torch(path, x, repeated)
    opened(r"'x': \(700,\) of F32 with strides \(0,\), in a storage of 2400 bytes")
    other = checkpoints.torch_pickle({"y": np.zeros(1, np.float32), "x": np.zeros(1, np.float32)})
    checkpoints.write_torch(path, x, other)
    opened("'x': its storage 'archive/data/1' is not in the archive")
    checkpoints.write_torch(path, x)
    whole = path.read_bytes()
    path.write_bytes(whole[:1500])
    opened("not a file of torch.save, or cut off")
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    opened("written by torch before 1.6")


def entry(**changes):
    return {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | changes


@pytest.mark.parametrize(
    "header, match",
    [
        ({"x": entry(dtype="F12")}, "'x': dtype 'F12', expected one of F64, F32"),
        ({"x": entry(dtype="F4")}, r"'x' is quantized \(F4\)"),
        ({"x": entry(dtype=["F32"])}, "'x': dtype"),
        ({"x": entry(shape=[2, -3])}, r"'x': shape \[2, -3\]"),
        ({"x": entry(shape=[1] * 99)}, "'x': shape"),
        ({"x": entry(shape=[2**40, 2**40])}, "'x': 24 bytes, expected"),
        ({"x": entry(data_offsets=[0, 20])}, "'x': 20 bytes, expected 24 for F32"),
        ({"x": entry(data_offsets=[8, 32])}, "'x': ends at byte .* cut off"),
        ({"x": entry(data_offsets=[-24, 0])}, "'x': data_offsets"),
        ({"x": entry(data_offsets=None)}, "'x': data_offsets"),
        ({"x": entry(), "y": entry(data_offsets=[0, 24])}, "'[xy]' overlaps '[xy]'"),
        ({"x": 5}, "'x': 5, expected dtype"),
        (b'{"x": 1, "x": 2}', "'x' is there twice"),
        (b"[" * 100_000, "nested too deep|not JSON"),
        (b'{"x": ' + b"9" * 10_000 + b"}", "not JSON|'x'"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[1]", "a JSON list, expected an object"),
    ],
)
def test_safetensors_that_lie(tmp_path, header, match):
    path = tmp_path / "model.safetensors"
    checkpoints.write_safetensors_raw(path, header, bytes(24))
    with pytest.raises(FormatError, match=match) as error:
        Checkpoint(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, b"\xff" * 7 + b"\x7f{}", struct.pack("<Q", 2), b"PK\3\4" * 9])
def test_files_that_are_no_safetensors(tmp_path, data):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"not safetensors, (or cut off|but)"):
        Checkpoint(path)


def test_shards(tmp_path):
    _, folder = make(tmp_path, shards=3)
    shard, index = folder / "model-00002-of-00003.safetensors", folder / "model.safetensors.index.json"
    data, listing = shard.read_bytes(), json.loads(index.read_text())
    shard.write_bytes(data[:-10])
    refused(folder, r"model-00002-of-00003\.safetensors: '.*': ends at byte .* the file is cut off")
    shard.unlink()
    refused(folder, r"model-00002-of-00003\.safetensors: the shard is missing; it holds \d+ tensors, 'trans")
    index.unlink()
    refused(folder, "one of 3 shards, but there are 2 in the folder")
    shard.write_bytes(data)
    planned(folder)  # the index is not needed
    shard.write_bytes((folder / "model-00001-of-00003.safetensors").read_bytes())
    refused(folder, r"'.*' is in model-00001-of-00003\.safetensors already")
    shard.write_bytes(data)
    for name in ("../x.safetensors", "..", "a\\b", "C:x", "", "x\0", "x" * 300, 5, None):
        index.write_text(json.dumps({"weight_map": {"w": name}}))
        refused(folder, r"index\.json: 'w' is in .*, expected the name of a file in the same folder")
    for bad in ({}, {"weight_map": []}, {"weight_map": {}}):
        index.write_text(json.dumps(bad))
        refused(folder, "no 'weight_map'")
    listing["weight_map"]["another"] = shard.name
    index.write_text(json.dumps(listing))
    refused(folder, r"no tensor 'another', which model\.safetensors\.index\.json says it holds")


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    checkpoints.write_safetensors(tmp_path / "model.safetensors", {"x": np.zeros(10_000, np.float32)})
    with Checkpoint(tmp_path) as checkpoint:
        os.truncate(tmp_path / "model.safetensors", 200)
        with pytest.raises(FormatError, match="it became shorter"):
            checkpoint.read("x")


def test_unknown_architecture_lists_the_known(tmp_path):
    _, folder = make(tmp_path, "llama", config={"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]})
    refused(folder, "cannot convert \\('qwen2', \\['Qwen2ForCausalLM'\\].*known: " + "; ".join(KINDS))


@pytest.mark.parametrize(
    "case, change, match",
    [
        ("chatglm3", {"num_layers": 3}, "'num_layers' is 3, but the checkpoint has tensors of 2"),
        ("chatglm3", {"num_layers": 10**12}, "'num_layers' is 1000000000000, expected a positive integer"),
        ("chatglm3", {"num_attention_heads": None}, "no 'num_attention_heads'"),
        ("chatglm3", {"num_attention_heads": 8}, r"config\.json: .*qkv has 192 columns"),
        ("chatglm3", {"hidden_size": "64"}, "'hidden_size' is '64'"),
        ("chatglm3", {"layernorm_epsilon": float("nan")}, "'layernorm_epsilon' is nan"),
        ("chatglm3", {"rmsnorm": False}, "'rmsnorm' is False, expected True"),
        ("chatglm3", {"eos_token_id": 384}, "'eos_token_id' has 384, expected ids below 384"),
        ("chatglm3", {"eos_token_id": "x"}, "'eos_token_id' has 'x'"),
        ("chatglm-6b", {"num_attention_heads": 3}, "3 heads do not divide 64 columns"),
        ("chatglm-6b", {"hidden_size": 32}, r"query_key_value\.weight' is \(192, 64\), expected 96 rows"),
        ("glm4-9b", {"hidden_act": "gelu"}, "'hidden_act' is 'gelu', expected 'silu' or 'swish'"),
        ("glm4-9b", {"rope_scaling": {"type": "new", "factor": 2}}, "'rope_scaling' is 'new'"),
        ("glm4-9b", {"rope_scaling": [1]}, "'rope_scaling' is"),
    ],
)
def test_configs_that_do_not_fit(tmp_path, case, change, match):
    _, folder = make(tmp_path, case, config=change)
    refused(folder, match)


@pytest.mark.parametrize(
    "case", ["chatglm-6b", "chatglm3", "glm-10b", "glm4-9b", "glm-4.5-air", "glm-4.7-flash", "llama"]
)
def test_whatever_a_config_counts_takes_no_memory(tmp_path, case):
    _, folder = make(tmp_path / "source", case)
    config = json.loads((folder / "config.json").read_text())
    for key in [key for key, value in config.items() if type(value) is int]:
        (folder / "config.json").write_text(json.dumps(config | {key: 2**31 - 1}))
        tracemalloc.start()
        with suppress(FormatError):
            convert(folder, tmp_path / "out.gguf", "f16")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 26, key


@pytest.mark.parametrize(
    "data, match",
    [(b'{"a": ' * 50_000, "too deep|not JSON"), (b"{", "not JSON"), (b"[]", "expected an object"), (b"\0", "not JSON")],
)
def test_configs_that_are_none(tmp_path, data, match):
    _, folder = make(tmp_path)
    (folder / "config.json").write_bytes(data)
    refused(folder, rf"config\.json: .*({match})")
    (folder / "config.json").unlink()
    refused(folder, r"no config\.json")


def test_tensors_missing_or_too_many(tmp_path):
    model, folder = make(tmp_path)
    named, _ = checkpoints.chatglm(model)
    less = dict(named)
    del less["transformer.encoder.final_layernorm.weight"]
    checkpoints.write_weights(folder, less)
    refused(folder, r"model\.safetensors: no tensor 'transformer\.encoder\.final_layernorm\.weight'")
    checkpoints.write_weights(folder, named | {"transformer.vision.weight": np.zeros((2, 2), np.float32)})
    refused(folder, "'transformer.vision.weight': 'chatglm' models have no such tensor")
    wrong = named | {"transformer.encoder.layers.0.mlp.dense_4h_to_h.weight": np.zeros((64, 95), np.float32)}
    checkpoints.write_weights(folder, wrong)
    refused(folder, r"model\.safetensors: 'transformer\.encoder\.layers\.0\.mlp\.dense_4h_to_h\.weight': .*95")
    whole = named | {"transformer.encoder.layers.0.mlp.dense_4h_to_h.weight": np.zeros((64, 96), np.int8)}
    checkpoints.write_weights(folder, whole)
    refused(folder, r"dense_4h_to_h\.weight' is quantized \(I8: whole numbers")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    refused(folder, "neither")


def test_packed_weights_that_lie(tmp_path):
    model, folder = make(tmp_path, "chatglm-6b", bits=4, config={"quantization_bit": 5})
    refused(folder, "is packed, but the config's 'quantization_bit' is 5, expected 4 or 8")
    named = checkpoints.pack(checkpoints.chatglm1(model)[0], 8)
    scales = "transformer.layers.0.mlp.dense_h_to_4h.weight_scale"
    (folder / "config.json").write_text(json.dumps(checkpoints.chatglm1(model)[1] | {"quantization_bit": 8}))
    checkpoints.write_weights(folder, named | {scales: named[scales][:-1]})
    refused(folder, r"dense_h_to_4h\.weight' is \(256, 64\) and its scales are")


def test_no_tokenizer(tmp_path):
    _, folder = make(tmp_path)
    (folder / "tokenizer.json").unlink()
    refused(folder, "no ice_text.model, tokenizer.json")


DEEP = b'{"model": ' + b"[" * 100_000
ADDED = {"content": "<|user|>", "id": 262, "special": True}


@pytest.mark.parametrize(
    "case, file, data, match",
    [
        ("chatglm3", "tokenizer.json", DEEP, r"tokenizer\.json: (JSON nested too deep|not JSON)"),
        (
            "chatglm3",
            "tokenizer.json",
            {"model": {"vocab": {"a": 10**12}, "merges": []}},
            "'a' has the id 1000000000000",
        ),
        ("chatglm3", "tokenizer.json", {"model": {"vocab": {"a": "x"}, "merges": []}}, "'a' has the id 'x'"),
        ("chatglm3", "tokenizer.json", {"added_tokens": [ADDED | {"id": -1}]}, "'<|user|>' has the id -1"),
        ("chatglm3", "tokenizer.json", {"added_tokens": [ADDED | {"content": 5}]}, "5 has the id 262"),
        (
            "chatglm3",
            "tokenizer.json",
            {"added_tokens": [ADDED | {"id": 384}]},
            "has 385 tokens, the model only 384 rows",
        ),
        ("chatglm3", "tokenizer.json", {"added_tokens": [ADDED | {"content": "\ud800"}]}, "not JSON: .*surrogates"),
        ("chatglm3", "tokenizer.json", {"pre_tokenizer": {"type": "x" * 5000}}, "that glmlite does not know"),
        ("chatglm3", "chat_template.jinja", b"\xff", r"chat_template\.jinja: not UTF-8"),
        ("chatglm3", "tokenizer.json", {"model": {"type": ["x"] * 999}}, r"a \['x', .* model, expected BPE"),
        ("glm-10b", "merges.txt", b"\xff", r"merges\.txt: not UTF-8"),
        ("glm-10b", "vocab.json", b'{"a": []}', r"vocab\.json: token 'a' has the id \[\]"),
        ("glm-10b", "added_tokens.json", b'{"[MASK]": 4194304}', r"added_tokens\.json: token '\[MASK\]'"),
        ("glm-10b", "tokenizer_config.json", b'{"added_tokens_decoder": 5}', "'added_tokens_decoder' is not an object"),
        (
            "chatglm-6b",
            "ice_text.model",
            b"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\1",
            "not a sentencepiece model",
        ),
        ("chatglm-6b", "ice_text.model", b"\x0a\x05\x0a\x01a\x18\x63", "not a sentencepiece model"),
    ],
)
def test_tokenizers_that_lie(tmp_path, case, file, data, match):
    _, folder = make(tmp_path, case)
    if isinstance(data, dict):
        data = json.dumps(json.loads((folder / file).read_text()) | data).encode()
    (folder / file).write_bytes(data)
    refused(folder, match)


@pytest.mark.parametrize("line", [b"x", b"YQ== x", b"YQ== 7", b"!! 0", b"QUFB" * 1000 + b" 0"])
def test_rank_files_that_lie(tmp_path, line):
    _, folder = make(tmp_path)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"YQ== 0\n" + line + b"\n")
    refused(folder, r"tokenizer\.model: (line 2 is|the ranks are not 0 to)")


def test_pickles_that_ask_for_memory(tmp_path):
    """A note under the number 2^31 and an array of 2^40 bytes cost the unpickler in C as much memory."""
    path = tmp_path / "pytorch_model.bin"
    note = b"r" + struct.pack("<I", 2**31)
    good = checkpoints.torch_pickle({"x": np.zeros(2, np.float32)})
    checkpoints.write_torch(path, {"x": np.zeros(2, np.float32)}, good[:-1] + note + b".")
    tracemalloc.start()
    with Checkpoint(path) as checkpoint:
        assert checkpoint.names == ["x"]
    checkpoints.write_torch(path, {}, b"\x80\5\x96" + struct.pack("<Q", 2**40) + b".")
    with pytest.raises(FormatError, match="the pickle is not one of tensors"):
        Checkpoint(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.skipif(os.name != "posix", reason="makes pipes")
@pytest.mark.parametrize("name", ["tokenizer.model", "additional_chat_templates/x.jinja"])
def test_a_pipe_or_an_endless_file_in_a_checkpoint(tmp_path, name):
    """Nobody writes to the pipe, and of the other all that is read would stay in memory."""
    _, folder = make(tmp_path)
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if path.parent == folder:
        (folder / "tokenizer.json").unlink()
    os.mkfifo(path)
    refused(folder, rf"{path.name}: is no regular file, expected a file")
    path.unlink()
    path.write_bytes(b"")
    os.truncate(path, 1 << 34)
    refused(folder, rf"{path.name}: 17179869184 bytes, expected at most 100000000")


def test_pickles_that_take_for_ever(tmp_path):
    """A tuple of itself twice, a hundred times over, takes 2^100 steps to hash and to print."""
    path = tmp_path / "pytorch_model.bin"
    good = checkpoints.torch_pickle({"x": np.zeros(2, np.float32)})
    nested = b")" + b"2\x86" * 100
    ordered = b"ccollections\nOrderedDict\n"
    sizes = b"(J" + struct.pack("<i", 2) + b"t"
    assert sizes in good
    for body in (
        b"}" + nested + b"Ns.",
        ordered + b")R" + nested + b"Ns.",
        ordered + b"](" + nested + b"Nta\x85R.",
        b"(" + nested + b"Nd.",
        b"\x8f(" + nested + b"\x90.",
        b"(" + nested + b"\x91.",
        good.removeprefix(b"\x80\2").replace(sizes, nested),
    ):
        checkpoints.write_torch(path, {}, b"\x80\4" + body)
        with pytest.raises(FormatError, match="the pickle is not one of tensors"):
            Checkpoint(path)


def test_a_name_twice_in_a_pickle(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    x = np.zeros(2, np.float32)
    body = checkpoints.torch_pickle({"x": x, "y": x}).replace(b"X\1\0\0\0y", b"X\1\0\0\0x")
    checkpoints.write_torch(path, {"x": x, "y": x}, body)
    with pytest.raises(FormatError, match=r"pytorch_model\.bin: .*'x' is there twice"):
        Checkpoint(path)


def test_a_name_that_is_too_long(tmp_path):
    for write, file in ((checkpoints.write_safetensors, "model.safetensors"), (checkpoints.write_torch, "model.bin")):
        write(tmp_path / file, {"x" * 1000: np.zeros(2, np.float32)})
        with pytest.raises(FormatError, match=rf"{file}: a tensor's name is 'xxx.*expected 1 to 512") as refusal:
            Checkpoint(tmp_path / file)
        assert len(str(refusal.value)) < 500


@pytest.mark.parametrize("name, seed", [("model.safetensors", 1), ("pytorch_model.bin", 2)])
def test_broken_files_are_format_errors(tmp_path, name, seed):
    """Bytes changed, lost and added anywhere: a FormatError in one line, or tensors within the file."""
    path = tmp_path / name
    writer = checkpoints.write_safetensors if name.endswith("s") else checkpoints.write_torch
    writer(path, {f"layer.{i}": np.ones((3, 4), np.float32) for i in range(2)})
    whole, random = path.read_bytes(), np.random.RandomState(seed)
    outcomes = set()
    for _ in range(600):
        data = bytearray(whole)
        for at in random.randint(0, len(whole) - 9, random.choice([1, 2, 8])):
            match random.randint(4):
                case 0:
                    data[at] = random.choice([0, 1, 127, 128, 255])
                case 1:
                    data[at] ^= 1 << random.randint(8)
                case 2:
                    del data[at : at + random.randint(1, 8)]
                case 3:
                    data[at:at] = random.bytes(random.randint(1, 8))
            data = data.ljust(len(whole), b"x")
        path.write_bytes(data[: len(whole)])
        try:
            with Checkpoint(path) as checkpoint:
                outcomes.add(sum(checkpoint.raw(tensor).nbytes for tensor in checkpoint.names) <= len(whole))
        except FormatError as error:
            assert "\n" not in str(error)
            outcomes.add(FormatError)
    assert outcomes == {True, FormatError}


# ---- the command -------------------------------------------------------------------------------------------------


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "mine")
    assert main(["convert", "mine", "--tensor-type", "ffn_up=f16"]) == 0
    out, err = capsys.readouterr()
    assert out == "mine-q8_0.gguf\n" and (tmp_path / "mine-q8_0.gguf").exists()
    rows = [line.split() for line in err.splitlines()]
    assert ["ffn_up", "f16", "2", "49.2", "kB"] in rows and ["token_embd", "q8_0", "1", "26.1", "kB"] in rows
    assert main(["convert", "mine"]) == 1
    assert "it is there already" in capsys.readouterr().err
    assert main(["convert", "mine", "--force"]) == 0
    capsys.readouterr()
    assert main(["convert", "mine", "x.gguf", "--tensor-type", "q8_0"]) == 1
    assert "expected PATTERN=TYPE" in capsys.readouterr().err
    assert main(["convert", "nothing"]) == 1
    assert capsys.readouterr().err == "glmlite: nothing: No such file or directory\n"


class FakeHub:
    """In place of huggingface_hub and modelscope: gives a folder where the files that match the patterns are."""

    def __init__(self, folder):
        self.folder = folder
        self.asked = []

    def snapshot_download(self, name, allow_patterns=(), ignore_patterns=(), **others):
        patterns = allow_patterns or others["allow_file_pattern"]
        self.asked.append((name, patterns))
        if not self.folder.exists():
            raise OSError(f"404: {name}\n\nRepository not found")
        target = self.folder.with_name("cache")
        target.mkdir(exist_ok=True)
        ignored = ignore_patterns or others["ignore_file_pattern"]
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            wanted = any(fnmatch(name, pattern) for pattern in patterns)
            if path.is_file() and wanted and not any(fnmatch(name, pattern) for pattern in ignored):
                (target / name).parent.mkdir(exist_ok=True)
                shutil.copy(path, target / name)
        return str(target)


@pytest.mark.parametrize("files", ["safetensors", "torch"])
@pytest.mark.parametrize("prefix, package", [("", "huggingface_hub"), ("modelscope:", "modelscope")])
def test_hub_names(tmp_path, monkeypatch, capsys, files, prefix, package):
    monkeypatch.chdir(tmp_path)
    _, folder = make(tmp_path / "there", files=files)
    (folder / "README.md").write_text("not needed")
    for name in ("additional_chat_templates/tool_use.jinja", "original/params.json", "assets/a.json"):
        (folder / name).parent.mkdir()
        (folder / name).write_text("{}")
    fake = FakeHub(folder)
    monkeypatch.setitem(sys.modules, package, fake)
    assert main(["convert", f"{prefix}zai-org/glm-tiny"]) == 0
    assert capsys.readouterr().out == "glm-tiny-q8_0.gguf\n" and (tmp_path / "glm-tiny-q8_0.gguf").exists()
    assert {name for name, _ in fake.asked} == {"zai-org/glm-tiny"} and len(fake.asked) == 1 + (files == "torch")
    assert not (tmp_path / "cache" / "README.md").exists()
    folders = [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert folders == ["additional_chat_templates"]
    shutil.rmtree(folder)
    assert main(["convert", f"{prefix}zai-org/none"]) == 1
    assert capsys.readouterr().err == f"glmlite: {prefix}zai-org/none: cannot be downloaded: 404: zai-org/none\n"
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    assert main(["convert", f"{prefix}zai-org/none"]) == 1
    assert f"pip install {package}" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["./a/b", "/a/b", "a", "a/b/c", "mine/typo", "../a/b", "a\\b", "~/a"])
def test_a_path_never_goes_to_a_hub(tmp_path, monkeypatch, capsys, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["convert", source]) == 1
    assert "No such file or directory" in capsys.readouterr().err


def command(folder, first, *arguments):
    """`glmlite convert` in `folder` in a process of its own, which runs the code `first` before."""
    code = f"import sys\n{first}\nfrom glmlite.cli import main\nsys.exit(main(['convert', *sys.argv[1:]]))"
    path = os.pathsep.join([str(Path(planning.__file__).parents[2]), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.skipif(os.name != "posix", reason="sends signals to a process")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_conversion_that_is_ended_leaves_nothing_and_says_so(tmp_path, name):
    make(tmp_path / "mine")
    slowly = """if True:
        import time
        from glmlite.convert import working
        encode = working.encode
        working.encode = lambda *x: time.sleep(0.2) or encode(*x)
    """
    process = command(tmp_path, slowly, "mine", "--type", "f16")
    end = time.monotonic() + 60
    while not list(tmp_path.glob("*.part")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    assert process.poll() is None
    process.send_signal(getattr(signal, name))
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + getattr(signal, name)
    assert error.splitlines()[-1] == "glmlite: mine-f16.gguf: stopped, nothing is left of it"
    assert left(tmp_path) == ["mine"]


def test_ctrl_c_as_the_main_thread_takes_a_lock_hangs_nothing(tmp_path):
    """A Condition that is interrupted on its way in keeps its lock, and whoever needs it waits for ever."""
    make(tmp_path / "mine")
    interrupting = """if True:
        import itertools, threading
        from pathlib import Path
        from glmlite.convert import convert
        enter = threading.Condition.__enter__
        def interrupted(condition):
            entered = enter(condition)
            if threading.current_thread() is threading.main_thread() and next(count) == number:
                raise KeyboardInterrupt
            return entered
        threading.Condition.__enter__ = interrupted
        for number in itertools.count():
            count = itertools.count()
            try:
                convert(Path("mine"), Path("out.gguf"), "q8_0", threads=2)
                sys.exit(3)
            except KeyboardInterrupt:
                pass
    """
    process = command(tmp_path, interrupting)
    try:
        assert process.wait(60) == 3
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files")
def test_failed_writes_leave_nothing_and_say_so(tmp_path):
    """As on a full disk, a write stores less than it was given and the next one fails."""
    make(tmp_path / "mine")
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))"
    process = command(tmp_path, full, "mine", "--type", "f16")
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert error.splitlines()[-1] == f"glmlite: mine-f16.gguf: {os.strerror(errno.EFBIG)}; nothing is left of it"
    assert left(tmp_path) == ["mine"]
