"""From a PDF to text through the real engine: a tiny random model of GLM-OCR's kind, whose words mean nothing, with its
tower. What it writes is compared with the engine's answer for each block alone."""

import pytest

pytest.importorskip("PIL", reason="needs glmlite[vision]")
pytest.importorskip("pypdfium2", reason="needs glmlite[vision]")

import pictures
import tiny

import glmlite
from glmlite import _native, ocr
from glmlite.generate import Answer, Generation
from glmlite.models.layout import IMAGE, with_images
from glmlite.parameters import Parameters
from glmlite.scheduler import Request
from glmlite.vision.preprocess import preprocess
from glmlite.vision.tower import Tower, items

WORDS = 12  # tokens that each block gets


class Seeing:
    """A model and its tower, as `glmlite.ocr` asks them."""

    name, images = "tiny", True

    def __init__(self, folder, **options):
        sections = {"glm4.rope.dimension_sections": [4, 6, 6, 0]}
        text = tiny.model("glm4", rope_dim=32, context=8192, metadata=sections)
        self.model = glmlite.load(tiny.write(folder / "text.gguf", text, "Q8_0"), context=4096, **options)
        self.tower = Tower.open(tiny.write(folder / "mmproj.gguf", tiny.eyes(), "Q8_0"))
        self.parallel = self.model.parallel
        self.prompts = []

    def prompt(self, image, text):
        """(ids, known, rows, layout)"""
        patches, grid, content = preprocess(image, self.tower.config)
        rows = self.tower.rows(patches, grid)
        encode = self.model.tokenizer.encode
        before = list(encode("[gMASK]<sop><|user|>\n", special=True, prefix=False))
        after = [*encode(text, prefix=False), *encode("<|assistant|>\n", special=True, prefix=False)]
        ids = [*before, *[IMAGE] * len(rows), *after]
        known = [*before, *items(content, len(rows)), *after]
        return ids, known, rows, with_images(ids, [(grid[0] // 2, grid[1] // 2)])

    def chat_stream(self, messages, *, max_tokens, cancel=None, **sampling):
        picture, text = messages[0]["content"]
        ids, known, rows, layout = self.prompt(picture["image"], text["text"])
        self.prompts.append((ids, rows, layout))
        p = Parameters(max_tokens=WORDS, **sampling)
        sampler = _native.Sampler(**p.sampling({}), seed=0)
        sampler.accept([i for i in ids if i != IMAGE])
        answer = Answer(self.model.tokenizer.stream(skip_special=True), p, [], WORDS)
        request = Request(ids, layout, answer, sampler=sampler, max_tokens=WORDS, items=known, embeddings=rows)
        return Generation(self.model._scheduler, request, answer, None, 0, self, cancel)

    def alone(self, ids, rows, layout):
        """The tokens of an answer that nothing runs beside."""
        engine = self.model.debug.engine
        p = Parameters(temperature=0.0, repetition_penalty=1.1)
        sampler = _native.Sampler(**p.sampling({}), seed=0)
        sampler.accept([i for i in ids if i != IMAGE])
        sequence = engine.new_sequence()
        work = _native.Work(
            sequence,
            ids,
            layout.positions,
            sampler=sampler,
            budget=WORDS,
            next_position=layout.next_position,
            embeddings=rows,
        )
        tokens = [sample.token for sample in engine.run([work], max_ms=1e9)[0]]
        engine.free(sequence)
        return self.model.detokenize(tokens)

    def close(self):
        self.model.close()
        self.tower.close()


@pytest.fixture
def seeing(tmp_path):
    opened = []

    def seeing(**options):
        opened.append(Seeing(tmp_path, **options))
        return opened[-1]

    yield seeing
    for model in opened:
        model.close()


def page(first):
    drawn = pictures.blank(620, 877)
    pictures.paragraph(drawn, 50, 60, 520, 24, 16, first)
    return drawn


def test_pages_are_read_through_the_tower(seeing):
    file = pictures.pdf([page(0), (298, 421), page(7)])
    model = seeing()
    pages = list(ocr.read(model, file))
    assert [page.error for page in pages] == [None] * 3
    assert pages[1].blocks == []
    blocks = [part for page in pages for part in page.blocks]
    assert len(blocks) == len(model.prompts) > 2
    assert all(part.tokens == WORDS for part in blocks)
    assert all(page.seconds.read > 0 and page.seconds.prepare > 0 for page in pages if page.blocks)
    # Blocks that ran beside each other say what each says alone, and one thread what two say.
    want = [model.alone(*prompt).strip() for prompt in model.prompts]
    assert sorted(part.text for part in blocks) == sorted(want) and len(set(want)) > 1
    again = list(ocr.read(seeing(parallel=1, threads=1), file))
    assert [page.text for page in again] == [page.text for page in pages]
