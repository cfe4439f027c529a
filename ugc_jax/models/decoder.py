"""The text decoder (spec 2.3): grouped-query attention, SwiGLU, rotary positions on three axes.

Letters: B rows, T tokens of a prompt, N new tokens, D width, K key/value heads, H head width,
V vocabulary, L layers.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ugc_jax.config import Compute, TextConfig
from ugc_jax.models.attention import cached_attention, causal_attention
from ugc_jax.models.layers import (
    Linear,
    RMSNorm,
    SwiGLU,
    Weight,
    declared,
    rotate,
    rotation,
    run_layers,
    split_heads,
    split_like,
)
from ugc_jax.sharding import constrain


class Cache(NamedTuple):
    """Keys [L, B, K, H, tokens] and values [L, B, K, tokens, H] of all layers for some tokens.

    Laid out as the products of attention read them, so that no step of decoding copies them.
    """

    k: jax.Array
    v: jax.Array


class DecoderAttention(nn.Module):
    """Projections around `attend(q_BTNH, k_BTKH, v_BTKH)`, which says over what to attend.

    Returns (x_BTD, (k, v)). turn: `layers.rotation` of the tokens' positions.
    """

    config: TextConfig

    @nn.compact
    def __call__(self, x_BTD, turn, attend):
        c = self.config

        def project(name: str, heads: int):
            return split_heads(
                Linear(heads * c.head_dim, ("heads", "embed"), name=name)(x_BTD), heads
            )

        q = rotate(project("q_proj", c.num_attention_heads), turn)
        k = rotate(project("k_proj", c.num_key_value_heads), turn)
        v = project("v_proj", c.num_key_value_heads)
        out = attend(q, k, v).reshape(*x_BTD.shape[:2], -1)
        return Linear(c.hidden_size, ("embed", "heads"), bias=False, name="o_proj")(out), (k, v)


class DecoderLayer(nn.Module):
    config: TextConfig

    @nn.compact
    def __call__(self, x_BTD, turn, attend):
        c = self.config
        normed = RMSNorm(c.rms_norm_eps, name="input_layernorm")(x_BTD)
        out, keys_values = DecoderAttention(c, name="self_attn")(normed, turn, attend)
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
):
    """Embedded tokens -> (final hidden states [B, T, D] after the last norm, Cache or None).

    positions_B3T: i32, (time, height, width). segments_BT: i32, 0 padding; attention is causal
    inside a segment. params: the `model` part of the parameter tree.
    """
    turn = rotation(rotary_angles(positions_B3T, config))
    x_BTD = constrain(x_BTD, ("batch", None, None))

    def attend(q, k, v):
        return causal_attention(q, k, v, segments_BT, compute.attention)

    def layer(layer_params, x, _):
        x, (k, v) = DecoderLayer(config).apply({"params": layer_params}, x, turn, attend)
        kept = _kept(k, v) if keep_cache else None
        return constrain(x, ("batch", None, None)), kept

    x_BTD, cache = run_layers(layer, params["layers"], x_BTD, remat=compute.remat)
    return RMSNorm(config.rms_norm_eps).apply({"params": params["norm"]}, x_BTD), cache


def decode_step(params, config: TextConfig, x_BD, position_B, prompt, prompt_BT, own: Cache, step):
    """One new token against two caches: the prompt's and that of the tokens generated before it.

    x_BD: its embedding. position_B: i32, its position on all three axes. prompt: a Cache, after
    `split_like` the layers. prompt_BT: bool, which of its keys exist. own: cache of N places of
    which the first `step` (i32 scalar) are filled.
    Returns (hidden [B, D] after the last norm, own with this token's keys and values at place
    `step`).
    """
    turn = rotation(
        rotary_angles(jnp.broadcast_to(position_B[:, None, None], (len(position_B), 3, 1)), config)
    )
    N = own.k.shape[-1]
    earlier_BN = jnp.broadcast_to(jnp.arange(N)[None] < step, (len(position_B), N))
    itself_B1 = jnp.ones((len(position_B), 1), bool)

    def layer(layer_params, x, caches):
        prompt_layer, own_layer = caches

        def attend(q, k, v):
            this = (*_kept(k, v), itself_B1)
            parts = [(*prompt_layer, prompt_BT), (*own_layer, earlier_BN), this]
            return cached_attention(q[:, 0], parts)[:, None]

        x, (k, v) = DecoderLayer(config).apply({"params": layer_params}, x, turn, attend)
        return x, _kept(k, v)

    caches = (prompt, split_like(params["layers"], own))
    if isinstance(params["layers"], tuple):
        caches = tuple(zip(*caches, strict=True))
    x_B1D, this = run_layers(layer, params["layers"], x_BD[:, None], caches)
    update = jax.lax.dynamic_update_slice_in_dim
    own = Cache(update(own.k, this.k, step, axis=4), update(own.v, this.v, step, axis=3))
    return RMSNorm(config.rms_norm_eps).apply({"params": params["norm"]}, x_B1D)[:, 0], own


def empty_cache(config: TextConfig, batch: int, tokens: int, dtype) -> Cache:
    """A Cache of zeros for `tokens` places of `batch` rows."""
    heads = (config.num_hidden_layers, batch, config.num_key_value_heads)
    shapes = (*heads, config.head_dim, tokens), (*heads, tokens, config.head_dim)
    axes = (None, "batch", "heads", None, None)
    return Cache(*(constrain(jnp.zeros(shape, dtype), axes) for shape in shapes))


def _kept(k_BTKH, v_BTKH) -> Cache:
    """One layer's keys and values as a Cache has them."""
    return Cache(k_BTKH.transpose(0, 2, 3, 1), v_BTKH.transpose(0, 2, 1, 3))


def rotary_angles(positions_B3T: jax.Array, config: TextConfig) -> jax.Array:
    """Angles f32[B, T, H / 2]: frequency j turns with the axis in whose `mrope_section` it is."""
    half = config.head_dim // 2
    inverse = 1.0 / config.rope_theta ** (np.arange(half, dtype=np.float32) * 2 / config.head_dim)
    axis_of_frequency = np.repeat(np.arange(3), config.mrope_section)
    return (
        positions_B3T.astype(jnp.float32).transpose(0, 2, 1)[..., axis_of_frequency]
        * inverse.astype(np.float32)[None, None]
    )


def declare(config: TextConfig) -> dict:
    """Boxes (see `layers.declared`) of the parameters, those of one layer under "layers"."""

    def x():
        return jnp.zeros((1, 1, config.hidden_size))

    def layer():
        return x(), rotation(jnp.zeros((1, 1, config.head_dim // 2))), lambda q, k, v: q

    return {
        "embed_tokens": declared(
            Weight((config.vocab_size, config.hidden_size), ("vocab", "embed"))
        ),
        "layers": declared(DecoderLayer(config), layer),
        "norm": declared(RMSNorm(config.rms_norm_eps), lambda: (x(),)),
    }
