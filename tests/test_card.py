"""The command for a rented card: what needs no card of it."""

import gzip
import json
import time

import pytest

from experiments.speed import breakdown, card, gpu


def kernel(name, microseconds, operation="", instruction="command_buffer_1"):
    note = {"hlo_op": instruction} | ({"name": f"jit(step)/{operation}/conv_general_dilated"} if operation else {})
    return {"name": name, "dur": microseconds, "args": note}


def test_a_step_is_divided_by_what_lies_beside_the_convolutions():
    stem, block = "jvp(Net)/stem_conv/jit(conv2d)", "jvp(Net)/stage1_block1/binary_conv"
    step = [
        kernel("normalize", 50),
        kernel("xmma", 1000, stem, "cudnn-conv.1"), kernel("loop_pool_fusion", 400), kernel("transpose", 2),
        kernel("xmma", 100, block, "cudnn-conv.2"), kernel("loop_norm_fusion", 70),
        kernel("xmma", 100, block, "cudnn-conv.3"), kernel("loop_convert", 30, instruction="loop_convert_fusion.1"),
        kernel("loop_reduce_window_fusion", 500), kernel("xmma", 100, block, "cudnn-conv-bw-input.1"),
        kernel("input_gradient_of_norm", 300), kernel("wgrad", 800, stem, "cudnn-conv-bw-filter.1"), kernel("adam", 9),
    ]  # fmt: skip
    assert breakdown.breakdown(step * 3, 3) == {
        "convolutions": 0.3, "stem and pool": 3.05, "normalization": 0.1, "small kernels": 0.011, "busy": 3.461,
        "kernels": 13.0,
    }  # fmt: skip


def test_a_trace_of_a_cpu_has_no_kernels(tmp_path):
    events = [{"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "/host:CPU"}}]
    events.append({"ph": "X", "pid": 1, "ts": 1.0, "dur": 2.0, "name": "dot"})
    with gzip.open(tmp_path / "t.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    assert breakdown.kernels(tmp_path / "t.trace.json.gz") == []
    assert breakdown.main([str(tmp_path / "t.trace.json.gz")]) == 1


def test_convolutions_that_nothing_says_the_layer_of_are_not_taken_for_norms(tmp_path, capsys):
    events = [{"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "/device:GPU:0"}}]
    events.append({"ph": "X", "pid": 1, "ts": 1.0} | kernel("sm90_xmma_fprop_implicit_gemm_bf16", 100))
    with gzip.open(tmp_path / "t.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    assert breakdown.main([str(tmp_path / "t.trace.json.gz")]) == 1
    assert "convolutions lie in CUDA graphs" in capsys.readouterr().out


def test_the_trace_of_a_card_is_divided_as_it_was_by_hand(shared):
    """Facts about that card: stem and pool 6.88 ms, other convolutions 4.5, behind the stem 4.0, small kernels 1.1."""
    path = shared / "results" / "gpu-2026-11-27" / "trace224.json.gz"
    found = breakdown.breakdown(breakdown.kernels(path), 3)
    assert found["kernels"] == 601 and found["busy"] == pytest.approx(16.5, abs=0.15)
    expected = {"convolutions": 4.5, "stem and pool": 6.88, "normalization": 4.0, "small kernels": 1.1}
    assert {part: found[part] for part in expected} == pytest.approx(expected, abs=0.16)


@pytest.fixture
def attempts(monkeypatch, tmp_path):
    """Sections that cost nothing but are noted; the command's arguments."""
    noted = []

    def attempt(name, args, seconds):
        noted.append(name)
        return attempt.instead.get(name, {"figure": 1.5})

    attempt.instead = {"versions": {"device": "a card", "commit": "1"}}
    monkeypatch.setattr(card, "attempt", attempt)
    plain = {name: section._replace(lines=card._plain) for name, section in card.SECTIONS.items()}
    monkeypatch.setattr(card, "SECTIONS", plain)
    monkeypatch.setattr(card, "noise", lambda place, small: place)
    return noted, attempt.instead, ["--out", str(tmp_path / "card.jsonl")]


def test_a_card_is_measured_in_order_and_what_failed_alone_again(attempts, capsys):
    noted, instead, arguments = attempts
    instead["parity"] = "it ended with status 1: no"
    assert card.main(arguments) == 0
    assert noted == list(card.SECTIONS)
    out = capsys.readouterr().out
    assert "left out: parity: it ended with status 1: no\n" in out and "step_256         figure 1.5\n" in out
    assert f"{len(noted) - 1} of {len(noted)} sections; the same command goes on" in out
    del noted[:], instead["parity"]
    card.main(arguments)
    assert noted == ["versions", "parity"] and "left out" not in capsys.readouterr().out
    instead["versions"] = {"device": "another card", "commit": "1"}
    with pytest.raises(SystemExit, match="is of another device; name another --out"):
        card.main(arguments)


def test_a_section_that_does_not_fit_the_time_is_left_out_and_named(attempts, capsys):
    noted, _, arguments = attempts
    card.main([*arguments, "--minutes", "0.7"])
    out = capsys.readouterr().out
    assert "hashes" not in noted and "step_256" not in noted and "bireal20" in noted
    assert "left out: hashes: 4" in out and "left out: step_256" in out


def test_a_section_ends_when_time_is_up(monkeypatch, tmp_path):
    sleep = lambda args, out: ["timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)"]
    monkeypatch.setitem(card.SECTIONS, "hashes", card.Section(0, 60, sleep, card._plain))
    args = card.argparse.Namespace(small=True, cifar=tmp_path, out=tmp_path / "card.jsonl")
    began = time.monotonic()
    assert card.attempt("hashes", args, 0.5) == "time was up" and time.monotonic() - began < 20
    monkeypatch.setitem(card.SECTIONS, "hashes", card.Section(0, 60, lambda *_: ["no_such_module"], card._plain))
    assert "status 1: " in card.attempt("hashes", args, 20)
    assert "No module named no_such_module" in (tmp_path / "card.log").read_text(), "the end alone says too little"


def test_no_section_takes_the_time_of_those_behind_it(attempts, monkeypatch):
    _, _, arguments = attempts
    given = {}
    monkeypatch.setattr(card, "attempt", lambda name, args, seconds: given.setdefault(name, seconds) and {"a": 1})
    card.main([*arguments, "--minutes", "60"])
    assert given == {name: section.most for name, section in card.SECTIONS.items()}


def test_ours_is_compared_with_the_best_of_the_compile_modes():
    rates = {"ours": [30.0], "torch_default": [10.0, 12.0], "torch_max-autotune": [20.0], "torch4_default": [25.0]}
    assert gpu.best({"images_per_second": rates}) == ("torch_max-autotune", 20.0)
    assert gpu.best({"images_per_second": {"ours": [30.0]}}) is None


@pytest.mark.slow
def test_one_turn_of_both_sides_has_as_many_steps_and_one_synchronization(monkeypatch):
    torch = pytest.importorskip("torch", reason="needs torch")
    from experiments.speed import train

    calls = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *a, **k: calls.append(k) or adam(*a, **k))
    run = train.torch_peer("bireal20", 2, "eager", size=8, channels=4, steps=3)
    run()
    assert calls == [{"lr": 1e-3, "fused": False}] and torch.backends.cudnn.benchmark
