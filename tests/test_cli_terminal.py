"""`glmlite chat` in a terminal: what is typed, pasted, typed ahead. The model is the stand-in of test_cli."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import test_cli

pty = pytest.importorskip("pty", reason="terminals of POSIX")

WAIT = test_cli.WAIT
BEGIN, END = "\x1b[200~", "\x1b[201~"


class Terminal:
    """A terminal of 80 columns in which `glmlite chat m.gguf` runs."""

    def __init__(self, log, *arguments, term="xterm", **more):
        self.log = log
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, test_cli.__file__, "chat", "m.gguf", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=test_cli.environment(TERM=term, GLMLITE_TEST_TERMINAL="1", GLMLITE_TEST_LOG=str(log), **more),
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = ""
        self.passed = ""  # what was seen up to what was waited for

    def wait_for(self, text):
        deadline = time.monotonic() + WAIT
        while text not in self.seen:
            assert time.monotonic() < deadline, f"waiting for {text!r}, got {self.seen[-2000:]!r}"
            if select.select([self.ours], [], [], 1.0)[0]:
                self.seen += os.read(self.ours, 65536).decode("utf-8", "replace")
        end = self.seen.index(text) + len(text)
        self.passed += self.seen[:end]
        self.seen = self.seen[end:]

    def type(self, text):
        data = text.encode()
        while data:  # a terminal takes what there is room for
            if select.select([self.ours], [self.ours], [], WAIT)[0]:
                self.seen += os.read(self.ours, 65536).decode("utf-8", "replace")
            data = data[os.write(self.ours, data[:1024]) :]

    def messages(self):
        """What the model was asked, so far."""
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines()]

    def end(self):
        self.process.kill()
        self.process.wait()
        os.close(self.ours)


@pytest.fixture
def terminal(tmp_path):
    opened = []

    def open_terminal(*arguments, **settings):
        opened.append(Terminal(tmp_path / f"log{len(opened)}", *arguments, **settings))
        opened[-1].wait_for("lists the commands.")
        opened[-1].wait_for(">")
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.end()


PASTES = {
    "code": "def f(x):\n    return x + 1\nWhat does it do?",
    "blank lines": "one\n\n\ntwo\n",
    "commands": "/clear\n/bye\nand on",
    "quotes": 'def f():\n    """Doc."""\n    return 1',
    "quotes first": '"""Doc."""\nimport os',
    "tabs": "a\tb\n\tc",
    "chinese": "你好\n世界，再见",
    "one line": "just this",
}


@pytest.mark.parametrize("marks", [True, False], ids=["bracketed", "unmarked"])
@pytest.mark.parametrize("ends", ["\r", "\n", "\r\n"], ids=["cr", "lf", "crlf"])
def test_a_paste_is_one_message(terminal, ends, marks):
    t = terminal()
    asked = []
    for text in PASTES.values():
        paste = text.replace("\n", ends)
        for typed in (f"{BEGIN}{paste}{END}\r" if marks else f"{paste}\r", "after\r"):
            t.type(typed)
            t.wait_for("tokens/s]")
        asked += [text.rstrip("\n"), "after"]
        assert [message.rstrip("\n") for message in t.messages()] == asked
        t.wait_for(">")


def test_a_long_paste_is_one_message(terminal):
    t = terminal()
    text = "\n".join(f"line {i}" for i in range(10_000))
    t.type(f"{BEGIN}{text}{END}\r".replace("\n", "\r"))
    t.wait_for("tokens/s]")
    assert t.messages() == [text]


def test_a_paste_is_one_message_also_in_a_dumb_terminal(terminal):
    t = terminal(term="dumb")
    t.type("one\rtwo\r")
    t.wait_for("tokens/s]")
    assert t.messages() == ["one\ntwo"]


def test_a_paste_can_be_edited_before_it_is_sent(terminal):
    t = terminal()
    t.type(f"see: {BEGIN}a\rb{END} and more")
    t.wait_for("and more")
    assert t.messages() == []
    t.type("\x1b\rlast\r")  # Alt-Enter
    t.wait_for("tokens/s]")
    assert t.messages() == ["see: a\nb and more\nlast"]


@pytest.mark.parametrize("marks", [True, False], ids=["bracketed", "unmarked"])
def test_a_paste_into_an_answer_is_the_next_message(terminal, marks):
    t = terminal()
    t.type("slow 60\r")
    t.wait_for("1 2 3")
    t.type(f"{BEGIN}a\r\rb{END}\r" if marks else "a\r\rb\r")
    t.wait_for("tokens/s]")
    t.wait_for("tokens/s]")
    assert t.messages() == ["slow 60", "a\n\nb"]


def test_quotes_go_over_several_prompts(terminal):
    t = terminal()
    t.type('"""one\r')
    t.wait_for(".")
    t.type("\r")
    t.wait_for(".")
    t.type('two"""\r')
    t.wait_for("tokens/s]")
    assert t.messages() == ["one\n\ntwo"]


