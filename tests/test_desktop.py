"""examples/desktop: the conversation behind the windows, and the windows, closed while they are busy."""

import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import screen
import tiny

import glmlite
from glmlite import _native

DESKTOP = Path(__file__).parent.parent / "examples" / "desktop"
if not DESKTOP.is_dir():
    pytest.skip("not a checkout: no examples/desktop", allow_module_level=True)
pytest.importorskip("platformdirs", reason="the examples need it: pip install '.[frozen-test]'")
sys.path.append(str(DESKTOP))

import conversation  # noqa: E402
import history  # noqa: E402

WAIT = 60  # seconds for what should take one


def write_endless(path):
    """A model whose answers go on to the end of the context: the likeliest of random tokens never is one that ends."""
    # A thousand tokens a second, and 4,096 of them.
    model = tiny.model("chatglm", dim=512, layers=6, ffn=1024, context=4096, metadata={"general.sampling.temp": 0.0})
    model.tensors["output.weight"][256:] = 0
    return tiny.write(path, model)


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    return str(write_endless(tmp_path_factory.mktemp("模型 of the test") / "endless 模.gguf"))


class Window:
    """A view that is looked at. The test's thread is the window's."""

    def __init__(self, *models):
        self.text = ""
        self.seen = []
        self.posted = queue.SimpleQueue()
        self.conversation = conversation.Conversation(self, self.posted.put, list(models))

    def write(self, text):
        self.text += text

    def progress(self, part):
        assert 0 <= part <= 1

    def status(self, text, busy):
        self.seen.append(text)
        self.busy = busy

    def run_until(self, enough):
        while not enough():
            self.posted.get(timeout=WAIT)()

    def ask(self, question):
        self.conversation.ask(question)
        assert self.busy
        self.run_until(lambda: not self.busy)


@pytest.fixture
def place(monkeypatch, tmp_path):
    path = tmp_path / "data" / "history.json"
    monkeypatch.setattr(history, "place", lambda: path)
    return path


@pytest.fixture
def window(place):
    """window(*models): one that has loaded the first; closed after the test."""
    opened = []

    def make(*models):
        opened.append(Window(*models))
        opened[-1].conversation.resume()
        opened[-1].run_until(lambda: not opened[-1].busy)
        return opened[-1]

    yield make
    for each in opened:
        if not each.conversation._thread._shutdown:
            each.conversation.close()


def test_a_conversation_is_kept(window, place, endless):
    first = window()
    first.ask("What is the capital of Italy?")
    pieces = len(first.seen) - 4
    assert pieces > 0
    assert first.seen == [
        "builtin: loading",
        "builtin: ready",
        "builtin: reading",
        *["builtin: writing"] * pieces,
        "builtin: ready",
    ]
    assert "> What is the capital of Italy?\n" in first.text
    kept = json.loads(place.read_text("utf-8"))
    assert kept["models"] == ["builtin"]
    assert [m["role"] for m in kept["messages"]] == ["user", "assistant"]
    assert first.text.endswith(kept["messages"][1]["content"] + "\n")
    assert window(endless).text == first.text
    assert history.History.read().models == [endless, "builtin"]
    assert os.listdir(place.parent) == [place.name]


def test_a_stop_keeps_what_was_written_and_the_next_answer_comes(window, endless):
    w = window(endless)
    w.conversation.ask("Go on")
    w.run_until(lambda: w.text.count("\n") == 1 and not w.text.endswith("\n"))
    w.conversation.stop()
    w.run_until(lambda: not w.busy)
    assert w.seen[-1].endswith(": stopped")
    assert w.conversation.history.messages[1]["content"]
    w.conversation.load("builtin")
    w.run_until(lambda: not w.busy)
    w.ask("hello")
    assert w.seen[-1] == "builtin: ready"
    assert len(w.conversation.history.messages) == 4


def test_a_stop_before_the_answer_leaves_no_trace(window, endless):
    w = window(endless)
    w.conversation.ask("Go on")
    w.conversation.stop()
    w.run_until(lambda: not w.busy)
    if w.text.endswith("Go on\n\n"):  # it came before the first piece
        assert w.conversation.history.messages == []


def test_another_model_ends_what_runs(window, endless):
    w = window(endless)
    w.conversation.ask("Go on")
    w.conversation.load(endless)
    w.conversation.load("builtin")
    w.run_until(lambda: not w.busy)
    assert w.seen[-3:] == ["endless 模.gguf: loading", "builtin: loading", "builtin: ready"]
    assert "[" not in w.text.split("> Go on")[1]  # what was cancelled is told by nobody


def test_a_file_that_is_no_model(window, tmp_path):
    (tmp_path / "x.gguf").write_text("<html>")
    w = window(str(tmp_path / "x.gguf"))
    assert w.seen[-1] == "x.gguf: failed"
    assert "the download went wrong" in w.text
    w.ask("hello")
    assert "there is no model" in w.text
    w.conversation.load("builtin")
    w.run_until(lambda: not w.busy)
    w.ask("hello")
    assert w.seen[-1] == "builtin: ready"
    assert history.History.read().models[0] == "builtin"


def test_after_close_nothing_is_told(window, endless, monkeypatch):
    w = window(endless)
    w.conversation.ask("Go on")
    w.conversation.close()
    seen, text = list(w.seen), w.text
    while not w.posted.empty():
        w.posted.get()()
    assert (w.seen, w.text) == (seen, text)
    assert w.conversation._model is None
    assert not [t for t in threading.enumerate() if t.name.startswith("glmlite_")]


