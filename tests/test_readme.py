"""The Python samples of README.md and of the pages run as a stranger would paste them, in the source folder."""

import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import glmlite
from glmlite import _native

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "README.zh.md", "docs/python.md", "docs/transformers.md"]
SAMPLES = [
    pytest.param(page, sample, id=f"{page}-{number}")
    for page in PAGES
    for number, sample in enumerate(re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.M | re.S))
]


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    """(folder, environment): the package's sources without its compiled modules, and an installed package elsewhere."""
    folder, site = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("site")
    no_modules = shutil.ignore_patterns("_native.*.so", "_native.so", "_native.*.pyd", "_cuda*", "__pycache__")
    shutil.copytree(ROOT / "glmlite", folder / "glmlite", ignore=no_modules)
    assert not any((folder / "glmlite" / f"_native{suffix}").exists() for suffix in EXTENSION_SUFFIXES)
    (site / "glmlite").mkdir()
    shutil.copy(_native.__file__, site / "glmlite")
    (site / f"glmlite-{glmlite.__version__}.dist-info").mkdir()
    return folder, os.environ | {"PYTHONPATH": str(site), "PYTHONIOENCODING": "utf-8"}


def python(clone, code):
    folder, environment = clone
    # As `python -c` does, and not as a program in a folder of its own: the current folder comes first.
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, timeout=120)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("page, sample", SAMPLES)
def test_samples_run_in_the_source_folder(clone, page, sample):
    if "schema=" in sample:
        pytest.importorskip("llguidance", reason="llguidance is not installed: pip install 'glmlite[grammar]'")
    code, out, err = python(clone, sample)
    assert code == 0, err
    assert err == ""
    assert out.strip()


def test_the_readme_shows_what_comes_out(clone):
    text = (ROOT / "README.md").read_text("utf-8")
    sample, shown = re.search(r"^```python\n(.*?)^```\n\n    ([^\n]+)\n", text, re.M | re.S).groups()
    assert python(clone, sample)[1].strip() == shown
    question, shown = re.search(r'glmlite chat "(.+)"\n\n    (.+)\n', text).groups()
    folder, environment = clone
    command = [sys.executable, "-m", "glmlite", "chat", question, "--temperature", "0"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True)
    assert done.stdout.decode().strip() == shown


def test_the_readme_is_short():
    for name in ("README.md", "README.zh.md"):
        lines = (ROOT / name).read_text("utf-8").splitlines()
        assert len(lines) < 100
    first_screen = "\n".join((ROOT / "README.md").read_text("utf-8").splitlines()[:25])
    assert "pip install '.[cli]'" in first_screen
    assert "```python" in first_screen


def test_the_engine_in_the_source_folder_comes_first(clone, tmp_path):
    shutil.copytree(clone[0] / "glmlite", tmp_path / "glmlite")
    shutil.copy(_native.__file__, tmp_path / "glmlite")
    code = "import glmlite; from glmlite import _native; print(len(glmlite.__path__), _native.__file__)"
    _, out, _ = python((tmp_path, clone[1]), code)
    number, place = out.split(maxsplit=1)
    assert number == "1"
    assert Path(place.strip()).parent == tmp_path / "glmlite"


def test_an_engine_of_another_version_is_not_taken(clone, tmp_path):
    # The sources are the newer ones, so that an engine installed beside the tests is another version too.
    shutil.copytree(clone[0] / "glmlite", tmp_path / "glmlite")
    source = tmp_path / "glmlite" / "_package.py"
    text = source.read_text("utf-8")
    assert text.count(f'VERSION = "{glmlite.__version__}"') == 1
    source.write_text(text.replace(f'VERSION = "{glmlite.__version__}"', 'VERSION = "99.0"'), "utf-8")
    code, _, err = python((tmp_path, clone[1]), "import glmlite; glmlite.load()")
    assert code != 0
    assert "RuntimeError: glmlite._native, the compiled engine, cannot be loaded" in err
    assert "pip install ." in err
