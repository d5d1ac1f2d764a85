#!/usr/bin/env python3
"""Measures draft heads by speculative decoding itself, on prompts of the held-out split.

usage: evaluate_draft.py DATA_DIR TARGET_DIR DRAFTS_DIR OUT.json [--heads dspark,dflash,mtp] ...

Every round drafts a block for each sequence, verifies all of it with a whole forward pass of the target in the numerics
it is served with, accepts by an exact rule and goes on from there, as an engine does (dspark.md 1.1 and 3). So the text
is the target's own and the accepted lengths are those of decoding, not of anchors placed at random. Given per domain and
as the mean over domains: accepted length (bonus included), conditional acceptance by position, 1 - TV; for heads with
confidence: calibration error before and after Sequential Temperature Scaling and AUROC, fitted on half of the sequences
and reported on the others.
"""
import argparse
import json
import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import calibration
import model as model_module
from draft_data import DRAFT_DOMAINS, Prompts
from draft_model import draft_module, slot_logits
from export_draft import read_draft
from tasks import EOS
from train_draft import load_target, set_up


class Regime:
    """temperature 0 or more; rule "rejection" or "coupled"; argmax: drafts are the most likely tokens, q is a point mass."""

    def __init__(self, temperature=1.0, rule="rejection", argmax=False, slots=5):
        self.temperature, self.rule, self.argmax, self.slots = temperature, rule, argmax or not temperature, slots

    def name(self):
        drafts = "" if not self.argmax or not self.temperature else ", argmax drafts"
        rule = f" {self.rule}" if self.temperature else ""
        return f"T={self.temperature:g}{rule}{drafts}, gamma {self.slots}"

    def distribution(self, logits):
        if not self.temperature:
            return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
        return torch.softmax(logits / self.temperature, -1)


