"""For PyInstaller, which finds this by an entry point: the folder of hooks, which say what a frozen program needs."""

from __future__ import annotations

from pathlib import Path

__all__ = ["get_hook_dirs"]


def get_hook_dirs() -> list[str]:
    return [str(Path(__file__).parent)]
