r"""GLM-4.5 and 4.6: a thought between `<think>` and `</think>`, calls of tools between marks.

    <tool_call>name\n<arg_key>key</arg_key>\n<arg_value>value</arg_value>\n</tool_call>

Files have templates; there is no format for one without.
"""

from __future__ import annotations

from ...families import ENDS
from ..readers import Marked
from .dialect import Dialect, File


class GLM45(Dialect):
    """See the module."""

    name = "glm45"
    reads = Marked
    ends = tuple(ENDS.values())

    @classmethod
    def recognise(cls, file: File) -> bool:
        """By a template that writes the marks of arguments, or by a vocabulary that has them beside any template."""
        return bool(file.template) and ("<arg_key>" in file.template or file.has("<arg_key>"))
