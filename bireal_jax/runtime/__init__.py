"""Packed 1-bit networks on CPUs, without JAX.

    from bireal_jax import runtime

    net = runtime.load("net.safetensors", threads=2)
    logits = net(images)  # uint8 [n, h, w, c], or float, normalized -> float32 [n, classes]
    net.top(runtime.photo("cat.jpg", net)[None])[0]  # the five likeliest classes with their probabilities

The work is done by a small C++ engine that is compiled when the package is installed. Where it could not be,
`kernels="reference"` runs the same file in numpy, slowly.
"""

import copy
import ctypes
import operator
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bireal_jax.errors import BadInput, check_compiled
from bireal_jax.runtime import container, fields, photos

FAR = 10  # times the largest normalized pixel: that is no normalized image
PRECISIONS = ("float32", "int16")
KERNELS = ("avx512_vpopcnt", "avx512", "avx2", "neon", "portable", "reference")
_ERROR_SIZE = 512
_Error = ctypes.c_char * _ERROR_SIZE


class _Options(ctypes.Structure):
    _fields_ = [
        ("threads", ctypes.c_int), ("precision", ctypes.c_int), ("unfused", ctypes.c_int),
        ("kernels", ctypes.c_char_p), ("max_memory", ctypes.c_size_t),
    ]  # fmt: skip


def _load_engine() -> ctypes.CDLL | None:
    path = Path(__file__).with_name("_engine.so")  # of any Python: it knows nothing of Python
    if not path.exists():
        return None
    library = ctypes.CDLL(str(path))
    address, size, number, text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p
    functions = (
        ("load_memory", address, (text, size, ctypes.POINTER(_Options), text)), ("free", None, (address,)),
        ("run_u8", number, (address, address, size, address, text)),
        ("run_f32", number, (address, address, size, address, text)), ("kernels", text, (address,)),
        ("profile", number, (address, address, number, address, text)), ("memory", size, (address,)),
        ("work", ctypes.c_double, (address,)), ("tensors_u8", number, (address, address, address, text)),
        ("tensors_f32", number, (address, address, address, text)),
    )  # fmt: skip
    check_compiled(library, path, [f"bireal_{name}" for name, *_ in functions])
    for name, result, arguments in functions:
        function = getattr(library, f"bireal_{name}")
        function.restype, function.argtypes = result, arguments
    return library


_engine = _load_engine()


def available() -> bool:
    """Whether the compiled engine is there."""
    return _engine is not None


class _Handle:
    """A network of the engine, freed with the last `Network` that has it."""

    def __init__(self, address: int):
        self.address = address

    def __del__(self, free=_engine.bireal_free if _engine else None):  # the module may be gone by then
        if free:
            free(self.address)


class Answer(NamedTuple):
    """A class that an image may be of: its name, or "class 7" where the file has none; its number; how likely it is."""

    label: str
    index: int
    probability: float


