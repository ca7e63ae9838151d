"""ChatGLM-6B, the first one. GGUF architecture name: `chatglm1` (ours; llama.cpp has none).

One block, x of shape (T, dim); every matrix of it has a bias:

    a = layer_norm(x)
    h = W_o · attention(W_qkv · a) + alpha · a
    b = layer_norm(h)
    y = W_down · gelu(W_up · b) + alpha · b

Against `chatglm`: what the residual adds is the normed value, alpha-fold. alpha is sqrt(2 * 28), from
the 28 layers of the published model whatever the depth, so it is a key of its own. A head has two
halves: the first is turned by the token's position, the second by its place in the generated piece
(column i with i + head_dim/4, base 10000 over head_dim/2 columns). The context, all before `<sop>`,
sees itself in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import FormatError
from ..program import Recorder, Rope, Shapes, Value
from .layout import Layout, Special, indices, infilling
from .metadata import Keys
from .parts import Sizes, attention, logits, prefix

__all__ = ["Config", "block", "layout", "record"]


@dataclass(frozen=True)
class Config:
    sizes: Sizes
    norm_eps: float
    rope: Rope
    alpha: float

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], shapes: Shapes) -> Config:
        keys = Keys("chatglm1", metadata, shapes)
        sizes = Sizes.of(keys)
        if sizes.head_dim % 4:
            columns = sizes.head_dim
            raise FormatError(f"metadata: 'chatglm1': a head has {columns} columns, expected two halves of pairs")
        return cls(
            sizes=sizes,
            norm_eps=keys.number("attention.layer_norm_epsilon", most=1),
            rope=Rope(sizes.head_dim, keys.number("rope.freq_base", 10000.0), interleaved=False, axes=(0, 1)),
            alpha=keys.number("residual_alpha", most=1e6),
        )


def layout(ids: Sequence[int], special: Special) -> Layout:
    """The context before `<sop>`; then every token at the position of `[gMASK]`, or of `[MASK]` if there is none."""
    starts = indices(ids, special("<sop>"))[:1]
    masks = indices(ids, special("[gMASK]")) or indices(ids, special("[MASK]"))
    if not starts or not masks:
        raise ValueError("chatglm1: the prompt has no [gMASK] (or [MASK]) and <sop>, expected them at its end")
    return infilling(len(ids), starts, masks[:1])


def block(r: Recorder, c: Config, x: Value, i: int) -> Value:
    w = f"blk.{i}."

    a = r.layer_norm(x, w + "attn_norm.weight", w + "attn_norm.bias", c.norm_eps)
    heads = r.linear(a, w + "attn_qkv.weight", bias=w + "attn_qkv.bias")
    att = attention(r, c.sizes, heads, i, rope=c.rope, prefix=prefix(r, w))
    h = r.linear(att, w + "attn_output.weight", bias=w + "attn_output.bias", add=a, alpha=c.alpha)

    b = r.layer_norm(h, w + "ffn_norm.weight", w + "ffn_norm.bias", c.norm_eps)
    up = r.linear(b, w + "ffn_up.weight", bias=w + "ffn_up.bias")
    return r.linear(r.gelu(up), w + "ffn_down.weight", bias=w + "ffn_down.bias", add=b, alpha=c.alpha)


def record(r: Recorder, c: Config) -> Value:
    x = r.embed("token_embd.weight")
    for i in range(c.sizes.layers):
        x = block(r, c, x, i)
    return logits(r, r.layer_norm(r.select(x), "output_norm.weight", "output_norm.bias", c.norm_eps))
