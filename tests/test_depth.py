"""Depth estimation: metrics and losses against numpy, image-and-depth pairs, the network, the way from end to end."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import packed
import pytest
from PIL import Image

from bireal_jax import build, config, data, main, models, runtime
from bireal_jax.binary import losses
from bireal_jax.binary.pool import nearest, upsample
from bireal_jax.data import batching, depth
from bireal_jax.errors import BadInput
from bireal_jax.running import adoption, metrics
from bireal_jax.runtime import container
from bireal_jax.shipping import export
from bireal_jax.training import optim, train
from experiments.depth import render


def recipe(folder, **fields):
    c = config.default()
    c.update_from_flattened_dict({
        "model.name": "react_tiny", "model.decoder": "up_projection", "data.name": "depth_folder",
        "data.dir": str(folder), "data.image_size": 32, "data.depth.zoom": 1.0, "batch_size": 16, "total_steps": 40,
        "label_smoothing": 0.0, "loss": "l1", "optim.lr": 2e-2, "log_steps": 20, "eval_steps": 20, **fields,
    })  # fmt: skip
    return c


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms")
    render.write(folder, train=96, val=20, size=32)
    return folder


# ------------------------------------------------------------------------------------------------------------ scores


def by_hand(maps, labels, mask, low, high):
    """The metrics in plain numpy, an image and a pixel at a time."""
    rows = []
    for d, y, m in zip(maps, labels, mask, strict=True):
        pixels = []
        for i in range(y.shape[0]):
            for j in range(y.shape[1]):
                at = d[int((i + 0.5) * d.shape[0] / y.shape[0]), int((j + 0.5) * d.shape[1] / y.shape[1])]
                if y[i, j] > 0:
                    pixels.append((min(max(at, low), high), y[i, j]))
        if m and pixels:
            p, t = np.array(pixels).T
            ratio = np.maximum(p / t, t / p)
            rows.append([
                np.sqrt(np.mean((p - t) ** 2)), np.mean(np.abs(p - t) / t), np.mean(np.abs(np.log10(p / t))),
                *(100 * np.mean(ratio < 1.25**k) for k in (1, 2, 3)),
            ])  # fmt: skip
    return np.mean(rows, 0)


@pytest.mark.parametrize(("small", "large"), [((4, 6), (4, 6)), ((4, 6), (8, 12)), ((5, 3), (7, 11)), ((8, 8), (3, 5))])
def test_metrics_against_numpy(small, large, x64):
    """Invalid pixels, an image without any, a padded row of nonsense, maps of another size, values out of range."""
    rng = np.random.default_rng(0)
    maps, labels = rng.uniform(-1, 12, (6, *small, 1)), rng.uniform(0.5, 9.5, (6, *large))
    labels[rng.random(labels.shape) < 0.3] = 0
    labels[2] = 0
    maps[5], mask = np.nan, np.array([1, 1, 1, 1, 1, 0], bool)
    task = metrics.task((1e-3, 10.0))
    totals = task.sums(
        jnp.asarray(maps), jnp.asarray(labels), jnp.asarray([1.0, 2, 9, 3, 4, np.nan]), jnp.asarray(mask)
    )
    assert set(totals) == set(task.names) and (totals["scored"], totals["seen"]) == (4, 5)
    found = task.means(totals)
    names = ("rmse", "abs_rel", "log10", "delta1", "delta2", "delta3")
    expected = by_hand(maps[..., 0], labels, mask, 1e-3, 10.0)
    np.testing.assert_allclose([found[n] for n in names], expected, rtol=1e-12)
    assert found["loss"] == 2.5 and 0 < expected[3] < 100


def test_no_depth_at_all_is_an_error_and_lower_rmse_is_better():
    task = metrics.task((1e-3, 10.0))
    totals = task.sums(jnp.ones((2, 2, 2, 1)), jnp.zeros((2, 2, 2)), jnp.zeros(2), jnp.ones(2, bool))
    with pytest.raises(BadInput, match="none of 2 images has a pixel with depth"):
        task.means(totals)
    assert metrics.score({"rmse": 0.5}) > metrics.score({"rmse": 0.6})
    assert metrics.score({"top1": 60.0}) > metrics.score({"top1": 50.0})


def test_losses_against_numpy(x64):
    rng = np.random.default_rng(1)
    maps, labels = rng.normal(3, 1, (3, 4, 4, 1)), rng.uniform(1, 5, (3, 4, 4))
    labels[0, :2], labels[1] = 0, 0
    l1, berhu = [], []
    for d, y in zip(maps[..., 0], labels, strict=True):
        r = np.abs(d - y)[y > 0]
        c = r.max(initial=0) / 5
        l1.append(r.mean() if r.size else 0)
        berhu.append(np.mean([x if x <= c else (x * x + c * c) / (2 * c) for x in r]) if r.size else 0)
    np.testing.assert_allclose(losses.l1(jnp.asarray(maps), jnp.asarray(labels)), l1, rtol=1e-12)
    np.testing.assert_allclose(losses.berhu(jnp.asarray(maps), jnp.asarray(labels)), berhu, rtol=1e-12)
    for loss in (losses.l1, losses.berhu):
        gradient = jax.grad(lambda d, loss=loss: loss(d, jnp.asarray(labels)).sum())(jnp.asarray(maps))[..., 0]
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(np.asarray(gradient) != 0, labels > 0)


def test_upsampling():
    x = np.arange(12.0).reshape(1, 2, 3, 2)
    np.testing.assert_array_equal(
        upsample(jnp.asarray(x), 3), np.kron(x[0].transpose(2, 0, 1), np.ones((3, 3))).transpose(1, 2, 0)[None]
    )
    np.testing.assert_array_equal(nearest(jnp.arange(4)[None, None], 1, 2)[0, 0], [1, 3])


# ------------------------------------------------------------------------------------------------------------- pairs


def pair(folder, name, metres, unit=0.001, image=None):
    """An image whose brightness is its depth, and the depth."""
    folder.mkdir(parents=True, exist_ok=True)
    grey = np.clip(np.nan_to_num(metres) * 40, 0, 255).astype(np.uint8) if image is None else image
    Image.fromarray(np.repeat(grey[..., None], 3, -1)).save(folder / f"{name}.png")
    if unit == 1.0:
        return np.save(folder / f"{name}_depth.npy", metres.astype(np.float32))
    Image.fromarray(np.round(metres / unit).astype(np.uint16)).save(folder / f"{name}_depth.png")


def ramp(h=40, w=60):
    return np.linspace(1, 6, w)[None] + np.linspace(0, 0.3, h)[:, None]


def test_augmentation_moves_image_and_depth_together(tmp_path):
    """Brightness says depth before; after a zoom z depth is divided by z, and nothing else comes between them."""
    for split in ("train", "val"):
        pair(tmp_path / split, "a", ramp())
    source = data.build("depth_folder", str(tmp_path), 32)
    seen = set()
    for seed in range(20):
        made = source.augment(source.train[0], np.random.default_rng(seed))
        zoom = np.random.default_rng(seed).uniform(1, 1.5)
        inner = np.s_[2:-2, 2:-2]
        np.testing.assert_allclose(made["image"][inner][..., 0] / 40, made["label"][inner] * zoom, atol=0.12)
        seen.add(bool(made["label"][0, 0] > made["label"][0, -1]))
    assert seen == {True, False}, "mirrored sometimes"
    made = source.prepare(source.eval[0])
    assert made["image"].shape == (32, 32, 3) and made["label"].shape == (40, 60) == source.label_shape


def test_units_files_and_crop_give_the_same_map(tmp_path):
    metres = ramp()
    metres[:5] = np.nan
    for unit, name in ((1.0, "m"), (0.001, "mm")):
        for split in ("train", "val"):
            pair(tmp_path / name / split, "a", np.nan_to_num(metres) if unit != 1.0 else metres, unit)
    crop = {"crop": (2, 30, 10, 50), "high": 5.0}
    maps = [
        source.prepare(source.eval[0])["label"]
        for source in (
            data.build("depth_folder", str(tmp_path / n), 16, rules={"unit": u, **crop})
            for u, n in ((1.0, "m"), (0.001, "mm"))
        )
    ]
    np.testing.assert_allclose(maps[0], maps[1], atol=6e-4)
    expected = np.where(np.nan_to_num(metres) < 5, np.nan_to_num(metres), 0)[2:30, 10:50]
    np.testing.assert_allclose(maps[0], expected, rtol=1e-6)


def test_batches_have_maps_as_labels(rooms):
    source = data.build("depth_folder", str(rooms), 32)
    batch = next(batching.train_batches(source, 8, 0, 0, devices=2))
    assert batch["image"].shape == (2, 4, 32, 32, 3) and batch["label"].shape == (2, 4, 32, 32)
    assert batch["label"].dtype == np.float32 and 0.01 < (batch["label"] == 0).mean() < 0.04
    last = list(batching.eval_batches(source, 16, devices=2))[-1]
    assert last["mask"].sum() == 4 and (last["label"].reshape(16, -1)[~last["mask"].ravel()] == 0).all()


def test_bad_pairs(tmp_path):
    def refused(message, change, **rules):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for split in ("train", "val"):
            for name in ("a", "b"):
                pair(folder / split, name, ramp(), rules.get("unit_of_file", 0.001))
        change(folder)
        rules.pop("unit_of_file", None)
        with pytest.raises(BadInput, match="(?s)" + message):
            source = data.build("depth_folder", str(folder), 32, rules=rules)
            list(batching.eval_batches(source, 4, devices=1))

    nothing = lambda folder: None
    refused("half of the depth is beyond .*unit=1 m: for files in millimetres that is 0.001", nothing, unit=1.0)
    refused("unit=0.001 m: .* in metres 1.0", nothing, unit_of_file=1.0)
    refused(
        "image is 40x60, its depth 20x30",
        lambda f: pair(f / "val", "a", ramp(20, 30), image=np.zeros((40, 60), np.uint8)),
    )
    refused(
        "depth map is 20x30, that of|depth map is 20x30, of the first", lambda f: pair(f / "val", "b", ramp(20, 30))
    )
    refused(
        "mode L; wanted one grey channel of 16 bits", lambda f: Image.new("L", (60, 40)).save(f / "val" / "a_depth.png")
    )
    refused("a has no depth map", lambda f: (f / "val" / "a_depth.png").unlink())
    refused("b has no image", lambda f: (f / "train" / "b.png").unlink())
    refused("cannot be decoded", lambda f: (f / "val" / "a_depth.png").write_bytes(b"no picture"))
    refused(
        "a has two depth maps, a_depth.npy and a_depth.png",
        lambda f: np.save(f / "val" / "a_depth.npy", ramp().astype(np.float32)),
    )
    refused(
        "b has two images, b.jpg and b.png",
        lambda f: Image.new("RGB", (60, 40)).save(f / "train" / "b.jpg"),
    )
    refused("crop=.* is beyond", nothing, crop=(0, 41, 0, 60))
    with pytest.raises(BadInput, match="python -m experiments.depth.render"):
        data.build("depth_folder", str(tmp_path / "none"), 32)
    with pytest.raises(BadInput, match="no prepared nyu_depth_v2"):
        data.build("nyu_depth_v2", str(tmp_path), 32)


def test_what_is_no_pair_is_left_out_and_named(tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            pair(tmp_path / split, name, ramp())
        for name in (".DS_Store", "._a.png", "._a_depth.png", "a_depth.txt"):
            (tmp_path / split / name).write_bytes(b"junk")
        (tmp_path / split / ".ipynb_checkpoints").mkdir()
    Image.new("L", (60, 40)).save(tmp_path / "val" / "a_depth.jpg")
    (tmp_path / "train" / "c.webp").write_bytes(b"")
    source = data.build("depth_folder", str(tmp_path), 32)
    assert len(source.train) == len(source.eval) == 2
    assert source.left_out == (str(tmp_path / "train" / "c.webp"), str(tmp_path / "val" / "a_depth.jpg"))


def test_recipes_that_do_not_fit(rooms):
    for message, fields in (
        ("decoder is ''; depth_folder needs a map: .*up_projection", {"model.decoder": ""}),
        ("decoder is 'up_projection'; digits needs classes", {"data.name": "digits", "data.image_size": 8}),
        ("loss is 'cross_entropy'; .* berhu, l1", {"loss": "cross_entropy"}),
        ("label_smoothing is 0.1; the loss 'l1' has no labels to smooth", {"label_smoothing": 0.1}),
        ("unknown decoder 'unpool'", {"model.decoder": "unpool"}),
    ):  # fmt: skip
        c = recipe(rooms, **fields)
        with pytest.raises(BadInput, match="(?s)" + message):
            build.model(c, build.source(c))


# ------------------------------------------------------------------------------------------------------------ network


def test_a_network_without_maps_is_no_encoder():
    with pytest.raises(BadInput, match="xnor_alexnet is no encoder of maps; known: binarynet, bireal152"):
        models.build("xnor_alexnet", 1, decoder="up_projection")


@pytest.mark.parametrize("name", ["bireal_tiny", "react_tiny", "vgg_small", "bireal18", "resnet_tiny", "react_b"])
def test_any_backbone_is_an_encoder(name):
    """Its parameters but for the head, below "encoder"; a map of half of the image's size; two convolutions a block."""
    plain, module = models.build(name, 10), models.build(name, 1, decoder="up_projection")
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    bare, whole = (jax.eval_shape(m.init, jax.random.key(0), image)["params"] for m in (plain, module))
    assert jax.tree.map(jnp.shape, {k: v for k, v in bare.items() if k != "head"}) == jax.tree.map(
        jnp.shape, whole["encoder"]
    )
    ups = max(1, int(np.log2(plain.total_stride)) - 1)
    assert len(optim.latents(whole)) - len(optim.latents(bare)) == 2 * ups
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    side = 64 if plain.total_stride == 2 else 32
    assert jax.eval_shape(module.apply, variables, image).shape == (1, side, side, 1)


