"""Packed 1-bit networks on CPUs, without JAX.

    from bireal_jax import runtime

    net = runtime.load("net.safetensors", threads=2)
    logits = net(images)  # uint8 [n, h, w, c], or float, normalized -> float32 [n, classes]

The work is done by a small C++ engine that is compiled when the package is installed. Where it could not be,
`kernels="reference"` runs the same file in numpy, slowly.
"""

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from bireal_jax.errors import BadInput
from bireal_jax.runtime import container

FAR = 10  # times the largest normalized pixel: that is no normalized image
PRECISIONS = ("float32", "int16")
KERNELS = ("avx512_vpopcnt", "avx512", "avx2", "neon", "portable", "reference")
_ERROR_SIZE = 512


class _Options(ctypes.Structure):
    _fields_ = [
        ("threads", ctypes.c_int), ("precision", ctypes.c_int), ("unfused", ctypes.c_int),
        ("kernels", ctypes.c_char_p), ("max_memory", ctypes.c_size_t),
    ]  # fmt: skip


def _load_engine() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec("bireal_jax.runtime._engine")
    if spec is None or not spec.origin:
        return None
    library = ctypes.CDLL(spec.origin)
    address, size, number, text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p
    for name, result, arguments in (
        ("load_memory", address, (text, size, ctypes.POINTER(_Options), text)), ("free", None, (address,)),
        ("run_u8", number, (address, address, size, address, text)),
        ("run_f32", number, (address, address, size, address, text)), ("kernels", text, (address,)),
        ("profile", number, (address, address, number, address, text)), ("memory", size, (address,)),
        ("work", ctypes.c_double, (address,)), ("tensor", number, (address, number, address)),
    ):  # fmt: skip
        function = getattr(library, f"bireal_{name}")
        function.restype, function.argtypes = result, arguments
    return library


_engine = _load_engine()


def available() -> bool:
    """Whether the compiled engine is there."""
    return _engine is not None


class Network:
    """A packed network, ready to run; from `load`. Several threads can call it at once.

    Attributes:
      image_shape: (h, w, c).
      output_shape: (classes,), or (h, w, c) of a network that gives a map.
      num_classes: length of the logits, or channels of the map.
      labels: a name for each class, or ().
      resize: short side in pixels before the centre crop, 0 for none.
      kernels: what computes: a row of KERNELS.
      memory: bytes of weights and of the maps of one image; 0 for the reference.
    """

    def __init__(self, program: container.Program, handle: Any, unfused: bool):
        self._program, self._handle, self._unfused = program, handle, unfused
        spec = program.spec
        self.image_shape: tuple[int, int, int] = program.shape(0)
        shape = program.shape(len(spec["ops"]))
        self.output_shape: tuple[int, ...] = shape[2:] if shape[:2] == (1, 1) else shape
        self.num_classes: int = shape[2]
        self.labels: tuple[str, ...] = tuple(spec["labels"])
        self.resize: int = spec["image"]["resize"]
        mean, std = (np.asarray(spec["image"][name]) for name in ("mean", "std"))
        self._largest = float(np.max(np.maximum(mean, 1 - mean) / std))
        self.kernels = _engine.bireal_kernels(handle).decode() if _engine and handle else "reference"
        self.memory: int = _engine.bireal_memory(handle) if _engine and handle else 0

    def __del__(self):
        if _engine and self._handle:
            _engine.bireal_free(self._handle)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """The logits, float32 [n, classes], or the maps, [n, h, w, c].

        Args:
          images: [n, h, w, c], uint8 as in a photo, or float32 or float64, normalized as in training.

        Raises:
          BadInput: another shape or dtype, or a float image with NaN, infinity, or values far from normalized ones.
        """
        images = self._checked(images)
        if not self._handle:
            return self._program.run(images)[-1].reshape(len(images), *self.output_shape).astype(np.float32)
        assert _engine
        run = _engine.bireal_run_u8 if images.dtype == np.uint8 else _engine.bireal_run_f32
        error = ctypes.create_string_buffer(_ERROR_SIZE)
        logits = np.empty((len(images), *self.output_shape), np.float32)
        if run(self._handle, images.ctypes.data, len(images), logits.ctypes.data, error):
            raise BadInput(error.value.decode(errors="replace"))
        return logits

    def tensors(self, image: np.ndarray) -> list[np.ndarray]:
        """Every tensor for one image [h, w, c], the normalized image first; of a network loaded with unfused=True."""
        if not self._handle:
            return [t[0] for t in self._program.run(self._checked(image[None]))]
        if not self._unfused:
            raise BadInput("the tensors in between are fused away; load with unfused=True")
        assert _engine
        self(image[None])
        found = []
        for i in range(len(self._program.spec["ops"]) + 1):
            found.append(np.empty(self._program.shape(i), np.float32))
            if _engine.bireal_tensor(self._handle, i, found[-1].ctypes.data):
                raise RuntimeError(f"tensor {i} is not there")
        return found

    def profile(self, image: np.ndarray, repeats: int = 50) -> list[tuple[dict, float]]:
        """Where the time goes: operations and the median seconds of each; what is fused into another counts with it.

        Args:
          image: uint8 [h, w, c].
          repeats: how often it is run.

        Raises:
          BadInput: as a call, or the network was loaded with kernels="reference".
        """
        image = self._checked(image[None])
        if not self._handle or not _engine or image.dtype != np.uint8:
            raise BadInput("only the compiled engine is profiled, on a uint8 image")
        ops, error = self._program.spec["ops"], ctypes.create_string_buffer(_ERROR_SIZE)
        seconds = np.empty(len(ops))
        if _engine.bireal_profile(self._handle, image.ctypes.data, repeats, seconds.ctypes.data, error):
            raise BadInput(error.value.decode(errors="replace"))
        return [(op, float(s)) for op, s in zip(ops, seconds, strict=True) if s]

    def _checked(self, images):
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            h, w, c = self.image_shape
            raise BadInput(f"images have shape {images.shape}; this network takes [n, {h}, {w}, {c}]")
        if images.dtype != np.uint8 and images.dtype.kind != "f":
            raise BadInput(f"images are {images.dtype}; give uint8, or floats that are normalized")
        images = np.ascontiguousarray(images, np.uint8 if images.dtype == np.uint8 else np.float32)
        if images.dtype != np.uint8:
            most = max(images.max(initial=0), -images.min(initial=0))
            if not np.isfinite(most):
                raise BadInput("an image has NaN or infinity; mend the input")
            if most > FAR * self._largest:
                raise BadInput(
                    f"float images have values up to {most:g}, and normalized pixels none beyond {self._largest:.2f}\n"
                    "give uint8, or (x / 255 - mean) / std as in training"
                )
        return images


