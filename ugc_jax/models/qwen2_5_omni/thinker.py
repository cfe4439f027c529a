"""The thinker: both encoders, the splice of their rows into the token embeddings, and the decoder.

Plain functions on a nested dict of parameters; its leaves have the names and shapes of the Hugging
Face checkpoint, with layer stacks stacked on a leading axis (or as a tuple of layers; see
`layers.run_layers`).
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from ugc_jax.models.compute import Compute
from ugc_jax.models.int8 import SCALE
from ugc_jax.models.layers import JOINED, Weight, per_channel, product, product_of_few
from ugc_jax.models.params import Leaf, declare_module
from ugc_jax.models.qwen2_5_omni import audio, decoder, vision
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.models.qwen2_5_omni.names import ADAPTABLE
from ugc_jax.sharding import constrain, on_rows, shard_count


def encode_vision(
    params, config: OmniConfig, compute: Compute, patches_BFWKP, coords_BFWK2
) -> jax.Array:
    """Return the vision encoder's rows [B, F * W * K / 4, D] of `batching.Patches`."""
    encode = functools.partial(vision.encode_patches, params["visual"], config.vision, compute)
    return _flattened(encode, patches_BFWKP, coords_BFWK2)


def encode_audio(params, config: OmniConfig, compute: Compute, mel_BCMI, frames_BC) -> jax.Array:
    """Return the audio encoder's rows [B, C * 50, D] of `batching.LogMel`."""
    encode = functools.partial(audio.encode_mel, params["audio_tower"], config.audio, compute)
    return _flattened(encode, mel_BCMI, frames_BC)


def _flattened(encode, *arrays) -> jax.Array:
    """`encode` of arrays [B, F, ...] without their batch axis -> rows [B, F * n, D]."""
    B, F = arrays[0].shape[:2]
    rows = encode(*(x.reshape(B * F, *x.shape[2:]) for x in arrays))
    return rows.reshape(B, F * rows.shape[1], rows.shape[2])


# Modality -> its encoder, which takes (params, config, compute, *fields of Batch.media[modality]).
# Batch.splice numbers their rows in this order.
ENCODERS = {"vision": encode_vision, "audio": encode_audio}


def encode_media(params, config: OmniConfig, compute: Compute, media: dict) -> dict[str, jax.Array]:
    """Return the rows [B, n, D] of each encoder by modality for Batch.media; see `splice`."""
    return {name: run(params, config, compute, *media[name]) for name, run in ENCODERS.items()}


def embed(params, compute: Compute, tokens_BT) -> jax.Array:
    """Return token embeddings [..., D] in the compute dtype.

    The table is first gathered along D: XLA replicates a table that is split both ways.
    """
    table = params["model"]["embed_tokens"]["weight"]
    if shard_count("embed") > 1 and tokens_BT.ndim == 2:
        axes = ("vocab", "embed")
        dtype = None if table.dtype == jnp.uint16 else compute.dtype
        rows = on_rows(lambda table, rows, _: table[rows[0]], table, axes, (tokens_BT,), (), dtype)
    else:
        rows = constrain(table, ("vocab", None))[tokens_BT]
    if rows.dtype == jnp.uint16:  # of `for_decoding`
        rows = jax.lax.bitcast_convert_type(rows, jnp.bfloat16)
    return rows.astype(compute.dtype)


def splice(embedded_BTD, splice_BT, rows: dict[str, jax.Array]) -> jax.Array:
    """Return [B, T, D] with encoder rows in place of embeddings where `splice_BT` is not -1.

    splice_BT: Batch.splice, the row for each token. rows: of `encode_media`.
    """
    rows_BRD = jnp.concatenate([rows[name] for name in ENCODERS], axis=1)
    if rows_BRD.shape[1] == 0:
        return embedded_BTD
    taken_BTD = jnp.take_along_axis(rows_BRD, jnp.maximum(splice_BT, 0)[..., None], axis=1)
    return jnp.where(splice_BT[..., None] >= 0, taken_BTD.astype(embedded_BTD.dtype), embedded_BTD)


def head(params) -> jax.Array:
    """Return the head's weight [V, D]."""
    return params["lm_head"]["weight"]


def logits(head_VD, hidden_BTD) -> jax.Array:
    """Return logits f32[..., V] of hidden states [..., D]: of few, since V is 151936."""
    return product("...d,vd->...v", hidden_BTD, head_VD, jnp.float32)


def next_logits(params, hidden_BTD) -> jax.Array:
    """Return `logits` by the head of `params`, which may be in int8."""
    found = product_of_few("...d,vd->...v", hidden_BTD, head(params), jnp.float32)
    scale = params["lm_head"].get(SCALE)
    return found if scale is None else found * per_channel(scale, found)


def is_decoding_matrix(leaf: Leaf) -> bool:
    """Return whether every decode step reads all of a leaf, a matrix that may be in int8.

    These are the decoder's linears and the head, but not the encoders, nor the token embeddings, of
    which a step reads a row.
    """
    in_layers = leaf.path[: len(ADAPTABLE)] == ADAPTABLE and len(leaf.tensors[0].shape) == 2
    return in_layers or leaf.path == ("lm_head", "weight")


