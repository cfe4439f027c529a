"""Attention against a plain statement of it; the kernels against the XLA implementation."""

import functools
import re

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_devices import TPU, TRITON, gpu, lowers_for_gpus, text_for, traced_for

from ugc_jax.errors import UserError
from ugc_jax.models import attention, layers
from ugc_jax.models.compute import Compute
from ugc_jax.models.flash_kernel import Plan, Tiles, flash_attention
from ugc_jax.models.params import abstract_params
from ugc_jax.models.qwen2_5_omni import decoder, thinker
from ugc_jax.models.qwen2_5_omni.config import tiny
from ugc_jax.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("highest_precision")

RNG = np.random.default_rng(0)
KERNELS = {
    "splash": functools.partial(attention.splash_attention, interpret=True),
    "cudnn": functools.partial(attention.cudnn_attention, implementation="xla"),
    "flash": functools.partial(flash_attention, interpret=True),
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


def shared_rows(B, T):
    """Segment ids of rows with a prompt, three completions of random lengths and padding."""
    ends = np.sort(RNG.choice(np.arange(1, T), (B, 4), replace=False))
    segments = 1 + (np.arange(T)[None, None] >= ends[..., None]).sum(1)
    return np.where(segments == 5, 0, segments).astype(np.int32)


@pytest.mark.parametrize("block", [4, 7, 64])
def test_attention_to_a_shared_prompt(block):
    """Each completion attends as if it alone came after the prompt."""
    q, k, v = normal(2, 24, 6, 8), normal(2, 24, 2, 8), normal(2, 24, 2, 8)
    segments = shared_rows(2, 24)
    ours = attention.attention(q, k, v, segments, causal=True, shared_prompt=True, block=block)
    for b in range(2):
        for segment in range(1, 5):
            alone = (segments[b] == 1) | (segments[b] == segment)
            inputs = (x[b][alone] for x in (q, k, v))
            expected = plain_attention(*inputs, np.tri(alone.sum(), dtype=bool))
            np.testing.assert_allclose(ours[b][alone], expected, atol=2e-6)


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


def test_cached_attention_is_one_softmax_over_prompt_and_own_keys():
    """Three samples of one prompt: each as if it had a copy of the prompt's keys."""
    q, k, v = normal(3, 4, 8), normal(5, 2, 8), normal(5, 2, 8)
    own_k, own_v = normal(3, 4, 2, 8), normal(3, 4, 2, 8)
    exists = np.array([True, False, True, True, False])
    filled = np.array([True, True, True, False])
    own = [
        (own_k[:, :3].transpose(2, 0, 3, 1)[None], own_v[:, :3].transpose(2, 0, 1, 3)[None], None),
        (
            own_k[:, 3:].transpose(2, 0, 3, 1)[None],
            own_v[:, 3:].transpose(2, 0, 1, 3)[None],
            np.broadcast_to(filled[3:], (1, 3, 1)),
        ),
    ]
    prompt = k.transpose(1, 2, 0)[None], v.transpose(1, 0, 2)[None], exists[None]
    ours = attention.cached_attention(q, prompt, own)
    for g in range(3):
        keys, values = np.concatenate([k, own_k[g]]), np.concatenate([v, own_v[g]])
        mask = np.concatenate([exists, filled])[None]
        theirs = plain_attention(q[g : g + 1], keys, values, mask)
        np.testing.assert_allclose(ours[g : g + 1], theirs, atol=2e-6)


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


def check_kernel(kernel, B, T, N, K, H, shared_prompt=False, segments=None):
    """The results of padding have no meaning, and no loss reads them."""
    arrays = normal(B, T, N, H), normal(B, T, K, H), normal(B, T, K, H)
    if segments is None:
        segments = shared_rows(B, T) if shared_prompt else packed_rows(B, T)
    live = (segments > 0)[..., None, None]
    weights = normal(B, T, N, H) * live

    def results(function):
        function = functools.partial(function, shared_prompt=shared_prompt)
        return value_and_gradients(lambda *x: function(*x, segments) * live, arrays, weights)

    expected = results(functools.partial(attention.attention, causal=True))
    ours = results(kernel)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), ours, expected
    )


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("T", [100, 384])
@pytest.mark.parametrize("shared_prompt", [False, True])
def test_kernel_is_xla_attention_with_its_gradients(name, T, shared_prompt):
    check_kernel(KERNELS[name], B=2, T=T, N=4, K=2, H=16, shared_prompt=shared_prompt)


