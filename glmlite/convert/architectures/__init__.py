"""How each kind of checkpoint becomes a GGUF model: one file per kind, which one is seen by the tensors.

A kind has `matches(tensors, config)` and `build(tensors, config, out)`: it takes tensors of the checkpoint under
GGUF's names and sets the metadata. Nothing is decided by a model's name.
"""

from __future__ import annotations

from ...errors import FormatError
from ...models import record
from ..files import short
from ..sources import Source
from . import chatglm, chatglm1, eyes, glm, glm4_moe, glm4_moe_lite, hf, llama
from .parts import Builder, Config, Contents, Tensor, recorded

__all__ = ["KINDS", "Config", "Contents", "Tensor", "build", "eyes"]

_KINDS = {
    "ChatGLM-6B": chatglm1,
    "ChatGLM2/3-6B, CodeGeeX2/4, GLM-4-9B": chatglm,
    "GLM-4-9B-hf, GLM-Edge, GLM-4-0414, GLM-Z1, GLM-OCR, GLM-4.1V, GLM-4.6V-Flash": hf,
    "GLM-large, GLM-10B": glm,
    "GLM-4.5, GLM-4.5-Air, GLM-4.6, GLM-4.7, GLM-4.5V, GLM-4.6V": glm4_moe,
    "GLM-4.7-Flash": glm4_moe_lite,
    "Llama, Mistral": llama,
}
KINDS = tuple(_KINDS)


def build(source: Source, config: Config, prefix: Source | None = None) -> Contents:
    """The model's tensors in the file's order, and its metadata but the tokenizer's.

    prefix: a P-Tuning v2 checkpoint, in place of the prefix that `source` may have.
    Raises FormatError if the checkpoint is of no known kind, lacks a tensor, has one that nobody reads, or one of a
    shape that its architecture cannot have.
    """
    kind = next((kind for kind in _KINDS.values() if kind.matches(source, config)), None)
    if kind is None:
        named = ", ".join(short(config.get(key)) for key in ("model_type", "architectures") if config.get(key))
        raise FormatError(
            f"{config.path}: a model that glmlite cannot convert ({named or 'no model_type'}; first tensor "
            f"{source.names[0] if source.names else 'none'}); known: {'; '.join(KINDS)}"
        )
    out = Builder(source, prefix)
    kind.build(source, config, out)
    model = out.finish()
    recorded(lambda shapes: record(model.metadata, shapes), model, config)
    return model