@pytest.mark.parametrize(("act", "weight"), [("approx_sign", "released"), ("relu", "real")])
def test_packed_map_network_is_the_model(act, weight, x64, tmp_path):
    """The reference in float64 to 1e-9, the engine in float32; upsampling bit for bit."""
    module = models.build("react_tiny", 2, jnp.float64, act=act, weight=weight, decoder="up_projection")
    variables, source = packed.drawn(module, (16, 16, 3)), packed.source((16, 16, 3))
    source = depth.Source((), (), dict, (16, 16, 3), 2, (0.4,) * 3, (0.3,) * 3, depth_range=(1e-3, 10.0))
    images = np.random.default_rng(1).normal(size=(3, 16, 16, 3))
    theirs = np.asarray(jax.jit(module.apply)(variables, images))
    ours = export.program("depth", module, variables, source, dtype=np.float64).run(images, np.float64)[-1]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())
    path = tmp_path / "net.safetensors"
    made = export.program("depth", module, variables, source)
    export.write(made, path)
    slow = runtime.load(path, kernels="reference")
    assert slow.output_shape == (8, 8, 2) and slow(images).shape == (3, 8, 8, 2)
    if runtime.available():
        net = runtime.load(path, threads=2)
        np.testing.assert_allclose(net(images), theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
        tensors = runtime.load(path, unfused=True, max_memory=1 << 28).tensors(images[0])
        ups = [(i, op) for i, op in enumerate(container.read(path).spec["ops"]) if op["op"] == "upsample"]
        assert len(ups) == 2
        for i, op in ups:
            np.testing.assert_array_equal(tensors[i + 1], tensors[op["inputs"][0]].repeat(2, 0).repeat(2, 1))


# --------------------------------------------------------------------------------------------------------- end to end


def constant(maps, held_out):
    """RMSE on held-out maps of the mean depth of `maps`."""
    mean = np.mean(np.concatenate([m[m > 0] for m in maps]))
    return np.mean([np.sqrt(np.mean((m[m > 0] - mean) ** 2)) for m in held_out])


@pytest.mark.slow
def test_training_beats_the_mean_predictor_and_the_way_goes_on(rooms, tmp_path, capsys):
    """RMSE on held-out rooms at most 0.75 of that of the mean of the training maps; then pictures, file, run again."""
    c = recipe(rooms)
    result = train.run(c, tmp_path / "w")
    printed = capsys.readouterr().out
    assert "96 training and 20 test images, depth maps" in printed and "\ntest RMSE " in printed
    source = build.source(c)
    maps = [source.prepare(source.train[i])["label"] for i in range(len(source.train))]
    held_out = [source.prepare(source.eval[i])["label"] for i in range(len(source.eval))]
    said = constant(maps, held_out)
    assert result["best_rmse"] <= result["rmse"] and result["rmse"] < 0.75 * said, (result, said)
    scores = train.run_eval(c, tmp_path / "w")
    assert scores["rmse"] == pytest.approx(result["best_rmse"], rel=1e-5)
    picture = np.asarray(Image.open(tmp_path / "w" / "depth" / "0.png"))
    assert picture.shape == (32, 96, 3) and len(list((tmp_path / "w" / "depth").iterdir())) == train.PICTURES
    np.testing.assert_array_equal((picture[:, 32:64] == 0).all(-1), held_out[0] == 0)
    found = export.run(c, tmp_path / "w")
    assert found["difference"] < export.CLOSE and "same_top1" not in found
    assert main.parse and json.loads((tmp_path / "w" / "data.json").read_text())["stages"][0]["depth_range"]
    module, variables, prepare = build.trained(tmp_path / "w")
    image = source.prepare(source.eval[0])["image"][None]
    kernels = None if runtime.available() else "reference"
    ours = runtime.load(tmp_path / "w" / "net.safetensors", kernels=kernels)(image)
    np.testing.assert_allclose(ours, module.apply(variables, prepare(image)), atol=2e-2)


@pytest.mark.slow
def test_a_classifier_becomes_the_encoder(tmp_path, rooms, capsys):
    """Every leaf of its body, unchanged; its head is named as left; what differs is refused with both sides."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            place = tmp_path / "classes" / split / name
            place.mkdir(parents=True)
            for i in range(8):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place / f"{i}.png")
    short = {"total_steps": 1, "log_steps": 1}
    classes = recipe(tmp_path / "classes", **{
        "data.name": "folder", "data.resize": 32, "model.decoder": "", "loss": "cross_entropy", **short})  # fmt: skip
    train.run(classes, tmp_path / "c")
    body = build.trained(tmp_path / "c")[1]
    c = recipe(rooms, init_from=str(tmp_path / "c"), **short)
    source = build.source(c)
    _, shapes = build.model(c, source)
    fresh = lambda: jax.tree.map(lambda s: np.full(s.shape, 7, s.dtype), shapes)
    capsys.readouterr()
    found = build.variables(c, shapes, fresh)
    assert "left there: 2 of its head; drawn anew: 22, the decoder" in capsys.readouterr().out
    for kind in ("params", "batch_stats"):
        kept = {k: v for k, v in body[kind].items() if k != "head"}
        jax.tree.map(np.testing.assert_array_equal, found[kind]["encoder"], kept)
        assert all((leaf == 7).all() for k, v in found[kind].items() if k != "encoder" for leaf in jax.tree.leaves(v))
    with pytest.raises(BadInput, match="(?s)is a classifier; .* none to evaluate"):
        build.variables(c, shapes)
    with pytest.raises(BadInput, match="its body, is of another model: .*\n.*stored .*, wanted "):
        adoption.adopt({"params": {"stem_conv": body["params"]["stem_conv"]}, "batch_stats": {}}, shapes, "x", fresh)
    train.run(c, tmp_path / "d")


@pytest.mark.slow
def test_real_pairs_are_read_and_learned(shared, tmp_path):
    """The five RGB-D frames of ../shared: their depth in metres; a few steps on quarters fit it."""
    frames = sorted((shared / "data" / "depth").glob("0*.jpg"))
    if not frames:
        pytest.skip("needs ../shared/data/depth")
    for split in ("train", "val"):
        (tmp_path / "d" / split).mkdir(parents=True)
    for path in (p for jpg in frames for p in (jpg, jpg.with_name(f"{jpg.stem}_depth.png"))):
        quarter = Image.open(path).resize((160, 120), Image.Resampling.NEAREST)
        for copy in "abcd":  # a batch has 16 images, and no two of one file
            quarter.save(tmp_path / "d" / "train" / f"{copy}{path.name}")
        (tmp_path / "d" / "val" / path.name).write_bytes(path.read_bytes())
    c = recipe(tmp_path / "d", eval_steps=40)
    source = build.source(c)
    labels = [source.prepare(source.eval[i])["label"] for i in range(len(frames))]
    assert source.label_shape == (480, 640) and labels[0][labels[0] > 0].min() > 0.9 and labels[0].max() < 2.71
    with pytest.raises(BadInput, match="(?s)half of the depth is beyond .*unit=1 m"):
        build.source(recipe(tmp_path / "d", **{"data.depth.unit": 1.0}))
    result = train.run(c, tmp_path / "w")
    assert result["rmse"] < 0.9 * constant(labels, labels), (result, constant(labels, labels))


def test_nyu_through_tfds(tmp_path):
    """The features of the stock builder, written in array_record with three examples."""
    import tensorflow_datasets as tfds

    class NyuDepthV2(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name, VERSION, pkg_dir_path = "nyu_depth_v2", tfds.core.Version("0.0.1"), tmp_path

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(480, 640, 3)),
                "depth": tfds.features.Tensor(shape=(480, 640), dtype=np.float16),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(2), "validation": self._generate_examples(1)}

        def _generate_examples(self, count):
            for i in range(count):
                image, metres = render.scene(np.random.default_rng(i), 640)
                out = io.BytesIO()
                Image.fromarray(image[:480]).save(out, "PNG")
                out.seek(0)
                yield i, {"image": out, "depth": metres[:480].astype(np.float16)}

    NyuDepthV2(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    source = data.build("nyu_depth_v2", str(tmp_path), 32, rules={"unit": 1.0, "crop": (54, 480, 41, 601)})
    assert (len(source.train), len(source.eval), source.label_shape) == (2, 1, (426, 560))
    made = source.prepare(source.eval[0])
    expected = render.scene(np.random.default_rng(0), 640)[1][54:480, 41:601]
    np.testing.assert_allclose(made["label"], expected, rtol=1e-3)
    assert source.augment(source.train[1], np.random.default_rng(0))["label"].shape == (32, 32)
    with pytest.raises(BadInput, match="unit=0.001"):
        data.build("nyu_depth_v2", str(tmp_path), 32)
