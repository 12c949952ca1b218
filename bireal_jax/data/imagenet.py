"""ImageNet (ILSVRC 2012) through tensorflow-datasets, without TensorFlow."""

from functools import partial
from pathlib import Path
from typing import Any

from bireal_jax.data.images import augment_file, prepare_file
from bireal_jax.data.source import Source, read_record
from bireal_jax.errors import BadInput, first_line

HOW = (
    "prepare it once: python -m bireal_jax.data.prepare imagenet2012 --tars DIR_OF_THE_TWO_TARS --out DIR\n"
    "then --config.data.dir=DIR; configs/digits.py needs no download"
)


class Records:
    """A sequence of {"bytes", "label", "name"} over a tfds data source, named `name`, that leaves images encoded."""

    def __init__(self, records, name):
        self.records, self.name = records, name

    def __len__(self):
        return len(self.records)

    def label(self, index: int) -> int:
        """Of one record."""
        return int(self.records[index]["label"])

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
    if not directory or not list(Path(directory).glob("imagenet2012/*/dataset_info.json")):
        raise BadInput(f"no prepared imagenet2012 at config.data.dir={directory!r}\n{HOW}")
    import tensorflow_datasets as tfds

    version = sorted(Path(directory).glob("imagenet2012/*/dataset_info.json"))[-1].parent
    try:
        builder: Any = tfds.builder_from_directory(str(version))
        raw = {"image": tfds.decode.SkipDecoding()}
        train, val = (
            Records(builder.as_data_source(split, decoders=raw), f"imagenet2012 {split}")
            for split in ("train", "validation")
        )
    except (ValueError, NotImplementedError, FileNotFoundError, AssertionError) as error:
        raise BadInput(f"{version} cannot be read: {first_line(error)}\n{HOW}") from None
    names = builder.info.features["label"].names
    return Source(
        train=train, eval=val, augment=partial(augment_file, size=image_size),
        prepare=partial(prepare_file, size=image_size, resize=resize), image_shape=(image_size, image_size, 3),
        num_classes=len(names), label_names=tuple(names),
    )  # fmt: skip
