"""Prompts of `glmlite.chat.dialects` as Jinja, for files that go to other programs: the same tokens for the same
messages. TEMPLATES are of models whose makers' own files carry one; ChatGLM2 and ChatGLM3 encode their pieces one by
one, which a text can say only of messages that do not begin with a blank, and without tools. GLM45 and GLM47 say what
the makers' own templates say, for files that have lost theirs."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from . import chat_format
from .dialects.glm4 import GLM4

__all__ = ["CHATGLM3", "GLM45", "GLM47", "TEMPLATES", "for_file"]

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

# GLM-4.5 and later: a line end between the marks where ¶ stands, which GLM-4.7 leaves out. What of a past thought is
# shown, and how thinking is asked for, differs, too.
_MARKED = (
    "[gMASK]<sop>"
    "{% if tools %}<|system|>\n"
    "# Tools\n\n"
    "You may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n"
    "<tools>\n{% for tool in tools %}{{ tool | tojson(ensure_ascii=False) }}\n{% endfor %}</tools>\n\n"
    "For each function call, output the function name and arguments within the following XML format:\n"
    "<tool_call>{function-name}¶<arg_key>{arg-key-1}</arg_key>¶<arg_value>{arg-value-1}</arg_value>¶"
    "<arg_key>{arg-key-2}</arg_key>¶<arg_value>{arg-value-2}</arg_value>¶...¶</tool_call>{% endif %}"
    "{% set last = namespace(question=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set last.question = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}"
    "{% if m.role == 'user' %}<|user|>¶{{ m.content }}(question)"
    "{% elif m.role == 'assistant' %}"
    "{% set said = m.content or '' %}{% set thought = m.reasoning_content %}"
    "{% if thought is not string %}{% set parts = said.split('</think>') %}{% set said = parts[-1] %}"
    "{% set thought = parts[0].split('<think>')[-1] if parts | length > 1 else '' %}{% endif %}"
    "<|assistant|>(thought)</think>"
    "{% if said.strip() %}{{ '¶' + said.strip() }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ '¶<tool_call>' + call.function.name + '¶' }}"
    "{% for key, value in call.function.arguments.items() %}<arg_key>{{ key }}</arg_key>¶"
    "<arg_value>{{ value if value is string else value | tojson(ensure_ascii=False) }}</arg_value>{{ '¶' }}{% endfor %}"
    "</tool_call>{% endfor %}"
    "{% elif m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|observation|>{% endif %}"
    "{{ '¶<tool_response>¶' + m.content + '¶</tool_response>' }}"
    "{% else %}<|system|>¶{{ m.content }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>(answer){% endif %}"
)
_OFF = "enable_thinking is defined and not enable_thinking"


def _marked(line: str, **parts: str) -> str:
    text = _MARKED.replace("¶", line)
    for name, part in parts.items():
        text = text.replace(f"({name})", part)
    return text


GLM45 = _marked(
    "\n",
    question="{{ '/nothink' if " + _OFF + " and not m.content.endswith('/nothink') else '' }}",
    thought="\n<think>{{ thought.strip() if loop.index0 > last.question else '' }}",
    answer="{{ '\n<think></think>' if " + _OFF + " else '' }}",
)
GLM47 = _marked(
    "",
    question="",
    thought="{% if thought and (loop.index0 > last.question or clear_thinking is defined and not clear_thinking) %}"
    "<think>{{ thought.strip() }}{% endif %}",
    answer="{{ '</think>' if " + _OFF + " else '<think>' }}",
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
