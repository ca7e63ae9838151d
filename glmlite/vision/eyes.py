"""What a model sees with: a tower, loaded at the first image, and the rows of the images that were seen lately.

    picture = eyes.picture(source, where)  # by whoever asks: what of a prompt it takes, and what it is compared by
    sight = eyes.sight([picture])
    rows = sight.rows()  # by the thread that looks: seconds of work

A tower costs a text model's user nothing until there is an image; then its file is read again, which takes less time
than any image does.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import Cancelled, Closed
from ..files import special
from ..placement import backend

if TYPE_CHECKING:
    from ..models.glm4v import Config
    from .tower import Cost, Tower

__all__ = ["Eyes", "Picture", "Sight"]

KEPT = 256 << 20  # bytes of rows: fifteen pages of A4 at 150 dpi for GLM-OCR

Check = Callable[[], object]


@dataclass(frozen=True, eq=False)
class Picture:
    """An image as it is shown to a tower. pixels: resized. grid: rows and columns of patches. content: the same for
    the same pixels. tokens: of a prompt that it takes; shape: their rows and columns."""

    pixels: np.ndarray
    grid: tuple[int, int]
    content: bytes
    shape: tuple[int, int]

    @property
    def tokens(self) -> int:
        return self.shape[0] * self.shape[1]


class Eyes:
    """Threads share it. One image is looked at at a time.

    path: of the file. key: tells it from others. nbytes: of memory that a loaded tower takes. open(threads, check): the
    tower; it calls `check` every 20 to 50 ms, and what that raises ends it. token: what the text model multiplies a
    token with, in the unit of `cost`.
    """

    def __init__(
        self,
        path: Path,
        key: bytes,
        nbytes: int,
        config: Config,
        cost: Cost,
        token: float,
        open: Callable[[int, Check], Tower],
        threads: int = 0,
    ):
        self.path = path
        self.key = key
        self.nbytes = nbytes
        self.config = config
        self._cost = cost
        self._token = token
        self._open = open
        self._threads = threads
        self._tower: Tower | None = None
        self._using = threading.Lock()  # held while the tower is loaded, looks, or goes
        self._closed = False
        self._rows: OrderedDict[bytes, np.ndarray] = OrderedDict()  # least recently used first
        self._bytes = 0  # of them
        self._guard = threading.Lock()  # of the rows

    # ---- any thread

    def picture(self, source: Any, where: str) -> Picture:
        """An image in any of the forms that `images.open_image` takes; a Picture is one already.

        Raises ValueError, beginning with `where`, for all that is wrong with it, and ModuleNotFoundError where Pillow
        is missing.
        """
        if isinstance(source, Picture):
            return source
        try:
            from .images import open_image
            from .preprocess import resize
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{where}: images need {error.name}: pip install 'glmlite[vision]'", name=error.name
            ) from None
        try:
            _check_file(source)
            resized = resize(open_image(source, where), self.config, where)
        except (OSError, TypeError, ValueError) as error:
            said = str(error)
            if isinstance(error, OSError):
                said = f"{source!r:.200}: {error.strerror or error}, expected the path of an image"
            raise ValueError(said if said.startswith(where) else f"{where}: {said}") from error
        rows, columns = (side // self.config.merge for side in resized.grid)
        return Picture(resized.pixels, resized.grid, resized.content, (rows, columns))

    def items(self, picture: Picture) -> Sequence[int]:
        """What stands for a picture's rows where beginnings are compared."""
        from .tower import items

        return items(picture.content + self.key, picture.tokens)

    def sight(self, pictures: Sequence[Picture]) -> Sight:
        return Sight(self, pictures)

    def tokens(self, picture: Picture) -> float:
        """How many tokens the text model could read in the work that a picture is."""
        return self._cost.of(picture.grid[0] * picture.grid[1]) / self._token

    def seen(self, picture: Picture) -> np.ndarray | None:
        """A picture's rows, if they are kept."""
        with self._guard:
            if (rows := self._rows.get(picture.content)) is not None:
                self._rows.move_to_end(picture.content)
            return rows

    @property
    def held(self) -> int:
        """Bytes of weights that are loaded."""
        tower = self._tower
        return 0 if tower is None else tower.nbytes

    @property
    def threads(self) -> int:
        """That the tower has at most, 0: one for each physical core. May be set at any time."""
        return self._threads

    @threads.setter
    def threads(self, threads: int) -> None:
        self._threads = threads
        if (tower := self._tower) is not None:
            tower.threads = threads

    def progress(self) -> float:
        """How far the image is that is looked at, 0 to 1; 0 where none is."""
        tower = self._tower
        done = 1.0 if tower is None else tower.progress()
        return done if done < 1 else 0.0

    def unload(self) -> None:
        """Gives the memory back, unless somebody looks; the next image loads the tower again."""
        if self._using.acquire(blocking=False):
            try:
                self._drop()
            finally:
                self._using.release()

    def close(self) -> None:
        """Gives the memory back for good, as soon as nobody looks."""
        with self._using:
            self._closed = True
            self._drop()

    # ---- the thread that looks

    def look(self, picture: Picture, check: Check, cancel: Any) -> np.ndarray:
        """(tokens, width) f32. Raises what `open` and `Tower.rows` raise, and Closed."""
        from .preprocess import patches_of

        if (rows := self.seen(picture)) is not None:
            return rows
        with self._using:
            if self._closed:
                raise Closed("the model is closed")
            if self._tower is None:
                threads = self._threads
                tower = self._open(threads, check)
                if threads != self._threads:  # set meanwhile
                    tower.threads = self._threads
                self._tower = tower
            rows = self._tower.rows(patches_of(picture.pixels, self.config), picture.grid, cancel=cancel)
        rows.setflags(write=False)
        self._keep(picture, rows)
        return rows

    def _keep(self, picture: Picture, rows: np.ndarray) -> None:
        with self._guard:
            self._rows[picture.content] = rows
            self._bytes += rows.nbytes
            while self._bytes > KEPT:
                self._bytes -= self._rows.popitem(last=False)[1].nbytes

    def _drop(self) -> None:
        with self._guard:
            self._rows.clear()
            self._bytes = 0
        tower, self._tower = self._tower, None
        if tower is not None:
            tower.close()


