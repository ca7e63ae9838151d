"""What is known of the GLM family beyond what a file says of itself: its architectures, the published models and what
they all share.

A model is recognised by its sizes, which a fine-tuned or renamed copy keeps, never by its name. The numbers are those
of the published configs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal

__all__ = [
    "ENDS",
    "FAMILY",
    "GAPS",
    "GLM_SPECIALS",
    "PUBLISHED",
    "SIGMOID",
    "Architecture",
    "Blanks",
    "Published",
    "Sizes",
    "about",
    "is_edge",
    "is_glm",
    "recognise",
]

# Every chat model since ChatGLM3 ends its turn with one of these; each under the key that GGUF has for it.
ENDS: Mapping[str, str] = {"eos": "<|endoftext|>", "eot": "<|user|>", "eom": "<|observation|>"}
# What code models write around a gap, before, behind and in it; each under the keys that GGUF has, and had, for it.
GAPS: Mapping[tuple[str, str], str] = {
    ("fim_pre", "prefix"): "<|code_prefix|>",
    ("fim_suf", "suffix"): "<|code_suffix|>",
    ("fim_mid", "middle"): "<|code_middle|>",
}
# Special tokens of GLM vocabularies. Older files mark them as user-defined, or have no token types.
GLM_SPECIALS = frozenset(
    [
        "[MASK]",
        "[gMASK]",
        "[sMASK]",
        "<sop>",
        "<eop>",
        "sop",
        "eop",
        "<|startofpiece|>",
        "<|endofpiece|>",
        "<|endoftext|>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|observation|>",
        "<|begin_of_image|>",
        "<|end_of_image|>",
        "<|begin_of_video|>",
        "<|end_of_video|>",
    ]
)
# `expert_gating_func`: GGUF counts softmax as 1.
SIGMOID = 2

# Tokens of GLM-Edge's vocabulary, and fewer than any copy of GLM-4's 151,552 has.
_EDGE, _GLM4 = 59264, 100_000


@dataclass(frozen=True)
class Blanks:
    """How an architecture fills blanks. masks: in the order in which they are filled, if not `several`.
    default: the mask that a text without one gets at its end. start: what a piece begins with. before, after: what a
    text begins and ends with. several: pieces for several masks in one prompt."""

    masks: tuple[str, ...]
    default: str
    start: str
    before: str | None = None
    after: str | None = None
    several: bool = False


@dataclass(frozen=True)
class Architecture:
    """What holds for the models of an architecture, beyond the mathematics that glmlite/models/<name>.py has.

    glm: whether they are of the family, all, none, or those with `[gMASK]` in their vocabulary.
    versions: ChatGLM2, ChatGLM3, GLM-4 and GLM-Edge go by this name; vocabulary and tensors tell which it is.
    prefix: where `[gMASK]<sop>` stands in a prompt, if anywhere.
    chat: the dialect (glmlite.chat.dialects) of a file without a template; None: no chat model, as far as is known.
        Of several `versions`, that of the newest.
    blanks: how it fills blanks, if it was trained to.
    asks_gap: a gap in code is filled as the answer to a question, by those with `GAPS` in their vocabulary.
    layer_norm: the norms subtract the mean, so the constant has another key than RMS norms have.
    half_rope: RoPE turns half of a head's columns.
    experts: a router chooses among experts.
    tied: the embeddings may give the logits.
    pre: how a byte-level vocabulary cuts text, where no `[gMASK]<sop>` tells it.
    shows_special: the makers' own decode leaves special tokens in the text.
    asks_bos: the tokenizer's files say whether a prompt begins with BOS.
    """

    glm: Literal["all", "none", "by vocabulary"] = "all"
    versions: bool = False
    prefix: Literal["first", "last"] | None = "first"
    chat: str | None = None
    blanks: Blanks | None = None
    asks_gap: bool = False
    layer_norm: bool = False
    half_rope: bool = False
    experts: bool = False
    tied: bool = False
    pre: str | None = None
    shows_special: bool = False
    asks_bos: bool = False


# By GGUF's name. `deepseek2` is what GLM-4.7-Flash is written as; other makers' models are too.
FAMILY: Mapping[str, Architecture] = {
    "chatglm": Architecture(versions=True, chat="glm4", asks_gap=True, half_rope=True),
    "glm": Architecture(
        prefix=None,
        blanks=Blanks(
            masks=("[MASK]", "[sMASK]", "[gMASK]"),
            default="[gMASK]",
            start="<|startofpiece|>",
            before="[CLS]",
            after="<|endoftext|>",
            several=True,
        ),
        layer_norm=True,
        tied=True,
        pre="gpt-2",
    ),
    "chatglm1": Architecture(
        prefix="last",
        chat="chatglm",
        blanks=Blanks(masks=("[gMASK]", "[MASK]"), default="[gMASK]", start="<sop>"),
        layer_norm=True,
        tied=True,
        shows_special=True,
    ),
    "glm4": Architecture(chat="glm4-0414", half_rope=True),
    "glm4moe": Architecture(half_rope=True, experts=True),
    "deepseek2": Architecture(glm="by vocabulary", experts=True),
    "llama": Architecture(glm="none", prefix=None, asks_bos=True),
}
_UNKNOWN = Architecture(glm="none", prefix=None)


def about(architecture: str | None) -> Architecture:
    """The row of an architecture; that of no GLM for a name that is not known."""
    return FAMILY.get(architecture or "", _UNKNOWN)


@dataclass(frozen=True)
class Sizes:
    """What tells a published model from the others. layers: drafting layers not counted; vocab: rows of the
    embeddings."""

    layers: int
    dim: int
    heads: int
    vocab: int


@dataclass(frozen=True)
class Published:
    """The constants of a published model that are not seen in its tensors.

    rope_dim: columns of a head that turn; None: not a key. base: of RoPE, whatever the length; bases: of the copies
    made for a longer context, tokens -> base. context: tokens that `base` 10000 reaches unscaled; 0: not known.
    tied: the embeddings give the logits. scale: of the experts' weights; used: experts a token; None: no experts.
    """

    name: str
    architecture: str
    sizes: Sizes
    eps: float = 1e-5
    rope_dim: int | None = None
    base: float | None = None
    bases: Mapping[int, float] = field(default_factory=dict)
    context: int = 0
    tied: bool = False
    scale: float | None = None
    used: int | None = None


PUBLISHED: Sequence[Published] = (
    Published("ChatGLM-6B", "chatglm1", Sizes(28, 4096, 32, 130528)),
    Published("ChatGLM-6B, first release", "chatglm1", Sizes(28, 4096, 32, 150528)),
    # In the long ones ChatGLM3 multiplies the base, ChatGLM2 divides the positions: which it is cannot be seen.
    Published("ChatGLM2-6B, ChatGLM3-6B, CodeGeeX2", "chatglm", Sizes(28, 4096, 32, 65024), rope_dim=64, context=8192),
    Published(
        "GLM-4-9B, CodeGeeX4",
        "chatglm",
        Sizes(40, 4096, 32, 151552),
        eps=1.5625e-7,
        rope_dim=64,
        bases={131072: 5e6},
        context=8192,
    ),
    Published("GLM-Edge 1.5B", "chatglm", Sizes(28, 2048, 16, 59264), rope_dim=128, base=1e4, tied=True),
    Published("GLM-4-9B-0414, GLM-Z1-9B", "glm4", Sizes(40, 4096, 32, 151552), rope_dim=64, base=1e4, context=32768),
    Published("GLM-4-32B-0414, GLM-Z1-32B", "glm4", Sizes(61, 6144, 48, 151552), rope_dim=64, base=1e4, context=32768),
    Published("GLM-OCR", "glm4", Sizes(16, 1536, 16, 59392), rope_dim=128),
    Published("GLM-4.5-Air", "glm4moe", Sizes(46, 4096, 96, 151552), rope_dim=64, base=1e6, scale=1.0, used=8),
    Published(
        "GLM-4.5, GLM-4.6, GLM-4.7", "glm4moe", Sizes(92, 5120, 96, 151552), rope_dim=64, base=1e6, scale=2.5, used=8
    ),
    Published("GLM-4.7-Flash", "deepseek2", Sizes(47, 2048, 20, 154880), rope_dim=64, base=1e6, scale=1.8, used=4),
)


def recognise(architecture: str, sizes: Sizes) -> Published | None:
    """The published model of these sizes."""
    return next((model for model in PUBLISHED if (model.architecture, model.sizes) == (architecture, sizes)), None)


def is_glm(architecture: str, tokens: Sequence[Any]) -> bool:
    """Whether a file belongs to the family: by its architecture, or, under another maker's, by its vocabulary."""
    glm = about(architecture).glm
    return glm == "all" or (glm == "by vocabulary" and "[gMASK]" in tokens)


def is_edge(architecture: str, metadata: Mapping[str, Any]) -> bool:
    """Whether a file is a GLM-Edge: its prompts have no `[gMASK]<sop>`, though its vocabulary does.

    GLM-4, of the same architecture, has more than twice as many tokens, and RoPE turns only half of its heads. A copy
    with a vocabulary of another size is told by what turns: without the key, all of a head.
    """
    if not about(architecture).versions or metadata.get("tokenizer.ggml.model") == "llama":
        return False
    tokens = metadata.get("tokenizer.ggml.tokens")
    count = len(tokens) if isinstance(tokens, (list, tuple)) else 0
    if count == _EDGE or count >= _GLM4:
        return count == _EDGE

    def size(name: str) -> int:
        value = metadata.get(f"{architecture}.{name}")
        return int(value) if isinstance(value, Integral) else 0

    turns, heads = size("rope.dimension_count"), size("attention.head_count")
    head_dim = size("attention.key_length") or (size("embedding_length") // heads if heads else 0)
    return not turns or 2 * turns > head_dim
