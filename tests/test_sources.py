"""Checkpoints against arithmetic that is not ours: transformers, PEFT, the second implementation, llama.cpp's ids.

tests/test_convert.py goes through the forms; here are the published configs, and what other programs have written.
"""

import json
from pathlib import Path

import checkpoints
import independent
import numpy as np
import pytest
import tiny
import vocab
from test_convert import ENGINE, EXACT, TEXT, error, executed, opened, tensors_of  # noqa: F401 (opened: a fixture)

import glmlite
from glmlite.convert import convert
from glmlite.convert.checkpoint import Checkpoint
from glmlite.convert.sources import Adapted, Unpacked
from glmlite.convert.vocab import from_folder
from glmlite.errors import FormatError
from glmlite.tokenizer import Tokenizer

DATA = Path(__file__).parent / "data"


def engine_logits(path, ids):
    with glmlite.load(path, context=64, threads=1) as model:
        return model.logits(ids, all=True)


# ---- transformers' own checkpoints -------------------------------------------------------------------------------

TRANSFORMERS = sorted(path.stem for path in (DATA / "checkpoints").glob("*.npz"))
ARCHITECTURES = {"glm": "chatglm", "mistral": "llama", "glm4_moe": "glm4moe", "glm4_moe_lite": "deepseek2"}
# transformers' RoPE and norms are f32 in an f64 model: a few roundings more.
F32 = 4 * EXACT


