"""The page for people, and what else a browser or Ollama's clients ask the root for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from .http import GET, Reply, Request, Route

__all__ = ["route"]

_FOLDER = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".txt": "text/plain; charset=utf-8",
}
# A model may write anything, an image of elsewhere in it: nothing but the page's own files is run or asked for.
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-cache"),
]


def route(request: Request) -> Route | None:
    """Where a path is one of the page's files; at the root for browsers, for whom else there is a word."""
    files = _files()
    path = request.path
    if path == "/":
        wants_page = "text/html" in request.headers.get("accept", "") and "index.html" in files
        return Route("openai", _page("index.html", request) if wants_page else _word, GET, public=True)
    name = path.removeprefix("/")
    return Route("openai", _page(name, request), GET, public=True) if name in files else None


@cache
def _files() -> frozenset[str]:
    """Paths of the files that are served, below the folder."""
    found = (path for path in _FOLDER.rglob("*") if path.suffix in TYPES and path.is_file())
    return frozenset(path.relative_to(_FOLDER).as_posix() for path in found)


def _page(name: str, request: Request) -> Any:
    return partial(_file, name=name, known=request.headers.get("if-none-match", ""))


async def _file(service: Any, query: Mapping[str, Any], *, name: str, known: str) -> Reply:
    data, tag = _read(name)
    headers = [*HEADERS, ("etag", tag)]
    if known == tag:
        return Reply(b"", 304, TYPES[Path(name).suffix], headers)
    return Reply(data, 200, TYPES[Path(name).suffix], headers)


@cache
def _read(name: str) -> tuple[bytes, str]:
    data = (_FOLDER / name).read_bytes()
    return data, f'"{hashlib.sha256(data).hexdigest()[:32]}"'


async def _word(service: Any, query: Mapping[str, Any]) -> Reply:
    return Reply(b"Ollama is running", content_type="text/plain; charset=utf-8")
