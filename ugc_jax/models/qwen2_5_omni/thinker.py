"""The thinker: both encoders, the splice of their rows into the token embeddings, and the decoder.

Plain functions on a nested dict of parameters; its leaves have the names and shapes of the Hugging
Face checkpoint, with layer stacks stacked on a leading axis (or as a tuple of layers; see
`layers.run_layers`).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ugc_jax.models.compute import Compute
from ugc_jax.models.layers import Weight, declared
from ugc_jax.models.qwen2_5_omni import audio, decoder, vision
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.sharding import constrain


def encode_vision(
    params, config: OmniConfig, compute: Compute, patches_BFWKP, coords_BFWK2
) -> jax.Array:
    """Batch.patches and Batch.coords -> rows [B, F * W * K / 4, D] of the vision encoder."""
    B, F, *patch = patches_BFWKP.shape
    flat = (
        patches_BFWKP.reshape(B * F, *patch),
        coords_BFWK2.reshape(B * F, *coords_BFWK2.shape[2:]),
    )
    rows = vision.encode(params["visual"], config.vision, compute, *flat)
    return rows.reshape(B, F * rows.shape[1], rows.shape[2])


def encode_audio(params, config: OmniConfig, compute: Compute, mel_BCMI, frames_BC) -> jax.Array:
    """Batch.mel and Batch.mel_frames -> rows [B, C * 50, D] of the audio encoder."""
    B, C, *chunk = mel_BCMI.shape
    rows = audio.encode(
        params["audio_tower"],
        config.audio,
        compute,
        mel_BCMI.reshape(B * C, *chunk),
        frames_BC.reshape(B * C),
    )
    return rows.reshape(B, C * rows.shape[1], rows.shape[2])


def embed(params, compute: Compute, tokens_BT) -> jax.Array:
    """Token embeddings [..., D].

    The table is made whole in its width first: the lookup in one split both ways replicates it.
    """
    table = constrain(params["model"]["embed_tokens"]["weight"], ("vocab", None))
    return table[tokens_BT].astype(compute.dtype)


def splice(embedded_BTD, splice_BT, vision_BRD, audio_BRD) -> jax.Array:
    """Replace embeddings by encoder rows where `splice` (Batch.splice) is not -1: one gather."""
    rows_BRD = jnp.concatenate([vision_BRD, audio_BRD], axis=1)
    if rows_BRD.shape[1] == 0:
        return embedded_BTD
    taken_BTD = jnp.take_along_axis(rows_BRD, jnp.maximum(splice_BT, 0)[..., None], axis=1)
    return jnp.where(splice_BT[..., None] >= 0, taken_BTD.astype(embedded_BTD.dtype), embedded_BTD)


def logits(params, hidden_BTD) -> jax.Array:
    """Hidden states [..., D] -> f32[..., V]. Never for a whole long batch: V is 151936."""
    weight = params["lm_head"]["weight"].astype(hidden_BTD.dtype)
    return jnp.einsum("...d,vd->...v", hidden_BTD, weight, preferred_element_type=jnp.float32)


def media_rows(params, config: OmniConfig, compute: Compute, batch) -> tuple[jax.Array, jax.Array]:
    """Both encoders: schema.Batch -> (vision, audio) rows [B, ..., D] for `splice`."""
    return (
        encode_vision(params, config, compute, batch.patches, batch.coords),
        encode_audio(params, config, compute, batch.mel, batch.mel_frames),
    )


def hidden_states(
    params, config: OmniConfig, compute: Compute, batch, media=None, shared_prompt: bool = False
) -> jax.Array:
    """The whole model but for `logits`: schema.Batch -> final hidden states [B, T, D].

    media: `media_rows` of the batch, where they are known; None: they are computed.
    shared_prompt: see `decoder.forward`.
    """
    rows = media_rows(params, config, compute, batch) if media is None else media
    x = splice(embed(params, compute, batch.tokens), batch.splice, *rows)
    places = batch.positions, batch.segment_ids
    return decoder.forward(
        params["model"], config.text, compute, x, *places, shared_prompt=shared_prompt
    )[0]


def logical_axes(config: OmniConfig, stacked: bool = True) -> dict:
    """The parameter tree, with each leaf's logical axes in its place: for `sharding.shardings`."""
    head = Weight((config.text.vocab_size, config.text.hidden_size), ("vocab", "embed"))
    axes = jax.tree.map(
        lambda box: box.names,
        {
            "model": decoder.declare(config.text),
            "visual": vision.declare(config.vision),
            "audio_tower": audio.declare(config.audio),
            "lm_head": declared(head),
        },
        is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned),
    )
    stacks = (
        ("model", "layers", config.text.num_hidden_layers),
        ("visual", "blocks", config.vision.depth),
        ("audio_tower", "layers", config.audio.encoder_layers),
    )
    for tower, name, depth in stacks:
        layer = axes[tower][name]
        if stacked:
            layer = jax.tree.map(
                lambda names: ("layers", *names),
                layer,
                is_leaf=lambda leaf: isinstance(leaf, tuple),
            )
        axes[tower][name] = layer if stacked else (layer,) * depth
    return axes
