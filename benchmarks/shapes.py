"""Shapes of published models, for files of random weights."""

from typing import NamedTuple


class Shape(NamedTuple):
    """architecture: as GGUF names it. tied: the embeddings give the logits too.

    Of a mixture: `dense` leading layers of width `ffn`, then `experts` of width `expert_ffn`, `used` of which a token
    is sent to (weights times `scale`), beside `shared` ones; draft: blocks behind the layers that draft. With a latent
    (`kv_rank`): q_rank of the queries, head_dim of a query, rope_dim of which turn, value_dim of a value. sections: of
    a model that sees, how many pairs turn by each axis.
    """

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
    theta: float = 1e4
    dense: int = 0
    experts: int = 0
    used: int = 0
    expert_ffn: int = 0
    shared: int = 0
    scale: float = 1.0
    draft: int = 0
    q_rank: int = 0
    kv_rank: int = 0
    value_dim: int = 0
    sections: tuple[int, ...] = ()


_MIXTURE = {"theta": 1e6, "dense": 1, "shared": 1}

# As in the published configurations, but for tiny, and without what drafts.
SHAPES = {
    "glm-edge-1.5b": Shape("chatglm", 28, 2048, 16, 4, 128, 6144, 128, 59264, True),
    "glm-edge-4b": Shape("chatglm", 40, 3072, 24, 6, 128, 8192, 128, 59264, True),
    "chatglm3-6b": Shape("chatglm", 28, 4096, 32, 2, 128, 13696, 64, 65024, False),
    "glm-4-9b": Shape("chatglm", 40, 4096, 32, 2, 128, 13696, 64, 151552, False),
    "glm-4-9b-0414": Shape("glm4", 40, 4096, 32, 2, 128, 13696, 64, 151552, False),
    "glm-4-32b": Shape("glm4", 61, 6144, 48, 2, 128, 23040, 64, 151552, False),
    "glm-4.1v-9b": Shape("glm4", 40, 4096, 32, 2, 128, 13696, 64, 151552, False, sections=(8, 12, 12, 0)),
    "glm-ocr": Shape("glm4", 16, 1536, 16, 8, 128, 4608, 128, 59392, False, sections=(16, 24, 24, 0)),
    "glm-4.5-air": Shape(
        "glm4moe", 46, 4096, 96, 8, 128, 10944, 64, 151552, False, experts=128, used=8, expert_ffn=1408, **_MIXTURE
    ),
    "glm-4.7-flash": Shape(
        "deepseek2",
        47,
        2048,
        20,
        1,
        256,
        10240,
        64,
        154880,
        False,
        experts=64,
        used=4,
        expert_ffn=1536,
        scale=1.8,
        q_rank=768,
        kv_rank=512,
        value_dim=256,
        **_MIXTURE,
    ),
    "tiny": Shape("chatglm", 2, 512, 4, 2, 128, 1024, 64, 2048, False),
}


def tensors(s):
    """(name, shape) of every tensor, numpy order."""
    yield "token_embd.weight", (s.vocab, s.dim)
    for i in range(s.layers + s.draft):
        w = f"blk.{i}."
        yield w + "attn_norm.weight", (s.dim,)
        yield from _latent(s, w) if s.kv_rank else _heads(s, w)
        if s.experts:
            yield w + ("ffn_norm.weight" if s.kv_rank else "post_attention_norm.weight"), (s.dim,)
            yield from _experts(s, w) if i >= s.dense else _matrices(w, "", s.ffn, s.dim)
        else:
            yield w + "ffn_norm.weight", (s.dim,)
            yield w + "ffn_up.weight", (2 * s.ffn, s.dim)
            yield w + "ffn_down.weight", (s.dim, s.ffn)
        if s.architecture == "glm4":
            yield w + "post_attention_norm.weight", (s.dim,)
            yield w + "post_ffw_norm.weight", (s.dim,)
        if i >= s.layers:
            yield w + "nextn.eh_proj.weight", (s.dim, 2 * s.dim)
            for name in ("enorm", "hnorm", "shared_head_norm"):
                yield f"{w}nextn.{name}.weight", (s.dim,)
    yield "output_norm.weight", (s.dim,)
    if not s.tied:
        yield "output.weight", (s.vocab, s.dim)


