"""Writes the fuzz targets' seeds from what the repository has: small valid inputs of every kind.

    make_seeds.py FOLDER        makes FOLDER/<target>/*
"""

import json
import pathlib
import struct
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def safetensors():
    def file(header, data=b""):
        text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
        return struct.pack("<Q", len(text)) + text + data

    def tensor(dtype, shape, begin, end):
        return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}

    two = {"__metadata__": {"format": "pt"}, "a": tensor("F32", [2, 3], 0, 24), "b": tensor("BF16", [4], 24, 32)}
    kinds = ["F32", "BF16", "F8_E4M3", "F8_E8M0", "I8", "I64"]
    sizes = [4, 2, 1, 1, 1, 8]
    every, at = {}, 0
    for kind, size in zip(kinds, sizes):
        every[kind] = tensor(kind, [2], at, at + 2 * size)
        at += 2 * size
    yield "empty", file({})
    yield "two", file(two, bytes(32))
    yield "every_dtype", file(every, bytes(at))
    yield "scalar_and_none", file({"s": tensor("I64", [], 0, 8), "n": tensor("I8", [0, 7], 8, 8)}, bytes(8))
    yield "padded", file(json.dumps(two).encode() + b"   ", bytes(32))
    yield "header_alone", json.dumps({"a": tensor("I8", [64], 0, 64)}).encode()


def config():
    for path in sorted((ROOT / "tests/golden").glob("*/config.json")):
        yield path.parent.name, path.read_bytes()
    mini = json.loads((ROOT / "models/foresight-mini/config.json").read_text())
    yield "foresight-mini", json.dumps(mini).encode()
    draft = dict(mini, dspark_block_size=5, dspark_noise_token_id=7, dspark_target_layer_ids=[1, 4], dspark_markov_rank=8)
    yield "dspark", json.dumps(dict(draft, compress_ratios=mini["compress_ratios"] + [0, 0, 0])).encode()
    window = dict(mini, num_hidden_layers=1, compress_ratios=[0], num_hash_layers=0)
    yield "window_only", json.dumps(window).encode()


