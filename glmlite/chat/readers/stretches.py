"""Text without the white space around it."""

from __future__ import annotations


class Stretches:
    """Text in stretches, which thoughts and calls stand between: the white space around each is none of it, and a line
    end joins it to the one before.

    trim: white space at the very beginning is none of the text either. holds: the white space at the end of what was
    written waits, because the stretch may end there.
    """

    def __init__(self, *, trim: bool = True, holds: bool = True):
        self._begun = not trim  # white space is text, unless it ends the stretch
        self._holds = holds
        self._waiting: list[str] = []
        self._before = ""  # what joins the next stretch to the last
        self.visible = False
        """Whether the stretch has more than white space."""

    def write(self, text: str) -> str:
        """The next part of the stretch; what of it is certain."""
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        body = text if self.visible and not self._holds else text.rstrip()
        if not body:
            if text:
                self._waiting.append(text)
            return ""
        out = "".join([self._before, *self._waiting, body])
        self._waiting = [text[len(body) :]] if len(body) < len(text) else []
        self._before, self.visible = "", True
        return out

    def end(self) -> None:
        """Ends the stretch."""
        self._waiting.clear()
        if self.visible:
            self._before = "\n"
        self._begun = self.visible = False

    def rest(self) -> str:
        """What waits, where nothing ends the stretch but the answer."""
        out = "".join(self._waiting)
        self._waiting.clear()
        return out
