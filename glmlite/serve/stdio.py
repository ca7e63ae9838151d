"""The application without a network: requests and answers are lines of JSON, for a program that starts this one.

    {"id": 1, "path": "/v1/chat/completions", "body": {...}}     asks; without a body it is a GET
    {"id": 1, "cancel": true}                                    ends what was asked
    {"id": 1, "status": 200, "body": {...}}                      an answer that comes whole
    {"id": 1, "status": 200, "event": {...}}                     a part of a stream, and after the last
    {"id": 1, "status": 200, "done": true}

An `id` is a number or a string; one that still runs is not taken again. The end of the input ends all.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import suppress
from functools import partial
from typing import IO, Any
from urllib.parse import unquote

from .app import App
from .errors import Refused, openai
from .http import Gone, dump, parse

__all__ = ["serve"]


async def serve(app: App, requests: IO[bytes], answers: IO[bytes]) -> None:
    """Until `requests` ends, or nobody reads `answers` any more. Neither stream may have a buffer of Python's."""
    limit = app.service.settings.body_bytes
    lines = Reader(requests, limit)
    writer = Writer(answers)
    running: dict[Any, Exchange] = {}
    app.service.pool.start()
    try:
        while (line := await lines.next()) is not None and not writer.broken:
            name: Any = None
            try:
                asked = parse(line)
                name = asked.get("id")
                if isinstance(name, bool) or not isinstance(name, int | str):
                    raise Refused(400, "id: missing, expected a number or a string", param="id")
                if asked.get("cancel") is True:
                    if name in running:
                        running[name].gone.set()
                    continue
                if name in running:
                    raise Refused(409, f"id: {name!r} still runs", param="id")
                exchange = Exchange(app, name, asked, writer)
            except Refused as refused:
                await writer.write({"id": name, "status": refused.status, "body": openai(refused)})
                continue
            running[name] = exchange
            exchange.ended = partial(running.pop, name, None)
    finally:
        for exchange in list(running.values()):
            exchange.task.cancel()
        await asyncio.gather(*(exchange.task for exchange in running.values()), return_exceptions=True)
        await app.close()


class Exchange:
    """A request that runs. gone: set to end it. ended: called before its last line is written."""

    ended: Callable[[], object]

    def __init__(self, app: App, name: int | str, asked: dict[str, Any], writer: Writer):
        self.gone = asyncio.Event()
        self._name = name
        self._writer = writer
        self._body = dump(asked["body"]) if asked.get("body") is not None else b""
        self._sent = False
        self._status = 0
        self._streams = False
        self._open = True
        path = asked.get("path")
        if not isinstance(path, str) or not path.startswith("/"):
            raise Refused(400, "path: missing, expected '/v1/chat/completions' or another", param="path")
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "method": "POST" if self._body else "GET",
            "path": unquote(path),
            "query_string": query.encode("utf-8", "replace"),
            "headers": [(b"accept", b"application/json")],
        }
        self.task = asyncio.create_task(self._run(app, scope))

    async def _run(self, app: App, scope: MutableMapping[str, Any]) -> None:
        try:
            await app.respond(scope, self._receive, self._send, trusted=True)
            if self._open:
                self._end()
                await self._writer.write({"id": self._name, "status": 499, "done": True})
        except Gone:  # nobody reads, which the loop that made this sees, too
            self._end()

    async def _receive(self) -> dict[str, Any]:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            kind = dict(message["headers"]).get(b"content-type", b"")
            self._streams = kind in (b"text/event-stream", b"application/x-ndjson")
            return
        if self._streams:
            for event in _events(message["body"]):
                await self._write(event=event)
            if not message.get("more_body"):
                self._end()
                await self._write(done=True)
        else:
            self._end()
            await self._write(body=_value(message["body"]))

    def _end(self) -> None:
        self._open = False
        self.ended()

    async def _write(self, **part: Any) -> None:
        await self._writer.write({"id": self._name, "status": self._status, **part})


def _events(data: bytes) -> Iterator[Any]:
    """The data of server-sent events, or lines, that stand in one part of an answer."""
    for line in data.split(b"\n"):
        text = line.removeprefix(b"data: ")
        if text.startswith(b"{"):
            yield json.loads(text)


def _value(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode("utf-8", "replace")


class Reader:
    """Lines of a stream that can only be waited for on a thread.

    The stream has no buffer of Python's: the lock of one, held by a thread that waits, is fatal when Python ends.
    """

    def __init__(self, stream: IO[bytes], limit: int):
        self._stream = stream
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue(16)
        threading.Thread(target=self._read, name="glmlite stdin", daemon=True).start()

    async def next(self) -> bytes | None:
        """None at the end."""
        return await self._lines.get()

    def _read(self) -> None:
        parts: list[bytes] = []  # of the line that is coming
        size = 0
        with suppress(OSError, ValueError):  # the stream is closed
            while data := self._stream.read(1 << 16):
                first, *lines = data.split(b"\n")
                for line in lines:
                    self._put(b"".join([*parts, first]))
                    parts, size, first = [], 0, line
                if size <= self._limit:  # the rest of a line that is too long is not kept
                    parts.append(first)
                    size += len(first)
            self._put(b"".join(parts))
        self._put(None)

    def _put(self, line: bytes | None) -> None:
        if line is not None and len(line) > self._limit:
            line = b"a line of more than %d bytes" % self._limit  # to parse it says what is wrong
        if line is None or line.strip():
            with suppress(RuntimeError):  # the loop has ended
                asyncio.run_coroutine_threadsafe(self._lines.put(line), self._loop).result()


class Writer:
    """Writes lines on a thread of its own, one after another; whoever writes waits until it is done."""

    def __init__(self, stream: IO[bytes]):
        self.broken = False
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._work: queue.SimpleQueue[tuple[bytes, asyncio.Future[None]]] = queue.SimpleQueue()
        threading.Thread(target=self._write, name="glmlite stdout", daemon=True).start()

    async def write(self, value: Any) -> None:
        """Raises Gone where nobody reads."""
        done: asyncio.Future[None] = self._loop.create_future()
        self._work.put((dump(value) + b"\n", done))
        await done
        if self.broken:
            raise Gone

    def _write(self) -> None:
        while True:
            line, done = self._work.get()
            try:
                while line:  # a stream without a buffer may take a part
                    line = line[self._stream.write(line) :]
            except (OSError, ValueError):
                self.broken = True
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(_finish, done)


def _finish(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
