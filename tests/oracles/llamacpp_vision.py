"""Stores what llama.cpp's libmtmd makes of images with pairs that `glmlite convert` wrote: data/libmtmd-<kind>.npz.

`python tests/oracles/llamacpp_vision.py LLAMA_CPP`, the folder of llama.cpp's sources, built into `build/bin`; needs a
C++ compiler and glmlite. libmtmd.cpp beside this file asks. A file holds the sizes of the images, whose pixels are of
`test_convert_eyes.picture` and whose sides are multiples of 28 since llama.cpp pads others with black, the ids, the
rows, the last logits and the position after the prompt.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
import test_convert_eyes as eyes  # noqa: E402

from glmlite.convert import convert  # noqa: E402

SIZES = [(112, 84), (56, 196)]  # width, height
PROMPT = "the <__media__> in <__media__> hello"


def main(llama_cpp):
    with tempfile.TemporaryDirectory() as folder:
        program = compiled(Path(llama_cpp), Path(folder) / "libmtmd")
        for kind in eyes.KINDS:
            ask(program, kind, Path(folder) / kind)


def compiled(llama_cpp, program):
    libraries = llama_cpp / "build" / "bin"
    includes = [f"-I{llama_cpp / name}" for name in ("include", "ggml/include", "tools/mtmd")]
    links = [f"-L{libraries}", "-lmtmd", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{libraries}"]
    source = Path(__file__).with_name("libmtmd.cpp")
    subprocess.run(["c++", "-std=c++17", source, *includes, *links, "-o", program], check=True)
    return program


def ask(program, kind, folder):
    _, _, checkpoint = eyes.pair(folder / "copy", kind)
    text = convert(checkpoint, folder / "text.gguf", "f32", mmproj_type="f32")
    images = []
    for i, (width, height) in enumerate(SIZES):
        (folder / f"{i}.rgb").write_bytes(eyes.picture(width, height, i).tobytes())
        images += [str(width), str(height), folder / f"{i}.rgb"]
    asked = [program, text, folder / "mmproj-text-f32.gguf", folder / "out", PROMPT, *images]
    answer = subprocess.run(asked, check=True, capture_output=True, text=True)
    stored = {
        "sizes": SIZES,
        "ids": np.loadtxt(folder / "out.ids", dtype=np.int32),
        "rows": np.fromfile(folder / "out.rows", np.float32).reshape(-1, 64),
        "logits": np.fromfile(folder / "out.logits", np.float32),
        "after": int(answer.stdout.split()[-1]),
    }
    np.savez_compressed(TESTS / "data" / f"libmtmd-{kind}.npz", **stored)
    print(f"{kind}: {stored['rows'].shape}, {len(stored['ids'])} tokens, then at {stored['after']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
