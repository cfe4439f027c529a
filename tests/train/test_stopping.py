"""ugc_jax.train.stopping: signals as wishes. (With several processes: test_loop.py.)"""

import signal
import threading

import pytest

from ugc_jax.train.stopping import Stopped, StopRequest, stopped_at_once


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_a_wish(number, status):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert (stop.after(1), stop.status) == (False, 0)
        signal.raise_signal(number)
        assert (stop.after(2), stop.status) == (True, status)
    assert signal.getsignal(number) is before


def test_the_second_interrupt_ends():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.after(1)


def test_a_second_sigterm_changes_nothing():
    with StopRequest() as stop:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert (stop.after(1), stop.status) == (True, 143)


def test_points_inside_a_step():
    with StopRequest() as stop:
        stop.check()
        stop.waiting()
        signal.raise_signal(signal.SIGTERM)
        for point in (stop.check, stop.waiting):
            with pytest.raises(Stopped):
                point()


def test_work_that_is_done_again_is_stopped_at_once():
    before, cleaned = signal.getsignal(signal.SIGTERM), []

    def work():
        try:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append("not reached")
        finally:
            signal.raise_signal(signal.SIGTERM)  # does not break the cleaning up
            cleaned.append("clean")

    with pytest.raises(Stopped), stopped_at_once():
        work()
    assert cleaned == ["clean"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_signals_are_left_alone():
    seen = []

    def work():
        with StopRequest() as stop:
            seen.append(stop.after(1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
