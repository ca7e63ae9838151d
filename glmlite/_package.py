"""What this package is, and where its compiled modules lie."""

from __future__ import annotations

import re
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

__all__ = ["VERSION", "find_modules", "is_frozen"]

VERSION = "0.1.0"  # pyproject.toml and CMakeLists.txt read it here


def find_modules(package: list[str]) -> None:
    """Extends the package's `__path__` by the installed package of this version, where its own folder has no compiled
    modules: Python was started in the source folder, whose `glmlite` hides the installed one.
    """
    if _has_modules(Path(package[0])):
        return
    for entry in map(Path, sys.path):
        installed = entry / "glmlite"
        if (entry / f"glmlite-{VERSION}.dist-info").is_dir() and _has_modules(installed):
            package.append(str(installed))
            return


_PYTHON = re.compile(r"(python|pypy)w?[\d.]*[dt]*(_d)?(\.exe)?", re.I)


def is_frozen() -> bool:
    """Whether this is part of a program with a Python inside: `sys.executable` is that program then, and no Python.

    PyInstaller and its like set `sys.frozen`, Nuitka `__compiled__` in what it compiled; by the name of the program
    Briefcase is told, and an application that embeds Python.
    """
    if getattr(sys, "frozen", False) or "__compiled__" in globals():
        return True
    return _PYTHON.fullmatch(Path(sys.executable or "").name) is None


def _has_modules(folder: Path) -> bool:
    return any((folder / f"_native{suffix}").exists() for suffix in EXTENSION_SUFFIXES)
