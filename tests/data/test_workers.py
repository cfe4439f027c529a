"""Tasks in processes: all results arrive, deaths and errors are told, nobody is left behind."""

import os
import signal
import time
from collections import deque

import pytest

from ugc_jax.data.workers import work
from ugc_jax.errors import EnvironmentFailure, UserError


def count(name, number):
    for value in range(number):
        yield name, value, os.getpid()


def die(name, fatal):
    yield name
    if fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    yield name


def refuse(name):
    yield name
    raise UserError(f"{name}: no; try another")


def linger(path):
    yield os.getpid()
    time.sleep(60)


def test_every_task_is_done_once_and_in_order():
    tasks = deque([("a", 3), ("b", 0), ("c", 2)])
    events = list(work(count, tasks, workers=2))
    values = {"a": [], "b": [], "c": []}
    for event in events:
        assert event.died is None
        if not event.done:
            values[event.value[0]].append(event.value[1])
    assert values == {"a": [0, 1, 2], "b": [], "c": [0, 1]}
    assert sorted(event.task[0] for event in events if event.done) == ["a", "b", "c"]
    processes = {event.value[2] for event in events if not event.done}
    assert os.getpid() not in processes
    assert len(processes) <= 2


def test_a_death_is_an_event_and_its_task_can_be_given_again():
    tasks, deaths, done = deque([("a", True), ("b", False)]), [], []
    for event in work(die, tasks, workers=1):
        if event.died is not None:
            deaths.append((event.task, event.died))
            tasks.append(("a", False))
        elif event.done:
            done.append(event.task)
    assert deaths == [(("a", True), -signal.SIGKILL)]
    assert done == [("b", False), ("a", False)]


def test_an_error_is_raised_here():
    with pytest.raises(UserError, match="a: no; try another"):
        list(work(refuse, deque([("a",)]), workers=1))


class Unloadable:
    def __reduce__(self):
        return __import__, ("nowhere.part",)


def forget(name):
    yield name
    raise MemoryError


def test_a_failure_of_the_environment_is_raised_here(no_handles):
    with pytest.raises(EnvironmentFailure, match="^out of memory; free memory"):
        list(work(forget, deque([("a",)]), workers=1))
    with pytest.raises(EnvironmentFailure, match="^the library nowhere does not load"):
        list(work(forget, deque([(Unloadable(),)]), workers=1))
    with no_handles(), pytest.raises(EnvironmentFailure, match="^too many open files; raise"):
        list(work(count, deque([("a", 3)]), workers=1))


def test_processes_end_with_the_generator():
    events = work(linger, deque([("a",)]), workers=1)
    process = next(events).value
    events.close()
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the process is still there")
