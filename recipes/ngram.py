"""An interpolated 5-gram model with modified Kneser-Ney smoothing: the baseline of the evaluation.

Trained on the same tokens as the neural model. Everything is sorting and searching of 64-bit keys, on any torch device.
An n-gram is numbered by its place among the sorted distinct n-grams; the n-gram that ends at position i is the
(n-1)-gram that ends at i-1 followed by token i, so that a key is a number and a token.
"""
import torch


class KneserNey:
    def __init__(self, tokens, vocabulary, order=5):
        """tokens: int64 [N], documents one after another."""
        self.V, self.order, self.levels = vocabulary, order, []
        ids = [tokens]                                       # ids[n-1][i]: number of the n-gram that ends at i, or -1
        keys, inverse, counts, first = [None], [tokens], [torch.bincount(tokens, minlength=vocabulary)], [None]
        for n in range(2, order + 1):
            context = ids[-1].roll(1)
            context[:n - 1] = -1
            valid = context >= 0
            key = torch.where(valid, context * vocabulary + tokens, torch.full_like(tokens, -1))
            unique, number, count = torch.unique(key, return_inverse=True, return_counts=True)
            shift = int(unique[0] == -1)
            number = number - shift
            keys.append(unique[shift:])
            counts.append(count[shift:])
            ids.append(number)
        # Lower orders count distinct left extensions instead of occurrences.
        for n in range(1, order + 1):
            if n < order:
                longer = ids[n]
                at = torch.full((len(counts[n]),), -1, dtype=torch.int64, device=tokens.device)
                where = torch.nonzero(longer >= 0)[:, 0]
                at[longer[where]] = where
                size = vocabulary if n == 1 else len(keys[n - 1])
                count = torch.bincount(ids[n - 1][at], minlength=size)
            else:
                count = counts[n - 1]
            t = [int((count == r).sum()) for r in (1, 2, 3, 4)]
            y = t[0] / max(t[0] + 2 * t[1], 1)
            discount = torch.tensor([0.0] + [r - (r + 1) * y * t[r] / max(t[r - 1], 1) for r in (1, 2, 3)],
                                    dtype=torch.float64, device=tokens.device)
            taken = discount[count.clamp(max=3)]
            if n == 1:
                context, contexts = torch.zeros_like(count), 1
            else:
                context = keys[n - 1] // vocabulary
                contexts = vocabulary if n == 2 else len(keys[n - 2])
            total = torch.zeros(contexts, dtype=torch.float64, device=tokens.device).index_add_(0, context, count.double())
            left = torch.zeros_like(total).index_add_(0, context, taken)
            self.levels.append((keys[n - 1], count.double() - taken, total, left))

    def losses(self, tokens):
        """Negative log-likelihood (nats) of every token of an int64 stream, each with up to 4 tokens of context."""
        _, kept, total, left = self.levels[0]
        p = kept[tokens] / total[0] + left[0] / total[0] / self.V
        number = tokens
        for n in range(2, self.order + 1):
            keys, kept, total, left = self.levels[n - 1]
            context = number.roll(1)
            context[:n - 1] = -1
            key = context * self.V + tokens
            at = torch.searchsorted(keys, key).clamp(max=len(keys) - 1)
            known = (context >= 0) & (keys[at] == key)
            c = context.clamp(min=0)
            seen = (context >= 0) & (total[c] > 0)
            share = torch.where(known, kept[at], torch.zeros_like(p))
            p = torch.where(seen, (share + left[c] * p) / total[c].clamp(min=1e-9), p)
            number = torch.where(known, at, torch.full_like(at, -1))
        return -torch.log(p)
