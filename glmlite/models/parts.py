"""What several architectures write alike: the sizes in a file, attention's inputs, a decoder from end to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..program import Recorder, Rope, Value
from .metadata import Keys

__all__ = ["Sizes", "attention", "decoder", "logits", "prefix", "qkv"]


@dataclass(frozen=True)
class Sizes:
    """layers: drafting layers not counted; dim: of the hidden state; context: tokens a sequence was trained for."""

    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int

    @classmethod
    def of(cls, keys: Keys) -> Sizes:
        dim = keys.dim()
        heads, kv_heads, head_dim = keys.heads(dim)
        return cls(keys.layers(), dim, heads, kv_heads, head_dim, keys.count("context_length"))


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


def attention(
    r: Recorder, s: Sizes, qkv: Value, i: int, *, rope: Rope | None, prefix: tuple[str, str] | None = None
) -> Value:
    """Attention of layer `i`: qkv (T, (heads + 2 kv_heads) * head_dim) -> (T, heads * head_dim)."""
    return r.attention(qkv, layer=i, heads=s.heads, kv_heads=s.kv_heads, head_dim=s.head_dim, rope=rope, prefix=prefix)


def decoder(r: Recorder, s: Sizes, norm_eps: float, block: Callable[[Value, int], Value]) -> Value:
    """Embeddings, the blocks one after the other, an RMS norm, the logits. block(x, i): what layer `i` makes of x."""
    x = r.embed("token_embd.weight")
    for i in range(s.layers):
        x = block(x, i)
    return logits(r, r.rms_norm(r.select(x), "output_norm.weight", norm_eps))


def logits(r: Recorder, x: Value) -> Value:
    """(rows, vocab), by the embeddings where the file has no matrix for it."""
    return r.linear(x, "output.weight" if r.has("output.weight") else "token_embd.weight")
