"""Counted operations against sums by hand."""

import functools

import jax
import jax.numpy as jnp
import pytest
from cases import make_example

from ugc_jax import sharding
from ugc_jax.data.batching import BucketKey, collate
from ugc_jax.models import lora
from ugc_jax.models.attention import splash_attention
from ugc_jax.models.compute import Compute
from ugc_jax.models.qwen2_5_omni.config import tiny
from ugc_jax.plan import flops
from ugc_jax.plan.flops import program_flops, step_flops
from ugc_jax.train.state import Setup, Trainable

CONFIG = tiny()


def count(function, *args, costly=1.0):
    return program_flops(jax.jit(function).trace(*args), costly)


def zeros(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def mlp(weights, x):
    """Three layers of 8 -> 8 on 5 rows, in a scan."""
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0].sum()


@pytest.mark.parametrize(
    ("function", "args", "expected"),
    [
        (lambda a, b: jnp.einsum("bij,bkj->bik", a, b), (zeros(2, 3, 5), zeros(2, 7, 5)), 420),
        (mlp, (zeros(3, 8, 8), zeros(5, 8)), 2 * 3 * 5 * 64),
        # Backward: the gradients of the weights and, but in the first layer, of the input.
        (jax.grad(mlp), (zeros(3, 8, 8), zeros(5, 8)), 3 * 2 * 3 * 5 * 64),
        (jax.jit(jax.vmap(mlp, (None, 0))), (zeros(3, 8, 8), zeros(4, 5, 8)), 4 * 2 * 3 * 5 * 64),
        # [N, W, C] * [O, I, W] with stride 2: 50 outputs of 16 channels, sums of 3 * 4 terms.
        (
            lambda x, w: jax.lax.conv_general_dilated(
                x, w, (2,), [(1, 1)], dimension_numbers=("NWC", "OIW", "NWC")
            ),
            (zeros(1, 100, 4), zeros(16, 4, 3)),
            2 * 50 * 16 * 12,
        ),
        (lambda x: x + jnp.sin(x), (zeros(9, 9),), 0),
    ],
)
def test_by_hand(function, args, expected):
    assert count(function, *args) == expected


def test_remat_counts_what_is_computed_again():
    loss = jax.checkpoint(lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w).sum())
    args = zeros(8, 8), zeros(5, 8)
    # Forward 2, again 2, backward 3: the gradient of x is not wanted.
    assert count(jax.grad(loss), *args) == 7 * 2 * 5 * 64


def test_branches():
    def either(flag, x):
        return jax.lax.cond(flag, lambda: x @ x @ x, lambda: x @ x)

    args = jax.ShapeDtypeStruct((), jnp.bool_), zeros(4, 4)
    assert count(either, *args) == 2 * 128
    assert count(either, *args, costly=0.25) == 1.25 * 128

    def guarded(flag, x):
        return jax.lax.cond(flag, lambda: x @ x, lambda: x)

    assert count(guarded, *args, costly=0.25) == 128


def test_a_loop_of_unknown_length_counts_once():
    def power(x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)

    assert count(power, zeros(4, 4)) == 128


def test_a_kernel_counts_its_whole_grid():
    q, segments = zeros(2, 256, 4, 128), jax.ShapeDtypeStruct((2, 256), jnp.int32)
    kernel = functools.partial(splash_attention, interpret=True)
    assert count(kernel, q, q, q, segments) == 2 * 2 * 2 * 4 * 256 * 256 * 128


def test_a_kernel_counts_on_every_device():
    mesh = sharding.make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        axes = (("batch", None),) * 2
        counted = count(
            lambda x: sharding.on_shards(lambda x, y: x @ y.T, (x, x), axes), zeros(8, 16)
        )
    assert counted == 8 * (2 * 2 * 16 * 2)


@pytest.fixture(scope="module")
def batch():
    """Two rows of 256 places, text alone."""
    example = make_example(CONFIG, [30, ("answer", 9)])
    return collate([example] * 2, BucketKey(tokens=256, grids=0, windows=8, chunks=0), 2, CONFIG)


def setup(**change):
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    return Setup(CONFIG, mesh, **change)


def test_a_step(batch):
    c, B, T = CONFIG.text, 2, 256
    heads = c.num_attention_heads * c.head_dim
    qkvo = c.hidden_size * 2 * (heads + c.num_key_value_heads * c.head_dim)
    # Blocks of 64 queries, each with the keys up to its end.
    pairs = sum(64 * end for end in range(64, T + 1, 64))
    layer = 2 * B * T * (qkvo + 3 * c.hidden_size * c.intermediate_size) + 4 * B * pairs * heads
    head = 2 * B * T * c.vocab_size * c.hidden_size
    # Forward 1, backward 2; the head's logits are made twice.
    expected = 3 * c.num_hidden_layers * layer + 4 * head
    assert step_flops(setup(), batch) == expected
    splash = setup(compute=Compute(remat="full", attention="splash"))
    assert step_flops(splash, batch) == expected
    # The last product of a layer need not be made again.
    down = 2 * B * T * c.hidden_size * c.intermediate_size
    again = c.num_hidden_layers * (layer - down)
    assert step_flops(splash, batch, remat=True) == expected + again
    accumulated = setup(accumulate=2)
    assert step_flops(accumulated, batch) == expected


def test_an_adapter_costs_less(batch):
    config = lora.LoraConfig(rank=4)
    frozen = Trainable(decoder=False, embeddings=False)
    with_adapter = step_flops(setup(lora=config, trainable=frozen), batch)
    assert 0.6 < with_adapter / step_flops(setup(), batch) < 0.9


def test_nothing_is_computed_on_the_devices_planned_for(batch, monkeypatch):
    """The state's shapes are made outside the mesh: a TPU topology's devices hold no arrays."""
    meshes = []

    def abstract_state(setup):
        meshes.append(jax.sharding.get_abstract_mesh())
        return make(setup)

    make = flops.abstract_state
    monkeypatch.setattr(flops, "abstract_state", abstract_state)
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    assert step_flops(Setup(CONFIG, mesh), batch) > 0
    assert [mesh.empty for mesh in meshes] == [True]