def _heads(s, w):
    parts = {"qkv": s.heads + 2 * s.kv_heads}
    if s.experts:
        parts = {"q": s.heads, "k": s.kv_heads, "v": s.kv_heads}
    for part, heads in parts.items():
        yield f"{w}attn_{part}.weight", (heads * s.head_dim, s.dim)
        if s.architecture in ("chatglm", "glm4moe"):
            yield f"{w}attn_{part}.bias", (heads * s.head_dim,)
    yield w + "attn_output.weight", (s.dim, s.heads * s.head_dim)


def _latent(s, w):
    yield w + "attn_q_a.weight", (s.q_rank, s.dim)
    yield w + "attn_q_a_norm.weight", (s.q_rank,)
    yield w + "attn_q_b.weight", (s.heads * s.head_dim, s.q_rank)
    yield w + "attn_kv_a_mqa.weight", (s.kv_rank + s.rope_dim, s.dim)
    yield w + "attn_kv_a_norm.weight", (s.kv_rank,)
    yield w + "attn_k_b.weight", (s.heads, s.kv_rank, s.head_dim - s.rope_dim)
    yield w + "attn_v_b.weight", (s.heads, s.value_dim, s.kv_rank)
    yield w + "attn_output.weight", (s.dim, s.heads * s.value_dim)


def _experts(s, w):
    yield w + "ffn_gate_inp.weight", (s.experts, s.dim)
    yield w + "exp_probs_b.bias", (s.experts,)
    yield from _matrices(w, "_exps", s.expert_ffn, s.dim, s.experts)
    yield from _matrices(w, "_shexp", s.shared * s.expert_ffn, s.dim)


def _matrices(w, kind, ffn, dim, *experts):
    for part, shape in (("gate", (ffn, dim)), ("up", (ffn, dim)), ("down", (dim, ffn))):
        yield f"{w}ffn_{part}{kind}.weight", (*experts, *shape)


class Eyes(NamedTuple):
    """A tower, and the merger after it. ffn: of a block; inner: of the merger; out: columns of the text model; side: of
    the square of learned positions, 0: none, and then there are biases and norms of the heads."""

    layers: int
    dim: int
    heads: int
    ffn: int
    out: int
    inner: int
    side: int


EYES = {
    "glm-ocr": Eyes(24, 1024, 16, 4096, 1536, 4608, 0),
    "glm-4.1v-9b": Eyes(24, 1536, 12, 4096, 4096, 13696, 24),
}


def eyes_tensors(e):
    """(name, shape) of every tensor of an mmproj, numpy order."""
    for frame in ("", ".1"):
        yield f"v.patch_embd.weight{frame}", (e.dim, 3, 14, 14)
    yield "v.patch_embd.bias", (e.dim,)
    if e.side:
        yield "v.norm_embd.weight", (e.dim,)
        yield "v.position_embd.weight", (e.side**2, e.dim)
    for i in range(e.layers):
        w = f"v.blk.{i}."
        yield w + "ln1.weight", (e.dim,)
        yield w + "ln2.weight", (e.dim,)
        matrices = {"attn_qkv": (3 * e.dim, e.dim), "attn_out": (e.dim, e.dim)}
        matrices |= {"ffn_gate": (e.ffn, e.dim), "ffn_up": (e.ffn, e.dim), "ffn_down": (e.dim, e.ffn)}
        for name, shape in matrices.items():
            yield f"{w}{name}.weight", shape
            if not e.side:
                yield f"{w}{name}.bias", shape[:1]
        if not e.side:
            for part in "qk":
                yield f"{w}attn_{part}_norm.weight", (e.dim // e.heads,)
    yield "v.post_ln.weight", (e.dim,)
    yield "mm.patch_merger.weight", (e.out, e.dim, 2, 2)
    yield "mm.patch_merger.bias", (e.out,)
    yield "mm.model.fc.weight", (e.out, e.out)
    yield "mm.post_norm.weight", (e.out,)
    yield "mm.post_norm.bias", (e.out,)
    yield "mm.gate.weight", (e.inner, e.out)
    yield "mm.up.weight", (e.inner, e.out)
    yield "mm.down.weight", (e.out, e.inner)
