"""Networks that come with the package: each is what its row says, by name, in the runtime and as variables."""

import hashlib
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bireal_jax import build, runtime
from bireal_jax.errors import BadInput
from bireal_jax.importers import zoo
from bireal_jax.runtime import __main__ as command
from bireal_jax.runtime import container, named
from bireal_jax.shipping import export, formats

ROOT = Path(__file__).parents[1]
NAMES = tuple(named.rows())
DIGITS = [name for name, row in named.rows().items() if row.data == "digits"]
FIRST = [pytest.param(name, marks=[pytest.mark.slow] if name == "bireal18_cifar10" else []) for name in NAMES]
CIFAR = [name for name, row in named.rows().items() if row.data == "cifar10"]
needs_engine = pytest.mark.skipif(not runtime.available(), reason="needs the compiled engine")


def shapes(row, image_shape):
    from bireal_jax import models

    module = models.build(row.model, 10, jnp.float32, act=row.act, weight="sign")
    return module, jax.eval_shape(lambda key: module.init(key, jnp.zeros((1, *image_shape))), jax.random.key(0))


@pytest.mark.parametrize("name", NAMES)
def test_what_lies_there_is_what_the_table_says(name):
    row, sizes = named.rows()[name], []
    for file in (row.packed, row.weights):
        for path, digest in file.items():
            data = (named.PLACE / path).read_bytes()
            assert hashlib.sha256(data).hexdigest() == digest
            sizes.append(len(data))
    assert max(sizes) <= 5_000_000 and zoo.program(name).spec["model"] == row.model
    assert (ROOT / row.recipe.split()[0].removeprefix("--config=").split(":")[0]).exists()
    assert (ROOT / "experiments" / "logs" / f"{name}.jsonl").exists()
    assert row.licence and row.limits and abs(row.top1 - row.trained_top1) < 0.5


def test_nothing_else_lies_there():
    files = {path for row in named.rows().values() for file in (row.packed, row.weights) for path in file}
    assert {path.name for path in named.PLACE.iterdir()} == files | {"networks.json"}


@pytest.mark.parametrize("name", FIRST)
def test_a_packed_file_turned_back_gives_the_same_arrays_bit_for_bit(name):
    """And so its function: what the export of those variables writes is the file, but for the name of the package."""
    row, program = named.rows()[name], zoo.program(name)
    module, wanted = shapes(row, program.shape(0))
    source = build.pretrained(name)[2].keywords["source"]
    again = export.program(row.model, module, zoo.unpacked(program, wanted), source)
    assert again.spec["ops"] == program.spec["ops"] and set(again.tensors) == set(program.tensors)
    for key, array in program.tensors.items():
        np.testing.assert_array_equal(again.tensors[key], array, key)


def test_a_file_that_does_not_say_all_names_the_networks_that_have_weights(monkeypatch):
    row = named.rows()[CIFAR[0]]
    with pytest.raises(BadInput, match="no operation of the file says what .*nothing/mean is"):
        zoo.unpacked(zoo.program(CIFAR[0]), {"batch_stats": {"nothing": {"mean": jnp.zeros(3)}}})
    program = zoo.program(CIFAR[0])
    program.spec["ops"][1]["op"], program.spec["ops"][1]["path"] = "rprelu", "elsewhere"
    program.tensors["1.shift_in"] = program.tensors["1.slope"] = program.tensors["1.shift_out"] = np.ones(64)
    monkeypatch.setattr(zoo, "program", lambda name: program)
    with pytest.raises(
        BadInput, match=f"cannot be turned back .*\n.*these came with float weights: .*{', '.join(DIGITS)}"
    ):
        zoo.variables(CIFAR[0], shapes(row, (32, 32, 3))[1])


@needs_engine
@pytest.mark.parametrize("name", FIRST)
def test_pretrained_is_what_the_runtime_runs(name):
    model, variables, prepare = build.pretrained(name)
    net = runtime.load(name)
    images = formats.pictures(net.image_shape)
    ours, theirs = np.asarray(model.apply(variables, prepare(images))), net(images)
    close = np.abs(ours - theirs).max(-1) < 1e-4 * np.abs(theirs).max()
    assert np.mean(close) > 0.7  # rounding flips signs
    with pytest.raises(BadInput, match="prepare takes images uint8"):
        prepare(images / 255.0)


@needs_engine
@pytest.mark.parametrize("name", DIGITS)
def test_the_first_command_runs_a_trained_network(name, capsys):
    command.main([name, "--evaluate"])
    drawn, said = capsys.readouterr().out.split("\n\n")
    top1 = named.rows()[name].top1 / 100
    assert "  ..@@##..++##  " in drawn and drawn.endswith("% 6") and f"net {name}  images 359" in said
    assert said.rstrip().endswith(f"published top-1 {100 * top1:.2f} %")
    assert abs(float(said.split()[5]) - 100 * top1) < 5e-3 and said.split()[4:7:2] == ["top-1", "%"]


@needs_engine
@pytest.mark.slow
def test_each_network_of_cifar_10_to_the_digit(shared, tmp_path, capsys):
    data = tmp_path / "cifar10.npz"
    subprocess.run([sys.executable, shared / "data" / "unpack.py", "cifar10", data], check=True)
    for name in CIFAR:
        command.main([name, f"--evaluate={data}", "--threads=2", "--format=jsonl"])
        assert round(100 * json.loads(capsys.readouterr().out)["top1"], 2) == named.rows()[name].top1


