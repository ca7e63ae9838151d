"""Reading pages, with a stand-in for the model that says which colour an image is drawn in. Run as a program, this
file is `glmlite` with that stand-in."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("PIL", reason="needs glmlite[vision]")
pytest.importorskip("pypdfium2", reason="needs glmlite[vision]")

import pictures
from PIL import Image

import glmlite
from glmlite import ocr
from glmlite.cli import main
from glmlite.errors import Busy, Closed, ContextOverflow
from glmlite.ocr.documents import MOST_PAGES, page_numbers
from glmlite.ocr.tasks import Loop, fields_prompt, fields_schema, without_fence

WAIT = 120  # seconds for what takes one: a loaded machine starts a process slowly
ROOT = Path(__file__).resolve().parents[1]

# ---- the stand-in

NAMES = dict(zip("abcdefghijklmnopq", itertools.product((0, 60, 120), repeat=3)))


def colour_of(image):
    """The name of the colour that most of an image's ink has."""
    pixels = np.asarray(image).reshape(-1, 3).astype(int)
    ink = pixels[pixels.max(axis=1) < 160]
    if not len(ink):
        return "blank"
    typical = np.percentile(ink, 3, axis=0)  # what is smooth at the edges of letters is lighter
    return min(NAMES, key=lambda name: np.abs(typical - NAMES[name]).sum())


class Answer:
    """Reads for `ticks` looks, then gives its pieces."""

    def __init__(self, model, pieces, ticks=0, error=None):
        self.model = model
        self.pieces = list(pieces)
        self.ticks, self.total = ticks, max(ticks, 1)
        self.error = error
        self.finished = False
        self.stats = SimpleNamespace(image_seconds=0.5, prompt_seconds=0.5, generation_seconds=2.0)
        self.model.running += 1
        self.model.most = max(self.model.most, self.model.running)

    @property
    def progress(self):
        return SimpleNamespace(done=self.total - self.ticks, total=self.total)

    def on_event(self, wake):
        if wake is not None and not self.ticks:
            wake()

    def take(self):
        if self.ticks:
            self.ticks -= 1
            return None
        if self.error is not None:
            self.close()
            raise self.error
        if self.finished:
            return None
        if self.model.slow:
            time.sleep(self.model.slow)
        text = self.pieces.pop(0)
        reason = None if self.pieces else "stop"
        if isinstance(text, tuple):
            text, reason = text
        if reason is not None:
            self.close()
        return SimpleNamespace(text=text, tokens=[ord(c) for c in text], finish_reason=reason)

    def cancel(self):
        self.close()

    def close(self):
        if not self.finished:
            self.finished = True
            self.model.running -= 1


class Reader:
    """Says the prompt's first word and the colour of the image."""

    name, images, parallel, context = "stand-in", True, 2, 8192
    _eyes = None

    def __init__(self, path="model.gguf", answer=None, ticks=0):
        self.path = Path(path)
        self.answer = answer
        self.ticks = ticks
        self.asked = []
        self.parameters = []
        self.running = self.most = 0
        self.slow = float(os.environ.get("GLMLITE_TEST_SLOW", 0))

    def chat_stream(self, messages, **parameters):
        (message,) = messages
        picture, prompt = message["content"]
        assert message["role"] == "user" and picture["type"] == "image" and prompt["type"] == "text"
        assert picture["image"].mode == "RGB"
        colour = colour_of(picture["image"])
        self.asked.append((prompt["text"], colour))
        self.parameters.append(parameters)
        if log := os.environ.get("GLMLITE_TEST_LOG"):
            with open(log, "a", encoding="utf-8") as file:
                file.write(colour + "\n")
        if self.answer is not None:
            return self.answer(self, prompt["text"], colour)
        return Answer(self, [f"{prompt['text'].split()[0]} ", colour], self.ticks)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass


def load(path, *, progress=None, **options):
    progress(1.0)
    return Reader(path)


if __name__ == "__main__":
    glmlite.load = load
    sys.exit(main())


# ---- documents


def text_page(colour, lines=4):
    page = pictures.blank()
    pictures.paragraph(page, 100, 100, 1040, lines, colour=NAMES[colour])
    return page


def twelve_pages():
    """Text, a table in it, two columns, a scan on its side, an empty page, one that is missing, six of text."""
    table = pictures.blank()
    top = pictures.paragraph(table, 100, 100, 1040, 4, colour=NAMES["b"])
    box = pictures.table(table, 150, top + 40, 5, 4, colour=NAMES["c"])
    pictures.paragraph(table, 100, box[3] + 40, 1040, 3, colour=NAMES["d"])
    columns = pictures.blank()
    top = pictures.heading(columns, "A heading over both", 100, colour=NAMES["e"])
    pictures.paragraph(columns, 100, top, 480, 10, 22, colour=NAMES["f"])
    pictures.paragraph(columns, 660, top + 5, 480, 9, 22, 5, colour=NAMES["g"])
    aside = text_page("h", 20).transpose(Image.Transpose.ROTATE_90)
    return pictures.pdf(
        [text_page("a", 30), table, columns, aside, (595, 842), None, *(text_page(name) for name in "jklmno")]
    )


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "scan.pdf"
    path.write_bytes(twelve_pages())
    return path


