"""Checked reading of the metadata keys that the architectures share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import FormatError
from ..program import AXES, Rope, Shapes, Yarn

SOFTMAX, SIGMOID = 1, 2  # values of `expert_gating_func`
_LARGEST = 2**31 - 1  # positions and sizes are int32 at the seam
_MOST_COLUMNS = 1 << 16  # of a head or of a latent, and heads: what the executors take


def shown(value: Any) -> str:
    """For messages: a value of the metadata, in one line."""
    if value is None or isinstance(value, (int, float, np.number)):
        return str(value)
    return repr(value[:40]) if isinstance(value, str) else type(value).__name__


class Heads(NamedTuple):
    """How many query heads and key-value heads, and the columns of one."""

    heads: int
    kv_heads: int
    head_dim: int


class LatentHeads(NamedTuple):
    """MLA: query heads of `head_dim` columns, the last of which turn; one latent; columns of a head's value."""

    heads: int
    head_dim: int
    latent: int
    value_dim: int


class Experts(NamedTuple):
    """A mixture's sizes. dense: leading blocks without experts; used: experts a token; scale: of their weights; shared:
    a feed-forward block that every token goes through stands beside them."""

    dense: int
    used: int
    scale: float
    shared: bool


class Keys:
    """The keys of one architecture, `count("block_count")` reads `chatglm.block_count`.

    Every method raises FormatError naming the key if it is missing (and has no default), of the
    wrong type or out of range.
    """

    def __init__(self, architecture: str, metadata: Mapping[str, Any], shapes: Shapes):
        self.architecture = architecture
        self.metadata = metadata
        self.shapes = shapes

    def count(self, name: str, default: int | None = None, least: int = 1, most: int = _LARGEST) -> int:
        """An integer in [least, most]."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
            raise self._error(name, value, f"an integer in {least}..{most}")
        return int(value)

    def number(self, name: str, default: float | None = None, most: float = math.inf) -> float:
        """A finite number above zero, at most `most`."""
        value = self._get(name, default)
        ok = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if not ok or not (math.isfinite(value) and 0 < value <= most):
            raise self._error(name, value, "a positive number" + (f", at most {most:g}" if most < math.inf else ""))
        return float(value)

    def integers(self, name: str) -> list[int]:
        """A list of integers, empty if the key is missing."""
        value = self.metadata.get(f"{self.architecture}.{name}", [])
        items = value.tolist() if isinstance(value, np.ndarray) else value
        if not isinstance(items, list) or any(isinstance(i, bool) or not isinstance(i, int) for i in items):
            raise self._error(name, value, "a list of integers")
        return items

    def layers(self) -> int:
        """Blocks of the model, drafting layers (multi-token prediction) not counted."""
        # Every block has tensors of its own, so a file cannot have more blocks than tensors.
        blocks = self.count("block_count", most=max(len(self.shapes), 1))
        drafting = self.count("nextn_predict_layers", 0, least=0, most=blocks - 1)
        # Old converters wrote the drafting layer's tensors without the key.
        uncounted = not drafting and blocks > 1 and f"blk.{blocks - 1}.nextn.eh_proj.weight" in self.shapes
        return blocks - (1 if uncounted else drafting)

    def dim(self) -> int:
        """Columns of the hidden state; 'token_embd.weight' must have as many."""
        dim = self.count("embedding_length")
        shape = tuple(self.shapes.get("token_embd.weight", ()))
        if len(shape) == 2 and shape[1] != dim:
            raise self._error("embedding_length", dim, f"{shape[1]}, the width of 'token_embd.weight'")
        return dim

    def heads(self, dim: int) -> Heads:
        """`attention.head_count`, `.head_count_kv` (default: as many), `.key_length` (default: dim / heads)."""
        heads = self.count("attention.head_count", most=min(dim, _MOST_COLUMNS))
        kv_heads = self.count("attention.head_count_kv", heads, most=heads)
        if heads % kv_heads:
            raise self._error("attention.head_count_kv", kv_heads, f"a divisor of {heads}, the query heads")
        if f"{self.architecture}.attention.key_length" not in self.metadata and dim % heads:
            raise self._error("attention.head_count", heads, f"a divisor of {dim}, the embedding length")
        head_dim = self.count("attention.key_length", dim // heads, most=_MOST_COLUMNS)
        if self.count("attention.value_length", head_dim) != head_dim:
            raise self._error("attention.value_length", self._get("attention.value_length"), f"{head_dim}, as the keys")
        return Heads(heads, kv_heads, head_dim)

    def latent_heads(self, dim: int) -> LatentHeads:
        """`attention.head_count`, `.kv_lora_rank`, `.key_length_mla`, `.value_length_mla` and `rope.dimension_count`.

        `attn_k_b` and `attn_v_b` of every block must be as these say. `.head_count_kv`, `.key_length` and
        `.value_length` describe the cache: one key head of latent and turning columns, whose values are the latent.
        """
        if (both := "blk.0.attn_kv_b.weight") in self.shapes:
            raise FormatError(
                f"'{both}' has keys and values of the latent in one matrix, expected attn_k_b and attn_v_b; in a file "
                "of GLM's `glmlite doctor --fix` takes it apart"
            )
        heads = self.count("attention.head_count", most=min(dim, _MOST_COLUMNS))
        head_dim = self.count("attention.key_length_mla", least=3, most=_MOST_COLUMNS)
        turning = self.count("rope.dimension_count", most=head_dim - 1)
        latent = self.count("attention.kv_lora_rank", most=_MOST_COLUMNS)
        value_dim = self.count("attention.value_length_mla")
        for name, size in (("head_count_kv", 1), ("key_length", latent + turning), ("value_length", latent)):
            if self.count(f"attention.{name}", size) != size:
                raise self._error(f"attention.{name}", self._get(f"attention.{name}"), f"{size}, of the shared latent")
        wanted = {"attn_k_b": (heads, latent, head_dim - turning), "attn_v_b": (heads, value_dim, latent)}
        for name, shape in self.shapes.items():
            want = wanted.get(name.removesuffix(".weight").rpartition(".")[2])
            if want is not None and tuple(shape) != want:
                raise FormatError(f"'{name}' is {tuple(shape)}, expected {want}, as the keys of the file say")
        self._agree("attention.q_lora_rank", "blk.0.attn_q_a.weight", 0)
        return LatentHeads(heads, head_dim, latent, value_dim)

    def experts(self, layers: int, *, glm: bool) -> Experts:
        """A mixture chosen by sigmoid and normalised: `leading_dense_block_count` and the keys `expert_*`.

        glm: whether the file is known to be of the family, whose old files do not say how experts are chosen. In others
        a missing `expert_gating_func` means softmax and a missing `expert_weights_norm` no.
        """
        dense = self.count("leading_dense_block_count", 0, least=0, most=layers)
        experts = self.count("expert_count")
        used = self.count("expert_used_count", most=experts)
        scale = self.number("expert_weights_scale", most=1e6)
        gating = self.count("expert_gating_func", SIGMOID if glm else SOFTMAX, least=0)
        if gating != SIGMOID:
            raise self._error("expert_gating_func", gating, f"{SIGMOID}, sigmoid")
        norm = self._get("expert_weights_norm", glm)
        if not isinstance(norm, (bool, np.bool_)) or not norm:
            raise self._error("expert_weights_norm", norm, "true")
        for name in ("expert_group_count", "expert_group_used_count"):
            if self.count(name, 1, least=0) > 1:
                raise self._error(name, self._get(name), "1: experts in groups are not run")
        self._agree("expert_count", f"blk.{dense}.ffn_down_exps.weight", 0)
        self._agree("expert_feed_forward_length", f"blk.{dense}.ffn_down_exps.weight", 2)
        return Experts(dense, used, scale, self.count("expert_shared_count", 0, least=0) > 0)

    def _agree(self, name: str, tensor: str, axis: int) -> None:
        """What a key says of a size, if it is there, has to be what a tensor has, if that is there."""
        shape = tuple(self.shapes.get(tensor, ()))
        if axis < len(shape) and self.count(name, shape[axis], least=0) != shape[axis]:
            raise self._error(name, self._get(name), f"{shape[axis]}, as '{tensor}' has")

    def rope(self, head_dim: int, *, interleaved: bool, factors: str | None = None) -> Rope:
        """`rope.dimension_count` (default: all), `.freq_base` (default: 1e4), `.scaling`: none, linear or YaRN, and
        `.dimension_sections`, the pairs of each axis of a position, of which the fourth and last is not used."""
        dim = self.count("rope.dimension_count", head_dim, most=head_dim)
        if dim % 2:
            raise self._error("rope.dimension_count", dim, "an even number of columns")
        theta = self.number("rope.freq_base", 10000.0)
        scale, yarn = 1.0, None
        scaling = self._get("rope.scaling.type", "none")
        if not isinstance(scaling, str):  # a comparison with an array is an array
            raise self._error("rope.scaling.type", scaling, "none, linear or yarn")
        if scaling == "linear":
            scale = self.number("rope.scaling.factor")
        elif scaling == "yarn":
            if theta <= 1:
                raise self._error("rope.freq_base", theta, "more than 1 for YaRN")
            yarn = Yarn(
                factor=self.number("rope.scaling.factor"),
                original_context=self.count("rope.scaling.original_context_length"),
                attention_factor=self.number("rope.scaling.attn_factor", 1.0),
                beta_fast=self.number("rope.scaling.yarn_beta_fast", 32.0),
                beta_slow=self.number("rope.scaling.yarn_beta_slow", 1.0),
            )
        elif scaling != "none":
            raise self._error("rope.scaling.type", scaling, "none, linear or yarn")
        sections = self.integers("rope.dimension_sections")
        while sections and not sections[-1]:
            sections = sections[:-1]
        if sections and (len(sections) > AXES or min(sections) < 0 or sum(sections) != dim // 2):
            found = self._get("rope.dimension_sections")
            raise self._error("rope.dimension_sections", found, f"{AXES} numbers whose sum is {dim // 2}")
        return Rope(dim, theta, interleaved, sections=tuple(sections), scale=scale, factors=factors, yarn=yarn)

    def _get(self, name: str, default: Any = None) -> Any:
        value = self.metadata.get(f"{self.architecture}.{name}", default)
        if value is None:
            raise FormatError(f"metadata: the file has no key '{self.architecture}.{name}'")
        return value

    def _error(self, name: str, value: Any, expected: str) -> FormatError:
        text = shown(value)
        if f"{self.architecture}.{name}" not in self.metadata:
            text = f"missing, which means {text}"
        return FormatError(f"metadata: '{self.architecture}.{name}' is {text}, expected {expected}")
