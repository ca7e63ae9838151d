"""The window of chat_qt.py, smaller, with Tk, which comes with Python.

python chat_tk.py [MODEL.gguf ...]    Escape stops, Control-q quits
"""

from __future__ import annotations

import queue
import sys
import tkinter as tk
from collections.abc import Callable
from tkinter import filedialog, ttk

from conversation import Conversation

POLL = 20  # milliseconds between two looks at what was posted
OPEN = "open …"


class Window(tk.Tk):
    def __init__(self, models: list[str]) -> None:
        super().__init__()
        self.posted: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self.conversation = Conversation(self, self.posted.put, models)  # no thread but this one may call Tk
        models = self.conversation.history.models

        self.picker = ttk.Combobox(self, values=[*models, OPEN], state="readonly")
        self.picker.set(models[0])
        self.transcript = tk.Text(self, wrap="word", state="disabled")
        self.bar = ttk.Progressbar(self, maximum=1.0)
        self.entry = ttk.Entry(self)
        self.stopper = ttk.Button(self, text="Stop", command=self.conversation.stop)
        self.picker.pack(fill="x")
        self.transcript.pack(fill="both", expand=True)
        self.bar.pack(fill="x")
        self.stopper.pack(side="right")
        self.entry.pack(side="left", fill="x", expand=True)

        self.picker.bind("<<ComboboxSelected>>", lambda _: self.pick())
        self.entry.bind("<Return>", lambda _: self.ask())
        self.bind("<Escape>", lambda _: self.conversation.stop())
        self.bind("<Control-q>", lambda _: self.close())
        self.protocol("WM_DELETE_WINDOW", self.close)
        self.conversation.resume()
        self.poll()

    def poll(self) -> None:
        while not self.posted.empty():
            self.posted.get()()
        self.after(POLL, self.poll)

    # ---- what you do

    def pick(self) -> None:
        model, models = self.picker.get(), self.conversation.history.models
        if model == OPEN:
            model = filedialog.askopenfilename(filetypes=[("Models", "*.gguf")]) or models[0]
            self.picker["values"] = [*dict.fromkeys([model, *models]), OPEN]
            self.picker.set(model)
        self.conversation.load(model)

    def ask(self) -> None:
        if question := self.entry.get().strip():
            self.entry.delete(0, "end")
            self.conversation.ask(question)

    def close(self) -> None:
        self.conversation.close()
        self.destroy()

    # ---- what you see

    def write(self, text: str) -> None:
        self.transcript["state"] = "normal"
        self.transcript.insert("end", text)
        self.transcript["state"] = "disabled"
        self.transcript.see("end")

    def progress(self, part: float) -> None:
        self.bar["value"] = part

    def status(self, text: str, busy: bool) -> None:
        self.title(text)
        self.entry["state"], self.stopper["state"] = ("disabled", "normal") if busy else ("normal", "disabled")
        if not busy:
            self.bar["value"] = 0
            self.entry.focus()


def main() -> None:
    Window(sys.argv[1:]).mainloop()


if __name__ == "__main__":
    main()