def colours(page):
    return [part.text.split()[-1] for part in page.blocks]


def test_a_document_of_twelve_pages(scan):
    model = Reader()
    pages = list(ocr.read(model, scan))
    assert [page.number for page in pages] == list(range(1, 13))
    assert {page.pages for page in pages} == {12}
    assert colours(pages[0]) == ["a"] * len(pages[0].blocks) and len(pages[0].blocks) > 2
    assert [part.text for part in pages[1].blocks] == ["Text b", "Table c", "Text d"]
    assert pages[1].text == "Text b\n\nTable c\n\nText d"
    assert colours(pages[2]) == ["e", "f", "g"]
    assert pages[3].turned == 270 and set(colours(pages[3])) == {"h"}
    assert pages[4].text == "" and pages[4].blocks == [] and pages[4].error is None
    assert pages[5].error.startswith(f"{scan}, page 6: is damaged") and pages[5].text == ""
    assert [colours(page) for page in pages[6:]] == [[name] for name in "jklmno"]
    assert len(model.asked) == sum(len(page.blocks) for page in pages)
    assert model.most == model.parallel + 1 and model.running == 0
    assert pages[6].tokens == len("Text j") and pages[6].seconds.read == 1.0 and pages[6].seconds.write == 2.0


def test_what_is_asked_for_is_what_the_model_was_trained_with(scan):
    model = Reader()
    for task in ("text", "table", "formula"):
        list(ocr.read(model, scan, pages="7", task=task))
    assert [prompt for prompt, _ in model.asked] == ["Text Recognition:", "Table Recognition:", "Formula Recognition:"]
    common = {"temperature": 0.0, "repetition_penalty": 1.1, "max_tokens": 8192, "cancel": None}
    assert model.parameters == [common] * 3


def test_pages_are_read_whole_where_that_is_asked_for(scan):
    (page,) = ocr.read(Reader(), scan, pages=[2], cut=False, dpi=90)
    assert [part.kind for part in page.blocks] == ["text"]
    assert page.blocks[0].box in [(0, 0, width, 1053) for width in (744, 745)]


def test_progress_is_told_by_page(scan):
    said = []
    for page in ocr.read(Reader(ticks=5), scan, pages="7-8", on_progress=lambda doing: said.append(str(doing))):
        said.append(f"done {page.number}")
    assert said.index("done 7") < said.index("done 8")
    before = said[: said.index("done 7")]
    # How often it is looked at depends on what else wakes it; each look is a fifth of the prompt.
    steps = [*(f"page 7 of 12, reading {n} %" for n in (0, 20, 40, 60, 80)), "page 7 of 12, writing"]
    assert before and before == sorted(before, key=steps.index)
    assert str(ocr.Doing("x.pdf", 3, 12, "reading", 0.4, 2, 12)) == "page 3 of 12, reading 40 %"


def test_a_page_whose_answer_fails_is_named_and_the_others_follow(scan):
    def answer(model, prompt, colour):
        if colour == "k":
            raise ContextOverflow("the prompt has 9000 tokens and leaves no room in a context of 8192")
        error = RuntimeError("the logits of position 7 are not finite") if colour == "c" else None
        return Answer(model, [colour], error=error)

    model = Reader(answer=answer)
    pages = list(ocr.read(model, scan, pages="2,7-9"))
    assert pages[0].error == f"{scan}, page 2: the logits of position 7 are not finite"
    assert "page 8: the prompt has 9000 tokens" in pages[2].error
    assert [page.text for page in pages] == ["", "j", "", "l"]
    assert model.running == 0


def test_a_busy_model_is_asked_again_and_a_closed_one_ends_it(scan):
    busy = [Busy("12 wait"), Busy("12 wait")]

    def answer(model, prompt, colour):
        if busy:
            raise busy.pop()
        return Answer(model, [colour])

    assert [page.text for page in ocr.read(Reader(answer=answer), scan, pages="7-8")] == ["j", "k"]

    def closed(model, prompt, colour):
        raise Closed("the model was closed")

    with pytest.raises(Closed):
        list(ocr.read(Reader(answer=closed), scan, pages="7-8"))


def test_leaving_early_and_a_cancel_end_what_runs(scan):
    model = Reader(ticks=1000)
    reading = ocr.read(model, scan, pages="7-12", on_progress=lambda doing: 1 / (model.most < 2))
    with pytest.raises(ZeroDivisionError):
        next(reading)
    assert model.most > 1 and model.running == 0

    cancel = glmlite.Cancel()
    model = Reader(ticks=1000)
    assert list(ocr.read(model, scan, pages="7-12", cancel=cancel, on_progress=lambda doing: cancel.cancel())) == []
    assert model.running == 0
    assert list(ocr.read(model, scan, cancel=cancel)) == []


