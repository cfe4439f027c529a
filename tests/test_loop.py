"""ugc_jax.train.loop: resuming, stopping, breaking; with the toy model of fake_training.

The same with the real model and pipeline is in test_sft.py.
"""

import json
import os
import signal

import fake_training as fake
import jax
import numpy as np
import pytest

from ugc_jax.errors import UserError
from ugc_jax.sharding import make_mesh
from ugc_jax.train import loop
from ugc_jax.train.checkpoint import Checkpoints
from ugc_jax.train.loop import Loop, LoopConfig


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(loop, "train_step", fake.train_step)
    monkeypatch.setattr(loop, "eval_step", fake.eval_step)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(2, 2, 2)


def train(folder, mesh, until=6, steps=6, broken=None, evaluation=None, sample=None, **config):
    """Go on with the run in `folder` for a schedule of `steps`, up to batch `until`."""
    config = LoopConfig(**{"log_every": 1, "save_every": 2, **config})
    checkpoints = Checkpoints(folder, config.keep)
    batches = fake.Batches(mesh, broken=broken)
    if checkpoints.latest is None:
        state = fake.create_state(mesh)
        checkpoints.save_frozen(state)
    else:
        state, data = checkpoints.restore(fake.abstract_state(mesh))
        batches.set_state(data)
    one = Loop(
        fake.Setup(mesh, until), config, folder, fake.ROWS, checkpoints, {"a": 1},
        evaluation, sample,
    )  # fmt: skip
    return one.run(state, batches)


def records(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def losses(folder) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in records(folder) if "loss" in record}


def assert_equal(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, mesh):
    """An uninterrupted run of six steps: (its folder, its last state)."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", fake.train_step)
        patch.setattr(loop, "eval_step", fake.eval_step)
        state, status = train(folder, mesh)
    assert status == 0
    return folder, state


def test_resumed_equals_uninterrupted(tmp_path, mesh, whole):
    train(tmp_path, mesh, until=2)
    state, _ = train(tmp_path, mesh)
    assert_equal(state, whole[1])
    assert losses(tmp_path) == losses(whole[0])


def test_resumed_on_another_mesh(tmp_path, mesh, whole):
    train(tmp_path, mesh, until=4)
    state, _ = train(tmp_path, make_mesh(8, 1, 1))
    np.testing.assert_allclose(state.params["w"], whole[1].params["w"], rtol=1e-6)
    assert losses(tmp_path) == pytest.approx(losses(whole[0]), rel=1e-5)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_stops(tmp_path, mesh, whole, number, status):
    class Batches(fake.Batches):
        def __next__(self):
            if self.next == 3:
                os.kill(os.getpid(), number)
            return super().__next__()

    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake, "Batches", Batches)
        state, stopped = train(tmp_path, mesh)
    assert stopped == status
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert int(state.step) < 6
    assert Checkpoints(tmp_path).latest == int(state.step)
    state, _ = train(tmp_path, mesh)
    assert_equal(state, whole[1])
    assert losses(tmp_path) == losses(whole[0])


@pytest.mark.parametrize("broken", [0, 2, 4, 5])
def test_a_nan_stops_with_the_state_before_it(tmp_path, mesh, whole, broken):
    with pytest.raises(UserError, match=rf"step {broken + 1}: loss is nan") as caught:
        train(tmp_path, mesh, broken=broken)
    message = str(caught.value)
    path = tmp_path / "not_finite" / f"step{broken + 1}_process0.npz"
    assert str(path) in message
    assert (np.load(path)["tokens"] == -1).all()
    with pytest.raises(UserError, match=rf"step {broken + 1}: loss is nan"):
        train(tmp_path, mesh, broken=broken)  # the replay
    state, _ = train(tmp_path, mesh)  # the cause removed
    assert_equal(state, whole[1])
    assert losses(tmp_path) == losses(whole[0])
