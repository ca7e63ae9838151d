"""RoPE in the configs of transformers: 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`)."""

from __future__ import annotations

import math

import numpy as np

from .parts import Builder, Config


def set_rope(out: Builder, architecture: str, config: Config, head_dim: int, rotated: float) -> None:
    """Sets the `rope.*` keys. rotated: the part of a head that turns if the config does not say."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise config.error("rope_scaling", scaling, "an object")
    rope = Config({**config.values, **scaling}, config.path)
    dim = int(head_dim * rope.number("partial_rotary_factor", default=rotated))
    theta = rope.number("rope_theta", default=10000.0)
    out.set(architecture, rope__dimension_count=dim, rope__freq_base=theta)

    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return
    factor = rope.number("factor")
    context = config.count("max_position_embeddings", default=2048)
    if kind == "linear":
        out.set(architecture, rope__scaling__type="linear", rope__scaling__factor=factor)
        _reach(out, architecture, config, factor * rope.count("original_max_position_embeddings", default=context))
    elif kind == "yarn":
        _reach(out, architecture, config, factor * rope.count("original_max_position_embeddings", default=context))
        out.set(
            architecture,
            rope__scaling__type="yarn",
            rope__scaling__factor=factor,
            rope__scaling__original_context_length=rope.count("original_max_position_embeddings", default=context),
            rope__scaling__yarn_beta_fast=rope.number("beta_fast", default=32.0),
            rope__scaling__yarn_beta_slow=rope.number("beta_slow", default=1.0),
        )
        if rope.get("attention_factor") is not None:
            # GGUF multiplies YaRN's own magnitude; the config replaces it.
            magnitude = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
            out.set(architecture, rope__scaling__attn_factor=rope.number("attention_factor") / magnitude)
    elif kind == "llama3" and architecture == "llama":
        out.add("rope_freqs.weight", _llama3(rope, dim, theta, factor), f"{config.path}: 'rope_scaling'")
    else:
        raise config.error("rope_scaling", kind, "linear, yarn or (Llama) llama3")


def _reach(out: Builder, architecture: str, config: Config, context: float) -> None:
    """The scaling makes the context so long. Configs whose `max_position_embeddings` is left as it was published are
    common: transformers asks for that with some kinds of scaling."""
    window = config.count("sliding_window", default=2**31 - 1)
    key = f"{architecture}.context_length"
    out.metadata[key] = min(max(out.metadata[key], int(min(context, 2**31 - 1))), window)


def _llama3(rope: Config, dim: int, theta: float, factor: float) -> np.ndarray:
    """What divides each frequency (Llama 3.1): 1 for short waves, `factor` for those longer than the context."""
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise rope.error("high_freq_factor", high, f"more than low_freq_factor, {low}")
    wavelength = 2 * np.pi * theta ** (np.arange(0, dim, 2) / dim)
    turns = rope.count("original_max_position_embeddings") / wavelength
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
