"""The policy step of GRPO: one pass forward and back over rows that share their prompts.

One step: read this file, objective.py (the loss), rows.py (what a row is), train/steps.py (the
update). The formulas of all options are in options.py.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ugc_jax.models.qwen2_5_omni import thinker as omni
from ugc_jax.rl.objective import Scored, objective
from ugc_jax.rl.options import GrpoOptions
from ugc_jax.rl.rows import PolicyBatch
from ugc_jax.train.losses import TokenScores, token_scores
from ugc_jax.train.state import Setup, TrainState, abstract_state, model_params, reference_params
from ugc_jax.train.step import Metrics, added, apply, gradient, in_parts, jit_step


def policy_step(
    setup: Setup, options: GrpoOptions, samples: int, temperature: float = 1.0
) -> Callable[[TrainState, PolicyBatch], tuple[TrainState, Metrics]]:
    """The jitted update `(state, batch) -> (state, metrics)`; it uses up the state it is given.

    samples: completions of a prompt. temperature: of the rollout.
    Metrics are f32 scalars: loss, tokens (trained on), those of `objective`, and those of
    `train.steps.apply`. Call it under `jax.set_mesh(setup.mesh)`.
    """

    def step(state: TrainState, batch: PolicyBatch) -> tuple[TrainState, Metrics]:
        sums, grads = policy_gradient(state, batch, setup, options, samples, temperature)
        # Without anything to learn from, even a gradient of 0 would go on with the momentum.
        new, metrics = apply(setup, state, sums["loss"], grads, moves=sums["tokens"] > 0)
        tokens = jnp.maximum(sums["tokens"], 1.0)
        whole = ("loss", "tokens", "max_ratio")
        return new, metrics | {name: x if name in whole else x / tokens for name, x in sums.items()}

    return jit_step(step, setup)


def policy_gradient(
    state: TrainState,
    batch: PolicyBatch,
    setup: Setup,
    options: GrpoOptions,
    samples: int,
    temperature: float = 1.0,
) -> tuple[dict[str, jax.Array], dict]:
    """(loss and sums of metrics over the batch, gradient f32 of the loss). Traceable."""

    def loss(params, part: PolicyBatch):
        whole = model_params(state._replace(params=params), setup)
        scores = score(whole, setup, part, options, temperature)
        scored = Scored(
            logprob=scores.logprob,
            entropy=scores.entropy,
            old=part.old,
            reference=part.reference,
            rollout=part.rollout,
            advantage=part.advantage,
            weight=part.weight,
            sample=part.sample,
        )
        of_a_row = samples if options.shared_prompt else 1
        value, sums = objective(scored, options, of_a_row)
        return value, {"loss": value} | sums

    return gradient(loss, state.params, batch, setup.accumulate, _joined)


def score_step(
    setup: Setup, options: GrpoOptions, temperature: float = 1.0, of_reference: bool = False
) -> Callable[[TrainState, PolicyBatch], jax.Array]:
    """The jitted log-probabilities f32[rows, S] of a batch's tokens: `old`, or by the reference.

    batch: of all minibatches. No more rows pass through the model at a time than in an update.
    """
    weights = reference_params if of_reference else model_params

    @jax.jit
    def step(state: TrainState, batch: PolicyBatch) -> jax.Array:
        params = weights(state, setup)

        def of_part(part: PolicyBatch) -> jax.Array:
            return score(params, setup, part, options, temperature, entropy=False).logprob

        return in_parts(of_part, batch, setup.accumulate * options.minibatches)

    return step


def sync_reference(setup: Setup, mix: float) -> Callable[[TrainState], TrainState]:
    """The jitted `reference <- mix * policy + (1 - mix) * reference`; it uses up the state."""

    split = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(setup))

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=split)
    def step(state: TrainState) -> TrainState:
        def mixed(kept, now):
            both = mix * now.astype(jnp.float32) + (1 - mix) * kept.astype(jnp.float32)
            return both.astype(kept.dtype)

        return state._replace(reference=jax.tree.map(mixed, state.reference, state.params))

    return step


def score(
    params: dict,
    setup: Setup,
    batch: PolicyBatch,
    options: GrpoOptions,
    temperature: float,
    entropy: bool = True,
) -> TokenScores:
    """Log-probability and, if asked for, entropy f32[rows, S] of each slot's token. Traceable."""
    hidden_BTD = omni.hidden_states(
        params,
        setup.model,
        setup.compute,
        batch.inputs,
        rows=batch.media,
        shared_prompt=options.shared_prompt,
    )
    hidden_BSD = jnp.take_along_axis(hidden_BTD, batch.previous[..., None], axis=1)
    wanted_BS = batch.weight > 0
    return token_scores(params, hidden_BSD, batch.tokens, wanted_BS, temperature, entropy)


def _joined(left: dict, right: dict) -> dict:
    """The sums of two parts of a batch."""
    return added(left, right) | {"max_ratio": jnp.maximum(left["max_ratio"], right["max_ratio"])}
