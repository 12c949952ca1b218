"""Files and folders in another's place, by newcomers' hands: each is told what it is, and what to write instead."""

import io
import json
import pickle
import re
import shlex
import shutil

import bireal_run
import numpy as np
import packed
import pytest
import safetensors.numpy
from PIL import Image

from bireal_jax import kinds, main, pixels, runtime
from bireal_jax.errors import BadInput
from bireal_jax.importers import readers
from bireal_jax.runtime import __main__ as command
from bireal_jax.runtime import container, named
from bireal_jax.shipping import formats

KERNELS = [] if runtime.available() else ["--kernels=reference"]
PAGE = b"\n<!DOCTYPE html>\n<html>404</html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 4\n"


def saved(save, *arguments, **more):
    out = io.BytesIO()
    save(out, *arguments, **more)
    return out.getvalue()


def picture(kind="PNG"):
    return saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save, kind)


def network():
    return packed.written("bireal_tiny").read_bytes()


MADE = {
    **{f"a photo ({kind})": (lambda kind=kind: picture(kind)) for kind in pixels.FORMATS},
    "an .npz file": lambda: saved(np.savez, a=np.zeros(3)), "an .npy file": lambda: saved(np.save, np.zeros(3)),
    "a .safetensors file of arrays": lambda: safetensors.numpy.save({"a": np.zeros(3, np.float32)}),
    "a pickle": lambda: pickle.dumps({"a": 1}), "a web page": lambda: PAGE, "a pointer of Git LFS": lambda: POINTER,
    "a JSON file": lambda: b'{"a": 1}', "a text file": lambda: "größer".encode(), "an empty file": lambda: b"",
    "an XML file": lambda: b"<?xml version='1.0'?><net/>", "a file of no known kind": lambda: b"\0\1\2\3" * 9,
}  # fmt: skip


@pytest.mark.parametrize("what", MADE)
def test_what_is_no_packed_network_is_told_what_it_is(what, tmp_path):
    data = MADE[what]()
    assert kinds.of(data).what.startswith(what)
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(BadInput) as caught:
        runtime.load(tmp_path / "x.jpg")
    first, second, *more = str(caught.value).splitlines()
    assert first == f"{tmp_path / 'x.jpg'} is no packed network, but {kinds.of(data).what}" and not more
    weights, photo = what.startswith(("an .np", "a .safe", "a pickle")), what.startswith("a photo")
    assert ("--mode=export packs" in second) == weights and (f"bireal-run NET {tmp_path}" in second) == photo


