"""The architectures this library runs: one file each, named as GGUF's `general.architecture` names it.

A model file has a frozen dataclass `Config` with `sizes` and `from_gguf(metadata, shapes)`, a function
`record(r, config)` that records the program and returns the logits, and a function `layout`, which
says where the tokens of a prompt stand; one with a drafting layer has `draft(r, config)`, which records
that. docs/add-a-model.md walks through one. `glm4v` is no text model, but the eyes of some: `record_eyes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import FormatError
from ..program import Op, Recorder, Shapes
from . import chatglm, chatglm1, deepseek2, glm, glm4, glm4moe, glm4v, llama
from .layout import Layout, LayoutFunction
from .metadata import shown

__all__ = ["ARCHITECTURES", "Eyes", "Layout", "Recording", "draft", "record", "record_eyes"]

_MODELS: Mapping[str, Any] = {
    "chatglm": chatglm,
    "chatglm1": chatglm1,
    "deepseek2": deepseek2,
    "glm": glm,
    "glm4": glm4,
    "glm4moe": glm4moe,
    "llama": llama,
}
ARCHITECTURES = tuple(_MODELS)
_NO_TEXT_MODELS: Mapping[str, str] = {
    "clip": "these are a model's eyes ('mmproj'): open the text model's file, with this one beside it",
    "glmocr": "Ollama keeps GLM-OCR in a form of its own: take the two files, text model and 'mmproj', of others",
}


@dataclass(frozen=True)
class Recording:
    """A model's program and what the layers above need to know of it.

    ops: the program; its last value is the logits, (rows, vocab). context: tokens a sequence was
    trained for. layout: where the tokens of a prompt stand, see `glmlite.models.layout`. images: whether
    it takes rows of images, which stand on three axes.
    """

    ops: tuple[Op, ...]
    architecture: str
    vocab: int
    context: int
    layout: LayoutFunction
    images: bool


@dataclass(frozen=True)
class Eyes:
    """The programs that make a text model's rows of an image, one after the other: of its patches, and of those of each
    token, side by side. See `glmlite.models.glm4v`."""

    tower: tuple[Op, ...]
    merger: tuple[Op, ...]
    config: glm4v.Config


def record_eyes(metadata: Mapping[str, Any], shapes: Shapes) -> Eyes:
    """The eyes that a GGUF file holds, alone or beside a text model. Raises FormatError as `record` does."""
    config = glm4v.Config.from_gguf(metadata, shapes)
    tower, merger = Recorder(shapes), Recorder(shapes)
    glm4v.record_tower(tower, config)
    rows = glm4v.record_merger(merger, config).width
    if rows != config.width:
        raise FormatError(f"'mm.down.weight' has {rows} rows, expected {config.width} as 'mm.patch_merger.weight'")
    used = {name for op in (*tower.ops, *merger.ops) for names in op.weights.values() for name in names}
    for name in shapes:
        if name.startswith(glm4v.TENSORS) and name not in used and not (config.side and name == glm4v.POSITIONS):
            raise FormatError(f"'{name}': the eyes have no such tensor")
    return Eyes(tuple(tower.ops), tuple(merger.ops), config)


def record(metadata: Mapping[str, Any], shapes: Shapes) -> Recording:
    """The program of the model that a GGUF file holds.

    metadata: as `Gguf.metadata`. shapes: tensor name -> shape, numpy order.
    Raises FormatError, naming the key or the tensor, if the file is not what its architecture says.
    """
    drafts = next((name for name in shapes if name.endswith(".nextn.eh_proj.weight")), None)
    if drafts is not None and not any(name.startswith("blk.0.") for name in shapes):
        raise FormatError(
            f"'{drafts}': the file holds the block that drafts and not the model, which has 'blk.0.attn_norm.weight'; "
            "open the model's own file"
        )
    model, config = _read(metadata, shapes)
    r = Recorder(shapes)
    logits = model.record(r, config)
    _check_vocabulary(r, logits.width)
    layers = config.sizes.layers
    _check_all_used(metadata, r, lambda block: block is None or block < layers)
    _check_skipped(metadata, shapes, layers)
    return _recording(metadata, r, model, config)


def draft(metadata: Mapping[str, Any], shapes: Shapes) -> Recording | None:
    """The program of a file's first drafting layer (multi-token prediction), if it has one that we run.

    Its `input` is the trunk's rows after `output_norm`, one position earlier: the row of position p - 1 beside the
    token at p, whose logits are of the token at p + 1. Its one layer of cache is its own, and begins with position 1.
    Raises FormatError as `record` does.
    """
    model, config = _read(metadata, shapes)
    layer = config.sizes.layers
    if not hasattr(model, "draft") or f"blk.{layer}.nextn.eh_proj.weight" not in shapes:
        return None
    r = Recorder(shapes)
    logits = model.draft(r, config)
    _check_vocabulary(r, logits.width)
    _check_all_used(metadata, r, lambda block: block == layer)
    return _recording(metadata, r, model, config)


def _read(metadata: Mapping[str, Any], shapes: Shapes) -> tuple[Any, Any]:
    """The model of an architecture, and its Config."""
    architecture = metadata.get("general.architecture")
    if isinstance(architecture, str) and architecture in _NO_TEXT_MODELS:
        raise FormatError(f"metadata: 'general.architecture' is {architecture!r}; {_NO_TEXT_MODELS[architecture]}")
    if not isinstance(architecture, str) or architecture not in _MODELS:
        known = ", ".join(ARCHITECTURES)
        raise FormatError(f"metadata: 'general.architecture' is {shown(architecture)}, expected one of: {known}")
    model = _MODELS[architecture]
    return model, model.Config.from_gguf(metadata, shapes)


def _recording(metadata: Mapping[str, Any], r: Recorder, model: Any, config: Any) -> Recording:
    return Recording(
        ops=tuple(r.ops),
        architecture=metadata["general.architecture"],
        vocab=r.ops[-1].out.width,
        context=config.sizes.context,
        layout=model.layout,
        images=any(op.attrs["rope"].sections for op in r.ops if op.attrs.get("rope") is not None),
    )


def _check_vocabulary(r: Recorder, vocab: int) -> None:
    """The embeddings have as many rows as there are logits, and not none."""
    table = next(op.weights["table"][0] for op in r.ops if op.kind == "embed")
    rows = r.shapes[table][0]
    if vocab == 0:
        raise FormatError(f"'{table}' has no rows, expected one for each token")
    if rows != vocab:
        head = r.ops[-1].weights["w"][0]
        raise FormatError(f"'{head}' has {vocab} rows, expected {rows} as '{table}'")


def _check_all_used(metadata: Mapping[str, Any], r: Recorder, mine: Callable[[int | None], bool]) -> None:
    """A tensor that nothing reads means that the file holds another model than its architecture says.

    mine(block): whether the program reads a tensor of that block; None: of no block. Eyes beside the model are their
    own program's.
    """
    used = {name for op in r.ops for names in op.weights.values() for name in names}
    for name in r.shapes:
        if name.startswith(glm4v.TENSORS) and "clip.projector_type" in metadata:
            continue
        if name not in used and mine(_block(name)):
            raise FormatError(f"'{name}': the architecture has no such tensor")


def _check_skipped(metadata: Mapping[str, Any], shapes: Shapes, layers: int) -> None:
    """What follows the last layer are drafting layers, which `draft` records: the blocks that have tensors for it, or,
    in a file that has lost those, as many as the keys say. Any other is a layer that the keys leave out."""
    key = f"{metadata['general.architecture']}.block_count"
    blocks = metadata[key]
    drafting = {_block(name) for name in shapes if ".nextn." in name} or range(layers, blocks)
    for name in shapes:
        block = _block(name)
        if block is not None and block >= layers and block not in drafting:
            raise FormatError(
                f"metadata: '{key}' is {blocks}, which makes {layers} layers; expected more, or '{name}' not to be "
                "there: that block does not draft"
            )


def _block(name: str) -> int | None:
    """The number of a tensor's block; None if it is in none."""
    block = name.split(".")[1] if name.startswith("blk.") else ""
    return int(block) if block.isdecimal() and len(block) < 10 else None
