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

__all__ = ["Config", "block", "layout", "prefix", "qkv", "record"]


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
        keys = Keys("chatglm", metadata, shapes)
        dim = keys.dim()
        heads, kv_heads, head_dim = keys.heads(dim)
        return cls(
            layers=keys.layers(),
            dim=dim,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
            rope=keys.rope(head_dim, interleaved=True),
            context=keys.count("context_length"),
        )


def qkv(r: Recorder, x: Value, w: str) -> Value:
    """The queries, keys and values of block `w` in one matrix, from one tensor or from three."""
    parts = ["attn_qkv"] if r.has(w + "attn_qkv.weight") else ["attn_q", "attn_k", "attn_v"]
    biased = any(r.has(f"{w}{part}.bias") for part in parts)
    biases = [f"{w}{part}.bias" for part in parts] if biased else None
    return r.linear(x, [f"{w}{part}.weight" for part in parts], bias=biases)


def prefix(r: Recorder, w: str) -> tuple[str, str] | None:
    """The names of block `w`'s P-Tuning v2 keys and values, if the file has them."""
    names = (w + "prefix_k.weight", w + "prefix_v.weight")
    return names if any(map(r.has, names)) else None


def block(r: Recorder, c: Config, x: Value, i: int) -> Value:
    w = f"blk.{i}."

    att = r.attention(
        qkv(r, r.rms_norm(x, w + "attn_norm.weight", c.norm_eps), w),
        layer=i,
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_dim,
        rope=c.rope,
        prefix=prefix(r, w),
    )
    h = r.linear(att, w + "attn_output.weight", add=x)

    up = r.linear(r.rms_norm(h, w + "ffn_norm.weight", c.norm_eps), w + "ffn_up.weight")
    return r.linear(r.swiglu(up), w + "ffn_down.weight", add=h)


def record(r: Recorder, c: Config) -> Value:
    x = r.embed("token_embd.weight")
    for i in range(c.layers):
        x = block(r, c, x, i)
    x = r.rms_norm(r.select(x), "output_norm.weight", c.norm_eps)
    return r.linear(x, "output.weight" if r.has("output.weight") else "token_embd.weight")
