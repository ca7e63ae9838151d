"""A model with the methods of transformers' and of the makers' own code."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from .. import placement
from ..generate import Generation
from ..loading import load
from ..model import Model
from . import generation
from .arguments import Refusal, check, near
from .arrays import id_list, like, prompts
from .config import Config, config
from .dialogue import Answer, conversation, is_pairs
from .files import LOADING, LOADING_REFUSED, header
from .generation import GenerationConfig
from .tokenizer import HFTokenizer

log = logging.getLogger(__name__)

Turns = list[Any]

LOAD = (
    *("context", "parallel", "max_queue", "kv_tokens", "kv_type", "threads", "adaptive", "priority"),
    *("gpu_layers", "packed", "idle_unload", "progress", "cancel"),
)

# What the makers' `chat` asks for by itself, where the file recommends nothing: (max_length, top_p, temperature).
CHAT = {"chatglm": (2048, 0.7, 0.95)}
CHAT_OTHERS = (8192, 0.8, 0.8)

INFERENCE = "glmlite runs models; it does not train them"
INSIDE = "glmlite's executor has no modules"
ABSENT = {
    "train": INFERENCE,
    "parameters": INFERENCE,
    "named_parameters": INFERENCE,
    "gradient_checkpointing_enable": INFERENCE,
    "enable_input_require_grads": INFERENCE,
    "requires_grad_": INFERENCE,
    "backward": INFERENCE,
    "modules": INSIDE,
    "named_modules": INSIDE,
    "transformer": INSIDE,
    "lm_head": INSIDE,
    "state_dict": INSIDE,
    "load_state_dict": INSIDE,
    "get_input_embeddings": INSIDE,
    "get_output_embeddings": INSIDE,
    "resize_token_embeddings": INSIDE,
    "load_adapter": "`glmlite convert --lora` stores an adapter in a file",
    "merge_and_unload": "`glmlite convert --lora` stores an adapter in a file",
    "peft_config": "`glmlite convert --lora` stores an adapter in a file",
    "save_pretrained": "a GGUF file is written by `glmlite convert`",
    "push_to_hub": "a GGUF file is written by `glmlite convert`",
    "hf_device_map": "`model.device` of glmlite's model says where it is",
}


class Output(dict[str, Any]):
    """What a call returns, as keys and as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"{name}: not here, only {', '.join(self)}")


class Past(NamedTuple):
    """Stands for past_key_values: the conversation up to here. The engine keeps what it has read by itself."""

    messages: Turns


class AutoModelForCausalLM:
    """transformers' class of this name, as far as scripts for GLMs use it."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        *,
        device_map: Any = None,
        device: Any = None,
        gguf_file: str | None = None,
        config: Config | None = None,
        pre_seq_len: int | None = None,
        **options: Any,
    ) -> HFModel:
        """A GGUF file's model (default: the built-in one); a path as `glmlite.load` takes it.

        context, parallel, max_queue, kv_tokens, kv_type, threads, adaptive, priority, gpu_layers, packed, idle_unload,
        progress, cancel: as `glmlite.load`; device_map (or device): "cpu", "cuda", "cuda:1", or anything else: its
        `device` "auto". pre_seq_len: of a P-Tuning prefix, which has to be in the file.
        Arguments that mean nothing here (trust_remote_code, torch_dtype, ...) are taken, those that would change the
        result are refused by name.
        """
        if config is not None and not isinstance(config, Config):
            raise ValueError(f"config is a {type(config).__name__}, expected one of glmlite.AutoConfig")
        own = {name: options.pop(name) for name in LOAD if name in options}
        known = (*LOAD, "device_map", "gguf_file", "config", "pre_seq_len")
        check(cls.__name__, options, known=known, ignored=LOADING, refused=LOADING_REFUSED)
        path, _, prefix = header(pretrained_model_name_or_path, gguf_file, pre_seq_len)
        asked = device_map if device is None else device
        if isinstance(asked, Mapping) and len(asked) == 1:  # {"": "cuda:0"}, the whole model there
            (asked,) = asked.values()
        asked = f"cuda:{asked}" if isinstance(asked, int) else str(asked)
        place = asked if asked.startswith(("cpu", "cuda")) else "auto"
        return HFModel(load(path, device=place, **own), prefix=prefix)


class AutoModel(AutoModelForCausalLM):
    """The name under which ChatGLM's own scripts load it."""