def test_a_loop_is_stopped_and_a_limit_is_told(scan):
    def answer(model, prompt, colour):
        if colour == "j":
            return Answer(model, ["Once. ", *["And the same thing over and over. "] * 100])
        return Answer(model, ["cut of", ("f", "length")])

    first, second = ocr.read(Reader(answer=answer), scan, pages="7,8")
    assert first.text == "Once. And the same thing over and over."
    assert first.notes == ["began to repeat itself and was stopped"]
    assert second.text == "cut off" and second.notes == ["was cut off after 7 tokens"]


# ---- loops, fences, fields


def fed(pieces):
    loop = Loop()
    text = ""
    for i, piece in enumerate(pieces):
        text += piece
        cut = loop.feed([ord(c) for c in piece], piece)
        if cut is not None:
            return i + 1, text[:cut]
    return None


LINE = "It was the best of times.\n"


@pytest.mark.parametrize(
    ("pieces", "want"),
    [
        (["start ", *[LINE] * 10], (5, "start " + LINE)),  # 20 tokens or more: four times
        (["start ", *"ab" * 300], (323, "start ab")),  # few tokens: 320 of them
        (["x" * 310], None),
        (["<table>", *["<tr>" + "<td></td>" * 6 + "</tr>"] * 63, "</table>"], None),  # a form that is empty
        (["<table>", *["<tr>" + "<td></td>" * 6 + "</tr>"] * 70], (65, "<table><tr>" + "<td></td>" * 6 + "</tr>")),
        (["<table>", *["<tr><td>0</td><td>0</td></tr>"] * 9], (5, "<table><tr><td>0</td><td>0</td></tr>")),
        (["| | |\n"] * 63, None),
        (["| | |\n"] * 70, (64, "| | |\n")),
        ([*"<table>", *("<tr>" + "<td></td>" * 6 + "</tr>") * 60, "</table>"], None),
        ([*"<table>", *"<tr><td>0</td><td>0</td></tr>" * 9], (7 + 4 * 29 - 1, "<table><tr><td>0</td><td>0</td></tr")),
        (["aaa\n"] * 30, (24, "aaa")),  # a line: 24 times
        (["\n"] * 100, None),
        ([f"line {i} of a text that goes on\n" for i in range(100)], None),
        (["<tr><td></td><td></td></tr>"] * 3, None),
        ([LINE, LINE, LINE, "another thing", LINE, LINE, LINE], None),
    ],
)
def test_an_answer_that_repeats_itself(pieces, want):
    assert fed(pieces) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ('```json\n{"a": 1}\n```', '{"a": 1}'),
        ("\n```\nx\n```\n", "x"),
        ("```json\n{}", "```json\n{}"),
        ("a\n```\nb\n```", "a\n```\nb\n```"),
        ("```\na\n```\nb\n```\nc\n```", "```\na\n```\nb\n```\nc\n```"),
        ("  plain \n", "plain"),
    ],
)
def test_a_fence_around_an_answer_is_no_text(text, want):
    assert without_fence(text) == want


def test_fields_are_asked_for_in_the_words_of_the_model_card():
    assert fields_prompt({"姓名": "", "items": [{"price": 0}]}) == (
        '请按下列JSON格式输出图中信息:\n{\n    "姓名": "",\n    "items": [\n        {\n            "price": 0\n'
        "        }\n    ]\n}"
    )


def test_fields_become_a_schema():
    text = {"type": "string"}
    schema = fields_schema({"a": "", "b": {"c": None}, "d": [], "e": [{"f": 0}], "g": True})
    assert list(schema["properties"]) == schema["required"] == ["a", "b", "d", "e", "g"]
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert properties["a"] == properties["b"]["properties"]["c"] == properties["d"]["items"] == text
    assert properties["e"]["items"]["properties"]["f"] == {"type": "number"}
    assert properties["g"] == {"type": "boolean"}


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({}, ValueError, "fields: an empty object"),
        ({"a": {}}, ValueError, "fields.a: an empty object"),
        (["a"], TypeError, "fields: list, expected an object"),
        ({"a": {1, 2}}, TypeError, "fields.a: set, expected a text"),
    ],
)
def test_fields_that_ask_for_nothing(fields, error, message):
    with pytest.raises(error, match=message):
        fields_schema(fields)


def test_deep_fields_are_refused():
    deep = {"a": ""}
    for _ in range(40):
        deep = {"a": deep}
    with pytest.raises(ValueError, match="nested more than"):
        fields_schema(deep)


def test_fields_are_filled(scan):
    model = Reader(answer=lambda model, prompt, colour: Answer(model, ['```json\n{"name": ', f'"{colour}"}}\n```']))
    (page,) = ocr.read(model, scan, pages="7", fields={"name": ""})
    assert page.fields == {"name": "j"}
    assert model.asked == [(fields_prompt({"name": ""}), "j")]
    assert model.parameters[0]["schema"] == fields_schema({"name": ""})
    model = Reader(answer=lambda model, prompt, colour: Answer(model, [('{"name": "', "length")]))
    (page,) = ocr.read(model, scan, pages="7", fields={"name": ""})
    assert "the answer was cut off" in page.error


