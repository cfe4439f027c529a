"""ugc_jax.train.checkpoint: what is kept, what is restored, and what a bad disk leaves."""

import json
import math
import os
import shutil
import subprocess
import time

import fake_training as fake
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ugc_jax.errors import UserError
from ugc_jax.sharding import make_mesh
from ugc_jax.train import checkpoint
from ugc_jax.train.checkpoint import Checkpoints, read_position


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(1, 8, 1)


def state_of(mesh, step: int):
    state = fake.create_state(mesh)
    new = jax.tree.map(lambda leaf: leaf + step, state.params)
    return state._replace(step=state.step + step, params=new)


def save(checkpoints, mesh, step, metrics=None):
    checkpoints.save(step, state_of(mesh, step), {"next": step}, {"a": {"b": step}})
    if metrics is not None:
        checkpoints.record(step, metrics)


def steps_in(folder) -> set[int]:
    return {int(path.name) for path in (folder / "checkpoints").iterdir()}


def test_the_latest_and_the_best_stay(tmp_path, mesh):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest is None
        assert checkpoints.best is None
        for step, loss in enumerate((3.0, 1.0, None, 2.0, None), 1):
            save(checkpoints, mesh, step, None if loss is None else {"eval_loss": loss})
        checkpoints.wait()
        assert (checkpoints.latest, checkpoints.best) == (5, 2)
    assert steps_in(tmp_path) == {2, 4, 5}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert (checkpoints.latest, checkpoints.best) == (5, 2)
        save(checkpoints, mesh, 6)
        checkpoints.wait()
    assert steps_in(tmp_path) == {2, 6}


def test_the_best_may_be_the_highest(tmp_path, mesh):
    with Checkpoints(tmp_path, 1, "eval_reward", "max") as checkpoints:
        for step, reward in enumerate((1.0, 3.0, None, 2.0), 1):
            save(
                checkpoints,
                mesh,
                step,
                {"eval_left_out": 1.0} | ({} if reward is None else {"eval_reward": reward}),
            )
        checkpoints.wait()
        assert (checkpoints.latest, checkpoints.best) == (4, 2)
    assert steps_in(tmp_path) == {2, 4}


def test_metrics_in_checkpoints_of_the_version_before_choose_the_best(tmp_path, mesh):
    options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["eval_loss"])
    with ocp.CheckpointManager(tmp_path / "checkpoints", options=options) as manager:
        for step, loss in enumerate((3.0, 1.0, 2.0), 1):
            items = ocp.args.Composite(data=ocp.args.JsonSave({"next": step}))
            manager.save(step, args=items, metrics={"eval_loss": loss})
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert (checkpoints.latest, checkpoints.best) == (3, 2)
        assert checkpoints.evaluated(3)
        save(checkpoints, mesh, 4, {"eval_loss": 1.5})
        assert checkpoints.best == 2
        save(checkpoints, mesh, 5, {"eval_loss": 0.5})
        assert checkpoints.best == 5
    assert steps_in(tmp_path) == {5}  # the best until then goes when there is a better one


def test_evaluations_of_steps_that_are_made_again_are_forgotten(tmp_path, mesh):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, mesh, 1, {"eval_loss": 1.0})
        checkpoints.record(2, {"eval_loss": math.nan, "eval_accuracy": 0.5})  # no checkpoint
        assert checkpoints.evaluated(2)
        assert checkpoints.best == 1
    with Checkpoints(tmp_path) as checkpoints:
        assert [checkpoints.evaluated(step) for step in (1, 2)] == [True, False]
    stored = json.loads((tmp_path / "evaluations.json").read_text())
    assert stored == {"1": {"eval_loss": 1.0}, "2": {"eval_accuracy": 0.5}}


