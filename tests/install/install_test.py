"""Installs the build, and builds and runs the example as a stranger's project against it.

    install_test.py BUILD_DIRECTORY SOURCE_DIRECTORY C++_COMPILER
"""

import pathlib
import subprocess
import sys
import tempfile


def run(*command):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{command}:\n{result.stdout}{result.stderr}")
    return result.stdout


def main():
    build, source, compiler = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        prefix, project, out = (pathlib.Path(folder) / name for name in ("prefix", "project", "out"))
        run("cmake", "--install", build, "--prefix", prefix)
        project.mkdir()
        for name in ("CMakeLists.txt", "embed.cc"):  # without the tree around them
            (project / name).write_bytes((pathlib.Path(source) / "examples" / name).read_bytes())
        run("cmake", "-S", project, "-B", out, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}",
            f"-DCMAKE_CXX_COMPILER={compiler}")
        run("cmake", "--build", out)
        if "[40 tokens, " not in run(out / "embed", "A list of"):
            sys.exit("the example printed no answer of 40 tokens")


main()
