"""Draws conversations and texts from the templates in data/.

In a template `[this|that]` is one of them, `{slot}` a value of a table's row or a word of a list, the same one
throughout a sample. `= name : table x3` begins an intent that is drawn three times as often as others; then come
`en?` questions, `en!` answers, `en$` a system message, `en&` dialogues, `en#` texts; `zh` likewise.
"""

import re
import zlib
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

from computed import COMPUTED

HERE = Path(__file__).parent
USES = {"customer": 16, "partner": 19, "assistant": 35, "tutor": 19, "game": 11}  # percent of the conversations
ASKS = {
    "en": re.compile(r"\b(what|who|how|where|when|why|which|can|could|do|does|is|are|will|would|have)\b"),
    "zh": re.compile("[吗呢什谁哪几多怎啥么何]"),
}
CONTRACTIONS = [("what is", "what's"), ("it is", "it's"), ("do not", "don't"), ("i am ", "i'm "), ("'", "")]
OTHER_WORDS = [
    ("什么", "啥"),
    ("怎么", "咋"),
    ("怎么", "该怎么"),
    ("你", "您"),
    ("哪里", "哪儿"),
    ("，", " "),
    ("，", ","),
]
OTHER_WORDS += [("的", ""), ("是", "到底是"), ("能", "还能"), ("我", "我们"), ("可以", "能"), ("有", "还有")]


def read_lines(name):
    text = (HERE / "data" / name).read_text(encoding="utf-8")
    return [line for line in text.split("\n") if line.strip() and not line.startswith("#")]


def held_out_prompts():
    """Dicts with use, language, system, prompt, rule."""
    names = ("use", "language", "system", "prompt", "rule")
    rows = (HERE / "prompts.tsv").read_text(encoding="utf-8").split("\n")
    return [dict(zip(names, row.split("\t"))) for row in rows if row and not row.startswith("#")]


def normalised(text):
    """Letters and digits alone, in lower case."""
    return re.sub(r"[\W_]+", "", text.lower())


