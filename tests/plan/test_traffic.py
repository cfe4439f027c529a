"""What a program moves: by hand, on this CPU, and the TPU program of a decode step of the 3B."""

import functools
import json
import math
import sys
import textwrap

import cases
import jax
import jax.numpy as jnp
import pytest
import tpu_compiler

from ugc_jax.generate import decode
from ugc_jax.models.compute import Compute
from ugc_jax.models.qwen2_5_omni.config import tiny
from ugc_jax.plan.traffic import loop_traffic, step_bytes

# A loop of unknown length around one of three layers: each reads its weight through a slice in a
# fusion, one more by a copy, and puts its result into a cache in place. S(1) is a TPU's own memory.
HLO = """HloModule jit_steps, entry_computation_layout={()->f32[]}

%reads_a_slice (p.0: bf16[3,64,32], p.1: s32[], p.2: bf16[4,32]) -> bf16[4,64] {
  %p.0 = bf16[3,64,32]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  %slice.1 = bf16[1,64,32]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p.0, %p.1), dynamic_slice_sizes={1,64,32}
  %view.1 = bf16[64,32]{1,0:T(8,128)(2,1)} bitcast(%slice.1)
  %p.2 = bf16[4,32]{1,0:T(4,128)(2,1)S(1)} parameter(2)
  ROOT %product.1 = bf16[4,64]{1,0:T(4,128)(2,1)} convolution(%p.2, %view.1), dim_labels=bf_oi->bf
}

%only_moves (p.3: bf16[3,64,32], p.4: s32[]) -> bf16[1,64,32] {
  %p.3 = bf16[3,64,32]{2,1,0} parameter(0)
  %p.4 = s32[] parameter(1)
  ROOT %slice.2 = bf16[1,64,32]{2,1,0} dynamic-slice(%p.3, %p.4), dynamic_slice_sizes={1,64,32}
}

%in_place (p.5: bf16[3,4,64], p.6: bf16[4,64], p.7: s32[]) -> bf16[3,4,64] {
  %p.5 = bf16[3,4,64]{2,1,0} parameter(0)
  %p.6 = bf16[4,64]{1,0} parameter(1)
  %view.2 = bf16[1,4,64]{2,1,0} bitcast(%p.6)
  %p.7 = s32[] parameter(2)
  ROOT %update.1 = bf16[3,4,64]{2,1,0} dynamic-update-slice(%p.5, %view.2, %p.7)
}

%layer (arg.1: (s32[], bf16[4,32], bf16[3,64,32], bf16[3,4,64])) -> (s32[], bf16[4,32], bf16[3,64,32], bf16[3,4,64]) {
  %arg.1 = (s32[]{:T(128)}, bf16[4,32]{1,0:T(4,128)(2,1)S(1)}, /*index=2*/bf16[3,64,32]{2,1,0}, bf16[3,4,64]{2,1,0}) parameter(0)
  %i.1 = s32[]{:T(128)S(1)} get-tuple-element(%arg.1), index=0
  %x.1 = bf16[4,32]{1,0:T(4,128)(2,1)S(1)} get-tuple-element(%arg.1), index=1
  %w.1 = bf16[3,64,32]{2,1,0} get-tuple-element(%arg.1), index=2
  %c.1 = bf16[3,4,64]{2,1,0} get-tuple-element(%arg.1), index=3
  %y.1 = bf16[4,64]{1,0} fusion(%w.1, %i.1, %x.1), kind=kOutput, calls=%reads_a_slice
  %copied.1 = bf16[1,64,32]{2,1,0} fusion(%w.1, %i.1), kind=kLoop, calls=%only_moves
  %cache.1 = bf16[3,4,64]{2,1,0} fusion(%c.1, %y.1, %i.1), kind=kLoop, calls=%in_place
  ROOT %out.1 = (s32[], bf16[4,32]{1,0:S(1)}, bf16[3,64,32]{2,1,0}, bf16[3,4,64]{2,1,0}) tuple(%i.1, %x.1, %w.1, %cache.1)
}

%three (arg.2: (s32[], bf16[4,32], bf16[3,64,32], bf16[3,4,64])) -> pred[] {
  %arg.2 = (s32[], bf16[4,32]{1,0}, bf16[3,64,32]{2,1,0}, bf16[3,4,64]{2,1,0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%arg.2), index=0
  %three.1 = s32[] constant(3)
  ROOT %less.1 = pred[] compare(%i.2, %three.1), direction=LT
}

%step (arg.3: (s32[], bf16[4,32], bf16[3,64,32], bf16[3,4,64])) -> (s32[], bf16[4,32], bf16[3,64,32], bf16[3,4,64]) {
  %arg.3 = (s32[], bf16[4,32]{1,0}, bf16[3,64,32]{2,1,0}, bf16[3,4,64]{2,1,0}) parameter(0)
  %begin.1 = (bf16[4,32]{1,0:S(1)}, bf16[4,32]{1,0}, u32[]{:S(2)}) copy-start(%x.3)
  %x.3 = bf16[4,32]{1,0} get-tuple-element(%arg.3), index=1
  %end.1 = bf16[4,32]{1,0:S(1)} copy-done(%begin.1)
  ROOT %loop.1 = (s32[], bf16[4,32]{1,0}, bf16[3,64,32]{2,1,0}, bf16[3,4,64]{2,1,0}) while(%arg.3), condition=%three, body=%layer
}

%more (arg.4: (s32[], bf16[4,32], bf16[3,64,32], bf16[3,4,64])) -> pred[] {
  %arg.4 = (s32[], bf16[4,32]{1,0}, bf16[3,64,32]{2,1,0}, bf16[3,4,64]{2,1,0}) parameter(0)
  %i.4 = s32[] get-tuple-element(%arg.4), index=0
  ROOT %less.2 = pred[] compare(%i.4, %i.4), direction=LT
}

ENTRY %main (a.1: (s32[], bf16[4,32], bf16[3,64,32], bf16[3,4,64])) -> (s32[], bf16[4,32], bf16[3,64,32], bf16[3,4,64]) {
  %a.1 = (s32[], bf16[4,32]{1,0}, bf16[3,64,32]{2,1,0}, bf16[3,4,64]{2,1,0}) parameter(0)
  ROOT %loop.2 = (s32[], bf16[4,32]{1,0}, bf16[3,64,32]{2,1,0}, bf16[3,4,64]{2,1,0}) while(%a.1), condition=%more, body=%step
}
"""  # noqa: E501
WEIGHT, RESULT, INPUT = 64 * 32 * 2, 4 * 64 * 2, 4 * 32 * 2


