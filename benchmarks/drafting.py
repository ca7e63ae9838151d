"""How much faster answers are that say again what has been said: tokens drafted from the text so far, and without.

    python benchmarks/drafting.py SmolLM2-135M-Instruct.Q4_1.gguf
    python benchmarks/drafting.py model.gguf --tokens 200 --repeat 5

Each task is answered greedily, with and without drafts in turn, so that noise meets both; the tokens must be the same.
A task says something again (an edit, an extraction, a quotation), or does not (a story, a question): there, what is
guessed wrongly must cost next to nothing. The first line is the bound, where all guesses are right, for random weights
as well.
"""

import argparse
import statistics
import time

from machine import describe

import glmlite
from glmlite import _native
from glmlite.models.layout import everywhere, in_order

TEXT = """The harbour office opens at seven. Ships that arrive before that wait outside the northern breakwater, on
channel twelve, and announce their length, their draught and their cargo. Pilots board between buoys four and five.
From May to September the ferry to the islands leaves every forty minutes from the eastern pier; tickets are sold on
board, bicycles travel free, and dogs need a leash. In winter there are four ferries a day, at eight, at noon, at four
and at seven in the evening. The crane on the southern quay lifts up to sixty tonnes and must be ordered two days
ahead. Fuel is sold by the cooperative, in cash or by card, and fresh water is free of charge for all ships."""

CODE = """def read_table(path, separator=","):
    rows = []
    with open(path) as file:
        header = file.readline().strip().split(separator)
        for line in file:
            values = line.strip().split(separator)
            if len(values) != len(header):
                raise ValueError("a row has the wrong number of columns")
            rows.append(dict(zip(header, values)))
    return rows
"""

TASKS = {
    "quote": f"Repeat this text word for word:\n\n{TEXT}",
    "edit text": f"Correct the spelling in this text, change nothing else, and give the whole text:\n\n{TEXT}",
    "edit code": f"Add a docstring to this function and give the whole function:\n\n{CODE}",
    "extract": f"List every time and place of this text, each with the sentence it is from:\n\n{TEXT}",
    "summary": f"Summarise this text in five sentences:\n\n{TEXT}",
    "story": "Tell a story about a lighthouse keeper who finds a letter.",
    "question": "Why is the sky blue, and why are sunsets red?",
}


def bound(model: glmlite.Model, most: int, tokens: int, repeat: int) -> tuple[float, float]:
    """Tokens per second after a prompt of 32, without drafts, and where the sampler has seen the answer before."""
    native, engine = model.debug
    prompt = list(range(1, 33))

    def write(draft: int, known: list[int]) -> tuple[float, list[int]]:
        sampler, sequence = native.Sampler(draft=draft), engine.new_sequence()
        sampler.accept(known)
        (first,) = engine.run([native.Work(sequence, prompt, in_order(0, 32), sampler=sampler)])
        written = [first[0].token]
        begin = time.perf_counter()
        work = native.Work(
            sequence, written, in_order(32, 1), sampler=sampler, budget=tokens, next_position=everywhere(33)
        )
        (samples,) = engine.run([work], max_ms=1e9)
        seconds = time.perf_counter() - begin
        engine.free(sequence)
        return tokens / seconds, written + [sample.token for sample in samples]

    rates = [[], []]
    for _ in range(repeat):
        rate, answer = write(0, prompt)
        rates[0].append(rate)
        rate, same = write(most, [*prompt, *answer, *prompt])
        rates[1].append(rate)
        if same != answer:
            raise SystemExit("the answers differ")
    return statistics.median(rates[0]), statistics.median(rates[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--most", type=int, default=_native.DRAFT, help="tokens drafted at most")
    parser.add_argument("--bound", action="store_true", help="no tasks: for random weights")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    print(describe())
    options = {"max_tokens": args.tokens, "temperature": args.temperature, "seed": 1, "ignore_eos": True}
    with glmlite.load(args.model, threads=args.threads, context=4096) as model:
        without, with_ = bound(model, args.most, args.tokens, args.repeat)
        print(f"{'bound':10} {without:7.1f} {with_:7.1f} tokens/s  {with_ / without:5.2f} x")
        for name, prompt in TASKS.items() if not args.bound else ():
            rates: dict[int, list[float]] = {0: [], args.most: []}
            answers = set()
            for _ in range(args.repeat):
                for most, found in rates.items():
                    _native.DRAFT = most
                    answer = model.chat([{"role": "user", "content": prompt}], **options)
                    found.append(answer.stats.generation_rate)
                    answers.add(tuple(answer.tokens))
            if len(answers) != 1:
                raise SystemExit(f"{name}: the answers differ")
            without, with_ = (statistics.median(found) for found in rates.values())
            ratio = statistics.median(b / a for a, b in zip(*rates.values(), strict=True))
            print(
                f"{name:10} {without:7.1f} {with_:7.1f} tokens/s  {ratio:5.2f} x   "
                f"{answer.stats.drafted_tokens} drafted, {answer.stats.accepted_tokens} right of {args.tokens}"
            )


if __name__ == "__main__":
    main()
