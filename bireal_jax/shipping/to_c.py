"""A packed network as one C99 file and a header, for microcontrollers: uint8 pixels in, floats out.

No heap, no threads, no library: weights are constants, ±1 ones in 32-bit words, and all maps share two static arrays,
each map from its first writer to its last reader. A convolution takes in the scale and offset behind it and adds onto
its shortcut in place. One call at a time: the arrays are static.
"""

import collections
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bireal_jax.errors import BadInput, first_line
from bireal_jax.runtime.container import Program
from bireal_jax.shipping.buffers import Buffers
from bireal_jax.shipping.walk import unknown

MAX_RAM = 1 << 30  # bytes; with more, indices would not fit an int either
MAX_NAME = 250  # bytes of a class's name: compilers need not take more than 4,095
STRICT = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic")
NEEDS = {  # function of kernels.c -> others that it calls
    "conv": ("first", "end", "finished"), "binary_conv": ("first", "end", "finished", "differ"),
    "max_pool": ("first", "end"),
}  # fmt: skip


@dataclass
class Step:
    """An operation, with those that are done in the same loop.

    Attributes:
      index: of the operation.
      affine: of the affine map behind it, or -1.
      onto: number of the tensor that its output is added to, or -1.
      out: number of the tensor that it gives.
    """

    index: int
    affine: int = -1
    onto: int = -1
    out: int = 0


