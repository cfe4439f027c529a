"""Floors of programs against sums by hand; a TPU's forms of collectives, from excerpts."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from ugc_jax.plan.chips import Chip, chip_of, links_of
from ugc_jax.plan.collectives import collectives, group_size
from ugc_jax.plan.floors import Duration, Floors, efficiency, floors_of, work_of
from ugc_jax.plan.hlo import parse
from ugc_jax.sharding import make_mesh

MB = 1 << 20


@functools.cache
def program():
    """On four devices: 3 layers, each gathers its weight of 512 x 1024, then a sum over devices."""
    mesh = make_mesh(1, 4, 1, devices=jax.devices()[:4])

    def layers(x, w):
        def one(x, w):
            whole = jax.lax.all_gather(w, "fsdp", axis=0, tiled=True)
            return x, jnp.sum(x @ whole, axis=0)

        return jax.lax.psum(jax.lax.scan(one, x, w)[1], "fsdp")

    mapped = jax.shard_map(
        layers, mesh=mesh, in_specs=(P("fsdp"), P(None, "fsdp")), out_specs=P(), check_vma=False
    )
    shapes = ((1024, 512), (3, 512, 1024))
    arrays = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    return mesh, jax.jit(mapped).lower(*arrays).compile().as_text()


def test_by_hand():
    mesh, hlo = program()
    found = {one.kind: one for one in collectives(hlo)}
    gathered, summed = 3 * 3 / 4 * 512 * 1024 * 4, 2 * 3 / 4 * 3 * 1024 * 4
    assert found["all-gather"].bytes == pytest.approx(gathered, rel=0.05)
    assert found["all-reduce"].bytes == pytest.approx(summed, rel=0.05)
    assert found["all-gather"].count == 3
    chip = Chip("test", 1e12, 1 << 30, bandwidth=1e11, link=1e10)
    operations = 3 * 2 * 1024 * 512 * 1024
    floors = floors_of(chip, mesh, operations, work_of(hlo), runs=2)
    assert floors.products == pytest.approx(operations / 4e12, rel=1e-6)
    # This compiler begins no collective before its end.
    assert floors.links == 0
    assert floors.waits == pytest.approx(2 * (gathered + summed) / 1e10, rel=0.05)
    # Each layer: a shard is read and gathered, the weight and x are read, the product is written
    # and read again for its sum.
    shard, whole, x, product = MB // 2, 2 * MB, MB // 2, MB
    least = 3 * (shard + 2 * whole + x + product)
    assert least <= work_of(hlo).memory < 2 * least
    assert floors.memory == 2 * work_of(hlo).memory / 1e11


def test_what_overlaps_and_what_adds():
    floors = Floors(products=3.0, memory=2.0, links=4.0, waits=0.5)
    assert (floors.step, floors.bound) == (4.5, "links")
    assert efficiency(Chip("test", 1e12, 1), 2, 4.5e12, floors.step) == 0.5
    run = Duration(examples=9.0, steps=1600).figures(chips=4, seconds=4.5)
    assert (run["examples_per_second"], run["hours"], run["chip_hours"]) == (2.0, 2.0, 8.0)


@pytest.mark.parametrize(
    ("kind", "shape", "links"),
    [
        ("TPU v5 lite", (4, 4, 1), 2),
        ("TPU v5 lite", (2, 4, 1), 2),
        ("TPU v5 lite", (16, 16, 1), 4),
        ("TPU v6 lite", (8, 8, 1), 2),
        ("TPU v5p", (4, 4, 4), 6),
        ("TPU v5p", (2, 2, 2), 3),
        ("TPU v5 lite", (1, 1, 1), 1),
    ],
)
def test_links_of_a_corner(kind, shape, links):
    places = jnp.indices(shape).reshape(3, -1).T.tolist()
    devices = [SimpleNamespace(coords=tuple(place)) for place in places]
    assert links_of(devices, chip_of(kind)) == links


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[2,8]<=[16]", 8),
        ("mesh['axis_0'=16] {'axis_0'}", 16),
        ("mesh['a'=2,'b'=8] {'b'}", 8),
        ("mesh['a'=16] {'a':(1)4}", 4),
    ],
)
def test_group_sizes(groups, size):
    text = f"f32[8]{{0}} all-reduce(%x), channel_id=1, replica_groups={groups}, to_apply=%add"
    assert group_size(parse("one", text)) == size


SPREAD = """HloModule spread

