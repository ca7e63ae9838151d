"""The built-in model: what it answers, the same on every executor, and how it is found."""

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import glmlite
from glmlite import builtin

FOLDER = Path(__file__).parent.parent / "examples" / "builtin_model"
if not (FOLDER / "answers.json").is_file():
    pytest.skip("not a checkout with a built-in model: no examples/builtin_model/answers.json", allow_module_level=True)
sys.path[:0] = [str(FOLDER), str(FOLDER / "data")]

import data  # noqa: E402
import evaluate  # noqa: E402
import objective  # noqa: E402

GOLDEN = json.loads((FOLDER / "answers.json").read_text("utf-8"))
PROMPTS = data.held_out_prompts()
SOME = range(0, 100, 9)  # of every use, in both languages


@pytest.fixture(scope="module")
def model():
    with glmlite.load() as opened:
        yield opened


def test_the_file_is_small_and_is_the_one_that_was_evaluated():
    content = builtin.path().read_bytes()
    assert len(content) <= 8_000_000
    digest = hashlib.sha256(content).hexdigest()
    assert digest == GOLDEN["file"]
    assert digest in (FOLDER / "evaluation.md").read_text("utf-8")


def test_held_out_prompts_are_answered_as_evaluated_and_most_of_them_fittingly(model):
    answers = [evaluate.answer(model, prompt) for prompt in PROMPTS]
    assert [text for text, _ in answers] == GOLDEN["answers"]
    fitting = sum(evaluate.fits(prompt, *answer) for prompt, answer in zip(PROMPTS, answers))
    assert fitting >= 70
    assert f"Fitting: {fitting} of 100." in (FOLDER / "evaluation.md").read_text("utf-8")


def test_the_rule_refuses():
    prompt = {"language": "en", "rule": r"\b42\b"}
    assert evaluate.fits(prompt, "17 plus 25 is 42.", True)
    assert not evaluate.fits(prompt, "17 plus 25 is 42.", False)
    assert not evaluate.fits(prompt, "17 plus 25 is 43.", True)
    assert not evaluate.fits({"language": "zh", "rule": "4"}, "42", True)


def test_a_rule_accepts_few_of_all_the_answers_there_are():
    import random

    templates, r = data.Templates(), random.Random(1)
    answers = {"en": set(), "zh": set()}
    for _ in range(5000):
        for language, known in answers.items():
            known.add(templates.conversation(r.choice(list(data.USES)), language, r)[1][-1][1])
    for prompt in PROMPTS:
        accepted = [x for x in answers[prompt["language"]] if evaluate.fits(prompt, x, True)]
        assert len({re.sub(r"\d+", "", x) for x in accepted}) <= 5, (prompt, accepted)


RIGHT = {
    "what's 17 plus 25": ("17 plus 25 is 42.", "17 plus 42 is 59."),
    "63 minus 28 is how much?": ("63 minus 28 is 35.", "70 minus 35 is 35."),
    "Which one is larger, 48 or 84?": ("84 is larger than 48.", "84 is larger than 84."),
    "convert 3 hours into minutes": ("3 hours is 180 minutes.", "180 hours is 3 minutes."),
    "36加17得多少": ("36加17等于53。", "53加17等于70。"),
    "72减去45还剩多少": ("72减45等于27。", "72减27等于45。"),
    "15和51哪个数更大": ("51比15大。", "15比51大。"),
    "100的一半是几": ("100的一半是50。", "50的一半是25。"),
    "今天几月几号": ("今天是2026年11月23日。", "今天是2026年11月2日。"),
    "how much for that sword?": ("The sword costs 50 gold coins.", "Let me see. I give you 15 gold for it."),
}


def test_a_rule_tells_right_from_wrong():
    by_prompt = {prompt["prompt"]: prompt for prompt in PROMPTS}
    for asked, (right, wrong) in RIGHT.items():
        assert evaluate.fits(by_prompt[asked], right, True), asked
        assert not evaluate.fits(by_prompt[asked], wrong, True), asked


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", ["scalar", "avx2", "avxvnni", "avx512vnni", "avx512vnni_amd", "neon"])
def test_threads_and_instruction_sets_do_not_matter(isa, threads, monkeypatch):
    from glmlite import _native as native

    if isa not in native.isas():
        pytest.skip(f"this machine has no {isa}")
    monkeypatch.setenv("GLMLITE_ISA", isa)
    with glmlite.load(threads=threads) as model:
        assert (model.debug.engine.isa, model.debug.engine.threads) == (isa, threads)
        assert [evaluate.answer(model, PROMPTS[i])[0] for i in SOME] == [GOLDEN["answers"][i] for i in SOME]


def test_the_numpy_executor_answers_the_same(executor):
    with glmlite.load() as model:
        some = SOME[::3]
        assert [evaluate.answer(model, PROMPTS[i])[0] for i in some] == [GOLDEN["answers"][i] for i in some]


def test_what_stands_behind_a_blank_counts(model):
    items = evaluate.blanks(data.Templates(), 60)
    _, both, alone = evaluate.infilling(model, items)["all"]
    assert both < 0.7 * alone


def test_it_is_announced_once(caplog):
    builtin.announce.cache_clear()
    with caplog.at_level(logging.WARNING, logger="glmlite"):
        for _ in range(2):
            glmlite.load().close()
    assert [record.getMessage() for record in caplog.records] == [builtin.NOTE]
    assert "\n" not in builtin.NOTE and "convert" in builtin.NOTE


def test_the_command_answers():
    done = subprocess.run(
        [sys.executable, "-m", "glmlite", "chat", "你好", "--temperature", "0"],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        cwd=Path(glmlite.__file__).parent.parent,
    )
    assert done.returncode == 0
    assert "你好" in done.stdout
    assert done.stderr == builtin.NOTE + "\n"


# ---- the data ----------------------------------------------------------------------------------------------------


def test_no_held_out_prompt_is_in_the_training_data():
    import random

    templates, r = data.Templates(), random.Random(5)
    for _ in range(3000):
        drawn = templates.sample(r)
        assert drawn is None or not {data.normalised(q) for q, _ in drawn[1]} & templates.held_out
    templates.spoken = lambda *arguments: PROMPTS[0]["prompt"].upper()
    assert templates.sample(r) is None  # the check can fail


def test_a_sample_is_what_the_engine_reads(model, tmp_path):
    """Positions, context and ids of the training data against the layout of glmlite.models.chatglm1."""
    from glmlite.models import chatglm1

    class Encode(objective.Encoder):
        def __init__(self):
            named = (model.tokenizer.id_of(x) for x in objective.CONTROL)
            self.mask, self.gmask, _, self.sop, self.eop = named

        def __call__(self, text):
            return model.tokenize(text, special=False)

    encode = Encode()
    turns = [("hi", "Hello!"), ("17 + 25?", "17 plus 25 is 42.")]
    ids, places, context, targets = encode.conversation("Be kind.", turns)
    messages = [{"role": "system", "content": "Be kind."}]
    messages += [{"role": role, "content": x} for turn in turns for role, x in zip(("user", "assistant"), turn)]
    assert ids[: context + 1] == model.chat_ids(messages[:-1])
    assert targets[context:] == [*ids[context + 1 :], encode.eop] and set(targets[:context]) == {-1}
    layout = chatglm1.layout(ids, model.tokenizer.id_of)
    assert layout.context == context
    np.testing.assert_array_equal(layout.positions[:, :2], places)
    assert not layout.positions[:, 2].any()
