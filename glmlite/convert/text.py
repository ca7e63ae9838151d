"""What a file says beside its tensors: tokenizer, the ids that end an answer, chat template, recommended sampling."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..chat.templates import for_file
from ..errors import FormatError
from ..families import ENDS, GAPS, about
from ..parameters import RECOMMENDED, Parameters
from ..tokenizer.vocabulary import TokenType
from . import vocab
from .architectures import Config
from .files import load_bytes, load_json, load_text, short

__all__ = ["text_metadata"]

log = logging.getLogger(__name__)


# What others write to switch a rule off, besides what this library takes for it.
_OFF = {"top_k": (0, -1), "top_p": (0, -1), "min_p": (0, -1)}
# Recommendations that change what a model writes and have no place in the file: name -> what switches them off.
_NO_PLACE = {
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "diversity_penalty": 0.0,
    "num_beams": 1,
    "penalty_alpha": None,
    "top_h": None,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": None,
    "min_length": 0,
    "min_new_tokens": None,
    "stop_strings": None,
}


def text_metadata(folder: Path, config: Config, architecture: str, rows: int) -> dict[str, Any]:
    """The `tokenizer.*`, `glmlite.*` and `general.sampling.*` keys. rows: of the embeddings, one for each token.

    Raises FormatError for a folder without a tokenizer, and for ids that it does not have.
    """
    tokenizer_config = _optional(folder / "tokenizer_config.json")
    generation = _recommended(folder / "generation_config.json")
    row = about(architecture)
    metadata = vocab.from_folder(folder, vocab_size=rows, chatglm=row.versions)
    metadata |= _special_ids(config, generation.values, metadata, rows)
    if row.experts and "[gMASK]" in metadata["tokenizer.ggml.tokens"]:
        # What llama.cpp's own files of these models name; configs name nothing, or what a class had by default.
        metadata["tokenizer.ggml.bos_token_id"] = metadata["tokenizer.ggml.tokens"].index("[gMASK]")
    if row.asks_bos:
        metadata["tokenizer.ggml.add_bos_token"] = _begins_with_bos(folder, tokenizer_config, metadata)
        metadata |= _space_prefix(folder, tokenizer_config, metadata)
    if tokenizer_config.get("add_eos_token") is True:
        log.warning(
            "%s: 'add_eos_token' is for training, left out: a prompt that ends in the end token has no answer",
            folder / "tokenizer_config.json",
        )
    metadata |= _templates(folder, tokenizer_config)
    if "tokenizer.chat_template" not in metadata:
        ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
        if (template := for_file(metadata, architecture, ids)) is not None:
            metadata["tokenizer.chat_template"] = template
    if row.versions and metadata["tokenizer.ggml.model"] == "llama":
        for key in [
            key for key in metadata if key.startswith("tokenizer.chat_template") and isinstance(metadata[key], str)
        ]:
            metadata[key] = metadata[key].replace("[gMASK]sop", "[gMASK]<sop>")  # as `vocab` calls ChatGLM3's token
    if row.versions and _is_chatglm2(folder, tokenizer_config, metadata):
        metadata["glmlite.chat_format"] = "chatglm2"
    return metadata | _sampling(generation)


def _recommended(path: Path) -> Config:
    """generation_config.json; nothing, with a warning, if it cannot be read: transformers does without one, too."""
    try:
        return Config(_optional(path), path)
    except FormatError as error:
        log.warning("%s; left out", error)
        return Config({}, path)


def _sampling(generation: Config) -> dict[str, float]:
    """The recommended sampling. A hint that cannot be used stops no conversion: it is left out, with a warning."""
    metadata: dict[str, float] = {}
    hints = [name for name in RECOMMENDED if name != "penalty_window"]  # which transformers does not have
    if not generation.get("do_sample", True):
        metadata[RECOMMENDED["temperature"]] = 0.0  # the likeliest token, whatever else is recommended
        hints = ["repetition_penalty"]
    for name in hints:
        value = generation.get(name)
        if isinstance(value, float) and name == "top_k" and value.is_integer():
            value = int(value)
        if value is None or (not isinstance(value, bool) and value in _OFF.get(name, ())):
            continue
        try:
            Parameters.of(**{name: value})
        except (TypeError, ValueError):
            log.warning("%s: %r is %s, left out", generation.path, name, short(value))
        else:
            metadata[RECOMMENDED[name]] = value if name == "top_k" else float(value)
    for name, off in _NO_PLACE.items():
        value = generation.get(name)
        if value is not None and value != off and value != []:
            log.warning(
                "%s: %r is %s, which has no place in a GGUF file: left out", generation.path, name, short(value)
            )
    return metadata


def _special_ids(
    config: Config, generation: Mapping[str, Any], vocabulary: dict[str, Any], rows: int
) -> dict[str, Any]:
    """All ids that end an answer: those of the config and the generation config, and the family's, which many a
    checkpoint names in part only."""
    path = config.path

    def ids(key: str) -> list[int]:
        found: list[int] = []
        for values in (config.values, generation):
            value = values.get(key)
            for i in value if isinstance(value, list) else [] if value is None else [value]:
                if i is None or (isinstance(i, int) and i < 0):
                    continue  # -1, as other programs write "none"
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
        metadata |= {
            f"tokenizer.ggml.{name}_token_id": marked[text] for (name, _), text in GAPS.items() if text in marked
        }
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


def _space_prefix(folder: Path, tokenizer_config: dict[str, Any], vocabulary: dict[str, Any]) -> dict[str, bool]:
    """Whether a text has a space put before it: transformers lets the config overrule the vocabulary's file.

    Raises FormatError where a vocabulary of bytes should have one, whose file has none.
    """
    if not isinstance(told := tokenizer_config.get("add_prefix_space"), bool):
        return {}
    if vocabulary["tokenizer.ggml.model"] == "llama":
        return {"tokenizer.ggml.add_space_prefix": told}
    if told and vocabulary["tokenizer.ggml.model"] == "gpt2":
        raise FormatError(f"{folder / 'tokenizer_config.json'}: add_prefix_space is true, which is not done here")
    return {}


def _templates(folder: Path, tokenizer_config: dict[str, Any]) -> dict[str, Any]:
    """Name -> template: a text, or a list of named ones, of the config; newer copies have files of their own, which
    count before it. GGUF has the names besides `default` in a list."""
    template = _optional(folder / "chat_template.json").get("chat_template", tokenizer_config.get("chat_template"))
    named: dict[str, str] = {"default": template} if isinstance(template, str) else {}
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    for item in template if isinstance(template, list) else []:
        if isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str):
            named[item["name"]] = item["template"]
    if (path := folder / "chat_template.jinja").is_file():
        named = {"default": load_text(path)}
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        named[path.stem] = load_text(path)
    found: dict[str, Any] = {}
    named = {re.sub("[^a-zA-Z0-9_]", "_", name): text for name, text in named.items()}  # as gguf-py spells them
    for name, text in named.items():
        found["tokenizer.chat_template" if name == "default" else f"tokenizer.chat_template.{name}"] = text
    if others := sorted(named.keys() - {"default"}):
        found["tokenizer.chat_templates"] = others
    return found


def _is_chatglm2(folder: Path, tokenizer_config: dict[str, Any], metadata: dict[str, Any]) -> bool:
    """ChatGLM2 and ChatGLM3 share a vocabulary file. Only the latter's own tokenizer code, which is read as text,
    or its tokenizer_config knows roles; where neither is there, it is a ChatGLM3."""
    if metadata["tokenizer.ggml.model"] != "llama" or "tokenizer.chat_template" in metadata:
        return False
    code = folder / "tokenization_chatglm.py"
    if not code.is_file() or "<|user|>" in repr(tokenizer_config):
        return False
    return "<|user|>" not in load_bytes(code).decode("utf-8", "replace")


def _optional(path: Path) -> dict[str, Any]:
    return load_json(path) if path.is_file() else {}
