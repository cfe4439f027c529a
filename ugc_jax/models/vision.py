"""The vision encoder (spec 2.1), on patches that the host laid out window by window (data/schema.py).

Letters: F temporal grids (frame pairs), W windows a grid, K patches a window (64), S = W * K patches a grid, P values a patch.
Nothing is gathered or permuted in here: window attention is a dense batch of F * W windows, full attention one of F grids.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ugc_jax.config import PIXEL_MEAN, PIXEL_STD, Compute, VisionConfig
from ugc_jax.models.layers import (
    Linear,
    RMSNorm,
    SwiGLU,
    Weight,
    attention,
    gelu,
    per_channel,
    rotate,
    run_layers,
    split_heads,
)
from ugc_jax.sharding import constrain

EPS = 1e-6  # whatever the config says: the reference hard-codes it in this tower
ROPE_THETA = 10000.0


class PatchEmbed(nn.Module):
    """u8[F, S, P] -> [F, S, D]: pixels normalised in float32, then embedded.

    The reference's convolution has stride = kernel, so it is one matrix product.
    """

    config: VisionConfig
    dtype: str

    @nn.compact
    def __call__(self, patches_FSP):
        c = self.config
        shape = (c.hidden_size, c.in_channels, c.temporal_patch_size, c.patch_size, c.patch_size)
        weight = Weight(shape, ("embed", None, None, None, None), name="proj")()
        mean, std = (np.repeat(np.float32(value), c.patch_dim // c.in_channels) for value in (PIXEL_MEAN, PIXEL_STD))
        x = patches_FSP.astype(jnp.float32)
        x = x * per_channel(jnp.asarray(1 / (255 * std)), x) - per_channel(jnp.asarray(mean / std), x)
        return jnp.einsum("fsp,dp->fsd", x.astype(self.dtype), weight.reshape(c.hidden_size, -1).astype(self.dtype))


class VisionAttention(nn.Module):
    """Attention inside windows of `window_patches`, or inside whole grids where `full` is true (a traced bool)."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x_FSD, angles_FSh, valid_FS, full):
        c = self.config
        F, S, D = x_FSD.shape
        q, k, v = (split_heads(Linear(D, ("heads", "embed"), name=name)(x_FSD), c.num_heads) for name in "qkv")
        q, k = rotate(q, angles_FSh), rotate(k, angles_FSh)

        def inside(span: int):
            pieces = (x.reshape(F * S // span, span, *x.shape[2:]) for x in (q, k, v, valid_FS))
            return attention(*pieces).reshape(F, S, D)

        out = jax.lax.cond(full, lambda: inside(S), lambda: inside(c.window_patches))
        return Linear(D, ("embed", "heads"), name="proj")(out)


class VisionBlock(nn.Module):
    config: VisionConfig

    @nn.compact
    def __call__(self, x_FSD, angles_FSh, valid_FS, full):
        normed = RMSNorm(EPS, name="norm1")(x_FSD)
        x_FSD = x_FSD + VisionAttention(self.config, name="attn")(normed, angles_FSh, valid_FS, full)
        normed = RMSNorm(EPS, name="norm2")(x_FSD)
        return x_FSD + SwiGLU(self.config.intermediate_size, bias=True, name="mlp")(normed)


class MergerMLP(nn.Module):
    config: VisionConfig

    @nn.compact
    def __call__(self, x_FCE):
        hidden = gelu(Linear(x_FCE.shape[-1], ("mlp", "embed"), name="0")(x_FCE))
        return Linear(self.config.out_hidden_size, ("embed", "mlp"), name="2")(hidden)


class PatchMerger(nn.Module):
    """[F, S, D] -> [F, S / 4, out]: the patches of a merged cell (neighbours in S) become one token."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x_FSD):
        F, S, D = x_FSD.shape
        cell = self.config.spatial_merge_size**2
        x_FCE = RMSNorm(EPS, name="ln_q")(x_FSD).reshape(F, S // cell, cell * D)
        return MergerMLP(self.config, name="mlp")(x_FCE)


def encode(params, config: VisionConfig, compute: Compute, patches_FWKP, coords_FWK2) -> jax.Array:
    """Patches u8[F, W, K, P] and their (row, column) i32[F, W, K, 2], -1 padding -> [F, W * K / 4, out_hidden_size].

    Rows of padding cells are finite and mean nothing. params: the `visual` part of the parameter tree.
    """
    F, W, K, P = patches_FWKP.shape
    if F == 0:
        return jnp.zeros((0, W * K // config.spatial_merge_size**2, config.out_hidden_size), compute.dtype)
    coords_FS2 = coords_FWK2.reshape(F, W * K, 2)
    valid_FS = (coords_FS2[..., 0] >= 0).astype(jnp.int32)
    angles_FSh = rotary_angles(coords_FS2, config.head_dim)
    patch_embed = PatchEmbed(config, compute.dtype)
    x = patch_embed.apply({"params": params["patch_embed"]}, patches_FWKP.reshape(F, W * K, P))
    x = constrain(x, ("batch", None, None))

    def block(layer_params, x, full):
        return VisionBlock(config).apply({"params": layer_params}, x, angles_FSh, valid_FS, full), None

    full_L = np.isin(np.arange(config.depth), config.fullatt_block_indexes)
    x, _ = run_layers(block, params["blocks"], x, full_L, remat=compute.remat)
    return PatchMerger(config).apply({"params": params["merger"]}, x)


def rotary_angles(coords_FS2: jax.Array, head_dim: int) -> jax.Array:
    """Angles f32[F, S, head_dim / 2]: a quarter of the head turns with the row, a quarter with the column."""
    inverse = ROPE_THETA ** -(np.arange(0, head_dim // 2, 2, dtype=np.float32) / (head_dim // 2))
    angles = coords_FS2.astype(jnp.float32)[..., None] * jnp.asarray(inverse, jnp.float32)[None, None, None]
    return angles.reshape(*coords_FS2.shape[:2], head_dim // 2)


@functools.cache
def modules(config: VisionConfig) -> dict[str, tuple[nn.Module, tuple]]:
    """Each part of the tower with the shapes of its inputs, for abstract initialisation (models/omni.py)."""
    x, mask = ((1, config.window_patches, config.hidden_size), (1, config.window_patches))
    block = (x, (*mask, config.head_dim // 2), mask, ())
    return {
        "patch_embed": (PatchEmbed(config, "float32"), ((*mask, config.patch_dim),)),
        "blocks": (VisionBlock(config), block),
        "merger": (PatchMerger(config), (x,)),
    }
