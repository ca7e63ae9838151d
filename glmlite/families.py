"""What is known of the GLM family beyond what a file says of itself: the published models and what they all share.

A model is recognised by its sizes, which a fine-tuned or renamed copy keeps, never by its name. The numbers are those
of the published configs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

__all__ = [
    "ARCHITECTURES",
    "ENDS",
    "GLM_SPECIALS",
    "PUBLISHED",
    "SIGMOID",
    "Published",
    "Sizes",
    "is_edge",
    "is_glm",
    "recognise",
]

# Every chat model since ChatGLM3 ends its turn with one of these; each under the key that GGUF has for it.
ENDS: Mapping[str, str] = {"eos": "<|endoftext|>", "eot": "<|user|>", "eom": "<|observation|>"}
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

# GGUF's names. `deepseek2` is what GLM-4.7-Flash is written as; other makers' models are too.
ARCHITECTURES = ("chatglm", "chatglm1", "glm", "glm4", "glm4moe")


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
    tied: the embeddings give the logits. scale: of the experts' weights; None: no experts.
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
    Published("GLM-4.5-Air", "glm4moe", Sizes(46, 4096, 96, 151552), rope_dim=64, base=1e6, scale=1.0),
    Published("GLM-4.5, GLM-4.6, GLM-4.7", "glm4moe", Sizes(92, 5120, 96, 151552), rope_dim=64, base=1e6, scale=2.5),
    Published("GLM-4.7-Flash", "deepseek2", Sizes(47, 2048, 20, 154880), rope_dim=64, base=1e6, scale=1.8),
)


def recognise(architecture: str, sizes: Sizes) -> Published | None:
    """The published model of these sizes."""
    return next((model for model in PUBLISHED if (model.architecture, model.sizes) == (architecture, sizes)), None)


def is_glm(architecture: str, tokens: Sequence[Any]) -> bool:
    """Whether a file belongs to the family: by its architecture, or, under another maker's, by its vocabulary."""
    return architecture in ARCHITECTURES or (architecture == "deepseek2" and "[gMASK]" in tokens)


def is_edge(architecture: str, metadata: Mapping[str, Any]) -> bool:
    """Whether a file is a GLM-Edge: its prompts have no `[gMASK]<sop>`, though its vocabulary does.

    GLM-4, of the same architecture, has more than twice as many tokens, and RoPE turns only half of its heads. A copy
    with a vocabulary of another size is told by what turns: without the key, all of a head.
    """
    if architecture != "chatglm" or metadata.get("tokenizer.ggml.model") == "llama":
        return False
    tokens = metadata.get("tokenizer.ggml.tokens")
    count = len(tokens) if isinstance(tokens, (list, tuple)) else 0
    if count == _EDGE or count >= _GLM4:
        return count == _EDGE

    def size(name: str) -> int:
        value = metadata.get(f"chatglm.{name}")
        return int(value) if isinstance(value, Integral) else 0

    turns, heads = size("rope.dimension_count"), size("attention.head_count")
    head_dim = size("attention.key_length") or (size("embedding_length") // heads if heads else 0)
    return not turns or 2 * turns > head_dim
