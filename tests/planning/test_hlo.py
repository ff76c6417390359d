"""What is sent between chips, read from pieces of programs as the TPU's compiler writes them."""

import pytest

from selfflow.planning.hlo import collectives
from tests.conftest import mentions

# Two loops of 6 rounds, one of which begins at 2; a chain of two parts of one gather; a reduce-scatter in a fusion.
PROGRAM = """HloModule jit_step, is_scheduled=true, num_partitions=32

%all-reduce-scatter.1 (input.1: bf16[1152,64]) -> bf16[96,64] {
  %input.1 = bf16[1152,64]{1,0:T(8,128)(2,1)} parameter(0)
  %pad.1 = bf16[1536,64]{1,0} pad(%input.1, %constant.1), padding=0_384x0_0
  %all-reduce.1 = bf16[1536,64]{1,0} all-reduce(%pad.1), channel_id=3, replica_groups=[2,16]<=[32], to_apply=%add
  ROOT %dynamic-slice.1 = bf16[96,64]{1,0} dynamic-slice(%all-reduce.1, %x, %y), dynamic_slice_sizes={96,64}
}

%start_of_gather (param: bf16[72,128]) -> bf16[1152,128] {
  %param = bf16[72,128]{1,0} parameter(0)
  %all-gather.1 = bf16[1152,128]{1,0} all-gather(%param), channel_id=4, replica_groups=mesh['a'=2,'b'=16] {'b'}, \
dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"-1","flag_end":"-1"}}
}

%part_of_gather (param.1: bf16[72,128]) -> bf16[1152,128] {
  %param.1 = bf16[72,128]{1,0} parameter(0)
  %all-gather.2 = bf16[1152,128]{1,0} all-gather(%param.1), channel_id=4, replica_groups=mesh['a'=2,'b'=16] {'b'}, \
dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
}

%body.1 (p: (s32[], bf16[72,128])) -> (s32[], bf16[72,128]) {
  %p = (s32[]{:T(128)}, bf16[72,128]{1,0}) parameter(0)
  %async-collective-start.1 = (bf16[72,128]{1,0}, bf16[1152,128]{1,0}) fusion(%x), kind=kCustom, calls=%start_of_gather
  %fusion.2 = bf16[1152,128]{1,0} fusion(%x), kind=kOutput, calls=%part_of_gather, metadata={op_name="a/b"}
  %fusion.3 = bf16[96,64]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  %kernel = bf16[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}
  ROOT %tuple.1 = (s32[], bf16[72,128]) tuple(%i, %x)
}

%compared (a: s32[], b: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %lt = pred[] compare(%a, %b), direction=LT
}

%condition.1 (p.2: (s32[], bf16[72,128])) -> pred[] {
  %p.2 = (s32[], bf16[72,128]) parameter(0)
  %six = s32[]{:T(128)} constant(6)
  %i.2 = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  ROOT %less = pred[] fusion(%i.2, %six), kind=kLoop, calls=%compared
}

%body.2 (p.3: (f32[8], s32[])) -> (f32[8], s32[]) {
  %p.3 = (f32[8], s32[]) parameter(0)
  %collective-permute-start.1 = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%z), channel_id=1, \
source_target_pairs={{0,1},{1,2}}
  ROOT %tuple.3 = (f32[8], s32[]) tuple(%z, %i)
}

%condition.2 (p.4: (f32[8], s32[])) -> pred[] {
  %p.4 = (f32[8], s32[]) parameter(0)
  %last = s32[] constant(6)
  %i.4 = s32[] get-tuple-element(%p.4), index=1
  ROOT %lt.4 = pred[] compare(%i.4, %last), direction=LT
}

ENTRY %main (q: f32[8]) -> f32[8] {
  %q = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %two = s32[] constant(2)
  %tuple.5 = (s32[], bf16[72,128]) tuple(%zero, %w)
  %while.1 = (s32[]{:T(128)}, bf16[72,128]{1,0:T(8,128)(2,1)}) while(%tuple.5), condition=%condition.1, body=%body.1, \
metadata={op_name="jit(step)/while"}
  %tuple.6 = (f32[8], s32[]) tuple(%q, %two)
  %while.2 = (f32[8]{0}, s32[]) while(%tuple.6), condition=%condition.2, body=%body.2
  %all-reduce.9 = (f32[8]{0}, f32[4,2]{1,0}) all-reduce(%q, %r), replica_groups={{0,16},{1,17}}, to_apply=%add
  %reduce-scatter.9 = f32[4]{0} reduce-scatter(%q), replica_groups=[16,2]<=[2,16]T(1,0), dimensions={0}
  ROOT %all-to-all.9 = f32[8]{0} all-to-all(%q), replica_groups={}, dimensions={0}
}
"""


