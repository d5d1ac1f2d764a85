#!/usr/bin/env python3
"""Runs what needs a GPU, tests and benchmarks, and writes a report as JSON and markdown.

usage: gpu_report.py [--build DIR] [--model DIR] [--out bench/results] [--synthetic flash:4]

Tests: every CUDA kernel against its definition, the goldens that are here, purity over random schedules. Benchmarks:
every kernel at released shapes (bench/kernel_bench), `foresight bench` with the small model, with layers of released shapes and a deep stack of
them (--replay), and `foresight bench spec` with the small model and, replayed, with that stack. Exit status 0 only when every test has
passed. What there is so far lies in gpu-NAME.partial.json and .md, from the first test on until the report is whole. gpu_sanitize.py runs the
tests under compute-sanitizer.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]


# Tests spend most of their time on the host, where a kernel's definition runs: several processes share the GPU.
SHARDS = max(1, min(8, (os.cpu_count() or 1) // 2))


def output_of(*command, env=None):
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    except FileNotFoundError as error:
        return 127, str(error)
    return done.returncode, done.stdout + done.stderr


def gpu_and_driver():
    status, text = output_of("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    if status != 0:
        sys.exit(f"no GPU: {text.strip()}")
    name, driver = (part.strip() for part in text.splitlines()[0].split(","))
    return name, driver


def commit_of_checkout():
    return output_of("git", "rev-parse", "--short", "HEAD")[1].strip()


def report_stem(out, gpu):
    out.mkdir(parents=True, exist_ok=True)
    return out / ("gpu-" + re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-"))


def gtest(build, program, pattern, *extra, shards=SHARDS):
    """-> the counts of one run of a test program, in shards, and the names of what failed."""
    began = time.time()

    def shard(index):
        env = os.environ | {"GTEST_TOTAL_SHARDS": str(shards), "GTEST_SHARD_INDEX": str(index)}
        return output_of(str(build / program), f"--gtest_filter={pattern}", *extra, env=env)

    with concurrent.futures.ThreadPoolExecutor(shards) as pool:
        outputs = list(pool.map(shard, range(shards)))
    status = next((status for status, _ in outputs if status != 0), 0)
    text = "\n".join(text for _, text in outputs)
    failed = sorted(set(re.findall(r"^\[  FAILED  \] (\S+?),? .*\(\d+ ms\)$", text, re.MULTILINE)))
    result = {
        "program": program, "filter": pattern, "status": status,
        "passed": len(re.findall(r"^\[       OK \]", text, re.MULTILINE)),
        "skipped": len(re.findall(r"^\[  SKIPPED \] .*\(\d+ ms\)$", text, re.MULTILINE)),
        "failed": failed, "seconds": round(time.time() - began, 1)}
    for bad, output in outputs:
        if bad != 0:
            print(output[-4000:], file=sys.stderr)
    if result["passed"] + result["skipped"] + len(failed) == 0:
        result["status"] = status or 1  # a filter that finds nothing has shown nothing
    print(f"{program} {pattern}: {result['passed']} passed, {result['skipped']} skipped, "
          f"{len(failed)} failed, status {status}, {result['seconds']} s", flush=True)
    return result


def figures_of(out, shown, *command):
    """-> the JSON that a program writes to its --json FILE, or how it failed. `shown`: characters of its last output."""
    path = out / "figures.tmp.json"
    status, text = output_of(*command, "--json", str(path))
    print(text[-shown:], flush=True)
    if status != 0:
        return {"status": status, "error": text[-1000:]}
    figures = json.loads(path.read_text())
    path.unlink()
    return {"status": 0, **figures}


def bench(build, out, *flags):
    return {"flags": list(flags), **figures_of(out, 1500, str(build / "foresight"), "bench", "--device", "cuda", *flags)}


def spec(build, out, *flags):
    """-> the speeds of drafters by load (`foresight bench spec`)."""
    figures = figures_of(out, 2500, str(build / "foresight"), "bench", "spec", "--device", "cuda", *flags)
    kept = ("status", "error", "model", "replayed", "load")
    return {"flags": list(flags), **{key: figures[key] for key in kept if key in figures}}


def spec_lines(run):
    lines = ["", f"`foresight bench spec --device cuda {' '.join(run['flags'])}`", ""]
    if run["status"] != 0:
        return lines + [f"failed: {run['error'].strip().splitlines()[-1]}"]
    if run["replayed"]:
        lines += [f"Replayed: {run['replayed']}; {run['model']}.", ""]
    setups = list(dict.fromkeys(row["setup"] for row in run["load"]))
    lines += ["tokens/s in all, tokens/s of a user, times none:", "",
              "| requests | " + " | ".join(setups) + " |", "|---" * (len(setups) + 1) + "|"]
    for concurrency in dict.fromkeys(row["concurrency"] for row in run["load"]):
        cells = []
        for setup in setups:
            row = next(r for r in run["load"] if r["setup"] == setup and r["concurrency"] == concurrency)
            rate = sorted(row["tokens_per_second"])[len(row["tokens_per_second"]) // 2]
            cells.append(f"{rate:.0f}, {rate / concurrency:.0f}, {row['ratio']:.2f}")
        lines.append(f"| {concurrency} | " + " | ".join(cells) + " |")
    return lines


def kernel_lines(report):
    figures = report["kernels"]
    if "error" in figures:
        return ["", f"kernel_bench failed: {figures['error'].strip().splitlines()[-1]}"]
    copy = figures["copy_gb_per_second"]
    lines = ["", "`bench/kernel_bench`: calls on cold data in a recorded chain. A copy on the device moves "
             f"{copy:.0f} GB/s; the share is of that, for the bytes that a call must move at least.", "",
             "| kernel | us, median (min to max) | share of the copy | TFLOP/s |", "|---|---|---|---|"]
    for k in figures["kernels"]:
        us = k["us"]
        lines.append(f"| {k['name']} | {us['median']:.2f} ({us['min']:.2f} to {us['max']:.2f}) | {100 * k['share_of_copy']:.0f} % | "
                     + (f"{k['flops'] / us['median'] * 1e-6:.1f} |" if k["flops"] else "- |"))
    return lines


def markdown(report):
    lines = [f"# {report['gpu']}", "",
             f"Commit {report['commit']}, driver {report['driver']}, {report['date']}. Written by `bench/gpu_report.py`.", "",
             "| tests | passed | skipped | failed |", "|---|---|---|---|"]
    for t in report["tests"]:
        lines.append(f"| {t['program']} `{t['filter']}` | {t['passed']} | {t['skipped']} | {len(t['failed'])} |")
    if report["kernels"]:
        lines += kernel_lines(report)
    for b in report["benchmarks"]:
        lines += ["", f"`foresight bench --device cuda {' '.join(b['flags'])}`", ""]
        if b["status"] != 0:
            lines.append(f"failed: {b['error'].strip().splitlines()[-1]}")
            continue
        lines += [f"A copy on the device moves {b['read_gb_per_second']['median']:.0f} GB/s; prefill of {b['prefill']['rows']} rows "
                  f"{b['prefill']['tokens_per_second']['median']:.0f} tokens/s.", "",
                  "| batch | context | tokens/s, median (min to max) | ms a step | share of the copy |", "|---|---|---|---|---|"]
        for d in b["decode"]:
            rate = d["tokens_per_second"]
            share = d["read_bandwidth_share"]
            lines.append(f"| {d['batch']} | {d['context']} | {rate['median']:.1f} ({rate['min']:.1f} to {rate['max']:.1f}) | "
                         f"{1e3 * d['batch'] / rate['median']:.3f} | "
                         + (f"{100 * share['median']:.0f} % |" if share else "- |"))
    for run in report["speculation"]:
        lines += spec_lines(run)
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--model", default="", help="checkpoint directory (default: the embedded model)")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "bench/results")
    parser.add_argument("--synthetic", default="flash:4")
    parser.add_argument("--repeats", type=int, default=10000, help="of one step, in each case of the purity test")
    parser.add_argument("--replay", default="flash:43", help="the shape for replayed drafts; empty: none")
    parser.add_argument("--replay-experts", default="24", help="routed experts of its layers, so that they fit")
    parser.add_argument("--replay-requests", default="1,2,4,8,16,32,64", help="concurrent ones")
    parser.add_argument("--commit", default="", help="of the programs, where there is no repository")
    args = parser.parse_args()
    name, driver = gpu_and_driver()
    stem = report_stem(args.out, name)
    commit = args.commit or commit_of_checkout()
    report = {"gpu": name, "driver": driver, "commit": commit, "date": time.strftime("%Y-%m-%d"), "tests": [], "kernels": {}, "benchmarks": [],
              "speculation": []}
    partial = {suffix: stem.with_suffix(f".partial{suffix}") for suffix in (".json", ".md")}

    def save():
        partial[".json"].write_text(json.dumps(report, indent=1) + "\n")
        partial[".md"].write_text(markdown(report))

    def add(part, result):
        report[part].append(result)
        save()

    for program, pattern, *extra in (
            ("src/device/device_test", "Cuda*"),
            ("src/kernels/kernels_test", "*Cuda*:ForkTest.*"),
            ("tests/golden_test", "*cuda*"),
            ("tests/purity_test", "*Schedule*cuda*", "--schedules=12"),
            ("tests/purity_test", "*LongSteps*cuda*:*ReleasedShapes*", "--schedules=16")):
        add("tests", gtest(args.build, program, pattern, *extra))
    # A repeat is all the device's, which lets processes take turns: 0.9 ms in one process, longer in all with more of them.
    add("tests", gtest(args.build, "tests/purity_test", "*Repeats*cuda*", f"--repeats={args.repeats}", shards=1))
    add("tests", gtest(args.build, "src/engine/engine_test", "*OnAGpu*:*DrawnOnDevice*"))
    report["kernels"] = figures_of(args.out, 20000, str(args.build / "bench/kernel_bench"), "--commit", commit)
    save()
    model = ["-m", args.model] if args.model else []
    add("benchmarks", bench(args.build, args.out, *model, "--batches", "1,2,4,8,16,32", "--contexts", "1024,4096", "--steps", "32"))
    add("benchmarks", bench(args.build, args.out, "--synthetic", args.synthetic, "--contexts", "4096",
                            "--batches", "1,2,4,8,16,32,64,128", "--prefill", "2048", "--repeat", "3"))
    add("speculation", spec(args.build, args.out, *model, "--per-domain", "4", "-n", "96", "--concurrency", "1,4,16,64", "--no-domains"))
    if args.replay:
        deep = ["--synthetic", args.replay, "--experts", args.replay_experts]
        add("benchmarks", bench(args.build, args.out, *deep, "--contexts", "4096", "--batches", "1,2,4,8,16,32,64",
                                "--steps", "32", "--prefill", "64"))
        add("speculation", spec(args.build, args.out, *deep, "--replay", "bench/traces/foresight-mini.json", "-n", "48", "--concurrency",
                                args.replay_requests, "--no-domains"))
    for suffix, path in partial.items():
        path.replace(stem.with_suffix(suffix))
    print(f"written: {stem}.json, {stem}.md")
    return 0 if all(t["status"] == 0 for t in report["tests"]) and "error" not in report["kernels"] else 1


if __name__ == "__main__":
    sys.exit(main())
