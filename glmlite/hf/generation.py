"""The arguments of transformers' `generate`, and what each asks of glmlite."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..generate import Generation
from ..model import Model
from ..parameters import sampling_defaults
from ..tokenizer import Tokenizer
from .arguments import Refusal, check, near
from .arrays import id_list, numpy
from .files import LOADING, LOADING_REFUSED, header

# What counts.
TAKEN = (
    "bad_words_ids",
    "do_sample",
    "eos_token_id",
    "max_length",
    "max_new_tokens",
    "min_p",
    "num_return_sequences",
    "pad_token_id",
    "repetition_penalty",
    "return_dict_in_generate",
    "seed",
    "sequence_bias",
    "stop_strings",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
)

# What has no bearing on the ids that come out: how transformers computes, and what only its beams ask for.
IGNORED = (
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "bos_token_id",
    "cache_config",
    "compile_config",
    "continuous_batching_config",
    "decoder_start_token_id",
    "disable_compile",
    "early_stopping",
    "is_assistant",
    "length_penalty",
    "low_memory",
    "max_cache_len",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "prefill_chunk_size",
    "remove_invalid_values",
    "renormalize_logits",
    "return_legacy_cache",
    "synced_gpus",
    "tokenizer",
    "assistant_tokenizer",
    "target_lookbehind",
    "assistant_lookbehind",
    "transformers_version",
    "use_cache",
    "use_model_defaults",
)

_BEAMS = "one sequence is followed at a time; sample several with num_return_sequences"
_SPEED = "leave it out: it makes transformers faster and changes no answer"
_WRITE = "look at glmlite.Model.stream, which gives pieces to a loop that may stop, or at its logit_bias"
_NUMBERS = "glmlite.Model.logits gives logits, and logprobs= of glmlite.Model.generate those of an answer"
_PENALTY = "repetition_penalty is here, and presence_penalty and frequency_penalty of glmlite.Model.generate"
_SAMPLING = "top_k, top_p and min_p cut the choice"
_STOPPING = "an answer ends at an end token, a stop string, the length, or a stopping criterion"
_MODELS = "one decoder makes the answer"

REFUSED = {
    "assistant_model": Refusal(_SPEED),
    "assistant_ensemble_weight": Refusal(_SPEED),
    "begin_suppress_tokens": Refusal(_WRITE),
    "cache_implementation": Refusal("kv_type of from_pretrained chooses the cache"),
    "constraints": Refusal(_WRITE),
    "custom_generate": Refusal(_WRITE),
    "decoder_input_ids": Refusal(_MODELS),
    "diversity_penalty": Refusal(_BEAMS, 0.0),
    "dola_layers": Refusal(_SAMPLING),
    "encoder_no_repeat_ngram_size": Refusal(_MODELS, 0),
    "encoder_outputs": Refusal(_MODELS),
    "encoder_repetition_penalty": Refusal(_MODELS, 1.0),
    "epsilon_cutoff": Refusal(_SAMPLING, 0.0),
    "eta_cutoff": Refusal(_SAMPLING, 0.0),
    "exponential_decay_length_penalty": Refusal(_STOPPING),
    "force_words_ids": Refusal(_WRITE),
    "forced_bos_token_id": Refusal(_WRITE),
    "forced_eos_token_id": Refusal(_WRITE),
    "guidance_scale": Refusal(_MODELS, 1.0),
    "inputs_embeds": Refusal("give input_ids"),
    "max_time": Refusal("glmlite.Cancel and a timer end glmlite.Model.generate"),
    "min_length": Refusal(_STOPPING, 0),
    "min_new_tokens": Refusal(_STOPPING, 0),
    "negative_prompt_attention_mask": Refusal(_MODELS),
    "negative_prompt_ids": Refusal(_MODELS),
    "no_repeat_ngram_size": Refusal(_PENALTY, 0),
    "num_beam_groups": Refusal(_BEAMS, 1),
    "num_beams": Refusal(_BEAMS, 1),
    "output_attentions": Refusal(_NUMBERS),
    "output_hidden_states": Refusal(_NUMBERS),
    "output_logits": Refusal(_NUMBERS),
    "output_scores": Refusal(_NUMBERS),
    "past_key_values": Refusal("give the whole prompt: what was read before is kept and found again"),
    "penalty_alpha": Refusal(_SAMPLING, 0.0),
    "prefix_allowed_tokens_fn": Refusal(_WRITE),
    "prompt_lookup_num_tokens": Refusal(_SPEED),
    "speculation_type": Refusal(_SPEED),
    "stopping_criteria": Refusal("`generate` takes it, and stream_generate"),
    "streamer": Refusal("`generate` takes it, and stream_chat gives the answer in parts"),
    "token_healing": Refusal(_WRITE),
    "token_type_ids": Refusal("these models have none"),
    "top_h": Refusal(_SAMPLING),
    "typical_p": Refusal(_SAMPLING, 1.0),
    "use_mtp": Refusal(_SPEED),
    "watermarking_config": Refusal(_WRITE),
}

# transformers' own, where neither the caller nor the file says.
DEFAULTS = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}


class LogitsProcessor:
    """transformers' base class, for scripts that define one."""


