#!/usr/bin/env python3
"""Writes what an engine should compute for a few short prompts with an exported model: recipes/expected/NAME.json.

Clean numerics: dequantised weights, float32, no rounding of activations or caches. For each prompt: its token ids (BOS
included), the five largest logits after it, the greedy continuation of 32 tokens and the smallest gap between the best
two logits on the way (a computation whose error passes half of it may part from this text). Runs on a CPU.
"""
import argparse
import json
import os

import torch
from tokenizers import Tokenizer

from export import read_exported
from model import Model

PROMPTS = ["def read_lines(path):\n    \"\"\"Return the lines of a file.\"\"\"\n",
           "Installation\n============\n\nTo install the package, run",
           "<｜User｜>Write a Python function `add(a, b)`. Return the sum of a and b.<｜Assistant｜></think>"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("out")
    args = parser.parse_args()
    folder, path = args.model, args.out
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    net = Model(*read_exported(folder))
    net.sparse = True
    out = []
    for prompt in PROMPTS:
        ids = [0] + tokenizer.encode(prompt, add_special_tokens=False).ids
        item, text, gap = {"prompt": prompt, "ids": list(ids)}, list(ids), float("inf")
        for step in range(32):
            best = torch.topk(net.logits(torch.tensor([text]))[0, -1], 5)
            if step == 0:
                item["top_ids"], item["top_logits"] = best.indices.tolist(), [round(v, 4) for v in best.values.tolist()]
            gap = min(gap, float(best.values[0] - best.values[1]))
            text.append(int(best.indices[0]))
        item.update(greedy_ids=text[len(ids):], greedy_text=tokenizer.decode(text[len(ids):], skip_special_tokens=False),
                    smallest_gap=round(gap, 4))
        out.append(item)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(out, f, indent=1, ensure_ascii=False)
        f.write("\n")


if __name__ == "__main__":
    main()
