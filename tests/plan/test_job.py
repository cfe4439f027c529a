"""The job `plan`, end to end on this machine's CPUs: devices here, slices, knobs, sweeps, JSON."""

import json

import jax
import pytest

from ugc_jax.errors import UserError
from ugc_jax.jobs import plan as job
from ugc_jax.models.qwen2_5_omni.config import omni_3b
from ugc_jax.plan import memory, sft
from ugc_jax.plan.chips import Chip
from ugc_jax.plan.memory import Memory

SMALL = [
    "--typical.frames=4", "--typical.height=112", "--typical.width=112", "--typical.seconds=4",
    "--typical.text=40",
]  # fmt: skip
CAPTION = ["--job", "caption", *SMALL, "--max_new_tokens=16"]


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
    words = [*CAPTION, "--checkpoint", tiny_checkpoint, "--caption_tokens", 8]
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
    words = [*CAPTION, "--checkpoint", tiny_checkpoint, "--batch_size", 8]
    status, lines = run(capsys, *words, "--topology", "test:1x1", "--json")
    made = json.loads("\n".join(lines))
    assert (status, made["fits"]) == (1, False)
    assert [one["setting"] for one in made["knobs"]] == [
        "compute.dtype=bfloat16", "compute.weights=int8", "compute.cache=int8",
        "compute.weights=int8 compute.cache=int8", "engine.batch_size=4",
        "mesh.tensor=2 topology=test:2x2",
    ]  # fmt: skip
    peaks = [one["peak"] for one in made["knobs"]]
    assert max(peaks) < made["peak"]
    assert [one["chips"] for one in made["knobs"]] == [1, 1, 1, 1, 1, 2]


def test_a_sweep_of_captions(described, tiny_checkpoint, capsys):
    words = ["--job", "serve", *SMALL, "--checkpoint", tiny_checkpoint, "--limits.new_tokens", 16]
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


TRAINING = ["--config", "sft_3b", *SMALL, "--train", "not/extracted", "--data.tokens", 256]


def test_training_on_this_machine(described, tiny_checkpoint, tmp_path, capsys, caplog):
    """Compiled for the devices here, with the least recomputation that fits."""
    described(hbm=1024)
    words = [*TRAINING, "--checkpoint", tiny_checkpoint, "--batch_size", 8, "--remat", "auto"]
    words += ["--report", tmp_path / "r.json", "--typical.clips", 80]
    with caplog.at_level("INFO", logger="ugc_jax"):
        status, lines = run(capsys, *words)
    assert status == 0
    assert "compute.remat=auto: none needs" in caplog.text
    assert lines[0].endswith("attention xla (auto); remat none (auto)")
    assert lines[1] == "8 chips test; each needs"
    made = json.loads((tmp_path / "r.json").read_text())
    assert (made["fits"], made["chips"], made["compute"]["remat"]) == (True, 8, "none")
    assert made["model_flops"] == made["executed_flops"]
    assert made["floors"]["products"] == pytest.approx(made["model_flops"] / 8e12)
    kinds = {one["kind"] for one in made["work"]["sends"]}
    assert {"all-gather", "all-reduce"} <= kinds


@pytest.fixture
def no_compiler(monkeypatch):
    """A compiler that rejects each program; it says that it needs what all its arguments take."""

    def says(program, *_, **__):
        arrays = jax.tree.leaves(program.in_avals)
        return Memory(None, None, None, sum(one.size * one.dtype.itemsize for one in arrays))

    monkeypatch.setattr(sft, "compiled_memory", says)


def test_what_is_tried_where_training_does_not_fit(described, no_compiler, tiny_checkpoint, capsys):
    described(hbm=1)
    words = [*TRAINING, "--checkpoint", tiny_checkpoint, "--topology", "test:1x2"]
    words += ["--batch_size", 4, "--remat", "dots", "--master", "bfloat16", "--json"]
    status, lines = run(capsys, *words)
    made = json.loads("\n".join(lines))
    assert (status, made["fits"], made["outputs"]) == (1, False, None)
    assert [one["setting"] for one in made["knobs"]] == [
        "compute.remat=full", "loop.accumulate=2", "optimizer.mu_dtype=bfloat16",
        "optimizer.name=adafactor",
    ]  # fmt: skip
    needs = [one["peak"] for one in made["knobs"]]
    assert needs[0] == needs[1] == made["peak"]
    assert needs[2] > needs[3]
    assert needs[2] < made["peak"]
    status, lines = run(capsys, *words[:-1], "--knobs=false")
    assert "DOES NOT FIT" in "\n".join(lines)
    assert not any(line.startswith("  with") for line in lines)


def test_a_sweep_of_training(described, no_compiler, tiny_checkpoint, capsys):
    """Rows are made enough for the mesh; `data` copies the weights, which fsdp splits."""
    words = [*TRAINING, "--checkpoint", tiny_checkpoint, "--batch_size", 2]
    slices = "test:1x2,test:2x2/data=2,test:2x2,test:2x4/tensor=2/fsdp=2/data=-1"
    status, lines = run(capsys, *words, "--sweep", slices, "--json")
    made = json.loads("\n".join(lines))
    assert status == 1  # as the compiler rejects all
    assert [(one["slice"], one["chips"], one["rows"]) for one in made] == [
        ("test:1x2", 2, 2), ("test:2x2/data=2", 4, 4), ("test:2x2", 4, 4),
        ("test:2x4/tensor=2/fsdp=2/data=-1", 8, 4),
    ]  # fmt: skip
    two, copied, four, _ = (one["arguments"] for one in made)
    assert copied == pytest.approx(two, rel=0.02)
    assert two / 2 < four < 0.65 * two  # a row of the batch is whole on each chip
    _, lines = run(capsys, *words, "--sweep", "test:1x2/data=2")
    assert lines[0].split()[:3] == ["slice", "chips", "rows"]
    assert lines[1].split()[:3] == ["test:1x2/data=2", "2", "2"]
    with pytest.raises(UserError, match="write TOPOLOGY/data=N/fsdp=N/tensor=N"):
        run(capsys, *words, "--sweep", "test:1x2/rows=2")
    with pytest.raises(UserError, match="topology and sweep are both set"):
        run(capsys, *words, "--sweep", "test:1x2", "--topology", "test:1x2")
