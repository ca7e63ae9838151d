"""The ways in which models are spoken to and speak: one file for each.

`of` tells which is a file's. What the file says of itself counts first (`glmlite.chat_format`), then the marks in its
chat template, then its vocabulary and what is known of its architecture (glmlite.families).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import FormatError
from ..tokens import Tokenizer
from .chatglm import ChatGLM
from .chatglm2 import ChatGLM2
from .chatglm3 import ChatGLM3
from .dialect import Dialect, File
from .glm4 import GLM4, GLM40414
from .glm45 import GLM45
from .glm47 import GLM47
from .glm_edge import GLMEdge
from .other import JsonCalls, Other
from .z1 import Z1

__all__ = ["FORMATS", "Dialect", "of"]

# In the order in which they are asked: each may rely on what those before it have refused.
_DIALECTS: tuple[type[Dialect], ...] = (
    GLM47,
    GLM45,
    JsonCalls,
    ChatGLM,
    ChatGLM2,
    ChatGLM3,
    GLMEdge,
    Z1,
    GLM4,
    GLM40414,
    Other,
)
FORMATS: Mapping[str, type[Dialect]] = {
    dialect.name: dialect for dialect in (ChatGLM, ChatGLM2, ChatGLM3, GLM4, GLMEdge, GLM40414)
}
"""The dialects that write prompts themselves, by the name that `glmlite.chat_format` has for each."""


def of(metadata: Mapping[str, Any], tokenizer: Tokenizer, architecture: str) -> Dialect | None:
    """The dialect of a file; None: not a chat model, as far as the file says.

    Raises FormatError for a `glmlite.chat_format` that is not known.
    """
    file = File(metadata, tokenizer, architecture)
    name = metadata.get("glmlite.chat_format")
    if name is None:
        return next((dialect(file) for dialect in _DIALECTS if dialect.recognise(file)), None)
    if name not in FORMATS:
        raise FormatError(f"glmlite.chat_format: {name!r} is not known; known: {', '.join(FORMATS)}")
    return FORMATS[name](file)
