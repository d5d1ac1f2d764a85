"""Samples text from the target, one token of thousands of sequences a step, and keeps the states that draft heads read.

The arithmetic is that of model.Model.streams token by token, with its `simulate` and `sparse` settings, so that what is
kept is what an engine that serves the model would hand to a draft head. All sequences are at the same position, so every
step is the same program on tensors of fixed shape, and a GPU replays it as one CUDA graph.
"""
import torch
import torch.nn.functional as F

from model import (_final_state, _hc_post, _index_queries, _index_scores, _output, _project, compiled, fake_fp4,
                   quantise_entry, rms_norm, rope_table, rotate, select)


def attend_step(q, ring, entries, near_visible, far_visible, sink):
    """q [N,1,H,d], ring [N,W,d], entries [N,S,d] or None, masks [W] and [N or 1,S] -> [N,1,H,d]."""
    scale = q.shape[-1] ** -0.5
    near = torch.where(near_visible, torch.exp((q[:, 0] @ ring.transpose(-1, -2)).float() * scale), 0.0)
    total, out = near.sum(-1) + torch.exp(sink), (near.to(q.dtype) @ ring).float()
    if entries is not None:
        far = (q[:, 0] @ entries.transpose(-1, -2)).float() * scale
        far = torch.where(far_visible[:, None], torch.exp(far), 0.0)
        total, out = total + far.sum(-1), out + (far.to(q.dtype) @ entries).float()
    return (out / total[..., None]).to(q.dtype)[:, None]


def finish_entry(entry, norm, cos, sin, eps, simulate, mixer):
    """As the end of model.compress."""
    entry = rotate(rms_norm(entry, norm, eps), cos, sin)
    if simulate == "entry":
        return quantise_entry(entry, 2 * cos.shape[-1])
    return fake_fp4(entry @ mixer) if simulate == "index" else entry


def compress_pair(a, b, current, previous, norm, cos, sin, eps, dtype, simulate, mixer):
    """Ratio 4: a, b [N,8,2n] hold the last eight tokens; -> the entry [N,1,n] over two windows (see model.compress)."""
    n = a.shape[-1] // 2
    values = torch.cat((a.index_select(1, previous)[..., :n], a.index_select(1, current)[..., n:]), 1)
    weights = torch.cat((b.index_select(1, previous)[..., :n], b.index_select(1, current)[..., n:]), 1)
    entry = (torch.softmax(weights, 1) * values).sum(1, keepdim=True).to(dtype)
    return finish_entry(entry, norm, cos, sin, eps, simulate, mixer)


def accumulate(state, a, b, begins):
    """Other ratios: a running softmax. state [N,3,n]: largest b, sum of weights, weighted sum; a, b [N,1,n]."""
    largest, weight, value = (torch.where(begins, fresh, s) for fresh, s in zip((-1e30, 0.0, 0.0), state.unbind(1)))
    a, b = a[:, 0], b[:, 0]
    top = torch.maximum(largest, b)
    old, new = torch.exp(largest - top), torch.exp(b - top)
    return torch.stack((top, weight * old + new, value * old + a * new), 1)


def draw(y, head, temperature):
    """One token [N] of each row of y [N,1,D]: the most likely one at temperature 0, else a sample."""
    logits = F.linear(y[:, 0].float(), head.float())
    if not temperature:
        return logits.argmax(-1)
    race = torch.empty_like(logits).exponential_()
    return (torch.softmax(logits / temperature, -1) / race).argmax(-1)


_attend_step, _compress_pair, _accumulate = compiled(attend_step), compiled(compress_pair), compiled(accumulate)
_finish_entry = compiled(finish_entry)


class Compressor:
    """The state of one compressor for N sequences; entries has one slot more than is read: what isn't due goes there."""

    def __init__(self, net, name, ratio, n, sequences, length, simulate):
        device, dtype = net.p["embed.weight"].device, net.p["embed.weight"].dtype
        self.net, self.name, self.ratio, self.simulate, self.slots = net, name, ratio, simulate, length // ratio
        self.entries = torch.zeros(sequences, self.slots + 1, n, device=device, dtype=dtype)
        shape = (2, sequences, 8, 2 * n) if ratio == 4 else (sequences, 3, n)
        self.state = torch.zeros(shape, device=device)
        self.cos, self.sin = rope_table(net.c, True, torch.arange(0, (self.slots + 1) * ratio, ratio, device=device))
        self.reset()

    def reset(self):
        self.state.zero_()
        if self.ratio == 4:
            self.state[1] = -1e30                    # the window before the first one has weight exactly 0
        self.entries.zero_()

    def step(self, x, t):
        """Takes x [N,1,D] of position t (a tensor [1]); returns the entries [N,S,n]."""
        p, name, ratio = self.net.p, self.name, self.ratio
        a = F.linear(x, p[name + "wkv.weight"]).float()
        b = F.linear(x, p[name + "wgate.weight"]).float() + p[name + "ape"][t % ratio]
        group = t // ratio
        slot = torch.where(t % ratio == ratio - 1, group, self.slots)
        ending = (p[name + "norm.weight"], self.cos[group], self.sin[group], self.net.c.rms_norm_eps)
        mixer = self.net.mixer(x) if self.simulate == "index" else None
        if ratio == 4:
            self.state[0].index_copy_(1, t % 8, a)
            self.state[1].index_copy_(1, t % 8, b)
            current = (group * 4 + torch.arange(4, device=t.device)) % 8
            entry = _compress_pair(self.state[0], self.state[1], current, (current + 4) % 8, *ending, x.dtype, self.simulate, mixer)
        else:
            self.state.copy_(_accumulate(self.state, a, b, t % ratio == 0))
            entry = (self.state[:, 2:] / self.state[:, 1:2]).to(x.dtype)
            entry = _finish_entry(entry, *ending, self.simulate, mixer)
        self.entries.index_copy_(1, slot, entry)
        return self.entries[:, :self.slots]


