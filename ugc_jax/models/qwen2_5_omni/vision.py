"""The vision encoder (spec 2.1), on patches in window order (data/features.py).

The encoder gathers and permutes nothing: window attention is a dense batch of F * W windows, full
attention one of F grids. Letters: F temporal grids (frame pairs), W windows a grid, K patches a
window (64), S = W * K patches a grid, P values a patch.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ugc_jax.models.attention import tower_attention
from ugc_jax.models.compute import Compute
from ugc_jax.models.layers import (
    Linear,
    RMSNorm,
    SwiGLU,
    Weight,
    cos_sin,
    gelu,
    in_chunks,
    per_channel,
    product,
    rotate,
    run_layers,
    split_heads,
    split_like,
)
from ugc_jax.models.params import Stack, declare_module
from ugc_jax.models.qwen2_5_omni.config import PIXEL_MEAN, PIXEL_STD, VisionConfig
from ugc_jax.sharding import constrain

EPS = 1e-6  # the reference hard-codes it in this tower, whatever the config says
ROPE_THETA = 10000.0


class PatchEmbed(nn.Module):
    """Normalise pixels in float32 and embed them: u8[F, S, P] -> [F, S, D].

    The reference's convolution has stride = kernel, so it is one matrix product.
    """

    config: VisionConfig
    dtype: str

    @nn.compact
    def __call__(self, patches_FSP):
        c = self.config
        shape = (c.hidden_size, c.in_channels, c.temporal_patch_size, c.patch_size, c.patch_size)
        weight = Weight(shape, ("embed", None, None, None, None), name="proj")()
        mean, std = (
            np.repeat(np.float32(value), c.patch_dim // c.in_channels)
            for value in (PIXEL_MEAN, PIXEL_STD)
        )
        x = patches_FSP.astype(jnp.float32)
        scale, shift = (per_channel(jnp.asarray(v), x) for v in (1 / (255 * std), mean / std))
        x = x * scale - shift
        return product("fsp,dp->fsd", x.astype(self.dtype), weight.reshape(c.hidden_size, -1))


class VisionAttention(nn.Module):
    """Attention inside windows of `window_patches`, or inside whole grids where `full` is true.

    rope: `layers.cos_sin` of the patches' angles. valid_FS: i32, 0 for padding. kernel: of
    `tower_attention`.
    """

    config: VisionConfig
    kernel: str = "xla"

    @nn.compact
    def __call__(self, x_FSD, rope, valid_FS, full):
        c = self.config
        F, S, D = x_FSD.shape
        q, k, v = (
            split_heads(Linear(D, ("heads", "embed"), name=name)(x_FSD), c.num_heads)
            for name in "qkv"
        )
        q, k = rotate(q, rope), rotate(k, rope)

        def inside(span: int):
            pieces = (x.reshape(F * S // span, span, *x.shape[2:]) for x in (q, k, v, valid_FS))
            return tower_attention(*pieces, self.kernel).reshape(F, S, D)

        if isinstance(full, np.bool_):  # of unrolled layers: half as much to trace
            out = inside(S if full else c.window_patches)
        else:
            out = jax.lax.cond(full, lambda: inside(S), lambda: inside(c.window_patches))
        return Linear(D, ("embed", "heads"), name="proj")(out)


class VisionBlock(nn.Module):
    """Pre-norm attention and MLP: [F, S, D] -> [F, S, D]. Arguments as in VisionAttention."""

    config: VisionConfig
    kernel: str = "xla"

    @nn.compact
    def __call__(self, x_FSD, rope, valid_FS, full):
        attention = VisionAttention(self.config, self.kernel, name="attn")
        normed = RMSNorm(EPS, name="norm1")(x_FSD)
        x_FSD = x_FSD + attention(normed, rope, valid_FS, full)
        normed = RMSNorm(EPS, name="norm2")(x_FSD)
        return x_FSD + SwiGLU(self.config.intermediate_size, bias=True, name="mlp")(normed)


class MergerMLP(nn.Module):
    """Map each cell's concatenated patches (E values) to a token: [F, C, E] -> [F, C, out]."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x_FCE):
        hidden = gelu(Linear(x_FCE.shape[-1], ("mlp", "embed"), name="0")(x_FCE))
        return Linear(self.config.out_hidden_size, ("embed", "mlp"), name="2")(hidden)


