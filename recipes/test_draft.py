#!/usr/bin/env python3
"""Checks of the draft recipes on a CPU, in a minute: python3 recipes/test_draft.py [GOLDEN_DIR ...]

The generator against the whole forward pass; draft blocks against golden checkpoints (tests/golden/nano-* by default,
others as arguments); what a block must not see; the path of training against the path of drafting; export and back.
"""
import os
import sys
import tempfile

import torch
import torch.nn.functional as F

import quant
from draft_model import DraftConfig, draft_module, draft_shapes, routing_biases, slot_logits
from export import read_exported, read_header, stored_value
from export_draft import export_draft, read_draft
from generate import Generator
from model import Model, initial_parameters

HERE = os.path.dirname(os.path.abspath(__file__))
TARGET = os.path.join(HERE, "..", "models", "foresight-mini")


def close(what, mine, wanted, bound):
    error = float((mine - wanted).abs().max())
    print(f"  {what}: largest error {error:.2e}")
    assert error <= bound, (what, error)


def target(folder=TARGET, simulate=False):
    net = Model(*read_exported(folder))
    net.sparse, net.simulate = True, simulate
    return net


def generator_equals_forward():
    for simulate in (False, True):
        net = target(simulate=simulate)
        taps, length, N = (1, 3, 5), 384, 2
        torch.manual_seed(0)
        generator = Generator(net, N, length, taps)
        kept = {"taps": [], "streams": [], "y": []}
        prompts = torch.randint(3, 8000, (N, 20))
        tokens = generator.run(prompts, torch.tensor([20, 7]), lambda t, s: [kept[k].append(v) for k, v in s.items()])
        assert (tokens[0, :20] == prompts[0]).all() and (tokens[1, :7] == prompts[1, :7]).all()
        with torch.no_grad():
            h, tapped, _ = net.streams(tokens, taps)
            logits = F.linear(net.final(h), net.p["head.weight"])
        mine = F.linear(torch.stack(kept["y"], 1), net.p["head.weight"])
        if simulate:        # a rounding that falls the other way moves an activation by a step: measure what that costs
            embed = net.p["embed.weight"]
            net.p["embed.weight"] = embed * (1 + 1e-6 * torch.randn_like(embed))
            disturbed = net.logits(tokens)
            distance = lambda other: float(0.5 * (torch.softmax(other, -1) - torch.softmax(logits, -1)).abs().sum(-1).mean())
            print(f"  served: mean total variation {distance(mine):.4f}, of a disturbance of 1e-6 {distance(disturbed):.4f}")
            assert distance(mine) < 1.5 * distance(disturbed)
        else:
            close("clean logits", mine, logits, 2e-3)
            close("clean taps", torch.stack(kept["taps"], 1), torch.stack(tapped, 2), 2e-3)
            close("clean streams", torch.stack(kept["streams"], 1), h, 5e-3)


@torch.no_grad()
def golden(folder):
    header, data = read_header(os.path.join(folder, "golden.safetensors"))
    gold = {name: stored_value(name, header, data) for name in header}
    net = target(folder)
    config, draft, tensors = read_draft(folder)
    module = draft_module(config, draft, tensors, net.p["embed.weight"], net.p["head.weight"])
    ids = gold["input_ids"][None]
    T = ids.shape[1]
    h, taps, _ = net.streams(F.pad(ids, (0, -T % 128)), draft.target_layer_ids if draft.kind == "dspark" else ())
    close("target logits", F.linear(net.final(h)[:, :T], net.p["head.weight"])[0], gold["logits"], 2e-4)
    if draft.kind == "mtp":
        z, context = module.context(h[:, :T - 1], ids[:, 1:])
        anchors = torch.arange(1, T)[None]
        _, normed = module.chain(z, context, anchors, 1, None)
        close("MTP-1 logits", slot_logits(normed[0, :, 0], module.head, None, None), gold["mtp_logits"], 2e-4)
        return
    at = gold["dspark.anchor_positions"][None]
    y, normed = module.block(module.context([t[:, :T] for t in taps]), at, ids.gather(1, at))
    close("hidden", y[0], gold["dspark.hidden"], 2e-4)
    close("base logits", slot_logits(normed[0], module.head, None, None), gold["dspark.base_logits"], 2e-4)
    previous = torch.cat((ids.gather(1, at)[..., None], gold["dspark.greedy_tokens"][None, :, :-1]), -1)
    e, extra = module.corrections(previous, y)
    logits = slot_logits(normed, module.head, extra, module.w2())[0]
    close("corrected logits", logits, gold["dspark.corrected_logits"], 2e-4)
    assert (logits.argmax(-1) == gold["dspark.greedy_tokens"]).all()
    close("confidence logits", module.confidence(y, e)[0], gold["dspark.confidence_logits"], 2e-4)


