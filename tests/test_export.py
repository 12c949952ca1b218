"""The packed network computes what the model computes."""

import dataclasses
import json
import re
import subprocess
import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import packed
import pytest
from engine import make_seeds
from expected import EXPORTED, LARGE
from PIL import Image
from small import small

from bireal_jax import build, data, importers, main, models, runtime
from bireal_jax.binary import losses
from bireal_jax.data.source import IMAGENET_MEAN, Arrays
from bireal_jax.errors import BadInput
from bireal_jax.runtime import __main__ as command
from bireal_jax.runtime import container
from bireal_jax.shipping import accuracy, export, graph
from bireal_jax.training import evaluate, train

needs_engine = pytest.mark.skipif(not runtime.available(), reason="needs the compiled engine")
EVERY = [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in EXPORTED]


@pytest.mark.parametrize("name", EVERY)
def test_reference_in_float64_is_the_model_in_float64(name, x64):
    _, variables, source = packed.network(name)
    images = np.random.default_rng(1).normal(size=(2, *source.image_shape))
    model = models.build(name, 10, dtype=jnp.float64)
    theirs = jax.jit(model.apply)(variables, images)
    ours = packed.program(name, np.float64).run(images, np.float64)[-1].reshape(2, -1)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())


@pytest.mark.parametrize("act, weight", [("relu", "real"), ("leaky_clip", "real"), ("clip", "sign"), ("ste", "real")])
def test_real_valued_activations_and_weights(act, weight, x64, tmp_path):
    """The networks that binary ones start from, and step 1 of two: a real-valued convolution of ±1."""
    _, variables, source = packed.network("react_tiny")
    images = np.random.default_rng(1).normal(size=(2, *source.image_shape))
    model = models.build("react_tiny", 10, dtype=jnp.float64, act=act, weight=weight)
    theirs = jax.jit(model.apply)(variables, images)
    made = export.program("react_tiny", model, variables, source, dtype=np.float64)
    ours = made.run(images, np.float64)[-1].reshape(2, -1)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())
    if runtime.available():
        path = tmp_path / "net.safetensors"
        export.write(export.program("react_tiny", model, variables, source), path)
        np.testing.assert_allclose(runtime.load(path)(images), theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("groups", [4, 1])
def test_real_valued_pairs_in_groups(groups, x64, tmp_path):
    """The layout of ReActNet-B and -C, small: in float64, and in the engine with whatever kernels it has."""
    model = models.build("react_tiny", 10, dtype=jnp.float64).clone(real_groups=groups)
    variables, source = packed.drawn(model, (8, 8, 1)), packed.source((8, 8, 1))
    assert variables["params"]["block1"]["conv2"]["kernel"].shape == (1, 1, 16 // groups, 32)
    images = np.random.default_rng(1).normal(size=(2, 8, 8, 1))
    theirs = jax.jit(model.apply)(variables, images)
    made = export.program("react_tiny", model, variables, source, dtype=np.float64)
    kinds = [(op["op"], op.get("groups")) for op in made.spec["ops"] if op["path"].endswith("conv2")]
    assert kinds[0] == ("conv", 1 if groups == 1 else 8)
    ours = made.run(images, np.float64)[-1].reshape(2, -1)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())
    if runtime.available():
        path = tmp_path / "net.safetensors"
        export.write(export.program("react_tiny", model, variables, source), path)
        np.testing.assert_allclose(runtime.load(path)(images), theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_what_has_no_operation_is_named():
    class Odd(nn.Module):
        dtype: object = jnp.float32
        param_dtype: object = jnp.float32

        def __call__(self, x, train=False):
            return jnp.sin(x).mean((1, 2))

    with pytest.raises(BadInput, match="'sin', which graph.py has no operation for"):
        graph.trace(Odd(), {"params": {}}, (4, 4, 1))


def test_file_is_the_same_always_and_comes_back(tmp_path):
    path = tmp_path / "deep" / "net.safetensors"
    size = export.write(packed.program("bireal_tiny"), path)
    data = path.read_bytes()
    export.write(export.program("bireal_tiny", *packed.network("bireal_tiny")), path)
    assert path.read_bytes() == data and len(data) == size
    assert list(path.parent.iterdir()) == [path]
    read, made = container.read(path), packed.program("bireal_tiny")
    assert read.spec == made.spec | {"crc32": read.spec["crc32"], "digest": read.digest}
    assert made.digest == read.digest
    assert {k: v.tobytes() for k, v in read.tensors.items()} == {k: v.tobytes() for k, v in made.tensors.items()}


def test_size_of_the_18_layer_network():
    module = models.build("bireal18", 1000)
    variables = packed.drawn(module, (224, 224, 3))
    source = packed.source((224, 224, 3))
    assert len(container.dump(export.program("bireal18", module, variables, source))) < 4_300_000


def test_a_changed_bit_is_found_and_placed(tmp_path):
    path = tmp_path / "net.safetensors"
    export.write(packed.program("bireal_tiny"), path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"damaged, in \d+\.\w+"):
        container.read(path)


def test_unwritable_place_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        export.write(packed.program("bireal_tiny"), tmp_path / "file" / "net.safetensors")


def test_pack_and_unpack():
    rng = np.random.default_rng(0)
    for channels in (1, 7, 8, 9, 64, 70):
        weight = rng.choice([-1.0, 1.0], (3, 2, channels, 5))
        bits = container.pack(weight)
        assert bits.shape == (5, 3, 2, -(-channels // 8)) and bits.dtype == np.uint8
        np.testing.assert_array_equal(container.unpack(bits, channels), weight)
    one = np.full((1, 1, 9, 1), -1.0)
    one[0, 0, [0, 8], 0] = 1  # channel k is bit k % 8 of byte k // 8
    np.testing.assert_array_equal(container.pack(one).ravel(), [1, 1])


def test_trained_network_is_packed_and_agrees(tmp_path, capsys):
    config = small(total_steps=30, eval_steps=30)
    train.run(config, tmp_path)
    found = export.run(config, tmp_path)
    assert found["same_top1"] == found["images"] == 256
    assert found["difference"] < export.CLOSE and found["flipped"] <= 2
    out = capsys.readouterr().out
    assert "256 test images" in out
    model, variables, prepare = build.trained(tmp_path)
    images = build.source(config).eval.images
    theirs = np.asarray(model.apply(variables, prepare(images)))
    kernels = None if runtime.available() else "reference"
    ours = runtime.load(tmp_path / "net.safetensors", kernels=kernels)(images)
    assert np.mean(theirs.argmax(-1) == ours.argmax(-1)) >= 0.999
    assert json.loads((tmp_path / "data.json").read_text())["stages"][0]["labels"] == list("0123456789")
    if not runtime.available():
        assert "scored" not in found, "the reference takes too long"
        return
    labels = build.source(config).eval.labels
    right = [100 * np.mean(outputs.argmax(-1) == labels) for outputs in (ours, theirs)]
    assert found["scored"] == len(labels)
    assert [found[side]["top1"] for side in ("file", "model")] == pytest.approx(right)
    assert f"{right[0]:.2f} % of the file, {right[1]:.2f} % of the network in float32, on all {len(labels)} test" in out


@needs_engine
def test_where_time_is_short_some_images_are_scored_and_it_says_how_many():
    module, variables, source = packed.network("bireal_tiny")
    data = container.dump(packed.program("bireal_tiny"))
    labels = np.arange(50) % source.num_classes
    images = np.random.default_rng(0).integers(0, 256, (50, *source.image_shape)).astype(np.uint8)
    seen = []

    def prepare(example):
        seen.append(int(example["label"]))
        return example

    source = dataclasses.replace(source, eval=Arrays(images, labels), prepare=prepare)
    found = accuracy.both(module, variables, source, data, losses.get("cross_entropy"), seconds=0, threads=1)
    assert found["scored"] == 32 and seen[:32] != labels[:32].tolist()
    assert accuracy.said(found, source).endswith("on 32 of 50, drawn at random, test images")


def test_what_promises_float32_has_all_its_bits_on_gpus():
    """TF32 would be three digits: every convolution and product asks for the highest precision."""
    module, variables, source = packed.network("bireal_tiny")
    images = jax.ShapeDtypeStruct((2, *source.image_shape), np.uint8)
    batch = {"image": images, "label": jax.ShapeDtypeStruct((2,), np.int32), "mask": jax.ShapeDtypeStruct((2,), bool)}
    step = evaluate.make_eval_step(module, losses.get("cross_entropy"), source)
    for function, inputs in (
        (accuracy.in_float32(module, variables, source), (images,)), (jax.jit(step.part), (variables, batch)),
    ):  # fmt: skip
        text = function.trace(*inputs).lower(lowering_platforms=("cuda",)).as_text()
        products = [line for line in text.splitlines() if "precision" in line]
        assert len(products) >= 6 and all(line.count("HIGHEST") == 2 for line in products)


def test_exported_without_its_data(tmp_path, capsys, monkeypatch):
    """The workdir knows what the data set was; noise is then what is compared."""
    config = small()
    train.run(config, tmp_path)

    def missing(*_):
        raise BadInput("no data here")

    monkeypatch.setattr(build.data, "build", missing)
    export.run(small(batch_size=8), tmp_path, tmp_path / "other.safetensors")
    out = capsys.readouterr().out
    assert "16 images of noise: 16 times" in out and "was trained, but for what is asked, batch_size 16 -> 8\n" in out
    with pytest.raises(BadInput, match="no data here"):
        export.run(config, tmp_path / "empty")


def test_given_weights_are_exported_without_their_data(tmp_path, capsys):
    """Where classes and normalization are published; a data set of one's own must be there, and a typed path, too."""
    c = small(init_from=str(tmp_path / "w.npz"), **{"data.name": "imagenet2012", "data.image_size": 32})
    model, _ = build.model(c, data.stand_in("imagenet2012", 32))
    importers.save(model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32)), tmp_path / "w.npz")
    assert export.run(c, tmp_path / "none", tmp_path / "net.safetensors")["images"] == 16
    out = capsys.readouterr().out
    assert "the check on them is left out" in out and "images of noise" in out
    net = runtime.load(tmp_path / "net.safetensors", kernels="reference")
    assert net.ids[0] == "n01440764" and len(set(net.ids)) == 1000 and list(net.ids) == sorted(net.ids)
    assert net.labels[::333] == ("tench", "hamster", "mortar", "toilet tissue") and len(set(net.labels)) == 1000
    assert net.resize == 36 and container.read(tmp_path / "net.safetensors").spec["image"]["mean"] == [*IMAGENET_MEAN]
    for name, place in (("folder", ""), ("imagenet2012", str(tmp_path)), ("cifar10", str(tmp_path / "w.npz"))):
        c.data.name, c.data.dir = name, place
        with pytest.raises(BadInput, match="config.data.dir|no prepared|is not CIFAR-10"):
            export.run(c, tmp_path / "none", tmp_path / "other.safetensors")


def test_a_network_that_differs_is_noticed(tmp_path):
    module, variables, source = packed.network("bireal_tiny")
    wrong = jax.tree.map(np.array, variables)
    wrong["params"]["head"]["linear"]["bias"] += 1.0
    path = tmp_path / "net.safetensors"
    export.write(packed.program("bireal_tiny"), path)
    images = np.random.default_rng(0).integers(0, 256, (8, *source.image_shape)).astype(np.uint8)
    assert export.compare(module, variables, source, path, images)["flipped"] == 0
    assert export.compare(module, wrong, source, path, images)["flipped"] == 8


def test_a_file_that_could_not_be_loaded_replaces_none(tmp_path, monkeypatch, capsys):
    config, good = small(), tmp_path / "net.safetensors"
    train.run(config, tmp_path)
    export.run(config, tmp_path)
    before, make = good.read_bytes(), export.program

    def damaged(*arguments):
        made = make(*arguments)
        name = next(name for name in made.tensors if name.endswith("scale"))
        made.tensors[name] = made.tensors[name] * np.float32(np.inf)
        return made

    monkeypatch.setattr(export, "program", damaged)
    for wrong in (lambda: export.run(config, tmp_path), lambda: export.write(damaged(*_written("bireal_tiny")), good)):
        with pytest.raises(BadInput, match="NaN or infinity"):
            wrong()
        assert good.read_bytes() == before and not list(tmp_path.glob("*.partial"))
    monkeypatch.undo()

    def refuse(*_):
        raise BadInput("checked before")

    monkeypatch.setattr(export, "compare", refuse)
    good.write_bytes(b"a good one")
    with pytest.raises(BadInput, match="checked before"):
        export.run(config, tmp_path)
    assert good.read_bytes() == b"a good one"


def _written(name):
    return name, *packed.network(name)


@needs_engine
def test_a_network_that_takes_much_memory_is_noted(capsys):
    net = make_seeds.Builder(64, 64, 1)
    net.add("pad_channels", before=0, after=0)
    net.ops[0].update(after=(1 << 14) - 1, shape=[64, 64, 1 << 14])
    data = container.dump(net.program())
    assert export._loaded(data).memory >= 4 << 26
    assert "note for those who load it: the file: the network needs more than" in capsys.readouterr().out
    with pytest.raises(BadInput, match="no packed network"):
        export._loaded(data[1:])
    assert not capsys.readouterr().out


class Probe(nn.Module):
    """Notes what products are asked for while it is traced."""

    note: object
    outputs: float = 0.0
    dtype: object = jnp.float32
    param_dtype: object = jnp.float32

    def __call__(self, x, train=False, genes=None):
        self.note(jax.config.jax_default_matmul_precision)
        return jnp.full((len(x), 10), self.outputs, x.dtype)


def test_float32_means_all_its_bits(tmp_path):
    """On accelerators products have fewer where nobody asks: the check of an export and evaluation ask."""
    source, images = packed.source((8, 8, 1)), np.zeros((4, 8, 8, 1), np.uint8)
    seen = []
    export.compare(Probe(seen.append), {}, source, packed.written("bireal_tiny"), images)
    assert seen and set(seen) == {"highest"}
    model, variables, source = packed.network("bireal_tiny")
    batch = {"image": images, "label": np.zeros(4, np.int32), "mask": np.ones(4, np.float32)}
    step = evaluate.make_eval_step(model, losses.cross_entropy, source)
    text = str(jax.make_jaxpr(step.part)(jax.tree.map(np.float32, variables), batch))
    asked = re.findall(r"precision=(.*)", text)
    assert asked and all("HIGHEST" in one for one in asked), asked


@needs_engine
def test_what_is_no_number_is_not_close():
    compare = partial(
        export.compare, variables={}, source=packed.source((8, 8, 1)), packed=packed.written("bireal_tiny"),
        images=np.zeros((4, 8, 8, 1), np.uint8),
    )  # fmt: skip
    found = compare(Probe(str, 0.0))
    assert found["flipped"] == 4 and found["difference"] == 0
    with pytest.raises(BadInput, match="the model's outputs are not finite"):
        compare(Probe(str, np.nan))


def test_command_exports_and_describes(tmp_path, capsys):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("import small\n\n\ndef get_config():\n    return small.small()\n")
    for mode in ("train", "export"):
        main.main(["main", f"--config={recipe}", f"--workdir={tmp_path / 'w'}", f"--mode={mode}"])
    command.main([str(tmp_path / "w" / "net.safetensors")])
    printed = capsys.readouterr().out
    main.main(["main", f"--workdir={tmp_path / 'w'}", "--mode=export", f"--out={tmp_path / 'again'}"])
    assert (tmp_path / "again").read_bytes() == (tmp_path / "w" / "net.safetensors").read_bytes(), (
        "the run's own recipe"
    )
    assert "note" not in capsys.readouterr().out
    for arguments, message in (
        ([f"--workdir={tmp_path}", "--mode=eval"], "--config is missing, and there is no run in --workdir"),
        (
            [f"--workdir={tmp_path / 'w'}"],
            "--config is missing; the run in .*/w goes on by the command",
        ),  # training needs it: it may register
        ([f"--workdir={tmp_path / 'w'}", "--mode=eval", "--config.optim.l=1"], "optim.l"),
    ):
        with pytest.raises(BadInput, match=message):
            main.main(["main", *arguments])
    assert "stage1_block1/binary_conv" in printed and "digest" in printed


@pytest.fixture(scope="module")
def cifar(shared, tmp_path_factory):
    """The trained CIFAR-10 network as a packed file, exported by the command, and the archive of its images."""
    folder = tmp_path_factory.mktemp("cifar")
    archive, out = folder / "cifar10.npz", folder / "r20.safetensors"
    subprocess.run([sys.executable, shared / "data" / "unpack.py", "cifar10", archive], check=True)
    weights = shared / "data" / "weights" / "bireal20_cifar10.npz"
    main.main([
        "main", "--config=configs/cifar10_r20.py", f"--config.data.dir={archive}", f"--config.init_from={weights}",
        "--mode=export", f"--out={out}",
    ])  # fmt: skip
    return out, archive, weights


@pytest.mark.slow
@needs_engine
def test_trained_cifar_network_scores_what_its_authors_report(cifar):
    """Imported, exported and run: 83.19 % (83.17 published)."""
    out, archive, _ = cifar
    with np.load(archive) as arrays:
        images, labels = arrays["x_test"], arrays["y_test"].ravel()
    for precision in runtime.PRECISIONS:
        right = runtime.load(out, threads=2, precision=precision)(images).argmax(-1) == labels
        assert abs(100 * right.mean() - 83.19) <= 0.1, precision


@pytest.mark.slow
@needs_engine
def test_trained_network_agrees_with_the_model_on_real_images(cifar, shared, tmp_path):
    """On CIFAR-10's test set, and on photos: 99.9 % the same class; what differs has a sign that rounding flipped."""
    out, archive, weights = cifar
    source = data.build("cifar10", str(archive), 32, 32)
    module, variables = models.build("bireal20", 10), importers.load("bireal20", weights)
    subprocess.run([sys.executable, shared / "data" / "unpack.py", "imagenet_sample", tmp_path / "photos"], check=True)
    files = sorted((tmp_path / "photos").glob("*/*.JPEG"))
    photos = np.stack([np.asarray(Image.open(f).convert("RGB").resize((32, 32))) for f in files])
    for images in (source.eval.images, photos):
        found = export.compare(module, variables, source, out, images)
        assert found["same_top1"] >= 0.999 * len(images)
        assert found["flipped"] < 0.02 * len(images) and found["difference"] < 1e-5
    assert len(photos) == 1000
