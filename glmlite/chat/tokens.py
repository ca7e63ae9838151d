"""What chat formats and templates ask of a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

IMAGE = -1  # stands in a prompt for an image, as in `glmlite.models.layout`
BEGIN_IMAGE, END_IMAGE = "<|begin_of_image|>", "<|end_of_image|>"


class Prompt(list[int]):
    """Token ids. images: what stands for each of those that are `IMAGE`, see `glmlite.chat.messages.check`."""

    def __init__(self, ids: Sequence[int] = (), images: Sequence[Any] = ()):
        super().__init__(ids)
        self.images = list(images)


class Tokenizer(Protocol):
    """`glmlite.tokenizer.Tokenizer`, as far as it is needed here."""

    @property
    def prefix_ids(self) -> Sequence[int]: ...
    def begin(self, ids: Sequence[int]) -> list[int]: ...
    def encode(self, text: str, *, special: bool = ..., prefix: bool = ...) -> list[int]: ...
    def id_of(self, text: str) -> int | None: ...
    def is_special(self, id: int) -> bool: ...
    def piece(self, id: int) -> bytes: ...