# ---- sources


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_every_kind_of_source(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, colour in (("page10.png", "c"), ("page2.jpg", "b"), ("Page1.webp", "a")):
        text_page(colour).save(folder / name, quality=100, subsampling=0)
    (folder / "notes.txt").write_text("nothing")
    (folder / ".hidden.png").write_bytes(b"")
    tiff = saved(text_page("d"), "TIFF", save_all=True, append_images=[text_page("e")])
    pdf = pictures.pdf([text_page("i")])
    for kind in (bytearray, memoryview):
        assert [colours(page) for page in ocr.read(Reader(), kind(pdf))] == [["i"]]
    many = [
        str(folder),
        tiff,
        saved(text_page("f")),
        text_page("g"),
        np.asarray(text_page("h")),
        pictures.pdf(["text"]),
    ]
    pages = list(ocr.read(Reader(), many))
    assert [colours(page)[0] for page in pages[:-1]] == list("abcdefgh")
    assert [(page.document, page.number, page.pages) for page in pages[3:6]] == [(3, 1, 2), (3, 2, 2), (4, 1, 1)]
    assert pages[0].source == str(folder / "Page1.webp") and pages[5].source == "image 3"
    assert [colours(page) for page in ocr.read(Reader(), text_page("k"))] == [["k"]]


def test_what_cannot_be_opened_is_named_and_the_others_follow(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pictures.pdf(["x"], encrypt=True))
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.png").write_bytes(saved(text_page("c"))[:2000])
    (tmp_path / "d.png").write_bytes(saved(text_page("d")))
    (tmp_path / "e.png").write_bytes(saved(Image.new("RGB", (1, 20_000))))
    pages = list(ocr.read(Reader(), [tmp_path, tmp_path / "f.png", 7, "https://example.com/x.pdf"]))
    errors = [page.error for page in pages]
    assert errors[0] == f"{tmp_path / 'a.pdf'}: is encrypted, expected a PDF without a password"
    assert errors[1] == f"{tmp_path / 'b.png'}: is empty, expected an image"
    assert errors[2].startswith(f"{tmp_path / 'c.png'}: a damaged image")
    assert errors[3] is None
    assert errors[5] == f"{tmp_path / 'f.png'}: No such file or directory"
    assert errors[7] == "https://example.com/x.pdf: is a web address, expected a file or a data URL"
    assert errors[6] == "image 3: int, expected a path, bytes, a data URL, a Pillow image or an array"


@pytest.mark.parametrize(
    ("pages", "want"),
    [
        (None, list(range(1, 13))),
        ("3-7", [3, 4, 5, 6, 7]),
        ("9-, 1,4 ,4", [1, 4, 9, 10, 11, 12]),
        ([2, 1], [1, 2]),
        (range(5, 7), [5, 6]),
    ],
)
def test_pages_by_number(pages, want):
    assert page_numbers(pages, 12, "x.pdf") == want


@pytest.mark.parametrize(
    ("pages", "count", "message"),
    [
        ("3-", 2, "x.pdf: pages 3 to 2 asked for, expected some of its 2"),
        ("13", 12, "x.pdf: page 13 asked for"),
        ("0", 12, "x.pdf: page 0 asked for"),
        ("7-3", 12, "x.pdf: pages 7 to 3 asked for"),
        ("a", 12, "pages: 'a', expected numbers and ranges"),
        ("", 12, "pages: '', expected"),
        ("-", 12, "pages: '-', expected"),
        ("1 2", 12, "pages: '1 2', expected"),
        (None, 1_000_000, f"x.pdf: 1000000 pages, expected at most {MOST_PAGES} at a time: say which"),
        ("1-1000000", 1_000_000, "1000000 pages, expected at most"),
        (None, 0, "x.pdf: has no pages"),
    ],
)
def test_pages_that_are_not_there(pages, count, message):
    with pytest.raises(ValueError, match=message):
        page_numbers(pages, count, "x.pdf")


def test_a_pdf_that_says_a_million_pages_ends_soon():
    for page in ocr.read(Reader(), pictures.pdf(["x"], count=1_000_000)):
        assert page.error is None or "expected at most" in page.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "figure"}, "task is 'figure', expected text, table, formula"),
        ({"task": "table", "fields": {"a": ""}}, "task 'table' and fields are given"),
        ({"fields": {"a": ""}, "cut": True}, "fields and cut are given, expected one of them: cut is for text"),
        ({"task": "formula", "cut": True}, "task 'formula' and cut are given"),
        ({"task": "table", "text_layer": True}, "task 'table' and text_layer are given"),
        ({"dpi": 0}, "dpi is 0, expected 20 to 1200"),
        ({"dpi": float("nan")}, "dpi is nan"),
        ({"max_tokens": 0}, "max_tokens is 0, expected at least 1"),
        ({"sources": []}, "no documents"),
        ({"sources": ""}, "a document without a name, expected a path"),
    ],
)
def test_arguments_are_checked_at_once(scan, arguments, message):
    with pytest.raises(ValueError, match=message):
        ocr.read(Reader(), **{"sources": scan, **arguments})


