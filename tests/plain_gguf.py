"""GGUF files with numpy alone, for machines that lack the gguf package: metadata as tests/tiny.py makes it, and random
weights of any format. Values of a matrix spread as random signs over sqrt(columns) do, about.
"""

import struct

import numpy as np
import twins

IDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12}
IDS |= {"Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23, "BF16": 30}
ALIGNMENT = 32
PIECE = 1 << 25  # bytes made at a time

# What the codes of a format spread over, and the mean that its second scale, of the minimums, has to take off.
SPREAD = {"Q8_0": 74, "Q4_0": 4.6, "Q4_1": 4.6, "Q5_0": 9.2, "Q5_1": 9.2, "Q2_K": 13.9, "Q3_K": 43, "Q4_K": 257}
SPREAD |= {"Q5_K": 524, "Q6_K": 1370, "IQ4_NL": 70, "IQ4_XS": 1300}
MINIMUM = {"Q4_1": -7.5, "Q5_1": -15.5, "Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}


def row_bytes(format, columns):
    values, size, _ = twins.FORMATS[format]
    return columns // values * size


def random_rows(rng, format, rows, columns):
    """(rows, bytes) as a file stores them."""
    values, size, halves = twins.FORMATS[format]
    if format in twins.FLOATS:
        x = rng.standard_normal((rows, columns), np.float32) * np.float32(columns**-0.5)
        if format == "BF16":
            return (x.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return x.astype(np.float32 if format == "F32" else np.float16).view(np.uint8)
    blocks = rng.integers(0, 256, (rows * columns // values, size), np.uint8)
    scale = columns**-0.5 / SPREAD[format]
    for at, d in zip(halves, (scale, scale * MINIMUM.get(format, 0))):
        blocks[:, at : at + 2] = np.frombuffer(np.float16(d).tobytes(), np.uint8)
    return blocks.reshape(rows, -1)


def write(path, metadata, tensors, seed=0):
    """tensors: (name, f32 array), or (name, shape, format) for random values. Returns path."""
    rng = np.random.default_rng(seed)
    table, offset, works = bytearray(), 0, []
    for name, *what in tensors:
        shape, format = (what[0].shape, "F32") if len(what) == 1 else what
        size = int(np.prod(shape[:-1])) * row_bytes(format, shape[-1])
        table += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], IDS[format], offset)
        offset += -(-size // ALIGNMENT) * ALIGNMENT
        works.append((what, size))
    keys = b"".join(_string(key) + _value(value) for key, value in metadata.items())
    head = b"GGUF" + struct.pack("<IQQ", 3, len(works), len(metadata)) + keys + bytes(table)
    with open(path, "wb") as file:
        file.write(head + bytes(-len(head) % ALIGNMENT))
        for what, size in works:
            if len(what) == 1:
                file.write(np.ascontiguousarray(what[0], np.float32).tobytes())
            else:
                (rows, columns), format = what
                step = max(1, PIECE // row_bytes(format, columns))
                for begin in range(0, rows, step):
                    random_rows(rng, format, min(step, rows - begin), columns).tofile(file)
            file.write(bytes(-size % ALIGNMENT))
    return path


def _string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value):
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, (str, bytes)):
        return struct.pack("<I", 8) + _string(value)
    if isinstance(value[0], (str, bytes)):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
    kind, dtype = (6, "<f4") if isinstance(value[0], float) else (5, "<i4")
    return struct.pack("<IIQ", 9, kind, len(value)) + np.asarray(value, dtype).tobytes()
