"""Compiles the engine to WebAssembly, web/bireal.wasm: `pip install ziglang`, then `python web/build.py`.

zig brings clang and a C++ library for WebAssembly in one package of PyPI. What is built names the sources that it was
built of, by their SHA-256 in a section of its own, "sources": a test compares it, without a compiler.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

WEB = Path(__file__).parent
ENGINE = WEB.parent / "bireal_jax" / "runtime" / "engine"
TARGET = WEB / "bireal.wasm"
FUNCTIONS = ("load_memory", "run_u8", "run_f32", "memory", "work", "tensors_u8", "profile")
EXPORTS = ("malloc", "free", "__stack_pointer", *(f"bireal_{name}" for name in FUNCTIONS))
FLAGS = (
    "-target", "wasm32-wasi", "-mexec-model=reactor", "-msimd128", "-std=c++17", "-O3", "-fno-rtti",
    "-fvisibility=hidden", "-Wl,--gc-sections", "-Wl,-s", *(f"-Wl,--export={name}" for name in EXPORTS),
)  # fmt: skip


def sources() -> list[Path]:
    """The engine's files, in order."""
    return sorted(path for path in ENGINE.iterdir() if path.suffix in (".cc", ".h", ".inc"))


def digest() -> str:
    """SHA-256 of everything that the file is built of: sources and flags."""
    sha = hashlib.sha256(repr(FLAGS).encode())
    for path in sources():
        sha.update(path.name.encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()


def section(name: bytes, content: bytes) -> bytes:
    """A custom section; lengths below 128 are one byte."""
    body = bytes([len(name)]) + name + content
    assert len(body) < 128
    return bytes([0, len(body)]) + body


def build(target: Path = TARGET) -> None:
    """Compiles and writes it."""
    files = [str(path) for path in sources() if path.suffix == ".cc"]
    command = [sys.executable, "-m", "ziglang", "c++", *FLAGS, *files, "-o", str(target)]
    subprocess.run(command, check=True)
    target.write_bytes(target.read_bytes() + section(b"sources", digest().encode()))


if __name__ == "__main__":
    build()
    print(TARGET, TARGET.stat().st_size)
