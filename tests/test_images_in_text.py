"""Rows of images in a text model's steps: against transformers' numbers, and that chunks, threads, company, instruction
sets and what is in the cache change no bit."""

import threading
from itertools import pairwise

import numpy as np
import pytest
import tiny
from test_engine import WHOLE, assert_close
from test_tower import CASES, STORED, Stored

from glmlite import _native, models, reference
from glmlite.models.layout import IMAGE, causal, with_images
from glmlite.placement import native_ops
from glmlite.scheduler import Request, Scheduler
from glmlite.vision.tower import items


@pytest.fixture(params=CASES)
def stored(request):
    return Stored(request.param)


def layout_of(stored):
    return with_images(stored.ids, [(rows // 2, columns // 2) for rows, columns in stored.grids])


def recorded(model):
    return models.record(model.metadata, model.shapes)


class Opened:
    """A file of a text model, and engines of it."""

    def __init__(self, path, model, format="F32"):
        self.gguf = _native.Gguf(str(tiny.write(path / "text.gguf", model, format)))
        self.recording = recorded(model)

    def engine(self, **options):
        ops = native_ops(self.recording.ops, self.gguf.dequantize)
        return _native.Engine(self.gguf, ops, **{"kv_tokens": 512, "threads": 2} | options)


@pytest.fixture
def opened(stored, tmp_path):
    return lambda format="F32": Opened(tmp_path, stored.text, format)


def read(engine, stored, begin=0, end=None, sequence=None, rows=None):
    """Logits of the tokens from begin to end, whose rows are the stored ones unless others are given."""
    end = len(stored.ids) if end is None else end
    ids, given = stored.ids[begin:end], stored.rows if rows is None else rows
    skipped = int(np.sum(stored.ids[:begin] == IMAGE))
    part = given[skipped : skipped + int(np.sum(ids == IMAGE))]
    sequence = engine.new_sequence() if sequence is None else sequence
    at = layout_of(stored).positions[begin:end]
    return engine.step([_native.Work(sequence, ids, at, embeddings=part)], range(len(ids)))


def test_positions_are_the_stored_ones(stored):
    layout = layout_of(stored)
    np.testing.assert_array_equal(layout.positions, stored.positions)
    after = int(stored.positions[-1, 0]) + 1  # text ends it
    assert (layout.context, layout.next_position, layout.position_step) == (0, (after,) * 3, (1,) * 3)


def test_numpy_gives_the_stored_logits(stored):
    assert recorded(stored.text).images
    numpy = reference.Reference(recorded(stored.text).ops, stored.text.tensors)
    work = reference.Work(numpy.new_sequence(), stored.ids, stored.positions, embeddings=stored.rows)
    assert_close(numpy.step([work], range(len(stored.ids))), stored.logits, STORED)


def test_axes_the_other_way_round_are_noticed(stored):
    numpy = reference.Reference(recorded(stored.text).ops, stored.text.tensors)
    work = reference.Work(numpy.new_sequence(), stored.ids, stored.positions[:, [0, 2, 1]], embeddings=stored.rows)
    wrong = np.abs(numpy.step([work], range(len(stored.ids))) - stored.logits).max()
    assert wrong > 10 * STORED * np.abs(stored.logits).max()


def test_native_gives_the_stored_logits(stored, opened):
    assert_close(read(opened().engine(), stored), stored.logits, WHOLE["F32"])


@pytest.mark.parametrize("format", ["F32", "Q4_0"])
def test_nothing_else_decides_on_a_row(stored, opened, format):
    """Chunks, one by one, a fork of a beginning, threads, instruction sets and company: the same bits."""
    file, n = opened(format), len(stored.ids)
    engine = file.engine()
    want = read(engine, stored)
    for cuts in ([0, 7, 9, n], [*range(n + 1)]):
        sequence = engine.new_sequence()
        parts = [read(engine, stored, a, b, sequence) for a, b in pairwise(cuts)]
        np.testing.assert_array_equal(np.concatenate(parts), want)
    fork = engine.fork(sequence, 7)  # within the first image, or at its end
    np.testing.assert_array_equal(read(engine, stored, 7, None, fork), want[7:])
    for options in ({"threads": 1}, {"threads": 3}, *({"isa": isa} for isa in _native.isas())):
        np.testing.assert_array_equal(read(file.engine(**options), stored), want, err_msg=str(options))
    other = [3, 5, 7, 9]
    works = [
        _native.Work(engine.new_sequence(), other, causal(other, None).positions),
        _native.Work(engine.new_sequence(), stored.ids, stored.positions, embeddings=stored.rows),
        _native.Work(engine.new_sequence(), stored.ids[:7], stored.positions[:7], embeddings=2 * stored.rows[:1]),
    ]
    np.testing.assert_array_equal(engine.step(works, range(4, 4 + n)), want)


def test_a_row_of_the_table_is_its_token(stored, opened):
    """Given the embedding of an id, a token without one gives that id's bits."""
    engine = opened().engine()
    ids = [1, 2, 3, 4, 5]
    at = causal(ids, None).positions
    want = engine.step([_native.Work(engine.new_sequence(), ids, at)], range(5))
    table = stored.text.tensors["token_embd.weight"]
    work = _native.Work(engine.new_sequence(), [1, IMAGE, 3, 4, IMAGE], at, embeddings=table[[2, 5]])
    np.testing.assert_array_equal(engine.step([work], range(5)), want)


@pytest.mark.parametrize("rows", [None, np.zeros((1, 64)), np.zeros((2, 63)), np.zeros((3, 64))])
def test_rows_that_do_not_fit_are_refused(stored, opened, rows):
    engine, at = opened().engine(), causal(range(3), None).positions
    with pytest.raises(ValueError, match=r"embeddings of \d+ values, expected 64 for each of 2 tokens"):
        engine.step([_native.Work(engine.new_sequence(), [IMAGE, 1, IMAGE], at, embeddings=rows)], [0])
    numpy = reference.Reference(recorded(stored.text).ops, stored.text.tensors)
    with pytest.raises(ValueError, match=r"embeddings of \d+ values, expected 64 for each of 2 tokens"):
        numpy.step([reference.Work(numpy.new_sequence(), [IMAGE, 1, IMAGE], at, embeddings=rows)], [0])


def test_ids_below_are_refused(stored, opened):
    engine, at = opened().engine(), causal([0], None).positions
    with pytest.raises(ValueError, match="token -2"):
        engine.step([_native.Work(engine.new_sequence(), [-2], at)], [0])


def test_rows_that_are_not_finite_are_an_error(stored, opened):
    rows = stored.rows.copy()
    rows[0, 3] = np.nan
    with pytest.raises(RuntimeError, match=r"not finite at token 6 \(id -1\)"):
        read(opened().engine(), stored, rows=rows)


@pytest.mark.parametrize(
    "ids, grids, message",
    [
        ([1, IMAGE, IMAGE], [(1, 1)], "2 places, expected 1"),
        ([1, IMAGE, 2, IMAGE], [(1, 2)], "1 x 2 rows are not together from token 1 on"),
        ([1, 2], [(1, 1)], "0 places, expected 1"),
    ],
)
def test_grids_that_do_not_fit_their_places_are_refused(ids, grids, message):
    with pytest.raises(ValueError, match=message):
        with_images(ids, grids)


def test_without_images_a_layout_is_that_of_text():
    np.testing.assert_array_equal(with_images([4, 5, 6], []).positions, causal([4, 5, 6], None).positions)
    beside = with_images([IMAGE] * 6, [(2, 1), (1, 4)])  # two images, nothing between them
    assert beside.positions.tolist() == [[0, 0, 0], [0, 1, 0], [2, 2, 2], [2, 2, 3], [2, 2, 4], [2, 2, 5]]
    assert beside.next_position == (6, 6, 6)


@pytest.mark.parametrize("sections", [[4, 6, 6, 0], [4, 6, 6], [16], [0, 8, 8]])
def test_sections_change_no_bit_of_text(tmp_path, sections):
    """A text token stands at one place on all axes."""
    logits = []
    for given in ([16], sections):
        keys = {"glm4.rope.dimension_sections": given}
        file = Opened(tmp_path, tiny.model("glm4", rope_dim=32, metadata=keys), "Q4_0")
        ids, engine = list(range(40)), file.engine()
        work = _native.Work(engine.new_sequence(), ids, causal(ids, None).positions)
        logits.append(engine.step([work], range(40)))
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("sections", [[4, 6, 5, 0], [4, 4, 4, 4], [20, -4], [4, 6, 6, 0, 0, 1]])
def test_sections_that_do_not_fit_are_named(sections):
    model = tiny.model("glm4", rope_dim=32, metadata={"glm4.rope.dimension_sections": sections})
    with pytest.raises(ValueError, match=r"'glm4\.rope.dimension_sections' is .*, expected 3 numbers whose sum is 16"):
        recorded(model)


def test_a_drafting_layer_reads_images_beside_the_trunk_s_rows():
    """GLM-OCR's: a model of one block, to which what it has for itself is added here."""
    keys = {"glm4.rope.dimension_sections": [4, 6, 6, 0]}
    text = tiny.model("glm4", rope_dim=32, fused=False, drafting=True, metadata=keys)
    w, eps = text.tensors, text.metadata["glm4.attention.layer_norm_rms_epsilon"]
    ids = np.array([5, 6, *[IMAGE] * 6, 7, 8, 9])
    at = with_images(ids, [(2, 3)]).positions
    images = np.random.default_rng(1).standard_normal((6, 64), np.float32)

    trunk = reference.Reference(recorded(text).ops, w)
    works = [reference.Work(trunk.new_sequence(), ids, at, embeddings=images)]
    rows = trunk.trace(works, range(len(ids)))[-2][1]
    drafting = reference.Reference(models.draft(text.metadata, text.shapes).ops, w)
    work = reference.Work(drafting.new_sequence(), ids[1:], at[1:], input=rows[:-1], embeddings=images)
    got = drafting.step([work], range(len(ids) - 1))

    def norm(x, name):
        x = x.astype(np.float64)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w[name]

    embedded = w["token_embd.weight"][ids]
    embedded[ids == IMAGE] = images
    both = np.hstack([norm(embedded[1:], "blk.2.nextn.enorm.weight"), norm(rows[:-1], "blk.2.nextn.hnorm.weight")])
    x = both @ w["blk.2.nextn.eh_proj.weight"].T
    block = {f"blk.0.{name[6:]}": t for name, t in w.items() if name.startswith("blk.2.") and ".nextn." not in name}
    block |= {name: w[name] for name in ("token_embd.weight", "output.weight")}
    block["output_norm.weight"] = w["blk.2.nextn.shared_head_norm.weight"]
    alone = tiny.Tiny(text.metadata | {"glm4.block_count": 1, "glm4.nextn_predict_layers": 0}, block)
    model = reference.Reference(recorded(alone).ops, block)
    work = reference.Work(model.new_sequence(), [IMAGE] * len(x), at[1:], embeddings=x.astype(np.float32))
    assert_close(got, model.step([work], range(len(x))), STORED)


class Sink:
    def __init__(self):
        self.samples, self.done = [], threading.Event()

    def take(self, samples):
        self.samples += [sample.token for sample in samples]
        if len(self.samples) >= 6:
            self.done.set()
        return self.done.is_set()

    def fail(self, error):
        self.samples = error
        self.done.set()


def test_requests_with_images(stored, opened):
    """A second request of the same image reuses it, another image's does not; answers are those of the engine alone."""
    file = opened("Q4_0")
    engine = file.engine()
    layout = layout_of(stored)

    def alone(rows):
        work = _native.Work(
            engine.new_sequence(),
            stored.ids,
            layout.positions,
            sampler=_native.Sampler(),
            budget=6,
            next_position=layout.next_position,
            embeddings=rows,
        )
        return [sample.token for sample in engine.run([work], max_ms=1e9)[0]]

    def asked(rows, content):
        places = stored.ids == IMAGE
        known = np.array(stored.ids, np.int64)
        known[places] = items(content, int(places.sum()))
        sink = Sink()
        request = Request(
            stored.ids,
            layout,
            sink,
            sampler=_native.Sampler(),
            max_tokens=6,
            items=known,
            embeddings=rows,
        )
        scheduler.submit(request)
        assert sink.done.wait(60)
        return sink.samples, request.stats.reused_tokens

    other = -stored.rows
    scheduler = Scheduler(_native, file.engine(), parallel=2, chunk=5)
    try:
        assert asked(stored.rows, b"one") == (alone(stored.rows), 0)
        assert asked(other, b"other") == (alone(other), 6)  # the text before the image
        assert asked(stored.rows, b"one") == (alone(stored.rows), len(stored.ids) - 1)
    finally:
        scheduler.close()


@pytest.mark.parametrize("given, known", [(None, [0, 1, 2]), (np.zeros((2, 64)), [0, 1, 2]), (np.zeros((1, 64)), None)])
def test_requests_whose_rows_do_not_fit_are_refused(given, known):
    with pytest.raises(ValueError, match="embeddings"):
        Request([1, IMAGE, 2], causal(range(3), None), Sink(), items=known, embeddings=given)
