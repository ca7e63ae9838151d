"""What a user calls an image becomes RGB pixels or a clear error; and pixels become transformers' patches."""

import base64
import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason="needs glmlite[vision]")

import pictures  # noqa: E402
from PIL import ImageOps  # noqa: E402

from glmlite.vision import images  # noqa: E402
from glmlite.vision.images import frame_count, open_frame, open_image  # noqa: E402
from glmlite.vision.preprocess import Settings, image_tokens, preprocess, smart_size  # noqa: E402

DATA = Path(__file__).parent / "data"
GLM_OCR = Settings()


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def colours(mode="RGB"):
    """Red, green, blue and black, two by two."""
    pixels = np.uint8([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 0, 0]]])
    return Image.fromarray(pixels).convert(mode)


def pixels(source):
    image = open_image(source)
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


# ---- preprocessing, against transformers (tests/oracles/transformers_images.py)


def test_patches_are_those_of_transformers_bit_for_bit():
    stored = np.load(DATA / "images.npz")["checksums"]
    for i, (height, width) in enumerate(pictures.sizes_of_images()):
        image = Image.fromarray(pictures.image_of(i, height, width))
        if stored[i] == 0:
            with pytest.raises(ValueError, match=f"{width} x {height} pixels"):
                preprocess(image, GLM_OCR)
            continue
        patches = preprocess(image, GLM_OCR).patches
        assert patches.dtype == np.float32 and patches.flags.c_contiguous
        checksum = int.from_bytes(hashlib.sha256(patches.tobytes()).digest()[:8], "little")
        assert checksum == stored[i], (i, height, width)


def test_sizes_are_those_of_transformers():
    sizes = np.zeros((100_000, 2), np.int32)
    for i, (height, width) in enumerate(pictures.sizes_of_rule()):
        try:
            sizes[i] = smart_size(height, width, GLM_OCR)
        except ValueError:
            continue
    assert hashlib.sha256(sizes.tobytes()).digest() == np.load(DATA / "images.npz")["sizes"].tobytes()


def test_four_patches_that_become_one_token_stand_together():
    image = np.zeros((112, 168, 3), np.uint8)
    for row in range(8):
        for column in range(12):
            image[14 * row : 14 * row + 14, 14 * column : 14 * column + 14] = 2 * (12 * row + column)
    patches, grid, _ = preprocess(Image.fromarray(image), Settings(mean=(0, 0, 0), std=(1, 1, 1)))
    assert grid == (8, 12)
    numbers = (np.rint(patches[:, 0] * 255) / 2).astype(int).tolist()
    assert numbers[:8] == [0, 1, 12, 13, 2, 3, 14, 15]
    assert numbers[-4:] == [82, 83, 94, 95]


def test_a_patch_has_its_channels_one_after_another():
    image = np.zeros((112, 112, 3), np.uint8)
    image[3, 5] = 10, 20, 30
    patch = preprocess(Image.fromarray(image), Settings(mean=(0, 0, 0), std=(1, 1, 1))).patches[0] * 255
    assert np.rint(patch[[196 * c + 14 * 3 + 5 for c in range(3)]]).tolist() == [10, 20, 30]
    assert np.count_nonzero(patch) == 3


def test_the_same_pixels_have_the_same_content_and_others_another():
    image = Image.fromarray(pictures.image_of(1, 112, 224))
    content = preprocess(image, GLM_OCR).content
    assert preprocess(image.copy(), GLM_OCR).content == content
    other = image.copy()
    other.putpixel((7, 7), (1, 2, 3))
    assert preprocess(other, GLM_OCR).content != content
    turned = Image.frombytes("RGB", (112, 224), image.tobytes())
    assert preprocess(turned, GLM_OCR).content != content


def test_tokens_of_a_page():
    assert image_tokens(1754, 1240, GLM_OCR) == 2772
    assert image_tokens(9000, 9000, GLM_OCR) <= 6144


