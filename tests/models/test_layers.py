"""The shared layers against plain statements of what they compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.ad_checkpoint import saved_residuals

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


@pytest.mark.parametrize("joined", [False, True])
def test_a_gpu_gets_rows_of_whole_16_bytes(joined, monkeypatch):
    """A width such as 3420 is a larger one inside, of which nothing is seen outside."""
    x, width = normal(2, 3, 8), 20
    widths = {"gate_up_proj": 2 * width} if joined else {"gate_proj": width, "up_proj": width}
    params = {name: {"weight": normal(n, 8), "bias": normal(n)} for name, n in widths.items()}
    params["down_proj"] = {"weight": normal(8, width), "bias": normal(8)}
    mlp = layers.SwiGLU(width, bias=True)

    def run(params):
        return mlp.apply({"params": params}, x)

    expected = jax.value_and_grad(lambda params: jnp.sum(run(params) ** 2))(params)

    def products(platform):
        monkeypatch.setattr(layers, "platform", lambda: platform)
        equations = jax.make_jaxpr(lambda params: run(params))(params).eqns
        return [one.outvars[0].aval.shape[-1] for one in equations if "dot" in one.primitive.name]

    plain = [*widths.values(), 8]
    assert products("cpu") == products("tpu") == plain
    assert products("gpu") == (plain if joined else [24, 24, 8])
    ours = jax.value_and_grad(lambda params: jnp.sum(run(params) ** 2))(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, expected
    )


def test_dots_keeps_one_result_of_a_linear_with_an_adapter():
    """Not the product with the weight and that with the adapter, each as large as their sum."""
    x, R, width = normal(4, 16), 2, 48
    params = {"weight": normal(width, 16), "lora_a": normal(R, 16), "lora_b": normal(width, R)}

    def loss(params, remat):
        def layer(params, x, _):
            y = layers.Linear(width, (None, None), bias=False).apply({"params": params}, x)
            return x + jnp.sin(y)[:, :16], None

        stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), params)
        return jnp.sum(layers.run_layers(layer, stacked, x, remat=remat)[0] ** 2)

    sizes = [aval.shape for aval, _ in saved_residuals(lambda p: loss(p, "dots"), params)]
    assert sizes.count((3, 4, width)) == 1
    for remat in ("full", "none"):
        gradients = (jax.grad(loss)(params, one) for one in (remat, "dots"))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *gradients)


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
