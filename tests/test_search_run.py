"""Searches in supernets: what is held out, how candidates are scored, the three commands, and what cannot work."""

import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import packed
import pytest
from small import small

from bireal_jax import build, config, data, main, models, runtime
from bireal_jax.data import Source, batching
from bireal_jax.data.normalize import normalize
from bireal_jax.data.source import Arrays
from bireal_jax.errors import BadInput
from bireal_jax.models import arch
from bireal_jax.models.ebn import EBN, GroupSupernet
from bireal_jax.running import checkpoint, described, known, settings
from bireal_jax.search import latency, record, spaces
from bireal_jax.search import run as search
from bireal_jax.shipping import cost, export

GENES = (2, 1, 4, 0, 3, 2)  # of ebn_tiny: 4, 2, 16, 1, 8 and 4 groups


def recipe(**fields):
    """A search of seconds in an EBN supernet."""
    return small(**{
        "model.name": "ebn_tiny_supernet", "data.held_out": 3, "search.max_cost": 0.0075, "search.population": 6,
        "search.generations": 2, "search.mutations": 3, "search.crossovers": 2, "search.bn_batches": 2,
        "search.together": 4, "batch_size": 16, **fields,
    })  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ held out


class Lazy:
    """Examples that are not in memory; a class of 4, one of 40, and one of 3."""

    labels = [0] * 4 + [1] * 40 + [2] * 3

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"image": np.full((2, 2, 3), index, np.uint8), "label": self.labels[index]}

    def label(self, index):
        return self.labels[index]


def test_held_out_examples_are_of_the_training_ones_alone():
    source = data.build("digits", image_size=8)
    split = data.hold_out(source, 20)
    assert np.array_equal(np.bincount(split.eval.labels), [20] * 10)
    both = np.concatenate([split.train.images, split.eval.images])
    assert len(both) == len(source.train) and split.eval.augment is None and split.train.augment is not None
    order = lambda images: sorted(image.tobytes() for image in images)
    assert order(both) == order(source.train.images)
    assert np.array_equal(data.hold_out(source, 20).eval.images, split.eval.images)


def test_a_class_with_few_examples_gives_what_there_is():
    source = data.hold_out(Source(Lazy(), (), dict, (2, 2, 3), 3), 10)
    held, kept = ([e["label"] for e in part] for part in (source.eval, source.train))
    assert held.count(1) == 10 and kept.count(1) == 30 and held.count(0) < 4 and len(held) + len(kept) == 47
    assert not {e["image"][0, 0, 0] for e in source.eval} & {e["image"][0, 0, 0] for e in source.train}
    batch = next(batching.eval_batches(source, 8, devices=1))
    assert batch["label"].shape == (1, 8)
    with pytest.raises(BadInput, match="too few to hold some out"):
        data.hold_out(Source(Arrays(np.zeros((1, 2, 2, 3)), np.zeros(1, int)), (), dict, (2, 2, 3), 1), 10)


# --------------------------------------------------------------------------------------------------------------- EBN


def from_supernet(variables, genes, numbers):
    """The variables of the network with those genes: the diagonal blocks of every 3x3 kernel."""
    params = jax.tree.map(lambda leaf: leaf, variables["params"])
    for i, (gene, options) in enumerate(zip(genes, numbers, strict=True)):
        conv, groups = params[f"block{i + 1}"]["binary_conv1"], options[gene]
        size = conv["latent"].shape[2] // groups
        out = conv["latent"].shape[3] // groups
        blocks = [conv["latent"][:, :, g * size : (g + 1) * size, g * out : (g + 1) * out] for g in range(groups)]
        conv["latent"] = np.concatenate(blocks, -1)
    return variables | {"params": params}


