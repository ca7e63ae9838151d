"""What is behind a window: a model, a conversation with it, and the thread on which the engine is called.

The thread of a window must never wait. Whatever waits (to load, to ask, to close a model) runs on a thread of its own,
and what comes of it is shown on the window's. To cancel does not wait, so the window does that itself.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from history import History, Message

import glmlite


class View(Protocol):
    """The window; called on its thread."""

    def write(self, text: str) -> None:
        """Appends to what has been said."""

    def progress(self, part: float) -> None:
        """How much of the work is done that is waited for, 0 to 1."""

    def status(self, text: str, busy: bool) -> None:
        """What goes on. busy: there is something to stop, and nothing can be asked."""


class Conversation:
    """One job at a time: the next one ends the one before. The methods are called on the window's thread.

    post: has a function called on the window's thread, and returns at once; called on any thread.
    models: names or paths; the first of them, or else the one that was used last, is loaded first.
    """

    def __init__(self, view: View, post: Callable[[Callable[[], object]], object], models: list[str]):
        self.history = History.read()
        self.history.models = list(dict.fromkeys([*models, *self.history.models]))
        self._view = view
        self._post = post
        self._thread = ThreadPoolExecutor(1, "glmlite")
        self._cancel = glmlite.Cancel()  # of the newest job
        self._model: glmlite.Model | None = None
        self._name = ""

    def resume(self) -> None:
        """Shows what was said before, and loads the first model."""
        for message in self.history.messages:
            self._view.write(f"> {message['content']}\n" if message["role"] == "user" else f"{message['content']}\n")
        self.load(self.history.models[0])

    def load(self, model: str) -> None:
        self._name = Path(model).name
        self._start("loading", self._load, model)

    def ask(self, question: str) -> None:
        self._view.write(f"> {question}\n")
        self._start("reading", self._ask, question, [*self.history.messages, {"role": "user", "content": question}])

    def stop(self) -> None:
        """Ends the job: an answer with what has been written, a load with nothing."""
        self._cancel.cancel()

    def close(self) -> None:
        """Ends the job and gives the memory back. Waits for that: milliseconds. The view is not called any more."""
        self._cancel.cancel()
        self._cancel = glmlite.Cancel()
        self._thread.submit(self._unload)
        self._thread.shutdown()

    def _start(self, state: str, job: Callable[..., None], *arguments: Any) -> None:
        self._cancel.cancel()
        self._cancel = glmlite.Cancel()
        self._show(state, busy=True)
        self._thread.submit(self._run, job, self._cancel, *arguments)

    def _show(self, state: str, busy: bool) -> None:
        self._view.status(f"{self._name}: {state}", busy)

    def _loaded(self, model: str) -> None:
        self.history.use(model)
        self._show("ready", busy=False)

    def _written(self, text: str) -> None:
        self._view.write(text)
        self._show("writing", busy=True)

    def _answered(self, question: str, answer: glmlite.Completion) -> None:
        self._view.write("\n")
        if answer.text:
            self.history.add(question, answer.text)
        self._show("stopped" if answer.finish_reason == "cancelled" else "ready", busy=False)

    def _failed(self, what: str) -> None:
        self._view.write(f"[{what}]\n")
        self._show("failed", busy=False)

    # ---- on the thread

    def _tell(self, cancel: glmlite.Cancel, show: Callable[..., None], *arguments: Any) -> None:
        # Asked on the window's thread, where jobs start: nothing that is late is taken for the next job's.
        self._post(lambda: show(*arguments) if cancel is self._cancel else None)

    def _run(self, job: Callable[..., None], cancel: glmlite.Cancel, *arguments: Any) -> None:
        try:
            job(cancel, *arguments)
        except Exception as error:  # a file that is no model, no memory, a question too long, a cancelled load
            self._tell(cancel, self._failed, str(error) or type(error).__name__)

    def _load(self, cancel: glmlite.Cancel, model: str) -> None:
        self._unload()  # first: two may not fit into memory
        self._model = glmlite.load(model, progress=partial(self._tell, cancel, self._view.progress), cancel=cancel)
        self._tell(cancel, self._loaded, model)

    def _ask(self, cancel: glmlite.Cancel, question: str, messages: list[Message]) -> None:
        if self._model is None:
            raise RuntimeError("there is no model: choose one")

        def read(done: int, total: int) -> None:
            self._tell(cancel, self._view.progress, done / total)

        answer = self._model.chat_stream(messages, overflow="truncate", on_progress=read, cancel=cancel)
        for piece in answer:
            self._tell(cancel, self._written, piece.text)
        self._tell(cancel, self._answered, question, answer.result())

    def _unload(self) -> None:
        if self._model is not None:
            self._model.close()
            self._model = None
