"""A loaded model: what a program does with it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import models
from .budget import Budget
from .cancel import Cancel, check_cancel
from .chat.dialects.grammars import untyped
from .chat.reply import Reply
from .constrain import After, Constraint, Either, Thought, Vocabulary, after_thought, thought_of
from .errors import ContextOverflow
from .families import FAMILY, GAPS, about
from .generate import Answer, Completion, Generation, logits, random_seed
from .infill import GapFiller, Infill, Infiller, split
from .models.layout import IMAGE, with_images
from .parameters import Options, Parameters, check_integer, token_ids
from .scheduler import Request, Scheduler, SchedulerStatus
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .chat import Prompt
    from .chat.dialects import Dialect
    from .ocr import Doing, Page
    from .vision.eyes import Eyes, Picture

__all__ = ["Model"]

MOST_THREADS = 1024  # the engine's bound


class Debug(NamedTuple):
    """What computes, for tools and benchmarks: an engine and its module (`glmlite/_native.pyi`)."""

    native: Any
    engine: Any


class Model:
    """A loaded model, from `glmlite.load`. Any number of threads may use it at once, and coroutines may wait for it.

    path, name, architecture, tokenizer; metadata: of the file, without what only the tokenizer is made of (merges,
    scores); context: tokens of one request; device: where it runs: "cpu", "cuda:0" or, in two parts, "cpu + cuda:0";
    vocab_size: width of the logits; images: whether messages may have images.
    `close` or the end of a `with` block gives the memory back at once; requests that run then fail with Closed. A
    model does not survive a fork of the process (multiprocessing: use "spawn", or load in the child).
    """

    def __init__(
        self,
        *,
        path: Path,
        name: str,
        metadata: Mapping[str, Any],
        recording: models.Recording,
        tokenizer: Tokenizer,
        defaults: Mapping[str, float],
        context: int,
        device: str,
        native: Any,
        scheduler: Scheduler,
        eyes: Eyes | None = None,
        blind: str = "",
    ):
        self.path = path
        self.name = name
        self.architecture = recording.architecture
        self.metadata = metadata
        self.tokenizer = tokenizer
        self.context = context
        self.device = device
        self.vocab_size = recording.vocab
        self.images = eyes is not None
        self._eyes = eyes
        self._blind = blind
        self._layout = recording.layout
        self._defaults = defaults
        self._native = native
        self._scheduler = scheduler
        self._infiller = infiller(self.architecture, tokenizer)
        asks = about(self.architecture).asks_gap
        self._gaps = GapFiller(tokenizer, asks=asks) if tokenizer.gap_ids and self._infiller is None else None
        self._vocabulary = Vocabulary(tokenizer, recording.vocab)
        # Runs when the model is collected, and before the interpreter ends: no thread may be in the engine then.
        weakref.finalize(self, scheduler.close)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"context {self.context}" + ("" if self.loaded else ", unloaded")
        return f"<glmlite.Model {self.name!r}, {self.architecture}, {state}>"

    @cached_property
    def dialect(self) -> Dialect | None:
        """How the model is spoken to, and read (`glmlite.chat.dialects`); None: not a chat model."""
        from .chat import dialects

        return dialects.of(self.metadata, self.tokenizer, self.architecture)

    @property
    def chat_format(self) -> str | None:
        """How `chat` builds prompts: "template" (the file's) or the name of a format; None: not a chat model."""
        return None if self.dialect is None else self.dialect.chat_format

    @property
    def defaults(self) -> dict[str, float]:
        """The options of sampling where a request gives none: the file's, or else the library's."""
        return Parameters().sampling(self._defaults)

    @property
    def fills_blanks(self) -> bool:
        """Whether `infill` is for this model."""
        return self._infiller is not None or self._gaps is not None

    @property
    def parallel(self) -> int:
        """Requests that run at the same time."""
        return self._scheduler.parallel

    @property
    def _engine(self) -> Any:
        return self._scheduler.engine

    @property
    def threads(self) -> int:
        """Threads that a step on the CPU has at most; 0 once closed. May be set, by any thread and at any time, to 1 to
        1024, and counts from the next step on: nothing is loaded again, and answers stay the same.

        Setting it raises TypeError, ValueError (another number, or a model that is on a GPU alone) and Closed.
        """
        return self._scheduler.threads

    @threads.setter
    def threads(self, threads: int) -> None:
        check_integer("threads", threads, 1, MOST_THREADS)
        self._scheduler.threads = threads
        if self._eyes is not None:
            self._eyes.threads = threads

    @property
    def debug(self) -> Debug:
        """The engine and its module, for tools that measure or look inside. Nothing here is promised to stay."""
        return Debug(self._native, self._engine)

    # ---- text

    def tokenize(self, text: str, *, special: bool = True, prefix: bool = False) -> list[int]:
        """Token ids of a text. special: tokens spelled in it (`<|user|>`) are those tokens; prefix: the model's
        beginning (`[gMASK]<sop>`) stands before it."""
        return self.tokenizer.encode(text, special=special, prefix=prefix)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included. Raises TypeError and ValueError."""
        return self.tokenizer.decode(token_ids("ids", ids))

    def prompt_ids(self, text: str) -> list[int]:
        """The ids that `generate` makes of a text: the model's beginning exactly once, also if the text spells it.
        Blank-infilling models get their mask, if the text has none, and the token that starts a piece."""
        return prompt_ids(self.tokenizer, self._infiller, text)

    # ---- generation

    def generate(
        self,
        prompt: str | Sequence[int],
        parameters: Parameters | None = None,
        /,
        *,
        cancel: Cancel | None = None,
        **changes: Unpack[Options],
    ) -> Completion:
        """Continue a text, or token ids taken as they are, and wait for the whole answer.

        parameters, and changes to them as keyword arguments: see `glmlite.Parameters`. cancel: ends it, from any
        thread, also before it has begun; the completion then has what was written.
        Raises TypeError and ValueError (parameters, ids), ContextOverflow, Closed, RuntimeError (numbers that are not
        finite), Busy (see `glmlite.load`).
        """
        return self.stream(prompt, parameters, cancel=cancel, **changes).result()

    def stream(
        self,
        prompt: str | Sequence[int],
        parameters: Parameters | None = None,
        /,
        *,
        cancel: Cancel | None = None,
        **changes: Unpack[Options],
    ) -> Generation:
        """As `generate`, and return at once: the Generation gives the answer in pieces, to `for` and `async for`, or
        whole, to `result` and `await`."""
        p = Parameters.of(parameters, **changes)
        ids = self._cut(self._ids(prompt), p)
        return self._start(ids, p, self._defaults, cancel, constraint=self._constraint(p))

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        parameters: Parameters | None = None,
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] = "auto",
        parallel_tool_calls: bool = True,
        thinking: bool | None = None,
        effort: str | None = None,
        thinking_budget: int | None = None,
        reasoning: bool = True,
        template: Mapping[str, Any] | None = None,
        cancel: Cancel | None = None,
        **changes: Unpack[Options],
    ) -> Completion:
        """Answer a conversation: `[{"role": "user", "content": "..."}]`. Otherwise as `generate`.

        Where the model sees (`images`), a content may be a list of `{"type": "text", "text": "..."}` and
        `{"type": "image", "image": a path, the bytes of a file, a data URL, a Pillow image or an array}`, or
        `image_url` as the OpenAI API has it, with a data URL. Needs glmlite[vision]. An image that is none is a
        ValueError that begins with its place (`messages[0].content[1]`).

        tools: functions that the model may call, in the shape of the OpenAI API. tool_choice: "auto"; "none" leaves
            them out; "required" and `{"type": "function", "function": {"name": ...}}` make the model call one, where
            its dialect has a grammar for that (needs `glmlite[grammar]`). parallel_tool_calls: False leaves out the
            calls after the first.
        thinking, effort: whether to think before the answer and how much ("low", "high", ...), where the model's
            template has a switch for it. thinking_budget: tokens that a thought may have; it is ended there, and the
            answer follows. reasoning: False leaves the thought in the text.
        template: variables for the model's chat template (`{"clear_thinking": False}`).

        A conversation that ends with a text of the assistant's is answered by going on with that text.

        The completion has what the model thought, its text and its calls each on their own. The text begins with the
        answer's first word: the line end that GLM models write after `<|assistant|>`, which a history has by itself,
        is among `tokens` only. With overflow "truncate" whole messages go, see `glmlite.Parameters`; where what has to
        stay is too long: ContextOverflow.
        """
        return self.chat_stream(
            messages,
            parameters,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            thinking=thinking,
            effort=effort,
            thinking_budget=thinking_budget,
            reasoning=reasoning,
            template=template,
            cancel=cancel,
            **changes,
        ).result()

    def chat_stream(
        self,
        messages: Sequence[Mapping[str, Any]],
        parameters: Parameters | None = None,
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] = "auto",
        parallel_tool_calls: bool = True,
        thinking: bool | None = None,
        effort: str | None = None,
        thinking_budget: int | None = None,
        reasoning: bool = True,
        template: Mapping[str, Any] | None = None,
        cancel: Cancel | None = None,
        **changes: Unpack[Options],
    ) -> Generation:
        """As `chat`, and return at once, as `stream` does."""
        from . import chat

        p = Parameters.of(parameters, **changes)
        if thinking_budget is not None:
            check_integer("thinking_budget", thinking_budget, 0)
        for name, value in (("parallel_tool_calls", parallel_tool_calls), ("reasoning", reasoning)):
            if not isinstance(value, bool):  # "no" would be yes
                raise TypeError(f"{name} is {value!r}, expected True or False")
        offered = chat.offered(tools, tool_choice)

        def render(messages: Sequence[Mapping[str, Any]]) -> Prompt:
            return self._render(messages, tools=offered, thinking=thinking, effort=effort, template=template)

        messages = self._seen(messages, None if p.overflow == "truncate" else self.context)
        if p.overflow == "truncate":
            prompt = chat.fit(render, messages, room=self._room(p), context=self.context)
        else:
            prompt = render(messages)
        ids = self._ids([i for i in prompt if i != IMAGE])
        assert self.dialect is not None  # rendering would have failed
        goes_on = chat.goes_on(messages)
        reader = self.dialect.reader(ids, offered, goes_on=goes_on, thoughts=reasoning, parallel=parallel_tool_calls)
        trim = self.dialect.trims(ids) and not goes_on
        thought = thought_of(self.tokenizer, ids)
        constraint = self._constraint(p)
        if offered:
            constraint = self._calls(offered, tool_choice, parallel_tool_calls, constraint, thought)
        elif constraint is not None:
            constraint = after_thought(thought, constraint, self._vocabulary)
        if thinking_budget is not None and thought is not None:
            end = [thought.end] if isinstance(thought.end, int) else self.tokenize(thought.end)
            constraint = Budget(thinking_budget, thought, end, constraint, self._vocabulary)
        chatting = self.dialect, Reply(reader), trim
        return self._start(
            prompt, p, self._defaults, cancel, constraint=constraint, chatting=chatting, pictures=prompt.images
        )

    def chat_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
        effort: str | None = None,
        template: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The prompt of a conversation, see `chat` and `glmlite.chat.render`; -1 stands for each token of an image.

        add_generation_prompt: end where the answer begins, or with a last text of the assistant's.
        """
        return self._render(
            self._seen(messages, keep=False),
            tools=tools,
            thinking=thinking,
            effort=effort,
            template=template,
            add_generation_prompt=add_generation_prompt,
        )

    def _seen(
        self, messages: Sequence[Mapping[str, Any]], most: int | None = None, keep: bool = True
    ) -> Sequence[Mapping[str, Any]]:
        """The messages with each image as the eyes have it. most: tokens that they may have, in all. keep: the pixels,
        which are many megabytes."""
        from . import chat

        count = 0

        def see(image: Any, where: str) -> Picture:
            nonlocal count
            if self._eyes is None:
                raise ValueError(f"{where}: {self.name} sees no images: {self._blind}")
            picture = self._eyes.picture(image, where)
            count += picture.tokens
            if most is not None and count > most:
                raise self._overflow(count, count)
            return picture if keep else replace(picture, pixels=picture.pixels[:0].copy())

        return chat.check(messages, see)

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        thinking: bool | None,
        effort: str | None,
        template: Mapping[str, Any] | None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """The prompt of messages that `_seen` has seen, with an id for each row of an image."""
        from . import chat

        switches = {} if self.dialect is None else self.dialect.template_variables(thinking, effort)
        prompt = chat.render(
            self.metadata,
            self.tokenizer,
            self.architecture,
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=add_generation_prompt and chat.goes_on(messages),
            **{**switches, **chat.variables(template)},
        )
        if not prompt.images:
            return prompt
        pictures = iter(prompt.images)
        rows = ([i] * (next(pictures).tokens if i == IMAGE else 1) for i in prompt)
        return chat.Prompt([i for ids in rows for i in ids], prompt.images)

    def infill(
        self,
        text: str,
        parameters: Parameters | None = None,
        /,
        *,
        path: str | None = None,
        language: str | None = None,
        cancel: Cancel | None = None,
        **changes: Unpack[Options],
    ) -> Infill:
        """Fill the masks of a text one after another: `[MASK]` a few words, `[sMASK]` a sentence, `[gMASK]` more.

        From left to right; `chatglm1` fills `[gMASK]` first, as it was trained to, and has no `[sMASK]`. Models with
        tokens for a gap in code, as CodeGeeX4 and GLM-4.5 and later have them, fill one mask with what fits. Takes the
        most likely tokens unless a temperature is given. Models that know neither: ValueError.

        path, language: of the file that the text is ("src/a.py", "Python"), for models that are told, as CodeGeeX4.
        """
        p, defaults = self._filling(parameters, {"text": text, "path": path, "language": language}, **changes)
        if self._gaps is not None:
            before, behind = split(text)
            done = self.infill_stream(before, behind, p, path=path, language=language, cancel=cancel).result()
            return Infill(before + done.text + behind, [done.text], [done])
        blanks = self._infiller
        assert blanks is not None
        ids = list(self.tokenizer.encode(text, special=True, prefix=False))
        filled, completions = blanks.fill(
            ids, lambda prompt: self._start(self._cut(self._ids(prompt), p), p, defaults, cancel).result()
        )
        return Infill(self.tokenizer.decode(filled), [c.text for c in completions], completions)

    def infill_stream(
        self,
        prefix: str,
        suffix: str,
        parameters: Parameters | None = None,
        /,
        *,
        path: str | None = None,
        language: str | None = None,
        cancel: Cancel | None = None,
        **changes: Unpack[Options],
    ) -> Generation:
        """Fill the gap between two texts without masks, and return at once. Otherwise as `infill`, and as `stream`.

        With overflow "truncate" what is farthest from the gap goes, where the model is one for code.
        """
        texts = {"prefix": prefix, "suffix": suffix, "path": path, "language": language}
        p, defaults = self._filling(parameters, texts, **changes)
        if (gaps := self._gaps) is not None:
            room = self._room(p) if p.overflow == "truncate" else None
            return self._start(self._ids(gaps.prompt(prefix, suffix, path, language, room)), p, defaults, cancel)
        assert self._infiller is not None
        ids = self._cut(self._ids(self._infiller.gap(prefix, suffix)), p)
        return self._start(ids, p, defaults, cancel)

    def _filling(
        self, parameters: Parameters | None, texts: Mapping[str, Any], **changes: Unpack[Options]
    ) -> tuple[Parameters, Mapping[str, float]]:
        """The parameters of an infill, and what counts where they say nothing. texts: arguments that are checked, by
        name. Raises ValueError and TypeError."""
        for name, value in texts.items():
            if not isinstance(value, str) and (value is not None or name not in ("path", "language")):
                raise TypeError(f"{name}: {type(value).__name__}, expected str")
        if not self.fills_blanks:
            those = ", ".join(name for name, row in FAMILY.items() if row.blanks)
            raise ValueError(
                f"infill: this {self.architecture} model fills no blanks; those that do: {those}, "
                f"and those with {', '.join(GAPS.values())}"
            )
        p = Parameters.of(parameters, **changes)
        if p.schema is not None or p.grammar is not None:
            raise ValueError(f"{'schema' if p.grammar is None else 'grammar'}: infill takes none")
        return p, {**self._defaults, "temperature": 0.0}

    def ocr(
        self,
        sources: Any,
        *,
        pages: str | Iterable[int] | None = None,
        dpi: float = 150,
        task: str = "text",
        fields: Mapping[str, Any] | None = None,
        cut: bool | None = None,
        text_layer: bool = False,
        max_tokens: int = 8192,
        on_progress: Callable[[Doing], object] | None = None,
        cancel: Cancel | None = None,
    ) -> Iterator[Page]:
        """Read documents, page by page: PDF, PNG, JPEG, TIFF (all pages), WebP. For vision models, as GLM-OCR.

            for page in model.ocr("scan.pdf"):
                print(page.number, page.error or page.text)

        sources: a path, a folder (the files in it), the bytes of a file, a data URL, a Pillow image, an array, or a
            sequence of these.
        pages: "3-7", "1,4,9-", or numbers from 1; default: all.
        dpi: of a rendered page; 90 takes a sixth of the time of 150, and misses small print. A picture with more
            pixels than a page of A4 has at it is reduced.
        task: "text" (Markdown, tables in it as HTML), "table", "formula".
        fields: an object with the names of what is wanted, and empty values; a page's `fields` is that object filled
            (needs llguidance: pip install 'glmlite[grammar]').
        cut: read the page in blocks, found by its white space: columns first, ruled tables as tables; the page is set
            upright and levelled. Much quicker than the whole page. Default: for the task "text".
        text_layer: take the text that a page of a PDF has, without reading it, where it has any.
        max_tokens: of a block.
        on_progress: called with what is being done, ten times a second, by the thread that waits.
        cancel: ends it, from any thread; pages that are not finished are not delivered.

        Pages are rendered and cut on a thread of their own, and read several blocks at once (`parallel` of
        `glmlite.load`). A page that fails has an `error`, and the others follow; so does a document that cannot be
        opened. An answer that begins to repeat itself is stopped, and the page's `notes` say so.

        Raises ValueError and TypeError (arguments, a model that sees no images), ModuleNotFoundError (needs
        glmlite[vision]), Closed.
        """
        from . import ocr

        return ocr.read(
            self,
            sources,
            pages=pages,
            dpi=dpi,
            task=task,
            fields=fields,
            cut=cut,
            text_layer=text_layer,
            max_tokens=max_tokens,
            on_progress=on_progress,
            cancel=cancel,
        )

    def logits(
        self, prompt: str | Sequence[int], *, all: bool = False, cancel: Cancel | None = None
    ) -> NDArray[np.float32]:
        """(vocab,) f32 logits of what follows the prompt; with `all`, (tokens, vocab) after each of its tokens.

        cancel: ends it, from any thread (Cancelled).
        """
        ids = self._ids(prompt)
        self._fits(ids, len(ids))
        rows = logits(self._scheduler, ids, self._layout(ids, self.tokenizer.id_of), all=all, cancel=cancel)
        return rows if all else rows[0]

    def _start(
        self,
        ids: list[int],
        p: Parameters,
        defaults: Mapping[str, float],
        cancel: Cancel | None,
        *,
        constraint: Constraint | None = None,
        chatting: tuple[Dialect, Reply, bool] | None = None,
        pictures: Sequence[Picture] = (),
    ) -> Generation:
        """pictures: whose rows stand for the ids that are `IMAGE`, in their order."""
        check_cancel(cancel)
        self._in_vocabulary("stop_ids", p.stop_ids)
        self._in_vocabulary("logit_bias", p.logit_bias or ())
        self._fits(ids, len(ids) + 1, sum(picture.tokens for picture in pictures))
        room = self.context - len(ids)
        max_tokens = room if p.max_tokens is None else min(room, p.max_tokens)
        ends = set(self.tokenizer.eos_ids)
        trim, marks, reply = False, None, None
        if chatting is not None:
            dialect, reply, trim = chatting
            marks = dialect.marks
            ends |= {i for end in dialect.ends if (i := self.tokenizer.id_of(end)) is not None}
        stops = [*p.stop_ids, *(() if p.ignore_eos else sorted(ends))]
        seed = random_seed() if p.seed is None else int(p.seed)
        sampler = self._native.Sampler(
            **p.sampling(defaults),
            seed=seed,
            logit_bias=dict(p.logit_bias or {}),
            logprobs=-1 if p.logprobs is None else p.logprobs,
            stop=[*stops, *(() if constraint is None else constraint.stops)],
            draft=self._native.DRAFT,
        )
        sampler.accept([i for i in ids if i != IMAGE])
        answer = Answer(self.tokenizer.stream(skip_special=True), p, stops, max_tokens, trim, marks, constraint)
        layout, items, sight = self._layout(ids, self.tokenizer.id_of), None, None
        if pictures:
            assert self._eyes is not None
            layout, sight = with_images(ids, [picture.shape for picture in pictures]), self._eyes.sight(pictures)
            contents = chain.from_iterable(map(self._eyes.items, pictures))
            items = [next(contents) if i == IMAGE else i for i in ids]
        request = Request(
            ids,
            layout,
            answer,
            sampler=sampler,
            max_tokens=max_tokens,
            constraint=constraint,
            items=items,
            sight=sight,
        )
        return Generation(self._scheduler, request, answer, p.on_progress, seed, self, cancel, reply)

    def _constraint(self, p: Parameters) -> Constraint | None:
        """What the parameters say of an answer. Raises ValueError, ModuleNotFoundError."""
        if p.schema is not None:
            assert isinstance(p.schema, str)
            return self._vocabulary.schema(p.schema)
        return None if p.grammar is None else self._vocabulary.grammar(p.grammar)

    def _calls(
        self,
        tools: list[dict[str, Any]],
        choice: str | Mapping[str, Any],
        parallel: bool,
        answer: Constraint | None,
        thought: Thought | None,
    ) -> Constraint | None:
        """What calls of tools, and an answer without any, must look like. Where a call is asked for: raises as
        `_constraint` does."""
        assert self.dialect is not None
        trigger, words = self.dialect.trigger, self._vocabulary
        if choice != "auto" and (followed := self._followed(tools, choice, parallel)) is not None:
            return after_thought(thought, followed, words)
        calls = None
        if choice == "auto" and trigger is not None:
            # Where there is no llguidance, or too much for it, calls are read as they come.
            with suppress(ValueError, ModuleNotFoundError):
                if (followed := self._followed(tools, choice, parallel)) is not None:
                    calls = After(trigger, followed, words, again=True)
        if answer is None:
            return calls
        if calls is not None and isinstance(trigger, int):
            answer = Either(trigger, calls, answer, words)
        return after_thought(thought, answer, words)

    def _followed(
        self, tools: list[dict[str, Any]], choice: str | Mapping[str, Any], parallel: bool
    ) -> Constraint | None:
        """The grammar of calls; of their arguments the names alone, where a schema cannot be followed. None: there is
        no grammar. Raises as `_constraint` does."""
        assert self.dialect is not None
        if (grammar := self.dialect.grammar(tools, choice, parallel)) is None:
            return None
        try:
            return self._vocabulary.grammar(grammar)
        except ValueError:
            grammar = self.dialect.grammar(untyped(tools), choice, parallel)
            assert grammar is not None
            return self._vocabulary.grammar(grammar)

    def _ids(self, prompt: str | Sequence[int]) -> list[int]:
        ids = self.prompt_ids(prompt) if isinstance(prompt, str) else token_ids("prompt", prompt)
        if not ids:
            raise ValueError("prompt: is empty, expected at least one token")
        self._in_vocabulary("prompt", ids)
        return ids

    def _in_vocabulary(self, what: str, ids: Iterable[int]) -> None:
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"{what}: token id {i}, expected 0 to {self.vocab_size - 1}")

    def _fits(self, ids: Sequence[int], need: int, of_images: int = 0) -> None:
        if need <= self.context:
            return
        if of_images:
            raise self._overflow(len(ids), of_images)
        raise ContextOverflow(
            f"the prompt has {len(ids)} tokens and leaves no room in a context of {self.context}; "
            "shorten it, load the model with a larger context, or pass overflow='truncate'",
            len(ids),
            self.context,
        )

    def _overflow(self, tokens: int, of_images: int) -> ContextOverflow:
        """What to raise for images that do not fit; `tokens` at least has the prompt."""
        return ContextOverflow(
            f"the prompt has {tokens} tokens or more, {of_images} of them for images, and leaves no room in a context "
            f"of {self.context}; load the model with a context of more than {tokens} tokens, or make the images "
            "smaller",
            tokens,
            self.context,
        )

    def _room(self, p: Parameters) -> int:
        """Tokens of the context for a prompt that may be shortened."""
        answer = min(self.context // 4 if p.max_tokens is None else p.max_tokens, self.context // 2)
        return self.context - max(answer, 1)

    def _cut(self, ids: list[int], p: Parameters) -> list[int]:
        """Without the oldest tokens after the prefix, if that is asked for and needed. A blank that is to be filled
        stays, with all that follows it."""
        drop = len(ids) - self._room(p)
        if p.overflow != "truncate" or drop <= 0:
            return ids
        blanks = self._infiller
        prefix = blanks.before if blanks is not None else list(self.tokenizer.prefix_ids)
        keep = len(prefix) if ids[: len(prefix)] == prefix else 0
        if blanks is not None:
            drop = min(drop, blanks.target(ids) - keep)
        cut = ids[:keep] + ids[keep + drop :]
        if len(cut) >= self.context:
            raise ContextOverflow(
                f"from its blank on the prompt has {len(cut)} tokens and leaves no room in a context of "
                f"{self.context}; shorten it, or load the model with a larger context",
                len(cut),
                self.context,
            )
        return cut

    # ---- life

    def status(self) -> SchedulerStatus:
        """How many requests run and wait, how much room the cache has, and totals; waits for nothing."""
        return self._scheduler.status()

    def memory(self) -> dict[str, int]:
        """Bytes held for "weights" and "kv", the cache; nothing once closed, or unloaded because it was idle."""
        if not self.loaded:
            return {"weights": 0, "kv": 0}
        eyes = 0 if self._eyes is None else self._eyes.held
        return {"weights": self._engine.weight_bytes + eyes, "kv": self._engine.kv_bytes}

    @property
    def loaded(self) -> bool:
        """Whether its weights are there. With `idle_unload` they go when nobody uses them, and come when next asked."""
        return self._scheduler.loaded

    @property
    def closed(self) -> bool:
        return self._scheduler.closed

    def close(self) -> None:
        """Give the memory back now. May be called twice."""
        self._scheduler.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def prompt_ids(tokenizer: Tokenizer, blanks: Infiller | None, text: str) -> list[int]:
    ids = list(tokenizer.encode(text, special=True, prefix=False))
    if blanks is not None:
        return blanks.prompt(ids)
    return tokenizer.begin(ids)


def infiller(architecture: str, tokenizer: Tokenizer) -> Infiller | None:
    blanks = about(architecture).blanks
    return Infiller(blanks, tokenizer) if blanks else None
