"""GLM-4-0414, Z1, the text models of GLM-4.1V and GLM-OCR: `chatglm` with four norms. GGUF architecture name: `glm4`.

One block, x of shape (T, dim), a norm before and after each half:

    h = x + rms_norm(W_o · attention(W_qkv · rms_norm(x) + b_qkv))
    y = h + rms_norm(W_down · swiglu(W_up · rms_norm(h)))

The converter of llama.cpp reorders q and k of the vision models, whose files name `rope.dimension_sections`,
so that column i turns with i + n/2. A text token stands at the same position on each of their three
axes, so for text their RoPE is the ordinary one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program import Recorder, Rope, Shapes, Value
from .chatglm import qkv
from .layout import causal as layout
from .metadata import Keys

__all__ = ["Config", "block", "layout", "record"]


@dataclass(frozen=True)
class Config:
    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    context: int

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], shapes: Shapes) -> Config:
        keys = Keys("glm4", metadata, shapes)
        dim = keys.dim()
        heads, kv_heads, head_dim = keys.heads(dim)
        reordered = any(keys.integers("rope.dimension_sections"))
        return cls(
            layers=keys.layers(),
            dim=dim,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
            rope=keys.rope(head_dim, interleaved=not reordered),
            context=keys.count("context_length"),
        )


def block(r: Recorder, c: Config, x: Value, i: int) -> Value:
    w = f"blk.{i}."

    att = r.attention(
        qkv(r, r.rms_norm(x, w + "attn_norm.weight", c.norm_eps), w),
        layer=i,
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_dim,
        rope=c.rope,
    )
    out = r.linear(att, w + "attn_output.weight")
    h = r.rms_norm(out, w + "post_attention_norm.weight", c.norm_eps, add=x)

    up = r.linear(r.rms_norm(h, w + "ffn_norm.weight", c.norm_eps), w + "ffn_up.weight")
    down = r.linear(r.swiglu(up), w + "ffn_down.weight")
    return r.rms_norm(down, w + "post_ffw_norm.weight", c.norm_eps, add=h)


def record(r: Recorder, c: Config) -> Value:
    x = r.embed("token_embd.weight")
    for i in range(c.layers):
        x = block(r, c, x, i)
    x = r.rms_norm(r.select(x), "output_norm.weight", c.norm_eps)
    return r.linear(x, "output.weight" if r.has("output.weight") else "token_embd.weight")
