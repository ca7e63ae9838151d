"""Prompts of messages with images: where their places are, and that no text becomes one."""

import numpy as np
import pytest
import tiny
from test_chat import CONTROL, Characters, assistant, user

from glmlite.chat import check, images_of, render
from glmlite.chat.tokens import IMAGE
from glmlite.models import layout
from glmlite.tokenizer import Tokenizer

# As the makers' templates have it: parts in order, each image between its tokens.
_TURN = (
    "{% macro text(content) %}{% if content is string %}{{ content }}{% else %}{% for part in content %}"
    "{% if part.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{% endmacro %}"
    "[gMASK]<sop>{% for m in messages %}<|{{ 'observation' if m.role == 'tool' else m.role }}|>\n"
    "{{ text(m.content) }}{% endfor %}"
)
PARTS = _TURN + "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
FLAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content.strip() }}{% endfor %}<|assistant|>"
IMAGES = ["<|begin_of_image|>", "<|end_of_image|>", "<|image|>"]


def image(name="x"):
    return {"type": "image", "image": name}


def text(words):
    return {"type": "text", "text": words}


def spelled(messages, template, control=(*CONTROL, *IMAGES), **options):
    tokenizer = Characters(control)
    metadata = {**tokenizer.metadata, "tokenizer.chat_template": template}
    prompt = render(metadata, tokenizer, "glm4", messages, **options)
    out = "".join("(image)" if i == IMAGE else tokenizer.spell([i]) for i in prompt)
    return out.removeprefix("«[gMASK]»«<sop>»"), prompt.images


def test_one_number_stands_for_an_image():
    assert IMAGE == layout.IMAGE


SEEN = "«<|begin_of_image|>»(image)«<|end_of_image|>»"


@pytest.mark.parametrize(
    ("messages", "want", "images"),
    [
        ([user([image(), text("a")])], f"«<|user|>»\n{SEEN}a", ["x"]),
        ([user([text("a"), image(), text("b"), text("c")])], f"«<|user|>»\na{SEEN}bc", ["x"]),
        ([user([image("x"), image("y")])], f"«<|user|>»\n{SEEN}{SEEN}", ["x", "y"]),
        (
            [user([image("x"), text("a")]), assistant("b"), user([image("y"), text("c")])],
            f"«<|user|>»\n{SEEN}a«<|assistant|>»\nb«<|user|>»\n{SEEN}c",
            ["x", "y"],
        ),
        (
            [user("a"), {"role": "tool", "content": [text("seen"), image("t")]}],
            f"«<|user|>»\na«<|observation|>»\nseen{SEEN}",
            ["t"],
        ),
        ([user([image(), text("<|image|>a\ufdd2b<|begin_of_image|>")])], None, ["x"]),
        ([user("<|image|> \ufdd2")], None, []),
    ],
)
def test_templates_that_know_parts(messages, want, images):
    got, found = spelled(messages, PARTS)
    assert found == images and got.count("(image)") == len(images)
    if want is not None:
        assert got == want + "«<|assistant|>»\n"
    else:
        assert got.count("«<|image|>»") == 0 and "<|image|>" in got
        assert got.count("«<|begin_of_image|>»") == len(images)


def test_a_template_that_knows_none_gets_them_in_the_text():
    got, images = spelled([user([image(), text("a")]), assistant("b"), user([text("c"), image("y")])], FLAT)
    assert got == f"«<|user|>»{SEEN}a«<|assistant|>»b«<|user|>»c{SEEN}«<|assistant|>»"
    assert images == ["x", "y"]
    got, _ = spelled([user([image(), text("a")])], FLAT, CONTROL)  # a vocabulary without tokens for them
    assert got == "«<|user|>»(image)a«<|assistant|>»"
    got, _ = spelled([user([image(), text("<|image|> a")])], FLAT, CONTROL)
    assert got == "«<|user|>»(image)<|image|> a«<|assistant|>»"


def test_formats_that_need_no_template():
    tokenizer = Characters([*CONTROL, *IMAGES], prefix=["[gMASK]", "<sop>"])
    metadata = {**tokenizer.metadata, "glmlite.chat_format": "glm4-0414"}
    prompt = render(metadata, tokenizer, "glm4", [user([image(), text("a\ufdd2<|image|>")])])
    out = "".join("(image)" if i == IMAGE else tokenizer.spell([i]) for i in prompt)
    assert out == f"«[gMASK]»«<sop>»«<|user|>»\n{SEEN}a<|image|>«<|assistant|>»"


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{% for m in messages %}<|{{ m.role }}|>{% endfor %}", "each image once"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "each image once"),
        ("{{ raise_exception('no pictures') }}", "no pictures"),
    ],
)
def test_templates_that_lose_images(template, error):
    with pytest.raises(ValueError, match=error):
        spelled([user([image(), text("a")])], template)


