"""ugc_jax.train.loop: resuming, stopping, breaking; with the toy model of fake_training.

The same with the real model and pipeline is in test_sft.py.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_training as fake
import jax
import numpy as np
import pytest

from ugc_jax.errors import UserError
from ugc_jax.sharding import make_mesh
from ugc_jax.train.checkpoint import Checkpoints
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


def start(*words, devices=8):
    """The toy as a program of its own."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
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


# ---- what is reported ----------------------------------------------------------------------------


def test_evaluation_samples_and_the_best_checkpoint(tmp_path, mesh):
    evaluation = [fake.make_rows(1000), fake.make_rows(1001)]
    states = []

    def sample(state):
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
    [("steps", 0, "1 or more"), ("epochs", -1.0, "positive"), ("eval_every", -1, "0 or more")],
)
def test_mistakes_are_told(field, value, remedy):
    with pytest.raises(UserError, match=rf"^{field} is {value}; use .*{remedy}"):
        LoopConfig(**{field: value})


def test_a_batch_that_cannot_be_parted_is_told(tmp_path, mesh):
    message = "batch of 8 rows is not a multiple of 3 microbatches times"
    with pytest.raises(UserError, match=message):
        fake.train(tmp_path, mesh, accumulate=3)
