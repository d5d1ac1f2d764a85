#!/usr/bin/env python3
"""Writes what an engine should compute with an exported draft head: one drafting round after each of a few prompts.

Clean numerics: dequantised weights, float32, no rounding of activations or caches. For each prompt: its token ids, the
anchor's position and id (the target's greedy token after the prompt, which is not among the ids), and along the greedy
path of the draft, by slot: the drafted ids, the norm and the first four values of the hidden state before the head's
norm, the three largest base and corrected logits with their ids, the confidence logit, and the smallest gap between the
best two corrected logits (a computation whose error passes half of it may part from this path). Runs on a CPU.
"""
import argparse
import json
import os

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from draft_model import draft_module, slot_logits
from expected import PROMPTS
from export import read_exported
from export_draft import read_draft
from model import Model

MTP_SLOTS = 5


def rounded(values):
    return [round(v, 4) for v in values.tolist()]


def best(logits):
    values, ids = torch.topk(logits, 3)
    return {"ids": ids.tolist(), "logits": rounded(values)}


@torch.no_grad()
def draft_round(net, module, ids):
    s, T = len(ids), len(ids)
    padded = F.pad(torch.tensor([ids]), (0, -T % 128))
    h, taps, _ = net.streams(padded, module.d.target_layer_ids if module.d.kind == "dspark" else ())
    anchor = int(F.linear(net.final(h[:, s - 1:s]), net.p["head.weight"])[0, 0].argmax())
    at, drafts, confidence, base, corrected = torch.tensor([[s]]), [], [], [], []
    if module.d.kind == "mtp":
        z, context = module.context(h[:, :T], torch.tensor([ids[1:] + [anchor]]))

        def following(k, y, normed):
            logits = slot_logits(normed[0, 0], module.head, None, None)
            base.append(logits)
            corrected.append(logits)
            drafts.append(int(logits.argmax()))
            return torch.tensor([[drafts[-1]]])
        y, normed = module.chain(z, context, at, MTP_SLOTS, following)
        following(MTP_SLOTS - 1, y, normed[:, :, -1])
    else:
        y, normed = module.block(module.context([t[:, :T] for t in taps]), at, torch.tensor([[anchor]]))
        token, state = torch.tensor([anchor]), None
        for k in range(module.d.block_size):
            e = extra = None
            if module.d.markov_rank:
                e, extra, state = module.sequential(token, y[:, 0, k], state)
            if module.d.confidence:
                confidence.append(round(float(module.confidence(y[:, 0, k], e)), 4))
            base.append(slot_logits(normed[0, 0, k], module.head, None, None))
            corrected.append(slot_logits(normed[:, 0, k], module.head, extra, module.w2())[0])
            token = corrected[-1].argmax()[None]
            drafts.append(int(token))
    top = [torch.topk(l, 2).values for l in corrected]
    return {"ids": list(ids), "anchor_position": s, "anchor": anchor, "drafts": drafts,
            "smallest_gap": round(min(float(t[0] - t[1]) for t in top), 4),
            "slots": [{"hidden_norm": round(float(y[0, 0, k].norm()), 4), "hidden_head": rounded(y[0, 0, k, :4]),
                       "base": best(base[k]), "corrected": best(corrected[k]),
                       **({"confidence_logit": confidence[k]} if confidence else {})} for k in range(len(drafts))]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("draft")
    parser.add_argument("out")
    args = parser.parse_args()
    folder, draft_folder, path = args.model, args.draft, args.out
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    net = Model(*read_exported(folder))
    net.sparse = True
    config, draft, tensors = read_draft(draft_folder)
    module = draft_module(config, draft, tensors, net.p["embed.weight"], net.p["head.weight"])
    prompts = [[0] + tokenizer.encode(p, add_special_tokens=False).ids for p in PROMPTS]
    # Longer than the window, so that a context of the wrong rows shows.
    prompts.append([0] + tokenizer.encode(PROMPTS[0] * 12, add_special_tokens=False).ids)
    out = [draft_round(net, module, ids) for ids in prompts]
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(item) for item in out) + "\n]\n")


if __name__ == "__main__":
    main()
