#!/usr/bin/env python3
"""Runs every test of a CUDA kernel under the tools of compute-sanitizer and writes what they found as JSON and markdown.

usage: gpu_sanitize.py [--build DIR] [--out bench/results] [--tools memcheck,initcheck,racecheck] [--filter '*'] [--limit 60]
                       [--seconds 3600] [--former REPORT.json]

Each test is a process of its own, as many side by side as there are cores; small ones of a suite go together first, where a tool is
quick, and one by one only if it isn't content with all of them. A test ends in one of:
  clean      it passes, and the tool reports nothing
  finding    the tool reports something
  failed     the test fails or skips, and the tool reports nothing
  not ended  after --limit seconds
  not run    for want of time (--seconds)
Each tool's shortest tests come first, as far as a former report tells how long they take. What it says is clean stays so if it is of the
same commit, and isn't run again: a report that wants of time is gone on with.
Exit status 0 only when all are clean.

--tools synccheck takes a barrier that all warps of a block reach at different places of the code for an error, as it is with __syncthreads.
Ours are named barriers, which PTX knows by their numbers: warps of different duties meet at them.
"""
import argparse
import concurrent.futures
import dataclasses
import fnmatch
import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

from gpu_report import ROOT, commit_of_checkout, gpu_and_driver, report_stem

TESTS = {  # those that run on a GPU, but for whole models
    "src/device/device_test": "Cuda*",
    "src/kernels/kernels_test": "*Cuda*:ForkTest.*",
    "tests/golden_test": "*nano*cuda*",
    "src/engine/engine_test": "*OnAGpu*",
}
# Racecheck follows every access to shared memory: steps of released shapes don't end under it, nor many launches, nor long lists under
# initcheck, nor the engine's texts under any. For these tests they take those of the same kernels that have "Little" in their names.
LEFT_TO_LITTLE_CASES = {
    "racecheck": ("*AttentionRowsCuda.*", "*AttentionLongListsCuda.*", "*AttentionCuda.*", "AttentionBlockCuda.*", "*MoeShapesCudaTest.*",
                  "*MoeCancellingCudaTest.*", "*MoeRoutingCudaTest.*", "MoeCudaTest.*", "*LinearDTypesCudaTest.*",
                  "*StreamedProductsCudaTest.*", "*LargeTilesCudaTest.*", "LinearCudaTest.*Many*", "LinearCudaTest.Streamed*",
                  "LinearCudaTest.LongRows*", "GroupedLinearCudaTest.*", "IndexerLongCuda.*", "IndexerTilesCuda.*", "PicksCuda.*",
                  "*IndexerCuda.PicksTheSame*", "*CompressorCuda.Writes*", "DraftPlanCuda.Plans*", "ForkTest.*", "*GoldenTest.*",
                  "*DrawnOnDevice.*", "Rejection.*", "Preemption.*"),
    "initcheck": ("*AttentionLongListsCuda.*", "IndexerLongCuda.PicksWhat*", "IndexerLongCuda.PicksTheSame*", "*CompressorCuda.Writes*",
                  "*DrawnOnDevice.*", "Rejection.*"),
    "memcheck": ("*DrawnOnDevice.*",),
}
TOOLS = ("memcheck", "initcheck", "racecheck")
RESULTS = ("clean", "finding", "failed", "not ended", "not run")
BATCH = 6  # small tests
FOUND = 9  # the exit status of a process in which a tool has found something


@dataclasses.dataclass
class Run:
    tool: str
    program: str
    test: str
    result: str = "not run"
    seconds: float = 0.0
    told: str = ""  # what a tool or a test says that isn't content


def tests_of(build, program, pattern):
    """-> the names of a program's tests, in its order."""
    listed = subprocess.run([build / program, "--gtest_list_tests", f"--gtest_filter={pattern}"], cwd=ROOT, capture_output=True,
                            text=True, check=True).stdout
    names = []
    suite = ""
    for line in listed.splitlines():
        name = line.split("#")[0].rstrip()
        if name.startswith("  "):
            names.append(suite + name.strip())
        else:
            suite = name
    return names


