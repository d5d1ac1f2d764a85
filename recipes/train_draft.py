#!/usr/bin/env python3
"""Trains draft heads for a target on one GPU: several at once, on the same text and the same states of the target.

usage: train_draft.py DATA_DIR TARGET_DIR OUT_DIR --heads dspark,dflash,mtp --seconds SECONDS [--resume DIR] ...

First the target samples text from prompts of the train split and its states are kept (dspark.md 7: on-policy, target
frozen, with the roundings it is served with). Then every step draws a batch of texts and anchors from that store, and
each head takes its step on it. The learning rate follows the share of --seconds (what is left of them after
generation), and weights are rounded as stored from QUANTISE_FROM on. OUT_DIR/HEAD gets the exported draft directory,
OUT_DIR/HEAD.ck the masters as bfloat16 (--resume continues from them); both are also written while training. With
--device cpu and small numbers it runs anywhere, for tests.
"""
import argparse
import json
import math
import os
import sys
import time
import traceback

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import model as model_module
from draft_data import DRAFT_DOMAINS, Cache, Prompts
from draft_model import DraftConfig, draft_module, draft_shapes, routing_biases
from export import read_exported
from export_draft import export_draft
from model import Model, compiled, initial_parameters, shapes
from optimizer import Optimizer
from train import BALANCE_RATE, rate_factor

QUANTISE_FROM = 0.3
DECAY = 4.0                                  # lambda of the slot weights exp(-k / lambda)
CE, TV, CONFIDENCE = 0.1, 0.9, 1.0           # weights of the three losses
SAVE_EVERY = 150                             # seconds

# name -> (fields of DraftConfig, losses). `depth`: how many chained steps an MTP block is trained on.
HEADS = {
    "dspark": ({}, {}),
    "dspark-gated": ({"markov_head_type": "gated"}, {}),
    "dspark-rnn": ({"markov_head_type": "rnn"}, {}),
    "dspark-1": ({"stages": 1}, {}),
    "dspark-3": ({"stages": 3}, {}),
    "dspark-rank256": ({"markov_rank": 256}, {}),
    "dflash": ({"markov_rank": 0, "confidence": False}, {"ce": 1.0, "tv": 0.0}),
    "dflash-tv": ({"markov_rank": 0, "confidence": False}, {}),
    "mtp": ({"kind": "mtp", "stages": 1, "markov_rank": 0, "confidence": False}, {"depth": 1}),
    "mtp-unrolled": ({"kind": "mtp", "stages": 1, "markov_rank": 0, "confidence": False}, {"depth": 5}),
}


def slot_losses(normed, head, extra, w2, confidence_logits, target, labels):
    """Per slot, float32: cross-entropy, L1 distance to the target's distribution, confidence loss, acceptance.

    normed [N,D], extra [N,r] and w2 [V,r] or None, confidence_logits [N] or None, target probabilities [N,V], labels [N].
    """
    logits = F.linear(normed.float(), head.float())
    if extra is not None:
        logits = logits + F.linear(extra.float(), w2.float())
    log_total = torch.logsumexp(logits, -1)
    distance = (torch.exp(logits - log_total[:, None]) - target).abs().sum(-1)
    cross = log_total - logits.gather(-1, labels[:, None])[:, 0]
    accepted = (1 - 0.5 * distance).clamp(0, 1).detach()
    if confidence_logits is None:
        return cross, distance, torch.zeros_like(cross), accepted
    return cross, distance, F.softplus(confidence_logits) - confidence_logits * accepted, accepted


def target_probabilities(y, head):
    return torch.softmax(F.linear(y.float(), head.float()), -1)


_slot_losses, _target_probabilities = compiled(slot_losses), compiled(target_probabilities)


