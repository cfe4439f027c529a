"""The policy step of GRPO: rows that share their prompts -> loss -> gradient -> update.

    rows (rows.py) -> microbatches -> log-probs (train/losses.py) -> loss (`objective`)
    -> gradient -> update (train/step.py)

options.py has the formulas of all options. Letters: B rows, S scored slots of a row, G completions
of a row.
"""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from optax.tree_utils import tree_add

from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.rl.options import GrpoOptions
from ugc_jax.rl.rows import PolicyBatch
from ugc_jax.train.losses import TokenScores, token_scores
from ugc_jax.train.state import Setup, TrainState, model_params, reference_params
from ugc_jax.train.step import Metrics, accumulated_gradient, apply_gradient, map_microbatches

LOG_RATIO = 20.0  # log-ratios of policies are clamped to +- this (verl, NeMo-RL)
KL = 10.0  # estimates of the KL are clamped to +- this (NeMo-RL)


def policy_step(
    state: TrainState,
    batch: PolicyBatch,
    setup: Setup,
    options: GrpoOptions,
    samples: int,
    temperature: float = 1.0,
) -> tuple[TrainState, Metrics]:
    """Make one update; returns (the new state, metrics). Pure; `train.step.jit_step` compiles it.

    samples: completions of a prompt. temperature: of the rollout.
    Metrics are f32 scalars: loss, tokens (trained on), those of `objective`, and those of
    `train.step.apply_gradient`.
    """
    sums, gradient = policy_gradient(state, batch, setup, options, samples, temperature)
    # Without tokens, even a gradient of 0 would move the weights by Adam's momentum.
    learns = sums["tokens"] > 0
    state, metrics = apply_gradient(state, gradient, sums["loss"], setup, learns)
    tokens = jnp.maximum(sums["tokens"], 1.0)
    whole = ("loss", "tokens", "max_ratio")
    return state, metrics | {name: x if name in whole else x / tokens for name, x in sums.items()}


def policy_gradient(
    state: TrainState,
    batch: PolicyBatch,
    setup: Setup,
    options: GrpoOptions,
    samples: int,
    temperature: float = 1.0,
) -> tuple[dict[str, jax.Array], dict]:
    """Return (loss and sums of metrics over the batch, gradient f32 of the loss). Traceable."""

    def loss(params, microbatch: PolicyBatch):
        whole = model_params(state._replace(params=params), setup)
        scores = score(whole, setup, microbatch, options, temperature)
        of_a_row = samples if options.shared_prompt else 1
        value, sums = objective(microbatch, scores, options, of_a_row)
        return value, {"loss": value} | sums

    return accumulated_gradient(loss, state.params, batch, setup.accumulate, _added)


def score(
    params: dict,
    setup: Setup,
    batch: PolicyBatch,
    options: GrpoOptions,
    temperature: float,
    entropy: bool = True,
) -> TokenScores:
    """Return log-probability and, if requested, entropy f32[rows, S] of each token. Traceable."""
    hidden_BTD = thinker.hidden_states(
        params,
        setup.model,
        setup.compute,
        batch.inputs,
        rows=batch.media,
        shared_prompt=options.shared_prompt,
    )
    hidden_BSD = jnp.take_along_axis(hidden_BTD, batch.previous[..., None], axis=1)
    mask_BS = batch.weight > 0
    return token_scores(params, hidden_BSD, batch.tokens, mask_BS, temperature, entropy)


