"""A packed network as C on emulated Cortex-M4 and M7: outputs against the numpy reference, flash, RAM, instructions.

    python -m experiments.mcu.run runs/digits/net.safetensors

Debian: apt install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm
"""

import argparse
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bireal_jax import output
from bireal_jax.runtime import container
from bireal_jax.shipping import formats, to_c

HERE = Path(__file__).parent
COMPILER, EMULATOR = "arm-none-eabi-gcc", "qemu-system-arm"
# processor -> compiler flags, board of QEMU
BOARDS = {
    "cortex-m4": (("-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16"), "mps2-an386"),
    "cortex-m7": (("-mcpu=cortex-m7", "-mfpu=fpv5-d16"), "mps2-an500"),
}
LOOP = 2_000_000  # instructions, of which start.c tells the ticks


@dataclass
class Run:
    """What a network did.

    Attributes:
      outputs: float32 [images, outputs].
      code: bytes of its machine code; flash: with constants; ram: of its static arrays.
      instructions: for one image, the median.
    """

    outputs: np.ndarray
    code: int
    flash: int
    ram: int
    instructions: int


def missing() -> str:
    """The program that is not installed, or ""."""
    return next((name for name in (COMPILER, EMULATOR) if not shutil.which(name)), "")


def run(program: container.Program, images: np.ndarray, board: str, optimize: str = "-O2") -> Run:
    """Compiles a program for a key of BOARDS, without a heap or an operating system, and runs it on uint8 images."""
    flags, machine = BOARDS[board]
    flags = (
        *flags,
        "-mthumb",
        "-mfloat-abi=hard",
        optimize,
        "-std=c99",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-ffreestanding",
    )
    with tempfile.TemporaryDirectory() as folder:
        to_c.write(program, Path(folder, "net.c"))
        rows = ",\n".join("{" + ",".join(map(str, image.ravel())) + "}" for image in images)
        lines = f"#define IMAGES {len(images)}\nstatic const uint8_t images[IMAGES][{images[0].size}] = {{\n{rows}}};\n"
        Path(folder, "images.h").write_text(f"#include <stdint.h>\n{lines}")

        def call(*command):
            return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout

        call(COMPILER, *flags, "-pedantic", "-c", "net.c")
        sizes = call("arm-none-eabi-size", "net.o").splitlines()[1].split()
        link = ("-I.", "-nostartfiles", "-T", str(HERE / "mps2.ld"), "-o", "net.elf")
        call(COMPILER, *flags, str(HERE / "start.c"), "net.o", *link)
        text = call(
            EMULATOR, "-M", machine, "-icount", "shift=0", "-chardev", "stdio,id=out",
            "-semihosting-config", "enable=on,target=native,chardev=out", "-display",
            "none", "-monitor", "none", "-serial", "none", "-kernel", "net.elf",
        )  # fmt: skip
        header = Path(folder, "net.h").read_text()
    (loop,), *lines = [[int(word, 16) for word in line.split()] for line in text.splitlines()]
    constants = int(header.split("_FLASH ")[1].split()[0])
    return Run(
        np.array([line[1:] for line in lines], np.uint32).view(np.float32), int(sizes[0]) - constants, int(sizes[0]),
        int(sizes[1]) + int(sizes[2]), round(np.median([line[0] for line in lines]) * LOOP / loop),
    )  # fmt: skip


def main():
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("nets", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=8)
    arguments = parser.parse_args()
    print("| network | processor | code | flash, with constants | RAM | instructions an image | off by |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for path in arguments.nets:
        program = container.read(path)
        images = formats.pictures(program.shape(0), arguments.images)
        for board in BOARDS:
            done = run(program, images, board)
            found = formats.compare(program, done.outputs, images)
            flipped = f", {found['flipped']} of {len(images)} flipped" if found["flipped"] else ""
            print(
                f"| {program.spec['model']} | {board} | {done.code:,} | {done.flash:,} | {done.ram:,} "
                f"| {done.instructions:,} | {found['difference']:.0e}{flipped} |"
            )


if __name__ == "__main__":
    with output.command():
        main()
