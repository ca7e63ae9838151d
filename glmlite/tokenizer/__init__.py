"""Text to token ids and back, from a GGUF file's own metadata."""

from .stream import StreamDecoder
from .tokenizer import Tokenizer

__all__ = ["StreamDecoder", "Tokenizer"]