def byte_letters():
    """The byte alphabet of byte-level BPE, by byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters, extra = {}, 0
    for byte in range(256):
        if byte in printable:
            letters[byte] = chr(byte)
        else:
            letters[byte] = chr(0x100 + extra)
            extra += 1
    return letters


def small_tokenizer():
    mini = json.loads((ROOT / "models/foresight-mini/tokenizer.json").read_text())
    vocab = {letter: byte for byte, letter in byte_letters().items()}
    merges = []
    for left, right in [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"), ("1", "2")]:
        merges.append(f"{left} {right}")
        vocab[left + right] = len(vocab)
    mini["model"]["vocab"], mini["model"]["merges"] = vocab, merges
    mini["added_tokens"] = [dict(token, id=len(vocab) + i) for i, token in enumerate(mini["added_tokens"][:2])]
    return mini


def tokenizer_json():
    small = small_tokenizer()
    yield "small", json.dumps(small, ensure_ascii=False).encode()
    pairs = dict(small, model=dict(small["model"], merges=[merge.split(" ") for merge in small["model"]["merges"]]))
    yield "pairs", json.dumps(pairs, ensure_ascii=False).encode()
    bare = dict(small, pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                                      "use_regex": False}, added_tokens=[])
    yield "bare", json.dumps(bare, ensure_ascii=False).encode()


def tokenizer_text():
    texts = {
        "english": "The quick brown fox, it's said, doesn't jump 1234567 times.\r\n\r\n  Why?",
        "scripts": "Grüße 你好 ひらがな カタカナ العربية हिन्दी 👩‍👩‍👧 🇩🇪 é",
        "code": "def f(x):\n\treturn [i**2 for i in range(x) if i != 0]  # …\n",
        "tokens": "<｜User｜>hi<｜Assistant｜><think>x</think>y<｜end▁of▁sentence｜><｜User<｜User｜>",
        "space": " \t\u3000\u00a0\n \n\n  a   b",
    }
    for name, text in texts.items():
        yield name, text.encode()
    yield "not_utf8", b"a\x80\xff\xe4\xbd\xf0\x9f\x8e\xed\xa0\x80\xc0\xaf\x00z"


def chat_output():
    def block(inside):
        return "\n\n<｜DSML｜tool_calls>\n" + inside + "</｜DSML｜tool_calls>"

    def invoke(name, inside):
        return f'<｜DSML｜invoke name="{name}">\n{inside}</｜DSML｜invoke>\n'

    def parameter(name, kind, value):
        return f'<｜DSML｜parameter name="{name}" string="{kind}">{value}</｜DSML｜parameter>\n'

    texts = {
        "plain": "Hello <b>.",
        "reasoning": "Hm.</think>Yes.<｜end▁of▁sentence｜>",
        "calls": "Hm.</think>I look."
                 + block(invoke("f", parameter("s", "true", 'a "b"\n') + parameter("n", "false", "[1, 2.5]"))
                         + invoke("g", "\n") + invoke("h", "")),
        "cut": "x" + block(invoke("f", parameter("s", "true", "a")))[:-20],
    }
    for flags in range(4):
        for name, text in texts.items():
            yield f"{name}_{flags}", bytes([flags, 4]) + text.encode()


def python_json():
    values = [{}, [], {"b": [1, -2.5, 1e100, True, None], "a": {"é": "\n\"\\\u0001🎉"}}, "text", 12345678901234567890123]
    for i, value in enumerate(values):
        yield f"value_{i}", json.dumps(value, ensure_ascii=i % 2 == 0).encode()


def saved_state():
    for length in (0, 1, 130, 300, 599):
        yield f"length_{length}", struct.pack("<HHB", length, 0, 0)
    yield "cut", struct.pack("<HHB", 300, 64, 0)
    yield "other_length", struct.pack("<HHBHB", 300, 0, 0, 55, 1)
    yield "wrong_hash", struct.pack("<HHBHB", 300, 0, 1, 100, 1)


def generation_config():
    yield "mini", (ROOT / "models/foresight-mini/generation_config.json").read_bytes()
    yield "greedy", b'{"do_sample": false, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1}'


def step_costs():
    yield "two_contexts", b'''{"format": "dspark-sps", "version": 4, "model": "m", "engine_build": "b", "device": "d",
 "gamma": 5, "host_ms": 0.5, "wait_ms": 0.1, "draft_ms": [[1, 2], [8, 3]], "draft_first_ms": [[1, 1.2], [8, 1.5]],
 "verify_ms": {"512": [[1, 9], [8, 16]], "2048": [[1, 10], [2, 12], [8, 20.5]]}}'''


def calibration():
    quality = ('{"rounds": [9, 8], "ece": [0.1, 0.2], "ece_noise": [0.1, 0.1], "auc": [0.8, 0.9], "auc_best": [0.9, 0.9], "brier": [0.1, 0.1], '
               '"mean_pred": [0.5, 0.4], "mean_obs": [0.5, 0.3]}')
    tables = ", ".join(
        '{"regime": "%s", "temperatures": [1.2, 0.8], "shifts": [0.1, -0.2], "margin_weights": [0, 1.5], "fit": {"grid": "log41[0.1,10]", "bins": 15, "rounds": 9, '
        '"dataset": "x"}, "heldout": {"bins": 20, "before": %s, "after": %s}}' % (regime, quality, quality)
        for regime in ("unit", "coupled"))
    yield "two_regimes", ('{"format": "dspark-sts", "version": 5, "draft": "d", "target": "t", "engine_build": "1", "gamma": 2, '
                          '"tables": [%s]}' % tables).encode()


def draft_traces():
    yield "two_drafters", b'''{"format": "foresight-draft-traces", "version": 1, "model": "m", "temperature": 1, "drafters": [
 {"method": "dspark", "gamma": 2, "domains": [{"name": "code", "answers": [{"acceptance": [1000, 750, 1, 0],
  "confidence": [900, 800, 1, 0]}]}]},
 {"method": "mtp", "gamma": 1, "domains": [{"name": "code", "answers": [{"acceptance": [500]}]}]}]}'''


def main():
    folder = pathlib.Path(sys.argv[1])
    for make in (safetensors, config, tokenizer_json, tokenizer_text, chat_output, python_json, saved_state,
                 generation_config, step_costs, calibration, draft_traces):
        target = folder / make.__name__
        target.mkdir(parents=True, exist_ok=True)
        for name, content in make():
            (target / name).write_bytes(content)


if __name__ == "__main__":
    main()
