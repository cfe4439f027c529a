"""Which runs had certain records, by the settings in their checkpoints."""

import json

import pytest

from ugc_jax.errors import UserError
from ugc_jax.train.checkpoint import Checkpoints
from ugc_jax.train.runs import runs_with, texts_with


def add(folder, step=3, model=False, **config):
    place = folder / "checkpoints" / str(step) / "config"
    place.mkdir(parents=True)
    (place / "metadata").write_text(json.dumps(config))
    if model:
        (folder / "model").mkdir()


def test_runs_are_found_by_their_data_and_by_their_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    (tmp_path / "rec").mkdir()
    add(runs / "a", 3, data={"train": "other"})
    add(runs / "a", 20, True, data={"train": "other=2,rec=1", "eval": "rec"}, checkpoint="x/y")
    add(runs / "deep" / "b", data={"train": str(tmp_path / "rec"), "eval": None})
    add(runs / "c", data={"train": "other"}, checkpoint="runs/a")
    add(runs / "d", data={"train": "other"}, checkpoint="runs/c/model")
    add(runs / "e", data={"train": "rec2", "eval": "below/rec"}, checkpoint="Qwen/x")
    add(runs / "f" / "checkpoints" / "x", data=None)
    found, count = runs_with([str(tmp_path / "rec")], "runs")
    lines = [run.describe() for run in found]
    assert lines == [
        "runs/a: data.train and data.eval, step 20, exported weights in runs/a/model",
        "runs/c: began with the weights of runs/a, step 3",
        "runs/d: began with the weights of runs/c, step 3",
        "runs/deep/b: data.train, step 3",
    ]
    assert count == 6
    assert runs_with(["rec"], "runs") == (found, count)
    assert runs_with(["rec"], "nothing") == ([], 0)
    with pytest.raises(UserError, match="runs: gs://b: runs are looked for on a disk"):
        runs_with(["rec"], "gs://b")


def test_a_run_that_was_started_elsewhere(tmp_path, monkeypatch):
    """Its relative path may be these records; rather one run too many than one too few."""
    (tmp_path / "work" / "records" / "mine").mkdir(parents=True)
    add(tmp_path / "runs" / "a", data={"train": "records/mine"})
    add(tmp_path / "runs" / "b", data={"train": "/elsewhere/records/mine"})
    monkeypatch.chdir(tmp_path)
    found, _ = runs_with(["work/records/mine"], "runs")
    assert [run.folder.name for run in found] == ["a"]


def test_tables_of_texts(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"clip": "m.jsonl:1", "caption": "x"}\n')
    (tmp_path / "completions.jsonl").write_text('{"clip": "m.jsonl:12", "caption": "x"}\n')
    assert texts_with(tmp_path, ["m.jsonl:1"]) == [tmp_path / "samples.jsonl"]
    assert texts_with(tmp_path, []) == []


def test_the_settings_lie_where_a_checkpoint_has_them(tmp_path):
    """As Orbax writes them."""
    import jax.numpy as jnp
    import orbax.checkpoint as ocp

    with Checkpoints(tmp_path / "run") as checkpoints:
        args = ocp.args.Composite(
            state=ocp.args.StandardSave({"x": jnp.zeros(2)}),
            config=ocp.args.JsonSave({"data": {"train": "rec"}}),
        )
        checkpoints._manager.save(4, args=args)
    found, _ = runs_with(["rec"], str(tmp_path))
    assert [(run.folder, run.step) for run in found] == [(tmp_path / "run", 4)]
