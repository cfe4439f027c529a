"""The thinker's declared tree: the counts of spec section 0, its axes and its groups."""

import functools
import math
from collections import Counter

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ugc_jax.models.compute import Compute
from ugc_jax.models.params import leaves, param_shardings, tensors
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import omni_3b, tiny
from ugc_jax.models.qwen2_5_omni.names import GROUPS, LOOKED_UP, parameter_group
from ugc_jax.sharding import RULES, make_mesh


def test_3b_has_the_published_counts():
    table = tensors(thinker.declare(omni_3b()))
    counts = Counter()
    sizes = Counter()
    for tensor in table:
        part = tensor.name.split(".")[0]
        counts[part] += 1
        sizes[part] += math.prod(tensor.shape)
    assert counts == {"model": 434, "visual": 518, "audio_tower": 489, "lm_head": 1}
    assert sizes == {
        "model": 3_085_938_688,
        "lm_head": 311_164_928,
        "visual": 668_684_288,
        "audio_tower": 637_676_544,
    }
    assert len(table) == 1442
    assert sum(sizes.values()) == 4_703_464_448


def test_rules_name_every_logical_axis_of_the_model():
    names = {name for leaf in leaves(thinker.declare(tiny())) for name in leaf.axes}
    assert names - {None} <= {"layers", "vocab", "embed", "heads", "mlp"} <= RULES.keys()


def test_every_leaf_has_a_group():
    declared = leaves(thinker.declare(tiny()))
    sizes = Counter(parameter_group(leaf.path) for leaf in declared)
    assert set(sizes) == set(GROUPS)
    assert sizes["embeddings"] == 2
    # The merger's norm and two linears; the audio encoder's last norm, projection and two tokens.
    assert sizes["projector"] == 5 + 5


def test_what_is_looked_up_is_there():
    assert set(LOOKED_UP) <= {tensor.name for tensor in tensors(thinker.declare(tiny()))}


@pytest.mark.parametrize("stacked", [True, False])
def test_for_decoding_joins_products_of_the_same_vectors(stacked):
    config = cases.fewer_layers(tiny())
    params = jax.tree.map(jnp.asarray, cases.random_params(config, stacked))
    joined = thinker.for_decoding(params, "cpu")
    layer = joined["model"]["layers"][1]
    assert set(layer["self_attn"]) == {"qkv_proj", "o_proj"}
    assert set(layer["mlp"]) == {"gate_up_proj", "down_proj"}
    assert thinker.for_decoding(params, "tpu") is params
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 8, config.text.hidden_size)), jnp.float32)
    places = jnp.broadcast_to(jnp.arange(8), (2, 3, 8)), jnp.ones((2, 8), jnp.int32)
    run = functools.partial(thinker.prefill, config=config, compute=Compute())
    hidden, _ = run(params, x_BTD=x, positions_B3T=places[0], segments_BT=places[1])
    ours, _ = run(joined, x_BTD=x, positions_B3T=places[0], segments_BT=places[1])
    np.testing.assert_allclose(ours, hidden, atol=1e-5)


def test_for_decoding_leaves_adapters_and_split_weights_apart():
    config = cases.fewer_layers(tiny())
    params = jax.tree.map(jnp.asarray, cases.random_params(config, stacked=False))
    q_proj = params["model"]["layers"][0]["self_attn"]["q_proj"]
    q_proj |= dict(lora_a=jnp.ones((2, 4)), lora_b=jnp.ones((4, 2)))
    first, second = thinker.for_decoding(params, "gpu")["model"]["layers"]
    assert {"q_proj", "k_proj", "v_proj"} < set(first["self_attn"])
    assert "gate_up_proj" in first["mlp"]
    assert "qkv_proj" in second["self_attn"]

    declared = thinker.declare(config)
    whole = cases.random_params(config, stacked=False)
    for tensor, is_joined in ((2, False), (1, True)):
        mesh = make_mesh(1, 8 // tensor, tensor)
        split = jax.device_put(whole, param_shardings(declared, mesh, stacked=False))
        layer = thinker.for_decoding(split, "cpu")["model"]["layers"][0]
        assert ("qkv_proj" in layer["self_attn"]) == is_joined
        assert ("gate_up_proj" in layer["mlp"]) == is_joined


def test_token_embeddings_of_a_cpu_are_looked_up_as_bits():
    """XLA for CPUs converts a table of bfloat16 to float32 as a whole, each time."""
    config = cases.fewer_layers(tiny())
    params = jax.tree.map(jnp.asarray, cases.random_params(config, stacked=False))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    compute, tokens = Compute("bfloat16"), jnp.array([[3, 1, 4], [1, 5, 9]])
    table = thinker.for_decoding(half, "cpu")["model"]["embed_tokens"]["weight"]
    assert table.dtype == jnp.uint16
    ours = thinker.embed(thinker.for_decoding(half, "cpu"), compute, tokens)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, thinker.embed(half, compute, tokens))
    for kept, platform in ((params, "cpu"), (half, "gpu")):
        leaf = thinker.for_decoding(kept, platform)["model"]["embed_tokens"]["weight"]
        assert leaf.dtype == kept["model"]["embed_tokens"]["weight"].dtype