@pytest.mark.parametrize("name", ["splash", "flash"])
def test_a_kernel_skips_what_a_completion_does_not_see(name):
    """Blocks of 128: prompt, two completions. What is masked but computed would be 0 * nan."""
    segments = np.repeat([[1, 2, 3]], 128, axis=1).astype(np.int32)
    q, k, v = normal(1, 384, 2, 16), normal(1, 384, 1, 16), normal(1, 384, 1, 16)
    v[:, 128:256] = np.nan

    def loss(q):
        out = KERNELS[name](q, k, v, segments, shared_prompt=True)
        return out.sum(), out

    grad, out = jax.grad(loss, has_aux=True)(q)
    for result in (out, grad):
        assert np.isfinite(result[:, :128]).all()
        assert np.isnan(result[:, 128:256]).all()
        assert np.isfinite(result[:, 256:]).all()


@pytest.mark.parametrize(
    "plan",
    [
        Plan(programs=1),  # all heads of a key head in a program
        Plan(Tiles(32, 16), Tiles(16, 64), Tiles(64, 16)),
        Plan(Tiles(16, 64), Tiles(64, 16), Tiles(16, 32), programs=30),
    ],
)
@pytest.mark.parametrize("shared_prompt", [False, True])
def test_flash_attention_in_blocks_of_any_size(plan, shared_prompt):
    """Also of lengths that are no multiple of a block."""
    kernel = functools.partial(KERNELS["flash"], plan=plan)
    check_kernel(kernel, B=2, T=90, N=4, K=1, H=16, shared_prompt=shared_prompt)


@pytest.mark.parametrize(("T", "H", "calls"), [(64, 80, 1), (25, 64, 1), (64, 20, 0)])
def test_the_encoders_on_a_gpu(T, H, calls, monkeypatch):
    """By cuDNN, whose program for CPUs is that of jax; heads that it does not take by XLA."""
    segments = (np.random.default_rng(0).random((3, T)) < 0.7).astype(np.int32)
    q, k, v = (normal(3, T, 4, H) for _ in range(3))
    called, cudnn = [], attention.cudnn_attention

    def counted(*arguments, **options):
        called.append(1)
        return cudnn(*arguments, **options, implementation="xla")

    monkeypatch.setattr(attention, "cudnn_attention", counted)
    monkeypatch.setattr(attention, "platform", lambda: "gpu")
    found = attention.tower_attention(q, k, v, segments, "flash")
    assert len(called) == calls
    plain, live = attention.attention(q, k, v, segments), segments == 1
    np.testing.assert_allclose(found[live], plain[live], atol=2e-6)
    assert np.isfinite(found).all()
    monkeypatch.setattr(attention, "platform", lambda: "cpu")
    if calls:
        with pytest.raises(UserError, match="attention=flash needs a GPU"):
            attention.tower_attention(q, k, v, segments, "flash")


@pytest.mark.parametrize("shared_prompt", [False, True])
def test_flash_attention_to_rows_of_one_segment_and_to_empty_ones(shared_prompt):
    """Seven heads share the keys, as in the 7B. Padding is 0 and gets no gradient."""
    segments = np.array([[1] * 40, [1] * 9 + [0] * 31, [0] * 40, [0] * 12 + [1] * 20 + [2] * 8])
    segments = segments.astype(np.int32)
    plan = Plan(*(Tiles(16, 16) for _ in range(3)))
    kernel = functools.partial(KERNELS["flash"], plan=plan)
    check_kernel(kernel, 4, 40, N=7, K=1, H=16, shared_prompt=shared_prompt, segments=segments)
    q, k = normal(4, 40, 7, 16), normal(4, 40, 1, 16)
    kernel = functools.partial(kernel, shared_prompt=shared_prompt)
    out, grads = value_and_gradients(lambda *x: kernel(*x, segments), (q, k, k), np.ones_like(q))
    for x in (out, *grads):
        assert np.isfinite(x).all()
        assert not np.asarray(x)[segments == 0].any()


