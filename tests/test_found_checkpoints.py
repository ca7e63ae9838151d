"""Checkpoints as people have them: stale files beside the weights, adapters of tied matrices, hints that cannot be
used, pointers in place of files, foreign quantizations, conversions that are killed."""

import json
import os
import subprocess
import sys

import checkpoints
import numpy as np
import pytest
import tiny

import glmlite
from glmlite import files
from glmlite.convert import convert, recipes
from glmlite.convert.architectures import Config
from glmlite.convert.checkpoint import Checkpoint
from glmlite.convert.text import text_metadata
from glmlite.convert.vocab import CHATGLM3_SPECIALS, from_folder, from_tokenizer_json
from glmlite.tokenizer import Tokenizer

GLM4 = tiny.model("glm4", fused=False, bias=True)
EDGE = tiny.model("chatglm", fused=False, bias=False, rope_dim=32, tied=True)
IDS = [5, 9, 70, 33, 100, 41, 7]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1934161093\n"
HEAD, TABLE = "lm_head", "model.embed_tokens"


def made(folder, model=GLM4, **config):
    return checkpoints.write(folder, model, "hf", config=config)


def converted(folder, **options):
    return convert(folder, folder.with_suffix(".gguf"), "f32", **options)


def logits(path):
    with glmlite.load(path, context=64) as model:
        return model.logits(IDS, all=True)


def expected(folder, tensors, model=GLM4):
    return logits(tiny.write(folder / "expected.gguf", tiny.Tiny(model.metadata, tensors)))


def refused(match, folder, **options):
    with pytest.raises(glmlite.FormatError, match=match) as error:
        converted(folder, **options)
    assert "\n" not in str(error.value)


# ---- which files count


def shuffled(tensors):
    return {name: np.ascontiguousarray(x[::-1]) for name, x in tensors.items()}


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_the_whole_file_counts_before_an_index(tmp_path, form):
    """As in transformers: a model that was merged and saved again in one file, beside the shards it came from."""
    folder = checkpoints.write(tmp_path / "m", GLM4, "hf", files="torch" if form == "bin" else "safetensors")
    whole = "pytorch_model.bin" if form == "bin" else "model.safetensors"
    shards = {"a": "gone-00001-of-00002", "b": "gone-00002-of-00002"}
    (folder / f"{whole}.index.json").write_text(json.dumps({"weight_map": shards}))
    assert np.array_equal(logits(converted(folder)), expected(tmp_path, GLM4.tensors))


def test_safetensors_count_before_bin(tmp_path):
    folder = made(tmp_path / "m")
    checkpoints.write_torch(folder / "pytorch_model.bin", shuffled(checkpoints.hf(GLM4)[0]))
    assert np.array_equal(logits(converted(folder)), expected(tmp_path, GLM4.tensors))


@pytest.mark.parametrize(
    "name", ["training_args.bin", "optimizer.bin", "scheduler.bin", "adapter_model.bin", "rng_state_0.bin"]
)
def test_what_a_training_leaves_is_no_weights(tmp_path, name):
    folder = checkpoints.write(tmp_path / "m", GLM4, "hf", files="torch")
    (folder / "pytorch_model.bin").rename(folder / "merged.bin")
    (folder / name).write_bytes(b"PK\3\4 an object of the training program")
    assert np.array_equal(logits(converted(folder)), expected(tmp_path, GLM4.tensors))


def test_a_folder_without_weights_says_what_it_is(tmp_path):
    folder = made(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "model.safetensors.incomplete")
    refused("no weights but 'model.safetensors.incomplete': the download has not ended", folder)
    (folder / "model.safetensors.incomplete").unlink()
    (folder / "m-q4_0.gguf").write_bytes(b"GGUF")
    refused("no checkpoint but 'm-q4_0.gguf'", folder)
    if hasattr(os, "symlink") and sys.platform != "win32":
        (folder / "model.safetensors").symlink_to("../blobs/0123")
        refused("model.safetensors: a link to '../blobs/0123', which is not there", folder)
        (folder / "model.safetensors").unlink()
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    refused("an adapter of PEFT, not a model; .* --lora", folder)


@pytest.mark.skipif(sys.platform == "win32", reason="makes links")
@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "config.json"])
def test_a_link_to_nothing_is_not_passed_over(tmp_path, name):
    """Also where another form of the weights is beside it. Caches and git-annex keep files elsewhere."""
    folder = made(tmp_path / "m")
    checkpoints.write_torch(folder / "pytorch_model.bin", shuffled(checkpoints.hf(GLM4)[0]))
    for file in ("model.safetensors", name):
        (folder / file).unlink(missing_ok=True)
    (folder / name).symlink_to("../.git/annex/objects/x")
    refused(r"a link to '../.git/annex/objects/x', which is not there; `git annex get`", folder)