def objective(
    batch: PolicyBatch, scores: TokenScores, options: GrpoOptions, samples: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return (loss f32[], sums of metrics f32[]) of some rows, with `samples` completions each.

    scores: of the batch's slots, with entropy. Slots of weight 0 are padding and never read. If
    `batch.old` is None, this is the first update on the batch, and old is the trained policy's.
    The caller adds up losses and sums of the microbatches of a batch, except max_ratio, of which it
    takes the maximum. Then sums[name] / sums["tokens"] is the mean over tokens of: ratio
    (importance), clip_low, clip_high, dual_clip (whether that clip cut the gradient), kl (with a
    reference), entropy, tis (the weight), mult_prob_error (exp|old - rollout|: 1 where rollout and
    training agree, as in NeMo-RL).
    """
    mask = batch.weight > 0
    # Values of padding must not reach a gradient, not even as 0 * inf.
    logprob, entropy, old, reference, rollout, advantage, weight, sample = jax.tree.map(
        lambda x: jnp.where(mask, x, jnp.zeros_like(x)),
        (
            scores.logprob, scores.entropy, batch.old, batch.reference, batch.rollout,
            batch.advantage, batch.weight, batch.sample,
        ),
    )  # fmt: skip
    if old is None:
        old = stop_gradient(logprob)

    log_ratio = logprob - old
    if options.importance == "sequence":
        log_ratio = _completion_means(log_ratio, mask, sample, samples)
    ratio = _exp(log_ratio)
    below, above = options.clips
    low, high = 1 - below, 1 + above
    loss = -jnp.minimum(ratio * advantage, jnp.clip(ratio, low, high) * advantage)
    metrics = {
        "ratio": ratio,
        "clip_low": (ratio < low) & (advantage < 0),
        "clip_high": (ratio > high) & (advantage > 0),
        "entropy": entropy,
        "mult_prob_error": _exp(jnp.abs(old - rollout)),
    }
    if options.dual_clip:
        most = jnp.where(advantage < 0, options.dual_clip * jnp.abs(advantage), jnp.inf)
        metrics["dual_clip"] = loss > most
        loss = jnp.minimum(loss, most)
    if options.tis_cap:
        metrics["tis"] = jnp.minimum(_exp(old - rollout), options.tis_cap)
        loss = metrics["tis"] * loss
    if options.entropy_bonus:
        loss = loss - options.entropy_bonus * entropy
    if options.entropy_quantile < 1:
        learns = _is_highest(stop_gradient(entropy), mask, options.entropy_quantile)
        loss = jnp.where(learns, loss, 0.0)
    if options.beta:
        metrics["kl"] = _divergence(logprob, reference, options.kl)
        loss = loss + options.beta * metrics["kl"]

    sums = {name: jnp.sum(jnp.where(mask, x, 0.0)) for name, x in metrics.items()}
    sums["tokens"] = jnp.sum(mask, dtype=jnp.float32)
    sums["max_ratio"] = jnp.max(jnp.where(mask, ratio, 0.0))
    return jnp.sum(weight * loss), jax.tree.map(stop_gradient, sums)


def token_logprobs(
    state: TrainState,
    batch: PolicyBatch,
    setup: Setup,
    options: GrpoOptions,
    temperature: float = 1.0,
    of_reference: bool = False,
) -> jax.Array:
    """Return log-probs f32[rows, S] of a batch's tokens, by the policy or the reference. Pure.

    batch: of all minibatches. The model takes as many rows at a time as in an update.
    """
    params = (reference_params if of_reference else model_params)(state, setup)

    def logprobs(microbatch: PolicyBatch) -> jax.Array:
        return score(params, setup, microbatch, options, temperature, entropy=False).logprob

    return map_microbatches(logprobs, batch, setup.accumulate * options.minibatches)


def mix_reference(state: TrainState, mix: float) -> TrainState:
    """Return the state with `reference <- mix * policy + (1 - mix) * reference`. Pure."""

    def mixed(reference, policy):
        sum32 = mix * policy.astype(jnp.float32) + (1 - mix) * reference.astype(jnp.float32)
        return sum32.astype(reference.dtype)

    return state._replace(reference=jax.tree.map(mixed, state.reference, state.params))


def _added(left: dict, right: dict) -> dict:
    """The sums of two microbatches."""
    return tree_add(left, right) | {"max_ratio": jnp.maximum(left["max_ratio"], right["max_ratio"])}


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
