#!/usr/bin/env python3
"""Builds the tokenizer and the token files from the gathered corpus and the Python packages of this machine.

usage: prepare.py CORPUS.jsonl.xz DATA_DIR [--python-megabytes N] [--tokenizer FILE] [--conversations N]

Writes to DATA_DIR: tokenizer.json; SPLIT_DOMAIN.bin (int32 tokens, documents as BOS text EOS one after another) with
SPLIT_DOMAIN.starts (int64, where documents begin) for the splits train and heldout and the domains code, prose and
structured, and for chat; summary.json (sizes, licences of the Python packages).
A file belongs to the held-out split when the hash of its path says so, about one in fifty. Needs tokenizers and numpy.
"""
import argparse
import hashlib
import importlib.metadata
import json
import lzma
import os
import random
import re
import shutil
import sys
import sysconfig
import time

import numpy as np
from tokenizers import Tokenizer, trainers

from chat import conversations
from gather import classify, decode, looks_written, pieces
from tasks import TOKEN

VOCABULARY = 8192
DOMAINS = ("code", "prose", "structured")
FIRST = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
PLACEHOLDERS = [f"<｜place▁holder▁no▁{n}｜>" for n in range(8)]
MARKS = """<｜fim▁hole｜> <｜fim▁begin｜> <｜fim▁end｜> <｜User｜> <｜Assistant｜> <|EOT|> <｜tool▁calls▁begin｜>
<｜tool▁calls▁end｜> <｜tool▁call▁begin｜> <｜tool▁call▁end｜> <｜tool▁outputs▁begin｜> <｜tool▁outputs▁end｜>
<｜tool▁output▁begin｜> <｜tool▁output▁end｜> <｜tool▁sep｜> <｜begin▁of▁repo▁name｜> <｜end▁of▁repo▁name｜>
<｜begin▁of▁file▁name｜> <｜end▁of▁file▁name｜> <｜begin▁of▁file｜> <｜end▁of▁file｜> <think> </think> ｜DSML｜
<｜begin▁sys｜> <｜end▁sys｜> <｜latest_reminder｜> <｜action｜> <｜query｜> <｜authority｜> <｜domain｜> <｜task｜> <｜title｜>
<｜read_url｜>""".split()
SPLITS = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
          "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
          " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]
PERMISSIVE = re.compile(r"MIT|BSD|Apache|PSF|Python Software Foundation|ISC|Zlib|Unlicense|HPND|CC0", re.I)
RESTRICTED = re.compile(r"GPL|Mozilla|MPL|Proprietary|NVIDIA|EULA|Eclipse", re.I)


def held_out(path):
    return hashlib.sha1(("held out?" + path).encode()).digest()[0] < 5        # 5 in 256


def gathered(path):
    with lzma.open(path, "rt", encoding="utf-8") as f:
        for line in f:
            item = json.loads(line)
            yield item["domain"], item["path"], item["text"]


def python_packages(megabytes, licences):
    """Source and documentation of the standard library and of installed packages with a permissive licence."""
    sources = {}
    stdlib = sysconfig.get_paths()["stdlib"]
    files = []
    for folder, folders, names in os.walk(stdlib):
        folders[:] = [f for f in folders if f not in ("site-packages", "dist-packages", "test", "idlelib", "__pycache__")]
        files += [(os.path.join(folder, n), "python-stdlib/" + os.path.relpath(os.path.join(folder, n), stdlib)) for n in names]
    sources["python-stdlib"] = ("PSF-2.0", sys.version.split()[0], files)
    for dist in importlib.metadata.distributions():
        meta = dist.metadata
        licence = " ".join(filter(None, [meta.get("License-Expression"), (meta.get("License") or "")[:200]] + [
            c for c in meta.get_all("Classifier") or [] if c.startswith("License")]))
        if PERMISSIVE.search(licence) and not RESTRICTED.search(licence):
            name = meta["Name"].lower()
            files = [(str(dist.locate_file(f)), f"{name}/{f}") for f in dist.files or []]
            sources[name] = (" ".join(licence.split())[:80], dist.version, files)
    budget = megabytes * 1e6
    queue = []
    for name, (licence, version, files) in sources.items():
        licences[name] = {"licence": licence, "version": version, "bytes": 0}
        queue += [(name, real, path) for real, path in files]
    queue.sort(key=lambda item: hashlib.sha1(item[2].encode()).digest())
    kept = []
    for name, real, path in queue:
        domain, suffix = ("prose", "md") if path.endswith("/METADATA") else classify("/" + path)
        if not domain or suffix in ("txt", "json", "h", "1", "3") or budget <= 0 or licences[name]["bytes"] > megabytes * 1e6 * 0.2:
            continue
        try:
            with open(real, "rb") as f:
                text = decode(f.read(2_000_000), suffix)
        except OSError:
            continue
        for piece in pieces(text or ""):
            if looks_written(piece):
                licences[name]["bytes"] += len(piece)
                budget -= len(piece)
                kept.append((domain, path, piece))
    return sorted(kept)


