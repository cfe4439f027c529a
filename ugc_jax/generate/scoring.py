"""Log-probabilities of given texts after prompts, with media hidden in several ways.

    prompts, texts -> text_rows: [prompt | text | text | ...] -> Engine.score: one program a bucket
        -> logprobs f32[B, ways, S]

A row has all texts of a prompt, which attend to the prompt and themselves, at the positions that
each has alone; so does a policy step (rl/rows.py). What is hidden is padding for attention
(data/hiding.py), so the encoders run once for all ways; it is left out of the row
(`without_padding`), so that a way costs a prefill of what it shows.
Letters: B rows, C ways, T tokens of a row, S scored slots, D width, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ugc_jax.data.batching import Batch, Buckets
from ugc_jax.data.hiding import is_of
from ugc_jax.models.compute import Compute
from ugc_jax.models.qwen2_5_omni import decoder, thinker
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.sharding import constrain

_CHUNK = 256  # slots of a row whose logits exist at a time: 256 * 151936 * 4 = 156 MB
_SLOTS = (16, 32, 64, 128, 256, 384, 512, 768)  # bucket sizes of S; beyond, those of tokens


class TextRows(NamedTuple):
    """Prompts followed by texts. batch: the rows, with the media of the prompts.

    previous: i32[B, S], the token of the row whose hidden state predicts the slot's token. tokens:
    i32[B, S], 0 in padding. places: of each row, the slots of each text.
    """

    batch: Batch
    previous: np.ndarray
    tokens: np.ndarray
    places: list[list[slice]]


def slots_of(count: int) -> int:
    """Return the bucket size S for `count` tokens of texts in a row."""
    sizes = sorted({*_SLOTS, *Buckets().tokens})
    return next((size for size in sizes if size >= count), count)


def text_rows(
    prompts: Batch, texts: Sequence[Sequence[Sequence[int]]], size: int, config: OmniConfig
) -> TextRows:
    """Return rows of T + `size` tokens: each prompt of a batch, followed by its texts.

    prompts: numpy, one a row. texts: token ids of the texts of each of the first rows.
    """
    B = len(prompts.tokens)

    def widened(leaf, fill):
        return np.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, size)], constant_values=fill)

    batch = prompts._replace(
        tokens=widened(prompts.tokens, config.tokens.pad_token_id),
        positions=widened(prompts.positions, 0),
        segment_ids=widened(prompts.segment_ids, 0),
        splice=widened(prompts.splice, -1),
        target=widened(prompts.target, False),
    )
    previous, tokens = np.zeros((B, size), np.int32), np.zeros((B, size), np.int32)
    places: list[list[slice]] = []
    for row, own in enumerate(texts):
        start, slot = int((prompts.segment_ids[row] > 0).sum()), 0
        position = int(prompts.next_position[row])
        places.append([])
        for number, ids in enumerate(own):
            n = len(ids)
            columns, filled = slice(start + slot, start + slot + n), slice(slot, slot + n)
            batch.tokens[row, columns] = ids
            batch.positions[row, :, columns] = np.arange(position, position + n)
            batch.segment_ids[row, columns] = number + 2
            # The prompt's end predicts the first token of every text.
            previous[row, filled] = [start - 1, *range(columns.start, columns.stop - 1)][:n]
            tokens[row, filled] = ids
            places[-1].append(filled)
            slot += n
    return TextRows(batch, previous, tokens, places)


def hidden_ways(batch: Batch, ways: Sequence[Sequence[str]], config: OmniConfig) -> np.ndarray:
    """Return the segments of rows in which media of kinds are hidden, i32[B, C, T].

    ways: of each, the kinds (hiding.SOUND, hiding.PICTURE).
    """
    out = np.repeat(batch.segment_ids[:, None], len(ways), axis=1)
    for c, kinds in enumerate(ways):
        out[:, c][is_of(batch.tokens, kinds, config)] = 0
    return out


def without_padding(rows: TextRows, segments_BT: np.ndarray) -> TextRows:
    """Return rows with the segments of one way, without what is padding in it, and without media.

    T becomes a bucket size of the longest row. The log-probabilities are the same, as positions are
    kept and nothing attends to padding.
    """
    batch, kept = rows.batch, segments_BT > 0
    T = segments_BT.shape[1]
    longest = max(1, int(kept.sum(axis=1).max()))
    size = min(next((size for size in Buckets().tokens if size >= longest), T), T)
    # The kept tokens first, in their order.
    order = np.argsort(~kept, axis=1, kind="stable")[:, :size]

    def taken(leaf, fill):
        at = order if leaf.ndim == 2 else order[:, None]
        shown = np.take_along_axis(kept, order, axis=1)
        return np.where(
            shown if leaf.ndim == 2 else shown[:, None], np.take_along_axis(leaf, at, axis=-1), fill
        )

    places = np.maximum(np.cumsum(kept, axis=1) - 1, 0)
    return rows._replace(
        batch=batch._replace(
            tokens=taken(batch.tokens, 0),
            positions=taken(batch.positions, 0),
            segment_ids=taken(segments_BT, 0),
            splice=taken(batch.splice, -1),
            target=taken(batch.target, False),
            media={},
        ),
        previous=np.take_along_axis(places, rows.previous, axis=1).astype(np.int32),
    )


def logprobs(
    params, x_BTD, positions_B3T, segments_BT, previous_BS, tokens_BS, *,
    config: OmniConfig, compute: Compute,
) -> jax.Array:  # fmt: skip
    """Return log p(tokens[b, s]) after the tokens before it, f32[B, S]. Pure.

    x_BTD: spliced embeddings.
    """
    places = positions_B3T, segments_BT
    hidden_BTD = decoder.forward(
        params["model"], config.text, compute, x_BTD, *places, shared_prompt=True
    )[0]
    hidden_BSD = jnp.take_along_axis(hidden_BTD, previous_BS[..., None], axis=1)
    return _token_logprobs(params, hidden_BSD, tokens_BS)


def _token_logprobs(params, hidden_BSD, tokens_BS) -> jax.Array:
    """log p(tokens[b, s]) by the head from hidden[b, s], f32[B, S]; logits of a chunk at a time."""
    B, S = tokens_BS.shape
    chunk = min(_CHUNK, S)
    pad = -S % chunk
    hidden_BSD = jnp.pad(hidden_BSD, ((0, 0), (0, pad), (0, 0)))
    tokens_BS = jnp.pad(tokens_BS, ((0, 0), (0, pad)))
    head_VD = constrain(thinker.head(params), ("vocab", None))

    def scores(arrays):
        hidden_BCD, tokens_BC = arrays
        logits_BCV = constrain(thinker.logits(head_VD, hidden_BCD), ("batch", None, "vocab"))
        # A masked sum, not a gather: the vocabulary may be split over devices.
        match_BCV = jnp.arange(logits_BCV.shape[-1])[None, None] == tokens_BC[..., None]
        logit_BC = jnp.sum(jnp.where(match_BCV, logits_BCV, 0.0), axis=-1)
        return logit_BC - jax.nn.logsumexp(logits_BCV, axis=-1)

    def chunks(x):
        return jnp.moveaxis(x.reshape(B, -1, chunk, *x.shape[2:]), 1, 0)

    out = jax.lax.map(scores, (chunks(hidden_BSD), chunks(tokens_BS)))
    return jnp.moveaxis(out, 0, 1).reshape(B, -1)[:, :S]
