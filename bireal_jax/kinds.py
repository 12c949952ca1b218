"""What a file is, by its first bytes, whatever it is called: for messages about one that is in another's place."""

import json
import zipfile
from pathlib import Path
from typing import NamedTuple

HEAD = 4096  # bytes that are looked at


class Kind(NamedTuple):
    """What a file is, in words, and what it is used for: one of "photo", "network", "weights", "text", ""."""

    what: str
    use: str = ""


EMPTY = Kind("an empty file")
UNKNOWN = Kind("a file of no known kind")
PACKED = Kind("a packed network", "network")
ARRAYS = Kind("a .safetensors file of arrays, such as weights", "weights")
PYTORCH = Kind("a PyTorch file, such as a checkpoint", "weights")
NUMPY = Kind("an .npz file of arrays", "weights")
ZIP = Kind("a zip archive")

# first bytes -> kind
STARTS = {
    b"\xff\xd8\xff": Kind("a photo (JPEG)", "photo"),
    b"\x89PNG\r\n": Kind("a photo (PNG)", "photo"),
    b"GIF8": Kind("a photo (GIF)", "photo"),
    b"II*\0": Kind("a photo (TIFF)", "photo"),
    b"MM\0*": Kind("a photo (TIFF)", "photo"),
    b"\x93NUMPY": Kind("an .npy file of one array", "weights"),
    b"\x89HDF\r\n": Kind("an HDF5 file, such as weights of Keras", "weights"),
    b"PK\3\4": ZIP,
    b"\x1f\x8b": Kind("a gzip archive"),
    b"%PDF": Kind("a PDF document"),
    b"version https://git-lfs": Kind("a pointer of Git LFS in place of the file (git lfs pull fetches it)", "text"),
}
# first bytes of a text, in small letters -> kind
TEXTS = {
    "<!doctype html": Kind("a web page (HTML), perhaps in place of a download", "text"),
    "<html": Kind("a web page (HTML), perhaps in place of a download", "text"),
    "<?xml": Kind("an XML file, such as one of OpenVINO", "text"),
    "{": Kind("a JSON file", "text"),
    "": Kind("a text file", "text"),
}


def of(data: bytes) -> Kind:
    """The kind of a file that begins with these bytes, HEAD of them or all that there are."""
    head = bytes(data[:HEAD])
    if not head:
        return EMPTY
    if head[7:9] == b"\0{":  # behind the length of the header, of 8 bytes
        return PACKED if b'"bireal_jax"' in head else ARRAYS
    if head.startswith(b"PK") and b"data.pkl" in head:
        return PYTORCH
    if head.startswith(b"PK") and b".npy" in head:
        return NUMPY
    for start, kind in STARTS.items():
        if head.startswith(start):
            return kind
    return _by_a_mark(head) or _text(head) or UNKNOWN


def _by_a_mark(head):
    """What has its mark further on, or a short one."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return Kind("a photo (WEBP)", "photo")
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return Kind("a photo (BMP)", "photo")
    if head[4:8] == b"ftyp":
        return Kind("a photo (HEIC or AVIF) or a film", "photo")
    if head[4:8] == b"TFL3":
        return Kind("a TFLite network")
    if head[257:262] == b"ustar":
        return Kind("a tar archive")
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return Kind("a pickle, such as an old PyTorch file", "weights")
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a"):  # ir_version, and what follows it
        return Kind("an ONNX network")
    return None


def _text(head):
    try:
        text = head[: HEAD - 4].decode().lstrip().lower()
    except UnicodeDecodeError:
        return None
    if any(ord(letter) < 32 and letter not in "\t\n\r\f" for letter in text):
        return None
    return next(kind for start, kind in TEXTS.items() if text.startswith(start))


def of_file(path: str | Path) -> Kind:
    """The kind of a file; UNKNOWN of one that cannot be read, or is no file."""
    try:
        if not Path(path).is_file():
            return UNKNOWN
        with open(path, "rb") as file:
            return of(file.read(HEAD))
    except (OSError, ValueError):
        return UNKNOWN


def is_no_file_of_arrays(kind: Kind) -> bool:
    """Whether no library that reads arrays says it better."""
    return kind == EMPTY or kind.use in ("text", "photo")


def no_zip(path: str | Path) -> str:
    """Why a file is no zip archive, as .npz files and those of PyTorch are; "" of a whole one, or of no file."""
    if not Path(path).is_file() or zipfile.is_zipfile(path):
        return ""
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if not head.startswith(b"PK"):
        return f"it is {of(head).what}"
    return f"it is cut off, or damaged: {Path(path).stat().st_size:,} bytes are there, and its end is missing"


def other_bytes(path: str | Path) -> str:
    """Which part of a zip archive is no longer as it was written, by its checksum; "" for none, or of another file.

    The whole file is read for it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except Exception as error:  # zipfile and zlib raise many kinds
        return "" if isinstance(error, OSError) or not zipfile.is_zipfile(path) else "it is damaged"
    return f"it is damaged: {part} in it is not as it was written" if part else ""


def promised(data: bytes) -> int:
    """How long a .safetensors file is to be, as its header says; 0 where that cannot be told.

    Args:
      data: the file, or its beginning with the whole header. A header that ends too early promises its own end.
    """
    header_end = _header_end(data)
    if len(data) < header_end:
        return header_end if data[7:9] == b"\0{" else 0
    try:
        rows = json.loads(data[8:header_end])
        ends = [row["data_offsets"][1] for name, row in rows.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return 0
    return header_end + max([0, *(end for end in ends if type(end) is int)])


def cut_off(data: bytes) -> str:
    """That a .safetensors file is shorter than it says, and by how much; or ""."""
    wanted = promised(data)
    if not len(data) < wanted < 1 << 53:
        return ""
    least = "at least " if wanted == _header_end(data) else ""  # of a header that ends too early
    return f"is cut off, or damaged: it has {len(data):,} of the {least}{wanted:,} bytes that its header promises"


def _header_end(data):
    return 8 + int.from_bytes(data[:8], "little")
