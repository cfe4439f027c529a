"""ugc_jax.train.meter: rates over the time that counts."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ugc_jax.train import meter
from ugc_jax.train.meter import Clock, Meter, memory_gb


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `clock.now += seconds` moves."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(meter.time, "perf_counter", lambda: clock.now)
    return clock


def pass_time(clock, seconds):
    clock.now += seconds
    return "result"


def test_rates(clock):
    one = Meter(peak=1000.0)
    assert one.wait(lambda: pass_time(clock, 1.0)) == "result"
    clock.now += 2.0
    with one.excluded():
        clock.now += 50.0
    one.exclude(1.0)
    clock.now += 2.0
    one.count(tokens=100.0, examples=4.0, flops=1200.0)
    one.count(tokens=20.0, examples=4.0, flops=800.0)
    rates = one.rates()
    del rates["memory_gb"]
    assert rates == {
        "tokens_per_second": 30.0, "examples_per_second": 2.0, "data_wait": 0.25, "mfu": 0.5,
    }  # fmt: skip


def test_rates_begin_anew(clock):
    one = Meter(peak=None)
    one.count(100.0, 4.0, 0.0)
    clock.now += 1.0
    one.rates()
    clock.now += 2.0
    one.count(10.0, 1.0, 0.0)
    rates = one.rates()
    assert (rates["tokens_per_second"], rates["data_wait"], rates["mfu"]) == (5.0, 0.0, None)


def test_seconds_by_what_they_were_spent_on(clock):
    one = Clock()
    for seconds in (1.0, 2.0):
        with one("rollout"):
            clock.now += seconds
        clock.now += 10.0
    with one("update"):
        clock.now += 4.0
    assert one.seconds == {"rollout": 3.0, "update": 4.0}


def test_memory(monkeypatch):
    before = memory_gb()
    block = np.ones(40_000_000)
    assert memory_gb() >= before
    assert memory_gb() >= block.nbytes / 1e9
    chip = SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 3e9})
    monkeypatch.setattr(jax, "local_devices", lambda: [chip])
    assert memory_gb() == 3.0
