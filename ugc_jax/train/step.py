"""The SFT step: one pure function from a batch to updated parameters and metrics.

    batch -> microbatches -> loss -> gradient -> update -> metrics

To read a whole step: this file, losses.py, models/qwen2_5_omni/thinker.py, optimizer.py, state.py,
data/batching.py. The second half of this file is shared with GRPO's step (rl/objective.py):
gradients over microbatches, the update, compilation.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.tree_utils import tree_add

from ugc_jax.data.batching import Batch
from ugc_jax.sharding import constrain
from ugc_jax.train.losses import LossSums, cross_entropy_sums
from ugc_jax.train.optimizer import learning_rates
from ugc_jax.train.state import Setup, TrainState, model_params, state_shardings

Metrics = dict[str, jax.Array]
# A TPU's compiler may fetch a weight that is split over chips piece by piece, each piece while it
# multiplies the one before. Where the pieces are summed over, it then writes and reads the whole
# result for each of them, which takes longer than the products (a decoder layer of the 3B on
# v5e:4x4: five times the bytes). Without that, it gathers a weight whole, beside the work before.
TPU_OPTIONS = {"xla_tpu_enable_windowed_einsum_for_all_gather": "false"}


def train_step(state: TrainState, batch: Batch, setup: Setup) -> tuple[TrainState, Metrics]:
    """Make one update; returns (the new state, metrics). Pure; `jit_step` compiles it.

    The batch's rows are a multiple of setup.accumulate times the devices that share the batch.
    Metrics are f32 scalars: loss (mean over the batch's target tokens), accuracy (share of them
    that were the likeliest), tokens (all but padding), targets, examples, and those of
    `apply_gradient`.
    """
    sums, gradient = sft_gradient(state, batch, setup)
    state, metrics = apply_gradient(state, gradient, sums.loss, setup)
    return state, metrics | {
        "loss": sums.loss / sums.tokens,
        "accuracy": sums.hits / sums.tokens,
        "tokens": jnp.sum(batch.segment_ids > 0, dtype=jnp.float32),
        "targets": sums.tokens,
        "examples": jnp.sum(jnp.max(batch.segment_ids, axis=1), dtype=jnp.float32),
    }


def sft_gradient(state: TrainState, batch: Batch, setup: Setup) -> tuple[LossSums, dict]:
    """Return sums over the batch, and the gradient f32 of the mean loss over its target tokens.

    The mean is over the whole batch, however it is split over devices and microbatches.
    """
    targets = jnp.maximum(jnp.sum(batch.target[:, 1:], dtype=jnp.float32), 1.0)

    def loss(params, microbatch: Batch):
        whole = model_params(state._replace(params=params), setup)
        sums = cross_entropy_sums(whole, setup.model, setup.compute, microbatch)
        return sums.loss / targets, sums

    return accumulated_gradient(loss, state.params, batch, setup.accumulate)


def eval_step(state: TrainState, batch: Batch, setup: Setup) -> LossSums:
    """Return the sums of loss, hits and tokens over a batch's target tokens. Pure."""
    return cross_entropy_sums(model_params(state, setup), setup.model, setup.compute, batch)


# ---- shared with GRPO's step ---------------------------------------------------------------------


def jit_step(step: Callable, setup: Setup) -> Callable:
    """Compile `step(state, batch, setup=setup) -> (state, metrics)`; the state is donated.

    Call the result under `jax.set_mesh(setup.mesh)`.
    """
    bound = functools.partial(step, setup=setup)
    of_tpu = setup.mesh.devices.flat[0].platform == "tpu"
    return jax.jit(
        bound,
        donate_argnums=0,
        out_shardings=(state_shardings(setup), None),
        compiler_options=TPU_OPTIONS if of_tpu else None,
    )


def accumulated_gradient(
    loss: Callable, params: dict, batch, microbatches: int, add: Callable = tree_add
) -> tuple[Any, dict]:
    """Return (sums, gradient f32) of `loss(params, microbatch) -> (f32[], sums)`, added up.

    batch: a tree of arrays with a leading axis of rows. add: adds the sums (of values that are not
    negative) of two microbatches.
    """

    def one(microbatch):
        gradient, sums = jax.grad(loss, has_aux=True)(params, microbatch)
        return sums, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradient)

    if microbatches == 1:
        return one(batch)

    def scanned(total, microbatch):
        sums, gradient = one(microbatch)
        return (add(total[0], sums), tree_add(total[1], gradient)), None

    split = _split(batch, microbatches)
    sums = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], split))[0]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), (sums, params))
    return jax.lax.scan(scanned, zeros, split)[0]


def map_microbatches(function: Callable, batch, microbatches: int):
    """Return `function(batch)`, a tree of arrays [B, ...], computed by microbatch."""
    if microbatches == 1:
        return function(batch)
    out = jax.lax.map(function, _split(batch, microbatches))
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:]), out)


def apply_gradient(
    state: TrainState,
    gradient: dict,
    loss: jax.Array,
    setup: Setup,
    learns: jax.Array | bool = True,
) -> tuple[TrainState, Metrics]:
    """Update the parameters by the optimizer, unless loss or gradient is not finite.

    learns: bool[], False for a step that is counted and changes nothing else, not even the
    schedule. Metrics: grad_norm (before clipping), learning_rate, and finite: 0.0 from the first
    step on that was not.
    """
    norm = optax.global_norm(gradient)
    finite = state.finite & jnp.isfinite(loss) & jnp.isfinite(norm)

    params32 = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), state.params)
    updates, opt_state = setup.transform.update(gradient, state.opt_state, params32)
    params = jax.tree.map(
        lambda leaf, update: (leaf.astype(jnp.float32) + update).astype(leaf.dtype),
        state.params,
        updates,
    )

    def changed(new, old):
        return jax.tree.map(lambda new, old: jnp.where(finite & learns, new, old), new, old)

    new = state._replace(
        step=state.step + finite,
        params=changed(params, state.params),
        opt_state=changed(opt_state, state.opt_state),
        finite=finite,
    )
    return new, {
        "grad_norm": norm,
        "learning_rate": learning_rates(setup.optimizer, setup.steps)(state.step),
        "finite": finite.astype(jnp.float32),
    }


def _split(batch, microbatches: int):
    """[B, ...] -> [microbatches, B / microbatches, ...]; each device keeps its rows.

    Microbatch m holds the rows m, m + microbatches, ...
    """

    def split(leaf):
        rows = leaf.shape[0] // microbatches
        parts = leaf.reshape(rows, microbatches, *leaf.shape[1:]).swapaxes(0, 1)
        return constrain(parts, (None, "batch") + (None,) * (leaf.ndim - 1))

    return jax.tree.map(split, batch)
