"""The shared layers against plain statements of what they compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ugc_jax.models import layers

pytestmark = pytest.mark.usefixtures("highest_precision")

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_rotation_turns_pairs():
    x, angles = normal(1, 3, 2, 8), normal(1, 3, 4)
    ours = np.asarray(layers.rotate(x, layers.cos_sin(angles)))
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)[:, :, None]
    np.testing.assert_allclose(ours, np.concatenate([turned.real, turned.imag], -1), atol=1e-6)


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_stacked_and_unrolled_layers_agree_with_their_gradients(remat):
    stacked = {"w": normal(3, 5, 5)}
    unrolled = tuple({"w": w} for w in stacked["w"])
    scale = np.arange(3, dtype=np.float32)

    def layer(params, x, scale):
        x = jnp.tanh(x @ params["w"]) + scale
        return x, x.sum()

    def run(params):
        scales = layers.split_like(params, scale)
        x, sums = layers.run_layers(layer, params, jnp.ones((2, 5)), scales, remat=remat)
        assert isinstance(sums, tuple) == isinstance(params, tuple)  # in the form of the layers
        return x.sum() + sum(one**2 for one in sums)

    value, gradient = jax.value_and_grad(run)(stacked)
    other_value, other_gradient = jax.value_and_grad(run)(unrolled)
    np.testing.assert_allclose(value, other_value, rtol=1e-6)
    for i, expected in enumerate(other_gradient):
        np.testing.assert_allclose(gradient["w"][i], expected["w"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("slab", "most_rows"), [(0, 12), (1, 1), (35, 3), (55, 4), (1000, 12)])
def test_slabs_change_nothing_but_the_size(slab, most_rows):
    a, b, seen = normal(12, 10, 3), normal(12, 2), []

    def function(a, b):
        seen.append(a.shape[0])
        return {"sum": a.sum(axis=1) + b[:, :1], "b": b}

    out = layers.in_chunks(function, (a, b), 10, slab)
    assert set(seen) == {most_rows}
    np.testing.assert_allclose(out["sum"], a.sum(axis=1) + b[:, :1], rtol=1e-6)
    np.testing.assert_array_equal(out["b"], b)


def test_a_gpu_gets_rows_of_whole_16_bytes(monkeypatch):
    """A width such as 3420 is padded for its product, which stays the same."""
    x, weight = normal(2, 3, 20), normal(6, 20)
    expected = layers.product("...i,oi->...o", x, weight)

    def widths(platform):
        monkeypatch.setattr(layers, "platform", lambda: platform)
        jaxpr = jax.make_jaxpr(lambda *a: layers.product("...i,oi->...o", *a))(x, weight)
        (dot,) = (one for one in jaxpr.eqns if one.primitive.name == "dot_general")
        return [one.aval.shape[-1] for one in dot.invars]

    assert widths("cpu") == widths("tpu") == [20, 20]
    assert widths("gpu") == [24, 24]
    np.testing.assert_allclose(layers.product("...i,oi->...o", x, weight), expected, atol=1e-6)


def test_a_cpu_multiplies_a_single_vector_beside_another(monkeypatch):
    """bfloat16: the product of one row takes seven times as long as that of two."""
    weight = jnp.asarray(normal(6, 20), jnp.bfloat16)
    rows = jnp.asarray(normal(3, 20), jnp.bfloat16)
    together = layers.product("...i,oi->...o", rows, weight)
    for shape in ((1, 20), (1, 1, 20), (20,)):
        x = rows[1].reshape(shape)
        y = layers.product("...i,oi->...o", x, weight)
        assert y.shape == (*shape[:-1], 6)
        assert y.dtype == jnp.bfloat16
        np.testing.assert_array_equal(y.reshape(6), together[1])
    jaxpr = jax.make_jaxpr(lambda x: layers.product("...i,oi->...o", x, weight))(rows[:1])
    (dot,) = (one for one in jaxpr.eqns if one.primitive.name == "dot_general")
    assert dot.invars[0].aval.shape == (2, 20)
    assert layers.product("...i,oi->...o", rows, weight, jnp.float32).dtype == jnp.float32
