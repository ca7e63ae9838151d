"""GLM-4-0414, Z1, the text models of GLM-4.1V and GLM-OCR: `chatglm` with four norms. GGUF architecture name: `glm4`.

One block, x of shape (T, dim), a norm before and after each half:

    h = x + rms_norm(W_o · attention(W_qkv · rms_norm(x) + b_qkv))
    y = h + rms_norm(W_down · swiglu(W_up · rms_norm(h)))

The converter of llama.cpp reorders q and k of the vision models, whose files name `rope.dimension_sections`,
so that column i turns with i + n/2. The first of their pairs turn by time, the next by the row of an image, the last by
its column. A text token stands at the same position on each of the three axes, so for text their RoPE is the ordinary
one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..program import Recorder, Rope, Shapes, Value
from .layout import causal as layout
from .metadata import Keys
from .parts import Sizes, attention, decoder, drafter, qkv

__all__ = ["Config", "block", "draft", "layout", "record"]


@dataclass(frozen=True)
class Config:
    sizes: Sizes
    norm_eps: float
    rope: Rope

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], shapes: Shapes) -> Config:
        keys = Keys("glm4", metadata, shapes)
        sizes = Sizes.of(keys)
        rope = keys.rope(sizes.head_dim, interleaved=True)
        return cls(
            sizes=sizes,
            norm_eps=keys.number("attention.layer_norm_rms_epsilon", most=1),
            rope=replace(rope, interleaved=not rope.sections),
        )


def block(r: Recorder, c: Config, x: Value, i: int, layer: int) -> Value:
    """Block i; layer: of the cache."""
    w = f"blk.{i}."

    heads = qkv(r, r.rms_norm(x, w + "attn_norm.weight", c.norm_eps), w)
    att = attention(r, c.sizes, heads, layer, rope=c.rope)
    out = r.linear(att, w + "attn_output.weight")
    h = r.rms_norm(out, w + "post_attention_norm.weight", c.norm_eps, add=x)

    up = r.linear(r.rms_norm(h, w + "ffn_norm.weight", c.norm_eps), w + "ffn_up.weight")
    down = r.linear(r.swiglu(up), w + "ffn_down.weight")
    return r.rms_norm(down, w + "post_ffw_norm.weight", c.norm_eps, add=h)


def record(r: Recorder, c: Config) -> Value:
    return decoder(r, c.sizes, c.norm_eps, lambda x, i: block(r, c, x, i, i))


def draft(r: Recorder, c: Config) -> Value:
    return drafter(r, c.sizes, c.norm_eps, lambda x, i, layer: block(r, c, x, i, layer))
