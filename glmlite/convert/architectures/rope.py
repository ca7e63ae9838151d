"""RoPE in the configs of transformers: 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`)."""

from __future__ import annotations

import logging
import math

import numpy as np

from ..stored import is_count
from .parts import Builder, Config

log = logging.getLogger(__name__)


_SECTIONED = ("glm4", "glm4moe")  # architectures whose text models may see


def set_rope(out: Builder, architecture: str, config: Config, head_dim: int, rotated: float) -> int:
    """Sets the `rope.*` keys. rotated: the part of a head that turns if the config does not say. Returns the columns of
    a head that turn."""
    parameters, scaling = config.get("rope_parameters", {}), config.get("rope_scaling", {})
    for key, values in (("rope_parameters", parameters), ("rope_scaling", scaling)):
        if not isinstance(values, dict):
            raise config.error(key, values, "an object")
        if nested := next((name for name, value in values.items() if isinstance(value, dict)), None):
            raise config.error(key, {nested: ...}, f"one for all layers, not {nested!r}")
    # A scaling that was added by hand counts before what transformers 5 wrote, which may say `default`.
    rope = Config({**config.values, **parameters, **scaling}, config.path)
    sections = _sections(rope) if architecture in _SECTIONED else None
    turning = int(head_dim * rotated) if sections is None else 2 * sum(sections)
    if rope.get("partial_rotary_factor") is not None:
        turning = int(head_dim * rope.number("partial_rotary_factor"))
    if sections is not None:
        if 2 * sum(sections) != turning:
            raise rope.error("mrope_section", sections, f"numbers whose sum is {turning // 2}, the pairs that turn")
        out.set(architecture, rope__dimension_sections=np.array([*sections, 0], np.int32))
    theta = rope.number("rope_theta", default=10000.0)
    out.set(architecture, rope__dimension_count=turning, rope__freq_base=theta)

    named = (values.get("rope_type") or values.get("type") for values in (scaling, parameters))
    kind = next((name for name in named if name is not None), "default")
    if kind in ("default", "mrope"):  # what `mrope` adds are its sections
        return turning
    context = config.count("max_position_embeddings", default=2048)
    original = rope.count("original_max_position_embeddings", default=context)
    if kind == "dynamic":
        # The base grows with what is longer than this, for all tokens at once: kept keys would have to turn again.
        key = f"{architecture}.context_length"
        out.metadata[key] = min(out.metadata[key], original)
        log.warning("%s: 'rope_scaling' is 'dynamic': the context ends where it begins, at %d", config.path, original)
        return turning
    if kind == "yarn" and original != context and rope.get("factor") is None:
        factor = context / original
    else:
        factor = rope.number("factor")
    if kind == "linear":
        out.set(architecture, rope__scaling__type="linear", rope__scaling__factor=factor)
        _reach(out, architecture, config, factor * original)
    elif kind == "yarn":
        rope.expect("truncate", True)
        _reach(out, architecture, config, factor * original)
        out.set(
            architecture,
            rope__scaling__type="yarn",
            rope__scaling__factor=factor,
            rope__scaling__original_context_length=original,
            rope__scaling__yarn_beta_fast=rope.number("beta_fast", default=32.0),
            rope__scaling__yarn_beta_slow=rope.number("beta_slow", default=1.0),
        )
        magnitude = _magnitude(factor)
        wanted = magnitude
        if rope.get("attention_factor") is not None:
            wanted = rope.number("attention_factor")
        elif rope.get("mscale") and rope.get("mscale_all_dim"):
            wanted = _magnitude(factor, rope.number("mscale")) / _magnitude(factor, rope.number("mscale_all_dim"))
        if wanted != magnitude:
            # GGUF multiplies YaRN's own magnitude; the config replaces it.
            out.set(architecture, rope__scaling__attn_factor=wanted / magnitude)
    elif kind == "llama3" and architecture == "llama":
        out.add("rope_freqs.weight", _llama3(rope, turning, theta, factor), f"{config.path}: 'rope_scaling'")
        _reach(out, architecture, config, factor * original)
    else:
        raise config.error("rope_scaling", kind, "linear, dynamic, yarn or (Llama) llama3")
    return turning


def _sections(rope: Config) -> list[int] | None:
    """The pairs of columns that turn by time, by an image's row and by its column."""
    sections = rope.get("mrope_section")
    valid = isinstance(sections, list) and len(sections) == 3 and all(map(is_count, sections))
    if sections is not None and not valid:
        raise rope.error("mrope_section", sections, "pairs of columns for each of three axes")
    return sections


def _magnitude(factor: float, scale: float = 1.0) -> float:
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0


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