def test_loops_chains_and_fusions_are_counted_as_often_as_they_run():
    (gather,) = (one for one in collectives(PROGRAM, 32) if one.kind == "all-gather")
    assert (gather.dtype, gather.count, gather.bytes) == ("bf16", 6, 6 * 1152 * 128 * 2 * 15 / 16)
    assert gather.groups == (tuple(range(16)), tuple(range(16, 32)))


def test_every_kind_and_form_of_groups_has_its_bytes():
    found = {(one.kind, one.dtype): one for one in collectives(PROGRAM, 32)}
    assert found["reduce-scatter", "bf16"].bytes == 6 * 1536 * 64 * 2 * 15 / 16
    assert found["reduce-scatter", "bf16"].groups[1] == tuple(range(16, 32))
    permute = found["collective-permute", "f32"]
    assert (permute.count, permute.bytes, permute.groups) == (4, 4 * 32, ((0, 1), (1, 2)))
    assert found["all-reduce", "f32"].bytes == 2 * 0.5 * 64 and found["all-reduce", "f32"].groups == ((0, 16), (1, 17))
    assert found["reduce-scatter", "f32"].bytes == 16
    assert found["reduce-scatter", "f32"].groups[:2] == ((0, 16), (1, 17))
    assert found["all-to-all", "f32"].bytes == 32 * 31 / 32 and found["all-to-all", "f32"].groups == (tuple(range(32)),)
    assert not any(one.between_slices for one in found.values())


def test_groups_beyond_a_slice_and_transfers_of_hosts_go_between_slices():
    crossing = {(one.kind, one.dtype): one.between_slices for one in collectives(PROGRAM, 16, 2)}
    assert crossing["all-reduce", "f32"] and crossing["reduce-scatter", "f32"] and not crossing["all-gather", "bf16"]
    sends = """
ENTRY %main (q: f32[8]) -> f32[8] {
  %send.1 = (bf16[81,8,128]{2,1,0}, u32[], token[]) send(%q, %after-all), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv.1 = (bf16[81,8,128]{2,1,0}, u32[], token[]) recv(%after-all), channel_id=1, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
}
"""
    for slices, share in ((2, 1.0), (4, 1.5)):
        (one,) = collectives(sends, 16, slices)
        assert (one.kind, one.dtype, one.between_slices) == ("all-reduce", "bf16", True)
        assert one.bytes == 81 * 8 * 128 * 2 * share


def test_a_mesh_of_transposed_devices_is_read():
    line = "  %all-gather.1 = f32[4]{0} all-gather(%x), replica_groups=mesh['a'=2,'b'=1,'c'=2], "
    program = "ENTRY %main (x: f32[2]) -> f32[4] {\n" + line + "device_ids=([2,2]T(1,0)) {'c'}, dimensions={0}\n}\n"
    (one,) = collectives(program, 4)
    # Numbers 0 to 3 in a square, transposed: 0 2 1 3; the last axis joins 0 with 2 and 1 with 3.
    assert one.groups == ((0, 2), (1, 3))


def test_a_loop_without_end_is_no_number():
    with pytest.raises(NotImplementedError, match=mentions("collective-permute-start.1")):
        collectives(PROGRAM.replace("%last = s32[] constant(6)", "%last = s32[] parameter(1)"), 32)
