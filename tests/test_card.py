"""The command for a rented card: what needs no card of it."""

import gzip
import json

import pytest

from experiments.speed import breakdown


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


def test_the_trace_of_a_card_is_divided_as_it_was_by_hand(shared):
    """Facts about that card: stem and pool 6.88 ms, other convolutions 4.5, behind the stem 4.0, small kernels 1.1."""
    path = shared / "results" / "gpu-2026-11-27" / "trace224.json.gz"
    found = breakdown.breakdown(breakdown.kernels(path), 3)
    assert found["kernels"] == 601 and found["busy"] == pytest.approx(16.5, abs=0.15)
    expected = {"convolutions": 4.5, "stem and pool": 6.88, "normalization": 4.0, "small kernels": 1.1}
    assert {part: found[part] for part in expected} == pytest.approx(expected, abs=0.16)
