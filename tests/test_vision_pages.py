"""Pages of PDF files as images, and pages cut into blocks by their white space."""

import os
import re
import sys
import threading
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("PIL", reason="needs glmlite[vision]")
pytest.importorskip("pypdfium2", reason="needs glmlite[vision]")

import pictures
from PIL import Image, ImageDraw, ImageOps

from glmlite.vision.cutting import PATCH, cut
from glmlite.vision.pages import Pages
from glmlite.vision.pdf import LONGEST, Pdf, is_pdf

# ---- PDF


def test_a_page_is_rendered_as_it_looks():
    page = pictures.blank(300, 200)
    page.paste((200, 10, 30), (30, 40, 90, 100))
    with Pdf(pictures.pdf([(595, 842), page])) as file:
        assert file.pages == 2
        image = file.render(2, 150)
        assert image.mode == "RGB" and image.size == (300, 200)
        assert np.abs(np.asarray(image).astype(int) - np.asarray(page)).max() < 8
        assert file.render(1, 150).size == (1240, 1755)
        assert file.render(1, 72).getextrema() == ((255, 255),) * 3  # white, not transparent
        assert file.characters(2) == 0 and file.text(2) == ""


def test_the_text_that_a_page_has_of_its_own(tmp_path):
    path = tmp_path / "文.pdf"
    path.write_bytes(pictures.pdf(["one line\nand another"]))
    with Pdf(path) as file:
        assert file.characters(1) >= len("one line and another")
        assert file.text(1) == "one line\nand another"


def form(value="", note=""):
    """A PDF of a page that says "Name:" and has a field and a note, with what is written in them."""
    shown = b"/Tx BMC BT /F 12 Tf 2 5 Td (%s) Tj ET EMC" % value.encode()
    look, text = b"/DA(/F 12 Tf 0 g)/F 4", b"BT /F 12 Tf 10 10 Td (Name:) Tj ET"
    fonts = b"/Resources<</Font<</F 6 0 R>>>>"
    objects = [
        b"<</Type/Catalog/Pages 2 0 R/AcroForm<</Fields[4 0 R]/DR<</Font<</F 6 0 R>>>>>>>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 100]/Annots[4 0 R 7 0 R]/Contents 8 0 R%s>>" % fonts,
        b"<</Type/Annot/Subtype/Widget/FT/Tx/T(a)/V(%s)/Rect[20 40 180 60]%s/AP<</N 5 0 R>>>>" % (value.encode(), look),
        b"<</Subtype/Form/BBox[0 0 160 20]%s/Length %d>>stream\n%s\nendstream" % (fonts, len(shown), shown),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        b"<</Type/Annot/Subtype/FreeText/Contents(%s)/Rect[20 70 180 90]%s>>" % (note.encode(), look),
        b"<</Length %d>>stream\n%s\nendstream" % (len(text), text),
    ]
    body = b"".join(b"%d 0 obj\n%s\nendobj\n" % (i, o) for i, o in enumerate(objects, 1))
    return b"%PDF-1.7\n" + body + b"trailer<</Root 1 0 R/Size 9>>\n%%EOF"


@pytest.mark.parametrize(("value", "note"), [("12345", ""), ("", "and more")])
def test_what_is_written_in_forms_and_notes_is_seen_and_not_taken_for_the_pages_text(value, note):
    with Pdf(form()) as empty, Pdf(form(value, note)) as filled:
        assert empty.characters(1) == len("Name:") and empty.text(1) == "Name:"
        assert filled.characters(1) == 0
        field = np.s_[40:60, 20:180] if value else np.s_[10:30, 20:180]
        without, seen = (np.asarray(file.render(1, 72).convert("L"))[field] for file in (empty, filled))
        assert np.count_nonzero(seen < 128) > np.count_nonzero(without < 128)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pictures.pdf([(595, 842)], encrypt=True), "is encrypted, expected a PDF without a password"),
        (b"%PDF-1.4 and no more", "a damaged PDF"),
        (pictures.pdf([(595, 842)])[:80], "a damaged PDF"),
    ],
)
def test_a_file_that_cannot_be_opened_is_a_clear_error(data, message):
    assert is_pdf(data)
    with pytest.raises(ValueError, match=f"^scan.pdf: {message}"):
        Pdf(data, "scan.pdf")
    with pytest.raises(FileNotFoundError):
        Pdf("there is no such.pdf")


