"""`python -m bireal_jax.shipping net.safetensors net.onnx`: a packed network in the format of another engine."""

import argparse
from pathlib import Path

from bireal_jax import output, places
from bireal_jax.errors import BadInput
from bireal_jax.runtime import container
from bireal_jax.shipping import formats

# suffix -> format; of two with one suffix the first
BY_SUFFIX = {row.suffixes[0]: style for style, row in reversed(formats.FORMATS.items())}


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m bireal_jax.shipping", allow_abbrev=False,
        description="Writes a packed network as ONNX, OpenVINO IR, QONNX or C99, and checks it on images of digits.",
    )  # fmt: skip
    parser.add_argument("net", type=Path, help="a packed network, which --mode=export wrote")
    parser.add_argument("out", type=Path, help="the file to write: .onnx, .xml (OpenVINO) or .c")
    parser.add_argument(
        "--format", type=str.lower, choices=formats.FORMATS, help="default: as the file's suffix says; .onnx is onnx"
    )
    arguments = parser.parse_args(argv)
    with output.command():
        net, out = places.local(arguments.net, "NET"), places.local(arguments.out, "OUT", "file")
        style = arguments.format or BY_SUFFIX.get(out.suffix)
        if style is None:
            raise BadInput(f"{out} ends in none of {', '.join(BY_SUFFIX)}; name it so")
        formats.named(style, out)
        program = container.read(net)
        formats.write(program, out, style, formats.pictures(program.shape(0)), "images of digits")


if __name__ == "__main__":
    main()
