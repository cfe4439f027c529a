"""The thinker: both encoders, the splice of their rows into the token embeddings, and the decoder.

Plain functions on a nested dict of parameters; its leaves have the names and shapes of the Hugging
Face checkpoint, with layer stacks stacked on a leading axis (or as a tuple of layers; see
`layers.run_layers`).
"""

import functools

import jax
import jax.numpy as jnp

from ugc_jax.models.compute import Compute
from ugc_jax.models.layers import Weight, split_like
from ugc_jax.models.params import declared
from ugc_jax.models.qwen2_5_omni import audio, decoder, vision
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.sharding import constrain


def encode_vision(
    params, config: OmniConfig, compute: Compute, patches_BFWKP, coords_BFWK2
) -> jax.Array:
    """The fields of `batching.Patches` -> rows [B, F * W * K / 4, D] of the vision encoder."""
    B, F, *patch = patches_BFWKP.shape
    flat = (
        patches_BFWKP.reshape(B * F, *patch),
        coords_BFWK2.reshape(B * F, *coords_BFWK2.shape[2:]),
    )
    rows = vision.encode(params["visual"], config.vision, compute, *flat)
    return rows.reshape(B, F * rows.shape[1], rows.shape[2])


def encode_audio(params, config: OmniConfig, compute: Compute, mel_BCMI, frames_BC) -> jax.Array:
    """The fields of `batching.LogMel` -> rows [B, C * 50, D] of the audio encoder."""
    B, C, *chunk = mel_BCMI.shape
    rows = audio.encode(
        params["audio_tower"],
        config.audio,
        compute,
        mel_BCMI.reshape(B * C, *chunk),
        frames_BC.reshape(B * C),
    )
    return rows.reshape(B, C * rows.shape[1], rows.shape[2])


# Modality -> its encoder, which takes (params, config, compute, *fields of Batch.media[modality]).
# Batch.splice numbers their rows in this order.
ENCODERS = {"vision": encode_vision, "audio": encode_audio}


def encode_media(params, config: OmniConfig, compute: Compute, media: dict) -> dict[str, jax.Array]:
    """Batch.media -> the rows [B, ..., D] of each encoder by modality, for `splice`."""
    return {name: run(params, config, compute, *media[name]) for name, run in ENCODERS.items()}


def embed(params, compute: Compute, tokens_BT) -> jax.Array:
    """Token embeddings [..., D].

    The table is made whole in its width first: the lookup in one split both ways replicates it.
    """
    table = constrain(params["model"]["embed_tokens"]["weight"], ("vocab", None))
    return table[tokens_BT].astype(compute.dtype)


def splice(embedded_BTD, splice_BT, rows: dict[str, jax.Array]) -> jax.Array:
    """Replace embeddings by encoder rows where `splice` (Batch.splice) is not -1: one gather.

    rows: of `encode_media`.
    """
    rows_BRD = jnp.concatenate([rows[name] for name in ENCODERS], axis=1)
    if rows_BRD.shape[1] == 0:
        return embedded_BTD
    taken_BTD = jnp.take_along_axis(rows_BRD, jnp.maximum(splice_BT, 0)[..., None], axis=1)
    return jnp.where(splice_BT[..., None] >= 0, taken_BTD.astype(embedded_BTD.dtype), embedded_BTD)


def head(params) -> jax.Array:
    """The head's weight [V, D]."""
    return params["lm_head"]["weight"]


def logits(head_VD, hidden_BTD) -> jax.Array:
    """Hidden states [..., D] -> f32[..., V]. Never for a whole long batch: V is 151936."""
    weight = head_VD.astype(hidden_BTD.dtype)
    return jnp.einsum("...d,vd->...v", hidden_BTD, weight, preferred_element_type=jnp.float32)


def hidden_states(
    params, config: OmniConfig, compute: Compute, batch, rows=None, shared_prompt: bool = False
) -> jax.Array:
    """The whole model but for `logits`: batching.Batch -> final hidden states [B, T, D].

    rows: `encode_media` of the batch, where they are known; None: they are computed.
    shared_prompt: see `decoder.forward`.
    """
    rows = encode_media(params, config, compute, batch.media) if rows is None else rows
    x = splice(embed(params, compute, batch.tokens), batch.splice, rows)
    places = batch.positions, batch.segment_ids
    return decoder.forward(
        params["model"], config.text, compute, x, *places, shared_prompt=shared_prompt
    )[0]


def prefill(params, config: OmniConfig, compute: Compute, x_BTD, positions_B3T, segments_BT):
    """Spliced embeddings of prompts -> (final hidden states [B, T, D], decoder.Cache)."""
    places = positions_B3T, segments_BT
    return decoder.forward(params["model"], config.text, compute, x_BTD, *places, keep_cache=True)


def split_cache(params, cache: decoder.Cache):
    """A prompt's cache by layer, as `decode_step` takes it: once, not at every step."""
    return split_like(params["model"]["layers"], cache)


def decode_step(
    params, config: OmniConfig, compute: Compute, token_R, position_R, prompt, prompt_BT, own, step
):
    """One token a row, i32[R] -> (logits f32[R, V] of the next, own cache with this token).

    prompt: of `split_cache`. The other arguments are those of `decoder.decode_step`.
    """
    x_RD = embed(params, compute, token_R)
    caches = prompt, prompt_BT, own, step
    hidden_RD, own = decoder.decode_step(params["model"], config.text, x_RD, position_R, *caches)
    return logits(head(params), hidden_RD), own


@functools.cache
def declare(config: OmniConfig) -> dict:
    """The declared tree (models/params.py) of the whole thinker; not to be changed."""
    table = (config.text.vocab_size, config.text.hidden_size)
    return {
        "model": decoder.declare(config.text),
        "lm_head": declared(Weight(table, ("vocab", "embed"))),
        "visual": vision.declare(config.vision),
        "audio_tower": audio.declare(config.audio),
    }
