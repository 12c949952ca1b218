"""What the command says of the networks that came with the package: which there are, and what each gets right."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bireal_jax import runtime
from bireal_jax.errors import BadInput, first_line
from bireal_jax.runtime import measure, named

NEEDS_NO_FILES = "digits"


def listed() -> str:
    """A table of the networks."""
    lines = [f"{'name':20} {'network':16} {'data':8} {'top-1':>8} {'bytes':>10}  {'float weights':13}  trained"]
    for name, row in named.rows().items():
        size = (named.PLACE / next(iter(row.packed))).stat().st_size
        kept = "yes" if row.weights else "as ±1"
        lines.append(
            f"{name:20} {row.model:16} {row.data:8} {row.top1:6.2f} % {size:10,}  {kept:13}  "
            f"{row.epochs} epochs, {row.date}"
        )
    return "\n".join(lines)


def is_own(net: Any, place: str) -> bool:
    """Whether a network is to be evaluated on the data set of its row: it has a name, and `place` is its files.

    Photos in folders of classes and .npz files are of anybody, and of the data set only what its authors publish.

    Raises:
      BadInput: no place, and no network that needs none.
    """
    row = named.rows().get(str(net)) if named.is_name(net) else None
    if not place and (row is None or row.data != NEEDS_NO_FILES):
        raise BadInput(
            f"{net} is evaluated on images: --evaluate=PLACE, DIR/CLASS/*.jpg or an .npz file"
            + (f"\nor the {row.data} archive as published, or its folder" if row else "")
        )
    if row is None or not place:
        return row is not None
    return row.data != NEEDS_NO_FILES and not place.endswith(".npz") and not measure.of_classes(Path(place))


def evaluated(name: str, net: runtime.Network, place: str) -> dict[str, Any]:
    """What `measure.accuracy` returns, on all test images of the data set of a row, and what the row says.

    Args:
      name: of a row.
      net: its network.
      place: where the data set lies; "" for digits.

    Raises:
      BadInput: the data set is not there.
    """
    row = named.rows()[name]
    return {"net": name, **measure.scores(net, _batches(_examples(row, place))), "published_top1": row.top1 / 100}


def _examples(row, place) -> Any:
    try:
        from bireal_jax import data  # of the training, and nothing that a runtime needs
    except ImportError:
        raise BadInput(
            f"the data set {row.data} is read by the whole package, bireal_jax, and this is bireal-runtime alone\n"
            "pip install -e . in the checkout has it; or give images: --evaluate=PLACE, DIR/CLASS/*.jpg or an .npz file"
        ) from None

    if not place:
        return data.build(row.data, place, 8).eval
    if not Path(place).exists():
        raise BadInput(f"--evaluate={place}: there is no such file or folder")
    try:
        return data.build(row.data, place, 32).eval
    except BadInput as error:
        raise BadInput(
            f"--evaluate={place} has no photos in folders of classes, CLASS/*.jpg, and it is not {row.data} as\n"
            f"published, the archive or its folder: {first_line(error).split(': set config')[0]}"
        ) from None


def _batches(examples) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for begin in range(0, len(examples), measure.BATCH):
        end = begin + measure.BATCH
        yield examples.images[begin:end], examples.labels[begin:end]


def example(name: str, net: runtime.Network) -> str:
    """A test image in characters and what the network says of it, where images need no files; or else ""."""
    row = named.rows()[name]
    if row.data != NEEDS_NO_FILES:
        return ""
    image = _examples(row, "").images[0]
    best = net.top(image[None], 1)[0][0]
    return f"{drawn(image)}\n{best.probability:.1%} {best.label}\n"


def drawn(image: np.ndarray) -> str:
    """A grey image [h, w, 1] in characters, two a pixel."""
    shades = " .:+#@"
    return "\n".join("".join(2 * shades[int(v) * len(shades) // 256] for v in row) for row in image[..., 0])