def test_a_file_without_pages_is_told_whatever_was_opened_before(tmp_path):
    path = tmp_path / "空.pdf"
    path.write_bytes(pictures.pdf([]))
    for before in (pictures.pdf(["x"], encrypt=True), b"%PDF-1.4 and no more"):
        for source in (path, path.read_bytes()):
            with pytest.raises(ValueError, match=r"damaged|encrypted"):
                Pdf(before)
            with pytest.raises(ValueError, match=r"^scan.pdf: has no pages, expected at least one"):
                Pdf(source, "scan.pdf")


def test_a_damaged_page_is_named_and_the_others_are_there():
    with Pdf(pictures.pdf(["a", None, "b"]), "scan.pdf") as file:
        for call in (file.characters, file.text, lambda number: file.render(number, 72)):
            with pytest.raises(ValueError, match=r"^scan.pdf, page 2: is damaged"):
                call(2)
        with pytest.raises(ValueError, match=r"^scan.pdf, page 4: there is no such page, expected 1 to 3"):
            file.text(4)
        assert file.text(3) == "b"


@pytest.mark.parametrize(("turn", "size"), [(90, (877, 620)), (180, (620, 877)), (45, (620, 877))])
def test_a_page_that_says_it_is_turned(turn, size):
    file = pictures.pdf(["a line"]).replace(b"/Type /Page /Parent", b"/Rotate %d /Type /Page /Parent" % turn)
    with Pdf(file) as pdf:
        image = pdf.render(1, 75)
        assert np.allclose(image.size, size, atol=1) and np.asarray(image).min() < 100
        assert pdf.text(1) == "a line"


def test_a_table_of_places_that_is_damaged_is_made_again():
    whole = pictures.pdf(["a line"])
    for file in (whole.replace(b"startxref", b"startxxxx"), whole.replace(b"00000 n", b"00000 x")):
        with Pdf(file) as pdf:
            assert pdf.pages == 1 and pdf.text(1) == "a line"


@pytest.mark.parametrize("box", [b"[0 0 0 0]", b"[595 842 0 0]", b"[0 0 1e30 1e30]", b"[0 0 14400 0.5]", b"[x]", b"[]"])
def test_a_page_without_a_size_is_rendered_or_refused(box):
    file = re.sub(rb"/MediaBox \[[^]]*\]", b"/MediaBox " + box, pictures.pdf(["a line"]))
    with Pdf(file) as pdf:
        try:
            assert max(pdf.render(1, 150).size) <= LONGEST
        except ValueError as error:
            assert str(error).startswith("PDF, page 1: ")


def test_a_million_pages_that_are_not_there():
    with Pdf(pictures.pdf(["a"], count=1_000_000), "scan.pdf") as file:
        assert file.text(1) == "a"
        if file.pages > 1:
            with pytest.raises(ValueError, match=r"^scan.pdf, page 7: is damaged"):
                file.render(7, 150)


def test_a_page_of_200_inches_is_rendered_smaller():
    with Pdf(pictures.pdf([(14_400, 14_400), (14_400, 1)])) as file:
        assert file.render(1, 150).size == (LONGEST, LONGEST)
        assert file.render(2, 600).width == LONGEST


