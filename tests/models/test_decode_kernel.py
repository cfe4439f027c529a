"""The GPU's kernels of decoding, interpreted on a CPU, against the attention in plain XLA."""

import dataclasses
import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ugc_jax.models import attention, decode_kernel
from ugc_jax.models.compute import Compute
from ugc_jax.models.decode_kernel import Plan
from ugc_jax.models.layers import cos_sin, rotate
from ugc_jax.models.qwen2_5_omni import decoder, thinker
from ugc_jax.models.qwen2_5_omni.config import tiny
from ugc_jax.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("highest_precision")


def case(B, G, K, T, H, S, N, dtype=jnp.float32, seed=0):
    """Arguments of `cached_attention`: prompts of many lengths, own tokens anywhere or none."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    lengths = np.r_[S, rng.integers(1, S + 1, B - 1)]
    prompt = normal(B, K, H, S), normal(B, K, S, H), jnp.arange(S)[None] < lengths[:, None]
    mask = rng.random((B, G, N)) < 0.3
    mask[0, 0] = False
    earlier = normal(B, K, G, H, N), normal(B, K, G, N, H), jnp.asarray(mask)
    new = normal(B, K, G, H, 1), normal(B, K, G, 1, H), None
    return normal(B * G, K * T, H), prompt, [earlier, new]


@pytest.mark.parametrize(
    ("sizes", "plan"),  # B, G, K, T, H, S, N
    [
        pytest.param((2, 1, 2, 8, 32, 160, 32), Plan(), id="one-sample"),
        pytest.param((2, 3, 1, 7, 16, 100, 16), Plan(block=16, programs=64), id="samples"),
        pytest.param((1, 2, 1, 20, 16, 33, 16), Plan(block=32, programs=1), id="many-heads"),
    ],
)
def test_the_kernels_are_the_attention(sizes, plan):
    arguments = case(*sizes)
    ours = decode_kernel.cached_attention(*arguments, plan=plan, interpret=True)
    np.testing.assert_allclose(ours, attention.cached_attention(*arguments), atol=2e-6)


def test_bfloat16_is_as_near_to_float32_as_xla():
    sizes = (1, 2, 1, 8, 64, 96, 32)
    exact = attention.cached_attention(*case(*sizes))

    def error(attend):
        result = attend(*case(*sizes, dtype=jnp.bfloat16))
        assert result.dtype == jnp.bfloat16
        return float(jnp.max(jnp.abs(result.astype(jnp.float32) - exact)))

    kernels = functools.partial(decode_kernel.cached_attention, interpret=True)
    assert error(kernels) < 1.2 * error(attention.cached_attention)


def test_keys_that_are_masked_do_not_count():
    """Whatever stands in places without a token: numbers of an earlier prompt, or infinities."""
    q, (k, v, mask), (earlier, new) = case(1, 2, 1, 4, 16, 48, 16)

    def spoiled(k, v, live):
        live_K = live[:, None]  # as the keys, with an axis of their heads
        return jnp.where(live_K[..., None, :], k, 7.0), jnp.where(live_K[..., None], v, -9.0), live

    attend = functools.partial(decode_kernel.cached_attention, interpret=True)
    changed = attend(q, spoiled(k, v, mask), [spoiled(*earlier), new])
    np.testing.assert_array_equal(changed, attend(q, (k, v, mask), [earlier, new]))


@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 1, 8)])
def test_under_a_mesh(mesh):
    arguments = case(4, 2, 2, 4, 16, 16, 16)
    attend = jax.jit(functools.partial(decode_kernel.cached_attention, interpret=True))
    alone = attend(*arguments)
    with jax.set_mesh(make_mesh(*mesh)):
        np.testing.assert_allclose(attend(*arguments), alone, atol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "slot"),  # B, G, K, T, H, S, N
    [
        pytest.param((2, 1, 2, 8, 32, 160, 32), 0, id="one-sample"),
        pytest.param((2, 3, 1, 7, 32, 100, 16), 15, id="samples"),
        pytest.param((1, 2, 1, 20, 64, 33, 16), 7, id="many-heads"),
    ],
)
def test_the_rotary_embedding_and_the_caches_of_new_tokens(sizes, slot):
    B, G, K, T, H, _, _ = sizes
    q, prompt, [(k, v, mask), _] = case(*sizes)
    keys, values = case(*sizes, seed=1)[2][1][:2]
    R = B * G
    rope = cos_sin(jax.random.normal(jax.random.key(2), (R, 1, H // 2)) * 3)

    def of_rows(x):  # [B, K, G, H, 1] or [B, K, G, 1, H] -> [R, K, H]
        return x.reshape(B, K, G, H).swapaxes(1, 2).reshape(R, K, H)

    heads = jnp.concatenate([q, of_rows(keys), of_rows(values)], axis=1)
    mask = mask.at[..., slot].set(False)  # what the place has held is gone
    out, new_k, new_v = jax.jit(functools.partial(decode_kernel.attend_and_cache, interpret=True))(
        heads.reshape(R, -1), rope, prompt, (k, v, mask), jnp.int32(slot)
    )
    q, rotated = (rotate(x[:, None], rope)[:, 0] for x in (q, of_rows(keys)))
    rotated = rotated.reshape(B, G, K, H).swapaxes(1, 2)[..., None]
    expected = attention.cached_attention(q, prompt, [(k, v, mask), (rotated, values, None)])
    np.testing.assert_allclose(out.reshape(expected.shape), expected, atol=2e-6)
    np.testing.assert_allclose(new_k, k.at[..., slot].set(rotated[..., 0]), atol=1e-6)
    np.testing.assert_array_equal(new_v, v.at[..., slot, :].set(values[..., 0, :]))


@pytest.mark.parametrize(
    ("kernel", "width", "times"),
    [
        ("attend_and_cache", 32, 1), ("cached_attention", 32, 1),
        ("attend_and_cache", 16, 0), ("cached_attention", 16, 0), ("cached_attention", 48, 0),
    ],
)  # fmt: skip
def test_a_step_takes_them_on_a_gpu(kernel, width, times, monkeypatch):
    """The first where the projections are joined; none for heads whose halves are too narrow for
    tensor cores, or that are no power of 2.
    """
    config = cases.fewer_layers(tiny())
    sections = (width // 2 - 8, 4, 4)
    text = dataclasses.replace(config.text, head_dim=width, mrope_section=sections)
    config = dataclasses.replace(config, text=text)
    params = jax.tree.map(jnp.asarray, cases.random_params(config, stacked=False))
    if kernel == "attend_and_cache":
        params = thinker.for_decoding(params, "gpu")
        assert set(params["model"]["layers"][0]["mlp"]) == {"gate_up_proj", "down_proj"}
    calls = []

    def counted(*arguments, **options):
        calls.append(1)
        return original(*arguments, **options, interpret=True)

    original = getattr(decode_kernel, kernel)
    monkeypatch.setattr(decode_kernel, kernel, counted)
    B, T, N, samples = 2, 16, 16, 2
    keys = iter(jax.random.split(jax.random.key(0), 99))
    cache = dict(dtype="float32", stacked=False)
    prompt = decoder.empty_cache(config.text, (B,), T, **cache)
    own = decoder.empty_cache(config.text, (B, samples), N, **cache)
    prompt, own = jax.tree.map(
        lambda leaf: jax.random.normal(next(keys), leaf.shape, leaf.dtype), (prompt, own)
    )
    R = B * samples
    arguments = (
        jnp.arange(R), jnp.arange(R) + T, prompt, jnp.arange(T)[None] < jnp.array([[T], [9]]), own,
        jnp.arange(N)[None] < jnp.arange(R)[:, None], jnp.int32(N - 1),
    )  # fmt: skip

    def step(attention):
        compute = Compute(attention=attention)
        calls.clear()
        run = jax.jit(functools.partial(thinker.decode_step, params, config, compute))
        return run(*arguments), len(calls)

    (logits, kept), made = step("cudnn")
    (plain_logits, plain_kept), none = step("xla")
    assert (made, none) == (times, 0)  # layers that are alike are traced once
    np.testing.assert_allclose(logits, plain_logits, atol=2e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), kept, plain_kept)
