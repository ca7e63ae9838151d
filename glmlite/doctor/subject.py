"""A file as the checks see it: metadata and shapes, read without trusting them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from .. import families
from ..tokenizer.vocabulary import TokenType

_LARGEST = 2**31 - 1


def block_of(name: str) -> tuple[int, str] | None:
    """A tensor's block and its name in it; None if it is in none."""
    head, _, rest = name.partition(".")
    block, _, part = rest.partition(".")
    return (int(block), part) if head == "blk" and block.isascii() and block.isdecimal() and len(block) < 8 else None


class Subject:
    """metadata: as `Gguf.metadata`. shapes: tensor name -> shape, numpy order."""

    def __init__(self, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], paths: tuple[str, ...] = ()):
        self.metadata = metadata
        self.shapes = shapes
        self.paths = paths

    @classmethod
    def of(cls, gguf: Any) -> Subject:
        return cls(gguf.metadata, {name: tuple(info.shape) for name, info in gguf.tensors.items()}, tuple(gguf.paths))

    # ---- the model

    @cached_property
    def architecture(self) -> str | None:
        name = self.metadata.get("general.architecture")
        return name if isinstance(name, str) else None

    @property
    def row(self) -> families.Architecture:
        """What is known of the architecture."""
        return families.about(self.architecture)

    @cached_property
    def glm(self) -> bool:
        return families.is_glm(self.architecture or "", self.tokens)

    @cached_property
    def published(self) -> families.Published | None:
        """The published model of these sizes."""
        return None if self.layers is None else self.recognised(self.layers)

    def recognised(self, layers: int) -> families.Published | None:
        """The published model of these sizes, were there so many layers."""
        dim, heads = self.count("embedding_length"), self.count("attention.head_count")
        if dim is None or heads is None or self.rows is None:
            return None
        return families.recognise(self.architecture or "", families.Sizes(layers, dim, heads, self.rows))

    @cached_property
    def blocks(self) -> set[int]:
        """The numbers of the blocks that there are tensors of."""
        return {place[0] for name in self.shapes if (place := block_of(name)) is not None}

    @cached_property
    def layers(self) -> int | None:
        """Without drafting layers; None if the keys do not say it, or more that draft than there are."""
        blocks, drafting = self.count("block_count"), self.count("nextn_predict_layers") or 0
        return None if blocks is None or blocks < drafting else blocks - drafting

    @cached_property
    def rows(self) -> int | None:
        """Rows of the embeddings: the tokens that the model has."""
        shape = self.shapes.get("token_embd.weight", ())
        return shape[0] if len(shape) == 2 else None

    @cached_property
    def head_dim(self) -> int | None:
        """Columns of a head."""
        dim, heads = self.count("embedding_length"), self.count("attention.head_count")
        return self.count("attention.key_length") or (dim // heads if dim and heads else None)

    @property
    def sees(self) -> bool:
        """Whether the file has eyes, alone or beside a text model."""
        return "clip.projector_type" in self.metadata or self.text("general.type") == "mmproj"

    @property
    def sections(self) -> bool:
        """Whether a text model has the axes that images stand on."""
        return self.key("rope.dimension_sections") in self.metadata

    @property
    def edge(self) -> bool:
        """A GLM-Edge: the only one of its architecture whose q, k and v have no bias."""
        return self.row.versions and not {"blk.0.attn_qkv.bias", "blk.0.attn_q.bias"} & self.shapes.keys()

    @cached_property
    def drafts(self) -> set[int]:
        """The blocks that draft, by what they have for it."""
        return {block for block in self.blocks if f"blk.{block}.nextn.eh_proj.weight" in self.shapes}

    # ---- keys of the architecture

    def key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def count(self, name: str) -> int | None:
        """An integer that a size may have, else None."""
        value = self.metadata.get(self.key(name))
        ok = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 0 <= value <= _LARGEST
        return int(value) if ok else None

    def number(self, name: str) -> float | None:
        """A finite number, else None."""
        value = self.metadata.get(self.key(name))
        ok = isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and np.isfinite(value)
        return float(value) if ok else None

    # ---- the vocabulary

    @cached_property
    def tokens(self) -> list[Any]:
        """As the file spells them, bytes where they are not UTF-8; [] if it has none."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        texts = isinstance(tokens, list) and all(isinstance(token, (str, bytes)) for token in tokens)
        return tokens if texts else []

    @property
    def family(self) -> str | None:
        """The tokenizer's kind: gpt2, llama, t5."""
        return self.text("tokenizer.ggml.model")

    @cached_property
    def types(self) -> np.ndarray | None:
        """A type for each token; None if the file does not say, or not for each."""
        types = self.metadata.get("tokenizer.ggml.token_type")
        if not isinstance(types, np.ndarray) or types.dtype.kind not in "iu" or types.shape != (len(self.tokens),):
            return None
        return types

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token -> id: the control token if there are several of one spelling, else the first."""
        ids = {text: i for i, text in reversed(list(enumerate(self.tokens))) if isinstance(text, str)}
        if self.types is not None:
            ids.update((self.tokens[i], i) for i in np.flatnonzero(self.types == TokenType.CONTROL)[::-1].tolist())
        return ids

    @cached_property
    def speaks_glm(self) -> bool:
        """A vocabulary with `[gMASK]` and `<sop>`, of a model that prompts begin with (not end with, as ChatGLM-6B)."""
        has = "[gMASK]" in self.ids and ("<sop>" in self.ids or "sop" in self.ids)
        return self.glm and has and self.row.prefix == "first"

    def token_id(self, name: str) -> int | None:
        """The id under `tokenizer.ggml.<name>_token_id` if there is such a token."""
        value = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        ok = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 0 <= value < len(self.tokens)
        return int(value) if ok else None

    def text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None