@pytest.mark.parametrize("pages", [3, ["1-2"], [1.5], [None]])
def test_pages_that_are_no_numbers(scan, pages):
    with pytest.raises(TypeError, match=r"^pages: .*, expected numbers from 1, or a text such as '3-7'"):
        ocr.read(Reader(), scan, pages=pages)


def test_a_model_without_a_tower_is_refused(scan):
    model = Reader()
    model.images, model._blind = False, "pass its eyes"
    with pytest.raises(
        ValueError, match="stand-in: sees no images, expected a vision model, as GLM-OCR: pass its eyes"
    ):
        ocr.read(model, scan)


def test_a_large_picture_is_taken_for_a_page():
    (page,) = ocr.read(Reader(), text_page("a").resize((4000, 5600)), cut=False)
    assert page.blocks[0].box == (0, 0, 1246, 1745)
    (page,) = ocr.read(Reader(), text_page("a").crop((0, 0, 600, 400)), cut=False)
    assert page.blocks[0].box == (0, 0, 600, 400)


def test_the_text_of_a_pdf_is_offered_and_taken():
    file = pictures.pdf(["some lines\nof text", text_page("b")])
    pages = list(ocr.read(Reader(), file))
    assert pages[0].characters >= 18 and not pages[0].layer and pages[1].characters == 0
    model = Reader()
    pages = list(ocr.read(model, file, text_layer=True))
    assert pages[0].text == "some lines\nof text" and pages[0].layer
    assert colours(pages[1]) == ["b"] and len(model.asked) == 1


@pytest.mark.parametrize(("task", "told"), [("text", True), ("table", False)])
def test_the_text_of_a_pdf_is_offered_for_text_alone(model, capsys, task, told):
    (model / "own.pdf").write_bytes(pictures.pdf(["some lines\nof text"]))
    assert main(["ocr", "own.pdf", "-m", "model.gguf", "--task", task]) == 0
    assert ("pages that have text of their own: 1" in capsys.readouterr().err) is told


# ---- the command


@pytest.fixture
def model(monkeypatch, tmp_path):
    """`main` with the stand-in, in a folder of its own, in which there is a model.gguf."""
    monkeypatch.setattr(glmlite, "load", load)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    return tmp_path


def marks(text):
    return [line for line in text.splitlines() if line.startswith("<!--")]


def test_one_markdown_with_breaks_between_pages(model, scan, capsys):
    assert main(["ocr", str(scan), "-m", "model.gguf", "-o", "out.md"]) == 1  # a page failed
    out, err = capsys.readouterr()
    assert out == "out.md\n"
    text = (model / "out.md").read_text(encoding="utf-8")
    found = marks(text)
    assert found[:5] == [f"<!-- page {n} -->" for n in range(1, 6)] and len(found) == 12
    assert found[5].startswith(f"<!-- page 6: {scan}, page 6: is damaged")
    assert "<!-- page 2 -->\n\nText b\n\nTable c\n\nText d\n\n<!-- page 3 -->\n\nText e\n\nText f\n\nText g\n\n" in text
    assert "<!-- page 5 -->\n\n<!-- page 6" in text
    assert f"glmlite: {scan}, page 6: is damaged" in err
    assert f"{scan}, page 7 of 12: blocks 1, tokens 6; render " in err
    assert sorted(path.name for path in model.iterdir()) == ["model.gguf", "out.md"]


def test_it_prints_where_there_is_no_target(model, scan, capsys):
    assert main(["ocr", str(scan), "-m", "model.gguf", "--pages", "7-8"]) == 0
    assert capsys.readouterr().out == "<!-- page 7 -->\n\nText j\n\n<!-- page 8 -->\n\nText k\n\n"
    text_page("a").save("a.png")
    assert main(["ocr", "a.png", "-m", "model.gguf", "--task", "table"]) == 0
    assert capsys.readouterr().out == "Table a\n"