def test_files_of_other_packages(tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch")
    assert kinds.of(saved(lambda f: torch.save({"a": torch.zeros(3)}, f))) == kinds.PYTORCH
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    formats.FORMATS["onnx"].write(packed.program("bireal_tiny"), tmp_path / "net.onnx")
    assert kinds.of_file(tmp_path / "net.onnx").what == "an ONNX network" and onnx
    assert kinds.of_file(tmp_path) == kinds.of_file(tmp_path / "none") == kinds.UNKNOWN


@pytest.mark.parametrize("left", [9, 300, 5000, -1, -20_000])
def test_a_packed_file_that_is_cut_off_says_how_much_of_it_is_there(left):
    data, header = network(), 8 + int.from_bytes(network()[:8], "little")
    assert kinds.promised(data) == len(data) and not kinds.cut_off(data)
    wanted = f"at least {header:,}" if 0 < left < header else f"{len(data):,}"
    said = f"net is cut off, or damaged: it has {len(data[:left]):,} of the {wanted} bytes that its header promises\n"
    with pytest.raises(BadInput, match=re.escape(said) + "copy or download it again"):
        container.parse(data[:left], "net")


@pytest.mark.skipif(not runtime.available(), reason="needs the compiled engine")
@pytest.mark.parametrize("left", [300, 5000, -1])
def test_the_engine_says_the_same(left):
    """Its own check, for C and the browser."""
    header, wanted = 8 + int.from_bytes(network()[:8], "little"), len(network())
    part, wanted = network()[:left], f"at least {header}" if 0 < left < header else wanted
    said = f"the file is cut off, or damaged: it has {len(part)} of the {wanted} bytes that its header promises"
    for data, words in ((part, said), (PAGE, "no packed network: it does not begin like one"), (b"", "is too short")):
        with pytest.raises(BadInput, match=words):
            runtime._loaded(data, "x", 1, "float32", None, False, 0)


@pytest.mark.parametrize(
    "rows", ["[]", '{"a": 1}', '{"a": {"data_offsets": []}}', '{"a": {"data_offsets": [0, "9"]}}', "{"]
)
def test_a_header_that_promises_nothing_breaks_nothing(rows):
    data = len(rows).to_bytes(8, "little") + rows.encode()
    assert kinds.promised(data) in (0, len(data))
    with pytest.raises(BadInput):
        container.parse(data)


def test_what_is_no_photo_and_what_are_no_weights(tmp_path):
    for data, said in (
        (network(), "this is a packed network"),
        (PAGE, "this is a web page"),
        (b"\xff\xd8\xff", "begins as"),
    ):
        with pytest.raises(BadInput, match=rf"p cannot be decoded: not an image \(JPEG, PNG and the like; .*{said}"):
            pixels.decode(data, "p")
    arrays = safetensors.numpy.save({"a": np.zeros(300, np.float32)})
    for name, data, said in (
        ("a.npz", PAGE, "is a web page"), ("a.pt", PAGE, "is a web page"), ("a.h5", picture(), r"is a photo \(PNG"),
        ("a.safetensors", arrays[:-100], "is cut off, or damaged: it has 1,172 of the 1,272 bytes"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadInput, match=rf"{name} is not a readable .*: it {said}.*\ncopy it again"):
            readers.read(tmp_path / name)


# ------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A run with a packed network, one without, photos; all by short names."""
    monkeypatch.chdir(tmp_path)
    for run in ("mine", "new one"):
        (tmp_path / run / "stage_0").mkdir(parents=True)
        for name in ("config.json", "data.json"):
            (tmp_path / run / name).write_text("{}")
    shutil.copy(packed.written("bireal_tiny"), tmp_path / "mine" / named.NET)
    (tmp_path / "cat.jpg").write_bytes(picture("JPEG"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "my dog.png").write_bytes(picture())
    return tmp_path


def run(capsys, *arguments, status=0):
    return bireal_run.run(capsys, *arguments, *KERNELS, status=status)


def test_a_run_stands_for_its_packed_network(place, capsys):
    for net in ("mine", "mine/", "./mine", str(place / "mine"), "mine/net.safetensors"):
        assert "stage1_block1/binary_conv" in run(capsys, net).out
        assert run(capsys, net, "cat.jpg").out.startswith("cat.jpg\n")
    assert runtime.load(place / "mine", kernels="reference").num_classes == 10
    said = run(capsys, "mine/stage_0", status=2).err
    assert said == "error: mine/stage_0 is a part of the run in mine: name that, or the net.safetensors in it\n"
    said = run(capsys, "photos", status=2).err
    assert "photos is a folder, and none of a run: it has no net.safetensors\nname a packed file" in said


def test_a_run_that_was_not_packed_says_the_command(place, capsys):
    said = run(capsys, "new one", "cat.jpg", status=2).err.splitlines()
    assert said[0] == "error: new one is a run that has no packed network yet, net.safetensors; this writes it:"
    words = shlex.split(said[1])
    assert words == ["python", "-m", "bireal_jax.main", "--workdir=new one", "--mode=export"] and not said[2:]
    (place / "new one" / "registered.json").write_text(json.dumps({"model.act": "/a/my recipe.py", "data.name": ""}))
    said = run(capsys, "new one", "cat.jpg", status=2).err.splitlines()
    assert shlex.split(said[1])[3:] == ["--config=/a/my recipe.py", "--workdir=new one", "--mode=export"]
    (place / "new one" / "registered.json").write_text("[]")
    assert run(capsys, "new one", status=2).err.count("\n") == 2


def test_the_command_that_is_said_packs_a_run(tmp_path, monkeypatch, capsys):
    """To the letter, for a run of the commands."""
    from small import small

    from bireal_jax.training import train

    monkeypatch.chdir(tmp_path)
    train.run(small(total_steps=1, eval_steps=1), tmp_path / "my run")
    capsys.readouterr()
    words = shlex.split(run(capsys, "my run", status=2).err.splitlines()[1])
    main.main(words[2:])
    assert "checked with" in capsys.readouterr().out
    assert "digest" in run(capsys, "my run").out


def test_a_run_named_like_a_network_of_the_package_is_meant(place, capsys):
    (place / "digits").mkdir()
    assert "10 outputs" in run(capsys, "digits").out, "any other folder is not"
    shutil.copy(packed.written("react_tiny"), place / "digits" / named.NET)
    assert run(capsys, "digits").out.startswith("react_tiny")
    assert not named.is_name("digits") and not named.is_name("photos") and named.is_name("digits_react")


def test_arguments_in_the_other_order_are_put_right_in_the_users_words(place, capsys):
    for words, right in (
        (["cat.jpg", "mine"], "bireal-run mine cat.jpg"), (["cat.jpg", "digits"], "bireal-run digits cat.jpg"),
        (["photos", "mine/net.safetensors"], "bireal-run mine/net.safetensors photos"),
        (["photos/my dog.png", "cat.jpg", "mine/"], "bireal-run mine/ 'photos/my dog.png' cat.jpg"),
    ):  # fmt: skip
        said = run(capsys, *words, status=2).err
        assert re.search(r"is a (photo \(\w+\)|folder), and the network comes first:\n", said)
        assert said.splitlines()[1] == right
        assert run(capsys, *shlex.split(right)[1:]).out, "what it says works"
    assert "comes first, and photos behind it: bireal-run NET cat.jpg\n" in run(capsys, "cat.jpg", status=2).err
    said = run(capsys, "mine", "--evaluate", "cat.jpg", status=2).err
    assert said == "error: cat.jpg is no folder, and no .npz file that can be read: it is a photo (JPEG)\n"


def test_words_without_their_dashes_and_no_words(place, capsys):
    for words, message in (
        (
            ["mine", "cat.jpg", "--format=json"],
            "argument --format: unknown value 'json'; did you mean jsonl? known: csv",
        ),
        (["mine", "cat.jpg", "--tops=1"], "unrecognized arguments: --tops=1; did you mean --top?\n"),
        (["mine", "cat.jpg", "--kernels=fast"], "argument --kernels: unknown value 'fast'; known: "),
        (["mine", "cat.jpg", "--out=a.xlsx"], "--out=a.xlsx ends in .xlsx, and what is written is one of .csv, .jsonl"),
        (["min", "cat.jpg"], "unknown file or network 'min' (did you mean mine?)"),
        (
            ["mine/net.safetensor"],
            "mine/net.safetensor cannot be read: No such file or directory (did you mean mine/net.",
        ),
        (
            ["gone.jpg", "cat.jpg", "mine"],
            "gone.jpg is not there, and the network comes first:\nbireal-run mine gone.jpg",
        ),
        (["gone", "mine"], "gone is not there, and the network comes first:\nbireal-run mine gone\n"),
    ):
        said = run(capsys, *words, status=2).err
        assert f"error: {message}" in said and "usage" not in said
    run(capsys, "mine", "cat.jpg", "--out=a.xlsx", "--format=CSV")
    run(capsys, "mine", "cat.jpg", "--out=a.txt")
    assert (place / "a.xlsx").read_text().startswith("file,") and (place / "a.txt").read_text().startswith("cat.jpg\n")
    for word in ("list", "help", "version", "time"):
        assert f"; the option has dashes: bireal-run --{word}\n" in run(capsys, word, status=2).err
    assert "unknown file or network 'lis'" in run(capsys, "lis", status=2).err
    with pytest.raises(SystemExit) as ended:
        command.main([])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and len(said.splitlines()) < 8 and "--list" in said and "--help" in said
    examples = [line.split("  ")[1] for line in said.splitlines() if line.startswith("  bireal-run ")]
    assert len(examples) == 2
    (place / "runs").mkdir()
    shutil.move("mine", "runs/mine")
    for example in examples:
        assert run(capsys, *example.split()[1:]).out


def test_options_stand_anywhere_and_out_is_a_file(place, capsys):
    printed = run(capsys, "mine", "cat.jpg", "photos", "--format=csv").out
    assert printed.startswith("file,rank,class,label,probability\ncat.jpg,1,")
    said = run(capsys, "mine", "--out=new/all.csv", "cat.jpg", "--top", "5", "photos")
    assert said.out == "new/all.csv: 11 lines, as csv\n" and (place / "new" / "all.csv").read_text() == printed
    run(capsys, "mine", "cat.jpg", "--out=new/all.csv")
    assert len((place / "new" / "all.csv").read_text().splitlines()) == 6, "written anew"
    run(capsys, "mine", "cat.jpg", "--out=b.jsonl")
    assert len(json.loads((place / "b.jsonl").read_text())["top"]) == 5
    (place / "photos" / "broken.jpg").write_bytes(PAGE)
    said = run(capsys, "mine", "photos", "--format=jsonl", "--out=c", status=1)
    assert len((place / "c").read_text().splitlines()) == 1 and "broken.jpg cannot be decoded" in said.err
    before = (place / "cat.jpg").read_bytes()
    for out, message in (
        ("cat.jpg", "is a photo .JPEG., which would be overwritten"), ("mine/net.safetensors", "is a packed network"),
        ("photos", "is a folder; it must be a file"), ("cat.jpg/x.csv", "cannot"),
    ):  # fmt: skip
        assert re.search(f"--out={out} {message}", run(capsys, "mine", "cat.jpg", f"--out={out}", status=2).err)
    assert (place / "cat.jpg").read_bytes() == before
    assert sorted(path.name for path in place.glob("*.partial")) == []


# ------------------------------------------------------------------------------------------------- what a check says


def test_what_a_check_found_is_said_in_words():
    found = {"flipped": 0, "difference": 4.7e-7, "same_top1": 256}
    said = formats.agreement(found, 256, "test images", "x kernels", "the trained network")
    assert said == (
        "checked with x kernels against the trained network on 256 test images: 256 times the same class\n"
        "the outputs of all are equal but for rounding, within 4.7e-07 of the largest: as it should be"
    )
    for flipped, count, verdict in (
        (2, 256, "nothing to mend"),
        (1, 4, "nothing to mend"),
        (14, 256, "of a trained network"),
    ):
        said = formats.agreement(found | {"flipped": flipped}, count, "images", "x", "y")
        assert f"outputs of {count - flipped} are equal but for rounding" in said and verdict in said.splitlines()[2]
        assert f"those of {flipped} differ by more" in said and len(said.splitlines()) == 3
    assert formats.agreement({"flipped": 0, "difference": 0.0}, 8, "maps", "x", "y").startswith(
        "checked with x against y on 8 maps\n"
    )
