"""What comes back from a model: pieces, completions and the handle of an answer that is being written."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .cancel import Cancel, check_cancel
from .chat.reply import CallPart, Part, Reply, ToolCall
from .constrain import Constraint
from .delivery import Events
from .errors import Cancelled
from .parameters import Parameters
from .scheduler import Request, Scheduler, Stats

__all__ = ["CallPart", "Completion", "Generation", "Logprob", "Piece", "Progress", "StopStrings", "ToolCall"]

CANCELLED = "cancelled"


def random_seed() -> int:
    return int.from_bytes(os.urandom(8), "little")


class Logprob(NamedTuple):
    """Natural log of a token's probability under the raw logits, and the most likely tokens with theirs."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


class Progress(NamedTuple):
    """How far a prompt is read: `done` of its `total` tokens, `reused` of them from the cache.

    To look at an image counts, too, as so many tokens as could be read meanwhile: so `total` is more than there are.
    """

    done: int
    total: int
    reused: int


@dataclass(frozen=True)
class Piece:
    """The next part of an answer: the tokens of one call of the engine and the text that is now certain.

    `text` may be empty while it could still be the start of a stop string, of a character, or of a call. The last piece
    has a finish_reason: "stop" (an end token or a stop string), "tool_calls" (the same, and the answer has calls),
    "length" (max_tokens, or the context is full), "cancelled".

    reasoning, calls: of an answer in a chat, what the model thought and the calls of tools it made, which are no text.
    Within a piece the reasoning comes first and the calls last; where that would lose the order, one call of the engine
    makes several pieces, of which the first has the tokens.
    """

    text: str
    tokens: list[int]
    logprobs: list[Logprob] | None = None
    finish_reason: str | None = None
    reasoning: str = ""
    calls: tuple[CallPart, ...] = ()


