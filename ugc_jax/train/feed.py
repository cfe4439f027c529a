"""Prefetch: the next batch is read and placed on the mesh while the device works."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

import jax

from ugc_jax import sharding
from ugc_jax.data.batching import Batch
from ugc_jax.data.pipeline import BatchIterator
from ugc_jax.errors import UserError, environment_failure

logger = logging.getLogger(__name__)

T = TypeVar("T")
POLL = 0.2  # seconds between looks at a request to stop
CLOSE = 5.0  # seconds that a batch being read may take at the end


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


def _never():
    pass


class Ahead(Generic[T]):
    """Calls a function in a thread, one call ahead of the result that is taken.

    A daemon thread, and none of a pool: storage that hangs must not hold the end of the process.
    """

    def __init__(self, read: Callable[[], T | None]):
        """read: returns None at the end."""
        self._read = read
        self._start()

    def take(self, check: Callable[[], None] = _never) -> T | None:
        """Return the next result, or None after the last; raises what `read` raised.

        check: called about every 0.2 s while this waits; what it raises ends the waiting, and the
        result is the next one again.
        """
        result = _awaited(self._next, check)
        if result is not None:
            self._start()
        return result

    def close(self) -> bool:
        """Wait for the call that is under way; False if it does not end soon, and is left."""
        self._thread.join(CLOSE)
        return not self._thread.is_alive()

    def _start(self):
        self._next = Future()
        self._thread = threading.Thread(
            target=self._work, args=(self._next,), name="feed", daemon=True
        )
        self._thread.start()

    def _work(self, result: Future):
        try:
            result.set_result(self._read())
        except BaseException as error:
            result.set_exception(error)


def _awaited(future: Future[T], check: Callable[[], None]) -> T:
    while not future.done():
        check()
        with contextlib.suppress(TimeoutError):
            future.exception(POLL)
    return future.result()


class Feed:
    """Reads and places one batch ahead, in a thread, while the device works."""

    def __init__(self, batches: BatchIterator, mesh: jax.sharding.Mesh, batch_size: int):
        """batch_size: rows of the whole batch, over all processes."""
        self._batches, self._mesh, self._batch_size = batches, mesh, batch_size
        self._ahead = Ahead(self._read)

    def take(self, check: Callable[[], None] = _never) -> PlacedBatch | None:
        """The next batch, or None after the last. Raises StepRefused if it cannot be read.

        check: as of `Ahead.take`.
        """
        return self._ahead.take(check)

    def close(self):
        """Wait for the batch that is being read, if it comes soon, and stop reading."""
        _end(self._ahead, self._batches)

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


def placed_batches(
    batches: Iterable[Batch],
    mesh: jax.sharding.Mesh,
    batch_size: int,
    check: Callable[[], None] = _never,
) -> Iterator[Batch]:
    """Yield one pass over batches (this process's rows) as arrays on the mesh, reading one ahead.

    batch_size: as of `Feed`. check: as of `Ahead.take`. Raises what reading raises.
    """
    iterator = iter(batches)

    def read() -> Batch | None:
        rows = next(iterator, None)
        return None if rows is None else sharding.place_batch(mesh, rows, batch_size)

    ahead = Ahead(read)
    try:
        while (arrays := ahead.take(check)) is not None:
            yield arrays
    finally:
        _end(ahead, iterator)


def _end(ahead: Ahead, batches: Iterator):
    """Close batches that are read ahead, unless a read of them does not end."""
    if not ahead.close():
        logger.warning("data: a batch is still being read after %.0f s; it is left behind", CLOSE)
    elif hasattr(batches, "close"):
        batches.close()
