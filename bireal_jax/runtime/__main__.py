"""`bireal-run net.safetensors [photo.jpg folder '*.png' ...]`: what a packed file holds, or what is in photos.

In place of a file there can be the name of a network that came with the package; `--list` has them.
"""

import argparse
import difflib
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bireal_jax import kinds, output, places, runtime
from bireal_jax._version import __version__
from bireal_jax.errors import BadInput, first_line, lookup
from bireal_jax.runtime import answers, catalogue, container, measure, named, photos

USAGE = """bireal-run NET [PHOTO ...] [--OPTION ...]
examples:
  bireal-run digits --evaluate          a network that came with the package, tried without any files
  bireal-run runs/mine cat.jpg photos   your run's packed network, on a photo and on all in a folder
all options: bireal-run --help; networks that came with the package: bireal-run --list"""
BY_SUFFIX = {".csv": "csv", ".jsonl": "jsonl", ".txt": "text"}  # of --out, where --format is not given


def main(argv: list[str] | None = None) -> None:
    """The command. Exit status: 0 done, 1 some photos could not be read, 2 an input that cannot work, or no photo."""
    parser = _parser()
    arguments = parser.parse_intermixed_args(argv)  # photos may come behind options
    with output.command():
        path = _network(arguments, parser)
        said = _Said(*_out(arguments))
        if not (arguments.photos or arguments.time or arguments.evaluate is not None):
            said.text(describe(container.read(path)))
        else:
            net = runtime.load(path, arguments.threads, arguments.precision, arguments.kernels)
            _show(net, arguments, said)
            if arguments.time:
                said.rows([_latency(net, arguments)])
            if arguments.evaluate is not None:
                _evaluate(net, arguments, said)
        if said.broken and not said.columns:  # nothing came out
            sys.exit(2)
        said.write()
        if said.broken:
            sys.exit(1)


def _parser():
    parser = _Parser(
        prog="bireal-run", allow_abbrev=False, usage=USAGE,
        description="Without photos: what a packed file holds. With photos: the likeliest classes of each, or the "
        "range of its map. A photo that is broken stops nothing; the status is then 1, or 2 where none could be read.",
    )  # fmt: skip
    parser.add_argument(
        "net",
        help="a packed network, which --mode=export wrote, the folder of the run that has it, or a name of --list",
    )
    parser.add_argument(
        "photos",
        nargs="*",
        default=[],  # or the usage would call them required
        help="of any size: made smaller, the middle cut out; folders, with all below; patterns",
    )
    parser.add_argument("--format", **_one_of(answers.FORMATS), help="default: as --out ends, or else text")
    parser.add_argument("--out", metavar="FILE", help="write there, in place of printing, once all is done")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="so many classes of each; default: 5")
    parser.add_argument("--upright", action="store_true", help="turn photos as EXIF says; training ignores that")
    parser.add_argument("--time", action="store_true", help="print the latency of one image, with quartiles")
    parser.add_argument(
        "--evaluate", metavar="PLACE", nargs="?", const="",
        help="print the accuracy on DIR/CLASS/*.jpg, or on an .npz file; of a name of --list also on the data set that "
        "it is of: the published archive, or nothing, for digits",
    )  # fmt: skip
    parser.add_argument("--list", action=_List, nargs=0, help="the networks that came with the package, and exit")
    parser.add_argument("--threads", type=int, default=1, help="no more than there are cores are used")
    parser.add_argument("--precision", default="float32", **_one_of(runtime.PRECISIONS), help="of real-valued layers")
    parser.add_argument("--kernels", **_one_of(runtime.KERNELS), help="default: the best that this CPU has")
    parser.add_argument("--version", action="version", version=f"bireal_jax {__version__}")
    return parser


