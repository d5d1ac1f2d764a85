#!/usr/bin/env python3
"""Makes draft traces after published acceptance figures, for `foresight bench spec --replay`.

usage: published_traces.py > bench/traces/published-qwen3-8b.json

Our own heads belong to a small model. This asks what the engine would gain with drafts as good as the DSpark paper's. Nothing here is a
recording: every draft's acceptance is drawn around a domain's published mean, and the file says so.

DSpark: accepted lengths of Qwen3-8B at temperature 1 (Table 1, seven drafts, the free token included; means of the three benchmarks of
each domain). The paper finds acceptance, given that a draft is reached, all but flat over positions, so a domain has the one rate that
gives its length. How far single drafts lie from it is chosen so that a calibrated confidence has the AUROC published for first
positions (.818).

MTP-1: an autoregressive head of one layer, for which Eagle3's acceptance of the first draft stands in (Figure 2: math .81, chat .53;
code between them as its accepted length is).
"""
import json
import random

# Accepted length of DSpark and of Eagle3 at seven drafts.
LENGTHS = {
    "math": ((6.17 + 5.78 + 5.01) / 3, (5.30 + 4.77 + 3.91) / 3),
    "code": ((5.16 + 5.52 + 5.17) / 3, (3.96 + 4.33 + 4.17) / 3),
    "chat": ((3.72 + 3.58 + 3.21) / 3, (2.66 + 2.54 + 2.54) / 3),
}
LENGTH_DRAFTS = 7
EAGLE3_FIRST = {"math": 0.81, "chat": 0.53}
AUROC = 0.818
DRAFTS = 5  # a block of DeepSeek-V4's heads
ANSWERS = 16
POSITIONS = 64


def root(f, low, high):
    """Where rising f is 0."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) < 0 else (low, middle)
    return (low + high) / 2


def rate_of(length):
    """The flat acceptance whose accepted length that is: 1 + a + a^2 + ..."""
    return root(lambda a: sum(a**k for k in range(LENGTH_DRAFTS + 1)) - length, 0, 1)


def auroc(mean, spread):
    """Of the predictor that knows each draft's acceptance, Beta(mean / spread, (1 - mean) / spread)."""
    draws = random.Random(1)
    samples = sorted(draws.betavariate(mean / spread, (1 - mean) / spread) for _ in range(4000))
    accepted_below = rejected_below = right = 0.0
    for p in samples:  # pairs (accepted at p, rejected below)
        right += p * (rejected_below + (1 - p) / 2)
        accepted_below += p
        rejected_below += 1 - p
    return right / (accepted_below * rejected_below)


def answers(draws, mean, spread, drafts, with_confidence):
    made = []
    for _ in range(ANSWERS):
        acceptance = [
            round(1000 * draws.betavariate(mean / spread, (1 - mean) / spread)) for _ in range(POSITIONS * drafts)
        ]
        made.append({"acceptance": acceptance} | ({"confidence": acceptance} if with_confidence else {}))
    return made


def main():
    draws = random.Random(2026)
    math_length, chat_length = LENGTHS["math"][1], LENGTHS["chat"][1]
    dspark, mtp = [], []
    for name, (length, eagle3_length) in LENGTHS.items():
        rate = rate_of(length)
        spread = root(lambda s, rate=rate: auroc(rate, s) - AUROC, 0.01, 5)
        dspark.append({"name": name, "answers": answers(draws, rate, spread, DRAFTS, True)})
        share = (eagle3_length - chat_length) / (math_length - chat_length)
        first = EAGLE3_FIRST["chat"] + share * (EAGLE3_FIRST["math"] - EAGLE3_FIRST["chat"])
        mtp.append({"name": name, "answers": answers(draws, first, spread, 1, False)})
    print(
        json.dumps(
            {
                "format": "foresight-draft-traces",
                "version": 1,
                "model": "drawn after published figures of Qwen3-8B, not recorded",
                "temperature": 1,
                "drafters": [
                    {"method": "dspark", "gamma": DRAFTS, "domains": dspark},
                    {"method": "mtp", "gamma": 1, "domains": mtp},
                ],
            },
            separators=(",", ":"),
        )
    )


if __name__ == "__main__":
    main()
