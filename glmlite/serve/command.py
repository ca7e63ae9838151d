"""What `glmlite serve` does, and the same as a program that needs nothing but the server: `python -m glmlite.serve`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

from .. import builtin, ending
from ..loading import DEFAULT_CONTEXT, load
from ..locate import model_file
from ..model import Model
from ..options import Group, Loading, Option, Serving, options_of
from . import running, sidecar, stdio
from .app import App
from .pool import Pool
from .settings import LOCAL, Settings

__all__ = ["main", "serve"]

PORT = 8080
KEY = "GLMLITE_API_KEY"
IDLE_SECONDS = 300.0  # with a folder of models

G = TypeVar("G", bound=Group)


class Plain:
    """What a program without a terminal shows: notes on stderr."""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, title: str) -> Iterator[Callable[..., None]]:
        yield lambda done, total: None


def main(argv: Sequence[str] | None = None) -> int:
    """Serves, and returns the exit code: 0, 1 (failed), 2 (usage), 130 (Ctrl-C), 128 + a signal's number."""
    parser = argparse.ArgumentParser(prog="glmlite serve", description="Serve a model to other programs.")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="A GGUF file [default: the built-in model].")
    for group in (Serving, Loading):
        _add(parser, group)
    given = vars(parser.parse_args(argv))
    serving, loading = _made(Serving, given), _made(Loading, given)
    try:
        with ending.told():
            serve(given["model"], serving, loading.given(), Plain())
    except KeyboardInterrupt:
        return 130
    except ending.Ended as ended:
        return 128 + ended.number
    except (ImportError, OSError, ValueError, RuntimeError, MemoryError) as error:
        Plain().note(f"glmlite: {' '.join(str(error).split()) or type(error).__name__}")
        return 1
    return 0


def serve(name: str | os.PathLike[str] | None, serving: Serving, loading: dict[str, Any], console: Any) -> None:
    """Serves a model, or a folder of them, until it is ended. loading: arguments of `glmlite.load`. console: `note` and
    `progress` for people (`glmlite.cli.console`, `Plain`)."""
    if serving.models is not None and name is not None:
        raise ValueError("a MODEL and --models, expected one of them")
    if serving.models is not None and "mmproj" in loading:
        raise ValueError("--mmproj and --models, expected one of them: each takes the mmproj file beside it")
    if serving.stdio or serving.sidecar:
        with sidecar.parent() as parent:
            _serve(name, serving, loading, parent, parent)
    else:
        _serve(name, serving, loading, console, None)


def _serve(name: Any, serving: Serving, loading: dict[str, Any], console: Any, parent: sidecar.Parent | None) -> None:
    keys = tuple(serving.api_key or ([os.environ[KEY]] if os.environ.get(KEY) else []))
    settings = Settings(
        api_keys=keys,
        hosts=_hosts(serving.host, serving.allow_host or []),
        origins=tuple(serving.cors or ()),
        queue=serving.queue,
        per_key=serving.per_key,
        keep_thinking=serving.keep_thinking,
        seconds=serving.timeout,
    )
    idle = serving.idle
    if idle is None and serving.models is not None:
        idle = IDLE_SECONDS
    loaded = partial(
        _load,
        console=console,
        parallel=serving.parallel,
        kv_tokens=serving.kv_tokens,
        options={"idle_unload": idle, **loading},
    )
    app = App(_pool(name, serving, loaded), settings)
    with _logging(console.note):
        if serving.stdio:
            assert parent is not None
            asyncio.run(stdio.serve(app, parent.requests, parent.writer, parent))
        else:
            _listen(app, serving, serving.models or name or builtin.NAME, console, parent)