def test_by_hand():
    traffic = loop_traffic(HLO)
    product = WEIGHT + RESULT  # its input lies elsewhere
    copy = 2 * WEIGHT
    update = 2 * RESULT
    assert traffic.bytes == 3 * (product + copy + update) + INPUT
    assert (traffic.kernels, traffic.copies) == (3 * 3 + 1, 3 + 1)
    largest = traffic.writes[0]
    assert (largest.instruction, largest.bytes, largest.times) == ("copied.1", WEIGHT, 3)
    assert largest.copies
    assert [one.bytes for one in traffic.writes] == [WEIGHT, RESULT, RESULT]


def test_a_program_without_such_a_loop():
    with pytest.raises(ValueError, match="no loop of unknown length"):
        loop_traffic(HLO.replace("condition=%more", "condition=%three"))


def test_on_this_cpu():
    """Weights that are read once a step, in a loop whose length the program decides."""

    def steps(w, x, count):
        def one(loop):
            x = loop[1]
            for i in range(4):
                x = jnp.tanh(x @ w[i])
            return loop[0] + 1, x

        return jax.lax.while_loop(lambda loop: loop[0] < count, one, (0, x))[1]

    w, x = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 256, 256), (8, 256)))
    program = jax.jit(steps).lower(w, x, jax.ShapeDtypeStruct((), jnp.int32)).compile()
    traffic = loop_traffic(program.as_text())
    least = math.prod(w.shape) * 4
    # A product of this compiler cannot read a slice: it may be read, written and read again.
    assert least <= traffic.bytes < 3.2 * least
    assert traffic.kernels >= 4


@pytest.mark.parametrize("stacked", [True, False])
def test_the_least_of_a_step(stacked):
    """The bytes of the arrays themselves."""
    config = cases.fewer_layers(tiny())
    params = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.bfloat16), cases.random_params(config, stacked)
    )
    state = decode.empty_state(config, Compute("bfloat16"), 2, 3, 128, 64, False, stacked)
    model = params["model"]
    arrays = jax.tree.leaves((model["layers"], model["norm"], params["lm_head"]))
    caches = jax.tree.leaves((state.prompt, state.own))
    rows = 2 * 3 * config.text.hidden_size * 2
    weights, kept = (sum(leaf.nbytes for leaf in some) for some in (arrays, caches))
    assert step_bytes(params, state) == weights + kept + rows
    assert step_bytes(params, state, 0.5, 0.5) == weights + kept // 2 + rows
    text = config.text
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 2
    assert sum(leaf.nbytes for leaf in caches) == token * (2 * 128 + 2 * 3 * 64)


# ---- the TPU compiler: one v5e chip, the 3B in bfloat16, 3072 + 512 tokens -----------------------

