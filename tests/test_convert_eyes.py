"""`glmlite convert` of checkpoints with eyes: tiny random ones of three kinds, against the tensors they were made of
and against transformers' numbers; pairs and single files; hostile folders."""

import json
import os
import re
import shutil
import signal
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import checkpoints
import numpy as np
import pytest
import tiny
from test_convert import command, opened, same, tensors_of  # noqa: F401 (opened: a fixture)
from test_engine import WHOLE, assert_close
from test_tower import STORED, Stored

import glmlite
from glmlite import _native as native
from glmlite import models, reference
from glmlite.cli import inspect, main
from glmlite.convert import convert, plan, unweighted
from glmlite.errors import Cancelled, FormatError
from glmlite.files import replacing_all
from glmlite.models.layout import with_images
from glmlite.placement import native_ops
from glmlite.vision.tower import ReferenceTower, Tower

KINDS = {"glm_ocr": "vision-ocr", "glm4v": "vision-4.1v", "glm4v_moe": "vision-4.5v"}
# What the converter writes beside the keys that the tiny eyes have.
PREPARED = {"spatial_merge_size": 2, "image_min_pixels": 6272, "image_max_pixels": 4_816_896}
VOCAB = 384
DATA = Path(__file__).parent / "data"
LIBMTMD = 2e-3


def with_tokens(text):
    """The model with so many rows that a vocabulary fits it; the first ones are its own, and so are their logits."""
    tensors = {
        name: np.concatenate([x, tiny.tensor(f"more {name}", (VOCAB - len(x), x.shape[1]))])
        if name in ("token_embd.weight", "output.weight")
        else x
        for name, x in text.tensors.items()
    }
    return tiny.Tiny(text.metadata | tiny.tokenizer(text.metadata["general.architecture"], VOCAB), tensors)


def pair(folder, kind, **options):
    """(text model, eyes, their checkpoint's folder), of what transformers was asked."""
    stored = Stored(KINDS[kind])
    text = with_tokens(stored.text)
    return text, stored.eyes, checkpoints.write_vision(folder, text, stored.eyes, kind, **options)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


# ---- what is written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", ["safetensors", "torch"])
def test_f32_is_exact(tmp_path, opened, kind, files):  # noqa: F811
    text, eyes, folder = pair(tmp_path / "copy", kind, files=files)
    path = convert(folder, tmp_path / "out.gguf", "f32", mmproj_type="f32")
    for model, file in ((text, path), (eyes, tmp_path / "mmproj-out-f32.gguf")):
        gguf = opened(file)
        got = tensors_of(gguf)
        assert set(got) == set(model.tensors)
        for name, x in model.tensors.items():
            assert np.array_equal(got[name], x), name
        keys = dict(model.metadata)
        if model is eyes:
            keys |= {f"clip.vision.{key}": value for key, value in PREPARED.items()}
            assert gguf.metadata["general.name"] == "copy" and gguf.metadata["general.file_type"] == 0
            keys = {key: np.float32(value) if isinstance(value, list) else value for key, value in keys.items()}
        for key, value in keys.items():
            if not key.startswith(("tokenizer.", "general.name")):
                assert same(gguf.metadata[key], value), key
        assert not model.metadata.keys() - gguf.metadata.keys() - {"tokenizer.ggml.eos_token_id"}


def test_half_precision_and_shards(tmp_path, opened):  # noqa: F811
    text, eyes, folder = pair(tmp_path / "copy", "glm_ocr", dtype="BF16", shards=3)
    convert(folder, tmp_path / "out.gguf", "f32", mmproj_type="f32")
    for model, name in ((text, "out.gguf"), (eyes, "mmproj-out-f32.gguf")):
        got = tensors_of(opened(tmp_path / name))
        for name, x in model.tensors.items():
            assert np.array_equal(got[name], checkpoints.rounded(x, "BF16")), name


# ---- what it means -----------------------------------------------------------------------------------------------


