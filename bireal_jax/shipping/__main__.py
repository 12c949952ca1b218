"""`python -m bireal_jax.shipping net.safetensors net.onnx`: a packed network in the format of another engine."""

import argparse
import shlex
from pathlib import Path

import numpy as np

from bireal_jax import kinds, output, places
from bireal_jax.errors import BadInput, first_line
from bireal_jax.runtime import container, named, photos
from bireal_jax.shipping import formats

# suffix -> format; of two with one suffix the first
BY_SUFFIX = {row.suffixes[0]: style for style, row in reversed(formats.FORMATS.items())}
USAGE = """python -m bireal_jax.shipping NET OUT [--OPTION ...]
examples:
  python -m bireal_jax.shipping runs/mine mine.onnx         of a run; .xml is OpenVINO, .c is C99
  python -m bireal_jax.shipping digits digits.c             of a network that came with the package
all options: python -m bireal_jax.shipping --help"""
DIGITS = (8, 8, 1)  # images of that data set


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m bireal_jax.shipping", allow_abbrev=False, usage=USAGE,
        description="Writes a packed network as ONNX, OpenVINO IR, QONNX or C99, checked before it takes its name: on "
        "test images of the run that it is of, where its data are at hand, or on --images; or else on digits.",
    )  # fmt: skip
    parser.add_argument("net", help="a packed network, which --mode=export wrote, or the folder of the run that has it")
    parser.add_argument("out", help="the file to write: .onnx, .xml (OpenVINO) or .c")
    parser.add_argument(
        "--format", type=str.lower, choices=formats.FORMATS, help="default: as the file's suffix says; .onnx is onnx"
    )
    parser.add_argument(
        "--images", metavar="PLACE", help="photos to check it on: a folder with all below, or a pattern"
    )
    arguments = parser.parse_intermixed_args(argv)
    with output.command():
        net = arguments.net if named.is_name(arguments.net) else places.local(arguments.net, "NET")
        out = places.local(arguments.out, "OUT", "file")
        if kinds.of_file(out) == kinds.PACKED:
            right = shlex.join(["python", "-m", "bireal_jax.shipping", arguments.out, arguments.net])
            raise BadInput(f"{out} is a packed network, which comes first, and what is written second:\n{right}")
        style = arguments.format or BY_SUFFIX.get(out.suffix)
        if style is None:
            raise BadInput(f"{out} ends in none of {', '.join(BY_SUFFIX)}; name it so")
        formats.named(style, out)
        data, where = container.contents(net)
        program = container.parse(data, where)
        formats.write(program, out, style, *_images(program, where, arguments.images))


def _images(program, where, given):
    """Images to check a file with, uint8 [n, h, w, c], and what they are, in words."""
    if given:
        return _photos(program, given)
    folder = Path(where).parent
    if not named.is_name(where) and (folder / "config.json").is_file():
        try:
            return _of_run(program, folder)
        except BadInput as error:
            print(f"note: no test images of the run in {folder} are at hand: {first_line(error)}", flush=True)
    if program.shape(0) != DIGITS:
        print("note: it is checked on handwritten digits, enlarged; --images=PLACE checks it on photos", flush=True)
    return formats.pictures(program.shape(0)), "images of digits"


def _photos(program, place):
    """Of what a user names, evenly from all of it."""
    found, shape = photos.named(place), program.shape(0)
    whole = program.shape(len(program.spec["ops"]))[:2] != (1, 1)
    chosen = [found[i] for i in np.linspace(0, len(found) - 1, min(len(found), formats.CHECKED)).astype(int)]
    images = np.stack([photos.read(path, shape, program.spec["image"]["resize"], whole) for path in chosen])
    return images, f"photos of {place}"


def _of_run(program, folder):
    """Of the evaluation set of the run that a packed file lies with. Raises BadInput where it is not at hand."""
    from bireal_jax import build  # heavy, hence here
    from bireal_jax.running import known
    from bireal_jax.shipping import export

    run = known.read(folder)
    assert run
    source = build.source(run.last)
    if source.image_shape != program.shape(0):
        raise BadInput(f"they are {source.image_shape}, and the network takes {program.shape(0)}")
    return export.evenly(source, formats.CHECKED), f"{source.split} images of the run in {folder}"


if __name__ == "__main__":
    main()
