"""The package as a whole: what an import costs, whether the stub tells the truth, what files may not contain."""

import ast
import inspect
import pkgutil
import re
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

import glmlite

ROOT = Path(__file__).parent.parent
PACKAGE = Path(glmlite.__file__).parent


def python(code):
    """The words that a fresh interpreter prints."""
    path = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n"
    done = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# ---- imports -----------------------------------------------------------------------------------------------------

LOADED = "; print(*sorted({name.partition('.')[0] for name in sys.modules}))"


def test_import_is_light():
    loaded = set(python("import glmlite" + LOADED)) - set(python("import numpy" + LOADED))
    assert loaded - sys.stdlib_module_names == {"glmlite"}


def test_the_commands_load_no_more_than_they_say():
    loaded = set(python("from glmlite.cli import app" + LOADED))
    assert "typer" in loaded
    assert not loaded & {"torch", "transformers", "gguf", "numba", "jinja2"}


TOOLS = ("glmlite.convert", "glmlite.doctor", "glmlite.quantize")  # what makes and mends files


def test_nothing_at_run_time_imports_the_converters():
    for module in modules():
        if not module.startswith((*TOOLS, "glmlite.cli")):  # the commands have files of the same names
            assert not re.search(r"^\s*from \.*(glmlite\.)?(convert|doctor|quantize)\b", source(module), re.M), module


# ---- docstrings --------------------------------------------------------------------------------------------------


def modules():
    found = ["glmlite"]
    for info in pkgutil.walk_packages([str(PACKAGE)], "glmlite."):
        if "._" not in info.name:
            found.append(info.name)
    return found


def source(module):
    """Not of an import: some need what is not installed."""
    return Path(find_spec(module).origin).read_text("utf-8")


def test_public_names_exist_and_are_documented():
    assert glmlite.__all__ == sorted(glmlite.__all__)
    undocumented = []
    for name in glmlite.__all__:
        item = getattr(glmlite, name)
        members = [item] if not inspect.isclass(item) else [item, *own_methods(item)]
        undocumented += [f"{name}: {member}" for member in members if not own_doc(member)]
    assert undocumented == []


def own_methods(cls):
    return [m for n, m in vars(cls).items() if inspect.isfunction(m) and not n.startswith("_") and len(body(m)) > 1]


def body(function):
    """Its statements: a method of one plain line needs no words."""
    source = inspect.cleandoc("\n" + inspect.getsource(function))
    return ast.parse(source).body[0].body


def own_doc(item):
    doc = item.__doc__
    # dataclass and NamedTuple write one of their own, which says nothing.
    return doc and not re.fullmatch(rf"{item.__name__}\(.*\)", doc, re.S)


def test_modules_have_docstrings():
    missing = [name for name in modules() if not ast.get_docstring(ast.parse(source(name)))]
    assert missing == []


# ---- version -----------------------------------------------------------------------------------------------------


def declared():
    """As pyproject.toml and CMakeLists.txt read it."""
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert 'input = "glmlite/_package.py"' in project
    assert "STRINGS glmlite/_package.py" in (ROOT / "CMakeLists.txt").read_text("utf-8")
    return re.search(r'^VERSION = "([^"]+)"', (ROOT / "glmlite/_package.py").read_text("utf-8"), re.M)[1]


def test_version_is_the_same_everywhere():
    version = declared()
    assert glmlite.__version__ == version
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    try:
        assert metadata.version("glmlite") == version
    except metadata.PackageNotFoundError:
        pytest.skip("glmlite is not installed, only found")


# ---- the stub ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def native():
    from glmlite import _native

    return _native


STUB = ast.parse((PACKAGE / "_native.pyi").read_text("utf-8"))


def declared_members(nodes):
    """name -> the function's node, or None for a value."""
    members = {}
    for node in nodes:
        if isinstance(node, ast.FunctionDef):
            is_value = any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list)
            members[node.name] = None if is_value else node
        elif isinstance(node, ast.AnnAssign):
            members[node.target.id] = None
    return members


def declared_parameters(node):
    """[(name, has a default)] without self; keyword-only ones after "*"."""
    arguments = node.args
    plain = [a.arg for a in arguments.posonlyargs + arguments.args]
    defaults = [False] * (len(plain) - len(arguments.defaults)) + [True] * len(arguments.defaults)
    found = list(zip(plain, defaults))
    if arguments.kwonlyargs:
        found.append(("*", False))
        found += [(a.arg, d is not None) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults)]
    if arguments.kwarg:
        found.append((f"**{arguments.kwarg.arg}", False))
    return [item for item in found if item[0] != "self"]


def compiled_parameters(function):
    """As `declared_parameters`, from the signature in the first line of pybind11's docstring; None without one."""
    match = re.match(r"\w+\((.*)\)(?: -> .*)?$", (function.__doc__ or "").split("\n")[0])
    if match is None:
        return None
    # Types contain brackets, defaults may contain quotes: cut at commas outside of both.
    parts, depth, quoted = [""], 0, False
    for c in match[1]:
        quoted ^= c == "'"
        depth += (c in "[({") - (c in "])}")
        if c == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += c
    found = [(re.match(r"\**\w*\*?", part.strip())[0], "=" in part) for part in parts if part.strip()]
    return [item for item in found if item[0] not in ("self", "/")]


CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}
FUNCTIONS = declared_members(STUB.body)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_stub_function(native, name):
    assert hasattr(native, name), f"the stub has {name}, the module has not"
    if FUNCTIONS[name] is not None:
        assert compiled_parameters(getattr(native, name)) == declared_parameters(FUNCTIONS[name])


@pytest.mark.parametrize("name", CLASSES)
def test_stub_class(native, name):
    cls = getattr(native, name)
    for member, node in declared_members(CLASSES[name].body).items():
        assert hasattr(cls, member), f"the stub has {name}.{member}, the module has not"
        if node is not None:
            assert compiled_parameters(getattr(cls, member)) == declared_parameters(node), f"{name}.{member}"


def test_stub_leaves_nothing_out(native):
    public = {name for name in vars(native) if not name.startswith("_")}
    assert public <= set(FUNCTIONS) | set(CLASSES)
    for name, node in CLASSES.items():
        bases = [base.id for base in node.bases]
        if bases == ["NamedTuple"]:
            continue
        members = {member for member in vars(getattr(native, name)) if not member.startswith("_")}
        assert members <= set(declared_members(node.body)), name


# ---- files -------------------------------------------------------------------------------------------------------


def tracked():
    try:
        listing = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.decode().split("\0") if name]


# Folders of somebody's machine; places where packages or models come from, which are the user's to configure.
FORBIDDEN = re.compile(
    r"(?<![\w./])/(?:work|root|home|Users|mnt|data)/\w"
    r"|[A-Z]:\\\\?Users\\"
    r"|(?:pypi|pythonhosted|huggingface|hf-mirror|modelscope|anaconda|npmjs)\.(?:org|co|com|cn)\b"
    r"|--(?:extra-)?index-url"
)


def test_files_name_no_machine_and_no_registry():
    found = []
    for path in tracked():
        if path == Path(__file__) or not path.is_file():
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # data
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in FORBIDDEN.finditer(text)]
    assert found == []


def test_the_rule_finds_what_it_should():
    for text in ("'/home/me/models'", "C:\\Users\\me", "https://pypi" + ".org/simple", "pip install --index-url x"):
        assert FORBIDDEN.search(text), text
    for text in ("docs/work/x", "`/data`", "tests/data/x.npz", "../root/x"):
        assert not FORBIDDEN.search(text), text


@pytest.mark.parametrize("name", ["README.md", "README.zh.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs"])
def test_links_between_documents_lead_somewhere(name):
    path = ROOT / name
    if not path.exists():
        pytest.skip("not a checkout")
    broken = []
    for file in sorted(path.glob("*.md")) if path.is_dir() else [path]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text("utf-8")):
            if not (file.parent / target).exists():
                broken.append(f"{file.name}: {target}")
    assert broken == []


def test_both_readmes_show_the_same_commands_and_code():
    def shown(name):
        text = (ROOT / name).read_text("utf-8")
        return re.findall(r"^ {4}\S.*$", text, re.M), re.findall(r"```python\n(.*?)```", text, re.S)

    if not (ROOT / "README.md").exists():
        pytest.skip("not a checkout")
    assert shown("README.md") == shown("README.zh.md")


# ---- the table of formats ----------------------------------------------------------------------------------------


def test_the_engine_s_table_of_formats_is_gguf_s(native):
    """Against the gguf package: names, numbers, sizes; and every format that Python writes or reads is in it."""
    import gguf

    from glmlite.convert.formats import TYPES
    from glmlite.doctor.values import SCALES_AT
    from glmlite.quantize import FAMILIES

    table = {row.name: row for row in native.formats()}
    for kind, (values, nbytes) in gguf.GGML_QUANT_SIZES.items():
        if kind.name in table:
            assert table[kind.name][:4] == (kind.name, kind.value, values, nbytes)
    assert {kind.name for kind in gguf.GGML_QUANT_SIZES} >= TYPES.keys()
    assert TYPES.keys() <= table.keys()
    assert SCALES_AT.keys() <= table.keys()
    assert {name.upper() for name in FAMILIES} <= table.keys()


# ---- the lists of files to touch ---------------------------------------------------------------------------------


def test_the_files_that_contributing_names_are_there():
    """`<...>` stands for a name that a contributor chooses."""
    if not (ROOT / "CONTRIBUTING.md").exists():
        pytest.skip("not a checkout")
    section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Files to touch")[1].split("\n## ")[0]
    named = re.findall(r"`([\w/<>]+\.(?:py|pyi|h|cpp|inc|cu|cuh))`", section)
    there = [
        path.relative_to(ROOT).as_posix() for top in ("glmlite", "csrc", "tests") for path in (ROOT / top).rglob("*.*")
    ]
    assert len(named) > 20
    for name in named:
        assert "<" in name or any(f"/{path}".endswith(f"/{name}") for path in there), name
