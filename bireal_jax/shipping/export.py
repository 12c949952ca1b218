"""From a trained network to one packed file: ±1 weights as bits, batch norm and scales folded, exactly."""

import contextlib
import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from bireal_jax import build, models, runtime
from bireal_jax._version import __version__
from bireal_jax.data import Source
from bireal_jax.data.normalize import normalize
from bireal_jax.errors import BadInput, first_line
from bireal_jax.running import progress, workdir
from bireal_jax.runtime import container
from bireal_jax.shipping import graph

CHECKED = 256  # images at most
CLOSE = 1e-4  # of the largest logit: what rounding may do; beyond it a sign has flipped


def run(config: ConfigDict, directory: Path, out: Path | None = None) -> dict[str, Any]:
    """Writes the best checkpoint of a workdir, or config.init_from, as a packed file, and checks it against the model.

    Args:
      config: the recipe. Its last stage counts.
      directory: the workdir of the run; what it says of its data set is enough where the data set is not at hand.
      out: the file, by default net.safetensors in the workdir.

    Returns:
      What was found: bytes, images, and what `compare` says of them.

    Raises:
      BadInput: no weights, or a network that cannot be packed.
    """
    last = build.stages(config)[-1]
    if last.model.name in models.SUPERNETS:
        raise BadInput(
            f"{last.model.name} is a supernet, of which a search picks a network; retrain that one "
            "(--config.arch=.../best_arch.json) and export it"
        )
    source, examples = _source(last, directory)
    module, shapes = build.model(last, source)
    if last.init_from:
        variables, origin = build.variables(last, shapes), last.init_from
    else:
        variables, origin = build.best_variables(directory, shapes)
        if note := workdir.note(directory, config):
            progress.say(note)
    resize = last.data.resize if last.data.name in ("folder", "imagenet2012") else 0
    made = program(last.model.name, module, variables, source, resize)
    out = out or directory / "net.safetensors"
    size = write(made, out)
    progress.say(f"{out}: {size:,} bytes, from {origin}")
    images = _images(examples, source)
    found = {"bytes": size, "images": len(images), **compare(module, variables, source, out, images)}
    what = f"{source.split} images" if examples is not None else "images of noise"
    same = f"{found['same_top1']} times the same class\nas the model; " if "same_top1" in found else "\n"
    largest = "logit" if "same_top1" in found else "depth"
    progress.say(
        f"checked with {found['kernels']} kernels on {len(images)} {what}: {same}"
        f"{found['flipped']} with signs that rounding flipped, the others within "
        f"{found['difference']:.1e} of the largest {largest}"
    )
    return found


def _source(config, directory):
    """The data set and its evaluation examples, or what the run noted of it and None."""
    try:
        source = build.source(config)
        return source, source.eval
    except BadInput:
        if config.init_from or not (directory / "data.json").exists():
            raise
        return build.described(directory), None


def _images(examples, source):
    """uint8 [n, h, w, c]: evenly from the evaluation set, or noise."""
    if examples is None:
        return np.random.default_rng(0).integers(0, 256, (16, *source.image_shape)).astype(np.uint8)
    chosen = np.linspace(0, len(examples) - 1, min(len(examples), CHECKED)).astype(int)
    return np.stack([source.prepare(examples[int(i)])["image"] for i in chosen])


def compare(module: nn.Module, variables: Any, source: Source, path: Path, images: np.ndarray) -> dict[str, Any]:
    """The packed network against the model in float32, by the engine, or by the reference where there is none.

    An activation within rounding of zero can come out with the other sign and change what follows; such images are
    counted apart.

    Args:
      module, variables: the network, as trained.
      source: how images are normalized.
      path: of the packed file.
      images: uint8 [n, h, w, c].

    Returns:
      kernels; same_top1: images with the same class (not of maps); flipped: images whose logits differ by more
      than CLOSE of the largest; difference: the largest of the others, as a share of the largest logit.
    """
    net = runtime.load(path, kernels=None if runtime.available() else "reference")
    module = module.clone(dtype=np.float32, param_dtype=np.float32)
    apply = jax.jit(lambda images: module.apply(variables, normalize(images, source, np.float32)))
    difference, same, flipped = 0.0, 0, 0
    for begin in range(0, len(images), 32):
        batch = images[begin : begin + 32]
        theirs, ours = np.asarray(apply(batch), np.float64), net(batch).astype(np.float64)
        theirs, ours = (outputs.reshape(len(batch), -1) for outputs in (theirs, ours))
        same += int(np.sum(theirs.argmax(-1) == ours.argmax(-1)))
        apart = np.abs(theirs - ours).max(-1) / np.abs(theirs).max(-1)
        flipped += int(np.sum(apart > CLOSE))
        difference = max([difference, *apart[apart <= CLOSE]])
    found = {"kernels": net.kernels, "flipped": flipped, "difference": float(difference)}
    return found if len(net.output_shape) > 1 else found | {"same_top1": same}


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
    """
    ops = graph.trace(module, variables, source.image_shape)
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
        "labels": list(source.label_names), "ops": rows,
    }  # fmt: skip
    return container.Program(spec, tensors)


def write(program: container.Program, path: Path) -> int:
    """Writes the packed file, whole or not at all; returns its size in bytes.

    Raises:
      BadInput: it cannot be written.
    """
    data = container.dump(program)
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {first_line(error)}\nname another --out, or free some space") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return len(data)
