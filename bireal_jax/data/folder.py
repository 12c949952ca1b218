"""Your own images: DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg, JPEG or PNG."""

from functools import partial
from pathlib import Path

from bireal_jax.data.images import augment_file, prepare_file
from bireal_jax.data.source import Source
from bireal_jax.errors import BadInput

SUFFIXES = (".jpg", ".jpeg", ".png")
HOW = (
    "config.data.dir must hold train/CLASS/ and val/CLASS/ with JPEG or PNG files; configs/digits.py needs no download"
)


class Files:
    """A sequence of {"bytes", "label", "name"} over (path, label) pairs; a file is read when it is asked for."""

    def __init__(self, pairs: list[tuple[str, int]]):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def label(self, index: int) -> int:
        """Of one file, which is not read for it."""
        return self.pairs[index][1]

    def __getitem__(self, index):
        path, label = self.pairs[index]
        try:
            with open(path, "rb") as file:  # a Path takes twice as long
                return {"bytes": file.read(), "label": label, "name": path}
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}; the folder changed since the run began") from None


def build(directory: str, image_size: int, resize: int) -> Source:
    """The folder as a data set; classes are numbered in order of their names. ImageNet's crops and normalization."""
    root = Path(directory)
    for split in ("train", "val"):
        if not directory:
            raise BadInput(f"config.data.dir is empty: {HOW}")
        if not (root / split).is_dir():
            raise BadInput(f"no folder {root / split}: {HOW}")
    names = sorted(p.name for p in (root / "train").iterdir() if p.is_dir())
    strangers = sorted(p.name for p in (root / "val").iterdir() if p.is_dir() and p.name not in set(names))
    if strangers:
        raise BadInput(f"{root / 'val'} has classes that train lacks: {', '.join(strangers[:4])}")
    train, val = (_list(root / split, names) for split in ("train", "val"))
    return Source(
        train=Files(train), eval=Files(val), augment=partial(augment_file, size=image_size),
        prepare=partial(prepare_file, size=image_size, resize=resize), image_shape=(image_size, image_size, 3),
        num_classes=len(names), label_names=tuple(names),
    )  # fmt: skip


def _list(root, names):
    """(path, label) of every image below root, sorted, so that the order does not depend on the file system."""
    pairs = []
    for label, name in enumerate(names):
        if (root / name).is_dir():
            files = sorted(str(p) for p in (root / name).iterdir() if p.suffix.lower() in SUFFIXES)
            pairs += [(path, label) for path in files]
    if not pairs:
        raise BadInput(f"no image files below {root}: {HOW}")
    return pairs
