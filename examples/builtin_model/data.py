"""Draws conversations and texts from the templates in data/ and writes them as token ids.

In a template `[this|that]` is one of them, `{slot}` a value of a table's row or a word of a list, the same one
throughout a sample. `= name : table x3` begins an intent that is drawn three times as often as others; then come
`en?` questions, `en!` answers, `en$` a system message, `en&` dialogues, `en#` texts; `zh` likewise.
"""

import random
import re
import zlib
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import sentencepiece
from computed import COMPUTED

from glmlite.chat.formats import chatglm

HERE = Path(__file__).parent
VOCABULARY = 5120
USES = {"customer": 16, "partner": 19, "assistant": 35, "tutor": 19, "game": 11}  # percent of the conversations
BLANKS = 0.5  # of the samples, which are shorter than conversations
MASK, GMASK, SOP, EOP = "[MASK]", "[gMASK]", "<sop>", "<eop>"
CONTROL = [MASK, GMASK, "[sMASK]", SOP, EOP]
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
SPACES = ["<n>", "<|tab|>", *(f"<|blank_{n}|>" for n in range(2, 81))]


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


def draw(templates, encode, r, test=False):
    """One packed sample: a conversation, or a text with blanks. test: of the held-out part."""
    while True:
        if r.random() >= BLANKS:
            drawn = templates.sample(r)
            if drawn and held_out(drawn[1][-1][0]) == test:
                return encode.conversation(*drawn)
        else:
            text = templates.text(r.choice(["en", "zh"]), r)
            packed = encode.blanks(text, r) if held_out(text) == test else None
            if packed:
                return packed


def train_tokenizer(templates, folder, seed):
    """Writes ice_text.model: a unigram vocabulary, as ChatGLM-6B's. Chinese is one token a character, so that a
    phrase that was never seen is made of tokens that were; nothing is normalised, so that blanks are filled exactly."""
    r = random.Random(seed)
    lines = ["[Round 0]", "问：", "答："] * 100
    for _ in range(40000):
        system, turns = templates.sample(r) or ("", [])
        text = templates.text(r.choice(["en", "zh"]), r)
        words = "\t".join(re.findall("[A-Za-z]+", text))  # as they stand at the beginning of a blank: no space before
        lines += [system, *(part for turn in turns for part in turn), text, words]
    with open(folder / "corpus.txt", "w", encoding="utf-8") as out:
        out.writelines(re.sub("([一-龥])", "\t\\1\t", line).strip("\t") + "\n" for line in lines if line)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "ice_text"),
        model_type="unigram",
        vocab_size=VOCABULARY,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        pretokenization_delimiter="\t",
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=SPACES,
        control_symbols=CONTROL,
        pad_id=3,
        num_threads=1,
        minloglevel=2,
    )


class Encoder:
    """Samples as (ids, mask): the context ends before the first `<sop>`; `places` are the positions (L, 2)."""

    def __init__(self, model_file):
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
        self.mask, self.gmask, _, self.sop, self.eop = (self.pieces.piece_to_id(x) for x in CONTROL)

    def __call__(self, text):
        return self.pieces.encode(text.replace("\n", "<n>"))

    def conversation(self, system, turns):
        """The last answer after its context."""
        messages = [{"role": "system", "content": system}] if system else []
        for question, answer in turns:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        context = [*self(chatglm(messages[:-1], [], True)[0]), self.gmask]
        return self.pack(context, [(len(context) - 1, self(turns[-1][1]))])

    def blanks(self, text, r):
        """GLM's objective (Du et al. 2022): the tail for `[gMASK]`, or short spans, shuffled, for `[MASK]`s."""
        words = re.findall(r"\d+|[A-Za-z']+|\s|.", text)
        kind = r.random()
        if kind < 0.15 or len(words) < 4:
            cut = r.randrange(len(words))
            context = [*self("".join(words[:cut])), self.gmask]
            return self.pack(context, [(len(context) - 1, self("".join(words[cut:])))])
        left = 1 if kind < 0.5 else r.randint(2, 3)
        spans, taken = [], set()
        for _ in range(left):
            length = min(1 + int(r.expovariate(0.5)), len(words) // 2)
            begin = r.randrange(len(words) - length + 1)
            around = set(range(begin - 1, begin + length + 1))
            if not around & taken and words[begin] != " " and words[begin + length - 1] != " ":
                taken |= around
                spans.append((begin, begin + length))
        if not spans:
            return None
        context, pieces, at = [], [], 0
        for begin, end in sorted(spans):
            context += [*self("".join(words[at:begin])), self.mask]
            pieces.append((len(context) - 1, self("".join(words[begin:end]))))
            at = end
        context += self("".join(words[at:]))
        return self.pack(context, r.sample(pieces, len(pieces)))

    def pack(self, context, pieces):
        """ids (L,), positions (L, 2), tokens of context, targets (L,): what follows a token, -1 where none counts."""
        ids, targets = list(context), [-1] * len(context)
        places = [(i, 0) for i in range(len(context))]
        for mask, piece in pieces:
            ids += [self.sop, *piece]
            targets += [*piece, self.eop]
            places += [(mask, j + 1) for j in range(len(piece) + 1)]
        return ids, places, len(context), targets
