"""Rows of token ids as lists, numpy arrays or torch tensors, and how they are cut and padded."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import placement

Ids = list[int]


class BatchEncoding(dict[str, Any]):
    """input_ids and attention_mask, as keys and as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"{name}: not in this BatchEncoding, which has {', '.join(self)}")

    @property
    def data(self) -> dict[str, Any]:
        return self

    def to(self, device: Any, **no_meaning: Any) -> BatchEncoding:
        """Nothing, or RuntimeError if the device cannot be had: token ids stay in the CPU's memory."""
        if str(device).startswith("cuda"):
            placement.backend(str(device))
        return self


def batch(
    rows: Sequence[Ids],
    *,
    single: bool,
    pad_id: int,
    padding: Any = False,
    max_length: int | None = None,
    pad_to_multiple_of: int | None = None,
    padding_side: str = "left",
    return_tensors: Any = None,
    masks: Sequence[Ids] | None = None,
) -> BatchEncoding:
    """Rows as transformers' tokenizers return them. single: one row, which without tensors stands alone.

    padding: True or "longest", "max_length" (to `max_length`), False or "do_not_pad".
    """
    padding = {True: "longest", False: "do_not_pad", None: "do_not_pad"}.get(padding, padding)
    if not isinstance(padding, str) or padding not in ("longest", "max_length", "do_not_pad"):
        raise ValueError(f"padding is {padding!r}, expected True, False, 'longest' or 'max_length'")
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side is {padding_side!r}, expected 'left' or 'right'")
    rows, masks = list(rows), [[1] * len(r) for r in rows] if masks is None else list(masks)
    if padding != "do_not_pad":
        if padding == "max_length":
            if max_length is None:
                raise ValueError("padding is 'max_length', which needs max_length")
            width = max_length
        else:
            width = max(map(len, rows), default=0)
        if pad_to_multiple_of:
            width = -(-width // pad_to_multiple_of) * pad_to_multiple_of

        def pad(row: Ids, value: int) -> Ids:
            more = [value] * (width - len(row))
            return more + row if padding_side == "left" else row + more

        masks = [pad(m, 0) for m in masks]
        rows = [pad(r, pad_id) for r in rows]
    if return_tensors is not None:
        if len({len(r) for r in rows}) > 1:
            raise ValueError("tokenizer: texts of different lengths make no array; pass padding=True")
        return BatchEncoding(input_ids=tensor(rows, return_tensors), attention_mask=tensor(masks, return_tensors))
    return BatchEncoding(input_ids=rows[0] if single else rows, attention_mask=masks[0] if single else masks)


def limit(truncation: Any, max_length: int | None, longest: int) -> int | None:
    """To how many tokens `truncation` cuts a text; None: it stays whole. longest: what the model can read."""
    if truncation in (None, False, "do_not_truncate"):
        return None
    if truncation not in (True, "longest_first", "only_first"):
        raise ValueError(f"truncation is {truncation!r}, expected True, False, 'longest_first' or 'only_first'")
    return longest if max_length is None else max_length


def cut(ids: Ids, room: int | None, side: str) -> Ids:
    """The ids without what is over `room`, which goes at the `side` named."""
    if side not in ("left", "right"):
        raise ValueError(f"truncation_side is {side!r}, expected 'left' or 'right'")
    if room is None or len(ids) <= room:
        return ids
    return ids[len(ids) - room :] if side == "left" else ids[:room]


def tensor(rows: Sequence[Ids], kind: Any) -> Any:
    if kind == "np":
        return np.asarray(rows, np.int64)
    if kind == "pt":
        try:
            import torch
        except ImportError:
            raise ImportError("return_tensors is 'pt' and torch is not installed; 'np' is taken as well") from None
        return torch.tensor(rows, dtype=torch.long)
    raise ValueError(f"return_tensors is {kind!r}, expected 'np' or 'pt'")


def loaded_kind() -> str:
    """What scripts that name no kind of tensor can use: torch's where the program has it, else numpy's."""
    return "pt" if "torch" in sys.modules else "np"


def numpy(x: Any) -> NDArray[Any]:
    return np.asarray(x.detach().cpu().numpy() if hasattr(x, "detach") else x)


def like(x: NDArray[Any], given: Any) -> Any:
    if not hasattr(given, "detach"):
        return x
    import torch

    return torch.from_numpy(x)


def id_list(ids: Any) -> Ids:
    return [int(i) for i in np.atleast_1d(numpy(ids)).tolist()]


def _array(rows: Any) -> NDArray[np.int64]:
    if isinstance(rows, Sequence) and len({len(row) for row in rows if isinstance(row, Sequence)}) > 1:
        raise ValueError("input_ids has rows of different lengths; pass padding=True to the tokenizer")
    array = np.asarray(rows)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"input_ids is {reprlib.repr(rows)}, expected token ids, as a tokenizer gives them")
    return array.astype(np.int64)


def prompts(inputs: Any, attention_mask: Any) -> tuple[Any, NDArray[Any], list[Ids]]:
    """(input_ids as given, (rows, n) ids, each row without its padding). inputs: an array, a tensor, lists, or what a
    tokenizer returned."""
    if isinstance(inputs, Mapping):
        attention_mask = inputs.get("attention_mask") if attention_mask is None else attention_mask
        inputs = inputs["input_ids"]
    given = inputs if hasattr(inputs, "shape") else _array(inputs)
    rows = np.atleast_2d(numpy(given))
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"input_ids is {rows.shape}, expected (rows, n) ids, at least one row")
    masks = np.ones_like(rows) if attention_mask is None else np.atleast_2d(numpy(attention_mask))
    if masks.shape != rows.shape:
        raise ValueError(f"attention_mask is {masks.shape}, expected {rows.shape} as input_ids")
    return given, rows, [row[mask != 0].tolist() for row, mask in zip(rows, masks)]
