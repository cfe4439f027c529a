"""What follows from a declared tree: arrays, axes, shardings and tensors fit each other."""

import math

import flax.linen as nn
import jax
import numpy as np
import pytest

from ugc_jax.models.layers import Linear, RMSNorm
from ugc_jax.models.params import (
    Param,
    Stack,
    abstract_params,
    build_tree,
    declare_module,
    get_leaf,
    leaves,
    locate,
    logical_axes,
    tensors,
)
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import omni_3b, omni_7b, tiny


class Block(nn.Module):
    """Its calls are not in the order of their names."""

    @nn.compact
    def __call__(self, x):
        return Linear(3, ("mlp", "embed"), name="b")(RMSNorm(1e-6, name="c")(x))


def block():
    return declare_module(Block(), lambda: (np.zeros((1, 2), np.float32),))


def test_declared_in_the_order_of_calls():
    found = block()
    assert found == {
        "c": {"weight": Param((2,), ("embed",))},
        "b": {"weight": Param((3, 2), ("mlp", "embed")), "bias": Param((3,), ("mlp",))},
    }
    assert list(found) == ["c", "b"]
    assert list(found["b"]) == ["weight", "bias"]


def test_names_of_a_stack():
    tree = {"head": block(), "layers": Stack(2, block())}
    names = [tensor.name for tensor in tensors(tree)]
    parts = ("c.weight", "b.weight", "b.bias")
    numbered = [f"layers.{i}.{part}" for part in parts for i in range(2)]
    assert names == [f"head.{part}" for part in parts] + numbered
    stacked, unrolled = (logical_axes(tree, stacked) for stacked in (True, False))
    assert stacked["layers"]["b"]["weight"] == ("layers", "mlp", "embed")
    assert unrolled["layers"][1]["b"]["weight"] == ("mlp", "embed")
    assert stacked["head"] == unrolled["head"]


@pytest.mark.parametrize("make", [tiny, omni_3b, omni_7b])
@pytest.mark.parametrize("stacked", [True, False])
def test_abstract_params_hold_every_tensor_once(make, stacked):
    config = make()
    declared = thinker.declare(config)
    params = abstract_params(declared, np.float32, stacked)
    table = tensors(declared)
    assert len({tensor.name for tensor in table}) == len(table)
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert total == sum(math.prod(tensor.shape) for tensor in table)
    for leaf in leaves(declared, stacked):
        assert get_leaf(params, leaf.path).shape == leaf.shape
        for tensor in leaf.tensors:
            array, row = locate(params, tensor)
            assert array is get_leaf(params, leaf.path)
            assert row == (tensor.layer if stacked else None)
    layers = params["model"]["layers"]
    expected = (config.text.hidden_size, config.text.intermediate_size)
    if stacked:
        shape = layers["mlp"]["down_proj"]["weight"].shape
        assert shape == (config.text.num_hidden_layers, *expected)
    else:
        assert isinstance(layers, tuple)
        assert len(layers) == config.text.num_hidden_layers
        assert layers[-1]["mlp"]["down_proj"]["weight"].shape == expected


@pytest.mark.parametrize("stacked", [True, False])
def test_logical_axes_fit_the_arrays(stacked):
    declared = thinker.declare(omni_3b())
    shapes, axes = (build(declared, stacked) for build in (arrays, logical_axes))
    ranks = jax.tree.map(lambda leaf, names: leaf.ndim == len(names), shapes, axes)
    assert all(jax.tree.leaves(ranks))


def arrays(declared, stacked):
    return abstract_params(declared, "bfloat16", stacked)


def test_a_tree_is_built_of_paths():
    items = [(("a", 1, "x"), 2), (("a", 0, "x"), 1), (("b",), ("embed", None))]
    assert build_tree(items) == {"a": ({"x": 1}, {"x": 2}), "b": ("embed", None)}