def test_threads_may_render_at_once():
    with Pdf(pictures.pdf(["some text"] * 4)) as file, Pdf(pictures.pdf(["more"] * 4)) as other:
        sizes = []
        calls = [lambda n=n, f=f: sizes.append(f.render(n, 100).size) for n in range(1, 5) for f in (file, other)]
        threads = [threading.Thread(target=call) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(sizes) == 8 and len(set(sizes)) == 1


# ---- PDF, in a process of its own


@pytest.fixture
def started():
    """started(arguments of Pages) -> Pages that are stopped after the test."""
    made = []

    def started(*limits):
        made.append(Pages(*limits))
        return made[-1]

    yield started
    for pages in made:
        pages.stop()


def test_a_process_answers_as_pdfium_does_here(started, tmp_path, monkeypatch):
    page = pictures.blank(300, 200)
    page.paste((200, 10, 30), (30, 40, 90, 100))
    data = pictures.pdf(["one line", page, None])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "文.pdf").write_bytes(data)
    (tmp_path / "PIL.py").write_text("raise ImportError('of the folder that one is in')")
    pages = started()
    for source in (data, memoryview(data), "文.pdf", tmp_path / "文.pdf"):
        with Pdf(data, "scan.pdf") as here, pages.open(source, "scan.pdf") as there:
            assert there.pages == here.pages == 3
            for number in (1, 2):
                assert there.text(number) == here.text(number)
                assert there.characters(number) == here.characters(number)
                assert there.render(number, 90).tobytes() == here.render(number, 90).tobytes()
            for number in (3, 4):
                with pytest.raises(ValueError, match=r"^scan.pdf, page ") as told:
                    here.render(number, 90)
                with pytest.raises(ValueError, match=re.escape(str(told.value))):
                    there.render(number, 90)
    with pytest.raises(ValueError, match=r"^scan.pdf: a damaged PDF"):
        pages.open(data[:80], "scan.pdf")
    with pytest.raises(FileNotFoundError, match=r"No such file.*none.pdf"):
        pages.open("none.pdf", "none.pdf")


@pytest.mark.skipif(not os.path.exists("/dev/fd/0"), reason="a system without /dev/fd")
def test_a_file_that_is_open_here_alone_is_read_there(started, tmp_path):
    (tmp_path / "scan.pdf").write_bytes(pictures.pdf(["a line"]))
    with (tmp_path / "scan.pdf").open("rb") as file, started().open(f"/dev/fd/{file.fileno()}", "scan.pdf") as pdf:
        assert pdf.text(1) == "a line"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which files are open")
def test_a_file_that_is_closed_here_is_closed_there(started, tmp_path):
    path = tmp_path / "scan.pdf"
    path.write_bytes(pictures.pdf(["a line"]))

    def is_open():
        folder = f"/proc/{pages._process.pid}/fd"
        return any(os.readlink(f"{folder}/{name}") == str(path) for name in os.listdir(folder))

    pages = started()
    with pages.open(path, "scan.pdf"):
        assert is_open()
    assert not is_open()


def test_two_files_of_one_process_take_turns(started):
    pages = started()
    with pages.open(pictures.pdf(["a", "b"]), "1.pdf") as one, pages.open(pictures.pdf(["c"]), "2.pdf") as two:
        assert [one.text(1), two.text(1), one.text(2), two.pages] == ["a", "c", "b", 1]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize(("limits", "said"), [((1 << 29, 60), "less than 0.5 GiB"), ((4 << 30, 1), "more than 1 s")])
def test_a_page_that_takes_all_there_is_is_an_error_and_others_follow(started, limits, said):
    pages = started(*limits)
    with pages.open(pictures.endless_pdf(), "scan.pdf") as file:
        assert file.pages == 1
        with pytest.raises(ValueError, match=f"^scan.pdf, page 1: .*PDFium.*{said}"):
            file.render(1, 72)
    with pages.open(pictures.pdf(["a line"]), "next.pdf") as file:
        assert file.text(1) == "a line" and file.render(1, 72).size == (595, 842)


def test_what_a_process_is_doing_can_be_stopped(started):
    pages, said = started(), []
    file = pages.open(pictures.endless_pdf(), "scan.pdf")

    def render():
        try:
            file.render(1, 72)
        except ValueError as error:
            said.append(str(error))

    thread = threading.Thread(target=render)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    pages.stop()
    thread.join(60)
    assert not thread.is_alive() and said[0].startswith("scan.pdf, page 1: ")
    with pytest.raises(ValueError, match="reading was stopped"):
        file.render(1, 72)
    file.close()


