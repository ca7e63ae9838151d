"""What a caller asks of an answer."""

from __future__ import annotations

import json
import math
import operator
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypedDict

from .errors import FormatError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._native import SamplingOption

__all__ = ["RECOMMENDED", "Options", "Parameters", "check_integer", "sampling_defaults", "token_ids"]

LARGEST_BIAS = 1e6
MOST_CHARACTERS = 250_000  # of a schema or a grammar
# The options of the sampler that a file may recommend, and where: GGUF's `general.sampling.*`.
RECOMMENDED = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
    "penalty_window": "general.sampling.penalty_last_n",
}


@cache
def _sampling() -> Sequence[SamplingOption]:
    """The options of the sampler, with their bounds: from the table of the engine, which checks them, too."""
    from . import _native

    return _native.sampling_options()


class Options(TypedDict, total=False):
    """The fields of `Parameters` as keyword arguments; None counts as not given."""

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    penalty_window: int | None
    seed: int | None
    logit_bias: Mapping[int, float] | None
    logprobs: int | None
    stop: str | Sequence[str] | None
    stop_ids: Sequence[int] | None
    schema: Mapping[str, Any] | str | bool | type | None
    grammar: str | None
    ignore_eos: bool | None
    overflow: str | None
    on_progress: Callable[[int, int], object] | None


@dataclass(frozen=True)
class Parameters:
    """How to answer. None means the model's default.

    max_tokens: at most so many tokens; without it, until the model stops or the context is full.
    temperature, top_k, top_p, min_p, repetition_penalty, penalty_window: by default the file's `general.sampling.*`,
        or else 0.8, 0 (off), 0.8, 0 (off), 1 (off) and 256 tokens. temperature 0 takes the most likely token.
    presence_penalty, frequency_penalty: subtracted from the logits of tokens in the window, once and per occurrence;
        by default 0 (off).
    seed: 0 <= seed < 2**64; None draws one, and the completion tells it. A seed fixes the answer, whatever else runs.
    logit_bias: token id -> added to its logit; -inf forbids it.
    logprobs: 0 for the log probability of each token, n for those of the n most likely ones too.
    stop: strings that end the answer and are not part of it, wherever the borders of tokens fall.
    stop_ids: token ids that end it, besides the model's own.
    schema: a JSON schema that the answer will validate against: as a mapping, as JSON text, or a class that has one
        (`model_json_schema()`, as pydantic's models); True: any JSON object. A chat model thinks first, as it pleases.
        The answer ends where the JSON does, with finish_reason "stop"; "length" says that it was cut, and `stop` can
        cut it too. Needs llguidance: pip install 'glmlite[grammar]'.
    grammar: a grammar that the answer will follow, in llguidance's variant of Lark. Otherwise as `schema`.
    ignore_eos: do not end at the model's own end tokens.
    overflow: what to do with a prompt that does not fit the context. "error": ContextOverflow. "truncate": drop the
        oldest of it, until the prompt and `max_tokens` (or a quarter of the context; at most half of it) fit. Of text
        and ids, tokens after the model's prefix go, never a blank that is to be filled; of a chat, whole rounds, never
        the system message or the last question.
    on_progress: called with (done, total) prompt tokens while the prompt is read, ten times a second and when it is
        done, by the thread that waits. What it raises cancels the request.

    Raises TypeError and ValueError, naming the field.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    penalty_window: int | None = None
    seed: int | None = None
    logit_bias: Mapping[int, float] | None = None
    logprobs: int | None = None
    stop: str | Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    schema: Mapping[str, Any] | str | bool | type | None = None
    grammar: str | None = None
    ignore_eos: bool = False
    overflow: str = "error"
    on_progress: Callable[[int, int], object] | None = None

    @classmethod
    def of(cls, parameters: Parameters | None = None, /, **changes: Unpack[Options]) -> Parameters:
        """`changes` over `parameters`; None among the changes counts as not given. Raises TypeError for other names."""
        if not isinstance(parameters, cls | None):
            raise TypeError(f"parameters is {reprlib.repr(parameters)}, expected glmlite.Parameters")
        names = [f.name for f in fields(cls)]
        for name in changes:
            if name not in names:
                raise TypeError(f"'{name}' is no parameter of an answer; they are {', '.join(names)}")
        given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
        return replace(parameters or cls(), **given)

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            check_integer("max_tokens", self.max_tokens, 1)
        if self.seed is not None:
            check_integer("seed", self.seed, 0, 2**64 - 1)
        if self.logprobs is not None:
            check_integer("logprobs", self.logprobs, 0, 1000)
        for option in _sampling():
            if (value := getattr(self, option.name)) is not None:
                _option(option, value)
        if not isinstance(self.stop, Iterable):
            raise TypeError(f"stop is {self.stop!r}, expected a string or strings")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(s, str) for s in stop):
            raise TypeError(f"stop is {self.stop!r}, expected a string or strings")
        if not all(stop):
            raise ValueError(f"stop is {self.stop!r}, expected strings that are not empty")
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_ids", tuple(token_ids("stop_ids", self.stop_ids)))
        for token in self.stop_ids:
            check_integer("stop_ids", token, 0)
        if not isinstance(self.logit_bias, Mapping | None):
            raise TypeError(f"logit_bias is {self.logit_bias!r}, expected a mapping of token ids to numbers")
        for token, bias in (self.logit_bias or {}).items():
            check_integer("logit_bias", token, 0)
            least = -sys.float_info.max
            if not (hasattr(bias, "__float__") and (least <= bias < LARGEST_BIAS or bias == -math.inf)):
                raise ValueError(f"logit_bias of token {token} is {bias!r}, expected a number below a million, or -inf")
        if self.schema is not None:
            if self.grammar is not None:
                raise ValueError("schema and grammar are given, expected one of them")
            object.__setattr__(self, "schema", _schema(self.schema))
        if self.grammar is not None:
            _text("grammar", self.grammar)
        if not isinstance(self.ignore_eos, bool):
            raise TypeError(f"ignore_eos is {self.ignore_eos!r}, expected True or False")
        if self.overflow not in ("error", "truncate"):
            raise ValueError(f"overflow is {self.overflow!r}, expected 'error' or 'truncate'")
        if self.on_progress is not None and not callable(self.on_progress):
            raise TypeError("on_progress: expected a function of (done, total)")

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as strings, however it was given."""
        return tuple(self.stop)

    def sampling(self, defaults: Mapping[str, float]) -> dict[str, float]:
        """Every option of the sampler: this one's, or `defaults`', or else the library's."""
        chosen: dict[str, float] = {}
        for option in _sampling():
            given = (getattr(self, option.name), defaults.get(option.name))
            value = next((value for value in given if value is not None), option.usual)
            chosen[option.name] = int(value) if option.whole else float(value)
        return chosen


