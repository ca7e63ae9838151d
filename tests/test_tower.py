"""A model's eyes: against transformers, against numpy op by op, and that an image alone decides on its rows."""

import json
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import tiny
from test_engine import WHOLE, QuantizedReference, assert_close, executor

import glmlite
from glmlite import _native, models, reference
from glmlite.errors import Cancelled, FormatError
from glmlite.models import glm4v
from glmlite.models.layout import IMAGE
from glmlite.program import AXES
from glmlite.vision.tower import ReferenceTower, Tower, items, kv_type_of

DATA = Path(__file__).parent / "data"
CASES = ["vision-ocr", "vision-4.1v", "vision-4.5v"]
FORMATS = ["F32", "F16", "Q8_0", "Q4_0"]
# What the two sums, in f32 there and in f64 here, may differ by; transformers' angles and interpolation are f32.
STORED = 1e-5
KINDS = {"ocr": {"heads": 4}, "4.1v": {"dim": 96, "heads": 3, "side": 24, "bias": False}}


class Stored:
    """An oracle's file, and the models that it belongs to."""

    def __init__(self, case):
        with np.load(DATA / f"{case}.npz") as file:
            self.ids, self.rows, self.positions, self.logits = (
                file[name] for name in ("ids", "rows", "positions", "logits")
            )
            recipe, checksum = json.loads(str(file["recipe"])), list(file["checksum"])
        self.text = tiny.model(recipe["architecture"], **recipe["sizes"])
        self.eyes = tiny.eyes(**recipe["eyes"])
        assert [tiny.checksum(self.text), tiny.checksum(self.eyes)] == checksum
        self.grids = [tuple(grid) for grid in recipe["grids"]]
        self.images = [(tiny.patches(grid, i), grid) for i, grid in enumerate(self.grids)]


@pytest.fixture(params=CASES)
def stored(request):
    return Stored(request.param)


@pytest.fixture
def opened(tmp_path):
    """opened(tower's class, eyes, format, ..) -> the tower; all are closed at the end."""
    towers = []

    def opened(kind, eyes, format="F32", **options):
        path = tiny.write(tmp_path / f"{len(towers)}.gguf", eyes, format)
        if kind is Tower:
            towers.append(Tower.open(path, **options))
            return towers[-1]
        with closing(_native.Gguf(str(path))) as gguf:
            return kind(gguf)

    yield opened
    for tower in towers:
        tower.close()


def test_numpy_gives_the_stored_rows(stored, opened):
    tower = opened(ReferenceTower, stored.eyes)
    assert_close(np.concatenate([tower.rows(*image) for image in stored.images]), stored.rows, STORED)


@pytest.mark.parametrize("format", ["F32", "F16"])
def test_native_gives_the_stored_rows(stored, opened, format):
    tower = opened(Tower, stored.eyes, format)
    assert_close(np.concatenate([tower.rows(*image) for image in stored.images]), stored.rows, WHOLE[format])


@pytest.mark.parametrize("a, b", [(0, 1), (1, 2), (0, 4), (3, 9)])
def test_the_order_of_patches_counts(stored, opened, a, b):
    """Two patches of one token, and of two tokens, the other way round."""
    patches, grid = max(stored.images, key=lambda image: len(image[0]))
    swapped = patches.copy()
    swapped[[a, b]] = patches[[b, a]]
    rows = opened(ReferenceTower, stored.eyes).rows(swapped, grid)
    assert np.abs(rows - opened(ReferenceTower, stored.eyes).rows(patches, grid)).max() > 100 * STORED
    assert_close(opened(Tower, stored.eyes).rows(swapped, grid), rows, WHOLE["F32"])


class Kernels(QuantizedReference):
    """Kernels of convolutions are no quantized weights."""

    def _linear(self, step, x, w, alpha, b=None, add=0.0):
        kind = reference.Reference if w[0].ndim == 4 else QuantizedReference
        return kind._linear(self, step, x, w, alpha, b, add)