class _Parser(argparse.ArgumentParser):
    """Says mistakes as the rest of the package does."""

    def error(self, message):
        if "are required" in message:  # no words at all: how it is used
            super().error(message)
        word = message.partition("unrecognized arguments: ")[2].partition("=")[0]
        close = difflib.get_close_matches(word, re.findall(r"--\w+", self.format_help()), 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        self.exit(2, f"error: {message}{hint}\nall options: bireal-run --help\n")


def _one_of(names):
    """What an option with these values has; what is no value is told which one is close."""

    def chosen(text):
        try:
            lookup(dict.fromkeys(names), text.lower(), "value")
        except BadInput as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text.lower()

    return {"type": chosen, "metavar": f"{{{','.join(names)}}}"}


def _network(arguments, parser):
    """What is to be loaded. Raises BadInput where photos come first, or an option is written without its dashes."""
    net, photographs = arguments.net, arguments.photos
    behind = next((word for word in photographs if container.is_network(word)), "")
    if named.is_name(net) and (net in named.rows() or not behind):
        if net not in named.rows() and re.search(rf"--{net}\b", parser.format_help()):
            raise BadInput(f"{net} is no file or network; the option has dashes: bireal-run --{net}")
        return net
    path = places.local(net, "NET")
    kind = "a folder" if os.path.isdir(path) and not named.is_run(path) else kinds.of_file(path).what
    kind = kind if os.path.lexists(path) else "not there"
    if behind and (kind in ("a folder", "not there") or kinds.of_file(path).use == "photo"):
        words = ["bireal-run", behind, net, *(word for word in photographs if word != behind)]
        raise BadInput(f"{net} is {kind}, and the network comes first:\n{shlex.join(words)}")
    return path


def _out(arguments):
    """(format, file to write or None)."""
    if arguments.out is None:
        return arguments.format or "text", None
    out = places.local(arguments.out, "--out", "file")
    kind = kinds.of_file(out)
    if out.exists() and kind.use != "text" and kind != kinds.EMPTY:
        raise BadInput(f"--out={out} is {kind.what}, which would be overwritten; name another file")
    ends = out.suffix.lower()
    if not arguments.format and ends and ends not in BY_SUFFIX:
        raise BadInput(
            f"--out={out} ends in {ends}, and what is written is one of {', '.join(BY_SUFFIX)}\n"
            "name the file so, or say what goes into it: --format=csv"
        )
    return arguments.format or BY_SUFFIX.get(ends, "text"), out


class _List(argparse.Action):
    """Prints the networks that came with the package."""

    def __call__(self, parser, *_):
        with output.command():
            output.deliver(catalogue.listed())
        parser.exit()


class _Said:
    """What was printed so far, or is to be written, and what could not be read."""

    def __init__(self, style: str, out: Path | None):
        self.style, self.out = style, out
        self.columns: tuple[str, ...] = ()
        self.broken: list[str] = []
        self.kept: list[str] = []

    def text(self, text: str) -> None:
        """Prints, and leaves where nobody reads; or keeps it for the file."""
        if self.out:
            self.kept.append(text)
        elif not output.deliver(text):
            sys.exit(0)

    def rows(self, rows: answers.Rows) -> None:
        """Rows of one kind."""
        self.text(answers.FORMATS[self.style](rows, tuple(rows[0]) != self.columns))
        self.columns = tuple(rows[0])

    def failed(self, message: str) -> None:
        """One photo, whose message goes to standard error; the others go on."""
        self.broken.append(message)
        print(f"error: {message}", file=sys.stderr)

    def write(self) -> None:
        """The file of --out, whole or not at all. Raises BadInput if it cannot be written."""
        if not self.out:
            return
        text = "".join(f"{part}\n" for part in self.kept)
        try:
            places.write(self.out, text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise BadInput(f"cannot write {self.out}: {first_line(error)}\nname another --out") from None
        output.deliver(f"{self.out}: {text.count(chr(10)):,} lines, as {self.style}")


def _show(net, arguments, said):
    """What is in each photo."""
    for what in arguments.photos:
        try:
            found = photos.named(what)
        except BadInput as error:
            said.failed(str(error))
            continue
        for path in found:
            try:
                image = runtime.photo(path, net, arguments.upright)
            except BadInput as error:
                said.failed(str(error))
                continue
            said.rows(answers.of_photo(net, str(path), image, arguments.top))


def _latency(net, arguments) -> dict[str, Any]:
    noise = np.random.default_rng(0).integers(0, 256, net.image_shape).astype(np.uint8)
    return measure.latency(net, noise) | {"threads": arguments.threads, "kernels": net.kernels}


def _evaluate(net, arguments, said):
    broken: list[str] = []
    if catalogue.is_own(arguments.net, arguments.evaluate):
        if said.style == "text" and (drawn := catalogue.example(arguments.net, net)):
            said.text(drawn)
        said.rows([catalogue.evaluated(arguments.net, net, arguments.evaluate)])
        return
    place = places.local(arguments.evaluate, "--evaluate")
    found = measure.accuracy(net, place, broken, arguments.upright)
    if place.is_dir() and measure.evaluated(place) == place:
        print(
            f"note: all photos of {place} count, also those trained on; --mode=eval takes those held out",
            file=sys.stderr,
        )
    for message in broken:
        said.failed(message)
    said.rows([{"net": arguments.net, **found}])


def describe(program: container.Program) -> str:
    """A table of the layers that have weights, and totals."""
    spec, lines = program.spec, []
    h, w, c = program.shape(0)
    outputs = "x".join(map(str, program.shape(len(spec["ops"])))).removeprefix("1x1x")
    lines.append(f"{spec['model']}, format {spec['format']}, made by bireal_jax {spec['package']}")
    lines.append(f"image {h}x{w}x{c}, {outputs} outputs, {len(spec['ops'])} operations")
    lines.append("")
    lines.append(f"{'layer':40} {'operation':12} {'weights':>18} {'bits':>5} {'bytes':>11} {'+1':>7}")
    total = {1: 0, 32: 0}
    for i, op in enumerate(spec["ops"]):
        arrays = {name: program.tensors[f"{i}.{name}"] for name in container.names(op)}
        for array in arrays.values():
            total[1 if array.dtype == np.uint8 else 32] += array.nbytes
        if "weight" not in arrays:
            continue
        weight, packed = program.arrays(i)["weight"], arrays["weight"]
        bits = 1 if packed.dtype == np.uint8 else 32
        share = f"{np.mean(weight > 0):7.1%}" if bits == 1 else f"{'-':>7}"
        shape = "x".join(str(side) for side in weight.shape)
        lines.append(f"{op['path'][:40]:40} {op['op']:12} {shape:>18} {bits:5} {packed.nbytes:11,} {share}")
    lines.append("")
    lines.append(f"1-bit weights {total[1]:,} bytes, real-valued ones {total[32]:,} bytes, scales and offsets included")
    lines.append(f"digest {program.digest}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