def test_rows_and_logits_are_transformers(tmp_path, opened, kind):  # noqa: F811
    stored = Stored(KINDS[kind])
    _, _, folder = pair(tmp_path / "copy", kind)
    gguf = opened(convert(folder, tmp_path / "out.gguf", "f32", mmproj_type="f32"))
    with closing(Tower.open(tmp_path / "mmproj-out-f32.gguf")) as tower:
        rows = np.concatenate([tower.rows(*image) for image in stored.images])
    numpy_rows = [ReferenceTower(opened(tmp_path / "mmproj-out-f32.gguf")).rows(*image) for image in stored.images]
    assert_close(rows, stored.rows, WHOLE["F32"])
    assert_close(np.concatenate(numpy_rows), stored.rows, STORED)
    recording = models.record(gguf.metadata, {name: t.shape for name, t in gguf.tensors.items()})
    assert recording.images
    executor = reference.Reference(recording.ops, tensors_of(gguf))
    work = reference.Work(executor.new_sequence(), stored.ids, stored.positions, embeddings=stored.rows)
    logits = executor.step([work], range(len(stored.ids)))[:, : stored.logits.shape[1]]
    assert_close(logits, stored.logits, STORED)


def picture(width, height, seed):
    """Random pixels, (height, width, 3)."""
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


def test_rows_and_logits_are_libmtmds(tmp_path, opened, kind):  # noqa: F811
    """llama.cpp read this pair (tests/oracles/llamacpp_vision.py); inside, its kernels and their inputs are f16."""
    pytest.importorskip("PIL.Image", reason="needs glmlite[vision]")
    from glmlite.vision.images import open_image
    from glmlite.vision.preprocess import preprocess

    _, _, folder = pair(tmp_path / "copy", kind)
    gguf = opened(convert(folder, tmp_path / "text.gguf", "f32", mmproj_type="f32"))
    with np.load(DATA / f"libmtmd-{kind}.npz") as file:
        sizes, ids, want, logits, after = (file[name] for name in ("sizes", "ids", "rows", "logits", "after"))
    with closing(Tower.open(tmp_path / "mmproj-text-f32.gguf")) as tower:
        images = [preprocess(open_image(picture(*size, i)), tower.config) for i, size in enumerate(sizes)]
        rows = np.concatenate([tower.rows(image.patches, image.grid) for image in images])
    assert_close(rows, want, LIBMTMD)
    layout = with_images(ids, [(image.grid[0] // 2, image.grid[1] // 2) for image in images])
    recording = models.record(gguf.metadata, {name: t.shape for name, t in gguf.tensors.items()})
    engine = native.Engine(gguf, native_ops(recording.ops, gguf.dequantize), threads=2, kv_tokens=256)
    work = native.Work(engine.new_sequence(), ids, layout.positions, embeddings=rows)
    got = engine.step([work], [len(ids) - 1])
    engine.close()
    assert_close(got[0], logits, LIBMTMD)
    assert got.argmax() == logits.argmax() and layout.next_position == (after,) * 3


@pytest.mark.parametrize("tied", [False, True])
def test_the_drafting_layer_of_glm_ocr_is_kept(tmp_path, opened, tied):  # noqa: F811
    sections = {"glm4.rope.dimension_sections": [4, 6, 6, 0]}
    sizes = {"layers": 2, "rope_dim": 32, "fused": False, "drafting": True, "tied": tied, "metadata": sections}
    text = tiny.model("glm4", **sizes)
    folder = checkpoints.write_vision(tmp_path / "ocr", text, tiny.eyes(heads=4), "glm_ocr")
    gguf = opened(convert(folder, tmp_path / "out.gguf", "f32"))
    got = tensors_of(gguf)
    assert set(got) == set(text.tensors) and got["blk.2.nextn.eh_proj.weight"].shape == (64, 128)
    assert all(np.array_equal(got[name], x) for name, x in text.tensors.items())
    assert gguf.metadata["glm4.block_count"] == 3 and gguf.metadata["glm4.nextn_predict_layers"] == 1
    with glmlite.load(tmp_path / "out.gguf", context=64, threads=1) as model:
        assert np.isfinite(model.logits([1, 2, 3])).all()


def test_other_spellings_of_names_and_configs(tmp_path, kind):
    """`visual` at the top, `language_model.model`, processors in one file: the same bytes."""
    _, _, folder = pair(tmp_path / "copy", kind)
    first = [path.read_bytes() for path in written(folder, tmp_path / "a")]
    named = safetensors(folder)
    renamed = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "language_model.model."): x
        for name, x in named.items()
    }
    renamed = {name.replace("lm_head", "language_model.lm_head"): x for name, x in renamed.items()}
    checkpoints.write_weights(folder, renamed)
    prepared = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": prepared}))
    assert [path.read_bytes() for path in written(folder, tmp_path / "b")] == first


def safetensors(folder):
    from glmlite.convert.checkpoint import Checkpoint

    with Checkpoint(folder) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.names}