@pytest.mark.parametrize("kv_type", ["f16", "q8"])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_op_equals_numpy(tmp_path, kind, format, kv_type):
    eyes = tiny.eyes(**KINDS[kind])
    gguf = _native.Gguf(str(tiny.write(tmp_path / "eyes.gguf", eyes, format)))
    programs = models.record_eyes(gguf.metadata, {name: t.shape for name, t in gguf.tensors.items()})
    weights = {name: gguf.dequantize(name) for name in gguf.tensors}
    grid = (12, 26)  # more than one chunk of a context, and more than a page
    given, places = tiny.patches(grid), glm4v.positions(grid, 2)
    if programs.config.side:
        given = np.hstack([given, glm4v.learned_positions(weights[glm4v.POSITIONS], grid, 2)])
    rounding = Kernels if format in ("Q8_0", "Q4_0") else reference.Reference
    bounds = {"attention": {"f16": 2e-3, "q8": 2e-2}[kv_type]}
    merged = np.random.RandomState(3).standard_normal((9, 4 * programs.config.dim)).astype(np.float32)
    for ops, rows, at, visible in (
        (programs.tower, given, places, len(given)),
        (programs.merger, merged, np.zeros((9, AXES), np.int32), 0),
    ):
        numpy = executor(rounding, ops, weights, kv_type)
        engine = engine_of(gguf, ops, kv_type=kv_type)
        tokens = [IMAGE] * len(rows)
        work = _native.Work(engine.new_sequence(), tokens, at, visible=visible, input=rows)
        values = engine.trace([work], range(len(rows)))
        for op, want in numpy.check(
            [reference.Work(numpy.new_sequence(), tokens, at, visible, rows)], range(len(rows)), values
        ):
            error = np.abs(values[op.out.id] - want).max() / np.abs(want).max()
            assert error <= bounds.get(op.kind, 1e-5), f"{op}: off by {error:.3g} of its largest value"
        engine.close()


@pytest.mark.parametrize("format, kv_type", [("F32", "f16"), ("F16", "f16"), ("Q8_0", "q8"), ("Q4_0", "q8")])
def test_keys_and_values_are_as_exact_as_the_weights(opened, tmp_path, format, kv_type):
    eyes, image = tiny.eyes(heads=4), (tiny.patches((12, 26)), (12, 26))
    with closing(_native.Gguf(str(tiny.write(tmp_path / "eyes.gguf", eyes, format)))) as gguf:
        assert kv_type_of(gguf.tensors) == kv_type
    rows = opened(Tower, eyes, format).rows(*image)
    assert (rows == opened(Tower, eyes, format, kv_type=kv_type).rows(*image)).all()
    other = {"f16": "q8", "q8": "f16"}[kv_type]
    assert (rows != opened(Tower, eyes, format, kv_type=other).rows(*image)).any()


def engine_of(gguf, ops, **options):
    from glmlite.placement import native_ops

    options = {"threads": 2, "kv_tokens": 1024} | options
    return _native.Engine(gguf, native_ops(ops, gguf.dequantize), **options)


@pytest.mark.parametrize("format", ["F32", "Q8_0"])
@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_instruction_sets_give_the_same_bits(opened, kind, format):
    eyes, grid = tiny.eyes(**KINDS[kind]), (16, 18)
    want = opened(Tower, eyes, format, threads=1).rows(tiny.patches(grid), grid)
    for options in ({"threads": 2}, {"threads": 3}, *({"isa": isa} for isa in _native.isas())):
        got = opened(Tower, eyes, format, **options).rows(tiny.patches(grid), grid)
        np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32), err_msg=str(options))


def test_images_beside_each_other_do_not_matter(tmp_path):
    gguf = _native.Gguf(str(tiny.write(tmp_path / "eyes.gguf", tiny.eyes(heads=4), "Q8_0")))
    ops = models.record_eyes(gguf.metadata, {name: t.shape for name, t in gguf.tensors.items()}).tower
    engine = engine_of(gguf, ops)

    def works(grids):
        for i, grid in enumerate(grids):
            n = grid[0] * grid[1]
            at = glm4v.positions(grid, 2)
            yield _native.Work(engine.new_sequence(), [IMAGE] * n, at, visible=n, input=tiny.patches(grid, i))

    grids = [(4, 6), (2, 2), (10, 12)]
    together = engine.step([*works(grids)], range(24 + 4 + 120))
    alone = [engine.step([work], range(n)) for work, n in zip(works(grids), (24, 4, 120))]
    np.testing.assert_array_equal(together, np.concatenate(alone))
    sequence = engine.new_sequence()
    engine.step([_native.Work(sequence, [IMAGE], np.zeros((1, AXES), np.int32), input=np.zeros((1, 588)))], [0])
    with pytest.raises(ValueError, match="keeps nothing of what it reads"):
        engine.step([_native.Work(sequence, [IMAGE], np.zeros((1, AXES), np.int32), input=np.zeros((1, 588)))], [0])
    engine.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", ["F16", "Q8_0"])