@pytest.mark.parametrize(
    ("dtype", "rounding"), [pytest.param(np.float64, 1e-9, marks=pytest.mark.slow), (np.float32, 1e-4)]
)
def test_a_supernet_under_genes_is_the_network_that_they_name(dtype, rounding, x64):
    """In training and in evaluation, running statistics too; in float32 packed products see the zeros of the mask."""
    net = models.build("ebn_tiny_supernet", 10, dtype)
    assert isinstance(net, GroupSupernet) and net.sizes == models.sizes("ebn_tiny") == (5,) * 6
    variables = jax.tree.map(dtype, packed.drawn(net, (8, 8, 1)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 1)), dtype)
    small_net = models.build("ebn_tiny", 10, dtype, genes=GENES)
    assert isinstance(small_net, EBN)
    cropped = from_supernet(variables, GENES, net.numbers)
    shapes = jax.eval_shape(small_net.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, cropped) == jax.tree.map(jnp.shape, shapes)
    for train_mode in (False, True):
        how = {"train": train_mode, "mutable": ["batch_stats"]}
        theirs, stats = jax.jit(lambda v: small_net.apply(v, x, **how))(cropped)  # noqa: B023
        ours, updated = jax.jit(lambda v, g: net.apply(v, x, genes=g, **how))(variables, jnp.asarray(GENES))  # noqa: B023
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=rounding * np.abs(theirs).max())
        if train_mode:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=rounding), updated, stats)


@pytest.mark.parametrize("name", ["ebn_tiny", "metaprune_mbv1_tiny"])
def test_cost_of_the_space_is_that_of_the_cost_table(name):
    """Counted in two ways: by a formula, and on the op graph of the network."""
    space, rng = spaces.of(name, (8, 8, 1), 10), np.random.default_rng(0)
    assert space.sizes == models.sizes(name)
    genes = tuple(int(g) for g in rng.integers(0, space.sizes))
    module = models.build(name, 10, genes=genes)
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    total = cost.total(cost.rows(module, variables, (8, 8, 1)))
    if name == "ebn_tiny":
        assert (space.bops(genes) * 1e6, space.ops(genes) * 1e6) == pytest.approx((total.bops, total.ops), rel=1e-12)
    else:
        assert space.macs(genes) * 1e6 == pytest.approx(total.flops, rel=1e-12) and total.bops == 0


def test_packed_networks_with_groups_are_the_models(x64, tmp_path):
    """The reference in float64, and the engine: every ±1 sum is exact, so only rounding is left."""
    module = models.build("ebn_tiny", 10, jnp.float64, genes=GENES)
    variables, source = packed.drawn(module, (8, 8, 1)), packed.source((8, 8, 1))
    images = np.random.default_rng(1).integers(0, 256, (8, 8, 8, 1)).astype(np.uint8)
    theirs = np.asarray(jax.jit(module.apply)(variables, normalize(images, source, jnp.float64)))
    made = export.program("ebn_tiny", module, variables, source, dtype=np.float64)
    groups = [op["groups"] for op in made.spec["ops"] if op["op"] == "binary_conv"]
    assert groups == [4, 1, 2, 1, 16, 1, 1, 1, 8, 1, 4, 1]
    normalized = np.asarray(normalize(images, source, jnp.float64))
    ours = made.run(normalized, np.float64)[-1].reshape(8, -1)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())
    export.write(export.program("ebn_tiny", module, variables, source), tmp_path / "net.safetensors")
    for kernels in (None, "portable") if runtime.available() else ("reference",):
        found = runtime.load(tmp_path / "net.safetensors", kernels=kernels)(images)
        np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


# ------------------------------------------------------------------------------------------------------------ scoring


@pytest.fixture(scope="module")
def supernet(tmp_path_factory):
    """The workdir of an EBN supernet, as a training leaves it."""
    place, c = tmp_path_factory.mktemp("supernet"), recipe()
    module, _ = build.model(c, build.source(c))
    drawn = jax.tree.map(np.float32, packed.drawn(module, (8, 8, 1)))
    (place / "config.json").write_text(settings.to_json(c))
    with checkpoint.Checkpoints(place / "stage_0" / "checkpoints") as checkpoints:
        checkpoints.save(1, {"variables": drawn, "rest": {"step": np.int32(1)}}, None)
        checkpoints.wait()
    return place


def make_scorer(supernet, **fields):
    c = recipe(init_from=str(supernet), **fields)
    source = build.source(c)
    module, shapes = build.model(c, source)
    return search.Scorer(module, known.best_variables(supernet, shapes, newest=True)[0], source, c)


def drawn_candidates(count):
    rng = np.random.default_rng(0)
    return [tuple(int(g) for g in rng.integers(0, 5, 6)) for _ in range(count)]


