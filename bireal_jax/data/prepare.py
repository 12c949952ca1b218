"""Prepares ImageNet for `tfds.data_source`, without TensorFlow.

    python -m bireal_jax.data.prepare imagenet2012 --tars DIR --out DIR

DIR of --tars holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar as image-net.org gives them to registered users.
The result has the layout, names and bytes of tensorflow-datasets' own preparation, in the array_record format, so
`tfds.data_source("imagenet2012", data_dir=OUT)` reads it. Images are stored as they came, but for the CMYK files and
the one PNG, which are stored as RGB JPEG (quality 100), as tensorflow-datasets does with TensorFlow's encoder.
"""

import argparse
import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.imagenet2012 import imagenet_common
from tensorflow_datasets.datasets.imagenet2012.imagenet2012_dataset_builder import Builder as Stock

from bireal_jax import output, places
from bireal_jax.errors import BadInput, first_line
from bireal_jax.pixels import FORMATS, decode, listing

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
WHOLE = {"train": 1_281_167, "validation": 50_000}
SHOWN = 5  # files left out that are named


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The stock builder's features and keys; reads the tars with tarfile and re-encodes with Pillow."""

    name = "imagenet2012"
    pkg_dir_path = Path(__file__).parent
    VERSION = Stock.VERSION
    MANUAL_DOWNLOAD_INSTRUCTIONS = Stock.MANUAL_DOWNLOAD_INSTRUCTIONS

    def _info(self):
        features = tfds.features.FeaturesDict({
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names_file=imagenet_common.label_names_file()),
            "file_name": tfds.features.Text(),
        })  # fmt: skip
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

    def _split_generators(self, dl_manager):
        tars, self.left_out = Path(dl_manager.manual_dir), []
        return {
            "train": train_examples(tars / TRAIN, self.left_out),
            "validation": val_examples(tars / VAL, self.left_out),
        }

    def _generate_examples(self, *_):
        raise AssertionError("the splits are made in _split_generators")


def train_examples(path: Path, left_out: list[str]) -> Iterator[tuple[str, dict]]:
    """(file name, example) of a tar of one tar for each class, named by its synset.

    Names may be those of a path, "./n01440764.tar". What is no class or no image of one is added to `left_out`.
    """
    for tar, data in _members(path, re.compile(r"n\d{8}\.tar"), left_out):
        for name, image in _members(io.BytesIO(data), re.compile(r".+\.(JPE?G|PNG)", re.I), left_out, f"{path}, {tar}"):
            yield name, {"file_name": name, "image": _jpeg(image, name), "label": tar.removesuffix(".tar")}


def val_examples(path: Path, left_out: list[str]) -> Iterator[tuple[str, dict]]:
    """(file name, example) of a flat tar; the label belongs to the number in the name, ILSVRC2012_val_00000001.JPEG."""
    labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    for name, image in _members(path, re.compile(r"ILSVRC2012_val_\d{8}\.JPEG"), left_out):
        number = int(name[-13:-5])
        if not 1 <= number <= len(labels):
            raise BadInput(f"{path} holds {name}, which is no validation image of ILSVRC2012; download the tar again")
        yield name, {"file_name": name, "image": _jpeg(image, name), "label": labels[number - 1]}


def _members(tar, wanted, left_out, what=None):
    """(last part of the name, bytes) of every file of a tar with a wanted name, in one pass.

    Other files are left out, and named but for hidden ones. A sparse file is of kilobytes and claims terabytes.
    """
    what, count = what or str(tar), 0
    try:
        opened = tarfile.open(fileobj=tar) if isinstance(tar, io.BytesIO) else tarfile.open(tar, "r|")
        with opened as stream:
            for member in stream:
                name = member.name.rpartition("/")[2]
                if not member.isfile() or listing.hidden(name):
                    continue
                file = stream.extractfile(member) if wanted.fullmatch(name) and not member.issparse() else None
                if file is None:
                    left_out.append(f"{what}: {member.name}")
                    continue
                count += 1
                yield name, file.read()
    except tarfile.TarError as error:
        raise BadInput(f"{what} is damaged: {first_line(error)}; download it again") from None
    if not count:
        raise BadInput(f"{what} holds nothing of the kind {wanted.pattern}; download it again")


def _jpeg(data, name):
    """The bytes to store: an RGB or grey JPEG as it is, all else encoded anew. Raises BadInput if unreadable."""
    from PIL import Image

    image = decode(data, name)  # every file is read once in full, so that a broken one shows now and not in training
    with Image.open(io.BytesIO(data), formats=FORMATS) as header:
        if header.format == "JPEG" and header.mode in ("RGB", "L"):
            return io.BytesIO(data)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=100, subsampling=0)
    out.seek(0)
    return out


def imagenet2012(tars: Path, out: Path) -> None:
    """Prepares ImageNet from the two tars.

    Raises:
      BadInput: a tar is missing or damaged, or an image in it cannot be decoded.
    """
    for name in (TRAIN, VAL):
        if not (tars / name).is_file():
            raise BadInput(
                f"no {tars / name}\n"
                "register at image-net.org, download the two ILSVRC2012 tars and name their folder with --tars"
            )
    builder = Imagenet2012(data_dir=str(out), file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=str(tars)))
    counts = {split: info.num_examples for split, info in builder.info.splits.items()}
    whole = counts == WHOLE
    print(f"{out}: {counts['train']:,} train and {counts['validation']:,} validation images", end="")
    print("" if whole else f"; ILSVRC2012 has {WHOLE['train']:,} and {WHOLE['validation']:,}")
    if found := getattr(builder, "left_out", []):
        print(f"left out: {len(found):,} files that are no images of ILSVRC2012: {', '.join(found[:SHOWN])}")


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bireal_jax.data.prepare", description=__doc__.split("\n")[0])
    parser.add_argument("dataset", choices=["imagenet2012"])
    parser.add_argument("--tars", required=True, help=f"folder with {TRAIN} and {VAL}")
    parser.add_argument("--out", required=True, help="folder for the result: config.data.dir")
    arguments = parser.parse_args(argv)
    with output.command():
        imagenet2012(places.local(arguments.tars, "--tars"), places.local(arguments.out, "--out", "folder"))


if __name__ == "__main__":
    main()
