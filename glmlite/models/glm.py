"""GLM, the blank-infilling model: glm-large, glm-10b and their -chinese twins. GGUF architecture name: `glm` (ours).

One block, x of shape (T, dim); every matrix of it has a bias:

    h = x + W_o · attention(W_qkv · layer_norm(x))
    y = h + W_down · gelu(W_up · layer_norm(h))

Against Llama: no RoPE, two tables of learned positions are added to the embeddings instead, one for
the place in the text, one for the place in the piece being written; the logits come from the
embeddings. The context sees itself in both directions. A piece, which starts with
`<|startofpiece|>`, fills one mask of it; further pieces fill the further masks and see the earlier.

Source: Du et al. 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import FormatError
from ..program import Recorder, Shapes, Value
from .layout import Layout, Special, indices, infilling
from .metadata import Keys
from .parts import Sizes, attention

__all__ = ["Config", "block", "layout", "record"]

MASKS = ("[MASK]", "[sMASK]", "[gMASK]")
START = "<|startofpiece|>"
POSITIONS = ("position_embd.weight", "block_position_embd.weight")


@dataclass(frozen=True)
class Config:
    sizes: Sizes
    norm_eps: float

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], shapes: Shapes) -> Config:
        keys = Keys("glm", metadata, shapes)
        sizes = Sizes.of(keys)
        for name in POSITIONS:
            # The place in a piece counts from 1, so a table has a row more than the context has tokens.
            if len(shapes.get(name, ())) == 2 and shapes[name][0] <= sizes.context:
                rows = shapes[name][0]
                raise FormatError(f"'{name}' has {rows} rows, expected more than the context's {sizes.context}")
        return cls(sizes=sizes, norm_eps=keys.number("attention.layer_norm_epsilon", most=1))


def layout(ids: Sequence[int], special: Special) -> Layout:
    """The context before `<|startofpiece|>`; then pieces, the n-th at the position of the n-th mask.

    To fill several masks, generate the first piece, append it (without its `<|endofpiece|>`) and
    another `<|startofpiece|>` to the prompt, and ask for the layout again.
    """
    starts = indices(ids, special(START))
    context = ids[: starts[0]] if starts else ids
    masks = sorted(i for mask in MASKS for i in indices(context, special(mask)))
    if not starts or len(masks) < len(starts):
        raise ValueError(
            f"glm: the prompt has {len(masks)} masks ({', '.join(MASKS)}) and {len(starts)} {START}, "
            f"expected at least one {START} and no more than masks"
        )
    return infilling(len(ids), starts, masks)


def block(r: Recorder, c: Config, x: Value, i: int) -> Value:
    w = f"blk.{i}."

    a = r.layer_norm(x, w + "attn_norm.weight", w + "attn_norm.bias", c.norm_eps)
    heads = r.linear(a, w + "attn_qkv.weight", bias=w + "attn_qkv.bias")
    att = attention(r, c.sizes, heads, i, rope=None)
    h = r.linear(att, w + "attn_output.weight", bias=w + "attn_output.bias", add=x)

    b = r.layer_norm(h, w + "ffn_norm.weight", w + "ffn_norm.bias", c.norm_eps)
    up = r.linear(b, w + "ffn_up.weight", bias=w + "ffn_up.bias")
    return r.linear(r.gelu(up), w + "ffn_down.weight", bias=w + "ffn_down.bias", add=h)


def record(r: Recorder, c: Config) -> Value:
    x = r.embed("token_embd.weight", POSITIONS)
    for i in range(c.sizes.layers):
        x = block(r, c, x, i)
    x = r.layer_norm(r.select(x), "output_norm.weight", "output_norm.bias", c.norm_eps)
    return r.linear(x, "token_embd.weight")
