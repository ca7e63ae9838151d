"""Pages on their way: one is rendered and cut while the blocks of others are read and written, several at once."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from operator import index
from typing import TYPE_CHECKING, Any

from ..cancel import Cancel
from ..errors import Busy, Cancelled, Closed
from ..parameters import check_integer
from . import asking
from .documents import Document, Source, sources_of
from .page import Doing, Page, Part
from .tasks import TASKS, Loop, fields_prompt, fields_schema, without_fence

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..generate import Generation
    from ..vision.pages import Pages

__all__ = ["DPI", "FAST_DPI", "MAX_TOKENS", "read"]

DPI = 150
FAST_DPI = 90  # A4 is 1024 pixels high
MAX_TOKENS = 8192
LEAST_DPI, MOST_DPI = 20, 1200
AHEAD = 2  # pages that are rendered before their turn
TICK = 0.1  # seconds between two looks at what is being done

PROBLEMS = (ValueError, TypeError, OSError, RuntimeError, MemoryError)  # a page's own; what else is raised ends all


def read(
    model: Any,
    sources: Any,
    *,
    pages: str | Iterable[int] | None = None,
    dpi: float = DPI,
    task: str = "text",
    fields: Mapping[str, Any] | None = None,
    cut: bool | None = None,
    text_layer: bool = False,
    max_tokens: int = MAX_TOKENS,
    skip: Callable[[int, int], bool] | None = None,
    on_progress: Callable[[Doing], object] | None = None,
    cancel: Cancel | None = None,
) -> Iterator[Page]:
    """See `glmlite.Model.ocr`. skip: tells of (document, number) whether that page is to be left out."""
    if task not in TASKS:
        raise ValueError(f"task is {task!r}, expected {', '.join(TASKS)}")
    if fields is not None and task != "text":
        raise ValueError(f"task {task!r} and fields are given, expected one of them")
    other = "fields" if fields is not None else f"task {task!r}" if task != "text" else None
    for name, given in (("cut", cut), ("text_layer", text_layer)):
        if other is not None and given:
            raise ValueError(f"{other} and {name} are given, expected one of them: {name} is for text")
    if pages is not None and not isinstance(pages, str):
        try:
            pages = [index(number) for number in pages]
        except TypeError:
            raise TypeError(f"pages: {pages!r:.80}, expected numbers from 1, or a text such as '3-7'") from None
    check_integer("max_tokens", max_tokens, 1)
    if not LEAST_DPI <= dpi <= MOST_DPI:
        raise ValueError(f"dpi is {dpi}, expected {LEAST_DPI} to {MOST_DPI}")
    if not model.images:
        raise ValueError(f"{model.name}: sees no images, expected a vision model, as GLM-OCR: {model._blind}")
    try:
        import PIL  # noqa: F401
        import pypdfium2  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"reading pages needs {error.name}: pip install 'glmlite[vision]'", name=error.name
        ) from None
    parameters: dict[str, Any] = {"max_tokens": max_tokens, "cancel": cancel}
    if fields is not None:
        parameters["schema"] = fields_schema(fields)
        kind, prompts = "fields", {"fields": fields_prompt(fields)}
    else:
        kind, prompts = task, TASKS
    cutting = kind == "text" if cut is None else cut
    from ..vision.pages import Pages

    rendering = Rendering(sources_of(sources), pages, dpi, kind, cutting, text_layer, skip, Pages())
    return Reading(model, rendering, prompts, parameters, on_progress, cancel).run()


# ---- pages before they are read, on a thread of their own


@dataclass
class Crop:
    """A block of a page, waiting for the model. continues: see `glmlite.vision.cutting.Block`."""

    image: Image
    part: Part
    continues: bool = False


@dataclass
class Sheet:
    """A page, rendered and cut. done, total: pages of its document before it, and in all."""

    page: Page
    crops: list[Crop] = field(default_factory=list)
    done: int = 0
    total: int = 1


@dataclass
class Rendering:
    """What makes sheets of documents, one at a time."""

    sources: list[Source]
    pages: str | Iterable[int] | None
    dpi: float
    kind: str
    cutting: bool
    text_layer: bool
    skip: Callable[[int, int], bool] | None
    files: Pages

    def sheets(self) -> Iterator[Sheet]:
        for number, source in enumerate(self.sources):
            try:
                document = source.open(self.pages, self.files)
            except PROBLEMS as error:
                yield Sheet(Page(source.name, number, 0, 0, error=_said(error, source.name)))
                continue
            with document:
                for done, at in enumerate(document.numbers):
                    if self.skip is None or not self.skip(number, at):
                        page = Page(source.name, number, at, document.pages)
                        yield self._sheet(document, Sheet(page, done=done, total=len(document.numbers)))

    def _sheet(self, document: Document, sheet: Sheet) -> Sheet:
        page = sheet.page
        began = time.perf_counter()
        try:
            page.characters = document.characters(page.number)
            if self.text_layer and page.characters:
                page.text, page.layer = document.text(page.number), True
                page.seconds.render = time.perf_counter() - began
                return sheet
            image = document.image(page.number, self.dpi)
            page.seconds.render = time.perf_counter() - began
            sheet.crops = self._crops(image, page)
        except PROBLEMS as error:
            page.error = _said(error, page.source, page.number)
        return sheet

    def _crops(self, image: Image, page: Page) -> list[Crop]:
        if not self.cutting:
            return [Crop(image, Part("", self.kind, (0, 0, *image.size)))]
        from ..vision.cutting import cut

        began = time.perf_counter()
        found = cut(image)
        page.turned = found.turned
        crops = [
            Crop(found.image.crop(block.box), Part("", block.kind, block.box), block.continues)
            for block in found.blocks
        ]
        page.seconds.cut = time.perf_counter() - began
        return crops


# ---- pages while they are read


class Answer:
    """A block that the model reads. reason: why its answer ended; None while it is written."""

    def __init__(self, crop: Crop, answering: Generation):
        self.crop = crop
        self.reason: str | None = None
        self._answering = answering
        self._loop = Loop()
        self._text = ""
        self._cut: int | None = None

    @property
    def read(self) -> float:
        """How much of the prompt is read, 0 to 1."""
        if self.reason is not None or self.crop.part.tokens:
            return 1.0
        progress = self._answering.progress
        return progress.done / progress.total if progress.total else 0.0

    def take(self) -> None:
        """What there is, without waiting. Raises what the request failed with."""
        while self.reason is None and (piece := self._answering.take()) is not None:
            self._text += piece.text
            self.crop.part.tokens += len(piece.tokens)
            self._cut = self._loop.feed(piece.tokens, piece.text)
            if self._cut is not None and piece.finish_reason != "stop":
                self.close()
                self._text, self.reason = self._text[: self._cut], "loop"
            elif piece.finish_reason is not None:
                self.reason = piece.finish_reason

    def finish(self, page: Page) -> None:
        self.crop.part.text = without_fence(self._text)
        stats = self._answering.stats
        page.seconds.read += stats.prompt_seconds + stats.image_seconds
        page.seconds.write += stats.generation_seconds

    def close(self) -> None:
        self._answering.on_event(None)
        self._answering.cancel()
        self._answering.close()


class Work:
    """A page that is being read."""

    def __init__(self, sheet: Sheet):
        self.sheet = sheet
        self.page = sheet.page
        self.waiting = deque(sheet.crops)
        self.answers: list[Answer] = []

    @property
    def running(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.reason is None]

    @property
    def finished(self) -> bool:
        return not self.waiting and not self.running

    def take(self) -> None:
        for answer in self.running:
            try:
                answer.take()
            except Cancelled:
                answer.reason = "cancelled"
            except Closed:
                raise
            except PROBLEMS as error:
                self.fail(error)
                return
            if answer.reason is not None:
                answer.finish(self.page)

    def fail(self, error: BaseException) -> None:
        """The other blocks are not worth their time: a page with a hole in it is not taken for one without."""
        self.page.error = _said(error, self.page.source, self.page.number)
        self.waiting.clear()
        for answer in self.running:
            answer.close()
            answer.reason = "failed"

    def result(self) -> Page:
        page = self.page
        if page.error is not None or page.layer:
            return page
        parts = [crop.part for crop in self.sheet.crops]
        for number, answer in enumerate(self.answers, 1):
            of = f"block {number} of {len(parts)}: " if len(parts) > 1 else ""
            if answer.reason == "loop":
                page.notes.append(f"{of}began to repeat itself and was stopped")
            elif answer.reason == "length":
                page.notes.append(f"{of}was cut off after {answer.crop.part.tokens} tokens")
        page.blocks = parts
        page.text = ""
        for crop in self.sheet.crops:
            gap = "\n" if crop.continues else "\n\n"
            page.text += (gap if page.text and crop.part.text else "") + crop.part.text
        if len(parts) == 1 and parts[0].kind == "fields":
            try:
                page.fields = json.loads(page.text)
            except ValueError:
                page.error = f"{page.source}, page {page.number}: the answer was cut off, expected whole JSON"
        return page

    def doing(self) -> Doing:
        crops = len(self.sheet.crops)
        read = sum(answer.read for answer in self.answers) / crops if crops else 1.0
        page = self.page
        doing = "reading" if read < 1 else "writing"
        return Doing(page.source, page.number, page.pages, doing, read, self.sheet.done, self.sheet.total)


class Reading:
    """Everything of one call of `read`. Requests are started and taken by the thread that asks for pages."""

    def __init__(
        self,
        model: Any,
        rendering: Rendering,
        prompts: Mapping[str, str],
        parameters: dict[str, Any],
        on_progress: Callable[[Doing], object] | None,
        cancel: Cancel | None,
    ):
        self._model = model
        self._rendering = rendering
        self._prompts = prompts
        self._parameters = parameters
        self._on_progress = on_progress
        self._cancel = cancel
        self._wake = threading.Event()
        self._work: deque[Work] = deque()
        self._coming: deque[Future[Sheet | None]] = deque()
        self._most = model.parallel + 1  # one is prepared while the others run

    def run(self) -> Iterator[Page]:
        sheets = self._rendering.sheets()
        key = None if self._cancel is None else self._cancel.add(self._wake.set)
        pool = ThreadPoolExecutor(1, "glmlite pages")
        try:
            ended = False
            while True:
                self._wake.clear()
                while not ended and len(self._coming) < AHEAD:
                    future = pool.submit(next, sheets, None)
                    future.add_done_callback(lambda _: self._wake.set())
                    self._coming.append(future)
                if not self._idle():
                    sheet = self._coming.popleft().result()
                    ended = ended or sheet is None
                    if sheet is not None:
                        self._work.append(Work(sheet))
                self._start()
                for work in self._work:
                    work.take()
                if self._cancel is not None and self._cancel.cancelled:
                    return
                if self._work and self._work[0].finished:
                    yield self._work.popleft().result()
                    continue
                if ended and not self._work:
                    return
                if self._idle():
                    self._wake.wait(TICK)
                    self._report()
        finally:
            for work in self._work:
                for answer in work.running:
                    answer.close()
            self._rendering.files.stop()  # a page may take long
            pool.shutdown(wait=True, cancel_futures=True)
            sheets.close()  # type: ignore[attr-defined]
            if self._cancel is not None and key is not None:
                self._cancel.discard(key)

    def _work_waits(self) -> bool:
        return any(work.waiting for work in self._work)

    def _idle(self) -> bool:
        """Nothing can be done at once."""
        return not (self._coming and self._coming[0].done() and not self._work_waits())

    def _start(self) -> None:
        running = sum(len(work.running) for work in self._work)
        for work in self._work:
            while work.waiting and running < self._most:
                crop = work.waiting[0]
                began = time.perf_counter()
                try:
                    answering = asking.ask(self._model, crop.image, self._prompts[crop.part.kind], **self._parameters)
                except Busy:  # others use the model, too
                    return
                except (Cancelled, Closed):
                    raise
                except PROBLEMS as error:
                    work.fail(error)
                    break
                work.page.seconds.prepare += time.perf_counter() - began
                work.waiting.popleft()
                work.answers.append(Answer(crop, answering))
                answering.on_event(self._wake.set)
                running += 1

    def _report(self) -> None:
        if self._on_progress is not None and self._work:
            self._on_progress(self._work[0].doing())


def _said(error: BaseException, source: str, number: int = 0) -> str:
    """An error in one line that names the page."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    where = f"{source}, page {number}" if number else source
    return text if text.startswith(source) else f"{where}: {text}"
