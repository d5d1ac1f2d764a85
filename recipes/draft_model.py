"""Draft heads for a DeepSeek-V4 target, as functions over tensors with their official names (mtp.*).

Two kinds. `dspark`: a few sliding-window blocks that see the last tapped states of the target and draft a whole block
[anchor, noise, noise, ...] in one pass, with a sequential head (vanilla, gated, rnn or none) that corrects each slot for
the token before it, and a confidence head. `mtp`: the one block of V4's MTP-1, chained on its own streams.

Shapes as in model.py, and: A anchors per sequence, g slots per anchor, r the Markov rank. The anchor of a block is the
token at position s; the target's states exist for positions before s. Slot k (from 0) sits at position s + k and
predicts the token at s + k + 1. Every block sees the context rows s - window .. s - 1 and its own rows, all of them.
The blocks of all anchors of a sequence are computed at once: rows [B, A * g], the context as a masked dense product.
"""
import json
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from model import (_hc_post, _hc_pre, _moe, _output, _project, _sinkhorn, block_shapes, compiled, linear, quantise_entry,
                   rms_norm, rope_table, rotate)


@dataclass
class DraftConfig:
    """What config.json and the tensors say of a draft head."""
    kind: str = "dspark"                 # or "mtp"
    stages: int = 2
    block_size: int = 5
    noise_token_id: int = 8157
    target_layer_ids: tuple = (1, 3, 5)
    markov_rank: int = 64
    markov_head_type: str = "vanilla"    # "gated", "rnn"
    confidence: bool = True

    def fields(self):
        """The fields of config.json beyond the target's."""
        if self.kind == "mtp":
            return {"num_nextn_predict_layers": 1}
        return {"num_nextn_predict_layers": 1, "dspark_block_size": self.block_size,
                "dspark_noise_token_id": self.noise_token_id, "dspark_target_layer_ids": list(self.target_layer_ids),
                "dspark_markov_rank": self.markov_rank, "dspark_markov_head_type": self.markov_head_type}

    @staticmethod
    def load(path, confidence):
        """Reads a draft's config.json; without dspark fields it is an MTP-1 block. `confidence`: the file has the head."""
        with open(path, encoding="utf-8") as f:
            stored = json.load(f)
        stages = len(stored["compress_ratios"]) - stored["num_hidden_layers"]
        if "dspark_block_size" not in stored:
            return DraftConfig("mtp", stages, markov_rank=0, confidence=False)
        return DraftConfig("dspark", stages, stored["dspark_block_size"], stored["dspark_noise_token_id"],
                           tuple(stored["dspark_target_layer_ids"]), stored["dspark_markov_rank"],
                           stored.get("dspark_markov_head_type", "vanilla"), confidence)


def draft_shapes(c, d):
    """name -> (shape, storage, kind) as model.shapes gives it for the target."""
    D, m, r = c.hidden_size, c.hc_mult, d.markov_rank
    out = {}
    for stage in range(d.stages):
        out.update(block_shapes(c, f"mtp.{stage}.", 0))
    last = f"mtp.{d.stages - 1}."
    if d.kind == "mtp":
        out["mtp.0.e_proj.weight"] = out["mtp.0.h_proj.weight"] = ((D, D), "fp8", "matrix")
        out["mtp.0.enorm.weight"] = out["mtp.0.hnorm.weight"] = ((D,), "bf16", "one")
    else:
        out["mtp.0.main_proj.weight"] = ((D, D * len(d.target_layer_ids)), "fp8", "matrix")
        out["mtp.0.main_norm.weight"] = ((D,), "bf16", "one")
    out[last + "norm.weight"] = ((D,), "bf16", "one")
    out[last + "hc_head_fn"] = ((m, m * D), "f32", "hc_fn")
    out[last + "hc_head_base"] = ((m,), "f32", "hc_base")
    out[last + "hc_head_scale"] = ((1,), "f32", "hc_scale")
    if r:
        head = last + "markov_head."
        out[head + "markov_w1.weight"] = ((c.vocab_size, r), "bf16", "embed")
        out[head + "markov_w2.weight"] = ((c.vocab_size, r), "bf16", "markov")
        if d.markov_head_type != "vanilla":
            name, rows, columns = ("gate_proj", r, D + r) if d.markov_head_type == "gated" else ("joint_proj", 3 * r, 2 * r + D)
            out[f"{head}{name}.weight"] = ((rows, columns), "bf16", "small")
            out[f"{head}{name}.bias"] = ((rows,), "bf16", "bias")
    if d.confidence:
        out[last + "confidence_head.proj.weight"] = ((1, D + r), "bf16", "small")
    return out


