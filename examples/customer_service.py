"""Customer service: one conversation, with what was said before remembered.

python examples/customer_service.py [MODEL.gguf]
"""

import sys

import glmlite

QUESTIONS = ["Where is my parcel?", "It is 48213", "Thank you!", "我想退货", "多久能退款？"]


def main() -> None:
    with glmlite.load(*sys.argv[1:2]) as model:
        messages = []
        for question in QUESTIONS:
            messages.append({"role": "user", "content": question})
            answer = model.chat(messages, temperature=0.0, max_tokens=100)
            messages.append({"role": "assistant", "content": answer.text})
            print(f"> {question}\n{answer.text}")
            messages = messages[-4:]  # what is further back is forgotten


if __name__ == "__main__":
    main()
