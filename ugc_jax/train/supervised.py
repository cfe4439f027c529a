"""SFT as the Work of the training loop: train steps, the evaluation loss, sample captions."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from ugc_jax import sharding
from ugc_jax.data.batching import Batch, named_arrays
from ugc_jax.data.pipeline import BatchIterator
from ugc_jax.train.feed import Feed, PlacedBatch, placed_batches
from ugc_jax.train.loop import StepResult
from ugc_jax.train.meter import Meter
from ugc_jax.train.metrics import COLUMNS
from ugc_jax.train.state import Setup, TrainState
from ugc_jax.train.step import eval_step, jit_step, train_step
from ugc_jax.train.stopping import StopRequest

logger = logging.getLogger(__name__)


class Supervised:
    """A `train.loop.Work`: next-token training."""

    updates, waits = 1, False
    columns, tables = COLUMNS, ("samples",)
    best_metric = "eval_loss", "min"

    def __init__(
        self,
        setup: Setup,
        batches: BatchIterator,
        batch_size: int,
        evaluation: Iterable[Batch] | None = None,
        sample: Callable[[TrainState, Callable[[], None]], list[dict]] | None = None,
        step_flops: Callable[[Setup, Batch], float] | None = None,
    ):
        """setup.steps: the last step. batch_size: rows of a batch, over all processes.

        batches: this process's rows. evaluation: its rows of the evaluation batches; may be
        iterated over again. sample: is called and returns rows as a `samples.Sampler`.
        step_flops: operations of a step on a batch, for MFU. Raises UserError for a batch that
        cannot be split into microbatches.
        """
        sharding.check_batch(setup.mesh, batch_size, setup.accumulate)
        self.setup, self.batches, self.evaluates = setup, batches, evaluation is not None
        self._batch_size, self._evaluation, self._sample = batch_size, evaluation, sample
        self._train_step = jit_step(train_step, setup)
        self._eval_step = jax.jit(functools.partial(eval_step, setup=setup))
        self._step_flops = step_flops
        self._flops: dict[tuple, float] = {}  # of a step, by the shapes of its batch

    def __enter__(self) -> "Supervised":
        self._feed = Feed(self.batches, self.setup.mesh, self._batch_size)
        return self

    def __exit__(self, *_):
        self._feed.close()

    def step(
        self, state: TrainState, meter: Meter, stop: StopRequest
    ) -> tuple[TrainState, StepResult]:
        """Start a step. Compilation for a batch of new shapes is logged and left out of the rates.

        Raises StepRefused for a batch that cannot be read, and Stopped while it waits for one.
        """
        placed = meter.wait(lambda: self._feed.take(stop.waiting))
        compiled, start = self._train_step._cache_size(), time.perf_counter()
        state, metrics = self._train_step(state, placed.arrays)
        if self._train_step._cache_size() > compiled:
            size = *placed.arrays.tokens.shape, time.perf_counter() - start
            logger.info("compiled the step for %d rows of %d tokens in %.1f s", *size)
            if self._step_flops is not None:
                self._flops[_shapes(placed)] = self._step_flops(self.setup, placed.arrays)
            meter.exclude(time.perf_counter() - start)
        flops = self._flops.get(_shapes(placed), 0.0)
        replay = named_arrays(placed.rows)
        return state, StepResult(metrics, placed.before, placed.after, replay, flops)

    def evaluate(
        self, state: TrainState, meter: Meter, stop: StopRequest
    ) -> tuple[dict[str, float], list[dict]]:
        """Return mean loss and accuracy over the evaluation data's target tokens, and captions.

        Raises Stopped between batches.
        """
        total, size = None, self._batch_size
        placed = placed_batches(self._evaluation, self.setup.mesh, size, stop.waiting)
        with contextlib.closing(placed) as batches:
            for batch in batches:
                stop.check()
                sums = self._eval_step(state, batch)
                if total is not None:
                    jax.block_until_ready(total)  # a stop waits for no more than two batches
                    sums = jax.tree.map(jnp.add, total, sums)
                total = sums
        sums = jax.device_get(total)
        metrics = {
            "eval_loss": float(sums.loss / sums.tokens),
            "eval_accuracy": float(sums.hits / sums.tokens),
        }
        return metrics, [] if self._sample is None else self._sample(state, stop.check)


def _shapes(placed: PlacedBatch) -> tuple:
    return tuple(leaf.shape for leaf in jax.tree.leaves(placed.rows))
