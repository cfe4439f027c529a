"""Requests to stop by SIGTERM and Ctrl-C; the loop obeys after a step."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """A context manager that records SIGTERM and the first Ctrl-C; the second Ctrl-C interrupts.

    With several processes, a SIGTERM to any (a preemption notice) makes all of them stop after the
    same step, on which jax agrees; Ctrl-C interrupts as usual.
    """

    def __init__(self):
        self._signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def after(self, step: int) -> bool:
        """Return whether to stop after this step; all processes call it after every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self._signal = signal.SIGTERM
        return self._signal is not None

    @property
    def status(self) -> int:
        """Exit status as of a shell: 143 after SIGTERM, 130 after Ctrl-C, 0 without a request."""
        return 0 if self._signal is None else 128 + self._signal

    def _note(self, number: int, _):
        self._signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
