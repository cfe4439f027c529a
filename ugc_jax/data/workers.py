"""Clips are read by processes that may die: what kills, hangs or bloats a decoder loses one clip.

    read(items) -> threads, one a worker -> worker process: function(item) -> values in order

A worker is started as `python -m ugc_jax.data.workers`, so it runs nothing of the user's script and
imports only what the function needs. It talks with its thread over a socket; arrays cross it
without a copy in pickle. It ends when the pool is closed or the process of the pool ends, however
it ends, and Ctrl-C does not reach it.
"""

import contextlib
import dataclasses
import logging
import logging.handlers
import os
import pickle
import queue
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ugc_jax import processes
from ugc_jax.errors import (
    EnvironmentFailure,
    OutOfMemory,
    UnreadableFile,
    UserError,
    environment_failure,
    has_memory,
)
from ugc_jax.settings import check_minimum

logger = logging.getLogger(__name__)

MOST_MEMORY = 1 << 20  # GB
MOST_WORKERS = 8  # that are started where none are named
MOST_LENGTH = 3600.0  # seconds that the length of a clip adds to its time limit; headers may lie
TICK = 1.0  # seconds between two looks at a time limit
MEMORY_TRIAL = 1 << 30  # bytes; a machine that has them is not out of memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """Reading clips."""

    workers: int | None = None  # processes that read clips; none: one a core, at most 8
    # seconds in which a clip must be read, beyond its own length; a decoder may hang
    clip_timeout: float = 120.0
    clip_memory: float = 4.0  # GB of memory in which a clip must be read (limited on Linux)

    def __post_init__(self):
        check_minimum(self, workers=1, clip_memory=1)
        if self.clip_memory > MOST_MEMORY:
            raise UserError(f"clip_memory is {self.clip_memory:g}; use at most {MOST_MEMORY}")
        if not self.clip_timeout > 0:
            raise UserError(f"clip_timeout is {self.clip_timeout:g}; use a positive number")


class ReadingFailure(UnreadableFile):
    """The process that read a clip died or exceeded a limit, or its code failed unexpectedly."""

    def __init__(self, kind: Literal["died", "time", "memory", "unexpected"], message: str):
        super().__init__(message)
        self.kind = kind


class Outcome(NamedTuple):
    """What became of an item. value: of the function, or the UserError why there is none.

    seconds: that the worker took.
    """

    item: object
    value: object
    seconds: float


