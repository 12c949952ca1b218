"""Does an installed runtime run? A network that came with it reads a digit; another one equals the numpy reference."""

import tempfile
from importlib.metadata import requires
from pathlib import Path

import numpy as np

from bireal_jax import runtime
from bireal_jax._version import __version__
from bireal_jax.runtime import container

# A three of scikit-learn's digits: 8 x 8, of 16 grey values each.
THREE = "007fd100 08d6f400 021dd000 002fb100 0001cc10 00001a80 00845e90 007dd900"


def network() -> container.Program:
    """Normalization, a sign, a 1-bit convolution and the mean of each map."""
    weight = np.random.default_rng(0).choice(np.float32([-1, 1]), (3, 3, 3, 10))
    ops = [
        {"op": "sign", "path": "a", "inputs": [0], "shape": [8, 8, 3]},
        {
            "op": "binary_conv", "path": "b", "inputs": [1], "shape": [8, 8, 10], "strides": [1, 1],
            "padding": [1, 1, 1, 1], "groups": 1, "pad": 0,
        },
        {"op": "mean", "path": "c", "inputs": [2], "shape": [1, 1, 10]},
    ]  # fmt: skip
    image = {"shape": [8, 8, 3], "mean": [0.5] * 3, "std": [0.5] * 3, "resize": 0}
    spec = {
        "format": container.FORMAT, "package": __version__, "model": "smoke", "image": image, "labels": [*"0123456789"],
        "ops": ops,
    }  # fmt: skip
    return container.Program(spec, {"1.weight": container.pack(weight)})


if __name__ == "__main__":
    assert runtime.available(), "the engine is missing"
    digit = np.array([[int(value, 16) * 255 // 16 for value in row] for row in THREE.split()], np.uint8)
    best = runtime.load("digits").top(digit[None, ..., None])[0][0]
    assert best.label == "3" and best.probability > 0.9, best
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.safetensors")
        path.write_bytes(container.dump(network()))
        images = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
        net = runtime.load(path, threads=2)
        np.testing.assert_allclose(net(images), runtime.load(path, kernels="reference")(images), rtol=1e-6)
        assert net.top(images)[0][0].label in "0123456789"
    print(f"bireal-runtime {__version__} runs with {net.kernels} kernels; needs {requires('bireal-runtime')}")