def routing_biases(c, d):
    """The gate biases, which no gradient moves."""
    return {f"mtp.{stage}.ffn.gate.bias": torch.zeros(c.n_routed_experts) for stage in range(d.stages)}


# ------------------------------------------------------------------------------------------------- pure functions

def main_states(taps, proj, norm, eps, simulate):
    """taps [B,T,layers*D] -> main_x [B,T,D], which all stages read."""
    return rms_norm(linear(taps, proj, simulate), norm, eps)


def context_entries(x, wkv, kv_norm, cos, sin, eps, simulate):
    """-> the cache rows [B,T,d] of context states x [B,T,D]."""
    kv = rotate(rms_norm(linear(x, wkv, simulate), kv_norm, eps), cos, sin)
    return quantise_entry(kv, 2 * cos.shape[-1]) if simulate else kv


def attend_block(q, context, first, end, keys, sink):
    """Attention of blocks: q [B,A,g,H,d] over context rows first[B,A,g] .. end[B,A] - 1 of [B,T,d] and keys [B,A,n,d].

    -> [B,A*g,H,d]. As in model.attend_window the norms bound the logits: no maximum has to be subtracted.
    """
    B, A, g, H, d = q.shape
    T, n = context.shape[1], keys.shape[2]
    far = (q.reshape(B, A * g * H, d) @ context.transpose(-1, -2)).view(B, A, g, H, T)
    at = torch.arange(T, device=q.device)
    visible = (at >= first[..., None]) & (at < end[..., None, None])
    far = torch.where(visible[:, :, :, None], torch.exp(far.float() * d ** -0.5), 0.0)
    near = (q.reshape(B, A, g * H, d) @ keys.transpose(-1, -2)).view(B, A, g, H, n)
    near = torch.exp(near.float() * d ** -0.5)
    total = far.sum(-1) + near.sum(-1) + torch.exp(sink)
    out = (far.to(q.dtype).view(B, A * g * H, T) @ context).view(B, A, g, H, d).float()
    out = out + (near.to(q.dtype).view(B, A, g * H, n) @ keys).view(B, A, g, H, d).float()
    return (out / total[..., None]).to(q.dtype).view(B, A * g, H, d)


def head_states(h, fn, base, scale, norm, eps, hc_eps):
    """Streams [B,R,m,D] -> y [B,R,D] before the norm (what confidence and the sequential head read) and after it."""
    z = h.flatten(-2)
    mix = F.linear(z, fn.to(z.dtype)).float() * torch.rsqrt(z.float().square().mean(-1, keepdim=True) + eps)
    pre = torch.sigmoid(mix * scale[0] + base) + hc_eps
    y = (pre[..., None] * h.float()).sum(-2).to(h.dtype)
    return y, rms_norm(y, norm, eps)


def mtp_input(streams, embedded, e_proj, h_proj, enorm, hnorm, eps, simulate):
    """streams [B,R,m,D] of the target (or of the step before), the embedded next token [B,R,D] -> [B,R,m,D]."""
    e = linear(rms_norm(embedded, enorm, eps), e_proj, simulate)
    return linear(rms_norm(streams, hnorm, eps), h_proj, simulate) + e[:, :, None]


def slot_logits(normed, head, extra, w2):
    """Logits [.., V] in float32: normed . head plus the sequential head's extra [.., r] . w2 (None without one)."""
    logits = F.linear(normed.float(), head.float())
    return logits if extra is None else logits + F.linear(extra.float(), w2.float())


_main_states, _context_entries, _attend_block = compiled(main_states), compiled(context_entries), compiled(attend_block)
_head_states, _mtp_input = compiled(head_states), compiled(mtp_input)


# --------------------------------------------------------------------------------------------------------- modules

