"""What a process of a run is doing: for the seconds of each kind of work, and for the watch.

    with phases("evaluation"): ...     the time in the block is an evaluation's, not the caller's
    phases.point()                     a point that all processes pass equally often

Compilation is counted apart, wherever it happens.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import jax

from ugc_jax.watch.hub import Report

FIRST = 1800.0  # seconds that the first of a kind may take: programs compile, workers start
SLOWER = 3.0  # times the longest so far: later ones may take so long
# Kind -> (its name in goodput.json, what a process is doing).
KINDS = {
    "start": ("start", "the start"),
    "data": ("data", "reading the batch of step {}"),
    "step": ("steps", "step {}"),
    "rollout": ("steps", "the rollout of step {}"),
    "rewards": ("rewards", "waiting for the rewards of step {}"),
    "evaluation": ("evaluation", "the evaluation after step {}"),
    "checkpoint": ("checkpoints", "saving the checkpoint of step {}"),
    "export": ("export", "exporting the model"),
}
_SLOW = ("checkpoint", "export")  # storage may have to catch up with what was written before
_UNBOUNDED = ("start", "rewards")  # rewards and judges have limits of their own (RewardConfig)
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"  # what follows is compilation
_COMPILED = "/jax/core/compile/backend_compile_duration"
_COMPILATION = ("/jax/core/compile/jaxpr_trace_duration", _LOWERED, _COMPILED)


class Phases:
    """Seconds by kind of work, and the position in it, of the thread that makes one of these.

    A context manager: open, it hears of compilations. step: the one that is being made, set by the
    loop.
    """

    def __init__(self, bound: float = 45.0, clock: Callable[[], float] = time.perf_counter):
        """bound: seconds between two points, beyond which the process hangs (see `position`)."""
        self._bound, self._clock = bound, clock
        self._thread, self._lock = threading.get_ident(), threading.RLock()
        self.step = 0
        self.failed: str | None = None  # what an exception has ended
        self._stack = ["start"]
        self._since = self._last = clock()
        self._seconds = dict.fromkeys((name for name, _ in KINDS.values()), 0.0)
        self._seconds["compile"] = 0.0
        self._compiled: list[tuple[float, float]] = []  # intervals, since the last point
        self._compiling = False
        self._longest: dict[str, float] = {}  # between two points, without compilation
        self._first: dict[str, int] = {}  # step at which a kind came first
        self._count = 0

    @contextlib.contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        """The work in the block is of this kind, one of KINDS."""
        self._change(lambda: self._stack.append(kind))
        try:
            yield
        except BaseException:
            self.failed = self.failed or self._what()
            raise
        finally:
            self._change(self._stack.pop)

    def point(self):
        """The work goes on: all processes come here equally often."""
        self._change(lambda: None)

    def seconds(self) -> dict[str, float]:
        """Return the seconds since the start, by the names of KINDS and "compile"."""
        with self._lock:
            self._count_time(self._clock())
            return {name: max(0.0, value) for name, value in self._seconds.items()}

    def position(self) -> Report:
        """Return how far the process is; for another thread.

        The next point may take `bound`, or three times the longest one of its kind before; those of
        a kind's first step and of the next one, one that compiles, and one of a save, FIRST.
        """
        with self._lock:
            kind = self._stack[-1]
            allowed = max(self._bound, SLOWER * self._longest.get(kind, 0.0))
            if kind in _UNBOUNDED:
                allowed = float("inf")
            elif (
                kind in _SLOW or self.step < self._first.get(kind, self.step) + 2 or self._compiling
            ):
                allowed = max(FIRST, allowed)
            return Report(self._count, self._what(), self._clock() - self._last, allowed)

    def __enter__(self) -> "Phases":
        jax.monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._hear)

    def _what(self) -> str:
        return KINDS[self._stack[-1]][1].format(self.step)

    def _change(self, change: Callable[[], object]):
        with self._lock:
            now, kind = self._clock(), self._stack[-1]
            self._count_time(now)
            compiled = sum(end - begin for begin, end in self._compiled)
            gap = now - self._last - compiled
            self._first.setdefault(kind, self.step)
            self._longest[kind] = max(gap, self._longest.get(kind, 0.0))
            self._last, self._compiled, self._compiling = now, [], False
            self._count += 1
            change()

    def _count_time(self, now: float):
        self._seconds[KINDS[self._stack[-1]][0]] += now - self._since
        self._since = now

    def _hear(self, event: str, duration: float, **_):
        """Count a compilation that has just ended; outer ones contain inner ones."""
        if event not in _COMPILATION or threading.get_ident() != self._thread:
            return
        with self._lock:
            now = self._clock()
            begin = max(now - duration, self._last)
            inner = [one for one in self._compiled if one[0] >= begin]
            new = now - begin - sum(end - start for start, end in inner)
            self._compiled = [one for one in self._compiled if one[0] < begin] + [(begin, now)]
            self._seconds["compile"] += new
            self._seconds[KINDS[self._stack[-1]][0]] -= new
            self._compiling = event == _LOWERED
