"""What the tests of the server share: a client without a network, and a model that says what it is told to.

answer = ask(app, "/v1/chat/completions", {...})       # .status, .headers, .json, .events
Scripted({"hi": [Thought("hm"), "hello"]})             # answers "hi" so
"""

import asyncio
import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from glmlite import chat
from glmlite.errors import Busy, Closed, ContextOverflow
from glmlite.generate import CallPart, Completion, Piece, ToolCall
from glmlite.scheduler import Stats

HOST = [("host", "127.0.0.1:8080")]


class Answer:
    """An answer that has come. parts: what was sent, as it was cut."""

    def __init__(self, status, headers, parts):
        self.status = status
        self.headers = headers
        self.parts = parts

    def __repr__(self):
        return f"<{self.status} {self.text[:2000]}>"

    @property
    def text(self):
        return b"".join(self.parts).decode()

    @property
    def json(self):
        return json.loads(self.text)

    @property
    def events(self):
        """The data of server-sent events; "[DONE]" stays a string, comments are left out."""
        found = []
        for block in self.text.split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
            if "data" in lines:
                data = lines["data"] if lines["data"] == "[DONE]" else json.loads(lines["data"])
                assert "event" not in lines or lines["event"] == data["type"]
                found.append(data)
        return found

    @property
    def lines(self):
        return [json.loads(line) for line in self.text.splitlines()]


