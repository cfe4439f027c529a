"""LoRA: beside the weights, merged into them, split over a mesh; wrong settings are refused."""

import functools

import cases
import jax
import numpy as np
import pytest
from cases import random_params

from ugc_jax import sharding
from ugc_jax.errors import UserError
from ugc_jax.models import lora
from ugc_jax.models.compute import Compute
from ugc_jax.models.params import param_shardings
from ugc_jax.models.qwen2_5_omni import decoder, thinker
from ugc_jax.models.qwen2_5_omni.config import tiny

CONFIG = cases.fewer_layers(tiny())
LORA = lora.LoraConfig(rank=4, alpha=8.0, targets="q_proj, o_proj,down_proj")


@pytest.fixture(scope="module")
def adapter():
    """One that changes something: B is not zero."""
    start = lora.init(CONFIG, LORA, jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + 0.1 * RNG.normal(size=leaf.shape), start)


RNG = np.random.default_rng(0)
X_BTD = RNG.normal(size=(2, 12, CONFIG.text.hidden_size)).astype(np.float32)
POSITIONS = np.tile(np.arange(12, dtype=np.int32), (2, 3, 1))


@functools.partial(jax.jit, static_argnames="remat")
def hidden_states(params, remat="none"):
    compute, segments = Compute(remat=remat), np.ones((2, 12), np.int32)
    return decoder.forward(params["model"], CONFIG.text, compute, X_BTD, POSITIONS, segments)[0]


def test_a_new_adapter_changes_nothing():
    params = random_params(CONFIG)
    start = lora.init(CONFIG, LORA, jax.random.key(0))
    with_adapter = lora.combine(params, start, LORA)
    np.testing.assert_array_equal(hidden_states(with_adapter), hidden_states(params))
    a = np.asarray(start["model"]["layers"]["mlp"]["down_proj"]["lora_a"])
    bound = CONFIG.text.intermediate_size**-0.5
    assert a.shape == (CONFIG.text.num_hidden_layers, 4, CONFIG.text.intermediate_size)
    assert 0.99 * bound < abs(a).max() <= bound
    assert len(np.unique(a)) > 0.99 * a.size


@pytest.mark.parametrize("stacked", [True, False])
def test_combined_is_merged(adapter, stacked):
    params = random_params(CONFIG, stacked)
    with jax.default_matmul_precision("highest"):
        base = hidden_states(params)
        combined = hidden_states(lora.combine(params, adapter, LORA))
        merged = hidden_states(lora.merge(params, adapter, LORA))
    np.testing.assert_allclose(combined, merged, rtol=1e-4, atol=1e-5)
    assert np.abs(combined - base).max() > 0.01


def test_merged_weights(adapter):
    params = random_params(CONFIG)
    before, after = (
        tree["model"]["layers"]["self_attn"] for tree in (params, lora.merge(params, adapter, LORA))
    )
    leaves = adapter["model"]["layers"]["self_attn"]["q_proj"]
    expected = before["q_proj"]["weight"][1] + 2.0 * leaves["lora_b"][1] @ leaves["lora_a"][1]
    np.testing.assert_allclose(after["q_proj"]["weight"][1], expected, rtol=1e-5, atol=1e-6)
    assert after["k_proj"]["weight"] is before["k_proj"]["weight"]
    assert set(after["q_proj"]) == {"weight", "bias"}


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_only_its_gradient(adapter, remat):
    """The gradient of the combined tree reaches every leaf of the adapter, however recomputed."""
    params = random_params(CONFIG)

    def loss(adapter, remat):
        return hidden_states(lora.combine(params, adapter, LORA), remat).sum()

    expected = jax.grad(loss)(adapter, "none")
    ours = jax.grad(loss)(adapter, remat)
    for leaf, other in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-4)
        assert np.abs(leaf).max() > 0


def test_split_over_a_mesh_like_its_weights(adapter):
    mesh = sharding.make_mesh(1, 2, 4)
    params = random_params(CONFIG)
    placed = jax.device_put(adapter, param_shardings(lora.declare(CONFIG, LORA), mesh))
    a = placed["model"]["layers"]["mlp"]["down_proj"]["lora_a"]
    depth, rank, width = a.shape
    assert a.addressable_shards[0].data.shape == (depth, rank // 2, width // 4)
    with jax.set_mesh(mesh):
        split = jax.device_put(params, param_shardings(thinker.declare(CONFIG), mesh))
        ours = hidden_states(lora.combine(split, placed, LORA))
    expected = hidden_states(lora.combine(params, adapter, LORA))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"targets": "q_proj,fc1"},
            "^lora.targets: no linear is called 'fc1'; use some of .*q_proj",
        ),
        ({"targets": " ,"}, "^lora.targets is empty; use some of .*q_proj"),
        ({"rank": -1}, "^rank is -1"),
        ({"alpha": -1.0}, "^alpha is -1.0; use a positive number"),
    ],
)
def test_refused(change, message):
    with pytest.raises(UserError, match=message):
        lora.init(CONFIG, lora.LoraConfig(**({"rank": 4} | change)), jax.random.key(0))