def skeleton(vocabulary, merges, added):
    """tokenizer.json in the form of the published DeepSeek file."""
    split = [{"type": "Split", "pattern": {"Regex": r}, "behavior": "Isolated", "invert": False} for r in SPLITS]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": split + [
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary,
                  "merges": merges}}


def train_tokenizer(texts, path):
    """Byte-level BPE: ids 0..2 BOS, EOS, PAD, then the 256 bytes, the merges, and the added tokens last."""
    base = VOCABULARY - len(PLACEHOLDERS) - len(MARKS)
    tokenizer = Tokenizer.from_str(json.dumps(skeleton({}, [], [])))
    alphabet = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    alphabet = [chr(n) for n in alphabet] + [chr(256 + n) for n in range(256 - len(alphabet))]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=base, special_tokens=FIRST, initial_alphabet=alphabet, max_token_length=24, show_progress=False))
    trained = json.loads(tokenizer.to_str())["model"]
    assert len(trained["vocab"]) == base, len(trained["vocab"])
    merges = [m if isinstance(m, str) else " ".join(m) for m in trained["merges"]]

    def token(number, content, special):
        return {"id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": not special, "special": special}
    added = [token(n, t, True) for n, t in enumerate(FIRST)]
    added += [token(base + n, t, t in PLACEHOLDERS or t == "<|EOT|>") for n, t in enumerate(PLACEHOLDERS + MARKS)]
    vocabulary = dict(sorted(trained["vocab"].items(), key=lambda item: item[1]))
    with open(path, "w", encoding="utf-8") as f:
        json.dump(skeleton(vocabulary, merges, added), f, ensure_ascii=False, indent=1)
    return Tokenizer.from_file(path)


def write_tokens(tokenizer, texts, path, wrap=True):
    """Appends every text as one document; returns (tokens, bytes)."""
    starts, parts, position, size = [], [], 0, 0
    for at in range(0, len(texts), 4000):
        batch = texts[at:at + 4000]
        for text, encoding in zip(batch, tokenizer.encode_batch_fast(batch, add_special_tokens=False)):
            ids = np.array(([0] if wrap else []) + encoding.ids + ([1] if wrap else []), TOKEN)
            starts.append(position)
            parts.append(ids)
            position += len(ids)
            size += len(text.encode())
    tokens = np.concatenate(parts)
    tokens.tofile(path + ".bin")
    np.array(starts, np.int64).tofile(path + ".starts")
    return position, size, tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("corpus")
    parser.add_argument("out")
    parser.add_argument("--python-megabytes", type=float, default=240)
    parser.add_argument("--tokenizer", help="use this tokenizer.json instead of training one")
    parser.add_argument("--conversations", type=int, default=45_000)
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    began = time.time()
    licences, seen = {}, set()
    documents = {(split, domain): [] for split in ("train", "heldout") for domain in DOMAINS}
    for domain, path, text in list(gathered(args.corpus)) + python_packages(args.python_megabytes, licences):
        digest = hashlib.sha1(re.sub(r"\s+", " ", text).encode()).digest()
        if digest not in seen:
            seen.add(digest)
            documents["heldout" if held_out(path) else "train", domain].append((path, text))
    print(f"{time.time() - began:.0f} s: read {len(seen)} documents")

    rng = random.Random(1)
    sample = []
    for domain, megabytes in (("code", 20), ("prose", 16), ("structured", 8)):
        texts = [text for _, text in documents["train", domain]]
        rng.shuffle(texts)
        while texts and megabytes > 0:
            sample.append(texts.pop()[:40_000])
            megabytes -= len(sample[-1]) / 1e6
    path = os.path.join(args.out, "tokenizer.json")
    if args.tokenizer:
        shutil.copyfile(args.tokenizer, path)
        tokenizer = Tokenizer.from_file(path)
    else:
        tokenizer = train_tokenizer(sample, path)
    print(f"{time.time() - began:.0f} s: tokenizer trained")

    summary, counts = {"python_packages": licences}, np.zeros(tokenizer.get_vocab_size(), np.int64)
    chat = {("train", "chat"): conversations(documents, rng, args.conversations),
            ("heldout", "chat"): conversations(documents, rng, 2_000, "heldout")}
    for (split, domain), items in list(documents.items()) + list(chat.items()):
        tokens, size, ids = write_tokens(tokenizer, [text for _, text in items], os.path.join(args.out, f"{split}_{domain}"),
                                         wrap=domain != "chat")
        if split == "train":
            counts += np.bincount(ids, minlength=len(counts))
        summary[f"{split}_{domain}"] = {"documents": len(items), "tokens": tokens, "bytes": size}
        print(f"{time.time() - began:.0f} s: {split} {domain} {len(items)} documents, {tokens / 1e6:.2f} M tokens, "
              f"{size / tokens:.2f} bytes per token")
    counts.tofile(os.path.join(args.out, "counts.i64"))
    with open(os.path.join(args.out, "summary.json"), "w", encoding="utf-8") as f:
        json.dump(summary, f, indent=1, ensure_ascii=False)


if __name__ == "__main__":
    main()
