"""What a server is told when it is made."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

__all__ = ["LOCAL", "Settings"]

LOCAL = ("localhost", "127.0.0.1", "::1")
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/?#A-Z]+")


@dataclass(frozen=True)
class Settings:
    """How a server behaves.

    api_keys: one of them must come with every request, as `Authorization: Bearer KEY` or `x-api-key: KEY`; none: no
        key is asked for.
    hosts: names that a request's `Host` may have, so that no web page can lead a browser here under a name of its own.
        Addresses of this machine's are always among them; "*": any name. With a key no name is asked for.
    origins: of the web pages that may use this server (CORS); "*": any.
    queue: requests that wait for a model beside those that run; the next one is told to come again (429).
    per_key: requests that one key may have at once; None: any number.
    keep_thinking: a model that can keep the thoughts of earlier rounds is shown them.
    body_bytes, body_seconds: how large a request may be, and how long it may take to come.
    seconds: after which an answer ends as if it had reached its `max_tokens`; None: never.
    keep_alive: seconds of silence after which a stream says that it is still there.
    patience: seconds that a client may leave what it is sent unread.
    """

    api_keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = LOCAL
    origins: tuple[str, ...] = ()
    queue: int = 64
    per_key: int | None = None
    keep_thinking: bool = False
    body_bytes: int = 64 << 20
    body_seconds: float = 60.0
    seconds: float | None = 3600.0
    keep_alive: float = 10.0
    patience: float = 60.0

    def __post_init__(self) -> None:
        for name in ("api_keys", "hosts", "origins"):
            value = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(text, str) and text for text in value):
                raise ValueError(f"{name} is {value!r}, expected strings that are not empty")
        if any(key != key.strip() or not key.isprintable() for key in self.api_keys):
            raise ValueError("api_keys: one has white space around it, or a line end in it, which no client can send")
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"origins: {origin!r}, expected https://name[:port] as browsers tell it, or *")
        for name in ("body_bytes", "body_seconds", "keep_alive", "patience"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")

    def knows_host(self, host: str) -> bool:
        """Whether the header `Host` names this server: `localhost:8080`, `[::1]`, an address, or one of `hosts`."""
        name = host.lower().rstrip(".")
        if name.startswith("["):
            name = name[1:].partition("]")[0]
        elif name.count(":") == 1:
            name = name.partition(":")[0]
        if "*" in self.hosts or name in LOCAL or name in (known.lower() for known in self.hosts):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
