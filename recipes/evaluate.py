#!/usr/bin/env python3
"""Measures a checkpoint: held-out loss by domain against a 5-gram model, needle recall by length and depth, samples.

usage: evaluate.py DATA_DIR CHECKPOINT.pt OUT.json [--quick]

Three states of the same weights are measured: "master" (unrounded float32 masters, bfloat16 arithmetic), "exported" (the
values that the stored file holds) and "served" (exported, with activations and cache entries rounded as in service).
Recall is exact: a needle counts when every token of its value is the most likely one, which is the same as greedy
generation giving the value. Everything here is held-out text.
"""
import argparse
import json
import math
import os
import time

import numpy as np
import torch
from tokenizers import Tokenizer

import quant
from batches import DOMAINS, open_text
from model import Config, Model, shapes
from ngram import KneserNey
from tasks import TOKEN, Tasks

CONTEXT = 4096
DEPTHS = [n / 10 for n in range(11)]
PROMPTS = [("code", "def read_config(path):\n    \"\"\"Read a configuration file and return"),
           ("code", "#include <vector>\n#include <string>\n\n// Returns the number of"),
           ("prose", "Installation\n============\n\nTo install the package"),
           ("prose", "The garbage collector"),
           ("structured", "{\n  \"name\": \"example\",\n  \"version\": \"1.0.0\",\n  \"dependencies\": {"),
           ("structured", "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<"),
           ("chat", "<｜User｜>Write a Python function `add(a, b)`. Return the sum of a and b.<｜Assistant｜></think>"),
           ("chat", "<｜User｜>Explain: Error handling<｜Assistant｜></think>")]


def load(path, storage, device, dtype):
    """A Model over the checkpoint's masters ("master") or over what would be stored of them."""
    state = torch.load(path, map_location=device, weights_only=False)
    config, kept = Config(**state["config"]), {}
    for name, (_, form, _) in shapes(config).items():
        value = state["parameters"][name].float()
        value = value if storage == "master" else quant.stored_values(value, form)
        kept[name] = value if form == "f32" else value.to(dtype)
    kept.update({k: v.to(device) for k, v in state["buffers"].items()})
    net = Model(config, kept)
    net.sparse, net.simulate = True, storage == "served"
    return net, state["done"]


