"""The architectures this library runs: one file each, named as GGUF's `general.architecture` names it.

A model file has a frozen dataclass `Config` with `sizes` and `from_gguf(metadata, shapes)`, a function
`record(r, config)` that records the program and returns the logits, and a function `layout`, which
says where the tokens of a prompt stand. docs/add-a-model.md walks through one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import FormatError
from ..program import Op, Recorder, Shapes
from . import chatglm, chatglm1, glm, glm4, llama
from .layout import Layout, LayoutFunction

__all__ = ["ARCHITECTURES", "Layout", "Recording", "record"]

_MODELS = {"chatglm": chatglm, "chatglm1": chatglm1, "glm": glm, "glm4": glm4, "llama": llama}
ARCHITECTURES = tuple(_MODELS)


@dataclass(frozen=True)
class Recording:
    """A model's program and what the layers above need to know of it.

    ops: the program; its last value is the logits, (rows, vocab). context: tokens a sequence was
    trained for. layout: where the tokens of a prompt stand, see `glmlite.models.layout`.
    """

    ops: tuple[Op, ...]
    architecture: str
    vocab: int
    context: int
    layout: LayoutFunction


def record(metadata: Mapping[str, Any], shapes: Shapes) -> Recording:
    """The program of the model that a GGUF file holds.

    metadata: as `Gguf.metadata`. shapes: tensor name -> shape, numpy order.
    Raises FormatError, naming the key or the tensor, if the file is not what its architecture says.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _MODELS:
        known = ", ".join(ARCHITECTURES)
        raise FormatError(f"metadata: 'general.architecture' is {architecture!r}, expected one of: {known}")
    model = _MODELS[architecture]
    config = model.Config.from_gguf(metadata, shapes)
    r = Recorder(shapes)
    logits = model.record(r, config)
    _check_vocabulary(r, logits.width)
    _check_all_used(r, config.sizes.layers)
    return Recording(
        ops=tuple(r.ops),
        architecture=architecture,
        vocab=logits.width,
        context=config.sizes.context,
        layout=model.layout,
    )


def _check_vocabulary(r: Recorder, vocab: int) -> None:
    embedded = r.shapes["token_embd.weight"][0]
    if vocab == 0:
        raise FormatError("'token_embd.weight' has no rows, expected one for each token")
    if embedded != vocab:
        raise FormatError(f"'output.weight' has {vocab} rows, expected {embedded} as 'token_embd.weight'")


def _check_all_used(r: Recorder, layers: int) -> None:
    """A tensor that nothing reads means that the file holds another model than its architecture says.

    Blocks after the last layer are drafting layers (multi-token prediction), which we do not run.
    """
    used = {name for op in r.ops for names in op.weights.values() for name in names}
    for name in r.shapes:
        block = name.split(".")[1] if name.startswith("blk.") else ""
        if name not in used and not (block.isdecimal() and int(block) >= layers):
            raise FormatError(f"'{name}': the architecture has no such tensor")
