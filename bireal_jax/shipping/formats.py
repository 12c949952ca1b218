"""Formats of other engines: each is written from the same operations, checked against the numpy reference, then named.

A file takes its name only after it was run on real images: what was there before stays where something is wrong.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bireal_jax.data import digits
from bireal_jax.errors import BadInput, first_line, lookup
from bireal_jax.runtime.container import Program
from bireal_jax.shipping import to_c, to_onnx, to_openvino, to_qonnx

CHECKED = 32  # images at most: the reference is slow
CLOSE = 1e-4  # of the largest logit: what rounding may do; beyond it a sign has flipped
MAX_MEMORY = 8 << 30  # bytes of the reference for one image
FEW = 0.05  # of the images: so many with flipped signs are usual in a trained network
FAR = 0.05  # of the largest logit: what no few flipped signs do to half of the images


@dataclass(frozen=True)
class Format:
    """A row of the table.

    Attributes:
      suffixes: of the file, and of what is written beside it.
      write: writes a program to a path; returns what there is to say of it.
      run: the outputs of the file at a path for uint8 images.
      engine: what runs it.
    """

    suffixes: tuple[str, ...]
    write: Callable[[Program, Path], str]
    run: Callable[[Path, np.ndarray], np.ndarray]
    engine: str


FORMATS = {
    "c": Format((".c", ".h"), to_c.write, to_c.run, "a C compiler"),
    "onnx": Format((".onnx",), to_onnx.write, to_onnx.run, "onnxruntime"),
    "openvino": Format((".xml", ".bin"), to_openvino.write, to_openvino.run, "OpenVINO"),
    "qonnx": Format((".onnx",), to_qonnx.write, to_qonnx.run, "QONNX's executor"),
}


def named(style: str, path: Path) -> Format:
    """The row of a format, whose suffix a path has.

    Raises:
      BadInput: no such format, or another suffix.
    """
    row = lookup(FORMATS, style, "format")
    if path.suffix != row.suffixes[0]:
        raise BadInput(f"{path} does not end in {row.suffixes[0]}, as files of the format {style} do")
    return row


def write(program: Program, path: Path, style: str, images: np.ndarray, what: str) -> dict[str, Any]:
    """Writes a network in a format of FORMATS, checked, whole or not at all, and says what was found.

    Args:
      program: the network.
      path: the file. Others of the same name and other suffixes are written beside it.
      style: a key of FORMATS.
      images: uint8 [n, h, w, c], to check it with; CHECKED of them at most are.
      what: of what the images are, for the message.

    Returns:
      bytes, of all files; images; what `compare` says of them.

    Raises:
      BadInput: its package is missing, it cannot be written, or the engine computes something else.
    """
    row, images = named(style, path), images[:: -(-len(images) // CHECKED)]
    if program.memory > MAX_MEMORY:
        raise BadInput(
            f"an image takes {program.memory >> 20:,} MB in the numpy reference, with which a file is checked\n"
            f"the limit is {MAX_MEMORY >> 20:,} MB; export a smaller network, or the packed file"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            made = Path(folder, path.name)
            said = row.write(program, made)
            found = compare(program, _outputs(row, made, images), images)
            if not found["middle"] <= FAR:
                raise BadInput(
                    f"{row.engine} computes something else from the {style} file than the numpy reference: half of the "
                    f"images\nare off by {found['middle']:.1%} of the largest output and more; {path} is not written"
                )
            sizes = {path.with_suffix(suffix): made.with_suffix(suffix).stat().st_size for suffix in row.suffixes}
            for suffix in reversed(row.suffixes):  # the file itself last
                os.replace(made.with_suffix(suffix), path.with_suffix(suffix))
    except OSError as error:
        raise BadInput(f"cannot write {path}: {first_line(error)}\nname another file, or free some space") from None
    print(
        f"{', '.join(f'{file}: {size:,} bytes' for file, size in sizes.items())}; {said}\n"
        + agreement(found, len(images), what, row.engine, "the numpy reference"),
        flush=True,
    )
    return {"bytes": sum(sizes.values()), "images": len(images), **found}


def agreement(found: dict[str, Any], count: int, what: str, engine: str, other: str) -> str:
    """What a comparison of outputs found, in words, with what it means to who reads it first.

    Args:
      found: same_top1, of classes, flipped and difference, as `compare` gives them.
      count: of images.
      what: of what they are.
      engine, other: what computed the outputs, and those that they were compared with.
    """
    same, flipped = f"{found['same_top1']} times the same class" if "same_top1" in found else "", found["flipped"]
    rounding = f"equal but for rounding, within {found['difference']:.1e} of the largest"
    lines = [f"checked with {engine} against {other} on {count} {what}: {same}".rstrip(": ")]
    if not flipped:
        return "\n".join([*lines, f"the outputs of all are {rounding}: as it should be"])
    lines.append(
        f"the outputs of {count - flipped} are {rounding}; those of {flipped} differ by more: something there that is "
        "0 but for rounding became -1, not +1, or the other way round"
    )
    few = "in 1-bit networks that is usual in so few: nothing to mend"
    many = "that is usual where weights are random or hardly trained; of a trained network compare the accuracy of both"
    lines.append(few if flipped <= max(1, FEW * count) else many)
    return "\n".join(lines)


def _outputs(row, path, images):
    try:
        return row.run(path, images)
    except (BadInput, OSError):
        raise
    except Exception as error:  # engines raise anything
        raise BadInput(f"{row.engine} does not take what was written: {first_line(error)}") from error


def compare(program: Program, outputs: np.ndarray, images: np.ndarray) -> dict[str, Any]:
    """Outputs of an engine against those of the numpy reference.

    Returns:
      same_top1: images with the same class (not of maps); flipped: images that differ by more than CLOSE of their
      largest output; difference: the largest of the others, as a share; middle: the median of all.
    """
    theirs = np.stack([program.run(image[None])[-1].ravel() for image in images]).astype(np.float64)
    ours = outputs.reshape(theirs.shape).astype(np.float64)
    apart = np.abs(theirs - ours).max(-1) / np.maximum(np.abs(theirs).max(-1), np.finfo(np.float32).tiny)
    close = apart <= CLOSE
    difference, middle = float(max([0.0, *apart[close]])), float(np.median(apart))
    found = {"flipped": int(np.sum(~close)), "difference": difference, "middle": middle}
    whole = program.shape(len(program.spec["ops"]))[:2] != (1, 1)
    return found if whole else found | {"same_top1": int(np.sum(theirs.argmax(-1) == ours.argmax(-1)))}


def pictures(shape: tuple[int, int, int], count: int = CHECKED) -> np.ndarray:
    """Real images that are always there, handwritten digits as large as asked for, uint8 [count, h, w, c]."""
    count = max(1, min(count, (1 << 28) // int(np.prod(shape, dtype=np.int64))))
    pixels = np.round(digits.load()[0][:count] * (255 / 16)).astype(np.uint8)
    rows, columns = (np.arange(side) * 8 // side for side in shape[:2])
    return np.repeat(pixels[:, rows][:, :, columns, None], shape[2], -1)
