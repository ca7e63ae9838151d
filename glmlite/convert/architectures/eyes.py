"""The eyes of GLM-OCR, GLM-4.1V to 4.6V: transformers' `visual` -> what llama.cpp calls a `glm4v` projector (`mmproj`).

The checkpoint's first kernel takes two frames of a video at once, GGUF has one for each. Nothing else moves.
preprocessor_config.json says how images are made ready. Its limits are of two frames, GGUF's of an image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...errors import FormatError
from ...models import record_eyes
from ..files import load_json, missing
from ..sources import Part, Source
from .parts import Builder, Config, Contents, file_of, recorded

KEYS = "clip."  # what the keys of the eyes begin with
MMPROJ = {"general.architecture": "clip", "general.type": "mmproj"}  # of a file of eyes alone
_ROOTS = ("model.visual.", "visual.")
_INNER = "language_model."  # in the names of the text model's tensors
_FRAMES = 2  # of the first kernel
# What transformers' classes do where the files say nothing.
_MEAN = [0.48145466, 0.4578275, 0.40821073]
_STD = [0.26862954, 0.26130258, 0.27577711]
_SIZE = {"shortest_edge": 112 * 112, "longest_edge": 15000 * 28 * 28}
_BICUBIC = 3
_BLOCK = {
    "ln1": "norm1",
    "ln2": "norm2",
    "attn_qkv": "attn.qkv",
    "attn_q_norm": "attn.q_norm",
    "attn_k_norm": "attn.k_norm",
    "attn_out": "attn.proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OPTIONAL = ("attn_q_norm", "attn_k_norm")


def apart(source: Source) -> tuple[Source, Source | None]:
    """A checkpoint's text model under the names that one without eyes has, and the eyes, if there are any."""
    eyes = [name for name in source.names if name.startswith(_ROOTS)]
    if not eyes and not any(_INNER in name for name in source.names):
        return source, None
    text: dict[str, str] = {}
    for name in source.names:
        if not name.startswith(_ROOTS):
            plain = name.replace(_INNER, "", 1)
            if text.setdefault(plain, name) != name:
                raise FormatError(f"{source.where(name)}: {text[plain]!r} is there, too, expected one of the two")
    return Part(source, text), Part(source, {name: name for name in eyes}) if eyes else None


def text_config(config: Config) -> Config:
    """That of the text model in a config of both: what it says itself counts before what the whole says."""
    inner = config.get("text_config")
    if not isinstance(inner, dict):
        return config
    tied = any(values.get("tie_word_embeddings") for values in (config.values, inner))
    return Config({**config.values, **inner, "tie_word_embeddings": tied}, config.path)


def build(source: Source, config: Config, width: int) -> Contents:
    """The eyes' tensors in the file's order, and their metadata. width: columns of the text model.

    Raises FormatError as the text models' `build` does, and for images that are made ready in another way.
    """
    inner = config.get("vision_config")
    if not isinstance(inner, dict):
        raise config.error("vision_config", inner, "an object: the checkpoint has eyes")
    vision = Config(inner, config.path)
    vision.expect("hidden_act", "silu", "swish")
    vision.expect("in_channels", 3)
    vision.expect("temporal_patch_size", _FRAMES)
    patch, merge = vision.count("patch_size", default=14), vision.count("spatial_merge_size", default=2)
    layers, dim = vision.count("depth", "num_hidden_layers"), vision.count("hidden_size")
    rope = vision.get("rope_parameters", {})
    theta = Config(rope if isinstance(rope, dict) else {}, config.path).number("rope_theta", default=10000.0)
    out = Builder(source)
    out.metadata |= MMPROJ | {
        "clip.projector_type": "glm4v",
        "clip.has_vision_encoder": True,
        "clip.use_silu": True,
    }
    values = {
        "block_count": layers,
        "embedding_length": dim,
        # As llama.cpp's converter has it; in GLM-4.1V the number is the merger's, so programs go by the shapes.
        "feed_forward_length": vision.count("intermediate_size"),
        "attention.head_count": vision.count("num_heads", "num_attention_heads"),
        "attention.layer_norm_epsilon": vision.number("rms_norm_eps", default=1e-5),
        "patch_size": patch,
        "image_size": vision.count("image_size", default=336),
        "projection_dim": width,
        "spatial_merge_size": merge,
        **({} if theta == 10000 else {"rope.freq_base": theta}),
        **_images(config.path.parent, patch, merge),
    }
    out.metadata |= {f"clip.vision.{key}": value for key, value in values.items()}
    _take(out, layers, dim, patch)
    model = out.finish()
    eyes = recorded(lambda shapes: record_eyes(model.metadata, shapes), model, config)
    if eyes.config.width != width:
        raise FormatError(
            f"{config.path}: the eyes make rows of {eyes.config.width} columns, expected {width}, as the text model's"
        )
    return model


