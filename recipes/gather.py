#!/usr/bin/env python3
"""Gathers text files from unpacked source and documentation packages into one compressed corpus file.

usage: gather.py TREE OUT.jsonl.xz [--megabytes N]

TREE has one folder per package; README.md has the commands that fetch and unpack them. Each output line is {"domain", "path", "piece", "text"}; a file belongs to one of three
domains by its suffix: code, prose or structured. Needs Python 3 only.
"""
import argparse
import hashlib
import json
import lzma
import os
import re

DOMAIN_OF_SUFFIX = {}
for domain, suffixes in {
    "code": "py c h cc cpp hpp hh cxx go js mjs ts rs rb ex exs erl java sh cmake lua",
    "prose": "rst md pod sgml qbk adoc txt 1 3 5 7 8 yo",
    "structured": "json xml csv toml yaml yml po ini cfg desktop proto",
}.items():
    for suffix in suffixes.split():
        DOMAIN_OF_SUFFIX[suffix] = domain

SKIPPED_FOLDERS = re.compile(
    r"/(third_party|thirdparty|3rdparty|vendor|node_modules|deps|testdata|test_data|snapshots|\.git|debian|generated|"
    r"_static|locale/(?!de/|fr/|es/|it/)[a-z]{2,3}(_[A-Za-z]+)?/)")
COPYLEFT = re.compile(r"GNU (Lesser |Library |Affero )?General Public|\b[AL]?GPL-?[v23]|Mozilla Public License|CC-BY-SA", re.I)
# A package may give at most this share of its domain, so that no project dominates.
SHARE_OF_PACKAGE = 0.16
SHARE_OF_SUFFIX = {"json": 0.3, "xml": 0.3, "po": 0.2, "h": 0.15, "hpp": 0.12, "c": 0.25, "py": 0.12}
# Of 100 kept megabytes.
SHARE_OF_DOMAIN = {"code": 0.36, "prose": 0.42, "structured": 0.22}
MAX_PIECE = 120_000   # characters
MAX_PIECES = 6


def classify(path):
    name = os.path.basename(path)
    if name.endswith((".rst.txt", ".md.txt")):
        return "prose", "rst"
    if re.search(r"\.xml\.[a-z]{2}", name) or "." not in name:
        return None, None
    suffix = name.rsplit(".", 1)[1].lower()
    domain = DOMAIN_OF_SUFFIX.get(suffix)
    if suffix == "xml" and "/docs/manual/" in path:
        domain = "prose"
    if suffix in ("txt", "1", "3", "5", "7", "8") and not re.search(r"/(docs?|documentation|man|help|ref|guide)", path, re.I):
        return None, None
    return domain, suffix


def decode(data, suffix):
    """The text of a file, or None; JSON written on one line is laid out first."""
    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
        if suffix == "json" and len(text) / (text.count("\n") + 1) > 160:
            text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except ValueError:
        return None
    return None if "\0" in text or COPYLEFT.search(text[:4000]) else text


def pieces(text):
    """A long file as at most MAX_PIECES pieces cut at line ends."""
    for _ in range(MAX_PIECES):
        if not text:
            return
        end = len(text) if len(text) <= MAX_PIECE else text.rfind("\n", 0, MAX_PIECE) + 1 or MAX_PIECE
        yield text[:end]
        text = text[end:]


def looks_written(text):
    """Whether a piece looks like text that people write and read."""
    lines = text.split("\n")
    if len(text) < 300 or len(text) / len(lines) > 160 or max(map(len, lines)) > 3000:
        return False
    head = text[:4000]
    return sum(ch.isalpha() for ch in head) > 0.3 * len(head) and sum(ch < "\x80" for ch in head) > 0.7 * len(head)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tree")
    parser.add_argument("out")
    parser.add_argument("--megabytes", type=float, default=150)
    args = parser.parse_args()

    candidates = []
    for folder, _, names in os.walk(args.tree):
        for name in names:
            path = os.path.relpath(os.path.join(folder, name), args.tree)
            domain, suffix = classify("/" + path)
            if domain and not SKIPPED_FOLDERS.search("/" + path) and not os.path.islink(os.path.join(folder, name)):
                candidates.append((domain, suffix, path))
    # The order of hashes is a fixed random order, so that the budgets keep the same files on every machine.
    candidates.sort(key=lambda item: hashlib.sha1(item[2].encode()).digest())

    kept, seen, used = [], set(), {}
    for domain, suffix, path in candidates:
        budget = args.megabytes * 1e6 * SHARE_OF_DOMAIN[domain]
        package = path.split("/")[0]
        limits = [(domain, budget), ((domain, package), budget * SHARE_OF_PACKAGE),
                  ((domain, suffix), budget * SHARE_OF_SUFFIX.get(suffix, 0.5))]
        if any(used.get(key, 0) >= limit for key, limit in limits):
            continue
        with open(os.path.join(args.tree, path), "rb") as f:
            text = decode(f.read(), suffix)
        for number, piece in enumerate(pieces(text or "")):
            digest = hashlib.sha1(re.sub(r"\s+", " ", piece).encode()).digest()
            if digest in seen or not looks_written(piece):
                continue
            seen.add(digest)
            for key, _ in limits:
                used[key] = used.get(key, 0) + len(piece)
            kept.append({"domain": domain, "path": path, "piece": number, "text": piece})

    kept.sort(key=lambda item: (item["path"], item["piece"]))   # neighbours in a project stay neighbours: better compression, longer context
    with lzma.open(args.out, "wt", preset=6, encoding="utf-8") as f:
        for item in kept:
            f.write(json.dumps(item, ensure_ascii=False) + "\n")
    for key, size in sorted(used.items(), key=lambda item: (isinstance(item[0], tuple), str(item[0]))):
        print(f"{size / 1e6:8.2f} MB  {key if isinstance(key, str) else ' '.join(key)}")
    print(f"{len(kept)} files, {os.path.getsize(args.out) / 1e6:.1f} MB compressed")


if __name__ == "__main__":
    main()
