"""A tutor: several questions at once, and exercises made by blanks that the model fills itself.

python examples/tutor.py [MODEL.gguf]
"""

import sys

import glmlite

QUESTIONS = [
    "What is the capital of Italy?",
    "“画龙点睛”是什么意思？",
    "What is the opposite of big?",
    "西班牙的首都是哪里？",
]
BLANKS = ["Anna went to the [MASK] to borrow a book.", "小明去[MASK]借书。", 'The word "[MASK]" is "水" in Chinese.']


def main() -> None:
    with glmlite.load(*sys.argv[1:2]) as model:
        running = [
            model.chat_stream([{"role": "user", "content": question}], temperature=0.0, max_tokens=100)
            for question in QUESTIONS
        ]
        for question, generation in zip(QUESTIONS, running):
            print(f"> {question}\n{generation.result().text}")
        for text in BLANKS:
            print(f"> {text}\n{model.infill(text, max_tokens=20)}")


if __name__ == "__main__":
    main()