class Generator:
    """Continues prompts to `length` tokens. After every step `kept` holds what that position's states are."""

    def __init__(self, net, sequences, length, taps=(), temperature=1.0):
        c, p = net.c, net.p
        device, dtype = p["embed.weight"].device, p["embed.weight"].dtype
        self.net, self.length, self.taps, self.temperature = net, length, taps, temperature
        self.t = torch.zeros(1, dtype=torch.long, device=device)
        self.tokens = torch.zeros(sequences, length + 1, dtype=torch.long, device=device)
        self.prompt = torch.zeros(sequences, dtype=torch.long, device=device)
        self.rings, self.compressors, self.indexers = {}, {}, {}
        for layer, ratio in enumerate(c.compress_ratios[:c.num_hidden_layers]):
            a, sim = f"layers.{layer}.attn.", net.simulate
            self.rings[layer] = torch.zeros(sequences, c.sliding_window, c.head_dim, device=device, dtype=dtype)
            if ratio:
                self.compressors[layer] = Compressor(net, a + "compressor.", ratio, c.head_dim, sequences, length, "entry" if sim else None)
            if ratio == 4:
                self.indexers[layer] = Compressor(net, a + "indexer.compressor.", ratio, c.index_head_dim, sequences, length, "index" if sim else None)
        self.ropes = {kind: rope_table(c, kind, torch.arange(length, device=device)) for kind in (False, True)}
        self.graph, self.kept = None, None

    def reset(self, prompts, lengths):
        """prompts [N, longest] and the number of their tokens [N]: what is forced before sampling starts."""
        self.t.zero_()
        self.tokens.zero_()
        self.tokens[:, :prompts.shape[1]] = prompts
        self.prompt.copy_(lengths)
        for ring in self.rings.values():
            ring.zero_()
        for compressor in (*self.compressors.values(), *self.indexers.values()):
            compressor.reset()

    def attention(self, x, layer):
        net, t = self.net, self.t
        c, p, a, ratio, sim = net.c, net.p, f"layers.{layer}.attn.", net.c.compress_ratios[layer], net.simulate
        cos, sin = (table[t] for table in self.ropes[bool(ratio)])
        qr, q, kv = _project(x, p[a + "wq_a.weight"], p[a + "q_norm.weight"], p[a + "wq_b.weight"], p[a + "wkv.weight"],
                             p[a + "kv_norm.weight"], cos, sin, c.num_attention_heads, c.rms_norm_eps, sim)
        ring, entries, far = self.rings[layer], None, None
        ring.index_copy_(1, t % c.sliding_window, kv)
        near = torch.arange(c.sliding_window, device=t.device) <= t
        if ratio:
            entries = self.compressors[layer].step(x, t)
            far = ((torch.arange(entries.shape[1], device=t.device) + 1) * ratio <= t + 1)[None]
        if ratio == 4:
            iq, weights = _index_queries(x, qr, p[a + "indexer.wq_b.weight"], p[a + "indexer.weights_proj.weight"], cos, sin,
                                         c.index_n_heads, sim, net.mixer(x) if sim else None)
            keys = self.indexers[layer].step(x, t)
            if net.sparse:
                far = select(_index_scores(iq, keys, weights), far[None], c.index_topk)[:, 0]
        o = _attend_step(q, ring, entries, near, far, p[a + "attn_sink"])
        return _output(o, p[a + "wo_a.weight"], p[a + "wo_b.weight"], cos, sin, c.o_groups, sim)

    def step(self):
        """One token: consumes the one at position t, puts the next one at t + 1 unless the prompt has one there."""
        net, c, p, t = self.net, self.net.c, self.net.p, self.t
        ids = self.tokens.index_select(1, t)
        h = F.embedding(ids, p["embed.weight"])[:, :, None].expand(-1, -1, c.hc_mult, -1).contiguous()
        tapped = {}
        for layer in range(c.num_hidden_layers):
            pre = f"layers.{layer}."
            x, post, comb = net.hc(h, pre + "hc_attn", pre + "attn_norm.weight")
            h = _hc_post(self.attention(x, layer), h, post, comb, c.hc_mult)
            x, post, comb = net.hc(h, pre + "hc_ffn", pre + "ffn_norm.weight")
            h = _hc_post(net.mixture(x, layer, ids), h, post, comb, c.hc_mult)
            if layer in self.taps:
                tapped[layer] = h.float().mean(-2).to(h.dtype)
        y = net.final(h)
        drawn = draw(y, p["head.weight"], self.temperature)[:, None]
        forced = self.tokens.index_select(1, t + 1)
        self.tokens.index_copy_(1, t + 1, torch.where((t + 1 < self.prompt)[:, None], forced, drawn))
        self.t += 1
        return {"taps": torch.cat([tapped[layer] for layer in self.taps], 1) if self.taps else None, "streams": h[:, 0], "y": y[:, 0]}

    def capture(self):
        """Records the step as a CUDA graph; what has been generated so far is lost."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), torch.no_grad():
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph), torch.no_grad():
            self.kept = self.step()

    @torch.no_grad()
    def run(self, prompts, lengths, keep=None):
        """Generates; keep(t, states) is called after every step. Returns the tokens [N, length]."""
        if self.graph is None and self.t.is_cuda:
            self.reset(prompts, lengths)
            self.capture()
        self.reset(prompts, lengths)
        for t in range(self.length):
            if self.graph is not None:
                self.graph.replay()
            else:
                self.kept = self.step()
            if keep:
                keep(t, self.kept)
        return self.tokens[:, :self.length].clone()
