"""Conversations in rounds of a question and an answer, as ChatGLM-6B and ChatGLM2-6B were trained on."""

from __future__ import annotations

from .dialect import Messages, Tools, refuse


def rounds(name: str, messages: Messages, tools: Tools, generate: bool) -> tuple[str, list[tuple[str, str | None]]]:
    """The system text, which ends its lines, and [(question, answer)]: the first question begins with the system text,
    the last answer is None where the model is to give it."""
    refuse(name, messages, tools)
    count = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    system = "".join(message["content"] + "\n" for message in messages[:count] if message["content"])
    turns = messages[count:]
    for i, message in enumerate(turns):
        want = ("user", "assistant")[i % 2]
        if message["role"] != want:
            raise ValueError(
                f"messages[{count + i}]: role {message['role']!r}, the chat format {name} has {want!r} there"
            )
    if generate and not turns:
        raise ValueError(f"messages: there is no question; the chat format {name} ends with the user's")
    if generate and len(turns) % 2 == 0:
        raise ValueError(f"messages: the last is the assistant's; the chat format {name} ends with the user's")
    texts: list[str | None] = [message["content"] for message in turns]
    if len(texts) % 2:
        texts.append(None)
    if texts:
        texts[0] = system + str(texts[0])
    return system, [(str(question), answer) for question, answer in zip(texts[::2], texts[1::2])]
