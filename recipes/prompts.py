#!/usr/bin/env python3
"""Picks prompts from held-out files, by domain, for measuring drafts: text alone, no tokenizer needed.

usage: prompts.py CORPUS.jsonl.xz OUT.json [--per-domain N]

Prompts are the beginnings of passages of files that training never saw (prepare.py's split), in the domains code, prose,
structured data and chat (the conversations that chat.py makes, up to the first answer).
"""
import argparse
import json
import lzma
import random

from chat import function_turn, section_turn
from prepare import held_out

SHORTEST, LONGEST = 200, 480      # characters


def passage(text, rng):
    """Whole lines from a random place on, or None."""
    start = text.find("\n", rng.randrange(max(1, len(text) - 3 * LONGEST))) + 1
    piece = text[start:start + rng.randrange(SHORTEST, LONGEST)]
    end = piece.rfind("\n") + 1
    return piece[:end] if end >= SHORTEST // 2 else None


def chat(text, rng):
    turn = function_turn(text, rng) or section_turn(text, rng)
    question = turn and turn.split("<｜Assistant｜></think>")[0].removeprefix("<｜User｜>")
    return question if question and len(question) <= LONGEST else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("corpus")
    parser.add_argument("out")
    parser.add_argument("--per-domain", type=int, default=24)
    args = parser.parse_args()
    rng = random.Random(1)
    texts = {}
    with lzma.open(args.corpus, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            if held_out(record["path"]) and len(record["text"]) > 3 * LONGEST:
                texts.setdefault(record["domain"], []).append((record["path"], record["text"]))
    prompts = {}
    for domain, cut in [(d, passage) for d in sorted(texts)] + [("chat", chat)]:
        sources = [t for d in sorted(texts) for t in texts[d]] if domain == "chat" else texts[domain]
        prompts[domain] = []
        for _ in range(10_000):
            path, text = rng.choice(sources)
            piece = cut(text, rng)
            if piece and len(prompts[domain]) < args.per_domain:
                prompts[domain].append({"source": path, "text": piece})
    with open(args.out, "w", encoding="utf-8") as out:
        json.dump({"format": "foresight-prompts", "version": 1, "domains": prompts}, out, ensure_ascii=False, indent=1)
        out.write("\n")


if __name__ == "__main__":
    main()