def test_a_long_step_in_parts_has_the_bits_of_one_at_once(tmp_path, kind, format):
    """A step of 2,048 rows and more is done some hundred rows at a time, but not while it is traced."""
    grid = (46, 46)
    gguf = _native.Gguf(str(tiny.write(tmp_path / "eyes.gguf", tiny.eyes(**KINDS[kind]), format)))
    programs = models.record_eyes(gguf.metadata, {name: t.shape for name, t in gguf.tensors.items()})
    given, places = tiny.patches(grid), glm4v.positions(grid, 2)
    if programs.config.side:
        table = gguf.dequantize(glm4v.POSITIONS)
        given = np.hstack([given, glm4v.learned_positions(table, grid, 2)])
    merged = np.random.RandomState(3).standard_normal((len(given), 4 * programs.config.dim)).astype(np.float32)
    for ops, rows, at, visible in (
        (programs.tower, given, places, len(given)),
        (programs.merger, merged, np.zeros((len(given), AXES), np.int32), 0),
    ):
        engine = engine_of(gguf, ops, kv_tokens=3072, kv_type=kv_type_of(gguf.tensors))

        def work(sequence, rows=rows, at=at, visible=visible):
            return _native.Work(sequence, [IMAGE] * len(rows), at, visible=visible, input=rows)

        first, second = engine.new_sequence(), engine.new_sequence()
        got = engine.step([work(first)], range(len(rows)))
        in_parts = engine.scratch_bytes()
        engine.free(first)
        engine.release()
        (last,) = [op.out.id for op in ops[-1:]]
        want = engine.trace([work(second)], range(len(rows)))[last]
        assert in_parts < engine.scratch_bytes()
        np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
        engine.free(second)
        broken = rows.copy()
        broken[len(rows) - 7, 3] = np.inf
        with pytest.raises(RuntimeError, match="not finite at token 2109" if visible == 0 else "not finite at token"):
            engine.step([work(engine.new_sequence(), broken)], [0])
        engine.close()


def test_memory_is_given_back_and_layers_share_their_pages(tmp_path):
    sizes = []
    for layers in (2, 5):
        gguf = _native.Gguf(str(tiny.write(tmp_path / "eyes.gguf", tiny.eyes(layers=layers), "F32")))
        ops = models.record_eyes(gguf.metadata, {name: t.shape for name, t in gguf.tensors.items()}).tower
        engine = engine_of(gguf, ops)
        work = _native.Work(
            engine.new_sequence(), [IMAGE] * 24, glm4v.positions((4, 6), 2), visible=24, input=tiny.patches((4, 6))
        )
        engine.step([work], range(24))
        sizes.append((engine.kv_bytes, engine.scratch_bytes()))
        engine.release()
        assert engine.scratch_bytes() == 0
        engine.close()
    assert sizes[0] == sizes[1]


def test_a_cancel_ends_an_image_and_progress_counts_up(opened):
    tower = opened(Tower, tiny.eyes(layers=6, dim=128, heads=4), threads=2)
    grid = (60, 60)
    patches, cancel, ended = tiny.patches(grid), _native.Cancel(), []

    def see():
        try:
            tower.rows(patches, grid, cancel=cancel)
        except Cancelled:
            ended.append(True)

    thread = threading.Thread(target=see)
    thread.start()
    seen = [0.0]
    while thread.is_alive():
        now = tower.progress()
        if now < 1:
            assert now >= 0 and now >= seen[-1]
            seen.append(now)
        if now > 0.1:
            cancel.set()
        time.sleep(0.001)
    assert ended == [True] and tower.progress() == 1
    np.testing.assert_array_equal(tower.rows(patches[:16], (4, 4)), tower.rows(patches[:16], (4, 4)))


def test_a_cancel_before_an_image_ends_it(opened):
    cancel = _native.Cancel()
    cancel.set()
    with pytest.raises(Cancelled):
        opened(Tower, tiny.eyes()).rows(tiny.patches((4, 4)), (4, 4), cancel=cancel)


@pytest.mark.parametrize(
    "patches, grid, message",
    [
        (tiny.patches((4, 6)), (4, 4), r"patches: \(24, 588\) float32, expected \(16, 588\)"),
        (tiny.patches((4, 6)).astype(np.float64), (4, 6), "float64"),
        (tiny.patches((3, 4)), (3, 4), "multiples of 2"),
        (tiny.patches((0, 4)), (0, 4), "0 x 4"),
        (tiny.patches((8, 8)), (8, 8), "at most 32"),
    ],
)
def test_what_is_no_image_is_refused(opened, patches, grid, message):
    eyes = tiny.eyes(metadata={"clip.vision.image_max_pixels": 32 * 196})
    for kind in (Tower, ReferenceTower):
        with pytest.raises(ValueError, match=message):
            opened(kind, eyes).rows(patches, grid)


