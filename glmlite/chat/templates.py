"""Prompts of `glmlite.chat.dialects` as Jinja, for files that go to other programs: the same tokens for the same
messages. TEMPLATES are of models whose makers' own files carry one; ChatGLM2 and ChatGLM3 encode their pieces one by
one, which a text can say only of messages that do not begin with a blank, and without tools."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from . import chat_format
from .dialects.glm4 import GLM4

__all__ = ["CHATGLM3", "TEMPLATES", "for_file"]

_END = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
# A line end behind a block tag is Jinja's to drop (trim_blocks), so those that count stand elsewhere.
_0414 = (
    "[gMASK]<sop>"
    "{% if tools %}<|system|>\n"
    "# 可用工具"
    "{% for tool in tools %}{{ '\n\n## ' }}{{ tool.function.name }}\n\n{{ tool.function | tojson(indent=4) }}\n"
    "在调用上述函数时，请使用 Json 格式表示调用的参数。{% endfor %}{% endif %}"
    "{% for m in messages %}"
    "{% if m.content %}"
    "<|{{ 'observation' if m.role == 'tool' else m.role }}|>"
    "{{ m.metadata or '' if m.role == 'assistant' else '' }}\n{{ m.content }}{% endif %}"
    "{% if m.tool_calls %}{% for call in m.tool_calls %}"
    "<|assistant|>{{ call.function.name }}\n{{ call.function.arguments | tojson }}{% endfor %}{% endif %}"
    "{% endfor %}" + _END
)
_EDGE = "{% for m in messages %}<|{{ 'observation' if m.role == 'tool' else m.role }}|>\n{{ m.content }}{% endfor %}"

# In sentencepiece vocabularies the blank is the one that each text begins with.
CHATGLM3 = (
    "[gMASK]<sop>{% for m in messages %}<|{{ 'observation' if m.role == 'tool' else m.role }}|>"
    "{{ m.metadata or '' if m.role == 'assistant' else '' }}\n {{ m.content }}{% endfor %}" + _END
)

TEMPLATES: dict[str, str] = {
    "glm4": _0414.replace("# 可用工具", f"{GLM4.preamble}# 可用工具"),
    "glm-edge": _EDGE + _END,
    "glm4-0414": _0414,
}


def for_file(metadata: Mapping[str, Any], architecture: str, ids: Mapping[str, int]) -> str | None:
    """The template for a file that has none: that of its dialect; None if there is none. ids: token -> id."""
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        return None
    return TEMPLATES.get(chat_format(metadata, SimpleNamespace(id_of=ids.get), architecture) or "")
