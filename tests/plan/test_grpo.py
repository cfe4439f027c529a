"""The plan of GRPO: what is on a chip when, and what sharing the prompts saves."""

import dataclasses
import json
import sys

import cases
import jax
import pytest
import tpu_compiler

from ugc_jax import sharding
from ugc_jax.data.batching import BucketKey
from ugc_jax.models.qwen2_5_omni.config import omni_3b, tiny
from ugc_jax.plan import grpo as plan
from ugc_jax.plan.chips import Chip
from ugc_jax.plan.flops import program_flops, step_flops
from ugc_jax.plan.memory import Memory, shard_bytes
from ugc_jax.plan.shapes import batch_shapes
from ugc_jax.rl.options import GrpoOptions
from ugc_jax.rl.rollout import Rollout, RolloutConfig
from ugc_jax.sharding import MeshConfig
from ugc_jax.train.state import Setup, abstract_state

KEY = BucketKey(tokens=128, grids=2, windows=4, chunks=1)


def sampled(max_new_tokens):
    return dataclasses.replace(RolloutConfig().sampling, max_new_tokens=max_new_tokens)


def inputs(options=None, **rollout):
    """Arguments of `plan_grpo`, for 4 prompts of a tiny model on two devices."""
    options = options or GrpoOptions()
    mesh = sharding.make_mesh(1, 2, 1, devices=jax.devices()[:2])
    model = cases.fewer_layers(tiny())
    setup = Setup(model, mesh, reference=options.beta > 0)
    config = RolloutConfig(**{"samples": 4, "sampling": sampled(16)} | rollout)
    return setup, options, config, batch_shapes(KEY, 4, model, mesh)


NAMES = ["weights", "vision", "audio", "embed", "prefill", "decode", "reference", "update"]
MB = 1 << 20
# What the compiler would say of these programs: arguments, outputs, temporaries, peak.
SAYS = [Memory(*(MB * x for x in row)) for row in (
    (4, 3, 1, 8), (2, 1, 5, 8), (1, 2, 0, 3), (5, 7, 0, 12), (10, 4, 6, 20), (7, 0, 2, 9),
    (1, 0, 3, 4), (5, 0, 9, 14),
)]  # fmt: skip


def planned(monkeypatch, arguments, says=SAYS):
    said = iter(says)
    monkeypatch.setattr(plan, "compiled_memory", lambda *_, **__: next(said))
    monkeypatch.setattr(plan, "chip_in", lambda mesh: Chip("test", 1e12, hbm=28 * MB))
    return plan.plan_grpo(*arguments)


def test_what_lies_on_a_chip_besides(monkeypatch):
    setup, options, config, prompts = inputs(mesh=MeshConfig(data=None, fsdp=1, tensor=2))
    batch = plan.policy_shapes(setup, options, config, prompts)
    made = planned(monkeypatch, (setup, options, config, prompts))
    assert [program.name for program in made.programs] == NAMES
    state = shard_bytes((prompts, abstract_state(setup)))
    # While captions are sampled: the state and what was made so far, but for the arguments. The
    # embeddings (7) are gone when the decoding begins, and all of it (but the rows of the encoders,
    # which the batch has) when the update does.
    there = [0, 3, 3 + 1, 3 + 1 + 2, 3 + 1 + 2 + 7, 3 + 1 + 2 + 4]
    places = shard_bytes(Rollout(setup, config, options.shared_prompt).trace(prompts)[1])
    for program, more, memory in zip(made.programs, there, SAYS, strict=False):
        decodes = places if program.name == "decode" else 0
        assert program.held == state + MB * more + decodes - memory.arguments
        assert program.peak == program.held + memory.peak
    for program, memory in zip(made.programs[6:], SAYS[6:], strict=True):
        assert program.held == state + shard_bytes(batch) - memory.arguments


def test_a_plan_that_does_not_fit(monkeypatch):
    made = planned(monkeypatch, inputs())
    assert made.fits
    assert "2 chips test; GiB that each needs of its 0.03" in made.table()
    assert "it fits" in made.table()
    too_much = Memory(None, None, None, 29 * MB)
    made = planned(monkeypatch, inputs(), [*SAYS[:7], too_much])
    assert not made.fits
    assert "unknown      unknown" in made.table()
    assert made.table().count("DOES NOT FIT") == 2
    assert made.figures()["programs"][-1]["peak"] == 29 * MB
    assert not made.figures()["fits"]


def test_a_rejected_program_never_fits(monkeypatch):
    """The compiler's message rounds: "Used 15.75G of 15.75G hbm. Exceeded hbm capacity by 1.2M"."""
    made = planned(monkeypatch, inputs(), [*SAYS[:7], Memory(None, None, None, 28 * MB)])
    assert made.programs[-1].peak == made.chip.hbm
    assert not made.fits
    assert made.table().count("DOES NOT FIT") == 2


