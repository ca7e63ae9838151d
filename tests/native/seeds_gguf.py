"""Seeds of fuzz_gguf: `python seeds_gguf.py DIR` writes small valid files to DIR and a dictionary to DIR.dict."""

import sys
from pathlib import Path

import gguf
import numpy as np

WORDS = ["GGUF", "general.alignment", "split.no", "split.count", "split.tensors.count", "tokenizer.ggml.tokens"]
NUMBERS = [2**31, 2**32 - 1, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1]


def write(path: Path, tensors: list[tuple[str, np.ndarray, gguf.GGMLQuantizationType | None]], alignment: int) -> None:
    w = gguf.GGUFWriter(path, "fuzz")
    w.add_custom_alignment(alignment)
    for bits in (8, 16, 32, 64):
        getattr(w, f"add_uint{bits}")(f"u{bits}", 1)
        getattr(w, f"add_int{bits}")(f"i{bits}", -1)
    w.add_float32("f32", 0.5)
    w.add_float64("f64", 0.5)
    w.add_bool("b", True)
    w.add_string("s", "你好")
    w.add_array("ints", [1, 2, 3])
    w.add_array("strings", ["a", "", "bc"])
    w.add_array("bools", [True, False])
    for name, data, raw_dtype in tensors:
        w.add_tensor(name, data, raw_dtype=raw_dtype)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "f32", [("x", np.zeros((2, 3), np.float32), None), ("y", np.zeros(5, np.float16), None)], 8)
    write(folder / "dims", [("x", np.zeros((2, 1, 2, 3), np.float32), None)], 64)
    for kind, (_, block_bytes) in gguf.GGML_QUANT_SIZES.items():
        if block_bytes > 8:
            write(folder / kind.name, [("x", np.zeros((2, block_bytes), np.uint8), kind)], 32)
    for path in list(folder.iterdir()):
        data = bytearray(path.read_bytes())
        data[4] = 2
        path.with_name(path.name + "-v2").write_bytes(data)
    words = [word.encode() for word in WORDS] + [number.to_bytes(8, "little") for number in NUMBERS]
    lines = ['"' + "".join(f"\\x{byte:02x}" for byte in word) + '"' for word in words]
    folder.with_name(folder.name + ".dict").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