@dataclass(frozen=True)
class Completion:
    """A whole answer. `str(completion)` is its text.

    reasoning: what the model thought before it; None: nothing. tool_calls: the tools that it calls, if you offered any;
    a call that max_tokens cut off is none. message: the answer as the next message of the conversation.

    tokens: without the end token. stop: the token id or the string that ended it, if one did. seed: gives the same
    answer again. Where a stop string ended it, `tokens` go up to the token that completed the string; where
    max_tokens cut a character in two, the text ends before that character.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    logprobs: list[Logprob] | None
    stats: Stats
    stop: int | str | None
    seed: int
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message, in the shape of the OpenAI API; its thought is the `reasoning_content`."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text or None}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        return message

    def __str__(self) -> str:
        return self.text


class StopStrings:
    """Finds the first of several strings in text that comes in parts, and holds back what may be the start of one.

    First is the one that is complete first, so the result does not depend on how the text is cut.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """(text that is certain, the stop string that was found, if one was)."""
        if not self._stops:
            return text, None
        text = self._held + text
        found = [(i + len(s), i, s) for s in self._stops if (i := text.find(s)) >= 0]
        if found:
            _, begin, stop = min(found)
            self._held = ""
            return text[:begin], stop
        hold = max((_overlap(text, s) for s in self._stops), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold], None

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class Answer:
    """The sink of a generation: turns samples into pieces, on the engine thread.

    trim: white space before the first other character is no text. marks: tokens that the text keeps, each as what it
    is spelled here; no stop string is looked for in them. constraint: the answer ends where that is complete.
    """

    def __init__(
        self,
        decoder: Any,
        parameters: Parameters,
        stop_ids: Sequence[int],
        max_tokens: int,
        trim: bool = False,
        marks: Mapping[int, str] | None = None,
        constraint: Constraint | None = None,
    ):
        self.events: Events[Piece] = Events()
        self.stop: int | str | None = None
        self._decoder = decoder
        self._strings = StopStrings(parameters.stops)
        self._stop_ids = frozenset(stop_ids)
        self._left = max_tokens
        self._trim = trim
        self._marks = marks or {}
        self._logprobs = parameters.logprobs is not None
        self._constraint = constraint
        self._gathered: list[Piece] | None = None
        self.ended = False  # the last event is there, or about to be

    def gather(self) -> None:
        """From now on what comes is one piece, which is delivered at the end."""
        self._gathered = self._gathered or []

    def take(self, samples: list[Any]) -> bool:
        text, tokens, reason = "", [], None
        logprobs: list[Logprob] | None = [] if self._logprobs else None
        for sample in samples:
            if sample.token in self._stop_ids:
                self.stop, reason = sample.token, "stop"
                break
            tokens.append(sample.token)
            if logprobs is not None:
                logprobs.append(Logprob(sample.token, sample.logprob, sample.top))
            if (mark := self._marks.get(sample.token)) is not None:
                certain, self.stop = self._before(mark)
            else:
                certain, self.stop = self._strings.push(self._text(self._decoder.push([sample.token])))
            text += certain
            self._left -= 1
            if self.stop is not None or self._left == 0:
                reason = "length" if self.stop is None else "stop"
                break
        if reason != "stop" and self._constraint is not None and self._constraint.done:
            reason = "stop"
        if reason is not None and not isinstance(self.stop, str):
            # Where the limit cuts a character in two, its first part is no text.
            rest, stop = self._strings.push(self._text(self._decoder.finish()) if reason == "stop" else "")
            text += rest + self._strings.flush()
            self.stop = self.stop if stop is None else stop
        self._put(Piece(text, tokens, logprobs, reason))
        return reason is not None

    def _put(self, piece: Piece) -> None:
        if self._gathered is not None:
            self._gathered.append(piece)
            if piece.finish_reason is None:
                return
            piece = _joined(self._gathered)
        self.ended = piece.finish_reason is not None
        self.events.put(piece)

    def _before(self, mark: str) -> tuple[str, str | None]:
        """The text before a mark, which is certain now, with the mark."""
        certain, stop = self._strings.push(self._text(self._decoder.finish()))
        if stop is None:
            certain += self._strings.flush() + mark
            self._trim = False
        return certain, stop

    def _text(self, written: str) -> str:
        if self._trim:
            written = written.lstrip()
            self._trim = not written
        return written

    def fail(self, error: Exception) -> None:
        self.ended = True
        self.events.put(error)

    def cancel(self) -> None:
        self.ended = True
        self.events.put(_joined([*(self._gathered or ()), Piece("", [], None, CANCELLED)]))


def _joined(pieces: Sequence[Piece]) -> Piece:
    """What a model wrote, in one piece."""
    logprobs = [each for piece in pieces for each in piece.logprobs or ()]
    return Piece(
        "".join(piece.text for piece in pieces),
        [token for piece in pieces for token in piece.tokens],
        logprobs if any(piece.logprobs is not None for piece in pieces) else None,
        pieces[-1].finish_reason,
    )


