"""Images and pages that tests draw."""

import numpy as np


def sizes_of_images():
    """1000 random (height, width), most of them small, some of one pixel across."""
    rng = np.random.default_rng(17)
    return [tuple(int(side) for side in np.exp(rng.uniform(0, np.log(1300), 2))) for _ in range(1000)]


def image_of(number, height, width):
    """(height, width, 3) uint8: noise, whose every pixel matters."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


def sizes_of_rule():
    """100,000 random (height, width) up to 9900."""
    return np.random.default_rng(28).integers(1, 9901, (100_000, 2)).tolist()


SENTENCE = """It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of
foolishness, it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season
of Darkness, it was the spring of hope, it was the winter of despair"""
WORDS = SENTENCE.split()


def font(size):
    from PIL import ImageFont

    return ImageFont.load_default(size)


def blank(width=1240, height=1754):
    from PIL import Image

    return Image.new("RGB", (width, height), "white")


def paragraph(page, left, top, width, lines, size=24, first=0, colour="black"):
    """Draws lines of words, a word's number in WORDS moved on from line to line; the y below them."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(page)
    letters = font(size)
    word = first
    for _ in range(lines):
        text = WORDS[word % len(WORDS)]
        while draw.textlength(f"{text} {WORDS[(word + 1) % len(WORDS)]}", letters) <= width:
            word += 1
            text += " " + WORDS[word % len(WORDS)]
        word += 1
        draw.text((left, top), text, colour, letters)
        top += int(size * 1.4)
    return top


def heading(page, text, top, size=48, colour="black"):
    """Draws a line in the middle of the page; the y below it."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(page)
    draw.text(((page.width - draw.textlength(text, font(size))) / 2, top), text, colour, font(size))
    return top + int(size * 1.8)


def table(page, left, top, rows, columns, cell=(180, 50), colour="black"):
    """Draws a ruled table with a number in each cell; its box."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(page)
    right, bottom = left + columns * cell[0], top + rows * cell[1]
    for row in range(rows + 1):
        draw.line((left, top + row * cell[1], right, top + row * cell[1]), colour, 2)
    for column in range(columns + 1):
        draw.line((left + column * cell[0], top, left + column * cell[0], bottom), colour, 2)
    for row in range(rows):
        for column in range(columns):
            draw.text((left + column * cell[0] + 20, top + row * cell[1] + 12), f"{row}.{column}", colour, font(24))
    return left, top, right, bottom


def pdf(pages, count=None, encrypt=False):
    """A PDF of (width, height) of empty paper in points, texts (lines of Helvetica), images (150 dpi, lossless), or
    None: a page that is missing. count: how many it says it has."""
    import zlib

    objects = {1: b"<< /Type /Catalog /Pages 2 0 R >>", 3: b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"}

    def add(body):
        objects[len(objects) + 2] = body  # 2 comes last
        return b"%d 0 R" % (len(objects) + 1)

    def stream(data, head=b""):
        return add(b"<< %s /Length %d >>\nstream\n%s\nendstream" % (head, len(data), data))

    kids = []
    for page in pages:
        if page is None:
            kids.append(b"999999 0 R")
            continue
        resources, size, content = b"/Font << /F 3 0 R >>", page, b""
        if isinstance(page, str):
            size = 595, 842
            lines = b" T* ".join(b"(%s) Tj" % line.encode() for line in page.split("\n"))
            content = b"BT /F 12 Tf 16 TL 72 770 Td %s ET" % lines
        elif not isinstance(page, tuple):
            size = page.width * 0.48, page.height * 0.48
            head = b"/Type /XObject /Subtype /Image /Width %d /Height %d /ColorSpace /DeviceRGB /BitsPerComponent 8"
            image = stream(zlib.compress(page.tobytes(), 1), (head + b" /Filter /FlateDecode") % page.size)
            resources, content = b"/XObject << /I %s >>" % image, b"%f 0 0 %f 0 0 cm /I Do" % size
        kids.append(
            add(
                b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %f %f] /Resources << %s >> /Contents %s >>"
                % (*size, resources, stream(content))
            )
        )
    trailer = b""
    if encrypt:
        secret = b"/O <%s> /U <%s>" % (b"17" * 32, b"2a" * 32)
        number = add(b"<< /Filter /Standard /V 1 /R 2 /Length 40 /P -44 %s >>" % secret)
        trailer = b"/Encrypt %s /ID [<00> <00>]" % number
    objects[2] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), count or len(kids))
    out, places = b"%PDF-1.4\n", {}
    for number, body in sorted(objects.items()):
        places[number] = len(out)
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % places[number] for number in sorted(places))
    size = len(places) + 1
    head = b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, table)
    return out + head + b"trailer << /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF" % (size, trailer, len(out))


def file_of(size=(60, 40), kind="PNG", mode="RGB", **options):
    """The bytes of a small image."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(file, kind, **options)
    return file.getvalue()


def saved(array):
    """The bytes of a PNG with these pixels."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def bomb(side=60_000):
    """A PNG of side * side pixels in some hundred bytes."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")


def hostile():
    """{name: (bytes, what is said of them)}: files that are no images, or none for a model."""
    return {
        "empty": (b"", "is empty"),
        "text": (b"hello", "not an image"),
        "beginning": (file_of()[:20], "image"),
        "truncated": (file_of((300, 300), mode="RGBA")[:900], "damaged"),
        "truncated JPEG": (file_of((900, 900), "JPEG")[:3000], "damaged"),
        "column": (file_of((1, 20_000)), "200 times"),
        "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        "bomb": (bomb(), "pixels"),
    }


def odd():
    """{name: bytes}: images of rare kinds."""
    return {
        "CMYK": file_of(kind="JPEG", mode="CMYK"),
        "16 bit": file_of(mode="I;16"),
        "palette": file_of(mode="P", transparency=3),
        "alpha": file_of(mode="LA"),
    }


def endless_pdf():
    """A PDF of one page, which shows a form that shows another ten times, and so on: ten billion lines."""
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R/Resources<</XObject<</X 5 0 R>>>>>>",
        b"<</Length 5>>stream\n/X Do\nendstream",
    ]
    for level in range(11):
        content = b"/X Do " * 10 if level < 10 else b"9 9 m 99 99 l S"
        inner = b"/Resources<</XObject<</X %d 0 R>>>>" % (level + 6) if level < 10 else b""
        head = b"<</Type/XObject/Subtype/Form/BBox[0 0 595 842]%s/Length %d>>" % (inner, len(content))
        objects.append(head + b"stream\n" + content + b"\nendstream")
    body = b"".join(b"%d 0 obj\n%s\nendobj\n" % (i, o) for i, o in enumerate(objects, 1))
    return b"%PDF-1.7\n" + body + b"trailer<</Root 1 0 R/Size 16>>\n%%EOF"
