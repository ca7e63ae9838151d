"""What clients ask: one request for all APIs, checked field by field. Fields that nobody knows are ignored."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..parameters import Parameters
from .errors import Refused
from .http import kind_of

__all__ = ["Asked", "Fields", "joined", "tool"]

MAX_STOPS = 16
MAX_CHOICES = 16
MAX_TOOLS = 512
MAX_SCHEMA = 1 << 18  # characters of a schema's JSON
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

Message = dict[str, Any]


@dataclass
class Asked:
    """A request of any API.

    model: the name the client gave, or "". messages: a conversation in the shape of OpenAI's API, each content one
    string; or else prompts: texts, or token ids, each answered by itself, with what stands behind the gap in `suffix`.
    options: fields of `glmlite.Parameters`. template: variables for the model's chat template. thinking: whether to
    think, None: as the model does by itself; effort: how much; thinking_budget: tokens of it. reasoning: whether
    thoughts are told apart.
    choices: answers to each prompt. progress, timings: whether a stream tells how far the prompt is read, and speeds.
    schema_name: the field that has the schema.
    """

    model: str = ""
    messages: list[Message] | None = None
    prompts: Sequence[str | list[int]] = ()
    suffix: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: Any = "auto"
    parallel_tool_calls: bool = True
    template: dict[str, Any] = field(default_factory=dict)
    thinking: bool | None = None
    effort: str | None = None
    thinking_budget: int | None = None
    reasoning: bool = True
    choices: int = 1
    stream: bool = False
    usage: bool = False
    progress: bool = False
    timings: bool = False
    schema_name: str = "response_format"

    @property
    def count(self) -> int:
        """How many answers it asks for."""
        return self.choices * (1 if self.messages is not None else len(self.prompts))


class Fields:
    """The fields of a JSON object, each taken with a check that names it. null counts as not given.

    where: what the object is called within the body, with a dot behind it.
    """

    def __init__(self, values: Mapping[str, Any], where: str = ""):
        self.values = values
        self.where = where

    def wrong(self, name: str, expected: str) -> Refused:
        value = self.values.get(name)
        shown = json.dumps(value)[:40] if isinstance(value, bool | int | float | str) else kind_of(value)
        return Refused(400, f"{self.where}{name} is {shown}, expected {expected}", param=self.where + name)

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def any(self, name: str) -> Any:
        return self.values.get(name)

    def text(self, name: str, default: str = "") -> str:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def whole(self, name: str, least: int | None = None, most: int | None = None) -> int | None:
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, "an integer")
        if (least is not None and value < least) or (most is not None and value > most):
            raise self.wrong(name, _range(least, most))
        return value

    def number(self, name: str) -> float | None:
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(name, "a number")
        return value

    def items(self, name: str, most: int | None = None) -> list[Any]:
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(name, "a list")
        if most is not None and len(value) > most:
            raise Refused(
                400, f"{self.where}{name} has {len(value)} entries, expected at most {most}", param=self.where + name
            )
        return value

    def object(self, name: str) -> Fields | None:
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, f"{self.where}{name}.")

    def objects(self, name: str, most: int | None = None) -> Iterator[Fields]:
        """The entries of a list of objects."""
        for i, value in enumerate(self.items(name, most)):
            if not isinstance(value, dict):
                where = f"{self.where}{name}[{i}]"
                raise Refused(400, f"{where} is {kind_of(value)}, expected an object", param=where)
            yield Fields(value, f"{self.where}{name}[{i}].")

    def one_of(self, name: str, values: Sequence[str]) -> str | None:
        value = self.text(name)
        if value and value not in values:
            raise self.wrong(name, " or ".join(values))
        return value or None

    # ---- what several APIs have

    def options(self, names: Mapping[str, str]) -> dict[str, Any]:
        """Fields of `Parameters` by this API's names for them: {theirs: ours}; of two for one of ours the first counts.

        Raises Refused with the name that the client gave.
        """
        chosen: dict[str, Any] = {}
        for theirs, ours in names.items():
            value = self._option(theirs, ours)
            if value is None:
                continue
            try:
                Parameters(**{ours: value})
            except (TypeError, ValueError) as error:
                message = str(error).replace(ours, self.where + theirs, 1)
                raise Refused(400, message, param=self.where + theirs) from None
            chosen.setdefault(ours, value)
        return chosen

    def _option(self, theirs: str, ours: str) -> Any:
        if ours == "stop":
            return self.stops(theirs) or None
        if ours == "max_tokens":
            count = self.whole(theirs, -1)
            return None if count == -1 else count
        if ours == "seed":
            seed = self.whole(theirs)
            return None if seed is None else seed % 2**64
        if ours == "logit_bias":
            return self.biases(theirs)
        if ours == "ignore_eos":
            return self.flag(theirs) or None
        if ours == "stop_ids":
            return self.items(theirs, 64) or None
        if ours in ("top_k", "penalty_window", "logprobs"):
            count = self.whole(theirs)
            return 0 if count == -1 and ours == "top_k" else count
        value = self.number(theirs)
        return 1e-6 if value == 0 and ours == "top_p" else value  # only the likeliest, however small its share

    def stops(self, name: str) -> list[str]:
        """One string or several; empty ones stop nothing."""
        value = self.values.get(name)
        if isinstance(value, str):
            value = [value]
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(stop, str) for stop in value):
            raise self.wrong(name, "a string or a list of strings")
        if len(value) > MAX_STOPS:
            raise Refused(400, f"{name} has {len(value)} strings, expected at most {MAX_STOPS}", param=name)
        return [stop for stop in value if stop]

    def biases(self, name: str) -> dict[int, float] | None:
        found = self.object(name)
        if found is None or not found.values:
            return None
        biases = {}
        for token in found.values:
            bias = found.number(token)
            if not token.isdecimal() or not token.isascii() or len(token) > 9 or bias is None:
                raise Refused(400, f"{name}.{token[:20]}: expected a token id with a number", param=name)
            biases[int(token)] = bias
        return biases

    def schema(self, name: str) -> dict[str, Any] | None:
        found = self.object(name)
        if found is None:
            return None
        if len(json.dumps(found.values)) > MAX_SCHEMA:
            raise Refused(
                400, f"{self.where}{name}: more than {MAX_SCHEMA} characters of schema", param=self.where + name
            )
        return dict(found.values)


def _range(least: int | None, most: int | None) -> str:
    if most is None:
        return f"at least {least}"
    return f"at most {most}" if least is None else f"{least} to {most}"


def joined(
    fields: Fields,
    name: str,
    text_types: Sequence[str],
    take: Callable[[Fields], str | None] | None = None,
    between: str = "",
) -> str:
    """The text of a content: a string, null, or parts, whose text is joined.

    text_types: the types of parts that have a `text`. take: the text of parts of other types, None for those it does
    not know. between: what stands between two texts that are not empty. Raises Refused for images, which no model here
    sees, and for whatever else is no text.
    """
    value = fields.values.get(name)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise fields.wrong(name, "a string or a list of parts")
    texts = []
    for i, part in enumerate(value):
        where = f"{fields.where}{name}[{i}]"
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict):
            raise Refused(400, f"{where} is {kind_of(part)}, expected a part of a message", param=where)
        read = Fields(part, where + ".")
        kind = read.text("type", "text")
        text = read.text("text") if kind in text_types else take(read) if take is not None else None
        if text is None:
            what = "the model sees no images" if "image" in kind else "expected text"
            raise Refused(400, f"{where} is of type {json.dumps(kind)[:40]}: {what}", param=where)
        texts.append(text)
    return between.join(text for text in texts if text)


def tool(name: str, description: Any, parameters: Any, where: str) -> dict[str, Any]:
    """A tool as `Model.chat` takes it; what it is made of keeps its order, which the model's prompt shows."""
    if not name:
        raise Refused(400, f"{where}name is missing, expected the name of a function", param=f"{where}name")
    if parameters is not None and not isinstance(parameters, dict):
        raise Refused(400, f"{where}: the schema is {kind_of(parameters)}, expected an object", param=where.rstrip("."))
    function: dict[str, Any] = {"name": name}
    if isinstance(description, str):
        function["description"] = description
    function["parameters"] = parameters if parameters is not None else {"type": "object", "properties": {}}
    return {"type": "function", "function": function}
