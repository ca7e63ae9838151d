"""GLM-4.7, 4.7-Flash and 5: as GLM-4.5, without line ends between the marks, and prompts end with `<think>` or
`</think>`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from .dialect import File
from .glm45 import GLM45


class GLM47(GLM45):
    """See the module."""

    name = "glm47"
    line = ""
    efforts: ClassVar[Mapping[str, str]] = {"minimal": "low", "medium": "high", "xhigh": "max"}

    @classmethod
    def recognise(cls, file: File) -> bool:
        """By a template that writes an argument's value right behind its key."""
        return "</arg_key><arg_value>" in file.template
