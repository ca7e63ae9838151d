"""A chat partner whose answers appear as they are written, and who forgets the beginning of a long conversation. Reads
lines from stdin until it ends.

python examples/chat_partner.py [MODEL.gguf]
"""

import sys

import glmlite


def main() -> None:
    with glmlite.load(*sys.argv[1:2]) as model:
        messages = []
        for line in sys.stdin:
            messages.append({"role": "user", "content": line.strip()})
            answer = ""
            for piece in model.chat_stream(messages, max_tokens=100, overflow="truncate"):
                print(piece.text, end="", flush=True)
                answer += piece.text
            print()
            messages.append({"role": "assistant", "content": answer})


if __name__ == "__main__":
    main()