def random_head(net, **fields):
    draft = DraftConfig(**fields)
    names = draft_shapes(net.c, draft)
    parameters = {n: quant.stored_values(v, names[n][1]) for n, v in
                  initial_parameters(net.c, torch.Generator().manual_seed(3), names).items()}
    for name in parameters:
        if "markov_w2" in name:
            parameters[name] = (torch.randn(parameters[name].shape) * 0.05).bfloat16().float()
    biases = routing_biases(net.c, draft)
    return draft, parameters, biases, draft_module(net.c, draft, {**parameters, **biases}, net.p["embed.weight"], net.p["head.weight"])


@torch.no_grad()
def heads():
    net = target()
    T = 256
    ids = torch.randint(3, 8000, (2, T))
    h, taps, _ = net.streams(ids, (1, 3, 5))
    anchors = torch.tensor([[40, 150, 200], [3, 129, 250 - 5]])
    for kind in ("vanilla", "gated", "rnn"):
        draft, parameters, biases, module = random_head(net, markov_head_type=kind)
        y, normed = module.block(module.context(taps), anchors, ids.gather(1, anchors))

        # What comes at or behind the anchor is invisible but for the anchor itself.
        for b in range(2):
            for n, s in enumerate(anchors[b].tolist()):
                other = [t.clone() for t in taps]
                for t in other:
                    t[b, s:] = 7.0
                got, _ = module.block(module.context(other), anchors, ids.gather(1, anchors))
                assert (got[b, n] == y[b, n]).all()
                # The path of drafting: the last 128 rows before the anchor, as a context of its own.
                first = max(0, s - net.c.sliding_window)
                at = torch.tensor([[s]])
                rows = [t[b:b + 1, first:s] for t in taps]
                alone, _ = module.block(module.context(rows, torch.tensor([first])), at, ids[b:b + 1, s:s + 1], start=torch.tensor([first]))
                assert float((alone[0, 0] - y[b, n]).abs().max()) < 1e-3
        previous = torch.stack([ids.gather(1, anchors + k) for k in range(5)], -1)
        e, extra = module.corrections(previous, y)
        state = None
        for k in range(5):
            step_e, step_extra, state = module.sequential(previous[:, :, k], y[:, :, k], state)
            assert float((step_extra - extra[:, :, k]).abs().max()) < 1e-5
        changed = previous.clone()
        changed[..., 3] = 17                                             # the token before slot 3: slots 0 to 2 don't know it
        assert (module.corrections(changed, y)[1][:, :, :3] == extra[:, :, :3]).all()

        with tempfile.TemporaryDirectory() as folder:
            export_draft(folder, TARGET, net.c, draft, parameters, biases)
            config, read, tensors = read_draft(folder)
            assert read == draft and config.num_hidden_layers == net.c.num_hidden_layers, (read, draft)
            for name, value in {**parameters, **biases}.items():
                assert (tensors[name] == value).all(), name
            print(f"  {kind}: {os.path.getsize(os.path.join(folder, 'model.safetensors')) / 1e6:.2f} MB")

    # MTP-1: chaining one step after the other equals chaining over rows given as their own context.
    draft, parameters, biases, module = random_head(net, kind="mtp", stages=1, markov_rank=0, confidence=False)
    z, context = module.context(h, F.pad(ids[:, 1:], (0, 1)))
    following = lambda k, y, normed: ids.gather(1, anchors + k + 1)
    _, normed = module.chain(z, context, anchors, 4, following)
    for b in range(2):
        for n, s in enumerate(anchors[b].tolist()):
            first = max(0, s - net.c.sliding_window)
            z1, c1 = module.context(h[b:b + 1, first:s], ids[b:b + 1, first + 1:s + 1], torch.tensor([first]))
            _, alone = module.chain(z1, c1, torch.tensor([[s]]), 4, lambda k, y, n_: ids[b:b + 1, s + k + 1:s + k + 2], torch.tensor([first]))
            assert float((alone[0, 0] - normed[b, n]).abs().max()) < 1e-3
    with tempfile.TemporaryDirectory() as folder:
        export_draft(folder, TARGET, net.c, draft, parameters, biases)
        assert read_draft(folder)[1].kind == "mtp"
        print(f"  mtp: {os.path.getsize(os.path.join(folder, 'model.safetensors')) / 1e6:.2f} MB")


def main():
    folders = sys.argv[1:] or [os.path.join(HERE, "..", "tests", "golden", n) for n in ("nano-a", "nano-s")]
    for folder in folders:
        print(os.path.basename(os.path.normpath(folder)))
        golden(folder)
    print("heads")
    heads()
    print("generator")
    generator_equals_forward()
    print("all well")


if __name__ == "__main__":
    main()