def test_twenty_candidates_share_one_compilation(supernet):
    """Four at a time on as many devices; a group that is not full, too."""
    candidates, scorer = drawn_candidates(20), make_scorer(supernet)
    scores = [score for i in range(0, 18, 4) for score in scorer(candidates[i : min(i + 4, 18)])] + scorer(
        candidates[18:]
    )
    assert scorer.traced == 2 and len(scores) == 20 and scorer.count == 4
    assert len(set(scores)) > 3, "the supernet tells networks from another"


@pytest.mark.slow
def test_candidates_score_as_by_themselves(supernet):
    """Against batch norm calibrated and top-1 counted by hand; one image of 30 may fall to the other side."""
    candidates = drawn_candidates(2)
    scorer = make_scorer(supernet)
    found = [by_hand(scorer, genes) for genes in candidates]
    assert found == pytest.approx(scorer(candidates), abs=3.4)


def by_hand(scorer, genes):
    """Top-1 with the mean of what the two calibration batches give, weighted as a moving average weights them."""
    source, net = scorer.source, models.build("ebn_tiny_supernet", 10)
    batches = itertools.islice(batching.train_batches(source, 16, 0, 0, devices=1), 2)
    images = [normalize(batch["image"][0], source, jnp.float32) for batch in batches]
    held_out = normalize(source.eval.images, source, jnp.float32)

    @jax.jit
    def logits(params, zeros, genes):
        def of_batch(images):
            variables = {"params": params, "batch_stats": zeros}
            _, updated = net.apply(variables, images, train=True, genes=genes, mutable=["batch_stats"])
            return jax.tree.map(lambda leaf: leaf / 0.1, updated["batch_stats"])

        stats = jax.tree.map(lambda a, b: (0.09 * a + 0.1 * b) / 0.19, *map(of_batch, images))
        return net.apply({"params": params, "batch_stats": stats}, held_out, genes=genes)

    found = logits(scorer.params, scorer.zeros, jnp.asarray(genes))
    return 100 * np.mean(np.argmax(found, -1) == source.eval.labels)


