"""The shape of Hugging Face's transformers, so that a ChatGLM script changes only its import:

    from glmlite import AutoModelForCausalLM, AutoTokenizer

Only what such scripts use is here. Arrays are numpy's, or torch's where torch is asked for or given; torch is
imported only then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import placement
from .generate import Generation
from .loading import load
from .locate import model_file
from .model import Model, infiller, prompt_ids
from .tokenizer import Tokenizer

Turns = list[Any]

# What transformers takes and nothing here does: to ignore it would give another answer than was asked for.
_CHANGES_THE_RESULT = (
    "assistant_model",
    "bad_words_ids",
    "generation_config",
    "logits_processor",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "prefix_allowed_tokens_fn",
    "return_dict_in_generate",
    "stopping_criteria",
    "streamer",
)


class AutoTokenizer:
    """transformers' class of this name, as far as scripts for ChatGLM use it."""

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str] | None = None, **ignored: Any) -> HFTokenizer:
        """The tokenizer of a GGUF file (default: the built-in model). Other arguments (trust_remote_code, ...) have no
        meaning here."""
        gguf = placement.backend("cpu").Gguf(model_file(path))
        try:
            return HFTokenizer(gguf.metadata, Tokenizer.from_metadata(gguf.metadata))
        finally:
            gguf.close()


class AutoModelForCausalLM:
    """transformers' class of this name, as far as scripts for ChatGLM use it."""

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str] | None = None, *, device_map: Any = None, **options: Any
    ) -> HFModel:
        """A GGUF file's model (default: the built-in one). context, parallel, kv_tokens, kv_type, threads, gpu_layers,
        progress: as `glmlite.load`; device_map: "cpu", "cuda", "cuda:1", or anything else: its `device` "auto"; other
        arguments (trust_remote_code, torch_dtype, ...) have no meaning here."""
        known = {"context", "parallel", "kv_tokens", "kv_type", "threads", "gpu_layers", "progress"}
        device = str(device_map) if str(device_map).startswith(("cpu", "cuda")) else "auto"
        return HFModel(load(path, device=device, **{k: v for k, v in options.items() if k in known}))


class BatchEncoding(dict):
    """input_ids and attention_mask, as keys and as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)

    def to(self, device: Any) -> BatchEncoding:
        """Nothing, or RuntimeError if the device cannot be had: token ids stay in the CPU's memory."""
        if str(device).startswith("cuda"):
            placement.backend(str(device))
        return self


class HFTokenizer:
    """A tokenizer with transformers' names. `tokenizer` is glmlite's own."""

    padding_side = "left"

    def __init__(self, metadata: Mapping[str, Any], tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._metadata = metadata
        self._architecture = metadata.get("general.architecture", "")
        self._infiller = infiller(self._architecture, tokenizer)

    @property
    def eos_token_id(self) -> int | None:
        named = self._metadata.get("tokenizer.ggml.eos_token_id")
        return min(self.tokenizer.eos_ids, default=None) if named is None else int(named)

    @property
    def pad_token_id(self) -> int | None:
        return self.eos_token_id if self.tokenizer.pad_id is None else self.tokenizer.pad_id

    def encode(
        self, text: str, *, add_special_tokens: bool = True, return_tensors: str | None = None, **ignored: Any
    ) -> Any:
        """Ids of a text, with the model's special tokens around it. return_tensors: "np" or "pt" for (1, n) ids."""
        if add_special_tokens:
            ids = prompt_ids(self.tokenizer, self._infiller, text)
        else:
            ids = list(self.tokenizer.encode(text, special=True, prefix=False))
        return ids if return_tensors is None else _tensor([ids], return_tensors)

    def __call__(
        self, text: str | Sequence[str], *, return_tensors: str | None = None, padding: Any = False, **options: Any
    ) -> BatchEncoding:
        """input_ids and attention_mask of a text or of several, which are padded on the left if asked for."""
        single = isinstance(text, str)
        rows = [self.encode(t, **options) for t in ([text] if single else text)]
        width = max(map(len, rows), default=0)
        if padding:
            masks = [[0] * (width - len(r)) + [1] * len(r) for r in rows]
            rows = [[self.pad_token_id or 0] * (width - len(r)) + r for r in rows]
        else:
            masks = [[1] * len(r) for r in rows]
        if return_tensors is not None:
            if len({len(r) for r in rows}) > 1:
                raise ValueError("tokenizer: texts of different lengths make no array; pass padding=True")
            return BatchEncoding(input_ids=_tensor(rows, return_tensors), attention_mask=_tensor(masks, return_tensors))
        return BatchEncoding(input_ids=rows[0] if single else rows, attention_mask=masks[0] if single else masks)

    def decode(self, ids: Any, skip_special_tokens: bool = False, **ignored: Any) -> str:
        return self.tokenizer.decode(_ids(ids), skip_special=skip_special_tokens)

    def batch_decode(self, rows: Any, skip_special_tokens: bool = False, **ignored: Any) -> list[str]:
        return [self.decode(row, skip_special_tokens) for row in rows]

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_tensors: str | None = None,
        return_dict: bool = False,
        **template: Any,
    ) -> Any:
        from . import chat

        ids = chat.render(
            self._metadata,
            self.tokenizer,
            self._architecture,
            conversation,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            **template,
        )
        if not tokenize:
            return self.tokenizer.decode(ids)
        if return_dict:
            masks = [1] * len(ids)
            if return_tensors is None:
                return BatchEncoding(input_ids=ids, attention_mask=masks)
            return BatchEncoding(
                input_ids=_tensor([ids], return_tensors), attention_mask=_tensor([masks], return_tensors)
            )
        return ids if return_tensors is None else _tensor([ids], return_tensors)

    def __len__(self) -> int:
        return self.tokenizer.vocab_size


