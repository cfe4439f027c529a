"""ugc_jax.jobs.grpo on the world and the tiny model: killed and resumed, told, exported."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ugc_jax.data.planning import DataConfig
from ugc_jax.errors import UserError
from ugc_jax.jobs import extract, grpo
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models.lora import LoraConfig
from ugc_jax.rl.options import GrpoOptions
from ugc_jax.rl.rewards.runner import RewardConfig
from ugc_jax.rl.rollout import RolloutConfig
from ugc_jax.rl.settings import GrpoConfig
from ugc_jax.settings import flatten
from ugc_jax.toy import world
from ugc_jax.train.optimizer import OptimizerConfig
from ugc_jax.train.settings import LoopConfig
from ugc_jax.train.state import Trainable

pytestmark = pytest.mark.usefixtures("one_device")

# `ugc-jax grpo` on the first of the devices, as in this process.
PROGRAM = """
import sys
import jax
from ugc_jax import cli, sharding

mesh = sharding.make_mesh(devices=jax.devices()[:1])
sharding.make_mesh = lambda **_: mesh
sys.exit(cli.run(["grpo", *sys.argv[1:]]))
"""

OWN = """
def vowels(prompt, completion, reference, metadata):
    return sum(letter in "aeiou" for letter in completion) / max(len(completion), 1)

REWARDS = {"vowels": vowels}
"""


SAMPLING = dataclasses.replace(RolloutConfig().sampling, max_new_tokens=8)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Eight clips of the world to train on, two others to evaluate on."""
    folder = tmp_path_factory.mktemp("world")
    for split, count in (("train", 8), ("test", 2)):
        (folder / split).mkdir()
        rows = [
            world.write_example(split, number, settings=world.WorldSettings(), folder=folder)
            for number in range(count)
        ]
        manifest = folder / f"{split}.jsonl"
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = extract.ExtractConfig(
            output=str(folder / "records" / split),
            clip=ClipSettings(fps=2.0, min_pixels=112 * 112),
            workers=1,
        )
        assert extract.main(config, [str(manifest)]) == 0
    (folder / "own.py").write_text(OWN)
    return folder


@pytest.fixture(scope="module")
def settings(records, tiny_checkpoint):
    return GrpoConfig(
        checkpoint=str(tiny_checkpoint),
        output="",
        data=DataConfig(
            train=str(records / "records" / "train"),
            eval=str(records / "records" / "test"),
            batch_size=2,
            tokens=256,
            workers=0,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant"),
        loop=LoopConfig(steps=4, log_every=1, save_every=1, export_dtype="float32"),
        grpo=GrpoOptions(mask_truncated=False, beta=0.05, iterations=2),
        rollout=RolloutConfig(samples=3, eval_prompts=2, sampling=SAMPLING),
        rewards=RewardConfig(functions="attributes=1,vowels=1", file=str(records / "own.py")),
    )


def change(settings, output, **sections):
    """The settings with another output, and other values of sections."""
    values = {
        name: dataclasses.replace(getattr(settings, name), **value)
        if isinstance(value, dict)
        else value
        for name, value in sections.items()
    }
    return dataclasses.replace(settings, output=str(output), **values)


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert grpo.main(change(settings, folder), []) == 0
    return folder


def lines(folder, name="metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def weights(folder) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def test_a_run(whole, tiny_checkpoint):
    steps = [line for line in lines(whole) if "reward" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all(step["kl"] > 0 for step in steps)  # from the second iteration on
    first = steps[0]
    assert first["token_mult_prob_error"] == pytest.approx(1, abs=1e-4)
    assert first["rewards/attributes/mean"] == 0
    assert first["rewards/vowels/mean"] > 0
    assert first["grad_norm"] > 0
    assert len(lines(whole, "completions.jsonl")) == 4 * 2 * 3
    assert len([line for line in lines(whole) if "eval_reward" in line]) == 4
    before, after = weights(tiny_checkpoint), weights(whole / "model")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("model.", "lm_head.")) for name in changed)


def test_killed_it_goes_on_bit_for_bit(whole, settings, tmp_path):
    """Killed when the first checkpoint appears, in the middle of a later step."""
    config = change(settings, tmp_path)
    words = [f"--config.{key}={value}" for key, value in flatten(config).items()]
    here = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": here}
    program = [sys.executable, "-c", PROGRAM, *words]
    with subprocess.Popen(program, env=environment, stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 120
        while not (tmp_path / "checkpoints" / "1").exists() and time.monotonic() < until:
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert grpo.main(config, []) == 0
    for name in ("completions.jsonl", "samples.jsonl"):
        assert lines(tmp_path, name) == lines(whole, name)
    ours, theirs = weights(tmp_path / "model"), weights(whole / "model")
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_it_begins_with_the_model_of_a_run(whole, settings, tmp_path):
    """And an adapter, whose reference needs no copy."""
    config = change(
        settings,
        tmp_path / "next",
        checkpoint=str(whole),
        lora=LoraConfig(rank=2),
        trainable=Trainable(decoder=False, embeddings=False),
        loop={"steps": 1},
        grpo={"iterations": 1},
    )
    assert grpo.main(config, []) == 0
    assert lines(tmp_path / "next")[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert (tmp_path / "next" / "adapter").is_dir()
    shutil.copytree(whole / "checkpoints", tmp_path / "unfinished" / "checkpoints")
    with pytest.raises(UserError, match="unfinished: a run that has not come to its end"):
        grpo.main(change(settings, tmp_path / "x", checkpoint=str(tmp_path / "unfinished")), [])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"grpo": {"iterations": 1}}, r"grpo\.iterations was 2 and is 1"),
        ({"grpo": {"beta": 0.0}}, r"grpo\.beta was 0\.05 and is 0\.0"),
        ({"loop": {"steps": 3}}, "the run is beyond step 3"),
        ({"data": {"seed": 5}}, "of other data or in another order"),
    ],
)
def test_changes_that_a_checkpoint_does_not_fit(whole, settings, sections, message):
    with pytest.raises(UserError, match=message):
        grpo.main(change(settings, whole, **sections), [])