def test_an_index_may_be_named_in_place_of_its_folder(tmp_path):
    folder = checkpoints.write(tmp_path / "m", GLM4, "hf", shards=3)
    out = convert(folder / "model.safetensors.index.json", tmp_path / "o.gguf", "f32")
    assert np.array_equal(logits(out), expected(tmp_path, GLM4.tensors))


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_a_download_that_has_not_ended_is_told(tmp_path, form):
    folder = checkpoints.write(tmp_path / "m", GLM4, "hf", files=form, shards=2)
    shard = next(folder.glob("*-00002-of-00002.*"))
    data = shard.read_bytes()
    (folder / f"{shard.name}.aria2").write_bytes(b"")
    refused(f"{shard.name}.aria2' is beside it: the download has not ended", folder)  # of the right length, with holes
    shard.write_bytes(data[:-1000])
    refused(f"{shard.name}.aria2' is beside it: the download has not ended", folder)
    shard.unlink()
    refused(f"the shard is missing .'{shard.name}.aria2' is beside it", folder)


def test_a_byte_order_mark_is_no_part_of_a_config(tmp_path):
    """As editors of Windows leave it."""
    folder = made(tmp_path / "m")
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + (folder / "config.json").read_bytes())
    assert converted(folder).exists()


# ---- adapters


def adapter(folder, tensors, name="adapter_model.safetensors", **config):
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": []} | config
    (folder / "adapter_config.json").write_text(json.dumps(config))
    write = checkpoints.write_torch if name.endswith(".bin") else checkpoints.write_safetensors
    write(folder / name, tensors)
    return folder


def low_rank(module, n, k, kind="lora_"):
    random = np.random.RandomState(0)
    a, b = random.randn(4, k).astype("f"), random.randn(n, 4).astype("f")
    if kind == "lora_embedding_":  # PEFT has an embedding's matrices without ".weight", the other way round
        return {
            f"base_model.model.{module}.{kind}A": b.T.copy(),
            f"base_model.model.{module}.{kind}B": a.T.copy(),
        }, b @ a
    return {f"base_model.model.{module}.{kind}{x}.weight": m for x, m in (("A", a), ("B", b))}, b @ a


def test_of_an_adapter_s_folder_only_the_adapter_counts(tmp_path):
    tensors, delta = low_rank("model.layers.0.self_attn.q_proj", 128, 64)
    lora = adapter(tmp_path / "lora", tensors, "adapter_model.bin")
    for name in ("training_args.bin", "optimizer.pt", "pytorch_model.bin"):
        (lora / name).write_bytes(b"PK\3\4 something else")
    changed = GLM4.tensors | {"blk.0.attn_q.weight": GLM4.tensors["blk.0.attn_q.weight"] + np.float32(2) * delta}
    got = logits(converted(made(tmp_path / "m"), lora=lora))
    assert np.abs(got - expected(tmp_path, changed)).max() < 1e-4
    empty = adapter(tmp_path / "empty", tensors, "model.safetensors")
    refused("no adapter_model.safetensors or adapter_model.bin", tmp_path / "m", lora=empty)


@pytest.mark.parametrize("copy", [False, True], ids=["tied", "with a copy"])
@pytest.mark.parametrize("module", [HEAD, TABLE])
def test_an_adapter_of_one_of_two_tied_matrices(tmp_path, module, copy):
    """PEFT adapts the one and leaves the other as it was."""
    folder = made(tmp_path / "m", EDGE)
    table = EDGE.tensors["token_embd.weight"]
    if copy:
        named = checkpoints.hf(EDGE)[0]
        checkpoints.write_safetensors(folder / "model.safetensors", named | {"lm_head.weight": table})
    tensors, delta = low_rank(module, *table.shape, "lora_" if module == HEAD else "lora_embedding_")
    changed = table + np.float32(2) * delta
    want = {"token_embd.weight": table, "output.weight": changed}
    if module == TABLE:
        want = {"token_embd.weight": changed, "output.weight": table}
    got = logits(converted(folder, lora=adapter(tmp_path / "lora", tensors)))
    assert np.abs(got - expected(tmp_path, EDGE.tensors | want, EDGE)).max() < 1e-3
    assert np.abs(got - expected(tmp_path, EDGE.tensors, EDGE)).max() > 1e-2


@pytest.mark.parametrize("module", [HEAD, TABLE])
def test_a_trained_copy_of_one_of_two_tied_matrices(tmp_path, module):
    """`modules_to_save`."""
    table = EDGE.tensors["token_embd.weight"]
    saved = {f"base_model.model.{module}.weight": table[::-1].copy()}
    want = {"token_embd.weight": table, "output.weight": table[::-1]}
    if module == TABLE:
        want = {"token_embd.weight": table[::-1], "output.weight": table}
    got = logits(converted(made(tmp_path / "m", EDGE), lora=adapter(tmp_path / "lora", saved)))
    assert np.array_equal(got, expected(tmp_path, EDGE.tensors | want, EDGE))


