"""The packed file: one safetensors file with a list of operations, 1-bit weights in bits and a digest of the whole.

The header's one metadata entry, "bireal_jax", is JSON: format, model, image, labels, ops, crc32 of each tensor, digest.
Operation i reads tensors (0 is the image, j + 1 what operation j gives) and has its weights under "i.weight" and the
like. Real-valued weights are float32 [kh, kw, cin / groups, cout]. Binary ones are uint8 [cout, kh, kw, ceil(cin /
groups / 8)]: channel k of a pixel is bit k % 8 of byte k // 8, set for +1; bits beyond the last channel are zero.
The digest is the SHA-256 of the file in which it reads as 64 zeros.

No file names, no compression, nothing nested: a reader needs JSON and a table of offsets.
"""

import contextlib
import hashlib
import json
import os
import shlex
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from bireal_jax import kinds, places
from bireal_jax.errors import BadInput, first_line
from bireal_jax.runtime import fields, named, reference, verify

FORMAT = 1
NO_DIGEST = "0" * 64
WAY_OUT = {  # what a file is used for -> what is to be done where it stands in a network's place
    "photo": "the network comes first, and photos behind it: bireal-run NET PHOTO",
    "weights": "--mode=export packs a trained network; config.init_from starts a training or evaluation from weights",
}
PACKED_BY = f"a packed network is what --mode=export writes, {named.NET} in the folder of a run"


