"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "FULL",
    "REFUSED_PICTURES",
    "UNFINISHED",
    "check_target",
    "checkpoint_kind",
    "downloading",
    "kind_of",
    "lock",
    "named_where_full",
    "not_gguf",
    "refuse_to_overwrite",
    "replacing",
    "replacing_all",
    "special",
]

# What programs that download append to a name until they are done, or to the name of a file of theirs beside it.
UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".tmp", ".aria2")

# Endings of pictures that are not read: wherever one is taken for a picture, it is refused by name.
REFUSED_PICTURES = (".heic", ".heif", ".avif", ".jxl")

# What a full disk says, or one with no room left for this user or for so large a file.
FULL = (errno.ENOSPC, errno.EFBIG, *([errno.EDQUOT] if hasattr(errno, "EDQUOT") else []))

_UNTOUCHED = 24 * 3600  # seconds; nobody leaves a file that is being written alone for so long

# What stands at the beginning of files that are taken for a model's.
_KINDS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file that it stands for; `git lfs pull` fetches that"),
    (b"/annex/objects/", "a git-annex pointer, not the file that it stands for; `git annex get` fetches that"),
    (b"<!doctype html", "a page of HTML, not the file: the download went wrong"),
    (b"<html", "a page of HTML, not the file: the download went wrong"),
    (b"# xet version", "a pointer of Xet, not the file that it stands for; git-xet or the hub's own tool fetches that"),
    (b"<?xml", "an XML text, not the file: the download went wrong"),
    (b'{"error"', "a message of a server, not the file: the download went wrong"),
    (b"entry not found", "a message of a server, not the file: the download went wrong"),
    (b"invalid username or password", "a message of a server, not the file: the download went wrong"),
    (b"access to model", "a message of a server, not the file: the download went wrong"),
    (b"gguf", "a GGUF file"),
    (b"glmpack", "a model's packed weights; the model is the .gguf file that they were made of"),
    (b"ggml", "a ggml file from before GGUF, which is not read"),
    (b"lmgg", "a ggml file from before GGUF, which is not read"),
    (b"fmgg", "a ggml file from before GGUF, which is not read"),
    (b"tjgg", "a ggml file from before GGUF, which is not read"),
    (b"pk\3\4", "a zip archive"),
    (b"rar!", "a rar archive; unpack it"),
    (b"bzh", "compressed by bzip2; unpack it"),
    (b"\x1f\x8b", "compressed by gzip; unpack it"),
    (b"\xfd7zxz\0", "compressed by xz; unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"\x89hdf", "an HDF5 file, which is not read"),
    *(
        (b"\x80%c" % n, "written by torch before 1.6; load and save it with a newer torch, or as safetensors")
        for n in (2, 3, 4)
    ),
)


def kind_of(path: str | os.PathLike[str], *, binary: bool = False) -> str | None:
    """What a file is that is not what it should be, and what to do; None if its beginning does not tell.

    binary: it should be no text, so that any is told.
    """
    with suppress(OSError), open(path, "rb") as file:
        start = file.read(512)
        if not start:
            return "empty: the download went wrong"
        if len(start) == 512 and not start.strip(b"\0"):
            return "zeros where a file begins: the download has not ended"
        if start[257:262] == b"ustar":
            return "a tar archive; unpack it"
        if b".git/annex/objects/" in start.replace(b"\\", b"/"):
            return "a git-annex link, not the file that it stands for; `git annex get` fetches that"
        text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
        known = (kind for magic, kind in _KINDS if text.lower().startswith(magic))
        shown = text.decode("ascii", "replace").split("\n")[0][:60].rstrip()
        return next(known, f"a text, {shown!r}" if binary and shown.isprintable() and shown.isascii() else None)
    return None


def downloading(path: Path) -> str | None:
    """What to say of a file that aria2 has not got whole: that has its full length from the beginning, and zeros where
    pieces are missing, so that the file of aria2's own beside it is all that tells."""
    beside = path.with_name(f"{path.name}.aria2")
    if not beside.exists():
        return None
    return f"{beside.name!r} is beside it: the download has not ended; go on with it, or remove that if it has"


def checkpoint_kind(path: str | os.PathLike[str]) -> str | None:
    """Which program's weights a file holds, for a message; None if it holds none."""
    with suppress(OSError), open(path, "rb") as file:
        start = file.read(512)
        zipped = start.startswith(b"PK\3\4")
        if zipped and (b"/data.pkl" in start or os.fspath(path).lower().endswith((".bin", ".pt", ".pth", ".ckpt"))):
            return "a PyTorch checkpoint"
        if start[:2] in (b"\x80\2", b"\x80\3", b"\x80\4"):
            return "a PyTorch checkpoint"
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < os.fstat(file.fileno()).st_size:
            return "a safetensors file"
    return None


