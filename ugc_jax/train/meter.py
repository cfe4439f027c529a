"""Rates of a run: tokens and examples a second, time spent waiting for data, MFU, memory."""

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax

from ugc_jax.train.phases import Phases

T = TypeVar("T")


class Meter:
    """Rates since the last call of `rates`."""

    def __init__(self, peak: float | None, phases: Phases | None = None):
        """peak: operations a second of all devices together; None: no MFU.

        phases: of the process, which the work tells what it does.
        """
        self._peak, self.phases = peak, phases or Phases()
        self._reset()

    def wait(self, function: Callable[[], T]) -> T:
        """Call a function for whose result the device may have to wait, and time it."""
        start = time.perf_counter()
        with self.phases("data"):
            result = function()
        self._waited += time.perf_counter() - start
        return result

    @contextlib.contextmanager
    def excluded(self) -> Iterator[None]:
        """Leave the time spent in this block out of the rates."""
        start = time.perf_counter()
        yield
        self.exclude(time.perf_counter() - start)

    def exclude(self, seconds: float):
        """Leave so many past seconds out of the rates."""
        self._start += seconds

    def count(self, tokens: float, examples: float, flops: float):
        """Count a step of so many tokens, examples and floating-point operations."""
        self._tokens += tokens
        self._examples += examples
        self._flops += flops

    def rates(self) -> dict[str, float | None]:
        """Return tokens_per_second, examples_per_second, data_wait (a share), mfu, memory_gb."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        rates = {
            "tokens_per_second": self._tokens / seconds,
            "examples_per_second": self._examples / seconds,
            "data_wait": self._waited / seconds,
            "mfu": None if self._peak is None else self._flops / seconds / self._peak,
            "memory_gb": memory_gb(),
        }
        self._reset()
        return rates

    def _reset(self):
        self._start = time.perf_counter()
        self._tokens = self._examples = self._flops = self._waited = 0.0


class Clock:
    """Sums of seconds by name: `with clock("rollout"): ...`."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def memory_gb() -> float:
    """Peak memory in GB: of this process's first device; on CPU, of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