class HFModel:
    """A model with the methods of transformers' and of ChatGLM's own code. `model` is glmlite's."""

    def __init__(self, model: Model):
        self.model = model

    @property
    def device(self) -> str:
        """Where the model is: "cpu" or "cuda:0", also if only some layers are there."""
        return self.model.device.rpartition(" ")[2]

    def eval(self) -> HFModel:
        return self

    def half(self) -> HFModel:
        """Nothing: the weights stay as the file has them."""
        return self

    float = bfloat16 = half

    def quantize(self, bits: int) -> HFModel:
        """Nothing, as `half`."""
        return self

    def cpu(self) -> HFModel:
        return self

    def cuda(self, device: Any = None) -> HFModel:
        """Nothing where the model is on a GPU already; a loaded model does not move: RuntimeError."""
        return self.to("cuda")

    def to(self, device: Any) -> HFModel:
        """Nothing, or RuntimeError: as `cuda`."""
        if str(device).startswith("cuda") and self.device == "cpu":
            placement.backend(str(device))  # why not, if it cannot be had
            raise RuntimeError(f"the model is on the CPU: load it with device_map={str(device)!r}")
        return self

    def generate(
        self,
        input_ids: Any = None,
        *,
        attention_mask: Any = None,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        do_sample: bool = False,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        repetition_penalty: float | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        num_beams: int = 1,
        num_return_sequences: int = 1,
        seed: int | None = None,
        **ignored: Any,
    ) -> Any:
        """(rows, length) ids: each row's prompt, its answer with the end token, and padding. All rows run together.

        input_ids: (rows, n) or (n,), an array, a torch tensor or lists; the result is of the same kind.
        attention_mask: zeros mark padding. max_length counts the prompt, max_new_tokens does not; without either an
        answer ends with the context. Without do_sample the most likely tokens are taken and temperature, top_p and
        top_k mean nothing. eos_token_id replaces the model's end tokens. Raises ValueError for beams and for other
        arguments that would change the result and mean nothing here (streamer, logits_processor, ...).
        """
        _refuse(ignored)
        if num_beams != 1 or num_return_sequences != 1:
            raise ValueError("generate: one sequence for each row, expected num_beams=1 and num_return_sequences=1")
        given = input_ids if hasattr(input_ids, "shape") else np.asarray(input_ids, np.int64)
        rows = np.atleast_2d(_numpy(given))
        masks = np.ones_like(rows) if attention_mask is None else np.atleast_2d(_numpy(attention_mask))
        if masks.shape != rows.shape:
            raise ValueError(f"generate: attention_mask is {masks.shape}, expected {rows.shape} as input_ids")
        sampling: dict[str, Any] = {"temperature": 0.0}
        if do_sample:
            sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
        sampling |= {"repetition_penalty": repetition_penalty, "penalty_window": self.model.context, "seed": seed}
        if eos_token_id is not None:
            ids = [eos_token_id] if np.ndim(eos_token_id) == 0 else list(eos_token_id)
            sampling |= {"stop_ids": ids, "ignore_eos": True}
        room = max_new_tokens
        if room is None and max_length is not None:
            room = max_length - rows.shape[1]
            if room < 1:
                raise ValueError(f"generate: max_length is {max_length}, the prompt alone has {rows.shape[1]} tokens")

        started: list[Generation] = []
        try:
            for row, mask in zip(rows, masks):
                prompt = row[mask != 0].tolist()
                started.append(self.model.stream(prompt, max_tokens=room, **sampling))
            done = [generation.result() for generation in started]
        finally:
            for generation in started:
                generation.close()
        answers = [c.tokens + ([c.stop] if isinstance(c.stop, int) else []) for c in done]
        if pad_token_id is None:
            pad_token_id = next((c.stop for c in done if isinstance(c.stop, int)), 0)
        width = max(map(len, answers))
        padded = np.asarray([a + [pad_token_id] * (width - len(a)) for a in answers], rows.dtype)
        return _like(np.concatenate([rows, padded], axis=1), given)

    def chat(
        self,
        tokenizer: HFTokenizer,
        query: str,
        history: Turns | None = None,
        role: str = "user",
        **options: Any,
    ) -> tuple[str, Turns]:
        """(answer, history with this turn). See `stream_chat`."""
        return list(self.stream_chat(tokenizer, query, history, role, **options))[-1]

    def stream_chat(
        self,
        tokenizer: HFTokenizer,
        query: str,
        history: Turns | None = None,
        role: str = "user",
        *,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        do_sample: bool = True,
        temperature: float = 0.8,
        top_p: float = 0.8,
        top_k: int | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        **ignored: Any,
    ) -> Iterator[tuple[str, Turns]]:
        """The answer so far and the history with it, again and again until it is whole.

        history: (query, answer) pairs, as ChatGLM-6B and ChatGLM2 have it, or messages as ChatGLM3 and GLM-4; a new
        one is of the model's own kind.
        """
        _refuse(ignored)
        history = list(history or [])
        model = self.model
        pairs = not isinstance(history[0], Mapping) if history else model.chat_format in ("chatglm", "chatglm2")
        messages: Turns = []
        for turn in history:
            if pairs:
                messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
            else:
                messages.append(dict(turn))
        messages.append({"role": role, "content": query})
        prompt = model.chat_ids(messages)
        if max_new_tokens is None and max_length is not None:
            max_new_tokens = max(max_length - len(prompt), 1)
        answer = ""
        for piece in model.stream(
            prompt,
            max_tokens=max_new_tokens,
            temperature=temperature if do_sample else 0.0,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            seed=seed,
        ):
            answer += piece.text
            reply = answer.strip()
            if pairs:
                yield reply, [*history, (query, reply)]
            else:
                yield reply, [*messages, {"role": "assistant", "metadata": "", "content": reply}]


def _refuse(options: Mapping[str, Any]) -> None:
    for name in _CHANGES_THE_RESULT:
        if options.get(name):
            raise ValueError(f"{name}: not here; glmlite.Model.generate streams, stops and biases in its own way")


def _tensor(rows: list[list[int]], kind: str) -> Any:
    if kind == "np":
        return np.asarray(rows, np.int64)
    if kind == "pt":
        import torch

        return torch.tensor(rows, dtype=torch.long)
    raise ValueError(f"return_tensors is {kind!r}, expected 'np' or 'pt'")


def _numpy(x: Any) -> np.ndarray:
    return x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)


def _like(x: np.ndarray, given: Any) -> Any:
    if not hasattr(given, "detach"):
        return x
    import torch

    return torch.from_numpy(x)


def _ids(ids: Any) -> list[int]:
    return [int(i) for i in np.atleast_1d(_numpy(ids))]
