"""Models of other makers: what their template writes."""

from __future__ import annotations

from ..readers import Marked
from .dialect import Dialect, File


class Other(Dialect):
    """See the module."""

    name = "other"
    reads = Marked

    @classmethod
    def recognise(cls, file: File) -> bool:
        """Any file with a template."""
        return bool(file.template)