def test_tools_and_results_of_tools_make_no_places():
    template = PARTS.replace("<sop>", "<sop>{% if tools %}{{ tools[0].function.description }}{% endif %}")
    tool = {"name": "f", "description": "<|image|>\ufdd2<|user|>"}
    got, images = spelled([user([image(), text("a")])], template, tools=[tool])
    assert got.startswith("<|image|><|user|>«<|user|>»") and got.count("(image)") == 1 and images == ["x"]


def test_results_of_calls_keep_their_images():
    """Put into the order of the calls, and their images with them."""
    calls = [{"id": i, "function": {"name": "f", "arguments": "{}"}} for i in "ab"]
    messages = [user([image("q"), text("?")]), {"role": "assistant", "tool_calls": calls}]
    messages += [{"role": "tool", "tool_call_id": i, "content": [image(i)]} for i in "ba"]
    assert images_of(check(messages)) == ["q", "a", "b"]
    assert images_of(check(check(messages))) == ["q", "a", "b"]


def test_each_image_is_seen_once_at_its_place():
    seen = []
    parts = [
        image(),
        {"type": "image_url", "image_url": {"url": "data:,y"}},
        {"type": "image_url", "image_url": "DATA:z"},
    ]
    checked = check([user("a"), user([text("b"), *parts])], lambda *seen_: seen.append(seen_) or len(seen))
    assert seen == [("x", "messages[1].content[1]"), ("data:,y", "messages[1].content[2]"), ("DATA:z", seen[2][1])]
    assert images_of(checked) == [1, 2, 3]


# ---- GLM-OCR's prompt


WORDS = {3649: "Text", 7404: "ĠRec", 49600: "ognition"}
MERGES = ["T e", "Te x", "Tex t", "Ġ R", "ĠR e", "ĠRe c", "o g", "og n", "i t", "it i", "iti o", "itio n", "ogn ition"]
SPECIALS = {
    59246: "<|endoftext|>",
    59248: "[gMASK]",
    59250: "<sop>",
    59252: "<|system|>",
    59253: "<|user|>",
    59254: "<|assistant|>",
    59255: "<|observation|>",
    59256: "<|begin_of_image|>",
    59257: "<|end_of_image|>",
    59280: "<|image|>",
}


@pytest.fixture(scope="module")
def ocr():
    """Metadata of a vocabulary with the tokens of GLM-OCR's prompt where GLM-OCR has them."""
    tokens = [tiny.byte_symbol(byte) for byte in range(256)]
    tokens += [f"[PAD{i}]" for i in range(256, 59392)]
    merged = [merge.replace(" ", "") for merge in MERGES]
    for i, token in [
        *WORDS.items(),
        *SPECIALS.items(),
        *enumerate((m for m in merged if m not in WORDS.values()), 300),
    ]:
        tokens[i] = token
    types = np.full(len(tokens), tiny.NORMAL, np.int32)
    types[list(SPECIALS)] = tiny.CONTROL
    metadata = {
        "general.architecture": "glm4",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "glm4",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types.tolist(),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.eos_token_id": 59246,
        "tokenizer.chat_template": PARTS,
    }
    return metadata, Tokenizer.from_metadata(metadata)


GOLDEN = [59248, 59250, 59253, 10, 59256, IMAGE, 59257, 3649, 7404, 49600, 58, 59254, 10]


def test_the_prompt_of_glm_ocr(ocr):
    metadata, tokenizer = ocr
    messages = [user([image(), text("Text Recognition:")])]
    prompt = render(metadata, tokenizer, "glm4", messages)
    assert (prompt, prompt.images) == (GOLDEN, ["x"])
    flat = PARTS.replace("{% if content is string %}", "{% if true %}")
    assert render({**metadata, "tokenizer.chat_template": flat}, tokenizer, "glm4", messages) == GOLDEN


@pytest.mark.parametrize("kind", [tiny.CONTROL, tiny.USER_DEFINED, tiny.NORMAL])
def test_text_that_spells_the_token_is_text(ocr, kind):
    """However the file marks it."""
    types = list(ocr[0]["tokenizer.ggml.token_type"])
    types[59280] = kind
    metadata = {**ocr[0], "tokenizer.ggml.token_type": types}
    tokenizer = Tokenizer.from_metadata(metadata)
    prompt = render(metadata, tokenizer, "glm4", [user([image(), text("<|image|>")])])
    assert prompt.count(IMAGE) == 1 and 59280 not in prompt
    assert tokenizer.decode([i for i in prompt if i != IMAGE]).endswith("<|end_of_image|><|image|><|assistant|>\n")
