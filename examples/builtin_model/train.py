"""Trains the model; can be stopped at any time and goes on from its last checkpoint.

What is drawn depends on the seed and on nothing else. Matrices of the layers learn by Muon, the rest by AdamW; the rate
rises, stays, and falls to zero over the last quarter.
"""

import argparse
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from data import Templates
from model import GLM
from objective import Encoder, draw

SIZES = {"dim": 256, "heads": 8, "layers": 4, "alpha": 2.0}
TOKENS = 4096  # of a batch, padding included
GROUP = 1000  # samples drawn together, so that those of a batch can be of one length
RATE, WARMUP, FALL = 2e-3, 150, 1 / 4


def batches(samples):
    """Samples sorted by length, as many to a batch as fit in it."""
    batch = []
    for sample in sorted(samples, key=lambda s: len(s[0])):
        if (len(batch) + 1) * len(sample[0]) > TOKENS:
            yield collate(batch)
            batch = []
        batch.append(sample)
    if batch:
        yield collate(batch)


def collate(batch):
    """ids (B, L), positions (B, L, 2), context (B,), targets (B, L) with -1 where none counts."""
    width = max(len(ids) for ids, *_ in batch)
    ids, targets = torch.zeros(len(batch), width, dtype=torch.long), torch.full((len(batch), width), -1)
    positions = torch.zeros(len(batch), width, 2, dtype=torch.long)
    for i, (tokens, places, _, wanted) in enumerate(batch):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        positions[i, : len(tokens)] = torch.tensor(places)
        targets[i, : len(tokens)] = torch.tensor(wanted)
    return ids, positions, torch.tensor([context for _, _, context, _ in batch]), targets


def loss_of(model, batch):
    """(sum of the tokens' cross entropies, tokens)"""
    ids, positions, context, targets = batch
    wanted = targets >= 0
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids, positions, context, wanted)
    return F.cross_entropy(logits.float(), targets[wanted], reduction="sum"), int(wanted.sum())


def rate(step, steps):
    return RATE * max(0.0, min(1.0, (step + 1) / WARMUP, (steps - step) / (steps * FALL)))


def train(folder, steps, seed, threads):
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    templates, encode = Templates(), Encoder(folder / "ice_text.model")
    test = list(batches([draw(templates, encode, random.Random(f"{seed} test {i}"), test=True) for i in range(600)]))
    model = GLM(encode.pieces.vocab_size(), **SIZES)
    inner = [p for name, p in model.named_parameters() if ".layers." in name and p.dim() == 2]
    outer = [p for p in model.parameters() if not any(p is q for q in inner)]
    optimizers = [
        torch.optim.Muon(inner, lr=RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]
    group, step, spent, saved = 0, 0, 0.0, folder / "state.pt"
    if saved.exists():
        state = torch.load(saved)
        group, step, spent = state["group"], state["step"], state["seconds"]
        model.load_state_dict(state["model"])
        for optimizer, values in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(values)
    begin, total, count = time.time(), 0.0, 0
    while step < steps:
        r = random.Random(f"{seed} train {group}")
        drawn = list(batches([draw(templates, encode, r) for _ in range(GROUP)]))
        for batch in r.sample(drawn, len(drawn)):
            for optimizer in optimizers:
                for settings in optimizer.param_groups:
                    settings["lr"] = rate(step, steps)
            loss, n = loss_of(model, batch)
            (loss / n).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            total, count, step = total + loss.item(), count + n, step + 1
        group += 1
        if group % 5 == 0 or step >= steps:
            with torch.no_grad():
                sums = [loss_of(model, batch) for batch in test]
            held_out = sum(float(x) for x, _ in sums) / sum(n for _, n in sums)
            spent, begin = spent + time.time() - begin, time.time()
            line = f"step {step} loss {total / count:.4f} held-out {held_out:.4f} seconds {spent:.0f}"
            with open(folder / "log.txt", "a", encoding="utf-8") as log:
                print(line, file=log)
            total, count = 0.0, 0
            state = {"group": group, "step": step, "seconds": spent, "model": model.state_dict()}
            torch.save(state | {"optimizers": [o.state_dict() for o in optimizers]}, folder / "state.part")
            (folder / "state.part").replace(saved)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    train(arguments.folder, arguments.steps, arguments.seed, arguments.threads)
