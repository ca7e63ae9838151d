"""From a request to its answer: a model, a place in its queue, and then one stream of events, whatever the API."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

from ..cancel import Cancel
from ..chat import offered
from ..generate import Logprob, Piece
from ..scheduler import Stats
from . import errors, images, starting
from .asked import Asked
from .errors import Refused
from .http import within
from .metrics import Metrics
from .pool import Lease, Pool
from .settings import Settings
from .starting import Running
from .thoughts import Thoughts

__all__ = [
    "Answers",
    "CallArguments",
    "CallBegins",
    "End",
    "Event",
    "Progress",
    "Service",
    "Text",
    "Thought",
    "Usage",
    "Waiting",
    "arguments_of",
]

log = logging.getLogger("glmlite.serve")

AHEAD = 64  # events that wait for a client that reads slowly, before the rest waits as tokens
PROGRESS_SECONDS = 0.2
WORKERS = 4  # threads that render and tokenize

T = TypeVar("T")


class Thought(NamedTuple):
    choice: int
    text: str


class Text(NamedTuple):
    """logprobs: of the tokens of this piece, if they were asked for."""

    choice: int
    text: str
    logprobs: list[Logprob] | None


class CallBegins(NamedTuple):
    """call: which of the answer, from 0."""

    choice: int
    call: int
    id: str
    name: str


class CallArguments(NamedTuple):
    """The next piece of the JSON text of the arguments."""

    choice: int
    call: int
    text: str


def arguments_of(text: str) -> dict[str, Any] | None:
    """The arguments of a call; None: the call was cut off, and nobody must act on what there is of it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


class End(NamedTuple):
    """The last event of a choice. reason: "stop", "length" or "tool_calls". stop: the string that ended it, if one
    did."""

    choice: int
    reason: str
    stop: str | None


class Progress(NamedTuple):
    """How far the prompt is read: `done` of `total` tokens, `reused` of them from the cache."""

    done: int
    total: int
    reused: int


class Waiting(NamedTuple):
    """Nothing has come for a while."""


Event = Thought | Text | CallBegins | CallArguments | End | Progress | Waiting


class Usage(NamedTuple):
    """Tokens. prompt: of one choice, since the others share it; cached: of the prompt; reasoning: of the completion."""

    prompt: int
    cached: int
    completion: int
    reasoning: int