class Speculation:
    """Decodes a batch of prompts with one head under one regime."""

    def __init__(self, net, module, regime, prompts, lengths, length, micro):
        self.net, self.module, self.r, self.length, self.micro = net, module, regime, length, micro
        self.mtp = module.d.kind == "mtp"
        device = net.p["embed.weight"].device
        self.tokens = torch.zeros(len(prompts), length, dtype=torch.long, device=device)
        self.tokens[:, :prompts.shape[1]] = prompts.to(device)
        self.s = lengths.to(device)
        self.active = torch.ones_like(self.s, dtype=torch.bool)
        self.race = lambda *shape: torch.empty(*shape, net.c.vocab_size, device=device).exponential_()
        y = self.target(self.s[:, None] - 1)
        p = regime.distribution(y)[:, 0]
        self.tokens.scatter_(1, self.s[:, None], (p / self.race(len(p))).argmax(-1)[:, None])

    def target(self, rows):
        """Forward pass of all texts; keeps what the draft reads; -> logits [N,rows,V] at the given positions."""
        logits, kept = [], []
        model_module.SETTINGS["compile"] = self.tokens.is_cuda
        taps = () if self.mtp else self.module.d.target_layer_ids
        for part in range(0, len(self.tokens), self.micro):
            part = slice(part, part + self.micro)
            h, tapped, _ = self.net.streams(self.tokens[part], taps)
            y = self.net.final(h).gather(1, rows[part, :, None].expand(-1, -1, h.shape[-1]))
            logits.append(F.linear(y.float(), self.net.p["head.weight"].float()))
            kept.append(h if self.mtp else torch.stack(tapped, 2))
        model_module.SETTINGS["compile"] = False               # the draft's shapes are many and small
        self.states = torch.cat(kept)
        return torch.cat(logits)

    def pick(self, logits, noise):
        """-> drafted tokens [N] and what they were drawn from [N,V]."""
        if self.r.argmax:
            token = logits.argmax(-1)
            return token, F.one_hot(token, logits.shape[-1]).float()
        q = self.r.distribution(logits)
        return (q / noise).argmax(-1), q

    def draft(self, noise):
        """-> drafts [N,g], q [N,g,V], confidence logits [N,g] or None."""
        m, s, W, g = self.module, self.s, self.net.c.sliding_window, self.r.slots
        start = (s - W).clamp(min=0)
        rows = start[:, None] + torch.arange(W, device=s.device)
        inside = self.states.gather(1, rows[..., None, None].expand(-1, -1, *self.states.shape[2:]))
        anchor = self.tokens.gather(1, s[:, None])
        drafts, qs, confidence = [], [], []
        if self.mtp:
            z, context = m.context(inside, self.tokens.gather(1, rows + 1), start)

            def following(k, y, normed):
                token, q = self.pick(slot_logits(normed[:, 0], m.head, None, None), noise[:, k])
                drafts.append(token)
                qs.append(q)
                return token[:, None]
            y, normed = m.chain(z, context, s[:, None], g, following, start)
            following(g - 1, y, normed[:, :, -1])
        else:
            y, normed = m.block(m.context(list(inside.unbind(2)), start), s[:, None], anchor, g, start)
            token, state = anchor[:, 0], None
            for k in range(g):
                e = extra = None
                if m.d.markov_rank:
                    e, extra, state = m.sequential(token, y[:, 0, k], state)
                if m.d.confidence:
                    confidence.append(m.confidence(y[:, 0, k], e))
                token, q = self.pick(slot_logits(normed[:, 0, k], m.head, extra, m.w2()), noise[:, k])
                drafts.append(token)
                qs.append(q)
        return torch.stack(drafts, 1), torch.stack(qs, 1), torch.stack(confidence, 1) if confidence else None

    @torch.no_grad()
    def round(self):
        """One round of every sequence that still runs; -> a dictionary of numpy arrays, one row for each of those."""
        g, N = self.r.slots, len(self.s)
        at = torch.arange(g + 1, device=self.s.device)
        noise = self.race(N, g + 1)
        drafts, q, confidence = self.draft(noise)
        self.tokens.scatter_(1, self.s[:, None] + at[1:], drafts)
        p = self.r.distribution(self.target(self.s[:, None] + at))
        px, qx = (t[:, :g].gather(-1, drafts[..., None])[..., 0] for t in (p, q))
        if self.r.rule == "coupled" and self.r.temperature:
            own = (p / noise).argmax(-1)
            matches = own[:, :g] == drafts
        else:
            matches = torch.rand(N, g, device=self.s.device) * qx < px
        count = matches.long().cumprod(1).sum(1)
        if self.r.rule == "coupled" and self.r.temperature:
            emitted = own.gather(1, count[:, None])[:, 0]
        else:
            last = p.gather(1, count[:, None, None].expand(-1, 1, p.shape[-1]))[:, 0]
            proposed = F.pad(q, (0, 0, 0, 1)).gather(1, count[:, None, None].expand(-1, 1, p.shape[-1]))[:, 0]
            left = (last - proposed).clamp(min=0)
            left = torch.where(left.sum(-1, keepdim=True) > 1e-8, left, last)
            emitted = (left / self.race(N)).argmax(-1)
        # An accepted end of text ends the round and the sequence there: later positions are not counted.
        ends = (drafts == EOS) & (at[:g] < count[:, None])
        ended = ends.any(1)
        verified = torch.where(ended, ends.long().argmax(1) + 1, g)
        accepted = torch.minimum(count, verified)
        row = {"accepted": accepted, "verified": verified, "emitted": accepted + (~ended).long(),
               "acceptance": torch.minimum(p[:, :g], q).sum(-1), "sequence": torch.arange(N, device=self.s.device)}
        if confidence is not None:
            row["confidence"] = confidence
        out = {key: value[self.active].float().cpu().numpy() for key, value in row.items()}
        self.tokens.scatter_(1, self.s[:, None] + count[:, None] + 1, emitted[:, None])
        going = self.active & ~ended & (emitted != EOS)
        s = torch.where(going, self.s + count + 1, self.s)
        self.active = going & (s + g + 1 < self.length)
        self.s = torch.where(self.active, s, self.s)
        return out