# ---- what people call an image


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_orientation_is_applied_as_transformers_does(kind):
    stored = Image.fromarray(pictures.image_of(3, 20, 30))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = saved(stored, kind, exif=exif.tobytes())
        image = open_image(file)
        assert image.size == ((30, 20) if orientation < 5 else (20, 30))
        assert image.tobytes() == ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB").tobytes()


def test_damaged_exif_turns_nothing():
    data = saved(colours(), "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")
    assert open_image(data).size == (2, 2)


RED, GREEN, BLUE, BLACK, WHITE = [255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0], [255, 255, 255]
RGB = [[RED, GREEN], [BLUE, BLACK]]


def with_alpha():
    image = colours("RGBA")
    image.putpixel((1, 1), (0, 0, 0, 0))  # transparent black, which means white
    image.putpixel((0, 0), (255, 0, 0, 51))
    return image


def palette_with_alpha():
    image = colours().quantize(4)
    return saved(image, transparency=image.getpixel((1, 1)))


PINK = [255, 204, 204]
GREY16 = np.uint16([[0, 65535], [32768, 257]])
GREY = [[[0] * 3, [255] * 3], [[128] * 3, [1] * 3]]


@pytest.mark.parametrize(
    ("source", "want"),
    [
        (lambda: colours(), RGB),
        (lambda: saved(colours()), RGB),
        (lambda: bytearray(saved(colours(), "BMP")), RGB),
        (lambda: "data:image/png;base64," + base64.b64encode(saved(colours())).decode(), RGB),
        (lambda: "DATA:;base64," + base64.b64encode(saved(colours())).decode(), RGB),
        (lambda: np.asarray(colours()), RGB),
        (lambda: np.asarray(colours()).astype(np.float32) / 255, RGB),
        (lambda: np.asarray(colours())[..., ::-1][..., ::-1], RGB),
        (lambda: saved(with_alpha()), [[PINK, GREEN], [BLUE, WHITE]]),
        (lambda: np.asarray(with_alpha()), [[PINK, GREEN], [BLUE, WHITE]]),
        (palette_with_alpha, [[RED, GREEN], [BLUE, WHITE]]),
        (lambda: saved(colours().quantize(4)), RGB),
        (lambda: saved(colours(), transparency=(0, 0, 0)), [[RED, GREEN], [BLUE, WHITE]]),
        (lambda: saved(Image.fromarray(np.uint8([[0, 255]])).convert("LA")), [[BLACK, WHITE]]),
        (lambda: saved(colours("CMYK"), "TIFF"), RGB),
        (lambda: saved(Image.fromarray(GREY16)), GREY),
        (lambda: saved(Image.fromarray(GREY16), "TIFF"), GREY),
        (lambda: Image.fromarray(GREY16.astype(np.int32)), GREY),
        (lambda: GREY16, GREY),
        (lambda: GREY16[..., None], GREY),
        (lambda: np.array([[True, False]]), [[WHITE, BLACK]]),
        (lambda: saved(Image.fromarray(np.array([[True, False]]))), [[WHITE, BLACK]]),
        (lambda: Image.fromarray(np.float32([[0, 1]])), [[BLACK, WHITE]]),
    ],
)
def test_every_kind_becomes_rgb_on_white(source, want):
    assert pixels(source()) == want


def test_a_path_is_read(tmp_path):
    (tmp_path / "图.png").write_bytes(saved(colours()))
    assert pixels(tmp_path / "图.png") == pixels(str(tmp_path / "图.png")) == RGB
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "none.png")