def written(folder, into, type="f16", **options):
    """The files of a conversion, alone in a folder."""
    into.mkdir()
    convert(folder, into / "out.gguf", type, **options)
    return sorted(into.iterdir())


# ---- types, one file or two --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mmproj_type, matrices, kernels",
    [("f32", "F32", "F32"), ("f16", "F16", "F16"), ("bf16", "BF16", "F32"), ("q8_0", "Q8_0", "F16")],
)
def test_types_of_the_eyes(tmp_path, opened, mmproj_type, matrices, kernels):  # noqa: F811
    _, eyes, folder = pair(tmp_path / "copy", "glm4v")
    gguf = opened(written(folder, tmp_path / "out", "q4_0", mmproj_type=mmproj_type.upper())[0])
    assert gguf.paths[0].endswith(f"mmproj-out-{mmproj_type}.gguf")
    for name, x in eyes.tensors.items():
        want = {1: "F32", 2: matrices, 4: kernels}[x.ndim] if name != "v.position_embd.weight" else "F32"
        assert gguf.tensors[name].type == want, name
    with closing(Tower.open(gguf.paths[0])) as tower:
        rows = tower.rows(*Stored("vision-4.1v").images[0])
    want = Stored("vision-4.1v").rows[: len(rows)]
    assert np.abs(rows - want).max() < {"Q8_0": 5e-2}.get(matrices, 1e-2) * np.abs(want).max()


def test_a_pair_one_file_and_a_pair_again(tmp_path, opened):  # noqa: F811
    """A GGUF file is a source, too: of one file a pair is made, of an mmproj another, each as of the checkpoint."""
    _, _, folder = pair(tmp_path / "copy", "glm4v")
    text, mmproj = tmp_path / "copy.gguf", tmp_path / "mmproj-copy-f16.gguf"
    convert(folder, text, "f16")
    whole = convert(folder, tmp_path / "whole.gguf", "f16", one_file=True)
    assert sorted(path.name for path in tmp_path.glob("mmproj*")) == [mmproj.name]
    gguf = opened(whole)
    models.record(gguf.metadata, {name: t.shape for name, t in gguf.tensors.items()})
    assert gguf.metadata["general.architecture"] == "glm4" and "general.type" not in gguf.metadata
    with closing(Tower.open(whole)) as one, closing(Tower.open(mmproj)) as two:
        image = Stored("vision-4.1v").images[1]
        np.testing.assert_array_equal(one.rows(*image), two.rows(*image))
    again = written(whole, tmp_path / "again")
    assert [path.read_bytes() for path in again] == [mmproj.read_bytes(), text.read_bytes()]
    assert written(whole, tmp_path / "kept", one_file=True)[0].read_bytes() == whole.read_bytes()
    assert written(mmproj, tmp_path / "alone")[0].read_bytes() == mmproj.read_bytes()
    sections = opened(convert(text, tmp_path / "small.gguf", "q4_0")).metadata["glm4.rope.dimension_sections"]
    assert sections.tolist() == [2, 3, 3, 0] and sections.dtype == np.int32
    q8_0 = written(folder, tmp_path / "eyes", mmproj_type="q8_0")[0].read_bytes()
    f32 = written(folder, tmp_path / "f32", mmproj_type="f32")[0]
    assert written(f32, tmp_path / "q8_0", "q8_0")[0].read_bytes() == q8_0


def test_eyes_have_few_types(tmp_path):
    _, _, folder = pair(tmp_path / "copy", "glm_ocr")
    mmproj = written(folder, tmp_path / "out")[0]
    for source, options in ((folder, {"mmproj_type": "q4_k_m"}), (mmproj, {"type": "q4_k_m"})):
        with pytest.raises(ValueError, match="type of the eyes: 'q4_k_m' is not known; known: f32, f16, bf16, q8_0"):
            plan(source, **options)


