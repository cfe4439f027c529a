"""The audio encoder (spec 2.2), on log-mel that the host cut into chunks of 200 frames.

Chunks are independent of each other. Letters: C chunks, M mel frames of a chunk (200), S positions
after the strided convolution (100), D model width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ugc_jax.models.attention import tower_attention
from ugc_jax.models.compute import Compute
from ugc_jax.models.layers import (
    LayerNorm,
    Linear,
    Weight,
    gelu,
    in_chunks,
    per_channel,
    run_layers,
    split_heads,
)
from ugc_jax.models.params import Stack, declare_module, param
from ugc_jax.models.qwen2_5_omni.config import AudioConfig
from ugc_jax.sharding import constrain


class Conv(nn.Module):
    """Convolution over time, kernel 3, zero padding 1: [C, M, in] -> [C, M / stride, features]."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x_CMI):
        weight = param(self, "weight", (self.features, x_CMI.shape[-1], 3), ("embed", None, None))
        y = jax.lax.conv_general_dilated(
            x_CMI,
            weight.astype(x_CMI.dtype),
            (self.stride,),
            [(1, 1)],
            dimension_numbers=("NWC", "OIW", "NWC"),
        )
        return y + per_channel(param(self, "bias", (self.features,), ("embed",)), y)


class AudioAttention(nn.Module):
    """Attention inside each chunk: [C, S, D] -> [C, S, D].

    valid_CS: i32, 0 for padding. kernel: of `tower_attention`.
    """

    heads: int
    kernel: str = "xla"

    @nn.compact
    def __call__(self, x_CSD, valid_CS):
        D = x_CSD.shape[-1]
        q, k, v = (
            split_heads(
                Linear(D, ("heads", "embed"), bias=name != "k_proj", name=name)(x_CSD), self.heads
            )
            for name in ("q_proj", "k_proj", "v_proj")
        )
        out = tower_attention(q, k, v, valid_CS, self.kernel).reshape(x_CSD.shape)
        return Linear(D, ("embed", "heads"), name="out_proj")(out)


class AudioLayer(nn.Module):
    """Pre-norm attention and MLP: [C, S, D] -> [C, S, D]. valid_CS: as in AudioAttention."""

    config: AudioConfig
    kernel: str = "xla"

    @nn.compact
    def __call__(self, x_CSD, valid_CS):
        c = self.config
        attention = AudioAttention(c.encoder_attention_heads, self.kernel, name="self_attn")
        normed = LayerNorm(name="self_attn_layer_norm")(x_CSD)
        x_CSD = x_CSD + attention(normed, valid_CS)
        normed = LayerNorm(name="final_layer_norm")(x_CSD)
        hidden = gelu(Linear(c.encoder_ffn_dim, ("mlp", "embed"), name="fc1")(normed))
        return x_CSD + Linear(c.d_model, ("embed", "mlp"), name="fc2")(hidden)


def encode_mel(params, config: AudioConfig, compute: Compute, mel_CMI, frames_C) -> jax.Array:
    """Return the rows [C, M / 4, output_dim] of log-mel chunks.

    mel_CMI: f32[C, M, 128]. frames_C: i32, valid frames of a chunk, 0 for padding; the rows after
    those of the valid frames are finite and have no meaning. params: the `audio_tower` subtree.
    """
    C, M, _ = mel_CMI.shape
    if C == 0:
        return jnp.zeros((0, config.chunk_tokens, config.output_dim), compute.dtype)

    def apply(name, module, x):
        return module.apply({"params": params[name]}, x)

    def tower(mel_CMI, frames_C):
        inside_CM1 = (jnp.arange(M)[None] < frames_C[:, None])[..., None]
        x = jnp.where(inside_CM1, mel_CMI, 0).astype(compute.dtype)
        x = gelu(apply("conv1", Conv(config.d_model, stride=1), x))
        x = gelu(apply("conv2", Conv(config.d_model, stride=2), jnp.where(inside_CM1, x, 0)))
        C, S, D = x.shape
        x = constrain(x + jnp.asarray(sinusoids(S, D), x.dtype)[None], ("batch", None, None))
        valid_CS = (jnp.arange(S)[None] < (frames_C[:, None] + 1) // 2).astype(jnp.int32)

        def layer(layer_params, x, _):
            layer = AudioLayer(config, compute.attention)
            return layer.apply({"params": layer_params}, x, valid_CS), None

        x, _ = run_layers(layer, params["layers"], x, remat=compute.remat)
        x = apply("ln_post", LayerNorm(), jnp.mean(x.reshape(C, S // 2, 2, D), axis=2))
        return apply("proj", _projection(config), x)

    return in_chunks(tower, (mel_CMI, frames_C), config.n_window, compute.slab)


def sinusoids(length: int, width: int) -> np.ndarray:
    """Return Whisper's position table f32[length, width]: sines, then cosines."""
    inverse = np.exp(
        -np.log(10000.0) / (width // 2 - 1) * np.arange(width // 2, dtype=np.float32)
    ).astype(np.float32)
    angles = np.arange(length, dtype=np.float32)[:, None] * inverse[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def _projection(config: AudioConfig) -> Linear:
    return Linear(config.output_dim, ("embed", "mlp"))


def declare(config: AudioConfig) -> dict:
    """Return the declared tree (models/params.py) of the encoder."""
    M, S, D = config.chunk_frames, config.n_window, config.d_model

    def x():
        return jnp.zeros((1, S, D))

    layer = declare_module(AudioLayer(config), lambda: (x(), jnp.zeros((1, S), jnp.int32)))
    return {
        "conv1": declare_module(
            Conv(D, stride=1), lambda: (jnp.zeros((1, M, config.num_mel_bins)),)
        ),
        "conv2": declare_module(Conv(D, stride=2), lambda: (jnp.zeros((1, M, D)),)),
        # In checkpoints, but used by no forward pass (spec 1.4); kept for exports.
        "audio_bos_eos_token": declare_module(Weight((2, config.output_dim), (None, "embed"))),
        "ln_post": declare_module(LayerNorm(), lambda: (x(),)),
        "proj": declare_module(_projection(config), lambda: (x(),)),
        "layers": Stack(config.encoder_layers, layer),
    }
