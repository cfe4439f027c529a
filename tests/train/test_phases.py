"""ugc_jax.train.phases: seconds by kind of work, and how far a process is."""

import math

import jax
import jax.numpy as jnp
import pytest

from ugc_jax.train import phases as module
from ugc_jax.train.phases import FIRST, Phases
from ugc_jax.watch.hub import Report


class Clock:
    now = 100.0

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def phases(clock):
    return Phases(45.0, clock)


def some(phases) -> dict[str, float]:
    return {name: value for name, value in phases.seconds().items() if value}


def test_the_time_of_a_block_is_its_own(phases, clock):
    clock.wait(5)
    with phases("step"):
        clock.wait(2)
        with phases("data"):
            clock.wait(3)
        with phases("rollout"):
            clock.wait(4)
        with phases("evaluation"):
            clock.wait(1)
            with phases("rewards"):
                clock.wait(7)
    assert some(phases) == {"start": 5, "steps": 6, "data": 3, "evaluation": 1, "rewards": 7}


def test_points_count_and_set_the_time_back(phases, clock):
    phases.step = 10
    with phases("step"):
        for count in (1, 2):  # both may start something
            clock.wait(10)
            assert phases.position() == Report(count, f"step {phases.step}", 10, FIRST)
            phases.point()
            phases.step += 1
        clock.wait(1)
        assert phases.position() == Report(3, "step 12", 1, 45.0)
        clock.wait(19)
        phases.point()
        assert phases.position() == Report(4, "step 12", 0, 60.0)  # three times 20 s
        with phases("checkpoint"):
            assert phases.position().allowed == FIRST
        with phases("rewards"):
            where = "waiting for the rewards of step 12"
            assert phases.position() == Report(7, where, 0, math.inf)


def test_what_an_exception_ended(phases):
    phases.step = 3
    with pytest.raises(ValueError, match="x"), phases("step"), phases("data"):
        raise ValueError("x")
    assert phases.failed == "reading the batch of step 3"


def test_compilation_is_counted_apart_and_has_time(phases, clock):
    trace, lower, compile_ = module._COMPILATION
    with phases("step"):
        phases.point()
        phases.step += 2
        clock.wait(2)
        phases._hear(trace, 1.0)  # inner
        clock.wait(1)
        phases._hear(trace, 2.5)  # contains it
        clock.wait(0.5)
        phases._hear(lower, 0.5)
        assert phases.position().allowed == FIRST
        clock.wait(30)
        phases._hear(compile_, 30.0)
        assert phases.position().allowed == 45.0
        clock.wait(1)
        phases.point()
        assert phases.position().allowed == 45.0  # the compilation is no measure of a step
    assert some(phases) == {"compile": 33.0, "steps": 1.5}


def test_jax_tells_of_its_compilations():
    with Phases() as phases, phases("step"):
        jax.jit(lambda x: jnp.sin(x) * 3 + jnp.float32(0.25))(jnp.ones(17)).block_until_ready()
        assert phases.seconds()["compile"] > 0