def test_killed_and_resumed_search_is_the_straight_one(supernet, tmp_path, monkeypatch, capsys):
    """Scores are a function of the genes here: what is tested is that they reach the files, and none is asked twice."""
    c, calls = recipe(init_from=str(supernet), **{"search.together": 3}), []

    def score(self, group):
        calls.append(list(group))
        if len(calls) == dies_at:
            raise KeyboardInterrupt
        return [float(np.random.default_rng(genes).uniform(10, 90)) for genes in group]

    monkeypatch.setattr(search.Scorer, "__call__", score)
    dies_at = 0
    straight, whole = search.run(c, tmp_path / "straight"), [*calls]
    calls.clear()
    dies_at = 3
    with pytest.raises(KeyboardInterrupt):
        search.run(c, tmp_path / "killed")
    said = capsys.readouterr().out
    assert f"the training in {supernet} has not ended" in said and "resuming" not in said
    assert search.run(c, tmp_path / "killed") == straight
    assert "resuming: 6 candidates were scored before" in capsys.readouterr().out
    assert calls == [*whole[:3], *whole[2:]] and [len(group) for group in whole] == [3, 3, 3, 3]
    for name in ("search_state.json", "candidates.csv", "best_arch.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert (tmp_path / "killed" / "candidates.png").exists()
    found = record.load(tmp_path / "killed" / record.STATE)
    assert len(found) == 12 and max(candidate.cost for candidate in found.values()) <= 0.0075
    with pytest.raises(BadInput, match="belongs to another config: seed 0 -> 1"):
        search.run(recipe(init_from=str(supernet), seed=1, **{"search.together": 3}), tmp_path / "killed")


def test_an_architecture_is_built_and_its_file_is_read_once(tmp_path):
    path = tmp_path / "best_arch.json"
    path.write_text(json.dumps({"space": "ebn_tiny", "genes": GENES}))
    text = f"ebn_tiny {' '.join(map(str, GENES))}"
    assert arch.inline(str(path)) == arch.inline(text) == text and arch.inline("") == ""
    for found in (str(path), text):
        c = small(**{"model.name": "ebn_tiny", "arch": found})
        assert build.model(c, build.source(c))[0].genes == GENES


# ---------------------------------------------------------------------------------------------------- what cannot work


def test_mistakes(supernet, tmp_path):
    for message, fields in (
        ("ebn_tiny is no supernet; known: ebn_supernet, ebn_tiny_supernet", {"model.name": "ebn_tiny"}),
        ("held_out is 0, so candidates would be chosen on the evaluation set", {"data.held_out": 0}),
        ("trained with config.data.held_out=3, not 4", {"data.held_out": 4}),
        ("no supernet at config.init_from='nowhere'", {"init_from": "nowhere"}),
        ("max_cost is 0; set it to the budget", {"search.max_cost": 0.0}),
        ("budget 0.001 is below the smallest network, which costs 0.004872", {"search.max_cost": 0.001}),
        ("lower limit 0.02 is above the largest", {"search.max_cost": 1.0, "search.min_cost": 0.02}),
        ("unknown cost 'flops'; did you mean ops. known: bops, ops", {"search.cost": "flops"}),
        ("unknown algorithm 'random'; known: evolve", {"search.algorithm": "random"}),
        ("no latency table at nowhere.yaml", {"search.latency": "nowhere.yaml"}),
    ):
        with pytest.raises(BadInput, match=message):
            search.run(recipe(**({"init_from": str(supernet)} | fields)), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_search_takes_what_the_supernet_was_trained_with(supernet, tmp_path, monkeypatch, capsys):
    """Its estimators and its normalization; other classes and sizes are refused."""
    place = tmp_path / "supernet"
    shutil.copytree(supernet, place)
    stored = json.loads((place / "config.json").read_text())
    stored["model"]["act"] = "relu"
    data_json = {"stages": [described.row(build.source(recipe())) | {"mean": [0.25], "std": [0.125]}]}
    taken = []
    monkeypatch.setattr(search, "Scorer", lambda module, _, source, c: taken.append((module, source, c)) or 1 / 0)
    for name, content in (("config.json", stored), ("data.json", data_json)):
        (place / name).write_text(json.dumps(content))
    with pytest.raises(ZeroDivisionError):
        search.run(recipe(init_from=str(place)), tmp_path / "w")
    module, source, c = taken[0]
    assert "note: the supernet's counts: model.act approx_sign -> relu\n" in capsys.readouterr().out
    assert (source.mean, source.std, c.model.act, module.activation(2.0)) == ((0.25,), (0.125,), "relu", 2.0)
    data_json["stages"][0]["labels"].reverse()
    (place / "data.json").write_text(json.dumps(data_json))
    with pytest.raises(BadInput, match="the supernet in .* other classes .*: class 0 is '0', not '9'"):
        search.run(recipe(init_from=str(place)), tmp_path / "w")
    stored["data"]["image_size"] = 16
    (place / "config.json").write_text(json.dumps(stored))
    with pytest.raises(BadInput, match="trained with config.data.image_size=16, not 8"):
        search.run(recipe(init_from=str(place)), tmp_path / "w")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ebn 1 1", "is of the space 'ebn', the model takes one of 'ebn_tiny'"),
        ("ebn_tiny 1 1", "has 2 genes, ebn_tiny has 6"),
        ("ebn_tiny 0 0 0 0 0 5", "gene 5 is 5, it must be in 0..4"),
        ("nowhere.json", "no architecture at nowhere.json: .*; a search writes best_arch.json"),
    ],
)
def test_architectures_that_do_not_fit(text, message):
    c = small(**{"model.name": "ebn_tiny", "arch": text})
    with pytest.raises(BadInput, match=message):
        build.model(c, build.source(c))
    if "nowhere" not in text:
        with pytest.raises(
            BadInput, match=r"that genes name 'bireal_tiny'; did you mean ebn_tiny\? known: ebn, ebn_tiny"
        ):
            build.model(small(arch=text), build.source(c))


