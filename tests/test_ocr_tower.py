"""From a PDF to text through the real engine: a tiny random model of GLM-OCR's kind, whose words mean nothing, with its
eyes. What it writes is compared with its answer for each block alone."""

import pytest

pytest.importorskip("PIL", reason="needs glmlite[vision]")
pytest.importorskip("pypdfium2", reason="needs glmlite[vision]")

import pictures
import tiny

import glmlite
from glmlite.ocr import asking

WORDS = 12  # tokens that each block gets


@pytest.fixture
def seeing(tmp_path):
    """seeing(arguments of glmlite.load) -> a Model with eyes, closed after the test."""
    sections = {"glm4.rope.dimension_sections": [4, 6, 6, 0]}
    text = tiny.model("glm4", rope_dim=32, context=8192, metadata=sections)
    tiny.write(tmp_path / "text.gguf", text, "Q8_0")
    tiny.write(tmp_path / "mmproj.gguf", tiny.eyes(), "Q8_0")
    opened = []

    def seeing(**options):
        opened.append(glmlite.load(tmp_path / "text.gguf", context=4096, **options))
        return opened[-1]

    yield seeing
    for model in opened:
        model.close()


def page(first):
    drawn = pictures.blank(620, 877)
    pictures.paragraph(drawn, 50, 60, 520, 24, 16, first)
    return drawn


def test_pages_are_read_through_the_tower(seeing, monkeypatch):
    file = pictures.pdf([page(0), (298, 421), page(7)])
    model, asked, ask = seeing(), [], asking.ask

    def remember(model, image, prompt, **parameters):
        asked.append((image, prompt))
        return ask(model, image, prompt, **parameters)

    monkeypatch.setattr(asking, "ask", remember)
    doing = []
    pages = list(model.ocr(file, max_tokens=WORDS, on_progress=doing.append))
    assert [page.error for page in pages] == [None] * 3
    assert pages[1].blocks == []
    blocks = [part for page in pages for part in page.blocks]
    assert len(blocks) == len(asked) > 2
    assert all(0 < part.tokens <= WORDS for part in blocks)
    assert all(page.seconds.read > 0 and page.seconds.prepare > 0 for page in pages if page.blocks)
    # Blocks that ran beside each other say what each says alone, and one thread what two say.
    alone = seeing(parallel=1)
    want = [ask(alone, *each, max_tokens=WORDS).result().text.strip() for each in asked]
    assert sorted(part.text for part in blocks) == sorted(want) and len(set(want)) > 1
    again = list(seeing(parallel=1, threads=1).ocr(file, max_tokens=WORDS))
    assert [page.text for page in again] == [page.text for page in pages]


def test_a_page_that_does_not_fit_is_named_with_what_it_needs(seeing):
    (page_,) = seeing().ocr(page(0).resize((1600, 2263)), cut=False, dpi=300, max_tokens=WORDS)
    assert page_.text == ""
    assert "of them for images" in page_.error and "a context of more than" in page_.error


def test_a_model_without_eyes_is_refused(tmp_path):
    path = tiny.write(tmp_path / "text.gguf", tiny.model("glm4"), "Q8_0")
    with glmlite.load(path) as model, pytest.raises(ValueError, match="tiny glm4: sees no images"):
        model.ocr("scan.pdf")
