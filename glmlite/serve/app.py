"""The application: which path is whose, who may ask, and what becomes of a request whose client goes."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable, Mapping, MutableMapping
from functools import partial
from typing import Any
from urllib.parse import quote

from ..model import Model
from . import anthropic, errors, ollama, openai, own, pages, responses
from .answering import Service
from .errors import Refused
from .http import GET, Gone, Receive, Reply, Request, Route, Scope, Send, Stream, parse, until_gone, within
from .pool import Pool
from .settings import Settings

__all__ = ["App", "app"]

log = logging.getLogger("glmlite.serve")

BODIES = 8  # requests of the largest size that may be held at once
_HEADER_NAMES = re.compile(r"[\w-]+(, ?[\w-]+)*")

ROUTES = {
    "/chat/completions": Route("openai", openai.chat),
    "/chat/completions/input_tokens": Route("openai", own.count_chat),
    "/completions": Route("openai", openai.completions),
    "/responses": Route("openai", responses.responses),
    "/responses/input_tokens": Route("openai", own.count_responses),
    "/messages": Route("anthropic", anthropic.messages),
    "/messages/count_tokens": Route("anthropic", anthropic.count_tokens),
    "/models": Route("openai", own.models, GET),
    "/embeddings": Route("openai", own.not_here),
    "/api/chat": Route("ollama", ollama.chat),
    "/api/generate": Route("ollama", ollama.generate),
    "/api/show": Route("ollama", ollama.show),
    "/api/version": Route("ollama", ollama.version, GET),
    "/api/tags": Route("ollama", ollama.tags, GET),
    "/api/ps": Route("ollama", ollama.ps, GET),
    **{
        f"/api/{name}": Route("ollama", own.not_here, ("POST", "DELETE"))
        for name in ("pull", "push", "create", "copy", "delete", "embed", "embeddings")
    },
    "/health": Route("openai", own.health, GET, public=True),
    "/metrics": Route("openai", own.metrics, GET),
    "/props": Route("openai", own.props, GET),
    "/slots": Route("openai", own.slots, GET),
    "/infill": Route("openai", own.infill),
    "/tokenize": Route("openai", own.tokenize),
    "/detokenize": Route("openai", own.detokenize),
    "/apply-template": Route("openai", own.apply_template),
}


def app(models: Model | Mapping[str, Model] | Pool, settings: Settings | None = None) -> App:
    """An ASGI application that serves models: run it with uvicorn, or inside another server.

    models: a loaded model, or several by the names that clients call them by; whoever loaded them closes them.
    """
    return App(models if isinstance(models, Pool) else Pool.of(models), settings or Settings())


class App:
    """See `app`. service: what it works with."""

    def __init__(self, pool: Pool, settings: Settings):
        self.service = Service(pool, settings)
        self._settings = settings
        self._held = 0  # bytes of bodies that are being read or answered
        self._by_key: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self.respond(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def _live(self, receive: Receive, send: Send) -> None:
        while (await receive())["type"] == "lifespan.startup":
            self.service.pool.start()
            await send({"type": "lifespan.startup.complete"})
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def close(self) -> None:
        """Ends what runs on models that were loaded here, telling the clients, and closes them. May be called twice."""
        await self.service.pool.close()
        self.service.close()

    # ---- one request

    async def respond(self, scope: Scope, receive: Receive, send: Send, trusted: bool = False) -> None:
        """trusted: it comes from the program that started this one, which needs no key."""
        began = time.perf_counter()
        request = Request(scope, receive)
        exchange = Exchange(request, scope, self._patient(send), self._cors(request))
        try:
            await self._respond(exchange, receive, trusted)
        except Gone:
            exchange.status = 499
        finally:
            self._held -= exchange.held
            if exchange.key is not None:
                self._by_key[exchange.key] -= 1
            status = str(exchange.status or 499)
            self.service.metrics.add("requests", api=exchange.api, status="gone" if status == "499" else status)
            seconds = time.perf_counter() - began
            log.info("%s %s %s %.3f s", request.method, quote(scope["path"][:200], errors="replace"), status, seconds)

    async def _respond(self, exchange: Exchange, receive: Receive, trusted: bool) -> None:
        request = exchange.request
        if request.method == "OPTIONS":
            await exchange.send(Reply(b"", 204, headers=self._preflight(request)))
            return
        try:
            route = self._route(request, exchange)
            if not (trusted or route.public):
                self._admit(request, exchange)
            self.service.pool.start()
            body = request.query if request.method != "POST" else parse(await self._body(request, exchange))
        except Refused as refused:
            await exchange.refuse(refused)
            return
        gone = asyncio.ensure_future(until_gone(receive))
        work = asyncio.ensure_future(exchange.work(route.handler(self.service, body)))
        try:
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended = work.done()
            gone.cancel()
            work.cancel()
            await asyncio.wait({gone, work})
        if not ended:
            raise Gone
        work.result()

    def _patient(self, send: Send) -> Send:
        """As `send`; it raises Gone for a client that does not read, whose answer is given up."""

        async def patient(message: MutableMapping[str, Any]) -> None:
            try:
                await within(self._settings.patience, send(message))
            except asyncio.TimeoutError:
                raise Gone from None

        return patient

    async def _body(self, request: Request, exchange: Exchange) -> bytes:
        """Raises Refused, and Gone."""
        coding = request.headers.get("content-encoding", "identity")
        if coding.lower() != "identity":
            raise Refused(415, f"the request's body is compressed ({coding[:40]}), expected JSON as it is")
        exchange.held = self._hold(request)
        data = await request.body(self._settings.body_bytes, self._settings.body_seconds)
        self._held += len(data) - exchange.held
        exchange.held = len(data)
        return data

    def _hold(self, request: Request) -> int:
        """Bytes that the body may take. Raises Refused where many large ones are held."""
        most = self._settings.body_bytes
        size = most if request.length is None else request.length if request.length <= most else 0  # nothing is kept
        if self._held + size > BODIES * most:
            raise Refused(503, "too many large requests at once", retry=errors.RETRY_SECONDS)
        self._held += size
        return size

    def _route(self, request: Request, exchange: Exchange) -> Route:
        """Raises Refused for a path or a method that is not served."""
        path = request.path
        if path.startswith("/models/"):
            name = path.removeprefix("/models/")
            route: Route | None = Route("openai", partial(own.model, name=name), GET)
        else:
            route = ROUTES.get(path) or pages.route(request)
        if route is not None:
            exchange.api = route.api
        elif path.startswith("/api/"):
            exchange.api = "ollama"
        # Two packages ask the same paths for models, and one of them says who it is.
        if "anthropic-version" in request.headers:
            exchange.api = "anthropic"
        if route is None:
            raise Refused(404, f"there is nothing at {path[:200]}")
        if request.method not in route.methods:
            raise Refused(405, f"{request.method} is not for {path[:200]}", allow=route.methods)
        return route

    def _admit(self, request: Request, exchange: Exchange) -> None:
        """Raises Refused for a request that may not pass."""
        settings = self._settings
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = request.headers.get("x-api-key", "")
        if scheme.lower() == "bearer" and token.strip():
            given = token.strip()
        if settings.api_keys:
            bytes_given = given.encode("latin-1")  # as they came
            known = [hmac.compare_digest(bytes_given, key.encode()) for key in settings.api_keys]
            if True not in known:
                why = (
                    "a wrong API key" if given else "no API key; send it as Authorization: Bearer KEY or x-api-key: KEY"
                )
                raise Refused(401, why, code="invalid_api_key")
        else:
            self._check_page(request)
        key = given if settings.api_keys else ""
        if settings.per_key is not None and self._by_key[key] >= settings.per_key and request.method == "POST":
            raise Refused(
                429,
                f"{self._by_key[key]} requests of this key run, expected at most {settings.per_key}",
                code="rate_limit_exceeded",
                retry=errors.RETRY_SECONDS,
            )
        self._by_key[key] += 1
        exchange.key = key

    def _check_page(self, request: Request) -> None:
        """Raises Refused for what a page on the web may have sent: a browser tells whose it is."""
        host, origin = request.headers.get("host"), request.headers.get("origin")
        if host is not None and not self._settings.knows_host(host):
            raise Refused(
                403, f"the host {host[:80]!r} is not known here; `glmlite serve --allow-host NAME` makes it known"
            )
        scheme, _, place = (origin or "").partition("://")
        web = origin == "null" or scheme in ("http", "https")
        if web and request.method == "POST" and not self._allows(origin or "") and place != host:
            raise Refused(403, f"pages of {origin!r} may not use this server; `glmlite serve --cors ORIGIN` lets them")

    # ---- pages of other origins

    def _allows(self, origin: str) -> bool:
        return "*" in self._settings.origins or origin in self._settings.origins

    def _cors(self, request: Request) -> list[tuple[str, str]]:
        origin = request.headers.get("origin")
        if not self._settings.origins:
            return []
        vary = ("vary", "Origin")
        if origin is None or not self._allows(origin) or not origin.isprintable():
            return [vary]
        return [vary, ("access-control-allow-origin", origin), ("access-control-expose-headers", "request-id")]

    def _preflight(self, request: Request) -> list[tuple[str, str]]:
        origin = request.headers.get("origin")
        if origin is None or not self._allows(origin):
            return [("allow", "GET, HEAD, POST, OPTIONS")]
        asked = request.headers.get("access-control-request-headers", "")
        headers = asked if _HEADER_NAMES.fullmatch(asked) else "authorization, content-type, x-api-key"
        allowed = [
            ("access-control-allow-methods", "GET, POST, OPTIONS"),
            ("access-control-allow-headers", headers),
            ("access-control-max-age", "600"),
        ]
        if request.headers.get("access-control-request-private-network") == "true":
            allowed.append(("access-control-allow-private-network", "true"))
        return allowed


class Exchange:
    """A request and what has become of it. transport: what takes the messages of its answer. more: headers of every
    answer. held: bytes of its body. key: its key."""

    def __init__(self, request: Request, scope: Scope, send: Send, more: list[tuple[str, str]]):
        self.request = request
        self.scope = scope
        self.transport = send
        self.api = "openai"
        self.status = 0
        self.held = 0
        self.key: str | None = None
        self._id = openai.random_id("req_")
        self._more = [*more, ("request-id", self._id)]

    async def work(self, handler: Awaitable[Reply | Stream]) -> None:
        try:
            answer = await handler
        except Refused as refused:
            await self.refuse(refused)
            return
        except Exception as error:
            await self.refuse(errors.told(error))
            return
        await self.send(answer)

    async def send(self, answer: Reply | Stream) -> None:
        self.status = answer.status
        try:
            await answer.send(self.transport, self._more, self.request.method == "HEAD")
        finally:
            if isinstance(answer, Stream):
                answer.close()

    async def refuse(self, refused: Refused) -> None:
        if self.api == "anthropic":
            value = errors.anthropic(refused, self._id)
        else:
            value = errors.ollama(refused) if self.api == "ollama" else errors.openai(refused)
        await self.send(Reply.json(value, refused.status, refused.headers))
