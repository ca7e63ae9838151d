"""From a row to what a model is asked, and from its answers to what is kept of them."""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .. import chat
from ..cancel import Cancel
from ..chat import template as templates
from ..generate import Completion
from ..model import Model
from ..parameters import Options, Parameters, check_integer
from ..serve import errors, images, openai, starting
from ..serve.asked import Asked
from ..serve.errors import Refused
from ..serve.starting import Running
from .rows import PEEKED, Row, Source

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "Asking",
    "OpenAI",
    "Prompt",
    "PromptOptions",
    "Prompts",
    "Question",
    "Record",
    "asked_of",
    "asking_of",
    "seed_of",
    "told",
]

COLUMNS = ("prompt", "messages")  # that are taken where none is named
PATHS = {"/v1/chat/completions": True, "/v1/completions": False}  # whether it is a conversation

_ADDRESS = re.compile(r"data:|[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # no path; one of the web is refused by name

Record = dict[str, Any]


class Question(NamedTuple):
    """What a row asks. key: rows whose keys begin alike have prompts that do. start: has it answered, and raises what a
    model raises. record: what is kept of the answers."""

    key: str
    start: Callable[[], Sequence[Running]]
    record: Callable[[Sequence[Completion]], Record]


class Asking(Protocol):
    """A form of rows."""

    def describe(self) -> Any:
        """What the answers depend on, as JSON."""

    def recipe(self) -> Callable[[Model, Cancel], Asking]:
        """What makes the same in another process, of the model that is there."""

    def check(self, source: Source) -> None:
        """Raises ValueError for what would fail in all rows, before one is asked."""

    def question(self, row: Row) -> Question:
        """Raises ValueError, and Refused."""

    def failure(self, row: Row, error: BaseException) -> Record:
        """What is kept of a row that failed."""

    def result(self, row: Row, record: Record) -> dict[str, Any]:
        """The row as it is written, with what was kept."""

    def text(self, record: Record) -> str | None:
        """The answer; None where there is none."""

    def error(self, record: Record) -> str | None:
        """What went wrong; None: nothing."""


@dataclass(frozen=True)
class Prompt:
    """How rows become prompts.

    column: of a prompt or of a list of messages; template: or else a Jinja template over the columns. system: a message
    before it. raw: the text is continued, without the model's chat template. image: the column of an image: a path,
    from the folder of the rows on, a data URL, or the bytes of a file. prefix: stands before the names of the columns
    that are added. The others: see `Model.chat`.
    """

    column: str | None = None
    template: str | None = None
    system: str | None = None
    raw: bool = False
    image: str | None = None
    prefix: str = ""
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: str | Mapping[str, Any] = "auto"
    thinking: bool | None = None
    effort: str | None = None
    thinking_budget: int | None = None

    def __post_init__(self) -> None:
        for name in ("column", "template", "system", "image", "prefix", "effort"):
            if not isinstance(value := getattr(self, name), str | None) or (name == "prefix" and value is None):
                raise TypeError(f"{name} is {reprlib.repr(value)}, expected a string")
        if not isinstance(self.raw, bool):
            raise TypeError(f"raw is {self.raw!r}, expected True or False")
        if not isinstance(self.thinking, bool | None):
            raise TypeError(f"thinking is {self.thinking!r}, expected True, False or None")
        if self.thinking_budget is not None:
            check_integer("thinking_budget", self.thinking_budget, 0)
        chat.offered(self.tools, self.tool_choice)


class PromptOptions(Options, total=False):
    """The fields of `Prompt` and of `Parameters` as keyword arguments."""

    column: str | None
    template: str | None
    system: str | None
    raw: bool
    image: str | None
    prefix: str
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any]
    thinking: bool | None
    effort: str | None
    thinking_budget: int | None


def asked_of(parameters: Parameters | None, **options: Unpack[PromptOptions]) -> tuple[Prompt, Parameters]:
    """What all rows are asked. Raises TypeError and ValueError, naming the option."""
    given: dict[str, Any] = dict(options)
    prompt = Prompt(**{field.name: given.pop(field.name) for field in fields(Prompt) if field.name in given})
    return prompt, Parameters.of(parameters, **given)