def summary(rows, domains, slots):
    """Figures of the rounds by domain; `macro` is the mean over domains."""
    out = {}
    for number, domain in enumerate(DRAFT_DOMAINS):
        mine = {key: value[domains[rows["sequence"].astype(int)] == number] for key, value in rows.items()}
        accepted, verified = mine["accepted"], mine["verified"]
        reached = [(verified > k) & (accepted >= k) for k in range(slots)]
        out[domain] = {
            "rounds": len(accepted), "accepted_length": float(mine["emitted"].mean()),
            "accepted_length_by_slots": [1 + sum(float((accepted > j).mean()) for j in range(k)) for k in range(1, slots + 1)],
            "conditional_acceptance": [float((accepted > k)[r].mean()) if r.any() else None for k, r in enumerate(reached)],
            "one_minus_tv_if_reached": [float(mine["acceptance"][r, k].mean()) if r.any() else None for k, r in enumerate(reached)],
            "reached": [int(r.sum()) for r in reached]}
    mean = lambda values: float(np.mean(values)) if all(v is not None for v in values) else None
    out["macro"] = {key: [mean(v) for v in zip(*(out[d][key] for d in DRAFT_DOMAINS))] for key in (
        "accepted_length_by_slots", "conditional_acceptance", "one_minus_tv_if_reached")}
    out["macro"]["accepted_length"] = mean([out[d]["accepted_length"] for d in DRAFT_DOMAINS])
    return out


def calibrated(rows):
    """Sequential Temperature Scaling, fitted on the sequences of even number."""
    even = rows["sequence"].astype(int) % 2 == 0
    fit, held = ((rows["confidence"][m], rows["accepted"][m], rows["verified"][m]) for m in (even, ~even))
    temperatures = calibration.fit(*fit)
    return {"temperatures": temperatures, "rounds_fitted": int(even.sum()), "rounds_reported": int((~even).sum()),
            "before": calibration.report(*held, [1.0] * len(temperatures)), "after": calibration.report(*held, temperatures)}


def regimes(draft, all_of_them):
    g = 5 if draft.kind == "mtp" else draft.block_size
    out = [Regime(slots=g), Regime(0.0, slots=g)]
    if all_of_them:
        out.append(Regime(rule="coupled", slots=g))
        if draft.kind == "dspark" and not draft.markov_rank:
            out.append(Regime(argmax=True, slots=g))
        elif draft.kind == "dspark":
            out += [Regime(slots=3), Regime(slots=g + 2)]
    return out


