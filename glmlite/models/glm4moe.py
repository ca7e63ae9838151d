"""GLM-4.5, 4.6 and 4.7, and their Air models: a mixture of experts. GGUF architecture name: `glm4moe`.

One block, x of shape (T, dim); the first blocks have W_down · swiglu([W_gate | W_up] · n) in place of experts:

    h = x + W_o · attention(W_qkv · rms_norm(x) + b_qkv)
    n = rms_norm(h)
    y = h + shared(n) + sum over the chosen experts e of weight_e · expert_e(n)

    s = sigmoid(W_router · n); chosen: the `used` largest of s + b; weight_e = scale · s_e / (sum of the chosen s)

The shared expert and the others are W_down · swiglu([W_gate | W_up] · n), each with its own matrices.

Against `glm4`: two norms, not four; the second, called `post_attention_norm`, stands before the experts. RoPE turns
the first half of a head's columns, column i with i + n/2. The large models norm each head of q and k before it turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program import Recorder, Rope, Shapes, Value
from .layout import causal as layout
from .metadata import Experts, Keys
from .parts import Sizes, attention, decoder, drafter, feed_forward, qkv

__all__ = ["Config", "block", "draft", "layout", "record"]


@dataclass(frozen=True)
class Config:
    sizes: Sizes
    norm_eps: float
    rope: Rope
    experts: Experts

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], shapes: Shapes) -> Config:
        keys = Keys("glm4moe", metadata, shapes)
        sizes = Sizes.of(keys)
        return cls(
            sizes=sizes,
            norm_eps=keys.number("attention.layer_norm_rms_epsilon", most=1),
            rope=keys.rope(sizes.head_dim, interleaved=False),
            experts=keys.experts(sizes.layers, glm=True),
        )


def block(r: Recorder, c: Config, x: Value, i: int, layer: int) -> Value:
    """Block i; layer: of the cache."""
    w = f"blk.{i}."

    heads = qkv(r, r.rms_norm(x, w + "attn_norm.weight", c.norm_eps), w)
    normed = r.has(w + "attn_q_norm.weight") or r.has(w + "attn_k_norm.weight")
    norms = {"q_norm": w + "attn_q_norm.weight", "k_norm": w + "attn_k_norm.weight"} if normed else {}
    att = attention(r, c.sizes, heads, layer, rope=c.rope, norm_eps=c.norm_eps, **norms)
    h = r.linear(att, w + "attn_output.weight", add=x)

    norm = r.rms_norm(h, w + "post_attention_norm.weight", c.norm_eps)
    return feed_forward(r, c.experts, norm, i, biased=True, add=h)


def record(r: Recorder, c: Config) -> Value:
    return decoder(r, c.sizes, c.norm_eps, lambda x, i: block(r, c, x, i, i))


def draft(r: Recorder, c: Config) -> Value:
    return drafter(r, c.sizes, c.norm_eps, lambda x, i, layer: block(r, c, x, i, layer))
