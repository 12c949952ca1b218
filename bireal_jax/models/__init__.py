"""Networks by name: `build("bireal18")` gives a Flax module.

Import this; a file of a network only for its rows. `arch` has the genes of networks that a search found.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from bireal_jax.binary import binarize
from bireal_jax.binary.layers import random_signs, uniform_001
from bireal_jax.binary.norm import Over
from bireal_jax.errors import BadInput, kept, lookup
from bireal_jax.models.alexnet import BinaryAlexNet, XNORNet
from bireal_jax.models.bireal import BIREAL, CIFAR, RESNETS, BiRealNet
from bireal_jax.models.depth import DECODERS
from bireal_jax.models.ebn import EBN, EBNS, GroupSupernet
from bireal_jax.models.layouts import LAYOUTS
from bireal_jax.models.metaprune import Pruned, PruningNet
from bireal_jax.models.network import Staged
from bireal_jax.models.reactnet import REACTNET
from bireal_jax.models.resnet import RESNET, ResNet
from bireal_jax.models.vgg import VGGS, BinaryNet, VGGSmall

LATENT_INITS = {
    "uniform_001": uniform_001,
    "glorot": nn.initializers.glorot_normal(),
    "he": nn.initializers.he_normal(),
    "signs": random_signs,
    "torch": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),  # of PyTorch's ordinary convolutions
}

# name -> constructor that still lacks num_classes, binarizers, initializer, dtypes
MODELS = {name: partial(BiRealNet, **row) for name, row in (BIREAL | CIFAR | RESNETS).items()}
MODELS |= {name: partial(VGGSmall, **row) for name, row in VGGS.items()}
MODELS |= {"binarynet": BinaryNet, **REACTNET}
ALEXNETS = {"binary_alexnet": BinaryAlexNet, "xnor_alexnet": XNORNet}
# Networks that genes name, and the supernets that have the weights of all of them; NAME_supernet is that of NAME.
PRUNED = {f"metaprune_{name}": partial(Pruned, layout=layout) for name, layout in LAYOUTS.items()}
SEARCHED = {name: partial(EBN, **row) for name, row in EBNS.items()} | PRUNED
SUPERNETS = {f"{name}_supernet": partial(GroupSupernet, **row) for name, row in EBNS.items()}
PRUNING = {f"metaprune_{name}_supernet": partial(PruningNet, layout=layout) for name, layout in LAYOUTS.items()}
SUPERNETS |= PRUNING
REAL_MODELS = {name: partial(ResNet, **row) for name, row in RESNET.items()} | PRUNED  # these lack no binarizers
MODELS |= ALEXNETS | REAL_MODELS | SEARCHED
NO_ENCODERS = ALEXNETS | PRUNED | SUPERNETS


# argument of `build` -> its rows. A recipe may register more.
TABLES = {
    "name": lambda: MODELS | SUPERNETS, "act": lambda: binarize.DERIVATIVES | binarize.REAL,
    "weight": lambda: binarize.WEIGHTS, "latent_init": lambda: LATENT_INITS, "decoder": lambda: {"": None, **DECODERS},
}  # fmt: skip
# Before a recipe adds any: one may add estimators before this module is loaded.
OURS = {argument: dict(rows()) for argument, rows in TABLES.items()} | binarize.OURS


def sizes(name: str) -> tuple[int, ...]:
    """How many values each gene of a network of `SEARCHED` has. Raises BadInput, which lists them, for another one."""
    return build(name).sizes if name in SEARCHED else lookup(SEARCHED, name, "network that genes name")


def build(
    name: str,
    num_classes: int = 1000,
    dtype: Any = jnp.float32,
    *,
    act: str | binarize.Derivative = "approx_sign",
    weight: str | binarize.WeightBinarizer = "released",
    latent_init: str = "uniform_001",
    bn_over: Over = None,
    decoder: str = "",
    genes: Sequence[int] = (),
    blocks: Sequence[int] = (),
    widths: Sequence[int] = (),
) -> nn.Module:
    """The model of that name.

    Args:
      name: a key of `MODELS` or `SUPERNETS`. Networks of `REAL_MODELS` are real-valued, whatever act, weight and
        latent_init say.
      num_classes: outputs of the head, or channels of the map.
      dtype: of the computation. Parameters and statistics are float32, or float64 if `dtype` is.
      act: a key of `binarize.DERIVATIVES`, of `binarize.REAL` for a real-valued activation, or a derivative d(x) or
        d(x, progress).
      weight: a key of `binarize.WEIGHTS`, "real" among them, or a weight binarizer w -> (b, alpha).
      latent_init: a key of `LATENT_INITS`.
      bn_over: what batch statistics are over, as of `norm.normalize_batch`.
      decoder: a key of `DECODERS`: the network, none of `NO_ENCODERS`, is its encoder, and a map comes out; "" for
        logits.
      genes: of a network of `SEARCHED`; () for its largest.
      blocks, widths: of a network in stages (`network.Staged`): how deep and how wide each stage is, of which all but
        the first halve the size; () for those of its name.

    Returns:
      A module: `module.init(key, images)` and `module.apply(variables, images, train=False, progress=1.0)`, images
      NHWC, progress from 0 to 1 for binarizers that change during the training.

    Raises:
      BadInput: an unknown name, or no encoder; the message lists the known ones. Genes or sizes that do not fit. A
        recipe has overwritten a row of the package.
    """
    named = {"name": name, "act": act, "weight": weight, "latent_init": latent_init, "decoder": decoder}
    for argument, row in named.items():
        if isinstance(row, str):
            kept(TABLES[argument](), OURS[argument], row, f"config.model.{argument}")
    fields = {
        "activation": binarize.activation(act),
        "weight": binarize.weight(weight),
        "latent_init": lookup(LATENT_INITS, latent_init, "latent_init"),
    }
    precision = {"dtype": dtype, "param_dtype": jnp.promote_types(dtype, jnp.float32)}
    real = name in REAL_MODELS | PRUNING
    network = partial(lookup(MODELS | SUPERNETS, name, "model"), **({} if real else fields), bn_over=bn_over)
    if genes:
        lookup(SEARCHED, name, "network that genes name")
        network = partial(network, genes=tuple(genes))
    network = _resized(network, name, {"blocks": tuple(blocks), "widths": tuple(widths)})
    if act in tuple(binarize.REAL) and network.keywords.get("rescale"):
        raise BadInput(f"{name} rescales the input of its signs in training, and act={act!r} is no sign; take clip20")
    if not decoder:
        return network(num_classes=num_classes, **precision)
    make = lookup(DECODERS, decoder, "decoder")
    if name in NO_ENCODERS:
        raise BadInput(f"{name} is no encoder of maps; known: {', '.join(sorted(set(MODELS) - set(NO_ENCODERS)))}")
    return make(
        make_encoder=partial(network, num_classes=0), num_classes=num_classes, bn_over=bn_over, **fields, **precision
    )


def _resized(network, name, given):
    """A network, still to be made, with other `blocks` and `widths` where any are given."""
    given = {field: value for field, value in given.items() if value}
    if not given:
        return network
    kind, sizes = network.func, network.keywords | given
    if not (isinstance(kind, type) and issubclass(kind, Staged)):
        known = [
            n
            for n, row in MODELS.items()
            if isinstance(row, partial) and isinstance(row.func, type) and issubclass(row.func, Staged)
        ]
        raise BadInput(f"{name} is no network in stages; {', '.join(given)} are of {', '.join(sorted(known))}")
    counts = len(sizes["blocks"]), len(sizes["widths"])
    if counts[0] != counts[1]:
        raise BadInput(
            f"{name}: blocks {sizes['blocks']} and widths {sizes['widths']} are of {counts[0]} and {counts[1]} stages\n"
            "set config.model.blocks and config.model.widths to one number for each stage"
        )
    each = sizes.get("convs_per_shortcut", 1)
    if any(count % max(1, each) for count in sizes["blocks"]):
        raise BadInput(
            f"{name} has a shortcut around every {each} convolutions; blocks {sizes['blocks']} do not divide"
        )
    return partial(network, **given)
