"""ugc_jax.jobs.sft on real records and the tiny model: stopped and resumed, exported, captioned."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections import Counter

import jax
import numpy as np
import pytest
from fake_training import free_port

from ugc_jax import Captioner
from ugc_jax.data import pipeline
from ugc_jax.data.planning import DataConfig
from ugc_jax.data.records import Storage
from ugc_jax.errors import UserError
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.hf.adapter import load_adapter
from ugc_jax.hf.checkpoint import load_params
from ugc_jax.hf.config import load_config
from ugc_jax.hf.trained import read_trained
from ugc_jax.jobs import extract, sft
from ugc_jax.models import lora
from ugc_jax.models.lora import LoraConfig
from ugc_jax.train import loop, run
from ugc_jax.train.optimizer import OptimizerConfig
from ugc_jax.train.settings import LoopConfig
from ugc_jax.train.state import Trainable

pytestmark = pytest.mark.usefixtures("one_device")

QUESTION = "What is seen and heard?"


@pytest.fixture(scope="module")
def records(clips, tmp_path_factory):
    """Four clips, extracted with their captions."""
    folder = tmp_path_factory.mktemp("records")
    question = {"role": "user", "content": f"<video>{QUESTION}"}
    rows = [
        {
            "videos": [str(clips / name)],
            "messages": [question, {"role": "assistant", "content": f"A clip called {name}."}],
        }
        for name in ("a.mp4", "b.mp4", "below/c.mp4", "silent.mp4")
    ]
    manifest = folder / "train.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = extract.ExtractConfig(
        output=str(folder / "train"), storage=Storage("png", mel="float32"), workers=1
    )
    assert extract.main(config, [str(manifest)]) == 0
    return str(folder / "train")


@pytest.fixture(scope="module")
def settings(records, tiny_checkpoint):
    return sft.SftConfig(
        checkpoint=str(tiny_checkpoint),
        output="",
        data=DataConfig(train=records, eval=records, batch_size=2, tokens=512, workers=0),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        loop=LoopConfig(steps=4, log_every=1, save_every=2, samples=1, export_dtype="float32"),
        sampling=SamplingConfig(max_new_tokens=8),
    )


def change(settings, output, section=None, **values):
    """The settings with another output, and other values of a section."""
    if section is not None:
        values = {section: dataclasses.replace(getattr(settings, section), **values)}
    return dataclasses.replace(settings, output=str(output), **values)


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """The folder of an uninterrupted run of four steps."""
    folder = tmp_path_factory.mktemp("whole")
    assert sft.main(change(settings, folder), []) == 0
    return folder


def metrics(folder) -> list[list]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "loss", "accuracy", "grad_norm", "learning_rate", "eval_loss")
    return [[row.get(key) for key in keys] for row in rows]


def weights(folder) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def test_it_learns(whole):
    first, *_, last, evaluation = metrics(whole)
    assert last[1] < first[1]
    assert evaluation[-1] < first[1]


def test_only_what_is_trainable_changes(whole, tiny_checkpoint):
    before, after = weights(tiny_checkpoint), weights(whole / "model")
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert all(name.startswith(("model.", "lm_head.")) for name in changed)
    assert {"model.layers.1.mlp.up_proj.weight", "lm_head.weight"} <= changed


def test_stopped_and_resumed_equals_uninterrupted(whole, settings, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch, caplog.at_level("INFO", logger="ugc_jax"):
        patch.setattr(loop.StopRequest, "after", lambda _, step: step == 3)
        patch.setattr(loop.StopRequest, "status", 143)
        assert sft.main(change(settings, tmp_path), []) == 143
    # What "auto" has become is in the log.
    assert [line for line in caplog.messages if line.endswith("float32, attention xla, remat none")]
    assert not (tmp_path / "model").exists()
    assert sft.main(change(settings, tmp_path), []) == 0
    assert metrics(tmp_path) == metrics(whole)
    before, after = weights(whole / "model"), weights(tmp_path / "model")
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def test_a_finished_run_goes_on_with_whole_epochs(settings, tmp_path, monkeypatch, caplog):
    """Three rows a batch: the last step of an epoch of four has one, a plan of two has three."""
    taken, load = [], pipeline.Loader.__call__

    def watched(loader, number):
        rows = loader.plan.step(number).rows
        taken.extend(item for row in rows for item in row)
        return load(loader, number)

    monkeypatch.setattr(pipeline.Loader, "__call__", watched)
    settings = change(
        settings, tmp_path, packing=False, sampling=SamplingConfig(max_new_tokens=1),
        data=dataclasses.replace(settings.data, eval=None, batch_size=3),
    )  # fmt: skip
    for epochs, steps in ((1.0, 2), (2.0, 4), (3.5, 6)):
        caplog.clear()
        loop = dataclasses.replace(settings.loop, steps=None, epochs=epochs)
        with caplog.at_level("INFO", logger="ugc_jax"):
            assert sft.main(dataclasses.replace(settings, loop=loop), []) == 0
        assert metrics(tmp_path)[-1][0] == steps
        times = Counter(taken)
        assert len(times) == 4
        assert set(times.values()) <= ({epochs} if epochs < 3 else {3, 4})
        told = [line for line in caplog.messages if line.startswith("the learning rate follows")]
        assert [f"a run of {steps} steps" in line for line in told] == [True] * (epochs > 1)


def job(settings, output, process=0, processes=1, port=0):
    """The job as a program: with eight devices, or as one of two processes of a SLURM step."""
    flags = (  # the second one: programs that run a few times compile in half the time
        f"--xla_force_host_platform_device_count={8 // processes}",
        "--xla_backend_optimization_level=0",
    )
    environment = os.environ | {"XLA_FLAGS": " ".join(flags)}
    words = ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", "data.batch_size=4", "data.workers=0"]
    words += ["data.tokens=512", "optimizer.learning_rate=1e-2", "loop.steps=4"]
    words += ["loop.log_every=1", "loop.samples=1", "loop.sample_tokens=8"]
    words += [f"checkpoint={settings.checkpoint}", f"output={output}"]
    words += [f"data.train={settings.data.train}", f"data.eval={settings.data.eval}"]
    if processes > 1:
        words.append("distributed=true")
        environment |= {
            "SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_LOCALID": "0",
            "SLURM_NTASKS": str(processes), "SLURM_PROCID": str(process),
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_LOCAL_DEVICE_IDS": "0,1,2,3",
        }  # fmt: skip
    program = [sys.executable, "-m", "ugc_jax.cli", "sft", *(f"--config.{word}" for word in words)]
    return subprocess.Popen(program, env=environment, stderr=subprocess.PIPE, text=True)


def test_two_processes_equal_one(settings, tmp_path):
    """The real model on a mesh of 2 x 2 x 2, with evaluation and samples."""
    port = free_port()
    both = [job(settings, tmp_path / "two", number, 2, port) for number in range(2)]
    for process in (*both, job(settings, tmp_path / "one")):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    two, one = (np.array(metrics(tmp_path / name), float) for name in ("two", "one"))
    losses = np.abs(two[:, [1, 5]] / one[:, [1, 5]] - 1)  # of steps, and of the evaluation
    print(f"largest relative difference of a loss: {np.nanmax(losses):.1e}")
    np.testing.assert_allclose(two, one, rtol=1e-5)


def test_the_exported_model_captions_as_the_sample_says(whole, clips):
    *_, sample = map(json.loads, (whole / "samples.jsonl").read_text().splitlines())
    assert sample["reference"] == "A clip called a.mp4."
    captioner = Captioner.from_pretrained(whole / "model")
    (made,) = captioner.caption([clips / "a.mp4"], question=QUESTION, max_new_tokens=8)
    assert made.error is None
    assert made.caption == sample["caption"]


def test_the_exported_model_says_how_it_came_about(whole):
    training = read_trained(whole / "model").training
    assert (training["kind"], training["settings"]["loop.steps"]) == ("sft", 4)
    assert training["data"][0]["records"] >= 1
    card = (whole / "model" / "README.md").read_text()
    assert f"| {training['data'][0]['name']} | {training['data'][0]['records']} |" in card
    assert str(whole) not in card + json.dumps(training)


def test_the_best_is_exported(whole, settings, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "run")
    exported = []
    monkeypatch.setattr(run, "export", lambda state, *_: exported.append(int(state.step)))
    for best in (2, 4):
        monkeypatch.setattr(run.Checkpoints, "best", best)
        sft.main(change(settings, tmp_path / "run", "loop", export="best"), [])
    assert exported == [2, 4]


def test_changes_are_told_or_refused(whole, settings, caplog):
    with caplog.at_level("INFO", logger="ugc_jax"):
        changed = dict(learning_rate=1e-3, weight_decay=0.1, clip_norm=0.0)
        assert sft.main(change(settings, whole, "optimizer", **changed), []) == 0
    assert "optimizer.learning_rate was 0.01 and is 0.001" in caplog.text
    for section, values, message in (
        ("trainable", {"vision": True}, r"trainable\.vision was False and is True"),
        ("loop", {"steps": 3}, "the run is beyond step 3"),
        ("data", {"seed": 5}, "of other data or in another order"),
    ):
        with pytest.raises(UserError, match=message):
            sft.main(change(settings, whole, section, **values), [])


def test_adapter(settings, tmp_path, tiny_checkpoint):
    adapter = LoraConfig(rank=2, targets="q_proj,down_proj")
    frozen = Trainable(decoder=False, embeddings=False)
    config = change(
        settings, tmp_path, lora=adapter, trainable=frozen,
        data=dataclasses.replace(settings.data, eval=None),
        loop=dataclasses.replace(settings.loop, steps=2),
    )  # fmt: skip
    assert sft.main(config, []) == 0
    model = load_config(tiny_checkpoint)
    leaves, stored = load_adapter(tmp_path / "adapter", model)
    assert stored.rank == 2
    base = load_params(tiny_checkpoint, model, dtype="float32")
    merged = lora.merge(base, leaves, adapter)
    exported = load_params(tmp_path / "model", model)
    for ours, theirs in zip(jax.tree.leaves(merged), jax.tree.leaves(exported), strict=True):
        np.testing.assert_array_equal(np.asarray(ours, np.float32), np.asarray(theirs, np.float32))