class LogitsProcessorList(list[Any]):
    """Processors of logits; `generate` takes none that does something."""


class StoppingCriteria:
    """transformers' base class: `__call__(input_ids, scores)` says whether to stop."""


class StoppingCriteriaList(list[Any]):
    """Criteria, one of which is enough."""


def check_options(options: Mapping[str, Any]) -> None:
    """Raises ValueError for what is not done here, TypeError for a name that `generate` does not have."""
    check("generate", options, known=TAKEN, ignored=(*TAKEN, *IGNORED), refused=REFUSED)


class GenerationConfig:
    """How to answer, as `generate` takes it: the arguments that it is made of, None for all others."""

    def __init__(self, **values: Any):
        self.update(**values)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None = None, **options: Any
    ) -> GenerationConfig:
        """What the file recommends (`general.sampling.*`), and its end tokens."""
        given = {name: options.pop(name) for name in list(options) if name in TAKEN}
        check("GenerationConfig", options, known=TAKEN, ignored=LOADING, refused=LOADING_REFUSED)
        _, metadata, _ = header(pretrained_model_name_or_path, None)
        return cls(**{**recommended(metadata, Tokenizer.from_metadata(metadata)), **given})

    def update(self, **values: Any) -> None:
        """Sets several. Raises as `generate` does for what it does not take."""
        check_options(values)
        vars(self).update(values)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}

    def __getattr__(self, name: str) -> Any:
        if name in TAKEN or name in REFUSED or name in IGNORED:
            return None
        raise AttributeError(f"GenerationConfig.{name}: not known{near(name, TAKEN)}")

    def __setattr__(self, name: str, value: Any) -> None:
        self.update(**{name: value})

    def __repr__(self) -> str:
        return f"GenerationConfig({', '.join(f'{k}={v!r}' for k, v in self.to_dict().items())})"


