"""The DeepSeek-V4 forward pass for training, as pure functions over a flat dictionary of tensors.

The dictionary's keys are the official checkpoint names (experts of a layer stacked in one tensor), so export is a walk
over it. Attention over compressed entries is dense with a mask: at the lengths we train on that costs less than gathers.
Shapes: B sequences, T tokens, D hidden, H heads, d = head_dim, S compressed entries, E experts. A linear layer is
`y = x W^T` with W [out, in].

Every function that costs time is pure and takes only tensors and small constants, so that each is compiled once and
serves all layers of its kind; `compiled()` is the only place that knows about torch.compile.
"""
import json
import math
from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F

from quant import fake_fp4, fake_fp8, hadamard

# Settings of the whole program: `compile` turns the functions below into fused kernels (GPU only).
SETTINGS = {"compile": False}


@dataclass
class Config:
    """The fields of config.json that decide the arithmetic, under their official names."""
    vocab_size: int = 8192
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    head_dim: int = 512
    qk_rope_head_dim: int = 64
    q_lora_rank: int = 128
    o_groups: int = 2
    o_lora_rank: int = 128
    sliding_window: int = 128
    compress_ratios: list = field(default_factory=lambda: [0, 0, 4, 128, 4, 4])
    rope_theta: float = 10000
    compress_rope_theta: float = 160000
    rope_scaling: dict = field(default_factory=lambda: {
        "type": "yarn", "factor": 4, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1})
    max_position_embeddings: int = 16384
    index_n_heads: int = 8
    index_head_dim: int = 128
    index_topk: int = 64
    hc_mult: int = 4
    hc_sinkhorn_iters: int = 20
    hc_eps: float = 1e-6
    rms_norm_eps: float = 1e-6
    n_routed_experts: int = 8
    n_shared_experts: int = 1
    num_experts_per_tok: int = 4
    moe_intermediate_size: int = 128
    num_hash_layers: int = 1
    routed_scaling_factor: float = 1.5
    swiglu_limit: float = 10.0

    @staticmethod
    def load(path):
        """Reads a config.json; fields that do not concern the arithmetic are ignored."""
        with open(path, encoding="utf-8") as f:
            stored = json.load(f)
        return Config(**{name: stored[name] for name in asdict(Config()) if name in stored})


def compiled(function):
    """The function, compiled on first use when SETTINGS ask for it."""
    fused = []

    def call(*args):
        if not SETTINGS["compile"]:
            return function(*args)
        if not fused:
            fused.append(torch.compile(function, dynamic=False))
        return fused[0](*args)
    return call


# ---------------------------------------------------------------------------------------------------- parameters