@needs_engine
def test_a_name_is_evaluated_on_folders_and_arrays_of_anybody(tmp_path, capsys):
    """Of classes that it knows; what is neither these nor its data set is told in the words of the command."""
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    for folder in ("photos/bird", "photos/dog", "empty"):
        (tmp_path / folder).mkdir(parents=True)
        if folder != "empty":
            Image.fromarray(image).save(tmp_path / folder / "a.png")
    np.savez(tmp_path / "own.npz", images=np.stack([image[:32, :32]] * 3), labels=[0, 1, 2])

    def said(place, status=0):
        try:
            command.main([CIFAR[0], f"--evaluate={tmp_path / place}"])
        except SystemExit as left:
            assert left.code == status
        return "".join(capsys.readouterr()).removeprefix("\n")

    assert " images 2  top-1 " in said("photos") and " images 3  top-1 " in said("own.npz")
    (tmp_path / "photos" / "cow").mkdir()
    wrong = said("photos", 2)
    assert "a folder 'cow', which is no class of the network; its folders: bird, cow, dog\n" in wrong
    assert "classes of the network: airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck\n" in wrong
    for place, message in (
        ("none", f"error: --evaluate={tmp_path / 'none'}: there is no such file or folder\n"),
        (
            "empty",
            "has no photos in folders of classes, CLASS/*.jpg, and it is not cifar10 as\npublished, the archive or",
        ),
    ):
        wrong = said(place, 2)
        assert message in wrong and "config." not in wrong and "FileFormat" not in wrong


def test_list_and_unknown_names(capsys, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as ended:
        command.main(["--list"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and all(name in said for name in NAMES) and "88.16 %" in said
    with pytest.raises(
        BadInput, match=r"unknown file or network 'digit'; did you mean digits\? known: .*bireal20_cifar10"
    ):
        runtime.load("digit")
    with pytest.raises(BadInput, match="unknown file or network 'nothing'"):
        build.pretrained("nothing")
    with pytest.raises(BadInput, match="digits.safetensors cannot be read: No such file"):
        runtime.load("digits.safetensors")
    for arguments, match in (
        (["digit", "--evaluate"], "unknown file or network 'digit'"),
        ([CIFAR[0], "--evaluate"], "is evaluated on images: --evaluate=PLACE, .*\nor the cifar10 archive"),
        ([str(named.PLACE / "digits.safetensors"), "--evaluate"], "is evaluated on images: --evaluate=PLACE"),
    ):
        with pytest.raises(SystemExit):
            command.main(arguments)
        assert re.search(match, capsys.readouterr().err)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()  # as beside a workdir; only a file is meant
    assert runtime.load("digits", kernels="reference").num_classes == 10
    command.main(["digits"])
    assert "bireal_tiny, format 1" in capsys.readouterr().out
    (tmp_path / "digits_react").write_bytes(b"my own")
    with pytest.raises(BadInput, match="digits_react is no packed network"):
        runtime.load("digits_react")


def test_damaged_files_of_the_package(tmp_path, monkeypatch):
    shutil.copytree(named.PLACE, tmp_path / "networks")
    monkeypatch.setattr(named, "PLACE", tmp_path / "networks")
    for file in ("digits.safetensors", "digits.npz"):
        data = bytearray((tmp_path / "networks" / file).read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / "networks" / file).write_bytes(data)
    with pytest.raises(BadInput, match="digits: .*digits.safetensors is damaged.*\ninstall the package again"):
        runtime.load("digits")
    shutil.copy(ROOT / "bireal_jax/runtime/networks/digits.safetensors", tmp_path / "networks")
    with pytest.raises(BadInput, match=r"digits: .*digits.npz is damaged"):
        build.pretrained("digits")
    (tmp_path / "networks" / "digits.safetensors").unlink()
    with pytest.raises(BadInput, match="digits.safetensors cannot be read: No such file"):
        runtime.load("digits")
    for text in ("{", json.dumps({"digits": {"packed": {}}}), "[]"):
        (tmp_path / "networks" / "networks.json").write_text(text)
        named.rows.cache_clear()
        with pytest.raises(BadInput, match="networks.json is damaged or missing"):
            runtime.load("digits")
    named.rows.cache_clear()


def test_the_runtime_finds_its_networks_without_jax():
    code = "import sys; sys.modules['jax'] = sys.modules['flax'] = None\nfrom bireal_jax import runtime\n"
    code += "print(runtime.load('bireal20_cifar10', kernels='reference').labels[:2])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == "('airplane', 'automobile')\n"


def test_the_cards_are_current(request):
    cards = runpy.run_path(str(ROOT / "docs" / "zoo.py"))
    page = (ROOT / "docs" / "zoo.md").read_text()
    assert page == cards["page"](page), "python docs/zoo.py writes the cards anew"


def test_they_are_installed():
    """A wheel and an sdist have what `package_data` names."""
    from setuptools.config.setupcfg import read_configuration

    patterns = read_configuration(ROOT / "setup.cfg")["options"]["package_data"]["bireal_jax"]
    found = {path.name for pattern in patterns for path in (ROOT / "bireal_jax").glob(pattern)}
    assert {path.name for path in named.PLACE.iterdir()} <= found


def test_container_reads_names(tmp_path):
    assert container.read("digits").digest == container.read(named.PLACE / "digits.safetensors").digest
