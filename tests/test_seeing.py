"""Messages with images on a loaded model: where its eyes come from, that nothing but the content of an image decides on
an answer, what it costs others, what ends it, and what is said of images that are none."""

import _thread
import asyncio
import base64
import io
import os
import shutil
import threading
import time
from itertools import pairwise

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason="needs glmlite[vision]")

import tiny  # noqa: E402
from test_chat_images import PARTS  # noqa: E402

import glmlite  # noqa: E402
from glmlite import loading  # noqa: E402
from glmlite.models.layout import IMAGE  # noqa: E402
from glmlite.vision import eyes as seeing  # noqa: E402
from glmlite.vision.tower import Tower  # noqa: E402

WAIT = 60  # seconds for what takes one
SECTIONS = {"glm4.rope.dimension_sections": [4, 6, 6, 0]}
GREEDY = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}


def text_model(**sizes):
    metadata = SECTIONS | {"tokenizer.chat_template": PARTS}
    return tiny.model("glm4", rope_dim=32, context=4096, metadata=metadata, **sizes)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a model that sees, and its eyes."""
    folder = tmp_path_factory.mktemp("seeing")
    tiny.write(folder / "text.gguf", text_model(), "Q8_0")
    tiny.write(folder / "mmproj-f16.gguf", tiny.eyes(), "Q8_0")
    return folder


@pytest.fixture
def load(files):
    """load(arguments of glmlite.load) -> the model of `files`, closed after the test."""
    models = []

    def load(path=None, **options):
        models.append(glmlite.load(path or files / "text.gguf", **{"context": 2048} | options))
        return models[-1]

    yield load
    for model in models:
        model.close()


def picture(seed=0, size=(90, 140)):
    return np.random.RandomState(seed).randint(0, 256, (*size, 3)).astype(np.uint8)


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def ask(*images, text="what is it?"):
    return [
        {"role": "user", "content": [*({"type": "image", "image": i} for i in images), {"type": "text", "text": text}]}
    ]


# ---- where the eyes come from


def test_eyes_beside_the_model_are_found(load, caplog):
    with caplog.at_level("INFO", "glmlite"):
        model = load()
    assert model.images and "its eyes are" in caplog.text
    before = model.memory()["weights"]
    assert model.chat([{"role": "user", "content": "hi"}], **GREEDY).stats.image_seconds == 0
    assert model.memory()["weights"] == before  # text costs nothing
    model.chat(ask(picture()), **GREEDY)
    assert model.memory()["weights"] > before


def folder_with(tmp_path, **eyes):
    tiny.write(tmp_path / "text.gguf", text_model(), "Q8_0")
    for name, made in eyes.items():
        tiny.write(tmp_path / f"{name}.gguf", made, "F16")
    return tmp_path / "text.gguf"


@pytest.mark.parametrize(
    ("beside", "images", "error"),
    [
        ({}, False, "pass its eyes as mmproj"),
        ({"MMPROJ-a": {}}, True, ""),
        ({"mmproj-a": {}, "mmproj-b": {"out": 96}}, True, ""),
        ({"mmproj-a": {"out": 96}}, False, r"pass its eyes as mmproj.*mmproj-a.gguf: rows of 96 columns, expected 64"),
        ({"mmproj-a": {}, "mmproj-b": {}}, False, r"several files beside it fit \(mmproj-a.gguf, mmproj-b.gguf\)"),
        ({"other": {}}, False, "pass its eyes as mmproj"),
        ({"mmproj-a": {"metadata": {"clip.projector_type": "other"}}}, False, "pass its eyes.*is 'other'"),
    ],
)
def test_what_is_taken_of_what_lies_beside_the_model(tmp_path, beside, images, error):
    path = folder_with(tmp_path, **{name: tiny.eyes(**sizes) for name, sizes in beside.items()})
    (tmp_path / "mmproj-broken.gguf").write_bytes(b"GGUF nothing")
    with glmlite.load(path, context=256) as model:
        assert model.images == images
        if not images:
            with pytest.raises(
                ValueError, match=rf"messages\[0\]\.content\[0\]: tiny glm4 sees no images: {error}"
            ) as told:
                model.chat(ask(picture()))
            assert ("not taken: mmproj-broken.gguf: " in str(told.value)) == ("several" not in error)
            assert str(tmp_path) not in str(told.value)
            with pytest.raises(ValueError, match=rf"tiny glm4: sees no images, expected a vision model.*{error}"):
                model.ocr(tmp_path)


def test_eyes_may_be_named(tmp_path, files):
    path = folder_with(tmp_path, **{"mmproj-a": tiny.eyes(), "mmproj-b": tiny.eyes(seed=1), "wide": tiny.eyes(out=96)})
    answers = []
    for name in ("mmproj-a", "mmproj-b"):
        with glmlite.load(path, mmproj=tmp_path / f"{name}.gguf", context=512) as model:
            answers.append(model.chat(ask(picture()), **GREEDY).tokens)
    assert answers[0] != answers[1]
    for wrong, error, said in [
        ("none.gguf", FileNotFoundError, "none.gguf"),
        ("wide.gguf", glmlite.FormatError, "wide.gguf: rows of 96 columns, expected 64"),
        ("text.gguf", glmlite.FormatError, "text.gguf: has no tensor 'v"),
        ("", ValueError, "path is ''|is a folder"),
    ]:
        with pytest.raises(error, match=said):
            glmlite.load(path, mmproj=tmp_path / wrong if wrong else "")
    plain = tiny.write(tmp_path / "plain.gguf", tiny.model("glm4"), "Q8_0")
    with pytest.raises(ValueError, match=r"mmproj is .*expected none: .*plain.gguf is a model for text alone"):
        glmlite.load(plain, mmproj=tmp_path / "mmproj-a.gguf")
    with glmlite.load(plain) as model, pytest.raises(ValueError, match="sees no images: it is a model for text alone"):
        model.chat(ask(picture()))
    with pytest.raises(glmlite.FormatError, match="these are a model's eyes"):
        glmlite.load(tmp_path / "mmproj-a.gguf")


def test_one_file_may_have_both(tmp_path, load):
    text, eyes = text_model(), tiny.eyes()
    own = {key: value for key, value in eyes.metadata.items() if key.startswith("clip.")}
    both = tiny.Tiny(text.metadata | own, text.tensors | eyes.tensors)
    path = tiny.write(tmp_path / "both.gguf", both, "Q8_0")
    tiny.write(tmp_path / "mmproj-other.gguf", tiny.eyes(seed=1), "Q8_0")
    model = load(path)
    assert model.images
    assert model.chat(ask(picture()), **GREEDY).tokens == load().chat(ask(picture()), **GREEDY).tokens


def test_memory_that_eyes_need_is_left_free(files, monkeypatch, tmp_path):
    alone = tmp_path / "text.gguf"
    shutil.copy(files / "text.gguf", alone)
    contexts = []
    for path in (alone, files / "text.gguf"):
        monkeypatch.setattr(loading, "_context", lambda asked, trained, fixed, per, free: contexts.append(free) or 512)
        monkeypatch.setattr("glmlite._native.available_memory", lambda: 10**9)
        glmlite.load(path, packed=False).close()
    # Keys and values in q8 of as many patches as an image may have; weights are small beside them.
    assert contexts[0] == 10**9 and 3e6 < contexts[0] - contexts[1] < 5e6


def test_a_file_that_changed_is_noticed(tmp_path):
    path = folder_with(tmp_path, mmproj=tiny.eyes())
    with glmlite.load(path, context=512) as model:
        tiny.write(tmp_path / "mmproj.gguf", tiny.eyes(seed=1), "F16")
        with pytest.raises(glmlite.FormatError, match=r"mmproj.gguf: its tensors are not those"):
            model.chat(ask(picture()))
        os.unlink(tmp_path / "mmproj.gguf")
        with pytest.raises(OSError, match="mmproj"):
            model.chat(ask(picture()))
        assert len(model.chat([{"role": "user", "content": "hi"}], **GREEDY).tokens) == 12


# ---- messages


def test_all_forms_of_an_image_are_one(load, tmp_path):
    model, pixels = load(), picture()
    data = png(pixels)
    file = tmp_path / "图 1.png"
    file.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    want = model.chat(ask(pixels), **GREEDY)
    forms = [file, str(file), data, bytearray(data), memoryview(data), Image.fromarray(pixels), url]
    for form in forms:
        answer = model.chat(ask(form), **GREEDY)
        assert answer.tokens == want.tokens
        assert answer.stats.reused_tokens == answer.stats.prompt_tokens - 1  # the same content
    for address in (url, {"url": url, "detail": "high"}):
        part = {"type": "image_url", "image_url": address}
        messages = [{"role": "user", "content": [part, {"type": "text", "text": "what is it?"}]}]
        assert model.chat(messages, **GREEDY).tokens == want.tokens
    assert model.chat(ask(picture(1)), **GREEDY).tokens != want.tokens


def test_ids_have_a_place_for_each_row(load):
    ids = load().chat_ids(ask(picture(size=(112, 140)), picture(size=(84, 140))))
    runs = "".join("i" if i == IMAGE else "." for i in ids).split(".")
    assert [len(run) for run in runs if run] == [20, 15]


def test_an_answer_needs_only_what_it_is_asked(load):
    """Of an answer that thinks, calls tools, or is bound to a schema, the prompt is read without its images."""
    model = load()
    tools = [{"name": "f", "parameters": {}}]
    assert model.chat(ask(picture()), tools=tools, tool_choice="none", **GREEDY).tokens
    assert model.chat(ask(picture()), repetition_penalty=1.3, **GREEDY).tokens


# ---- nothing else decides on an answer


MESSAGES = [ask(picture(0)), ask(picture(1), picture(2, (200, 60))), ask(picture(3), text="other")]


@pytest.fixture(scope="module")
def alone(files):
    """The answers to MESSAGES, each of a model that has seen nothing else."""
    answers = []
    for messages in MESSAGES:
        with glmlite.load(files / "text.gguf", context=2048) as model:
            answers.append(model.chat(messages, **GREEDY).tokens)
    return answers


def test_answers_differ(alone):
    assert len({tuple(answer) for answer in alone}) == len(alone)


@pytest.mark.parametrize(
    "options", [{"threads": 1}, {"threads": 2}, {"parallel": 1}, {"kv_type": "f16", "adaptive": False}]
)
def test_company_and_threads_change_nothing(load, alone, options):
    model = load(**options)
    texts = [model.chat_stream([{"role": "user", "content": "the other " * n}], **GREEDY) for n in (3, 30)]
    running = [model.chat_stream(messages, **GREEDY) for messages in MESSAGES]
    assert [generation.result().tokens for generation in running] == alone
    assert all(len(text.result().tokens) == 12 for text in texts)


def test_chunks_change_nothing(load, alone, monkeypatch):
    for chunk in (5, 16, 1000):
        model = load()
        model._scheduler.chunk = chunk
        assert [model.chat(messages, **GREEDY).tokens for messages in MESSAGES] == alone


def test_a_beginning_that_was_read_serves_again(load, alone, monkeypatch):
    model, looked = load(), []
    rows = Tower.rows
    monkeypatch.setattr(Tower, "rows", lambda *a, **k: looked.append(1) or rows(*a, **k))
    model.chat(ask(picture(0), text="another question"), **GREEDY)
    answer = model.chat(MESSAGES[0], **GREEDY)
    assert answer.tokens == alone[0] and answer.stats.reused_tokens > answer.stats.prompt_tokens - 30
    assert len(looked) == 1
    other = model.chat(ask(picture(1), text="another question"), **GREEDY)
    assert other.stats.reused_tokens <= model.chat_ids(MESSAGES[0]).index(IMAGE)  # as long, and another image
    said = [*MESSAGES[0], answer.message, {"role": "user", "content": "and now?"}]
    more = model.chat(said, **GREEDY)
    assert more.stats.reused_tokens >= answer.stats.prompt_tokens - 1 and len(looked) == 2
    with_fresh = load().chat(said, **GREEDY)
    assert with_fresh.tokens == more.tokens and with_fresh.stats.reused_tokens == 0


def test_rows_that_were_given_up_are_made_again(load, alone, monkeypatch):
    monkeypatch.setattr(seeing, "KEPT", 1)
    model = load(parallel=2)
    running = [model.chat_stream(messages, **GREEDY) for messages in (*MESSAGES, *MESSAGES)]
    assert [generation.result().tokens for generation in running] == alone * 2
    assert not model._eyes._rows


def test_text_does_not_change_because_a_model_sees(load, files, tmp_path):
    shutil.copy(files / "text.gguf", tmp_path / "text.gguf")
    messages = [{"role": "user", "content": "the other <|image|> hell \ufdd2"}]
    blind, sees = load(tmp_path / "text.gguf"), load()
    assert (blind.images, sees.images) == (False, True)
    assert blind.chat_ids(messages) == sees.chat_ids(messages)
    sees.chat(ask(picture()), **GREEDY)
    assert blind.chat(messages, logprobs=0, **GREEDY).logprobs == sees.chat(messages, logprobs=0, **GREEDY).logprobs


def test_the_engine_in_numpy_reads_images_too(executor, files):
    # The rows of the tower are rounded, the sums differ: what is the same is the way.
    with glmlite.load(files / "text.gguf", context=256) as model:
        answer = model.chat(ask(picture(size=(56, 84))), **GREEDY)
        assert len(answer.tokens) == 12
        again = model.chat(ask(picture(size=(56, 84))), **GREEDY)
        assert again.tokens == answer.tokens and again.stats.reused_tokens == answer.stats.prompt_tokens - 1


# ---- a context that is too small


def test_an_image_that_does_not_fit_says_what_it_needs(load):
    model = load(context=512)
    with pytest.raises(
        glmlite.ContextOverflow, match=r"of them for images.*context of more than (\d+) tokens"
    ) as error:
        model.chat(ask(picture(size=(600, 800))))
    assert error.value.tokens > 512 and error.value.context == 512
    with pytest.raises(glmlite.ContextOverflow, match="for images"):  # of which each alone fits
        model.chat(ask(*[picture(i, (250, 250)) for i in range(8)]))
    need = error.value.tokens
    assert len(load(context=need + 64).chat(ask(picture(size=(600, 800))), **GREEDY).tokens) == 12


def test_truncation_drops_whole_messages(load):
    model = load(context=400)
    old = [*ask(picture(1, (420, 420)), text="old"), {"role": "assistant", "content": "yes"}]
    asked = {"overflow": "truncate", "max_tokens": 12, "temperature": 0.0, "ignore_eos": True}
    got = model.chat([*old, *old, *ask(picture(0, (420, 420)))], **asked)
    assert got.tokens == model.chat(ask(picture(0, (420, 420))), **asked).tokens
    with pytest.raises(glmlite.ContextOverflow):
        model.chat(ask(picture(0, (700, 700))), **asked)


# ---- while the tower looks


@pytest.fixture
def gate(monkeypatch):
    """A tower that waits before each image: gate.began is set when it does, gate.go lets it on."""

    class Gate:
        began, go = threading.Event(), threading.Event()

    rows = Tower.rows

    def wait(self, patches, grid, *, cancel=None):
        Gate.began.set()
        deadline = time.monotonic() + WAIT
        while not Gate.go.is_set() and not cancel.is_set and time.monotonic() < deadline:
            time.sleep(0.002)
        return rows(self, patches, grid, cancel=cancel)

    Gate.began, Gate.go = threading.Event(), threading.Event()
    monkeypatch.setattr(Tower, "rows", wait)
    return Gate


def test_others_go_on_meanwhile(load, gate):
    model = load(parallel=1)
    looks = model.chat_stream(ask(picture()), **GREEDY)
    assert gate.began.wait(WAIT)
    assert len(model.chat([{"role": "user", "content": "hi"}], **GREEDY).tokens) == 12
    assert (model.status().waiting, looks.place, looks.progress.done) == (1, 0, 0)
    total = looks.progress.total
    assert total > looks.stats.prompt_tokens  # what the tower does counts
    gate.go.set()
    answer = looks.result()
    assert answer.stats.image_seconds > 0 and looks.progress[:2] == (total, total)


def test_progress_moves_while_the_tower_works(load):
    model, seen = load(), []
    generation = model.chat_stream(ask(picture(size=(800, 1000))), max_tokens=1)
    while not generation.finished:
        seen.append(generation.progress)
        generation.take()
        time.sleep(0.001)
    assert all(a.done <= b.done for a, b in pairwise(seen))
    assert any(0 < p.done < p.total - p.reused for p in seen)
    told = []
    model.chat(ask(picture(5)), max_tokens=1, on_progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1]


@pytest.mark.parametrize("how", ["cancel", "close", "cancelled before", "lost"])
def test_a_cancel_ends_the_tower_s_work(load, gate, how):
    model, cancel = load(), glmlite.Cancel()
    if how == "cancelled before":
        cancel.cancel()
    generation = model.chat_stream(ask(picture()), cancel=cancel, **GREEDY)
    waits = model.chat_stream(ask(picture(1)), **GREEDY)
    assert gate.began.wait(WAIT)
    if how == "cancel":
        generation.cancel()
    elif how == "close":
        generation.close()
    if how == "lost":
        del generation
    else:
        assert generation.result().finish_reason == "cancelled"
    gate.go.set()
    assert len(waits.result().tokens) == 12
    assert model.status().cancelled == 1 and model.status().waiting == 0


def test_ctrl_c_is_heard_while_the_tower_works(load, gate, capsys):
    from glmlite.cli import running

    model = load()

    def interrupt():
        if gate.began.wait(WAIT):
            _thread.interrupt_main()

    threading.Thread(target=interrupt).start()
    answer = running.stream(model.chat_stream, ask(picture()), **GREEDY)
    assert answer.stopped and answer.text == ""
    gate.go.set()
    assert len(model.chat(ask(picture(1)), **GREEDY).tokens) == 12


def test_an_error_of_the_tower_is_its_request_s(load, monkeypatch):
    model, rows = load(), Tower.rows

    def fails(self, patches, grid, *, cancel=None):
        if grid == (8, 12):
            raise MemoryError("no memory for the tower")
        return rows(self, patches, grid, cancel=cancel)

    monkeypatch.setattr(Tower, "rows", fails)
    bad = model.chat_stream(ask(picture(size=(112, 168))), **GREEDY)
    good = [model.chat_stream(messages, **GREEDY) for messages in MESSAGES]
    with pytest.raises(MemoryError, match="for the tower"):
        bad.result()
    assert all(len(generation.result().tokens) == 12 for generation in good)
    with pytest.raises(MemoryError):
        model.chat(ask(picture(size=(112, 168))))


def test_close_ends_what_looks(load, gate):
    model = load()
    running = [model.chat_stream(messages, **GREEDY) for messages in MESSAGES]
    assert gate.began.wait(WAIT)
    model.close()
    for generation in running:
        with pytest.raises(glmlite.Closed):
            generation.result()
    assert model.memory() == {"weights": 0, "kv": 0} and model._eyes.held == 0
    with pytest.raises(glmlite.Closed):
        model.chat(ask(picture()))


def test_a_lost_model_ends(files, gate):
    """Its threads do not keep it, nor it them."""
    import gc

    model = glmlite.load(files / "text.gguf", context=512)
    name = f"glmlite {model.name} eyes"
    generation = model.chat_stream(ask(picture()), **GREEDY)
    assert gate.began.wait(WAIT)
    del generation, model
    gc.collect()
    deadline = time.monotonic() + WAIT
    while any(thread.name == name for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_coroutines(load):
    model = load()

    async def both():
        return await asyncio.gather(
            model.chat_stream(MESSAGES[0], **GREEDY), model.chat_stream([{"role": "user", "content": "a"}], **GREEDY)
        )

    seen, text = asyncio.run(both())
    assert len(seen.tokens) == len(text.tokens) == 12

    async def cancelled():
        task = asyncio.ensure_future(
            model.chat_stream(ask(picture(7)), max_tokens=2000, ignore_eos=True)._result_async()
        )
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())


def test_threads_may_be_set_at_any_time(load, alone):
    model = load(threads=2)
    model.threads = 1
    assert model.chat(MESSAGES[0], **GREEDY).tokens == alone[0]
    assert model._eyes._tower.threads == 1
    model.threads = 2
    assert model._eyes._tower.threads == 2
    assert model.chat(MESSAGES[1], **GREEDY).tokens == alone[1]


def test_an_idle_model_gives_its_eyes_memory_back(load, alone):
    model = load(idle_unload=0.05)
    assert model.chat(MESSAGES[0], **GREEDY).tokens == alone[0]
    deadline = time.monotonic() + WAIT
    while model.loaded or model._eyes.held:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert model.memory() == {"weights": 0, "kv": 0} and not model._eyes._rows
    assert model.chat(MESSAGES[0], **GREEDY).tokens == alone[0]


def test_an_idle_model_is_not_unloaded_under_who_looks(load, gate):
    model = load(idle_unload=0.05)
    generation = model.chat_stream(MESSAGES[0], **GREEDY)
    assert gate.began.wait(WAIT)
    time.sleep(0.2)
    assert model.loaded and model._eyes.held
    gate.go.set()
    assert len(generation.result().tokens) == 12


def test_a_queue_of_images_is_looked_at_in_order(load, gate):
    model = load(parallel=1)
    running = [model.chat_stream(ask(picture(i)), **GREEDY) for i in range(6)]
    assert gate.began.wait(WAIT)
    assert [generation.place for generation in running] == [0, 2, 3, 4, 5, 6]
    assert len(model.chat([{"role": "user", "content": "hi"}], **GREEDY).tokens) == 12  # waits for none of them
    gate.go.set()
    assert all(len(generation.result().tokens) == 12 for generation in running)


def test_not_all_that_wait_get_their_rows(load, monkeypatch):
    model, ready, rows = load(parallel=1), [], Tower.rows

    def count(self, *image, **options):
        ready.append(sum(r.sight is not None and r.sees for r in model._scheduler._queue))
        return rows(self, *image, **options)

    monkeypatch.setattr(Tower, "rows", count)
    busy = model.chat_stream([{"role": "user", "content": "hi"}], max_tokens=1500, ignore_eos=True)
    running = [model.chat_stream(ask(picture(i)), max_tokens=2) for i in range(6)]
    for generation in running:
        generation.result()
    assert busy.result().tokens and len(ready) == 6 and max(ready) <= 1


# ---- images that are none


def bomb():
    """A PNG of 20000 x 20000 pixels, 48 kB."""
    out = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (b"", "is empty"),
        (b"nothing of the kind", "not an image"),
        (png(picture())[:200], "damaged"),
        ("", "expected the path"),
        ("/no/such/file.png", "No such file"),
        ("http://example.org/a.png", "web address"),
        ("\0", "null"),
        ("x" * 10_000, "expected the path"),
        ("data:text/plain;base64,aGk=", "a data URL of text/plain"),
        ("data:image/png;base64,!", "not base64"),
        ("data:image/png;base64," + "A" * 100_000_001, "a data URL of 100000023 characters"),
        (3, "int, expected a path"),
        ([1], "list, expected a path"),
        ({"url": "x"}, "dict, expected a path"),
        (np.zeros((3, 3, 7), np.uint8), "an array of shape"),
        (np.zeros((0, 3), np.uint8), "an array of shape"),
        (np.full((3, 3), np.nan), "expected floats"),
        (np.zeros((1, 20_000), np.uint8), "no side more than"),
        (np.array(["a"]), "an array of"),
    ],
)
def test_what_is_wrong_with_an_image_is_said_with_its_place(load, image, said):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, *ask(picture(), image)]
    for call in (load().chat, load().chat_ids):
        with pytest.raises(ValueError, match=said) as error:
            call(messages)
        assert str(error.value).startswith("messages[2].content[1]: ") and len(str(error.value)) < 500


def test_files_that_are_none(load, tmp_path):
    model = load()
    with pytest.raises(ValueError, match=r"messages\[0\]\.content\[0\]: .* is a folder"):
        model.chat(ask(tmp_path))
    with pytest.raises(ValueError, match=r"messages\[0\]\.content\[0\]: "):
        model.chat(ask(bomb()))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path / "pipe", "/dev/zero"):
            with pytest.raises(ValueError, match="no regular file"):
                model.chat(ask(path))
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        (tmp_path / "secret").write_bytes(png(picture()))
        (tmp_path / "secret").chmod(0)
        with pytest.raises(ValueError, match="Permission denied"):
            model.chat(ask(tmp_path / "secret"))


def test_without_pillow_the_extra_is_named(load, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "glmlite.vision.images", None)
    with pytest.raises(ModuleNotFoundError, match=r"glmlite\[vision\]"):
        load().chat(ask(picture()))


def test_rows_of_a_batch_have_images(load, tmp_path):
    """By a column of paths, of bytes and of data URLs, and in requests of OpenAI's form."""
    import json

    model = load(parallel=2)
    data = [png(picture(i)) for i in range(3)]
    for i, each in enumerate(data):
        (tmp_path / f"{i}.png").write_bytes(each)
    urls = ["data:image/png;base64," + base64.b64encode(each).decode() for each in data]
    want = [model.chat(ask(each), **GREEDY).text for each in data]
    assert len(set(want)) == 3

    source = tmp_path / "in.csv"
    source.write_text("".join(["prompt,file\n", *(f"what is it?,{i}.png\n" for i in range(3)), "what is it?,no.png\n"]))
    with source.open("a") as file:
        file.write("what is it?,https://example.org/no.png\n")
    found = list(glmlite.batch(model, source, image="file", **GREEDY))
    assert [result.answer for result in found] == [*want, None, None]
    assert found[3].error.startswith("line 5: ") and "no.png" in found[3].error
    assert found[4].error.startswith("line 6: ") and "is a web address" in found[4].error
    structs = [{"bytes": each, "path": None} for each in data]
    there = [{"bytes": None, "path": str(tmp_path / f"{i}.png")} for i in range(3)]
    for images in (data, urls, structs, there):
        rows = [{"prompt": "what is it?", "picture": image} for image in images]
        assert [result.answer for result in glmlite.batch(model, rows, image="picture", **GREEDY)] == want

    def request(i, url):
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is it?"}]
        return {"custom_id": f"{i}", "body": {"messages": [{"role": "user", "content": parts}]}}

    source = tmp_path / "in.jsonl"
    asked = [request(i, url) for i, url in enumerate([*urls, "data:image/png;base64,AAAA"])]
    source.write_text("".join(json.dumps(each) + "\n" for each in asked))
    found = list(glmlite.batch(model, source, **GREEDY))
    assert [result.answer for result in found] == [*want, None]
    assert found[3].error.startswith("line 4: messages[0].content[0].image_url.url: ")
