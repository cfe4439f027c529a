"""ugc_jax.plan.fits: estimates beside the compiler's figures, and the commands they name."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ugc_jax import cli
from ugc_jax.models.qwen2_5_omni.config import SIZES
from ugc_jax.plan import fits

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30
# Peaks in GiB a chip of `ugc-jax plan`, by config and number of chips.
COMPILED = {
    (words.split()[1], plan["chips"]): plan["peak"] / GIB
    for words, plan in json.loads((ROOT / "docs/figures/plans.json").read_text("utf-8")).items()
    if words.startswith("--config") and plan["fits"] and plan["chips"] <= 16
    if "_20k" not in words  # `fits` estimates rows of the usual length
}
CODE = """
import json, sys
import jax
from ugc_jax import cli
from ugc_jax.models.qwen2_5_omni.config import SIZES
from ugc_jax.plan import fits
for name, chips in json.loads(sys.argv[1]):
    config, _ = cli.load_job(name.partition("_")[0]).SETTINGS.parse(["--config", name])
    size = name.partition(":")[0][-2:]
    print(fits.training_bytes(config, SIZES[size](), jax.devices()[:chips]))
"""


def test_estimates_are_those_of_the_compiler_within_their_margin():
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=16"
    run = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(list(COMPILED))],
        env=os.environ | {"XLA_FLAGS": flags}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    estimates = [int(line) / GIB for line in run.stdout.split()]
    shares = [one / peak for one, peak in zip(estimates, COMPILED.values(), strict=True)]
    print(dict(zip(COMPILED, shares, strict=True)))
    assert min(shares) > 1 / fits._MARGIN
    assert max(shares) < 1.15


def test_the_verdicts_are_those_of_the_margin():
    assert [fits.verdict(100, has) for has in (99, 100, 111, 113)] == [
        "no",
        "tight",
        "tight",
        "fits",
    ]


@pytest.mark.parametrize(("count", "memory"), [(1, 15), (3, 40), (8, 15.75)])
def test_every_command_is_a_command(count, memory):
    devices = jax.devices()[:count]
    found = fits.fits(devices, int(memory * GIB))
    works = ["caption", "sft lora", "sft", "grpo lora", "grpo"]
    assert [(fit.work, fit.size) for fit in found] == [(w, s) for s in ("3b", "7b") for w in works]
    for fit in found:
        _, job, *words = shlex.split(fit.command)
        config, _ = cli.load_job(job).SETTINGS.parse(words)
        if job != "caption":
            size = SIZES[fit.size]()
            assert config.data.batch_size == config.loop.accumulate * count
            assert fits.training_bytes(config, size, devices) == fit.needs
        if job == "grpo":
            from ugc_jax.rl.rollout import Rollout
            from ugc_jax.sharding import make_mesh

            mesh = make_mesh(devices=devices)
            setup = config.setup(size, mesh, 10)
            config.check_rows(mesh, Rollout(setup, config.rollout).mesh)


def test_captions_take_another_dtype_or_more_devices_where_one_has_too_little():
    by_memory = {}
    for memory in (10.5, 15, 25):
        fit = fits.fits(jax.devices(), int(memory * GIB))[5]
        by_memory[memory] = fit.command.partition("-7B ")[2]
    assert by_memory == {
        10.5: "--mesh.tensor 4 clip.mp4",
        15: "--mesh.tensor 4 clip.mp4",
        25: "--dtype bfloat16 clip.mp4",
    }
    tiny = fits.caption_bytes(SIZES["tiny"](), jax.devices()[:1])
    assert tiny < 0.1 * GIB
    weights = {size: fits._weights(SIZES[size](), "bfloat16") / GIB for size in ("3b", "7b")}
    assert weights == pytest.approx({"3b": 8.75, "7b": 16.6}, abs=0.1)  # docs/paper.md


@pytest.mark.parametrize("job", ["sft", "grpo"])
@pytest.mark.parametrize(("variant", "card"), [
    ("lora-24gb", 24e9), ("lora-80gb", 80e9), ("full-80gb", 80e9),
])  # fmt: skip
def test_configs_for_one_card_fit_it(job, variant, card):
    """By the estimates, with their margin; jax takes at most 95 % of a card with the setting below.

    XLA_PYTHON_CLIENT_MEM_FRACTION=.95, docs/planning.md.
    """
    config, _ = cli.load_job(job).SETTINGS.parse(["--config", f"{job}_3b:{variant}"])
    device = jax.devices()[:1]
    needs = fits.training_bytes(config, SIZES["3b"](), device)
    assert needs * fits._MARGIN <= 0.95 * card
    # It trains what its name says, and keeps the rows of a step whole.
    assert (config.lora.rank > 0) == variant.startswith("lora")
    assert config.data.batch_size % config.loop.accumulate == 0
    assert config.output.endswith("_lora") == variant.startswith("lora")
