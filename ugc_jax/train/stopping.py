"""The wish to stop, from outside: SIGTERM and Ctrl-C, heeded after a step."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """A context manager that turns SIGTERM and the first Ctrl-C into a wish; the second one ends.

    With several processes, one SIGTERM anywhere (a preemption notice) makes all of them stop after
    the same step, which jax agrees on; Ctrl-C is left alone there.
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
        """Whether to stop after this step; all processes call it for every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self._signal = signal.SIGTERM
        return self._signal is not None

    @property
    def status(self) -> int:
        """Exit status, as shells have it: 143 after SIGTERM, 130 after Ctrl-C, 0 without a wish."""
        return 0 if self._signal is None else 128 + self._signal

    def _note(self, number: int, _):
        self._signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