class Templates:
    def __init__(self):
        lists = (line.split(" =", 1) for line in read_lines("words.txt"))
        self.words = {name: [word.strip() for word in words.split("|")] for name, words in lists}
        self.tables = defaultdict(list)
        for line in read_lines("tables.txt"):
            cells = line.split(" | ")
            if line.startswith("@"):
                name, _, first = cells[0].removeprefix("@ ").partition(": ")
                columns = [first, *cells[1:]]
            else:
                self.tables[name].append(dict(zip(columns, cells)))
        for language, between, end in ("en", " ", "."), ("zh", "，", "。"):
            for row in self.tables[f"proverbs_{language}"]:
                row["whole"] = row["head"] + between + row["tail"] + end
        for title, author, text in (line.split(" ") for line in read_lines("poems.txt")):
            poem = {"title": title, "author": author, "text": text}
            self.tables["poems"].append(poem)
            parts = re.findall("[^，。]+", text)
            self.tables["lines"] += [poem | {"line": a, "following": b} for a, b in pairwise(parts)]
        self.intents = {use: self._intents(f"{use}.txt") for use in [*USES, "text"]}
        self.held_out = {normalised(p["prompt"]) for p in held_out_prompts()}

    @staticmethod
    def _intents(name):
        """[(weight, table, {"en?": templates, ...})]"""
        intents = []
        for line in read_lines(name):
            if line.startswith("="):
                head, _, weight = line.partition(" x")
                intents.append((float(weight or 1), head.partition(" : ")[2], defaultdict(list)))
            else:
                intents[-1][2][line[:3]].append(line[4:])
        return intents

    def row(self, table, r):
        return dict(COMPUTED[table](r) if table in COMPUTED else r.choice(self.tables[table])) if table else {}

    def fill(self, template, values, r):
        """The template with everything drawn; what its slots got is added to `values`."""

        def one(match):
            inner = match[0][1:-1]
            if match[0][0] == "[" or "|" in inner:
                return r.choice(inner.split("|"))
            if inner not in values:
                values[inner] = r.choice(self.words[inner])
            return str(values[inner])

        while (new := re.sub(r"\[[^][{}]*\]|\{[^][{}]*\}", one, template)) != template:
            template = new
        return re.sub(r" (?=[,.?!])| $|^ ", "", re.sub(" +", " ", template))

    def conversation(self, use, language, r):
        """(system message or "", [(question, answer), ...]), as clean as the templates are."""
        weights = [w * any(k in x for k in (f"{language}?", f"{language}&")) for w, _, x in self.intents[use]]
        _, table, intent = r.choices(self.intents[use], weights)[0]
        values = self.row(table, r)
        dialogues = intent.get(f"{language}&")
        if dialogues and r.random() < 0.5:
            parts = [self.fill(x, values, r) for x in r.choice(dialogues).split(" ## ")]
            turns = list(zip(parts[::2], parts[1::2]))
        else:
            question, answer = r.choice(intent[f"{language}?"]), r.choice(intent[f"{language}!"])
            turns = [(self.fill(question, values, r), self.fill(answer, values, r))]
        system = self.fill("".join(intent.get(f"{language}$", [])), values, r)
        if use == "game":
            system = r.choice(self.words[f"game_{language}"])
        elif not system and use != "assistant" and r.random() < 0.05:
            dates = next(x for _, table, x in self.intents["assistant"] if table == "date")
            system = self.fill(dates[f"{language}$"][0], self.row("date", r), r)
        return system, turns

    def text(self, language, r):
        """A text of which parts can be left out: sentences, or a question and its answer."""
        if r.random() < 0.1:
            use = r.choices(list(USES), USES.values())[0]
            question, answer = self.conversation(use, language, r)[1][-1]
            if normalised(question) not in self.held_out:
                return f"{question} {answer}"
        pool = [
            (w * share, table, x[f"{language}#"])
            for use, share in (("text", 1), ("tutor", 0.5), ("assistant", 0.3))
            for w, table, x in self.intents[use]
            if f"{language}#" in x
        ]
        _, table, choices = r.choices(pool, [w for w, _, _ in pool])[0]
        text = self.fill(r.choice(choices), self.row(table, r), r)
        return text[0].upper() + text[1:]

    def spoken(self, question, use, language, r):
        """A question as people type: other words before it, contractions, case, punctuation, typing errors."""
        facts = use in ("assistant", "tutor")  # every word counts
        if language == "en":
            words = question.split(" ")
            if not facts and len(words) > 3 and r.random() < 0.1:
                words.pop(r.randrange(len(words)))
            if len(words) > 2 and r.random() < 0.12:
                words.insert(r.randrange(1, len(words)), r.choice(self.words["filler_en"]))
            question = " ".join(words)
            if use == "customer" and r.random() < 0.12:
                question = self.fill(r.choice(self.words["about_en"]), {}, r) + " " + question
            if r.random() < 0.15:
                question = r.choice(self.words["prelude_en"]) + " " + question
            for a, b in CONTRACTIONS:
                if r.random() < 0.15:
                    question = question.replace(a, b)
            if question[-1].isalnum():
                question += r.choice(["?", "?", "?", "", " ?"] if ASKS["en"].search(question) else [".", "", "!", ""])
            if r.random() < 0.65:
                question = re.sub(r"\bi\b", "I", question[0].upper() + question[1:])
            elif r.random() < 0.4:
                question = question.lower()
            if r.random() < 0.08 and len(question) > 8:
                at = r.randrange(1, len(question) - 2)
                pair = question[at : at + 2]
                if pair.isalpha() and pair.islower():
                    wrong = r.choice([pair[::-1], pair[0], pair[1], pair[0] + pair])
                    question = question[:at] + wrong + question[at + 2 :]
            return question
        if not facts and len(question) > 5 and r.random() < 0.1:
            at = r.randrange(len(question))
            question = question[:at] + question[at + 1 :]
        if use == "customer" and r.random() < 0.12:
            question = self.fill(r.choice(self.words["about_zh"]), {}, r) + question
        if r.random() < 0.15:
            question = r.choice(self.words["prelude_zh"]) + question
        for a, b in OTHER_WORDS:
            if r.random() < 0.06:
                question = question.replace(a, b)
        if question[-1] not in "？。！":
            asks = ASKS["zh"].search(question)
            question += r.choice(["？", "？", "", "", "?", "啊", "呀？"] if asks else ["。", "", "", "！", "啊"])
        return question

    def sample(self, r):
        """(system, turns) of a conversation as it is typed; None if one of its questions is a held-out prompt."""
        use, language = r.choices(list(USES), USES.values())[0], r.choice(["en", "zh"])
        system, turns = self.conversation(use, language, r)
        if r.random() < 0.15:  # other turns before
            for _ in range(r.choice([1, 1, 2])):
                turns = self.conversation(use, language, r)[1] + turns
        turns = [(self.spoken(question, use, language, r), answer) for question, answer in turns]
        return None if any(normalised(q) in self.held_out for q, _ in turns) else (system, turns)


def held_out(text):
    """A fiftieth of all questions and texts is kept for the measurement."""
    return zlib.crc32(text.encode()) % 50 == 0
