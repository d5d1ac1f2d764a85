"""Damaged checkpoints, tokenizers and prompts: the program ends with the documented exit status and one clear message.

    bad_input_test.py PATH_TO_FORESIGHT
"""

import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

PROGRAM = None
TIMEOUT_S = 300  # generous: sanitizer builds on a busy machine
NANO = pathlib.Path("tests/golden/nano-a")  # weights without a tokenizer, small
MINI = pathlib.Path("models/foresight-mini")

INPUT = 2  # what is wrong with a configuration, checkpoint or request
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def foresight(*arguments, stdin=b""):
    return subprocess.run([PROGRAM, *arguments], input=stdin, capture_output=True, timeout=TIMEOUT_S, check=False)


def edit_json(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def edit_header(path, change):
    """Rewrites the header of a safetensors file; the data stays."""
    file = path.read_bytes()
    size = struct.unpack("<Q", file[:8])[0]
    header = json.loads(file[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + file[8 + size :])


def edit_tensor(path, name, change):
    """change(bytearray) on the bytes of one tensor."""
    file = bytearray(path.read_bytes())
    size = struct.unpack("<Q", file[:8])[0]
    begin, end = json.loads(file[8 : 8 + size])[name]["data_offsets"]
    data = file[8 + size + begin : 8 + size + end]
    change(data)
    file[8 + size + begin : 8 + size + end] = data
    path.write_bytes(file)


def holder(folder, name):
    """The shard that has a tensor."""
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][name]


class Folder:
    """A copy of a checkpoint to damage; removed at the end."""

    def __init__(self, source):
        self.source = source

    def __enter__(self):
        self.temporary = tempfile.TemporaryDirectory()
        folder = pathlib.Path(self.temporary.name)
        for file in self.source.iterdir():
            if file.name.endswith(".safetensors") and self.source == MINI:
                (folder / file.name).symlink_to(file.resolve())  # 22 MB that no case changes
            elif file.suffix in {".json", ".safetensors"} and not file.name.startswith("golden"):
                shutil.copyfile(file, folder / file.name)
        return folder

    def __exit__(self, *_):
        self.temporary.cleanup()


class BadInput(unittest.TestCase):
    def expect(self, result, code, *words):
        message = result.stderr.decode()
        self.assertEqual(result.returncode, code, message)
        self.assertTrue(message.startswith("foresight: "), message)
        self.assertEqual(result.stdout, b"")
        for word in words:
            self.assertIn(word, message)
        # One sentence, or a heading with a line for each problem; nothing that a terminal would obey.
        lines = message.rstrip("\n").split("\n")
        self.assertTrue(all(line.startswith("  ") for line in lines[1:]), message)
        self.assertFalse(any(ord(c) < 32 and c != "\n" for c in message), repr(message))

    def refuse(self, damage, *words, source=NANO, command=("inspect",)):
        with Folder(source) as folder:
            damage(folder)
            self.expect(foresight(*command, str(folder)), INPUT, *words)


class Checkpoints(BadInput):
    @staticmethod
    def some(header):
        return next(name for name in header if name != "__metadata__")

    def test_whole_ones_are_taken(self):
        with Folder(NANO) as folder:
            self.assertEqual(foresight("inspect", str(folder)).returncode, 0)

    def test_truncated(self):
        for name in (FIRST, SECOND, INDEX, "config.json"):
            for share in (0, 0.001, 0.5, 0.999):
                def cut(folder):
                    path = folder / name
                    os.truncate(path, int(path.stat().st_size * share))
                self.refuse(cut, name)

    def test_missing_files(self):
        for name in (FIRST, SECOND, "config.json"):
            self.refuse(lambda folder: (folder / name).unlink(), name)
        self.refuse(lambda folder: (folder / INDEX).unlink(), "no weights")

    def test_files_that_are_none(self):
        def replaced(name, make):
            def damage(folder):
                (folder / name).unlink()
                make(folder / name)
            return damage
        self.refuse(replaced("config.json", lambda path: path.mkdir()), "is a directory")
        self.refuse(replaced(FIRST, os.mkfifo), "pipe or device")
        self.refuse(replaced("config.json", lambda path: path.symlink_to(path)), "config.json")  # leads to itself
        self.refuse(replaced(INDEX, lambda path: path.symlink_to("/dev/zero")), "pipe or device")

    def test_wrong_shape_and_dtype(self):
        def shape(folder):
            edit_header(holder(folder, "norm.weight"), lambda h: h["norm.weight"].update(
                shape=[2, h["norm.weight"]["shape"][0] // 2]))
        self.refuse(shape, "norm.weight: want BF16")
        def dtype(folder):
            name = "layers.0.attn.wkv.weight"
            edit_header(holder(folder, name), lambda h: h[name].update(dtype="I8"))
        self.refuse(dtype, "layers.0.attn.wkv.weight: want F8_E4M3")
        def unknown(folder):
            edit_header(folder / FIRST, lambda h: h[self.some(h)].update(dtype="Q4_K"))
        self.refuse(unknown, "dtype Q4_K is none of")

    def test_values_that_are_no_numbers(self):
        def scale(folder):
            name = "layers.0.attn.wkv.scale"
            def fill(data):
                data[0] = 255
            edit_tensor(holder(folder, name), name, fill)
        self.refuse(scale, "layers.0.attn.wkv.scale: value [0, 0] is 255, NaN")
        def norm(folder):
            def fill(data):
                data[0:2] = b"\x80\x7f"  # infinity
            edit_tensor(holder(folder, "norm.weight"), "norm.weight", fill)
        self.refuse(norm, "norm.weight: value [0] is not finite")

    def test_offsets(self):
        def with_offsets(begin, end):
            def damage(folder):
                edit_header(folder / FIRST, lambda h: h[self.some(h)].update(data_offsets=[begin, end]))
            return damage
        self.refuse(with_offsets(-1, 4), "want two offsets, got a negative number")
        self.refuse(with_offsets(8, 4), "run backwards")
        self.refuse(with_offsets(0, 1 << 62), "run past")
        self.refuse(with_offsets(0, 1 << 70), "beyond 64 bits")
        def overlapping(folder):
            def change(header):
                names = [name for name in header if name != "__metadata__"]
                header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
            edit_header(folder / FIRST, change)
        self.refuse(overlapping, "overlap")

    def test_huge_headers(self):
        for size in (100_000_001, 1 << 63, (1 << 64) - 1):
            def damage(folder):
                file = (folder / FIRST).read_bytes()
                (folder / FIRST).write_bytes(struct.pack("<Q", size) + file[8:])
            self.refuse(damage, "more than the 100000000 that the format allows")

    def test_names_that_are_commands_of_a_terminal(self):
        def damage(folder):
            def change(header):
                header["\x1b[2J\x07evil"] = header.pop(self.some(header))
            edit_header(folder / FIRST, change)
        self.refuse(damage, "evil")
        def ignored(folder):  # such tensors are taken, and told of
            def change(header):
                header["mtp.0.emb\x1b[2J\u009b"] = header.pop(self.some(header))
            edit_header(folder / FIRST, change)
        self.refuse(ignored, "control characters in the name of tensor mtp.0.emb?[2J?")

    def test_missing_and_leftover_tensors(self):
        def damage(folder):
            edit_header(folder / FIRST, lambda h: h.update({"no.such.tensor": h.pop(self.some(h))}))
        self.refuse(damage, "no.such.tensor")

    def test_configs(self):
        def config(**fields):
            return lambda folder: edit_json(folder / "config.json", lambda c: c.update(fields))
        self.refuse(config(model_type="deepseek_v41"), "deepseek_v41 is not supported")
        self.refuse(config(architectures=["LlamaForCausalLM"], model_type="llama"), "llama is not supported")
        for field in ("hidden_size", "vocab_size", "num_hidden_layers", "n_routed_experts", "head_dim", "index_topk"):
            for value in (-1, 0, 1 << 31, 1 << 63, 1 << 65, 1.5, "x", None, [], {}, True):
                self.refuse(config(**{field: value}), field)
        self.refuse(config(head_dim=112), "head_dim")
        self.refuse(config(compress_ratios=[4] * 100), "compress_ratios")
        # In range, but not what the tensors are: all of them at once, and not without end.
        self.refuse(config(hidden_size=512), "problems", "... and ")
        def deep(folder):
            (folder / "config.json").write_text('{"model_type": "deepseek_v4", "x": ' + "[" * 100_000)
        self.refuse(deep, "nested")

    def test_an_oracle_without_logits(self):
        def damage(folder):
            shutil.copyfile(NANO / "golden.safetensors", folder / "golden.safetensors")
            edit_header(folder / "golden.safetensors", lambda h: h.update({"logitz": h.pop("logits")}))
        self.refuse(damage, "golden.safetensors has no tensor logits", command=("verify",))

    def test_random_damage(self):
        # Whatever it is: the program takes it or says what is wrong, and never dies of it.
        rng = random.Random(1)
        for _ in range(25):
            with Folder(NANO) as folder:
                path = folder / rng.choice([FIRST, SECOND, INDEX, "config.json"])
                file = bytearray(path.read_bytes())
                for _ in range(rng.choice([1, 10])):
                    # Headers and JSON matter more than weights.
                    file[rng.randrange(min(len(file), rng.choice([16, 2000, 1 << 30])))] = rng.randrange(256)
                path.write_bytes(file)
                result = foresight("inspect", str(folder))
                if result.returncode != 0:
                    self.assertEqual(result.returncode, INPUT, result.stderr)
                    self.assertTrue(result.stderr.startswith(b"foresight: "), result.stderr)


class Tokenizers(BadInput):
    RUN = ("run", "-q", "-p", "x", "--max-tokens", "1", "--context", "256", "--model")

    def damaged(self, damage, *words):
        self.refuse(damage, "tokenizer.json", *words, source=MINI, command=self.RUN)
        self.refuse(damage, "tokenizer.json", *words, source=MINI, command=("tokenize", "--model"))

    def test_truncated(self):
        for share in (0, 0.1, 0.999):
            def cut(folder):
                path = folder / "tokenizer.json"
                os.truncate(path, int(path.stat().st_size * share))
            self.damaged(cut)

    def test_wrong_contents(self):
        def edited(change):
            return lambda folder: edit_json(folder / "tokenizer.json", change)
        self.damaged(edited(lambda t: t.pop("model")), "model: want an object, got nothing")
        self.damaged(edited(lambda t: t["model"].update(type="Unigram")), "want BPE, got Unigram")
        self.damaged(edited(lambda t: t["model"]["vocab"].update({"x": -5})), "id -5")
        self.damaged(edited(lambda t: t["model"]["vocab"].update({"x": 1 << 40})), "outside")
        self.damaged(edited(lambda t: t["model"]["merges"].insert(0, "q q")))
        self.damaged(edited(lambda t: t["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="(")))
        self.damaged(edited(lambda t: t["added_tokens"].append(t["added_tokens"][0])), "given twice")

    def test_one_of_another_model(self):
        # Ids beyond the model's vocabulary would be read past the end of its embedding.
        def damage(folder):
            shutil.copyfile(MINI / "tokenizer.json", folder / "tokenizer.json")
        self.refuse(damage, "the model's vocabulary ends at 256",
                    command=("run", "-q", "-p", "Some English text of words.", "--context", "256", "--model"))

    def test_sampling_defaults(self):
        def config(text):
            return lambda folder: (folder / "generation_config.json").write_text(text)
        for text in ("", "[]", "{", '{"temperature": -1}', '{"top_p": "x"}', '{"top_k": 1e300}', '{"do_sample": 1}'):
            self.refuse(config(text), "generation_config.json", source=MINI, command=self.RUN)


class Prompts(BadInput):
    RUN = ("run", "-q", "--greedy", "--max-tokens", "4", "--context", "256")

    def test_any_bytes_are_text(self):
        for prompt in (b"\xff\xfe\x80", b"a\x00b", b"\xed\xa0\x80 \xf4\x90\x80\x80", b"\xe4\xbd"):
            for extra in ((), ("--chat",)):
                result = foresight(*self.RUN, *extra, stdin=prompt)
                self.assertEqual(result.returncode, 0, result.stderr.decode())
                result.stdout.decode("utf-8")

    def test_too_long(self):
        for extra in ((), ("--chat",), ("--thinking",)):
            result = foresight(*self.RUN, *extra, stdin=b"word " * 2000)
            self.expect(result, INPUT, "the context holds 256")

    def test_files_that_are_none(self):
        self.expect(foresight(*self.RUN, "--file", "tests"), INPUT, "can't read tests")
        self.expect(foresight(*self.RUN, "--file", "no/such/file"), INPUT, "can't read no/such/file")

    def test_what_no_model_could_mend_is_told_before_one_is_loaded(self):
        run = ("run", "-p", "x", "--model", "no/such/model")
        for flag, value, word in (("--max-tokens", "-3", "max_tokens"), ("--temperature", "nan", "temperature"),
                                  ("--logprobs", "99", "logprobs"), ("--logit-bias", "3", "--logit-bias"),
                                  ("--stop", "", "stop[0]")):
            self.expect(foresight(*run, flag, value), INPUT, word)
        self.expect(foresight("run", "--file", "no/such/file", "--model", "no/such/model"), INPUT,
                    "can't read no/such/file")

    def test_ids_of_biases_are_those_of_the_model(self):
        for token in ("-1", "8192"):
            result = foresight(*self.RUN, f"--logit-bias={token}:1", stdin=b"x")
            self.expect(result, INPUT, f"want ids 0..8191, got {token}")

    def test_ids(self):
        for ids in (b"", b"[", b"{}", b"[1.5]", b"[-1]", b"[99999999999]", b'["x"]', b"[1] 2"):
            self.expect(foresight("tokenize", "--decode", stdin=ids), INPUT)
        self.expect(foresight("tokenize", "--decode", stdin=b"[8192]"), INPUT, "8192")


if __name__ == "__main__":
    PROGRAM = str(pathlib.Path(sys.argv.pop(1)).resolve())
    unittest.main(verbosity=2)