def version_4(config):
    """The config as transformers 4 spelled it, and as the published ones are."""
    rope = dict(config.pop("rope_parameters"))
    config["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    return config


@pytest.mark.parametrize("spelled", [dict, version_4])
@pytest.mark.parametrize("case", TRANSFORMERS)
def test_what_transformers_saved(tmp_path, opened, case, spelled):  # noqa: F811
    """Names, shapes and config.json are transformers', and so are the logits (tests/oracles)."""
    stored = np.load(DATA / "checkpoints" / f"{case}.npz")
    config = spelled(json.loads(str(stored["config"])))
    named = {name: tiny.tensor(name, shape) for name, shape in json.loads(str(stored["shapes"])).items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoints.write_weights(tmp_path, named)
    architecture = ARCHITECTURES.get(config["model_type"], config["model_type"])
    checkpoints.write_tokenizer(tmp_path, tiny.model(architecture))
    path = convert(tmp_path, tmp_path / "out.gguf", "f32")
    gguf, ids = opened(path), stored["tokens"].tolist()
    assert error(executed(gguf.metadata, tensors_of(gguf), ids), stored["logits"]) <= F32
    if spelled is dict:
        assert error(engine_logits(path, ids), stored["logits"]) <= ENGINE


# ---- every published config of the original ChatGLM names --------------------------------------------------------

DIVIDES = "seq_idx = torch.arange(seq_len, dtype=dtype, device=device) / self.rope_ratio\n"
MULTIPLIES = "base = self.base * self.rope_ratio\n"
LONG = {"seq_length": 131072, "rope_ratio": 500}
# name -> context, keys of the config, heads of keys, eps, code beside the weights; base of RoPE, divisor of positions
PUBLISHED = {
    "chatglm2-6b": (32768, {}, 2, 1e-5, "", 1e4, 1),
    "chatglm2-6b-32k": (32768, {"rope_ratio": 16}, 2, 1e-5, DIVIDES, 1e4, 16),
    "codegeex2-6b": (8192, {}, 2, 1e-5, "", 1e4, 1),
    "chatglm3-6b": (8192, {}, 2, 1e-5, MULTIPLIES, 1e4, 1),
    "chatglm3-6b-32k": (32768, {"rope_ratio": 50}, 2, 1e-5, MULTIPLIES, 5e5, 1),
    "chatglm3-6b-128k": (131072, {"rope_ratio": 500}, 2, 1e-5, MULTIPLIES, 5e6, 1),
    "glm-4-9b": (8192, {"rope_ratio": 1}, 2, 1.5625e-7, MULTIPLIES, 1e4, 1),
    "glm-4-9b-chat": (131072, {"rope_ratio": 500}, 2, 1.5625e-7, "", 5e6, 1),
    "glm-4-9b-chat-1m": (1048576, {"rope_ratio": 10000}, 4, 1.5625e-7, MULTIPLIES, 1e8, 1),
    "codegeex4-all-9b": (131072, {"rope_ratio": 500}, 2, 1.5625e-7, MULTIPLIES, 5e6, 1),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(tmp_path, opened, name):  # noqa: F811
    context, config, kv_heads, eps, code, base, divisor = PUBLISHED[name]
    rope = {"chatglm.rope.freq_base": base, "chatglm.context_length": context}
    if divisor > 1:
        rope |= {"chatglm.rope.scaling.type": "linear", "chatglm.rope.scaling.factor": float(divisor)}
    model = tiny.model("chatglm", kv_heads=kv_heads, eps=eps, context=context, metadata=rope)
    folder = checkpoints.write(tmp_path / "model", model, "chatglm", config=config)
    if code:
        (folder / "modeling_chatglm.py").write_text(f"class RotaryEmbedding:\n    {code}")
    path = convert(folder, tmp_path / "out.gguf", "f32")
    gguf = opened(path)
    got = {key: value for key, value in gguf.metadata.items() if key.startswith("chatglm.rope.scaling")}
    assert got == {key: value for key, value in rope.items() if "scaling" in key}
    assert gguf.metadata["chatglm.rope.freq_base"] == base and gguf.metadata["chatglm.context_length"] == context
    want = independent.chatglm(model, TEXT)
    assert error(executed(gguf.metadata, tensors_of(gguf), TEXT), want) <= EXACT
    assert error(engine_logits(path, TEXT), want) <= ENGINE


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("form", ["chatglm", "chatglm1"])
def test_logits_of_packed_weights(tmp_path, opened, form, bits):  # noqa: F811
    """chatglm-6b-int4 and -int8, chatglm2-6b-int4: the source's arithmetic is with q times the row's scale."""
    model = tiny.model(form, **({"ffn": 256, "head_dim": 16} if form == "chatglm1" else {}))
    folder = checkpoints.write(tmp_path / "model", model, form, files="torch", dtype="F16", bits=bits, shards=2)
    path = convert(folder, tmp_path / "out.gguf", "f32")
    packed = {
        name: checkpoints.unpacked(x, bits)
        if name.startswith("blk.") and x.ndim == 2
        else checkpoints.rounded(x, "F16")
        for name, x in model.tensors.items()
    }
    source = tiny.Tiny(model.metadata, packed)
    if form == "chatglm":
        ids, want = TEXT, independent.chatglm(source, TEXT)
    else:
        gmask, sop = (tiny.token_id(model, text) for text in ("[gMASK]", "<sop>"))
        ids = [*TEXT, gmask, sop, 60, 61]
        want = independent.chatglm1(source, ids, gmask, sop)
    gguf = opened(path)
    assert error(executed(gguf.metadata, tensors_of(gguf), ids), want) <= EXACT
    assert error(engine_logits(path, ids), want) <= ENGINE


# ---- PEFT's own adapters -----------------------------------------------------------------------------------------

PEFT = sorted(path.parent.name for path in (DATA / "peft").glob("*/want.json"))


@pytest.mark.parametrize("case", PEFT)
def test_what_peft_merges(tmp_path, case):
    """Adapters as PEFT wrote them, one by torch.save. Stored: W v of every weight that PEFT's merge changed."""
    folder = DATA / "peft" / case
    stored = json.loads((folder / "want.json").read_text())
    model = tiny.model(stored["architecture"], **stored["sizes"])
    named, _ = getattr(checkpoints, stored["form"])(model)
    checkpoints.write_safetensors(tmp_path / "model.safetensors", named)
    changed = set()
    with Checkpoint(tmp_path) as base:
        merged = Adapted(Unpacked(base, None), folder)
        for name in base.names:
            x, before = merged.read(name), base.read(name)
            if np.array_equal(x, before):
                continue
            changed.add(name)
            v = np.random.RandomState(x.shape[-1]).randn(x.shape[-1]) if x.ndim == 2 else None
            got = x if v is None else x.astype(np.float64) @ v
            # PEFT's sums are f32 too: of r terms here, and of the weight with them.
            size = np.abs(x).max() if v is None else (np.abs(x).astype(np.float64) @ np.abs(v)).max()
            assert np.max(np.abs(got - stored["products"][name])) <= 8 * 2**-24 * size, name
            rows = range(1, len(x), 3)
            assert np.array_equal(merged.read(name, rows), x[rows.start :: 3]), name
        merged.adapter.close()
    assert changed == set(stored["products"])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"use_dora": True}, "'use_dora' is set, expected plain LoRA"),
        ({"use_qalora": True}, "'use_qalora' is set"),
        ({"alora_invocation_tokens": [1, 2]}, "'alora_invocation_tokens' is set"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "'layer_replication' is set"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "'init_lora_weights' is 'pissa_niter_4', which changes the model's own",
        ),
        ({"init_lora_weights": "loftq"}, "'init_lora_weights' is 'loftq'"),
        ({"alpha_pattern": {"(a+)+$": 3}}, r"'alpha_pattern' is .*, expected names of modules"),
        ({"alpha_pattern": ["q_proj"]}, "'alpha_pattern' is \\['q_proj'"),
        ({"alpha_pattern": 5}, "'alpha_pattern' is 5"),
        ({"alpha_pattern": {"query_key_value": "x"}}, "'lora_alpha' is 'x', expected a number"),
        ({"lora_alpha": float("inf")}, "'lora_alpha' is inf"),
        ({"peft_type": "LOHA"}, "'peft_type' is 'LOHA', expected 'LORA'"),
    ],
)
def test_adapters_that_are_more_than_lora(tmp_path, change, message):
    model = tiny.model("chatglm", vocab=24, head_dim=16)
    checkpoints.write_safetensors(tmp_path / "model.safetensors", checkpoints.chatglm(model)[0])
    lora = tmp_path / "lora"
    lora.mkdir()
    config = json.loads((DATA / "peft" / "chatglm3" / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps(config | change))
    data = (DATA / "peft" / "chatglm3" / "adapter_model.safetensors").read_bytes()
    (lora / "adapter_model.safetensors").write_bytes(data)
    with Checkpoint(tmp_path) as base, pytest.raises(FormatError, match=message):
        Adapted(Unpacked(base, None), lora)


# ---- llama.cpp's ids ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case, name, chatglm",
    [
        ("chatglm3", "chatglm3-6b", True),
        ("glm-4-9b", "glm-4-9b-chat", True),
        ("glm-4-0414", "glm-4-9b-chat-hf", True),
        ("llama", "chatglm3-6b", False),  # the same pieces in a Llama, which has no special tokens beside them
    ],
)
def test_ids_are_those_of_llama_cpp(case, name, chatglm):
    """200 mixed lines, as llama.cpp tokenizes them with files that we converted (tests/oracles/llamacpp_convert.py)."""
    stored = json.loads((DATA / "llamacpp_convert.json").read_text(encoding="utf-8"))
    folder = vocab.folder(name)
    metadata = from_folder(folder, vocab_size=vocab.VOCAB_SIZES[name], chatglm=chatglm)
    tokenizer = Tokenizer.from_metadata(metadata)
    lines, ids = stored["lines"], stored["ids"][case]
    ids = stored["ids"][ids] if isinstance(ids, str) else ids
    assert len(lines) == len(ids) == 200
    for line, want in zip(lines, ids):
        assert tokenizer.encode(line) == want, repr(line)
