"""The file that a path, or a name in its place, means; or what is there instead, and what to do with it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from . import builtin, hub, samples
from .errors import FormatError
from .files import UNFINISHED, checkpoint_kind, downloading, kind_of

__all__ = ["NAMES", "SUFFIXES", "model_file", "near"]

NAMES = (builtin.NAME, *samples.NAMES)
# Endings of files that hold a model, in any program's form.
SUFFIXES = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".ggml", ".onnx")

_CONVERT = "`glmlite convert {}` makes a .gguf file of it"
_FOLDER = "of a checkpoint's folder, `glmlite convert FOLDER` makes a .gguf file"
_PIECE = re.compile(r"\.gguf[.-]?(part|split)-?\w+$|\.gguf\.\d+$", re.I)


def model_file(path: str | bytes | os.PathLike[str] | None) -> Path:
    """The GGUF file that a path means: `~` is the home folder, "builtin" and "smollm2" are models by name, None is the
    built-in one.

    Raises FileNotFoundError, FormatError (a file of another kind) and ValueError (a folder), which say what is there
    and what to do with it.
    """
    if path is None:
        return builtin.path()
    text = os.fsdecode(path)
    if not text:
        raise ValueError("path is '', expected the path of a .gguf file (None: the built-in model)")
    file = Path(text)
    if not file.exists():
        if text == builtin.NAME:
            return builtin.path()
        if text in samples.NAMES:
            return samples.fetch()
        file = _expanded(text)
    if file.is_dir():
        raise ValueError(f"{file}: {_folder(file)}")
    if not file.exists():
        raise FileNotFoundError(f"{text}: {_missing(text, file)}")
    if what := _no_gguf(file):
        raise FormatError(f"{file}: {what}")
    return file


def near(text: str) -> list[str]:
    """Names of models and paths of files that a misspelt one may have meant, the likeliest first."""
    file = _expanded(text)
    there = {name.lower(): str(file.parent / name) for name in _models_in(file.parent)}
    if str(file.parent) == ".":
        there |= {name: name for name in NAMES}
    wanted = file.name.lower()
    without = {_plain(name): path for name, path in there.items()}
    found = [there[name] for name in get_close_matches(wanted, there, 3, 0.8)]
    found += [without[name] for name in get_close_matches(_plain(wanted), without, 3, 0.8)]
    found += [path for name, path in without.items() if len(_plain(wanted)) > 3 and name.startswith(_plain(wanted))]
    return list(dict.fromkeys(found))[:3]


def _plain(name: str) -> str:
    """A name without its ending and what people leave out or put in."""
    return re.sub(r"[^\w]|_", "", name.removesuffix(".gguf"))


def _expanded(text: str) -> Path:
    """With `~` and variables, which not every shell replaces."""
    with suppress(RuntimeError):  # a user who has no home folder
        return Path(os.path.expandvars(text)).expanduser()
    return Path(text)


def _models_in(folder: Path) -> list[str]:
    """Names of the GGUF files and of the folders with a checkpoint in a folder."""
    with suppress(OSError):
        return sorted(
            entry.name
            for entry in os.scandir(folder)
            if entry.name.lower().endswith(".gguf") or (entry.is_dir() and (Path(entry) / "config.json").is_file())
        )
    return []


def _missing(text: str, file: Path) -> str:
    """What to say of a path where nothing is."""
    if re.match(r"https?://", text):
        return "is a web address, expected a .gguf file: download it first"
    if text == "-":
        return "a model cannot be piped in, expected the path of a .gguf file"
    parts = ["no such file, expected a .gguf file"]
    absent = [folder for folder in file.parents if not folder.exists()]
    if absent:
        parts.append(f"there is no folder {absent[-1]}")
    if hub.is_name(text):
        parts.append(f"if it is the name of a checkpoint on a hub: `glmlite convert {text}` downloads it and makes one")
    if os.sep == "/" and "\\" in text:
        parts.append("here / separates folders, not \\")
    if names := near(text):
        parts.append(f"did you mean {_or(names)}?")
    elif not absent and (names := _models_in(file.parent)):
        parts.append(f"in that folder: {_several(names)}")
    return "; ".join(parts)


def _folder(folder: Path) -> str:
    """What to say of a folder."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return f"is a folder ({error.strerror}), expected a .gguf file"
    files = [name for name in names if name.lower().endswith(".gguf")]
    if "adapter_config.json" in names:
        return (
            "is a LoRA adapter's folder, expected a .gguf file; "
            f"`glmlite convert CHECKPOINT --lora {folder}` merges it into its model"
        )
    if files:
        return f"is a folder, expected a file; in it is {_several([str(folder / name) for name in files])}"
    if "config.json" in names or any(name.endswith(SUFFIXES) for name in names):
        return f"is a checkpoint's folder, expected a .gguf file; {_CONVERT.format(folder)}"
    snapshots = [str(inner.parent) for inner in sorted(folder.glob("snapshots/*/config.json"))]
    if snapshots:  # the cache of a hub's package
        return f"is a hub's cache, expected a .gguf file; {_CONVERT.format(snapshots[-1])}"
    inner = [str(folder / name) for name in _models_in(folder)]
    if inner:
        return f"is a folder of checkpoints, expected a .gguf file; {_CONVERT.format(inner[0])}"
    return f"is a folder {'without a model' if names else 'with nothing in it'}, expected a .gguf file; {_FOLDER}"


def _no_gguf(file: Path) -> str | None:
    """What to say of a file that is none of ours; None for a GGUF file, and for what only its reader can judge."""
    if not file.is_file():
        return "is no regular file, expected a .gguf file"
    with open(file, "rb") as data:
        head = data.read(64)
    if _PIECE.search(file.name):
        return (
            "is a piece of a file that was cut, expected the whole; join the pieces in their order: "
            "`cat PIECES > MODEL.gguf`, on Windows `copy /b PIECE1+PIECE2 MODEL.gguf`"
        )
    if file.name.lower().endswith(UNFINISHED):
        return "is an unfinished download, expected a .gguf file"
    for part in [file, *(_parts(file) if head.startswith(b"GGUF") else [])]:
        if unfinished := downloading(part):
            return unfinished
    if head.startswith(b"GGUF"):
        return None
    expected = "expected a .gguf file"
    of_folder = _CONVERT.format(file.resolve().parent if str(file.parent) == "." else file.parent)
    if (file.parent / "adapter_config.json").is_file():
        return f"is part of a LoRA adapter, {expected}; `glmlite convert CHECKPOINT --lora {file.parent}` merges it"
    if weights := checkpoint_kind(file):
        return f"is {weights}, {expected}; of its folder, {of_folder}"
    if kind := kind_of(file):
        return f"is {kind}; {expected}" + (f", {_FOLDER}" if "ggml" in kind else "")
    if file.name.endswith((".json", ".model", ".jinja", ".txt", ".index")):
        return f"is a small file of a checkpoint, no model, {expected}; of its folder, {of_folder}"
    if file.suffix.lower() in SUFFIXES and not file.name.lower().endswith(".gguf"):
        return f"begins with {head[:4]!r}, {expected}; {_FOLDER}"
    return None


def _parts(file: Path) -> list[Path]:
    """The parts of a split file."""
    if not (name := re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.gguf", file.name)):
        return []
    return [file.with_name(f"{name[1]}-{i:05}-of-{name[2]}.gguf") for i in range(1, int(name[2]) + 1)]


def _or(names: Iterable[str]) -> str:
    return " or ".join(names)


def _several(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
