"""Schedules, groups, decay and clipping of the optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ugc_jax.errors import UserError
from ugc_jax.models.params import get_leaf, logical_axes
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import tiny
from ugc_jax.train.optimizer import (
    OptimizerConfig,
    group_of,
    is_matrix,
    learning_rates,
    make_optimizer,
    path_keys,
)
from ugc_jax.train.state import Trainable

AXES = logical_axes(thinker.declare(tiny()))


def test_learning_rate_rises_falls_and_ends():
    rate = learning_rates(OptimizerConfig(learning_rate=1.0, warmup=0.1, final=0.1), 100)
    rates = np.array([rate(step) for step in range(101)])
    assert 0 < rates[0] < rates[5] < rates[10] == 1.0
    assert (np.diff(rates[10:]) < 0).all()
    np.testing.assert_allclose(rates[100], 0.1, rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "middle"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1)]
)
def test_schedules_without_warmup(schedule, middle):
    config = OptimizerConfig(learning_rate=1.0, warmup=0.0, schedule=schedule)
    rate = learning_rates(config, 10)
    np.testing.assert_allclose([rate(0), rate(5)], [1.0, middle], rtol=1e-5)


def tree():
    return {
        "model": {
            "layers": {"mlp": {"up_proj": {"weight": jnp.ones((2, 3, 4))}}},
            "norm": {"weight": jnp.ones(4)},
        },
        "visual": {
            "blocks": {"norm1": {"weight": jnp.ones((2, 4))}},
            "merger": {"mlp": {"0": {"weight": jnp.ones((4, 4)), "bias": jnp.ones(4)}}},
        },
        "audio_tower": {"conv1": {"weight": jnp.ones((4, 2, 3))}, "proj": {"bias": jnp.ones(4)}},
        "lm_head": {"weight": jnp.ones((5, 4))},
    }


def test_groups_and_matrices():
    found = {
        ".".join(path_keys(path)): (group_of(path), is_matrix(get_leaf(AXES, path_keys(path))))
        for path, _ in jax.tree_util.tree_leaves_with_path(tree())
    }
    assert found == {
        "model.layers.mlp.up_proj.weight": ("decoder", True),
        "model.norm.weight": ("decoder", False),
        "visual.blocks.norm1.weight": ("vision", False),
        "visual.merger.mlp.0.weight": ("projector", True),
        "visual.merger.mlp.0.bias": ("projector", False),
        "audio_tower.conv1.weight": ("audio", True),
        "audio_tower.proj.bias": ("projector", False),
        "lm_head.weight": ("embeddings", True),
    }
    trainable = Trainable(projector=True, embeddings=False)
    learning = {name for name, (group, _) in found.items() if trainable.includes(name.split("."))}
    assert {found[name][0] for name in learning} == {"decoder", "projector"}
    assert trainable.includes(("visual", "blocks", "attn", "q", "lora_a"))


def update(config: OptimizerConfig, grads):
    optimizer = make_optimizer(config, 10, AXES)
    return optimizer.update(grads, optimizer.init(tree()), tree())[0]


def test_decay_is_adamws_and_of_matrices_only():
    params = jax.tree.map(lambda leaf: 3 * leaf, tree())
    config = OptimizerConfig(learning_rate=0.1, warmup=0, weight_decay=0.5)
    ours = make_optimizer(config, 10, AXES)
    theirs = optax.adamw(
        learning_rates(config, 10),
        weight_decay=0.5,
        mask=lambda tree: jax.tree_util.tree_map_with_path(
            lambda path, _: is_matrix(get_leaf(AXES, path_keys(path))), tree
        ),
    )
    unclipped = jax.tree.map(lambda leaf: leaf / 100, tree())
    made, expected = (one.update(unclipped, one.init(params), params)[0] for one in (ours, theirs))
    for one, other in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_run_may_go_on_with_other_figures():
    """The state has one form for every decay, rate and clipping, or none: checkpoints fit."""
    states = [
        make_optimizer(OptimizerConfig(**fields), 10, AXES).init(tree())
        for fields in ({}, {"weight_decay": 0.1}, {"clip_norm": 0.0}, {"schedule": "linear"})
    ]
    forms = {str(jax.tree.structure(state)) for state in states}
    assert len(forms) == 1


def test_each_group_has_its_rate():
    config = OptimizerConfig(
        learning_rate=0.1, warmup=0, schedule="constant", vision=0.5, projector=0.0, embeddings=2.0
    )
    out = update(config, tree())
    assert jnp.allclose(out["model"]["norm"]["weight"], -0.1, rtol=1e-4)
    assert jnp.allclose(out["visual"]["blocks"]["norm1"]["weight"], -0.05, rtol=1e-4)
    assert not out["audio_tower"]["proj"]["bias"].any()
    assert jnp.allclose(out["lm_head"]["weight"], -0.2, rtol=1e-4)


def test_a_large_gradient_is_cut_to_the_norm_before_the_moments():
    config = OptimizerConfig(clip_norm=1.0)
    optimizer = make_optimizer(config, 10, AXES)
    _, state = optimizer.update(
        jax.tree.map(lambda x: 100 * x, tree()), optimizer.init(tree()), tree()
    )
    moments = next(part for part in state if isinstance(part, optax.ScaleByAdamState))
    np.testing.assert_allclose(optax.global_norm(moments.mu), 0.1, rtol=1e-4)  # 1 - b1 of it


def test_a_mean_in_bfloat16_makes_the_update_but_for_its_rounding():
    """Adam's sums stay float32: two updates differ by the rounding of the mean in between."""
    gradient = jax.tree.map(lambda x: x * jnp.linspace(0.1, 1.7, x.size).reshape(x.shape), tree())
    found = {}
    for dtype in (None, "bfloat16"):
        config = OptimizerConfig(mu_dtype=dtype, warmup=0.0, clip_norm=0.0)
        optimizer = make_optimizer(config, 10, AXES)
        state = optimizer.init(tree())
        for _ in range(2):
            updates, state = optimizer.update(gradient, state, tree())
        moments = next(part for part in state if isinstance(part, optax.ScaleByAdamState))
        kinds = [{str(leaf.dtype) for leaf in jax.tree.leaves(x)} for x in (moments.mu, moments.nu)]
        assert kinds == [{dtype or "float32"}, {"float32"}]
        found[dtype] = updates
    for one, other in zip(*map(jax.tree.leaves, found.values()), strict=True):
        assert one.dtype == other.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=2**-8)
    pairs = zip(*map(jax.tree.leaves, found.values()), strict=True)
    assert any((one != other).any() for one, other in pairs)


def test_adafactor_has_no_mean_to_keep():
    with pytest.raises(UserError, match="mu_dtype is bfloat16, and name=adafactor keeps no mean"):
        OptimizerConfig(name="adafactor", mu_dtype="bfloat16")


def test_adafactor_keeps_rows_and_columns_only():
    config = OptimizerConfig(name="adafactor")
    big = {"model": {"layers": {"mlp": {"weight": jnp.ones((2, 256, 512))}}}}
    state = make_optimizer(config, 10, AXES).init(big)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 4 * (256 + 512)


@pytest.mark.parametrize("changes", [{"warmup": 1.5}, {"learning_rate": -1.0}, {"vision": -1.0}])
def test_impossible_settings_are_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        OptimizerConfig(**changes)


@pytest.mark.parametrize(("field", "value"), [("b1", 1.0), ("eps", -1.0), ("weight_decay", -0.1)])
def test_wrong_figures_are_told(field, value):
    with pytest.raises(UserError, match=rf"^{field} is {value}; use "):
        OptimizerConfig(**{field: value})