def test_flash_attention_in_bfloat16_is_as_near_to_float32_as_xla():
    arrays = [normal(2, 160, heads, 64) for heads in (4, 2, 2)]
    weights, segments = normal(2, 160, 4, 64), packed_rows(2, 160)
    weights *= (segments > 0)[..., None, None]

    def results(function, dtype):
        def run(*arrays):
            out = function(*(x.astype(dtype) for x in arrays), segments)
            assert out.dtype == dtype
            return jnp.where(segments[..., None, None] > 0, out, 0).astype(jnp.float32)

        out, grads = value_and_gradients(run, arrays, weights)
        return out, *grads

    plain = functools.partial(attention.attention, causal=True)
    exact = results(plain, jnp.float32)
    ours, theirs = (results(one, jnp.bfloat16) for one in (KERNELS["flash"], plain))
    for a, b, right in zip(ours, theirs, exact, strict=True):
        assert jnp.linalg.norm(a - right) < 1.2 * jnp.linalg.norm(b - right)


def squares(jaxpr, size: int) -> list[str]:
    """All arrays of a program with two axes of at least `size`, a row's tokens."""
    found = (x.aval for one in cases.equations(jaxpr) for x in one.outvars)
    return [str(aval) for aval in found if sum(n >= size for n in aval.shape) > 1]


