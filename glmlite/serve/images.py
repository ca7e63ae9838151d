"""Images in requests: base64 until a worker's thread decodes it, and named by the field that has them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from .errors import Refused

__all__ = ["Encoded", "decoded", "digest", "found", "named", "of_url", "released"]

MAX_IMAGES = 100  # of a request

# A data URL's beginning, bounded: what stands there is a client's.
_DATA = re.compile(r"data:(?:image/[\w.+-]{1,64})?(?:;[\w.+-]{1,64}=[\w.+-]{0,64}){0,8};base64,", re.I)
_PART = re.compile(r"messages\[(\d+)\]\.content\[(\d+)\]")

Messages = list[dict[str, Any]]


class Encoded(NamedTuple):
    """base64 of an image's file. where: the field that has it."""

    text: str
    where: str


def of_url(url: str, where: str) -> Encoded:
    """A data URL. Nothing is fetched, and no file is read. Raises Refused."""
    if (head := _DATA.match(url)) is not None:
        return Encoded(url[head.end() :], where)
    scheme = url[:16].partition(":")[0].lower()
    if scheme in ("http", "https"):
        why = "is a web address, and this server fetches none"
    elif scheme == "file":
        why = "is a file's address, and this server opens no files for its clients"
    else:
        why = f"is {url[:40]!r}"
    raise Refused(400, f"{where} {why}: expected the image itself, as data:image/png;base64,...", param=where)


def found(messages: Sequence[dict[str, Any]]) -> Iterator[tuple[int, int, Any]]:
    """(message, part, image) of all images of a conversation, whatever they are at the time."""
    for i, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list):
            for j, part in enumerate(content):
                if part["type"] == "image":
                    yield i, j, part["image"]


def decoded(messages: Messages) -> tuple[Messages, dict[tuple[int, int], str]]:
    """The messages with the bytes of their images, and the fields that these came from, by message and part. Raises
    Refused."""
    images = list(found(messages))
    where = {(i, j): image.where for i, j, image in images}
    if len(images) > MAX_IMAGES:
        over = images[MAX_IMAGES][2].where
        raise Refused(400, f"{over} is image {MAX_IMAGES + 1}, expected at most {MAX_IMAGES}", param=over)
    return _replaced(messages, _bytes), where


def released(messages: Messages) -> Messages:
    """The messages with digests in place of images, by which conversations are told apart without them."""
    return _replaced(messages, lambda image: digest(image) if isinstance(image, bytes) else image)


def digest(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


@contextmanager
def named(where: dict[tuple[int, int], str]) -> Iterator[None]:
    """A model's errors on an image name the field that the client gave. See `decoded`."""
    try:
        yield
    except ValueError as error:
        part = _PART.match(str(error))
        field = where.get((int(part[1]), int(part[2]))) if part is not None else None
        if part is None or field is None:
            raise
        raise Refused(400, field + str(error)[part.end() :], param=field) from error


def _replaced(messages: Messages, change: Any) -> Messages:
    out = list(messages)
    for i, j, image in found(messages):
        if out[i] is messages[i]:
            out[i] = {**messages[i], "content": list(messages[i]["content"])}
        out[i]["content"][j] = {"type": "image", "image": change(image)}
    return out


def _bytes(image: Encoded) -> bytes:
    try:
        data = base64.b64decode(image.text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(400, f"{image.where} is not base64: {error}", param=image.where) from None
    if not data:
        raise Refused(400, f"{image.where} is empty, expected an image", param=image.where)
    return data
