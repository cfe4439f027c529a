"""The train step and the eval step: pure functions, jitted, sharded, with donated state.

One step: read this file, losses.py (the loss), models/omni.py (the model), optimizer.py (the
update), state.py (what is carried).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ugc_jax.data.schema import Batch
from ugc_jax.sharding import constrain
from ugc_jax.train.losses import LossSums, sft_sums
from ugc_jax.train.optimizer import learning_rates
from ugc_jax.train.state import Setup, TrainState, abstract_state, model_params

Metrics = dict[str, jax.Array]


def train_step(setup: Setup) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted update `(state, batch) -> (state, metrics)`; it uses up the state it is given.

    The batch's rows are a multiple of setup.accumulate and of the devices that share the batch.
    Metrics are f32 scalars: loss (mean over the batch's target tokens), accuracy (share of them
    that was likeliest), tokens (all but padding), targets, examples, and those of `apply`.
    Call it under `jax.set_mesh(setup.mesh)`.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        sums, grads = sft_gradient(state, batch, setup)
        new, metrics = apply(setup, state, sums.loss, grads)
        return new, metrics | {
            "loss": sums.loss / sums.tokens,
            "accuracy": sums.hits / sums.tokens,
            "tokens": jnp.sum(batch.segment_ids > 0, dtype=jnp.float32),
            "targets": sums.tokens,
            "examples": jnp.sum(jnp.max(batch.segment_ids, axis=1), dtype=jnp.float32),
        }

    return jit_step(step, setup)


def eval_step(setup: Setup) -> Callable[[TrainState, Batch], LossSums]:
    """The jitted sums of loss, hits and tokens over a batch's target tokens."""

    @jax.jit
    def step(state: TrainState, batch: Batch) -> LossSums:
        return sft_sums(model_params(state, setup), setup.model, setup.compute, batch)

    return step


def sft_gradient(state: TrainState, batch: Batch, setup: Setup) -> tuple[LossSums, dict]:
    """Sums over the batch, and the gradient f32 of the mean loss over its target tokens.

    The mean is over the whole batch, however it is split over devices and in time.
    """
    total = jnp.maximum(jnp.sum(batch.target[:, 1:], dtype=jnp.float32), 1.0)

    def loss(params, part: Batch):
        whole = model_params(state._replace(params=params), setup)
        sums = sft_sums(whole, setup.model, setup.compute, part)
        return sums.loss / total, sums

    return gradient(loss, state.params, batch, setup.accumulate)


# ---- what every kind of step is made of ----------------------------------------------------------


def jit_step(step: Callable, setup: Setup) -> Callable:
    """A jitted `step(state, batch) -> (state, metrics)` that uses up the state it is given."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(setup))
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def added(left, right):
    """Two trees, added up leaf by leaf."""
    return jax.tree.map(jnp.add, left, right)


def gradient(
    loss: Callable, params: dict, batch, parts: int, add: Callable = added
) -> tuple[Any, dict]:
    """(sums, gradient f32) of `loss(params, part) -> (f32[], sums)`, added up over the parts.

    batch: a tree of arrays with a leading axis of rows; its parts pass through the model one after
    the other. add: what joins the sums (of values that are not negative) of two parts.
    """

    def of(part):
        grads, sums = jax.grad(loss, has_aux=True)(params, part)
        return sums, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), grads)

    if parts == 1:
        return of(batch)

    def step(carry, part):
        sums, grads = of(part)
        return (add(carry[0], sums), added(carry[1], grads)), None

    split = _split(batch, parts)
    sums = jax.eval_shape(of, jax.tree.map(lambda leaf: leaf[0], split))[0]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), (sums, params))
    return jax.lax.scan(step, zeros, split)[0]


def in_parts(function: Callable, batch, parts: int):
    """`function(part)`, whose leaves have the part's rows, of all rows: a part at a time."""
    if parts == 1:
        return function(batch)
    out = jax.lax.map(function, _split(batch, parts))
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:]), out)


def apply(
    setup: Setup, state: TrainState, loss: jax.Array, grads: dict, moves: jax.Array | bool = True
) -> tuple[TrainState, Metrics]:
    """Update the parameters by the optimizer, or nothing where loss or gradient is not finite.

    moves: bool[], False for a step that counts and changes nothing else, not even the schedule.
    Metrics: grad_norm (before clipping), learning_rate, and finite: 0.0 from then on.
    """
    norm = optax.global_norm(grads)
    healthy = state.healthy & jnp.isfinite(loss) & jnp.isfinite(norm)

    params32 = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), state.params)
    updates, opt_state = setup.transform.update(grads, state.opt_state, params32)
    params = jax.tree.map(
        lambda leaf, update: (leaf.astype(jnp.float32) + update).astype(leaf.dtype),
        state.params,
        updates,
    )

    def unless_broken(new, old):
        return jax.tree.map(lambda new, old: jnp.where(healthy & moves, new, old), new, old)

    new = state._replace(
        step=state.step + healthy,
        params=unless_broken(params, state.params),
        opt_state=unless_broken(opt_state, state.opt_state),
        healthy=healthy,
    )
    return new, {
        "grad_norm": norm,
        "learning_rate": learning_rates(setup.optimizer, setup.steps)(state.step),
        "finite": healthy.astype(jnp.float32),
    }


def _split(batch, count: int):
    """[B, ...] -> [count, B / count, ...]; each device keeps its rows, so nothing moves.

    Part p holds the rows p, p + count, ...
    """

    def split(leaf):
        parts = leaf.reshape(leaf.shape[0] // count, count, *leaf.shape[1:]).swapaxes(0, 1)
        return constrain(parts, (None, "batch") + (None,) * (leaf.ndim - 1))

    return jax.tree.map(split, batch)