def test_ensure_weight_tying(tmp_path):
    """An adapter of both."""
    tensors, delta = low_rank(TABLE, 384, 64, "lora_embedding_")
    folder = made(tmp_path / "m", EDGE)
    got = converted(folder, lora=adapter(tmp_path / "lora", tensors, ensure_weight_tying=True))
    both = EDGE.tensors["token_embd.weight"] + np.float32(2) * delta
    want = expected(tmp_path, EDGE.tensors | {"token_embd.weight": both, "output.weight": both}, EDGE)
    assert np.abs(logits(got) - want).max() < 1e-3


def test_a_base_layer_in_an_adapter_is_both_of_two_tied_matrices(tmp_path):
    """`save_embedding_layers`: the embeddings as they were, or as they were resized, beside their adapter."""
    tensors, delta = low_rank(TABLE, 384, 64, "lora_embedding_")
    base = EDGE.tensors["token_embd.weight"][::-1].copy()
    tensors[f"base_model.model.{TABLE}.base_layer.weight"] = base
    got = logits(converted(made(tmp_path / "m", EDGE), lora=adapter(tmp_path / "lora", tensors)))
    want = {"token_embd.weight": base + np.float32(2) * delta, "output.weight": base}
    assert np.abs(got - expected(tmp_path, EDGE.tensors | want, EDGE)).max() < 1e-3


def test_an_adapter_of_what_gives_glms_logits_is_refused(tmp_path):
    """GLM has no matrix of its own for the logits, and PEFT adapts the embeddings' lookup alone."""
    glm = tiny.model("glm", head_dim=16, ffn=256)
    tensors, _ = low_rank("word_embeddings", 384, 64, "lora_embedding_")
    folder = checkpoints.write(tmp_path / "m", glm, "glm")
    refused(
        "'word_embeddings.weight': an adapter of the embeddings alone", folder, lora=adapter(tmp_path / "l", tensors)
    )


def test_fan_in_fan_out_says_nothing_of_linear_layers(tmp_path):
    """PEFT takes it back, with a warning, for what is no Conv1D. Of a square matrix the shapes would not tell."""
    tensors, delta = low_rank("model.layers.0.self_attn.o_proj", 64, 128)
    lora = adapter(tmp_path / "lora", tensors, fan_in_fan_out=True)
    changed = {"blk.0.attn_output.weight": GLM4.tensors["blk.0.attn_output.weight"] + np.float32(2) * delta}
    got = logits(converted(made(tmp_path / "m"), lora=lora))
    assert np.abs(got - expected(tmp_path, GLM4.tensors | changed)).max() < 1e-3


def test_half_an_adapter_is_refused(tmp_path):
    tensors, _ = low_rank("model.layers.0.self_attn.q_proj", 128, 64)
    for i, missing in enumerate("AB"):
        rest = {name: x for name, x in tensors.items() if f"lora_{missing}" not in name}
        refused(f"lora_{missing}.weight' beside it", made(tmp_path / "m"), lora=adapter(tmp_path / f"{i}", rest))


def test_an_adapter_without_tensors_is_refused(tmp_path):
    """As trainings write it whose weights were elsewhere when it was saved: it would be the plain model."""
    lora = adapter(tmp_path / "lora", {})
    refused(r"lora: the adapter has no tensors", made(tmp_path / "m"), lora=lora)


def test_what_is_wrong_in_an_adapter_is_not_said_of_the_model(tmp_path):
    tensors, _ = low_rank("model.layers.0.self_attn.q_proj", 128, 64)
    tensors = {name: np.full_like(x, np.nan) if "lora_A" in name else x for name, x in tensors.items()}
    lora = adapter(tmp_path / "lora", tensors)
    refused("lora_A.weight': NaN or infinite values", made(tmp_path / "m"), lora=lora)


def test_only_the_head_of_two_tied_matrices_is_there(tmp_path):
    folder = made(tmp_path / "m", EDGE)
    named = checkpoints.hf(EDGE)[0]
    named["lm_head.weight"] = named.pop("model.embed_tokens.weight")
    checkpoints.write_safetensors(folder / "model.safetensors", named)
    assert np.array_equal(logits(converted(folder)), expected(tmp_path, EDGE.tensors, EDGE))


def test_two_matrices_that_differ_are_not_tied(tmp_path, caplog):
    """As in transformers, whatever the config says."""
    folder = made(tmp_path / "m", EDGE)
    head = EDGE.tensors["token_embd.weight"][::-1].copy()
    checkpoints.write_safetensors(folder / "model.safetensors", checkpoints.hf(EDGE)[0] | {"lm_head.weight": head})
    want = expected(tmp_path, EDGE.tensors | {"output.weight": head}, EDGE)
    assert np.array_equal(logits(converted(folder)), want)
    assert "the two matrices differ" in caplog.text


