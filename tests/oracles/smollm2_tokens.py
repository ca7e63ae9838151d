"""Writes tests/data/smollm2_tokens.json: 200 lines and the ids that llama.cpp gives them.

    PYTHONPATH=tests:. python tests/oracles/smollm2_tokens.py SmolLM2-135M-Instruct.gguf

needs the packages `llama_cpp`, and those of the tests. The lines begin as every 10th of test_tokenizer's.
"""

import json
import sys
from pathlib import Path

import llama_cpp
from test_tokenizer import LINES

OUT = Path(__file__).parents[1] / "data" / "smollm2_tokens.json"


def main(path: str) -> None:
    model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    rows = []
    for number, line in enumerate(LINES[::10]):
        special = number % 2 == 0
        line = line[:120]
        if special:
            line = "<|im_start|>user\n" + line + "<|im_end|>"
        ids = model.tokenize(line.encode(), add_bos=False, special=special)
        rows.append({"text": line, "special": special, "ids": ids})
    text = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
    OUT.write_text(f'{{"llama_cpp": "{llama_cpp.__version__}", "lines": [\n{text}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