def _listen(app: App, serving: Serving, what: object, console: Any, parent: sidecar.Parent | None) -> None:
    host = serving.host
    if not app.service.settings.api_keys and not _is_local(host):
        console.note("[no --api-key: whoever reaches this address may use it]")
    if not app.service.pool.entries():
        console.note(f"[no .gguf file below {what} yet]")
    port = serving.port if serving.port is not None else PORT if parent is None else 0
    sockets = running.bind(host, port)
    url = _url(host, sockets[0].getsockname()[1])
    try:
        if parent is None:
            running.run(app, sockets, lambda: console.note(_welcome(what, url)))
        else:
            parent.url = url
            running.run(app, sockets, parent.ready, parent.ended, parent.ending)
    finally:
        for each in sockets:
            each.close()


def _url(host: str, port: int) -> str:
    """Where programs of this machine reach a server that listens at `host`."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _welcome(what: object, url: str) -> str:
    return (
        f"{what} is served at {url}; Ctrl-C ends it.\n"
        f"  a page             {url}/\n"
        f"  OpenAI's clients   base URL {url}/v1, any model name, any key\n"
        f"  Claude Code        ANTHROPIC_BASE_URL={url}\n"
        f"  Ollama's clients   OLLAMA_HOST={url}"
    )


def _pool(name: Any, serving: Serving, loaded: Callable[..., Model]) -> Pool:
    if serving.models is not None:
        folder = serving.models.expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(2, "no such folder", str(serving.models))
        return Pool.folder(folder, loaded)
    return Pool.file(model_file(name), loaded, strict=serving.strict_model, waits=serving.stdio)


def _load(
    path: Path, *, console: Any, parallel: int, kv_tokens: int | None, options: dict[str, Any], cancel: Any
) -> Model:
    """A model whose cache has room for `parallel` requests, or for one where memory is short."""
    room = parallel * options.get("context", DEFAULT_CONTEXT)
    with console.progress(path.stem) as progress:
        told = {"progress": lambda done: progress(done, 1), "cancel": cancel, "parallel": parallel, **options}
        if kv_tokens is not None:
            return load(path, kv_tokens=kv_tokens, **told)
        try:
            return load(path, kv_tokens=room, **{"packed": False, **told})
        except MemoryError:
            return load(path, **told)


def _hosts(host: str, more: list[str]) -> tuple[str, ...]:
    everywhere = host in ("0.0.0.0", "::")
    own = (socket.gethostname(), f"{socket.gethostname()}.local", "host.docker.internal") if everywhere else (host,)
    return (*LOCAL, *own, *more)


def _is_local(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


@contextmanager
def _logging(note: Callable[[str], object]) -> Iterator[None]:
    """What the server logs goes to stderr."""
    handler = sidecar.Notes(note)
    log, served = logging.getLogger("glmlite"), logging.getLogger("glmlite.serve")
    log.addHandler(handler)
    served.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        served.setLevel(logging.NOTSET)


# ---- arguments, without the packages that the commands need


def _add(parser: argparse.ArgumentParser, group: type[Group]) -> None:
    options = parser.add_argument_group(group.__name__.lower())
    for name, kind, option, default in options_of(group):
        names = list(option.names) or ["--" + name.replace("_", "-")]
        kinds = [each for each in (get_args(kind) or (kind,)) if each is not type(None)]
        settings: dict[str, Any] = {"dest": name, "default": default, "help": option.help.replace("%", "%%")}
        if kinds == [bool]:
            switch = "/" in names[0]
            settings["action"] = argparse.BooleanOptionalAction if switch else "store_true"
            names[0] = names[0].partition("/")[0]
        else:
            many = get_args(kinds[0])
            settings |= {"metavar": option.metavar, "type": _value(many[0] if many else kinds[0], option)}
            settings |= {"action": "append"} if many else {}
        options.add_argument(*names, **settings)


def _value(kind: type[Any], option: Option) -> Callable[[str], Any]:
    def value(text: str) -> Any:
        try:
            found = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}, expected a number") from None
        least, most = option.min, option.max
        if (least is not None and not found >= least) or (most is not None and not found <= most):
            bounds = f"{least:g} or more" if most is None else f"{least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"{text}, expected {bounds}")
        return found

    return value


def _made(group: type[G], given: dict[str, Any]) -> G:
    return group(**{name: given[name] for name, *_ in options_of(group)})