class Head:
    """One head in training."""

    def __init__(self, name, config, draft, losses, net, device, seed, resume):
        self.name, self.c, self.d, self.net, self.failed = name, config, draft, net, None
        self.ce, self.tv, self.depth = losses.get("ce", CE), losses.get("tv", TV), losses.get("depth", draft.block_size)
        names = draft_shapes(config, draft)
        masters = initial_parameters(config, torch.Generator().manual_seed(seed), names)
        self.done, biases = {"step": 0, "seconds": 0.0}, routing_biases(config, draft)
        if resume:
            own = os.path.join(resume, name + ".ck")
            state = torch.load(own if os.path.exists(own) else os.path.join(resume, draft.kind + ".ck"), map_location="cpu")
            masters.update({k: v.float() for k, v in state["parameters"].items() if k in names})
            biases, self.done = state["buffers"], state["done"]
        self.biases = {k: v.to(device) for k, v in biases.items()}
        self.optimizer = Optimizer(names, masters, net.p["embed.weight"].dtype, device)
        self.module = draft_module(config, draft, {**self.optimizer.tensors, **self.biases}, net.p["embed.weight"], net.p["head.weight"])
        self.module.simulate = True
        weights = torch.exp(-torch.arange(self.depth, device=device) / DECAY)
        self.weights = weights / weights.sum()
        self.sums, self.count = torch.zeros(3, device=device), 0
        self.accepted = torch.zeros(self.depth, device=device)
        self.spent = 0.0

    def losses(self, batch, probabilities):
        """-> the four values of slot_losses as [B,A,depth], at this head's anchors."""
        tokens, taps, streams, y, anchors = batch
        B, g, m = tokens.shape[0], self.depth, self.module
        if self.d.kind == "mtp":
            if self.depth == 1:                  # the same number of slots as the blocks have, each an anchor of its own
                anchors = (anchors[..., None] + torch.arange(self.d.block_size, device=tokens.device)).flatten(1)
            z, context = m.context(streams, F.pad(tokens[:, 1:], (0, 1)))
            following = lambda k, y, normed: tokens.gather(1, anchors + k + 1)
            _, normed = m.chain(z, context, anchors, g, following)
            extra = confidence = w2 = None
        else:
            previous = tokens.gather(1, anchors.flatten(1))
            hidden, normed = m.block(m.context(taps), anchors, previous)
            slots = anchors[..., None] + torch.arange(g, device=tokens.device)
            previous = tokens.gather(1, slots.flatten(1)).view(slots.shape)
            e, extra = m.corrections(previous, hidden)
            confidence, w2 = m.confidence(hidden, e), m.w2()
            extra = None if extra is None else extra.flatten(0, 2)
            confidence = None if confidence is None else confidence.flatten()
        slots = (anchors[..., None] + torch.arange(1, g + 1, device=tokens.device)).flatten(1)
        out = _slot_losses(normed.flatten(0, 2), self.net.p["head.weight"], extra, w2, confidence, probabilities, tokens.gather(1, slots).flatten())
        return [t.view(B, -1, g) for t in out]

    def step(self, batch, probabilities, progress, quantise_from):
        if progress >= quantise_from and not self.optimizer.quantise:
            self.optimizer.quantise = True
            self.optimizer.refresh()
        self.module.loads = {}
        cross, distance, confidence, accepted = self.losses(batch, probabilities)
        mean = lambda t: (t * self.weights).sum(-1).mean()
        parts = mean(cross), mean(distance), mean(confidence)
        loss = self.ce * parts[0] + self.tv * parts[1] + CONFIDENCE * parts[2]
        loss.backward()
        factor = rate_factor(self.done["step"], progress)
        self.optimizer.step(factor)
        for stage, load in self.module.loads.items():
            self.biases[f"mtp.{stage}.ffn.gate.bias"] += BALANCE_RATE * max(factor, 0.1) * torch.sign(load.mean() - load)
        self.done["step"] += 1
        self.sums += torch.stack([p.detach() for p in parts])
        self.accepted += accepted.mean((0, 1))
        self.count += 1

    def line(self):
        """Mean losses and acceptance 1 - TV by slot since the last call; raises if they are no numbers."""
        ce, l1, confidence = (self.sums / self.count).tolist()
        by_slot = (self.accepted / self.count).tolist()
        self.sums.zero_()
        self.accepted.zero_()
        self.count = 0
        if not math.isfinite(ce + l1 + confidence):
            raise FloatingPointError(f"losses {ce} {l1} {confidence}")
        return f"{self.name} ce {ce:.3f} l1 {l1:.3f} conf {confidence:.3f} accept {' '.join(f'{a:.3f}' for a in by_slot)}"

    def save(self, out, target):
        parameters = self.optimizer.masters()
        size = export_draft(os.path.join(out, self.name), target, self.c, self.d, parameters, self.biases)
        torch.save({"draft": vars(self.d), "done": self.done, "buffers": {k: v.cpu() for k, v in self.biases.items()},
                    "parameters": {k: v.bfloat16() for k, v in parameters.items()}}, os.path.join(out, self.name + ".ck"))
        return size


