"""The one place that speaks to a model: an image and a prompt become an answer that is being written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..generate import Generation

__all__ = ["ask"]

REPETITION_PENALTY = 1.1


def ask(model: Any, image: Image, prompt: str, **parameters: Any) -> Generation:
    """The image first, and no line end between: so the models were trained. Takes the likeliest tokens."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
    answer: Generation = model.chat_stream(
        [{"role": "user", "content": content}],
        temperature=0.0,
        repetition_penalty=REPETITION_PENALTY,
        **parameters,
    )
    return answer
