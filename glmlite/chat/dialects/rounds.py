"""Conversations in rounds of a question and an answer, as ChatGLM-6B and ChatGLM2-6B were trained on."""

from __future__ import annotations

from .dialect import Messages, Tools, refuse


def rounds(name: str, messages: Messages, tools: Tools, generate: bool) -> tuple[str, list[tuple[str, str | None]]]:
    """(the system text where there is nothing else, [(question, answer)]): the last answer is None where the model is
    to give it.

    A system text is put in front of the question after it, each in a line; neighbours of one role are one message.
    """
    refuse(name, messages, tools)
    turns: list[list[str]] = []  # [role, its texts ...]

    def say(role: str, text: str) -> None:
        if not turns or turns[-1][0] != role:
            turns.append([role])
        turns[-1].append(text)

    for i, message in enumerate(messages):
        role, text = message["role"], message["content"]
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"messages[{i}]: role {role!r}, the chat format {name} has none")
        if role == "assistant" and not turns:
            say("user", "")
        if role != "system":
            say(role, text)
        elif text:
            say("user", text)
    if all(message["role"] == "system" for message in messages):
        if generate:
            raise ValueError(f"messages: there is no question; the chat format {name} ends with the user's")
        return "".join(f"{text}\n" for turn in turns for text in turn[1:]), []
    if generate and turns[-1][0] == "assistant":
        raise ValueError(f"messages: the last is the assistant's; the chat format {name} ends with the user's")
    texts: list[str | None] = ["\n".join(turn[1:]) for turn in turns]
    if len(texts) % 2:
        texts.append(None)
    return "", [(str(question), answer) for question, answer in zip(texts[::2], texts[1::2])]
