"""ugc_jax.train.profile: traces of the steps that are named, and of the next ones on request."""

import os
import signal
import time

import jax
import pytest

from ugc_jax.train.profile import REQUEST, Trace


@pytest.fixture
def calls(monkeypatch):
    """What the profiler was asked to do."""
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(f"start {folder}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


def test_the_steps_that_a_setting_names(tmp_path, calls):
    with Trace(2, tmp_path) as trace:
        said = [(trace.before(step), len(calls))[1] for step in range(1, 7)]
    assert said == [0, 1, 1, 1, 2, 2]
    assert calls == [f"start {tmp_path}/profile", "stop"]


def test_a_signal_asks_for_the_next_steps(tmp_path, calls):
    before = signal.getsignal(signal.SIGUSR1)
    with Trace(None, tmp_path) as trace:
        trace.before(1)
        assert not calls
        signal.raise_signal(signal.SIGUSR1)
        said = [(trace.before(step), len(calls))[1] for step in range(2, 7)]
        signal.raise_signal(signal.SIGUSR1)
        trace.before(7)
    assert said == [1, 1, 1, 2, 2]
    assert calls == [f"start {tmp_path}/profile", "stop"] * 2  # also ended with the run
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_file_asks_for_the_next_steps(tmp_path, calls):
    (tmp_path / REQUEST).touch()  # of an earlier run
    os.utime(tmp_path / REQUEST, (1, 1))
    with Trace(None, tmp_path, look=0.02) as trace:
        time.sleep(0.1)
        trace.before(1)
        assert not calls
        (tmp_path / REQUEST).write_text("now")
        deadline = time.monotonic() + 10
        while not calls and time.monotonic() < deadline:
            time.sleep(0.02)
            trace.before(2)
        assert calls == [f"start {tmp_path}/profile"]


def test_a_trace_is_written(tmp_path):
    with Trace(1, tmp_path) as trace:
        trace.before(1)
        jax.numpy.ones(3).block_until_ready()
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
