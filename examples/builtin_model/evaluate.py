"""Asks the held-out prompts, measures blanks and quantization, and writes evaluation.md, and answers.json for tests.

    python examples/builtin_model/evaluate.py FILE.gguf CHECKPOINT

Needs no torch. CHECKPOINT: the folder that export.py wrote, for the divergence from f32.
"""

import hashlib
import json
import math
import random
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "data"), str(HERE.parent.parent)]

from data import Templates, held_out, held_out_prompts  # noqa: E402

import glmlite  # noqa: E402

CHINESE = re.compile("[一-龥]")
MOST = 80  # tokens of an answer


def answer(model, prompt):
    """(greedy answer, whether it ended by itself)"""
    messages = [{"role": "user", "content": prompt["prompt"]}]
    if prompt["system"] != "-":
        messages.insert(0, {"role": "system", "content": prompt["system"]})
    done = model.chat(messages, temperature=0.0, max_tokens=MOST)
    return done.text, done.finish_reason == "stop"


def fits(prompt, text, ended):
    """The rule: it ended, it is in the prompt's language (a Chinese word in an English answer may be what was asked
    for), and the prompt's expression is found."""
    chinese = CHINESE.search(text) is not None
    language = chinese if prompt["language"] == "zh" else re.search("[A-Za-z]", text) is not None
    return ended and language and re.search(prompt["rule"], text, re.I | re.S) is not None


def blanks(templates, count, seed=1):
    """[(language, left, hole, right)] from texts that training never saw; a hole is one to three words or characters
    and has text on both sides."""
    r, found = random.Random(f"{seed} blanks"), {}
    while len(found) < count:
        language = r.choice(["en", "zh"])
        text = templates.text(language, r)
        words = re.findall(r"\d+|[A-Za-z']+|\s|.", text)
        begin, length = r.randrange(1, max(2, len(words) - 2)), r.choice([1, 1, 2, 3])
        hole = words[begin : begin + length]
        right = "".join(words[begin + length :])
        if held_out(text) and len(right) > 1 and hole[0] != " " and hole[-1] != " " and re.search(r"\w", "".join(hole)):
            found[text] = (language, "".join(words[:begin]), "".join(hole), right)
    return list(found.values())


def span_loss(model, before, hole):
    """(sum of -log p, tokens) of the hole after a context."""
    ids = model.tokenize(before + "<sop>")
    span = model.tokenize(hole, special=False)
    logits = model.logits([*ids, *span], all=True)[len(ids) - 1 : -1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(span)), span].sum(), len(span)


def infilling(model, items):
    """language -> (blanks, perplexity with both sides, with the left side alone: the better of both masks)."""
    sums = defaultdict(lambda: np.zeros(5))
    for language, left, hole, right in items:
        both, n = span_loss(model, f"{left}[MASK]{right}", hole)
        alone = [span_loss(model, f"{left}{mask}", hole)[0] for mask in ("[MASK]", "[gMASK]")]
        for key in (language, "all"):
            sums[key] += [1, n, both, *alone]
    return {
        key: (int(count), math.exp(both / n), math.exp(min(masked, tail) / n))
        for key, (count, n, both, masked, tail) in sums.items()
    }


def divergence(exact, model, rows):
    """Mean over all tokens of KL(exact || model), nats. rows: lists of ids."""
    total, count = 0.0, 0
    for ids in rows:
        p, q = (np.asarray(m.logits(ids, all=True), np.float64) for m in (exact, model))
        p, q = (x - x.max(1, keepdims=True) for x in (p, q))
        p, q = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (p, q))
        total, count = total + (np.exp(p) * (p - q)).sum(), count + len(ids)
    return total / count


def evaluate(file, checkpoint, out):
    """Writes the report; returns how many of the prompts are answered fittingly."""
    from glmlite.convert import convert

    prompts, texts = held_out_prompts(), blanks(Templates(), 400)
    with glmlite.load(file) as model:
        answers = [answer(model, prompt) for prompt in prompts]
        perplexities = infilling(model, texts)
        rows = []
        for prompt, (text, _) in zip(prompts, answers):
            asked = model.chat_ids([{"role": "user", "content": prompt["prompt"]}])
            rows.append([*asked, *model.tokenize(text, special=False)])
    divergences = {}
    with tempfile.TemporaryDirectory() as folder:
        exact = glmlite.load(convert(checkpoint, Path(folder) / "f32.gguf", "f32"))
        for kind in ("q8_0", "q6_k", "q4_k_m", "q4_0"):
            path = convert(checkpoint, Path(folder) / f"{kind}.gguf", kind)
            with glmlite.load(path) as other:
                divergences[kind] = (path.stat().st_size, divergence(exact, other, rows))
        exact.close()
    verdicts = [fits(prompt, *done) for prompt, done in zip(prompts, answers)]
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    golden = {"file": digest, "answers": [text for text, _ in answers]}
    out.with_name("answers.json").write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    report(file, digest, out, prompts, answers, verdicts, perplexities, divergences)
    return sum(verdicts)


def report(file, digest, out, prompts, answers, verdicts, perplexities, divergences):
    lines = ["# Evaluation of the built-in model", "", "Made by `evaluate.py`; how it was measured stands there.", ""]
    lines += [f"File: sha256 `{digest}`, {Path(file).stat().st_size} bytes.", "", "## Blanks", ""]
    lines += ["| | blanks | perplexity, both sides | left side alone | lower by |", "|---|---|---|---|---|"]
    for key, (count, both, alone) in sorted(perplexities.items()):
        lines.append(f"| {key} | {count} | {both:.2f} | {alone:.2f} | {1 - both / alone:.0%} |")
    lines += ["", "## Quantization", ""]
    lines += ["Mean KL divergence from f32, over the tokens of the prompts and answers below.", ""]
    lines += ["| type | bytes | nats |", "|---|---|---|"]
    lines += [f"| {kind} | {size} | {kl:.5f} |" for kind, (size, kl) in divergences.items()]
    lines += ["", "## Held-out prompts", "", "Greedy answers. The rule of each is in `prompts.tsv`.", ""]
    lines += ["| use | en | zh |", "|---|---|---|"]
    score = defaultdict(int)
    for prompt, verdict in zip(prompts, verdicts):
        score[prompt["use"], prompt["language"]] += verdict
    uses = dict.fromkeys(prompt["use"] for prompt in prompts)
    lines += [f"| {use} | {score[use, 'en']} of 10 | {score[use, 'zh']} of 10 |" for use in uses]
    lines += ["", f"Fitting: {sum(verdicts)} of {len(prompts)}.", ""]
    lines += ["| use | system | prompt | answer | rule | fits |", "|---|---|---|---|---|---|"]
    for p, (text, _), verdict in zip(prompts, answers, verdicts):
        cells = [p["use"], p["system"], p["prompt"], text, f"`{p['rule']}`", "yes" if verdict else "**no**"]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells) + " |")
    Path(out).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    print(evaluate(Path(sys.argv[1]), Path(sys.argv[2]), HERE / "evaluation.md"))
