"""The one place that speaks to a model: an image and a prompt become an answer that is being written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Answering", "ask"]

REPETITION_PENALTY = 1.1


class Answering(Protocol):
    """What is used of `glmlite.Generation`."""

    @property
    def finished(self) -> bool: ...
    @property
    def progress(self) -> Any: ...
    @property
    def stats(self) -> Any: ...
    def take(self) -> Any: ...
    def on_event(self, wake: Any) -> None: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...


def ask(model: Any, image: Image, prompt: str, **parameters: Any) -> Answering:
    """The image first, and no line end between: so the models were trained. Takes the likeliest tokens."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
    answer: Answering = model.chat_stream(
        [{"role": "user", "content": content}],
        temperature=0.0,
        repetition_penalty=REPETITION_PENALTY,
        **parameters,
    )
    return answer