%begins (p.0: bf16[4,128]) -> (bf16[4,128], bf16[16,128]) {
  %p.0 = bf16[4,128]{1,0} parameter(0)
  %gather.1 = bf16[16,128]{1,0} all-gather(%p.0), replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %begun.1 = (bf16[4,128]{1,0}, bf16[16,128]{1,0}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p.1: bf16[4,128], p.2: bf16[16,128], p.3: f32[64,64]) -> (f32[64,64], bf16[4,128], bf16[16,128]) {
  %p.1 = bf16[4,128]{1,0} parameter(0)
  %p.2 = bf16[16,128]{1,0} parameter(1)
  %p.3 = f32[64,64]{1,0} parameter(2)
  %gather.2 = bf16[16,128]{1,0} all-gather(%p.1), replica_groups=[1,4]<=[4], dimensions={0}
  %product.1 = f32[64,64]{1,0} convolution(%p.3, %p.3), dim_labels=bf_io->bf
  ROOT %both.1 = (f32[64,64]{1,0}, bf16[4,128]{1,0}, bf16[16,128]{1,0}) tuple(%product.1, %p.1, %gather.2)
}

%ends (p.4: bf16[4,128], p.5: bf16[16,128]) -> bf16[16,128] {
  %p.4 = bf16[4,128]{1,0} parameter(0)
  %p.5 = bf16[16,128]{1,0} parameter(1)
  ROOT %gather.3 = bf16[16,128]{1,0} all-gather(%p.4), replica_groups=[1,4]<=[4], dimensions={0}
}

ENTRY %main (a.1: bf16[4,128], a.2: f32[64,64]) -> bf16[16,128] {
  %a.1 = bf16[4,128]{1,0} parameter(0)
  %a.2 = f32[64,64]{1,0} parameter(1)
  %async-collective-start.1 = (bf16[4,128]{1,0}, bf16[16,128]{1,0}) fusion(%a.1), kind=kCustom, calls=%begins
  %g.1 = bf16[4,128]{1,0} get-tuple-element(%async-collective-start.1), index=0
  %g.2 = bf16[16,128]{1,0} get-tuple-element(%async-collective-start.1), index=1
  %fusion.1 = (f32[64,64]{1,0}, bf16[4,128]{1,0}, bf16[16,128]{1,0}) fusion(%g.1, %g.2, %a.2), kind=kOutput, calls=%async_collective_fusion.1
  %g.3 = bf16[4,128]{1,0} get-tuple-element(%fusion.1), index=1
  %g.4 = bf16[16,128]{1,0} get-tuple-element(%fusion.1), index=2
  ROOT %async-collective-done.1 = bf16[16,128]{1,0} fusion(%g.3, %g.4), kind=kCustom, calls=%ends
}
"""  # noqa: E501


def test_a_collective_that_is_spread_over_fusions_counts_once():
    work = work_of(SPREAD)
    (gather,) = work.sends
    assert (gather.kind, gather.count, gather.waits) == ("all-gather", 1, 0)
    assert gather.bytes == 12 * 128 * 2
    # Its input is read, its result written, and beside it one array is read, one written.
    assert work.memory == 4 * 128 * 2 + 16 * 128 * 2 + 2 * 64 * 64 * 4
    alone = SPREAD.replace("fusion(%g.3, %g.4)", "fusion(%g.1, %g.2)")
    alone = "\n".join(line for line in alone.splitlines() if "%fusion.1" not in line)
    assert work_of(alone).waits == 12 * 128 * 2
