"""The rows of the policy step: a prompt followed by all its completions.

    [prompt | c1 | c2 | ... | cG | padding]      segments 1, 2, ..., G + 1, 0

A completion attends to the prompt and itself, and its positions continue the prompt's, as if it
were alone; so a prompt is computed once for all its completions, with equal results. Without
shared prompts there is a row [prompt | c] for each completion.
Letters: B prompts, G completions of each, N max_new_tokens, T tokens of a row, S scored slots.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np

from ugc_jax.data.batching import Batch, Buckets
from ugc_jax.data.records import IndexEntry
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.rl.advantages import Advantages
from ugc_jax.sharding import constrain


class Completions(NamedTuple):
    """G sampled completions of each of B prompts.

    tokens: i32[B, G, N], with the end-of-text token where one was sampled. lengths: i32[B, G], 0
    for an empty row of the batch. stopped: bool[B, G], False where max_new_tokens cut it off.
    logprobs: f32[B, G, N], of each token under the distribution that it was sampled from.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    stopped: np.ndarray
    logprobs: np.ndarray


class Groups(NamedTuple):
    """B prompts with G completions each, rewards and advantages; equal in all processes.

    entries: of the records; None for an empty row. rewards: f32[B, G, R], NaN where one failed.
    advantages: computed over all these groups.
    """

    entries: list[IndexEntry | None]
    completions: Completions
    rewards: np.ndarray
    advantages: Advantages


class PolicyBatch(NamedTuple):
    """A batch of the policy step. A pytree; every leaf has a leading axis of rows.

    Each of the S slots of a row has a token to train on, completion after completion.

    inputs: the rows; without picture and sound if `media` is given.
    media: the encoders' rows (`thinker.encode_media`) if the encoders are frozen, else None.
    previous: i32[rows, S], the position in the row whose hidden state predicts the slot's token.
    tokens: i32[rows, S]. sample: i32[rows, S], its completion's number in the row; -1 in padding.
    rollout: f32[rows, S], the log-probability that the token was sampled with.
    advantage, weight: f32[rows, S], of its completion; weight is 0 in padding.
    old, reference: f32[rows, S], log-probabilities by the policy before the batch's first update
      and by the reference; None where the objective does not need them.
    """

    inputs: Batch
    media: dict | None
    previous: np.ndarray
    tokens: np.ndarray
    sample: np.ndarray
    rollout: np.ndarray
    advantage: np.ndarray
    weight: np.ndarray
    old: np.ndarray | None = None
    reference: np.ndarray | None = None


def slots(counts: np.ndarray, most: int, shared: bool) -> int:
    """Return S: the smallest bucket size that holds all rows, so that few programs are compiled.

    counts: i32[B, G], of `advantages.token_counts`. most: max_new_tokens of a completion.
    """
    need = int((counts.sum(axis=1) if shared else counts).max(initial=1))
    top = most * (counts.shape[1] if shared else 1)
    return next((size for size in Buckets().tokens if need <= size < top), top)


def policy_rows(
    prompts: Batch,
    completions: Completions,
    advantages: np.ndarray,
    weights: np.ndarray,
    size: int,
    config: OmniConfig,
    shared: bool = True,
    keep_media: bool = True,
) -> PolicyBatch:
    """Return rows of T + `size` tokens: B with all completions of a prompt if shared, else B * G.

    prompts: numpy, one a row, [B, T]; empty rows (all segment 0) stay empty. advantages, weights:
    f32[B, G]; a completion of weight 0 is left out. size: of `slots`, over all processes' rows.
    keep_media: False leaves picture and sound out of `inputs`.
    """
    if not keep_media:
        empty = jax.tree.map(lambda leaf: leaf[:, :0], prompts.media)
        prompts = prompts._replace(media=empty)
    # Of each row, its prompt and its completions.
    rows = [(b, np.flatnonzero(weight > 0).tolist()) for b, weight in enumerate(weights)]
    if not shared:
        G = weights.shape[1]
        rows = [(b, [g] if g in used else []) for b, used in rows for g in range(G)]
        prompts = jax.tree.map(lambda leaf: np.repeat(leaf, G, axis=0), prompts)
    out = _empty(prompts, size, config)
    for row, (b, used) in enumerate(rows):
        start = int(np.sum(prompts.segment_ids[row] > 0))
        position = int(prompts.next_position[row])
        slot = 0
        for number, g in enumerate(used):
            n = int(completions.lengths[b, g])
            tokens = completions.tokens[b, g, :n]
            columns = slice(start + slot, start + slot + n)
            out.inputs.tokens[row, columns] = tokens
            out.inputs.positions[row, :, columns] = np.arange(position, position + n)
            out.inputs.segment_ids[row, columns] = number + 2 if shared else 1
            out.inputs.target[row, columns] = True
            filled = slice(slot, slot + n)
            # The prompt's end predicts the first token of every completion.
            out.previous[row, filled] = [start - 1, *range(columns.start, columns.stop - 1)]
            out.tokens[row, filled] = tokens
            out.sample[row, filled] = number
            out.rollout[row, filled] = completions.logprobs[b, g, :n]
            out.advantage[row, filled] = advantages[b, g]
            out.weight[row, filled] = weights[b, g]
            slot += n
    return out


@functools.partial(jax.jit, static_argnames=("number", "count", "copies"))
def minibatch(batch: PolicyBatch, number: int, count: int, copies: int) -> PolicyBatch:
    """Return the groups number, number + count, ... of `copies` rows; devices keep their rows."""

    def take(leaf):
        groups = leaf.reshape(len(leaf) // (count * copies), count, copies, *leaf.shape[1:])
        rows = groups[:, number].reshape(len(leaf) // count, *leaf.shape[1:])
        return constrain(rows, ("batch",) + (None,) * (rows.ndim - 1))

    return jax.tree.map(take, batch)


def _empty(prompts: Batch, size: int, config: OmniConfig) -> PolicyBatch:
    """Rows of the prompts, padded by `size` tokens, with `size` empty slots."""

    def widened(leaf, fill):
        return np.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, size)], constant_values=fill)

    def slots(fill, dtype):
        return np.full((len(prompts.tokens), size), fill, dtype)

    return PolicyBatch(
        inputs=prompts._replace(
            tokens=widened(prompts.tokens, config.tokens.pad_token_id),
            positions=widened(prompts.positions, 0),
            segment_ids=widened(prompts.segment_ids, 0),
            splice=widened(prompts.splice, -1),
            target=widened(prompts.target, False),
        ),
        media=None,
        previous=slots(0, np.int32),
        tokens=slots(0, np.int32),
        sample=slots(-1, np.int32),
        rollout=slots(0, np.float32),
        advantage=slots(0, np.float32),
        weight=slots(0, np.float32),
    )
