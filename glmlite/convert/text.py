"""What a file says beside its tensors: tokenizer, the ids that end an answer, chat template, recommended sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..chat.templates import for_file
from ..errors import FormatError
from ..families import ENDS
from ..tokenizer.vocabulary import TokenType
from . import vocab
from .architectures import Config
from .files import load_json, load_text, short

__all__ = ["text_metadata"]

_SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}


def text_metadata(folder: Path, config: Config, architecture: str, rows: int) -> dict[str, Any]:
    """The `tokenizer.*`, `glmlite.*` and `general.sampling.*` keys. rows: of the embeddings, one for each token.

    Raises FormatError for a folder without a tokenizer, and for ids that it does not have.
    """
    tokenizer_config = _optional(folder / "tokenizer_config.json")
    generation = Config(_optional(folder / "generation_config.json"), folder / "generation_config.json")
    metadata = vocab.from_folder(folder, vocab_size=rows, chatglm=architecture == "chatglm")
    metadata |= _special_ids(config, generation.values, metadata, rows)
    if architecture == "llama":
        metadata["tokenizer.ggml.add_bos_token"] = _begins_with_bos(folder, tokenizer_config, metadata)
    metadata |= _templates(folder, tokenizer_config)
    if "tokenizer.chat_template" not in metadata:
        ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
        if (template := for_file(metadata, architecture, ids)) is not None:
            metadata["tokenizer.chat_template"] = template
    if architecture == "chatglm" and metadata["tokenizer.ggml.model"] == "llama":
        for key in [key for key in metadata if key.startswith("tokenizer.chat_template")]:
            metadata[key] = metadata[key].replace("[gMASK]sop", "[gMASK]<sop>")  # as `vocab` calls ChatGLM3's token
    if architecture == "chatglm" and _is_chatglm2(folder, tokenizer_config, metadata):
        metadata["glmlite.chat_format"] = "chatglm2"
    if generation.get("do_sample", True):
        for key, name in _SAMPLING.items():
            if generation.get(key):  # 0 switches a rule off, as leaving it out does
                value = generation.number(key)
                metadata[f"general.sampling.{name}"] = int(value) if name == "top_k" else value
    return metadata


def _special_ids(config: Config, generation: dict[str, Any], vocabulary: dict[str, Any], rows: int) -> dict[str, Any]:
    """All ids that end an answer: those of the config and the generation config, and the family's, which many a
    checkpoint names in part only."""
    path = config.path

    def ids(key: str) -> list[int]:
        found: list[int] = []
        for values in (config.values, generation):
            value = values.get(key)
            for i in value if isinstance(value, list) else [] if value is None else [value]:
                if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < rows:
                    raise FormatError(f"{path}: {key!r} has {short(i)}, expected ids below {rows}")
                if i not in found:
                    found.append(i)
        return found

    metadata: dict[str, Any] = {}
    tokens = vocabulary["tokenizer.ggml.tokens"]
    ends = ids("eos_token_id")
    control = np.flatnonzero(vocabulary["tokenizer.ggml.token_type"] == TokenType.CONTROL)
    marked = {tokens[i]: int(i) for i in control}
    if "[gMASK]" in marked:
        family = {name: marked[text] for name, text in ENDS.items() if text in marked}
        metadata |= {f"tokenizer.ggml.{name}_token_id": i for name, i in family.items() if name != "eos"}
        ends += [i for i in family.values() if i not in ends]
    if ends:
        metadata["tokenizer.ggml.eos_token_id"] = ends[0]
        if len(ends) > 1:
            metadata["tokenizer.ggml.eos_token_ids"] = np.array(ends, np.uint32)
    for key, name in (("bos_token_id", "bos"), ("pad_token_id", "padding")):
        if f"tokenizer.ggml.{name}_token_id" not in vocabulary and (found := ids(key)):
            metadata[f"tokenizer.ggml.{name}_token_id"] = found[0]
    return metadata


def _begins_with_bos(folder: Path, tokenizer_config: dict[str, Any], vocabulary: dict[str, Any]) -> bool:
    """Llama's code puts `<s>` first unless told not to; a tokenizer.json says it in its post-processor."""
    if "tokenizer.ggml.bos_token_id" not in vocabulary:
        return False
    if isinstance(told := tokenizer_config.get("add_bos_token"), bool):
        return told
    if vocabulary["tokenizer.ggml.model"] == "llama":
        return True
    post = _optional(folder / "tokenizer.json").get("post_processor")
    more = post.get("processors") if isinstance(post, dict) else None
    steps = [post, *(more if isinstance(more, list) else [])]
    singles = [step.get("single") for step in steps if isinstance(step, dict)]
    return any(
        "SpecialToken" in single[0]
        for single in singles
        if isinstance(single, list) and single and isinstance(single[0], dict)
    )


def _templates(folder: Path, tokenizer_config: dict[str, Any]) -> dict[str, str]:
    """`chat_template` is a text, or a list of named ones; newer copies have it in a file of its own."""
    if (path := folder / "chat_template.jinja").is_file():
        return {"tokenizer.chat_template": load_text(path)}
    template = tokenizer_config.get("chat_template")
    if isinstance(template, str):
        return {"tokenizer.chat_template": template}
    found = {}
    for item in template if isinstance(template, list) else []:
        if isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str):
            suffix = "" if item["name"] == "default" else f".{item['name']}"
            found[f"tokenizer.chat_template{suffix}"] = item["template"]
    return found


def _is_chatglm2(folder: Path, tokenizer_config: dict[str, Any], metadata: dict[str, Any]) -> bool:
    """ChatGLM2 and ChatGLM3 share a vocabulary file. Only the latter's own tokenizer code, which is read as text,
    or its tokenizer_config knows roles; where neither is there, it is a ChatGLM3."""
    if metadata["tokenizer.ggml.model"] != "llama" or "tokenizer.chat_template" in metadata:
        return False
    code = folder / "tokenization_chatglm.py"
    if not code.is_file() or "<|user|>" in repr(tokenizer_config):
        return False
    return "<|user|>" not in code.read_text(encoding="utf-8", errors="replace")


def _optional(path: Path) -> dict[str, Any]:
    return load_json(path) if path.is_file() else {}
