"""Reading what a model writes: text with its marks becomes thoughts, text and calls of tools.

`Reader` is for models without tools, `Marked` for those that write calls between marks (GLM-4.5 and later, and others'
JSON between the same marks), `NamedJson` and `NamedPython` for GLM-4 and ChatGLM3, which write a tool's name on a
message's first line.

Whatever the text is, reading it raises nothing: what is no call is text. The deltas, joined, do not depend on how the
text is cut, and the work is proportional to its length.
"""

from .deltas import CallArguments, CallBegins, CallEnds, Delta, Text, Thought
from .marked import Marked
from .reader import END_THINK, THINK, Reader
from .unmarked import ASSISTANT, NamedJson, NamedPython

__all__ = [
    "ASSISTANT",
    "END_THINK",
    "THINK",
    "CallArguments",
    "CallBegins",
    "CallEnds",
    "Delta",
    "Marked",
    "NamedJson",
    "NamedPython",
    "Reader",
    "Text",
    "Thought",
]