def test_a_line_of_json_for_each_page(model, scan, capsys):
    assert main(["ocr", str(scan), "-m", "model.gguf", "--pages", "5-7", "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["number"] for line in lines] == [5, 6, 7]
    assert lines[2]["text"] == "Text j" and lines[2]["blocks"][0]["kind"] == "text" and lines[2]["tokens"] == 6
    assert lines[1]["error"] and lines[0]["error"] is None
    assert ocr.Page.of_dict({k: v for k, v in lines[2].items() if k != "tokens"}).text == "Text j"


def test_fields_from_a_file(model, scan, capsys, monkeypatch):
    answer = lambda model, prompt, colour: Answer(model, [json.dumps({"name": colour})])  # noqa: E731
    monkeypatch.setattr(glmlite, "load", lambda path, **options: Reader(path, answer))
    (model / "card.json").write_text('{"name": ""}', encoding="utf-8")
    assert main(["ocr", str(scan), "-m", "model.gguf", "--pages", "7", "--fields", "card.json"]) == 0
    assert json.loads(capsys.readouterr().out)["fields"] == {"name": "j"}
    (model / "card.json").write_text("{name}", encoding="utf-8")
    assert main(["ocr", str(scan), "-m", "model.gguf", "--fields", "card.json"]) == 1
    assert "card.json: is no JSON" in capsys.readouterr().err


def test_a_folder_of_documents_becomes_one_file_or_many(model, capsys):
    folder = model / "in"
    folder.mkdir()
    for name, colour in (("a.png", "a"), ("b.png", "b"), ("b.webp", "c")):
        text_page(colour).save(folder / name, lossless=True)
    assert main(["ocr", "in", "-m", "model.gguf", "-o", "all.md"]) == 0
    heads = [f"<!-- {Path('in') / name}, page 1 -->" for name in ("a.png", "b.png", "b.webp")]
    assert marks((model / "all.md").read_text(encoding="utf-8")) == heads
    assert main(["ocr", "in", "-m", "model.gguf", "-o", "out/"]) == 0
    written = {path.name: path.read_text(encoding="utf-8") for path in (model / "out").iterdir()}
    assert written == {"a.md": "Text a\n", "b.png.md": "Text b\n", "b.webp.md": "Text c\n"}


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("ocr {scan}", 2, "Missing option '--model'"),
        ("ocr {scan} -m model.gguf --fast --dpi 100", 2, "--fast is --dpi 90: give one of them"),
        ("ocr {scan} -m model.gguf -o there.md", 1, "there.md: it is there already; --force writes over it"),
        ("ocr {scan} -m model.gguf --pages 13", 1, "page 13 asked for, expected some of its 12"),
        ("ocr none.pdf -m model.gguf -o x.md", 1, "none.pdf: No such file or directory"),
        ("ocr {scan} -m model.gguf --task figure -o x.md", 1, "task is 'figure'"),
        ("ocr {scan} -m model.gguf --dpi 0 -o x.md", 1, "dpi is 0.0, expected 20 to 1200"),
        ("ocr {scan} -m model.gguf -o no/such/x.md", 1, "no/such/x.md: there is no folder no/such, expected one"),
        ("ocr {scan} -m model.gguf -o there.md/x.md", 1, "there is no folder there.md, expected one"),
        ("ocr {scan} -m model.gguf --out=", 1, "--out: an empty name, expected a file or a folder"),
        ("ocr there.md -m model.gguf -f -o there.md", 1, "there.md: is a document to read, expected another file"),
        ("ocr there.md in/there.md -m model.gguf -o .", 1, "is the file of there.md and of in/there.md, expected"),
        ("ocr {scan} -m model.gguf --fields list.json", 1, "list.json: is list, expected an object with empty values"),
        ("ocr {scan} -m model.gguf --fields deep.json", 1, "deep.json: is no JSON"),
        ("ocr {scan} -m model.gguf --fields latin.json", 1, "glmlite: latin.json: byte 0 is not UTF-8"),
    ],
)
def test_mistakes_are_told(model, scan, capsys, line, code, message):
    (model / "there.md").write_text("mine")
    (model / "list.json").write_text("[]")
    (model / "deep.json").write_text("[" * 100_000)
    (model / "latin.json").write_bytes(b"\xff")
    assert main([word.format(scan=scan) for word in line.split()]) == code
    assert message in capsys.readouterr().err
    assert (model / "there.md").read_text() == "mine" and not (model / "x.md").exists()
    assert not list(model.glob(".*.pages"))


