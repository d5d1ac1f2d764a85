"""On-policy text for draft heads: prompts cut from the corpus, continued by the target itself, kept with its states."""
import os
import time

import numpy as np
import torch

from batches import DOMAINS
from generate import Generator
from tasks import BOS, Text

DRAFT_DOMAINS = DOMAINS + ("chat",)
DOMAIN_SHARES = (0.3, 0.26, 0.2, 0.24)
SHORTEST_PROMPT, LONGEST_PROMPT = 24, 192


class Prompts:
    """Prompts of one split (train or heldout), drawn by domain from the files that prepare.py wrote."""

    def __init__(self, data, split, answer_mark, rng):
        """answer_mark: the token id after which an answer starts (`</think>`)."""
        self.rng, self.mark = rng, answer_mark
        self.text = Text([os.path.join(data, f"{split}_{d}") for d in DOMAINS], [1] * len(DOMAINS))
        tokens, starts = Text([os.path.join(data, f"{split}_chat")], [1]).streams[0]
        self.chats = [np.array(tokens[a:b]) for a, b in zip(starts, list(starts[1:]) + [len(tokens)])]

    def chat(self):
        """A conversation up to the start of its first answer."""
        while True:
            document = self.chats[self.rng.integers(len(self.chats))]
            marks = np.flatnonzero(document[:LONGEST_PROMPT] == self.mark)
            if len(marks):
                return document[:marks[0] + 1]

    def draw(self, count, domains=None):
        """-> prompts [count, LONGEST_PROMPT] (zeros behind their ends), lengths [count], domains [count], as int64 tensors.

        `domains`: the domain of each prompt; drawn by DOMAIN_SHARES if None.
        """
        rng = self.rng
        domains = rng.choice(len(DRAFT_DOMAINS), count, p=DOMAIN_SHARES) if domains is None else np.asarray(domains)
        prompts, lengths = np.zeros((count, LONGEST_PROMPT), np.int64), np.zeros(count, np.int64)
        for row, domain in enumerate(domains):
            if DRAFT_DOMAINS[domain] == "chat":
                ids = self.chat()
            else:
                ids = self.text.cut(rng, int(rng.integers(SHORTEST_PROMPT, LONGEST_PROMPT + 1)), int(domain))
                ids[0] = BOS
            prompts[row, :len(ids)], lengths[row] = ids, len(ids)
        return torch.from_numpy(prompts), torch.from_numpy(lengths), torch.from_numpy(domains.astype(np.int64))


class Cache:
    """Texts [N,T] with the target's states: taps [N,T,layers,D], final streams [N,T,m,D], normed final state y [N,T,D]."""

    def __init__(self, net, prompts, length, taps, streams, batch, tokens_wanted, budget_bytes):
        """Generates ceil(tokens_wanted / (batch * length)) batches, fewer if they would pass budget_bytes."""
        c, device, dtype = net.c, net.p["embed.weight"].device, net.p["embed.weight"].dtype
        per_token = (c.hidden_size * (len(taps) + (c.hc_mult if streams else 0) + 1)) * net.p["embed.weight"].element_size() + 8
        batches = max(1, min(round(tokens_wanted / (batch * length) + 0.49), int(budget_bytes / (per_token * batch * length))))
        n, began = batches * batch, time.time()
        self.length = length
        self.tokens = torch.zeros(n, length, dtype=torch.long, device=device)
        self.prompt = torch.zeros(n, dtype=torch.long, device=device)
        self.domains = torch.zeros(n, dtype=torch.long)
        self.taps = torch.empty(n, length, len(taps), c.hidden_size, device=device, dtype=dtype)
        self.streams = torch.empty(n, length, c.hc_mult, c.hidden_size, device=device, dtype=dtype) if streams else None
        self.y = torch.empty(n, length, c.hidden_size, device=device, dtype=dtype)
        generator = Generator(net, batch, length, taps)
        for at in range(0, n, batch):
            part = slice(at, at + batch)
            ids, lengths, self.domains[part] = prompts.draw(batch)
            self.prompt[part] = lengths.to(device)

            def keep(t, states):
                self.taps[part, t] = states["taps"]
                self.y[part, t] = states["y"]
                if streams:
                    self.streams[part, t] = states["streams"]
            self.tokens[part] = generator.run(ids.to(device), lengths.to(device), keep)
            if device.type == "cuda":
                torch.cuda.synchronize()
            spent = time.time() - began
            print(f"generated {(at + batch) * length / 1e6:.2f} M tokens in {spent:.1f} s "
                  f"({(at + batch) * length / spent / 1e3:.0f}k/s)", flush=True)

    def batch(self, size, anchors, slots, generator):
        """-> tokens [size,T], taps, streams, y and sorted anchor positions [size,anchors] in what was sampled.

        All `slots` tokens after an anchor are inside the text.
        """
        device = self.tokens.device
        rows = torch.randperm(len(self.tokens), generator=generator, device=device)[:size]
        at = torch.arange(self.length, device=device)
        allowed = (at >= self.prompt[rows, None]) & (at < self.length - slots)
        noise = torch.rand(size, self.length, generator=generator, device=device).masked_fill(~allowed, -1.0)
        chosen = torch.topk(noise, anchors, dim=-1).indices.sort(-1).values
        streams = self.streams[rows] if self.streams is not None else None
        return self.tokens[rows], [t.contiguous() for t in self.taps[rows].unbind(2)], streams, self.y[rows], chosen
