"""What the TPU compiler makes of the train step of sft_3b: two layers each, all widths real.

A claim is read off the program itself. `python -m pytest tests/plan/test_hygiene.py --slow`, where
libtpu is installed; one compilation of some minutes.
"""

import functools
import json
import sys
import textwrap

import pytest
import tpu_compiler

pytestmark = [
    pytest.mark.slow,
    tpu_compiler.needs_compiler,
]
LAYERS, CHIPS, VOCABULARY, WIDTH, FEED_FORWARD = 2, 4, 151936, 2048, 11008
MATRIX = FEED_FORWARD * WIDTH * 2  # bytes of the largest of a layer, in bfloat16

# In a process of its own: the compiler's library sets up the whole process for TPUs.
CODE = """
    import dataclasses, json, math, re
    import jax
    from ugc_jax.jobs import plan as job
    from ugc_jax.plan.collectives import received
    from ugc_jax.plan.floors import work_of
    from ugc_jax.plan.hlo import COLLECTIVES, Program, array_bytes, ends_collective, parts
    from ugc_jax.plan.hlo import spreads_collective
    from ugc_jax.plan.memory import shard_bytes, topology_mesh
    from ugc_jax.plan.shapes import batch_shapes, model_of
    from ugc_jax.train.state import abstract_state
    from ugc_jax.train.step import jit_step, train_step

    words = ["--config", "sft_3b", "--topology", "v5e:2x2", "--batch_size", "4"]
    config, _ = job.SETTINGS.parse(words)
    mesh = topology_mesh(config.topology, config.mesh)
    model = model_of(config.checkpoint)
    n = LAYERS
    model = dataclasses.replace(
        model,
        text=dataclasses.replace(model.text, num_hidden_layers=n),
        vision=dataclasses.replace(model.vision, depth=n, fullatt_block_indexes=(n - 1,)),
        audio=dataclasses.replace(model.audio, encoder_layers=n),
    )
    source = job._source(config, model)
    batch = batch_shapes(source.key, config.data.batch_size, model, mesh)
    setup = config.setup(model, mesh, 100)
    state, step = abstract_state(setup), jit_step(train_step, setup)
    with jax.set_mesh(mesh):
        compiled = step.trace(state, batch).lower().compile()
    memory, hlo = compiled.memory_analysis(), compiled.as_text()
    program = Program(hlo)
    sends, arrays, products = [], {}, []
    for name, computation in program.computations.items():
        for one in program.instructions(name):
            for part in parts(one.shape):
                arrays[part.partition("{")[0]] = array_bytes(part, everywhere=True)
            if one.opcode in ("dot", "convolution"):
                products.append([computation[x].shape.partition("[")[0] for x in one.operands[:2]])
            inner = program.collective_in(one)
            if inner is not None and not (ends_collective(one) or spreads_collective(one)):
                sends.append([inner.opcode, inner.shape, received(one, inner), name])
    print(json.dumps({
        "sends": sends, "arrays": arrays, "products": products, "entry": program.entry,
        "state": shard_bytes(state), "aliased": memory.alias_size_in_bytes,
        "outputs": memory.output_size_in_bytes, "peak": memory.peak_memory_in_bytes,
        "work": [one._asdict() for one in work_of(hlo, model.costly_share).sends],
    }))
"""


@functools.cache  # a failure, too, would take minutes each time
def _done():
    code = textwrap.dedent(CODE).replace("LAYERS", str(LAYERS))
    return tpu_compiler.run([sys.executable, "-c", code])


def facts() -> tuple[dict, str]:
    done = _done()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def sizes(shape: str) -> list[int]:
    inside = shape.partition("[")[2].partition("]")[0]
    return [int(size) for size in inside.split(",") if size.isdecimal()]


def test_weights_are_gathered_layer_by_layer():
    """No collective has the matrices of several layers; embeddings and head are not stacked."""
    found, _ = facts()
    gathers = [send for send in found["sends"] if send[0] == "all-gather"]
    large = [shape for _, shape, size, _ in gathers if size > MATRIX and VOCABULARY not in
             sizes(shape)]  # fmt: skip
    assert gathers
    assert [shape for shape in large if sizes(shape) != [5120, 5120]] == []  # the merger's
    of_layers = [name for _, shape, _, name in gathers if FEED_FORWARD in sizes(shape)]
    assert of_layers
    assert found["entry"] not in of_layers


def test_no_logits_of_a_whole_batch():
    found, _ = facts()
    widths = {WIDTH, WIDTH // CHIPS}
    logits = [
        size for shape, size in found["arrays"].items()
        if VOCABULARY in sizes(shape) and widths.isdisjoint(sizes(shape))
    ]  # fmt: skip
    assert 0 < max(logits) <= 256 * VOCABULARY * 4


def test_the_state_is_donated():
    found, _ = facts()
    assert found["aliased"] >= found["state"] - (1 << 20)
    assert found["outputs"] - found["aliased"] < 1 << 20


def test_frozen_encoders_have_no_gradient():
    """Gradients are float32 and stacked: no such array has an encoder's sizes."""
    found, _ = facts()
    encoder = {3420, 5120, 1280}
    stacked = [
        shape for shape in found["arrays"]
        if shape.startswith("f32[") and len(sizes(shape)) == 3 and sizes(shape)[0] == LAYERS
        and set(sizes(shape)[1:]) & encoder and min(sizes(shape)[1:]) >= 320
    ]  # fmt: skip
    assert stacked == []


def test_products_are_of_bfloat16():
    """But for the rotary angles' and a few of the loss: a twentieth of all."""
    found, _ = facts()
    wide = [kinds for kinds in found["products"] if kinds == ["f32", "f32"]]
    assert len(found["products"]) > 50
    assert len(wide) <= len(found["products"]) / 20


def test_no_involuntary_rematerialisation():
    _, stderr = facts()
    assert "nvoluntary full rematerialization" not in stderr


def test_collectives_overlap_with_products():
    """All but those of the embeddings and the head, which stand before and after the layers."""
    found, _ = facts()
    vocabulary = sum(size for _, shape, size, _ in found["sends"] if VOCABULARY in sizes(shape))
    waits = sum(one["waits"] for one in found["work"])
    rest = sum(one["bytes"] for one in found["work"]) - vocabulary
    assert waits - vocabulary < 0.1 * rest


def test_the_gradient_of_the_head_is_summed_over_chips_once():
    """Not in each chunk of tokens: no collective inside a loop has the vocabulary's size."""
    found, _ = facts()
    inside = [send for send in found["sends"]
              if VOCABULARY in sizes(send[1]) and send[3] != found["entry"]]  # fmt: skip
    assert [send[0] for send in inside if send[0] == "all-reduce"] == []