@pytest.mark.skipif(sys.platform != "linux", reason="names that are bytes")
def test_names_of_files_that_are_no_text(model, capsys):
    folder = model / "in"
    folder.mkdir()
    text_page("a").save(folder / "a --><b>\n.png")
    text_page("b").save(folder / os.fsdecode(b"b\xff.png"))
    assert main(["ocr", "in", "-m", "model.gguf", "-o", "all.md"]) == 0
    assert marks((model / "all.md").read_text(encoding="utf-8")) == [
        "<!-- in/a - -&gt;<b&gt; .png, page 1 -->",
        "<!-- in/b?.png, page 1 -->",
    ]
    assert main(["ocr", "in", "-m", "model.gguf", "-o", "all.jsonl", "--json"]) == 0
    lines = [json.loads(line) for line in (model / "all.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["text"] for line in lines] == ["Text a", "Text b"]
    assert all(line.startswith("in/") for line in capsys.readouterr().err.splitlines())


def test_oddities_of_a_photo_are_not_told(model):
    exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\x10\0\0\0"
    text_page("a").save(model / "a.jpg", quality=100, subsampling=0, exif=b"Exif\0\0" + exif)
    process = start(model, "a.jpg", "-m", "model.gguf", slow=0)
    out, err = process.communicate(timeout=WAIT)
    assert out.split() == [b"Text", b"a"] and err.startswith(b"a.jpg: blocks 1") and err.count(b"\n") == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
def test_a_folder_with_what_are_no_files(model, capsys):
    folder = model / "in"
    (folder / "sub.pdf").mkdir(parents=True)
    text_page("a").save(folder / "a.png")
    (folder / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "none.png").symlink_to("nothing")
    assert main(["ocr", "in", "-m", "model.gguf", "-o", "out.md"]) == 1
    text = (model / "out.md").read_text(encoding="utf-8").replace(f"in{os.sep}", "")
    assert marks(text) == [
        "<!-- a.png, page 1 -->",
        "<!-- IMG_1.HEIC, not read: IMG_1.HEIC: is an HEIC image, "
        "expected one of PNG, JPEG, WEBP, TIFF, GIF, BMP, PPM -->",
        "<!-- loop.png, not read: loop.png: Too many levels of symbolic links -->",
        "<!-- none.png, not read: none.png: No such file or directory -->",
        "<!-- pipe.png, not read: pipe.png: is no regular file, expected a document -->",
        "<!-- sub.pdf, not read: sub.pdf: is a folder, expected a document -->",
    ]


def test_a_file_that_goes_while_it_is_read(scan, tmp_path):
    """A page that was rendered is read; of a PDF all are, since it stays open."""
    path = tmp_path / "scan.tiff"
    path.write_bytes(saved(text_page("a"), "TIFF", save_all=True, append_images=[text_page(c) for c in "bcdefgh"]))
    pages = []
    for page in ocr.read(Reader(), path):
        pages.append(page)
        path.unlink(missing_ok=True)
    assert len(pages) == 8 and pages[0].error is None
    assert pages[-1].error == f"{path}, page 8: No such file or directory"


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_full_disk_keeps_what_is_finished(model, scan):
    """Where the disk has room for some pages only, and then for all."""
    import resource

    command = str(scan), "-m", "model.gguf", "--pages", "7-12", "-o", "out.md"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))  # noqa: E731
    process = start(model, *command, slow=0, preexec_fn=limit)
    _, err = process.communicate(timeout=WAIT)
    assert process.returncode == 1 and b"glmlite: .out.md.pages: File too large" in err
    assert not (model / "out.md").exists()
    finished = kept(model)
    assert 1 <= finished < 6 and f"[{finished} finished pages are kept".encode() in err
    process = start(model, *command, slow=0)
    _, err = process.communicate(timeout=WAIT)
    assert process.returncode == 0 and f"[{finished} pages are kept from before".encode() in err


def test_help_teaches(capsys):
    assert main(["ocr", "--help"]) == 0
    assert "glmlite ocr scan.pdf -m glm-ocr.gguf -o scan.md" in capsys.readouterr().out


# ---- going on after an end


def start(folder, *arguments, slow=0.05, **options):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path]),
        "GLMLITE_TEST_SLOW": str(slow),
        "GLMLITE_TEST_LOG": str(folder / "log"),
    }
    command = [sys.executable, __file__, "ocr", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes, **options)


def kept(folder, name="out.md"):
    path = folder / f".{name}.pages"
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


def until_kept(folder, count, process):
    deadline = time.monotonic() + WAIT
    while kept(folder) < count:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_the_next_run_goes_on_where_one_was_ended(model, scan, number):
    asked = str(scan), "-m", "model.gguf", "--pages", "6-12"
    assert main(["ocr", *asked, "-o", "whole.md"]) == 1
    command = *asked, "-o", "out.md"
    process = start(model, *command, slow=0.1)
    until_kept(model, 2, process)
    process.send_signal(getattr(signal, number))
    _, err = process.communicate(timeout=WAIT)
    code = {"SIGINT": 130, "SIGTERM": 128 + signal.SIGTERM, "SIGKILL": -signal.SIGKILL}
    assert process.returncode == code[number]
    assert not (model / "out.md").exists()
    finished = kept(model)
    assert 2 <= finished < 6
    if number != "SIGKILL":
        assert f"[{finished} finished pages are kept; the same command goes on after them]".encode() in err

    pages = [json.loads(line) for line in (model / ".out.md.pages").read_bytes().splitlines()[1:]]
    done = {part["text"].split()[-1] for page in pages for part in page["blocks"]}
    (model / "log").unlink()
    process = start(model, *command, slow=0)
    _, err = process.communicate(timeout=WAIT)
    assert process.returncode == 1, err
    assert f"[{finished} pages are kept from before".encode() in err
    assert done.isdisjoint((model / "log").read_text().split())
    assert (model / "out.md").read_bytes() == (model / "whole.md").read_bytes()
    assert kept(model) == 0


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", ["SIGINT", "SIGKILL"])
def test_a_run_into_a_folder_goes_on_after_the_files_that_it_has_written(model, capsys, number):
    names = "abcdef"
    for name in names:
        pages = [text_page(name), text_page(name)]
        (model / f"{name}.pdf").write_bytes(pictures.pdf([None] if name == "a" else pages))
    files = [f"{name}.pdf" for name in names]
    assert main(["ocr", *files, "-m", "model.gguf", "-o", "whole/"]) == 1
    command = *files, "-m", "model.gguf", "-o", "out/"
    process = start(model, *command, slow=0.1)
    out = model / "out"
    deadline = time.monotonic() + WAIT
    while not (out / "b.md").exists():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(getattr(signal, number))
    _, err = process.communicate(timeout=WAIT)
    finished = sorted(out.glob("*.md"))
    assert 2 <= len(finished) < 6
    if number == "SIGINT":
        pages = sum(path.read_bytes().count(b'{"source"') for path in out.glob(".*.pages"))
        assert f"[{pages} finished pages are kept; the same command goes on after them]".encode() in err
    (out / "b.md").write_text("as somebody has changed it")
    (model / "log").unlink()
    process = start(model, *command, slow=0)
    _, err = process.communicate(timeout=WAIT)
    assert process.returncode == 1, err  # the page of the first fails
    for name in finished:
        assert f"[{name.relative_to(model)} is there from before]".encode() in err
    assert {path.stem for path in finished}.isdisjoint((model / "log").read_text().split())
    assert (out / "b.md").read_text() == "as somebody has changed it"
    for name in names.replace("b", ""):
        assert (out / f"{name}.md").read_bytes() == (model / "whole" / f"{name}.md").read_bytes()
    assert sorted(path.name for path in out.iterdir()) == [f"{name}.md" for name in names]
    assert main(["ocr", *command]) == 1
    assert "it is there already; --force writes over it" in capsys.readouterr().err