def hidden_states(
    params, config: OmniConfig, compute: Compute, batch, rows=None, shared_prompt: bool = False
) -> jax.Array:
    """Return the final hidden states [B, T, D] of a batching.Batch: the model without `logits`.

    rows: `encode_media` of the batch; None computes them.
    shared_prompt: see `decoder.forward`.
    """
    rows = encode_media(params, config, compute, batch.media) if rows is None else rows
    x = splice(embed(params, compute, batch.tokens), batch.splice, rows)
    places = batch.positions, batch.segment_ids
    return decoder.forward(
        params["model"], config.text, compute, x, *places, shared_prompt=shared_prompt
    )[0]


def prefill(
    params,
    config: OmniConfig,
    compute: Compute,
    x_BTD,
    positions_B3T,
    segments_BT,
    shared_prompt: bool = False,
):
    """Return (final hidden states [B, T, D], caches) of prompts' spliced embeddings.

    The caches have the form of the layers: one decoder.Cache, or a tuple of one a layer.
    shared_prompt: see `decoder.forward`.
    """
    places, keep = (positions_B3T, segments_BT), dict(keep_cache=True, shared_prompt=shared_prompt)
    return decoder.forward(params["model"], config.text, compute, x_BTD, *places, **keep)


def for_decoding(params, platform: str) -> dict:
    """Return the parameters in the form in which decoding reads them without a copy.

    platform: "cpu", "gpu" or "tpu", of the parameters. A GPU's products cannot read a slice of
    stacked layers (five copies a layer and step, half of the time), a CPU's unrolled program is
    faster, and a TPU's compiler reads slices in place. Products of the same vectors become one
    (`layers.JOINED`), unless a mesh splits their results or an adapter adds to them. On a CPU, the
    token embeddings of bfloat16 are their bits, as u16. Prefill takes the same form; the encoders
    stay as they are.
    """
    layers = params["model"]["layers"]
    if platform == "tpu":
        return params
    if not isinstance(layers, tuple):
        leaves, tree = jax.tree.flatten(layers)
        rows = zip(*map(_rows, leaves), strict=True)
        layers = tuple(jax.tree.unflatten(tree, row) for row in rows)
    model = params["model"] | {"layers": tuple(_joined(layer) for layer in layers)}
    table = model["embed_tokens"]["weight"]
    if platform == "cpu" and table.dtype == jnp.bfloat16:
        # XLA for CPUs has no lookup of bfloat16, and would convert the table to float32 each time.
        model["embed_tokens"] = {"weight": _bits(table)}
    return {**params, "model": model}


@jax.jit
def _bits(x) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.uint16)


@jax.jit
def _rows(leaf) -> tuple[jax.Array, ...]:
    return tuple(leaf[i] for i in range(len(leaf)))


def _joined(layer: dict) -> dict:
    """A decoder layer whose products of the same vectors are one."""
    layer = dict(layer)
    for block, (name, parts) in JOINED.items():
        linears = [layer[block][part] for part in parts if part in layer[block]]
        leaves = jax.tree.leaves(linears)
        plain = len(linears) == len(parts) and not any("lora_a" in one for one in linears)
        if plain and not any(_is_split(leaf) for leaf in leaves):
            rest = {part: one for part, one in layer[block].items() if part not in parts}
            layer[block] = rest | {name: _concatenated(linears)}
    return layer


def _is_split(leaf) -> bool:
    """Whether a mesh splits heads or feed-forward width."""
    sharding = getattr(leaf, "sharding", None)
    return isinstance(sharding, NamedSharding) and shard_count("heads", sharding.mesh) > 1


@jax.jit
def _concatenated(linears: list[dict]) -> dict:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *linears)


def decode_step(
    params,
    config: OmniConfig,
    compute: Compute,
    token_R,
    position_R,
    prompt,
    prompt_BT,
    own,
    own_RN,
    slot,
):
    """Return (logits f32[R, V] of the next token, own cache with this one) for one token a row.

    token_R: i32. Other arguments: see `decoder.decode_layers`.
    """
    x_RD = embed(params, compute, token_R)
    caches = prompt, prompt_BT, own, own_RN, slot
    hidden_RD, own = decoder.decode_layers(
        params["model"], config.text, compute, x_RD, position_R, *caches
    )
    return next_logits(params, hidden_RD), own


@functools.cache
def declare(config: OmniConfig) -> dict:
    """Return the declared tree (models/params.py) of the whole thinker; do not modify it."""
    table = (config.text.vocab_size, config.text.hidden_size)
    return {
        "model": decoder.declare(config.text),
        "lm_head": declare_module(Weight(table, ("vocab", "embed"))),
        "visual": vision.declare(config.vision),
        "audio_tower": audio.declare(config.audio),
    }
