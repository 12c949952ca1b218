"""Kernels are counted in the body of a program's loop."""

from experiments.speed.kernels import body

PROGRAM = """
%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %n = f32[8]{0} negate(%p)
}

%step (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%state), index=1
  %loop_convert_fusion = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused
  %cudnn-conv.1 = (f32[8]{0}, u8[0]{0}) custom-call(%x), custom_call_target="__cudnn$convForward", metadata={}
  %input_reduce_fusion = (f32[8]{0}, pred[]) fusion(%x), kind=kInput, calls=%fused
  %copy.1 = f32[8]{0} copy(%x)
  ROOT %tuple = (s32[], f32[8]{0}) tuple(%x, %copy.1)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %while.1 = (s32[], f32[8]{0}) while(%a), condition=%less, body=%step
}
"""


def test_of_a_program():
    kinds = [kind for kind, _ in body(PROGRAM)]
    assert kinds == ["element by element", "convolutions", "sums and other reductions", "copies and transposes"]
