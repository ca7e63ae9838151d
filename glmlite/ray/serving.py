"""Requests on many machines, by Ray Serve: a front that reads a request and chooses, replicas that answer.

A front has no model. It reads the body, since Serve's proxies route by headers alone; it asks the replica that has the
beginning of the conversation in its cache; and it tells the client, in the form of the API that it speaks, of a replica
that was lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ..loading import DEFAULT_CONTEXT
from ..serve import errors
from ..serve.app import App, Exchange
from ..serve.app import app as asgi_app
from ..serve.errors import RETRY_SECONDS, Refused
from ..serve.http import Gone, Receive, dump, sse
from ..serve.openai import random_id
from ..serve.own import gauges
from ..serve.pool import Pool
from ..serve.settings import Settings
from . import node
from .routing import beginning

__all__ = ["Front", "Replica", "app"]

PARALLEL = 8  # requests that a replica answers at once
AHEAD = 2  # requests that wait at a replica, so that it never waits for the next
QUEUED = 256  # requests that wait in a front for a place; the next one is told to come again
BUSY = 0.75  # of its places in use, on the mean: then there should be another replica
ENDING = 300.0  # seconds in which a replica that is given up may end its answers
STEP = 64  # messages of an answer that wait for a front that reads slowly

# What an application needs of a scope, and what can be sent to another process.
SCOPE = ("type", "asgi", "http_version", "method", "scheme", "path", "query_string", "root_path", "headers", "client")
STREAMS = (b"text/event-stream", b"application/x-ndjson")


def app(
    model: str = "builtin",
    settings: Settings | None = None,
    *,
    replicas: int | tuple[int, int] = 1,
    fronts: int = 1,
    cpus: float = 1,
    gpus: float = 0,
    parallel: int = PARALLEL,
    queue: int = QUEUED,
    **loading: Any,
) -> Any:
    """An application for Ray Serve: the server of `glmlite serve` on replicas, each with a model of its own.

        from ray import serve
        serve.run(glmlite.ray.app("/models/glm-4-9b.gguf", replicas=(1, 8), cpus=8), route_prefix="/")

    model: a path or a name that means a file on each node, as for `glmlite.load`, or an address (s3://, gs://, hdfs://,
        file://), which each node fetches once.
    settings: of the server; `queue` there counts for nothing. A name that a load balancer has must be in `hosts`.
    replicas: how many; or from how many to how many, and Serve chooses by how many requests run and wait.
    fronts: processes that pass requests on. Two, on two nodes, survive the loss of one.
    cpus, gpus: of each replica; it has so many threads, and the first GPU that Ray gives it.
    parallel: requests that a replica answers at once. queue: that wait at each front; the next one is refused (429).
    loading: arguments of `glmlite.load`.

    A conversation goes to the replica that had its earlier rounds, while that has a free place. Of a replica that is
    lost, the requests that run there fail: with 503 and `Retry-After`, or with an error as the stream's last event.

    Raises ModuleNotFoundError (needs glmlite[ray]), ValueError.
    """
    serve = node.require("ray.serve")
    config = node.require("ray.serve.config")
    least, most = (replicas, replicas) if isinstance(replicas, int) else replicas
    if not 0 < least <= most:
        raise ValueError(f"replicas is {replicas}, expected one number, or the least and the most, more than 0")
    if parallel < 1:
        raise ValueError(f"parallel is {parallel}, expected 1 or more")
    settings = settings or Settings()
    scaling: dict[str, Any] = {"num_replicas": least}
    if least < most:
        target = max(1.0, BUSY * parallel)
        scaling = {
            "autoscaling_config": config.AutoscalingConfig(
                min_replicas=least, max_replicas=most, target_ongoing_requests=target
            )
        }
    answering = serve.deployment(
        Replica,
        name="Replica",
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        max_ongoing_requests=parallel + AHEAD,
        max_queued_requests=queue,
        graceful_shutdown_timeout_s=ENDING,
        request_router_config=config.RequestRouterConfig(
            request_router_class="glmlite.ray.router.Router", max_backoff_s=0.1
        ),
        **scaling,
    )
    passing = serve.deployment(
        serve.ingress()(Ingress),
        name="Front",
        num_replicas=fronts,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=most * (parallel + AHEAD) + 2 * queue,
        graceful_shutdown_timeout_s=ENDING,
    )
    replica = answering.bind(model, settings, parallel, cpus, gpus, loading)
    return passing.bind(replica, settings)


class Replica:
    """One model, and the application that answers for it."""

    def __init__(
        self, model: str, settings: Settings, parallel: int, cpus: float, gpus: float, loading: dict[str, Any]
    ):
        room = parallel * (loading.get("context") or DEFAULT_CONTEXT)
        self._model = node.engine(model, parallel, {"kv_tokens": room, **loading}, cpus=cpus, gpus=gpus)
        self._app = asgi_app(self._model, settings)
        self._gauges: dict[str, Any] = {}

    async def respond(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[list[Any]]:
        """The messages of ASGI that answer a request, those together that are there together. Ends the answer where it
        is closed, or its task cancelled."""
        sent: asyncio.Queue[Any] = asyncio.Queue(STEP)
        rest = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            return rest.pop() if rest else await asyncio.Event().wait()

        async def answer() -> None:
            try:
                await self._app(scope, receive, sent.put)
                await sent.put(None)
            except Exception as error:
                await sent.put(error)

        answering = asyncio.create_task(answer())
        try:
            while True:
                messages = [await sent.get()]
                while not sent.empty():
                    messages.append(sent.get_nowait())
                last = messages[-1]
                if found := [message for message in messages if isinstance(message, dict)]:
                    yield found
                if last is None:
                    return
                if isinstance(last, Exception):
                    raise last
        finally:
            answering.cancel()
            await asyncio.wait({answering})

    async def check_health(self) -> None:
        """Called by Serve, every ten seconds. Raises RuntimeError where the model is gone."""
        if self._model.closed:
            raise RuntimeError(f"{self._model.name}: the model was closed")
        self._publish()

    def _publish(self) -> None:
        """What `/metrics` of a single server tells, as metrics of Ray's, which tells the replicas apart."""
        from ray.serve import metrics

        service = self._app.service
        for name, labels, value in (*service.metrics.counts(), *gauges(service)):
            if (gauge := self._gauges.get(name)) is None:
                gauge = self._gauges[name] = metrics.Gauge(name, tag_keys=tuple(key for key, _ in labels))
            gauge.set(value, tags=dict(labels))


class Ingress:
    """What Serve makes of a front: it takes no class that is an application itself."""

    def __init__(self, replicas: Any, settings: Settings):
        self._front = Front(replicas, settings)

    def __serve_build_asgi_app__(self) -> Front:
        return self._front


class Front(App):
    """The application of `glmlite.serve`, but that replicas answer what it has admitted."""

    def __init__(self, replicas: Any, settings: Settings):
        super().__init__(Pool([]), settings)
        self._replicas = replicas

    async def _respond(self, exchange: Exchange, receive: Receive, trusted: bool) -> None:
        request = exchange.request
        body = b""
        try:
            if request.method != "OPTIONS":
                route = self._route(request, exchange)
                if not (trusted or route.public):
                    self._admit(request, exchange)
                if request.path == "/metrics":
                    raise Refused(404, "the metrics of all replicas are among Ray's: see docs/scale.md")
            if request.method == "POST":
                body = await self._body(request, exchange)
        except Refused as refused:
            await exchange.refuse(refused)
            return
        await self._relay(exchange, body)

    async def _relay(self, exchange: Exchange, body: bytes) -> None:
        scope = {name: exchange.scope[name] for name in SCOPE if name in exchange.scope}
        handle = self._replicas.options(stream=True, session_id=beginning(body) if body else "")
        answer = handle.respond.remote(scope, body)
        started: dict[str, Any] | None = None
        ended = False
        try:
            async for messages in answer:
                for message in messages:
                    if started is None:
                        started = message
                        exchange.status = message["status"]
                    ended = message["type"] == "http.response.body" and not message.get("more_body", False)
                    await exchange.transport(message)
        except Gone:
            raise
        except Exception as error:
            refused = _lost(error)
            if started is None:
                await exchange.refuse(refused)
            elif not ended and _is_stream(started):
                last = _last_event(exchange.api, exchange.request.path, refused)
                await exchange.transport({"type": "http.response.body", "body": last})
            elif not ended:
                raise
        finally:
            answer.cancel()  # of what has ended, nothing


def _lost(error: Exception) -> Refused:
    """What a client is told of what went wrong between a front and a replica."""
    from ray.exceptions import RayActorError, RayError, RayTaskError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

    if isinstance(error, BackPressureError):
        return Refused(429, "too many requests wait", code="rate_limit_exceeded", retry=RETRY_SECONDS)
    gone = isinstance(error, RayError) and not (
        isinstance(error, RayTaskError) and not isinstance(error, RayActorError)
    )
    if gone or isinstance(error, DeploymentUnavailableError):
        # It is not asked of another replica here: a request that ends replicas would end them all.
        return Refused(503, "the replica that answered was lost; ask again", retry=RETRY_SECONDS)
    return errors.told(error)


def _is_stream(start: dict[str, Any]) -> bool:
    return any(name == b"content-type" and value.startswith(STREAMS) for name, value in start.get("headers", ()))


def _last_event(api: str, path: str, refused: Refused) -> bytes:
    if api == "ollama":
        return dump(errors.ollama(refused)) + b"\n"
    if api == "anthropic":
        return sse(errors.anthropic(refused, random_id("req_")), "error")
    if path == "/responses":
        error = {"type": "error", "code": "server_error", "message": refused.message, "param": None}
        return sse({**error, "sequence_number": 0}, "error")
    return sse(errors.openai(refused))
