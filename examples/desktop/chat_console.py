"""The same in a terminal, without a thread: a line is a question, Ctrl-C ends an answer, the end of the input all.

python chat_console.py [MODEL.gguf]
"""

from __future__ import annotations

import sys

from history import History

import glmlite


def main() -> int:
    history = History.read()
    if len(sys.argv) > 1:
        history.use(sys.argv[1])
    try:
        model = glmlite.load(history.models[0])
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        print(error, file=sys.stderr)
        return 1
    with model:
        print(f"[{model.name}, context {model.context}]", flush=True)
        for line in sys.stdin:
            if question := line.strip():
                history.add(question, answer(model, [*history.messages, {"role": "user", "content": question}]))
    return 0


def answer(model: glmlite.Model, messages: list[dict[str, str]]) -> str:
    """Prints it as it is written."""
    text = ""
    try:
        for piece in model.chat_stream(messages, overflow="truncate"):
            text += piece.text
            print(piece.text, end="", flush=True)
    except KeyboardInterrupt:  # what leaves the loop ends the answer
        pass
    print(flush=True)
    return text


if __name__ == "__main__":
    sys.exit(main())
