"""Attention against a plain statement of it; the kernels against the XLA implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ugc_jax.config import Compute, tiny
from ugc_jax.errors import UserError
from ugc_jax.hf import mapping
from ugc_jax.models import attention, decoder, layers
from ugc_jax.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("highest_precision")

RNG = np.random.default_rng(0)
KERNELS = {
    "splash": functools.partial(attention.splash_attention, interpret=True),
    "cudnn": functools.partial(attention.cudnn_attention, implementation="xla"),
}


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def plain_attention(q, k, v, mask):
    """q[T, N, H], k, v[S, K, H], mask[T, S] -> [T, N, H], one head and one query at a time."""
    out = np.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    for n in range(q.shape[1]):
        scores = q[:, n] @ k[:, n // group].T / np.sqrt(q.shape[-1])
        scores = np.where(mask, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, n] = weights / weights.sum(-1, keepdims=True) @ v[:, n // group]
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("block", [4, 7, 64])
def test_attention_inside_segments(causal, block):
    q, k, v = normal(2, 24, 6, 8), normal(2, 24, 2, 8), normal(2, 24, 2, 8)
    segments = np.sort(RNG.integers(0, 4, (2, 24)))[:, ::-1]
    ours = attention.attention(q, k, v, segments, causal=causal, block=block)
    for b in range(2):
        mask = segments[b][:, None] == segments[b][None]
        if causal:
            mask &= np.tri(24, dtype=bool)
        np.testing.assert_allclose(ours[b], plain_attention(q[b], k[b], v[b], mask), atol=2e-6)


def test_attention_keeps_large_scores_finite():
    q = normal(1, 4, 1, 8) * 1e4
    segments = np.zeros((1, 4), np.int32)
    out = attention.attention(q, q, normal(1, 4, 1, 8), segments, causal=True)
    assert np.isfinite(out).all()


def test_cached_attention_is_one_softmax_over_its_parts():
    q, k, v = normal(1, 4, 8), normal(9, 2, 8), normal(9, 2, 8)
    exists = RNG.random(9) < 0.7
    exists[0] = True
    cut = [slice(0, 5), slice(5, 8), slice(8, 9)]
    parts = [
        (k[part].transpose(1, 2, 0)[None], v[part].transpose(1, 0, 2)[None], exists[part][None])
        for part in cut
    ]
    theirs = plain_attention(q, k, v, exists[None])
    np.testing.assert_allclose(attention.cached_attention(q, parts), theirs, atol=2e-6)


def packed_rows(B, T):
    """Segment ids of rows with three examples of random lengths and padding at the end."""
    ends = np.sort(RNG.integers(1, T, (B, 3)))
    segments = 1 + (np.arange(T)[None, None] >= ends[..., None]).sum(1)
    return np.where(segments == 4, 0, segments).astype(np.int32)


def value_and_gradients(function, arrays, weights):
    """(result, gradients of a weighted sum of it) of a function of q, k and v."""

    def scalar(*arrays):
        out = function(*arrays)
        return jnp.sum(out * weights), out

    (_, out), gradients = jax.jit(jax.value_and_grad(scalar, (0, 1, 2), has_aux=True))(*arrays)
    return out, gradients


def check_kernel(kernel, B, T, N, K, H):
    arrays = normal(B, T, N, H), normal(B, T, K, H), normal(B, T, K, H)
    weights, segments = normal(B, T, N, H), packed_rows(B, T)
    plain = functools.partial(attention.attention, causal=True)
    expected = value_and_gradients(lambda *x: plain(*x, segments), arrays, weights)
    ours = value_and_gradients(lambda *x: kernel(*x, segments), arrays, weights)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), ours, expected
    )


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("T", [100, 384])
def test_kernel_is_xla_attention_with_its_gradients(name, T):
    check_kernel(KERNELS[name], B=2, T=T, N=4, K=2, H=16)


def test_splash_attention_with_the_heads_of_the_3b():
    check_kernel(KERNELS["splash"], B=1, T=128, N=16, K=2, H=128)


@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 2, 4), (1, 1, 8)])
def test_kernel_under_a_mesh(mesh):
    """Batch and heads split; 2 key/value heads on 4 devices are repeated, 4 heads on 8 whole."""
    with jax.set_mesh(make_mesh(*mesh)):
        kernel = functools.partial(attention.sharded_heads, KERNELS["splash"])
        check_kernel(kernel, B=8 // mesh[2], T=128, N=4, K=2, H=16)


@pytest.mark.parametrize(("remat", "kernels"), [("none", 3), ("full", 4), ("dots", 3)])
def test_dots_keeps_what_the_kernel_computed(remat, kernels):
    """A backward pass has two kernels; the forward one runs again only where all is recomputed."""
    x, segments = jnp.zeros((1, 128, 2, 16)), np.ones((1, 128), np.int32)

    def loss(weights):
        def layer(w, x, _):
            return attention.splash_attention(x @ w, x, x, segments), None

        return layers.run_layers(layer, weights, x, remat=remat)[0].sum()

    traced = jax.jit(jax.grad(loss)).trace(jnp.zeros((3, 16, 16)))
    for_tpu = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert for_tpu.count("@tpu_custom_call") == kernels


@pytest.mark.parametrize("name", ["splash", "cudnn"])
@pytest.mark.parametrize("mesh", [None, (8, 1, 1)])
def test_a_kernel_where_it_cannot_run(name, mesh):
    config = tiny().text
    params = mapping.abstract_params(tiny(), "float32")["model"]
    forward = functools.partial(decoder.forward, config=config, compute=Compute(attention=name))
    x, places = jnp.zeros((8, 128, config.hidden_size)), jnp.zeros((8, 3, 128), jnp.int32)
    segments = jnp.ones((8, 128), jnp.int32)
    with (
        jax.set_mesh(make_mesh(*mesh)) if mesh else jax.default_device(None),
        pytest.raises(UserError, match=f"attention={name} needs a .PU, .* use attention=xla"),
    ):
        jax.eval_shape(forward, params, x_BTD=x, positions_B3T=places, segments_BT=segments)
