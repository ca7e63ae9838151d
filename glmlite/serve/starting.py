"""From a request to the answers of a model that are being written, whatever the API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Sequence
from functools import partial
from typing import Any, Protocol

from ..cancel import Cancel
from ..chat import template
from ..generate import Completion, Piece
from ..model import Model
from ..scheduler import Stats
from .asked import Asked, Message
from .errors import Refused

__all__ = ["Running", "conversation", "prompts", "switches"]


class Running(Protocol):
    """What `Generation` is."""

    @property
    def stats(self) -> Stats: ...
    @property
    def progress(self) -> tuple[int, int, int]: ...
    def __aiter__(self) -> AsyncIterator[Piece]: ...
    def __await__(self) -> Generator[Any, None, Completion]: ...
    def on_end(self, wake: Callable[[], object]) -> None: ...
    def result(self) -> Completion: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...


def conversation(
    model: Model, asked: Asked, messages: list[Message], cancel: Cancel, *, keep_thinking: bool = False
) -> list[Running]:
    """The answers to messages as `Model.chat` takes them, of a request that has some. Raises as `Model.chat`."""
    start = partial(
        model.chat_stream,
        messages,
        tools=asked.tools or None,
        tool_choice=asked.tool_choice,
        parallel_tool_calls=asked.parallel_tool_calls,
        thinking_budget=asked.thinking_budget,
        reasoning=asked.reasoning,
        **switches(model, asked, keep_thinking=keep_thinking),
    )
    return _begun([start], asked, cancel)


def prompts(model: Model, asked: Asked, cancel: Cancel) -> list[Running]:
    """The answers to the prompts of a request. Raises Refused, and as `Model.stream` and `Model.infill_stream`."""
    if asked.suffix is not None:
        return _begun([partial(_fill, model, text, asked.suffix) for text in asked.prompts], asked, cancel)
    return _begun([partial(model.stream, prompt) for prompt in asked.prompts], asked, cancel)


def switches(model: Model, asked: Asked, *, keep_thinking: bool = False) -> dict[str, Any]:
    """What is asked of thinking, and variables for the model's template, of those that it reads."""
    variables = dict(asked.template)
    if keep_thinking:
        variables.setdefault("clear_thinking", False)
    text = template.of(model.metadata) if model.chat_format == "template" else None
    known = template.read_by(text) if text is not None else frozenset()
    variables = {name: value for name, value in variables.items() if name in known}
    return {"thinking": asked.thinking, "effort": asked.effort, "template": variables}


def _begun(starts: Sequence[Callable[..., Any]], asked: Asked, cancel: Cancel) -> list[Running]:
    """As many of each as choices are asked for."""
    begun: list[Running] = []
    try:
        for start in starts:
            for i in range(asked.choices):
                options = dict(asked.options)
                if "seed" in options:
                    options["seed"] = (options["seed"] + i) % 2**64
                begun.append(start(cancel=cancel, **options))
    except BaseException:
        for generation in begun:
            generation.close()
        raise
    return begun


def _fill(model: Model, prompt: str | list[int], suffix: str, *, cancel: Cancel, **options: Any) -> Running:
    if not model.fills_blanks:
        raise Refused(400, f"suffix: {model.name} does not fill gaps; leave it out", param="suffix")
    before = prompt if isinstance(prompt, str) else model.detokenize(prompt)
    return model.infill_stream(before, suffix, cancel=cancel, **options)
