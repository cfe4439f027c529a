"""The work of SFT's loop: batches with their answers, one after the other."""

import logging
import time
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from ugc_jax import sharding
from ugc_jax.data.schema import Batch
from ugc_jax.plan.flops import step_flops
from ugc_jax.train.feed import Batches, Fed, Feed
from ugc_jax.train.loop import Done
from ugc_jax.train.meter import Meter
from ugc_jax.train.metrics import COLUMNS
from ugc_jax.train.state import Setup, TrainState
from ugc_jax.train.step import eval_step, train_step

logger = logging.getLogger(__name__)


class Supervised:
    """A `train.loop.Work`: next-token training.

    Feed (a thread: read, place) -> train_step
    eval_step over the evaluation data, sample captions
    """

    updates, waits = 1, False
    columns, tables = COLUMNS, ("samples",)

    def __init__(
        self,
        setup: Setup,
        batches: Batches,
        batch_size: int,
        evaluation: Iterable[Batch] | None = None,
        sample: Callable[[TrainState], list[dict]] | None = None,
    ):
        """setup.steps: the last step. batch_size: rows of a batch, over all processes.

        batches: this process's rows. evaluation: its rows of the evaluation batches, as often as it
        is iterated over. sample: makes captions, {"clip", "reference", "caption"} of each. Raises
        UserError for a batch that cannot be parted.
        """
        sharding.check_batch(setup.mesh, batch_size, setup.accumulate)
        self.setup, self.mesh, self.last = setup, setup.mesh, setup.steps
        self.evaluates = evaluation is not None
        self._batches, self._batch_size = batches, batch_size
        self._evaluation, self._sample = evaluation, sample
        self._train_step, self._eval_step = train_step(setup), eval_step(setup)
        self._flops: dict[tuple, float] = {}  # of a step, by the shapes of its batch

    def __enter__(self) -> "Supervised":
        self._feed = Feed(self._batches, self.mesh, self._batch_size)
        return self

    def __exit__(self, *_):
        self._feed.close()

    def step(self, state: TrainState, meter: Meter) -> tuple[TrainState, Done]:
        """Start a step. Compiling it, for a batch of new shapes, is told and not measured.

        Raises StepRefused for a batch that cannot be read.
        """
        fed = meter.wait(self._feed.take)
        known, begun = self._train_step._cache_size(), time.perf_counter()
        state, metrics = self._train_step(state, fed.arrays)
        if self._train_step._cache_size() > known:
            seconds = time.perf_counter() - begun
            meter.exclude(seconds)
            rows = fed.arrays.tokens.shape
            logger.info("compiled the step for %d rows of %d tokens in %.1f s", *rows, seconds)
            if meter.peak is not None:
                with meter.excluded():
                    self._flops[_shapes(fed)] = step_flops(self.setup, fed.arrays)
        flops = self._flops.get(_shapes(fed), 0.0)
        return state, Done(metrics, fed.before, fed.after, fed.rows._asdict(), flops)

    def evaluate(self, state: TrainState) -> tuple[dict[str, float], list[dict]]:
        """Mean loss and accuracy over the target tokens of the evaluation data; captions."""
        total = None
        for rows in self._evaluation:
            batch = sharding.place_batch(self.mesh, rows, self._batch_size)
            sums = self._eval_step(state, batch)
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        sums = jax.device_get(total)
        figures = {
            "eval_loss": float(sums.loss / sums.tokens),
            "eval_accuracy": float(sums.hits / sums.tokens),
        }
        return figures, [] if self._sample is None else self._sample(state)


def _shapes(fed: Fed) -> tuple:
    return tuple(leaf.shape for leaf in fed.rows)
