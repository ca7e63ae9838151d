"""Images of a conversation in the terminal: files that are named, or dropped into a line, and how they are saved."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import typer

from ..errors import ContextOverflow
from ..files import REFUSED_PICTURES, special

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".ppm", ".pgm")
SUFFIXES += REFUSED_PICTURES  # and not taken for text
Images = Annotated[
    list[Path] | None,
    typer.Option(
        "--image", metavar="FILE", help="Show it this image first; may be given several times.", show_default=False
    ),
]
MOST = 1 << 27  # bytes of a file

# A word as shells and terminals quote it; 'it'\''s' is how some write an apostrophe.
_WORD = re.compile(r"""(?<!\S)(?:'[^']*'(?:\\'(?:'[^']*')?)*|"[^"]*"|(?:\\.|[^\s\\])+)(?!\S)""")
_PLACE = re.compile(r"[/\\~]|\.{1,2}[/\\]|[A-Za-z]:[/\\]")


def part(model: Any, path: str | os.PathLike[str]) -> tuple[dict[str, Any], int]:
    """An image as a part of a message, and the tokens that it takes. Raises ValueError and OSError, naming the file."""
    path = os.path.expanduser(path)
    if (kind := special(path)) is not None:
        raise ValueError(f"{path}: is {kind}, expected an image")
    with open(path, "rb") as file:
        data = file.read(MOST + 1)
    if len(data) > MOST:
        raise ValueError(f"{path}: more than {MOST} bytes, expected an image")
    image = {"type": "image", "image": data, "name": os.path.basename(path)}
    try:
        ids = model.chat_ids([{"role": "user", "content": [image]}])
    except ContextOverflow:
        raise
    except ValueError as error:
        raise ValueError(re.sub(r"^messages\[0\]\.content\[0\]", path.replace("\\", r"\\"), str(error))) from None
    return image, sum(token < 0 for token in ids)


def content(images: Iterable[dict[str, Any]], text: str) -> str | list[dict[str, Any]]:
    """A message's: the images first, as the models were trained."""
    parts = list(images)
    return [*parts, {"type": "text", "text": text}] if parts else text


def paths(text: str) -> list[str]:
    """The files that a command names: all words of it, or all of it where that is a file."""
    if os.path.isfile(os.path.expanduser(text)):
        return [text]
    return [_path(word) or _plain(word) for word in _WORD.findall(text)]


def named(text: str) -> str:
    """The one file that a command names, which need not be there."""
    return _path(text) or os.path.expanduser(_plain(text))


def dropped(line: str) -> tuple[str, list[str]]:
    """A line without the images that were dropped into it, and their paths: of files that are there, not just names."""
    if (whole := _image(line.strip())) is not None:
        return "", [whole]
    found: list[str] = []

    def take(word: re.Match[str]) -> str:
        if (path := _image(word[0])) is None:
            return word[0]
        found.append(path)
        return "\0"

    text = _WORD.sub(take, line)
    return (re.sub(r"\s*\0\s*", " ", text).strip(), found) if found else (line, [])


def _image(word: str) -> str | None:
    """The path of an image that a word is, as it was dropped."""
    path = _path(word)
    return path if path is not None and path.lower().endswith(SUFFIXES) else None


def _path(word: str) -> str | None:
    """The file that a word means: as it stands, without quotes or escapes, or as a URL."""
    plain = _plain(word)
    names = [word, plain, re.sub(r"\\(.)", r"\1", plain)]
    if plain[:7].lower() == "file://":
        names.append(url2pathname(unquote(urlsplit(plain).path)) if os.name != "nt" else url2pathname(plain[7:]))
    for name in names:
        with suppress(ValueError, OSError):  # a NUL, longer than a path can be
            if _PLACE.match(name) and os.path.isfile(path := os.path.expanduser(name)):
                return path
    return None


def _plain(word: str) -> str:
    if len(word) > 1 and word[0] == word[-1] == "'":
        return word[1:-1].replace("'\\''", "'")
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] == '"' else word


def as_saved(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages that JSON can hold, images as data URLs."""
    return [
        {**message, "content": [_saved(part) for part in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]


def _saved(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    image = part["image"]
    if isinstance(image, bytes):
        kind = Path(part.get("name", "")).suffix.lower().lstrip(".") or "png"
        kind = {"jpg": "jpeg", "tif": "tiff"}.get(kind, kind)
        image = f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
    return {"type": "image_url", "image_url": {"url": image}}
