"""The text decoder (spec 2.3): grouped-query attention, SwiGLU, rotary positions on three axes.

Letters: B rows, T tokens of a prompt, N new tokens, G samples of a prompt, D width, K key/value
heads, H head width, V vocabulary, L layers.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ugc_jax.models import attention, decode_kernel
from ugc_jax.models.compute import ON_GPUS, Compute
from ugc_jax.models.int8 import quantize
from ugc_jax.models.layers import (
    JOINED,
    Linear,
    RMSNorm,
    SwiGLU,
    Weight,
    cos_sin,
    rotate,
    run_layers,
    split_heads,
)
from ugc_jax.models.params import Stack, declare_module
from ugc_jax.models.qwen2_5_omni.config import TextConfig
from ugc_jax.sharding import constrain


class Cache(NamedTuple):
    """Keys [L, B, K, H, tokens] and values [L, B, K, tokens, H] of all layers for some tokens.

    The layout is that of attention's products, so that no decode step copies a cache. The caches of
    G completions of each prompt have an axis G after K. In int8 (models/int8.py), each head and
    token has a scale for its key and one for its value, f32[L, B, K, tokens].
    """

    k: jax.Array
    v: jax.Array
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None


def along_tokens(change: Callable[..., jax.Array], *caches: Cache) -> Cache:
    """Return `change(axis, *leaves)` of the leaves of equal caches; axis: that of the tokens."""
    axes = Cache(-1, -2, -1, -1)
    leaves = zip(axes, *caches, strict=True)
    return Cache(
        *(None if one is None else change(axis, one, *rest) for axis, one, *rest in leaves)
    )


class Rotating(NamedTuple):
    """Attention with the rotary embedding: `attend(heads, rope)` -> (its result, what to keep).

    heads: [B, T, N + 2 K, H], of queries, keys and values.
    """

    attend: Callable


class DecoderAttention(nn.Module):
    """Projections around `attend(q_BTNH, k_BTKH, v_BTKH)`, which computes attention.

    Returns (x_BTD, (k, v)). rope: `layers.cos_sin` of the tokens' angles. attend: with joined
    projections (`layers.JOINED`) also a Rotating; what it keeps is returned in the place of (k, v).
    """

    config: TextConfig

    @nn.compact
    def __call__(self, x_BTD, rope, attend):
        c = self.config

        def project(name: str, heads: int):
            return split_heads(
                Linear(heads * c.head_dim, ("heads", "embed"), name=name)(x_BTD), heads
            )

        N, K = c.num_attention_heads, c.num_key_value_heads
        joined = JOINED["self_attn"].name
        if isinstance(attend, Rotating):
            out, kept = attend.attend(project(joined, N + 2 * K), rope)
        else:
            if self.has_variable("params", joined):
                q, k, v = jnp.split(project(joined, N + 2 * K), (N, N + K), axis=2)
            else:
                q, k, v = project("q_proj", N), project("k_proj", K), project("v_proj", K)
            q, k = rotate(q, rope), rotate(k, rope)
            out, kept = attend(q, k, v), (k, v)
        out = out.reshape(*x_BTD.shape[:2], -1)
        return Linear(c.hidden_size, ("embed", "heads"), bias=False, name="o_proj")(out), kept


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP; arguments and result as in DecoderAttention."""

    config: TextConfig

    @nn.compact
    def __call__(self, x_BTD, rope, attend):
        c = self.config
        normed = RMSNorm(c.rms_norm_eps, name="input_layernorm")(x_BTD)
        out, keys_values = DecoderAttention(c, name="self_attn")(normed, rope, attend)
        x_BTD = x_BTD + out
        normed = RMSNorm(c.rms_norm_eps, name="post_attention_layernorm")(x_BTD)
        return x_BTD + SwiGLU(c.intermediate_size, bias=False, name="mlp")(normed), keys_values


