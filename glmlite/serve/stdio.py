"""The application without a network: requests and answers are lines of JSON, for a program that starts this one.

    {"id": 1, "path": "/v1/chat/completions", "body": {...}}     asks; without a body it is a GET
    {"id": 1, "cancel": true}                                    ends what was asked
    {"id": 1, "status": 200, "body": {...}}                      an answer that comes whole
    {"id": 1, "status": 200, "event": {...}}                     a part of a stream, and after the last
    {"id": 1, "status": 200, "done": true}
    {"type": "ready", ...}                                       lines without an id: see `sidecar`

An `id` is a number or a string; one that still runs is not taken again. The end of the input ends all.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from typing import IO, Any
from urllib.parse import unquote

from .app import App
from .errors import Refused, openai
from .http import Gone, dump, parse
from .lines import Reader, Writer
from .sidecar import LOOKS_SECONDS, Parent

__all__ = ["serve"]


async def serve(app: App, requests: IO[bytes], writer: Writer, parent: Parent | None = None) -> None:
    """Until `requests` ends, nobody reads what `writer` writes any more, or `parent` is gone, which is told when the
    model is there. Raises what its load failed with."""
    running: dict[Any, Exchange] = {}
    loading = asyncio.ensure_future(app.service.pool.ready())
    ends = [
        asyncio.ensure_future(_take(app, Reader(requests, app.service.settings.body_bytes), writer, running)),
        asyncio.ensure_future(_broken(writer)),
        *([] if parent is None else [asyncio.ensure_future(parent.gone())]),
    ]
    try:
        await asyncio.wait([loading, *ends], return_when=asyncio.FIRST_COMPLETED)
        if not any(end.done() for end in ends):
            loading.result()
            if parent is not None:
                parent.ready()
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if parent is not None:
            parent.ending()
        for task in [loading, *ends]:
            task.cancel()
        for exchange in list(running.values()):
            exchange.task.cancel()
        tasks = [loading, *ends, *(exchange.task for exchange in running.values())]
        await asyncio.gather(*tasks, return_exceptions=True)
        await app.close()


async def _take(app: App, lines: Reader, writer: Writer, running: dict[Any, Exchange]) -> None:
    """Begins what lines ask for. It waits for none of it, so it hears of the end of the input whatever else waits."""
    while (line := await lines.next()) is not None:
        name: Any = None
        try:
            asked = parse(line)
            name = asked.get("id")
            if isinstance(name, bool) or not isinstance(name, int | float | str):
                raise Refused(400, "id: missing, expected a number or a string", param="id")
            if asked.get("cancel") is True:
                if name in running:
                    running[name].gone.set()
                continue
            if name in running:
                raise Refused(409, f"id: {name!r} still runs", param="id")
            exchange = Exchange(app, name, asked, writer)
        except Refused as refused:
            writer.tell(dump({"id": name, "status": refused.status, "body": openai(refused)}))
            continue
        running[name] = exchange
        exchange.ended = partial(running.pop, name, None)


async def _broken(writer: Writer) -> None:
    while not writer.broken:
        await asyncio.sleep(LOOKS_SECONDS)


class Exchange:
    """A request that runs. gone: set to end it. ended: called before its last line is written."""

    ended: Callable[[], object]

    def __init__(self, app: App, name: int | float | str, asked: dict[str, Any], writer: Writer):
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
            body, self._body = self._body, b""  # it may be large
            return {"type": "http.request", "body": body, "more_body": False}
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
