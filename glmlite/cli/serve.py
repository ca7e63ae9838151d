"""`glmlite serve`: answer the programs people have."""

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import builtin
from . import console
from .options import Loading, ModelFirst, find

if TYPE_CHECKING:
    from ..serve import App, Pool

PORT = 8080
KEY = "GLMLITE_API_KEY"


def serve(
    name: ModelFirst = None,
    models: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Serve every .gguf file below DIR, loaded when it is asked for.", show_default=False
        ),
    ] = None,
    host: Annotated[str, typer.Option(metavar="NAME", help="Where to listen; 0.0.0.0: everywhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="0: a free one.")] = PORT,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help=f"Ask for this key; several may be given [default: ${KEY}].", show_default=False
        ),
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, metavar="N", help="Requests that run at the same time.")] = 4,
    queue: Annotated[int, typer.Option(min=0, metavar="N", help="Requests that wait beside them; more get 429.")] = 64,
    per_key: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Requests at once with one key [default: any number].", show_default=False
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="The longest answer.")] = 3600,
    idle: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="With --models: unload what nobody used for so long.")
    ] = 300,
    kv_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Room of the cache, for all requests together [default: --context for each of --parallel].",
            show_default=False,
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Let web pages of this origin use it; *: all.", show_default=False),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Another name that clients call this machine by; *: any.", show_default=False
        ),
    ] = None,
    strict_model: Annotated[
        bool, typer.Option("--strict-model", help="404 for a model name that is not the model's.")
    ] = False,
    keep_thinking: Annotated[
        bool, typer.Option("--keep-thinking", help="Show a model that can keep them the thoughts of earlier rounds.")
    ] = False,
    stdio: Annotated[
        bool, typer.Option("--stdio", help="No network: requests and answers are lines of JSON on stdin and stdout.")
    ] = False,
    loading: Loading = Loading(),  # noqa: B008
) -> None:
    """Serve a model to other programs: the APIs of OpenAI, Anthropic and Ollama, and a page for people.

    \b
    Examples:
      glmlite serve
      glmlite serve glm-4-9b-chat-q4_k_m.gguf --context 16384
      glmlite serve --models ~/models --port 11434
      glmlite serve model.gguf --host 0.0.0.0 --api-key "$(cat key)"
    """
    from ..serve import App, Settings

    if models is not None and name is not None:
        raise typer.BadParameter("a MODEL and --models, expected one of them")
    keys = tuple(api_key or ([os.environ[KEY]] if os.environ.get(KEY) else []))
    settings = Settings(
        api_keys=keys,
        hosts=_hosts(host, allow_host or []),
        origins=tuple(cors or ()),
        queue=queue,
        per_key=per_key,
        keep_thinking=keep_thinking,
        seconds=timeout,
    )
    load = partial(_load, parallel=parallel, kv_tokens=kv_tokens, options=loading.given())
    app = App(_pool(name or builtin.NAME, models, load, idle, strict_model, stdio), settings)
    with _logging():
        if stdio:
            from ..serve import stdio as lines

            with open(0, "rb", 0, closefd=False) as requests, open(1, "wb", 0, closefd=False) as answers:
                asyncio.run(lines.serve(app, requests, answers))
        else:
            _listen(app, host, port, models or name or builtin.NAME)


def _listen(app: "App", host: str, port: int, what: object) -> None:
    from ..serve import running

    if not app.service.settings.api_keys and not _is_local(host):
        console.note("[no --api-key: whoever reaches this address may use it]")
    sockets = running.bind(host, port)
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{sockets[0].getsockname()[1]}"
    try:
        running.run(app, sockets, lambda: console.note(_welcome(what, url)))
    finally:
        for each in sockets:
            each.close()


def _welcome(what: object, url: str) -> str:
    return (
        f"{what} is served at {url}; Ctrl-C ends it.\n"
        f"  a page             {url}/\n"
        f"  OpenAI's clients   base URL {url}/v1, any model name, any key\n"
        f"  Claude Code        ANTHROPIC_BASE_URL={url}\n"
        f"  Ollama's clients   OLLAMA_HOST={url}"
    )


def _pool(name: str, models: Path | None, load: Any, idle: float, strict: bool, waits: bool) -> "Pool":
    from ..locate import model_file
    from ..serve import Pool

    if models is not None:
        if not models.expanduser().is_dir():
            raise FileNotFoundError(2, "no such folder", str(models))
        return Pool.folder(models.expanduser(), load, idle=idle)
    return Pool.file(model_file(find(name)), load, strict=strict, waits=waits)


def _load(path: Path, *, parallel: int, kv_tokens: int | None, options: dict[str, Any], cancel: Any) -> Any:
    """A model whose cache has room for `parallel` requests, or for one where memory is short."""
    import glmlite

    from ..loading import DEFAULT_CONTEXT

    room = parallel * options.get("context", DEFAULT_CONTEXT)
    with console.progress(f"loading {path.stem}") as progress:
        told = {"progress": lambda done: progress(done, 1), "cancel": cancel, "parallel": parallel, **options}
        if kv_tokens is not None:
            return glmlite.load(path, kv_tokens=kv_tokens, **told)
        try:
            return glmlite.load(path, kv_tokens=room, **{"packed": False, **told})
        except MemoryError:
            return glmlite.load(path, **told)


def _hosts(host: str, more: list[str]) -> tuple[str, ...]:
    from ..serve.settings import LOCAL

    everywhere = host in ("0.0.0.0", "::", "")
    own = (socket.gethostname(), f"{socket.gethostname()}.local", "host.docker.internal") if everywhere else (host,)
    return (*LOCAL, *own, *more)


def _is_local(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


@contextmanager
def _logging() -> Iterator[None]:
    """What the server logs goes to stderr."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.note(self.format(record))

    handler = Notes()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log, served = logging.getLogger("glmlite"), logging.getLogger("glmlite.serve")
    log.addHandler(handler)
    served.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        served.setLevel(logging.NOTSET)
