"""The policy step of GRPO: one forward and backward pass over rows that share their prompts.

    rows (rows.py) -> microbatches -> log-probs (train/losses.py) -> loss (objective.py)
    -> gradient -> update (train/step.py)

options.py has the formulas of all options.
"""

import functools

import jax
import jax.numpy as jnp
from optax.tree_utils import tree_add

from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.rl.objective import ScoredTokens, objective
from ugc_jax.rl.options import GrpoOptions
from ugc_jax.rl.rows import PolicyBatch
from ugc_jax.sharding import constrain
from ugc_jax.train.losses import TokenScores, token_scores
from ugc_jax.train.state import Setup, TrainState, model_params, reference_params
from ugc_jax.train.step import Metrics, accumulated_gradient, apply_gradient, map_microbatches


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
        scored = ScoredTokens(
            logprob=scores.logprob,
            entropy=scores.entropy,
            old=microbatch.old,
            reference=microbatch.reference,
            rollout=microbatch.rollout,
            advantage=microbatch.advantage,
            weight=microbatch.weight,
            sample=microbatch.sample,
        )
        of_a_row = samples if options.shared_prompt else 1
        value, sums = objective(scored, options, of_a_row)
        return value, {"loss": value} | sums

    return accumulated_gradient(loss, state.params, batch, setup.accumulate, _added)


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


@functools.partial(jax.jit, static_argnames=("number", "count", "copies"))
def minibatch(batch: PolicyBatch, number: int, count: int, copies: int) -> PolicyBatch:
    """Return the groups number, number + count, ... of `copies` rows; devices keep their rows."""

    def take(leaf):
        groups = leaf.reshape(len(leaf) // (count * copies), count, copies, *leaf.shape[1:])
        rows = groups[:, number].reshape(len(leaf) // count, *leaf.shape[1:])
        return constrain(rows, ("batch",) + (None,) * (rows.ndim - 1))

    return jax.tree.map(take, batch)


def _added(left: dict, right: dict) -> dict:
    """The sums of two microbatches."""
    return tree_add(left, right) | {"max_ratio": jnp.maximum(left["max_ratio"], right["max_ratio"])}