def forward(
    params,
    config: TextConfig,
    compute: Compute,
    x_BTD,
    positions_B3T,
    segments_BT,
    keep_cache: bool = False,
    shared_prompt: bool = False,
):
    """Return (hidden states [B, T, D] after the last norm, Cache or None) of embedded tokens.

    positions_B3T: i32, (time, height, width). segments_BT: i32, 0 for padding; attention is causal
    inside a segment and, with shared_prompt, also to segment 1 (see `attention.visible_keys`).
    keep_cache: return a Cache. params: the `model` subtree.
    """
    rope = cos_sin(mrope_angles(positions_B3T, config))
    x_BTD = constrain(x_BTD, ("batch", None, None))

    def attend(q, k, v):
        return attention.causal_attention(q, k, v, segments_BT, compute.attention, shared_prompt)

    def layer(layer_params, x, _):
        x, (k, v) = DecoderLayer(config).apply({"params": layer_params}, x, rope, attend)
        kept = _prompt_cache(k, v, compute.cache == "int8") if keep_cache else None
        return constrain(x, ("batch", None, None)), kept

    x_BTD, cache = run_layers(layer, params["layers"], x_BTD, remat=compute.remat)
    return RMSNorm(config.rms_norm_eps).apply({"params": params["norm"]}, x_BTD), cache


def decode_layers(
    params,
    config: TextConfig,
    compute: Compute,
    x_RD,
    position_R,
    prompt,
    prompt_BT,
    own,
    own_RN,
    slot,
):
    """Run one new token a row, with the cache of the prompts and that of the rows' earlier tokens.

    The R = B * G rows are G samples of each of B prompts, row b * G + g; they share its cache.
    x_RD: the tokens' embeddings. position_R: i32, their position on all three axes. prompt: caches
    in the form of the layers (a Cache, or a tuple of one a layer). prompt_BT: bool, false for
    padding. own: of `empty_cache`, with N places a row. own_RN: bool, the places that hold earlier
    tokens of the row; their order does not matter, as positions are in the keys.
    Returns (hidden [R, D] after the last norm, own with these tokens' keys and values in place
    `slot` (i32 scalar) of each row).
    """
    position_R3T = jnp.broadcast_to(position_R[:, None, None], (len(position_R), 3, 1))
    rope = cos_sin(mrope_angles(position_R3T, config))
    earlier_BGN = own_RN.reshape(len(prompt_BT), -1, own_RN.shape[-1])
    samples = earlier_BGN.shape[1]
    in_int8 = compute.cache == "int8"  # which the kernels do not read
    fits = config.head_dim in decode_kernel.WIDTHS and not in_int8
    by_kernel = compute.attention in ON_GPUS and fits
    kernel = decode_kernel if by_kernel else attention

    def keys(cache: Cache, mask):
        return (cache.k, cache.v, mask, *(cache[2:] if in_int8 else ()))

    def layer(layer_params, x, caches):
        prompt_layer, own_layer = caches

        def attend(q, k, v):
            new = _completion_cache(k, v, samples)
            rows = [keys(own_layer, earlier_BGN), (new.k, new.v, None)]
            return kernel.cached_attention(q[:, 0], keys(prompt_layer, prompt_BT), rows)[:, None]

        x, (k, v) = DecoderLayer(config).apply({"params": layer_params}, x, rope, attend)
        new = _completion_cache(k, v, samples)
        return x, _quantized(new) if in_int8 else new

    def layer_in_kernel(layer_params, x, caches):
        prompt_layer, own_layer = caches

        def attend(qkv, rope):
            rows = keys(prompt_layer, prompt_BT), keys(own_layer, earlier_BGN)
            out_RC, *kept = decode_kernel.attend_and_cache(
                qkv.reshape(len(qkv), -1), rope, *rows, slot
            )
            return out_RC[:, None], Cache(*kept)

        return DecoderLayer(config).apply({"params": layer_params}, x, rope, Rotating(attend))

    caches = (prompt, own) if isinstance(own, Cache) else tuple(zip(prompt, own, strict=True))

    def write(own: Cache, this: Cache) -> Cache:
        def update(axis: int, old, new):
            return jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis=axis)

        return along_tokens(update, own, this)

    if by_kernel and _rotates_in_kernel(params["layers"]):
        x_R1D, own = run_layers(layer_in_kernel, params["layers"], x_RD[:, None], caches)
    else:
        x_R1D, this = run_layers(layer, params["layers"], x_RD[:, None], caches)
        own = jax.tree.map(write, own, this, is_leaf=lambda node: isinstance(node, Cache))
    return RMSNorm(config.rms_norm_eps).apply({"params": params["norm"]}, x_R1D)[:, 0], own


