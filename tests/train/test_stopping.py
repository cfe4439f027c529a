"""ugc_jax.train.stopping: signals as wishes. (With several processes: test_loop.py.)"""

import signal
import threading

import pytest

from ugc_jax.train.stopping import StopRequest


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


def test_outside_the_main_thread_signals_are_left_alone():
    seen = []

    def work():
        with StopRequest() as stop:
            seen.append(stop.after(1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