def test_a_frozen_program_starts_no_process(started, monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("started a process"))
    with started().open(pictures.pdf(["a line"]), "scan.pdf") as file:
        assert file.text(1) == "a line"


# ---- cutting


def two_columns(title="A heading over both columns"):
    """(page, box of the heading, boxes of the columns)"""
    page = pictures.blank()
    top = pictures.heading(page, title, 100) if title else 100
    left = pictures.paragraph(page, 100, top, 480, 36, 22)
    right = pictures.paragraph(page, 660, top + 7, 480, 30, 22, 5)
    return page, (0, 80, 1240, top), [(90, top - 20, 620, left), (620, top - 20, 1150, right)]


def within(block, box, slack=0):
    return (
        block.box[0] >= box[0] - slack
        and block.box[1] >= box[1] - slack
        and block.box[2] <= box[2] + slack
        and block.box[3] <= box[3] + slack
    )


def in_reading_order(blocks):
    return all(a.box[3] <= b.box[1] + 2 or a.box[2] <= b.box[0] for a, b in pairwise(blocks))


def ink_is_covered(page):
    """Every dark pixel lies in a block."""
    left = np.asarray(page.image.convert("L")) < 100
    for block in page.blocks:
        left[block.box[1] : block.box[3], block.box[0] : block.box[2]] = False
    return not left.any()


def small(page, most=1000):
    return all((b[2] - b[0]) * (b[3] - b[1]) / PATCH**2 <= 1.15 * most for b, kind, _ in page.blocks if kind == "text")


def test_an_empty_page_has_no_blocks():
    for page in (pictures.blank(), Image.new("RGB", (1240, 1754), (240, 235, 220)), Image.new("RGB", (3, 2), "white")):
        assert cut(page).blocks == []


def test_a_text_is_cut_between_lines_into_blocks_that_are_not_too_large():
    page = pictures.blank()
    pictures.paragraph(page, 100, 100, 1040, 40)
    found = cut(page)
    assert len(found.blocks) > 4 and small(found) and ink_is_covered(found) and in_reading_order(found.blocks)
    assert [b.continues for b in found.blocks] == [False] + [True] * (len(found.blocks) - 1)
    assert len(cut(page, most_patches=10_000).blocks) == 1


def test_paragraphs_are_cut_apart_before_their_lines_are():
    page = pictures.blank()
    ends = []
    top = 100
    for _ in range(6):
        top = pictures.paragraph(page, 100, top, 1040, 4) + 30
        ends.append(top - 15)
    found = cut(page)
    assert not any(block.continues for block in found.blocks)
    for block in found.blocks:
        assert min(abs(block.box[3] - end) for end in ends) < 40


@pytest.mark.parametrize("title", ["A heading over both columns", ""])
def test_columns_come_one_after_the_other_below_what_lies_over_both(title):
    page, head, columns = two_columns(title)
    found = cut(page)
    rest = found.blocks
    if title:
        assert within(rest[0], head)
        rest = rest[1:]
    where = [next(i for i, column in enumerate(columns) if within(block, column, 8)) for block in rest]
    assert where == sorted(where) and set(where) == {0, 1}
    assert small(found) and ink_is_covered(found)


