"""Real photos of five classes, from the sample of ImageNet beside the checkout: `python tests/photos.py ZIP DIR`."""

import io
import sys
import zipfile
from pathlib import Path

from PIL import Image

# class -> ImageNet's labels of it, ranges
CLASSES = {
    "bird": ((7, 25), (80, 101), (127, 147)),
    "dog": ((151, 269),),
    "food": ((924, 970),),
    "insect": ((300, 327),),
    "reptile": ((25, 69),),
}


def unpack(archive: Path, folder: Path, most: int = 1000) -> int:
    """Writes folder/CLASS/*.jpg, at most so many of each class, and gives how many there are."""
    with zipfile.ZipFile(archive) as file:
        names = sorted(name for name in file.namelist() if name.endswith(".JPEG"))  # in the order of the labels
        count = 0
        for kind, ranges in CLASSES.items():
            (folder / kind).mkdir(parents=True)
            chosen = [names[label] for low, high in ranges for label in range(low, high)]
            for name in chosen[:: max(1, -(-len(chosen) // most))]:
                (folder / kind / f"{Path(name).stem}.jpg").write_bytes(file.read(name))
                count += 1
    return count


def spoil(folder: Path) -> dict[str, Path]:
    """What photos of users have: {what: path} of files that are fine, and of what is to be mended."""
    dogs = sorted((folder / "dog").glob("*.jpg"))
    done = {"cut off": dogs[0], "text": dogs[1], "empty": dogs[2], "grey": dogs[3], "CMYK": dogs[4], "PNG": dogs[5]}
    done["cut off"].write_bytes(done["cut off"].read_bytes()[:2000])
    done["text"].write_text("404: not found")
    done["empty"].write_bytes(b"")
    for what, mode, kind in (("grey", "L", "JPEG"), ("CMYK", "CMYK", "JPEG"), ("PNG", "RGB", "PNG")):
        out = io.BytesIO()
        Image.open(done[what]).convert(mode).save(out, kind)
        done[what].write_bytes(out.getvalue())
    (folder / "cat").mkdir()
    return done | {"no image": folder / "cat"}


if __name__ == "__main__":
    print(unpack(Path(sys.argv[1]), Path(sys.argv[2])), "photos")