def block_shapes(c, pre, ratio):
    """What `shapes` returns, for one block under the prefix `pre` ("layers.3."); draft blocks have ratio 0."""
    D, d, m, I, E = c.hidden_size, c.head_dim, c.hc_mult, c.moe_intermediate_size, c.n_routed_experts
    out = {}
    for part in ("attn", "ffn"):
        out[f"{pre}{part}_norm.weight"] = ((D,), "bf16", "one")
        out[f"{pre}hc_{part}_fn"] = ((m * (m + 2), m * D), "f32", "hc_fn")
        out[f"{pre}hc_{part}_base"] = ((m * (m + 2),), "f32", "hc_base")
        out[f"{pre}hc_{part}_scale"] = ((3,), "f32", "hc_scale")
    a = pre + "attn."
    out[a + "attn_sink"] = ((c.num_attention_heads,), "f32", "zero")
    out[a + "wq_a.weight"] = ((c.q_lora_rank, D), "fp8", "matrix")
    out[a + "q_norm.weight"] = ((c.q_lora_rank,), "bf16", "one")
    out[a + "wq_b.weight"] = ((c.num_attention_heads * d, c.q_lora_rank), "fp8", "matrix")
    out[a + "wkv.weight"] = ((d, D), "fp8", "matrix")
    out[a + "kv_norm.weight"] = ((d,), "bf16", "one")
    out[a + "wo_a.weight"] = ((c.o_groups * c.o_lora_rank, c.num_attention_heads * d // c.o_groups), "fp8", "matrix")
    out[a + "wo_b.weight"] = ((D, c.o_groups * c.o_lora_rank), "fp8", "last")

    def compressor(name, n):
        width = n * (2 if ratio == 4 else 1)
        out[name + "ape"] = ((ratio, width), "f32", "ape")
        out[name + "wkv.weight"] = ((width, D), "bf16", "matrix")
        out[name + "wgate.weight"] = ((width, D), "bf16", "matrix")
        out[name + "norm.weight"] = ((n,), "bf16", "one")
    if ratio:
        compressor(a + "compressor.", d)
    if ratio == 4:
        out[a + "indexer.wq_b.weight"] = ((c.index_n_heads * c.index_head_dim, c.q_lora_rank), "fp8", "matrix")
        out[a + "indexer.weights_proj.weight"] = ((c.index_n_heads, D), "bf16", "small")
        compressor(a + "indexer.compressor.", c.index_head_dim)
    f = pre + "ffn."
    out[f + "gate.weight"] = ((E, D), "bf16", "small")
    out[f + "experts.w1.weight"] = ((E, I, D), "fp4", "matrix")
    out[f + "experts.w3.weight"] = ((E, I, D), "fp4", "matrix")
    out[f + "experts.w2.weight"] = ((E, D, I), "fp4", "last")
    out[f + "shared_experts.w1.weight"] = ((I, D), "fp8", "matrix")
    out[f + "shared_experts.w3.weight"] = ((I, D), "fp8", "matrix")
    out[f + "shared_experts.w2.weight"] = ((D, I), "fp8", "last")
    return out


def shapes(c):
    """name -> (shape, storage, kind); storage: fp8, fp4, bf16 or f32; kind: how it is initialised and optimised."""
    D, m = c.hidden_size, c.hc_mult
    out = {"embed.weight": ((c.vocab_size, D), "bf16", "embed"), "head.weight": ((c.vocab_size, D), "bf16", "head"),
           "norm.weight": ((D,), "bf16", "one"), "hc_head_fn": ((m, m * D), "f32", "hc_fn"),
           "hc_head_base": ((m,), "f32", "hc_base"), "hc_head_scale": ((1,), "f32", "hc_scale")}
    for layer, ratio in enumerate(c.compress_ratios[:c.num_hidden_layers]):
        out.update(block_shapes(c, f"layers.{layer}.", ratio))
    return out


def initial_parameters(c, generator, names=None):
    """Float32 values for every trained tensor of `names` (`shapes(c)`), on the generator's device."""
    def normal(shape, std):
        return torch.randn(shape, generator=generator, device=generator.device) * std
    out = {}
    for name, (shape, _, kind) in (names or shapes(c)).items():
        if kind == "one":
            value = normal(shape, 0.0) + 1
        elif kind in ("zero", "bias", "markov"):
            value = normal(shape, 0.0)
        elif kind == "matrix":
            value = normal(shape, shape[-1] ** -0.5)
        elif kind == "last":                       # writes to the residual streams: start small
            value = normal(shape, 0.2 * shape[-1] ** -0.5)
        elif kind in ("small", "hc_fn"):
            value = normal(shape, 0.02)
        elif kind == "hc_scale":
            value = normal(shape, 0.0) + 0.2
        elif kind == "hc_base":
            value = normal(shape, 0.0)
            if len(value) > c.hc_mult:             # one stream per layer is read and written most; streams stay apart
                stream = int(name.split(".")[1]) % c.hc_mult
                value[:2 * c.hc_mult] = -1.0
                value[stream] = value[c.hc_mult + stream] = 1.0
                value[2 * c.hc_mult:] = 3.0 * torch.eye(c.hc_mult, device=value.device).flatten()
        elif kind == "ape":
            value = normal(shape, 1.0 if shape[0] == 4 else 0.3)
        elif kind == "embed":
            value = normal(shape, 0.3)
        elif kind == "head":
            value = normal(shape, 0.02)
        out[name] = value
    return out


def routing_buffers(c, counts, generator):
    """gate.bias [E] of routed layers and gate.tid2eid [V, K] of hash layers, balanced over the token counts [V]."""
    out = {}
    for layer in range(c.num_hidden_layers):
        pre = f"layers.{layer}.ffn.gate."
        if layer >= c.num_hash_layers:
            out[pre + "bias"] = torch.zeros(c.n_routed_experts)
            continue
        load = torch.rand(c.n_routed_experts, generator=generator)
        table = torch.zeros(c.vocab_size, c.num_experts_per_tok, dtype=torch.int64)
        for token in torch.argsort(counts, descending=True).tolist():
            noise = torch.rand(c.n_routed_experts, generator=generator) * counts[token]
            experts = torch.argsort(load + noise)[:c.num_experts_per_tok]
            table[token] = experts
            load[experts] += counts[token]
        out[pre + "tid2eid"] = table
    return out


# ------------------------------------------------------------------------------------------------------ primitives

def rms_norm(x, weight, eps):
    x32 = x.float()
    x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return (x32 if weight is None else x32 * weight.float()).to(x.dtype)


def frequencies(c, compressed):
    """The 32 rotation frequencies of a layer kind: plain for sliding-window layers, YaRN for the others."""
    n, base = c.qk_rope_head_dim, c.compress_rope_theta if compressed else c.rope_theta
    f = base ** (-2.0 * torch.arange(n // 2, dtype=torch.float64) / n)
    if not compressed:
        return f
    s = c.rope_scaling

    def correction(rotations):
        return n * math.log(s["original_max_position_embeddings"] / (rotations * 2 * math.pi)) / (2 * math.log(base))
    low = max(math.floor(correction(s["beta_fast"])), 0)
    high = min(math.ceil(correction(s["beta_slow"])), n - 1)
    ramp = ((torch.arange(n // 2, dtype=torch.float64) - low) / (high - low if high != low else 0.001)).clamp(0, 1)
    return f / s["factor"] * ramp + f * (1 - ramp)


def rope_table(c, compressed, positions):
    """cos and sin [T, 32] in float32; the angle is a float32 product, as in the released model."""
    angle = positions.float()[:, None] * frequencies(c, compressed).float().to(positions.device)
    return torch.cos(angle), torch.sin(angle)


def rotate(x, cos, sin):
    """Rotates the interleaved pairs of the last 2 * cos.shape[-1] channels; cos broadcasts against x's leading axes."""
    n = 2 * cos.shape[-1]
    a, b = x[..., -n:].float().unflatten(-1, (n // 2, 2)).unbind(-1)
    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    return torch.cat((x[..., :-n], turned.to(x.dtype)), -1)


def linear(x, w, simulate):
    """y = x W^T in front of an FP8 or FP4 weight; `simulate` rounds x as the dynamic activation scheme does."""
    return F.linear(fake_fp8(x, 128) if simulate else x, w)


# ------------------------------------------------------------------------------------------------ residual streams

def hc_pre(h, fn, base, scale, norm, m, eps, hc_eps):
    """h [B,T,m,D] -> normalised layer input [B,T,D], post [B,T,m], unnormalised mixing logits [B,T,m,m]."""
    z = h.flatten(-2)
    mix = F.linear(z, fn.to(z.dtype)).float() * torch.rsqrt(z.float().square().mean(-1, keepdim=True) + eps)
    pre = torch.sigmoid(mix[..., :m] * scale[0] + base[:m]) + hc_eps
    post = 2 * torch.sigmoid(mix[..., m:2 * m] * scale[1] + base[m:2 * m])
    logits = (mix[..., 2 * m:] * scale[2] + base[2 * m:]).unflatten(-1, (m, m))
    x = sum(pre[..., j, None] * h[..., j, :].float() for j in range(m)).to(h.dtype)
    return rms_norm(x, norm, eps), post, logits


def sinkhorn(logits, iterations, eps):
    """[B,T,m,m] -> doubly stochastic mixing matrices; row = source stream, column = destination stream."""
    M = torch.softmax(logits, -1) + eps
    M = M / (M.sum(-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        M = M / (M.sum(-1, keepdim=True) + eps)
        M = M / (M.sum(-2, keepdim=True) + eps)
    return M


def hc_post(x, residual, post, comb, m):
    res = residual.float()
    mixed = [post[..., k, None] * x.float() + sum(comb[..., j, k, None] * res[..., j, :] for j in range(m)) for k in range(m)]
    return torch.stack(mixed, -2).to(residual.dtype)


# -------------------------------------------------------------------------------------------------------- attention

def project(x, wq_a, q_norm, wq_b, wkv, kv_norm, cos, sin, heads, eps, simulate):
    """-> qr [B,T,R], q [B,T,H,d] and kv [B,T,d], both rotated; cos, sin are [T,32] or [B,T,32]."""
    qr = rms_norm(linear(x, wq_a, simulate), q_norm, eps)
    q = rms_norm(linear(qr, wq_b, simulate).unflatten(-1, (heads, -1)), None, eps)
    kv = rotate(rms_norm(linear(x, wkv, simulate), kv_norm, eps), cos, sin)
    if simulate:
        kv = quantise_entry(kv, 2 * cos.shape[-1])
    return qr, rotate(q, cos[..., None, :], sin[..., None, :]), kv


def quantise_entry(kv, rotary):
    """The round trip of a cache entry: FP8 in blocks of 64 except for the rotary channels."""
    return torch.cat((fake_fp8(kv[..., :-rotary], 64), kv[..., -rotary:]), -1)


def compress(x, wkv, wgate, ape, norm, cos, sin, ratio, eps, simulate, mixer):
    """x [B,T,D] -> entries [B,S,n]: one per `ratio` tokens, over two windows when ratio is 4; cos, sin are [S,32].

    simulate: None, "entry" (the FP8 cache entry) or "index" (Hadamard transform `mixer`, then FP4).
    """
    B, T, _ = x.shape
    S = T // ratio
    a = F.linear(x, wkv)[:, :S * ratio].float().unflatten(1, (S, ratio))
    b = F.linear(x, wgate)[:, :S * ratio].float().unflatten(1, (S, ratio)) + ape
    if ratio == 4:
        n = a.shape[-1] // 2
        previous_a = F.pad(a[:, :-1, :, :n], (0, 0, 0, 0, 1, 0))
        previous_b = F.pad(b[:, :-1, :, :n], (0, 0, 0, 0, 1, 0), value=-1e30)   # weight exactly 0
        a, b = torch.cat((previous_a, a[..., n:]), 2), torch.cat((previous_b, b[..., n:]), 2)
    entry = (torch.softmax(b, 2) * a).sum(2).to(x.dtype)
    entry = rotate(rms_norm(entry, norm, eps), cos, sin)
    if simulate == "entry":
        entry = quantise_entry(entry, 2 * cos.shape[-1])
    elif simulate == "index":
        entry = fake_fp4(entry @ mixer)
    return entry


def attend_window(q, kv, window):
    """exp of the logits over the raw window, in blocks of `window` queries x 2 * window keys.

    -> weights [B, blocks, window, H, 2 * window], float32, and the keys of each block [B, blocks, 2 * window, d].
    The norms bound the logits by about 23 times kv_norm's size, so no maximum has to be subtracted.
    """
    B, T, H, d = q.shape
    blocks = T // window
    keys = kv.view(B, blocks, window, d)
    keys = torch.cat((F.pad(keys[:, :-1], (0, 0, 0, 0, 1, 0)), keys), 2)
    logits = (q.reshape(B, blocks, window * H, d) @ keys.transpose(-1, -2)).view(B, blocks, window, H, 2 * window)
    i = torch.arange(window, device=q.device)[:, None]
    j = torch.arange(2 * window, device=q.device)[None]
    visible = (j > i) & (j <= i + window)
    first = torch.arange(blocks, device=q.device)[:, None, None] == 0
    visible = visible & ~(first & (j < window))
    return torch.where(visible[:, :, None], torch.exp(logits.float() * d ** -0.5), 0.0), keys


def core_window(q, kv, sink, window):
    """Attention of a sliding-window layer -> [B,T,H,d]."""
    B, T, H, d = q.shape
    weights, keys = attend_window(q, kv, window)
    total = weights.sum(-1) + torch.exp(sink)
    out = (weights.to(q.dtype).flatten(2, 3) @ keys).view(B, -1, window, H, d)
    return (out.float() / total[..., None]).to(q.dtype).view(B, T, H, d)


def core_compressed(q, kv, entries, visible, sink, window):
    """Attention over raw window and visible [B or 1,T,S] compressed entries -> [B,T,H,d] and the denominators [B,T,H]."""
    B, T, H, d = q.shape
    weights, keys = attend_window(q, kv, window)
    logits = (q.reshape(B, T * H, d) @ entries.transpose(-1, -2)).view(B, T, H, -1)
    far = torch.where(visible[:, :, None], torch.exp(logits.float() * d ** -0.5), 0.0)
    total = (weights.sum(-1) + torch.exp(sink)).view(B, T, H) + far.sum(-1)
    near_out = (weights.to(q.dtype).flatten(2, 3) @ keys).view(B, T, H, d)
    far_out = (far.to(q.dtype).flatten(1, 2) @ entries).view(B, T, H, d)
    return ((near_out.float() + far_out.float()) / total[..., None]).to(q.dtype), total


def output(o, wo_a, wo_b, cos, sin, groups, simulate):
    """o [B,T,H,d] -> [B,T,D]: inverse rotation, grouped low-rank projection."""
    B, T, H, d = o.shape
    u = rotate(o, cos[..., None, :], -sin[..., None, :]).reshape(B, T, groups, -1)
    y = torch.einsum("btgi,goi->btgo", u, wo_a.view(groups, -1, u.shape[-1]))
    return linear(y.flatten(-2), wo_b, simulate)


def index_queries(x, qr, wq_b, weights_proj, cos, sin, heads, simulate, mixer):
    """-> indexer queries [B,T,heads,n] and head weights [B,T,heads], the constant factor included."""
    iq = rotate(linear(qr, wq_b, simulate).unflatten(-1, (heads, -1)), cos[:, None], sin[:, None])
    factor = iq.shape[-1] ** -0.5 * heads ** -0.5
    return fake_fp4(iq @ mixer) if simulate else iq, F.linear(x, weights_proj).float() * factor


def index_scores(iq, ik, weights):
    """iq [B,T,h,n], ik [B,S,n], weights [B,T,h] -> scores [B,T,S]."""
    B, T, heads, n = iq.shape
    products = (iq.reshape(B, T * heads, n) @ ik.transpose(-1, -2)).view(B, T, heads, -1)
    return (torch.relu(products.float()) * weights[..., None]).sum(2)


def visibility(T, S, ratio, device):
    """[1,T,S]: entry s is visible to the token that completes it and to all later ones."""
    return ((torch.arange(S, device=device) + 1) * ratio <= torch.arange(T, device=device)[:, None] + 1)[None]


@torch.no_grad()
def select(scores, visible, k):
    """The k highest-scored visible entries of each row as a mask; equal scores: the lower index."""
    if scores.shape[-1] <= k:
        return visible.expand_as(scores)
    scores = scores.masked_fill(~visible, -math.inf)
    if scores.is_cuda:
        picks = torch.topk(scores, k, dim=-1, sorted=False).indices
    else:
        picks = torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :k]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, picks, True) & visible


def index_loss(q, entries, total, iq, ik, weights, visible):
    """KL divergence from the attention over compressed entries (summed over heads) to the indexer's softmax.

    All but iq, ik and weights are constants here; rows count by the share of attention that goes to compressed entries.
    """
    B, T, H, d = q.shape
    logits = (q.reshape(B, T * H, d) @ entries.transpose(-1, -2)).view(B, T, H, -1)
    target = (torch.exp(logits.float() * d ** -0.5) / total[..., None]).sum(2)
    target = torch.where(visible, target, 0.0)
    mass = target.sum(-1, keepdim=True)
    target = target / (mass + 1e-9)
    scores = index_scores(iq, ik, weights).masked_fill(~visible, -1e30)
    divergence = (target * (torch.log(target + 1e-9) - torch.log_softmax(scores, -1))).sum(-1)
    row_weight = mass[..., 0] * visible.any(-1)
    return (divergence * row_weight).sum() / (row_weight.sum() + 1e-6)


# -------------------------------------------------------------------------------------------------------------- MoE

def ffn(x, w1, w3, limit, simulate):
    gate = linear(x, w1, simulate).float().clamp(max=limit)
    up = linear(x, w3, simulate).float().clamp(-limit, limit)
    return F.silu(gate) * up


def moe(x, gate, bias, chosen, w1, w3, w2, s1, s3, s2, k, scaling, limit, simulate):
    """x [B,T,D] -> [B,T,D] and the share of tokens of each expert [E].

    Every expert is computed for every token: at this size that is one dense product, cheaper than sorting tokens.
    chosen [B,T,E] is the hash layers' fixed choice, None elsewhere.
    """
    E, I, D = w1.shape
    scores = torch.sqrt(F.softplus(F.linear(x.float(), gate.float())))
    if chosen is None:
        picks = torch.topk((scores + bias).detach(), k, dim=-1).indices
        chosen = torch.zeros_like(scores).scatter_(-1, picks, 1.0)
    weight = scores * chosen
    weight = weight / weight.sum(-1, keepdim=True) * scaling
    hidden = ffn(x, w1.view(E * I, D), w3.view(E * I, D), limit, simulate).unflatten(-1, (E, I)) * weight[..., None]
    hidden = hidden.to(x.dtype).flatten(-2)
    routed = linear(hidden, w2.permute(1, 0, 2).reshape(D, E * I), simulate)
    shared = linear(ffn(x, s1, s3, limit, simulate).to(x.dtype), s2, simulate)
    return (routed.float() + shared.float()).to(x.dtype), chosen.float().mean((0, 1))


# ------------------------------------------------------------------------------------------------------------- head

def final_state(h, fn, base, scale, norm, eps, hc_eps):
    z = h.flatten(-2)
    mix = F.linear(z, fn.to(z.dtype)).float() * torch.rsqrt(z.float().square().mean(-1, keepdim=True) + eps)
    pre = torch.sigmoid(mix * scale[0] + base) + hc_eps
    return rms_norm((pre[..., None] * h.float()).sum(-2).to(h.dtype), norm, eps)


def token_losses(y, head, targets):
    """Negative log-likelihood of each target [B,T], float32."""
    logits = F.linear(y, head).float()
    return torch.logsumexp(logits, -1) - logits.gather(-1, targets[..., None])[..., 0]


_hc_pre, _sinkhorn, _hc_post = compiled(hc_pre), compiled(sinkhorn), compiled(hc_post)
_project, _compress, _output = compiled(project), compiled(compress), compiled(output)
_core_window, _core_compressed = compiled(core_window), compiled(core_compressed)
_index_queries, _index_scores, _index_loss = compiled(index_queries), compiled(index_scores), compiled(index_loss)
_moe, _final_state, _token_losses = compiled(moe), compiled(final_state), compiled(token_losses)


class Model:
    """Runs the forward pass over a dictionary of tensors.

    sparse: attention of CSA layers sees only the indexer's picks; otherwise all visible entries.
    simulate: activations, cache entries and indexer vectors are rounded as the released model does in service.
    index_rows: every how many tokens the indexer is trained on; 0 leaves the indexer's loss out.
    """

    def __init__(self, config, tensors):
        self.c, self.p = config, tensors
        self.sparse, self.simulate, self.index_rows = False, False, 0
        self.tables, self.loads = {}, {}

    def rope(self, compressed, T, ratio, device):
        key = (compressed, T, ratio, device)
        if key not in self.tables:
            self.tables[key] = rope_table(self.c, compressed, torch.arange(0, T, ratio, device=device)[:T // ratio])
        return self.tables[key]

    def visible(self, T, ratio, device):
        key = ("visible", T, ratio, device)
        if key not in self.tables:
            self.tables[key] = visibility(T, T // ratio, ratio, device)
        return self.tables[key]

    def hc(self, h, name, norm):
        c, p = self.c, self.p
        x, post, logits = _hc_pre(h, p[name + "_fn"], p[name + "_base"], p[name + "_scale"], p[norm], c.hc_mult,
                                  c.rms_norm_eps, c.hc_eps)
        return x, post, _sinkhorn(logits, c.hc_sinkhorn_iters, c.hc_eps)

    def attention(self, x, layer, index_losses):
        c, p, a = self.c, self.p, f"layers.{layer}.attn."
        ratio, T, sim = c.compress_ratios[layer], x.shape[1], self.simulate
        cos, sin = self.rope(bool(ratio), T, 1, x.device)
        qr, q, kv = _project(x, p[a + "wq_a.weight"], p[a + "q_norm.weight"], p[a + "wq_b.weight"], p[a + "wkv.weight"],
                             p[a + "kv_norm.weight"], cos, sin, c.num_attention_heads, c.rms_norm_eps, sim)
        if not ratio:
            o = _core_window(q, kv, p[a + "attn_sink"], c.sliding_window)
        else:
            entries = self.compressed(x, a + "compressor.", ratio, "entry" if sim else None)
            visible = self.visible(T, ratio, x.device)
            if ratio == 4:
                index = self.index(x.detach(), qr.detach(), a + "indexer.")
                if self.sparse:
                    with torch.no_grad():
                        visible = select(_index_scores(*index), visible, c.index_topk)
            o, total = _core_compressed(q, kv, entries, visible, p[a + "attn_sink"], c.sliding_window)
            if ratio == 4 and self.index_rows:
                rows = torch.arange(0, T, self.index_rows, device=x.device)
                rows = rows + torch.randint(self.index_rows, (1,), device=x.device)
                pick = lambda t: t.index_select(1, rows)
                iq, ik, weights = index
                index_losses.append(_index_loss(pick(q.detach()), entries.detach(), pick(total.detach()), pick(iq), ik,
                                                pick(weights), pick(self.visible(T, 4, x.device))))
        return _output(o, p[a + "wo_a.weight"], p[a + "wo_b.weight"], cos, sin, c.o_groups, sim)

    def compressed(self, x, name, ratio, simulate):
        p = self.p
        cos, sin = self.rope(True, x.shape[1], ratio, x.device)
        return _compress(x, p[name + "wkv.weight"], p[name + "wgate.weight"], p[name + "ape"], p[name + "norm.weight"],
                         cos, sin, ratio, self.c.rms_norm_eps, simulate, self.mixer(x) if simulate == "index" else None)

    def mixer(self, x):
        key = ("hadamard", x.device, x.dtype)
        if key not in self.tables:
            self.tables[key] = hadamard(self.c.index_head_dim).to(x.device, x.dtype)
        return self.tables[key]

    def index(self, x, qr, name):
        cos, sin = self.rope(True, x.shape[1], 1, x.device)
        iq, weights = _index_queries(x, qr, self.p[name + "wq_b.weight"], self.p[name + "weights_proj.weight"], cos, sin,
                                     self.c.index_n_heads, self.simulate, self.mixer(x) if self.simulate else None)
        return iq, self.compressed(x, name + "compressor.", 4, "index" if self.simulate else None), weights

    def mixture(self, x, layer, ids):
        c, p, f = self.c, self.p, f"layers.{layer}.ffn."
        chosen, bias = None, p.get(f + "gate.bias")
        if layer < c.num_hash_layers:
            chosen = F.one_hot(p[f + "gate.tid2eid"][ids], c.n_routed_experts).sum(-2).float()
        names = [f"{kind}.{w}.weight" for kind in ("experts", "shared_experts") for w in ("w1", "w3", "w2")]
        y, load = _moe(x, p[f + "gate.weight"], bias, chosen, *(p[f + n] for n in names), c.num_experts_per_tok,
                       c.routed_scaling_factor, c.swiglu_limit, self.simulate)
        if chosen is None:
            self.loads[layer] = load.detach()
        return y

    def streams(self, ids, taps=()):
        """ids [B,T] -> the residual streams after the last layer [B,T,m,D], the means [B,T,D] over the streams after
        each layer of `taps` (what a draft head reads), and the indexers' losses.

        T must be a multiple of 128 (the window's block); pad on the right: later tokens never change earlier ones.
        """
        c, p, index_losses, tapped = self.c, self.p, [], {}
        h = F.embedding(ids, p["embed.weight"])[:, :, None].expand(-1, -1, c.hc_mult, -1).contiguous()
        for layer in range(c.num_hidden_layers):
            pre = f"layers.{layer}."
            x, post, comb = self.hc(h, pre + "hc_attn", pre + "attn_norm.weight")
            h = _hc_post(self.attention(x, layer, index_losses), h, post, comb, c.hc_mult)
            x, post, comb = self.hc(h, pre + "hc_ffn", pre + "ffn_norm.weight")
            h = _hc_post(self.mixture(x, layer, ids), h, post, comb, c.hc_mult)
            if layer in taps:
                tapped[layer] = h.float().mean(-2).to(h.dtype)
        return h, [tapped[layer] for layer in taps], index_losses

    def final(self, h):
        """The normalised final state [B,T,D] of streams h."""
        c, p = self.c, self.p
        return _final_state(h, p["hc_head_fn"], p["hc_head_base"], p["hc_head_scale"], p["norm.weight"], c.rms_norm_eps, c.hc_eps)

    def states(self, ids):
        """ids [B,T], T as in `streams` -> the normalised final state [B,T,D] and the mean of the indexers' losses."""
        h, _, index_losses = self.streams(ids)
        return self.final(h), sum(index_losses) / len(index_losses) if index_losses else 0.0

    def losses(self, ids, targets):
        """-> negative log-likelihoods [B,T] and the indexers' loss."""
        y, index_loss_mean = self.states(ids)
        return _token_losses(y, self.p["head.weight"], targets), index_loss_mean

    @torch.no_grad()
    def logits(self, ids):
        """ids [B,T], any T -> logits [B,T,V] in float32."""
        T = ids.shape[1]
        y, _ = self.states(F.pad(ids, (0, -T % 128)))
        return F.linear(y[:, :T], self.p["head.weight"]).float()
