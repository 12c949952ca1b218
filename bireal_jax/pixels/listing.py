"""What lies in a folder of images: no hidden files, and what looks like an image but is not read is named."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from bireal_jax.errors import BadInput

READ = (".jpg", ".jpeg", ".png")
# What is an image and none of READ.
OTHER = (
    ".apng", ".arw", ".avif", ".bmp", ".cr2", ".dib", ".dng", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2",
    ".jpe", ".jxl", ".nef", ".pbm", ".pgm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
# What file managers, archives and servers leave behind, beside names that begin with a dot.
DEBRIS = ("__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found", "system volume information")
BEGIN = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"II*\0", b"MM\0*")  # what images without a suffix begin with
SHOWN = 3  # paths in a note


def hidden(name: str) -> bool:
    """Whether a file or folder of this name was not put there as data, such as `._cat.jpg` and `.ipynb_checkpoints`."""
    return name.startswith(".") or name.lower() in DEBRIS


def entries(folder: str | Path) -> list[os.DirEntry]:
    """What is in a folder, without what is hidden, sorted, so that the order does not depend on the file system.

    Raises:
      BadInput: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise BadInput(f"{folder} cannot be read: {error.strerror}") from None


def suffix(name: str) -> str:
    """ ".jpg" for "a.JPG"."""
    return os.path.splitext(name)[1].lower()


def is_read(entry: os.DirEntry) -> bool:
    """Whether this is a file of a kind that is read; of a link that leads nowhere, so that it is missed, not lost."""
    return suffix(entry.name) in READ and (entry.is_file() or (entry.is_symlink() and not entry.is_dir()))


def images(entry: os.DirEntry) -> Iterator[str]:
    """The path of a file that looks like an image; of a folder, the paths of all below it."""
    if entry.is_dir(follow_symlinks=False):
        for below in entries(entry.path):
            yield from images(below)
    elif suffix(entry.name) in (*READ, *OTHER) or (not suffix(entry.name) and entry.is_file() and _begins(entry.path)):
        yield entry.path


def _begins(path):
    try:
        with open(path, "rb") as file:
            return file.read(4).startswith(BEGIN)
    except OSError:
        return False


def note(left_out: Iterable[str]) -> str:
    """A line that counts and names the images at these paths, which are not read; "" for none."""
    paths = list(left_out)
    if not paths:
        return ""
    kinds = Counter("in other folders" if suffix(p) in READ else suffix(p) or "without a suffix" for p in paths)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    more = f" and {len(paths) - SHOWN:,} more" if len(paths) > SHOWN else ""
    return f"left out: {len(paths):,} images ({counts}): {', '.join(map(shown, paths[:SHOWN]))}{more}"


def shown(path: str) -> str:
    """A path as it can be printed, whatever its bytes are."""
    return path.encode("utf-8", "backslashreplace").decode()
