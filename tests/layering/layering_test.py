"""Holds the includes of src/ to the table of modules, and keeps out what a tidy tree doesn't have.

A module may include itself and what MAY_INCLUDE names. The table is the one of ARCHITECTURE.md; each module's
CMake file may only name modules that the table allows.
"""

import pathlib
import re
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SRC = ROOT / "src"

# In dependency order: a module stands above everything that may include it.
MAY_INCLUDE = {
    "base": set(),
    "tensor": {"base"},
    "device": {"base", "tensor"},
    "kernels": {"base", "tensor", "device"},
    "tokenizer": {"base"},
    "chat": {"base", "tokenizer"},
    "weights": {"base", "tensor", "device", "kernels"},
    "kv_cache": {"base", "tensor", "device", "weights"},
    "sampling": {"base", "kernels"},
    "speculative": {"base", "sampling"},
    "request": {"base", "sampling"},
    "scheduler": {"base"},
    "model": {"base", "tensor", "device", "kernels", "weights", "kv_cache"},
    "drawing": {"base", "device", "kernels", "sampling", "speculative", "model"},
    "drafting": {"base", "kernels", "kv_cache", "sampling", "speculative", "model", "drawing"},
    "verify": {"base", "tensor", "device", "kernels", "weights", "kv_cache", "model"},
    "engine": {"base", "tensor", "device", "kernels", "tokenizer", "weights", "kv_cache", "sampling", "speculative", "request",
               "scheduler", "model", "drawing", "drafting"},
}
MAY_INCLUDE["cli"] = set(MAY_INCLUDE) - {"cli"}

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def sources(folder):
    return sorted(p for p in folder.rglob("*") if p.suffix in {".h", ".cc", ".cu", ".cuh", ".inc", ".S"})


def tracked_text_files():
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=False
    ).stdout.decode().split("\0")
    suffixes = {".h", ".cc", ".cu", ".cuh", ".cmake", ".txt", ".md", ".py", ".sh", ".json", ".S"}
    for name in filter(None, names):
        path = ROOT / name
        if path.suffix in suffixes and path.is_file() and path.stat().st_size < 1_000_000:
            yield name, path.read_text(errors="replace")


class Layering(unittest.TestCase):
    def test_every_module_is_in_the_table(self):
        modules = {p.name for p in SRC.iterdir() if p.is_dir()}
        self.assertLessEqual(modules, set(MAY_INCLUDE))

    def test_the_table_is_in_dependency_order(self):
        seen = set()
        for module, below in MAY_INCLUDE.items():
            self.assertLessEqual(below, seen, module)
            seen.add(module)

    def test_includes_go_down_only(self):
        wrong = []
        for path in sources(SRC):
            module = path.relative_to(SRC).parts[0]
            for target in INCLUDE.findall(path.read_text()):
                other = target.split("/")[0]
                if path.name.endswith("_test.cc") and target in {"tests/tolerances.h", "tests/allocation_counter.h"}:
                    continue
                if other == "foresight":  # include/foresight, which includes nothing of src/
                    continue
                if "/" not in target or other not in MAY_INCLUDE:
                    wrong.append(f"{path.relative_to(ROOT)}: \"{target}\" is not a path from src/")
                elif other != module and other not in MAY_INCLUDE[module]:
                    wrong.append(f"{path.relative_to(ROOT)}: {module} may not include {target}")
        self.assertEqual(wrong, [])

    def test_headers_have_pragma_once(self):
        missing = [
            str(p.relative_to(ROOT))
            for p in sources(SRC)
            # Included once for each instruction set on purpose: they open and close a target.
            if p.suffix == ".h" and "#pragma once" not in p.read_text() and not p.name.startswith("isa_")
            and "included more than once" not in p.read_text().lower()
            and "FORESIGHT_ISA" not in p.read_text()
        ]
        self.assertEqual(missing, [])


class Tidiness(unittest.TestCase):
    def test_no_environment_variables(self):
        wrong = [str(p.relative_to(ROOT)) for p in sources(SRC) if re.search(r"\bgetenv\b", p.read_text())]
        self.assertEqual(wrong, [])

    def test_no_paths_of_one_machine(self):
        pattern = re.compile(r"(?<![\w.])/(?:home|root|work|tmp/build)[-/]\w")
        wrong = [
            f"{name}: {match.group(0)}"
            for name, text in tracked_text_files()
            if name != "tests/layering/layering_test.py"
            for match in pattern.finditer(text)
        ]
        self.assertEqual(wrong, [])

    def test_no_backend_ifdefs_in_the_model(self):
        folders = ["model", "engine", "kv_cache", "sampling"]
        wrong = [
            str(p.relative_to(ROOT))
            for folder in folders
            for p in sources(SRC / folder)
            if re.search(r"^\s*#\s*if", p.read_text(), re.MULTILINE)
        ]
        self.assertEqual(wrong, [])


if __name__ == "__main__":
    sys.exit(unittest.main(verbosity=1))