def test_the_position_of_a_run_is_read_and_nothing_written(tmp_path, mesh):
    assert read_position(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()
    with Checkpoints(tmp_path) as checkpoints:
        assert read_position(tmp_path) is None
        for step in (1, 2):
            save(checkpoints, mesh, step)
    assert read_position(tmp_path) == ({"next": 2}, {"a": {"b": 2}})


def test_a_reference_is_saved_where_there_is_one(tmp_path, mesh):
    kept = {"w": state_of(mesh, 3).params["w"]}
    abstract = fake.abstract_state(mesh)
    for name, reference in (("with", kept), ("without", {})):
        with Checkpoints(tmp_path / name) as checkpoints:
            state = state_of(mesh, 1)._replace(reference=reference)
            checkpoints.save_frozen(state)
            checkpoints.save(1, state, {}, {})
        target = abstract._replace(reference=abstract.params if reference else {})
        with Checkpoints(tmp_path / name) as checkpoints:
            restored, _ = checkpoints.restore(target)
        assert restored.reference.keys() == reference.keys()
        for leaf in restored.reference.values():
            np.testing.assert_array_equal(leaf, kept["w"])


def test_a_checkpoint_of_the_version_before_is_restored(tmp_path, mesh, monkeypatch):
    """Its state has the field `finite` under the name `healthy`."""
    saved = state_of(mesh, 7)._replace(finite=jax.numpy.array(False))
    with monkeypatch.context() as patch, Checkpoints(tmp_path) as checkpoints:
        changing = {
            "healthy" if name == "finite" else name: leaf
            for name, leaf in checkpoint._changing(saved).items()
        }
        patch.setattr(checkpoint, "_changing", lambda _: changing)
        checkpoints.save_frozen(saved)
        checkpoints.save(7, saved, {"next": 7}, {})
    for step in (7, 8):  # saved again, it has the name of today
        with Checkpoints(tmp_path) as checkpoints:
            state, data = checkpoints.restore(fake.abstract_state(mesh), step)
            assert data == {"next": 7}
            for leaf, wanted in zip(*map(jax.tree.leaves, (state, saved)), strict=True):
                np.testing.assert_array_equal(np.asarray(leaf), np.asarray(wanted))
            checkpoints.save(8, state, data, {})


def test_without_evaluation_the_latest_is_the_best(tmp_path, mesh):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save(checkpoints, mesh, 1)
        save(checkpoints, mesh, 2)
        checkpoints.wait()
        assert checkpoints.best == checkpoints.latest == 2
    assert steps_in(tmp_path) == {2}


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (8, 1, 1)])
def test_restored_on_any_mesh(tmp_path, mesh, sizes):
    saved = state_of(mesh, 7)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_frozen(saved)
        save(checkpoints, mesh, 7)
    abstract = fake.abstract_state(make_mesh(*sizes))
    with Checkpoints(tmp_path) as checkpoints:
        state, data = checkpoints.restore(abstract)
        assert checkpoints.config(7) == {"a": {"b": 7}}
    assert data == {"next": 7}
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    for leaf, wanted, shape in zip(*map(jax.tree.leaves, (state, saved, abstract)), strict=True):
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(wanted))
        assert leaf.dtype == shape.dtype
        assert leaf.sharding == shape.sharding


def test_a_saved_state_may_be_used_up_at_once(tmp_path, mesh):
    advance = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    with Checkpoints(tmp_path, keep=10) as checkpoints:
        state = fake.create_state(mesh)._replace(frozen={}, finite=jax.numpy.int32(0))
        for step in range(1, 6):
            checkpoints.save(step, state, {}, {})
            for _ in range(3):
                state = advance(state)
    abstract = fake.abstract_state(mesh)._replace(frozen={}, finite=state.finite)
    with Checkpoints(tmp_path, keep=10) as checkpoints:
        for step in range(1, 6):
            restored, _ = checkpoints.restore(abstract, step)
            assert (np.asarray(restored.params["w"]) == 3 * (step - 1)).all()


def test_what_a_killed_save_leaves_is_cleared_away(tmp_path, mesh):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, mesh, 1)
    half = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "1", half)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 1
        save(checkpoints, mesh, 2)
    assert steps_in(tmp_path) == {1, 2}


def test_a_half_deleted_old_checkpoint_is_no_obstacle(tmp_path, mesh):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2):
            save(checkpoints, mesh, step, {"eval_loss": 1.0 / step})
    old = tmp_path / "checkpoints" / "1"
    (old / "_CHECKPOINT_METADATA").unlink()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.latest == checkpoints.best == 2
        save(checkpoints, mesh, 3)
    assert steps_in(tmp_path) == {2, 3}


def test_a_damaged_checkpoint_is_told(tmp_path, mesh):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_frozen(state_of(mesh, 1))
        save(checkpoints, mesh, 1)
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "state" / "d", ignore_errors=True)
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "state" / "ocdbt.process_0")
    remedy = "remove that folder to go on from the checkpoint before it"
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=rf"checkpoints/1: cannot be read \(.*\); {remedy}"),
    ):
        checkpoints.restore(fake.abstract_state(mesh))


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount one")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def save_and_see(checkpoints, state):
    checkpoints.save(2, state, {}, {})
    for _ in range(500):
        checkpoints.check()
        time.sleep(0.01)


@pytest.mark.parametrize("seen", [True, False])
def test_a_full_disk_is_told_and_costs_nothing(small_disk, mesh, seen, monkeypatch):
    """seen: whether the lack of space is known before anything is written."""
    if not seen:
        monkeypatch.setattr(Checkpoints, "_require_space", lambda *_: None)
    with Checkpoints(small_disk, keep=5) as checkpoints:
        save(checkpoints, mesh, 1)
        checkpoints.wait()
        noise = np.random.default_rng(0).random(10**6, np.float32)
        large = state_of(mesh, 2)._replace(params={"w": jax.numpy.array(noise)})
        with pytest.raises(UserError, match="free disk space, then run again") as told:
            save_and_see(checkpoints, large)
        assert str(small_disk / "checkpoints") in str(told.value)
        assert ("does not fit" in str(told.value)) == seen
        assert "\n" not in str(told.value)
    with Checkpoints(small_disk, keep=5) as checkpoints:
        assert checkpoints.latest == 1
        state, _ = checkpoints.restore(fake.abstract_state(mesh)._replace(frozen={}))
        assert int(state.step) == 1
        save(checkpoints, mesh, 2)
    assert steps_in(small_disk) == {1, 2}


def test_an_output_that_is_a_file_is_told(tmp_path):
    (tmp_path / "out").write_text("captions")
    with pytest.raises(UserError, match=r"cannot be opened \(.*\); choose another output"):
        Checkpoints(tmp_path / "out")
