"""From a trained network to one packed file: ±1 weights as bits, batch norm and scales folded, exactly."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from bireal_jax import models, places, runtime, used
from bireal_jax._version import __version__
from bireal_jax.binary import losses
from bireal_jax.data import DATASETS, Source, imagenet, short_side
from bireal_jax.errors import BadInput, first_line
from bireal_jax.running import progress
from bireal_jax.runtime import container, named
from bireal_jax.shipping import accuracy, formats, graph
from bireal_jax.shipping.formats import CLOSE

CHECKED = 256  # images at most


def run(
    config: ConfigDict, directory: str | Path, out: str | Path | None = None, given: Collection[str] | None = None,
    style: str = "packed",
) -> dict[str, Any]:  # fmt: skip
    """Writes the best checkpoint of a workdir, or config.init_from, as a packed file, checked against the model before.

    Args:
      config: the recipe, as of `used.weights`: what the run had counts.
      directory: the workdir of the run; what it says of its data set is enough where the data set is not at hand.
      out: the file, by default net.safetensors in the workdir, or net with the suffix of the format.
      given: fields of config that were set on purpose, as of `used.weights`.
      style: "packed", or a key of `formats.FORMATS`: the file is then of that format instead, also checked.

    Returns:
      What was found: bytes, images, what `compare` says of them, and, of a packed file where the evaluation set is at
      hand and the engine is compiled, what `accuracy.both` says.

    Raises:
      BadInput: no weights, or a network that cannot be packed or loaded; a file that is there stays as it was.
    """
    foreign = style != "packed"
    directory, out = Path(directory), out and places.local(out, "--out", "file")
    out = out or directory / (f"net{formats.FORMATS[style].suffixes[0]}" if foreign else named.NET)
    if foreign:
        formats.named(style, out)
    use = used.weights(config, directory, given, pack=True)
    last, source, module, variables = use.config, use.source, use.model, use.variables
    if last.model.name in models.SUPERNETS:
        raise BadInput(
            f"{last.model.name} is a supernet, of which a search picks a network; retrain that one "
            "(--config.arch=.../best_arch.json) and export it"
        )
    made = packed(use)
    images = evenly(source, CHECKED) if use.there else _noise(source)
    compared = compare(module, variables, source, container.dump(made), images)
    size = len(container.dump(made)) if foreign else write(made, out)
    progress.say(f"{'packed' if foreign else out}: {size:,} bytes, from {use.origin}")
    found = {"bytes": size, "images": len(images), **compared}
    what = f"{source.split} images" if use.there else "images of noise"
    if not use.there:
        progress.say("no images of the data set are at hand; the check on them is left out")
    progress.say(formats.agreement(found, len(images), what, f"{found['kernels']} kernels", "the trained network"))
    if not foreign:
        return found | (_scores(use, container.dump(made)) if use.there and runtime.available() else {})
    if not use.there:
        images, what = formats.pictures(source.image_shape), "images of digits"
    return formats.write(made, out, style, images, what)


def _scores(use, packed):
    """Of the file and of the network it was made from, said and returned; {} where an image cannot be decoded."""
    loss, threads = losses.evaluation(use.config.loss), use.config.data.threads
    try:
        found = accuracy.both(use.model, use.variables, use.source, packed, loss, threads=threads)
    except BadInput as error:  # the file is written, and sound
        progress.say(f"note: its accuracy is not known: {error}")
        return {}
    progress.say(accuracy.said(found, use.source))
    return found


def packed(use: used.Weights) -> container.Program:
    """The packed network of weights that are used, as of `used.weights`, in memory. Raises BadInput as `program`."""
    c = use.config
    resize = short_side(c.data.image_size, c.data.resize) if DATASETS[c.data.name].cropped else 0
    return program(c.model.name, use.model, use.variables, use.source, resize)


def evenly(source: Source, count: int) -> np.ndarray:
    """Images of the evaluation set, evenly from all of it, at most so many: uint8 [n, h, w, c]."""
    chosen = np.linspace(0, len(source.eval) - 1, min(len(source.eval), count)).astype(int)
    return np.stack([source.prepare(source.eval[int(i)])["image"] for i in chosen])


def _noise(source):
    return np.random.default_rng(0).integers(0, 256, (16, *source.image_shape)).astype(np.uint8)


def compare(
    module: nn.Module, variables: Any, source: Source, packed: Path | bytes, images: np.ndarray
) -> dict[str, Any]:  # fmt: skip
    """The packed network against the model in float32, by the engine, or by the reference where there is none.

    An activation within rounding of zero can come out with the other sign and change what follows; such images are
    counted apart.

    Args:
      module, variables: the network, as trained.
      source: how images are normalized.
      packed: the file, or its bytes.
      images: uint8 [n, h, w, c].

    Returns:
      kernels; same_top1: images with the same class (not of maps); flipped: images whose logits differ by more
      than CLOSE of the largest, or are no numbers; difference: the largest of the others, as a share of the largest
      logit.

    Raises:
      BadInput: it cannot be loaded, or the model's outputs are not finite.
    """
    net = _loaded(packed)
    apply = accuracy.in_float32(module, variables, source)
    difference, same, flipped = 0.0, 0, 0
    for begin in range(0, len(images), 32):
        batch = images[begin : begin + 32]
        theirs, ours = np.asarray(apply(batch), np.float64), net(batch).astype(np.float64)
        if not np.isfinite(theirs).all():
            raise BadInput(
                "the model's outputs are not finite on the images that the file is checked on: no network to ship"
            )
        theirs, ours = (outputs.reshape(len(batch), -1) for outputs in (theirs, ours))
        same += int(np.sum(theirs.argmax(-1) == ours.argmax(-1)))
        apart, largest = np.abs(theirs - ours).max(-1), np.abs(theirs).max(-1)
        close = apart <= CLOSE * largest
        flipped += int(np.sum(~close))
        difference = max([difference, *(apart[close] / np.maximum(largest[close], np.finfo(np.float32).tiny))])
    found = {"kernels": net.kernels, "flipped": flipped, "difference": float(difference)}
    return found if len(net.output_shape) > 1 else found | {"same_top1": same}


def _loaded(packed):
    """The network of a packed file; a note where others must allow it more memory."""
    data, where = (packed, "the file") if isinstance(packed, bytes) else container.contents(packed)
    kernels = None if runtime.available() else "reference"
    try:
        return runtime.Network(data, where, kernels=kernels)
    except BadInput as error:
        # raises again what is another error
        net = runtime.Network(data, where, kernels=kernels, max_memory=accuracy.ROOM)
        progress.say(f"note for those who load it: {error}")
        return net


def program(
    name: str, module: nn.Module, variables: Any, source: Source, resize: int = 0, dtype: Any = np.float32
) -> container.Program:
    """The packed network in memory.

    Args:
      name: of the model.
      module, variables: the network.
      source: the data set it was trained on: shape and normalization of the images, names of the labels.
      resize: short side in pixels before the centre crop, 0 for none.
      dtype: of the real-valued weights. A file has float32; float64 is for comparing the mathematics.

    Raises:
      BadInput: the network does something that the packed file has no operation for.

    A line says where weights that are computed from latent ones come out real-valued, and why.
    """
    ops = graph.trace(module, variables, source.image_shape)
    for note in graph.notes((op.path, op.real) for op in ops):
        progress.say(note)
    rows, tensors = [], {}
    for i, op in enumerate(ops):
        rows.append({"op": op.kind, "path": op.path, "inputs": list(op.inputs), "shape": list(op.shape), **op.settings})
        for key, array in op.arrays.items():
            tensors[f"{i}.{key}"] = (
                container.pack(array) if op.binary_weight and key == "weight" else array.astype(dtype)
            )
    image = {
        "shape": list(source.image_shape), "mean": [float(v) for v in source.mean],
        "std": [float(v) for v in source.std], "resize": resize,
    }  # fmt: skip
    spec = {
        "format": container.FORMAT, "package": __version__, "model": name, "image": image,
        "labels": list(imagenet.readable(source.label_names)), "ops": rows,
    }  # fmt: skip
    if spec["labels"] != list(source.label_names):
        spec["ids"] = list(source.label_names)  # what folders of images are called
    return container.Program(spec, tensors)


def write(program: container.Program, path: Path) -> int:
    """Writes the packed file, whole or not at all; returns its size in bytes.

    Raises:
      BadInput: it cannot be written, or could not be loaded; a file that is there stays as it was.
    """
    data = container.dump(program)
    container.parse(data, str(path))
    try:
        places.write(path, data)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {first_line(error)}\nname another --out, or free some space") from None
    return len(data)