def test_a_tensor_type_for_eyes_names_them(tmp_path):
    _, _, folder = pair(tmp_path / "copy", "glm_ocr")
    overrides = [("ffn_down", "f32"), ("v.*attn_out.weight", "q8_0"), ("mm.down", "bf16")]
    with closing(plan(folder, "f16", tensor_types=overrides)) as work:
        types = {tensor.name: type for tensor, type in (*work.tensors, *work.eyes.tensors)}
        roles = {role for role, *_ in work.eyes.roles()}
    assert types["blk.0.ffn_down.weight"] == "F32" and types["v.blk.0.ffn_down.weight"] == "F16"
    assert types["v.blk.0.attn_out.weight"] == "Q8_0" and types["mm.down.weight"] == "BF16"
    assert {"v.attn_out", "mm.down", "mm.patch_merger", "v.patch_embd", "v.patch_embd.weight.1"} < roles
    mmproj = written(folder, tmp_path / "out")[0]
    with closing(plan(mmproj, "f16", tensor_types=overrides)) as work:
        assert {tensor.name: type for tensor, type in work.tensors}["v.blk.0.ffn_down.weight"] == "F32"


def test_an_importance_matrix_knows_no_eyes(tmp_path):
    _, _, folder = pair(tmp_path / "copy", "glm_ocr")
    with closing(plan(folder, "q8_0", mmproj_type="q8_0", one_file=True)) as work:
        text = {t.name: np.ones(t.shape[-1]) for t, kind in work.tensors if kind == "Q8_0" and t.name[:2] != "v."}
        assert unweighted(work, {name: x for name, x in text.items() if name[:3] != "mm."}) == []


def test_a_model_without_eyes_is_one_file_whatever_is_asked(tmp_path):
    model = tiny.model("chatglm")
    folder = checkpoints.write(tmp_path / "copy", model, "chatglm")
    plain, asked = (written(folder, tmp_path / str(i), **o) for i, o in enumerate(({}, {"one_file": True})))
    assert len(plain) == 1 and plain[0].read_bytes() == asked[0].read_bytes()


# ---- what `inspect` tells ---------------------------------------------------------------------------------------


def test_inspect_of_each_file(tmp_path, opened, kind):  # noqa: F811
    _, _, folder = pair(tmp_path / "copy", kind)
    mmproj, _ = written(folder, tmp_path / "pair")
    (whole,) = written(folder, tmp_path / "whole", one_file=True)
    for path in (mmproj, whole):
        facts = json.loads(json.dumps(inspect.describe(opened(path), 128, False)))
        sees = facts["sees"]
        assert (sees["width"], sees["tokens"], sees["most_pixels"]) == (64, 6144, 4_816_896)
        assert "error" not in facts["memory"] and len(facts["memory"]["contexts"]) == (path == whole)
        text = inspect._text(facts)
        assert re.search(r"tower +\d layers of \d+ columns, \d heads(, positions 24 x 24)?\n", text)
        assert "runs here" not in text and re.search(r"largest image +4.8 million pixels, 6144 tokens\n", text)
    metadata = dict(opened(mmproj).metadata) | {"clip.vision.block_count": 9}
    lying = SimpleNamespace(metadata=metadata, tensors=opened(mmproj).tensors)
    assert "v.blk" in inspect._eyes(lying)["sees"]["error"]


