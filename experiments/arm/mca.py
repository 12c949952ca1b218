"""Cycles of the inner loops of kernels_neon.cc as LLVM models them: `python experiments/arm/mca.py`, no ARM needed.

The file is compiled for aarch64, its innermost loops are found by their instructions, and llvm-mca says how many cycles
an iteration takes where nothing waits for memory. LLVM 14 gives the Cortex-A72 and A76 the same figures: it has
no model of each.
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

from bireal_jax import output

ENGINE = Path(__file__).parents[2] / "bireal_jax" / "runtime" / "engine"
CPUS = ("cortex-a53", "cortex-a72", "cortex-a76", "apple-m1")
# What marks a loop, and multiply-adds of one such instruction.
LOOPS = {
    "1-bit, tables": ("tbl", 16 * 4 * 2),
    "float32": ("fmla", 4),
    "16 bits": ("smlal", 4),
}  # fmt: skip


def assembly() -> str:
    """kernels_neon.cc as GCC compiles it for the package."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "neon.s")
        flags = ["-std=c++17", "-O3", "-S", f"-I{ENGINE}"]
        subprocess.run(["aarch64-linux-gnu-g++", *flags, ENGINE / "kernels_neon.cc", "-o", out], check=True)
        return out.read_text()


def loops(text: str) -> list[list[str]]:
    """Bodies of innermost loops: from a label to the branch back to it, without a label in between."""
    found, label, body = [], "", []
    for line in text.splitlines():
        if match := re.match(r"(\.L\w+):", line):
            label, body = match[1], []
        elif line.startswith("\t") and not line.strip().startswith("."):
            body.append(line.strip())
            if re.match(r"\tb\.?\w*\s|\tcbnz|\tcbz|\ttbn?z", line):
                if line.split()[-1] == label:
                    found.append(body)
                label, body = "", []
    return found


def cycles(body: list[str], cpu: str) -> float:
    """Of an iteration, over a hundred."""
    command = ["llvm-mca", "-mtriple=aarch64-linux-gnu", f"-mcpu={cpu}", "-iterations=100"]
    said = subprocess.run(command, input="\n".join(body), check=True, capture_output=True, text=True).stdout
    found = re.search(r"Total Cycles:\s+(\d+)", said)
    assert found
    return int(found[1]) / 100


def main():
    """The command."""
    bodies = loops(assembly())
    print(f"| loop | instructions | multiply-adds | {' | '.join(CPUS)} |\n|{'---|' * (3 + len(CPUS))}")
    for name, (mark, each) in LOOPS.items():
        count = lambda body, mark=mark: sum(line.startswith(mark) for line in body)  # noqa: E731
        body = max((b for b in bodies if count(b) >= 8), key=lambda b, count=count: count(b) / len(b))
        work = each * count(body)
        figures = [f"{work / cycles(body, cpu):.1f}" for cpu in CPUS]
        print(f"| {name} | {len(body)} | {work} | {' | '.join(figures)} |")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    with output.command():
        main()
