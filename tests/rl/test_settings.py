"""ugc_jax.rl.settings: the defaults of GRPO, and mistakes told before anything is loaded."""

import jax
import pytest

from ugc_jax.errors import UserError
from ugc_jax.models.lora import LoraConfig
from ugc_jax.models.qwen2_5_omni.config import tiny
from ugc_jax.rl.options import GrpoOptions
from ugc_jax.rl.rollout import RolloutConfig
from ugc_jax.rl.settings import GRPO_SHORT, GrpoConfig
from ugc_jax.settings import Schema
from ugc_jax.sharding import make_mesh
from ugc_jax.train.settings import LoopConfig
from ugc_jax.train.state import Trainable

SCHEMA = Schema(GrpoConfig, short=GRPO_SHORT)
NEEDED = ["--config.checkpoint=c", "--config.output=o", "--config.data.train=t"]


def config(*words):
    return SCHEMA.parse([*NEEDED, *words])[0]


def test_defaults():
    one = config()
    assert one.optimizer.learning_rate == 1e-6
    assert one.optimizer.schedule == "constant"
    assert one.loop.log_every == 1
    assert not hasattr(one, "packing")
    assert one.further_batches == 0
    assert config("--config.grpo.dynamic_sampling=true").further_batches == one.grpo.resamples


def test_help_has_every_section_and_no_packing():
    text = SCHEMA.help_text()
    for name in ("grpo.clip_high", "samples", "functions", "rollout.eval_prompts"):
        assert f"  --{name} " in text
    assert "packing" not in text
    assert "sample captions" not in text


def test_steps_are_counted_in_updates():
    mesh = make_mesh(devices=jax.devices()[:1])
    one = config("--config.grpo.iterations=2", "--config.grpo.minibatches=3")
    setup = one.setup(tiny(), mesh, steps=5)
    assert setup.steps == 30
    assert setup.reference
    assert not config("--config.grpo.beta=0").setup(tiny(), mesh, 5).reference


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.rollout.samples=1"], r"rollout\.samples is 1; use 2 or more"),
        (
            ["--config.grpo.overlong=600"],
            r"grpo\.overlong is 600, more than rollout\.sampling\.max_new_tok",
        ),
        (["--config.loop.eval_prompts=0"], r"rollout\.eval_prompts is 0; use 1 or more"),
        (["--config.data.packing=true"], r"data\.packing: unknown setting"),
    ],
)
def test_mistakes_are_told(words, message):
    with pytest.raises(UserError, match=message) as told:
        config(*words)
    assert "\n" not in str(told.value)


def test_an_adapter_has_a_reference_that_stays():
    sections = dict(
        lora=LoraConfig(rank=2), trainable=Trainable(decoder=False, embeddings=False),
        data=config().data,
    )  # fmt: skip
    GrpoConfig(checkpoint="c", output="o", **sections)
    with pytest.raises(UserError, match=r"grpo\.reference_sync: an adapter's reference"):
        GrpoConfig(checkpoint="c", output="o", grpo=GrpoOptions(reference_sync=2), **sections)


@pytest.mark.parametrize(
    ("batch", "sections", "message"),
    [
        (8, {}, None),
        (16, {"grpo": GrpoOptions(minibatches=2), "loop": LoopConfig(accumulate=2)}, None),
        (8, {"rollout": RolloutConfig(parts=2)}, None),
        (
            6,
            {},
            r"is 6, not a multiple of grpo\.minibatches 1 times loop\.accumulate 1 times the 4 ",
        ),
        (8, {"grpo": GrpoOptions(minibatches=3)}, r"grpo\.minibatches 3 times"),
        (8, {"rollout": RolloutConfig(parts=4)}, r"rollout\.parts 4 times the 4 devices"),
    ],
)
def test_batches_that_cannot_be_shared_out(batch, sections, message):
    data = config(f"--config.data.batch_size={batch}").data
    one = GrpoConfig(checkpoint="c", output="o", data=data, **sections)
    mesh = make_mesh(2, 2, 2)
    if message is None:
        one.check_rows(mesh, mesh)
        return
    with pytest.raises(UserError, match=message) as told:
        one.check_rows(mesh, mesh)
    assert "\n" not in str(told.value)
