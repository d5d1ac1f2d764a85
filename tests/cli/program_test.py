"""Drives the program as its users do: through flags, pipes, signals and a terminal.

    program_test.py PATH_TO_FORESIGHT
"""

import json
import math
import os
import pathlib
import pty
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAM = None
TIMEOUT_S = 300  # generous: sanitizer builds on a busy machine


def foresight(*arguments, stdin=b""):
    return subprocess.run([PROGRAM, *arguments], input=stdin, capture_output=True, timeout=TIMEOUT_S, check=False)


class Run(unittest.TestCase):
    def generate(self, *arguments, stdin=b""):
        result = foresight("run", "--quiet", "--context", "512", *arguments, stdin=stdin)
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        return result.stdout

    def test_prompt_file_and_pipe_give_the_same_text(self):
        from_flag = self.generate("-p", "The file is", "--greedy", "--max-tokens", "8")
        self.assertTrue(from_flag)
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"The file is")
            file.flush()
            from_file = self.generate("--file", file.name, "--greedy", "--max-tokens", "8")
        from_pipe = self.generate("--greedy", "--max-tokens", "8", stdin=b"The file is")
        self.assertEqual(from_flag, from_file)
        self.assertEqual(from_flag, from_pipe)

    def test_an_empty_file_is_an_empty_prompt(self):
        from_file = self.generate("--file", os.devnull, "--greedy", "--max-tokens", "4")
        self.assertEqual(from_file, self.generate("--greedy", "--max-tokens", "4"))

    def test_an_empty_prompt_is_a_prompt(self):
        empty = self.generate("--greedy", "--max-tokens", "4")
        self.assertEqual(self.generate("-p", "", "--greedy", "--max-tokens", "4", stdin=b"The file is"), empty)
        self.assertEqual(foresight("run", "-q", "--file", "", stdin=b"x").returncode, 2)

    def test_quiet_prints_the_text_alone(self):
        result = foresight("run", "-q", "-p", "A list", "--greedy", "--max-tokens", "4", "--context", "512")
        self.assertEqual(result.stderr, b"")
        result.stdout.decode("utf-8")

    def test_closing_line_has_both_speeds(self):
        result = foresight("run", "-p", "A list", "--greedy", "--max-tokens", "4", "--context", "512")
        self.assertEqual(result.returncode, 0)
        # The line about drafts may follow it.
        closing = [line for line in result.stderr.decode().splitlines() if "; prefill " in line]
        self.assertEqual(len(closing), 1)
        self.assertIn("decode", closing[0])
        self.assertEqual(closing[0].count("tokens/s"), 2)

    def test_the_models_own_head_drafts_with_its_calibration(self):
        result = foresight("run", "-p", "A list", "--greedy", "--max-tokens", "2", "--context", "512")
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        self.assertIn(", calibrated confidences", result.stderr.decode())

    def test_a_seed_repeats_its_text_whatever_the_threads(self):
        sampled = ["-p", "int main", "--temperature", "1", "--max-tokens", "12", "--seed"]
        texts = {self.generate(*sampled, "7", "--threads", threads) for threads in ("1", "2")}
        self.assertEqual(len(texts), 1)
        others = {self.generate(*sampled, str(seed)) for seed in range(8, 12)}
        self.assertGreater(len(others | texts), 1)

    def test_a_stop_string_ends_the_text_before_itself(self):
        arguments = ["-p", "The file is", "--greedy", "--max-tokens", "24"]
        whole = self.generate(*arguments).decode()
        stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
        self.assertEqual(self.generate(*arguments, "--stop", stop).decode(), whole[: whole.index(stop)])

    def test_a_chat_turn_is_the_layout_around_the_text(self):
        greedy = ["--greedy", "--max-tokens", "12"]
        turn = "<｜User｜>Write `f`.<｜Assistant｜>"
        self.assertEqual(self.generate("--chat", "-p", "Write `f`.", *greedy),
                         self.generate("-p", turn + "</think>", *greedy))
        self.assertEqual(self.generate("--system", "You write code.", "-p", "Write `f`.", *greedy),
                         self.generate("-p", "You write code." + turn + "</think>", *greedy))

    def test_reasoning_stays_off_the_output(self):
        def think(*arguments):
            return foresight("run", "-p", "Write `f`.", "--greedy", "--max-tokens", "12", "--context", "512", *arguments)
        # The tag that ends the reasoning can't come: everything is reasoning.
        tag = json.loads(foresight("tokenize", stdin="</think>".encode()).stdout)
        self.assertEqual(len(tag), 1)
        none = think("--thinking", "--quiet", "--logit-bias", f"{tag[0]}:-100")
        self.assertEqual((none.returncode, none.stdout), (0, b""))
        shown = think("--effort", "max", "--logit-bias", f"{tag[0]}:-100")
        self.assertEqual((shown.returncode, shown.stdout), (0, b"\n"))
        self.assertIn(b"<think>", shown.stderr)
        self.assertEqual(think("--effort", "most").returncode, 1)

    def test_a_large_bias_forces_a_token(self):
        def first(*extra):
            result = foresight("run", "-p", "x", "--greedy", "--max-tokens", "2", "--context", "512",
                               "--logprobs", "2", "--ignore-eos", *extra)
            self.assertEqual(result.returncode, 0, result.stderr.decode())
            lines = [line.split() for line in result.stderr.decode().splitlines() if " | " in line]
            return [int(fields[0]) for fields in lines]
        self.assertEqual(first("--logit-bias", "300:100"), [300, 300])

    def test_a_closed_pipe_ends_it_quietly(self):
        process = subprocess.Popen(
            [PROGRAM, "run", "-q", "-p", "The", "--max-tokens", "400", "--ignore-eos", "--context", "1024"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.read(1)
        process.stdout.close()
        process.stderr.read()
        # Ended on its own, by no signal.
        self.assertGreaterEqual(process.wait(TIMEOUT_S), 0)
        process.stderr.close()


class Streams(unittest.TestCase):
    """Standard streams that are closed, full, or read by nobody."""
    RUN = ("run", "-p", "x", "--greedy", "--max-tokens", "4", "--context", "512")

    def shell(self, redirections, *arguments):
        command = " ".join([f"'{a}'" for a in (PROGRAM, *arguments)] + [redirections])
        return subprocess.run(["sh", "-c", command], capture_output=True, timeout=TIMEOUT_S, check=False)

    def test_an_answer_needs_no_error_stream(self):
        text = foresight(*self.RUN, "-q").stdout
        self.assertTrue(text)
        for redirections in ("2>/dev/full", "2>&-"):
            for extra in (("-q", "--logprobs", "1"), ("--logprobs", "1")):
                result = self.shell(redirections, *self.RUN, *extra)
                self.assertEqual((result.returncode, result.stdout.rstrip(b"\n")), (0, text.rstrip(b"\n")))
            self.assertEqual(self.shell(redirections, "inspect", "no/such/directory").returncode, 2)

    def test_what_is_told_gets_into_no_file(self):
        # The lowest free descriptor is the error stream's.
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "report.json"
            result = self.shell("2>&-", "bench", "--synthetic", "tiny-a", "--batches", "1", "--contexts", "256", "--prefill", "8",
                                "--repeat", "1", "--steps", "1", "--json", str(path))
            self.assertEqual(result.returncode, 0)
            json.loads(path.read_text())

    def test_a_full_output_is_an_error(self):
        for arguments in ((*self.RUN, "-q"), self.RUN, ("inspect",), ("inspect", "--json"), ("--help",), ("tokenize",)):
            result = self.shell(">/dev/full </dev/null", *arguments)
            self.assertEqual(result.returncode, 70, arguments)
            self.assertIn(b"standard output can't be written: No space left", result.stderr)

    def test_an_input_that_can_not_be_read_is_no_empty_one(self):
        for redirections in ("<&-", "</"):
            for arguments in (("run", "-q", "--max-tokens", "2", "--context", "512"), ("tokenize",)):
                result = self.shell(redirections, *arguments)
                self.assertEqual((result.returncode, result.stdout), (2, b""))
                self.assertIn(b"can't read standard input", result.stderr)

    def test_results_that_can_not_be_written_are_known_at_once(self):
        for arguments in (("calibrate", "--costs"), ("calibrate", "--calibration"), ("bench", "--json"),
                          ("bench", "spec", "--json"), ("bench", "spec", "--html"), ("bench", "spec", "--record")):
            begin = time.monotonic()
            result = foresight(*arguments, "no/such/folder/file")
            self.assertEqual(result.returncode, 2, arguments)
            self.assertEqual(result.stderr, b"foresight: invalid argument: can't write no/such/folder/file: "
                                            b"No such file or directory\n")
            self.assertLess(time.monotonic() - begin, 20)  # of minutes


class BenchSpec(unittest.TestCase):
    """A recording of a few drafts, and its replay at the step costs of a tiny random model."""

    def test_a_recording_is_replayed(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            prompts = {"format": "foresight-prompts", "version": 1,
                       "domains": {"code": [{"text": "int main() {"}, {"text": "#include <"}]}}
            (path / "prompts.json").write_text(json.dumps(prompts))
            traces, report = path / "traces.json", path / "report.json"
            recorded = foresight("bench", "spec", "--record", str(traces), "--prompts", str(path / "prompts.json"), "-n", "8")
            self.assertEqual(recorded.returncode, 0, recorded.stderr.decode())
            greedy = path / "greedy.json"
            recorded = foresight("bench", "spec", "--record", str(greedy), "--prompts", str(path / "prompts.json"), "-n", "8",
                                 "--temperature", "0")
            self.assertEqual(recorded.returncode, 0, recorded.stderr.decode())
            document = json.loads(greedy.read_text())
            self.assertEqual(document["temperature"], 0)
            self.assertLessEqual({p for drafter in document["drafters"] for answer in drafter["domains"][0]["answers"]
                                  for p in answer["acceptance"]}, {0, 1000})
            dspark, mtp = json.loads(traces.read_text())["drafters"]
            for drafter, keys in ((dspark, {"acceptance", "confidence"}), (mtp, {"acceptance"})):
                (domain,) = drafter["domains"]
                self.assertEqual(domain["name"], "code")
                self.assertEqual([set(answer) for answer in domain["answers"]], [keys, keys])
                self.assertEqual({len(answer[key]) for answer in domain["answers"] for key in keys}, {40})

            # Drafts of dspark are always accepted, those of MTP-1 never.
            for drafter, value in ((dspark, 1000), (mtp, 0)):
                for answer in drafter["domains"][0]["answers"]:
                    answer["acceptance"] = [value] * 40
            document = dict(json.loads(traces.read_text()), drafters=[dspark, mtp])
            traces.write_text(json.dumps(document))
            replayed = foresight("bench", "spec", "--synthetic", "tiny-a", "--replay", str(traces), "-n", "13",
                                 "--repeat", "1", "--concurrency", "1,2", "--fixed", "mtp:1,mtp:2,dspark:2,dspark:static:0",
                                 "--domain-concurrency", "1,2", "--json", str(report))
            self.assertEqual(replayed.returncode, 0, replayed.stderr.decode())
            self.assertIn(b"replayed from", replayed.stdout)
            figures = json.loads(report.read_text())
            self.assertIn("traces.json", figures["replayed"])
            by_domain = path / "by_domain.json"
            page = path / "by_domain.html"
            replayed = foresight("bench", "spec", "--synthetic", "tiny-a", "--replay", str(traces), "-n", "8", "--repeat", "1",
                                 "--fixed", "none", "--domains-only", "--json", str(by_domain), "--html", str(page))
            self.assertEqual(replayed.returncode, 0, replayed.stderr.decode())
            self.assertEqual(json.loads(by_domain.read_text())["load"], [])
            self.assertEqual([row["setup"] for row in json.loads(by_domain.read_text())["by_domain"]],
                             ["none", "dspark auto", "none again"])
            self.assertIn("<td>dspark auto</td><td>1</td>", page.read_text())
            rows = {row["setup"]: row for row in figures["load"] if row["concurrency"] == 2}
            self.assertEqual([(row["setup"], row["domain"], row["concurrency"]) for row in figures["by_domain"]],
                             [(setup, "code", requests) for requests in (1, 2)
                              for setup in ("none", "mtp k=1", "mtp k=2", "dspark k=2", "dspark static:0", "dspark auto",
                                            "none again")])
            # Answers of half to all of the tokens; the first is the prefill's, the others come in steps of 1 + k.
            lengths = [13, 12, 10, 8]
            steps = sum(1 + math.ceil((length - 1) / 3) for length in lengths)
            self.assertAlmostEqual(rows["dspark k=2"]["accepted_length"], sum(lengths) / steps, places=3)
            self.assertEqual(rows["mtp k=2"]["accepted_length"], 1)
            self.assertGreater(rows["mtp k=2"]["rows_per_request"], 2)
            for row in figures["load"] + figures["by_domain"]:
                self.assertEqual(len(row["ratio_to_none"]), 1)
                self.assertAlmostEqual(row["ratio"], row["ratio_to_none"][0], places=3)  # of one repetition
                if row["setup"] == "none":
                    self.assertEqual((row["ratio"], row["ratio_interval"]), (1, [1, 1]))
            # The same requests, in engines of their own: the same work, whether nothing can draft or nothing is to.
            for setup in ("none again", "dspark static:0"):
                self.assertEqual(rows[setup]["work"], rows["none"]["work"])
            (work,) = rows["dspark k=2"]["work"]
            self.assertEqual(work["tokens"], sum(lengths))
            self.assertEqual(work["accepted"], sum(lengths) - steps)
            (plain,) = rows["none"]["work"]
            self.assertEqual(work["rows"] - work["verified"] - steps, plain["rows"] - plain["tokens"])
            def user_speed_at(setup, total):
                points = [(statistics.median(row["tokens_per_second"]), row["concurrency"]) for row in figures["load"]
                          if row["setup"] == setup]
                points = [(all_users, all_users / users) for all_users, users in points]
                (low, slow), (high, fast) = sorted(points)
                between = [slow + (fast - slow) * (total - low) / (high - low)] if low < total < high else []
                return max([user for all_users, user in points if all_users >= total] + between, default=None)
            self.assertEqual({m["concurrency"] for m in figures["at_throughput_of_mtp"]}, {1, 2})
            for matched in figures["at_throughput_of_mtp"]:
                expected = user_speed_at(matched["setup"], matched["tokens_per_second"])
                if expected is None:
                    self.assertIsNone(matched["user_speed"])
                else:
                    self.assertAlmostEqual(matched["user_speed"], expected, places=2)

    def compare(self, model, *flags):
        """The report of a short run."""
        report = model / "report.json"
        prompts = {"format": "foresight-prompts", "version": 1, "domains": {"code": [{"text": "int"}, {"text": "for"}]}}
        (model / "bench.json").write_text(json.dumps(prompts))
        result = foresight("bench", "spec", "--model", str(model), "--prompts", str(model / "bench.json"), "-n", "8",
                           "--per-domain", "1", "--calibration-rounds", "100", "--repeat", "1", "--concurrency", "1",
                           "--fixed", "mtp:1,dspark:2", "--no-domains", "--json", str(report), "--html",
                           str(model / "report.html"), *flags)
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        figures = json.loads(report.read_text())
        self.assertTrue(figures["complete"])
        for name in figures["missing"]:
            for text in (result.stderr.decode(), result.stdout.decode(), (model / "report.html").read_text()):
                self.assertRegex(text, f"(no head for|for there is no head:) {name}")
        return figures, {row["setup"] for row in figures["load"]}

    def test_a_model_is_measured_with_the_heads_that_it_has(self):
        mini = pathlib.Path("models/foresight-mini").resolve()
        with tempfile.TemporaryDirectory() as folder:
            model = pathlib.Path(folder)
            for name in ("config.json", "model.safetensors", "tokenizer.json"):
                (model / name).symlink_to(mini / name)
            drafts = model / "drafts"
            drafts.mkdir()
            none = foresight("bench", "spec", "--model", folder, "--prompts", str(mini / "prompts.json"))
            self.assertEqual(none.returncode, 2)
            self.assertIn(b"no draft head", none.stderr)
            (drafts / "dspark").symlink_to(mini / "drafts/dspark")
            figures, setups = self.compare(model, "--speeds-only")
            self.assertEqual(figures["missing"], ["mtp"])
            self.assertEqual(setups, {"none", "dspark k=2", "dspark auto", "none again"})
            self.assertEqual(figures["at_throughput_of_mtp"], [])
            # Of another name, and a head of MTP-1 beside it.
            (drafts / "dspark").rename(drafts / "other")
            (drafts / "mtp").symlink_to(mini / "drafts/mtp")
            figures, setups = self.compare(model, "--speeds-only")
            self.assertEqual(figures["missing"], [])
            self.assertEqual(setups, {"none", "mtp k=1", "dspark k=2", "dspark auto", "none again"})

    def test_a_calibration_of_another_model_is_refused(self):
        mini = pathlib.Path("models/foresight-mini").resolve()
        with tempfile.TemporaryDirectory() as folder:
            model = pathlib.Path(folder)
            for name in ("config.json", "model.safetensors", "tokenizer.json", "prompts.json"):
                (model / name).symlink_to(mini / name)
            head = model / "drafts/dspark"
            head.mkdir(parents=True)
            (model / "drafts/mtp").symlink_to(mini / "drafts/mtp")
            for name in ("config.json", "model.safetensors"):
                (head / name).symlink_to(mini / "drafts/dspark" / name)
            calibration = json.loads((mini / "drafts/dspark/calibration.json").read_text())
            (head / "calibration.json").write_text(json.dumps(calibration | {"target": "another"}))
            for command in (("run", "-p", "x", "-n", "1"),
                            ("bench", "spec", "-n", "8", "--per-domain", "1", "--record", str(model / "traces.json"))):
                result = foresight(*command, "--model", folder)
                self.assertEqual(result.returncode, 2, result.stderr.decode())
                self.assertIn("calibration.json: calibration was fitted for another target", result.stderr.decode())

    def test_heads_in_the_checkpoint_are_measured(self):
        """A checkpoint as it is released, with one head of its own."""
        characters = [c for c in range(256) if chr(c).isprintable() and c not in (0x20, 0xA0, 0xAD)]
        others = [c for c in range(256) if c not in characters]
        spelling = {c: chr(c) for c in characters} | {c: chr(256 + i) for i, c in enumerate(others)}
        for checkpoint, missing, expected in (
                ("tests/golden/nano-a", "dspark", {"none", "mtp k=1", "mtp auto", "none again"}),
                ("../shared/golden/spark-a", "mtp", {"none", "dspark k=2", "dspark auto", "none again"})):
            with self.subTest(checkpoint), tempfile.TemporaryDirectory() as folder:
                source, model = pathlib.Path(checkpoint).resolve(), pathlib.Path(folder)
                if not source.exists():
                    self.skipTest(f"{checkpoint} is not here")
                for file in source.iterdir():
                    (model / file.name).symlink_to(file)
                tokenizer = json.loads(pathlib.Path("models/foresight-mini/tokenizer.json").read_text())
                tokenizer["added_tokens"] = []
                vocab_size = json.loads((source / "config.json").read_text())["vocab_size"]
                tokenizer["model"] |= {"vocab": {spelling.get(i, f"no. {i}"): i for i in range(vocab_size)}, "merges": []}
                (model / "tokenizer.json").write_text(json.dumps(tokenizer))
                recorded = foresight("bench", "spec", "--model", folder, "--prompts", "models/foresight-mini/prompts.json",
                                     "--record", str(model / "traces.json"))
                self.assertEqual(recorded.returncode, 2, recorded.stderr.decode())
                self.assertIn(f"there is no head for {missing}\n", recorded.stderr.decode())
                figures, setups = self.compare(model)
                self.assertEqual(figures["missing"], [missing])
                self.assertEqual(setups, expected)
                self.assertEqual([head["setup"] for head in figures["heads"]],
                                 [] if missing == "dspark" else ["dspark k=5"])

    def test_what_can_not_be_replayed(self):
        self.assertEqual(foresight("bench", "spec", "--synthetic", "tiny-a").returncode, 1)
        with tempfile.NamedTemporaryFile() as file:
            for content in (b"{", b'{"format": "foresight-draft-traces", "version": 1, "model": "m", "temperature": 1, '
                                  b'"drafters": []}'):
                file.seek(0)
                file.truncate()
                file.write(content)
                file.flush()
                result = foresight("bench", "spec", "--synthetic", "tiny-a", "--replay", file.name)
                self.assertEqual(result.returncode, 2, result.stderr.decode())

    def test_prompts_without_any(self):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write('{"domains": {}}')
            file.flush()
            for command in (("bench", "spec", "--speeds-only"), ("calibrate",)):
                result = foresight(*command, "--prompts", file.name)
                self.assertEqual(result.returncode, 2, result.stderr.decode())
                self.assertIn(b'"domains" is empty', result.stderr)
            file.truncate(0)
            file.seek(0)
            file.write(json.dumps({"domains": {"\x1b[2J": [{"text": "int"}]}}))
            file.flush()
            result = foresight("bench", "spec", "--speeds-only", "--prompts", file.name)
            self.assertEqual(result.returncode, 2, result.stderr.decode())
            self.assertIn(b'in the name of domain "?[2J"', result.stderr)

    def test_an_interrupt_leaves_what_was_measured(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "report.json"
            command = [PROGRAM, "bench", "spec", "--synthetic", "tiny-a", "-n", "400", "--concurrency", "1", "--replay",
                       "bench/traces/foresight-mini.json", "--json", str(path)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
                for line in process.stderr:
                    if "warm-up" in line:
                        break
                process.send_signal(signal.SIGINT)
                text, errors = process.communicate(timeout=TIMEOUT_S)
            self.assertEqual(process.returncode, 130, errors)
            self.assertIn("interrupted", text)
            report = json.loads(path.read_text())
            self.assertFalse(report["complete"])
            self.assertEqual(report["load"], [])
            self.assertEqual([p.name for p in pathlib.Path(directory).iterdir()], [path.name])


class BadInput(unittest.TestCase):
    def refuse(self, code, *arguments):
        result = foresight(*arguments)
        self.assertEqual(result.returncode, code, result.stderr.decode())
        self.assertTrue(result.stderr.strip())
        return result.stderr.decode()

    def test_flags(self):
        # What the command line itself can't be read as is 1, what it asks for and can't be had is 2.
        self.refuse(1, "run", "--no-such-flag")
        self.refuse(1, "no-such-command")
        # What is wrong isn't lost in front of a page of help.
        self.assertLess(len(self.refuse(1, "run", "--draft", "eagle").splitlines()), 4)
        self.refuse(2, "run", "-p", "x", "--draft", "none", "--planner", "fastest")
        self.refuse(2, "run", "-p", "x", "--draft", "none", "--step-costs", "no/such/file")
        self.assertIn("5 tokens", self.refuse(2, "run", "-p", "x", "--draft", "dspark", "--planner", "static:6"))
        self.refuse(1, "run", "-p", "x", "--max-tokens", "many")
        self.assertIn("requires --synthetic", self.refuse(1, "bench", "--experts", "4"))
        self.refuse(2, "run", "-p", "x", "--temperature", "-1")
        self.refuse(2, "run", "-p", "x", "--top-p", "0")
        self.refuse(2, "run", "-p", "x", "--table", "abacus")
        self.refuse(2, "run", "-p", "x", "--logit-bias", "1")
        self.refuse(2, "run", "-p", "x", "--logit-bias", "99999999:1")
        # Numbers that don't fit are not cut to ones that do.
        for bias in ("4294967297:1", "-1:1", "1:", ":1", "1:1x", "1 :1"):
            self.refuse(2, "run", "-p", "x", "--logit-bias", bias)
        for flag in ("--seed", "--top-k", "--max-tokens"):
            self.assertIn("beyond 64 bits", self.refuse(1, "run", "-p", "x", flag, "99999999999999999999"))

    def test_files(self):
        self.refuse(2, "run", "-p", "x", "--model", "no/such/directory")
        self.refuse(2, "run", "--file", "no/such/file")
        with tempfile.TemporaryDirectory() as empty:
            self.refuse(2, "run", "-p", "x", "--model", empty)
        # A checkpoint without a tokenizer can't be given text.
        self.assertIn("tokenizer", self.refuse(2, "run", "-p", "x", "--model", "tests/golden/nano-a"))

    def test_a_prompt_longer_than_the_context(self):
        self.assertIn("context", self.refuse(2, "run", "-p", "word " * 600, "--context", "256"))

    def test_a_context_longer_than_the_model_allows(self):
        self.refuse(2, "run", "-p", "x", "--context", "10000000")

    def test_what_the_system_does_not_give(self):
        def limited(limits, *arguments):
            command = " ".join([limits] + [f"'{a}'" for a in (PROGRAM, *arguments)])
            return subprocess.run(["sh", "-c", command], capture_output=True, timeout=TIMEOUT_S, check=False)
        space, stacks = "ulimit -v 4000000;", "ulimit -s 8388608; ulimit -v 629145600;"
        if limited(space, "--version").returncode != 0:
            self.skipTest("sanitizers need address space themselves")
        for arguments in (("run", "-p", "x"), ("verify", "tests/golden/nano-a"), ("bench",)):
            result = limited(space, *arguments)
            self.assertEqual(result.returncode, 3, result.stderr.decode())
            self.assertIn(b"of address space", result.stderr)
        # Stacks of 8 GiB each, of which so many don't fit.
        for arguments in (("run", "-p", "x"), ("bench",), ("bench", "--synthetic", "tiny-a")):
            result = limited(stacks, *arguments, "--threads", "200")
            self.assertEqual(result.returncode, 3, result.stderr.decode())
            self.assertIn(b"no thread or memory left", result.stderr)

    def test_a_model_that_does_not_fit(self):
        self.assertIn("available", self.refuse(3, "bench", "--synthetic", "pro:61"))


class Chat(unittest.TestCase):
    """A conversation on a terminal of its own."""

    def setUp(self):
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execv(PROGRAM, [PROGRAM, "run", "--greedy", "--max-tokens", "300", "--context", "1024", "--ignore-eos"])
        self.output = ""

    def tearDown(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.terminal)

    def read_until(self, text, start):
        end = time.monotonic() + TIMEOUT_S
        while text not in self.output[start:]:
            if time.monotonic() > end or not select.select([self.terminal], [], [], 5)[0] and self.ended():
                self.fail(f"no {text!r} in {self.output[start:]!r}")
            try:
                self.output += os.read(self.terminal, 4096).decode(errors="replace")
            except OSError:
                self.fail(f"ended before {text!r}: {self.output[start:]!r}")
        return self.output.index(text, start) + len(text)

    def ended(self):
        return os.waitpid(self.pid, os.WNOHANG)[0] != 0

    def send(self, text):
        os.write(self.terminal, text.encode())

    def wait(self):
        # The terminal is read to its end first, so that nothing blocks on it.
        try:
            while os.read(self.terminal, 4096):
                pass
        except OSError:
            pass
        status = os.waitpid(self.pid, 0)[1]
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def test_an_interrupt_stops_the_answer_and_not_the_program(self):
        at = self.read_until("> ", 0)
        self.send("Hello\n")
        at = self.read_until("Hello\r\n", at)
        self.read_until(" ", at)  # the answer has begun
        os.kill(self.pid, signal.SIGINT)
        at = self.read_until("cancelled", at)
        at = self.read_until("> ", at)
        self.send("/help\n")
        at = self.read_until("/clear", at)
        at = self.read_until("> ", at)
        self.send("/quit\n")
        self.assertEqual(self.wait(), 0)

    def test_the_end_of_input_ends_it(self):
        self.read_until("> ", 0)
        self.send("\x04")
        self.assertEqual(self.wait(), 0)


class Tools(unittest.TestCase):
    def test_tokenize_and_back(self):
        text = "Grüße, 你好! 1 + 1 = 2\n"
        ids = foresight("tokenize", stdin=text.encode())
        self.assertEqual(ids.returncode, 0, ids.stderr.decode())
        self.assertTrue(all(isinstance(i, int) for i in json.loads(ids.stdout)))
        back = foresight("tokenize", "--decode", stdin=ids.stdout)
        self.assertEqual(back.returncode, 0, back.stderr.decode())
        self.assertEqual(back.stdout.decode(), text)

    def test_inspect(self):
        result = foresight("inspect", "tests/golden/nano-a")
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        self.assertIn("token", result.stdout.decode())
        self.assertEqual(foresight("inspect", "no/such/directory").returncode, 2)


if __name__ == "__main__":
    PROGRAM = str(pathlib.Path(sys.argv.pop(1)).resolve())
    unittest.main(verbosity=2)
