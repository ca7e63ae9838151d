"""Dependencies point downwards only (docs/design.md, section 1), read from the sources: nothing is imported here."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "glmlite"

# The modules and packages of glmlite, top to bottom. One may import what stands in a lower line, not in its own.
LAYERS = [
    ["__main__", "_pyinstaller"],
    ["cli"],
    ["__init__"],
    ["ray"],
    ["bulk"],
    ["serve"],
    ["hf"],
    ["doctor"],
    ["convert"],
    ["evaluate", "quantize"],
    ["loading"],
    ["model"],
    ["infill", "mmproj", "ocr"],
    ["generate"],
    ["budget", "locate", "packed", "parameters", "scheduler", "workers"],
    ["constrain", "delivery", "journal", "sequences", "vision"],
    ["builtin", "chat", "formats", "hub", "models", "placement", "reference", "samples", "tokenizer"],
    ["program"],
    ["_native", "_cuda"],
    ["cancel"],
    ["files"],
    ["_importing", "_package", "ending", "errors", "families", "options"],
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}

SOURCES = sorted(PACKAGE.rglob("*.py"))


def part(path):
    """The module or package of glmlite that a file belongs to."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0].removesuffix(".py")


def imports(path, source=None):
    """(line, module) of every import in a file, also in functions; `glmlite.x` for relative ones."""
    package = ["glmlite", *path.relative_to(PACKAGE).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(source or path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + ([node.module] if node.module else [])
            found += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def own_parts(path, source=None):
    """(line, part) of every import of glmlite itself; of the package as a whole, `__init__`."""
    for line, module in imports(path, source):
        names = module.split(".")
        if names[0] == "glmlite":
            yield line, names[1] if len(names) > 1 and names[1] in LAYER else "__init__"


def upward(path, source=None):
    """Imports of a file that do not point downwards, as text."""
    own = part(path)
    return [
        f"{path.relative_to(ROOT)}:{line}: {own} imports {other}"
        for line, other in own_parts(path, source)
        if other != own and LAYER[other] <= LAYER[own]
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    assert part(path) in LAYER, f"give {part(path)} a line in LAYERS"
    assert upward(path) == []


def test_an_upward_import_is_found():
    for source in ("from ..model import load", "def f():\n    from .. import generate", "import glmlite"):
        assert upward(PACKAGE / "models" / "x.py", source)
    assert upward(PACKAGE / "models" / "x.py", "from ..program import Op\nfrom .layout import causal") == []
    assert upward(PACKAGE / "chat" / "x.py", "from ..tokenizer import Tokenizer")


def test_models_and_reference_know_only_the_recorder():
    for path in [*(PACKAGE / "models").glob("*.py"), PACKAGE / "reference.py"]:
        assert {other for _, other in own_parts(path)} <= {"models", "program", "errors"}, path
        others = {module.split(".")[0] for _, module in imports(path)} - {"glmlite"}
        assert others <= {"__future__", "collections", "dataclasses", "math", "numpy", "typing"}, path


def test_run_time_needs_neither_converters_nor_numba():
    for path in SOURCES:
        if part(path) in ("convert", "doctor", "quantize"):
            continue
        assert not any(module.split(".")[0] == "numba" for _, module in imports(path)), path
        if part(path) != "cli":
            assert {"convert", "doctor", "quantize"}.isdisjoint(other for _, other in own_parts(path)), path


def code(text):
    """C++ without its comments. Lines stay; a `//` inside a string is taken for a comment, which can only hide text."""
    text = re.sub(r"/\*.*?\*/", lambda comment: "\n" * comment[0].count("\n"), text, flags=re.S)
    return re.sub(r"//[^\n]*", "", text)


ARCHITECTURE_NAME = re.compile(r"glm(?!lite)|llama|deepseek", re.I)


def test_native_code_knows_no_architecture():
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".inc", ".cu")]
    assert sources
    for path in sources:
        for number, line in enumerate(code(path.read_text(encoding="utf-8")).splitlines(), 1):
            assert not ARCHITECTURE_NAME.search(line), f"{path.relative_to(ROOT)}:{number}: {line}"


def test_an_architecture_name_is_found():
    assert ARCHITECTURE_NAME.search('if (name == "chatglm")')
    assert ARCHITECTURE_NAME.search("kGlm4")
    assert not ARCHITECTURE_NAME.search("namespace glmlite {")
    assert "glm4" not in code("int x;  // as glm4\n/* llama\n glm4 */ int y;")


def compared(source):
    """(line, text) of every comparison of something called `architecture` with names in quotes."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Compare):
            continue
        sides = [node.left, *node.comparators]
        names = [getattr(side, "attr", getattr(side, "id", "")) for side in sides]
        quoted = any(isinstance(n, ast.Constant) and isinstance(n.value, str) for s in sides for n in ast.walk(s))
        if quoted and any(name.endswith("architecture") for name in names):
            yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_an_architecture_is_like_stands_in_its_row(path):
    """glmlite/families.py has a row for each; nothing else asks which one it is but the models and the converters."""
    inside = path.relative_to(PACKAGE).as_posix()
    if not inside.startswith(("models/", "convert/architectures/")):
        assert not list(compared(path.read_text(encoding="utf-8"))), inside


def test_a_comparison_of_architectures_is_found():
    for source in (
        'architecture == "glm"',
        'self._architecture in ("glm", "glm4")',
        'x = 1 if "glm" != s.architecture else 2',
    ):
        assert list(compared(source))
    assert not list(compared("architecture not in ARCHITECTURES; name == 'glm4'"))


def test_every_model_has_a_row():
    from glmlite.families import FAMILY
    from glmlite.models import ARCHITECTURES

    assert set(ARCHITECTURES) <= FAMILY.keys()