class PatchMerger(nn.Module):
    """Merge the patches of a cell (neighbours in S) into a token: [F, S, D] -> [F, S / 4, out]."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x_FSD):
        F, S, D = x_FSD.shape
        cell = self.config.spatial_merge_size**2
        x_FCE = RMSNorm(EPS, name="ln_q")(x_FSD).reshape(F, S // cell, cell * D)
        return MergerMLP(self.config, name="mlp")(x_FCE)


def encode_patches(
    params, config: VisionConfig, compute: Compute, patches_FWKP, coords_FWK2
) -> jax.Array:
    """Return the rows [F, W * K / 4, out_hidden_size] of patches, one for each cell.

    patches_FWKP: u8. coords_FWK2: i32, (row, column) of each patch, -1 for padding; rows of padding
    cells are finite and have no meaning. params: the `visual` subtree.
    """
    F, W, K, P = patches_FWKP.shape
    if F == 0:
        return jnp.zeros(
            (0, W * K // config.spatial_merge_size**2, config.out_hidden_size), compute.dtype
        )
    full_L = np.isin(np.arange(config.depth), config.fullatt_block_indexes)

    def tower(patches_FSP, coords_FS2):
        valid_FS = (coords_FS2[..., 0] >= 0).astype(jnp.int32)
        rope = cos_sin(rotary_angles(coords_FS2, config.head_dim))

        def block(layer_params, x, full):
            block = VisionBlock(config, compute.attention)
            return block.apply({"params": layer_params}, x, rope, valid_FS, full), None

        x = PatchEmbed(config, compute.dtype).apply({"params": params["patch_embed"]}, patches_FSP)
        x = constrain(x, ("batch", None, None))
        full = split_like(params["blocks"], full_L)
        x, _ = run_layers(block, params["blocks"], x, full, remat=compute.remat)
        return PatchMerger(config).apply({"params": params["merger"]}, x)

    arrays = patches_FWKP.reshape(F, W * K, P), coords_FWK2.reshape(F, W * K, 2)
    return in_chunks(tower, arrays, W * K, compute.slab)


def rotary_angles(coords_FS2: jax.Array, head_dim: int) -> jax.Array:
    """Return angles f32[F, S, head_dim / 2]: one half for the row, one for the column."""
    inverse = ROPE_THETA ** -(np.arange(0, head_dim // 2, 2, dtype=np.float32) / (head_dim // 2))
    angles = (
        coords_FS2.astype(jnp.float32)[..., None]
        * jnp.asarray(inverse, jnp.float32)[None, None, None]
    )
    return angles.reshape(*coords_FS2.shape[:2], head_dim // 2)


def declare(config: VisionConfig) -> dict:
    """Return the declared tree (models/params.py) of the encoder."""
    grid = (1, config.window_patches)

    def x():
        return jnp.zeros((*grid, config.hidden_size))

    def inputs():
        rope = cos_sin(jnp.zeros((*grid, config.head_dim // 2)))
        return x(), rope, jnp.zeros(grid, jnp.int32), True

    block = declare_module(VisionBlock(config), inputs)
    # Checkpoints have both norms first.
    block = dict.fromkeys(("norm1", "norm2")) | block
    return {
        "patch_embed": declare_module(
            PatchEmbed(config, "float32"), lambda: (jnp.zeros((*grid, config.patch_dim)),)
        ),
        "merger": declare_module(PatchMerger(config), lambda: (x(),)),
        "blocks": Stack(config.depth, block),
    }