def bars(results):
    """The replication's bars (see README.md), where the heads that they need were measured."""
    at = lambda head: results[head]["T=1 rejection, gamma 5"]["macro"]
    out = {}
    if {"dspark", "dflash"} <= set(results):
        argmax = results["dflash"].get("T=1 rejection, argmax drafts, gamma 5", {}).get("macro", {}).get("accepted_length", 0)
        out["accepted length over dflash (better of its draft modes)"] = at("dspark")["accepted_length"] / max(argmax, at("dflash")["accepted_length"])
    for name in ("mtp", "mtp-unrolled"):
        if {"dspark", name} <= set(results):
            out[f"accepted length over {name}'s best k"] = at("dspark")["accepted_length"] / max(at(name)["accepted_length_by_slots"])
    if "dspark" in results:
        conditional = at("dspark")["conditional_acceptance"]
        after = results["dspark"]["T=1 rejection, gamma 5"]["calibration"]["after"]
        out["mean ECE after STS"] = float(np.mean(after["ece"]))
        if None not in conditional + after["auroc"]:             # too few rounds to reach the last position
            out["conditional acceptance, position 5 minus position 2"] = conditional[4] - conditional[1]
            out["smallest AUROC"] = min(after["auroc"])
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("target")
    parser.add_argument("drafts")
    parser.add_argument("out")
    parser.add_argument("--heads", default="dspark,dflash,mtp")
    parser.add_argument("--brief", default="", help="heads of which only T = 1 (rejection) and T = 0 are measured")
    parser.add_argument("--sequences", type=int, default=160, help="per domain")
    parser.add_argument("--length", type=int, default=384, help="prompt included; a multiple of 128")
    parser.add_argument("--micro", type=int, default=160, help="sequences per forward pass")
    parser.add_argument("--rounds", type=int, default=60, help="at most, per head and regime")
    parser.add_argument("--seconds", type=float, default=1e9, help="start nothing after this time")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    began = time.time()
    dtype = set_up(args.device)
    net = load_target(args.target, args.device, dtype)
    mark = Tokenizer.from_file(os.path.join(args.target, "tokenizer.json")).token_to_id("</think>")
    held_out = Prompts(args.data, "heldout", mark, np.random.default_rng(args.seed))
    ids, lengths, domains = held_out.draw(args.sequences * len(DRAFT_DOMAINS), np.repeat(np.arange(len(DRAFT_DOMAINS)), args.sequences))
    results = {}
    if os.path.exists(args.out):
        with open(args.out, encoding="utf-8") as f:
            results = json.load(f)["heads"]
    work = []
    for head in filter(None, (args.heads + "," + args.brief).split(",")):
        config, draft, tensors = read_draft(os.path.join(args.drafts, head))
        keep = lambda name, v: v.to(args.device, torch.float32 if "hc_" in name or "attn_sink" in name or "gate.bias" in name else dtype)
        module = draft_module(config, draft, {n: keep(n, v) for n, v in tensors.items()}, net.p["embed.weight"], net.p["head.weight"])
        module.simulate = True
        work += [(number, head, module, r) for number, r in enumerate(regimes(draft, head not in args.brief.split(",")))]
    work.sort(key=lambda item: item[0])                       # what the bars need comes first
    for _, head, module, regime in work:
        if time.time() - began > args.seconds:
            print("out of time: the rest is left out", flush=True)
            break
        torch.manual_seed(args.seed)
        with torch.no_grad():
            run, rows = Speculation(net, module, regime, ids, lengths, args.length, args.micro), []
            while bool(run.active.any()) and len(rows) < args.rounds:
                rows.append(run.round())
        rows = {key: np.concatenate([r[key] for r in rows]) for key in rows[0]}
        result = summary(rows, domains.numpy(), regime.slots)
        if "confidence" in rows:
            result["calibration"] = calibrated(rows)
        results.setdefault(head, {})[regime.name()] = result
        macro = result["macro"]
        shown = lambda values: " ".join("-" if v is None else f"{v:.3f}" for v in values)
        print(f"{time.time() - began:.0f} s {head} {regime.name()}: accepted length {macro['accepted_length']:.3f} (" +
              " ".join(f"{d} {result[d]['accepted_length']:.2f}" for d in DRAFT_DOMAINS) +
              f"), conditional {shown(macro['conditional_acceptance'])}, {len(rows['accepted'])} rounds", flush=True)
        if "calibration" in result:
            cal = result["calibration"]
            print(f"    ECE {shown(cal['before']['ece'])} -> {shown(cal['after']['ece'])}, AUROC {shown(cal['after']['auroc'])}, "
                  f"if reached {shown(cal['after']['auroc_if_reached'])}, temperatures {shown(cal['temperatures'])}", flush=True)
        with open(args.out, "w", encoding="utf-8") as f:
            json.dump({"sequences_per_domain": args.sequences, "length": args.length, "heads": results}, f, indent=1)
    found = bars(results)
    with open(args.out, "w", encoding="utf-8") as f:
        json.dump({"bars": found, "sequences_per_domain": args.sequences, "length": args.length, "heads": results}, f, indent=1)
    for name, value in found.items():
        print(f"{name}: {value:.4f}")
    print(f"{time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