def test_a_value_that_is_not_finite_is_an_error(opened):
    patches = tiny.patches((2, 2))
    patches[1, 5] = np.inf
    with pytest.raises(RuntimeError, match="not finite"):
        opened(Tower, tiny.eyes()).rows(patches, (2, 2))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"clip.projector_type": "qwen2vl"}, "'clip.projector_type' is 'qwen2vl', expected 'glm4v'"),
        ({"clip.vision.attention.head_count": 3}, "64 rows, expected a multiple of 4 for each of 3 heads"),
        ({"clip.vision.image_mean": [0.5, 0.5]}, "'clip.vision.image_mean' is"),
        ({"clip.vision.image_std": [0.5, 0.0, 0.5]}, "'clip.vision.image_std' is"),
        ({"clip.vision.image_min_pixels": 784, "clip.vision.image_max_pixels": 28}, "image_max_pixels' is 28"),
        ({"clip.vision.spatial_merge_size": 4}, "spatial_merge_size' is 4"),
        ({"clip.vision.block_count": 3}, "no tensor 'v.blk.2.ln1.weight'"),
        ({"clip.vision.block_count": 1}, "'v.blk.1.ln1.weight': the eyes have no such tensor"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path, change, message):
    path = tiny.write(tmp_path / "eyes.gguf", tiny.eyes(metadata=change))
    with pytest.raises(FormatError, match=f"eyes.gguf: .*{message}"):
        Tower.open(path)


@pytest.mark.parametrize(
    "name, shape",
    [
        ("v.position_embd.weight", (3, 4, 2)),
        ("v.position_embd.weight", (0, 64)),
        ("v.position_embd.weight", (577, 64)),  # no square
        ("v.position_embd.weight", (576, 65)),
        ("mm.down.weight", (65, 128)),
    ],
)
def test_a_shape_that_no_image_fits_is_named(name, shape):
    eyes = tiny.eyes(side=24)
    with pytest.raises(FormatError, match=name):
        models.record_eyes(eyes.metadata, eyes.shapes | {name: shape})


def test_one_file_may_hold_both(tmp_path, opened):
    """Text model and eyes: each opens without the other's tensors, and the rows are those of eyes alone."""
    text, eyes = tiny.model("glm4"), tiny.eyes()
    both = tiny.Tiny(
        {k: v for k, v in eyes.metadata.items() if k.startswith("clip.")} | text.metadata, text.tensors | eyes.tensors
    )
    patches = tiny.patches((4, 4))
    np.testing.assert_array_equal(opened(Tower, both).rows(patches, (4, 4)), opened(Tower, eyes).rows(patches, (4, 4)))
    models.record(both.metadata, both.shapes)
    with pytest.raises(FormatError, match="mmproj"):
        opened(Tower, text)
    with pytest.raises(FormatError, match="open the text model's file"):
        models.record(eyes.metadata, eyes.shapes)
    with pytest.raises(FormatError, match="Ollama keeps GLM-OCR in a form of its own"):
        models.record({"general.architecture": "glmocr"}, {})


def test_wrong_eyes_in_the_model_s_own_file_name_it_once(tmp_path):
    text = tiny.model("glm4", rope_dim=32, metadata={"glm4.rope.dimension_sections": [4, 6, 6, 0]})
    eyes = tiny.eyes(metadata={"clip.vision.block_count": 3})
    clip = {key: value for key, value in eyes.metadata.items() if key.startswith("clip.")}
    path = tiny.write(tmp_path / "both.gguf", tiny.Tiny(clip | text.metadata, text.tensors | eyes.tensors))
    with pytest.raises(FormatError, match=r"no tensor 'v\.blk\.2\.ln1\.weight'") as error:
        glmlite.load(path)
    assert str(error.value).count("both.gguf") == 1


def test_places_of_patches():
    """Token by token: a token's two by two patches stand together."""
    assert glm4v.positions((2, 4), 2)[:, :2].tolist() == [
        *([0, 0], [0, 1], [1, 0], [1, 1]),
        *([0, 2], [0, 3], [1, 2], [1, 3]),
    ]
    assert not glm4v.positions((2, 4), 2)[:, 2:].any()


def test_learned_positions_are_themselves_on_their_own_grid():
    table = np.random.RandomState(0).standard_normal((16, 3)).astype(np.float32)
    at = glm4v.positions((4, 4), 2)
    np.testing.assert_array_equal(glm4v.learned_positions(table, (4, 4), 2), table.reshape(4, 4, 3)[at[:, 0], at[:, 1]])
    assert np.allclose(glm4v.cubic_matrix(37, 24).sum(axis=1), 1)


def test_items_are_told_apart():
    first = items(b"a", 5)
    assert first == items(b"a", 7)[:5] and not set(first) & set(items(b"b", 5))
    assert all(-(2**63) <= item < 0 for item in first)
