"""Rules and meshes; the whole model split over eight devices equals the model on one."""

import contextlib
import functools
import math
import re

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ugc_jax import sharding
from ugc_jax.data.batching import BucketKey, collate
from ugc_jax.errors import UserError
from ugc_jax.generate.engine import Engine
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.models.compute import Compute
from ugc_jax.models.params import param_shardings
from ugc_jax.models.qwen2_5_omni import config as config_lib
from ugc_jax.models.qwen2_5_omni import thinker

MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (4, 1, 2), (1, 4, 2), (1, 2, 4), (2, 1, 4)]
LENGTHS = (
    4,
    5,
    8,
    11,
)  # wrong numbers without an error came and went with the length when tables were split badly


def test_an_unknown_axis_is_an_error():
    with pytest.raises(KeyError):
        sharding.spec(("vocabulary",))


def test_mesh_sizes():
    assert dict(sharding.make_mesh(2, -1, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    for sizes in ((3, 1, 1), (-1, -1, 1), (0, 8, 1), (-1, 3, 1)):
        with pytest.raises(UserError, match="mesh"):
            sharding.make_mesh(*sizes)


def test_indivisible_dimension_stays_whole():
    mesh = sharding.make_mesh(1, 2, 4)
    shape = jax.ShapeDtypeStruct((6, 8), "float32")
    assert sharding.shardings(mesh, [shape], [("vocab", "embed")])[0].spec == P(None, ("fsdp",))


def test_constrain_needs_no_mesh_and_holds_with_one():
    x = np.zeros((8, 4), np.float32)
    assert sharding.constrain(x, ("batch", None)) is x
    mesh = sharding.make_mesh(2, 4, 1)
    with jax.set_mesh(mesh):
        out = jax.jit(lambda x: sharding.constrain(x, ("batch", None)))(x)
    assert out.sharding.spec == P(("data", "fsdp"))


@pytest.fixture(scope="module")
def model():
    config = cases.fewer_layers(config_lib.tiny())
    return config, cases.random_params(config)


def everything(config):
    """Eight rows: text, sound, picture and both."""
    names = (
        "text",
        "audio",
        "image",
        "video",
        "video_with_sound",
        "several_media",
        "video_sound_shorter",
        "text",
    )
    examples = [
        cases.make_example(config, cases.CASES[name], seed) for seed, name in enumerate(names)
    ]
    return cases.one_batch(config, examples, least=BucketKey(0, 0, 0, 0))


def text_only(config, length):
    examples = [cases.make_example(config, [length], seed) for seed in range(8)]
    return collate(examples, BucketKey(length, 0, 1, 0), 8, config)


def run(config, params, mesh=None):
    """Logits of a mixed batch, its greedy tokens, and logits of text of every length."""

    @jax.jit
    def forward(params, batch):
        hidden = thinker.hidden_states(params, config, Compute(), batch)
        return thinker.logits(thinker.head(params), hidden)

    engine = Engine(config, Compute(), mesh)
    mixed = everything(config)
    batches = [mixed, *(text_only(config, length) for length in LENGTHS)]
    with (
        jax.default_matmul_precision("highest"),
        jax.set_mesh(mesh) if mesh else contextlib.nullcontext(),
    ):
        if mesh is not None:
            batches = [
                jax.device_put(batch, sharding.batch_shardings(mesh, batch)) for batch in batches
            ]
        logits = [
            np.asarray(forward(params, batch))[np.asarray(batch.segment_ids) > 0]
            for batch in batches
        ]
        options = SamplingConfig(max_new_tokens=8)
        tokens = engine.generate(params, mixed, options, np.arange(8)).tokens
    return logits, tokens


@pytest.fixture(scope="module")
def alone(model):
    return run(*model)


@pytest.mark.parametrize("sizes", MESHES, ids=lambda sizes: "x".join(map(str, sizes)))
def test_sharded_equals_unsharded(model, alone, sizes):
    config, params = model
    mesh = sharding.make_mesh(*sizes)
    split = param_shardings(thinker.declare(config), mesh)
    logits, tokens = run(config, jax.device_put(params, split), mesh)
    for ours, theirs in zip(logits, alone[0], strict=True):
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        print(f"relative error {error:.1e}")  # pytest -rP shows it
        assert error <= 1e-5
    np.testing.assert_array_equal(tokens, alone[1])


def test_the_same_devices_as_another_mesh():
    mesh = sharding.make_mesh(1, 4, 2)
    other = sharding.reshape_mesh(mesh, -1, 1, None)
    assert dict(other.shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    assert list(other.devices.flat) == list(mesh.devices.flat)
    message = "rollout mesh data=-1 fsdp=3 tensor=2 needs a multiple of 6 devices, 8 found"
    with pytest.raises(UserError, match=message):
        sharding.reshape_mesh(mesh, -1, 3, None)


@pytest.mark.parametrize("sizes", [(4, 1, 2), (1, 1, 8), (2, 2, 2), (8, 1, 1)])
@pytest.mark.parametrize("axes", [("vocab", "embed"), ("embed", "vocab"), (None, "embed")])
@pytest.mark.parametrize("trained", [(1, 8, 1), (1, 4, 2)])
def test_reshard(trained, sizes, axes):
    """Also where the target splits no dimension, or two."""
    x = jnp.arange(48 * 64.0).reshape(48, 64)
    mesh = sharding.make_mesh(*trained)
    meshes = mesh, sharding.reshape_mesh(mesh, *sizes)
    source, target = (sharding.shardings(mesh, x, axes) for mesh in meshes)
    move = functools.partial(sharding.reshard, source=source, target=target)
    moved = jax.jit(move, out_shardings=target)(jax.device_put(x, source))
    assert moved.sharding.is_equivalent_to(target, 2)
    np.testing.assert_array_equal(moved, x)


@pytest.mark.parametrize("axes", [("vocab", "embed"), ("embed", "vocab")])
def test_a_device_never_has_the_whole_of_what_is_resharded(axes):
    mesh = sharding.make_mesh(1, 8, 1)
    x = jax.ShapeDtypeStruct((48, 64), jnp.float32)
    meshes = mesh, sharding.reshape_mesh(mesh, 4, 1, 2)
    source, target = (sharding.shardings(mesh, x, axes) for mesh in meshes)
    x = sharding.abstract(x, source)

    move = functools.partial(sharding.reshard, source=source, target=target)
    program = jax.jit(move, out_shardings=target).lower(x).compile().as_text()
    shapes = re.findall(r"f32\[([\d,]+)\]", program)
    assert max(math.prod(map(int, shape.split(","))) for shape in shapes) == 48 * 32
