"""The server as a program that another one starts: events, an end in every state, and nothing that is left."""

import asyncio
import http.client
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from serving import Scripted

from glmlite import builtin
from glmlite.errors import Cancelled
from glmlite.options import Loading, Serving, options_of
from glmlite.serve import App, Pool, Settings, command, sidecar, stdio

ROOT = Path(__file__).resolve().parents[1]
CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}
WITHOUT = "import sys; sys.modules.update(dict.fromkeys(['typer', 'rich', 'prompt_toolkit']));"
MAIN = "from glmlite.serve.command import main; sys.exit(main())"


def started(*arguments, code=WITHOUT + MAIN, env=None, **pipes):
    """`python -m glmlite.serve` where none of the packages of the commands is installed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, **pipes)


def ended(process, seconds=20):
    """(exit code, events, stderr) once its stdin is closed."""
    out, error = process.communicate(timeout=seconds)
    return process.returncode, [json.loads(line) for line in out.splitlines()], error.decode()


def events(process):
    while line := process.stdout.readline():
        yield json.loads(line)


def ready(process):
    return next(event for event in events(process) if event.get("type") == "ready")


# ---- events


def test_events_over_stdio():
    with started("--stdio") as process:
        told = []
        for event in events(process):
            told.append(event)
            if event["type"] == "ready":
                break
        assert told[0] == {"type": "loading", "model": "builtin", "progress": 0}
        assert told[-2]["progress"] == 1 and told[-1] == {"type": "ready", "version": sidecar.VERSION}
        steps = [event["progress"] for event in told[:-1]]
        assert steps == sorted(set(steps))
        assert ended(process)[:2] == (0, [])


def test_the_network_with_a_port_and_a_key_of_its_own():
    pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'glmlite[serve]'")
    with started("--sidecar", env={"GLMLITE_API_KEY": "secret"}) as process:
        event = ready(process)
        assert event["url"] == f"http://127.0.0.1:{event['port']}" and event["port"] > 0
        for headers, status in (({}, 401), ({"Authorization": "Bearer secret"}, 200)):
            connection = http.client.HTTPConnection("127.0.0.1", event["port"], timeout=20)
            connection.request("POST", CHAT, json.dumps({**HI, "max_tokens": 2}), headers)
            assert connection.getresponse().status == status
            connection.close()
        process.stdin.write(b"what comes in is ignored\n")
        assert ended(process)[:2] == (0, [])


@pytest.mark.parametrize("how", ["--stdio", "--sidecar"])
def test_what_goes_wrong_is_an_event_and_the_end(tmp_path, how):
    pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'glmlite[serve]'")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(builtin.path().read_bytes()[:1000])
    for path, kind in ((tmp_path / "none.gguf", "FileNotFoundError"), (broken, "FormatError")):
        with started(str(path), how) as process:
            assert process.wait(20) == 1  # though its stdin is open
            _, told, error = ended(process)
            assert told[-1]["type"] == "error" and told[-1]["error"]["type"] == kind
            assert path.name in told[-1]["error"]["message"] and path.name in error and "Traceback" not in error


def test_what_libraries_print_is_no_line():
    code = WITHOUT + "import os; from glmlite.serve import command; load = command.load\n"
    code += "def noisy(*a, **k): print('chatter', flush=True); os.write(1, b'more\\n'); return load(*a, **k)\n"
    code += "command.load = noisy; sys.exit(command.main())"
    with started("--stdio", code=code) as process:
        ready(process)
        code, told, error = ended(process)
        assert code == 0 and told == [] and "chatter" in error and "more" in error


# ---- its end


class Pipe:
    """A stream without a buffer that waits for ever, until it is closed or full."""

    def __init__(self, lines=()):
        self.lines, self.closed, self.full = list(lines), threading.Event(), False

    def read(self, size):
        if self.lines:
            return json.dumps(self.lines.pop(0)).encode() + b"\n"
        self.closed.wait(20)
        return b""

    def write(self, data):
        if self.full:
            self.closed.wait(20)
            raise BrokenPipeError
        return len(data)


def slow(path, cancel):
    while not cancel.cancelled:
        time.sleep(0.001)
    raise Cancelled("load: cancelled")


def endless():
    return Scripted({"hi": ["a" * 1000] * 1_000_000})


@pytest.mark.parametrize("state", ["loading", "answering", "answering into a full pipe", "refusing into a full pipe"])
@pytest.mark.parametrize("end", ["input", "parent"])
def test_it_ends_in_every_state(state, end, monkeypatch):
    ask = {"id": 1, "path": CHAT, "body": {**HI, "stream": True}}
    requests = Pipe([ask] if "refusing" not in state else [{"id": None}] * 3000)
    answers, pid = Pipe(), [1]
    answers.full = "full" in state
    monkeypatch.setattr(sidecar, "LOOKS_SECONDS", 0.01)
    monkeypatch.setattr(sidecar.os, "getppid", lambda: pid[0])
    timer = Mock()
    monkeypatch.setattr(sidecar.threading, "Timer", timer)  # which would end this process
    parent = sidecar.Parent(requests, answers, Pipe())
    pool = Pool.file(Scripted.path, slow, waits=True) if state == "loading" else Pool.of(endless())

    async def main():
        serving = asyncio.ensure_future(stdio.serve(App(pool, Settings()), requests, parent.writer, parent))
        while requests.lines:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert not serving.done()
        if end == "input":
            requests.closed.set()
        else:
            pid[0] = 2
        await asyncio.wait_for(serving, 10)

    asyncio.run(main())
    timer.assert_called_once_with(sidecar.ENDING_SECONDS, os._exit, [1])
    requests.closed.set()
    answers.closed.set()


def test_it_ends_where_nobody_reads_any_more(monkeypatch):
    monkeypatch.setattr(stdio, "LOOKS_SECONDS", 0.01)
    requests, answers = Pipe([{"id": 1, "path": CHAT, "body": {**HI, "stream": True}}]), Pipe()
    answers.full = True
    answers.closed.set()

    async def main():
        writer = stdio.Writer(answers)
        await asyncio.wait_for(stdio.serve(App(Pool.of(endless()), Settings()), requests, writer), 10)

    asyncio.run(main())
    requests.closed.set()


def test_an_end_that_does_not_come_is_forced():
    code = WITHOUT + "import time; from glmlite.serve import command, sidecar; sidecar.ENDING_SECONDS = 0.2\n"
    code += "command.load = lambda *a, **k: time.sleep(60)\n" + MAIN
    with started("--stdio", code=code) as process:
        time.sleep(0.5)
        assert ended(process)[0] == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no such pipes there")
def test_a_parent_that_reads_neither_answers_nor_notes():
    with started("--stdio") as process:
        ready(process)
        for number in range(3000):  # each is answered by a line and noted in another: more than pipes hold
            process.stdin.write(json.dumps({"id": number, "path": "/v1/models"}).encode() + b"\n")
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no such descriptors there")
def test_a_parent_that_gives_no_stderr():
    code = WITHOUT + "import os; os.close(2);" + MAIN
    with started("--stdio", code=code) as process:
        ready(process)
        assert ended(process)[:2] == (0, [])


@pytest.mark.skipif(sys.platform != "linux", reason="finds what is left on Linux only")
def test_a_killed_parent_leaves_nothing():
    pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'glmlite[serve]'")
    script = ROOT / "benchmarks" / "orphans.py"
    if not script.exists():
        pytest.skip("not a checkout: no benchmarks/")
    arguments = [sys.executable, str(script), str(builtin.path()), "--count", "8", "--seconds", "20"]
    arguments += ["--sentences", "5"]
    done = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 cycles, 0 that left something" in done.stdout


# ---- one declaration of options, two parsers


def test_both_parsers_have_the_same_options():
    typer = pytest.importorskip("typer", reason="typer is not installed: pip install 'glmlite[cli]'")
    import argparse

    from glmlite.cli.app import app

    parser = argparse.ArgumentParser()
    for group in (Serving, Loading):
        command._add(parser, group)
    ours = {name for action in parser._actions for name in action.option_strings} - {"-h"}
    found = typer.main.get_command(app).commands["serve"].params
    assert {name for p in found for name in (*p.opts, *p.secondary_opts) if name[0] == "-"} - {"-h"} == ours - {
        "--help"
    }


def test_values_are_read_and_checked(capsys):
    import argparse

    parser = argparse.ArgumentParser()
    for group in (Serving, Loading):
        command._add(parser, group)
    given = vars(
        parser.parse_args(shlex.split("--port 0 --no-packed --cors a --cors b --timeout 1.5 --models x -t 3 --stdio"))
    )
    serving, loading = command._made(Serving, given), command._made(Loading, given)
    assert (serving.port, serving.cors, serving.timeout, serving.models) == (0, ["a", "b"], 1.5, Path("x"))
    assert serving.stdio and not serving.sidecar and serving.parallel == 4
    assert loading.given() == {"packed": False, "threads": 3}
    assert {name for name, *_ in options_of(Loading)} == set(vars(Loading()))
    for wrong in ("--port 65536", "--parallel 0", "--timeout x", "--threads 1.5", "--nonsense"):
        with pytest.raises(SystemExit) as end:
            command.main(wrong.split())
        assert end.value.code == 2 and wrong.split()[0] in capsys.readouterr().err


# ---- a client, and a program that is frozen


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def node(*arguments):
    """A command that runs the client."""
    program, path = shutil.which("node"), ROOT / "examples" / "sidecar" / "client.mjs"
    if program is None:
        pytest.skip("node is not installed")
    if not path.exists():
        pytest.skip("not a checkout: no examples/")
    return [program, str(path), *arguments]


def client(*sidecar):
    return subprocess.run(node(*sidecar), capture_output=True, text=True, env=ENVIRONMENT, timeout=60)


def test_a_client_for_node():
    done = client(sys.executable, "-m", "glmlite.serve")
    assert done.returncode == 0, done.stderr
    first, second, *rest = done.stdout.splitlines()
    assert first and "Paris" in second and not rest
    assert '{"type":"ready"' in done.stderr
    failed = client(sys.executable, "-m", "glmlite.serve", "none.gguf")
    assert failed.returncode == 1 and "none.gguf: no such file" in failed.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals there")
def test_a_client_that_is_killed_leaves_no_sidecar():
    psutil = pytest.importorskip("psutil", reason="psutil is not installed: pip install 'glmlite[test]'")
    command = node(sys.executable, "-m", "glmlite.serve")
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while b'"loading"' not in process.stderr.readline():
            pass
        (started,) = psutil.Process(process.pid).children()
        process.kill()
        assert psutil.wait_procs([started], timeout=20)[1] == []


@pytest.mark.skipif(importlib.util.find_spec("PyInstaller") is None, reason="PyInstaller is not installed")
def test_a_frozen_sidecar(tmp_path):
    script = ROOT / "examples" / "sidecar" / "freeze.py"
    done = subprocess.run(
        [sys.executable, str(script), "--out", str(tmp_path)], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    program = Path(done.stdout.splitlines()[-1])
    assert program.name.startswith("glmlite-") and program.is_file()
    done = client(str(program))
    assert done.returncode == 0 and "Paris" in done.stdout, done.stderr
