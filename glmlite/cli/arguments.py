"""What the arguments [MODEL] [TEXT] mean: a model's name or path is never taken for a question to another model."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .. import builtin
from ..locate import NAMES, SUFFIXES, near

_ALONE = "chatglm|codegeex|glm|llama|smollm|tinyllama|qwen|mistral|mixtral|gemma|deepseek|baichuan|internlm|vicuna"
_FAMILIES = rf"{_ALONE}|phi|yi"
# chatglm3-6b, glm4:9b, llama3.2:1b, GLM-4-9B-0414: letters, then digits, dots, dashes, colons and more of both
_MODEL = re.compile(rf"(?:{_FAMILIES})(?:[-_.:]?v?\d|[-_:])[\w.:-]*|(?:{_ALONE})", re.I)
# whatever-7b, whatever-chat, whatever-q4_k_m
_KIND = re.compile(
    r"(?=.*\d)[a-z][\w.]*[-_:](?:[\w.-]*[-_:])?"
    r"(?:\d+(?:\.\d+)?[bm]|chat|instruct|base|i?q\d(?:_\w+)?|f16|fp16|bf16|int[48]|gguf|latest)(?:[-_:][\w.-]*)?",
    re.I,
)
_PATH_BEGINS = re.compile(r"(?:\.{1,2}|~\w*)?[/\\]|[A-Za-z]:[/\\]|~$|\$\{?\w+\}?[/\\]|%\w+%[/\\]")
_CHINESE = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef\u3000-\u303f]")


def model_and_text(model: str | None, text: str | None) -> tuple[str, str | None]:
    """The arguments [MODEL] [TEXT]: one alone is a model if it names one, is there, or looks like either."""
    if model is None:
        return builtin.NAME, text
    return (model, text) if text is not None or means_a_model(model) else (builtin.NAME, model)


def hint(command: str, model: str, text: str | None) -> str:
    """What to say beside a MODEL that is not there: it may have been meant as (a part of) a text."""
    if text is None:
        return f"to give it as a text, name a model before it: `glmlite {command} {builtin.NAME} TEXT`"
    return "" if looks_like_a_path(model) else "a text of several words stands in quotes"


def means_a_model(text: str) -> bool:
    """Whether a single argument is a model, there or not, rather than a question."""
    return text in NAMES or _is_there(text) or looks_like_a_path(text) or looks_like_a_name(text)


def looks_like_a_path(text: str) -> bool:
    ends = text.lower().rstrip().endswith(SUFFIXES)
    begins = bool(_PATH_BEGINS.match(text))
    words = text.split()
    if len(words) != 1:  # a sentence, but for paths with a space in them
        one = all(not _PATH_BEGINS.match(word) for word in words[1:]) and "?" not in text and "\n" not in text
        return one and ((begins and (ends or bool(re.search(r"[/\\]", words[-1])))) or (ends and len(words) < 4))
    if re.match(r"https?://", text):
        return True
    if "?" in text or "？" in text:
        return ends
    if _CHINESE.search(text):
        return begins or ends or _is_there(re.split(r"[/\\]", text)[0])
    return begins or ends or bool(re.search(r"[/\\]", text))


def looks_like_a_name(text: str) -> bool:
    """Whether a word is made as the names of models are, or is nearly the name of one that is there."""
    if re.search(r"[\s?]", text) or _CHINESE.search(text):
        return False
    return bool(_MODEL.fullmatch(text) or _KIND.fullmatch(text)) or bool(near(text))


def _is_there(text: str) -> bool:
    try:
        return bool(text) and (os.path.exists(text) or Path(text).expanduser().exists())
    except (ValueError, RuntimeError, OSError):  # a zero byte, no home folder, longer than a path can be
        return False
