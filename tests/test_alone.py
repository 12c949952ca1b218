"""What is installed from wheels and sdists: the runtime alone, and the whole with its recipes."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from bireal_jax import runtime

ROOT = Path(__file__).parents[1]
NEEDED = ("numpy", "safetensors")


def python(*arguments, cwd, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=200,
        env={**os.environ, "PYTHONPATH": "", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def built(place, *command):
    """What setup.py builds there, without a compiler."""
    python("setup.py", "-q", *command, cwd=place, CC="false", CXX="false")
    return next((place / "dist").iterdir())


def copy(tmp_path):
    """The files of the checkout that a build reads, where it can write."""
    root = tmp_path / "checkout"
    unwanted = shutil.ignore_patterns("*.so", "__pycache__", "build", "*.egg-info")
    for name in ("bireal_jax", "configs", "packaging"):
        shutil.copytree(ROOT / name, root / name, ignore=unwanted)
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, root)
    return root


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The wheel of the runtime."""
    place = copy(tmp_path_factory.mktemp("alone"))
    (place / "packaging" / "runtime" / "bireal_jax").mkdir(exist_ok=True)
    (place / "packaging" / "runtime" / "bireal_jax" / "old.py").touch()  # of an earlier build
    return built(place / "packaging" / "runtime", "bdist_wheel")


def test_the_runtime_has_nothing_of_training(alone):
    with zipfile.ZipFile(alone) as wheel:
        names = wheel.namelist()
        meta = wheel.read(next(name for name in names if name.endswith("METADATA"))).decode()
    wings = {name.split("/")[1] for name in names if name.startswith("bireal_jax/")}
    files = {"__init__.py", "_version.py", "errors.py", "kinds.py", "output.py", "places.py", "py.typed"}
    assert wings == {*files, "pixels", "runtime"}
    assert not [name for name in names if name.endswith((".cc", ".inc"))]
    assert "bireal_jax/runtime/engine/bireal.h" in names
    needs = [line.split(": ")[1] for line in meta.splitlines() if line.startswith("Requires-Dist")]
    assert needs == ["numpy", "safetensors>=0.5", 'pillow>=11; extra == "photos"']
    assert alone.name.startswith("bireal_runtime-") and "-py3-none-" in alone.name, "for every Python 3"


def test_an_sdist_of_the_runtime_builds_alone(tmp_path):
    place = copy(tmp_path) / "packaging" / "runtime"
    with tarfile.open(built(place, "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = next(tmp_path.glob("bireal_runtime-*"))
    assert (folder / "bireal_jax" / "runtime" / "engine" / "run.h").is_file(), "what is compiled"
    assert "-py3-none-" in built(folder, "bdist_wheel").name


@pytest.mark.skipif(not runtime.available(), reason="needs the compiled engine")
def test_the_runtime_runs_with_numpy_and_safetensors_only(alone, tmp_path):
    """In an environment that has nothing else; the engine is the one that was compiled here."""
    venv.create(tmp_path / "env", symlinks=True)
    place = next((tmp_path / "env").glob("lib/python*/site-packages"))
    with zipfile.ZipFile(alone) as wheel:
        wheel.extractall(place)
    shutil.copy(Path(runtime.__file__).with_name("_engine.so"), place / "bireal_jax" / "runtime")
    for name in NEEDED:
        package = Path(__import__(name).__file__).parent
        for path in package.parent.glob(f"{name}*"):
            (place / path.name).symlink_to(path)
    for arguments in (["-c", "from bireal_jax import runtime"], [ROOT / "tests" / "smoke.py"]):
        done = subprocess.run(
            [tmp_path / "env" / "bin" / "python", *arguments], cwd=tmp_path, capture_output=True, text=True,
            env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    assert "runs with" in done.stdout
    for arguments, status, message in (
        (["digits", "a.jpg"], 2, "error: photos are read with Pillow, which is not installed: pip install pillow\n"),
        (["digits", "--evaluate"], 2, "error: the data set digits is read by the whole package, bireal_jax, "),
        (["digits", "--time"], 0, ""), (["--list"], 0, ""),
    ):  # fmt: skip
        done = subprocess.run(
            [tmp_path / "env" / "bin" / "python", "-m", "bireal_jax.runtime", *arguments], cwd=tmp_path,
            capture_output=True, text=True, env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        assert done.returncode == status and done.stderr.startswith(message), done.stderr


def test_recipes_are_installed_with_the_whole(tmp_path):
    wheel = built(copy(tmp_path), "bdist_wheel")
    assert "-py3-none-" in wheel.name
    place = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    code = (
        "from bireal_jax import config, main, recipe\n"
        "import bireal_jax\n"
        f"assert bireal_jax.__file__.startswith({str(place)!r})\n"
        "for name in ('digits', 'configs/digits.py', 'digits.py'):\n"
        "    c, workdir, _ = main.parse(['main', '--config=' + name])\n"
        "    assert str(workdir) == 'runs/digits' and c.data.name == 'digits'\n"
        "main.parse(['main', '--config=react_c'])\n"  # which loads another one
        "from pathlib import Path\n"
        "Path('mine.py').write_text('from configs import digits\\nget_config = digits.get_config')\n"
        "main.parse(['main', '--config=mine.py'])\n"
        "assert len(__import__('bireal_jax.data').data.imagenet.NAMES) == 1000\n"
    )
    (tmp_path / "elsewhere").mkdir()
    python("-c", code, cwd=tmp_path / "elsewhere", PYTHONPATH=str(place))


def test_an_sdist_has_what_the_commands_name(tmp_path):
    root = copy(tmp_path)
    for name in ("docs", "experiments", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.pdf", "*.png"))
    with tarfile.open(built(root, "sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        "configs/digits.py", "constraints.txt", "tests/conftest.py", "tests/engine/example.c", "docs/make.py",
        "experiments/estimators/run.py", "packaging/runtime/setup.py", "bireal_jax/runtime/engine/run.h",
        "bireal_jax/binary/packed.inc", "bireal_jax/data/jpeg.cc", "bireal_jax/data/imagenet_classes.txt",
    ):  # fmt: skip
        assert name in names, name
    assert not [name for name in names if name.endswith((".so", ".pyc")) or name.startswith("packaging/runtime/bireal")]
