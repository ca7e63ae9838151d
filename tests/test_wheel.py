"""What is installed: what a wheel has in it, what it requires, and that it answers with that alone."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest

import glmlite
from glmlite import _native

PACKAGE = Path(glmlite.__file__).parent
# What `pip install glmlite` brings, without what these packages require for uses of their own.
CORE = {"glmlite", "numpy", "tokenizers", "sentencepiece", "jinja2", "markupsafe"}
# In a child: this package, and the extra `cli` as if it were not installed.
WITHOUT_CLI = f"""
import sys
sys.path.insert(0, {str(PACKAGE.parent)!r})
sys.modules.update(dict.fromkeys(["typer", "click", "rich", "prompt_toolkit"]))
"""
SIDECAR = """
import glmlite, jinja2, sentencepiece, tokenizers
from glmlite.serve import command
code = command.main(["--stdio"])
loaded = {name.partition(".")[0] for name, module in sys.modules.items() if module}
print(*loaded - sys.stdlib_module_names, file=sys.stderr)
sys.exit(code)
"""


def test_a_program_that_answers_needs_the_core_alone():
    """It loads, chats, and is a sidecar on stdin and stdout."""
    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
    request = {"id": 1, "path": "/v1/chat/completions", "body": body}
    command = [sys.executable, "-c", WITHOUT_CLI + SIDECAR]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        lines = map(json.loads, process.stdout)
        answer = next((line for line in lines if line.get("id") == 1), None)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "Paris" in answer["body"]["choices"][0]["message"]["content"]
    assert {name for name in err.splitlines()[-1].split() if not name.startswith(("_", "sitecustomize"))} == CORE


@pytest.mark.parametrize("start", ["glmlite.cli.main(['--help'])", "runpy.run_module('glmlite', run_name='__main__')"])
def test_without_the_extra_the_command_says_what_to_install(start):
    code = f"import runpy, glmlite.cli\nsys.exit({start})"
    done = subprocess.run([sys.executable, "-c", WITHOUT_CLI + code], capture_output=True, text=True)
    message = "glmlite: the commands need typer: pip install 'glmlite[cli]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)


@pytest.fixture(scope="module")
def installed():
    """The distribution that a wheel installed; sources may lie in front of it."""
    try:
        found = metadata.distribution("glmlite")
    except metadata.PackageNotFoundError:
        pytest.skip("glmlite is not installed, only found")
    if json.loads(found.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable"):
        pytest.skip("glmlite is installed as sources to edit, not as a wheel")
    return found


def test_what_a_wheel_has(installed):
    names = [PurePosixPath(file) for file in installed.files if file.parts[0] != ".."]  # ..: the command
    assert {name.parts[0] for name in names} == {"glmlite", f"glmlite-{glmlite.__version__}.dist-info"}
    for name in ("py.typed", "_native.pyi", "data/builtin.gguf", "serve/page/index.html"):
        assert PurePosixPath("glmlite", name) in names
    (engine,) = [name for name in names if re.fullmatch(r"_native\..*(so|pyd)", name.name)]
    assert engine.parent == PurePosixPath("glmlite")
    licences = [name for name in names if name.name == "LICENSE" and ".dist-info" in name.parts[0]]
    assert len(licences) == 1 + len(list(PACKAGE.glob("serve/page/vendor/*/LICENSE"))) > 1
    assert not [name for name in names if "test" in name.name or name.suffix in (".cpp", ".inc", ".o")]


def test_no_kernels_were_left_out(installed):
    """All of what CPUs of the last ten years have; a compiler that does not know a flag leaves its kernels out."""
    assert _native.isas() != ["scalar"]


def test_what_a_wheel_says(installed):
    assert "Root-Is-Purelib: false" in installed.read_text("WHEEL")
    (command,) = [each for each in installed.entry_points if each.group == "console_scripts"]
    assert (command.name, command.value) == ("glmlite", "glmlite.cli:main")
    required = {re.match(r"[\w-]+", line)[0] for line in installed.requires if "extra ==" not in line}
    assert required | {"glmlite", "markupsafe"} == CORE


def test_an_installed_wheel_answers(installed, tmp_path):
    """Started elsewhere, without these sources."""
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ask = f"import glmlite; print(glmlite.load().chat({question}, temperature=0).text)"
    done = subprocess.run([sys.executable, "-I", "-c", ask], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout == "The capital of France is Paris.\n", done.stderr
