"""Seeds of fuzz_text: `python seeds_text.py DIR` writes the tables of small tokenizers to DIR as GGUF files."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import vocab

from glmlite.convert.writer import write
from glmlite.tokenizer.tables import tables


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {pre: vocab.small_bytes(pre) for pre in ("glm4", "deepseek-llm", "viking")}
    kinds |= {"llama": vocab.small_sentencepiece(), "chatglm1": vocab.small_sentencepiece("chatglm1")}
    for name, metadata in kinds.items():
        write(folder / name, tables(metadata), [])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