@torch.no_grad()
def stream_losses(net, tokens, device, batch, limit):
    """Losses of a token stream cut into windows; BOS takes the place of each window's last token, at its front."""
    windows = min(len(tokens) // CONTEXT, limit)
    ids = torch.from_numpy(tokens[:windows * CONTEXT].astype(np.int64)).view(windows, CONTEXT).to(device)
    ids = torch.cat((torch.zeros_like(ids[:, :1]), ids), 1)[:, :CONTEXT]
    losses = []
    for part in ids.split(batch):
        nll, _ = net.losses(part, torch.cat((part[:, 1:], part[:, :1]), 1))
        losses.append(nll[:, :-1].float())
    return torch.cat(losses)


@torch.no_grad()
def recall(net, tasks, length, trials, style, distractors, device, batch):
    """Share of exact answers by depth."""
    out = {}
    for depth in DEPTHS:
        right = []
        probes = [tasks.probe(length, depth, style, distractors) for _ in range(trials)]
        for at in range(0, trials, batch):
            chosen = probes[at:at + batch]
            ids = torch.from_numpy(np.stack([p for p, _ in chosen])).to(device)
            y, _ = net.states(ids)
            for row, (_, n) in enumerate(chosen):
                guess = (y[row, -n - 1:-1] @ net.p["head.weight"].mT).argmax(-1)
                right.append(bool((guess == ids[row, -n:]).all()))
        out[f"{depth:.1f}"] = sum(right) / len(right)
    out["mean"] = sum(out.values()) / len(out)
    return out


@torch.no_grad()
def generate(net, ids, count, temperature, device, seed=0):
    """Continues ids by `count` tokens (recomputing the whole text for each: short texts only)."""
    ids, generator = list(ids), torch.Generator().manual_seed(seed)
    for _ in range(count):
        row = net.logits(torch.tensor([ids], device=device))[0, -1].float().cpu()
        if temperature:
            kept = torch.softmax(row / temperature, -1)
            order = torch.argsort(kept, descending=True)
            kept[order[torch.cumsum(kept[order], 0) > 0.95][1:]] = 0
            ids.append(int(torch.multinomial(kept, 1, generator=generator)))
        else:
            ids.append(int(row.argmax()))
        if ids[-1] == 1:
            break
    return ids


def save(result, path, began):
    result["seconds"] = time.time() - began
    with open(path, "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1, ensure_ascii=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("checkpoint")
    parser.add_argument("out")
    parser.add_argument("--quick", action="store_true", help="exported state only, few trials, no 5-gram model, no samples")
    parser.add_argument("--lengths", default="1024,4096,16384")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    began, device = time.time(), args.device
    torch.set_float32_matmul_precision("high")
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    tokenizer = Tokenizer.from_file(os.path.join(args.data, "tokenizer.json"))
    held = {d: np.fromfile(os.path.join(args.data, f"heldout_{d}.bin"), TOKEN) for d in DOMAINS}
    with open(os.path.join(args.data, "summary.json"), encoding="utf-8") as f:
        summary = json.load(f)
    result = {"loss": {}, "recall": {}, "samples": []}
    limit = 24 if args.quick else 250

    for state in (["exported"] if args.quick else ["master", "exported", "served"]):
        net, done = load(args.checkpoint, state, device, dtype)
        result["trained"] = done
        result["loss"][state] = {}
        for domain in DOMAINS:
            nats = stream_losses(net, held[domain], device, 16, limit)
            per_byte = summary[f"heldout_{domain}"]["bytes"] / summary[f"heldout_{domain}"]["tokens"]
            result["loss"][state][domain] = {"nats_per_token": float(nats.mean()), "bits_per_byte": float(nats.mean()) / math.log(2) / per_byte,
                                             "tokens": nats.numel()}
            if state == "exported":
                places = [0, 64, 256, 1024, 2048, CONTEXT - 1]
                result.setdefault("loss_by_position", {})[domain] = {f"{a}-{b}": float(nats[:, a:b].mean()) for a, b in zip(places, places[1:])}
        for length in map(int, args.lengths.split(",")):
            trials = max(4, args.trials // 2) if length > 8192 else args.trials
            for style, distractors in (("text", 0), ("chat", 0), ("text", 8)) if state == "exported" else (("text", 0), ("chat", 0)):
                tasks = Tasks(tokenizer, open_text(args.data, "heldout"), np.random.default_rng(7))   # the same for each state
                name = f"{style}, {distractors} distractors" if distractors else style
                shares = recall(net, tasks, length, trials, style, distractors, device, max(1, 131072 // length // 2))
                result["recall"].setdefault(state, {}).setdefault(str(length), {})[name] = {**shares, "trials_per_depth": trials}
        line = {k: round(v["nats_per_token"], 4) for k, v in result["loss"][state].items()}
        means = {n: {k: round(v["mean"], 3) for k, v in s.items()} for n, s in result["recall"][state].items()}
        print(f"{time.time() - began:.0f} s {state}: {line} recall {means}", flush=True)

    if not args.quick:
        train = np.concatenate([np.fromfile(os.path.join(args.data, f"train_{d}.bin"), TOKEN) for d in DOMAINS])
        baseline = KneserNey(torch.from_numpy(train.astype(np.int64)).to(device), net.c.vocab_size)
        result["loss"]["5-gram"] = {}
        for domain in DOMAINS:
            windows = min(len(held[domain]) // CONTEXT, limit)
            nats = baseline.losses(torch.from_numpy(held[domain][:windows * CONTEXT].astype(np.int64)).to(device))
            per_byte = summary[f"heldout_{domain}"]["bytes"] / summary[f"heldout_{domain}"]["tokens"]
            result["loss"]["5-gram"][domain] = {"nats_per_token": float(nats.mean()), "bits_per_byte": float(nats.mean()) / math.log(2) / per_byte,
                                                "tokens": nats.numel()}
        print(f"{time.time() - began:.0f} s 5-gram: {({k: round(v['nats_per_token'], 4) for k, v in result['loss']['5-gram'].items()})}", flush=True)
        del baseline
        save(result, args.out, began)
        net, _ = load(args.checkpoint, "exported", device, dtype)
        for domain, prompt in PROMPTS:
            ids = [0] + tokenizer.encode(prompt, add_special_tokens=False).ids
            text = tokenizer.decode(generate(net, ids, 40, 0.0, device)[len(ids):], skip_special_tokens=False)
            result["samples"].append({"domain": domain, "prompt": prompt, "temperature": 0.0, "text": text})
            save(result, args.out, began)
    save(result, args.out, began)
    print(f"{time.time() - began:.0f} s: {args.out}")


if __name__ == "__main__":
    main()
