"""docs/format.md: its reader is run as it stands there, and its tables name what the package knows."""

import re
from pathlib import Path

import numpy as np
import packed
import pytest

from bireal_jax.runtime import container, reference

PAGE = (Path(__file__).parents[1] / "docs" / "format.md").read_text()


@pytest.fixture(scope="module")
def reader():
    names = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.S)[0], names)
    return names["read"]


@pytest.mark.parametrize("name", ["bireal_tiny", "react_tiny", "bireal20"])
def test_the_reader_of_the_page_reads(reader, name):
    path = packed.written(name)
    spec, tensors = reader(path)
    program = container.read(path)
    assert spec == program.spec and set(tensors) == set(program.tensors)
    for i, _ in enumerate(spec["ops"]):
        for array, expected in program.arrays(i).items():
            shape, numbers = tensors[f"{i}.{array}"]
            found = np.array(numbers, np.float32).reshape(shape)
            if program.tensors[f"{i}.{array}"].dtype == np.uint8:
                found = found.transpose(1, 2, 3, 0)
            np.testing.assert_array_equal(found, expected)


def test_the_reader_of_the_page_sees_damage(reader, tmp_path):
    data = bytearray(packed.written("bireal_tiny").read_bytes())
    data[-5] ^= 1
    (tmp_path / "net").write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        reader(tmp_path / "net")


def test_the_page_has_every_operation_and_its_weights():
    rows = dict(re.findall(r"^\| `(\w+)` \|([^|]*)\|", PAGE.split("## Operations")[1], re.M))
    assert set(rows) == set(reference.KINDS)
    for name, weights in rows.items():
        assert weights.strip().replace(", U8", "").split(", ") == list(reference.KINDS[name].arrays or [""]), name