class Blocks:
    """What both kinds share: the stages over a dictionary of tensors. `simulate` as in model.Model."""

    def __init__(self, config, draft, tensors, embed, head):
        self.c, self.d, self.p, self.embed, self.head = config, draft, tensors, embed, head
        self.last = f"mtp.{draft.stages - 1}."
        self.simulate, self.tables, self.loads = False, {}, {}

    def rope(self, positions):
        """cos, sin [...,32] at any positions."""
        device = positions.device
        if device not in self.tables:
            self.tables[device] = rope_table(self.c, False, torch.arange(self.c.max_position_embeddings, device=device))
        cos, sin = self.tables[device]
        return cos[positions], sin[positions]

    def hc(self, h, name, norm):
        c, p = self.c, self.p
        x, post, logits = _hc_pre(h, p[name + "_fn"], p[name + "_base"], p[name + "_scale"], p[norm], c.hc_mult,
                                  c.rms_norm_eps, c.hc_eps)
        return x, post, _sinkhorn(logits, c.hc_sinkhorn_iters, c.hc_eps)

    def entries(self, x, stage, cos, sin):
        a = f"mtp.{stage}.attn."
        return _context_entries(x, self.p[a + "wkv.weight"], self.p[a + "kv_norm.weight"], cos, sin, self.c.rms_norm_eps, self.simulate)

    def stage(self, h, stage, positions, context, first, end, keys=()):
        """One block on streams h [B,A*g,m,D] at positions [B,A,g]; `keys`: rows [B,A,n,d] of earlier steps of a chain.

        -> streams after the block and its own cache rows [B,A,g,d].
        """
        c, p, pre = self.c, self.p, f"mtp.{stage}."
        a, (B, A, g) = pre + "attn.", positions.shape
        cos, sin = self.rope(positions.flatten(1))
        x, post, comb = self.hc(h, pre + "hc_attn", pre + "attn_norm.weight")
        _, q, kv = _project(x, p[a + "wq_a.weight"], p[a + "q_norm.weight"], p[a + "wq_b.weight"], p[a + "wkv.weight"],
                            p[a + "kv_norm.weight"], cos, sin, c.num_attention_heads, c.rms_norm_eps, self.simulate)
        own = kv.unflatten(1, (A, g))
        o = _attend_block(q.unflatten(1, (A, g)), context, first, end, torch.cat((*keys, own), 2), p[a + "attn_sink"])
        o = _output(o, p[a + "wo_a.weight"], p[a + "wo_b.weight"], cos, sin, c.o_groups, self.simulate)
        h = _hc_post(o, h, post, comb, c.hc_mult)
        x, post, comb = self.hc(h, pre + "hc_ffn", pre + "ffn_norm.weight")
        f = pre + "ffn."
        names = [f"{kind}.{w}.weight" for kind in ("experts", "shared_experts") for w in ("w1", "w3", "w2")]
        y, load = _moe(x, p[f + "gate.weight"], p[f + "gate.bias"], None, *(p[f + n] for n in names), c.num_experts_per_tok,
                       c.routed_scaling_factor, c.swiglu_limit, self.simulate)
        self.loads[stage] = self.loads.get(stage, 0) + load.detach()
        return _hc_post(y, h, post, comb, c.hc_mult), own

    def outputs(self, h):
        """-> y before the norm and the normed state, each [B,R,D]."""
        p, e = self.p, self.last
        return _head_states(h, p[e + "hc_head_fn"], p[e + "hc_head_base"], p[e + "hc_head_scale"], p[e + "norm.weight"],
                            self.c.rms_norm_eps, self.c.hc_eps)


