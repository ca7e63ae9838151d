"""A character of a game: who it is stands in the system message; a seed makes its answers the same every time.

python examples/game_character.py [MODEL.gguf]
"""

import sys

import glmlite

CHARACTERS = {
    "You are Bram, the blacksmith of Oakford.": ["Who are you?", "How much is the sword?", "Do you have a quest?"],
    "你是橡镇的铁匠老布。": ["你是谁？", "这把剑多少钱？", "龙在哪里？"],
}


def main() -> None:
    with glmlite.load(*sys.argv[1:2]) as model:
        for character, questions in CHARACTERS.items():
            for question in questions:
                messages = [{"role": "system", "content": character}, {"role": "user", "content": question}]
                answer = model.chat(messages, temperature=0.3, seed=1, max_tokens=100)
                print(f"> {question}\n{answer.text}")


if __name__ == "__main__":
    main()
