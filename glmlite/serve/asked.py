"""What clients ask: one request for all APIs, checked field by field. Fields that nobody knows are ignored."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..parameters import Parameters
from .errors import Refused
from .http import kind_of
from .images import Encoded, found, of_url

__all__ = ["Asked", "Fields", "content", "functions", "joined", "left_out", "part_of", "shown", "text_of", "tool"]

log = logging.getLogger("glmlite.serve")

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
    string, or with images a list of parts, `{"type": "text", "text": ...}` and `{"type": "image", "image": ...}` (see
    the module `images`); or else prompts: texts, or token ids, each answered by itself, with what stands behind the gap
    in `suffix`. options: fields of `glmlite.Parameters`. template: variables for the model's chat template.
    thinking: whether to think, None: as the model does by itself; effort: how much; thinking_budget: tokens of it.
    reasoning: whether thoughts are told apart.
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
    def images(self) -> int:
        """How many its messages have."""
        return sum(1 for _ in found(self.messages or ()))

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

    def taken(self, name: str) -> str:
        """A text that may be large and is kept once: it is taken out of the body."""
        text = self.text(name)
        if isinstance(self.values, dict):
            self.values[name] = ""
        return text

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
        # An integer of hundreds of digits is no number that a float has, either.
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
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
    """As `content`, where no images stand. Raises Refused for one, too."""
    return text_of(_parts(fields, name, text_types, take), between)


def text_of(parts: Sequence[str | Encoded], between: str = "") -> str:
    """Texts as one. Raises Refused for an image."""
    for part in parts:
        if isinstance(part, Encoded):
            why = f"{part.where} is an image, expected text: images stand in messages of users and results of tools"
            raise Refused(400, why, param=part.where)
    return between.join(part for part in parts if isinstance(part, str) and part)


def content(
    fields: Fields,
    name: str,
    text_types: Sequence[str],
    take: Callable[[Fields], str | None] | None = None,
    between: str = "",
) -> Any:
    """A content: a string, null, or parts. It is one string, or, with images, a list of parts (see `Asked`).

    text_types: the types of parts that have a `text`. take: the text of parts of other types, None for those it does
    not know. between: what stands between two texts that are not empty. Raises Refused for what is neither text nor an
    image.
    """
    return shown(_parts(fields, name, text_types, take), between)


def shown(parts: Sequence[str | Encoded], between: str = "") -> Any:
    """Texts and images as a content: one string where there are no images. Texts beside each other are joined."""
    out: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, Encoded):
            out.append({"type": "image", "image": part})
        elif part and out and out[-1]["type"] == "text":
            out[-1]["text"] += between + part
        elif part:
            out.append({"type": "text", "text": part})
    if any(part["type"] == "image" for part in out):
        return out
    return out[0]["text"] if out else ""


def _parts(
    fields: Fields, name: str, text_types: Sequence[str], take: Callable[[Fields], str | None] | None
) -> list[str | Encoded]:
    value = fields.values.get(name)
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise fields.wrong(name, "a string or a list of parts")
    return [_part(f"{fields.where}{name}[{i}]", part, text_types, take) for i, part in enumerate(value)]


def _part(
    where: str, part: Any, text_types: Sequence[str], take: Callable[[Fields], str | None] | None
) -> str | Encoded:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise Refused(400, f"{where} is {kind_of(part)}, expected a part of a message", param=where)
    return part_of(Fields(part, where + "."), text_types, take)


def part_of(
    part: Fields, text_types: Sequence[str], take: Callable[[Fields], str | None] | None = None
) -> str | Encoded:
    """The text or the image of a part of a content. See `content`."""
    kind = part.text("type", "text")
    if (image := _image(part, kind)) is not None:
        return image
    text = part.text("text") if kind in text_types else take(part) if take is not None else None
    if text is None:
        where = part.where.removesuffix(".")
        raise Refused(400, f"{where} is of type {json.dumps(kind)[:40]}, expected text or an image", param=where)
    return text


def _image(part: Fields, kind: str) -> Encoded | None:
    """Of OpenAI's two APIs (`image_url`, `input_image`) and of Anthropic's (`image`); None: the part is no image."""
    if kind in ("image_url", "input_image"):
        given = part.object("image_url") if isinstance(part.any("image_url"), dict) else None
        holder, name = (part, "image_url") if given is None else (given, "url")
    elif kind == "image":
        source = part.object("source") or Fields({}, f"{part.where}source.")
        form = source.one_of("type", ("base64", "url")) or "base64"
        holder, name = source, "data" if form == "base64" else "url"
    else:
        return None
    where = holder.where + name
    if not holder.has(name):
        raise Refused(400, f"{where} is missing, expected an image", param=where)
    text = holder.taken(name)
    return Encoded(text, where) if name == "data" else of_url(text, where)


def functions(fields: Fields, kind: str) -> Iterator[Fields]:
    """The tools that are functions, which have this type; whatever else an agent offers (searches, shells) is left
    out."""
    others = set()
    for each in fields.objects("tools", MAX_TOOLS):
        if (given := each.text("type", kind)) == kind:
            yield each
        else:
            others.add(given)
    left_out("tools", others)


def left_out(what: str, kinds: Collection[str]) -> None:
    """Notes of which types what no model is given is: in one line, whatever a client has sent and how often."""
    if kinds:
        log.info("%s are left out, of type %s", what, ", ".join(json.dumps(kind)[:40] for kind in sorted(kinds)[:8]))


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
