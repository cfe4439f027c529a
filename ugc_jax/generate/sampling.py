"""Sampling the next token: pure functions on logits, with transformers' order and formulas."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.sharding import platform

_LEAST = 1e-6  # temperature and top_p beside 0
TOP = 20  # most likely tokens that a row may ask for beside its own


class Mode(NamedTuple):
    """The parts of sampling that a program contains; the numbers are its arguments.

    ranks: the TOP most likely tokens are returned, too. masks: each row has its own set of tokens
    that it may take.
    """

    greedy: bool
    truncates: bool
    penalizes: bool
    ranks: bool = False
    masks: bool = False

    def joined(self, other: "Mode") -> "Mode":
        """Return what the rows of both need together."""
        return Mode(
            self.greedy and other.greedy,
            self.truncates or other.truncates,
            self.penalizes or other.penalizes,
            self.ranks or other.ranks,
            self.masks or other.masks,
        )


class Knobs(NamedTuple):
    """The numbers of SamplingConfig of each row: f32[B], i32[B], f32[B], f32[B]."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    repetition_penalty: jax.Array


class Sampled(NamedTuple):
    """The next token of each row, i32[B], and its log-probability, f32[B].

    top, top_logprobs: i32[B, K] and f32[B, K], the K = TOP most likely tokens, most likely first;
    K = 0 where the mode has no `ranks`.
    """

    token: jax.Array
    logprob: jax.Array
    top: jax.Array
    top_logprobs: jax.Array


def mode_of(configs: Iterable[SamplingConfig]) -> Mode:
    """Return the parts of sampling that rows with these resolved settings need together."""
    sampled = [config for config in configs if config.temperature > 0]
    return Mode(
        greedy=not sampled,
        truncates=any(config.top_k > 0 or config.top_p < 1 for config in sampled),
        penalizes=any(config.repetition_penalty != 1 for config in configs),
    )


def knobs_of(configs: Sequence[SamplingConfig]) -> Knobs:
    """Return the numbers of rows with these resolved settings (numpy).

    Those that float32 or a division by them would turn into 0 or infinity are raised: to what
    leaves the most likely token alone just as well.
    """

    def raised(value: float) -> float:
        return max(value, _LEAST) if value else 0.0

    return Knobs(
        np.array([raised(config.temperature) for config in configs], np.float32),
        np.array([config.top_k for config in configs], np.int32),
        np.array([raised(config.top_p) for config in configs], np.float32),
        np.array([config.repetition_penalty for config in configs], np.float32),
    )


def next_token(
    logits_BV: jax.Array,
    seen_BV: jax.Array,
    keys_B: jax.Array,
    mode: Mode,
    knobs: Knobs,
    allowed_BW: jax.Array | None = None,
) -> Sampled:
    """Return the next token of each row.

    logits_BV: f32. seen_BV: bool, tokens that repetition_penalty applies to.
    keys_B: one PRNG key a row, so that a row's token does not depend on its batch. mode: what the
    rows need together; a row that needs less has the same token in any mode.
    allowed_BW: of a mode that `masks`: u32, a bit for each token of the vocabulary, lowest first.
    Log-probabilities are those of the distribution sampled from: after mask, penalty, temperature
    and truncation; for greedy decoding, after mask and penalty.
    """
    if mode.masks:
        logits_BV = jnp.where(unpacked(allowed_BW, logits_BV.shape[1]), logits_BV, -jnp.inf)
    if mode.penalizes:
        logits_BV = penalize(logits_BV, seen_BV, knobs.repetition_penalty[:, None])
    # [V, B] as a CPU's head gives them (layers.product_of_few), where nothing else reads them.
    plain = mode.greedy and not (mode.masks or mode.penalizes or mode.ranks)
    axis = 0 if plain and platform() == "cpu" else 1
    largest_B = token_B = largest(logits_BV, axis)
    if not mode.greedy:
        greedy_B = knobs.temperature == 0
        logits_BV = logits_BV / jnp.where(greedy_B, 1, knobs.temperature)[:, None]
        if mode.truncates:
            truncates_B1 = ((knobs.top_k > 0) | (knobs.top_p < 1)) & ~greedy_B
            truncated_BV = truncate(logits_BV, knobs.top_k[:, None], knobs.top_p[:, None])
            logits_BV = jnp.where(truncates_B1[:, None], truncated_BV, logits_BV)
        token_B = jnp.where(greedy_B, token_B, sample(logits_BV, keys_B))
    x = logits_BV.T if axis == 0 else logits_BV

    def logit(token_B):
        return jnp.take_along_axis(x, jnp.expand_dims(token_B, axis), axis=axis).squeeze(axis)

    logit_B, most_B = logit(token_B), logit(largest_B)
    total_B = most_B + jnp.log(jnp.sum(jnp.exp(x - jnp.expand_dims(most_B, axis)), axis=axis))
    top_logits_BK, top_BK = logits_BV[:, :0], jnp.zeros_like(logits_BV[:, :0], jnp.int32)
    if mode.ranks:
        top_logits_BK, top_BK = jax.lax.top_k(logits_BV, TOP)
    return Sampled(
        token_B.astype(jnp.int32), logit_B - total_B, top_BK, top_logits_BK - total_B[:, None]
    )


