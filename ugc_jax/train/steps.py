"""The train step and the eval step: pure functions, jitted, sharded, with donated state.

One step: read this file, losses.py (the loss), models/omni.py (the model), optimizer.py (the
update), state.py (what is carried).
"""

from collections.abc import Callable

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
    that was likeliest), tokens (all but padding), targets, examples, grad_norm (before clipping),
    learning_rate, and finite: 0.0 where loss or gradient was not, and nothing was changed.
    Call it under `jax.set_mesh(setup.mesh)`.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(setup))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        sums, grads = _gradient(state, batch, setup)
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(sums.loss) & jnp.isfinite(norm)
        healthy = state.healthy & finite

        params32 = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), state.params)
        updates, opt_state = setup.transform.update(grads, state.opt_state, params32)
        params = jax.tree.map(
            lambda leaf, update: (leaf.astype(jnp.float32) + update).astype(leaf.dtype),
            state.params,
            updates,
        )

        def unless_broken(new, old):
            return jax.tree.map(lambda new, old: jnp.where(healthy, new, old), new, old)

        new = TrainState(
            step=state.step + healthy,
            params=unless_broken(params, state.params),
            frozen=state.frozen,
            opt_state=unless_broken(opt_state, state.opt_state),
            healthy=healthy,
        )
        metrics = {
            "loss": sums.loss / sums.tokens,
            "accuracy": sums.hits / sums.tokens,
            "tokens": jnp.sum(batch.segment_ids > 0, dtype=jnp.float32),
            "targets": sums.tokens,
            "examples": jnp.sum(jnp.max(batch.segment_ids, axis=1), dtype=jnp.float32),
            "grad_norm": norm,
            "learning_rate": learning_rates(setup.optimizer, setup.steps)(state.step),
            "finite": healthy.astype(jnp.float32),
        }
        return new, metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def eval_step(setup: Setup) -> Callable[[TrainState, Batch], LossSums]:
    """The jitted sums of loss, hits and tokens over a batch's target tokens."""

    @jax.jit
    def step(state: TrainState, batch: Batch) -> LossSums:
        return sft_sums(model_params(state, setup), setup.model, setup.compute, batch)

    return step


def _gradient(state: TrainState, batch: Batch, setup: Setup) -> tuple[LossSums, dict]:
    """Sums over the batch, and the gradient f32 of the mean loss over its target tokens.

    The mean is over the whole batch, however it is split over devices and in time.
    """
    total = jnp.maximum(jnp.sum(batch.target[:, 1:], dtype=jnp.float32), 1.0)

    def loss(params, part: Batch):
        whole = model_params(state._replace(params=params), setup)
        sums = sft_sums(whole, setup.model, setup.compute, part)
        return sums.loss / total, sums

    def gradient(part: Batch) -> tuple[LossSums, dict]:
        grads, sums = jax.grad(loss, has_aux=True)(state.params, part)
        return sums, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), grads)

    if setup.accumulate == 1:
        return gradient(batch)

    def add(carry, part: Batch):
        return jax.tree.map(jnp.add, carry, gradient(part)), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), state.params)
    start = LossSums(*(jnp.float32(0),) * 3), zeros
    return jax.lax.scan(add, start, _parts(batch, setup.accumulate))[0]


def _parts(batch: Batch, count: int) -> Batch:
    """[B, ...] -> [count, B / count, ...]; each device keeps its rows, so nothing moves."""

    def split(leaf):
        parts = leaf.reshape(leaf.shape[0] // count, count, *leaf.shape[1:]).swapaxes(0, 1)
        return constrain(parts, (None, "batch") + (None,) * (leaf.ndim - 1))

    return jax.tree.map(split, batch)