# ---- both files or none ------------------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pair(tmp_path / "ocr", "glm_ocr")
    assert main(["convert", "ocr", "--mmproj-type", "q8_0"]) == 0
    out, err = capsys.readouterr()
    assert out == "ocr-q8_0.gguf\nmmproj-ocr-q8_0.gguf\n"
    rows = [line.split() for line in err.splitlines()]
    assert ["v.attn_qkv", "q8_0", "3", "39.2", "kB"] in rows and ["mm.patch_merger", "f16", "1", "32.8", "kB"] in rows
    assert main(["convert", "ocr", "x.gguf", "--one-file"]) == 0
    assert capsys.readouterr().out == "x.gguf\n"
    (tmp_path / "ocr-q8_0.gguf").unlink()
    assert main(["convert", "ocr", "--mmproj-type", "q8_0"]) == 1
    assert capsys.readouterr().err.startswith("glmlite: mmproj-ocr-q8_0.gguf: it is there already")
    assert not (tmp_path / "ocr-q8_0.gguf").exists()
    assert main(["convert", "ocr", "--mmproj-type", "q8_0", "--force"]) == 0
    capsys.readouterr()
    assert main(["convert", "mmproj-ocr-q8_0.gguf", "-t", "f16"]) == 0
    assert capsys.readouterr().out == "mmproj-ocr-q8_0-f16.gguf\n"


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_progress_counts_both_and_a_cancel_leaves_neither(tmp_path):
    _, _, folder = pair(tmp_path / "copy", "glm_ocr")
    seen = []
    convert(folder, tmp_path / "out.gguf", "f16", progress=lambda done, total: seen.append((done, total)))
    sizes = [path.stat().st_size for path in tmp_path.glob("*.gguf")]
    assert len(sizes) == 2 and {total for _, total in seen} == {sum(sizes)} and seen == sorted(seen)
    for path in tmp_path.glob("*.gguf"):
        path.unlink()
    for moment in (0, len(seen) // 2, len(seen) - 1):
        stop = seen[moment][0]
        with pytest.raises(Cancelled, match="cancelled, nothing is left of it"):
            convert(folder, tmp_path / "out.gguf", "f16", progress=lambda done, total, stop=stop: done < stop)
        assert left(tmp_path) == ["copy"]


@pytest.mark.skipif(os.name != "posix", reason="sends signals to a process")
def test_ctrl_c_in_the_second_file_leaves_neither(tmp_path):
    pair(tmp_path / "mine", "glm_ocr")
    slowly = """if True:
        import time
        from glmlite.convert import working
        encode = working.encode
        working.encode = lambda x, kind, where, *rest: (
            "visual" in where and (print(where, file=sys.stderr, flush=True), time.sleep(60)), encode(x, kind, where)
        )[1]
    """
    process = command(tmp_path, slowly, "mine", "--type", "f16")
    while "visual" not in (line := process.stderr.readline()):
        assert line, "ended too soon"
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGINT
    assert error.splitlines()[-1] == "glmlite: mine-f16.gguf: stopped, nothing is left of it"
    assert left(tmp_path) == ["mine"]


def test_where_the_second_cannot_get_its_name_the_first_has_none(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "file").write_text("")  # a folder is not replaced
    with pytest.raises(OSError), replacing_all([tmp_path / "a", tmp_path / "b"]):
        pass
    assert left(tmp_path) == ["b"]


def test_a_full_disk_is_seen_for_both(tmp_path, monkeypatch):
    _, _, folder = pair(tmp_path / "copy", "glm_ocr")
    total = sum(path.stat().st_size for path in written(folder, tmp_path / "out"))
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(total, 1, total - 1))
    with pytest.raises(OSError, match=f"the disk has {total - 1} bytes free, 2 files need {total}"):
        convert(folder, tmp_path / "out.gguf", "f16")


# ---- what does not fit -------------------------------------------------------------------------------------------

