"""What must hold for a packed network before any of it is used: the rules of engine/format.cc, in Python."""

from typing import Any

import numpy as np

from bireal_jax.errors import BadInput
from bireal_jax.runtime import fields, reference


def program(spec: Any, tensors: dict[str, np.ndarray]) -> None:
    """Checks a file's spec and arrays: after it `Program.run` finds everything that it needs.

    Raises:
      BadInput: an operation, shape, input, array or setting is not what it must be; the message says which.
    """
    shapes = [_image(fields.get(spec, "image", dict))]
    rows = fields.items(fields.get(spec, "ops"), "ops", 1, fields.MAX_OPS)
    used = {f"{i}.{name}" for i, row in enumerate(rows) for name in _operation(i, rows, shapes, tensors)}
    if unused := sorted(set(tensors) - used):
        raise BadInput(f"tensor {unused[0][:40]!r} belongs to no operation")
    labels = fields.items(fields.get(spec, "labels"), "labels", 0, fields.MAX_ELEMENTS)
    if labels and shapes[-1][:2] != (1, 1):  # without labels it may be a map
        raise BadInput(f"the last operation gives {shapes[-1]}, not one number a class")
    if labels and len(labels) != shapes[-1][2]:
        raise BadInput(f"{len(labels)} labels for {shapes[-1][2]} outputs")
    ids = fields.items(spec.get("ids", labels), "ids", len(labels), len(labels))
    if not all(isinstance(label, str) for label in [*labels, *ids, spec.get("model"), spec.get("package")]):
        raise BadInput("a label, an id, the model or the package is not a string")


def _image(image):
    shape = fields.shape(image)
    for key in ("mean", "std"):
        for value in fields.items(fields.get(image, key), key, shape[2], shape[2]):
            fields.real(value, key)
    if not min(image["std"]) > 1e-6:
        raise BadInput(f"std is {min(image['std'])}, not positive")
    fields.integer(fields.get(image, "resize"), "resize", 0, fields.MAX_SIDE)
    return shape


def _operation(index, rows, shapes, tensors):
    """Checks one operation and adds its shape; returns the names of its arrays."""
    row, kind = rows[index], "?"
    try:
        kind = fields.get(row, "op", str)
        if kind not in reference.KINDS:
            raise BadInput("not known; a newer version may have it")
        fields.get(row, "path", str)
        inputs = fields.items(fields.get(row, "inputs"), "inputs", *reference.KINDS[kind].inputs)
        for number in inputs:
            fields.integer(number, "an input", 0, index)
        if kind == "binary_conv" and (inputs[0] == 0 or rows[inputs[0] - 1]["op"] != "sign"):
            raise BadInput("its input is no sign")
        names = reference.KINDS[kind].arrays
        arrays = {name: fields.array(tensors, f"{index}.{name}") for name in names}
        expected = reference.KINDS[kind].shape(row, [shapes[number] for number in inputs], *arrays.values())
        if fields.shape(row) != expected:
            raise BadInput(f"gives {expected}; the file says {fields.shape(row)}")
    except BadInput as error:
        raise BadInput(f"operation {index} ({kind[:40]}): {error}") from None
    shapes.append(expected)
    return names