class DSpark(Blocks):
    def context(self, taps, start=0):
        """taps: one [B,T,D] per tapped layer, row 0 at position `start` (an int or [B]) -> each stage's cache rows [B,T,d]."""
        p = self.p
        x = _main_states(torch.cat(taps, -1), p["mtp.0.main_proj.weight"], p["mtp.0.main_norm.weight"], self.c.rms_norm_eps, self.simulate)
        at = torch.arange(x.shape[1], device=x.device)
        cos, sin = self.rope(at + start if isinstance(start, int) else (at + start[:, None]))
        return [self.entries(x, stage, cos, sin) for stage in range(self.d.stages)]

    def block(self, contexts, anchors, tokens, slots=None, start=0):
        """anchors, tokens [B,A] (positions and ids) -> y and normed states [B,A,g,D]; `start` as in `context`."""
        g, (B, A), c = slots or self.d.block_size, anchors.shape, self.c
        ids = torch.full((B, A, g), self.d.noise_token_id, dtype=torch.long, device=anchors.device)
        ids[..., 0] = tokens
        h = F.embedding(ids.flatten(1), self.embed)[:, :, None].expand(-1, -1, c.hc_mult, -1).contiguous()
        positions = anchors[..., None] + torch.arange(g, device=anchors.device)
        end = anchors - start if isinstance(start, int) else anchors - start[:, None]
        first = (end - c.sliding_window)[..., None].expand(B, A, g)
        for stage, context in enumerate(contexts):
            h, _ = self.stage(h, stage, positions, context, first, end)
        return [t.unflatten(1, (A, g)) for t in self.outputs(h)]

    def sequential(self, previous, y, state):
        """One step of the sequential head: ids before the slot [..], y [..,D] -> (W1's row, what meets W2, new state)."""
        p, head = self.p, self.last + "markov_head."
        e = F.embedding(previous, p[head + "markov_w1.weight"])
        if self.d.markov_head_type == "vanilla":
            return e, e, None
        if self.d.markov_head_type == "gated":
            gate = torch.sigmoid(F.linear(torch.cat((y, e), -1), p[head + "gate_proj.weight"], p[head + "gate_proj.bias"]))
            return e, gate * e, None
        state = torch.zeros_like(e) if state is None else state
        gate, new, out = F.linear(torch.cat((state, e, y), -1), p[head + "joint_proj.weight"], p[head + "joint_proj.bias"]).chunk(3, -1)
        gate = torch.sigmoid(gate)
        return e, torch.tanh(out), gate * state + (1 - gate) * torch.tanh(new)

    def corrections(self, previous, y):
        """The same for whole blocks: previous [B,A,g], y [B,A,g,D] -> W1's rows and what meets W2, [B,A,g,r]; or Nones."""
        if not self.d.markov_rank:
            return None, None
        if self.d.markov_head_type != "rnn":
            return self.sequential(previous, y, None)[:2]
        rows, state = [], None
        for k in range(previous.shape[2]):
            e, extra, state = self.sequential(previous[:, :, k], y[:, :, k], state)
            rows.append((e, extra))
        return [torch.stack(t, 2) for t in zip(*rows)]

    def w2(self):
        return self.p[self.last + "markov_head.markov_w2.weight"] if self.d.markov_rank else None

    def confidence(self, y, e):
        """Logits [..]: that the token of the slot is accepted if those before it are; y [..,D] before the norm."""
        if not self.d.confidence:
            return None
        x = y if e is None else torch.cat((y, e), -1)
        return F.linear(x.float(), self.p[self.last + "confidence_head.proj.weight"].float())[..., 0]


class Mtp(Blocks):
    def input(self, streams, tokens):
        p = self.p
        return _mtp_input(streams, F.embedding(tokens, self.embed), p["mtp.0.e_proj.weight"], p["mtp.0.h_proj.weight"],
                          p["mtp.0.enorm.weight"], p["mtp.0.hnorm.weight"], self.c.rms_norm_eps, self.simulate)

    def context(self, streams, following, start=0):
        """streams [B,T,m,D] of the target and the token after each [B,T] -> block inputs [B,T,m,D] and cache rows [B,T,d]."""
        z = self.input(streams, following)
        x, _, _ = self.hc(z, "mtp.0.hc_attn", "mtp.0.attn_norm.weight")
        at = torch.arange(x.shape[1], device=x.device)
        return z, self.entries(x, 0, *self.rope(at + start if isinstance(start, int) else (at + start[:, None])))

    def chain(self, z, context, anchors, depth, next_token, start=0):
        """Drafts `depth` tokens after anchors [B,A]; the first row is that of position s - 1.

        next_token(k, y, normed) -> the ids [B,A] that follow slot k; not asked after the last. Returns y, normed [B,A,depth,D].
        """
        shift = start if isinstance(start, int) else start[:, None]
        row = anchors - 1 - shift
        h = z.gather(1, row[..., None, None].expand(-1, -1, *z.shape[2:]))
        ys, states, keys = [], [], []
        for k in range(depth):
            at = anchors - 1 + k
            h, own = self.stage(h, 0, at[..., None], context, (at - shift - self.c.sliding_window + 1)[..., None], row, tuple(keys))
            keys.append(own)
            y, normed = self.outputs(h)
            ys.append(y)
            states.append(normed)
            if k + 1 < depth:
                h = self.input(h, next_token(k, y, normed))
        return torch.stack(ys, 2), torch.stack(states, 2)


def draft_module(config, draft, tensors, embed, head):
    return (Mtp if draft.kind == "mtp" else DSpark)(config, draft, tensors, embed, head)