def unpacked(bits_BW: jax.Array, size: int) -> jax.Array:
    """Return the first `size` bits of each row of u32 words, bool[B, size]; lowest bits first."""
    bits_BWL = (bits_BW[..., None] >> jnp.arange(32, dtype=jnp.uint32)[None, None]) & 1
    return bits_BWL.reshape(len(bits_BW), -1)[:, :size] == 1


def largest(logits_BV: jax.Array, axis: int = 1) -> jax.Array:
    """Return argmax over V, i32[B]; by blocks, which a CPU finds seven times as fast.

    axis: 0 for logits that are in memory as [V, B].
    """
    blocks = _blocks(logits_BV.T if axis == 0 else logits_BV, axis, -jnp.inf)
    block_B = jnp.argmax(jnp.max(blocks, axis=axis + 1), axis=axis)
    return block_B * _BLOCK + jnp.argmax(_block_of(blocks, block_B, axis), axis=axis)


def sample(logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
    """Sample a token of each row's softmax, i32[B], by one random number a row.

    `jax.random.categorical` takes V of them, which cost more than a small model's whole step.
    Probabilities are integers in units of 2^-31, whose cumulative sums are exact. Cumulative sums
    in float32 over a large vocabulary are not monotonic, and could select tokens of probability 0.
    """
    weights_BV = (jax.nn.softmax(logits_BV, axis=-1) * 2.0**31).astype(jnp.uint32)
    blocks_BCK = _blocks(weights_BV, 1, 0)
    ends_BC = jnp.cumsum(jnp.sum(blocks_BCK, axis=-1, dtype=jnp.uint32), axis=-1)

    def below(key, total):
        return jax.random.randint(key, (), 0, total, jnp.uint32)

    reached_B = jax.vmap(below)(keys_B, ends_BC[:, -1])
    block_B = jnp.sum(ends_BC <= reached_B[:, None], axis=-1)
    own_BK = _block_of(blocks_BCK, block_B, 1)
    before_B = jnp.take_along_axis(ends_BC, block_B[:, None], axis=1)[:, 0]
    before_B = before_B - jnp.sum(own_BK, axis=-1, dtype=jnp.uint32)
    inside_BK = before_B[:, None] + jnp.cumsum(own_BK, axis=-1)
    return block_B * _BLOCK + jnp.sum(inside_BK <= reached_B[:, None], axis=-1)


_BLOCK = 128  # tokens of a block of the vocabulary


def _blocks(x, axis: int, filling) -> jax.Array:
    """Return x with the axis split into blocks, [..., V / K, K, ...], filled up at the end."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = 0, -x.shape[axis] % _BLOCK
    padded = jnp.pad(x, padding, constant_values=filling)
    return padded.reshape(*x.shape[:axis], -1, _BLOCK, *x.shape[axis + 1 :])


def _block_of(blocks, block_B, axis: int) -> jax.Array:
    """Return the block of each row: [B, K], or [K, B] where the axis is 0."""
    place = jnp.expand_dims(block_B, (axis, axis + 1))
    return jnp.take_along_axis(blocks, place, axis=axis).squeeze(axis)


def penalize(logits_BV: jax.Array, seen_BV: jax.Array, penalty) -> jax.Array:
    """Divide positive and multiply negative logits of seen tokens (CTRL, arXiv 1909.05858)."""
    return jnp.where(
        seen_BV, jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV
    )


def truncate(logits_BV: jax.Array, top_k, top_p) -> jax.Array:
    """Set logits to -inf outside the `top_k` largest (0: all), then outside the top_p nucleus.

    A token stays if fewer than top_k are larger, and if the larger ones of these have together less
    than top_p of their probability. top_k, top_p: numbers, or [B, 1]. Nucleus sampling: arXiv
    1904.09751. Without sorting, which takes longer than a decode step: the smallest logit that
    stays is found bit by bit.
    """
    V = logits_BV.shape[-1]
    order_BV = _ordered_bits(logits_BV)
    kept_B1 = jnp.broadcast_to(jnp.where(top_k > 0, top_k, V), (len(logits_BV), 1))
    ones_BV = jnp.ones_like(logits_BV, jnp.int32)
    among_BV = order_BV >= _threshold(order_BV, ones_BV, kept_B1)
    masked_BV = jnp.where(among_BV, logits_BV, -jnp.inf)
    mass_B1 = jnp.broadcast_to(jnp.asarray(top_p, jnp.float32), (len(logits_BV), 1))
    probabilities_BV = jax.nn.softmax(masked_BV, axis=-1)
    return jnp.where(
        order_BV >= _threshold(order_BV, probabilities_BV, mass_B1), masked_BV, -jnp.inf
    )


def _ordered_bits(x: jax.Array) -> jax.Array:
    """u32 whose order is that of the float32 numbers."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _threshold(order_BV, weights_BV, target_B1) -> jax.Array:
    """The largest u32[B, 1] for which the weights of what is not below it reach the target."""

    def bit(i, found_B1):
        candidate_B1 = found_B1 | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        total_B1 = jnp.sum(
            jnp.where(order_BV >= candidate_B1, weights_BV, 0), axis=-1, keepdims=True
        )
        return jnp.where(total_B1 >= target_B1, candidate_B1, found_B1)

    return jax.lax.fori_loop(0, 32, bit, jnp.zeros((len(order_BV), 1), jnp.uint32))