def test_a_written_file_is_not_taken_for_one_of_other_options(model, capsys):
    for name in "ab":
        text_page(name).save(model / f"{name}.png")
    journal = ocr.Journal(model / "a.md", key(model))
    journal.end(failed=False)
    journal.close()
    (model / "a.md").write_text("mine")
    assert main(["ocr", "a.png", "b.png", "-m", "model.gguf", "-o", "."]) == 1
    assert "a.md: it is there already; --force writes over it" in capsys.readouterr().err
    assert (model / "a.md").read_text() == "mine" and not list(model.glob(".*.pages"))
    assert main(["ocr", "a.png", "b.png", "-m", "model.gguf", "-o", ".", "--force"]) == 0
    assert (model / "a.md").read_text() == "Text a\n"


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_is_heard_while_a_page_is_rendered_that_has_no_end(model):
    (model / "endless.pdf").write_bytes(pictures.endless_pdf())
    process = start(model, "endless.pdf", "-m", "model.gguf", "-o", "out.md")
    deadline = time.monotonic() + WAIT
    while not (model / ".out.md.pages").exists():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(1)  # by then it is rendered
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=WAIT)
    assert process.returncode == 130 and time.monotonic() - began < 5  # a minute at least until memory is full
    assert not list(model.glob("*out.md*"))


def key(model, **changes):
    return ocr.key_of(["digest"], {"dpi": 150, **changes}, Reader(model / "model.gguf"))


def test_pages_are_kept_for_the_same_content_options_and_model_only(model):
    journal = ocr.Journal(model / "out.md", key(model))
    page = ocr.Page("x.pdf", 0, 3, 12, "好", [ocr.Part("好", "text", (1, 2, 3, 4), 5)], notes=["a"])
    journal.add(page)
    journal.close()
    again = ocr.Journal(model / "out.md", key(model))
    assert again.pages == {(0, 3): page} and not again.stale
    again.close()
    other = ocr.Journal(model / "out.md", key(model, dpi=90))
    assert other.pages == {} and other.stale
    other.close()
    first = key(model)
    assert key(model, fields={"a": "", "b": ""}) != key(model, fields={"b": "", "a": ""})
    reader, seen = Reader(model / "model.gguf"), {first}
    for content in (b"GGUF eyes", b"GGUF other eyes"):
        (model / "mmproj.gguf").write_bytes(content)
        reader._eyes = SimpleNamespace(path=(model / "mmproj.gguf").absolute())
        seen.add(ocr.key_of(["digest"], {"dpi": 150}, reader))
    assert len(seen) == 3
    (model / "model.gguf").write_bytes(b"GGUF another")
    assert key(model) != first


def test_a_line_that_was_being_written_is_no_page(model):
    journal = ocr.Journal(model / "out.md", key(model))
    for number in (1, 2):
        journal.add(ocr.Page("x.pdf", 0, number, 12, f"page {number}"))
    journal.close()
    data = journal.path.read_bytes()
    for end in range(len(data)):
        journal.path.write_bytes(data[:end])
        again = ocr.Journal(model / "out.md", key(model))
        whole = data[:end].count(b"\n")
        assert len(again.pages) == max(whole - 1, 0)
        again.add(ocr.Page("x.pdf", 0, 7, 12))
        again.close()
        assert len(ocr.Journal(model / "out.md", key(model)).pages) == len(again.pages)
    for garbage in (b"\xff\xfe\n", b"[]\n", b'{"key": 1}\n[]\n', data + b'{"source": 1}\n', b"[" * 5000 + b"\n"):
        journal.path.write_bytes(garbage)
        ocr.Journal(model / "out.md", key(model)).close()
    again.remove()
    assert not again.path.exists()