FIELDS = ("answer", "reasoning", "tool_calls", "finish_reason", "prompt_tokens", "completion_tokens", "error")


def seed_of(run: int, row: int, choice: int = 0) -> int:
    """The seed of a row: it depends on the run's and on the row's number alone."""
    return int.from_bytes(hashlib.sha256(f"{run} {row} {choice}".encode()).digest()[:8], "little")


def told(row: Row, error: BaseException) -> str:
    """An error in one line that names the row."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return f"{row.where}: {text}"


def asking_of(model: Model, source: Source, prompt: Prompt, parameters: Parameters, cancel: Cancel) -> Asking:
    """The form of a file's rows: OpenAI's where no column and no template is named and the rows have a `body`.

    Raises ValueError where it cannot be told which column has the prompts.
    """
    if prompt.column is not None and prompt.template is not None:
        raise ValueError("a column and a template, expected one of them")
    if prompt.column is None and prompt.template is None:
        names = list(source.columns) if source.columns is not None else _seen(source)
        if source.columns is None and {"custom_id", "body"} <= set(names):
            given = [field.name for field in fields(Prompt) if getattr(prompt, field.name) != field.default]
            if given:
                raise ValueError(
                    f"{given[0]}: the rows of {source.name} are requests in OpenAI's form, which say so themselves; "
                    "expected none"
                )
            return OpenAI(model, cancel, parameters)
        column = next((name for name in COLUMNS if name in names), None)
        if column is None and names:
            raise ValueError(
                f"{source.name}: which column has the prompts? Name it (--column), or give a template (--template); "
                f"there is {', '.join(map(repr, names))}"
            )
        prompt = replace(prompt, column=column or COLUMNS[0])
    return Prompts(model, cancel, prompt, parameters, Path(source.name).parent)


def _seen(source: Source) -> list[str]:
    """The columns of the first rows of a source whose rows have each their own."""
    names: dict[str, None] = {}
    for row in source.rows():
        names |= dict.fromkeys(row.values)
        if row.number + 1 >= PEEKED:
            break
    return list(names)


class Prompts:
    """Rows with a column of prompts, or columns that a template makes a prompt of."""

    def __init__(self, model: Model, cancel: Cancel, prompt: Prompt, parameters: Parameters, folder: Path):
        self._model = model
        self._prompt = prompt
        self._parameters = parameters
        self._cancel = cancel
        self._folder = folder
        self._chats = model.chat_format is not None and not prompt.raw
        self._reads = templates.columns(prompt.template) if prompt.template is not None else frozenset()
        self.fields = tuple(prompt.prefix + name for name in FIELDS)

    def describe(self) -> Any:
        described = {**self._prompt.__dict__}
        if self._prompt.image is not None:
            described["folder"] = str(self._folder.absolute())
        return described

    def recipe(self) -> Callable[[Model, Cancel], Asking]:
        return partial(Prompts, prompt=self._prompt, parameters=self._parameters, folder=self._folder.absolute())

    def check(self, source: Source) -> None:
        prompt = self._prompt
        if not self._chats:
            for name in ("system", "image", "tools", "thinking", "effort", "thinking_budget"):
                if getattr(prompt, name) is not None:
                    why = "raw prompts have none" if prompt.raw else "the model has no chat template"
                    raise ValueError(f"{name}: {why}")
        if self._parameters.logprobs is not None:
            raise ValueError("logprobs: the columns of answers have no place for them, requests in OpenAI's form have")
        self._model._constraint(self._parameters)
        names = list(source.columns) if source.columns is not None else _seen(source)
        if not names:
            return  # each row will say what is wrong with it
        wanted = {prompt.column} if prompt.column is not None else self._reads - {"row"}
        for name in sorted(wanted | ({prompt.image} if prompt.image is not None else set())):
            if name not in names:
                raise ValueError(f"{source.name}: has no column {name!r}; there is {', '.join(map(repr, names))}")
        try:
            self._spare(names)
        except ValueError as error:
            raise ValueError(f"{source.name}: {error}") from None

    def _spare(self, names: Collection[str]) -> None:
        """Raises ValueError for a column that one of the answers would be written over."""
        if (taken := next((name for name in self.fields if name in names), None)) is not None:
            raise ValueError(
                f"has a column {taken!r} of its own, which would be written over; choose a prefix for the names of the "
                "columns that are added (--prefix model_)"
            )

    def question(self, row: Row) -> Question:
        self._spare(row.values)
        asked = self._asked(row.values)
        seed = seed_of(self._parameters.seed or 0, row.number)
        key = asked if isinstance(asked, str) else json.dumps(asked, ensure_ascii=False, default=str)

        def start() -> Sequence[Running]:
            if not self._chats and isinstance(asked, str):
                return [self._model.stream(asked, self._parameters, seed=seed, cancel=self._cancel)]
            prompt = self._prompt
            return [
                self._model.chat_stream(
                    self._messages(asked, row.values),
                    self._parameters,
                    tools=prompt.tools,
                    tool_choice=prompt.tool_choice,
                    thinking=prompt.thinking,
                    effort=prompt.effort,
                    thinking_budget=prompt.thinking_budget,
                    seed=seed,
                    cancel=self._cancel,
                )
            ]

        return Question(key, start, lambda answers: self._record(row, answers[0]))

    def _asked(self, values: dict[str, Any]) -> str | list[Any]:
        """The text or the messages of a prompt."""
        column = self._prompt.column
        if column is None:
            assert self._prompt.template is not None
            return templates.of_row(self._prompt.template, {"row": values, **values})
        if column not in values:
            there = ", ".join(map(repr, values)) or "none"
            raise ValueError(f"has no column {column!r}; there is {there}")
        value = values[column]
        if isinstance(value, str):
            return value
        if isinstance(value, list) and self._chats:
            return value
        raise ValueError(f"{column!r} is {type(value).__name__}, expected a text{' or messages' * self._chats}")

    def _messages(self, asked: str | list[Any], values: dict[str, Any]) -> list[Any]:
        prompt = self._prompt
        if prompt.image is not None:
            if not isinstance(asked, str):
                raise ValueError(f"{prompt.image!r} is a column of images, and the prompt is messages: put them there")
            shown = {"type": "image", "image": self._image(values)}
            asked = [{"role": "user", "content": [shown, {"type": "text", "text": asked}]}]
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        return messages if prompt.system is None else [{"role": "system", "content": prompt.system}, *messages]

    def _image(self, values: dict[str, Any]) -> Any:
        assert self._prompt.image is not None
        image = values.get(self._prompt.image)
        if image is None or image == "":
            raise ValueError(f"{self._prompt.image!r} is empty, expected an image")
        if isinstance(image, Mapping):  # as data sets have images in Parquet: bytes, or where they are
            image = next((image[name] for name in ("bytes", "path") if image.get(name) is not None), image)
        return self._folder / image if isinstance(image, str) and not _ADDRESS.match(image) else image

    def _record(self, row: Row, answer: Completion) -> Record:
        calls = [{**call.as_dict(), "id": f"call_{row.number}-{i}"} for i, call in enumerate(answer.tool_calls)]
        return {
            "answer": answer.text,
            "reasoning": answer.reasoning,
            "tool_calls": calls or None,
            "finish_reason": answer.finish_reason,
            "prompt_tokens": answer.stats.prompt_tokens,
            "completion_tokens": len(answer.tokens),
        }

    def failure(self, row: Row, error: BaseException) -> Record:
        return {"error": told(row, error)}

    def result(self, row: Row, record: Record) -> dict[str, Any]:
        return row.values | {field: record.get(name) for field, name in zip(self.fields, FIELDS)}

    def text(self, record: Record) -> str | None:
        text: str | None = record.get("answer")
        return text

    def error(self, record: Record) -> str | None:
        error: str | None = record.get("error")
        return error


class OpenAI:
    """Rows in the form of OpenAI's batches: a `custom_id`, a `url` and the `body` of a request."""

    def __init__(self, model: Model, cancel: Cancel, parameters: Parameters):
        self._model = model
        self._parameters = parameters
        self._cancel = cancel

    def describe(self) -> Any:
        return "openai"

    def recipe(self) -> Callable[[Model, Cancel], Asking]:
        return partial(OpenAI, parameters=self._parameters)

    def check(self, source: Source) -> None:
        self._model._constraint(self._parameters)

    def question(self, row: Row) -> Question:
        values = row.values
        if not isinstance(body := values.get("body"), dict):
            raise Refused(400, "body is missing, expected the object of a request", param="body")
        url = values.get("url", "/v1/chat/completions")
        if not isinstance(url, str) or url not in PATHS:
            raise Refused(400, f"url is {json.dumps(url)[:80]}, expected {' or '.join(PATHS)}", param="url")
        if values.get("method", "POST") != "POST":
            raise Refused(400, f"method is {json.dumps(values['method'])[:40]}, expected POST", param="method")
        chats = PATHS[url]
        echo = not chats and bool(body.get("echo"))
        asked = openai.read_chat(body) if chats else openai.read_completions(body)
        self._room(asked)
        asked.options = self._options(asked, row)
        key = json.dumps([asked.tools, asked.messages] if chats else asked.prompts, ensure_ascii=False)

        def record(answers: Sequence[Completion]) -> Record:
            name = self._model.path.stem
            return {"body": openai.written(self._model, asked, answers, name, str(row.number), echo)}

        return Question(key, lambda: self._start(asked), record)

    def _room(self, asked: Asked) -> None:
        """Raises Refused for more answers than the model takes at once: they would be tried again for ever."""
        scheduler = self._model._scheduler
        most = None if scheduler.max_queue is None else scheduler.parallel + scheduler.max_queue
        if most is not None and asked.count > most:
            raise Refused(400, f"n: {asked.count} answers, expected at most {most}, as the model takes", param="n")

    def _options(self, asked: Asked, row: Row) -> dict[str, Any]:
        """The request's own before the run's."""
        plain = Parameters()
        given = {name: value for name, value in self._parameters.__dict__.items() if value != getattr(plain, name)}
        if "schema" in asked.options:
            given.pop("grammar", None)
        return {**given, "seed": seed_of(self._parameters.seed or 0, row.number), **asked.options}

    def _start(self, asked: Asked) -> Sequence[Running]:
        if asked.messages is None:
            return starting.prompts(self._model, asked, self._cancel)
        messages, where = images.decoded(asked.messages)
        with images.named(where):
            return starting.conversation(self._model, asked, messages, self._cancel)

    def failure(self, row: Row, error: BaseException) -> Record:
        refused = error if isinstance(error, Refused) else errors.of(error) if isinstance(error, Exception) else None
        if row.error is not None:
            return {"error": {"code": "invalid_row", "message": told(row, error)}}
        refused = refused or Refused(500, str(error))
        code = refused.code or ("invalid_request" if refused.status < 500 else "server_error")
        body = errors.openai(refused)
        return {"status": refused.status, "body": body, "error": {"code": code, "message": told(row, refused)}}

    def result(self, row: Row, record: Record) -> dict[str, Any]:
        custom_id = row.values.get("custom_id")
        response = None
        if "body" in record:
            request = f"req_{row.number}"
            response = {"status_code": record.get("status", 200), "request_id": request, "body": record["body"]}
        return {
            "id": f"batch_req_{row.number}",
            "custom_id": custom_id,
            "response": response,
            "error": record.get("error"),
        }

    def text(self, record: Record) -> str | None:
        if self.error(record) is not None:
            return None
        choice = record["body"]["choices"][0]
        text: str | None = choice["message"]["content"] if "message" in choice else choice["text"]
        return text

    def error(self, record: Record) -> str | None:
        error = record.get("error")
        return None if error is None else str(error["message"])