def _take(out: Builder, layers: int, dim: int, patch: int) -> None:
    root = next(root for root in _ROOTS if out.source.names[0].startswith(root))
    kernel = f"{root}patch_embed.proj.weight"
    want = (dim, 3, _FRAMES, patch, patch)
    if kernel not in out.source:
        raise FormatError(f"{file_of(out.source)}: no tensor {kernel!r}, which becomes 'v.patch_embd.weight'")
    if out.source.shape(kernel) != want:
        raise FormatError(f"{out.source.where(kernel)} is {out.source.shape(kernel)}, expected {want}")
    rows = np.arange(dim * 3 * _FRAMES * patch).reshape(-1, _FRAMES, patch)
    for frame, name in enumerate(("v.patch_embd.weight", "v.patch_embd.weight.1")):
        out.take_rows(name, (dim, 3, patch, patch), kernel, rows[:, frame].reshape(-1))
    out.take("v.patch_embd.bias", f"{root}patch_embed.proj.bias")
    out.take("v.norm_embd.weight", f"{root}post_conv_layernorm.weight", optional=True)
    out.take("v.position_embd.weight", f"{root}embeddings.position_embedding.weight", optional=True)
    for i in range(layers):
        for ours, theirs in _BLOCK.items():
            name = f"{root}blocks.{i}.{theirs}"
            out.take(f"v.blk.{i}.{ours}.weight", f"{name}.weight", optional=ours in _OPTIONAL)
            out.take(f"v.blk.{i}.{ours}.bias", f"{name}.bias", optional=True)
    out.take("v.post_ln.weight", f"{root}post_layernorm.weight")
    out.take_both("mm.patch_merger", f"{root}downsample", bias=True)
    out.take("mm.model.fc.weight", f"{root}merger.proj.weight")
    out.take_both("mm.post_norm", f"{root}merger.post_projection_norm", bias=True)
    for part in ("gate", "up", "down"):
        out.take(f"mm.{part}.weight", f"{root}merger.{part}_proj.weight")


def _images(folder: Path, patch: int, merge: int) -> dict[str, Any]:
    """How images are made ready: transformers 5's file of all processors counts before `preprocessor_config.json`."""
    path = folder / "processor_config.json"
    inner = load_json(path).get("image_processor") if path.is_file() else None
    if isinstance(inner, dict):
        images = Config(inner, path)
    elif (path := folder / "preprocessor_config.json").is_file():
        images = Config(load_json(path), path)
    else:
        raise FormatError(f"{folder}: no preprocessor_config.json{missing(path)}, which says how images are made ready")
    for key in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        images.expect(key, True)
    for key, value in (("patch_size", patch), ("merge_size", merge), ("temporal_patch_size", _FRAMES)):
        images.expect(key, value)
    images.expect("resample", _BICUBIC)
    images.expect("patch_expand_factor", 1)
    if abs(images.number("rescale_factor", default=1 / 255) * 255 - 1) > 1e-6:
        raise images.error("rescale_factor", images.get("rescale_factor"), "1 / 255")
    size = images.get("size", _SIZE)
    if not isinstance(size, dict):
        raise images.error("size", size, "an object with 'shortest_edge' and 'longest_edge'")
    edges = Config(size, images.path)
    least, most = edges.count("shortest_edge"), edges.count("longest_edge")
    if least > most:
        raise edges.error("shortest_edge", least, f"at most longest_edge, {most}")
    return {
        "image_mean": _colours(images, "image_mean", _MEAN),
        "image_std": _colours(images, "image_std", _STD),
        "image_min_pixels": -(-least // _FRAMES),
        "image_max_pixels": most // _FRAMES,
    }


def _colours(images: Config, key: str, default: list[float]) -> np.ndarray:
    values = images.get(key, default)
    numbers = isinstance(values, list) and all(isinstance(value, (int, float)) for value in values)
    if not numbers or len(values) != 3 or not all(-100 < value < 100 for value in values):
        raise images.error(key, values, "a number for each of three colours")
    return np.array(values, np.float32)
