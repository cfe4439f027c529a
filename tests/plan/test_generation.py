"""Plans of caption and serve: by hand, as commands on CPUs, and by the TPU compiler."""

import functools
import importlib.util
import json
import subprocess
import sys

import jax
import pytest

from ugc_jax import sharding
from ugc_jax.data.batching import BucketKey
from ugc_jax.errors import UserError
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.jobs import plan as job
from ugc_jax.models.compute import Compute
from ugc_jax.models.qwen2_5_omni.config import omni_3b
from ugc_jax.plan import generation, memory
from ugc_jax.plan.chips import Chip, chip_of
from ugc_jax.plan.generation import Prompts, abstract_weights, plan_generation
from ugc_jax.plan.memory import Memory, shard_bytes

V5E = chip_of("TPU v5 lite")
SMALL = [
    "--typical.frames=4", "--typical.height=112", "--typical.width=112", "--typical.seconds=4",
    "--typical.text=40", "--max_new_tokens=16",
]  # fmt: skip
has_compiler = importlib.util.find_spec("libtpu") is not None


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
    assert (four.chips, four.slots, four.group) == (4, 64, 8)
    assert four.slot == pytest.approx(plan.slot, rel=0.01)


@pytest.fixture
def described(monkeypatch):
    """Slices are made of this machine's CPUs; each has 64 MiB, 100 GB/s and a TFLOP/s."""

    def chip(hbm: float = 64):
        test = Chip("test", 1e12, int(hbm * (1 << 20)), bandwidth=1e11, link=1e10)
        monkeypatch.setattr(memory, "chip_of", lambda kind: test)

    def devices(topology):
        sizes = [int(size) for size in topology.partition(":")[2].split("x")]
        return jax.devices()[: sizes[0] * sizes[1]]

    monkeypatch.setattr(job, "topology_devices", devices)
    monkeypatch.setattr(memory, "topology_devices", devices)
    monkeypatch.setattr(job, "local_devices", jax.devices)
    monkeypatch.setattr(memory, "local_devices", jax.devices)
    chip()
    return chip


def run(capsys, *words) -> tuple[int, list[str]]:
    config, arguments = job.SETTINGS.parse([str(word) for word in words])
    status = job.main(config, arguments)
    return status, capsys.readouterr().out.splitlines()


def test_captions_on_this_machine(described, tiny_checkpoint, tmp_path, capsys):
    """The programs as this machine's compiler makes them; a step reads weights and caches."""
    words = ["--job", "caption", "--checkpoint", tiny_checkpoint, *SMALL, "--caption_tokens", 8]
    words += ["--report", tmp_path / "r.json", "--batch_size", 4]
    status, lines = run(capsys, *words)
    assert status == 0
    assert "1 chip test" in lines[1]
    assert any("4 slots of 256 + 16 tokens" in line and "it fits" in line for line in lines)
    made = json.loads((tmp_path / "r.json").read_text())
    names = [one["name"] for one in made["programs"]]
    assert names == ["vision", "audio", "embed", "prefill", "decode"]
    decode = made["programs"][-1]["floors"]
    assert made["least"] / 1e11 <= decode["memory"] < 10 * made["least"] / 1e11
    assert made["tokens_per_second"] == pytest.approx(4 / decode["step"])
    prefill = sum(one["floors"]["step"] for one in made["programs"][:-1]) / made["group"]
    assert made["prefill_seconds"] == pytest.approx(prefill)
    assert made["clips_per_hour"] == pytest.approx(3600 / (prefill + 7 * decode["step"] / 4))


def test_what_is_tried_where_captions_do_not_fit(described, tiny_checkpoint, capsys):
    described(hbm=3)
    words = ["--job", "caption", "--checkpoint", tiny_checkpoint, *SMALL, "--batch_size", 8]
    status, lines = run(capsys, *words, "--topology", "test:1x1", "--json")
    made = json.loads("\n".join(lines))
    assert (status, made["fits"]) == (1, False)
    assert [one["setting"] for one in made["knobs"]] == [
        "compute.dtype=bfloat16", "compute.weights=int8", "compute.cache=int8",
        "compute.weights=int8 compute.cache=int8", "engine.batch_size=4",
        "mesh.tensor=2 topology=test:1x2",
    ]  # fmt: skip
    peaks = [one["peak"] for one in made["knobs"]]
    assert max(peaks) < made["peak"]
    assert [one["chips"] for one in made["knobs"]] == [1, 1, 1, 1, 1, 2]


def test_a_sweep_of_captions(described, tiny_checkpoint, capsys):
    words = ["--job", "serve", "--checkpoint", tiny_checkpoint, *SMALL, "--limits.new_tokens", 16]
    status, lines = run(capsys, *words, "--sweep", "test:1x1,test:2x2/data=2,test:1x2/tensor=2")
    assert status == 0
    cells = [line.split() for line in lines[1:]]
    assert [row[:2] for row in cells] == [
        ["test:1x1", "1"], ["test:2x2/data=2", "2"], ["test:1x2/tensor=2", "2"],
    ]  # fmt: skip
    assert int(cells[1][2]) <= 2 * int(cells[0][2])


def test_which_job_is_planned():
    def kind(*words):
        return type(job.SETTINGS.parse(list(words))[0]).__name__

    assert kind("--job", "caption", "--topology", "v5e:1x1") == "CaptionPlanConfig"
    assert kind("--config", "caption_upstream:greedy") == "CaptionPlanConfig"
    assert kind("--job", "serve", "--batch_size", "8") == "ServePlanConfig"
    assert kind("--limits.new_tokens", "8") == "ServePlanConfig"
    assert kind("--config", "sft_3b", "--batch_size", "8") == "SftPlanConfig"
    with pytest.raises(UserError, match="sft_3b.py: data.* unknown setting"):
        job.SETTINGS.parse(["--job", "caption", "--config", "sft_3b"])
    with pytest.raises(UserError, match=r"job: expected sft\|grpo\|caption\|serve.*'captions'"):
        job.SETTINGS.parse(["--job", "captions", "--config", "sft_3b"])


def test_a_clip_that_leaves_no_positions():
    config, _ = job.SETTINGS.parse(["--job=caption", "--typical.text=32000", "--topology=v5e:1x1"])
    with pytest.raises(UserError, match="typical: takes .* plan for a smaller clip"):
        config.typical.prompt(omni_3b(), 2048)


# In a process of its own: the compiler's library sets up the whole process for TPUs.
@pytest.mark.skipif(not has_compiler, reason="the TPU compiler (libtpu) is not installed")
def test_with_the_compiler(tiny_checkpoint):
    command = [sys.executable, "-m", "ugc_jax.cli", "plan", "--job", "caption", *SMALL, "--json"]
    command += ["--topology", "v5e:1x1", "--checkpoint", str(tiny_checkpoint), "--batch_size", "4"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert (made["chip"]["name"], made["fits"], made["slots"]) == ("v5e", True, 4)
    assert made["compute"]["attention"] == "splash"
    step = made["programs"][-1]["memory"]["work"]["memory"]
    assert made["least"] <= 1.005 * step