def test_three_columns_and_a_text_below_them():
    page = pictures.blank()
    for i in range(3):
        pictures.paragraph(page, 80 + 380 * i, 100 + 5 * i, 320, 25, 20, i)
    pictures.paragraph(page, 80, 900, 1080, 10, 20)
    blocks = cut(page).blocks
    lefts = [block.box[0] // 380 for block in blocks if block.box[1] < 850]
    assert lefts == sorted(lefts) and set(lefts) == {0, 1, 2}
    assert all(block.box[0] < 100 for block in blocks[len(lefts) :]) and len(blocks) > len(lefts)


@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize(("first", "last"), [("Index", ""), ("Index", "17"), ("", "17")])
def test_a_heading_and_a_page_number_that_lie_in_one_column_are_before_and_after_all(columns, first, last):
    page = pictures.blank()
    left = 1240 * (columns // 2) // columns + 90
    width = 1100 // columns - 50
    if first:
        pictures.paragraph(page, left, 40, 120, 1, 40)
    for i in range(columns):
        pictures.paragraph(page, 80 + i * 1100 // columns, 140, width, 36, 20, i)
    if last:
        pictures.paragraph(page, left, 1300, 40, 1, 20)
    found = cut(page)
    tops = [block.box[1] for block in found.blocks]
    assert ink_is_covered(found)
    assert not first or (tops[0] == min(tops) and found.blocks[0].box[3] < 140)
    assert not last or (tops[-1] == max(tops) and tops[-1] > 1250)
    inner = found.blocks[bool(first) : len(tops) - bool(last)]
    where = [(block.box[0] - 40) * columns // 1100 for block in inner]
    assert where == sorted(where) and set(where) == set(range(columns))


def test_a_short_heading_above_columns_that_have_headings_of_their_own():
    page = pictures.blank()
    pictures.heading(page, "News", 60, 60)
    for left in (80, 660):
        pictures.paragraph(page, left, 160, 120, 1, 30)
        pictures.paragraph(page, left, 220, 480, 36, 22, left)
    found = cut(page)
    assert found.blocks[0].box[3] < 160 and ink_is_covered(found)
    columns = [block.box[0] > 620 for block in found.blocks[1:]]
    assert columns == sorted(columns) and set(columns) == {False, True}


def test_an_index_whose_lines_do_not_stand_side_by_side_is_columns():
    page = pictures.blank()
    for column in range(4):
        top = 100 + 7 * column
        for row in range(36 + column):
            width = (150, 100, 200, 170)[(row + column) % 4]
            top = pictures.paragraph(page, 60 + 290 * column, top, width, 1, 20, row) + 9 * (row % 7 == 6)
    found = cut(page)
    columns = [block.box[0] // 290 for block in found.blocks]
    assert columns == sorted(columns) and set(columns) == {0, 1, 2, 3} and ink_is_covered(found)


def test_a_river_through_a_few_lines_is_no_gutter():
    page = pictures.blank()
    top = pictures.paragraph(page, 100, 100, 1040, 6)
    pictures.paragraph(page, 100, top, 480, 3)
    top = pictures.paragraph(page, 606, top, 534, 3)
    pictures.paragraph(page, 100, top, 1040, 6)
    found = cut(page)
    assert in_reading_order(found.blocks) and all(block.box[0] < 110 for block in found.blocks)


def test_a_word_space_of_a_headline_is_no_gutter():
    page = pictures.blank()
    draw, letters = ImageDraw.Draw(page), pictures.font(72)
    middle = 110 + int(draw.textlength("The best of times", letters))
    draw.text((100, 90), "The best of times", "black", letters)
    draw.text((middle + 12, 90), "and the worst", "black", letters)
    pictures.paragraph(page, 100, 200, middle - 110, 30, 20)
    pictures.paragraph(page, middle + 15, 200, 450, 30, 20, 3)
    head, *rest = cut(page).blocks
    assert head.box[3] <= 200 and head.box[2] > middle + 200
    columns = [block.box[0] > middle - 20 for block in rest]
    assert columns == sorted(columns) and set(columns) == {False, True}


@pytest.mark.parametrize("rows", [4, 12])
def test_rows_of_a_table_without_rules_stay_whole(rows):
    page = pictures.blank()
    pictures.paragraph(page, 100, 100, 1040, 4)
    for row in range(rows):
        for left, width in ((100, (180, 80, 120)[row % 3]), (420, (330, 140, 500, 90)[row % 4])):
            pictures.paragraph(page, left, 300 + 50 * row, width, 1, 24, row)
    found = cut(page)
    assert in_reading_order(found.blocks) and ink_is_covered(found)
    assert all(block.box[0] < 110 and block.box[2] > 700 for block in found.blocks)


@pytest.mark.parametrize("skew", [0, 1.5])
def test_the_black_around_a_scanned_page_is_not_its_ink(skew):
    page, _, columns = two_columns()
    scan = Image.new("RGB", (1400, 1900), (12, 12, 12))
    scan.paste(page, (110, 60))
    found = cut(scan.rotate(skew, Image.Resampling.BICUBIC, fillcolor=(12, 12, 12)))
    assert abs(found.turned + skew) < 0.25
    boxes = [(left + 110, top + 60, right + 110, bottom + 60) for left, top, right, bottom in columns]
    where = [next(i for i, box in enumerate(boxes) if within(block, box, 12)) for block in found.blocks[1:]]
    assert where == sorted(where) and set(where) == {0, 1}


def test_the_edge_of_a_grey_page_that_is_levelled_is_not_its_ink():
    page, _, _ = two_columns()
    grey = Image.blend(page, Image.new("RGB", page.size, "black"), 0.4)
    found = cut(grey.rotate(3, Image.Resampling.BICUBIC, fillcolor=(153, 153, 153)))
    assert len(found.blocks) == len(cut(page).blocks)
    assert all(within(block, (70, 60, 1170, 1700)) for block in found.blocks)


def test_grey_letters_beside_black_ones_are_not_lost():
    page = pictures.blank()
    pictures.paragraph(page, 100, 100, 1040, 30, colour=(20, 20, 20))
    pictures.paragraph(page, 500, 1600, 240, 1, colour=(170, 170, 170))
    left, top, right, bottom = cut(page).blocks[-1].box
    assert left <= 502 and top <= 1604 and right >= 680 and bottom >= 1620


def test_a_number_1_is_not_lost():
    page = pictures.blank(620, 877)
    pictures.paragraph(page, 50, 50, 520, 20, 14)
    ImageDraw.Draw(page).line((310, 800, 310, 811), "black")
    ImageDraw.Draw(page).line((311, 800, 311, 811), (160, 160, 160))
    assert ink_is_covered(cut(page))


def page_with_table():
    page = pictures.blank()
    top = pictures.paragraph(page, 100, 100, 1040, 5)
    box = pictures.table(page, 150, top + 40, 6, 5)
    pictures.paragraph(page, 100, box[3] + 40, 1040, 8)
    return page, box


def test_a_ruled_table_is_one_block():
    page, box = page_with_table()
    found = cut(page)
    assert [block.kind for block in found.blocks] == ["text", "table", *["text"] * (len(found.blocks) - 2)]
    table = found.blocks[1]
    assert within(table, box, 20) and table.box[0] <= box[0] and table.box[3] >= box[3]
    assert ink_is_covered(found) and in_reading_order(found.blocks)


def test_a_frame_and_rules_are_no_table():
    page = pictures.blank()
    draw = ImageDraw.Draw(page)
    draw.rectangle((40, 40, 1200, 1700), outline="black", width=3)
    draw.line((100, 150, 1140, 150), "black", 2)
    pictures.paragraph(page, 100, 100, 1040, 1)
    pictures.paragraph(page, 100, 170, 480, 40, 22)
    pictures.paragraph(page, 660, 170, 480, 40, 22)
    draw.line((620, 170, 620, 1600), "black", 2)
    found = cut(page)
    assert {block.kind for block in found.blocks} == {"text"}
    columns = [block.box[0] > 620 for block in found.blocks if block.box[1] > 155]
    assert columns == sorted(columns) and len(set(columns)) == 2


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("draw", [lambda: two_columns()[0], lambda: page_with_table()[0]])
def test_a_page_is_set_upright(turn, draw):
    page = draw()
    found = cut(page.rotate(turn, expand=True))
    assert found.turned % 360 == -turn % 360
    assert found.image.size == page.size
    assert [block.kind for block in found.blocks] == [block.kind for block in cut(page).blocks]


def test_a_page_of_letters_that_often_reach_down_is_set_upright():
    page = pictures.blank()
    for line in range(30):
        text = "The party paid for a copy of the applicable regulations; however, Mr. Jarndyce objected"
        pictures.heading(page, text, 100 + 40 * line, 26)
    assert cut(page).turned == 0 and cut(page.rotate(180)).turned == 180


@pytest.mark.parametrize("lines", [1, 2, 3])
@pytest.mark.parametrize("size", [16, 24, 40, 80])
def test_a_few_lines_stay_as_they_are_and_whole(lines, size):
    for width, height in ((1240, 1754), (620, 877), (620, int(1.5 * lines * size) + 20)):
        page = pictures.blank(width, height)
        pictures.paragraph(page, 20, 10, width - 40, lines, size)
        found = cut(page, most_patches=10_000)
        assert abs(found.turned) < 2 and len(found.blocks) == 1 and ink_is_covered(found)


@pytest.mark.parametrize("turn", [0, 90, 270])
def test_a_title_page_is_not_set_on_its_side(turn):
    page = pictures.blank()
    top = pictures.heading(page, "A Tale of Two Cities", 500, 60)
    pictures.heading(page, "by Charles Dickens", top, 30)
    pictures.heading(page, "Chapman and Hall, London", 1600, 24)
    assert cut(page.rotate(turn, expand=True)).turned % 180 == turn % 180


@pytest.mark.parametrize("text", ["page 3 of 12", "Hello world", "1,234.56", "hope, age yours"])
def test_a_picture_of_one_line_stays_as_it_is(text):
    page = pictures.blank(240, 40)
    pictures.heading(page, text, 8, 24)
    for picture in (page, page.crop(page.convert("L").point(lambda level: 255 * (level < 100)).getbbox())):
        found = cut(picture)
        assert abs(found.turned) < 2 and len(found.blocks) == 1


def test_a_small_picture_of_a_table_is_one():
    page = pictures.blank(400, 200)
    pictures.table(page, 20, 20, 3, 4, (90, 30))
    assert [block.kind for block in cut(page).blocks] == ["table"]


@pytest.mark.parametrize("skew", [-4, -1, 0.5, 2.5])
def test_a_page_askew_is_levelled(skew):
    page, _, _ = two_columns()
    found = cut(page.rotate(skew, Image.Resampling.BICUBIC, fillcolor="white"))
    assert abs(found.turned + skew) < 0.25
    assert small(found) and ink_is_covered(found)
    columns = [block.box[0] > 600 for block in found.blocks[1:]]
    assert columns == sorted(columns) and len(set(columns)) == 2


@pytest.mark.parametrize("skew", [0, 2.5])
@pytest.mark.parametrize("draw", [lambda: two_columns()[0], lambda: page_with_table()[0]])
def test_a_dark_page_is_cut_as_a_light_one(draw, skew):
    light = draw().rotate(skew, Image.Resampling.BICUBIC, fillcolor="white")
    found, want = cut(ImageOps.invert(light)), cut(light)
    assert found.turned == want.turned and len(found.blocks) == len(want.blocks)
    for block, same in zip(found.blocks, want.blocks):
        assert block.kind == same.kind and np.allclose(block.box, same.box, atol=2)  # levels round the other way
    faint = Image.blend(ImageOps.invert(light), Image.new("RGB", light.size, (70, 70, 90)), 0.4)
    assert [block.kind for block in cut(faint).blocks] == [block.kind for block in want.blocks]


def light_on(page, box, colour, lines, size=24, margin=40):
    """Draws a banner with lines of white letters; the boxes of its ink."""
    ImageDraw.Draw(page).rectangle(box, fill=colour)
    pictures.paragraph(page, box[0] + margin, box[1] + margin, box[2] - box[0] - 2 * margin, lines, size, 0, "white")
    return box[0] + margin - 2, box[1] + margin, box[2] - margin, box[1] + margin + int(1.4 * lines * size)


def letters_are_whole(found, box):
    """Whether a block has all of the white letters in a box, and not the banner beside them."""
    light = np.asarray(found.image.crop(box).convert("L")) > 200
    y, x = (np.flatnonzero(light.any(axis=axis)) for axis in (1, 0))
    inner = box[0] + x[0], box[1] + y[0], box[0] + x[-1] + 1, box[1] + y[-1] + 1
    return any(
        left <= inner[0] and top <= inner[1] and right >= inner[2] and bottom >= inner[3]
        for (left, top, right, bottom), _, _ in found.blocks
    )


@pytest.mark.parametrize("colour", [(0, 0, 0), (30, 60, 150), (200, 30, 30)])
def test_light_letters_on_a_banner_are_read_as_dark_ones_are(colour):
    page, _, columns = two_columns("")
    page = page.transform(page.size, Image.Transform.AFFINE, (1, 0, 0, 0, 1, -200), fillcolor="white")
    columns = [(left, top + 200, right, bottom + 200) for left, top, right, bottom in columns]
    letters = light_on(page, (0, 0, 1239, 200), colour, 2, 40)
    head, *rest = (found := cut(page)).blocks
    assert letters_are_whole(found, letters) and within(head, (0, 0, 1240, 200))
    where = [next(i for i, column in enumerate(columns) if within(block, column, 8)) for block in rest]
    assert where == sorted(where) and set(where) == {0, 1}


@pytest.mark.parametrize("skew", [0, 2])
def test_light_letters_in_a_panel_beside_a_text(skew):
    page = pictures.blank()
    letters = light_on(page, (800, 100, 1200, 1600), (30, 60, 150), 30)
    pictures.paragraph(page, 80, 107, 640, 44)
    found = cut(page.rotate(skew, Image.Resampling.BICUBIC, fillcolor="white"))
    assert abs(found.turned + skew) < 0.25
    columns = [block.box[0] > 760 for block in found.blocks]
    assert columns == sorted(columns) and set(columns) == {False, True} and small(found)
    assert skew or letters_are_whole(cut(page, most_patches=10_000), letters)


def test_a_note_on_a_dark_table_is_a_light_page():
    levels = np.random.default_rng(1).normal(50, 8, (1400, 1200, 3)).clip(0, 255).astype(np.uint8)
    page, note = Image.fromarray(levels), pictures.blank(420, 800)
    pictures.paragraph(note, 30, 40, 360, 20, 18)
    page.paste(note, (350, 300))
    found = cut(page)
    assert found.turned == 0 and len(found.blocks) == 1
    left, top, right, bottom = found.blocks[0].box
    assert left < 380 and top < 340 and right > 740 and bottom > 850


def test_a_large_scan_with_dirt_and_shadow_is_cut_as_the_clean_page():
    page, _, _ = two_columns()
    large = page.resize((2480, 3508), Image.Resampling.BICUBIC)
    levels = np.asarray(large).astype(np.float32) * np.linspace(0.6, 1, 2480, dtype=np.float32)[None, :, None]
    rng = np.random.default_rng(1)
    levels += rng.normal(0, 4, levels.shape[:2])[..., None]
    ys, xs = rng.integers(0, 3508, 300), rng.integers(0, 2480, 300)
    levels[ys, xs] = 0
    found = cut(Image.fromarray(levels.clip(0, 255).astype(np.uint8)))
    columns = [block.box[0] > 1200 for block in found.blocks[1:]]
    assert columns == sorted(columns) and len(set(columns)) == 2
    assert ink_is_covered(found) or len(found.blocks) > 5


def test_what_is_no_text_ends_soon_and_stays_in_the_page():
    noise = Image.fromarray(pictures.image_of(1, 900, 700))
    for page in (noise, Image.new("RGB", (900, 900), "black"), Image.new("RGB", (3000, 20), "grey")):
        found = cut(page)
        for block in found.blocks:
            left, top, right, bottom = block.box
            assert 0 <= left < right <= found.image.width and 0 <= top < bottom <= found.image.height
