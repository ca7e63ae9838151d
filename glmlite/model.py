"""Load a model file and generate from it."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import builtin, models
from . import engine as engines
from .errors import ContextOverflow, FormatError
from .generate import Answer, Completion, Generation, Parameters, logits, random_seed, sampling_defaults, token_ids
from .infill import BLANKS, Infill, Infiller
from .scheduler import PREFILL_ALONE, PREFILL_GPU, Request, Scheduler
from .tokenizer import Tokenizer

log = logging.getLogger(__name__)

DEFAULT_CONTEXT = 4096
LEAST_CONTEXT = 512
# Metadata that nothing needs once the tokenizer is made: GLM-4's 318,088 merges take 30 MB.
OF_THE_TOKENIZER = ("merges", "scores", "precompiled_charsmap")


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    context: int | None = None,
    parallel: int = 4,
    kv_tokens: int | None = None,
    kv_type: str = "f16",
    threads: int | None = None,
    device: str = "auto",
    gpu_layers: int | None = None,
    progress: Callable[[float], Any] | None = None,
) -> Model:
    """Load a GGUF file; without a path the built-in model, a small demonstration.

    context: tokens that one request may have, prompt and answer. Default: what the model was trained for, at most
        4096, and halved (not below 512) until the cache fits what the machine has free besides the weights.
    parallel: requests that run at the same time; more wait in line.
    kv_tokens: room of the KV cache, shared by all requests and by what is kept for reuse. Default: `context`; a
        request that finds no room waits, or starts over later, so give `parallel * context` to serve several long ones.
    kv_type: "f16", or "q8", which takes half the memory, reads a long context faster and is as good as exact:
        keys (turned by a Hadamard matrix) and values in 8 bits, with one scale per token and head.
    threads: of the engine; default: the machine's physical cores.
    device: "cpu", "cuda" (the first GPU), "cuda:1", or "auto": the first GPU if this build can use one and the model
        fits into its memory, otherwise the CPU; the log says which, and why.
    gpu_layers: run only so many of the model's layers on the GPU, the last ones and the output, and the others on the
        CPU. Default: all.
    progress: called with 0 to 1 while loading; returning False cancels (Cancelled).

    Raises FileNotFoundError, FormatError (not a model we run: what, and where in the file), ValueError (arguments),
    MemoryError (with the numbers), RuntimeError (the device cannot be had: why).
    """
    _check("context", context, none=True)
    _check("parallel", parallel)
    _check("kv_tokens", kv_tokens, none=True)
    _check("threads", threads, none=True)
    _check("gpu_layers", gpu_layers, none=True, least=0)
    if gpu_layers and device == "cpu":
        raise ValueError(f"gpu_layers is {gpu_layers} and device 'cpu', expected another device or no gpu_layers")
    native = engines.executor(device)
    path = model_file(path)
    gguf = native.Gguf(path)
    try:
        metadata = gguf.metadata
        shapes = {name: tuple(info.shape) for name, info in gguf.tensors.items()}
        recording = models.record(metadata, shapes)
        tokenizer = Tokenizer.from_metadata(metadata)
        defaults = sampling_defaults(metadata)
        for key in OF_THE_TOKENIZER:
            metadata.pop(f"tokenizer.ggml.{key}", None)
        per_token = engines.kv_bytes_per_token(recording.ops, kv_type)
        ops = engines.native_ops(recording.ops, gguf.dequantize)
        page = native.Engine.page_tokens
        # A sequence begins in the prefix's last page, of which it needs a copy.
        prefix = engines.prefix_tokens(recording.ops, shapes.__getitem__) % page

        def sizes(fixed: int, per_token: int, free: int) -> tuple[int, int]:
            """Tokens of context, and of the cache in whole pages."""
            tokens = _context(context, recording, fixed, per_token, free)
            return tokens, -(-(_kv_tokens(kv_tokens, tokens) + prefix) // page) * page

        placement = engines.CPU
        if hasattr(native, "memory_needed") and gpu_layers != 0:
            try:
                gpu = engines.Gpu(native, device, gpu_layers, gguf, ops, kv_type)
                need = gpu.need(LEAST_CONTEXT)
            except (RuntimeError, ValueError) as error:  # a GPU that gives no memory, a shape without kernels
                if device != "auto":
                    raise
                log.info("device 'auto': the CPU, because %s", error)
            else:
                tokens, room = sizes(need["total"] - need["kv"], per_token, gpu.free)
                placement = gpu.place(room)
        if placement is engines.CPU:
            tokens, room = sizes(gguf.nbytes, per_token, native.available_memory())
        engine = native.Engine(
            gguf,
            ops,
            kv_tokens=room,
            kv_type=kv_type,
            threads=threads or 0,
            progress=None if progress is None else lambda done, total: progress(done / total if total else 1.0),
            **placement.arguments,
        )
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    finally:
        gguf.close()
    name = str(metadata.get("general.name") or path.stem)
    if builtin.is_it(path):
        builtin.announce()
    log.info(
        "%s: loaded, %s, context %d, on %s (%s, %d threads)",
        *(path, recording.architecture, tokens, placement.device, engine.isa, engine.threads),
    )
    chunk = PREFILL_ALONE if placement is engines.CPU else PREFILL_GPU
    scheduler = Scheduler(native, engine, parallel=parallel, name=name, chunk=chunk)
    facts = (path, name, metadata, recording, tokenizer, defaults, tokens, placement.device)
    return Model(*facts, native, engine, scheduler)


class Model:
    """A loaded model, from `load`. Any number of threads may use it at once.

    path, name, architecture, tokenizer; metadata: of the file, without what only the tokenizer is made of (merges,
    scores); context: tokens of one request; device: where it runs: "cpu", "cuda:0" or, in two parts, "cpu + cuda:0";
    vocab_size: width of the logits; engine: what computes, and native: its module, for tools (`glmlite/_native.pyi`).
    `close` or the end of a `with` block gives the memory back at once; requests that run then fail with RuntimeError. A
    model does not survive a fork of the process (multiprocessing: use "spawn", or load in the child).
    """

    def __init__(
        self, path, name, metadata, recording, tokenizer, defaults, context, device, native, engine, scheduler
    ):
        self.path: Path = path
        self.name: str = name
        self.architecture: str = recording.architecture
        self.metadata: Mapping[str, Any] = metadata
        self.tokenizer: Tokenizer = tokenizer
        self.context: int = context
        self.device: str = device
        self.vocab_size: int = recording.vocab
        self.engine = engine
        self._layout = recording.layout
        self._defaults = defaults
        self.native = native
        self._scheduler = scheduler
        self._infiller = infiller(self.architecture, tokenizer)
        # Runs when the model is collected, and before the interpreter ends: no thread may be in the engine then.
        self._close = weakref.finalize(self, scheduler.close)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"context {self.context}"
        return f"<glmlite.Model {self.name!r}, {self.architecture}, {state}>"

    @property
    def chat_format(self) -> str | None:
        """How `chat` builds prompts: "template" (the file's) or the name of a format; None: not a chat model."""
        from . import chat

        return chat.chat_format(self.metadata, self.tokenizer, self.architecture)

    # ---- text

    def tokenize(self, text: str, *, special: bool = True, prefix: bool = False) -> list[int]:
        """Token ids of a text. special: tokens spelled in it (`<|user|>`) are those tokens; prefix: the model's
        beginning (`[gMASK]<sop>`) stands before it."""
        return self.tokenizer.encode(text, special=special, prefix=prefix)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return self.tokenizer.decode(ids)

    def prompt_ids(self, text: str) -> list[int]:
        """The ids that `generate` makes of a text: the model's beginning exactly once, also if the text spells it.
        Blank-infilling models get their mask, if the text has none, and the token that starts a piece."""
        return prompt_ids(self.tokenizer, self._infiller, text)

    # ---- generation

    def generate(self, prompt: str | Sequence[int], **parameters: Any) -> Completion | Generation:
        """Continue a text, or token ids taken as they are. Parameters: see `glmlite.Parameters`.

        Returns a Completion; with `stream=True` a Generation, which is iterated for its pieces.
        Raises TypeError and ValueError (parameters, ids), ContextOverflow, RuntimeError (closed, numbers not finite).
        """
        p = Parameters.of(self._defaults, parameters)
        generation = self._start(prompt, p)
        return generation if p.stream else generation.result()

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: Mapping[str, Any] | None = None,
        **parameters: Any,
    ) -> Completion | Generation:
        """Answer a conversation: `[{"role": "user", "content": "..."}]`. As `generate` otherwise.

        template: variables for the model's chat template (`{"enable_thinking": False}`).
        """
        return self.generate(self.chat_ids(messages, tools=tools, **(template or {})), **parameters)

    def chat_ids(self, messages: Sequence[Mapping[str, Any]], **template: Any) -> list[int]:
        """The prompt of a conversation, see `glmlite.chat.render`."""
        from . import chat

        return chat.render(self.metadata, self.tokenizer, self.architecture, messages, **template)

    def infill(self, text: str, **parameters: Any) -> Infill:
        """Fill the masks of a text one after another: `[MASK]` a few words, `[sMASK]` a sentence, `[gMASK]` more.

        From left to right; `chatglm1` fills `[gMASK]` first, as it was trained to, and has no `[sMASK]`. Takes the most
        likely tokens unless a temperature is given. Blank-infilling models only, others: ValueError.
        """
        if self._infiller is None:
            raise ValueError(f"infill: {self.architecture} models fill no blanks; those that do: {', '.join(BLANKS)}")
        p = Parameters.of({**self._defaults, "temperature": 0.0}, parameters)
        if p.stream:
            raise ValueError("infill: answers in one piece, without stream")
        ids = list(self.tokenizer.encode(text, special=True, prefix=False))
        filled, completions = self._infiller.fill(ids, lambda prompt: self._start(prompt, p).result())
        return Infill(self.tokenizer.decode(filled), [c.text for c in completions], completions)

    def logits(self, prompt: str | Sequence[int], *, all: bool = False) -> np.ndarray:
        """(vocab,) f32 logits of what follows the prompt; with `all`, (tokens, vocab) after each of its tokens."""
        ids = self._ids(prompt)
        self._fits(ids, len(ids))
        rows = logits(self._scheduler, ids, self._layout(ids, self.tokenizer.id_of), all=all)
        return rows if all else rows[0]

    def _start(self, prompt: str | Sequence[int], p: Parameters) -> Generation:
        ids = self._ids(prompt)
        self._in_vocabulary("stop_ids", p.stop_ids)
        self._in_vocabulary("logit_bias", p.logit_bias or ())
        if p.overflow == "truncate":
            ids = self._truncate(ids, p.max_tokens)
        self._fits(ids, len(ids) + 1)
        room = self.context - len(ids)
        max_tokens = room if p.max_tokens is None else min(room, p.max_tokens)
        stops = list(p.stop_ids)
        if not p.ignore_eos:
            stops += sorted(self.tokenizer.eos_ids)
        seed = random_seed() if p.seed is None else int(p.seed)
        sampler = p.sampler(self.native, seed=seed, stop=stops)
        sampler.accept(ids)
        answer = Answer(self.tokenizer.stream(skip_special=True), p, stops, max_tokens)
        layout = self._layout(ids, self.tokenizer.id_of)
        request = Request(ids, layout, answer, sampler=sampler, max_tokens=max_tokens)
        return Generation(self._scheduler, request, answer, p.on_progress, seed, self)

    def _ids(self, prompt: str | Sequence[int]) -> list[int]:
        ids = self.prompt_ids(prompt) if isinstance(prompt, str) else token_ids("prompt", prompt)
        if not ids:
            raise ValueError("prompt: is empty, expected at least one token")
        self._in_vocabulary("prompt", ids)
        return ids

    def _in_vocabulary(self, what: str, ids) -> None:
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"{what}: token id {i}, expected 0 to {self.vocab_size - 1}")

    def _fits(self, ids: Sequence[int], need: int) -> None:
        if need > self.context:
            raise ContextOverflow(
                f"the prompt has {len(ids)} tokens and leaves no room in a context of {self.context}; "
                "shorten it, load the model with a larger context, or pass overflow='truncate'"
            )

    def _truncate(self, ids: list[int], max_tokens: int | None) -> list[int]:
        answer = min(self.context // 4 if max_tokens is None else max_tokens, self.context // 2)
        drop = len(ids) - (self.context - max(answer, 1))
        prefix = self._infiller.before if self._infiller is not None else list(self.tokenizer.prefix_ids)
        keep = len(prefix) if ids[: len(prefix)] == prefix else 0
        return ids if drop <= 0 else ids[:keep] + ids[keep + drop :]

    # ---- life

    def memory(self) -> dict[str, int]:
        """Bytes held for "weights" and "kv", the cache; nothing once closed."""
        if self.closed:
            return {"weights": 0, "kv": 0}
        return {"weights": self.engine.weight_bytes, "kv": self.engine.kv_bytes}

    @property
    def closed(self) -> bool:
        return self._scheduler.closed

    def close(self) -> None:
        """Give the memory back now. May be called twice."""
        self._close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def prompt_ids(tokenizer: Tokenizer, blanks: Infiller | None, text: str) -> list[int]:
    ids = list(tokenizer.encode(text, special=True, prefix=False))
    if blanks is not None:
        return blanks.prompt(ids)
    prefix = list(tokenizer.prefix_ids)
    return ids if ids[: len(prefix)] == prefix else prefix + ids


def infiller(architecture: str, tokenizer: Tokenizer) -> Infiller | None:
    return Infiller(architecture, tokenizer) if architecture in BLANKS else None


def _context(asked: int | None, recording: models.Recording, weight_bytes: int, per_token: int, free: int) -> int:
    """Tokens of one request, `per_token` bytes each: what was asked for, or else what fits into `free` bytes beside the
    weights."""
    if asked is not None:
        if asked > recording.context:
            raise ValueError(f"context is {asked}, the model was trained for {recording.context} tokens")
        return asked
    context = min(recording.context, DEFAULT_CONTEXT)
    while context > LEAST_CONTEXT and weight_bytes + context * per_token > free:
        context = max(context // 2, LEAST_CONTEXT)
    return context


def _kv_tokens(asked: int | None, context: int) -> int:
    if asked is not None and asked < context:
        raise ValueError(f"kv_tokens is {asked}, a context of {context} needs at least as many")
    return asked or context


def model_file(path: str | os.PathLike[str] | None) -> Path:
    path = builtin.path() if path is None else Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected a .gguf file")
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file, expected the path of a .gguf file (hub names are not looked up)"
        )
    return path


def _check(name: str, value: int | None, *, none: bool = False, least: int = 1) -> None:
    if value is None and none:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}, expected an integer")
    if value < least:
        raise ValueError(f"{name} is {value}, expected at least {least}")