class Pool:
    """Worker processes that call one function on many items; a context manager."""

    def __init__(
        self,
        function: Callable,
        config: ReadingConfig = ReadingConfig(),  # noqa: B008 (frozen)
        name: Callable[[object], str] = str,
    ):
        """function: of one item; pickled, as are items and values.

        name: how messages call an item.
        """
        self.workers = config.workers or min(MOST_WORKERS, os.cpu_count() or 1)
        level = logging.getLogger("ugc_jax").getEffectiveLevel()
        self._setup = pickle.dumps(function), int(config.clip_memory * 2**30), level
        self._config, self._name = config, name
        self._tasks: queue.SimpleQueue[tuple[object, Future] | None] = queue.SimpleQueue()
        self._threads, self._closed = 0, False
        self._live: set[_Worker] = set()
        self._busy: dict[Future, _Worker] = {}  # items that are being read, by whom
        self._cancelled: set[Future] = set()  # of these, those that nobody waits for any more
        self._lock = threading.RLock()  # reentrant: garbage collection may close a pool anywhere

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_):
        self.close()

    def read(
        self, items: Iterable, ahead: int, waits: Callable[[], bool] = lambda: True
    ) -> Iterator[Outcome | None]:
        """Yield what becomes of each item, in order; at most `ahead` of them are under way.

        waits: asked before each; where it is false and the next outcome is not there yet, None is
          yielded in between.
        A UserError of the function is the item's, as is an unexpected exception, the death of the
        worker, and more time or memory than the limits allow. Raises EnvironmentFailure for one of
        the function, and if no worker can be started.
        """
        waiting: deque[Future] = deque()
        for item in items:
            waiting.append(self.submit(item))
            while len(waiting) >= ahead:
                yield self._next(waiting, waits)
        while waiting:
            yield self._next(waiting, waits)

    def submit(self, item) -> Future:
        """Have one item read; the result is its Outcome, or the exception that `read` raises."""
        future: Future = Future()
        self._tasks.put((item, future))
        with self._lock:
            starts = self._threads < self.workers
            self._threads += starts
        if starts:  # a daemon: a program may end without closing its pools
            threading.Thread(target=self._serve, name="read-clip", daemon=True).start()
        return future

    def cancel(self, future: Future):
        """Give up an item of `submit`: it is not begun, or the worker that reads it is ended."""
        if future.cancel():
            return
        with self._lock:
            if future.done():
                return
            self._cancelled.add(future)
            if (worker := self._busy.get(future)) is not None:
                worker.end()

    @staticmethod
    def _next(waiting: deque[Future], waits: Callable[[], bool]) -> Outcome | None:
        if not waiting[0].done() and not waits():
            return None
        return waiting.popleft().result()

    def close(self):
        """End all workers, whatever they do."""
        with self._lock:
            self._closed, live = True, list(self._live)
        for _ in range(self._threads):
            self._tasks.put(None)
        for worker in live:
            worker.end()

    def _serve(self):
        """Handle tasks, in a thread with a worker of its own."""
        worker = None
        while (task := self._tasks.get()) is not None and not self._closed:
            item, future = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                worker, outcome = self._read(worker, item, future)
            except BaseException as error:  # the consumer's to handle
                worker = None
                future.set_exception(error)
            else:
                future.set_result(outcome)
            with self._lock:
                self._cancelled.discard(future)

    def _read(
        self, worker: "_Worker | None", item, future: Future
    ) -> "tuple[_Worker | None, Outcome]":
        """Read an item; returns the worker, if it can be used again, and the outcome.

        A death and a lack of memory may be the late effect of an item that the worker read before:
        then the item is read again, in a new one.
        """
        name = self._name(item)
        while True:
            fresh = worker is None
            worker = worker or self._start()
            with self._lock:
                if future in self._cancelled:
                    self._retire(worker)
                    raise CancelledError
                self._busy[future] = worker
            try:
                kind, value, seconds, logs = worker.call(item, self._config.clip_timeout)
            except TimeoutError as limit:
                fault = f"not read within {limit} s; raise clip_timeout, or encode it again"
                kind, value, seconds, logs = "time", fault, 0.0, []
            except (EOFError, OSError):
                kind, value, seconds, logs = "died", _of_death(worker.end()), 0.0, []
            finally:
                with self._lock:
                    del self._busy[future]
            if future in self._cancelled:
                self._retire(worker)
                raise CancelledError
            for record in logs:
                if (log := logging.getLogger(record.name)).isEnabledFor(record.levelno):
                    log.handle(record)
            if kind == "value":
                return worker, Outcome(item, value, seconds)
            if kind == "unexpected":
                return worker, Outcome(item, ReadingFailure(kind, f"{name}: {value}"), seconds)
            self._retire(worker)
            worker = None
            if kind == "raised":
                raise value
            if kind == "memory":
                value = (
                    f"reading it takes more than {self._config.clip_memory:g} GB of memory; raise "
                    "clip_memory, or encode it again"
                )
            if fresh or kind == "time":
                return None, Outcome(item, ReadingFailure(kind, f"{name}: {value}"), seconds)

    def _start(self) -> "_Worker":
        with self._lock:
            if self._closed:
                raise EnvironmentFailure("the reading of clips was stopped")
            try:
                worker = _Worker()
            except OSError as error:
                fault = f"no process can be started ({error}); free memory or lower workers"
                raise environment_failure(error) or EnvironmentFailure(fault) from None
            self._live.add(worker)
        try:
            worker.set_up(self._setup)
        except (EOFError, OSError):
            self._retire(worker)
            status = processes.status(worker.end())
            fault = f"a process that reads clips died at its start ({status})"
            raise EnvironmentFailure(f"{fault}; free memory or lower workers") from None
        return worker

    def _retire(self, worker: "_Worker"):
        with self._lock:
            self._live.discard(worker)
        worker.end()


class _Worker:
    """A worker process, seen from the pool. Its methods raise EOFError or OSError if it is dead."""

    def __init__(self):
        environment = {"OMP_NUM_THREADS": "1", **os.environ}  # each core has its own worker
        self._process, self._connection = processes.start(__name__, environment)
        self._poll = select.poll()
        self._poll.register(self._connection, select.POLLIN)

    def set_up(self, setup: tuple):
        """Send the setup. Raises what the loading of the function raises."""
        _send(self._connection, setup)
        kind, value = _receive(self._connection)
        if kind == "raised":
            raise value

    def call(self, item, timeout: float) -> tuple[str, object, float, list]:
        """Let the worker handle an item; returns (kind, value, seconds, log records).

        Raises TimeoutError with the limit. Only time in which this process runs is counted: after a
        stop of both, the worker gets its full time.
        """
        _send(self._connection, item)
        limit, spent = timeout, 0.0
        while True:
            tick = min(TICK, limit - spent)
            if not self._poll.poll(1000 * tick):
                spent += tick
                if spent >= limit:
                    raise TimeoutError(f"{limit:.0f}")
                continue
            kind, *rest = _receive(self._connection)
            if kind != "longer":
                return kind, *rest
            limit += rest[0]

    def end(self) -> int:
        """Kill the process unless it is dead; returns its exit status, negative for a signal."""
        self._process.kill()
        self._process.stdin.close()
        return self._process.wait()