@dataclass
class Program:
    """A packed network in memory.

    Attributes:
      spec: what the file's header says, digest and checksums apart.
      tensors: arrays by name, binary ones packed; float64 ones are for tests, a file has float32.
    """

    spec: dict[str, Any]
    tensors: dict[str, np.ndarray]

    @property
    def digest(self) -> str:
        """SHA-256 of the file; of one that was not read from a file, of the file that it would make."""
        return self.spec.get("digest") or parse(dump(self)).spec["digest"]

    def arrays(self, index: int, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        """The weights of an operation, unpacked."""
        op = self.spec["ops"][index]
        found = {name: self.tensors[f"{index}.{name}"] for name in names(op)}
        if "weight" in found and found["weight"].dtype == np.uint8:
            found["weight"] = unpack(found["weight"], self.channels(index) // op["groups"])
        return {name: a.astype(dtype) for name, a in found.items()}

    def channels(self, index: int) -> int:
        """Channels that an operation reads."""
        return self.shape(self.spec["ops"][index]["inputs"][0])[2]

    def shape(self, number: int) -> tuple[int, int, int]:
        """(h, w, c) of a tensor."""
        return tuple(self.spec["ops"][number - 1]["shape"] if number else self.spec["image"]["shape"])

    @property
    def memory(self) -> int:
        """About how many bytes `run` takes for one image: every map, and the widest matrix of a convolution."""
        maps = [np.prod(self.shape(i), dtype=object) for i in range(len(self.spec["ops"]) + 1)]
        columns = [
            np.prod([*op["shape"][:2], self.tensors[f"{i}.weight"].size, 8], dtype=object) // op["shape"][2]
            for i, op in enumerate(self.spec["ops"])
            if "weight" in names(op)
        ]
        return 4 * (sum(maps) + max(columns, default=0))

    def normalize(self, images: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
        """uint8 [..., c] to (x / 255 - mean) / std; floats, which are normalized, as they are."""
        if images.dtype != np.uint8:
            return images.astype(dtype)
        mean, std = (np.asarray(self.spec["image"][key], dtype) for key in ("mean", "std"))
        return (images.astype(dtype) / dtype(255) - mean) / std

    def run(self, images: np.ndarray, dtype: Any = np.float32) -> list[np.ndarray]:
        """Every tensor, the normalized image first and the logits last, by the slow reference."""
        tensors = [self.normalize(images, dtype)]
        for i, op in enumerate(self.spec["ops"]):
            tensors.append(reference.apply(op, self.arrays(i, dtype), [tensors[j] for j in op["inputs"]]))
        return tensors


def names(op: dict) -> tuple[str, ...]:
    """The names of an operation's arrays."""
    return reference.KINDS[op["op"]].arrays


def pack(weight: np.ndarray) -> np.ndarray:
    """±1 weights [kh, kw, cin, cout] to bits, uint8 [cout, kh, kw, ceil(cin / 8)]."""
    return np.packbits(weight.transpose(3, 0, 1, 2) > 0, axis=-1, bitorder="little")


def unpack(bits: np.ndarray, channels: int) -> np.ndarray:
    """The inverse of `pack`, float32."""
    flat = np.unpackbits(bits, axis=-1, bitorder="little", count=channels)
    return (flat.transpose(1, 2, 3, 0) * np.float32(2) - 1).astype(np.float32)


def dump(program: Program) -> bytes:
    """The bytes of the packed file: the same for the same program, always."""
    tensors = {name: np.ascontiguousarray(a) for name, a in sorted(program.tensors.items())}
    checksums = {name: zlib.crc32(a.tobytes()) for name, a in tensors.items()}
    spec = program.spec | {"crc32": checksums, "digest": NO_DIGEST}
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    data = safetensors.numpy.save(tensors, metadata={"bireal_jax": text})
    place = _digest_at(data)
    return data[:place] + hashlib.sha256(data).hexdigest().encode() + data[place + len(NO_DIGEST) :]


def _digest_at(data):
    """Where the digest's 64 characters lie: quotes within the metadata's string are escaped."""
    mark, end = rb"\"digest\":\"", 8 + int.from_bytes(data[:8], "little")
    if data.count(mark, 0, end) != 1:
        raise BadInput("no packed network: its header has no digest")
    return data.index(mark) + len(mark)


def parse(data: bytes, where: str = "the file") -> Program:
    """The program of a packed file, its digest and all that it says verified.

    Raises:
      BadInput: no packed network, a damaged one, or of a version that is not known.
    """
    length, kind = int.from_bytes(data[:8], "little"), kinds.of(data)
    if kind not in (kinds.PACKED, kinds.ARRAYS):
        way_out = WAY_OUT.get(kind.use, PACKED_BY).replace("PHOTO", shlex.quote(where))
        raise BadInput(f"{where} is no packed network, but {kind.what}\n{way_out}")
    if cut := kinds.cut_off(data):
        raise BadInput(f"{where} {cut}\ncopy or download it again, or let --mode=export write it anew")
    if length > min(len(data) - 8, fields.MAX_HEADER):
        raise BadInput(f"{where} is no packed network: its header is longer than the file, or than 4 MB")
    try:
        spec = _json(_json(data[8 : 8 + length])["__metadata__"]["bireal_jax"])
        tensors = safetensors.numpy.load(data)
    except KeyError:
        raise BadInput(f"{where} is no packed network, but {kinds.ARRAYS.what}\n{WAY_OUT['weights']}") from None
    except (ValueError, TypeError, RecursionError, safetensors.SafetensorError) as error:
        raise BadInput(f"{where} is no packed network: {first_line(error)}") from None
    if not isinstance(spec, dict) or not isinstance(spec.get("crc32", {}), dict):
        raise BadInput(f"{where} is no packed network: its header has no list of checksums")
    if type(spec.get("format")) is not int or spec["format"] != FORMAT:
        raise BadInput(f"{where} has format {spec.get('format')!r}; this version reads format {FORMAT}")
    place = _digest_at(data)
    digest = hashlib.sha256(data[:place] + NO_DIGEST.encode() + data[place + len(NO_DIGEST) :]).hexdigest()
    if spec.get("digest") != digest:
        damaged = [n for n, a in tensors.items() if spec.get("crc32", {}).get(n) != zlib.crc32(a.tobytes())]
        raise BadInput(f"{where} is damaged, in {', '.join(damaged[:4]) or 'the header'}; take another copy")
    try:
        verify.program(spec, tensors)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None
    return Program(spec, tensors)


def _json(text):
    """json.loads without what only Python takes for JSON: a key twice, NaN, infinity."""

    def once(pairs):
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("the header has a key twice")
        return dict(pairs)

    def refuse(name):
        raise ValueError(f"the header has the number {name}")

    return json.loads(text, object_pairs_hook=once, parse_constant=refuse)


def contents(path: Any) -> tuple[bytes, str]:
    """A file, or the network of that name that came with the package, read once, and what to call it in messages.

    The folder of a run stands for the packed network in it.

    Raises:
      BadInput: no such file, no such network, a folder without one, or `path` is no path.
    """
    try:
        name = os.fsdecode(path)
        if not named.is_name(name):
            if os.path.isdir(name):
                name = of_run(Path(name))
            # A named pipe may wait for a writer forever; one without a name, as of a shell's <(...), has one.
            if not stat.S_ISREG(os.stat(name).st_mode) and os.path.exists(os.path.realpath(name)):
                raise BadInput(f"{name} is no file, but a pipe or device")
            return Path(name).read_bytes(), name
    except BadInput:
        raise
    except OSError as error:
        name = os.fsdecode(path)
        raise BadInput(f"{name} cannot be read: {error.strerror}{places.near(name)}") from None
    except (TypeError, ValueError) as error:  # no path; a path with a zero byte
        raise BadInput(f"{path!r:.100} is no path of a file: {error}") from None
    return named.packed(name), name


def is_network(word: str) -> bool:
    """Whether a word of a command names a packed network: a file, the folder of a run, or one of the package."""
    if named.is_name(word):
        return word in named.rows()
    return (Path(word) / named.NET).is_file() or kinds.of_file(word) == kinds.PACKED


def of_run(folder: Path) -> str:
    """The packed network in the folder of a run.

    Raises:
      BadInput: there is none; the message has the command that writes it.
    """
    if (file := folder / named.NET).is_file():
        return str(file)
    if named.is_run(folder):
        raise BadInput(
            f"{folder} is a run that has no packed network yet, {named.NET}; this writes it:\n{_export(folder)}"
        )
    stage = next((place for place in (folder, *folder.parents) if place.name.startswith("stage_")), None)
    if stage and named.is_run(stage.parent):
        raise BadInput(f"{folder} is a part of the run in {stage.parent}: name that, or the {named.NET} in it")
    raise BadInput(
        f"{folder} is a folder, and none of a run: it has no {named.NET}\nname a packed file, or the folder of a run; "
        "photos, and folders of photos, come behind it"
    )


def _export(folder):
    """The command that packs a run; where its recipe registers something, with that."""
    recipes: Any = {}
    with contextlib.suppress(OSError, ValueError):
        recipes = places.read_json(folder / "registered.json")
    recipe = next((str(file) for file in recipes.values() if file), "") if isinstance(recipes, dict) else ""
    given = [f"--config={recipe}"] if recipe else []
    return shlex.join(["python", "-m", "bireal_jax.main", *given, f"--workdir={folder}", "--mode=export"])


def read(path: str | bytes | os.PathLike) -> Program:
    """`parse` of a file. Raises BadInput also where there is none."""
    return parse(*contents(path))
