"""`glmlite inspect`: what a file holds."""

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from . import console
from .options import Json, KvType, ModelName, find

SHOWN = 8  # elements of an array


def inspect(
    file: ModelName,
    context: Annotated[
        int | None,
        typer.Option(
            "--context", "-c", min=1, metavar="N", help="Say what N tokens of context need.", show_default=False
        ),
    ] = None,
    kv_type: KvType = "f16",
    tensors: Annotated[bool, typer.Option("--tensors", help="List the tensors.")] = False,
    as_json: Json = False,
) -> None:
    """Show a GGUF file's metadata, tensor types and the memory that it needs.

    \b
    Examples:
      glmlite inspect model.gguf
      glmlite inspect model.gguf --context 32768
      glmlite inspect model.gguf --json --tensors > model.json
    """
    from .._native import Gguf
    from ..locate import model_file

    gguf = Gguf(model_file(find(file)))
    try:
        facts = describe(gguf, context, tensors, kv_type)
    finally:
        gguf.close()
    trained = facts["memory"].get("trained_context")
    if context is not None and trained is not None and trained < context:
        console.note(f"[--context {context}: the model was trained for {trained} tokens]")
    console.write(json.dumps(facts, ensure_ascii=False, indent=1) + "\n" if as_json else _text(facts))


def describe(gguf: Any, context: int | None, tensors: bool, kv_type: str = "f16") -> dict[str, Any]:
    """The facts of an open file, as JSON has them. Arrays of the metadata are shortened, their length given."""
    parameters = nbytes = 0
    types: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for tensor in gguf.tensors.values():
        parameters += math.prod(tensor.shape)
        nbytes += tensor.nbytes
        types[tensor.type] += tensor.nbytes
        counts[tensor.type] += 1
    facts = {
        "paths": list(gguf.paths),
        "version": gguf.version,
        "bytes": gguf.nbytes,
        "architecture": _plain(gguf.metadata.get("general.architecture")),
        "parameters": parameters,
        **_experts(gguf),
        **_eyes(gguf),
        "types": {name: {"tensors": counts[name], "bytes": types[name]} for name in types},
        "memory": _memory(gguf, nbytes, context, kv_type),
        "metadata": {key: _plain(value) for key, value in gguf.metadata.items()},
    }
    if tensors:
        facts["tensors"] = [
            {"name": t.name, "type": t.type, "shape": list(t.shape), "bytes": t.nbytes, "supported": t.supported}
            for t in gguf.tensors.values()
        ]
    return facts


def _experts(gguf: Any) -> dict[str, Any]:
    """Of a mixture: how many experts there are, and the parameters that a token is multiplied with.

    Those are all but the embeddings, what drafts, and the experts that are not chosen.
    """
    architecture = gguf.metadata.get("general.architecture")

    def count(name: str) -> int | None:
        value = gguf.metadata.get(f"{architecture}.{name}")
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

    experts, used, blocks = count("expert_count"), count("expert_used_count"), count("block_count")
    if not experts or used is None or used > experts or blocks is None:
        return {}
    layers = blocks - (count("nextn_predict_layers") or 0)
    active = 0
    for tensor in gguf.tensors.values():
        block = tensor.name.split(".")[1] if tensor.name.startswith("blk.") else ""
        looked_up = tensor.name == "token_embd.weight" and "output.weight" in gguf.tensors
        if looked_up or (block.isdecimal() and len(block) < 10 and int(block) >= layers):
            continue
        whole = math.prod(tensor.shape)
        active += whole // experts * used if "_exps." in tensor.name else whole
    shared = count("expert_shared_count") or 0
    return {"experts": {"count": experts, "used": used, "shared": shared}, "active_parameters": active}


def _eyes(gguf: Any) -> dict[str, Any]:
    """Of the eyes in a file, alone or with the text model: what they are and see. width: columns of the text model;
    tokens: of the largest image."""
    from ..errors import FormatError
    from ..models import record_eyes

    if "clip.projector_type" not in gguf.metadata:
        return {}
    try:
        config = record_eyes(gguf.metadata, {name: tensor.shape for name, tensor in gguf.tensors.items()}).config
    except FormatError as error:
        return {"sees": {"error": str(error)}}
    names = ("layers", "dim", "heads", "patch", "merge", "side", "width", "least_pixels", "most_pixels")
    tokens = config.most_pixels // (config.patch * config.merge) ** 2
    return {"sees": {name: getattr(config, name) for name in names} | {"tokens": tokens}}


