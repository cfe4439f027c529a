"""A training of milliseconds for tests of the loop: real states, batches and meshes, a toy model.

The toy's loss is mean((w - x)^2) over the batch, so that every step depends on its own data; a
token -1 makes it NaN. As a program: `python fake_training.py FOLDER STEPS PAUSE [PORT PROCESS]`
trains, or goes on, with PAUSE seconds a batch; with the last two, as one of two processes.
"""

import dataclasses
import functools
import socket
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from ugc_jax import sharding
from ugc_jax.data.batching import Batch, LogMel, Patches
from ugc_jax.train import loop, supervised
from ugc_jax.train.checkpoint import Checkpoints
from ugc_jax.train.losses import LossSums
from ugc_jax.train.settings import LoopConfig
from ugc_jax.train.state import TrainState

ROWS, TOKENS, WIDTH = 8, 4, 16
# For programs that run once or twice: they compile in half the time.
FAST_COMPILE = {"xla_backend_optimization_level": 0}


def free_port() -> int:
    """For processes of one test to meet at."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


@dataclasses.dataclass(frozen=True)
class Setup:
    """What the loop asks of train.state.Setup."""

    mesh: Mesh
    steps: int
    accumulate: int = 1


TRANSFORM = optax.adam(0.1)


def create_state(mesh: Mesh) -> TrainState:
    params = {"w": jnp.zeros(WIDTH)}
    state = TrainState(
        step=jnp.int32(0),
        params=params,
        frozen={"scale": jnp.full(WIDTH, 2, jnp.bfloat16)},
        opt_state=TRANSFORM.init(params),
        finite=jnp.bool_(True),
    )
    return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, abstract_state(mesh)))


def abstract_state(mesh: Mesh) -> TrainState:
    """Vectors are split over fsdp, scalars are everywhere."""

    def leaf(shape, dtype):
        axes = ("embed",) if shape else ()
        split = jax.sharding.NamedSharding(mesh, sharding.spec(axes, shape, mesh))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

    vector = {"w": leaf((WIDTH,), jnp.float32)}
    adam = optax.ScaleByAdamState(count=leaf((), jnp.int32), mu=vector, nu=vector)
    return TrainState(
        step=leaf((), jnp.int32),
        params=vector,
        frozen={"scale": leaf((WIDTH,), jnp.bfloat16)},
        opt_state=(adam, optax.EmptyState()),
        finite=leaf((), jnp.bool_),
    )


def _loss(params, state, batch):
    x = jnp.mean(batch.tokens.astype(jnp.float32)) * state.frozen["scale"].astype(jnp.float32)
    return jnp.where(jnp.any(batch.tokens < 0), jnp.nan, jnp.mean((params["w"] - x) ** 2))


def update(state: TrainState, loss, grads):
    """(State after an update; unchanged if loss or gradient is not finite. The gradient's norm)."""
    norm = optax.global_norm(grads)
    finite = state.finite & jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, opt_state = TRANSFORM.update(grads, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    new = state._replace(step=state.step + 1, params=params, opt_state=opt_state)
    new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    return new._replace(finite=finite), norm


def train_step(state: TrainState, batch: Batch, setup: Setup):
    loss, grads = jax.value_and_grad(_loss)(state.params, state, batch)
    state, norm = update(state, loss, grads)
    return state, {
        "loss": loss,
        "accuracy": 1 / (1 + loss),
        "tokens": jnp.float32(batch.tokens.size),
        "examples": jnp.float32(len(batch.tokens)),
        "grad_norm": norm,
        "learning_rate": jnp.float32(0.1),
        "finite": state.finite.astype(jnp.float32),
    }


def eval_step(state: TrainState, batch: Batch, setup: Setup) -> LossSums:
    count = jnp.float32(batch.tokens.size)
    return LossSums(_loss(state.params, state, batch) * count, count / 2, count)


def jit_step(step, setup: Setup):
    return jax.jit(functools.partial(step, setup=setup), donate_argnums=0)


def patch(set_attribute):
    """Put the toy in the place of the model. set_attribute: as `setattr`."""
    for function in (train_step, eval_step, jit_step):
        set_attribute(supervised, function.__name__, function)


def make_rows(number: int, rows: Sequence[int] = range(ROWS)) -> Batch:
    """The rows of batch `number` (from 0); those of a global batch are all different."""
    tokens = np.random.default_rng(number).integers(0, 100, (ROWS, TOKENS)).astype(np.int32)
    rest = dict.fromkeys(Batch._fields, np.zeros((ROWS, 1), np.int32))
    media = {"vision": Patches(*[rest["splice"]] * 2), "audio": LogMel(*[rest["splice"]] * 2)}
    whole = Batch(**rest | {"tokens": tokens, "media": media})
    return jax.tree.map(lambda leaf: leaf[list(rows)], whole)


class Batches:
    """An iterator with Grain's get_state and set_state; `broken` is the batch that has a NaN."""

    def __init__(self, mesh: Mesh, broken: int | None = None, pause: float = 0.0):
        self.rows, self.broken, self.pause = sharding.local_rows(mesh, ROWS), broken, pause
        self.next = 0

    def __iter__(self):
        return self

    def __next__(self) -> Batch:
        time.sleep(self.pause)
        batch = make_rows(self.next, self.rows)
        if self.next == self.broken:
            batch.tokens[:] = -1
        self.next += 1
        return batch

    def get_state(self) -> dict:
        return {"next": self.next}

    def set_state(self, state: dict):
        self.next = state["next"]

    def close(self):
        pass


def train(folder, mesh, steps=6, batches=None, evaluation=None, sample=None, **config):
    """Train up to step `steps`, or go on: (state, exit status)."""
    config = LoopConfig(**{"log_every": 1, "save_every": 2, **config})
    batches = batches or Batches(mesh)
    with Checkpoints(folder, config.keep) as checkpoints:
        if checkpoints.latest is None:
            state = create_state(mesh)
            checkpoints.save_frozen(state)
        else:
            state, data = checkpoints.restore(abstract_state(mesh))
            batches.set_state(data)
        setup = Setup(mesh, steps, config.accumulate)
        work = supervised.Supervised(setup, batches, ROWS, evaluation, sample)
        return loop.Loop(work, config, folder, checkpoints, {"a": 1}).run(state)


def main(folder, steps, pause, port=None, process=None) -> int:
    patch(setattr)
    if port is not None:
        jax.distributed.initialize(f"localhost:{port}", 2, int(process))
    # Each of two processes feeds two parts of the batch that do not follow each other.
    devices = [jax.devices()[number] for number in (0, 1, 4, 5, 2, 3, 6, 7)]
    mesh = sharding.make_mesh(2, 2, 2, devices)
    return train(folder, mesh, int(steps), Batches(mesh, pause=float(pause)))[1]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
