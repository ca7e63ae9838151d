"""HTTP as the app needs it: requests that are read within bounds, answers whole or in parts. ASGI 3, no framework."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl

from .errors import Refused

__all__ = [
    "GET",
    "Gone",
    "Receive",
    "Reply",
    "Request",
    "Route",
    "Scope",
    "Send",
    "Stream",
    "dump",
    "kind_of",
    "parse",
    "sse",
    "until_gone",
    "within",
]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Coroutine[Any, Any, None]]
Headers = Iterable[tuple[str, str]]

T = TypeVar("T")

MAX_DEPTH = 64  # of a body's lists and objects: rendering and schemas go down them by calls
MAX_VALUES = 1_000_000  # a hundred bytes each, at most, once they are objects
DRAINED = 4  # times the bytes of a body that is too large are read, so that the client gets to read why
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class Request:
    """One request. path: without `/v1`, doubled slashes and the place where the app is mounted."""

    def __init__(self, scope: Scope, receive: Receive):
        self._receive = receive
        self.method: str = scope["method"]
        self.path = _path(scope)
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}

        self._query: bytes = scope.get("query_string", b"")

    @property
    def query(self) -> dict[str, str]:
        """Raises Refused."""
        try:
            return dict(parse_qsl(self._query.decode("latin-1"), max_num_fields=64))
        except ValueError:
            raise Refused(400, "the address has more than 64 parameters") from None

    async def body(self, limit: int, seconds: float) -> bytes:
        """Raises Refused: 413 above `limit` bytes, 408 if it takes longer than `seconds`; Gone if the client went."""
        try:
            return await within(seconds, self._body(limit))
        except asyncio.TimeoutError:
            raise Refused(408, f"the request's body did not come within {seconds:g} seconds") from None

    @property
    def length(self) -> int | None:
        """Bytes of the body, if the client has told how many."""
        told = self.headers.get("content-length", "")
        return int(told) if told.isdecimal() and told.isascii() and len(told) < 20 else None

    async def _body(self, limit: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        more = True
        keeps = (self.length or 0) <= limit
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Gone
            part: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            size += len(part)
            keeps = keeps and size <= limit
            if keeps:
                parts.append(part)
            else:
                parts.clear()
            if size > DRAINED * limit:
                break
        if not keeps:
            raise Refused(413, f"the request's body has more than {limit} bytes")
        return b"".join(parts)


class Gone(Exception):
    """The client has closed the connection."""


async def until_gone(receive: Receive) -> None:
    """Returns when the client has closed the connection. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. Raises TimeoutError after so many seconds.

    Python's `wait_for` before 3.12 forgets a cancel that comes when the work has just been done.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise asyncio.TimeoutError
        return task.result()
    finally:
        task.cancel()


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    root = scope.get("root_path", "")
    if root and (path == root or path.startswith(root.rstrip("/") + "/")):
        path = path[len(root.rstrip("/")) :]
    parts = [part for part in path.split("/") if part]
    while parts[:1] == ["v1"]:
        del parts[0]
    return "/" + "/".join(parts)


def parse(body: bytes) -> dict[str, Any]:
    """A body that is a JSON object. Raises Refused."""
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MAX_VALUES:
        raise Refused(413, f"the request's body has more than {MAX_VALUES} values")
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise Refused(400, f"the request's body is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise Refused(400, f"the request's body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(400, f"the request's body is {kind_of(value)}, should be an object")
    _check_depth(value)
    return _text(value) if b"\\ud" in body or b"\\uD" in body else value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f"{number[:40]} is too large a number")  # what echoes it would be no JSON
    return value


def _check_depth(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        if not level:
            return
        level = [
            item
            for container in level
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, dict | list)
        ]
    raise Refused(400, f"the request's body is nested deeper than {MAX_DEPTH} levels")


def _text(value: Any) -> Any:
    """Without lone surrogates, which are no text."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_text(key): _text(item) for key, item in value.items()}
    return [_text(item) for item in value] if isinstance(value, list) else value


def kind_of(value: Any) -> str:
    """What JSON calls a value, with its article."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def dump(value: Any) -> bytes:
    """JSON in one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def sse(data: Any, event: str | None = None) -> bytes:
    """One server-sent event."""
    named = b"" if event is None else b"event: " + event.encode() + b"\n"
    return named + b"data: " + (data if isinstance(data, bytes) else dump(data)) + b"\n\n"


@dataclass
class Reply:
    """A whole answer."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: Headers = ()

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: Headers = ()) -> Reply:
        return cls(dump(value), status, "application/json", headers)

    async def send(self, send: Send, more: Headers, head: bool = False) -> None:
        length = ("content-length", str(len(self.body)))
        await send(_start(self.status, [("content-type", self.content_type), length, *self.headers, *more]))
        await send({"type": "http.response.body", "body": b"" if head else self.body})


@dataclass
class Stream:
    """An answer in parts. close: called at the end, however it comes."""

    parts: AsyncIterator[bytes]
    close: Callable[[], object]
    content_type: str = "text/event-stream"
    headers: Headers = ()
    status: int = field(default=200, init=False)

    async def send(self, send: Send, more: Headers, head: bool = False) -> None:
        unbuffered = [("cache-control", "no-cache"), ("x-accel-buffering", "no")]
        await send(_start(self.status, [("content-type", self.content_type), *unbuffered, *self.headers, *more]))
        async for part in self.parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


Handler = Callable[[Any, Mapping[str, Any]], Awaitable[Reply | Stream]]


class Route(NamedTuple):
    """What is at a path. api: in whose form errors are. handler: of a service and the body, or the query of a GET.
    public: no key is asked for."""

    api: str
    handler: Handler
    methods: tuple[str, ...] = ("POST",)
    public: bool = False


GET = ("GET", "HEAD")


def _start(status: int, headers: Headers) -> dict[str, Any]:
    encoded = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers]
    return {"type": "http.response.start", "status": status, "headers": encoded}