def _rotates_in_kernel(layers) -> bool:
    """Return whether layers and mesh are those of `decode_kernel.attend_and_cache`."""
    if jax.sharding.get_abstract_mesh().size > 1 or not isinstance(layers, tuple):
        return False
    return JOINED["self_attn"].name in layers[0]["self_attn"]


def empty_cache(
    config: TextConfig,
    shape: tuple[int, ...],
    tokens: int,
    dtype,
    stacked: bool,
    in_int8: bool = False,
):
    """Return zero caches of `tokens` tokens, in the form of stacked or unrolled layers.

    shape: (B,) for prompts; (B, G) for G completions of each prompt. in_int8: whatever the dtype.
    """
    heads = (shape[0], config.num_key_value_heads, *shape[1:])

    def zeros(*leading: int) -> Cache:
        sizes = (config.head_dim, tokens), (tokens, config.head_dim)
        kind, scales = (jnp.int8, 2) if in_int8 else (dtype, 0)
        values = [jnp.zeros((*leading, *heads, *size), kind) for size in sizes]
        zero = [jnp.zeros((*leading, *heads, tokens), jnp.float32) for _ in range(scales)]
        return Cache(*values, *zero)

    layers = config.num_hidden_layers
    return zeros(layers) if stacked else tuple(zeros() for _ in range(layers))


def cache_axes(cache):
    """Return the logical axes of caches, a like tree."""

    def axes(leaf, leading: tuple):
        return leading + ("batch", "heads") + (None,) * (leaf.ndim - len(leading) - 2)

    leading = (None,) if isinstance(cache, Cache) else ()
    return jax.tree.map(lambda leaf: axes(leaf, leading), cache)


def _prompt_cache(k_BTKH, v_BTKH, in_int8: bool) -> Cache:
    """One layer's keys and values in the layout of a prompt's Cache."""
    cache = Cache(k_BTKH.transpose(0, 2, 3, 1), v_BTKH.transpose(0, 2, 1, 3))
    return _quantized(cache) if in_int8 else cache


def _quantized(cache: Cache) -> Cache:
    (k, k_scale), (v, v_scale) = quantize(cache.k, axis=-2), quantize(cache.v, axis=-1)
    return Cache(k, v, k_scale, v_scale)


def _completion_cache(k_R1KH, v_R1KH, samples: int) -> Cache:
    """One layer's keys and values of one new token a row, in the layout of `empty_cache`."""

    def split(x_R1KH):
        R, _, K, H = x_R1KH.shape
        return x_R1KH.reshape(R // samples, samples, K, H).transpose(0, 2, 1, 3)

    return Cache(split(k_R1KH)[..., None], split(v_R1KH)[..., None, :])


def mrope_angles(positions_B3T: jax.Array, config: TextConfig) -> jax.Array:
    """Return angles f32[B, T, H / 2]; `mrope_section` gives the position axis of each frequency."""
    half = config.head_dim // 2
    inverse = 1.0 / config.rope_theta ** (np.arange(half, dtype=np.float32) * 2 / config.head_dim)
    axis_of_frequency = np.repeat(np.arange(3), config.mrope_section)
    return (
        positions_B3T.astype(jnp.float32).transpose(0, 2, 1)[..., axis_of_frequency]
        * inverse.astype(np.float32)[None, None]
    )


def declare(config: TextConfig) -> dict:
    """Return the declared tree (models/params.py) of the decoder, without the head."""

    def x():
        return jnp.zeros((1, 1, config.hidden_size))

    def inputs():
        return x(), cos_sin(jnp.zeros((1, 1, config.head_dim // 2))), lambda q, k, v: q

    return {
        "embed_tokens": declare_module(
            Weight((config.vocab_size, config.hidden_size), ("vocab", "embed"))
        ),
        "norm": declare_module(RMSNorm(config.rms_norm_eps), lambda: (x(),)),
        "layers": Stack(config.num_hidden_layers, declare_module(DecoderLayer(config), inputs)),
    }