def sampling_defaults(metadata: Mapping[str, Any]) -> dict[str, float]:
    """The options of the sampler that a file recommends (GGUF `general.sampling.*`), checked. Raises FormatError."""
    found = {name: metadata.get(key) for name, key in RECOMMENDED.items()}
    defaults = {name: value for name, value in found.items() if value is not None}
    try:
        Parameters(**defaults)
    except (TypeError, ValueError) as error:
        raise FormatError(f"metadata: general.sampling: {error}") from None
    return defaults


def token_ids(name: str, ids: Any) -> list[int]:
    """A list of token ids out of whatever sequence of integers. Raises TypeError for others."""
    try:
        if isinstance(ids, bytes | str):
            raise TypeError
        return [operator.index(i) for i in ids]
    except TypeError:
        raise TypeError(f"{name} is {reprlib.repr(ids)}, expected token ids") from None


def _schema(schema: Any) -> str:
    """A schema as JSON text. Raises TypeError and ValueError."""
    if isinstance(schema, type) and hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    if isinstance(schema, str):
        try:
            schema = json.loads(_text("schema", schema))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"schema: is no JSON: {error}") from None
    if schema is True:
        schema = {"type": "object"}
    if not isinstance(schema, Mapping):
        what = "a mapping, JSON text of one, a class with model_json_schema, or True"
        raise TypeError(f"schema is {reprlib.repr(schema)}, expected {what}")
    try:
        text = json.dumps(dict(schema), allow_nan=False)
    except TypeError as error:
        raise TypeError(f"schema: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"schema: {error}") from None
    return _text("schema", text)


def _text(name: str, text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{name} is {reprlib.repr(text)}, expected a string")
    if not text.strip():
        raise ValueError(f"{name} is {text!r}, expected one that is not empty")
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{name}: {len(text)} characters, expected at most {MOST_CHARACTERS}")
    return text


def check_integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raises TypeError and ValueError, naming the field."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {value!r}, expected an integer")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} is {value}, expected at least {low}" + (f" and at most {high}" if high else ""))


def _option(option: SamplingOption, value: Any) -> None:
    """Raises TypeError and ValueError, as the engine would."""
    kind, method = ("an integer", "__index__") if option.whole else ("a number", "__float__")
    if isinstance(value, bool) or not hasattr(value, method):
        raise TypeError(f"{option.name} is {value!r}, expected {kind}")
    if not option.least <= value <= option.most or (option.above_least and value == option.least):
        least = f"{'more than ' if option.above_least else ''}{option.least:.10g}"
        raise ValueError(f"{option.name} is {value}, expected {least} to {option.most:.10g}")
