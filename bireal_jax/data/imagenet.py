"""ImageNet (ILSVRC 2012) through tensorflow-datasets, without TensorFlow."""

from functools import partial
from pathlib import Path

from bireal_jax.data.images import augment_file, prepare_file
from bireal_jax.data.source import Source, open_tfds, read_record

_LINES = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="ascii").splitlines()
# WordNet id -> a name for people, in the order of the classes' numbers, which is that of the ids' alphabet.
WORDS = dict(line.split(" ", 1) for line in _LINES if not line.startswith("#"))
NAMES = tuple(WORDS)
HOW = (
    "prepare it once: python -m bireal_jax.data.prepare imagenet2012 --tars DIR_OF_THE_TWO_TARS --out DIR\n"
    "then --config.data.dir=DIR; configs/digits.py needs no download"
)


def readable(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of classes, WordNet ids of ImageNet in words: ("n01440764", "mine") -> ("tench", "mine")."""
    return tuple(WORDS.get(name, name) for name in names)


class Records:
    """A sequence of {"bytes", "label", "name"} over a tfds data source, named `name`, that leaves images encoded."""

    def __init__(self, records, name):
        self.records, self.name = records, name

    def __len__(self):
        return len(self.records)

    def label(self, index: int) -> int:
        """Of one record."""
        return int(read_record(self.records, index, self.name)["label"])

    def __getitem__(self, index):
        record = read_record(self.records, index, self.name)
        name = record["file_name"]
        return {
            "bytes": record["image"],
            "label": int(record["label"]),
            "name": name.decode() if isinstance(name, bytes) else name,
        }


def build(directory: str, image_size: int, resize: int) -> Source:
    """ImageNet below `directory`, a tensorflow-datasets directory with imagenet2012 in the array_record format."""
    builder, *splits = open_tfds(directory, "imagenet2012", HOW)
    train, val = (Records(*split) for split in splits)
    names = builder.info.features["label"].names
    return Source(
        train=train, eval=val, augment=partial(augment_file, size=image_size),
        prepare=partial(prepare_file, size=image_size, resize=resize), image_shape=(image_size, image_size, 3),
        num_classes=len(names), label_names=tuple(names),
    )  # fmt: skip