def test_command_takes_an_architecture(tmp_path, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    path = tmp_path / "best_arch.json"
    path.write_text(json.dumps({"space": "ebn_tiny", "genes": [0] * 6}))
    parsed, workdir, mode = main.parse(
        ["main", "--config=configs/ebn_retrain.py:digits", f"--config.arch={path}", "--mode=cost"]
    )
    assert parsed.arch == "ebn_tiny 0 0 0 0 0 0" and (str(workdir), mode) == ("runs/ebn_retrain_digits", "cost")
    with pytest.raises(BadInput, match="no architecture at runs/ebn_search_digits/best_arch.json"):
        main.parse(["main", "--config=configs/ebn_retrain.py:digits"])


@pytest.mark.parametrize("variant", ["mbv1", "mbv2", "r50", "digits"])
def test_recipes_of_metapruning_follow_from_one_another(variant, monkeypatch, request):
    """Every variant: valid, the same network, and each step looks where the one before it writes."""
    monkeypatch.chdir(request.config.rootpath)
    files = [f"configs/metaprune_{step}.py" for step in ("train", "search", "retrain")]
    names = {"train": "_supernet", "search": "_supernet", "retrain": ""}
    monkeypatch.setattr(arch, "inline", lambda text: text)
    parsed = [main.parse(["main", f"--config={file}:{variant}"])[:2] for file in files]
    for (c, _), ending in zip(parsed, names.values(), strict=True):
        config.validate(c)
        assert c.model.name == f"metaprune_{'mbv1_tiny' if variant == 'digits' else variant}{ending}"
        assert c.model.name in models.MODELS | models.SUPERNETS
    (first, place), (second, found), (third, _) = parsed
    assert second.init_from == str(place) and third.arch == str(found / "best_arch.json")
    assert first.data.held_out == second.data.held_out > 0 == third.data.held_out


# ------------------------------------------------------------------------------------------------------------- latency


@pytest.mark.parametrize("name", ["ebn_tiny", "metaprune_mbv1_tiny"])
def test_a_table_of_latencies_is_a_cost(name, tmp_path):
    space, rng = spaces.of(name, (8, 8, 1), 10), np.random.default_rng(0)
    table = {op: i + 1 for i, op in enumerate(sorted(space.all_operations()))}
    path = tmp_path / "table.yaml"
    path.write_text("".join(f"{op}: {value}\n" for op, value in table.items()))
    count = latency.cost(space, path)
    for _ in range(20):
        genes = tuple(int(g) for g in rng.integers(0, space.sizes))
        operations = space.operations(space.values(genes))
        assert set(operations) <= set(table) and count(genes) == sum(table[op] for op in operations)
    used = {op for g in range(space.sizes[0]) for op in space.operations(space.values((g,) * len(space.sizes)))}
    missing = sorted(used)[0]
    path.write_text("".join(f"{op}: {value}\n" for op, value in table.items() if op != missing))
    with pytest.raises(BadInput, match=f"lacks 1 of the {len(table):,} operations of the space, '{missing}'"):
        latency.cost(space, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dense 64 10: fast", "latency of 'dense 64 10' is 'fast'"), ("dense 64 10: -1", "is -1; it must be a number"),
        ("dense 64 10: .nan", "is nan"), ("- a", "OPERATION: LATENCY"), ("a: [", "is no YAML"),
    ],
)  # fmt: skip
def test_broken_tables(tmp_path, text, message):
    path = tmp_path / "table.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        latency.load(path)


@pytest.mark.slow
@pytest.mark.campaign
def test_the_three_commands_on_digits(tmp_path, monkeypatch, request, optimized, capsys):
    """Short; then cost, and the packed file gives the classes that the network gives."""
    monkeypatch.chdir(request.config.rootpath)
    short = ["--config.total_epochs=4.0"]
    sizes = {"generations": 1, "population": 4, "bn_batches": 4, "together": 2}
    little = [f"--config.search.{field}={value}" for field, value in sizes.items()]
    places = {step: tmp_path / step for step in ("supernet", "search", "retrain")}

    def command(step, *arguments):
        main.main(["main", f"--config=configs/ebn_{step}.py:digits", f"--workdir={places[step]}", *arguments])

    command("supernet", *short)
    command("search", *little, f"--config.init_from={places['supernet']}", "--mode=search")
    found = [*short, f"--config.arch={places['search'] / 'best_arch.json'}"]
    command("retrain", *found)
    command("retrain", *found, "--mode=export")
    assert json.loads((places["retrain"] / "result.json").read_text())["top1"] > 30
    assert "256 times the same class" in capsys.readouterr().out
    command("retrain", *found, "--mode=cost")
    assert "FLOPs + BOPs / 64" in capsys.readouterr().out