class AutoModelForSeq2SeqLM(AutoModelForCausalLM):
    """The name under which GLM's own scripts load it."""


class HFModel:
    """A model with the methods of transformers' and of ChatGLM's own code. `model` is glmlite's.

    config: what the file says. generation_config: how `generate` answers where its arguments do not say.
    """

    def __init__(self, model: Model, prefix: int | None = None):
        self.model = model
        self.config = config(str(model.path), model.metadata, model.tokenizer, model.context, prefix)
        self.generation_config = GenerationConfig(**generation.recommended(model.metadata, model.tokenizer))
        self.name_or_path = str(model.path)

    def __getattr__(self, name: str) -> Any:
        if name in ABSENT:
            raise AttributeError(f"model.{name}: not here; {ABSENT[name]}")
        raise AttributeError(f"model.{name}: not here{near(name, dir(type(self)))}")

    # ---- where it is

    @property
    def device(self) -> str:
        """Where the model is: "cpu" or "cuda:0", also if only some layers are there."""
        return self.model.device.rpartition(" ")[2]

    @property
    def dtype(self) -> str:
        """What activations are computed in."""
        return "float32"

    def eval(self) -> HFModel:
        return self

    def half(self) -> HFModel:
        """Nothing: the weights stay as the file has them."""
        return self

    float = bfloat16 = tie_weights = half

    def quantize(self, bits: int, **no_meaning: Any) -> HFModel:
        """Nothing, and a warning in the log: the weights stay as the file has them."""
        log.warning("quantize(%s): the weights stay as %s has them", bits, self.model.path.name)
        return self

    def cpu(self) -> HFModel:
        return self.to("cpu")

    def cuda(self, device: Any = None) -> HFModel:
        """Nothing where the model is on a GPU already; a loaded model does not move: RuntimeError."""
        return self.to("cuda" if device is None else device)

    def to(self, *asked: Any, device: Any = None, dtype: Any = None, **no_meaning: Any) -> HFModel:
        """Nothing, or RuntimeError: as `cuda`. Types of numbers are taken and mean nothing."""
        for place in (*asked, device):
            name = f"cuda:{place}" if isinstance(place, int) else str(place)
            kind = name.partition(":")[0]
            if place is None or name.startswith("torch.") or kind == self.device.partition(":")[0]:
                continue
            if kind == "cuda":
                placement.backend(name)  # why not, if it cannot be had
            elif kind != "cpu":
                raise ValueError(f"to: {name!r}, expected 'cpu' or 'cuda'")
            raise RuntimeError(f"the model is on {self.device}: load it with device_map={name!r}")
        return self

    # ---- generation

    def generate(
        self,
        inputs: Any = None,
        generation_config: Any = None,
        logits_processor: Sequence[Any] | None = None,
        stopping_criteria: Sequence[Any] | None = None,
        *,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        streamer: Any = None,
        **options: Any,
    ) -> Any:
        """(rows, length) ids: each row's prompt, its answer with the end token, and padding. All rows run together.

        inputs or input_ids: (rows, n) or (n,), an array, a torch tensor, lists, or what a tokenizer returned; the
            result is of the same kind. attention_mask: zeros mark padding.
        max_length counts the prompt, max_new_tokens does not; without either an answer ends with the context.
        do_sample: False unless the model's generation_config says otherwise; then the most likely tokens are taken, and
            temperature, top_p, top_k and min_p mean nothing.
        eos_token_id replaces the model's end tokens. stop_strings: the token that completes one is the last.
        num_return_sequences: so many rows for each prompt, sampled. seed: gives the same answers again.
        streamer: `put` gets the prompt and each token, `end` ends it. stopping_criteria: called after each token with
            (1, n) ids and None. Both are for one row.
        return_dict_in_generate: an object with `sequences`.
        What else transformers has is refused by name where it would change the result (ValueError), and a name that it
        does not have is a TypeError.
        """
        generation.check_processors(logits_processor)
        asked = generation.settings(self.generation_config, generation_config, options)
        inputs = input_ids if inputs is None else inputs
        if inputs is None:
            raise ValueError("generate: no input_ids")
        given, rows, texts = prompts(inputs, attention_mask)
        self._check_prompts(texts, rows, position_ids)
        copies = int(asked.get("num_return_sequences", 1))
        if copies < 1:
            raise ValueError(f"generate: num_return_sequences is {copies}, expected at least 1")
        if copies > 1 and not asked.get("do_sample"):
            raise ValueError(f"generate: num_return_sequences is {copies}, which needs do_sample=True")
        rows, texts = np.repeat(rows, copies, 0), [text for text in texts for _ in range(copies)]
        answers = self._answers(given, rows, texts, asked, streamer, generation.criteria(stopping_criteria))
        ends = set(generation.parameters(asked, self.model)["stop_ids"])
        pad = id_list(asked["pad_token_id"])[0] if "pad_token_id" in asked else None
        if pad is None:
            pad = next((answer[-1] for answer in answers if answer[-1] in ends), 0)
        width = max(map(len, answers))
        padded = np.asarray([answer + [pad] * (width - len(answer)) for answer in answers], rows.dtype)
        sequences = like(np.concatenate([rows, padded], axis=1), given)
        return Output(sequences=sequences) if asked.get("return_dict_in_generate") else sequences

    def _answers(
        self,
        given: Any,
        rows: Any,
        texts: Sequence[list[int]],
        asked: Mapping[str, Any],
        streamer: Any,
        criteria: list[Any],
    ) -> list[list[int]]:
        """The tokens of each row's answer."""
        parameters = generation.parameters(asked, self.model)
        room = generation.room(asked, rows.shape[1])
        seed, copies = parameters["seed"], int(asked.get("num_return_sequences", 1))
        if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
            raise ValueError(f"generate: streamer is {streamer!r:.60}, expected an object with put and end")
        if (streamer is not None or criteria) and len(texts) != 1:
            raise ValueError(f"generate: {len(texts)} rows, a streamer and stopping_criteria are for one")
        with ExitStack() as running:
            if streamer is not None:  # whoever reads what it is given may wait for its end, also where nothing begins
                running.callback(streamer.end)
            started: list[Generation] = []
            for number, text in enumerate(texts):
                if seed is not None:  # the samples of one prompt differ, and each row is as it is alone
                    parameters["seed"] = (seed + number % copies) % 2**64
                started.append(running.enter_context(self.model.stream(text, max_tokens=room, **parameters)))
            if streamer is None and not criteria:
                return [list(generation.tokens(one)) for one in started]
            answer: list[int] = []
            if streamer is not None:
                streamer.put(like(rows, given))
            for token in generation.tokens(started[0]):
                answer.append(token)
                if streamer is not None:
                    streamer.put(like(np.asarray([token]), given))
                if generation.stopped(criteria, like(np.asarray([[*rows[0], *answer]]), given)):
                    break
            return [answer]

    def _check_prompts(self, texts: Sequence[list[int]], rows: Any, position_ids: Any) -> None:
        blanks = self.model._infiller
        for text in texts:
            if blanks is not None and blanks.start not in text:
                raise ValueError(
                    f"generate: the prompt has no {blanks.blanks.start}; "
                    "tokenizer.build_inputs_for_generation, or add_special_tokens, puts it there"
                )
        if position_ids is not None:
            asked = np.atleast_2d(np.asarray(id_list(position_ids) if np.ndim(position_ids) == 1 else position_ids))
            if asked.shape != rows.shape or any((np.diff(row[-len(t) :]) != 1).any() for row, t in zip(asked, texts)):
                raise ValueError("generate: position_ids, expected none: a token stands where the prompt has it")

    def stream_generate(
        self,
        input_ids: Any = None,
        generation_config: Any = None,
        logits_processor: Sequence[Any] | None = None,
        stopping_criteria: Sequence[Any] | None = None,
        *,
        attention_mask: Any = None,
        position_ids: Any = None,
        return_past_key_values: bool = False,
        **options: Any,
    ) -> Iterator[Any]:
        """ChatGLM's: the (1, n) ids so far, again after each token. Otherwise as `generate`, of one row."""
        generation.check_processors(logits_processor)
        criteria = generation.criteria(stopping_criteria)
        asked = generation.settings(self.generation_config, generation_config, options)
        given, rows, texts = prompts(input_ids, attention_mask)
        self._check_prompts(texts, rows, position_ids)
        if len(texts) != 1:
            raise ValueError(f"stream_generate: {len(texts)} rows, expected one")
        ids = rows[0].tolist()
        parameters = generation.parameters(asked, self.model)
        with self.model.stream(texts[0], max_tokens=generation.room(asked, len(ids)), **parameters) as running:
            for token in generation.tokens(running):
                ids.append(token)
                out = like(np.asarray([ids], rows.dtype), given)
                yield (out, Past([])) if return_past_key_values else out
                if generation.stopped(criteria, out):
                    return

    def __call__(self, input_ids: Any = None, *, attention_mask: Any = None, **options: Any) -> Output:
        """`logits`: (rows, n, vocab) f32 after each token, in the kind of array given; rows without padding only."""
        refused = {
            name: Refusal("glmlite runs models for their logits")
            for name in ("labels", "inputs_embeds", "output_attentions", "output_hidden_states", "past_key_values")
        } | {"position_ids": Refusal("a token stands where the prompt has it")}
        check(
            "model",
            options,
            known=("input_ids", "attention_mask"),
            ignored=("use_cache", "return_dict"),
            refused=refused,
        )
        given, rows, texts = prompts(input_ids, attention_mask)
        if any(len(text) != rows.shape[1] for text in texts):
            raise ValueError("model: rows with padding; give one at a time")
        return Output(logits=like(np.stack([self.model.logits(text, all=True) for text in texts]), given))

    forward = __call__

    # ---- chat

    def chat(
        self, tokenizer: HFTokenizer, query: str, history: Turns | None = None, role: str = "user", **options: Any
    ) -> tuple[Any, Turns]:
        """(answer, history with this turn). See `stream_chat`."""
        for name in ("past_key_values", "return_past_key_values"):
            if options.pop(name, None):
                raise ValueError(f"chat: {name} is stream_chat's")
        return list(self.stream_chat(tokenizer, query, history, role, **options))[-1]

    def stream_chat(
        self,
        tokenizer: HFTokenizer,
        query: str,
        history: Turns | None = None,
        role: str = "user",
        past_key_values: Past | None = None,
        *,
        logits_processor: Sequence[Any] | None = None,
        return_past_key_values: bool = False,
        do_sample: bool = True,
        **options: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """The answer so far and the history with it, again and again until it is whole.

        history: (question, answer) pairs, as ChatGLM-6B and ChatGLM2 have it, or messages as ChatGLM3 and GLM-4; a new
            one is of the model's own kind. A system message may carry "tools". It is not changed.
        return_past_key_values: a third value, for the next call's past_key_values, which continues that conversation.
        Other arguments are those of `generate`. Without them: 2048 tokens, top_p 0.7 and temperature 0.95 for
        ChatGLM-6B, 8192, 0.8 and 0.8 for others, or what the file recommends.
        The answer is what the makers' code makes of it: the date filled in, ChatGLM-6B's punctuation, a tool's call as
        {"name": ..., "parameters": ...} for ChatGLM3 and GLM-4.
        """
        generation.check_processors(logits_processor)
        model, kind = self.model, self.model.chat_format
        if not isinstance(past_key_values, Past | None):
            raise TypeError(
                f"past_key_values is a {type(past_key_values).__name__}, expected stream_chat's third value"
            )
        history = list(history or [])
        pairs = is_pairs(kind, history)
        before = history if past_key_values is None else past_key_values.messages
        messages, tools = conversation(kind, before, query, role)
        max_length, top_p, temperature = CHAT.get(kind or "", CHAT_OTHERS)
        own = {"max_length": max_length, "top_p": top_p, "temperature": temperature}
        asked = own | generation.settings(self.generation_config, None, {"do_sample": do_sample, **options})
        prompt = model.chat_ids(messages, tools=tools)
        if "max_new_tokens" not in asked:
            asked["max_new_tokens"] = max(int(asked["max_length"]) - len(prompt), 1)
        parameters = generation.parameters(asked, model)
        line_open = prompt[-1] == model.tokenizer.id_of("<|assistant|>") and kind != "glm-edge"
        has_tools = any("tools" in turn for turn in before if isinstance(turn, Mapping))
        answer = Answer(kind, model.tokenizer, line_open=line_open, tools=has_tools, stops=parameters["stop"])
        room = asked["max_new_tokens"]
        for piece in model.chat_stream(messages, tools=tools, reasoning=False, max_tokens=room, **parameters):
            answer.push(piece.text, piece.tokens)
            response, written = answer.read()
            turn = [{"role": role, "content": query}, *written]
            grown = [*history, *([(query, response)] if pairs else turn)]
            yield (response, grown, Past([*before, *turn])) if return_past_key_values else (response, grown)
