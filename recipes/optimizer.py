"""Master weights and their optimisers: Muon for matrices, AdamW for everything else.

The model computes with copies of the masters. With quantisation on, a copy holds the values that the stored tensor
will have (the gradient goes to the master unchanged: a straight-through estimate), so what is trained is what is shipped.
"""
import torch

import quant

MUON_KINDS = ("matrix", "last")
ADAM_RATE = {"embed": 3e-3, "head": 2e-3, "one": 2e-3, "zero": 1e-2, "ape": 1e-2, "hc_fn": 1e-3, "hc_base": 5e-3,
             "hc_scale": 5e-3, "small": 2e-3, "bias": 2e-3, "markov": 2e-3}
MUON_RATE, MUON_MOMENTUM, MUON_DECAY = 6e-3, 0.95, 0.05


def orthogonalise(g):
    """Newton-Schulz iteration: [..., r, c] -> nearly the closest matrix with orthonormal rows or columns."""
    x = g.to(torch.bfloat16 if g.is_cuda else torch.float32)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.float().square().sum((-2, -1), keepdim=True).sqrt().to(x.dtype) + 1e-7)
    for a, b, c in ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037),
                    (2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012)):
        xx = x @ x.mT
        x = a * x + (b * xx + c * xx @ xx) @ x
    return (x if wide else x.mT).float()


class Optimizer:
    def __init__(self, names, masters, dtype, device):
        """names: what model.shapes returns; masters: name -> float32. self.tensors holds the model's copies, by name."""
        self.names, self.tensors, self.quantise = names, {}, False
        groups = {}
        for name, (shape, storage, kind) in self.names.items():
            if kind in MUON_KINDS:
                groups.setdefault((shape, storage), []).append(name)
        self.groups = []
        for (shape, storage), names in groups.items():
            stack = torch.stack([masters[n] for n in names]).to(device)
            copy = stack.to(dtype, copy=True)
            for n, c in zip(names, copy):
                self.tensors[n] = c.requires_grad_()          # a view that is a leaf: shares the stack's memory
            self.groups.append((names, storage, stack, copy.detach(), torch.zeros_like(stack)))
        by_kind = {}
        self.small = {}
        for name, (shape, storage, kind) in self.names.items():
            if kind not in MUON_KINDS:
                self.small[name] = masters[name].to(device).clone()
                self.tensors[name] = self.small[name].to(torch.float32 if storage == "f32" else dtype).clone().requires_grad_()
                by_kind.setdefault(kind, []).append(self.small[name])
        extra = {"fused": True} if torch.device(device).type == "cuda" else {}
        self.adam = torch.optim.AdamW([{"params": p, "lr": ADAM_RATE[k], "base": ADAM_RATE[k]} for k, p in by_kind.items()],
                                      betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, **extra)

    @torch.no_grad()
    def refresh(self):
        """Brings the model's copies up to the masters."""
        for _, storage, stack, copy, _ in self.groups:
            copy.copy_(quant.stored_values(stack, storage) if self.quantise else stack)
        for name, master in self.small.items():
            self.tensors[name].copy_(master)

    @torch.no_grad()
    def step(self, factor):
        """One update with all rates times `factor`; clears the gradients. Returns nothing."""
        for names, _, stack, _, momentum in self.groups:
            g = torch.stack([self.tensors[n].grad.float() for n in names])
            momentum.lerp_(g, 1 - MUON_MOMENTUM)
            update = orthogonalise(g.lerp(momentum, MUON_MOMENTUM))
            rate = MUON_RATE * factor
            stack.mul_(1 - rate * MUON_DECAY).add_(update, alpha=-rate * 0.2 * max(stack.shape[-2:]) ** 0.5)
        for name, master in self.small.items():
            master.grad = self.tensors[name].grad.float()
        for group in self.adam.param_groups:
            group["lr"] = group["base"] * factor
        self.adam.step()
        for t in self.tensors.values():
            t.grad = None
        self.refresh()

    def masters(self):
        out = {n: m for names, _, stack, _, _ in self.groups for n, m in zip(names, stack)}
        out.update(self.small)
        return {n: out[n].detach().float().cpu() for n in self.names}

    def state(self):
        return {"momentum": [g[4].cpu() for g in self.groups], "adam": self.adam.state_dict()}

    def load_state(self, state):
        for group, momentum in zip(self.groups, state["momentum"]):
            group[4].copy_(momentum)
        self.adam.load_state_dict(state["adam"])
