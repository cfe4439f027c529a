"""launch/accelerator_check.sh: on this CPU with the tiny model; the arithmetic of its tables."""

import argparse
import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from fake_devices import gpu

from ugc_jax.generate import decode
from ugc_jax.models import attention
from ugc_jax.models.compute import Compute
from ugc_jax.models.params import abstract_params
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import tiny
from ugc_jax.plan.traffic import step_bytes

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
CHECK = runpy.run_path(str(LAUNCH / "accelerator_check.py"))
# The compiler's effort does not matter here.
FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def run(folder: Path, *sections: str) -> tuple[dict, str]:
    """Run sections by the script; returns table.json and table.md."""
    env = os.environ | {"PYTHON": sys.executable, "XLA_FLAGS": FAST, "OMP_NUM_THREADS": "2"}
    command = ["bash", str(LAUNCH / "accelerator_check.sh"), "--size", "tiny", "--sections"]
    done = subprocess.run(
        [*command, *sections, "--output", str(folder)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = (folder / "table.md").read_text()
    assert text in done.stdout
    return json.loads((folder / "table.json").read_text()), text


# ---- end to end ----------------------------------------------------------------------------------


def test_generation(tmp_path):
    table, text = run(tmp_path, "generation")
    assert not [row for rows in table.values() for row in rows if "error" in row]
    assert {"card", "driver", "jax", "date", "measured", "bound and peak", "model"} <= set(
        table["facts"]
    )
    assert table["facts"]["jax"].startswith(jax.__version__)
    assert "not in the table of cards" in table["facts"]["bound and peak"]

    names = [row["name"].partition(",")[0] for row in table["prefill"]]
    assert names == ["vision", "audio", "prefill", "together"]
    *parts, together = table["prefill"]
    assert together["seconds"] == pytest.approx(sum(row["seconds"] for row in parts))
    assert together["flops"] == pytest.approx(sum(row["flops"] for row in parts))
    # Of one peak: operations over seconds over share.
    peaks = [row["flops"] / row["seconds"] / row["share"] for row in table["prefill"]]
    assert peaks == pytest.approx([peaks[0]] * 4)

    config, work = tiny(), CHECK["WORK"]["tiny"]
    params = abstract_params(thinker.declare(config), "bfloat16", stacked=False)
    bandwidths = []
    for size, row in zip(work.batches, table["decode"], strict=True):
        assert row["name"] == f"B = {size}"
        assert row["tokens_per_second"] == pytest.approx(1e3 * size / row["ms"])
        state = jax.eval_shape(
            lambda size=size: decode.empty_state(
                config, Compute("bfloat16"), size, 1, 128, work.new_tokens, False, False
            )
        )
        least, most = step_bytes(params, state, 0, 0), step_bytes(params, state)
        assert least < row["bytes"] < most <= row["program_bytes"]
        bandwidths.append(row["bytes"] / row["share"] / (row["ms"] / 1e3))
        assert row["counted"] == "a profile"
        assert row["kernels"] > config.text.num_hidden_layers
        assert row["largest"][0]["ms"] >= row["largest"][1]["ms"]
        assert f"| B = {size} | {row['ms']:.2f} |" in text
    assert bandwidths == pytest.approx([bandwidths[0]] * len(bandwidths))


@pytest.mark.parametrize(
    ("section", "parts"), [("grpo", [": sampling", ": update", ": all"]), ("sft", [""])]
)
def test_training(section, parts, tmp_path):
    table, _ = run(tmp_path, section)
    rows = table["training"]
    what = {"grpo": "GRPO, 2 prompts x 2 x 16", "sft": "SFT, 1 packed rows of 256"}[section]
    assert [row["name"] for row in rows] == [
        f"{what}, {kind}, xla, remat dots{part}" for kind in ("LoRA", "full") for part in parts
    ]
    assert all(row["seconds"] > 0 for row in rows)
    if section == "grpo":
        for sampling, update, both in (rows[:3], rows[3:]):
            assert both["seconds"] == pytest.approx(sampling["seconds"] + update["seconds"])
            assert update["flops"] > 0
    else:
        assert all(row["share"] > 0 for row in rows)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_training_that_memory_does_not_suffice_for(on_gpu, tmp_path, monkeypatch):
    """It is measured again with remat=full; what fails otherwise, or without remat, is not."""
    if on_gpu:
        monkeypatch.setattr(jax, "devices", lambda: [gpu("NVIDIA GeForce RTX 4090", "8.9")])
    check, tried = CHECK["Check"](CHECK["Records"](tmp_path), "tiny", 60), []

    def measure(check, training):
        tried.append(str(training))
        with check.measure("training", str(training)):
            if training.remat != "full":
                memory = training.full or training.remat == "none"
                raise RuntimeError("RESOURCE_EXHAUSTED: 2 GB" if memory else "another error")

    CHECK["measure_training"](check, measure)
    kernel = "cudnn" if on_gpu else "xla"
    expected = ["LoRA, {}, remat dots", "full, {}, remat dots", "full, {}, remat full"]
    expected += ["LoRA, {}, remat none"] if on_gpu else []
    assert tried == [one.format(kernel) for one in expected]


def test_attention(tmp_path, monkeypatch):
    """On this CPU with the kernels that it has, and with one that is wrong."""
    records = CHECK["Records"](tmp_path)
    check = CHECK["Check"](records, "tiny", 60)
    CHECK["attention"](check)
    packed, shared = (records.all()[i] for i in (1, 3))
    assert packed["name"] == "xla, 1 packed rows of 256"
    assert shared["name"] == "xla, 2 prompts of 128 with 2 x 16"
    for row in (packed, shared):
        assert row["times_xla"] == pytest.approx(1, abs=0.1)
        assert 1e-4 < row["error"] < 0.05
        assert row["both_ms"] > 0
    right = attention.causal_attention

    def wrong(q, k, v, segments, kernel, shared_prompt):
        out = right(q, k, v, segments, "xla", shared_prompt)
        return 0.8 * out if kernel == "flash" else out

    monkeypatch.setattr(attention, "causal_attention", wrong)
    monkeypatch.setitem(CHECK["attention"].__globals__, "attentions", lambda _: ("flash",))
    CHECK["attention"](check)
    assert records.all()[-1]["name"].startswith("flash, ")
    assert records.all()[-1]["times_xla"] > 10


@pytest.mark.parametrize(
    ("device", "kernels"),
    [(gpu(), ("flash", "cudnn")), (gpu("NVIDIA GeForce RTX 4090", "8.9"), ("cudnn",))],
)
def test_a_gpu_trains_with_the_kernels_that_it_can_run(device, kernels, monkeypatch, tmp_path):
    check = CHECK["Check"](CHECK["Records"](tmp_path), "3b", 60)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert CHECK["attentions"](check) == kernels
    first, second, third, *others = map(str, CHECK["trainings"](check))
    assert first == f"LoRA, {kernels[0]}, remat dots"
    assert second == f"full, {kernels[0]}, remat dots"
    assert third == f"LoRA, {kernels[0]}, remat none"
    assert others == [f"LoRA, {kernel}, remat dots" for kernel in kernels[1:]]


def test_transformers_beside_it(tmp_path):
    table, _ = run(tmp_path, "transformers")
    (row,) = table["transformers"]
    assert "B = 2" in row["name"]
    assert row["prefill_seconds"] > 0


def test_transformers_where_torch_sees_no_device(tmp_path):
    records = CHECK["Records"](tmp_path)
    records.add("facts", "platform", value="tpu")
    CHECK["transformers"](CHECK["Check"](records, "tiny", 60))
    assert records.all()[-1]["error"] == "torch sees no TPU"


def test_no_python_to_run_with(tmp_path):
    shutil.copytree(LAUNCH, tmp_path / "launch")
    (tmp_path / "bin").mkdir()
    for name in ("bash", "dirname", "cat"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    env = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    done = subprocess.run(
        [shutil.which("bash"), str(tmp_path / "launch/accelerator_check.sh")],
        env=env | {"PATH": str(tmp_path / "bin")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no Python with the package's needs was found" in done.stderr
    assert "pip install -e" in done.stderr


# ---- time and failures ---------------------------------------------------------------------------


def test_a_section_that_takes_longer_than_its_share_is_stopped(tmp_path):
    records = CHECK["Records"](tmp_path)
    records.add("decode", "B = 1", ms=2.0)
    arguments = argparse.Namespace(size="tiny", output=tmp_path)
    start = time.monotonic()
    assert not CHECK["_child"](arguments, "generation", 0.5, records, str(tmp_path))
    assert time.monotonic() - start < 20
    kept, stopped = records.all()[0], records.all()[-1]
    assert kept["ms"] == 2.0  # what it had
    assert "its share of the time" in stopped["error"]


def test_a_failure_is_a_line_and_the_others_go_on(tmp_path):
    records = CHECK["Records"](tmp_path)
    check = CHECK["Check"](records, "tiny", 60)
    with check.measure("decode", "B = 32"):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")
    with check.measure("decode", "B = 64"):
        raise ValueError("a reason\nand more")
    with check.measure("decode", "B = 1") as figures:
        figures["ms"] = 4.0
    text = (tmp_path / "table.md").read_text()
    assert "- B = 32: out of memory\n- B = 64: ValueError: a reason\n" in text
    assert "| B = 1 | 4.00 | - |" in text


def test_no_measurement_begins_that_the_time_is_too_short_for(tmp_path):
    records = CHECK["Records"](tmp_path)
    check = CHECK["Check"](records, "tiny", 0.5)
    for size in (1, 8):
        with check.measure("decode", f"B = {size}") as figures:
            check.require_time()
            time.sleep(0.4)
            figures["ms"] = 1.0
    assert [row.get("error") for row in records.all()] == [None, "left out, as the time is up"]


def test_shares_of_the_time():
    deadlines = CHECK["deadlines"]
    ends = deadlines(list(CHECK["SECTIONS"]), 480.0)
    assert list(ends) == list(CHECK["SECTIONS"])
    assert ends["generation"] == pytest.approx(192)
    assert ends["transformers"] == pytest.approx(480)
    assert deadlines(["sft", "grpo"], 70.0) == pytest.approx({"grpo": 35.0, "sft": 70.0})


# ---- tables --------------------------------------------------------------------------------------


def test_tables():
    records = [
        {"section": "facts", "name": "card", "value": "NVIDIA H200"},
        {"section": "prefill", "name": "vision, 3 clips", "seconds": 0.05, "flops": 2.5e13,
         "share": 0.5, "compile_seconds": 4.4},
        {"section": "decode", "name": "B = 8", "ms": 2.0, "tokens_per_second": 4000.0,
         "bytes": 7.2e9, "share": 0.75, "kernels": 400.0, "copies": 3.0, "copy_ms": 0.125,
         "counted": "a profile", "compile_seconds": 11.0},
        {"section": "transformers", "name": "left out", "error": "torch sees no GPU"},
    ]  # fmt: skip
    text = CHECK["markdown"](records)
    assert "- card: NVIDIA H200" in text
    assert "| B = 8 | 2.00 | 4,000 | 7.20 | 75 % | 400 | 3 | 0.12 | a profile | 11 |" in text
    assert "| vision, 3 clips | 0.050 | 25.00 | 50 % | 4 |" in text
    assert text.index("## Decoding") < text.index("## Encoders and prefill")
    assert text.endswith("## transformers\n\n- left out: torch sees no GPU\n")
    assert "## Training" not in text
    table = CHECK["as_json"](records)
    assert table["facts"] == {"card": "NVIDIA H200"}
    assert table["decode"][0]["bytes"] == 7.2e9


def test_weights_are_random_and_keep_activations_at_their_size():
    config = tiny()
    params = CHECK["random_params"](config, "bfloat16", stacked=True)
    shapes = abstract_params(thinker.declare(config), "bfloat16")
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )
    head = params["lm_head"]["weight"].astype("float32")
    assert head.std() == pytest.approx(config.text.hidden_size**-0.5, rel=0.05)
    assert params["model"]["embed_tokens"]["weight"].astype("float32").std() == pytest.approx(
        0.02, rel=0.05
    )
    assert (params["model"]["norm"]["weight"] == 1).all()
