"""Convert checkpoints with real layouts and real vocabularies, and compare the files in llama.cpp and in glmlite.

    GLMLITE_TOKENIZERS=DIR python tests/oracles/llamacpp_convert.py --store tests/data/llamacpp_convert.json

Needs llama-cpp-python (built from its source package, so for this machine), the built glmlite module, numba and gguf.

For each case a checkpoint with random weights is written and converted to each type; llama.cpp's own tool makes the
same types of our f16 file. Compared are the ids of 200 mixed lines, which tests/test_sources.py compares with those
stored here, and for every file the mean over positions of the KL divergence of each engine's distribution from the
exact one, the numpy executor's. Prints tables, and exits with 1 if anything is off; docs/accuracy.md has the results.

The weights: normal, with norms whose weights differ by factors, so that some columns are much larger than others.
Logits are near normal with a standard deviation of 4.5, for distributions about as sharp as those of language models:
the entropy of a softmax of n such logits is about ln n - 4.5^2 / 2, somewhat more for finite n. It is printed.
"""

import argparse
import json
import pathlib
import random
import shutil
import sys
import tempfile
import zlib
from dataclasses import replace

import numpy as np
from llamacpp import BAR, PROMPTS, TESTS, LlamaCpp, Ours, divergence, log_softmax

sys.path.insert(0, str(TESTS))
import checkpoints
import tiny
import vocab

from glmlite.convert import convert

TYPES = {"f16": "F16", "q8_0": "Q8_0", "q4_k_m": "Q4_K_M", "q4_0": "Q4_0", "iq4_xs": "IQ4_XS"}
SIZES = {"layers": 3, "dim": 512, "heads": 4, "head_dim": 128, "ffn": 1024, "context": 512}
GLM4_ENDS = [151329, 151336, 151338]
# name -> form of the checkpoint, architecture, sizes, folder of the tokenizer, keys of the config
CASES = {
    "chatglm3": ("chatglm", "chatglm", {}, "chatglm3-6b", {"eos_token_id": 2, "pad_token_id": 0}),
    "glm-4-9b": ("chatglm", "chatglm", {}, "glm-4-9b-chat", {"eos_token_id": GLM4_ENDS, "rope_ratio": 500}),
    "glm-4-0414": ("hf", "glm4", {"fused": False, "bias": True}, "glm-4-9b-chat-hf", {"eos_token_id": GLM4_ENDS}),
    "llama": ("hf", "llama", {}, "chatglm3-6b", {"eos_token_id": 2, "bos_token_id": 1}),
}
LOGITS = 4.5  # their standard deviation
TOKENS = 64  # of a prompt


# ---- lines -------------------------------------------------------------------------------------------------------

