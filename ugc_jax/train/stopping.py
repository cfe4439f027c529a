"""Requests to stop by SIGTERM and Ctrl-C; the loop obeys at the next point where it may stop.

after    after a step
check    inside a step or an evaluation, between batches and parts: all processes pass it
waiting  while one process waits for something slow: data, rewards, a judge
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """A stop was requested inside a step or an evaluation, which has changed nothing."""


class StopRequest:
    """A context manager that records SIGTERM and the first Ctrl-C.

    The second Ctrl-C, or one after SIGTERM, interrupts at once: the run goes on from its last
    checkpoint. Further SIGTERMs change nothing, so that they cannot break the save.

    With several processes, a SIGTERM to any (a preemption notice) makes all of them stop at the
    same point, on which jax agrees; Ctrl-C interrupts as usual.
    """

    def __init__(self, point: Callable[[], None] = lambda: None):
        """point: called at each point that all processes pass."""
        self._point = point
        self._signal: int | None = None
        self._before: dict[int, object] = {}
        self._points = 0  # that all processes have passed

    def __enter__(self) -> "StopRequest":
        if jax.process_count() == 1 and _in_main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def after(self, step: int) -> bool:
        """Return whether to stop after this step; all processes call it after every step."""
        if not self._requested():
            return False
        logger.info("%s: stopping after step %d", signal.Signals(self._signal).name, step)
        return True

    def check(self):
        """Raise Stopped if a stop is requested; all processes call it equally often."""
        if self._requested():
            raise Stopped

    def waiting(self):
        """Raise Stopped if a stop is requested; a process calls it as often as it likes.

        With several processes it never raises, as the others could not know.
        """
        if jax.process_count() == 1 and self._signal is not None:
            raise Stopped

    @property
    def status(self) -> int:
        """Exit status as of a shell: 143 after SIGTERM, 130 after Ctrl-C, 0 without a request."""
        return 0 if self._signal is None else 128 + self._signal

    def _requested(self) -> bool:
        self._points += 1
        self._point()
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(self._points):
            self._signal = signal.SIGTERM
        return self._signal is not None

    def _note(self, number: int, _):
        self._signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def stopped_at_once() -> Iterator[None]:
    """Raise Stopped in the block when SIGTERM comes, in the midst of it, so that it cleans up.

    For work that is done again as a whole. With several processes SIGTERM changes nothing.
    """

    def stop(*_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # not in the cleaning up
        raise Stopped

    if jax.process_count() > 1 or not _in_main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
