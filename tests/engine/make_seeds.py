"""Small packed networks that have every operation between them: seeds for fuzz.cc, and victims for test_container.py.

python tests/engine/make_seeds.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np

from bireal_jax.runtime import container, reference


class Builder:
    """Adds operations one after the other; their shapes are those that the reference gives."""

    def __init__(self, *shape, seed=0):
        self.rng = np.random.default_rng(seed)
        self.ops, self.tensors, self.maps = [], {}, [np.zeros((1, *shape), np.float32)]

    @property
    def last(self):
        return len(self.ops)

    def add(self, kind, *inputs, arrays=None, **settings):
        """The number of the new tensor. inputs: tensors, by default the last one."""
        inputs = inputs or (self.last,)
        arrays = {name: array.astype(np.float32) for name, array in (arrays or {}).items()}
        op = {"op": kind, "path": f"layer{self.last}", "inputs": list(inputs), **settings}
        self.maps.append(reference.apply(op, arrays, [self.maps[i] for i in inputs]))
        for name, array in arrays.items():
            self.tensors[f"{self.last}.{name}"] = array
        self.ops.append(op | {"shape": list(self.maps[-1].shape[1:])})
        return self.last

    def channels(self, kind, *inputs):
        """An operation with one number per channel."""
        count, names = self.maps[inputs[0] if inputs else self.last].shape[-1], reference.KINDS[kind][1]
        return self.add(kind, *inputs, arrays={name: self.rng.normal(size=count) for name in names})

    def conv(self, filters, window=1, stride=1, padding=0, groups=1, binary=False, pad=None, source=None):
        """conv, or where pad is not None binary_conv; padding: of every side; source: tensor."""
        source = self.last if source is None else source
        weight = self.rng.normal(size=(window, window, self.maps[source].shape[-1] // groups, filters))
        settings = {"strides": [stride] * 2, "padding": [padding] * 4, "groups": groups}
        if pad is not None:
            settings["pad"] = pad
        binary |= pad is not None
        weight = np.where(weight >= 0, 1, -1) if binary else weight
        number = self.add("conv" if pad is None else "binary_conv", source, arrays={"weight": weight}, **settings)
        if binary:
            self.tensors[f"{number - 1}.weight"] = container.pack(weight)
        return number

    def program(self, labels=()):
        """The packed network."""
        shape = self.maps[0].shape[1:]
        image = {"shape": list(shape), "mean": [0.5] * shape[2], "std": [0.25] * shape[2], "resize": 0}
        spec = {
            "format": container.FORMAT, "package": "0", "model": "seed", "image": image, "labels": list(labels),
            "ops": self.ops,
        }  # fmt: skip
        return container.Program(spec, self.tensors)


def _bireal():
    net = Builder(8, 8, 3)
    net.conv(8, 3, 2, 1)
    net.channels("affine")
    shortcut = net.add("clip", low=-1.0, high=1.0, leak=0.1)
    net.add("sign")
    net.conv(8, 3, 1, 1, pad=0)
    net.channels("affine")
    net.add("add", net.last, shortcut)
    net.add("mean")
    net.conv(3)
    net.channels("affine")
    return net.program(["a", "b", "ü"])


def _react():
    net = Builder(4, 4, 2)
    shortcut = net.conv(5, 3, 1, 1)
    net.channels("affine")
    net.add("sign")
    net.conv(5, 3, 1, 1, pad=-1)
    net.channels("affine")
    shortcut = net.add("add", shortcut, net.last)
    net.channels("rprelu")
    left, right = net.channels("affine"), net.channels("rprelu", shortcut)
    net.add("concat", left, right)
    net.add("mean")
    net.conv(2)
    return net.program()


def _groups():
    net = Builder(5, 4, 6)
    net.conv(6, 3, 1, 1, groups=6)
    net.add("sign")
    net.conv(10, 3, 2, 1, groups=2, pad=1)
    net.channels("affine")
    sign = net.add("sign")
    net.conv(32, 1, groups=2, pad=0)
    net.conv(70, 1, pad=0, source=sign)
    net.add("sign")
    net.conv(3, pad=0)
    net.add("mean")
    return net.program()


def _shapes():
    net = Builder(6, 6, 2)
    net.add("pad_channels", before=1, after=2)
    pooled = net.add("avg_pool", window=2)
    every = net.add("subsample", 1, stride=2)
    net.add("max_pool", window=[2, 1], strides=[1, 2], padding=[1, 0, 0, 0])
    net.add("concat", pooled, every)
    net.add("reshape", shape=[1, 1, 90])
    net.conv(4)
    return net.program(["0", "1", "2", "3"])


def _map():
    net = Builder(3, 2, 2)
    net.conv(5)
    shortcut = net.add("upsample", factor=3)
    net.add("sign")
    net.conv(5, 3, 1, 1, pad=0)
    net.add("add", net.last, shortcut)
    net.conv(2)
    net.add("upsample", factor=2)
    return net.program()


def _pooled():
    net = Builder(9, 7, 1)
    net.conv(17, 3, 1, 1)
    net.channels("affine")
    net.add("clip", low=0.0, high=6.0, leak=0.0)
    net.add("max_pool", window=[3, 3], strides=[2, 2], padding=[1, 1, 1, 1])
    net.add("sign")
    net.conv(2, 3, pad=0)
    net.add("mean")
    return net.program()


def _binary_weights():
    net = Builder(4, 4, 3)
    net.conv(20, 3, 1, 1, binary=True)
    net.conv(4, 3, 1, 1, groups=4, binary=True)
    net.add("mean")
    return net.program()


def _smallest():
    net = Builder(1, 1, 1)
    net.conv(1)
    return net.program()


SEEDS = {
    "bireal": _bireal, "react": _react, "groups": _groups, "shapes": _shapes, "map": _map, "pooled": _pooled,
    "binary_weights": _binary_weights, "smallest": _smallest,
}  # fmt: skip


def write(folder: Path) -> list[Path]:
    """Writes them all; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in SEEDS.items():
        (folder / f"{name}.safetensors").write_bytes(container.dump(make()))
    return sorted(folder.glob("*.safetensors"))


if __name__ == "__main__":
    for path in write(Path(sys.argv[1])):
        print(path, path.stat().st_size)