EYES = "model.visual."


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vision_config": None}, "'vision_config' is None, expected an object: the checkpoint has eyes"),
        ({"vision_config": {"hidden_act": "gelu"}}, "'hidden_act' is 'gelu', expected 'silu'"),
        ({"vision_config": {"depth": 2}}, "'model.visual.blocks.2.* models have no such tensor"),
        ({"vision_config": {"depth": 4}}, "no tensor 'model.visual.blocks.3.norm1.weight'"),
        ({"vision_config": {"num_heads": 3}}, "'v.patch_embd.weight' has 64 rows, expected a multiple of 4"),
        ({"vision_config": {"patch_size": 16}}, "'patch_size' is 14, expected 16"),
        (
            {"vision_config": {"hidden_size": 32}},
            r"proj.weight' is \(64, 3, 2, 14, 14\), expected \(32, 3, 2, 14, 14\)",
        ),
        ({"vision_config": {"temporal_patch_size": 1}}, "'temporal_patch_size' is 1, expected 2"),
        ({"vision_config": {"spatial_merge_size": 4}}, "'merge_size' is 2, expected 4"),
        ({"vision_config": {"intermediate_size": 0}}, "'intermediate_size' is 0, expected a positive integer"),
        ({"text_config": {"rope_parameters": {"partial_rotary_factor": 1.0}}}, "no 'mrope_section'"),
        ({"text_config": {"rope_parameters": {"mrope_section": [4, 6]}}}, "pairs of columns for each of three axes"),
        ({"text_config": {"rope_parameters": {"mrope_section": [4, 6, 2**60]}}}, "pairs of columns for each of three"),
        (
            {"text_config": {"rope_parameters": {"mrope_section": [4, 6, 7], "partial_rotary_factor": 1.0}}},
            "'mrope_section' is .4, 6, 7., expected numbers whose sum is 16",
        ),
        ({"text_config": {"hidden_size": 65}}, "'glm4.embedding_length' is 65, expected 64"),
        ({"text_config": [1]}, "no 'num_hidden_layers'|no 'hidden_size'"),
    ],
)
def test_configs_that_do_not_fit(tmp_path, change, message):
    _, _, folder = pair(tmp_path / "copy", "glm_ocr")
    config = json.loads((folder / "config.json").read_text())
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=message):
        convert(folder, tmp_path / "out.gguf", "f16")
    assert left(tmp_path) == ["copy"]


@pytest.mark.parametrize(
    "file, message",
    [
        (None, "copy: no preprocessor_config.json, which says how images are made ready"),
        ("", "preprocessor_config.json: empty"),
        ("[]", "preprocessor_config.json: a JSON list, expected an object"),
        ('{"size": 5}', "'size' is 5, expected an object"),
        ('{"size": {"shortest_edge": 12544}}', "no 'longest_edge'"),
        ('{"size": {"shortest_edge": 12544, "longest_edge": -1}}', "'longest_edge' is -1, expected a positive integer"),
        ('{"size": {"shortest_edge": 99, "longest_edge": 98}}', "'shortest_edge' is 99, expected at most"),
        ('{"image_mean": 0.5}', "'image_mean' is 0.5, expected a number for each of three colours"),
        ('{"image_mean": [1, 1e400, 1]}', "'image_mean' is .*, expected a number for each of three colours"),
        ('{"image_std": [0, 1, 1]}', "'clip.vision.image_std' is"),
        ('{"do_resize": false}', "'do_resize' is False, expected True"),
        ('{"resample": 2}', "'resample' is 2, expected 3"),
        ('{"rescale_factor": 1}', "'rescale_factor' is 1, expected 1 / 255"),
        ('{"patch_size": 16}', "'patch_size' is 16, expected 14"),
    ],
)
def test_images_that_are_made_ready_otherwise(tmp_path, file, message):
    _, _, folder = pair(tmp_path / "copy", "glm_ocr")
    path = folder / "preprocessor_config.json"
    path.unlink() if file is None else path.write_text(file)
    with pytest.raises(FormatError, match=message):
        convert(folder, tmp_path / "out.gguf", "f16")


