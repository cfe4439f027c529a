"""ugc_jax.train.loop: resuming, stopping, breaking; with the toy model of fake_training.

The same with the real model and pipeline is in test_sft.py.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fake_training as fake
import jax
import numpy as np
import pytest

from ugc_jax.errors import EnvironmentFailure, UserError
from ugc_jax.sharding import make_mesh
from ugc_jax.train import feed, loop
from ugc_jax.train.checkpoint import Checkpoints
from ugc_jax.train.metrics import MetricsWriter
from ugc_jax.train.settings import LoopConfig


@pytest.fixture(autouse=True, scope="module")
def toy():
    with pytest.MonkeyPatch.context() as patch:
        fake.patch(patch.setattr)
        yield


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(2, 2, 2)


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory, mesh):
    """An uninterrupted run of six steps: (its folder, its last state)."""
    folder = tmp_path_factory.mktemp("whole")
    state, status = fake.train(folder, mesh)
    assert status == 0
    return folder, state


def records(folder, name="metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def losses(folder) -> dict[int, float]:
    steps = [record["step"] for record in records(folder)]
    assert steps == sorted(set(steps))
    return {record["step"]: record["loss"] for record in records(folder)}


def assert_equal(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


# ---- going on ------------------------------------------------------------------------------------


def test_resumed_equals_uninterrupted(tmp_path, mesh, whole):
    fake.train(tmp_path, mesh, steps=2)
    state, _ = fake.train(tmp_path, mesh)
    assert_equal(state, whole[1])
    assert losses(tmp_path) == losses(whole[0])


def test_resumed_on_another_mesh(tmp_path, mesh, whole):
    fake.train(tmp_path, mesh, steps=4)
    state, _ = fake.train(tmp_path, make_mesh(8, 1, 1))
    np.testing.assert_allclose(state.params["w"], whole[1].params["w"], rtol=1e-6)
    assert losses(tmp_path) == pytest.approx(losses(whole[0]), rel=1e-5)


def test_a_finished_run_stays_as_it_is(tmp_path, mesh, whole):
    fake.train(tmp_path, mesh)
    text = (tmp_path / "metrics.jsonl").read_text()
    state, status = fake.train(tmp_path, mesh)
    assert status == 0
    assert_equal(state, whole[1])
    assert (tmp_path / "metrics.jsonl").read_text() == text


# ---- stopping ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_stops(tmp_path, mesh, whole, number, status):
    class Batches(fake.Batches):
        def __next__(self):
            if self.next == 3:
                os.kill(os.getpid(), number)
            return super().__next__()

    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    state, stopped = fake.train(tmp_path, mesh, batches=Batches(mesh))
    assert stopped == status
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert int(state.step) < 6
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == int(state.step)
    state, _ = fake.train(tmp_path, mesh)
    assert_equal(state, whole[1])
    assert losses(tmp_path) == losses(whole[0])


def rows_of_evaluation(*signalled: int, pause: float = 0.0):
    """Ten batches to evaluate on; SIGTERM comes while one of these numbers is read."""

    class Evaluation:
        taken = 0

        def __iter__(self):
            for number in range(10):
                self.taken += 1
                if self.taken in signalled:
                    os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(pause)
                yield fake.make_rows(1000 + number)

    return Evaluation()


def sampled(state, check):
    check()
    return [{"clip": "a.mp4", "reference": "Red.", "caption": f"step {int(state.step)}"}]


def assert_same_run(folder, other):
    for name in ("metrics.jsonl", "samples.jsonl"):
        timed = ("tokens_per_second", "examples_per_second", "data_wait", "memory_gb")
        ours, theirs = (
            [{key: value for key, value in line.items() if key not in timed} for line in lines]
            for lines in (records(folder, name), records(other, name))
        )
        assert ours == theirs


@pytest.mark.parametrize("taken", [3, 10, 14, 25])
def test_a_stop_is_heeded_within_an_evaluation_and_costs_nothing(tmp_path, mesh, taken):
    """At the checkpoints of steps 2 and 4, and after step 3, which has none without the stop."""
    settings = dict(sample=sampled, eval_every=3, keep=1)
    state, _ = fake.train(tmp_path / "whole", mesh, evaluation=rows_of_evaluation(), **settings)
    folder, evaluation = tmp_path / "run", rows_of_evaluation(taken, pause=0.1)
    stopped, status = fake.train(folder, mesh, evaluation=evaluation, **settings)
    assert status == 143
    assert evaluation.taken <= taken + 2
    with Checkpoints(folder) as checkpoints:
        at = [2, 3, 4][(taken - 1) // 10]
        assert checkpoints.latest == int(stopped.step) == at
    again, status = fake.train(folder, mesh, evaluation=rows_of_evaluation(), **settings)
    assert status == 0
    assert_equal(again, state)
    assert_same_run(folder, tmp_path / "whole")
    for name in ("run", "whole"):
        with Checkpoints(tmp_path / name) as checkpoints:
            assert (checkpoints.best, checkpoints.latest) == (6, 6)


def test_a_checkpoint_comes_before_its_evaluation(tmp_path, mesh, monkeypatch):
    events, save = [], Checkpoints.save

    class Evaluation(list):
        def __iter__(self):
            events.append("evaluation")
            return super().__iter__()

    def watched(checkpoints, step, *args):
        events.append(step)
        return save(checkpoints, step, *args)

    monkeypatch.setattr(Checkpoints, "save", watched)
    fake.train(tmp_path, mesh, steps=4, evaluation=Evaluation([fake.make_rows(1000)]))
    assert events == [2, "evaluation", 4, "evaluation"]


def test_a_stop_is_heeded_while_the_storage_hangs(tmp_path, mesh, whole, monkeypatch):
    """The read does not end before the run does; what it would have given is read again."""
    released = threading.Event()
    monkeypatch.setattr(feed, "CLOSE", 0.5)

    class Batches(fake.Batches):
        closed = False

        def __next__(self):
            if self.next == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                released.wait(30)
            return super().__next__()

        def close(self):
            self.closed = True

    begin, batches = time.monotonic(), Batches(mesh)
    stopped, status = fake.train(tmp_path, mesh, batches=batches)
    assert time.monotonic() - begin < 20
    released.set()
    assert (int(stopped.step), status, batches.closed) == (3, 143, False)
    state, _ = fake.train(tmp_path, mesh)
    assert_equal(state, whole[1])
    assert losses(tmp_path) == losses(whole[0])


def test_an_evaluation_that_is_refused_leaves_its_checkpoint(tmp_path, mesh):
    def broken():
        raise UserError("shard 7: broken; copy it again")
        yield

    class Evaluation:
        def __iter__(self):
            return broken()

    message = "^evaluation after step 3: shard 7: broken; copy it again; .*/3 holds the state"
    with pytest.raises(UserError, match=message):
        fake.train(tmp_path, mesh, evaluation=Evaluation(), eval_every=3, save_every=5)
    state, _ = fake.train(tmp_path, mesh, evaluation=rows_of_evaluation(), eval_every=3)
    assert [line["step"] for line in records(tmp_path) if "eval_loss" in line] == [3, 4, 6]


def start(*words, devices=8):
    """The toy as a program of its own."""
    flags = os.environ["XLA_FLAGS"]
    environment = os.environ | {
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    program = [sys.executable, str(Path(fake.__file__)), *map(str, words)]
    return subprocess.Popen(
        program, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_killed_at_any_moment_it_goes_on(tmp_path, mesh, whole):
    """Killed after each of the first two new checkpoints begins to appear, then left alone."""
    folder = tmp_path / "checkpoints"
    for _ in range(2):
        before = set(folder.glob("*"))
        with start(tmp_path, 6, 0.1) as process:
            until = time.monotonic() + 60
            while set(folder.glob("*")) <= before and time.monotonic() < until:
                time.sleep(0.002)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    state, status = fake.train(tmp_path, mesh)
    assert status == 0
    assert_equal(state, whole[1])
    assert losses(tmp_path) == losses(whole[0])


def test_two_processes_equal_one(tmp_path, mesh, whole):
    """Two processes of four devices; SIGTERM to one of them stops both, then they go on."""
    port = fake.free_port()
    both = [start(tmp_path, 6, 0.5, port, number, devices=4) for number in range(2)]
    while not (tmp_path / "metrics.jsonl").exists() or not losses(tmp_path):
        assert all(process.poll() is None for process in both), both[0].communicate()[1]
        time.sleep(0.05)
    both[1].terminate()
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [143, 143], errors
    port = fake.free_port()
    both = [start(tmp_path, 6, 0, port, number, devices=4) for number in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert losses(tmp_path) == pytest.approx(losses(whole[0]), rel=1e-6)
    with Checkpoints(tmp_path) as checkpoints:  # two processes wrote it, one reads it
        state, _ = checkpoints.restore(fake.abstract_state(mesh))
    np.testing.assert_allclose(state.params["w"], whole[1].params["w"], rtol=1e-6)


# ---- breaking ------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [0, 2, 3, 5])
def test_a_nan_stops_with_the_state_before_it(tmp_path, mesh, whole, broken):
    for _ in range(2):  # the second time is the replay
        with pytest.raises(UserError, match=rf"step {broken + 1}: loss is nan") as caught:
            fake.train(tmp_path, mesh, batches=fake.Batches(mesh, broken=broken))
        path = tmp_path / "not_finite" / f"step{broken + 1}_process0.npz"
        assert str(path) in str(caught.value)
        assert (np.load(path)["tokens"] == -1).all()
    state, _ = fake.train(tmp_path, mesh)  # with the cause removed
    assert_equal(state, whole[1])
    assert losses(tmp_path) == losses(whole[0])


def test_a_batch_that_cannot_be_read_loses_nothing(tmp_path, mesh, whole):
    class Batches(fake.Batches):
        def __next__(self):
            if self.next == 3:
                raise UserError("shard 7: broken; copy it again")
            return super().__next__()

    message = "step 4: shard 7: broken; copy it again; .*/3 holds the state before it: run again"
    with pytest.raises(UserError, match=message):
        fake.train(tmp_path, mesh, batches=Batches(mesh))
    state, _ = fake.train(tmp_path, mesh)  # with the shard copied
    assert_equal(state, whole[1])
    assert losses(tmp_path) == losses(whole[0])


def test_the_first_error_is_the_message(tmp_path, mesh, monkeypatch):
    """Metrics that the disk refuses are refused again when their file is closed."""
    full = functools.partial(open, "/dev/full", "a", buffering=1)
    monkeypatch.setattr(MetricsWriter, "_open", lambda *_: full())
    with pytest.raises(EnvironmentFailure) as told:
        fake.train(tmp_path, mesh)
    assert str(told.value).startswith(f"{tmp_path}: the disk is full; free disk space")
    assert told.value.__context__ is None or told.value.__suppress_context__


@pytest.mark.parametrize("close", ["MetricsWriter", "Supervised", "Progress"])
def test_no_end_hides_the_reason(tmp_path, mesh, monkeypatch, close):
    class Batches(fake.Batches):
        def __next__(self):
            if self.next == 3:
                raise UserError("shard 7: broken; copy it again")
            return super().__next__()

    def refuse(*_):
        raise OSError("a second error")

    place = {
        "MetricsWriter": (MetricsWriter, "close"),
        "Supervised": (feed.Feed, "close"),
        "Progress": (loop.Progress, "__exit__"),
    }[close]
    with monkeypatch.context() as patch:
        patch.setattr(*place, refuse)
        with pytest.raises(UserError, match="^step 4: shard 7: broken"):
            fake.train(tmp_path, mesh, batches=Batches(mesh))
        with pytest.raises(OSError, match="a second error"):  # which is the first one here
            fake.train(tmp_path, mesh)


def test_a_checkpoint_that_is_refused_does_not_hide_the_reason(tmp_path, mesh, monkeypatch):
    class Batches(fake.Batches):
        def __next__(self):
            if self.next == 1:
                raise UserError("shard 7: broken; copy it again")
            return super().__next__()

    def refuse(*_):
        raise UserError("disk: full")

    monkeypatch.setattr(Checkpoints, "save", refuse)
    message = r"^step 2: shard 7: broken; copy it again; .* not saved \(disk: full\): run again"
    with pytest.raises(UserError, match=message):
        fake.train(tmp_path, mesh, batches=Batches(mesh))


# ---- what is reported ----------------------------------------------------------------------------


def test_evaluation_samples_and_the_best_checkpoint(tmp_path, mesh):
    evaluation = [fake.make_rows(1000), fake.make_rows(1001)]
    states = []

    def sample(state, check):
        states.append(int(state.step))
        return [{"clip": "a.mp4", "reference": "Red.", "caption": f"step {int(state.step)}"}]

    state, _ = fake.train(
        tmp_path, mesh, evaluation=evaluation, sample=sample, eval_every=3, save_every=4, keep=1
    )
    seen = {r["step"]: r["eval_loss"] for r in records(tmp_path) if "eval_loss" in r}
    assert list(seen) == states == [3, 4, 6]
    mean = np.mean([float(fake._loss(state.params, state, batch)) for batch in evaluation])
    assert seen[6] == pytest.approx(mean, rel=1e-6)
    assert [r["caption"] for r in records(tmp_path, "samples.jsonl")] == [
        "step 3", "step 4", "step 6",
    ]  # fmt: skip
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best == min((4, 6), key=seen.get)


def test_a_line_every_so_often(tmp_path, mesh, caplog):
    with caplog.at_level("INFO", logger="ugc_jax"):
        fake.train(tmp_path, mesh, steps=5, log_every=2)
    assert [record["step"] for record in records(tmp_path)] == [2, 4, 5]
    assert "step 4/5: loss" in caplog.text
    last = records(tmp_path)[-1]
    assert last["tokens_per_second"] == pytest.approx(4 * last["examples_per_second"])
    assert 0 <= last["data_wait"] <= 1
    assert last["memory_gb"] > 0.1
    assert "mfu" not in last


def test_a_trace_of_three_steps(tmp_path, mesh):
    fake.train(tmp_path, mesh, profile=2)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("steps", 0, "1 or more"),
        ("epochs", -1.0, "positive"),
        ("eval_every", -1, "0 or more"),
        ("hang_seconds", 2, "5 or more"),
    ],  # fmt: skip
)
def test_mistakes_are_told(field, value, remedy):
    with pytest.raises(UserError, match=rf"^{field} is {value}; use .*{remedy}"):
        LoopConfig(**{field: value})


def test_a_batch_that_cannot_be_parted_is_told(tmp_path, mesh):
    message = "batch of 8 rows is not a multiple of 3 microbatches times"
    with pytest.raises(UserError, match=message):
        fake.train(tmp_path, mesh, accumulate=3)
