"""Runs the application under uvicorn, from a bound address to an end that clients are told of."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

from .app import App

__all__ = ["bind", "most_connections", "protocol", "run"]

ENDING_SECONDS = 0.5  # that clients have to read what they are told at the end
KEEP_ALIVE_SECONDS = 75  # of a connection without requests: longer than clients keep theirs
BACKLOG = 256  # connections that are taken at once
OTHER_FILES = 64  # that a server has open beside its connections
HEAD_BYTES = 1 << 18  # of a request before its body, and after it


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at every address of a name; port 0: a free one. Raises OSError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise OSError(error.errno, f"{error.strerror}; expected a name or an address of this machine", host) from None
    except UnicodeError:
        raise ValueError(f"{host!r} is no name of a machine") from None
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            chosen = sockets[0].getsockname()[1] if sockets else port
            try:
                sockets.append(socket.create_server((address[0], chosen), family=family, backlog=BACKLOG))
            except OSError as error:
                if sockets and host == "localhost":  # a machine may have the second address in name only
                    continue
                raise OSError(error.errno, f"{error.strerror}; --port N takes another one", f"{host}:{port}") from None
    except BaseException:
        for each in sockets:
            each.close()
        raise
    return sockets


def run(
    app: App,
    sockets: list[socket.socket],
    ready: Callable[[], object],
    ended: Callable[[], Awaitable[None]] | None = None,
    ending: Callable[[], object] | None = None,
) -> None:
    """Serves until a signal ends it, what `ended` returns is over, or the model cannot be loaded, whose error it
    raises.

    ready: called once the model that is served is there. ending: called when the end begins. Raises ImportError where
    uvicorn is not installed.
    """
    uvicorn = _uvicorn()
    config = uvicorn.Config(
        app,
        http=protocol(app.service.settings.body_seconds, app.service.settings.patience),
        backlog=BACKLOG,
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    config.timeout_graceful_shutdown = ENDING_SECONDS  # its type says a whole number, and a fraction will do
    problem: list[Exception] = []

    class Server(uvicorn.Server):  # type: ignore[misc, name-defined]
        should_exit: bool  # the end has begun

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets=sockets)
            self.tasks = [asyncio.create_task(self.load())]
            if ended is not None:
                self.tasks.append(asyncio.create_task(self.until(ended())))

        async def load(self) -> None:
            try:
                await app.service.pool.ready()
            except Exception as error:
                if not self.should_exit:  # else it is the end that ended the load
                    problem.append(error)
                self.should_exit = True
            else:
                ready()

        async def until(self, over: Awaitable[None]) -> None:
            await over
            self.should_exit = True

        async def shutdown(self, sockets: Any = None) -> None:
            if ending is not None:
                ending()
            await app.close()
            await super().shutdown(sockets=sockets)

    asyncio.run(Server(config).serve(sockets=sockets))
    if problem:
        raise problem[0]


def most_connections() -> int:
    """So many that the system lets the process accept them: asyncio, which takes all that wait before it looks at one
    of them, tries again at once what it cannot accept, and logs that each time."""
    if sys.platform == "win32":
        return 4096
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 4096 if limit == resource.RLIM_INFINITY else min(4096, max(16, limit - BACKLOG - OTHER_FILES))


def protocol(seconds: float, patience: float) -> type[asyncio.Protocol]:
    """uvicorn's HTTP, which bounds neither how many connections there are, nor how long one may take to say what it
    wants or to read what it is told, nor (with httptools) how much may stand before a body.

    seconds: for the first line and the headers of a request. patience: seconds in which a client reads something of
    what is written for it.
    """
    base: Any = import_module("uvicorn.protocols.http.auto").AutoHTTPProtocol
    most = most_connections()
    unbounded = hasattr(base, "on_headers_complete")  # httptools; h11 has a bound of its own

    class Protocol(base):  # type: ignore[misc]
        waits: asyncio.TimerHandle | None = None
        looks: asyncio.TimerHandle | None = None
        unread = 0  # bytes, when it was looked last
        head = 0  # bytes since the last of a body: of a first line, of headers, of what a chunk has beside them

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.close()
            else:
                self.watch()
            self.look()

        def data_received(self, data: bytes) -> None:
            self.head += len(data)
            super().data_received(data)
            if unbounded and self.head > HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(f"The headers have more than {HEAD_BYTES} bytes.")
            self.watch()

        def on_headers_complete(self) -> None:
            self.head = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self.head = 0
            super().on_body(body)

        def connection_lost(self, error: Exception | None) -> None:
            self.unwatch()
            if self.looks is not None:
                self.looks.cancel()
            super().connection_lost(error)

        def watch(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:  # a request is answered
                self.unwatch()
            elif self.waits is None:
                self.waits = self.loop.call_later(seconds, self.transport.close)

        def unwatch(self) -> None:
            if self.waits is not None:
                self.waits.cancel()
                self.waits = None

        def look(self) -> None:
            """Ends a connection that is closing, or takes no more, and of which nothing was read since the last look:
            to close it would wait until all is read."""
            waiting = self.transport.get_write_buffer_size()
            if waiting == self.unread > 0 and (self.flow.write_paused or self.transport.is_closing()):
                self.transport.abort()
                return
            self.unread = waiting
            self.looks = self.loop.call_later(patience, self.look)

    return Protocol


def _uvicorn() -> Any:
    try:
        return import_module("uvicorn")
    except ImportError:
        raise ImportError("a server needs uvicorn: pip install 'glmlite[serve]'") from None
