"""Streamers: what `generate` tells of its tokens while it writes them."""

from __future__ import annotations

import queue
from typing import Any

from .arguments import Refusal, check
from .arrays import id_list
from .tokenizer import HFTokenizer


class TextStreamer:
    """Prints an answer while it is written. A subclass may do something else with it in `on_finalized_text`.

    skip_prompt: only the answer. skip_special_tokens: without special tokens.
    """

    def __init__(
        self, tokenizer: HFTokenizer, skip_prompt: bool = False, *, skip_special_tokens: bool = False, **options: Any
    ):
        spaces = {"clean_up_tokenization_spaces": Refusal("what the model writes is streamed as it is")}
        check(type(self).__name__, options, ignored=("spaces_between_special_tokens",), refused=spaces)
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self._skip_special = skip_special_tokens
        self._restart()

    def _restart(self) -> None:
        self._decoder = self.tokenizer.tokenizer.stream(skip_special=self._skip_special)
        self._prompt_is_next = True

    def put(self, value: Any) -> None:
        """Token ids, the prompt first. Raises ValueError for several rows."""
        if len(getattr(value, "shape", ())) > 1:
            if len(value) > 1:
                raise ValueError(f"{type(self).__name__}: {len(value)} rows, expected one")
            value = value[0]
        is_prompt, self._prompt_is_next = self._prompt_is_next, False
        if not (is_prompt and self.skip_prompt):
            self.on_finalized_text(self._decoder.push(id_list(value)))

    def end(self) -> None:
        """The answer is whole; the next may come."""
        rest = self._decoder.finish()
        self._restart()
        self.on_finalized_text(rest, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        print(text, end="\n" if stream_end else "", flush=True)


class TextIteratorStreamer(TextStreamer):
    """An answer as an iterator of its parts, while `generate` runs in another thread.

    timeout: seconds that one part may take; then queue.Empty is raised.
    """

    def __init__(self, tokenizer: HFTokenizer, skip_prompt: bool = False, timeout: float | None = None, **options: Any):
        super().__init__(tokenizer, skip_prompt, **options)
        self.timeout = timeout
        self._parts: queue.Queue[str | None] = queue.Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hands a part to whoever iterates."""
        self._parts.put(text)
        if stream_end:
            self._parts.put(None)

    def __iter__(self) -> TextIteratorStreamer:
        return self

    def __next__(self) -> str:
        part = self._parts.get(timeout=self.timeout)
        if part is None:
            raise StopIteration
        return part
