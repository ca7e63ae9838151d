"""Remakes the built-in model: tokenizer, training, checkpoint, file, evaluation.

    pip install '.[convert]' torch safetensors && python examples/builtin_model/make.py

Stopped and started again it goes on where it was. The same seed gives the same data; torch's sums depend on the
machine, so the weights are the same only on the same one.
"""

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE / "data"), str(ROOT)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "builtin_model", help="where to work")
    parser.add_argument("--out", type=Path, default=ROOT / "glmlite" / "data" / "builtin.gguf")
    parser.add_argument("--type", default="q8_0", help="of the file, as in `glmlite convert`")
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()

    from data import Templates
    from evaluate import evaluate
    from export import export
    from objective import train_tokenizer
    from train import train

    from glmlite.convert import convert

    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "ice_text.model").exists():
        train_tokenizer(Templates(), folder, arguments.seed)
    train(folder, arguments.steps, arguments.seed, arguments.threads)
    checkpoint = export(folder)
    arguments.out.parent.mkdir(exist_ok=True)
    convert(checkpoint, arguments.out, arguments.type)
    evaluate(arguments.out, checkpoint, HERE / "evaluation.md")


if __name__ == "__main__":
    main()