ENGLISH = [
    "The people of Nineveh developed a theory of everything.",
    "Isopropyl alcohol and a soprano's aria: what do they have in common?",
    "It's what they'd've said; we're sure you'll agree, won't you?",
    "deopt, eop, sop, SOP and EOP: standard operating procedures",
    '"Quoted," she said -- then (in brackets) [1] {2} <3>...',
    "Naïve café façade, coöperate, Zürich, smörgåsbord, señor, Łódź",
    "WHY ARE YOU SHOUTING? i am NoT sHoUtInG",
    "Antidisestablishmentarianism is pneumonoultramicroscopicsilicovolcanoconiosis",
    "https://example.org/a/b?c=d&e=%20f#g and mailto:someone@example.org",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z",
]
CHINESE = [
    "人工智能正在改变世界，你觉得呢？",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "北京大学、清华大学和中国科学院的研究人员发布了新模型。",
    "臺灣的繁體字與大陸的简体字：龍龙、體体、國国",
    "《红楼梦》「引号」『双引号』【方括号】——破折号……省略号",
    "请用 Python 写一个快速排序（quicksort），时间复杂度是 O(n log n)。",
    "全角ＡＢＣ１２３！半角ABC123!",
    "王 参考 的 了 是 在 不 有 我 他 这 个",
    "生僻字：龘靐齉爩鱻麤灪 𠮷野家 㐂",
    "日本語のカタカナとひらがな、한국어 문장도 있습니다.",
]
CODE = [
    "def quicksort(items: list[int]) -> list[int]:",
    "    return sorted(items)  # not really",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * c; }",
    "#include <stdio.h>",
    'int main(void) { printf("%d\n", 42); return 0; }',
    "SELECT name, COUNT(*) FROM users WHERE age >= 18 GROUP BY name HAVING COUNT(*) > 1;",
    "\t\tif (x != nullptr && x->next == y) {",
    "\t\t\tdelete x;",
    "\t\t}",
    "<div class=\"a b\" id='c'><p>text</p></div><!-- comment -->",
    '{"key": [1, 2.5, -3e-7, null, true], "nested": {"a": "b\\u00e9"}}',
    "$ grep -rn 'foo|bar' --include=*.py . | sort -u > /dev/null 2>&1",
    "const f = async (x) => await Promise.all([...x].map(y => y ?? z));",
    "\\frac{1}{\\sqrt{2\\pi\\sigma^2}} \\int_{-\\infty}^{\\infty} e^{-x^2} dx",
]
EMOJI = [
    "😀 😃😄 🤣👍🏽 👨\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 🇨🇳🇺🇸",
    "I ❤️ NY ☃️ 1️⃣2️⃣ ✅❌ →←↑↓ ∑∏∫√∞≠≤≥",
    "🎉party🎉time 中🎉文",
    "ʇxəʇ pəddılɟ ﷺ ﬁ ½ ™ Å ０",
]
NUMBERS = [
    "3.14159265358979 2.718281828 1,000,000.00 -17 +4 1e-9",
    "12345678901234567890 007 0xDEADBEEF 0b1010 1_000",
    "2024-06-05 12:34:56.789 +08:00; 1/2, 3:4, 50%, $9.99, ¥100, €5",
    "1 22 333 4444 55555 666666 7777777 88888888",
    "IPv4 192.168.0.1, IPv6 fe80::1, v1.2.3-rc4, A4, 3D, x86_64",
    "一二三四五六七八九十 ① ② Ⅲ ⅳ ٣٤٥ १२३",
]
SPACES = [
    " ",
    "  ",
    "   ",
    " " * 17,
    " " * 80,
    "\n",
    "\n\n",
    "\n\n\n",
    "\r\n",
    "\t",
    "\t\t",
    " \n ",
    "\t \n",
    " a",
    "a ",
]
SPACES += ["  two  spaces  ", "\n\nparagraph\n\n", "tab\tbed\ttext\t", "line\r\nline\r\n", "\u3000全角空格\u3000"]
TURNS = ["[gMASK]<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>", "[MASK]", "[sMASK]<sop>"]
TURNS += ["[gMASK]<sop><|user|>\n你好<|assistant|>", "<|user|>\nHi<|assistant|>\nHello!<|user|>\n"]
TURNS += ["<|user", "|>", "[gMASK"]
OTHERS = ["مرحبا بالعالم", "שלום עולם", "ไทย ภาษา", "Привет, мир!", "Γειά σου", "नमस्ते", "Xin chào", "e\u0301 n\u0303"]
GROUPS = [ENGLISH, CHINESE, CODE, EMOJI, NUMBERS, SPACES, TURNS, OTHERS]


def lines(count=200):
    """Every part by itself, then mixtures; the same in every run."""
    rng = random.Random(3)
    out = [part for group in GROUPS for part in group]
    while len(out) < count:
        parts = [rng.choice(rng.choice(GROUPS)) for _ in range(rng.randint(2, 5))]
        out.append(rng.choice(["", " ", "\n"]).join(parts))
    return out[:count]


# ---- checkpoints -------------------------------------------------------------------------------------------------


def make(folder, case):
    """A checkpoint's folder: weights in safetensors of f16, config, the real tokenizer's files."""
    form, architecture, sizes, name, config = CASES[case]
    model = tiny.model(architecture, **SIZES, **sizes)
    rows = vocab.VOCAB_SIZES[name]
    shapes = {tensor: (rows, *x.shape[1:]) if x.shape[0] == 384 else x.shape for tensor, x in model.tensors.items()}
    weights = {tensor: weight(tensor, shape) for tensor, shape in shapes.items()}
    weights["output.weight"] *= LOGITS / np.sqrt(np.mean(weights["output_norm.weight"] ** 2))
    named, values = getattr(checkpoints, form)(replace(model, tensors=weights))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values | config))
    checkpoints.write_weights(folder, {tensor: checkpoints.stored(x, "F16") for tensor, x in named.items()}, shards=2)
    for path in vocab.folder(name).glob("token*"):
        shutil.copy(path, folder)
    return folder