def guarded(head, action):
    """Runs a part of one head's work; a failure ends that head, not the others."""
    if head.failed is None:
        try:
            return action()
        except Exception:                                        # reported, and the head is left out from here on
            head.failed = traceback.format_exc()
            print(f"HEAD {head.name} FAILED\n{head.failed}", flush=True)
    return None


def load_target(folder, device, dtype):
    """The exported target as it is served: stored weights, activations and caches rounded, the indexer's picks."""
    config, tensors = read_exported(folder)
    rounded = {name for name, (_, storage, _) in shapes(config).items() if storage != "f32"}
    net = Model(config, {k: v.to(device, dtype if k in rounded else v.dtype) for k, v in tensors.items()})
    net.sparse = net.simulate = True
    return net


def set_up(device):
    if device == "cuda":
        model_module.SETTINGS["compile"] = True
        torch._dynamo.config.cache_size_limit = 64
        torch.set_float32_matmul_precision("high")
        return torch.bfloat16
    return torch.float32


def tap_layers(text, layers):
    """The layers of --taps, or those at a third, two thirds and the end of a target of so many layers."""
    taps = tuple(int(t) for t in text.split(",")) if text else tuple(sorted({max(layers * k // 3 - 1, 0) for k in (1, 2, 3)}))
    if list(taps) != sorted(set(taps)) or not 0 <= taps[0] <= taps[-1] < layers:
        sys.exit(f"--taps: want rising layers below {layers}, got {text}")
    return taps


def token_of(tokenizer, text, what):
    token = tokenizer.token_to_id(text)
    if token is None:
        sys.exit(f"{what}: the target's tokenizer has no token {text}")
    return token


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("target")
    parser.add_argument("out")
    parser.add_argument("--heads", required=True, help="comma-separated: " + ", ".join(HEADS))
    parser.add_argument("--seconds", type=float, required=True, help="of this command, all included")
    parser.add_argument("--steps", type=int, default=10 ** 9, help="at most; the rates then follow the steps")
    parser.add_argument("--tokens", type=float, default=10e6, help="sampled from the target")
    parser.add_argument("--cache-bytes", type=float, default=46e9, help="at most, for the target's states")
    parser.add_argument("--generate", type=int, default=3328, help="sequences generated at once")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32, help="sequences per step")
    parser.add_argument("--anchors", type=int, default=128, help="per sequence")
    parser.add_argument("--taps", help="target layers that the dspark kinds read, ascending (default: at a third, at two thirds and the last)")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--block", type=int, default=5)
    parser.add_argument("--noise", default="<｜place▁holder▁no▁7｜>", help="token that stands for what isn't known yet")
    parser.add_argument("--resume", help="directory with HEAD.ck files; a head without one starts from the "
                        "parameters that it shares with dspark.ck or mtp.ck")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    for name in args.heads.split(","):
        if name not in HEADS:
            parser.error(f"--heads: there is no {name}; there are " + ", ".join(HEADS))
    began = time.time()
    dtype = set_up(args.device)
    torch.manual_seed(args.seed)
    tokenizer = Tokenizer.from_file(os.path.join(args.target, "tokenizer.json"))
    net = load_target(args.target, args.device, dtype)
    c = net.c
    taps = tap_layers(args.taps, c.num_hidden_layers)
    noise, answer_mark = token_of(tokenizer, args.noise, "--noise"), token_of(tokenizer, "</think>", "the end of reasoning")

    heads = []
    for number, name in enumerate(args.heads.split(",")):
        fields, losses = HEADS[name]
        shared = {"stages": args.stages, "markov_rank": args.rank, "block_size": args.block, "target_layer_ids": taps,
                  "noise_token_id": noise}
        heads.append(Head(name, c, DraftConfig(**{**shared, **fields}), losses, net, args.device, args.seed + number, args.resume))
    streams = any(h.d.kind == "mtp" for h in heads)
    prompts = Prompts(args.data, "train", answer_mark, np.random.default_rng(args.seed))
    print(f"{time.time() - began:.0f} s: {len(heads)} heads, " + ", ".join(
        f"{h.name} {sum(math.prod(s) for s, _, _ in h.optimizer.names.values()) / 1e6:.2f} M" for h in heads), flush=True)
    cache = Cache(net, prompts, args.length, taps, streams, args.generate, args.tokens, args.cache_bytes)
    shares = np.bincount(cache.domains.numpy(), minlength=len(DRAFT_DOMAINS)) / len(cache.domains)
    print(f"{time.time() - began:.0f} s: {cache.tokens.numel() / 1e6:.2f} M tokens: " +
          ", ".join(f"{d} {s:.2f}" for d, s in zip(DRAFT_DOMAINS, shares)), flush=True)

    os.makedirs(args.out, exist_ok=True)
    generator = torch.Generator(device=args.device).manual_seed(args.seed)
    start, saved, shown_at, step, shown = time.time(), time.time(), time.time(), 0, 0
    # The masters' export at the end takes some seconds, which belong to the command's time.
    available = args.seconds - (start - began) - 6 * len(heads) * (args.device == "cuda")
    while step < args.steps and any(h.failed is None for h in heads):
        spent = time.time() - start
        if spent > available:
            break
        progress = min(1.0, max(spent / available, step / args.steps))
        batch = cache.batch(args.batch, args.anchors, args.block + 1, generator)
        slots = (batch[4][..., None] + torch.arange(args.block, device=args.device)).flatten(1)
        with torch.no_grad():
            y = batch[3].gather(1, slots[..., None].expand(-1, -1, c.hidden_size))
            probabilities = _target_probabilities(y.flatten(0, 1), net.p["head.weight"])
        for head in heads:
            guarded(head, lambda: head.step(batch, probabilities, progress, 0.0 if args.resume else QUANTISE_FROM))
        step += 1
        shown += 1
        if step in (1, 5, 20) or shown == 100:
            lines = [guarded(h, h.line) for h in heads]
            now = time.time()
            print(f"step {step} {now - began:.0f}s {(now - shown_at) / shown * 1e3:.0f} ms/step progress {progress:.3f}\n  " +
                  "\n  ".join(filter(None, lines)), flush=True)
            shown, shown_at = 0, time.time()
        if time.time() - saved > SAVE_EVERY:
            for head in heads:
                guarded(head, lambda: head.save(args.out, args.target))
            saved = shown_at = time.time()
    for head in heads:
        head.done["seconds"] += time.time() - start
        size = guarded(head, lambda: head.save(args.out, args.target))
        if size:
            print(f"{head.name}: {head.done['step']} steps, {size / 1e6:.2f} MB", flush=True)
    memory = f", {torch.cuda.max_memory_allocated() / 2 ** 30:.0f} GiB" if args.device == "cuda" else ""
    print(f"{time.time() - began:.0f} s{memory}", flush=True)


if __name__ == "__main__":
    main()
