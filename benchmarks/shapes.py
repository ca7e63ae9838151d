"""Shapes of published models, for files of random weights."""

from typing import NamedTuple


class Shape(NamedTuple):
    """architecture: as GGUF names it. tied: the embeddings give the logits too."""

    architecture: str
    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    rope_dim: int
    vocab: int
    tied: bool


# As in the published configurations, but for tiny.
SHAPES = {
    "glm-edge-1.5b": Shape("chatglm", 28, 2048, 16, 4, 128, 6144, 128, 59264, True),
    "glm-edge-4b": Shape("chatglm", 40, 3072, 24, 6, 128, 8192, 128, 59264, True),
    "chatglm3-6b": Shape("chatglm", 28, 4096, 32, 2, 128, 13696, 64, 65024, False),
    "glm-4-9b": Shape("chatglm", 40, 4096, 32, 2, 128, 13696, 64, 151552, False),
    "glm-4-9b-0414": Shape("glm4", 40, 4096, 32, 2, 128, 13696, 64, 151552, False),
    "glm-4-32b": Shape("glm4", 61, 6144, 48, 2, 128, 23040, 64, 151552, False),
    "tiny": Shape("chatglm", 2, 512, 4, 2, 128, 1024, 64, 2048, False),
}


def tensors(s):
    """(name, rows or None for a vector, columns) of every tensor."""
    heads = (s.heads + 2 * s.kv_heads) * s.head_dim
    yield "token_embd.weight", s.vocab, s.dim
    for i in range(s.layers):
        w = f"blk.{i}."
        yield w + "attn_norm.weight", None, s.dim
        yield w + "attn_qkv.weight", heads, s.dim
        if s.architecture == "chatglm":
            yield w + "attn_qkv.bias", None, heads
        yield w + "attn_output.weight", s.dim, s.heads * s.head_dim
        yield w + "ffn_norm.weight", None, s.dim
        yield w + "ffn_up.weight", 2 * s.ffn, s.dim
        yield w + "ffn_down.weight", s.dim, s.ffn
        if s.architecture == "glm4":
            yield w + "post_attention_norm.weight", None, s.dim
            yield w + "post_ffw_norm.weight", None, s.dim
    yield "output_norm.weight", None, s.dim
    if not s.tied:
        yield "output.weight", s.vocab, s.dim