def weight(name, shape):
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    x = rng.standard_normal(shape, np.float32)
    if "norm" in name:
        return np.exp(x / 2)
    if name.endswith(".bias"):
        return 0.3 * x
    return 0.02 * x if name == "token_embd.weight" else x / np.sqrt(shape[-1], dtype=np.float32)


def quantize(source, target, kind):
    """As llama.cpp's own tool, with its own mixture of types."""
    import llama_cpp

    llama_cpp._logger.set_verbose(False)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{TYPES[kind]}")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params):
        raise RuntimeError(f"{target}: llama.cpp could not quantize")
    return target


# ---- the comparison ----------------------------------------------------------------------------------------------


def compare(case, types, folder, prompts, stored):
    """Prints the rows of one case; what is wrong, as lines."""
    wrong = []
    source = make(folder / case, case)
    f16 = convert(source, folder / f"{case}-f16.gguf", "f16")
    for kind in types:
        files = [("glmlite", f16 if kind == "f16" else convert(source, folder / f"{case}-{kind}.gguf", kind))]
        if kind != "f16":
            files.append(("llama.cpp", quantize(f16, folder / "theirs.gguf", kind)))
        for tool, path in files:
            ours, theirs = Ours(path), LlamaCpp(path, context=TOKENS)
            if kind == "f16":
                ids = [theirs.tokenize(line) for line in stored["lines"]]
                differ = [line for line, want in zip(stored["lines"], ids) if ours.tokenizer.encode(line) != want]
                print(f"{case}: {len(ids) - len(differ)} of {len(ids)} lines have the same ids", flush=True)
                wrong += [f"{case}: the ids of {line!r} differ" for line in differ]
                equal = (other for other, rows in stored["ids"].items() if rows == ids)
                stored["ids"][case] = next(equal, ids)
            kl, entropy = [], []
            for text in prompts:
                tokens = ours.tokenizer.encode(text)[:TOKENS]
                (exact,) = ours.exact_logits([tokens])
                kl.append([divergence(exact, engine.logits(tokens)) for engine in (ours, theirs)])
                p = log_softmax(exact)
                entropy.append(-(np.exp(p) * p).sum(-1))
            theirs.close()
            mine, other = np.concatenate(kl, axis=1).mean(axis=1)
            nats, count = np.concatenate(entropy).mean(), sum(map(len, entropy))
            print(
                f"| {case} | {kind} | {tool} | {mine:.2e} | {other:.2e} | {mine / other:.2f} | {count} | {nats:.2f} |",
                flush=True,
            )
            if not mine <= BAR * other:
                wrong.append(f"{case}, {kind} by {tool}: ratio {mine / other:.3f}, should be at most {BAR}")
            if path != f16:
                path.unlink()
    f16.unlink()
    shutil.rmtree(source)
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES), help="the ids are compared with f16")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="only the first N prompts")
    parser.add_argument("--store", type=pathlib.Path, help="write the lines and ids that tests/test_sources.py reads")
    arguments = parser.parse_args()
    import llama_cpp

    stored = {"llama_cpp": llama_cpp.__version__, "lines": lines(), "ids": {}}
    wrong = []
    print("| case | type | quantized by | ours | llama.cpp | ratio | positions | entropy |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for case in arguments.cases:
            wrong += compare(case, arguments.types, pathlib.Path(folder), PROMPTS[: arguments.prompts], stored)
    if arguments.store:
        parts = [f'"llama_cpp": {json.dumps(stored["llama_cpp"])}', f'"lines": {json.dumps(stored["lines"], indent=0)}']
        ids = [f"{json.dumps(name)}: {json.dumps(rows, separators=(',', ':'))}" for name, rows in stored["ids"].items()]
        arguments.store.write_text("{\n" + ",\n".join([*parts, '"ids": {' + ",\n".join(ids) + "}"]) + "\n}\n")
    sys.exit("\n".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
