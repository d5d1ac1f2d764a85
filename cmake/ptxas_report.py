#!/usr/bin/env python3
"""Runs a compiler and keeps what ptxas says of registers and spills beside the object, for tests/cuda_spills.

usage: ptxas_report.py OBJECT COMMAND...
"""
import re
import subprocess
import sys

REPORT = re.compile(r"^ptxas info|^\s+\d+ bytes stack frame")


def main():
    target, command = sys.argv[1], sys.argv[2:]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    report = [line for line in done.stderr.splitlines(keepends=True) if REPORT.match(line)]
    sys.stderr.write("".join(line for line in done.stderr.splitlines(keepends=True) if not REPORT.match(line)))
    if done.returncode == 0:
        with open(target + ".ptxas", "w", encoding="utf-8") as out:
            out.writelines(report)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