def test_pages_of_a_tiff_are_opened_one_by_one():
    file = saved(colours(), "TIFF", save_all=True, append_images=[colours().rotate(180)])
    assert frame_count(file) == 2
    assert np.asarray(open_frame(file, 1)).tolist() == [[BLACK, BLUE], [GREEN, RED]]
    assert np.asarray(open_frame(file, 0)).tolist() == RGB
    with Image.open(io.BytesIO(file)) as image:
        assert frame_count(image) == 2
        assert np.asarray(open_frame(image, 1)).tolist() == [[BLACK, BLUE], [GREEN, RED]]
        assert image.tell() == 0  # whoever has it finds it as it was
    assert frame_count(saved(colours())) == frame_count(np.asarray(colours())) == 1


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_says(width, height):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def png_with(kind, data):
    """A good one with another chunk before its pixels."""
    file = saved(colours())
    return file[:33] + chunk(kind, data) + file[33:]


def tiff_of_pages(count, cyclic=False):
    """Pages of 2 x 2 grey pixels, all the same; cyclic: the first follows the last."""
    tags = [(256, 2), (257, 2), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 2), (279, 4)]
    page = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    first, size = 12, len(page) + 4
    places = [first + size * number for number in range(1, count)] + [first if cyclic else 0]
    return struct.pack("<2sHI4s", b"II", 42, first, b"\x80" * 4) + b"".join(
        page + struct.pack("<I", place) for place in places
    )


def animation(kind):
    return saved(colours(), kind, save_all=True, append_images=[colours().rotate(180)], duration=100)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (lambda: b"", ValueError, "is empty, expected an image"),
        (lambda: b"\x89PNG\r\n\x1a\n", ValueError, "not an image, expected one of PNG, JPEG"),
        (lambda: b"hello" * 100, ValueError, "not an image, expected one of"),
        (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ValueError, "not an image, expected one of"),
        (lambda: saved(Image.fromarray(pictures.image_of(1, 99, 99)), "JPEG")[:900], ValueError, "a damaged image"),
        (lambda: saved(Image.fromarray(pictures.image_of(1, 99, 99)))[:900], ValueError, "a damaged image"),
        (lambda: saved(Image.fromarray(pictures.image_of(1, 99, 99)), "WEBP")[:900], ValueError, "image"),
        (lambda: png_that_says(20_000, 20_000), ValueError, "more than 89478485 pixels"),
        (lambda: png_that_says(10_000, 10_000), ValueError, "10000 x 10000 pixels, expected at most 89478485"),
        (lambda: png_that_says(2**31 - 1, 2**31 - 1), ValueError, "more than 89478485 pixels"),
        (lambda: png_that_says(500, 500), ValueError, "a damaged image"),
        (lambda: animation("GIF"), ValueError, "GIF of several frames, expected one"),
        (lambda: animation("TIFF"), ValueError, "TIFF of several frames, expected one"),
        (lambda: animation("PNG"), ValueError, "PNG of several frames, expected one"),
        (lambda: animation("WEBP"), ValueError, "WEBP of several frames, expected one"),
        (lambda: tiff_of_pages(images.MOST_FRAMES + 2), ValueError, "TIFF of several frames, expected one"),
        (lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", ValueError, "is an HEIC image, expected one of PNG, JPEG"),
        (lambda: b"\0\0\0\x1cftypavif\0\0\0\0mif1", ValueError, "is an AVIF image, expected one of"),
        (lambda: b"%PDF-1.7\n", ValueError, "is a PDF file, expected one of"),
        (lambda: b'<?xml version="1.0"?>\n<svg/>', ValueError, "is an SVG drawing, expected one of"),
        (lambda: png_with(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 24))), ValueError, "too large"),
        (lambda: png_with(b"zTXt", b"x\0\0" + zlib.compress(bytes(1 << 24))), ValueError, "too large"),
        (lambda: "https://example.com/x.png", ValueError, "is a web address"),
        (lambda: "data:text/plain;base64,aGk=", ValueError, "a data URL of text/plain"),
        (lambda: "data:image/png,abc", ValueError, "expected data:image/...;base64"),
        (lambda: "data:image/png;base64,abc!", ValueError, "not base64"),
        (lambda: "data:image/png;base64,aGk=", ValueError, "not an image"),
        (lambda: np.zeros((4, 4, 2), np.uint8), ValueError, r"shape \(4, 4, 2\), expected"),
        (lambda: np.zeros((0, 4), np.uint8), ValueError, "expected 1 to"),
        (lambda: np.zeros((4, 4), np.int64), ValueError, "an array of int64, expected"),
        (lambda: np.full((4, 4), np.nan), ValueError, "expected floats from 0 to 1"),
        (lambda: np.where(np.eye(4) > 0, np.nan, 0.5), ValueError, "expected floats from 0 to 1"),
        (lambda: np.full((4, 4), np.inf), ValueError, "expected floats from 0 to 1"),
        (lambda: np.zeros((3, 8, 8), np.uint8), ValueError, r"shape \(3, 8, 8\), expected"),
        (lambda: np.zeros((1, 4, 4, 3), np.uint8), ValueError, r"shape \(1, 4, 4, 3\), expected"),
        (lambda: np.array(7), ValueError, r"shape \(\), expected"),
        (lambda: np.broadcast_to(np.uint8(7), (1 << 20, 1 << 20)), ValueError, "expected 1 to"),
        (lambda: np.full((4, 4), None), ValueError, "an array of object, expected"),
        (lambda: np.full((4, 4), 255.0), ValueError, "expected floats from 0 to 1"),
        (lambda: Image.new("F", (4, 4), 200.0), ValueError, "values from 200.0 to 200.0, expected floats"),
        (lambda: Image.new("I", (4, 4), 1 << 20), ValueError, "an array of int32"),
        (lambda: 7, TypeError, "int, expected a path"),
        (lambda: None, TypeError, "NoneType, expected a path"),
    ],
)
def test_what_is_no_image_is_a_clear_error(source, error, message):
    with pytest.raises(error, match=f"^the third: .*(?:{message})"):
        open_image(source(), "the third")


