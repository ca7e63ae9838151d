"""Files get their name when they are whole; what ends a process leaves nothing of them."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import glmlite
from glmlite import ending
from glmlite.cli import main
from glmlite.files import refuse_to_overwrite, replacing, replacing_all

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals, and locks that a kill gives back")
DEAD = 2**22 + 1  # no process has this number: Linux counts to 2**22, macOS to 99998


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_name_comes_last(tmp_path):
    out = tmp_path / "out"
    out.write_bytes(b"before")
    with replacing(out) as file:
        file.write(b"after")
        assert out.read_bytes() == b"before" and names(tmp_path) == [f".out.{os.getpid()}.part", "out"]
    assert out.read_bytes() == b"after" and names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_whatever_goes_wrong_leaves_what_was_there(tmp_path, error):
    out = tmp_path / "out"
    out.write_bytes(b"before")
    with pytest.raises(error), replacing(out) as file:
        file.write(b"after")
        raise error
    assert out.read_bytes() == b"before" and names(tmp_path) == ["out"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    out = tmp_path / "none" / "out"
    with pytest.raises(FileNotFoundError) as raised, replacing(out):
        pass
    assert raised.value.filename == str(out)


@POSIX
def test_a_folder_that_takes_no_files_is_named_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(PermissionError, match="takes no files"):
        refuse_to_overwrite(tmp_path / "out")


def test_a_file_that_a_full_disk_has_no_room_for_is_named(tmp_path):
    code = """if True:
        import resource, sys
        from glmlite.bulk.work import spooled
        from glmlite.files import replacing

        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        for size in (999, 1001, 10**6):  # the last one is written before the file is closed
            try:
                with replacing("out") as file:
                    file.write(bytes(size))
            except OSError as error:
                print(error.filename)
        try:
            with spooled(["x" * 2000]):
                pass
        except OSError as error:
            print(error.filename)
    """
    path = os.pathsep.join([str(Path(glmlite.__file__).parents[1]), *sys.path])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.split()[:2] == ["out", "out"] and done.stdout.split()[2].endswith("rows.jsonl"), done.stderr
    assert os.listdir(tmp_path) == ["out"]


def test_an_existing_file_is_told(tmp_path):
    out = tmp_path / "out"
    refuse_to_overwrite(out)
    out.write_bytes(b"")
    with pytest.raises(FileExistsError, match="--force writes over it") as raised:
        refuse_to_overwrite(out)
    assert raised.value.errno == errno.EEXIST and raised.value.filename == str(out)
    refuse_to_overwrite(out, force=True)


def test_what_is_no_file_stays(tmp_path):
    """/dev/null would be a file from then on, where it may be replaced."""
    folder, pipe, link = tmp_path / "folder", tmp_path / "pipe", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(os.devnull)
    others = [link]
    if hasattr(os, "mkfifo"):
        os.mkfifo(pipe)
        others.append(pipe)
    before = names(tmp_path)
    for path, what in [(folder, "is a folder"), *((other, "is no regular file") for other in others)]:
        for force in (False, True):
            with pytest.raises(OSError, match=what) as raised:
                refuse_to_overwrite(path, force)
            assert raised.value.filename == str(path)
        with pytest.raises(OSError, match=what), replacing_all([tmp_path / "other", path]):
            raise AssertionError("not before the work")
    assert names(tmp_path) == before


def test_parts_of_dead_processes_go(tmp_path):
    for name in (f".out.{DEAD}.part", f".out.{os.getpid()}.part", f".other.{DEAD}.part", ".out.x.part", "out.1.part"):
        (tmp_path / name).write_bytes(b"left")
    with replacing(tmp_path / "out"):
        pass
    assert names(tmp_path) == [f".other.{DEAD}.part", ".out.x.part", "out", "out.1.part"]


@POSIX
def test_parts_of_living_processes_stay(tmp_path):
    """Unless they are a day old: then the number has gone to another process."""
    part = tmp_path / f".out.{os.getppid()}.part"
    part.write_bytes(b"in work")
    with replacing(tmp_path / "out"):
        pass
    assert names(tmp_path) == [part.name, "out"]
    os.utime(part, (time.time() - 90_000,) * 2)
    with replacing(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"]


@POSIX
def test_a_locked_part_stays(tmp_path):
    """The writer may be on another machine, or in another container, where numbers say nothing."""
    import fcntl

    part = tmp_path / f".out.{DEAD}.part"
    with part.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with replacing(tmp_path / "out"):
            pass
        assert names(tmp_path) == [part.name, "out"]


WRITES = """if True:
    import sys, time
    from pathlib import Path
    import typer
    from glmlite import cli
    from glmlite.cli.app import app
    from glmlite.files import replacing

    @app.command("write")
    def write(out: Path) -> None:
        with replacing(out) as file:
            file.write(b"half")
            print("writing", flush=True)
            time.sleep(60)

    sys.exit(cli.main(["write", sys.argv[1]]))
"""


def writing(out, before=()):
    """A command that has written half of `out`."""
    path = os.pathsep.join([str(Path(glmlite.__file__).parents[1]), *sys.path])
    process = subprocess.Popen(
        [*before, sys.executable, "-c", WRITES, str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdout.readline() == "writing\n", process.communicate()
    return process


@POSIX
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_command_that_is_ended_leaves_nothing(tmp_path, name):
    number = getattr(signal, name)
    process = writing(tmp_path / "out")
    assert names(tmp_path) == [f".out.{process.pid}.part"]
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number and names(tmp_path) == []


@POSIX
def test_what_a_kill_leaves_goes_with_the_next_run(tmp_path):
    process = writing(tmp_path / "out")
    process.kill()
    process.communicate(timeout=60)
    assert names(tmp_path) == [f".out.{process.pid}.part"]
    with replacing(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"]


@POSIX
def test_a_command_under_nohup_outlives_the_terminal(tmp_path):
    process = writing(tmp_path / "out", before=["nohup"])
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and names(tmp_path) == []


@POSIX
def test_a_second_signal_does_not_interrupt_the_removing():
    """A session that ends sends SIGTERM and SIGHUP at once."""
    with pytest.raises(ending.Ended) as raised, ending.told():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
    assert raised.value.number == signal.SIGTERM


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with ending.told():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_command_in_another_thread(capsys):
    """Where no handler can be set."""
    codes = []
    thread = threading.Thread(target=lambda: codes.append(main(["--version"])))
    thread.start()
    thread.join()
    assert codes == [0]