def is_left_out(tool, test):
    return "Little" not in test and any(fnmatch.fnmatchcase(test, pattern) for pattern in LEFT_TO_LITTLE_CASES.get(tool, ()))


def turn(tool, test):
    """What comes when: racecheck's little cases, then all of memcheck and initcheck, then what takes long or finds little."""
    if tool == "racecheck":
        # Clusters of attention last: should racecheck not end on one, it takes the GPU from the others.
        return (1 if "Attention" in test else 0) if "Little" in test else 4
    return {"memcheck": 2, "initcheck": 3}.get(tool, 5)


def batches_of(runs):
    """-> lists of runs that may share a process."""
    batches = []
    suite = None
    for run in runs:
        is_small = run.tool != "racecheck" and not is_left_out("racecheck", run.test)
        before, suite = suite, (run.tool, run.program, run.test.split(".")[0]) if is_small else None
        if is_small and before == suite and len(batches[-1]) < BATCH:
            batches[-1].append(run)
        else:
            batches.append([run])
    return batches


def read_former(path):
    """-> of a report the runs by tool and test, and its commit."""
    if path is None:
        return {}, None
    report = json.loads(path.read_text())
    return {(run["tool"], run["test"]): run for run in report["runs"]}, report["commit"]


def duration(former, run):
    """In seconds, as a former report tells: under the tool, or under that where the test took longest."""
    own = former.get((run.tool, run.test))
    if own is not None and own["result"] != "not run":
        return math.inf if own["result"] == "not ended" else own["seconds"]
    return max((former[tool, run.test]["seconds"] for tool in TOOLS if (tool, run.test) in former), default=0.0)


def verdict(status, output, tests):
    """-> the result of so many tests and what was told."""
    tool = [line[9:].strip() for line in output.splitlines() if line.startswith("=========")]
    summary = next((line for line in reversed(tool) if "SUMMARY" in line), "")
    if status == FOUND or re.search(r"SUMMARY: [1-9]", summary):
        return "finding", " | ".join([line for line in tool if line and line != summary][1:4] + [summary])
    # A tool that hasn't begun has found nothing either.
    if status == 0 and "SUMMARY: 0" in summary and re.search(rf"^\[  PASSED  \] {tests} tests?\.", output, re.MULTILINE) and "SKIPPED" not in output:
        return "clean", ""
    return "failed", output[-300:]


def check(batch, sanitizer, build, limit, deadline):
    began = time.monotonic()
    allowed = min(limit, deadline - began)
    if allowed <= 0:
        return
    of = batch[0]
    command = [sanitizer, "--tool", of.tool, "--error-exitcode", str(FOUND), build / of.program,
               "--gtest_filter=" + ":".join(run.test for run in batch)]
    # The tool starts the test as a child: both end with the session that is theirs.
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                          start_new_session=True) as process:
        try:
            output, _ = process.communicate(timeout=allowed)
            result, told = verdict(process.returncode, output, len(batch))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            result, told = "not ended" if allowed == limit else "not run", ""
    if len(batch) > 1 and result != "clean":
        for run in batch:
            check([run], sanitizer, build, limit, deadline)
        return
    seconds = round((time.monotonic() - began) / len(batch), 1)
    for run in batch:
        run.result, run.told, run.seconds = result, told, seconds
        # Whole, beside other threads' lines.
        print(f"{run.tool} {run.test}: {run.result}, {run.seconds} s\n", end="", flush=True)


def number(runs, result):
    return sum(run.result == result for run in runs)


