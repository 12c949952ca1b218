"""What a run writes down of its data sets, in data.json: all but the examples, and by what these are known again."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bireal_jax.data import Source
from bireal_jax.data.source import Arrays

LOOKED_AT = 64  # images in memory, evenly from all


def row(source: Source) -> dict[str, Any]:
    """What data.json holds of the data set of a stage."""
    found = {
        "train": len(source.train), "eval": len(source.eval), "classes": source.num_classes,
        "labels": list(source.label_names), "image_shape": list(source.image_shape), "mean": list(source.mean),
        "std": list(source.std),
    }  # fmt: skip
    maps = {"label_shape": list(source.label_shape), "depth_range": list(source.depth_range or ())}
    files = digest(source)
    return found | (maps if source.depth_range else {}) | ({"files": files} if files else {})


def restored(stored: Mapping[str, Any]) -> Source:
    """The inverse of `row`, but for the examples. What is newer than the run has its default."""
    return Source(
        train=range(stored.get("train", 0)), eval=range(stored.get("eval", 0)), prepare=dict,
        image_shape=tuple(stored["image_shape"]), num_classes=stored["classes"], mean=tuple(stored["mean"]),
        std=tuple(stored["std"]), label_names=tuple(stored.get("labels", ())),
        label_shape=tuple(stored.get("label_shape", ())), depth_range=stored.get("depth_range"),
    )  # fmt: skip


def digest(source: Source) -> str:
    """By what the examples of both splits are known again: names of files and their classes; no file is opened.

    Of images in memory it is the labels and some of the images. "" where examples have no names, as in an archive.
    """
    found = hashlib.blake2b(digest_size=8)
    for examples in (source.train, source.eval):
        names, labels = (getattr(examples, name, None) for name in ("names", "labels"))
        if isinstance(examples, Arrays):
            step = max(1, len(examples) // LOOKED_AT)
            found.update(np.ascontiguousarray(examples.images[::step]).tobytes())
        elif names is not None:
            found.update("\n".join(names).encode(errors="surrogateescape"))
        elif len(examples):
            return ""
        found.update(b"" if labels is None else np.asarray(labels, "<i8").tobytes())
        found.update(b"\0")
    return found.hexdigest()


def began(configs: list[ConfigDict]) -> dict[str, str]:
    """The folder that the paths of data sets are relative to, where any is."""
    places = [Path(config.data.dir) for config in configs if config.data.dir]
    return {} if all(place.is_absolute() for place in places) else {"began_in": str(Path.cwd())}


def located(config: ConfigDict, began_in: str) -> ConfigDict:
    """A config whose data sets are where the run meant them, though a relative path means another place here.

    Args:
      config: of a run; its stages may have data sets of their own.
      began_in: as of `began`, or "".
    """
    if began_in:
        config.data.dir = _located(config.data.dir, began_in)
        own = [{"data.dir": _located(s["data.dir"], began_in)} if "data.dir" in s else {} for s in config.stages]
        config.stages = tuple({**stage, **place} for stage, place in zip(config.stages, own, strict=True))
    return config


def _located(directory, began_in):
    """A path that is relative, and means another place here, whole; but for one that is here alone, as in a copy."""
    here, there = Path(directory).expanduser().absolute(), Path(began_in, Path(directory).expanduser())
    if not directory or here == there or (here.exists() and not there.exists()):
        return directory
    return str(there)
