"""What several architectures write alike: the sizes in a file, attention's inputs, a feed forward with experts, a whole
decoder and a whole drafting layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..program import Recorder, Rope, Value
from .metadata import Experts, Keys

__all__ = ["Sizes", "attention", "decoder", "drafter", "feed_forward", "logits", "prefix", "qkv"]


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
    r: Recorder, s: Sizes, qkv: Value, i: int, *, rope: Rope | None, prefix: tuple[str, str] | None = None, **norms: Any
) -> Value:
    """Attention of layer `i`: qkv (T, (heads + 2 kv_heads) * head_dim) -> (T, heads * head_dim).

    norms: of the heads of q and k, as `Recorder.attention` has them.
    """
    sizes = {"heads": s.heads, "kv_heads": s.kv_heads, "head_dim": s.head_dim}
    return r.attention(qkv, i, rope=rope, prefix=prefix, **sizes, **norms)


def feed_forward(r: Recorder, e: Experts, x: Value, i: int, *, biased: bool, add: Value) -> Value:
    """Block i's feed forward of x, and `add`: dense in the leading blocks, a mixture of experts in the others.

    biased: the bias that moves the choice of experts is no optional tensor.
    """
    w = f"blk.{i}."

    def swiglu(kind: str) -> Value:
        up = r.linear(x, [f"{w}ffn_gate{kind}.weight", f"{w}ffn_up{kind}.weight"])
        return r.linear(r.swiglu(up), f"{w}ffn_down{kind}.weight", add=add)

    if i < e.dense:
        return swiglu("")
    bias = w + "exp_probs_b.bias"
    gate = w + "ffn_gate_inp.weight"
    routing = r.route(x, gate, bias if biased or r.has(bias) else None, used=e.used, scale=e.scale)
    if e.shared or r.has(w + "ffn_gate_shexp.weight"):
        add = swiglu("_shexp")
    both = w + "ffn_gate_up_exps.weight"
    gate_up = both if r.has(both) else [w + "ffn_gate_exps.weight", w + "ffn_up_exps.weight"]
    return r.moe(x, routing, gate_up, w + "ffn_down_exps.weight", add=add)


def decoder(r: Recorder, s: Sizes, norm_eps: float, block: Callable[[Value, int], Value]) -> Value:
    """Embeddings, the blocks one after the other, an RMS norm, the logits. block(x, i): what layer `i` makes of x."""
    x = r.embed("token_embd.weight")
    for i in range(s.layers):
        x = block(x, i)
    return logits(r, r.rms_norm(r.select(x), "output_norm.weight", norm_eps))


def drafter(r: Recorder, s: Sizes, norm_eps: float, block: Callable[[Value, int, int], Value]) -> Value:
    """The drafting layer (multi-token prediction), a model of one block that is given the trunk's rows.

    x = W_eh · [rms_norm(embedding of the token at p) | rms_norm(the trunk's row at p - 1, after its last norm)], one
    block with a cache of its own, a norm, the logits: what it takes for the token at p + 1. Its norm is the trunk's, as
    are its embeddings and its head, where it has none of its own. block(x, i, layer): what block i makes of x, with
    `layer` of the cache. Every row is normed, not the selected ones alone: a second draft is given them in turn.

    Source: DeepSeek-AI 2024 (V3), section 2.2.
    """
    w = f"blk.{s.layers}.nextn."

    def own(name: str, trunk: str) -> str:
        return f"{w}{name}.weight" if r.has(f"{w}{name}.weight") else trunk

    embedded = r.rms_norm(r.embed(own("embed_tokens", "token_embd.weight")), w + "enorm.weight", norm_eps)
    before = r.rms_norm(r.input(s.dim), w + "hnorm.weight", norm_eps)
    x = block(r.linear(r.concat(embedded, before), w + "eh_proj.weight"), s.layers, 0)
    x = r.rms_norm(x, own("shared_head_norm", "output_norm.weight"), norm_eps)
    return r.linear(r.select(x), own("shared_head_head", head(r)))


def logits(r: Recorder, x: Value) -> Value:
    """(rows, vocab)."""
    return r.linear(x, head(r))


def head(r: Recorder) -> str:
    """The matrix that gives the logits: the embeddings where the file has none for it."""
    return "output.weight" if r.has("output.weight") else "token_embd.weight"