# In a process of its own: the compiler's library sets up the whole process for TPUs.
ON_A_CHIP = """
    import functools, json, sys
    import jax, jax.numpy as jnp, numpy as np
    from ugc_jax.generate import decode, sampling
    from ugc_jax.generate.engine import Engine, chunk_of, place_bytes
    from ugc_jax.models.compute import ComputeConfig
    from ugc_jax.models.int8 import SCALE, quantized
    from ugc_jax.models.params import (
        abstract_params, build_tree, get_leaf, leaves, param_shardings
    )
    from ugc_jax.models.qwen2_5_omni import thinker
    from ugc_jax.models.qwen2_5_omni.config import omni_3b
    from ugc_jax.plan.memory import chip_in, compiled_memory, shard_bytes, topology_mesh
    from ugc_jax.plan.traffic import loop_traffic, step_bytes
    from ugc_jax.sharding import MeshConfig, abstract, make_mesh, replicated, shardings

    places, samples, kind, T, N = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], 3072, 512
    slice_ = topology_mesh("v5e:2x2", MeshConfig())
    mesh = make_mesh(devices=slice_.devices.flat[:1])
    config = omni_3b()
    settings = ComputeConfig("bfloat16", weights=kind, cache=kind)
    compute = settings.resolve(mesh.devices.flat[0], config.text.head_dim)
    tree = thinker.declare(config)
    params = abstract(abstract_params(tree, jnp.bfloat16), param_shardings(tree, mesh))
    if kind == "int8":
        items = []
        for leaf in leaves(tree):
            array, path = get_leaf(params, leaf.path), leaf.path
            if thinker.is_decoding_matrix(leaf):
                array, scale = quantized(array)
                items.append(((*path[:-1], SCALE), scale))
            items.append((path, array))
        params = build_tree(items)
    weights, hbm = shard_bytes(params), chip_in(mesh).hbm
    # As engine.plan_places: half of what the weights leave.
    each = place_bytes(config, T, N, samples, jnp.bfloat16, kind)
    planned = int((hbm - weights) / 2 // each)
    state = jax.eval_shape(functools.partial(
        decode.empty_state, config, compute, places or planned, samples, T, N, False, True
    ))
    state = abstract(state, shardings(mesh, state, decode.state_axes(state)))
    starts = decode.no_rows(len(state.done))
    starts = abstract(starts, jax.tree.map(lambda _: replicated(mesh), starts))
    engine = Engine(config, compute, mesh)
    mode = sampling.Mode(greedy=True, truncates=False, penalizes=False)
    with engine.on_mesh():
        traced = engine._advance.trace(params, state, starts, chunk_of(None, 1), mode=mode)
        program = traced.lower().compile()
    memory, traffic = program.memory_analysis(), loop_traffic(program.as_text())
    matrix = min(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(params["model"]["layers"])
        if leaf.ndim == 3
    )
    print(json.dumps({
        "places": len(state.length), "planned": planned, "hbm": hbm,
        "held": weights + shard_bytes(state) + memory.temp_size_in_bytes,
        "most": (hbm - weights - memory.temp_size_in_bytes) // each,
        "bytes": traffic.bytes, "least": step_bytes(params, state),
        "kernels": traffic.kernels, "copies": traffic.copies,
        "written": sum(one.bytes * one.times for one in traffic.writes),
        "matrix": matrix,
    }))
"""


@functools.cache
def on_a_chip(places: int, samples: int, kind: str = "auto") -> dict:
    """Figures of the compiled chunk of steps; places: 0 are as many as the engine would plan.

    kind: of weights and caches.
    """
    command = [sys.executable, "-c", textwrap.dedent(ON_A_CHIP), str(places), str(samples), kind]
    done = tpu_compiler.run(command)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    print({**figures, "ratio": figures["bytes"] / figures["least"]})
    return figures


@tpu_compiler.needs_compiler
class TestOnAChip:
    @pytest.mark.parametrize(("places", "samples"), [(0, 1), (8, 8)])
    def test_a_step_copies_no_weight_and_no_cache(self, places, samples):
        """All that a step writes to HBM is less than the smallest matrix of all layers."""
        figures = on_a_chip(places, samples)
        assert figures["written"] < figures["matrix"] / 4

    @pytest.mark.parametrize(("places", "samples"), [(0, 1), (8, 8)])
    def test_a_step_moves_little_more_than_weights_and_caches(self, places, samples):
        figures = on_a_chip(places, samples)
        assert figures["least"] <= 1.001 * figures["bytes"]
        assert figures["bytes"] <= 1.2 * figures["least"]

    def test_sixteen_prompts_decode_on_a_chip(self):
        figures = on_a_chip(0, 1)
        assert figures["places"] == figures["planned"] >= 16

    def test_thirty_two_prompts_decode_on_a_chip_in_int8(self):
        """With half of the rest left for prefill, and no weight or cache written in bfloat16."""
        figures = on_a_chip(0, 1, "int8")
        assert figures["places"] == figures["planned"] >= 32
        assert figures["held"] < figures["hbm"]
        assert figures["written"] < figures["matrix"] / 4
        # Some of the scales stay in the chip's other memory from step to step.
        assert figures["least"] <= 1.005 * figures["bytes"]
        assert figures["bytes"] <= 1.2 * figures["least"]
        assert figures["held"] < figures["hbm"]
