"""Traces of the profiler: of the steps that a setting names, and of the next ones on request.

    kill -USR1 PID              of the process of that id
    touch OUTPUT/profile.now    of every process of the run

They are written to OUTPUT/profile, for TensorBoard or xprof.
"""

import contextlib
import logging
import signal
import threading

import jax
from etils import epath

logger = logging.getLogger(__name__)

STEPS = 3  # of a trace
LOOK = 5.0  # seconds between two looks for the file
REQUEST = "profile.now"


class Trace:
    """The profiler's traces of a run; a context manager, in which requests are heard."""

    def __init__(self, first: int | None, output: epath.PathLike, look: float = LOOK):
        """first: the first step of a trace that is made unasked; None for none.

        look: seconds between two looks for the file.
        """
        self._first, output = first, epath.Path(output)
        self._folder, self._file, self._look = output / "profile", output / REQUEST, look
        self._asked, self._closed = threading.Event(), threading.Event()
        self._last: int | None = None  # step of the trace that is being made
        self._handler = None

    def before(self, step: int):
        """Start or end a trace where it is due; call this before each step."""
        if self._last is not None and step > self._last:
            self._end()
        if self._last is None and (step == self._first or self._asked.is_set()):
            self._asked.clear()
            jax.profiler.start_trace(str(self._folder))
            self._last = step + STEPS - 1
            logger.info("profiling steps %d to %d", step, self._last)

    def __enter__(self) -> "Trace":
        if hasattr(signal, "SIGUSR1") and threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGUSR1, lambda *_: self._asked.set())
        self._seen = self._written()
        threading.Thread(target=self._watch, name="profile", daemon=True).start()
        return self

    def __exit__(self, *_):
        self._closed.set()
        if self._handler is not None:
            signal.signal(signal.SIGUSR1, self._handler)
        if self._last is not None:
            self._end()

    def _watch(self):
        while not self._closed.wait(self._look):
            if (written := self._written()) != self._seen and written is not None:
                self._asked.set()
            self._seen = written

    def _written(self) -> float | None:
        """Return when the file was written, None without one."""
        with contextlib.suppress(OSError, RuntimeError):
            return self._file.stat().mtime if self._file.exists() else None
        return self._seen if hasattr(self, "_seen") else None

    def _end(self):
        jax.profiler.stop_trace()
        self._last = None
        logger.info("%s: profiler trace; open it with TensorBoard or xprof", self._folder)
