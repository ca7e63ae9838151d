"""An assistant for dates and units. A model has no clock: the date stands in the system message.

python examples/assistant.py [MODEL.gguf]
"""

import datetime
import sys

import glmlite

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July"]
MONTHS += ["August", "September", "October", "November", "December"]
QUESTIONS = [
    "What day is it today?",
    "What is the date?",
    "How many days does May have?",
    "Convert 2 hours to minutes.",
]


def main() -> None:
    now = datetime.date.today()
    system = f"Today is {DAYS[now.weekday()]}, {now.day} {MONTHS[now.month - 1]} {now.year}."
    with glmlite.load(*sys.argv[1:2]) as model:
        for question in QUESTIONS:
            messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
            print(f"> {question}\n{model.chat(messages, temperature=0.0, max_tokens=100).text}")


if __name__ == "__main__":
    main()