def _memory(gguf: Any, weights: int, context: int | None, kv_type: str) -> dict[str, Any]:
    """Bytes of the weights, of the cache, which eyes alone have none of, and of the eyes that `load` finds."""
    kind = gguf.metadata.get("general.type")
    if isinstance(kind, str) and kind == "mmproj":
        return {"weights": weights, "contexts": []}
    from ..errors import FormatError
    from ..mmproj import find as find_eyes
    from ..models import record
    from ..models.glm4v import TENSORS
    from ..placement import kv_bytes_per_token

    try:
        recording = record(gguf.metadata, {name: tensor.shape for name, tensor in gguf.tensors.items()})
    except FormatError as error:
        return {"error": str(error)}
    path = Path(os.fsdecode(gguf.paths[0]))
    eyes = find_eyes(path, gguf, recording, gguf.metadata).eyes
    found, held = {}, weights
    if eyes is not None:
        found = {"eyes": {"path": str(eyes.path), "bytes": eyes.nbytes}}
        text = (tensor.nbytes for name, tensor in gguf.tensors.items() if not name.startswith(TENSORS))
        held = sum(text) + eyes.nbytes
    per_token = kv_bytes_per_token(gguf, recording.ops, kv_type)
    asked = [context] if context else [2048, 8192, recording.context]
    contexts = sorted({min(n, recording.context) for n in asked})  # as `load` cuts it
    return {
        "weights": weights,
        **found,
        "kv_type": kv_type,
        "cache_per_token": per_token,
        "trained_context": recording.context,
        "contexts": [{"tokens": n, "bytes": held + n * per_token} for n in contexts],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        return {"length": len(value), "first": value[:SHOWN].tolist()}
    if isinstance(value, list):
        return {"length": len(value), "first": [_plain(item) for item in value[:SHOWN]]}
    return value


# ---- as text -----------------------------------------------------------------------------------------------------


def _text(facts: dict[str, Any]) -> str:
    rows = [("file", path) for path in facts["paths"]]
    rows.append(("format", f"GGUF {facts['version']}, {console.size(facts['bytes'])}"))
    rows.append(("architecture", facts["architecture"]))
    rows.append(("parameters", _count(facts["parameters"])))
    if "experts" in facts:
        shared = f", and {facts['experts']['shared']} beside them" if facts["experts"]["shared"] else ""
        rows.append(("experts", f"{facts['experts']['count']}, {facts['experts']['used']} for a token{shared}"))
        rows.append(("parameters a token", _count(facts["active_parameters"])))
    if "sees" in facts:
        rows += _seen(facts["sees"])
    for name, item in facts["types"].items():
        rows.append((name, f"{item['tensors']} tensors, {console.size(item['bytes'])}"))
    memory = facts["memory"]
    if "error" in memory:
        rows.append(("runs here", f"no: {memory['error']}"))
    else:
        if "eyes" in memory:
            rows.append(("eyes", f"{memory['eyes']['path']}, {console.size(memory['eyes']['bytes'])}"))
        for item in memory["contexts"]:
            rows.append((f"memory, {item['tokens']} tokens", console.size(item["bytes"])))
    out = [console.columns(rows), "\n"]
    out.append(console.columns([(key, _short(value)) for key, value in facts["metadata"].items()]))
    if "tensors" in facts:
        table = [("tensor", "type", "shape", "bytes")]
        for t in facts["tensors"]:
            name = t["type"] + " (not supported)" * (not t["supported"])
            table.append((t["name"], name, " x ".join(map(str, t["shape"])), t["bytes"]))
        out += ["\n", console.columns(table, right=[3])]
    return "".join(out)


def _seen(sees: dict[str, Any]) -> list[tuple[str, str]]:
    """What eyes are, in lines."""
    if "error" in sees:
        return [("tower", f"not of use here: {sees['error']}")]
    positions = f", positions {sees['side']} x {sees['side']}" if sees["side"] else ""
    return [
        ("tower", f"{sees['layers']} layers of {sees['dim']} columns, {sees['heads']} heads{positions}"),
        ("its rows", f"of {sees['width']} columns, as the text model has to have"),
        ("largest image", f"{sees['most_pixels'] / 1e6:.1f} million pixels, {sees['tokens']} tokens"),
    ]


def _count(n: int) -> str:
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if n >= unit:
            return f"{n / unit:.2f} {name}"
    return str(n)


def _short(value: Any) -> str:
    """A value of the metadata in one line."""
    if isinstance(value, dict):
        items = ", ".join(_short(item) for item in value["first"])
        return f"{value['length']}: {items}{', ...' if value['length'] > SHOWN else ''}"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
    return text if len(text) <= 100 else text[:97] + "..."
