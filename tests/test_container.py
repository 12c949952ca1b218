"""Packed files that are damaged, or hostile with a digest that fits: both readers refuse them and say why."""

import copy
import ctypes
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from engine import make_seeds

from bireal_jax import runtime
from bireal_jax.errors import BadInput
from bireal_jax.runtime import container, fields, reference

SEEDS = {name: make() for name, make in make_seeds.SEEDS.items()}
FORMAT_H = Path(runtime.__file__).parent / "engine" / "format.h"
BINARY, POOL, CONCAT, RESHAPE = 4, 3, 4, 5  # operations of the seeds "bireal" and "shapes"


def packed_file(spec, rows, payload):
    """A file with this spec, dict or text, and these rows of the header, whatever they say; its digest fits."""
    text = spec if isinstance(spec, str) else tight(spec)
    header = json.dumps({"__metadata__": {"bireal_jax": text}} | rows).encode()
    data = len(header).to_bytes(8, "little") + header + payload
    mark = rb"\"digest\":\""
    place = data.index(mark) + len(mark)
    return data[:place] + hashlib.sha256(data).hexdigest().encode() + data[place + 64 :]


def tight(spec):
    return json.dumps(spec, separators=(",", ":"))


def parts(name):
    """Spec, rows of the header and payload of a seed, to be changed."""
    program = SEEDS[name]
    rows, payload = {}, b""
    for key, array in program.tensors.items():
        offsets = [len(payload), len(payload) + array.nbytes]
        dtype = "U8" if array.dtype == np.uint8 else "F32"
        rows[key] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        payload += array.tobytes()
    return copy.deepcopy(program.spec) | {"digest": container.NO_DIGEST, "crc32": {}}, rows, payload


def python_says(data, tmp_path):
    """Why the Python reader refuses a file, None if it does not."""
    path = tmp_path / "net.safetensors"
    path.write_bytes(data)
    try:
        container.read(path)
    except BadInput as error:
        for load in (runtime.load, lambda path: runtime.load(path, kernels="reference")):
            with pytest.raises(BadInput, match="net.safetensors"):
                load(path)
        return str(error)
    return None


def engine_says(data):
    """The same of the engine's."""
    options, error = runtime._Options(1, 0, 0, b"portable", 0), ctypes.create_string_buffer(runtime._ERROR_SIZE)
    net = runtime._engine.bireal_load_memory(data, ctypes.c_size_t(len(data)), ctypes.byref(options), error)
    if net:
        runtime._engine.bireal_free(ctypes.c_void_p(net))
    return None if net else error.value.decode(errors="replace")


def refused(data, tmp_path, message=""):
    found = python_says(data, tmp_path)
    assert found is not None and re.search(message, found), found
    if runtime.available():
        found = engine_says(data)
        assert found is not None and re.search(message, found), found


@pytest.mark.parametrize("name", SEEDS)
def test_both_readers_take_what_is_sound(name, tmp_path):
    for data in (container.dump(SEEDS[name]), packed_file(*parts(name))):
        assert python_says(data, tmp_path) is None
        assert not runtime.available() or engine_says(data) is None
    logits = container.parse(data).run(np.zeros((2, *SEEDS[name].shape(0)), np.uint8))[-1]
    assert np.isfinite(logits).all()


def test_every_operation_is_in_a_seed():
    assert {op["op"] for program in SEEDS.values() for op in program.spec["ops"]} == set(reference.KINDS)


def test_limits_are_those_of_the_engine():
    numbers = dict(re.findall(r"(max_\w+) = ([^,;]+)", FORMAT_H.read_text()))
    for name in ("max_side", "max_ops", "max_window", "max_elements", "max_binary_inputs", "max_header"):
        assert eval(numbers[name].replace("size_t(1)", "1")) == getattr(fields, name.upper())


def test_a_file_that_ends_early(tmp_path):
    data = container.dump(SEEDS["bireal"])
    for size in range(0, len(data), 64):
        refused(data[:size], tmp_path)
    refused(data + b"\0", tmp_path)


def test_every_bit_of_a_header(tmp_path):
    data = container.dump(SEEDS["smallest"])
    for bit in range(8 * (8 + int.from_bytes(data[:8], "little"))):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadInput):
            container.parse(bytes(flipped))
        assert not runtime.available() or engine_says(bytes(flipped))


