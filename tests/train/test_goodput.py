"""ugc_jax.train.goodput: the seconds of a run over its restarts."""

import json

import pytest

from ugc_jax.train.goodput import FINISHED, LISTED, STOPPED, Goodput


class Phases:
    """Of a process that began at `began`; all seconds are given."""

    def __init__(self, **seconds):
        self.now = seconds

    def seconds(self):
        return dict(self.now)

    def add(self, **seconds):
        for name, value in seconds.items():
            self.now[name] = self.now.get(name, 0.0) + value


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def spend(clock, phases, **seconds):
    phases.add(**seconds)
    clock.now += sum(seconds.values())


def begin(folder, clock, first, **seconds) -> tuple[Goodput, Phases]:
    clock.now += sum(seconds.values())
    phases = Phases(**seconds)
    return Goodput(folder, first, phases, clock), phases


def read(folder) -> dict:
    return json.loads((folder / "goodput.json").read_text())


def test_a_run_without_restarts(tmp_path, clock):
    goodput, phases = begin(tmp_path, clock, 0, start=10.0)
    spend(clock, phases, compile=20.0, steps=60.0, data=10.0)
    goodput.made(6)
    goodput.end(FINISHED)
    content = read(tmp_path)
    assert content["goodput"] == 0.6
    assert content["seconds"] == 100.0
    assert content["restarts"] == 0
    assert content["by"] == {
        "start": 10.0, "compile": 20.0, "steps": 60.0, "data": 10.0, "lost": 0.0,
    }  # fmt: skip
    assert goodput.values()["goodput/share"] == 0.6
    assert goodput.values()["goodput/steps_seconds"] == 60.0
    assert goodput.describe() == "60% of 2 min: steps 60 s, compile 20 s, start 10 s, data 10 s"


def test_what_a_kill_costs(tmp_path, clock):
    goodput, phases = begin(tmp_path, clock, 0, start=10.0)
    spend(clock, phases, steps=40.0)
    goodput.made(4)
    goodput.saved(4)
    spend(clock, phases, steps=15.0)
    goodput.made(5)  # written, then killed
    clock.now += 30.0
    goodput, phases = begin(tmp_path, clock, 4, start=5.0)
    spend(clock, phases, steps=50.0)
    goodput.made(9)
    goodput.end(FINISHED)
    content = read(tmp_path)
    assert content["by"] == {"start": 10.0, "steps": 90.0, "lost": 15.0 + 30.0 + 5.0}
    assert content["goodput"] == 0.6
    assert [one["end"] for one in content["attempts"]] == ["running", "finished"]
    assert "over 1 restarts: steps" in goodput.describe()


def test_a_stop_costs_only_the_start(tmp_path, clock):
    goodput, phases = begin(tmp_path, clock, 0, start=10.0)
    spend(clock, phases, steps=40.0)
    goodput.made(4)
    goodput.saved(4)
    goodput.end(STOPPED)
    clock.now += 3600.0
    goodput, phases = begin(tmp_path, clock, 4, start=5.0)
    spend(clock, phases, steps=45.0)
    goodput.made(9)
    goodput.end(FINISHED)
    assert read(tmp_path)["by"] == {"start": 10.0, "steps": 85.0, "lost": 5.0}


def test_without_a_checkpoint_all_is_lost(tmp_path, clock):
    goodput, phases = begin(tmp_path, clock, 0, start=10.0)
    spend(clock, phases, steps=40.0)
    goodput.made(4)
    goodput.end("process 2 died")
    goodput, phases = begin(tmp_path, clock, 0, start=10.0)
    goodput.end(FINISHED)
    assert read(tmp_path)["by"] == {"lost": 60.0}


def test_a_damaged_file_is_told_and_left_out(tmp_path, clock, caplog):
    (tmp_path / "goodput.json").write_text('{"attempts": [{"other": 1}]}')
    goodput, _ = begin(tmp_path, clock, 0, start=10.0)
    assert "goodput.json: earlier starts are left out" in caplog.text
    goodput.end(FINISHED)
    assert read(tmp_path)["seconds"] == 10.0


def test_many_restarts_are_summed_up(tmp_path, clock):
    """Start, three steps (the last one lost), killed, ten seconds until the next start."""
    sizes, starts = [], 3 * LISTED
    for number in range(starts):
        goodput, phases = begin(tmp_path, clock, 2 * number, start=5.0)
        for _ in range(2):
            spend(clock, phases, steps=20.0)
        goodput.made(2 * number + 2)
        goodput.saved(2 * number + 2)
        spend(clock, phases, steps=20.0)
        goodput.made(2 * number + 3)
        sizes.append((tmp_path / "goodput.json").stat().st_size)
        clock.now += 10.0
    content = read(tmp_path)
    assert content["restarts"] == starts - 1
    assert content["by"] == {
        "start": 5.0,
        "steps": 40.0 * starts + 20.0,  # nothing of the last start is lost yet
        "lost": (starts - 1) * (20.0 + 5.0 + 10.0),
    }
    assert len(content["attempts"]) == LISTED
    assert content["earlier"]["attempts"] == starts - LISTED
    assert max(sizes) < sizes[LISTED - 1] + 500


def test_it_is_not_written_at_every_step(tmp_path, clock):
    goodput, phases = begin(tmp_path, clock, 0, start=10.0)
    spend(clock, phases, steps=1.0)
    goodput.made(1)
    assert read(tmp_path)["attempts"][0]["last"] == 0
    spend(clock, phases, steps=10.0)
    goodput.made(2)
    assert read(tmp_path)["attempts"][0]["last"] == 2