class Writer:
    """Plans the steps of a program and writes them."""

    def __init__(self, program: Program):
        self.program, self.ops = program, program.spec["ops"]
        self.readers = collections.defaultdict(list)
        for i, op in enumerate(self.ops):
            for number in op["inputs"]:
                self.readers[number].append(i)
        self.constants: list[str] = []
        self.flash = self.row = 0
        self.used: set[str] = {"normalize"}
        self.calls: list[list] = []
        self.steps = self._steps()
        last = {i: n for n, step in enumerate(self.steps) for i in (*self.ops[step.index]["inputs"], step.onto)}
        self.buffers = Buffers(last | {len(self.ops): len(self.steps)})
        self.at = self.buffers.at

    def _steps(self):
        """Convolutions come where the last operation that they take in was, since that has all its inputs."""
        steps, taken = {}, set()
        for i, op in enumerate(self.ops):
            if i in taken:
                continue
            step, at = Step(i, out=i + 1), i
            if op["op"] in ("conv", "binary_conv"):
                at = step.affine = self._only(i, "affine")
                at = i if at < 0 else at
                more = self._only(at, "add")
                others = [n for n in self.ops[more]["inputs"] if n != at + 1] if more >= 0 and more not in taken else []
                if others:
                    step.onto, at = others[0], more
                step.out = at + 1
                taken |= {k for k in (step.affine, at) if k != i}
            steps[at] = step
        return [steps[at] for at in sorted(steps)]

    def _only(self, index, kind):
        """The operation of that kind that alone reads what another gives, or -1."""
        readers = self.readers[index + 1]
        return readers[0] if len(readers) == 1 and self.ops[readers[0]]["op"] == kind else -1

    def constant(self, name, values, kind="float"):
        """Writes a constant array; returns its name."""
        values = np.asarray(values, np.float32 if kind == "float" else None).ravel()
        texts = [f"{v!s}f" for v in values] if kind == "float" else [f"0x{v:x}" for v in values]
        lines = [", ".join(texts[i : i + 8]) for i in range(0, len(texts), 8)]
        self.constants.append(f"static const {kind} {name}[{len(texts)}] = {{\n  " + ",\n  ".join(lines) + "};")
        self.flash += 4 * len(texts)
        return name

    def window(self, index, source, size, strides, padding, groups=1):
        """Writes how a window slides; returns its address."""
        fields = [*source, *self.ops[index]["shape"], *size, *strides, padding[0], padding[2], groups]
        self.constants.append(f"static const window window{index} = {{{', '.join(map(str, fields))}}};")
        self.flash += 4 * len(fields)
        return f"&window{index}"

    def size(self, number):
        """Elements of a tensor."""
        return int(np.prod(self.program.shape(number), dtype=np.int64))

    def over(self, number, inputs, n):
        """Where an output goes whose elements are on their own."""
        return self.buffers.over(number, inputs, self.size(number), n)

    def call(self, function, *arguments):
        """Writes a call of a function of kernels.c."""
        self.used.add(function)
        self.calls.append([function, *arguments])

    def arrays(self, index):
        """Writes the arrays of an operation with numbers per channel; returns their names."""
        return [self.constant(f"{name}{index}", a) for name, a in self.program.arrays(index).items()]

    def convolution(self, n, step, op):
        """Writes a conv or a binary_conv."""
        index, (source,), groups = step.index, op["inputs"], op["groups"]
        shape, weight = self.program.shape(source), self.program.arrays(index)["weight"].transpose(3, 0, 1, 2)
        tall, wide = weight.shape[1:3]
        padding = [0] * 4 if op.get("pad") else op["padding"]
        if op["op"] == "conv":
            x, kernel, row = self.at[source], self.constant(f"weight{index}", weight), []
        else:
            x = self.at[source, _bits(op)]
            border = op["padding"] if op["pad"] else [0] * 4
            shape = (shape[0] + sum(border[:2]), shape[1] + sum(border[2:]), shape[2])
            bits = np.packbits(weight > 0, axis=-1, bitorder="little")
            bits = np.pad(bits, ((0, 0),) * 3 + ((0, -bits.shape[-1] % 4),))
            kernel, row = self.constant(f"weight{index}", np.ascontiguousarray(bits).view("<u4"), "uint32_t"), ["row"]
            self.row = max(self.row, tall * wide * bits.shape[-1] // 4)
        after = self.arrays(step.affine) if step.affine >= 0 else [0, 0]
        y = self.buffers.free(step.onto, n) if step.onto >= 0 else None
        onto = y is not None and y is not x
        y = self.buffers.join(step.out, y) if y and onto else self.buffers.new(step.out, self.size(step.out), n)
        place = self.window(index, shape, (tall, wide), op["strides"], padding, groups)
        self.call(op["op"], x, y, place, kernel, *row, *after, int(onto))
        if step.onto >= 0 and not onto:
            self.call("add", y, self.at[step.onto], y, y.size)

    def sign(self, n, step, op):
        """Writes a sign: in bits for binary convolutions, as floats for all others."""
        number, (source,) = step.index + 1, op["inputs"]
        (height, width, channels), x = self.program.shape(source), self.at[source]
        readers = [self.ops[i] for i in self.readers[number]]
        for groups, border, pad in sorted({_bits(reader) for reader in readers if reader["op"] == "binary_conv"}):
            top, bottom, left, right = border
            words = groups * -(-channels // groups // 32)
            size = (height + top + bottom) * (width + left + right) * words
            y = self.buffers.new((number, (groups, border, pad)), size, n, "bits")
            name = f"border{number}_{len(self.constants)}"
            self.constants.append(f"static const int {name}[4] = {{{', '.join(map(str, border))}}};")
            self.flash += 16
            self.call("signs", x, y, height, width, channels, groups, name, pad)
        if not readers or any(reader["op"] != "binary_conv" for reader in readers):
            self.call("sign", x, self.over(number, [source], n), self.size(number))

    def other(self, n, step, op):
        """Writes any other operation."""
        kind, inputs, number, index = op["op"], op["inputs"], step.index + 1, step.index
        x, (h, w, c), size = self.at[inputs[0]], self.program.shape(inputs[0]), self.size(number)
        if kind == "reshape":
            self.buffers.join(number, x)
        elif kind in ("affine", "rprelu"):
            self.call(kind, x, self.over(number, inputs, n), h * w, c, *self.arrays(index))
        elif kind == "add":
            self.call(kind, x, self.at[inputs[1]], self.over(number, inputs, n), size)
        elif kind == "clip":
            limits = (f"{np.float32(op[key])}f" for key in ("low", "high", "leak"))
            self.call(kind, x, self.over(number, inputs, n), size, *limits)
        elif kind == "max_pool":
            place = self.window(index, (h, w, c), op["window"], op["strides"], op["padding"])
            self.call(kind, x, self.buffers.new(number, size, n), place)
        elif kind in ("avg_pool", "mean"):
            window = [op["window"]] * 2 if kind == "avg_pool" else (h, w)
            self.call(
                "avg_pool", x, self.buffers.new(number, size, n), self.window(index, (h, w, c), window, window, [0] * 4)
            )
        elif kind in ("subsample", "upsample"):
            side = op["stride" if kind == "subsample" else "factor"]
            self.call(kind, x, self.buffers.new(number, size, n), *op["shape"][:2], w, c, side)
        elif kind in ("concat", "pad_channels"):
            y, at = self.buffers.new(number, size, n), op.get("before", 0)
            if kind == "pad_channels":
                self.call("zero", y, size)
            for i in inputs:
                deep = self.program.shape(i)[2]
                self.call("place", self.at[i], y, h * w, deep, op["shape"][2], at)
                at += deep
        else:
            raise unknown(op)

    def sources(self, name: str, header: str) -> tuple[str, str, int]:
        """The C file, its header, a file called `header`, and the bytes of the static arrays."""
        (h, w, c), image = self.program.shape(0), self.program.spec["image"]
        x = self.buffers.new(0, h * w * c, -1)
        mean, std = (self.constant(key, image[key]) for key in ("mean", "std"))
        self.call("normalize", "image", x, h * w, c, mean, std)
        for n, step in enumerate(self.steps):
            op = self.ops[step.index]
            kinds = {"conv": self.convolution, "binary_conv": self.convolution, "sign": self.sign}
            kinds.get(op["op"], self.other)(n, step, op)
        sizes = self.buffers.place() | {"row": self.row}
        ram = 4 * sum(sizes.values())
        if ram > MAX_RAM:
            raise BadInput(f"its static buffers would take {ram >> 20:,} MB; the limit is {MAX_RAM >> 20:,}")
        return self._body(name, header, sizes), self._header(name, ram), ram

    def _body(self, name, header, sizes):
        kinds = {"maps": "float", "bits": "uint32_t", "row": "uint32_t"}
        arrays = [f"static {kinds[array]} {array}[{size}];" for array, size in sizes.items() if size]
        calls = [f"  {function}({', '.join(map(str, arguments))});" for function, *arguments in self.calls]
        last = len(self.ops)
        copied = f"  memcpy(outputs, {self.at[last]}, {self.size(last)} * sizeof *outputs);"
        entry = f"void {name}_run(const uint8_t *image, float *outputs)\n{{"
        return "\n".join([
            f"/* {self._origin()} See {header}. */\n", f'#include "{header}"\n', "#include <string.h>\n",
            *self._kernels(), *self.constants, "", *arrays, "", entry, *calls, copied, "}", "",
        ])  # fmt: skip

    def _kernels(self):
        """Of kernels.c what is used, in its order."""
        for _ in range(2):  # functions that functions call
            self.used |= {name for function in self.used for name in NEEDS.get(function, ())}
        parts = re.split(r"\n\n(?=/\*|static|typedef)", (Path(__file__).parent / "kernels.c").read_text())
        names = [re.findall(r"^static .*?(\w+)\(", part, re.MULTILINE) for part in parts]
        wanted = [part for part, name in zip(parts, names, strict=True) if not name or name[0] in self.used]
        return [f"{part.strip()}\n" for part in wanted[1:]]

    def _header(self, name, ram):
        (h, w, c), outputs, upper = self.program.shape(0), self.size(len(self.ops)), name.upper()
        return "\n".join([
            f"/* {self._origin()} */\n", f"#ifndef {upper}_H", f"#define {upper}_H\n", "#include <stdint.h>\n",
            f"#define {upper}_HEIGHT {h}", f"#define {upper}_WIDTH {w}", f"#define {upper}_CHANNELS {c}",
            f"#define {upper}_OUTPUTS {outputs}",
            f"#define {upper}_RAM {ram} /* bytes of static arrays */",
            f"#define {upper}_FLASH {self.flash} /* bytes of constants */\n",
            '#ifdef __cplusplus\nextern "C" {\n#endif\n',
            f"/* image: [{h}][{w}][{c}], as in a photo; outputs: logits, or a map [height][width][channels].",
            " * Not to be called again before it returns: its arrays are static. int has 32 bits. */",
            f"void {name}_run(const uint8_t *image, float *outputs);\n", *self._classes(name),
            "#ifdef __cplusplus\n}\n#endif\n", "#endif", "",
        ])  # fmt: skip

    def _classes(self, name):
        """Names of the classes; in the header, since they take no flash where nobody reads them."""
        texts = [_quoted(label) for label in self.program.spec["labels"]]
        if not texts:
            return []
        head = "/* Names of the outputs, UTF-8; in the file only where they are used. */"
        return [
            head,
            f"static const char *const {name}_classes[{len(texts)}] = {{",
            *(f"  {t}," for t in texts),
            "};\n",
        ]

    def _origin(self):
        model, package = (_plain(self.program.spec[key]) for key in ("model", "package"))
        return f"{model}, made by bireal_jax {package} from the network {self.program.digest}."


def _plain(text):
    """What a comment of C can hold."""
    return re.sub(r"[^\w. -]", "_", text, flags=re.ASCII)[:80]


def _quoted(text):
    """A literal of C: what could end it, or begin a trigraph, an escape or a line, is a number; long names are cut."""
    data = text.encode("utf-8", "backslashreplace")[:MAX_NAME].decode(errors="ignore").encode()
    plain = set(range(32, 127)) - set(b'"\\?')
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in data) + '"'


def _bits(op):
    """How a binary convolution wants its signs: groups, border and what the border is of."""
    return op["groups"], tuple(op["padding"]) if op["pad"] else (0, 0, 0, 0), op["pad"]


def write(program: Program, path: Path) -> str:
    """Writes the file and its header; returns what there is to say of it."""
    writer = Writer(program)
    body, header, ram = writer.sources(_identifier(path.stem), path.with_suffix(".h").name)
    path.write_text(body)
    path.with_suffix(".h").write_text(header)
    return f"{writer.flash:,} bytes of constants (flash), {ram:,} of static arrays (RAM)"


def _identifier(stem):
    name = re.sub(r"\W", "_", stem, flags=re.ASCII)
    return name if name[:1].isalpha() else f"net_{name}"


MAIN = """#include <stdio.h>
#include "{header}"
int main(void)
{{
  static uint8_t image[{image}];
  static float outputs[{outputs}];
  while (fread(image, sizeof image, 1, stdin) == 1) {{
    {name}_run(image, outputs);
    fwrite(outputs, sizeof outputs, 1, stdout);
  }}
  return 0;
}}
"""


def run(path: Path, images: np.ndarray) -> np.ndarray:
    """The outputs for uint8 images, by what a C compiler of this machine makes of the file.

    Raises:
      BadInput: there is no compiler, or it does not take the file.
    """
    compiler = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None:
        raise BadInput("no C compiler was found to check the file with; install one (Debian: apt install gcc)")
    path = path.absolute()  # the compiler is called elsewhere
    name, header = _identifier(path.stem), path.with_suffix(".h").name
    outputs = int(re.findall(r"_OUTPUTS (\d+)", path.with_suffix(".h").read_text())[0])
    with tempfile.TemporaryDirectory() as folder:
        main = Path(folder, "main.c")
        main.write_text(MAIN.format(name=name, header=header, image=images[0].size, outputs=outputs))
        command = [compiler, *STRICT, f"-I{path.parent}", main, path, "-o", "net"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise BadInput(f"{compiler} does not take the file: {first_line(ValueError(done.stderr))}")
        ran = subprocess.run([Path(folder, "net")], input=images.tobytes(), capture_output=True, check=True)
    return np.frombuffer(ran.stdout, np.float32).reshape(len(images), outputs)