def test_pages_without_end():
    assert frame_count(tiff_of_pages(3)) == frame_count(tiff_of_pages(3, cyclic=True)) == 3
    with pytest.raises(ValueError, match="scan: more than 10000 pages, expected at most so many"):
        frame_count(tiff_of_pages(images.MOST_FRAMES + 2), "scan")


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<HHII", 0x0112, 3, 0xFFFFFFFF, 16),  # four times 4 GB of orientations
        struct.pack("<HHII", 0x8769, 4, 1, 8),  # a block that is its own
        struct.pack("<HHII", 0x0112, 3, 1, 99),
    ],
)
def test_exif_that_means_nothing(data):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + data + struct.pack("<I", 8)
    photo = saved(colours(), "JPEG", quality=100, subsampling=0)
    with_exif = photo[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + photo[2:]
    assert np.array_equal(np.asarray(open_image(with_exif)), np.asarray(open_image(photo)))


def test_arrays_lie_as_they_like():
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    wide = np.zeros((8, 12, 3), np.uint8)
    wide[::2, ::2] = pixels
    for array in (np.asfortranarray(pixels), pixels[::-1, ::-1][::-1, ::-1], wide[::2, ::2]):
        assert np.array_equal(np.asarray(open_image(array)), pixels)
    assert np.array_equal(np.asarray(open_image(pixels[..., ::-1])), pixels[..., ::-1])
    assert np.array_equal(np.asarray(open_image(pixels.astype(">u2") * 257)), pixels)


def test_a_long_data_url_is_refused_before_it_is_decoded():
    with pytest.raises(ValueError, match="expected at most"):
        open_image("data:image/png;base64," + "A" * (images.MOST_URL + 1))


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (8000, 39)])
def test_a_strip_is_refused(size):
    with pytest.raises(ValueError, match=f"^strip: {size[0]} x {size[1]} pixels, expected no side more than 200 times"):
        preprocess(Image.new("RGB", size), GLM_OCR, "strip")
