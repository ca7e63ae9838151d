"""The layer behind the others that drafts (multi-token prediction), of GLM-4.5 and later and of GLM-OCR."""

from __future__ import annotations

import re

from ..sources import Source, same
from .parts import Builder, Config, layers_of

_LAYERS = "model.layers."


def depth(source: Source, config: Config, *keys: str) -> tuple[int, int]:
    """Layers of the model, and drafting layers behind them, which many a copy has lost."""
    drafting = sum(re.fullmatch(r"model\.layers\.\d+\.eh_proj\.weight", name) is not None for name in source.names)
    layers = layers_of(source, config, r"model\.layers\.(\d+)\.", "num_hidden_layers", *keys, drafting=drafting)
    return layers, drafting


def take_drafting(out: Builder, i: int) -> None:
    """What block `i` has to draft with beside an ordinary block's tensors. Its embeddings and its matrix of the logits
    are the model's own: copies of those are left out."""
    ours, theirs = f"blk.{i}.nextn.", f"{_LAYERS}{i}."
    for part in ("eh_proj", "enorm", "hnorm"):
        out.take(f"{ours}{part}.weight", f"{theirs}{part}.weight")
    out.take(f"{ours}shared_head_norm.weight", f"{theirs}shared_head.norm.weight", optional=True)
    embeddings = "model.embed_tokens.weight"
    head = "lm_head.weight" if "lm_head.weight" in out.source else embeddings
    for part, name, model in (
        ("embed_tokens", f"{theirs}embed_tokens.weight", embeddings),
        ("shared_head_head", f"{theirs}shared_head.head.weight", head),
    ):
        if name in out.source and same(out.source, name, model):
            out.leave(name)
        else:
            out.take(f"{ours}{part}.weight", name, optional=True)
