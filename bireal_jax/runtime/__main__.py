"""`python -m bireal_jax.runtime net.safetensors [photo.jpg ...]`: what a packed file holds, or what is in a photo."""

import argparse
import sys
from pathlib import Path

import numpy as np

from bireal_jax import output, places, runtime
from bireal_jax.data import images
from bireal_jax.errors import BadInput
from bireal_jax.runtime import container


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m bireal_jax.runtime", allow_abbrev=False,
        description="Without photos: what a packed file holds. With photos: the five likeliest classes of each, "
        "or the range of its map.",
    )  # fmt: skip
    parser.add_argument("net", type=Path, help="a packed network, which --mode=export wrote")
    parser.add_argument("photos", nargs="*", type=Path, help="images of any size: made smaller, the middle cut out")
    parser.add_argument("--threads", type=int, default=1, help="no more than there are cores are used")
    parser.add_argument("--precision", default="float32", choices=runtime.PRECISIONS, help="of real-valued layers")
    parser.add_argument("--kernels", choices=runtime.KERNELS, help="default: the best that this CPU has")
    arguments = parser.parse_args(argv)
    with output.command():
        path = places.local(arguments.net, "NET", "file")
        if not arguments.photos:
            output.deliver(describe(container.read(path)))
            return
        net = runtime.load(path, arguments.threads, arguments.precision, arguments.kernels)
        failed = sum(not _show(net, path) for path in arguments.photos)  # one that is broken does not stop the others
        if failed:
            sys.exit(2)


def _show(net, path):
    """Prints what is in a photo; False, with a message, where it is broken. Leaves where nobody reads."""
    whole = len(net.output_shape) > 1
    try:
        image = photo(path, net.image_shape, net.resize, whole)
        text = f"{path}\n{values(net, image) if whole else top5(net, image)}"
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return False
    if not output.deliver(text):
        sys.exit(0)
    return True


def photo(path: Path, shape: tuple[int, int, int], resize: int, whole: bool = False) -> np.ndarray:
    """An image file as the network takes it, uint8 [h, w, c]: resized, the middle cut out, grey where c is 1.

    With `whole` all of it is brought to the square, as in the training of depth.

    Raises:
      BadInput: no such file, no image, or a network that takes neither grey nor colour.
    """
    height, width, channels = shape
    if height != width or channels not in (1, 3):
        raise BadInput(f"the network takes images of {height}x{width}x{channels}; call it from Python instead")
    try:
        image = images.decode(path.read_bytes(), str(path))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    if whole:
        image = image.resize((width, height), images.Image.Resampling.BILINEAR)
    grey_or_colour = image if channels == 3 else image.convert("L")
    return images.centre_crop(grey_or_colour, max(resize, height), height).reshape(shape)


def top5(net: runtime.Network, image: np.ndarray) -> str:
    """The five likeliest classes with their probabilities, a line each."""
    logits = net(image[None])[0].astype(np.float64)
    share = np.exp(logits - logits.max())
    share /= share.sum()
    best = np.argsort(-logits, kind="stable")[:5]
    return "\n".join(f"  {share[i]:6.1%}  {net.labels[i] if net.labels else f'class {i}'}" for i in best)


def values(net: runtime.Network, image: np.ndarray) -> str:
    """The least, the median and the largest value of a map."""
    low, middle, high = np.quantile(net(image[None]), (0, 0.5, 1))
    return f"  {low:.4g} to {high:.4g}, median {middle:.4g}"


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
