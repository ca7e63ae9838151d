"""The storage formats, from the engine's table (csrc/blocks.h), which is the only place that has their sizes."""

from __future__ import annotations

from collections.abc import Mapping

from ._native import Storage, formats

__all__ = ["STORAGE"]

STORAGE: Mapping[str, Storage] = {storage.name: storage for storage in formats()}