def markdown(report, runs):
    lines = [f"# {report['gpu']}: compute-sanitizer", "",
             f"Commit {report['commit']}, driver {report['driver']}, compute-sanitizer {report['version']}, {report['date']}. "
             f"{report['limit']:.0f} s a test, {report['jobs']} side by side, {report['seconds']:.0f} s in all. "
             + (f"{report['clean_before']} tests were clean in a former report of this commit. " if report["clean_before"] else "") +
             "Written by `bench/gpu_sanitize.py`.", "",
             "| tool | program | tests | " + " | ".join(RESULTS) + " | longest, s |", "|---" * (len(RESULTS) + 4) + "|"]
    for tool, program in sorted(dict.fromkeys((run.tool, run.program) for run in runs)):
        of = [run for run in runs if (run.tool, run.program) == (tool, program)]
        lines.append(f"| {tool} | {program} | {len(of)} | " + " | ".join(str(number(of, result)) for result in RESULTS) +
                     f" | {max(run.seconds for run in of):.0f} |")
    if report["left_out"]:
        lines += ["", f"{len(report['left_out'])} tests are left to little cases of the same kernels, where a tool doesn't end on them "
                  "(`LEFT_TO_LITTLE_CASES`)."]
    for result in RESULTS[1:-1]:
        of = [run for run in runs if run.result == result]
        if of:
            lines += ["", f"{result.capitalize()}:", ""]
            lines += [f"- {run.tool} `{run.test}`" + (f": {run.told}" if result == "finding" else "") for run in of]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "bench/results")
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--filter", default="*", help="of googletest, within the tests that run on a GPU")
    parser.add_argument("--limit", type=float, default=60, help="seconds a test")
    parser.add_argument("--seconds", type=float, default=3600, help="for all")
    parser.add_argument("--former", type=pathlib.Path, help="a report of these tests, to go on with if it is of the same commit")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes side by side")
    parser.add_argument("--commit", default="", help="of the programs, where there is no repository")
    args = parser.parse_args()
    gpu, driver = gpu_and_driver()
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    version = subprocess.run([sanitizer, "--version"], capture_output=True, text=True, check=True).stdout
    build = args.build.resolve()
    tests = []
    for program, pattern in TESTS.items():
        wanted = set(tests_of(build, program, args.filter))
        tests += [(program, test) for test in tests_of(build, program, pattern) if test in wanted]
    all_runs = [Run(tool, program, test) for tool in args.tools.split(",") for program, test in tests]
    runs = [run for run in all_runs if not is_left_out(run.tool, run.test)]
    former, former_commit = read_former(args.former)
    commit = args.commit or commit_of_checkout()
    if former_commit == commit:
        for run in runs:
            was = former.get((run.tool, run.test), {})
            if was.get("result") == "clean":
                run.result, run.seconds = "clean", was["seconds"]
    # With little time (--seconds) the first ones are those that say the most, and of these the shortest.
    batches = batches_of([run for run in runs if run.result != "clean"])
    batches.sort(key=lambda batch: (turn(batch[0].tool, batch[0].test), sum(duration(former, run) for run in batch)))
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda batch: check(batch, sanitizer, build, args.limit, began + args.seconds), batches))
    report = {"gpu": gpu, "driver": driver, "commit": commit, "date": time.strftime("%Y-%m-%d"),
              "version": re.sub(r"(?s).*Version (\S+).*", r"\1", version), "limit": args.limit, "jobs": args.jobs,
              "seconds": round(time.monotonic() - began, 1), "clean_before": len(runs) - sum(len(batch) for batch in batches),
              "left_out": [f"{run.tool} {run.test}" for run in all_runs if is_left_out(run.tool, run.test)]}
    stem = report_stem(args.out, gpu + " sanitizer")
    of_runs = ",\n  ".join(json.dumps({key: value for key, value in dataclasses.asdict(run).items() if value != ""}) for run in runs)
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1)[:-2] + f',\n "runs": [\n  {of_runs}\n ]\n}}\n')
    stem.with_suffix(".md").write_text(markdown(report, runs))
    print(markdown(report, runs) + f"written: {stem}.json, {stem}.md")
    return 0 if runs and number(runs, "clean") == len(runs) else 1


if __name__ == "__main__":
    sys.exit(main())
