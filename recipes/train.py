#!/usr/bin/env python3
"""Trains foresight-mini on one GPU, in commands of a few minutes that continue from each other's checkpoint.

usage: train.py DATA_DIR CHECKPOINT.pt --plan SECONDS --seconds SECONDS [--length N] [--simulate] ...

--plan is the training time of all commands together; --seconds that of this one (compilation counts). The learning rate
follows the share of the plan that has passed, and so do the phases: weights are quantised from QUANTISE_FROM on, the
attention of CSA layers is limited to the indexer's picks from SPARSE_FROM on. --simulate rounds activations and cache
entries too, as the model does in service; use it with the long sequences at the end. With --device cpu and a small
--config it runs anywhere, for tests.
"""
import argparse
import json
import math
import os
import time

import numpy as np
import torch

import model as model_module
from batches import KINDS, Batches
from model import Config, Model, initial_parameters, routing_buffers, shapes
from optimizer import Optimizer

QUANTISE_FROM, SPARSE_FROM = 0.35, 0.45
WARMUP_STEPS, FINAL_RATE = 60, 0.02
BALANCE_RATE = 2e-3
INDEX_ROWS = 8


def rate_factor(step, progress):
    """Warm-up, a plateau that falls slowly, then a straight descent over the last 60 % of the plan."""
    down = 1.0 if progress < 0.4 else 1.0 - (1.0 - FINAL_RATE) * (progress - 0.4) / 0.6
    return min(1.0, (step + 1) / WARMUP_STEPS) * max(down, FINAL_RATE)


class Log:
    """Mean losses by kind of sequence; for recall tasks only of the answers."""

    def __init__(self, device):
        self.sum, self.count = torch.zeros(len(KINDS), device=device), torch.zeros(len(KINDS), device=device)

    def add(self, nll, weights, kinds):
        shown = torch.where(kinds[:, None] < 4, weights > 0, weights >= torch.where(kinds == 4, 1.0, 4.0)[:, None])
        shown = torch.where((kinds == 6)[:, None], weights > 0, shown)
        self.sum.index_add_(0, kinds, (nll.detach() * shown).sum(1))
        self.count.index_add_(0, kinds, shown.float().sum(1))

    def line(self):
        means = (self.sum / self.count.clamp(min=1)).tolist()
        self.sum.zero_()
        self.count.zero_()
        return " ".join(f"{k.replace(' ', '-')} {m:.3f}" for k, m in zip(KINDS, means))


def save(path, config, optimizer, buffers, done):
    torch.save({"config": vars(config), "parameters": optimizer.masters(), "buffers": {k: v.cpu() for k, v in buffers.items()},
                "optimizer": optimizer.state(), "done": done}, path + ".new")
    os.replace(path + ".new", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("checkpoint")
    parser.add_argument("--plan", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--batch", type=int, default=64, help="sequences per step")
    parser.add_argument("--micro", type=int, default=64, help="sequences per forward pass")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--tasks", type=float, default=0.27, help="share of recall tasks")
    parser.add_argument("--chat", type=float, default=0.06, help="share of conversations")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10 ** 9)
    parser.add_argument("--config", help="JSON object of fields that differ from the default configuration")
    args = parser.parse_args()
    began = time.time()

    state = torch.load(args.checkpoint, map_location="cpu", weights_only=False) if os.path.exists(args.checkpoint) else None
    done = state["done"] if state else {"step": 0, "seconds": 0.0, "tokens": 0}
    batches = Batches(args.data, args.seed + done["step"], args.batch, args.length, args.tasks, args.chat, args.workers)
    cuda = args.device == "cuda"
    if cuda:
        model_module.SETTINGS["compile"] = True
        torch._dynamo.config.cache_size_limit = 64
        torch.set_float32_matmul_precision("high")
    generator = torch.Generator().manual_seed(args.seed)
    if state:
        config, parameters, buffers = Config(**state["config"]), state["parameters"], state["buffers"]
    else:
        config = Config(**json.loads(args.config or "{}"))
        parameters = initial_parameters(config, generator)
        counts = torch.from_numpy(np.fromfile(os.path.join(args.data, "counts.i64"), np.int64)).float()
        buffers = routing_buffers(config, counts, generator)
    optimizer = Optimizer(shapes(config), parameters, torch.bfloat16 if cuda else torch.float32, args.device)
    if state and state.get("optimizer"):
        optimizer.load_state(state["optimizer"])
    buffers = {k: v.to(args.device) for k, v in buffers.items()}
    net = Model(config, {**optimizer.tensors, **buffers})
    net.index_rows, net.simulate = INDEX_ROWS, args.simulate
    log, shown, shown_at = Log(args.device), 0, time.time()
    print(f"{sum(p.numel() for p in parameters.values()) / 1e6:.2f} M parameters; {time.time() - began:.0f} s to start", flush=True)

    first_step = done["step"]
    index_total = 0.0
    while done["step"] - first_step < args.steps:
        spent = time.time() - began
        if spent > args.seconds:
            break
        progress = min(1.0, (done["seconds"] + spent) / args.plan)
        net.sparse = progress >= SPARSE_FROM
        if progress >= QUANTISE_FROM and not optimizer.quantise:
            optimizer.quantise = True
            optimizer.refresh()
        ids, weights, kinds = (torch.from_numpy(a) for a in batches.next())
        ids, weights, kinds = (t.to(args.device, non_blocking=True) for t in (ids, weights, kinds))
        total = weights.sum()
        loads = {}
        for at in range(0, args.batch, args.micro):
            part = slice(at, at + args.micro)
            nll, index_loss = net.losses(ids[part, :-1].contiguous(), ids[part, 1:].contiguous())
            loss = (nll * weights[part]).sum() / total + index_loss * (args.micro / args.batch)
            loss.backward()
            log.add(nll, weights[part], kinds[part])
            for layer, load in net.loads.items():
                loads[layer] = loads.get(layer, 0) + load
        factor = rate_factor(done["step"], progress)
        optimizer.step(factor)
        for layer, load in loads.items():
            net.p[f"layers.{layer}.ffn.gate.bias"] += BALANCE_RATE * max(factor, 0.1) * torch.sign(load.mean() - load)
        index_total = index_total + torch.as_tensor(index_loss).detach()
        done["step"] += 1
        done["tokens"] += args.batch * args.length
        shown += 1
        if shown == 25 or done["step"] - first_step in (1, 5):
            load = torch.stack(list(loads.values()))
            rate = shown * args.batch * args.length / (time.time() - shown_at)
            print(f"step {done['step']} {done['seconds'] + time.time() - began:.0f}s {rate / 1e3:.0f}k/s rate {factor:.3f} "
                  f"{log.line()} index {float(index_total) / shown:.3f} load {float((load.amax(1) / load.mean(1)).max()):.2f}", flush=True)
            shown, shown_at, index_total = 0, time.time(), 0.0
    done["seconds"] += time.time() - began
    save(args.checkpoint, config, optimizer, buffers, done)
    memory = f", {torch.cuda.max_memory_allocated() / 2 ** 30:.0f} GiB" if cuda else ""
    print(f"{done['step']} steps, {done['tokens'] / 1e6:.0f} M tokens, {done['seconds']:.0f} s{memory}")


if __name__ == "__main__":
    main()