def test_close_ends_a_load(window, monkeypatch):
    begun = threading.Event()

    def load(path, *, progress, cancel):
        begun.set()
        while True:  # ends by the cancel alone
            progress(0.5)
            cancel.check("load")

    monkeypatch.setattr(glmlite, "load", load)
    w = Window()
    w.conversation.resume()
    assert begun.wait(WAIT)
    w.conversation.close()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '{"models": 3, "messages": []}', '{"models": ["x"]}', "\udc80"]
)
def test_a_history_that_is_none_is_an_empty_one(place, content):
    place.parent.mkdir()
    place.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert history.History.read() == history.History()


def test_a_history_that_cannot_be_written(place):
    place.parent.write_text("a file in the way")
    history.History().add("a", "b")
    assert place.parent.read_text() == "a file in the way"


# ---- windows -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def display():
    """A screen for programs that are not frozen, Qt's and Tk's."""
    if missing := screen.missing():
        pytest.skip(f"no {' and no '.join(missing)} here")
    with screen.Screen() as opened:
        yield opened


def toolkit(name):
    modules = {"chat_qt": "PySide6.QtWidgets", "chat_tk": "tkinter"}
    pytest.importorskip(modules[name], reason=f"no {modules[name]} here", exc_type=ImportError)
    return [sys.executable, str(DESKTOP / f"{name}.py")]


@pytest.fixture(params=["chat_qt", "chat_tk"])
def program(request, display, tmp_path):
    """program(*models): a window that was started; its history is in tmp_path."""
    command = toolkit(request.param)
    package = Path(_native.__file__).parent.parent
    environment = {**os.environ, "DISPLAY": display.display, "PYTHONPATH": str(package), "XDG_DATA_HOME": str(tmp_path)}
    started = []

    def start(*models, **more):
        started.append(
            subprocess.Popen([*command, *models], env=environment, stderr=subprocess.PIPE, text=True, **more)
        )
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.communicate()


def ended(process):
    """Its exit code, and what it said on stderr."""
    _, said = process.communicate(timeout=WAIT)
    return process.returncode, said


@pytest.mark.parametrize("state", ["loading", "writing"])
def test_a_busy_window_is_closed(display, program, endless, state):
    """By a key, as soon as the state is seen; a load may be over by then."""
    process = program(endless)
    window = display.window(process)
    display.focus(window)
    if state == "writing":
        screen.wait_for(lambda: display.title(window), lambda title: title.endswith("ready"), process)
        display.type("Go on")
        display.keys("Return")
        screen.wait_for(lambda: display.title(window), lambda title: title.endswith("writing"), process)
    display.keys("ctrl+q", "ctrl+q")
    assert ended(process) == (0, "")


def test_two_programs_are_closed_at_once(display, program, endless):
    processes = [program(endless), program(endless)]
    for window in display.windows(2, processes[0]):
        display.focus(window)
        display.keys("ctrl+q")
    assert [ended(process) for process in processes] == [(0, "")] * 2


TWO_WINDOWS = """
import chat_qt
from PySide6.QtCore import QTimer

application = chat_qt.QApplication([])
windows = [chat_qt.Window(["builtin"]), chat_qt.Window(["builtin"])]
for window in windows:
    window.show()
    QTimer.singleShot(0, window.close)
print(application.exec(), [window.conversation._model for window in windows])
"""


def test_two_windows_of_a_program_are_closed_at_once(display, tmp_path):
    toolkit("chat_qt")
    path = os.pathsep.join([str(Path(_native.__file__).parent.parent), str(DESKTOP)])
    environment = {**os.environ, "PYTHONPATH": path, "XDG_DATA_HOME": str(tmp_path), "DISPLAY": display.display}
    done = subprocess.run(
        [sys.executable, "-c", TWO_WINDOWS], capture_output=True, text=True, env=environment, timeout=WAIT
    )
    assert (done.stdout, done.stderr, done.returncode) == ("0 [None, None]\n", "", 0)


@pytest.mark.skipif(os.name == "nt", reason="descriptors of POSIX")
def test_without_standard_streams(display, program, endless, tmp_path):
    process = program("builtin", preexec_fn=lambda: [os.close(number) for number in (0, 1)])
    window = display.window(process)
    display.focus(window)
    screen.wait_for(lambda: display.title(window), lambda title: title.endswith("ready"), process)
    display.type("hello")
    display.keys("Return")
    screen.wait_for(lambda: (tmp_path / "glmlite-desktop/history.json").read_text(), lambda s: "hello" in s, process)
    display.keys("ctrl+q")
    assert ended(process) == (0, "")


def test_the_console_s_conversation(tmp_path):
    package = Path(_native.__file__).parent.parent
    environment = {
        **os.environ,
        "PYTHONPATH": str(package),
        "XDG_DATA_HOME": str(tmp_path),
        "PYTHONIOENCODING": "utf-8",
    }
    done = subprocess.run(
        [sys.executable, str(DESKTOP / "chat_console.py")],
        input="你好\n\nWhat is the capital of Italy?\n",
        capture_output=True,
        encoding="utf-8",
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    _, *answers = done.stdout.splitlines()
    assert len(answers) == 2 and all(answers)
