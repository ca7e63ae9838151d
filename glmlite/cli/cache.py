"""How large the caches of this machine's CPU are: what differs between the systems is here."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")


def last_level_bytes() -> int:
    """Bytes of the last level of cache, of all CPUs that this process may run on; 0 if the system does not tell."""
    with suppress(OSError, ValueError, AttributeError):
        if sys.platform == "darwin":
            return _of_macos()
        if sys.platform == "win32":
            return _of_windows()
        return _of_linux(sorted(os.sched_getaffinity(0)))
    return 0


def _of_linux(cpus: list[int], root: Path = _CPUS) -> int:
    """CPUs that share a cache name the same list of them, and it counts once."""
    caches: dict[tuple[int, str], int] = {}
    for cpu in cpus:
        for entry in (root / f"cpu{cpu}" / "cache").glob("index*"):
            size = (entry / "size").read_text().strip()
            nbytes = int(size.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(size[-1], 0)
            caches[int((entry / "level").read_text()), (entry / "shared_cpu_list").read_text()] = nbytes
    last = max((level for level, _ in caches), default=0)
    return sum(nbytes for (level, _), nbytes in caches.items() if level == last)


def _of_macos() -> int:
    system = ctypes.CDLL(None)
    for name in (b"hw.l3cachesize", b"hw.perflevel0.l2cachesize", b"hw.l2cachesize"):
        value, size = ctypes.c_int64(0), ctypes.c_size_t(8)
        failed = system.sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
        if not failed and value.value > 0:
            return value.value
    return 0


def _of_windows() -> int:
    class Information(ctypes.Structure):  # SYSTEM_LOGICAL_PROCESSOR_INFORMATION of a cache
        _fields_ = (
            ("mask", ctypes.c_size_t),
            ("relationship", ctypes.c_int),
            ("level", ctypes.c_ubyte),
            ("associativity", ctypes.c_ubyte),
            ("line", ctypes.c_ushort),
            ("size", ctypes.c_uint32),
            ("type", ctypes.c_int),
            ("rest", ctypes.c_uint32),
        )

    cache = 2  # RelationCache
    ask = getattr(ctypes, "windll").kernel32.GetLogicalProcessorInformation  # noqa: B009  only there on Windows
    size = ctypes.c_uint32(0)
    ask(None, ctypes.byref(size))
    entries = (Information * (size.value // ctypes.sizeof(Information)))()
    if not ask(entries, ctypes.byref(size)):
        return 0
    caches = [(entry.level, entry.size) for entry in entries if entry.relationship == cache]
    last = max((level for level, _ in caches), default=0)
    return sum(nbytes for level, nbytes in caches if level == last)