class Sight:
    """The pictures of one request on their way through the tower.

    tokens: of the prompt; work: how many tokens could be read in the time that those take which are not seen yet.
    seconds: that it took, once done.
    """

    def __init__(self, eyes: Eyes, pictures: Sequence[Picture]):
        self.tokens = sum(picture.tokens for picture in pictures)
        self.seconds = 0.0
        self._eyes = eyes
        self._pictures = list(pictures)
        self._parts = [0.0 if eyes.seen(picture) is not None else eyes.tokens(picture) for picture in pictures]
        self.work = round(sum(self._parts))
        self._done = 0.0
        self._doing = 0.0
        self._flag = backend("cpu").Cancel()

    def rows(self) -> np.ndarray:
        """(tokens, width) f32, the pictures' rows one after another. Raises as `Eyes.look`."""
        began = time.perf_counter()
        rows = []
        try:
            for picture, part in zip(self._pictures, self._parts):
                self._check()
                self._doing = part
                rows.append(self._eyes.look(picture, self._check, self._flag))
                self._doing, self._done = 0.0, self._done + part
        finally:
            self._doing = 0.0
            self.seconds += time.perf_counter() - began
        return np.concatenate(rows)

    def progress(self) -> int:
        """How much of `work` is done. Any thread may ask."""
        doing = self._doing
        return min(round(self._done + doing * (self._eyes.progress() if doing else 0.0)), self.work)

    def cancel(self) -> None:
        """Ends `rows`, which raises Cancelled. From any thread, at any time; takes no lock."""
        self._flag.set()

    def _check(self) -> None:
        if self._flag.is_set:
            raise Cancelled("images: cancelled")


def _check_file(source: Any) -> None:
    path = isinstance(source, os.PathLike) or (isinstance(source, str) and source[:5].lower() != "data:")
    if path and (kind := special(source)) is not None:
        raise ValueError(f"{source!r:.200} is {kind}, expected the path of an image")
