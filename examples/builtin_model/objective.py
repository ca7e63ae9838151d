"""GLM's objective: conversations and texts as token ids, positions and targets; and the vocabulary."""

import random
import re

import sentencepiece
from data import held_out

from glmlite.chat.dialects import chatglm

VOCABULARY = 5120
BLANKS = 0.5  # of the samples, which are shorter than conversations
CONTROL = ["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"]
SPACES = ["<n>", "<|tab|>", *(f"<|blank_{n}|>" for n in range(2, 81))]


class Encoder:
    """Conversations and texts as `pack` returns them."""

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
        context = [*self(chatglm.text(messages[:-1], [], True)), self.gmask]
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
        """Context, then the pieces that stand where it has masks. Positions: in the text, a piece's tokens all at their
        mask; and in the piece, from 1. pieces: [(index of the mask, ids)].

        ids (L,), positions (L, 2), tokens of context, targets (L,): what follows a token, -1 where none counts.
        """
        ids, targets = list(context), [-1] * len(context)
        places = [(i, 0) for i in range(len(context))]
        for mask, piece in pieces:
            ids += [self.sop, *piece]
            targets += [*piece, self.eop]
            places += [(mask, j + 1) for j in range(len(piece) + 1)]
        return ids, places, len(context), targets


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