def recommended(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """What a file says of answers, as arguments of `generate`."""
    found: dict[str, Any] = {k: v for k, v in sampling_defaults(metadata).items() if k in TAKEN}
    return found | {"eos_token_id": sorted(tokenizer.eos_ids), "pad_token_id": tokenizer.pad_id}


def settings(defaults: Any, given: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` over a generation_config over the model's, checked; None counts as not given."""
    out = dict(_values(defaults))
    if given is not None:
        asked = _values(given)
        check_options(asked)
        out |= asked
    check_options(options)
    return out | {name: value for name, value in options.items() if value is not None}


def _values(config: Any) -> dict[str, Any]:
    values = config if isinstance(config, Mapping) else config.to_dict()
    return {k: v for k, v in values.items() if v is not None and not k.startswith("_")}


def check_processors(processors: Any) -> None:
    """Raises ValueError for processors of logits. Makers' code passes one against numbers that are not finite, which
    are an error here anyway."""
    for processor in _listed(processors):
        if type(processor).__name__ != "InvalidScoreLogitsProcessor":
            raise ValueError(f"generate: logits_processor={type(processor).__name__} is not done here; {_WRITE}")


def criteria(given: Any) -> list[Any]:
    """stopping_criteria as a list. Raises ValueError for what cannot be called."""
    found = _listed(given)
    if not all(map(callable, found)):
        raise ValueError(f"generate: stopping_criteria is {given!r:.60}, expected functions of (ids, scores)")
    return found


def _listed(given: Any) -> list[Any]:
    """One, several or none as a list; a list of transformers' can be called, too, and wants torch."""
    if isinstance(given, list | tuple):
        return list(given)
    return [] if given is None else [given]


def parameters(asked: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """The keyword arguments of `Model.stream` for settings of `generate`, without max_tokens."""
    sampled = asked.get("do_sample", False)
    out: dict[str, Any] = {n: asked.get(n, v) for n, v in DEFAULTS.items()} if sampled else {"temperature": 0.0}
    out["repetition_penalty"] = asked.get("repetition_penalty", 1.0)
    out["penalty_window"] = model.context
    out["seed"] = asked.get("seed")
    ends = sorted(model.tokenizer.eos_ids)
    if "eos_token_id" in asked:
        # A negative id is a way to say that nothing ends the answer.
        ends = [i for i in id_list(asked["eos_token_id"]) if i >= 0]
        if ends and max(ends) >= model.vocab_size:
            raise ValueError(f"generate: eos_token_id is {max(ends)}, expected ids below {model.vocab_size}")
        out |= {"stop_ids": ends, "ignore_eos": True}
    stops = asked.get("stop_strings") or []
    stops = [stops] if isinstance(stops, str) else list(stops)
    special = {s: i for s in stops if (i := model.tokenizer.id_of(s)) is not None and model.tokenizer.is_special(i)}
    out["stop"] = [s for s in stops if s not in special]
    out["stop_ids"] = [*out.get("stop_ids", []), *special.values()]
    out["logit_bias"] = _biases(asked, ends) or None
    return out


def _biases(asked: Mapping[str, Any], ends: Sequence[int]) -> dict[int, float]:
    """Single tokens that are forbidden or favoured. Raises ValueError for sequences of several."""
    bias = dict.fromkeys(id_list(asked.get("suppress_tokens") or []), -math.inf)
    listed = asked.get("sequence_bias") or {}
    pairs = [(list(ids), value) for ids, value in (listed.items() if isinstance(listed, Mapping) else listed)]
    words = [list(ids) for ids in asked.get("bad_words_ids") or []]
    pairs += [(ids, -math.inf) for ids in words if ids not in [[end] for end in ends]]
    for ids, value in pairs:
        if len(ids) != 1:
            name = "bad_words_ids" if ids in words else "sequence_bias"
            raise ValueError(f"generate: {name} has {ids}, expected single tokens; several in a row are not done here")
        bias[int(ids[0])] = bias.get(int(ids[0]), 0.0) + float(value)
    return bias


def room(asked: Mapping[str, Any], width: int) -> int | None:
    """How many tokens an answer may have after a prompt of `width`; None: as many as the context has."""
    if "max_new_tokens" in asked:
        if (count := int(asked["max_new_tokens"])) < 1:
            raise ValueError(f"generate: max_new_tokens is {count}, expected at least 1")
        return count
    if "max_length" not in asked:
        return None
    left = int(asked["max_length"]) - width
    if left < 1:
        raise ValueError(f"generate: max_length is {asked['max_length']}, the prompt alone has {width} tokens")
    return left


def tokens(generation: Generation) -> Iterator[int]:
    """The tokens of an answer, the one that ends it included. A loop that is left early cancels it."""
    for piece in generation:
        yield from piece.tokens
    stop = generation.result().stop
    if isinstance(stop, int):
        yield stop


def stopped(given: Sequence[Any], ids: Any) -> bool:
    """Whether a criterion says to stop after ids (1, n)."""
    return any(bool(np.any(numpy(criterion(ids, None)))) for criterion in given)
