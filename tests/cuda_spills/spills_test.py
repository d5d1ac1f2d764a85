#!/usr/bin/env python3
"""No hot kernel spills registers or has its wgmma serialized: reads what ptxas said while the objects were built (cmake/ptxas_report.py).

usage: spills_test.py BUILD_DIR
Hot are kernels for Hopper in faithful numerics. Exit status 77: nothing here was built for a GPU.
"""
import pathlib
import re
import subprocess
import sys

HOT_ARCHITECTURES = {"sm_90", "sm_90a"}
# (demangled name, bytes at most, why): everything else must not spill.
MAY_SPILL = [
    (r"TiledProductKernel<[\w:]+, true,", 248, "clean numerics"),
    (r"SkinnyProductKernel<.*ExpertTasks", 392, "experts whose sizes no kernel of their own takes"),
    (r"WideAttention<false>", 140, "once a row"),
    (r"WideAttention<true>", 36, "once a row"),
    (r"PreKernel<true>", 24, "64 registers, so that it starts beside the kernels before; not in a loop"),
]

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
SERIALIZED = re.compile(r"wgmma.mma_async instructions are serialized")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")


def kernels_of(report):
    """-> [mangled name, architecture, bytes of spill stores and loads, registers] of each kernel of a report."""
    found = []
    for line in report.read_text(encoding="utf-8").splitlines():
        if SERIALIZED.search(line):
            sys.exit(f"{report.name}: {line}")
        if entry := ENTRY.search(line):
            found.append([entry[1], entry[2], 0, 0])
        elif found and (spills := SPILLS.search(line)):
            found[-1][2] = int(spills[2]) + int(spills[3])
        elif found and (used := REGISTERS.search(line)):
            found[-1][3] = int(used[1])
    return found


def demangled(names):
    if not names:
        return []
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return text.splitlines()


def main():
    kernels = [k for report in sorted(pathlib.Path(sys.argv[1]).rglob("*.ptxas")) for k in kernels_of(report)]
    hot = [k for k in kernels if k[1] in HOT_ARCHITECTURES]
    if not hot:
        print("no kernels were built here")
        return 77
    spilling = [k for k in hot if k[2] > 0]
    bad = 0
    for name, (_, architecture, spilled, registers) in zip(demangled([k[0] for k in spilling]), spilling):
        allowed = [why for pattern, most, why in MAY_SPILL if spilled <= most and re.search(pattern, name)]
        bad += not allowed
        print(f"{'allowed: ' + allowed[0] if allowed else 'SPILLS'}: {spilled} bytes, {registers} registers, {architecture}: {name}")
    print(f"{len(hot)} kernels for Hopper, {len(spilling)} spill, {bad} of them must not; "
          f"{len(kernels) - len(hot)} kernels for other GPUs")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