def special(path: str | os.PathLike[str]) -> str | None:
    """What something of that name is that is no file to read: a pipe would be waited for, and a device never ends.
    None for a file, and where there is nothing."""
    mode = os.stat(path).st_mode if os.path.exists(path) else stat.S_IFREG
    return None if stat.S_ISREG(mode) else "a folder" if stat.S_ISDIR(mode) else "no regular file"


def not_gguf(path: str | os.PathLike[str]) -> str | None:
    """As `kind_of`, for a file that should be a GGUF file: a checkpoint becomes one."""
    if weights := checkpoint_kind(path):
        return f"{weights}; `glmlite convert` makes a GGUF file of the folder that it is in"
    return kind_of(path)


@contextmanager
def named_where_full(path: str | os.PathLike[str]) -> Iterator[None]:
    """A file is written within: a full disk does not say which one it has no room for, so its error gets the name."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in FULL:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


@contextmanager
def replacing(path: str | os.PathLike[str], buffering: int = -1) -> Iterator[BinaryIO]:
    """A new binary file beside `path`, which gets that name when the block ends; whatever goes wrong leaves none.

    Removes what processes that were killed left of the same file. buffering: as for `open`. Raises OSError, at once
    where `path` is a folder or a device, whose place a file must not take.
    """
    with named_where_full(path), replacing_all([path], buffering) as files:
        yield files[0]


@contextmanager
def replacing_all(paths: Sequence[str | os.PathLike[str]], buffering: int = -1) -> Iterator[list[BinaryIO]]:
    """As `replacing`, of several files: all get their names, or none is left."""
    targets = [Path(path) for path in paths]
    for path in targets:
        check_target(path)
    parts: list[Path] = []  # which are ours to remove
    whole = False
    try:
        with ExitStack() as opened:
            files = []
            for path in targets:
                _remove_abandoned(path)
                parts.append(path.with_name(f".{path.name}.{os.getpid()}.part"))
                try:
                    files.append(opened.enter_context(_create(parts[-1], buffering)))
                except OSError as error:
                    parts.pop()
                    raise OSError(error.errno, error.strerror, str(path)) from None
            yield files
        whole = True
        for path, part in zip(targets, parts):
            os.replace(part, path)
    except BaseException:  # Ctrl-C, too
        waiting = [part for part in parts if part.exists()]
        for path, part in zip(targets, parts):
            if part in waiting:
                part.unlink(missing_ok=True)
            elif whole and waiting:
                path.unlink(missing_ok=True)
        raise


def check_target(path: Path) -> None:
    """Raises OSError where no file could get that name: there is no such folder, it takes no files, or what has the
    name is no file."""
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {path.parent}", str(path))
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, f"the folder {path.parent} takes no files", str(path))
    if (kind := special(path)) is not None:
        raise OSError(errno.EISDIR if path.is_dir() else errno.EEXIST, f"it is {kind}, expected a file", str(path))


def refuse_to_overwrite(path: Path, force: bool = False) -> None:
    """Raises as `check_target`, and without force FileExistsError if something has that name."""
    check_target(path)
    if not force and (path.exists() or path.is_symlink()):
        raise FileExistsError(errno.EEXIST, "it is there already; --force writes over it", str(path))


def _remove_abandoned(path: Path) -> None:
    ours = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.part")
    with suppress(OSError):  # a folder that cannot be listed; what is wrong with it shows in creating the file
        for part in path.parent.iterdir():
            if (found := ours.fullmatch(part.name)) and _is_abandoned(part, int(found[1])):
                part.unlink(missing_ok=True)


# Who writes a part holds a lock on it, which ends with the process, however that ends.
if sys.platform == "win32":

    def lock(file: BinaryIO) -> bool:
        """See below; here nothing is locked."""
        return True

    def _create(part: Path, buffering: int) -> BinaryIO:
        return part.open("xb", buffering=buffering)

    def _is_abandoned(part: Path, pid: int) -> bool:
        """Windows removes no file that is open."""
        try:
            part.unlink()
        except OSError:
            return False
        return True

else:
    import fcntl

    def lock(file: BinaryIO) -> bool:
        """Takes a file for this process as long as it is open; False where another one has it. A file system without
        locks has nobody who could tell."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def _create(part: Path, buffering: int) -> BinaryIO:
        while True:
            file = part.open("xb", buffering=buffering)
            lock(file)  # where there are no locks, nothing can tell who is gone, and nothing is removed
            with suppress(FileNotFoundError):  # another process took it for abandoned before it was locked
                if os.path.samestat(os.fstat(file.fileno()), part.stat()):
                    return file
            file.close()

    def _is_abandoned(part: Path, pid: int) -> bool:
        """Without a lock: its process, also one on another machine or in another container, has ended, or is about to
        give the file its name. A number that another process has got since is told by the file's age."""
        try:
            with part.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return not _lives(pid) or time.time() - part.stat().st_mtime > _UNTOUCHED
        except OSError:
            return False

    def _lives(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            return True
        return pid != os.getpid()
