"""Llama and what is built like it: Llama 2 and 3, Mistral, SmolLM2. GGUF architecture name: `llama`.

One block, x of shape (T, dim):

    h = x + W_o · attention(W_q · rms_norm(x) | W_k · rms_norm(x) | W_v · rms_norm(x))
    y = h + W_down · swiglu(W_gate · rms_norm(h) | W_up · rms_norm(h))

RoPE turns interleaved pairs: the checkpoints of Hugging Face turn column i with i + n/2, and
llama.cpp's converter reorders the rows of W_q and W_k for it. Llama 3 divides the frequencies by
the factors in `rope_freqs.weight`. Some relatives have biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program import Recorder, Rope, Shapes, Value
from .layout import causal as layout
from .metadata import Keys
from .parts import Sizes, attention, decoder, qkv

__all__ = ["Config", "block", "layout", "record"]


@dataclass(frozen=True)
class Config:
    sizes: Sizes
    norm_eps: float
    rope: Rope

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], shapes: Shapes) -> Config:
        keys = Keys("llama", metadata, shapes)
        sizes = Sizes.of(keys)
        factors = "rope_freqs.weight" if "rope_freqs.weight" in shapes else None
        return cls(
            sizes=sizes,
            norm_eps=keys.number("attention.layer_norm_rms_epsilon", most=1),
            rope=keys.rope(sizes.head_dim, interleaved=True, factors=factors),
        )


def block(r: Recorder, c: Config, x: Value, i: int) -> Value:
    w = f"blk.{i}."

    def bias(*names: str) -> list[str] | None:
        names = [f"{w}{name}.bias" for name in names]
        return names if any(map(r.has, names)) else None

    heads = qkv(r, r.rms_norm(x, w + "attn_norm.weight", c.norm_eps), w)
    att = attention(r, c.sizes, heads, i, rope=c.rope)
    h = r.linear(att, w + "attn_output.weight", bias=bias("attn_output"), add=x)

    norm = r.rms_norm(h, w + "ffn_norm.weight", c.norm_eps)
    up = r.linear(norm, [w + "ffn_gate.weight", w + "ffn_up.weight"], bias=bias("ffn_gate", "ffn_up"))
    return r.linear(r.swiglu(up), w + "ffn_down.weight", bias=bias("ffn_down"), add=h)


def record(r: Recorder, c: Config) -> Value:
    return decoder(r, c.sizes, c.norm_eps, lambda x, i: block(r, c, x, i))