def test_what_a_processor_does_not_say_is_the_class_default(tmp_path, opened):  # noqa: F811
    _, _, folder = pair(tmp_path / "copy", "glm_ocr")
    (folder / "preprocessor_config.json").write_text("{}")
    gguf = opened(written(folder, tmp_path / "out")[0])
    seen = {key: gguf.metadata[f"clip.vision.image_{key}"] for key in ("mean", "std", "min_pixels", "max_pixels")}
    np.testing.assert_allclose(seen["mean"], [0.48145466, 0.4578275, 0.40821073], rtol=1e-7)
    np.testing.assert_allclose(seen["std"], [0.26862954, 0.26130258, 0.27577711], rtol=1e-7)
    assert (seen["min_pixels"], seen["max_pixels"]) == (6272, 5_880_000)


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("patch_embed.proj.weight", None, "model.safetensors: no tensor 'model.visual.patch_embed.proj.weight'"),
        ("patch_embed.proj.weight", (64, 3, 1, 14, 14), r"expected \(64, 3, 2, 14, 14\)"),
        ("patch_embed.proj.bias", None, "no tensor 'model.visual.patch_embed.proj.bias'"),
        ("blocks.1.attn.qkv.weight", None, "no tensor 'model.visual.blocks.1.attn.qkv.weight'"),
        ("blocks.1.attn.qkv.weight", (190, 64), "'v.blk.1.attn_qkv.bias' is .192,., expected .190."),
        ("blocks.1.attn.q_norm.weight", None, "v.blk.1.attn_q_norm.weight"),
        ("blocks.1.mlp.up_proj.bias", (95,), "blocks.1.mlp.up_proj.bias'"),
        ("post_layernorm.weight", (), "expected rows"),
        ("downsample.weight", (64, 64, 2), "mm.patch_merger.weight'.*expected a tensor of 4 axes"),
        ("downsample.weight", (64, 32, 2, 2), "downsample.weight'"),
        ("merger.down_proj.weight", (64, 191), "merger.down_proj.weight'"),
        ("merger.more.weight", (4, 4), "merger.more.weight': 'clip' models have no such tensor"),
        ("embeddings.position_embedding.weight", (24, 64), "position_embedding.weight'"),
    ],
)
def test_eyes_that_do_not_fit(tmp_path, name, shape, message):
    text, eyes, folder = pair(tmp_path / "copy", "glm_ocr")
    named, _ = checkpoints.vision(text, eyes, "glm_ocr")
    named.pop(EYES + name, None)
    if shape is not None:
        named[EYES + name] = np.zeros(shape, np.float32)
    checkpoints.write_weights(folder, named)
    with pytest.raises(FormatError, match=message):
        convert(folder, tmp_path / "out.gguf", "f16")
    assert left(tmp_path) == ["copy"]


def test_eyes_of_a_wider_text_model(tmp_path):
    text = with_tokens(Stored("vision-ocr").text)
    folder = checkpoints.write_vision(tmp_path / "copy", text, tiny.eyes(heads=4, out=96), "glm_ocr")
    with pytest.raises(FormatError, match="the eyes make rows of 96 columns, expected 64, as the text model's"):
        convert(folder, tmp_path / "out.gguf", "f16")


def test_a_name_twice(tmp_path):
    text, eyes, folder = pair(tmp_path / "copy", "glm_ocr")
    named, _ = checkpoints.vision(text, eyes, "glm_ocr")
    named["model.norm.weight"] = named["model.language_model.norm.weight"]
    checkpoints.write_weights(folder, named)
    with pytest.raises(FormatError, match="is there, too, expected one of the two"):
        convert(folder, tmp_path / "out.gguf", "f16")


def test_a_file_that_is_cut_off(tmp_path):
    _, _, folder = pair(tmp_path / "copy", "glm_ocr")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1000])
    with pytest.raises(FormatError, match=r"'model\.visual.* the file is cut off at"):
        convert(folder, tmp_path / "out.gguf", "f16")


def test_a_value_of_the_eyes_that_is_no_number(tmp_path):
    text, eyes, folder = pair(tmp_path / "copy", "glm_ocr")
    named, _ = checkpoints.vision(text, eyes, "glm_ocr")
    named[EYES + "patch_embed.proj.weight"][5, 1, 1, 3, 3] = np.nan
    checkpoints.write_weights(folder, named)
    with pytest.raises(FormatError, match=r"patch_embed\.proj\.weight': 1 values are NaN"):
        convert(folder, tmp_path / "out.gguf", "f16")
    assert left(tmp_path) == ["copy"]


def test_the_eyes_take_no_more_memory_than_their_pieces(tmp_path, monkeypatch):
    """A kernel of a convolution, of matrices of two by two, is read in pieces of many."""
    from glmlite.convert import working

    _, _, folder = pair(tmp_path / "copy", "glm_ocr")
    sizes, encode = [], working.encode
    monkeypatch.setattr(working, "encode", lambda x, kind, where, *rest: sizes.append(x.size) or encode(x, kind, where))
    monkeypatch.setattr(working, "_CHUNK", 1000)
    with closing(plan(folder, "f16")) as work:
        tensors = len(work.tensors) + len(work.eyes.tensors)
        values = sum(int(np.prod(t.shape)) for t, _ in (*work.tensors, *work.eyes.tensors))
        working.work_off(work, tmp_path / "out.gguf")
    assert max(sizes) <= 1000 + 64 and len(sizes) < tensors + 1.1 * values / 900
