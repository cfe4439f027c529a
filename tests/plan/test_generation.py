"""Plans of caption and serve: against sums by hand, and by the TPU compiler."""

import functools
import json
import sys

import jax
import pytest
import tpu_compiler

from ugc_jax import sharding
from ugc_jax.data.batching import BucketKey
from ugc_jax.generate import engine
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.generate.weights import abstract_weights
from ugc_jax.models.compute import Compute
from ugc_jax.models.qwen2_5_omni.config import omni_3b
from ugc_jax.plan import generation
from ugc_jax.plan.chips import chip_of
from ugc_jax.plan.generation import Prompts, plan_generation
from ugc_jax.plan.memory import Memory, shard_bytes

V5E = chip_of("TPU v5 lite")
SMALL = [
    "--typical.frames=4", "--typical.height=112", "--typical.width=112", "--typical.seconds=4",
    "--typical.text=40", "--max_new_tokens=16",
]  # fmt: skip


def published(**changes) -> Prompts:
    """Clips of 32 frames and 24 s, captions of at most 512 tokens, of 256 on average."""
    sampling = SamplingConfig(max_new_tokens=512).resolve()
    return Prompts(BucketKey(3072, 16, 8, 12), 3072, sampling, 256, 1000)._replace(**changes)


@pytest.fixture
def no_compiler(monkeypatch):
    """A v5e chip, whose compiler says nothing but that each program needs a GiB."""
    monkeypatch.setattr(generation, "chip_in", lambda mesh: V5E)
    said = Memory(0, 0, 0, 1 << 30)
    monkeypatch.setattr(generation, "compiled_memory", lambda *_, **__: said)
    of_tpu = functools.partial(abstract_weights, platform="tpu")
    monkeypatch.setattr(generation, "abstract_weights", of_tpu)
    # The devices are CPUs, for which the engine takes less at a time.
    monkeypatch.setitem(engine.MOST_PLACES, "cpu", engine.MOST_PLACES["accelerator"])
    together = lambda mesh: 8192 * sharding.round_up_rows(mesh, 1)  # noqa: E731
    monkeypatch.setattr(generation, "prefill_tokens", together)


def plan_3b(compute=None, prompts=None, slots=None, devices=1):
    mesh = sharding.make_mesh(devices, 1, 1, devices=jax.devices()[:devices])
    return plan_generation(
        omni_3b(), compute or Compute("bfloat16"), mesh, prompts or published(), slots
    )


def test_floors_by_hand(no_compiler):
    """Within 5 % of the weights and caches over 819 GB/s, and of the products over 197 TFLOP/s."""
    plan = plan_3b()
    L, D, F, H, K, width, V = 36, 2048, 11008, 16, 2, 128, 151936
    layer = 2 * D * H * width + 2 * D * K * width + 3 * D * F
    token = 2 * L * K * width * 2  # bytes of keys and values
    assert plan.slot == pytest.approx(token * (3072 + 512), rel=0.01)
    assert plan.slots == 28  # docs/performance.md: half of what the weights leave
    weights = 2 * (L * layer + V * D)
    step = (weights + plan.slots * token * (3072 + 512)) / 819e9
    assert plan.decode.floors.memory == pytest.approx(step, rel=0.05)
    assert plan.decode.floors.bound == "memory"
    assert plan.tokens_per_second == pytest.approx(28 / step, rel=0.05)
    seconds = {one.name: one.floors.products for one in plan.programs}
    assert plan.group == 2
    T = 3072
    attention = L * 4 * T * T / 2 * H * width
    prefill = 2 * (2 * T * L * layer + attention + 2 * V * D)
    assert seconds["prefill"] == pytest.approx(prefill / 197e12, rel=0.05)
    # 16 pairs of frames of 8 windows of 64 patches; 4 of 32 layers attend to a whole pair.
    P, E, M = 16 * 8 * 64, 1280, 3420
    vision = P * 2 * 32 * (4 * E * E + 3 * E * M) + 4 * P * E * (28 * 64 + 4 * 8 * 64)
    vision += P * 2 * 1176 * E + P / 4 * 2 * (5120 * 5120 + 5120 * D)
    assert seconds["vision"] == pytest.approx(2 * vision / 197e12, rel=0.05)
    # 12 chunks of 200 frames: two convolutions, 100 positions in 32 layers, 50 tokens.
    A = 1280
    audio = 12 * (200 * 2 * 3 * 128 * A + 100 * 2 * 3 * A * A + 50 * 2 * A * D)
    audio += 12 * 100 * (2 * 32 * 12 * A * A + 32 * 4 * 100 * A)
    assert seconds["audio"] == pytest.approx(2 * audio / 197e12, rel=0.05)
    assert plan.clip_seconds == pytest.approx(
        sum(list(seconds.values())[:-1]) / 2 + 255 * step / 28, rel=0.05
    )


def test_slots_that_fit(no_compiler):
    """What is left beside the program that needs most, over the bytes of a slot; int8 halves it."""
    plan = plan_3b()
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    weights = shard_bytes(abstract_weights(omni_3b(), Compute("bfloat16"), mesh, "tpu"))
    assert plan.weights == weights
    assert plan.peak > weights + 28 * plan.slot
    assert plan.peak + (plan.most - 28) * plan.slot <= V5E.hbm
    assert plan.peak + (plan.most - 27) * plan.slot > V5E.hbm
    less = plan_3b(Compute("bfloat16", weights="int8", cache="int8"))
    assert less.slots == 64  # of at most 75, the engine takes 64
    assert less.weights < weights - 2.9e9
    assert less.slot == pytest.approx(plan.slot / 2, rel=0.05)
    fewer = plan_3b(slots=8)
    assert (fewer.slots, fewer.most) == (8, pytest.approx(plan.most, abs=1))
    # Several devices, each with a copy of the weights and its slots.
    four = plan_3b(devices=4)
    assert (four.chips, four.slots, four.group) == (4, 64, 12)
    assert four.slot == pytest.approx(plan.slot, rel=0.01)


@tpu_compiler.needs_compiler
def test_with_the_compiler(tiny_checkpoint):
    command = [sys.executable, "-m", "ugc_jax.cli", "plan", "--job", "caption", *SMALL, "--json"]
    command += ["--topology", "v5e:1x1", "--checkpoint", str(tiny_checkpoint), "--batch_size", "4"]
    done = tpu_compiler.run(command)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert (made["chip"]["name"], made["fits"], made["slots"]) == ("v5e", True, 4)
    assert made["compute"]["attention"] == "splash"
    step = made["programs"][-1]["memory"]["work"]["memory"]
    assert made["least"] <= 1.005 * step
