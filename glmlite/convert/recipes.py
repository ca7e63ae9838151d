"""Which type each tensor gets: recipes by the tensor's role.

A recipe is a base type and exceptions. Vectors, tables of positions and trained prefixes stay f32: they are small and
nothing multiplies with them in blocks. So do routers, whose scores decide which experts are read at all. Matrices whose
rows are no whole blocks of a type get a type of blocks of 32 that is at least as good: ffn_down of GLM-4-9B has rows of
13696 = 53.5 * 256, GLM-4.5-Air's ffn_down_exps of 1408 = 5.5 * 256.

Experts are most of a mixture and a token reads few of them, so what every token reads may have more bits: the expert
that is shared, and the small matrices before and after a cached latent, whose errors meet every key.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from .formats import TYPES

__all__ = ["EYES", "RECIPES", "choose", "file_type"]


class Recipe(NamedTuple):
    """file_type: llama.cpp's number for it (`general.file_type`). base: of all matrices without an exception.

    roles: role -> type in all layers; more: role -> type in the layers that matter most, see `_matters`.
    """

    file_type: int
    base: str
    roles: Mapping[str, str] = MappingProxyType({})
    more: Mapping[str, str] = MappingProxyType({})


_HEAD = {"output": "Q6_K", "shared_head_head": "Q6_K"}
_LATENT = {"attn_k_b": "Q8_0", "attn_v_b": "Q8_0", "attn_q_a": "Q6_K", "attn_kv_a_mqa": "Q6_K"}
_ALWAYS = _HEAD | _LATENT | {"ffn_down_shexp": "Q6_K"}
_MORE = {"attn_v": "Q6_K", "ffn_down": "Q6_K", "ffn_down_exps": "Q6_K"}
RECIPES = {
    "f32": Recipe(0, "F32"),
    "f16": Recipe(1, "F16"),
    "bf16": Recipe(32, "BF16"),
    "q8_0": Recipe(7, "Q8_0"),
    "q6_k": Recipe(18, "Q6_K", _ALWAYS),
    "q5_k_m": Recipe(17, "Q5_K", _ALWAYS | {"attn_qkv": "Q6_K"}, _MORE),
    "q4_k_m": Recipe(15, "Q4_K", _ALWAYS | {"attn_qkv": "Q5_K"}, _MORE),
    "q4_k_s": Recipe(14, "Q4_K", _ALWAYS | {"attn_v": "Q5_K"}),
    "q4_0": Recipe(2, "Q4_0", _ALWAYS),
    "iq4_xs": Recipe(30, "IQ4_XS", _ALWAYS | {"attn_v": "Q5_K", "attn_qkv": "Q5_K"}),
    "iq4_nl": Recipe(25, "IQ4_NL", _ALWAYS | {"attn_v": "Q5_K", "attn_qkv": "Q5_K"}),
}
EYES = ("f32", "f16", "bf16", "q8_0")  # recipes for eyes: no role in them has a type of its own
# For rows that are not whole blocks of 256.
_SMALLER = {"Q6_K": "Q8_0", "Q5_K": "Q5_1", "Q4_K": "Q5_0", "IQ4_XS": "IQ4_NL"}
_WHOLE = re.compile(r"(position_embd|block_position_embd|rope_freqs|prefix_[kv]|ffn_gate_inp)\.weight$|\.bias$")


def choose(
    name: str, shape: tuple[int, ...], recipe: str, layers: int, tied: bool, overrides: Sequence[tuple[str, str]] = ()
) -> str:
    """The type of a tensor of a model of `layers` layers.

    tied: the embeddings give the logits too, so they get the output's type. overrides: (pattern, type), the last that
    matches the name counts; a pattern is a shell's (`*ffn_down*`) or a part of the name.
    Raises ValueError for an override whose type the tensor's rows cannot have.
    """
    if len(shape) < 2 or _WHOLE.search(name):
        return "F32"
    if len(shape) > 3:  # the kernel of a convolution, which programs take in no other types
        return "F32" if RECIPES[recipe].base in ("F32", "BF16") else "F16"
    columns = shape[-1]
    wanted = [type for pattern, type in overrides if matches(pattern, name)]
    if wanted:
        if columns % TYPES[wanted[-1]].values:
            raise ValueError(
                f"--tensor-type: {name!r} has rows of {columns}, no whole blocks of {TYPES[wanted[-1]].values}, as "
                f"{wanted[-1].lower()} needs"
            )
        return wanted[-1]
    r = RECIPES[recipe]
    role = name.removesuffix(".weight").split(".")[-1]
    if tied and role == "token_embd":
        role = "output"
    type = r.roles.get(role, r.base)
    if role in r.more and _matters(int(name.split(".")[1]), layers):
        type = r.more[role]
    if columns % TYPES[type].values:
        type = _SMALLER.get(type, "F16")
    return type if columns % TYPES[type].values == 0 else "F16"


def matches(pattern: str, name: str) -> bool:
    """Whether an exception is one of a tensor."""
    return fnmatch.fnmatch(name, pattern) or pattern in name


def _matters(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers, and every third between them."""
    eighth = layers // 8
    return layer < eighth or layer >= layers - eighth or (layer - eighth) % 3 == 2


def file_type(recipe: str) -> int:
    return RECIPES[recipe].file_type
