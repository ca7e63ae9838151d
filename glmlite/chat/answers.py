"""What the makers' own `chat` does to an answer after the model has written it."""

from __future__ import annotations

import re

# ChatGLM-6B was trained on half-width punctuation and gives Chinese text its own back.
_PUNCTUATION = str.maketrans(",!?:;", "，！？：；")
_BESIDE_HANZI = re.compile(r"(?<=[\u4e00-\u9fff])[,!?:;]|[,!?:;](?=[\u4e00-\u9fff])")

# The models write this where they speak of their training; their code puts the year there.
_DATE = "[[训练时间]]", "2023年"


def tidy(chat_format: str | None, answer: str) -> str:
    """An answer as the model's makers show it: without white space around it and, by the format of the chat, with the
    date filled in and Chinese punctuation."""
    answer = answer.strip()
    if chat_format in ("chatglm", "chatglm2", "chatglm3", "glm4"):
        answer = answer.replace(*_DATE)
    if chat_format == "chatglm":
        answer = _BESIDE_HANZI.sub(lambda mark: mark[0].translate(_PUNCTUATION), answer)
    return answer