@pytest.mark.parametrize("shared_prompt", [False, True])
@pytest.mark.parametrize(
    ("device", "name", "holds_masks"),
    [(gpu(), "flash", False), (gpu(), "cudnn", True)],
)
def test_no_mask_of_a_row_is_in_the_program(device, name, holds_masks, shared_prompt, monkeypatch):
    """Neither forward nor backward: [T, T] of any dtype, with T of a row of training."""
    T = 4096
    q, k = jnp.zeros((1, T, 4, 128), jnp.bfloat16), jnp.zeros((1, T, 2, 128), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((1, T), jnp.int32)

    def loss(q, k, v, segments):
        out = attention.causal_attention(q, k, v, segments, name, shared_prompt)
        return out.astype(jnp.float32).sum()

    trace = functools.partial(jax.jit(jax.grad(loss, (0, 1, 2))).trace, q, k, k, segments)
    program = traced_for(device, trace, monkeypatch).jaxpr.jaxpr
    assert bool(squares(program, T)) == holds_masks


def test_splash_attention_with_the_heads_of_the_3b():
    check_kernel(KERNELS["splash"], B=1, T=128, N=16, K=2, H=128)


@pytest.mark.parametrize(
    ("name", "mesh"),
    [(name, mesh) for name in ("splash", "flash") for mesh in ((2, 2, 2), (1, 2, 4), (1, 1, 8))],
)
@pytest.mark.parametrize("shared_prompt", [False, True])
def test_kernel_under_a_mesh(name, mesh, shared_prompt):
    """Batch and heads split; 2 key/value heads on 4 devices are repeated, 4 heads on 8 whole."""

    def sharded(*arrays, shared_prompt):
        kernel = functools.partial(KERNELS[name], shared_prompt=shared_prompt)
        return attention.sharded_heads(kernel, *arrays)

    with jax.set_mesh(make_mesh(*mesh)):
        check_kernel(sharded, 8 // mesh[2], T=128, N=4, K=2, H=16, shared_prompt=shared_prompt)


@pytest.mark.parametrize(
    ("kernel", "platform", "call"),
    [
        (attention.splash_attention, "tpu", "@tpu_custom_call"),
        (flash_attention, "cuda", TRITON),
    ],
)
@pytest.mark.parametrize(("remat", "kernels"), [("none", 3), ("full", 4), ("dots", 3)])
def test_dots_keeps_what_the_kernel_computed(remat, kernels, kernel, platform, call, monkeypatch):
    """A backward pass has two kernels; the forward one runs again only where all is recomputed."""
    lowers_for_gpus(monkeypatch)
    monkeypatch.setattr(layers, "platform", lambda: platform)  # layers in a loop, not in a row
    x, segments = jnp.zeros((1, 128, 2, 16), jnp.bfloat16), np.ones((1, 128), np.int32)

    def loss(weights):
        def layer(w, x, _):
            return kernel(x @ w, x, x, segments), None

        return layers.run_layers(layer, weights, x, remat=remat)[0].sum()

    traced = jax.jit(jax.grad(loss)).trace(jnp.zeros((3, 16, 16), jnp.bfloat16))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert used_calls(text, call) == kernels


def used_calls(text: str, call: str) -> int:
    """Calls whose results a program reads; the compiler removes the others."""

    def is_used(found: re.Match) -> bool:
        rest = text[found.end() :].partition("func.func")[0]
        return re.search(rf"{found[1]}(#\d+)?[^\d:#]", rest) is not None

    return sum(map(is_used, re.finditer(rf"(%\d+)(?::\d+)? = .*{re.escape(call)}", text)))


@pytest.mark.parametrize("mesh", [None, (2, 1, 4)])
@pytest.mark.parametrize("shared_prompt", [False, True])
@pytest.mark.parametrize(
    ("device", "name", "call", "calls"),
    [
        (gpu(), "cudnn", "@__cudnn$fmhaScaleBiasSoftmax", 2),
        (gpu(), "flash", TRITON, 3),
        (TPU, "splash", "@tpu_custom_call", 3),
    ],
)
def test_a_kernel_in_the_program(mesh, shared_prompt, device, name, call, calls, monkeypatch):
    """Forward and backward; of 101 tokens, an odd number, which neither takes as it is."""
    q, k = jnp.zeros((4, 101, 8, 128), jnp.bfloat16), jnp.zeros((4, 101, 2, 128), jnp.bfloat16)
    segments = jnp.ones((4, 101), jnp.int32)

    def loss(q, k, v):
        out = attention.causal_attention(q, k, v, segments, name, shared_prompt)
        assert out.shape == q.shape
        return out.astype(jnp.float32).sum()

    with jax.set_mesh(make_mesh(*mesh)) if mesh else jax.default_device(None):
        trace = functools.partial(jax.jit(jax.grad(loss, (0, 1, 2))).trace, q, k, k)
        assert text_for(device, trace, monkeypatch).count(call) == calls


@pytest.mark.parametrize("shared_prompt", [False, True])
def test_cudnn_attention_of_an_odd_length(shared_prompt):
    check_kernel(KERNELS["cudnn"], B=2, T=101, N=4, K=2, H=16, shared_prompt=shared_prompt)


@pytest.mark.parametrize("name", ["splash", "cudnn", "flash"])
@pytest.mark.parametrize("mesh", [None, (8, 1, 1)])
def test_a_kernel_where_it_cannot_run(name, mesh):
    config = tiny().text
    params = abstract_params(thinker.declare(tiny()), "float32")["model"]
    forward = functools.partial(decoder.forward, config=config, compute=Compute(attention=name))
    x, places = jnp.zeros((8, 128, config.hidden_size)), jnp.zeros((8, 3, 128), jnp.int32)
    segments = jnp.ones((8, 128), jnp.int32)
    with (
        jax.set_mesh(make_mesh(*mesh)) if mesh else jax.default_device(None),
        pytest.raises(
            UserError,
            match=f"attention={name} needs a [GT]PU, and the devices are CPUs; use attention=xla",
        ),
    ):
        jax.eval_shape(forward, params, x_BTD=x, positions_B3T=places, segments_BT=segments)
