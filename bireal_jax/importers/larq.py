"""Keras weights of larq's Bi-Real Net (`larq_zoo.literature.BiRealNet`), under our names.

Layers are told apart by kind and number: Keras counts them as they are made (conv2d, conv2d_1, ...), and that order is
fixed by larq's code, the shortcut of a block before its binary convolution. The order of layers in the file is another.

Exact: kernels (HWIO in both; larq's binary kernels are latent weights, or already ±alpha, which binarize to the same),
the scale mean|w| per output channel, sign(0) = +1, zero padding after the sign, the normalization of the images, and
batch norm, whose epsilon is 1e-3 there and 1e-5 here: the difference goes into the variance. The softmax is left out.

Not exact: `same` padding. At stride 2 and an even size, Keras pads right and bottom more, PyTorch and we left and top,
so every window of a strided layer lies one pixel aside. That is our network mirrored: with all kernels turned by 180
degrees (`turn`) it gives on a turned image what larq's gives on the image, for sizes that divide by 32. Without `turn`
the network is for images as they are, close to larq's but not equal: a start for training.
"""

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from bireal_jax.errors import BadInput
from bireal_jax.importers import values
from bireal_jax.models.bireal import BIREAL

MODEL = "bireal18"
KERAS_EPSILON, EPSILON = 1e-3, 1e-5

# kind of layer -> Keras weight -> our collection and leaf
WEIGHTS = {
    "conv2d": {"kernel": "params/{}/kernel"},
    "quant_conv2d": {"kernel": "params/{}/latent"},
    "batch_normalization": {
        "gamma": "params/{}/scale",
        "beta": "params/{}/bias",
        "moving_mean": "batch_stats/{}/mean",
        "moving_variance": "batch_stats/{}/var",
    },
    "dense": {"kernel": "params/{}/kernel", "bias": "params/{}/bias"},
}


def is_keras(names) -> bool:
    """Whether these are names of Keras weights, such as batch_normalization_3/batch_normalization_3/gamma:0."""
    return any(re.search(r"/(gamma|moving_variance)(:0)?$", name) for name in names)


def _layers() -> Iterator[tuple[str, str]]:
    """(kind, our module path) of every layer with weights, in the order in which larq's code makes them."""
    yield from (("conv2d", "stem_conv"), ("batch_normalization", "stem_bn"))
    for i, count in enumerate(BIREAL[MODEL]["blocks"]):
        for j in range(count):
            block = f"stage{i + 1}_block{j + 1}"
            if i > 0 and j == 0:
                yield from (("conv2d", f"{block}/downsample_conv"), ("batch_normalization", f"{block}/downsample_bn"))
            yield from (("quant_conv2d", f"{block}/binary_conv"), ("batch_normalization", f"{block}/bn"))
    yield "dense", "head/linear"


def renamed(state: dict[str, np.ndarray], turn: bool = False) -> dict[str, np.ndarray]:
    """larq's weights under our names, such as "params/stem_conv/kernel".

    Args:
      state: arrays under Keras' names.
      turn: turn all kernels by 180 degrees: exact, for images turned likewise (see above).

    Raises:
      BadInput: the layers are not those of larq's BiRealNet, two names mean the same array, or a number cannot be.
    """
    rows, found = [], {}
    for name, array in state.items():
        layer, _, weight = name.removesuffix(":0").partition("/")
        match = re.fullmatch(rf"({'|'.join(WEIGHTS)})(?:_v\d)?(?:_(\d+))?", layer)
        weight = weight.rpartition("/")[2]
        if not match or weight not in WEIGHTS[match[1]]:
            raise _unknown(f"found {name}")
        values.check(name, array, WEIGHTS[match[1]][weight].rpartition("/")[2])
        rows.append(((match[1], int(match[2] or 0), weight), name, array))
    for (kind, number, weight), array in values.named_once(rows).items():
        found.setdefault((kind, number), {})[weight] = array
    layers = list(_layers())
    have, want = (Counter(kind for kind, _ in rows) for rows in (found, layers))
    if have != want:
        raise _unknown(f"found {_counts(have)}; it has {_counts(want)}")
    queues = {kind: iter(sorted(key for key in found if key[0] == kind)) for kind in want}
    flat = {}
    for kind, path in layers:
        weights = found[next(queues[kind])]
        if set(weights) != set(WEIGHTS[kind]):
            raise _unknown(f"a {kind} has {', '.join(sorted(weights))}, of {', '.join(WEIGHTS[kind])}")
        for weight, array in weights.items():
            flat[WEIGHTS[kind][weight].format(path)] = _converted(weight, array, turn)
    return flat


def _converted(weight, array, turn):
    if weight == "moving_variance":
        return (array.astype(np.float64) + (KERAS_EPSILON - EPSILON)).astype(array.dtype)
    return np.ascontiguousarray(array[::-1, ::-1]) if turn and array.ndim == 4 else array


def _counts(counter):
    return ", ".join(f"{counter[kind]} {kind}" for kind in WEIGHTS)


def _unknown(what):
    return BadInput(f"larq networks of that layout are not known, only BiRealNet with its top: {what}")