class Generation:
    """An answer that is being written: iterate it for its pieces, with `for` or `async for`, or ask for its `result`,
    which `await` gives, too.

    A loop that is left early, `close`, the end of a `with` block, an exception while waiting (KeyboardInterrupt, a
    cancelled task) and the loss of the last reference all cancel the request, wherever it is: queued, reading,
    writing. `next()` takes single pieces without that, and `take` those that are there, for a program that must not
    wait (`on_event`). One thread or task at a time may take pieces; any may cancel, and ask for `place` and `progress`.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        request: Request,
        answer: Answer,
        on_progress: Callable[[int, int], object] | None,
        seed: int,
        owner: object,
        cancel: Cancel | None = None,
        reply: Reply | None = None,
    ):
        self._reply = reply
        self._ready: deque[Piece] = deque()  # read, and not taken yet
        self._scheduler = scheduler
        self._request = request
        self._answer = answer
        self._on_progress = on_progress
        self._seed = seed
        self._owner = owner  # the model must not be closed by the collector while this runs
        self._read = 0
        self._pieces: list[Piece] = []
        self._error: Exception | None = None
        self._cancel = cancel
        self._key = 0
        scheduler.submit(request)
        if cancel is not None:
            self._key = cancel.add(lambda: _cancel(request, answer))  # not a method: this must be free to be lost

    @property
    def stats(self) -> Stats:
        """So far."""
        return self._request.stats

    @property
    def progress(self) -> Progress:
        """How far the prompt is read, at this moment."""
        done, total = self._scheduler.reading(self._request)
        self._read = max(self._read, done)  # a new call may not have begun to count
        return Progress(self._read, total, self.stats.reused_tokens)

    @property
    def place(self) -> int:
        """Its place in the line of those that wait for the model, 1 for the next; 0: it is no longer, or not, in it."""
        return self._scheduler.place(self._request)

    @property
    def finished(self) -> bool:
        """The last piece has been taken, or an error."""
        return self._error is not None or bool(self._pieces and self._pieces[-1].finish_reason)

    def cancel(self) -> None:
        """Ends it: what has been written is delivered, then a piece with finish_reason "cancelled". From any thread."""
        _cancel(self._request, self._answer)

    def close(self) -> None:
        """Ends it if it runs; nothing more is delivered to a loop."""
        if not self.finished:
            self.cancel()
        if self._cancel is not None:
            self._cancel.discard(self._key)

    def on_event(self, wake: Callable[[], object] | None) -> None:
        """Has `wake` called whenever there is something for `take`, at once if there is already; None: no longer.

        It is called on the engine's thread, or on one that cancels, and holds up every answer of the model until it
        returns: let it only pass the word on (`loop.call_soon_threadsafe(...)`, an event of a GUI). What it raises is
        logged.
        """
        if wake is not None:
            _check_wake(wake)
        self._answer.events.on_event(wake)

    def on_end(self, wake: Callable[[], object]) -> None:
        """Has `wake` called once, when the answer is whole, or has failed, so that `result` does not wait; at once if
        that is so. What is written from now on comes in one piece, which costs less where nobody watches.

        It is called as `on_event` calls, whose place this takes.
        """
        _check_wake(wake)
        answer, once = self._answer, iter([wake])

        def ended() -> None:
            if answer.ended:
                for wake in once:
                    wake()

        answer.gather()
        answer.events.on_event(ended)
        ended()  # its last piece may have been taken

    def take(self) -> Piece | None:
        """The next piece if it is there, without waiting; None if not, and when it is `finished`. Raises what the
        request failed with."""
        return self._take(wait=False)

    def result(self) -> Completion:
        """Waits for the end. Raises what the request failed with."""
        while self._take() is not None:
            pass
        return self._completion()

    def __next__(self) -> Piece:
        piece = self._take()
        if piece is None:
            raise StopIteration
        return piece

    def __iter__(self) -> Iterator[Piece]:
        try:
            while (piece := self._take()) is not None:
                yield piece
        finally:
            self.close()

    def __aiter__(self) -> AsyncIterator[Piece]:
        return _Pieces(self)

    def __await__(self) -> Generator[Any, None, Completion]:
        return self._result_async().__await__()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    async def _result_async(self) -> Completion:
        while await self._take_async() is not None:
            pass
        return self._completion()

    def _completion(self) -> Completion:
        pieces = self._pieces
        logprobs = [x for p in pieces for x in p.logprobs or []]
        reason = pieces[-1].finish_reason
        assert reason is not None
        return Completion(
            text="".join(p.text for p in pieces),
            tokens=[t for p in pieces for t in p.tokens],
            finish_reason=reason,
            logprobs=logprobs if any(p.logprobs is not None for p in pieces) else None,
            stats=self.stats,
            stop=self._answer.stop if reason in ("stop", "tool_calls") else None,
            seed=self._seed,
            reasoning="".join(p.reasoning for p in pieces) or None,
            tool_calls=tuple(self._reply.calls) if self._reply is not None else (),
        )

    def _take(self, wait: bool = True) -> Piece | None:
        """The next piece; None after the last, or where it is not there and nobody waits."""
        if self._ready:
            return self._hand_over(self._ready.popleft())
        if not self.finished:
            try:
                events = self._answer.events
                event = events.get_nowait()
                if event is None and wait:
                    self._scheduler.check_wait()
                    event = events.get(self._ticks())
                return None if event is None else self._note(event)
            except BaseException:
                self.close()
                raise
        if self._error is not None:
            raise self._error
        return None

    async def _take_async(self) -> Piece | None:
        if self._ready:
            return self._hand_over(self._ready.popleft())
        if not self.finished:
            try:
                events = self._answer.events
                event = events.get_nowait()
                if event is None:
                    self._scheduler.check_wait()
                    event = await events.get_async(self._ticks())
                return self._note(event)
            except BaseException:
                self.close()
                raise
        if self._error is not None:
            raise self._error
        return None

    def _note(self, event: Piece | Exception) -> Piece:
        if isinstance(event, Exception):
            self._error = event
            raise event
        if not self._pieces and self._on_progress is not None and event.finish_reason != CANCELLED:
            _, total = self._scheduler.reading(self._request)
            self._on_progress(total, total)
        first, *rest = [event] if self._reply is None else _read(event, self._reply)
        self._ready.extend(rest)
        return self._hand_over(first)

    def _hand_over(self, piece: Piece) -> Piece:
        self._pieces.append(piece)
        if piece.finish_reason is not None:
            self.close()
        return piece

    def _ticks(self) -> Callable[[], object] | None:
        """What is to be called while the next piece is waited for: the report of a prompt that is being read."""
        report = self._on_progress
        return None if report is None or self._pieces else lambda: report(*self.progress[:2])


class _Pieces:
    """The pieces of a generation for `async for`, which is cancelled when the loop lets go of this."""

    def __init__(self, generation: Generation):
        self._generation = generation

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> Piece:
        piece = await self._generation._take_async()
        if piece is None:
            raise StopAsyncIteration
        return piece

    def __del__(self) -> None:
        self._generation.close()


def _read(piece: Piece, reply: Reply) -> list[Piece]:
    """A piece of what the model wrote, as pieces of what it said."""
    parts = reply.feed(piece.text)
    reason = piece.finish_reason
    if reason is not None:
        parts += reply.finish(reason)
        reason = "tool_calls" if reason == "stop" and reply.calls else reason
    parts = parts or [Part()]
    pieces = [Piece(part.text, [], None, None, part.reasoning, part.calls) for part in parts]
    pieces[0] = replace(pieces[0], tokens=piece.tokens, logprobs=piece.logprobs)
    pieces[-1] = replace(pieces[-1], finish_reason=reason)
    return pieces


def _check_wake(wake: Any) -> None:
    if not callable(wake):
        raise TypeError(f"wake is {wake!r}, expected a function without arguments")


def _cancel(request: Request, answer: Answer) -> None:
    request.cancel()
    answer.cancel()


class Rows:
    """The sink of a request for `count` rows of logits."""

    def __init__(self, count: int):
        self.events: Events[NDArray[np.float32]] = Events()
        self.left = count

    def take(self, logits: NDArray[np.float32]) -> bool:
        self.left -= len(logits)
        self.events.put(logits)
        return self.left == 0

    def fail(self, error: Exception) -> None:
        self.events.put(error)


def logits(
    scheduler: Scheduler, tokens: Sequence[int], layout: Any, *, all: bool, cancel: Cancel | None = None
) -> NDArray[np.float32]:
    """(rows, vocab) after each token, or after the last. An exception while waiting cancels.

    Raises Cancelled where `cancel` ends it.
    """
    check_cancel(cancel)
    scheduler.check_wait()
    count = len(tokens) if all else 1
    sink = Rows(count)
    request = Request(tokens, layout, sink, rows="all" if all else "last")

    def end() -> None:
        request.cancel()
        sink.fail(Cancelled("logits: cancelled"))

    scheduler.submit(request)
    key = 0 if cancel is None else cancel.add(end)
    rows: list[NDArray[np.float32]] = []
    try:
        while sum(map(len, rows)) < count:
            event = sink.events.get()
            if isinstance(event, Exception):
                raise event
            rows.append(event)
    except BaseException:
        request.cancel()
        raise
    finally:
        if cancel is not None:
            cancel.discard(key)
    return np.concatenate(rows)
