"""GLM-4.7-Flash: `glm4moe` with attention to a latent. GGUF architecture name: `deepseek2`, of DeepSeek-V2.

One block, x of shape (T, dim); the feed forward is that of `glm4moe`, its norm is called `ffn_norm`:

    q = W_qb · rms_norm(W_qa · n)                with n = rms_norm(x); of each head [plain | turning] columns
    [latent | key] = W_kva · n                   one for all heads, the cache's entry: [rms_norm(latent) | turned key]
    s = ((W_kb · plain) · latent + turned · key) / sqrt(plain and turning columns of a head)
    h = x + W_o · (W_vb · sum over entries of softmax(s) · latent)
    y = h + feed_forward(rms_norm(h))

W_kb and W_vb are a matrix for each head. DeepSeek-AI 2024 (V2) writes keys W_kbᵀ · latent and values W_vb · latent;
this is the same with the products taken in another order ("absorbed"), in which nothing is made of an entry
again. RoPE turns interleaved pairs. All norms have the file's eps, as llama.cpp's have; transformers' norms of q and
of the latent have 1e-6 whatever the config says.

Files of other makers run where they are exactly this: DeepSeek's own choose by softmax or in groups of experts, or
scale RoPE by YaRN, and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import FormatError
from ..program import Recorder, Rope, Shapes, Value
from .layout import causal as layout
from .metadata import Experts, Keys
from .parts import Sizes, decoder, drafter, feed_forward

__all__ = ["Config", "block", "draft", "layout", "record"]


@dataclass(frozen=True)
class Config:
    """sizes: one key-value head; head_dim: columns of a query's head. glm: the vocabulary is of the family."""

    sizes: Sizes
    norm_eps: float
    rope: Rope
    latent: int
    experts: Experts
    glm: bool

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], shapes: Shapes) -> Config:
        keys = Keys("deepseek2", metadata, shapes)
        layers, dim = keys.layers(), keys.dim()
        attention = keys.latent_heads(dim)
        rope = keys.rope(attention.head_dim, interleaved=True)
        if rope.yarn is not None:
            raise FormatError("metadata: 'deepseek2.rope.scaling.type' is 'yarn', expected none or linear")
        tokens = metadata.get("tokenizer.ggml.tokens")
        glm = isinstance(tokens, (list, tuple)) and "[gMASK]" in tokens
        return cls(
            sizes=Sizes(layers, dim, attention.heads, 1, attention.head_dim, keys.count("context_length")),
            norm_eps=keys.number("attention.layer_norm_rms_epsilon", most=1),
            rope=rope,
            latent=attention.latent,
            experts=keys.experts(layers, glm=glm),
            glm=glm,
        )


def block(r: Recorder, c: Config, x: Value, i: int, layer: int) -> Value:
    """Block i; layer: of the cache."""
    w = f"blk.{i}."

    norm = r.rms_norm(x, w + "attn_norm.weight", c.norm_eps)
    low = r.rms_norm(r.linear(norm, w + "attn_q_a.weight"), w + "attn_q_a_norm.weight", c.norm_eps)
    att = r.latent_attention(
        r.head_linear(r.linear(low, w + "attn_q_b.weight"), w + "attn_k_b.weight", keep=c.rope.dim),
        r.linear(norm, w + "attn_kv_a_mqa.weight"),
        layer,
        heads=c.sizes.heads,
        latent=c.latent,
        rope=c.rope,
        scale=c.sizes.head_dim**-0.5,
        norm=w + "attn_kv_a_norm.weight",
        norm_eps=c.norm_eps,
    )
    h = r.linear(r.head_linear(att, w + "attn_v_b.weight"), w + "attn_output.weight", add=x)

    norm = r.rms_norm(h, w + "ffn_norm.weight", c.norm_eps)
    return feed_forward(r, c.experts, norm, i, biased=c.glm, add=h)


def record(r: Recorder, c: Config) -> Value:
    return decoder(r, c.sizes, c.norm_eps, lambda x, i: block(r, c, x, i, i))


def draft(r: Recorder, c: Config) -> Value:
    return drafter(r, c.sizes, c.norm_eps, lambda x, i, layer: block(r, c, x, i, layer))