# What is wrong: seed, what changes it (spec, its operations, rows of the header), what both readers say.
HOSTILE = {
    "format 2": ("bireal", lambda s, o, r: s.update(format=2), "format"),
    "no labels": ("bireal", lambda s, o, r: s.pop("labels"), "no labels"),
    "labels for others": ("bireal", lambda s, o, r: s["labels"].append("d"), "labels"),
    "label that is a number": ("bireal", lambda s, o, r: s.update(labels=[1, "b", "c"]), "not a string"),
    "no operations": ("bireal", lambda s, o, r: s.update(ops=[]), "ops"),
    "no image": ("bireal", lambda s, o, r: s.pop("image"), "image"),
    "mean of another length": ("bireal", lambda s, o, r: s["image"]["mean"].pop(), "mean"),
    "std of zero": ("bireal", lambda s, o, r: s["image"].update(std=[0.25, 0, 0.25]), "std"),
    "huge mean": ("bireal", lambda s, o, r: s["image"].update(mean=[0, 0, 1e300]), "mean"),
    "image without channels": ("smallest", lambda s, o, r: s["image"].update(shape=[1, 1, 0]), "integer from 1"),
    "image of 2^31": ("bireal", lambda s, o, r: s["image"].update(shape=[2**31, 2**31, 3]), "from 1 to 65536"),
    "image of 2^32 elements": ("bireal", lambda s, o, r: s["image"].update(shape=[2**16, 2**16, 3]), r"2\^28"),
    "map of 2^62": ("bireal", lambda s, o, r: o[2].update(shape=[1, 1, 2**62]), "integer from 1"),
    "side that is true": ("smallest", lambda s, o, r: s["image"].update(shape=[True, 1, 1]), "not an integer"),
    "unknown operation": ("bireal", lambda s, o, r: o[7].update(op="median"), "median.* known"),
    "input of its own": ("bireal", lambda s, o, r: o[3].update(inputs=[4]), "input.* 0 to 3"),
    "input of later": ("bireal", lambda s, o, r: o[3].update(inputs=[9]), "input.* 0 to 3"),
    "input that is negative": ("bireal", lambda s, o, r: o[3].update(inputs=[-1]), "input.* 0 to 3"),
    "input of 2^62": ("bireal", lambda s, o, r: o[3].update(inputs=[2**62]), "input.* 0 to 3"),
    "no inputs": ("bireal", lambda s, o, r: o[3].update(inputs=[]), "inputs"),
    "one input to add": ("bireal", lambda s, o, r: o[6].update(inputs=[6]), "inputs"),
    "another shape": ("bireal", lambda s, o, r: o[4].update(shape=[4, 4, 9]), "the file says"),
    "add of two shapes": ("bireal", lambda s, o, r: o[6].update(inputs=[6, 0]), "add"),
    "binary convolution of no sign": ("bireal", lambda s, o, r: o[BINARY].update(inputs=[3]), "no sign"),
    "binary convolution of the image": ("bireal", lambda s, o, r: o[BINARY].update(inputs=[0]), "no sign|fit|shape"),
    "stride of 0": ("bireal", lambda s, o, r: o[0].update(strides=[0, 2]), "stride.*1 to 64"),
    "window of 65": ("shapes", lambda s, o, r: o[POOL].update(window=[65, 1]), "window.*1 to 64"),
    "window larger than the map": ("shapes", lambda s, o, r: o[1].update(window=7), "larger than the map"),
    "negative padding": ("bireal", lambda s, o, r: o[0].update(padding=[1, -1, 1, 1]), "padding.*0 to 2"),
    "padding of a window": ("bireal", lambda s, o, r: o[0].update(padding=[3, 1, 1, 1]), "padding.*0 to 2"),
    "pad of 2": ("bireal", lambda s, o, r: o[BINARY].update(pad=2), "pad.*-1 to 1"),
    "groups that do not divide": ("bireal", lambda s, o, r: o[0].update(groups=2), "groups"),
    "groups of 0": ("bireal", lambda s, o, r: o[0].update(groups=0), "groups"),
    "low above high": ("bireal", lambda s, o, r: o[2].update(low=2.0), "low.* above high"),
    "channels before of 2^31": ("shapes", lambda s, o, r: o[0].update(before=2**31), "before"),
    "concatenated sizes": ("shapes", lambda s, o, r: o[CONCAT].update(inputs=[0, 3]), "different size"),
    "too many inputs": ("shapes", lambda s, o, r: o[CONCAT].update(inputs=[0] * 17), "inputs"),
    "reshape to more": ("shapes", lambda s, o, r: o[RESHAPE].update(shape=[1, 2, 90]), "number of elements"),
    "last map of 2": ("shapes", lambda s, o, r: (o.pop(), r.clear(), o[5].update(shape=[2, 1, 45])), "one number"),
    "factor of 65": ("map", lambda s, o, r: o[1].update(factor=65), "factor.*1 to 64"),
    "factor of 0": ("map", lambda s, o, r: o[1].update(factor=0), "factor.*1 to 64"),
    "labels for a map": ("map", lambda s, o, r: s.update(labels=["a", "b"]), "one number"),
    "no weight": ("bireal", lambda s, o, r: r.update({"x": r.pop("0.weight")}), "0.weight|no weight"),
    "a tensor that nobody reads": (
        "bireal", lambda s, o, r: r.update(x={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}), "no operation",
    ),
    "weight of 2^62": ("bireal", lambda s, o, r: r["0.weight"].update(shape=[2**31, 2**31, 1, 1]), ""),
    "side of 2^63": ("bireal", lambda s, o, r: r["0.weight"].update(shape=[2**63, 0, 0, 0]), ""),
    "offset of 2^62": ("bireal", lambda s, o, r: r["0.weight"].update(data_offsets=[0, 2**62]), ""),
    "offset backwards": ("bireal", lambda s, o, r: r["0.weight"].update(data_offsets=[864, 0]), ""),
    "overlapping tensors": (
        "bireal", lambda s, o, r: r["1.scale"].update(data_offsets=r["1.offset"]["data_offsets"]), "",
    ),
    "weight of float64": ("bireal", lambda s, o, r: r["0.weight"].update(dtype="F64", shape=[3, 3, 3, 4]), "F64|float"),
    "weight of rank 3": ("bireal", lambda s, o, r: r["0.weight"].update(shape=[9, 3, 8]), "fit"),
    "weight of another shape": ("bireal", lambda s, o, r: r["0.weight"].update(shape=[3, 3, 8, 3]), "fit"),
    "scale of another length": ("bireal", lambda s, o, r: r["1.scale"].update(shape=[2, 4]), "each (of 8 )?channel"),
    "scale in bits": ("bireal", lambda s, o, r: r["1.scale"].update(dtype="U8", shape=[32]), "each (of 8 )?channel"),
    "real weight in a binary convolution": (
        "bireal", lambda s, o, r: r["4.weight"].update(dtype="F32", shape=[3, 3, 2, 1]), "bits|real-valued|fit",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile(what, tmp_path):
    seed, change, message = HOSTILE[what]
    spec, rows, payload = parts(seed)
    change(spec, spec["ops"], rows)
    if "last map" in what:
        payload = b""
    refused(packed_file(spec, rows, payload), tmp_path, message)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite(value, tmp_path):
    spec, rows, _ = parts("smallest")
    refused(packed_file(spec, rows, np.float32(value).tobytes()), tmp_path, "infinity|not finite")


def test_gaps_and_ends(tmp_path):
    spec, rows, payload = parts("smallest")
    refused(packed_file(spec, rows, payload + b"\0"), tmp_path)
    rows["0.weight"]["data_offsets"] = [1, 5]
    refused(packed_file(spec, rows, b"\0" + payload), tmp_path)


def test_what_json_does_not_allow(tmp_path):
    spec, rows, payload = parts("smallest")
    text = tight(spec)
    for wrong in (
        text.replace('"format":1', '"format":1,"format":1'), text.replace('"format":1', '"format":NaN'),
        text.replace("[0.5]", "[1e999]"), text.replace("[0.5]", "[01]"), text.replace("[0.5]", "[.5]"),
        text.replace('"labels":[]', '"labels":' + "[" * 5000 + "]" * 5000), text[:-1], text + "}",
        text.replace('"labels":[]', '"labels":["\\ud8"]'), text.replace("[1,1,1]", "[1,1,1" + "0" * 5000 + "]"),
    ):  # fmt: skip
        assert wrong != text
        refused(packed_file(wrong, rows, payload), tmp_path)
    refused(packed_file("[" + text + "]", rows, payload), tmp_path)


def leaves(node, path=()):
    """Paths of all values in a spec."""
    yield path
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(child, (*path, key))


VALUES = [
    0,
    1,
    -1,
    2,
    3,
    5,
    64,
    65,
    2**16,
    2**28,
    2**31,
    2**62,
    2**70,
    0.5,
    1e39,
    None,
    True,
    "",
    "sign",
    [],
    {},
    [1, 1],
]


@pytest.mark.parametrize("name", SEEDS)
def test_both_readers_agree_on_changed_values(name, tmp_path):
    """What both take runs in the reference; what Python takes the engine takes."""
    rng, (spec, rows, payload) = np.random.default_rng(0), parts(name)
    paths = [path for path in leaves(spec) if path and path[0] not in ("digest", "crc32")]
    taken = 0
    for _ in range(250):
        changed, path = copy.deepcopy(spec), paths[rng.integers(len(paths))]
        node = changed
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = VALUES[rng.integers(len(VALUES))]
        data = packed_file(changed, rows, payload)
        try:
            program = container.parse(data)
        except BadInput:
            if path[-1] in ("model", "package", "resize", "path"):
                continue  # the engine does not read these
            assert not runtime.available() or engine_says(data), (path, node)
            continue
        taken += 1
        assert not runtime.available() or not engine_says(data), (path, node)
        assert len(program.run(np.zeros((1, *program.shape(0)), np.uint8))) == len(spec["ops"]) + 1
    assert taken > 0


def test_a_network_too_large_for_the_reference(tmp_path):
    net = make_seeds.Builder(1, 1, 1)
    net.add("pad_channels", before=0, after=0)
    net.ops[0].update(after=(1 << 28) - 1, shape=[1, 1, 1 << 28])
    path = tmp_path / "net.safetensors"
    path.write_bytes(container.dump(net.program()))
    with pytest.raises(BadInput, match="raise max_memory"):
        runtime.load(path, kernels="reference", max_memory=1 << 20)
    if runtime.available():
        with pytest.raises(BadInput, match="raise max_memory"):
            runtime.load(path)
