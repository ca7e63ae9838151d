"""A chat window with Qt: models to choose from, answers as they are written, a stop, a conversation that is kept.

python chat_qt.py [MODEL.gguf ...]    Ctrl+O opens a model, Esc stops, Ctrl+N begins anew, Ctrl+Q quits
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from conversation import Conversation
from PySide6.QtCore import Signal, Slot
from PySide6.QtGui import QCloseEvent, QKeySequence, QShortcut, QTextCursor
from PySide6.QtWidgets import (
    QApplication,
    QComboBox,
    QFileDialog,
    QGridLayout,
    QLineEdit,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QWidget,
)

STEPS = 1000  # of the progress bar


class Window(QWidget):
    post = Signal(object)  # a function; any thread emits it, and Qt delivers it on this window's

    def __init__(self, models: list[str]) -> None:
        super().__init__()
        self.post.connect(self.call)
        self.conversation = Conversation(self, self.post.emit, models)

        self.picker = QComboBox()
        self.opener = QPushButton("Open …")
        self.cleaner = QPushButton("New")
        self.transcript = QPlainTextEdit(readOnly=True)
        self.bar = QProgressBar(maximum=STEPS, textVisible=False)
        self.entry = QLineEdit(placeholderText="Ask something")
        self.stopper = QPushButton("Stop")
        grid = QGridLayout(self)
        grid.addWidget(self.picker, 0, 0)
        grid.addWidget(self.opener, 0, 1)
        grid.addWidget(self.cleaner, 0, 2)
        grid.addWidget(self.transcript, 1, 0, 1, 3)
        grid.addWidget(self.bar, 2, 0, 1, 3)
        grid.addWidget(self.entry, 3, 0, 1, 2)
        grid.addWidget(self.stopper, 3, 2)
        self.resize(640, 480)

        self.picker.activated.connect(self.pick)
        self.entry.returnPressed.connect(self.ask)
        self.opener.clicked.connect(self.open)
        self.cleaner.clicked.connect(self.clear)
        self.stopper.clicked.connect(self.conversation.stop)
        QShortcut(QKeySequence.StandardKey.Open, self, self.opener.click)
        QShortcut(QKeySequence.StandardKey.New, self, self.cleaner.click)
        QShortcut(QKeySequence.StandardKey.Cancel, self, self.stopper.click)
        QShortcut("Ctrl+Q", self, self.close)

        for model in self.conversation.history.models:
            self.picker.addItem(Path(model).name, model)
        self.conversation.resume()

    # ---- what you do

    def open(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open a model", "", "Models (*.gguf)")
        if path:
            self.picker.insertItem(0, Path(path).name, path)
            self.picker.setCurrentIndex(0)
            self.conversation.load(path)

    def pick(self, index: int) -> None:
        self.conversation.load(self.picker.itemData(index))

    def ask(self) -> None:
        if question := self.entry.text().strip():
            self.entry.clear()
            self.conversation.ask(question)

    def clear(self) -> None:
        self.conversation.history.clear()
        self.transcript.clear()

    def closeEvent(self, event: QCloseEvent) -> None:
        self.conversation.close()
        super().closeEvent(event)

    @Slot(object)
    def call(self, function: Callable[[], object]) -> None:
        function()

    # ---- what you see

    def write(self, text: str) -> None:
        self.transcript.moveCursor(QTextCursor.MoveOperation.End)
        self.transcript.insertPlainText(text)
        self.transcript.ensureCursorVisible()

    def progress(self, part: float) -> None:
        self.bar.setValue(round(STEPS * part))

    def status(self, text: str, busy: bool) -> None:
        self.setWindowTitle(text)
        self.stopper.setEnabled(busy)
        self.cleaner.setDisabled(busy)
        self.entry.setDisabled(busy)
        if not busy:
            self.bar.reset()
            self.entry.setFocus()


def main() -> int:
    application = QApplication(sys.argv)
    window = Window(sys.argv[1:])
    window.show()
    return application.exec()


if __name__ == "__main__":
    sys.exit(main())