def test_operations_of_all_runs(monkeypatch):
    once = planned(monkeypatch, inputs())
    options = GrpoOptions(iterations=2, minibatches=2)
    memories = [*SAYS[:6], SAYS[6], *SAYS[6:]]
    often = planned(monkeypatch, inputs(options, parts=2, sampling=sampled(31)), memories)
    assert [program.name for program in often.programs] == [*NAMES[:6], "old", *NAMES[6:]]
    assert [program.runs for program in often.programs] == [1, 2, 2, 2, 2, 60, 1, 1, 4]
    flops = {program.name: program.flops for program in often.programs}
    assert flops["old"] == flops["reference"] > 0
    for program in once.programs[1:5]:  # two halves
        assert program.flops == pytest.approx(flops[program.name], rel=1e-3)
    assert once.programs[5].flops < flops["decode"] / 1.9
    assert all(program.executed == program.flops for program in often.programs)


def test_weights_that_need_no_move_take_no_place(monkeypatch):
    """On the training mesh, in the dtype that learns, the rollout reads the state itself."""
    monkeypatch.setattr(plan, "chip_in", lambda mesh: Chip("test", 1e12, hbm=28 * MB))
    setup, options, config, prompts = inputs()
    weights, vision, *_ = plan._sampling(setup, options, config, prompts)
    assert weights.memory.outputs > shard_bytes(abstract_state(setup)) / 5
    state = shard_bytes((prompts, abstract_state(setup)))
    assert vision.held + vision.memory.arguments < state + 1024


@pytest.mark.parametrize("shared", [True, False])
def test_the_largest_rows(shared):
    options = GrpoOptions(shared_prompt=shared, iterations=2, beta=0.0)
    setup, _, config, prompts = inputs(options)
    batch = plan.policy_shapes(setup, options, config, prompts)
    rows, size = (4, 4 * 16) if shared else (4 * 4, 16)
    assert batch.inputs.tokens.shape == (rows, 128 + size)
    assert batch.weight.shape == batch.old.shape == (rows, size)
    assert batch.reference is None
    assert [batch.media[name].shape for name in ("vision", "audio")] == [
        (rows, 2 * 4 * 16, 64),
        (rows, 50, 64),
    ]
    assert batch.inputs.media["vision"].patches.shape[:2] == (rows, 0)
    assert batch.tokens.sharding.shard_shape(batch.tokens.shape)[0] == rows / 2


def big_text(shared: bool):
    """Prompts of 2700 tokens, 8 captions of 300, the 3B's decoder with a tiny model's encoders."""
    text, small = omni_3b().text, tiny()
    model = dataclasses.replace(
        small,
        text=text,
        vision=dataclasses.replace(small.vision, out_hidden_size=text.hidden_size),
        audio=dataclasses.replace(small.audio, output_dim=text.hidden_size),
    )
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    setup, options = Setup(model, mesh), GrpoOptions(beta=0.0, shared_prompt=shared)
    config = RolloutConfig(samples=8, sampling=sampled(300))
    key = BucketKey(tokens=2700, grids=1, windows=1, chunks=1)
    return setup, options, config, batch_shapes(key, 1, model, mesh)


def test_what_sharing_a_prompt_saves():
    """A quarter of the update's operations, with the 3B's decoder; an eighth of the prefill's."""
    update, prefill = {}, {}
    for shared in (True, False):
        setup, options, config, prompts = big_text(shared)
        batch = plan.policy_shapes(setup, options, config, prompts)
        assert batch.inputs.tokens.shape == ((1, 2700 + 2400) if shared else (8, 2700 + 300))
        step = plan.policy_update(options, config)
        update[shared] = step_flops(setup, batch, step=step)
        programs = Rollout(setup, config, shared).trace(prompts)[0]
        prefill[shared] = program_flops(programs["prefill"], setup.model.costly_share)
    assert update[True] / update[False] < 0.25
    assert prefill[True] / prefill[False] == 1 / 8


@tpu_compiler.needs_compiler
def test_with_the_compiler(tiny_checkpoint, tmp_path):
    words = [
        f"checkpoint={tiny_checkpoint}", f"output={tmp_path}/run", f"report={tmp_path}/r.json",
        "topology=v5e:2x2", "data.train=not/extracted", "data.tokens=256", "data.batch_size=4",
        "clip.frames=4", "clip.height=112", "clip.width=112", "clip.seconds=4", "clip.text=40",
        "rollout.max_new_tokens=64",
        "rollout.fsdp=1", "rollout.tensor=2", "rollout.data=-1",
    ]  # fmt: skip
    command = [sys.executable, "-m", "ugc_jax.cli", "plan", *(f"--config.{word}" for word in words)]
    done = tpu_compiler.run(command)
    assert done.returncode == 0, done.stderr
    assert "4 chips v5e" in done.stdout
    assert "attention splash (auto)" in done.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["fits"]
    assert [program["name"] for program in report["programs"]] == NAMES
    assert all(0 < program["peak"] < 1 << 30 for program in report["programs"])
