"""ChatGLM: chatglm2-6b, chatglm3-6b, codegeex2, glm-4-9b-chat, glm-edge. GGUF architecture name: `chatglm`.

One block, x of shape (T, dim):

    h = x + W_o · attention(W_qkv · rms_norm(x) + b_qkv)
    y = h + W_down · swiglu(W_up · rms_norm(h))

Against Llama: RoPE turns only the first `rope.dim` columns of a head (interleaved pairs, as GGUF's
Llama); gate and up are one matrix, gate rows first; q, k and v are one matrix, or three, mostly
with a bias. P-Tuning v2 may put trained keys and values before every sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program import Recorder, Rope, Shapes, Value
from .layout import causal as layout
from .metadata import Keys
from .parts import Sizes, attention, decoder, prefix, qkv

__all__ = ["Config", "block", "layout", "record"]


@dataclass(frozen=True)
class Config:
    sizes: Sizes
    norm_eps: float
    rope: Rope

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], shapes: Shapes) -> Config:
        keys = Keys("chatglm", metadata, shapes)
        sizes = Sizes.of(keys)
        return cls(
            sizes=sizes,
            norm_eps=keys.number("attention.layer_norm_rms_epsilon", most=1),
            rope=keys.rope(sizes.head_dim, interleaved=True),
        )


def block(r: Recorder, c: Config, x: Value, i: int) -> Value:
    w = f"blk.{i}."

    heads = qkv(r, r.rms_norm(x, w + "attn_norm.weight", c.norm_eps), w)
    att = attention(r, c.sizes, heads, i, rope=c.rope, prefix=prefix(r, w))
    h = r.linear(att, w + "attn_output.weight", add=x)

    up = r.linear(r.rms_norm(h, w + "ffn_norm.weight", c.norm_eps), w + "ffn_up.weight")
    return r.linear(r.swiglu(up), w + "ffn_down.weight", add=h)


def record(r: Recorder, c: Config) -> Value:
    return decoder(r, c.sizes, c.norm_eps, lambda x, i: block(r, c, x, i))
