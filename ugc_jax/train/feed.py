"""Prefetch: the next batch is read and placed on the mesh while the device works."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax

from ugc_jax import sharding
from ugc_jax.data.batching import Batch
from ugc_jax.data.pipeline import BatchIterator
from ugc_jax.errors import UserError, environment_failure


class StepRefused(Exception):
    """A step that cannot be done, in one line with its remedy; the state is unchanged.

    data: state of the data iterator before the step.
    """

    def __init__(self, reason: str, data: dict):
        super().__init__(reason)
        self.data = data


class PlacedBatch(NamedTuple):
    """A batch: this process's rows (numpy) and the whole batch's arrays on the mesh.

    before, after: states of the data iterator before and after this batch.
    """

    rows: Batch
    arrays: Batch
    before: dict
    after: dict


class Feed:
    """Reads and places one batch ahead, in a thread, while the device works."""

    def __init__(self, batches: BatchIterator, mesh: jax.sharding.Mesh, batch_size: int):
        """batch_size: rows of the whole batch, over all processes."""
        self._batches, self._mesh, self._batch_size = batches, mesh, batch_size
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._next = self._pool.submit(self._read)

    def take(self) -> PlacedBatch | None:
        """The next batch, or None after the last. Raises StepRefused if it cannot be read."""
        batch = self._next.result()
        if batch is not None:
            self._next = self._pool.submit(self._read)
        return batch

    def close(self):
        """Wait for the batch that is being read, and stop reading."""
        self._pool.shutdown(cancel_futures=True)
        self._batches.close()

    def _read(self) -> PlacedBatch | None:
        before = self._batches.get_state()
        try:
            rows = next(self._batches, None)
        except Exception as error:
            refusal = error if isinstance(error, UserError) else environment_failure(error)
            # With more processes, the others go on, and a checkpoint needs them all.
            if refusal is None or jax.process_count() > 1:
                raise
            raise StepRefused(str(refusal), before) from None
        if rows is None:
            return None
        arrays = sharding.place_batch(self._mesh, rows, self._batch_size)
        return PlacedBatch(rows, arrays, before, self._batches.get_state())
