"""`glmlite convert` of checkpoints with eyes: tiny and random ones of three kinds, against the tensors they were made of
and against transformers' numbers; pairs and single files; hostile folders."""

import json
from contextlib import closing

import checkpoints
import numpy as np
import pytest
import tiny
from test_convert import opened, same, tensors_of  # noqa: F401 (opened: a fixture)
from test_engine import WHOLE, assert_close
from test_tower import STORED, Stored

from glmlite import _native as native
from glmlite import models, reference
from glmlite.convert import convert
from glmlite.errors import FormatError
from glmlite.models.layout import with_images
from glmlite.vision.tower import ReferenceTower, Tower

KINDS = {"glm_ocr": "vision-ocr", "glm4v": "vision-4.1v", "glm4v_moe": "vision-4.5v"}
# What the converter writes beside the keys that the tiny eyes have.
PREPARED = {"spatial_merge_size": 2, "image_min_pixels": 6272, "image_max_pixels": 4_816_896}
VOCAB = 384


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


def beside(path):
    (mmproj,) = path.parent.glob("mmproj-*.gguf")
    return mmproj


# ---- what is written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", ["safetensors", "torch"])
@pytest.mark.parametrize("kind", KINDS)
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