# ---- tokens


def test_tokens_that_a_fine_tune_added_to_chatglm3(tmp_path, sentencepiece_model):
    """The pieces' number decides where ChatGLM3's own stand; a made-up vocabulary has them at their published ids."""
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|note|>": 64798, "<|end_note|>": 64799}))
    listed = {"64790": {"content": "[gMASK]"}, "64792": {"content": "sop"}, "64800": {"content": "<|third|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": listed}))
    tokenizer = Tokenizer.from_metadata(from_folder(tmp_path, vocab_size=65024))
    names = ["<|note|>", "<|end_note|>", "<|third|>", *CHATGLM3_SPECIALS]
    assert [tokenizer.id_of(name) for name in names] == [64798, 64799, 64800, *CHATGLM3_SPECIALS.values()]
    assert tokenizer.encode("<|note|><|third|>") == [64798, 64800]
    for text, i in (("<|other|>", 64795), ("<|other|>", 5)):
        (tmp_path / "added_tokens.json").write_text(json.dumps({text: i}))
        with pytest.raises(glmlite.FormatError, match=rf"'<\|other\|>' has the id {i}, which is"):
            from_folder(tmp_path, vocab_size=65024)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|other|>": 70000}))
    with pytest.raises(glmlite.FormatError, match="has 70001 tokens, the model only 65024 rows"):
        from_folder(tmp_path, vocab_size=65024)


def test_words_that_a_fine_tune_added_are_found_in_text(tmp_path, sentencepiece_model):
    """Unlike control tokens, which a text only spells. What is special is listed, or looks like it."""
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"glmword": 64798, "mark": 64799, "<|n|>": 64800}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["mark"]}))
    metadata = from_folder(tmp_path, vocab_size=65024)
    assert metadata["tokenizer.ggml.token_type"][64798:64801].tolist() == [4, 3, 3]
    assert 64798 in Tokenizer.from_metadata(metadata).encode("a glmword")


def test_tokens_beside_a_tokenizer_json(tmp_path):
    folder = made(tmp_path / "m")
    free = max(token["id"] for token in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]) + 1
    (folder / "added_tokens.json").write_text(json.dumps({"<|note|>": free}))
    assert Tokenizer.from_metadata(from_folder(folder, vocab_size=384)).id_of("<|note|>") == free
    (folder / "added_tokens.json").write_text(json.dumps({"<|user|>": free}))
    refused(rf"'<\|user\|>' has the id \d+, and {free} in the files beside it", folder)
    (folder / "added_tokens.json").write_text(json.dumps({"<|note|>": 5}))
    refused(r"the added token '<\|note\|>' has the id 5, which is", folder)


@pytest.fixture(scope="module")
def sentencepiece_model():
    import io

    import sentencepiece

    out = io.BytesIO()
    words = ["the other hell in there", "你好世界", "a b c d e f g h i j k l m n o p q r s t u v w x y z"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_writer=out, vocab_size=60, model_type="bpe", minloglevel=2
    )
    return out.getvalue()


@pytest.mark.parametrize("none", [-1, None, [-1]])
@pytest.mark.parametrize("key", ["pad_token_id", "bos_token_id"])
def test_an_id_that_says_none(tmp_path, key, none):
    with glmlite.load(converted(made(tmp_path / "m", **{key: none})), context=64) as model:
        assert model.tokenizer.pad_id is None
        assert model.generate("the", max_tokens=1).tokens is not None
    refused(f"'{key}' has 384, expected ids below 384", made(tmp_path / "n", **{key: 384}))


@pytest.mark.parametrize(
    "change, match",
    [
        ({"normalizer": {"type": "NFC"}}, "the normalizer 'NFC'"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}}, "the normalizer 'Lowercase'"),
        ({"model": {"dropout": 0.1}}, "'dropout' is 0.1"),
        ({"model": {"end_of_word_suffix": "</w>"}}, "'end_of_word_suffix' is '</w>'"),
        ({"model": {"continuing_subword_prefix": "##"}}, "'continuing_subword_prefix' is '##'"),
        ({"decoder": {"type": "Metaspace"}}, "the decoder Metaspace"),
        ({"added_tokens": {"lstrip": True}}, "has lstrip"),
        ({"added_tokens": {"single_word": True}}, "has single_word"),
        (
            {"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {}}, {"SpecialToken": {}}]}},
            "behind a text",
        ),
        (
            {
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {"id": "<x>"}}, {"Sequence": {}}],
                }
            },
            r"puts \['<x>'\] before a text",
        ),
        ({"post_processor": {"type": "BertProcessing"}}, "the post_processor 'BertProcessing'"),
    ],
)
def test_a_step_that_changes_ids_is_refused_by_name(tmp_path, change, match):
    path = made(tmp_path / "m") / "tokenizer.json"
    data = json.loads(path.read_text())
    for key, value in change.items():
        if key == "model":
            data["model"] |= value
        elif key == "added_tokens":
            data["added_tokens"][0] |= value
        else:
            data[key] = value
    path.write_text(json.dumps(data))
    with pytest.raises(glmlite.FormatError, match=match):
        from_tokenizer_json(path)