async def asked(app, path, body=None, *, method=None, headers=(), chunks=1, leave=None, read=None, root=""):
    """One request. leave: an asyncio.Event at which the client goes. read: awaited after each part that is sent."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": method or ("GET" if body is None else "POST"),
        "path": path,
        "root_path": root,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in [*HOST, *headers]],
    }
    if data:
        scope["headers"].append((b"content-length", str(len(data)).encode()))
    size = -(-len(data) // chunks) or 1
    rest = [data[i : i + size] for i in range(0, len(data), size)] or [b""]
    sent = []

    async def receive():
        if rest:
            part = rest.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(rest)}
        await (leave or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)
        if read is not None and message["type"] == "http.response.body":
            await read(message["body"])

    await app(scope, receive, send)
    if not sent:
        return Answer(0, {}, [])
    assert sent[0]["type"] == "http.response.start"
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], headers, [message["body"] for message in sent[1:]])


def ask(app, path, body=None, **options):
    return asyncio.run(asked(app, path, body, **options))


# ---- a model that says what it is told to


class Think(NamedTuple):
    text: str


class Call(NamedTuple):
    name: str
    arguments: str
    cuts: int = 1


class Wait(NamedTuple):
    seconds: float


# What `Model.chat_stream` takes besides the fields of `Parameters`.
OF_CHATS = (
    "messages",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning",
    "thinking",
    "effort",
    "thinking_budget",
    "template",
)


class Scripted:
    """Answers the last message with what stands beside it: strings, Think, Call, Wait, or an exception to fail with.

    end: the token that ends its answers. asked: what each call of it was given. limits: answers that it takes at once,
    None for any number.
    """

    architecture = "chatglm"
    name = "scripted"
    path = Path("models/scripted.gguf")
    chat_format = "template"
    context = 100
    parallel = 4
    fills_blanks = False
    images = False
    loaded = True
    end = None
    defaults = {"temperature": 0.8, "top_p": 0.8}  # noqa: RUF012  nobody writes to it

    def __init__(self, script=None, *, template="{{ messages }}{{ tools }}{{ enable_thinking }}", cached=0, limit=None):
        self.script = script or {}
        self.metadata = {"tokenizer.chat_template": template}
        self.cached = cached
        self.limit = limit
        self.asked = []
        self.running = []
        self.closed = False
        self.dialect = SimpleNamespace(capabilities=["tools", "thinking"])
        self.tokenizer = SimpleNamespace(piece=lambda token: bytes([token]))

    def chat_ids(self, messages, *, tools=None, thinking=None, effort=None, template=None):
        chat.check(messages, None if self.images else self.blind)
        return list(range(sum(len(words(message).split()) + 1 for message in messages)))

    def blind(self, image, where):
        raise ValueError(f"{where}: {self.name} sees no images: it is a model for text alone")

    def chat_stream(self, messages, *, cancel=None, **options):
        tokens = len(self.chat_ids(messages))
        self.asked.append({"messages": messages, **options})
        return self._start(words(messages[-1]), tokens, cancel, options)

    def stream(self, prompt, *, cancel=None, **options):
        self.asked.append({"prompt": prompt, **options})
        return self._start(prompt, len(prompt), cancel, options)

    def _start(self, said, tokens, cancel, options):
        if self.closed:
            raise Closed("closed")
        if tokens >= self.context:
            raise ContextOverflow("too long", tokens, self.context)
        if self.limit is not None and len(self.running) >= self.limit:
            raise Busy("full", self.limit)
        parts = self.script.get(said if isinstance(said, str) else tuple(said), ["yes"])
        if isinstance(parts, Exception) and not isinstance(parts, RuntimeError):
            raise parts
        return Speaking(self, parts, tokens, cancel, options)

    def tokenize(self, text, *, special=True, prefix=False):
        return list(text.encode())

    def detokenize(self, ids):
        return bytes(ids).decode("utf-8", "replace")

    def status(self):
        return SimpleNamespace(
            running=len(self.running), waiting=0, kv_tokens=1000, kv_tokens_free=900, kept=0, preempted=2
        )

    def close(self):
        self.closed = True
        for generation in list(self.running):
            generation.fail(Closed("closed"))


class Seeing(Scripted):
    """Takes images, and tells damaged ones from good ones. Each is as many tokens as GLM-OCR takes for it."""

    images = True
    context = 10_000

    def chat_ids(self, messages, **options):
        from glmlite.vision.images import open_image
        from glmlite.vision.preprocess import Settings, image_tokens

        ids = super().chat_ids(messages, **options)
        for i, message in enumerate(messages):
            for j, part in enumerate(message["content"] if isinstance(message["content"], list) else ()):
                if part["type"] == "image":
                    where = f"messages[{i}].content[{j}]"
                    image = open_image(part["image"], where)
                    try:
                        ids += [-1] * image_tokens(image.height, image.width, Settings())
                    except ValueError as error:
                        raise ValueError(f"{where}: {error}") from None
        return ids


def words(message):
    """The text of a message, with or without images."""
    content = message["content"] or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


class Speaking:
    """A scripted answer that is being given."""

    def __init__(self, model, parts, tokens, cancel, options):
        self.model = model
        self.parts = parts
        self.options = options
        self.stats = Stats(prompt_tokens=tokens, reused_tokens=model.cached)
        self.pieces = []
        self.ended = None  # "cancelled", or an exception
        self.changed = None
        model.running.append(self)
        if cancel is not None:
            cancel.add(self.cancel)

    @property
    def progress(self):
        return 1, self.stats.prompt_tokens, self.stats.reused_tokens

    def cancel(self):
        self._end("cancelled")

    def close(self):
        self._end("cancelled")
        if self in self.model.running:
            self.model.running.remove(self)

    def fail(self, error):
        self._end(error)

    def _end(self, how):
        self.ended = self.ended or how
        if self.changed is not None:
            self.changed()

    async def __aiter__(self):
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        self.changed = lambda: loop.call_soon_threadsafe(changed.set)
        try:
            index = -1
            limit = self.options.get("max_tokens")
            parts = [self.parts] if isinstance(self.parts, Exception) else self.parts
            for part in parts:
                if isinstance(part, Wait):
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(changed.wait(), part.seconds)
                if isinstance(self.ended, Exception):
                    raise self.ended
                if self.ended or (limit is not None and self.stats.generated_tokens >= limit):
                    break
                if isinstance(part, Exception):
                    raise part
                index += isinstance(part, Call)
                for piece in _pieces(part, index):
                    self.stats.generated_tokens += len(piece.tokens)
                    self.pieces.append(piece)
                    yield piece
                await asyncio.sleep(0)
            cut = limit is not None and self.stats.generated_tokens >= limit
            reason = self.ended or ("length" if cut else "tool_calls" if index >= 0 else "stop")
            self.pieces.append(Piece("", [], None, reason))
            yield self.pieces[-1]
        finally:
            self.close()

    async def _whole(self):
        calls = {}
        for part in (part for piece in self.pieces for part in piece.calls):
            old = calls.get(part.index, ToolCall("", "", ""))
            calls[part.index] = ToolCall(part.id or old.id, part.name or old.name, old.arguments + part.arguments)
        stops = self.options.get("stop") or ()
        return Completion(
            text="".join(piece.text for piece in self.pieces),
            tokens=[token for piece in self.pieces for token in piece.tokens],
            finish_reason=self.pieces[-1].finish_reason,
            logprobs=None,
            stats=self.stats,
            stop=stops[0] if stops else self.model.end,
            seed=0,
            reasoning="".join(piece.reasoning for piece in self.pieces) or None,
            tool_calls=tuple(calls.values()),
        )

    def __await__(self):
        return self._whole().__await__()


def _pieces(part, index):
    if isinstance(part, str):
        yield Piece(part, [1])
    elif isinstance(part, Piece):
        yield part
    elif isinstance(part, Think):
        yield Piece("", [2], reasoning=part.text)
    elif isinstance(part, Call):
        yield Piece("", [3], calls=(CallPart(index, f"call_{index}", part.name),))
        size = -(-len(part.arguments) // part.cuts)
        for i in range(0, len(part.arguments), max(size, 1)):
            yield Piece("", [4], calls=(CallPart(index, arguments=part.arguments[i : i + size]),))