class Answers:
    """The events of an admitted request: iterate it once, in a task that may be cancelled, and `close` it.

    model, name: which answers, and what the client calls it. created: when it began, in seconds of the epoch.
    """

    def __init__(
        self,
        service: Service,
        lease: Lease,
        asked: Asked,
        generations: Sequence[Running],
        began: float,
    ):
        self.asked = asked
        self.model = lease.model
        self.name = asked.model or lease.name
        self.created = int(time.time())
        self._service = service
        self._lease = lease
        self._generations = generations
        self._began = began
        self._messages = asked.messages
        self._queue: asyncio.Queue[Event | Exception] = asyncio.Queue(AHEAD)
        self._pumps = [asyncio.create_task(self._pump(i, g)) for i, g in enumerate(generations)]
        self._open = len(generations)
        self._thinking = [0] * len(generations)
        self._written = [0] * len(generations)
        self._first = 0.0
        self._read = -1
        self._failed = False
        self._closed = False
        self._expiry = None
        if (seconds := service.settings.seconds) is not None:
            self._expiry = asyncio.get_running_loop().call_later(seconds, self._expire)

    # ---- events

    def __aiter__(self) -> Answers:
        return self

    async def __anext__(self) -> Event:
        """Raises what the request failed with."""
        if self._queue.empty():
            if not self._open:
                raise StopAsyncIteration
            reading = self.asked.progress and not self._first
            try:
                seconds = PROGRESS_SECONDS if reading else self._service.settings.keep_alive
                event = await within(seconds, self._queue.get())
            except asyncio.TimeoutError:
                return self._how_far() if reading else Waiting()
        else:
            event = self._queue.get_nowait()
        if isinstance(event, Exception):
            self._failed = True
            raise event
        if isinstance(event, End):
            self._open -= 1
        return event

    def _how_far(self) -> Event:
        return Progress(*self._generations[0].progress)

    async def _pump(self, choice: int, generation: Running) -> None:
        """Puts the events of one choice into the queue, which makes it wait for a client that reads slowly."""
        try:
            async for piece in generation:
                if not self._first and piece.tokens:
                    self._first = time.perf_counter()
                    self._service.metrics.observe("first_token_seconds", self._first - self._began)
                for event in self._events(choice, piece):
                    await self._queue.put(event)
                if piece.finish_reason is not None:
                    await self._queue.put(await self._end(choice, generation, piece.finish_reason))
        except Exception as error:
            await self._queue.put(error)

    def _events(self, choice: int, piece: Piece) -> list[Event]:
        events: list[Event] = []
        if piece.reasoning:
            events.append(Thought(choice, piece.reasoning))
            self._thinking[choice] += len(piece.tokens) if not (piece.text or piece.calls) else 0
        if piece.text or (piece.logprobs and not piece.reasoning and not piece.calls):
            events.append(Text(choice, piece.text, piece.logprobs))
        for part in piece.calls:
            if part.id:
                events.append(CallBegins(choice, part.index, part.id, part.name))
            if part.arguments:
                events.append(CallArguments(choice, part.index, part.arguments))
        return events

    async def _end(self, choice: int, generation: Running, reason: str) -> End:
        completion = await generation
        self._written[choice] = len(completion.tokens) + isinstance(completion.stop, int)  # with the one that ended it
        stop = completion.stop if isinstance(completion.stop, str) else None
        if self._messages is not None and completion.reasoning:
            self._service.thoughts.remember(self._lease.name, self._messages, completion.message)
        self._note(generation.stats)
        return End(choice, "length" if reason == "cancelled" else reason, stop)

    def _note(self, stats: Stats) -> None:
        metrics = self._service.metrics
        metrics.add("prompt_tokens", stats.prompt_tokens)
        metrics.add("reused_tokens", stats.reused_tokens)
        metrics.add("generated_tokens", stats.generated_tokens)
        metrics.add("drafted_tokens", stats.drafted_tokens)
        metrics.add("accepted_tokens", stats.accepted_tokens)
        metrics.add("image_seconds", stats.image_seconds)
        metrics.add("prompt_seconds", stats.prompt_seconds)
        metrics.add("generation_seconds", stats.generation_seconds)
        if stats.generated_tokens > 1:
            metrics.observe("token_seconds", stats.generation_seconds / (stats.generated_tokens - 1))

    def _expire(self) -> None:
        seconds = self._service.settings.seconds
        log.warning("%s: an answer took longer than %g s and was ended", self._lease.name, seconds)
        for generation in self._generations:
            generation.cancel()

    # ---- what it came to

    @property
    def usage(self) -> Usage:
        """completion: of the answers that have ended, with the tokens that ended them. The model may have written more:
        see `stats`."""
        stats = [generation.stats for generation in self._generations]
        return Usage(
            sum(each.prompt_tokens for each in stats[:: self.asked.choices]),
            sum(each.reused_tokens for each in stats[:: self.asked.choices]),
            sum(self._written),
            sum(self._thinking),
        )

    @property
    def stats(self) -> Stats:
        """Of the first choice."""
        return self._generations[0].stats

    @property
    def seconds(self) -> float:
        """Since the request came."""
        return time.perf_counter() - self._began

    def close(self) -> None:
        """Ends what still runs and gives the model back. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._open and not self._failed:
            self._service.metrics.add("cancelled")
        if self._expiry is not None:
            self._expiry.cancel()
        for pump in self._pumps:
            pump.cancel()
        for generation in self._generations:
            generation.close()
        self._service.live[self._lease.name] -= len(self._generations)
        self._lease.release()


class Service:
    """What the encoders of all APIs work with."""

    def __init__(self, pool: Pool, settings: Settings):
        self.pool = pool
        self.settings = settings
        self.metrics = Metrics()
        self.thoughts = Thoughts()
        self.live: Counter[str] = Counter()  # answers that run or wait, by model
        self._workers = ThreadPoolExecutor(WORKERS, "glmlite serve")
        self._lookers = ThreadPoolExecutor(1, "glmlite serve images")

    async def begin(self, asked: Asked) -> Answers:
        """Renders, counts and takes a place in the queue. Raises Refused."""
        began = time.perf_counter()
        lease = await self.pool.lease(asked.model)
        taken = 0
        try:
            self._check_room(lease, asked.count)
            taken = asked.count
            self.live[lease.name] += taken
            try:
                generations = await self.work(partial(self._start, lease, asked), asked)
            except Refused as refused:
                ours = refused.param or ""
                if (theirs := {"schema": asked.schema_name, "stop_ids": "stop_token_ids"}.get(ours)) is not None:
                    refused.message = theirs + refused.message.removeprefix(ours)
                    refused.param = theirs
                raise
            self.metrics.add("images", asked.images)
            return Answers(self, lease, asked, generations, began)
        except BaseException:
            self.live[lease.name] -= taken
            lease.release()
            raise

    def _check_room(self, lease: Lease, more: int) -> None:
        """Raises Refused where the queue is too full to be worth rendering for."""
        most = lease.model.parallel + self.settings.queue
        if more > most:
            raise Refused(400, f"{more} answers are asked for at once, expected at most {most}", param="n")
        if self.live[lease.name] + more > most:
            raise Refused(
                429,
                f"too many requests: {self.live[lease.name]} run or wait, expected at most {most}",
                code="rate_limit_exceeded",
                retry=errors.RETRY_SECONDS,
            )

    async def work(self, do: Callable[[Cancel], T], asked: Asked | None = None) -> T:
        """What `do` returns on a thread of ours; it is told to end if the one who waits is. Raises Refused.

        asked: what it is for. Images, which are large once decoded, are decoded one at a time.
        """
        cancel = Cancel()

        def run() -> T:
            try:
                with cancel.over():
                    return do(cancel)
            except Exception:
                if cancel.cancelled:
                    return cast(T, None)  # nobody waits for it
                raise

        workers = self._lookers if asked is not None and asked.images else self._workers
        running = asyncio.get_running_loop().run_in_executor(workers, run)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            cancel.cancel()
            raise
        except Exception as error:
            if (refused := errors.of(error)) is None:
                raise
            raise refused from error

    def _start(self, lease: Lease, asked: Asked, cancel: Cancel) -> list[Running]:
        cancel.check("request")
        keep = self.settings.keep_thinking
        if asked.messages is None:
            return starting.prompts(lease.model, asked, cancel)
        with self.conversation(lease, asked) as messages:
            return starting.conversation(lease.model, asked, messages, cancel, keep_thinking=keep)

    @contextmanager
    def conversation(self, lease: Lease, asked: Asked) -> Iterator[list[dict[str, Any]]]:
        """The messages as the model takes them: with the bytes of images, and the thoughts that the client has left
        out. On a thread of ours. Raises Refused."""
        assert asked.messages is not None
        messages, where = images.decoded(asked.messages)
        messages = self.thoughts.restore(lease.name, messages, self.settings.keep_thinking)
        asked.messages = images.released(messages)
        with images.named(where):
            yield messages

    def render(self, lease: Lease, asked: Asked, cancel: Cancel) -> list[int]:
        """The ids of a conversation's prompt."""
        cancel.check("request")
        tools = offered(asked.tools or None, asked.tool_choice)
        switches = starting.switches(lease.model, asked, keep_thinking=self.settings.keep_thinking)
        with self.conversation(lease, asked) as messages:
            return lease.model.chat_ids(messages, tools=tools or None, **switches)

    async def count(self, asked: Asked) -> int:
        """Tokens of a conversation's prompt. Raises Refused."""
        lease = await self.pool.lease(asked.model)
        try:
            return len(await self.work(partial(self.render, lease, asked), asked))
        finally:
            lease.release()

    def close(self) -> None:
        for workers in (self._workers, self._lookers):
            workers.shutdown(wait=False, cancel_futures=True)