def test_steps_that_change_nothing_are_taken(tmp_path):
    path = made(tmp_path / "m") / "tokenizer.json"
    data = json.loads(path.read_text())
    plain = from_tokenizer_json(path)
    data["normalizer"] = {"type": "Sequence", "normalizers": []}
    data["model"] |= {"dropout": None, "fuse_unk": True, "unk_token": None, "end_of_word_suffix": ""}
    data["decoder"] = {"type": "ByteLevel"}
    single = [{"SpecialToken": {"id": "[gMASK]"}}, {"SpecialToken": {"id": "<sop>"}}, {"Sequence": {"id": "A"}}]
    data["post_processor"] = {"type": "TemplateProcessing", "single": single}
    path.write_text(json.dumps(data))
    assert from_tokenizer_json(path)["tokenizer.ggml.tokens"] == plain["tokenizer.ggml.tokens"]


# ---- what tokenizer_config.json says of a text's ends


@pytest.mark.parametrize("told, ids", [({}, ["▁a", "▁b"]), ({"add_prefix_space": False}, ["a", "▁b"])])
def test_the_config_says_whether_a_text_begins_with_a_space(tmp_path, sentencepiece_model, told, ids):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False, **told}))
    metadata = text_metadata(tmp_path, Config({}, tmp_path / "config.json"), "llama", 60)
    tokenizer = Tokenizer.from_metadata(metadata)
    assert [metadata["tokenizer.ggml.tokens"][i] for i in tokenizer.encode("a b")] == ids