class Network:
    """A packed network, ready to run; from `load`, or from the bytes of a file. Several threads can call it at once.

    It is a value: copies share what the engine holds, which nothing changes. What is pickled is the file and the
    arguments; it is checked again where it arrives, and where `kernels` was None that CPU's best are chosen. A forked
    child can call it, and free it, like its parent.

    Args:
      data: a packed file.
      where: its name, for messages.
      threads, precision, kernels, unfused, max_memory: see `load`.

    Raises:
      BadInput: see `load`.

    Attributes:
      image_shape: (h, w, c).
      output_shape: (classes,), or (h, w, c) of a network that gives a map.
      num_classes: length of the logits, or channels of the map.
      labels: a name for each class, or ().
      ids: what the data set calls the classes, WordNet's ids of ImageNet; elsewhere the labels.
      resize: short side in pixels before the centre crop, 0 for none.
      kernels: what computes: a row of KERNELS.
      memory: bytes of weights and of the maps of one image; 0 for the reference.
    """

    def __init__(
        self, data: bytes, where: str = "the file", threads: int = 1, precision: str = "float32",
        kernels: str | None = None, unfused: bool = False, max_memory: int = 0,
    ):  # fmt: skip
        if precision not in PRECISIONS:
            raise BadInput(f"precision is {precision!r}; known: {', '.join(PRECISIONS)}")
        if kernels is not None and kernels not in KERNELS:
            raise BadInput(f"kernels are {kernels!r}; known: {', '.join(KERNELS)}")
        threads = _whole("threads", threads, 1, 256)
        max_memory = _whole("max_memory", max_memory, 0, sys.maxsize)
        self._made_of = (data, where, threads, precision, kernels, bool(unfused), max_memory)
        self._program = program = container.parse(data, where)
        self._handle: _Handle | None = None
        if (kernels or os.environ.get("BIREAL_KERNELS")) != "reference":
            self._handle = _Handle(_loaded(*self._made_of))
            program.tensors = {}  # the engine has its own
        elif program.memory > (max_memory or 8 << 30):
            raise BadInput(
                f"{where}: an image takes {program.memory >> 20:,} MB; raise max_memory if you trust the file"
            )
        spec = program.spec
        self.image_shape: tuple[int, int, int] = program.shape(0)
        shape = program.shape(len(spec["ops"]))
        self.output_shape: tuple[int, ...] = shape[2:] if shape[:2] == (1, 1) else shape
        self.num_classes: int = shape[2]
        self.labels: tuple[str, ...] = tuple(spec["labels"])
        self.ids: tuple[str, ...] = tuple(spec.get("ids", spec["labels"]))
        self.resize: int = spec["image"]["resize"]
        mean, std = (np.asarray(spec["image"][name]) for name in ("mean", "std"))
        self._largest = float(np.max(np.maximum(mean, 1 - mean) / std))
        self.kernels, self.memory = "reference", 0
        if _engine and self._handle:
            self.kernels = _engine.bireal_kernels(self._handle.address).decode()
            self.memory = _engine.bireal_memory(self._handle.address)

    def __reduce__(self):
        return type(self), self._made_of

    def __copy__(self):
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo):
        return copy.copy(self)

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
        logits = np.empty((len(images), *self.output_shape), np.float32)
        self._call("run", images, len(images), logits.ctypes.data)
        return logits

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """The softmax of the logits: float64 [n, classes], which sum to 1. Arguments and errors as of a call.

        Raises:
          BadInput: also of a network that gives maps, or whose logits are not finite.
        """
        if len(self.output_shape) > 1:
            raise BadInput("this network gives a map for each image, no classes; call it for the map")
        logits = self(images).astype(np.float64)
        if not np.isfinite(logits).all():
            raise BadInput("a logit is not finite: no network that was trained so; take another file")
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        return shares / shares.sum(-1, keepdims=True)

    def top(self, images: np.ndarray, count: int = 5) -> list[list[Answer]]:
        """For each image its likeliest classes, the likeliest first, `count` of them or as many as there are."""
        count, answers = _whole("count", count, 1, fields.MAX_ELEMENTS), []
        for shares in self.probabilities(images):
            best = np.argsort(-shares, kind="stable")[:count]
            answers.append([Answer(self._name(i), int(i), float(shares[i])) for i in best])
        return answers

    def _name(self, index):
        return self.labels[index] if self.labels else f"class {index}"

    def tensors(self, image: np.ndarray) -> list[np.ndarray]:
        """Every tensor for one image [h, w, c], the normalized image first; of a network loaded with unfused=True."""
        images = self._checked(np.asarray(image)[None])
        if not self._handle:
            return [t[0] for t in self._program.run(images)]
        found = [np.empty(self._program.shape(i), np.float32) for i in range(len(self._program.spec["ops"]) + 1)]
        self._call("tensors", images, (ctypes.c_void_p * len(found))(*(t.ctypes.data for t in found)))
        return found

    def profile(self, image: np.ndarray, repeats: int = 50) -> list[tuple[dict, float]]:
        """Where the time goes: operations and the median seconds of each; what is fused into another counts with it.

        Args:
          image: uint8 [h, w, c].
          repeats: how often it is run.

        Raises:
          BadInput: as a call, or the network was loaded with kernels="reference".
        """
        image, repeats = self._checked(np.asarray(image)[None]), _whole("repeats", repeats, 1, 1 << 20)
        if not self._handle or not _engine or image.dtype != np.uint8:
            raise BadInput("only the compiled engine is profiled, on a uint8 image")
        ops, error = self._program.spec["ops"], _Error()
        seconds = np.empty(len(ops))
        if _engine.bireal_profile(self._handle.address, image.ctypes.data, repeats, seconds.ctypes.data, error):
            raise BadInput(error.value.decode(errors="replace"))
        return [(op, float(s)) for op, s in zip(ops, seconds, strict=True) if s]

    def _call(self, name, images, *arguments):
        """A function of the engine that takes uint8 or float32 images."""
        assert _engine and self._handle
        function = getattr(_engine, "bireal_" + name + ("_u8" if images.dtype == np.uint8 else "_f32"))
        error = _Error()
        if function(self._handle.address, images.ctypes.data, *arguments, error):
            raise BadInput(error.value.decode(errors="replace"))

    def _checked(self, images):
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            h, w, c = self.image_shape
            raise BadInput(f"images have shape {images.shape}; this network takes [n, {h}, {w}, {c}]")
        if images.dtype != np.uint8 and images.dtype.kind != "f":
            raise BadInput(f"images are {images.dtype}; give uint8, or floats that are normalized")
        if images.dtype == np.uint8:
            return np.ascontiguousarray(images)
        with np.errstate(over="ignore"):  # what float32 does not hold is found below
            images = np.ascontiguousarray(images, np.float32)
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
    path: str | bytes | os.PathLike, threads: int = 1, precision: str = "float32", kernels: str | None = None,
    unfused: bool = False, max_memory: int = 0,
) -> Network:  # fmt: skip
    """Loads and checks a packed network. The file is read once.

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
    return Network(*container.contents(path), threads, precision, kernels, unfused, max_memory)


def photo(source: Any, net: Network, upright: bool = False) -> np.ndarray:
    """A photo as the network saw photos in its evaluation, to the last bit: uint8 [h, w, c].

        net(runtime.photo("cat.jpg", net)[None])

    Args:
      source: path, bytes of a file, or a Pillow image; grey, CMYK, palettes, 16 bits and alpha become RGB as there.
      net: the network; its file says how large and how photos were cut.
      upright: turned as EXIF says that the camera was held. Training ignores that, and so does the default.

    Raises:
      BadInput: no such file, no complete image, or a network that takes neither grey nor colour; Pillow is missing.
    """
    return photos.read(source, net.image_shape, net.resize, len(net.output_shape) > 1, upright)


def _whole(what, value, low, high):
    """An int from an integer of any kind, NumPy's too, within limits; True is none."""
    try:
        number = low - 1 if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = low - 1
    if not low <= number <= high:
        raise BadInput(f"{what} is {value!r}; use {low} to {high}")
    return number


def _loaded(data, where, threads, precision, kernels, unfused, max_memory):
    """The address of the engine's network."""
    if not _engine:
        raise BadInput(
            "the compiled engine is missing: no C++ compiler was found when bireal_jax was installed\n"
            "install one (Debian: apt install g++) and the package again, or use what is slow:\n"
            'kernels="reference", or BIREAL_KERNELS=reference in the environment'
        )
    error = _Error()
    options = _Options(threads, PRECISIONS.index(precision), unfused, kernels and kernels.encode(), max_memory)
    address = _engine.bireal_load_memory(data, len(data), ctypes.byref(options), error)
    if not address:
        raise BadInput(f"{where}: {error.value.decode(errors='replace')}")
    return address