@pytest.mark.parametrize("word", ["/bye", "/exit", "/quit", "/QUIT", "/q"])
def test_words_that_leave(terminal, word):
    t = terminal()
    t.type(f"{word}\r")
    assert t.process.wait(WAIT) == 0
    assert t.messages() == []


@pytest.mark.parametrize("word", ["exit", "quit", ":q"])
def test_words_that_were_hardly_meant_for_the_model(terminal, word):
    t = terminal()
    t.type(f"{word}\r")
    t.wait_for("/bye leaves")
    t.wait_for(">")
    t.type(f'"""{word}"""\r')
    t.wait_for("tokens/s]")
    assert t.messages() == [word]


def test_ctrl_c_at_the_prompt_and_in_an_answer(terminal):
    t = terminal()
    t.type("half a\x03")
    t.wait_for("/bye or Ctrl-D leaves")
    t.wait_for(">")
    t.type("slow\r")
    t.wait_for("1 2 3")
    t.type("\x03")
    t.wait_for("[stopped]")
    t.wait_for(">")
    t.type("\x04")
    assert t.process.wait(WAIT) == 0
    assert t.messages() == ["slow"]


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGINT, signal.SIGTERM]])
def test_ctrl_c_beside_a_prompt_waits_for_its_end(numbers):
    """It would end the making, or the closing, of the prompt's event loop. A signal that ends more counts more."""
    from glmlite import ending
    from glmlite.cli import terminal

    reached = False
    with pytest.raises((KeyboardInterrupt, ending.Ended)) as raised, ending.told(), terminal._signals_wait():
        for number in numbers:
            signal.raise_signal(number)
        reached = True
    assert reached and isinstance(raised.value, KeyboardInterrupt) is (len(numbers) == 1)


def test_ctrl_c_again_and_again(terminal):
    t = terminal()
    for i in range(12):
        t.type("slow\r")
        time.sleep(0.02 * (i % 6))
        for _ in range(4):
            t.type("\x03")
            time.sleep(0.004 * (i % 3))
    time.sleep(0.3)
    t.type("/help\r")
    t.wait_for("Ctrl-C stops an answer.")
    t.type("last\r")
    t.wait_for("tokens/s]")
    assert t.messages()[-1] == "last"
    t.wait_for(">")
    assert "Traceback" not in t.passed
    t.type("\x04")
    assert t.process.wait(WAIT) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("when", ["at the prompt", "in an answer"])
def test_signals_that_end_leave_the_terminal_as_it_was(terminal, number, code, when):
    import termios

    t = terminal()
    if when == "in an answer":
        t.type("slow\r")
        t.wait_for("1 2 3")
    t.process.send_signal(number)
    t.wait_for("\x1b[?2004l")
    assert t.process.wait(WAIT) == code
    assert termios.tcgetattr(t.ours)[3] & (termios.ICANON | termios.ECHO) == termios.ICANON | termios.ECHO


def test_a_terminal_that_goes_away_ends_it(tmp_path):
    t = Terminal(tmp_path / "log")
    t.wait_for(">")
    os.close(t.ours)
    assert t.process.wait(WAIT) in (0, 129)
    t.ours = os.open(os.devnull, os.O_RDONLY)
    t.end()


def test_what_is_piped_in_is_taken_line_by_line(tmp_path):
    log = tmp_path / "log"
    with test_cli.start(
        "chat", "m.gguf", stdin=subprocess.PIPE, env=test_cli.environment(GLMLITE_TEST_LOG=str(log))
    ) as p:
        p.communicate(b'exit\nb\n"""c\n/bye\n"""\n/bye\nd\n', timeout=WAIT)
    assert p.returncode == 0
    assert [json.loads(line) for line in Path(log).read_text().splitlines()] == ["exit", "b", "c\n/bye"]


def test_a_path_that_is_dropped_is_an_image(terminal, tmp_path):
    """With the rest of its line, or for the next one; what is pasted in several lines, or in quotes, is text."""
    picture = test_cli.image(tmp_path / "a b.png")
    t = terminal()
    t.type(f"{BEGIN}'{picture}' {END}what is it?\r")
    t.wait_for("tokens/s]")
    t.type(str(picture).replace(" ", "\\ ") + "\r")
    t.wait_for("[a b.png: 5 tokens]")
    t.wait_for(">")
    t.type("and now\r")
    t.wait_for("tokens/s]")
    t.type(f"{BEGIN}{picture}\nis a path{END}\r")
    t.wait_for("tokens/s]")
    assert t.messages() == ["a b.png what is it?", "a b.png and now", f"{picture}\nis a path"]