def test_a_space_before_a_text_of_bytes_is_refused(tmp_path):
    folder = made(tmp_path / "m", tiny.model("llama"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_prefix_space": False}))
    converted(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_prefix_space": True}))
    refused("tokenizer_config.json: add_prefix_space is true", folder)


def test_an_end_token_behind_a_prompt_is_left_out_with_a_word(tmp_path, caplog):
    folder = made(tmp_path / "m", tiny.model("llama"))
    plain = converted(folder).read_bytes()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_eos_token": True}))
    assert converted(folder).read_bytes() == plain
    assert "tokenizer_config.json: 'add_eos_token' is for training, left out" in caplog.text


# ---- what generation_config.json recommends


def sampling(tmp_path, **hints):
    folder = made(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps(hints))
    with glmlite.load(converted(folder), context=64) as model:
        prefix = "general.sampling."
        return {k.removeprefix(prefix): v for k, v in model.metadata.items() if k.startswith(prefix)}


def test_every_hint_that_has_a_place_is_kept(tmp_path):
    hints = {"temperature": 0.5, "top_k": 40, "top_p": 0.25, "min_p": 0.125, "repetition_penalty": 1.25}
    want = {"temp": 0.5, "top_k": 40, "top_p": 0.25, "min_p": 0.125, "penalty_repeat": 1.25}
    got = sampling(tmp_path, do_sample=True, **hints)
    assert got == want
    assert isinstance(got["top_k"], int)


def test_a_temperature_of_0_takes_the_likeliest_token(tmp_path):
    assert sampling(tmp_path, temperature=0) == {"temp": 0.0}


@pytest.mark.parametrize("data", [b"{", b"", LFS, b"[]"])
def test_recommendations_that_cannot_be_read_stop_no_conversion(tmp_path, caplog, data):
    folder = made(tmp_path / "m")
    (folder / "generation_config.json").write_bytes(data)
    assert converted(folder).exists() and "generation_config.json" in caplog.text


def test_without_sampling_the_likeliest_token_is_taken(tmp_path):
    assert sampling(tmp_path, do_sample=False, temperature=0.7, top_p=0.5) == {"temp": 0.0}


@pytest.mark.parametrize(
    "hint, value",
    [
        ("top_k", -1),
        ("top_k", 0),
        ("top_p", 0),
        ("min_p", -1),
        ("temperature", None),
    ],
)
def test_a_hint_that_is_switched_off_is_left_out(tmp_path, caplog, hint, value):
    assert sampling(tmp_path, do_sample=True, **{hint: value}) == {}
    assert not caplog.records


@pytest.mark.parametrize(
    "hint, value",
    [
        ("top_k", -2),
        ("top_k", 1.5),
        ("top_k", "many"),
        ("top_k", True),
        ("top_p", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 1.5),
        ("top_p", [0.5]),
        ("temperature", -1),
        ("temperature", 1e39),
        ("repetition_penalty", 0),
        ("min_p", 7),
        ("typical_p", 0.5),
        ("no_repeat_ngram_size", 3),
        ("bad_words_ids", [[5]]),
        ("num_beams", 4),
    ],
)
def test_a_hint_that_cannot_be_used_is_left_out_with_a_word(tmp_path, caplog, hint, value):
    assert sampling(tmp_path, do_sample=True, **{hint: value}) == {}
    assert f"'{hint}' is {value!r}" in caplog.text


# ---- templates


def test_named_templates(tmp_path):
    folder = made(tmp_path / "m")
    plain = tiny.TEMPLATES["glm4"]
    (folder / "chat_template.jinja").write_text(plain)
    (folder / "additional_chat_templates").mkdir()
    tools = plain.replace("<sop>", "<sop>TOOLS {{ tools[0].function.name }}", 1)
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(tools)
    (folder / "additional_chat_templates" / "rag.jinja").write_text(plain + "R")
    with glmlite.load(converted(folder), context=128) as model:
        assert model.metadata["tokenizer.chat_templates"] == ["rag", "tool_use"]
        assert model.metadata["tokenizer.chat_template.rag"] == plain + "R"
        messages = [{"role": "user", "content": "hi"}]
        with_tools = model.chat_ids(messages, tools=[{"name": "weather", "parameters": {}}])
        assert "TOOLS weather" in model.detokenize(with_tools)
        assert "TOOLS" not in model.detokenize(model.chat_ids(messages))


def test_named_templates_of_the_config(tmp_path):
    """A list, as it was published, or an object; names as GGUF spells them."""
    folder = made(tmp_path / "m")
    named = {"default": tiny.TEMPLATES["glm4"], "tool_use": tiny.TEMPLATES["glm4"] + "T", "a b": "{{ 1 }}"}
    for value in (named, [{"name": name, "template": text} for name, text in named.items()]):
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
        with glmlite.load(converted(folder), context=64) as model:
            assert model.metadata["tokenizer.chat_templates"] == ["a_b", "tool_use"]
            assert model.metadata["tokenizer.chat_template.tool_use"] == named["tool_use"]
            assert model.metadata["tokenizer.chat_template"] == named["default"]


def test_a_template_in_a_json_of_its_own(tmp_path):
    folder = made(tmp_path / "m")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": tiny.TEMPLATES["glm4"] + "X"}))
    with glmlite.load(converted(folder), context=64) as model:
        assert model.metadata["tokenizer.chat_template"].endswith("X")


# ---- the context


@pytest.mark.parametrize(
    "rope, want",
    [
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 2.5}, 160),
        ({"type": "linear", "factor": 2.0}, 128),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}, 64),
        ({"type": "dynamic", "factor": 4.0}, 64),
        ({"type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 32}, 32),
    ],
)
def test_a_scaled_context_is_as_long_as_the_scaling_makes_it(tmp_path, rope, want):
    """max_position_embeddings may be left as it was published."""
    short = tiny.model("glm4", fused=False, bias=True, context=64)
    with glmlite.load(converted(made(tmp_path / "m", short, rope_scaling=rope))) as model:
        assert model.context == want


@pytest.mark.parametrize(
    "rope, match",
    [
        ({"type": "longrope", "factor": 4.0}, "'rope_scaling' is 'longrope'"),
        ({"type": "yarn", "factor": 4.0, "truncate": False}, "'truncate' is False"),
        ({"full_attention": {"type": "yarn", "factor": 4.0}}, "one for all layers, not 'full_attention'"),
        ({"type": "yarn"}, "no 'factor'"),
    ],
)
def test_a_scaling_that_is_not_known_is_refused(tmp_path, rope, match):
    refused(match, made(tmp_path / "m", rope_scaling=rope))


@pytest.mark.parametrize(
    "rope, factor, magnitude",
    [
        ({"factor": 4.0, "mscale": 0.5, "mscale_all_dim": 1.0}, 4, (0.05 * np.log(4) + 1) / (0.1 * np.log(4) + 1)),
        ({"factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0}, 4, 1.0),
        ({"factor": 4.0, "mscale": 0.5}, 4, 0.1 * np.log(4) + 1),
        ({"factor": 4.0, "attention_factor": 2.0, "mscale": 0.5, "mscale_all_dim": 1.0}, 4, 2.0),
        ({"original_max_position_embeddings": 16}, 4, 0.1 * np.log(4) + 1),
    ],
)
def test_the_magnitude_of_yarn(tmp_path, rope, factor, magnitude):
    """As transformers computes it; without a factor it is the ratio of the two lengths."""
    short = tiny.model("glm4", fused=False, bias=True, context=64)
    with glmlite.load(converted(made(tmp_path / "m", short, rope_scaling={"type": "yarn", **rope}))) as model:
        scaling = {k.removeprefix("glm4.rope.scaling."): v for k, v in model.metadata.items()}
    assert scaling["factor"] == factor
    assert scaling.get("attn_factor", 1.0) * (0.1 * np.log(factor) + 1) == pytest.approx(magnitude, rel=1e-6)


def test_a_scaling_beside_rope_parameters(tmp_path):
    """Added by hand to a config of transformers 5, whose parameters say `default`."""
    short = tiny.model("glm4", fused=False, bias=True, context=64)
    plain = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
    folder = made(tmp_path / "m", short, rope_parameters=plain, rope_scaling={"type": "yarn", "factor": 2.0})
    with glmlite.load(converted(folder)) as model:
        assert model.metadata["glm4.rope.scaling.type"] == "yarn" and model.context == 128
        assert model.metadata["glm4.rope.freq_base"] == 5000.0


# ---- files that are something else


OTHERS = {
    "Git LFS pointer": LFS,
    "git-annex pointer": b"/annex/objects/SHA256E-s1934161093--0\n",
    "page of HTML": b"\n<!DOCTYPE html>\n<html><head><title>404</title>",
    "message of a server": b"Entry not found",
    "empty": b"",
    "zeros": bytes(4096),
    "XML": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>',
    "pointer of Xet": b"# xet version 0\nfilesize = 1934161093\n",
    "git-annex link": b"../.git/annex/objects/aa/bb/SHA256E-s1",
    "tar archive": b"model.safetensors".ljust(257, b"\0") + b"ustar\x0000",
    "xz": b"\xfd7zXZ\0\0",
    "gzip": b"\x1f\x8b\x08\0",
    "GGUF": b"GGUF\3\0\0\0",
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "pytorch_model.bin",
        "tokenizer.json",
        "config.json",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
    ],
)
def test_a_file_that_is_something_else_is_told(tmp_path, name, kind):
    folder = checkpoints.write(tmp_path / "m", GLM4, "hf", files="torch" if name.endswith("bin") else "safetensors")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(OTHERS[kind])
    refused(rf"{os.path.basename(name)}: .*{kind}", folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_text_in_place_of_weights_is_shown(tmp_path, name):
    folder = checkpoints.write(tmp_path / "m", GLM4, "hf", files="torch" if name.endswith("bin") else "safetensors")
    (folder / name).write_bytes(b"Repository is gated: ask for access\nfirst")
    refused("a text, 'Repository is gated: ask for access'", folder)


@pytest.mark.parametrize("kind", OTHERS)
def test_a_tokenizer_model_that_is_something_else_is_told(tmp_path, kind):
    (tmp_path / "tokenizer.model").write_bytes(OTHERS[kind])
    with pytest.raises(glmlite.FormatError, match=rf"tokenizer.model: .*{kind}"):
        from_folder(tmp_path, vocab_size=65024)


# ---- foreign quantizations


QUANTIZED = {  # endings of the tensors that stand for a matrix -> what is told without a config
    "qweight qzeros scales g_idx": "GPTQ",
    "qweight qzeros scales": "GPTQ or AWQ",
    "scales biases": "MLX",
    "weight.absmax weight.quant_map weight.quant_state.bitsandbytes__nf4": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_scale_inv": "FP8",
    "weight_scale input_scale": "FP8",
    "weight_packed weight_scale weight_shape": "compressed-tensors",
    "q_weight q_scale q_groups q_invperm": "EXL2 or EXL3",
    "trellis suh svh": "EXL2 or EXL3",
    "W_q meta.scale": "HQQ",
    "weight_scales": "EETQ",
    "weight._data weight._scale": "quanto",
    "codes codebooks scales": "AQLM",
    "weight_blocks weight_scales": "MXFP4",
    "weight_scale": "scales beside the weights",
}


def quantized(folder, endings, **config):
    """A checkpoint of which a matrix has other tensors in its place."""
    made(folder, **config)
    named = {k: v for k, v in checkpoints.hf(GLM4)[0].items() if "q_proj.weight" not in k}
    for i in range(2):
        for ending in endings.split():
            named[f"model.layers.{i}.self_attn.q_proj.{ending}"] = np.ones((1, 128), np.float16)
    checkpoints.write_safetensors(folder / "model.safetensors", named)
    return folder


@pytest.mark.parametrize("endings", QUANTIZED)
def test_a_foreign_quantization_is_named_by_its_tensors(tmp_path, endings):
    refused(rf"is quantized \({QUANTIZED[endings]}.*--type", quantized(tmp_path / "m", endings))


METHODS = [
    "gptq",
    "awq",
    "fp8",
    "compressed-tensors",
    "hqq",
    "eetq",
    "quanto",
    "aqlm",
    "torchao",
    "mxfp4",
    "exl2",
    "new",
]


@pytest.mark.parametrize("method", [*METHODS, "bitsandbytes"])
def test_a_foreign_quantization_is_named_as_its_config_does(tmp_path, method):
    folder = quantized(tmp_path / "m", "qweight", quantization_config={"quant_method": method, "bits": 4})
    refused(rf"is quantized \('{method}', says config.json\)", folder)


@pytest.mark.parametrize("method", METHODS)
def test_a_quantization_that_only_the_config_tells(tmp_path, method):
    folder = made(tmp_path / "m", quantization_config={"quant_method": method})
    refused(rf"config.json: the weights are quantized \('{method}', .* if they are plain, remove", folder)


@pytest.mark.parametrize(
    "file, settings, told",
    [
        ("quantize_config.json", {"bits": 4, "group_size": 128}, "gptq"),
        ("quant_config.json", {"w_bit": 4}, "awq"),
        ("hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4"}}, "NVFP4"),
        ("config.json", {"quantization": {"group_size": 64, "bits": 4}}, "MLX"),
        ("config.json", {"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
        ("config.json", {"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "fp8"),
    ],
)
def test_a_foreign_quantization_that_another_file_names(tmp_path, file, settings, told):
    folder = quantized(tmp_path / "m", "qweight scales")
    path = folder / file
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(values | settings))
    refused(rf"is quantized \('?{told}'?, says {file}\)", folder)


@pytest.mark.parametrize("dtype, size", [("F8_E4M3", 1), ("F8_E5M2", 1), ("U32", 4), ("I8", 1), ("I32", 4)])
def test_weights_that_are_no_floats_are_told(tmp_path, dtype, size):
    folder = made(tmp_path / "m")
    header = {"model.norm.weight": {"dtype": dtype, "shape": [2, 3], "data_offsets": [0, 6 * size]}}
    checkpoints.write_safetensors_raw(folder / "model.safetensors", header, bytes(6 * size))
    refused(rf"'model.norm.weight' is quantized \({dtype}", folder)


def test_plain_weights_whose_config_still_names_a_quantization(tmp_path):
    """As merging a model that was trained in four bits leaves it."""
    folder = made(tmp_path / "m", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert np.array_equal(logits(converted(folder)), expected(tmp_path, GLM4.tensors))


# ---- types


@pytest.mark.parametrize("name", ["Q8_0", "q8_0", "F16", "Bf16"])
def test_types_in_any_case(tmp_path, name):
    assert converted(made(tmp_path / "m")).exists()
    path = convert(tmp_path / "m", tmp_path / "o.gguf", name, tensor_types=[("attn_q", "F32")])
    with glmlite.load(path, context=64) as model:
        assert model.metadata["general.file_type"] == recipes.file_type(name.lower())


@pytest.mark.parametrize("name, near", [("fp16", "f16"), ("q4_k", "q4_k_m or q4_k_s"), ("q8", "q8_0"), ("q40", "q4_0")])
def test_a_type_that_is_not_known_suggests_one(tmp_path, name, near):
    with pytest.raises(ValueError, match=rf"'{name}' is not known \(do you mean {near}"):
        convert(made(tmp_path / "m"), tmp_path / "o.gguf", name)


def test_which_layers_matter():
    """The first and last eighth and every third between them get the better type."""
    types = [recipes.choose(f"blk.{i}.ffn_down.weight", (64, 256), "q4_k_m", 16, False) for i in range(16)]
    better = [i for i, type in enumerate(types) if type == "Q6_K"]
    assert better == [0, 1, 4, 7, 10, 13, 14, 15]
    assert [recipes.file_type(name) for name in ("iq4_xs", "iq4_nl", "q4_k_m", "q4_k_s")] == [30, 25, 15, 14]


# ---- nothing half-written stays


def parts(folder):
    return list(folder.glob(".*.part"))


@pytest.mark.skipif(sys.platform == "win32", reason="nothing ends a process so suddenly")
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    target = tmp_path / "模型.gguf"
    code = """
import sys, time
from glmlite.files import replacing
with replacing(sys.argv[1]):
    print(1, flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", code, str(target)]
    killed, living = (subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2))
    for process in (killed, living):
        process.stdout.read(1)
    (tmp_path / ".other.gguf.1.part").write_bytes(b"")
    killed.kill()
    killed.wait()
    assert len(parts(tmp_path)) == 3
    with files.replacing(target) as file:
        file.write(b"whole")
    assert target.read_bytes() == b"whole"
    assert sorted(p.name for p in parts(tmp_path)) == [".other.gguf.1.part", f".{target.name}.{living.pid}.part"]
    living.kill()
    living.wait()
    for process in (killed, living):
        process.stdout.close()


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    target = tmp_path / "x"
    target.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), files.replacing(target) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert target.read_bytes() == b"old"
    assert not parts(tmp_path)
    with pytest.raises(FileExistsError, match="--force"):
        files.refuse_to_overwrite(target)


def test_a_missing_shard_is_named(tmp_path):
    folder = checkpoints.write(tmp_path / "m", GLM4, "hf", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(glmlite.FormatError, match=r"model-00002-of-00003.safetensors: the shard is missing; it holds"):
        Checkpoint(folder)
