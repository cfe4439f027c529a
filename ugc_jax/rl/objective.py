"""The loss of GRPO over the tokens of a microbatch: pure, f32; weights select the aggregation.

options.py has the formulas. Letters: B rows, S scored slots of a row, G completions of a row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from ugc_jax.rl.options import GrpoOptions

LOG_RATIO = 20.0  # log-ratios of policies are clamped to +- this (verl, NeMo-RL)
KL = 10.0  # estimates of the KL are clamped to +- this (NeMo-RL)


class ScoredTokens(NamedTuple):
    """Slots of rows, f32[B, S] except sample; a slot of weight 0 is padding and never read.

    logprob: by the trained policy. entropy: of its distribution. old: the log-prob before the
    first update on the batch; None if this is that update. reference: by the reference; None with
    beta 0. rollout: the log-prob under which the token was sampled. advantage: of its completion.
    weight: of its loss, from `advantages.token_weights`. sample: i32[B, S], its completion's number
    in the row, from 0; -1: none.
    """

    logprob: jax.Array
    entropy: jax.Array
    old: jax.Array | None
    reference: jax.Array | None
    rollout: jax.Array
    advantage: jax.Array
    weight: jax.Array
    sample: jax.Array


def objective(
    scored: ScoredTokens, options: GrpoOptions, samples: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return (loss f32[], sums of metrics f32[]) of some rows, with `samples` completions each.

    The caller adds up losses and sums of the microbatches of a batch, except max_ratio, of which it
    takes the maximum. Then sums[name] / sums["tokens"] is the mean over tokens of: ratio
    (importance), clip_low, clip_high, dual_clip (whether that clip cut the gradient), kl (with a
    reference), entropy, tis (the weight), mult_prob_error (exp|old - rollout|: 1 where rollout and
    training agree, as in NeMo-RL).
    """
    mask = scored.weight > 0
    # Values of padding must not reach a gradient, not even as 0 * inf.
    scored = jax.tree.map(lambda x: jnp.where(mask, x, jnp.zeros_like(x)), scored)
    logprob, advantage = scored.logprob, scored.advantage
    old = stop_gradient(logprob) if scored.old is None else scored.old

    log_ratio = logprob - old
    if options.importance == "sequence":
        log_ratio = _completion_means(log_ratio, mask, scored.sample, samples)
    ratio = _exp(log_ratio)
    below, above = options.clips
    low, high = 1 - below, 1 + above
    loss = -jnp.minimum(ratio * advantage, jnp.clip(ratio, low, high) * advantage)
    metrics = {
        "ratio": ratio,
        "clip_low": (ratio < low) & (advantage < 0),
        "clip_high": (ratio > high) & (advantage > 0),
        "entropy": scored.entropy,
        "mult_prob_error": _exp(jnp.abs(old - scored.rollout)),
    }
    if options.dual_clip:
        most = jnp.where(advantage < 0, options.dual_clip * jnp.abs(advantage), jnp.inf)
        metrics["dual_clip"] = loss > most
        loss = jnp.minimum(loss, most)
    if options.tis_cap:
        metrics["tis"] = jnp.minimum(_exp(old - scored.rollout), options.tis_cap)
        loss = metrics["tis"] * loss
    if options.entropy_bonus:
        loss = loss - options.entropy_bonus * scored.entropy
    if options.entropy_quantile < 1:
        learns = _is_highest(stop_gradient(scored.entropy), mask, options.entropy_quantile)
        loss = jnp.where(learns, loss, 0.0)
    if options.beta:
        metrics["kl"] = _divergence(logprob, scored.reference, options.kl)
        loss = loss + options.beta * metrics["kl"]

    sums = {name: jnp.sum(jnp.where(mask, x, 0.0)) for name, x in metrics.items()}
    sums["tokens"] = jnp.sum(mask, dtype=jnp.float32)
    sums["max_ratio"] = jnp.max(jnp.where(mask, ratio, 0.0))
    return jnp.sum(scored.weight * loss), jax.tree.map(stop_gradient, sums)


def _exp(x: jax.Array) -> jax.Array:
    return jnp.exp(jnp.clip(x, -LOG_RATIO, LOG_RATIO))


def _completion_means(x_BS, mask_BS, sample_BS, samples: int) -> jax.Array:
    """The mean of x over the slots of each slot's completion, f32[B, S]; 0 in padding."""
    own_BSG = mask_BS[..., None] & (sample_BS[..., None] == jnp.arange(samples)[None, None])
    # Sums, not matrix products: those are not float32 on every device.
    total_BG = jnp.sum(jnp.where(own_BSG, x_BS[..., None], 0.0), axis=1)
    mean_BG = total_BG / jnp.maximum(jnp.sum(own_BSG, axis=1), 1)
    return jnp.sum(jnp.where(own_BSG, mean_BG[:, None], 0.0), axis=2)


def _is_highest(x_BS, mask_BS, share: float) -> jax.Array:
    """bool[B, S]: whether x is at or above the (1 - share) quantile; False in padding."""
    ordered = jnp.sort(jnp.where(mask_BS, x_BS, jnp.inf).reshape(-1))
    last = jnp.maximum(jnp.sum(mask_BS) - 1, 0)
    place = (1 - share) * last  # between two of the ordered values, as in NumPy and torch
    below = jnp.floor(place).astype(jnp.int32)
    a, b = ordered[below], ordered[jnp.minimum(below + 1, last)]
    return mask_BS & (x_BS >= a + (place - below) * (b - a))


def _divergence(logprob: jax.Array, reference: jax.Array, kind: str) -> jax.Array:
    """Estimate of KL(policy || reference) at each token, by options.kl."""
    x = jnp.clip(reference - logprob, -LOG_RATIO, LOG_RATIO)
    k1, k2, k3 = -x, jnp.square(x) / 2, jnp.exp(x) - 1 - x
    value = jnp.clip({"k1": k1, "k2": k2, "k3": k3, "k3+": k3}[kind], -KL, KL)
    # Straight through (verl): adds 0 to the value, and is all of the gradient.
    return stop_gradient(value) + (k2 - stop_gradient(k2)) if kind == "k3+" else value