def _of_death(status: int) -> str:
    """Return the message of a clip whose process ended with `status`."""
    remedy = "copy or encode it again"
    if status == -signal.SIGKILL:
        remedy = "run again with fewer workers if memory is short"
    return f"the process that read it died ({processes.status(status)}); {remedy}"


# ---- the worker process --------------------------------------------------------------------------

_connection: socket.socket | None = None  # to the pool; None in other processes


def allow(seconds: float):
    """Raise the time limit of the item that this worker handles by the length of its clip.

    Does nothing in a process that is no worker.
    """
    if _connection is not None:
        _send(_connection, ("longer", min(seconds, MOST_LENGTH)))


def serve(handle: int):
    """Handle items, in a worker process, until the pool closes the socket with this handle."""
    global _connection
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    processes.end_with_the_parent()
    with contextlib.suppress(OSError):  # where memory is short, the kernel is to end this process
        Path("/proc/self/oom_score_adj").write_text("1000")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    _connection = connection = socket.socket(fileno=handle)
    with contextlib.suppress(EOFError, ConnectionError):
        function, memory, level = _receive(connection)
        try:
            function = pickle.loads(function)
        except Exception as error:
            _send(connection, ("raised", environment_failure(error) or error))
            return
        logs, log = _Records(), logging.getLogger("ugc_jax")
        log.addHandler(logs)
        log.setLevel(level)
        log.propagate = False
        logging.getLogger().addHandler(logging.NullHandler())  # what libraries log is not shown
        limits = resource.getrlimit(resource.RLIMIT_DATA)
        soft, hard = (limit if limit != resource.RLIM_INFINITY else memory for limit in limits)
        resource.setrlimit(resource.RLIMIT_DATA, (min(memory, soft, hard), limits[1]))
        _send(connection, ("ready", None))
        while True:
            item = _receive(connection)
            start = time.perf_counter()
            kind, value = attempt(function, item)
            if isinstance(value, OutOfMemory) and _is_limit(limits):
                kind, value = "memory", None
            _send(connection, (kind, value, time.perf_counter() - start, logs.take()))


def attempt(function: Callable, item) -> tuple[Literal["value", "unexpected", "raised"], object]:
    """Call function(item); returns what happened, and its value.

    "value": the value or the UserError; "unexpected": a line about another exception; "raised": the
    EnvironmentFailure.
    """
    try:
        return "value", function(item)
    except UserError as error:
        return "value", error
    except Exception as error:  # an unforeseen clip must not stop a long job
        if (failure := environment_failure(error)) is not None:
            return "raised", failure
        logger.debug("unexpected", exc_info=True)
        return "unexpected", f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"


def _is_limit(limits: tuple[int, int]) -> bool:
    """Whether the lack of memory, or of a thread's, was that of this worker's own limit.

    Lifts the limit, so the worker is to be replaced.
    """
    resource.setrlimit(resource.RLIMIT_DATA, limits)
    try:
        threading.Thread(target=int).start()
    except RuntimeError:
        return False
    return has_memory(MEMORY_TRIAL)


class _Records(logging.handlers.QueueHandler):
    """Keeps log records for the parent."""

    def __init__(self):
        super().__init__([])

    def enqueue(self, record: logging.LogRecord):
        self.queue.append(record)

    def take(self) -> list[logging.LogRecord]:
        records, self.queue = self.queue, []
        return records


# ---- messages ------------------------------------------------------------------------------------


def _send(connection: socket.socket, value):
    """Send a value: the number of parts and their sizes, its pickle, and its arrays as they are."""
    arrays: list[pickle.PickleBuffer] = []
    body = pickle.dumps(value, protocol=5, buffer_callback=arrays.append)
    parts = [memoryview(body), *(array.raw() for array in arrays)]
    connection.sendall(struct.pack(f"{len(parts) + 1}Q", len(parts), *(p.nbytes for p in parts)))
    for part in parts:
        connection.sendall(part)


def _receive(connection: socket.socket):
    """Return a value that `_send` sent. Raises EOFError if the other end is closed."""
    (count,) = struct.unpack("Q", _receive_bytes(connection, 8))
    sizes = struct.unpack(f"{count}Q", _receive_bytes(connection, 8 * count))
    body, *arrays = [_receive_bytes(connection, size) for size in sizes]
    return pickle.loads(body, buffers=arrays)


def _receive_bytes(connection: socket.socket, size: int) -> np.ndarray:
    data = np.empty(size, np.uint8)
    left = memoryview(data)
    while left:
        received = connection.recv_into(left)
        if not received:
            raise EOFError
        left = left[received:]
    return data


if __name__ == "__main__":
    from ugc_jax.data import workers  # the module that others import, not this copy of it

    workers.serve(int(sys.argv[1]))
    os._exit(0)  # without waiting for threads of libraries