def load(
    path: str | Path, threads: int = 1, precision: str = "float32", kernels: str | None = None,
    unfused: bool = False, max_memory: int = 0,
) -> Network:  # fmt: skip
    """Loads and checks a packed network.

    Args:
      path: the file that --mode=export wrote.
      threads: of one call, no more than there are cores. They share each image, or, of at least as many images, each
        takes its own, where max_memory allows that.
      precision: "float32", or "int16": in 16 bits the first convolution, on uint8 images, which are exact, and the 1x1
        convolutions of maps.
      kernels: a row of KERNELS; None for the environment variable BIREAL_KERNELS, or else the best of this CPU.
      unfused: every operation alone, slow, so that `Network.tensors` can show each.
      max_memory: bytes that it may take; 0 for 4 times the file and 64 MB, of the reference for 8 GB an image.

    Raises:
      BadInput: no file, no packed network, a damaged one, or an option that cannot be.
    """
    if precision not in PRECISIONS:
        raise BadInput(f"precision is {precision!r}; known: {', '.join(PRECISIONS)}")
    if kernels is not None and kernels not in KERNELS:
        raise BadInput(f"kernels are {kernels!r}; known: {', '.join(KERNELS)}")
    if not isinstance(threads, int) or not 1 <= threads <= 256:
        raise BadInput(f"threads is {threads!r}; use 1 to 256")
    program = container.read(path)
    if kernels == "reference":
        if program.memory > (max_memory or 8 << 30):
            raise BadInput(
                f"{path}: an image takes {program.memory >> 20:,} MB; raise max_memory if you trust the file"
            )
        return Network(program, None, True)
    if not _engine:
        raise BadInput(
            "the compiled engine is missing: no C++ compiler was found when bireal_jax was installed\n"
            'install one (Debian: apt install g++) and the package again, or use kernels="reference", which is slow'
        )
    data, error = Path(path).read_bytes(), ctypes.create_string_buffer(_ERROR_SIZE)
    options = _Options(threads, PRECISIONS.index(precision), unfused, kernels and kernels.encode(), max_memory)
    handle = _engine.bireal_load_memory(data, len(data), ctypes.byref(options), error)
    if not handle:
        raise BadInput(f"{path}: {error.value.decode(errors='replace')}")
    return Network(program, handle, unfused)
