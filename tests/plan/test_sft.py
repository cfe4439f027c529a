"""ugc_jax.plan.sft: the plan's sums; with the TPU compiler installed, a real one."""

import dataclasses
import functools
import json
import sys

import cases
import jax
import numpy as np
import pytest
import tpu_compiler
from fake_devices import TPU, TRITON, gpu, text_for

from ugc_jax import sharding
from ugc_jax.data.batching import BucketKey
from ugc_jax.errors import UserError
from ugc_jax.jobs import plan as job
from ugc_jax.models.compute import Compute
from ugc_jax.models.qwen2_5_omni.config import omni_3b, tiny
from ugc_jax.plan import memory
from ugc_jax.plan.chips import Chip
from ugc_jax.plan.sft import plan_sft
from ugc_jax.plan.shapes import batch_shapes
from ugc_jax.settings import Schema
from ugc_jax.train.settings import SftConfig
from ugc_jax.train.state import Setup, abstract_state
from ugc_jax.train.step import jit_step, train_step

KEY = BucketKey(tokens=128, grids=2, windows=4, chunks=1)


def test_a_plan_for_the_devices_here(monkeypatch):
    mesh = sharding.make_mesh(1, 2, 1, devices=jax.devices()[:2])
    setup, batch = Setup(tiny(), mesh), batch_shapes(KEY, 4, tiny(), mesh)
    with pytest.raises(UserError, match="the memory of cpu is unknown"):
        plan_sft(setup, batch)
    monkeypatch.setattr(memory, "chip_of", lambda kind: Chip("test", 1e12, hbm=1 << 30))
    found = plan_sft(setup, batch)
    assert found.fits
    assert "of 1.00 GiB: fits" in found.table()
    smaller = found._replace(chip=Chip("test", 1e12, hbm=found.peak - 1))
    assert not smaller.fits
    assert "DOES NOT FIT" in smaller.table()
    rejected = found._replace(outputs=None, temporaries=None)  # of a rounded peak
    assert not rejected.fits
    # Weights that learn in float32 with two moments, the frozen rest in float32, over two chips.
    weights = sum(leaf.size for leaf in jax.tree.leaves(abstract_state(setup).params))
    frozen = sum(leaf.size for leaf in jax.tree.leaves(abstract_state(setup).frozen))
    media = sum(np.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(batch))
    expected = (3 * weights + frozen) * 4 / 2 + media / 2
    assert abs(found.arguments - expected) < 0.03 * expected
    assert found.peak >= found.arguments
    assert found.executed_flops == found.model_flops > 0


@pytest.mark.parametrize(
    ("device", "dtype", "cudnn", "flash", "splash"),
    [
        (gpu(), "auto", 3, 4, 0),  # cuDNN's in the encoders: of windows, of grids, of sound
        (gpu("NVIDIA L4", "8.9"), "auto", 6, 0, 0),
        (gpu(), "float32", 0, 0, 0),
        (TPU, "auto", 0, 0, 4),
        (TPU, "float32", 0, 0, 4),
    ],
)
@pytest.mark.parametrize("name", ["sft_3b", "sft_3b:lora"])
def test_a_recipe_that_names_no_device(name, device, dtype, cudnn, flash, splash, monkeypatch):
    """The step's program runs a layer forward, forward again for remat=full, and backward."""
    config, _ = Schema(SftConfig).parse([f"--config={name}", f"--compute.dtype={dtype}"])
    model = cases.fewer_layers(omni_3b())
    mesh = sharding.make_mesh(2, 2, 2)
    setup = dataclasses.replace(
        config.setup(model, mesh, steps=1),  # its compute is that of the devices here
        compute=config.compute.resolve(device, model.text.head_dim),
    )
    arguments = abstract_state(setup), batch_shapes(KEY, 4, model, mesh)
    with jax.set_mesh(mesh):
        trace = functools.partial(jit_step(train_step, setup).trace, *arguments)
        text = text_for(device, trace, monkeypatch)
    assert text.count("@__cudnn$fmhaScaleBiasSoftmax") == cudnn
    assert text.count(TRITON) == flash
    assert text.count("@tpu_custom_call") == splash


@pytest.mark.parametrize(("attention", "holds_masks"), [("cudnn", True), ("flash", False)])
def test_a_step_on_a_gpu_holds_no_mask_with_flash(attention, holds_masks, monkeypatch):
    model, mesh = cases.fewer_layers(omni_3b()), sharding.make_mesh(2, 2, 2)
    setup = Setup(model, mesh, compute=Compute("bfloat16", "full", attention=attention))
    batch = batch_shapes(KEY._replace(tokens=384), 4, model, mesh)
    with jax.set_mesh(mesh):
        trace = functools.partial(jit_step(train_step, setup).trace, abstract_state(setup), batch)
        text = text_for(gpu(), trace, monkeypatch)
    assert ("x384x384x" in text) == holds_masks
    assert text.count(TRITON) == (0 if holds_masks else 4)


def words(folder, topology="v5e:2x2"):
    return [
        "--config.checkpoint=Qwen/Qwen2.5-Omni-3B",
        f"--config.output={folder}/run",
        "--config.data.train=not/extracted",
        f"--config.topology={topology}",
    ]


@pytest.mark.skipif(tpu_compiler.has_compiler, reason="the TPU compiler is installed")
def test_without_the_compiler(tmp_path):
    config, _ = job.SETTINGS.parse(words(tmp_path))
    with pytest.raises(UserError, match=r"needs the TPU compiler.* pip install \"jax\[tpu\]"):
        job.main(config, [])


@tpu_compiler.needs_compiler
def test_with_the_compiler(tiny_checkpoint, tmp_path):
    small = ["--config.data.tokens=512", "--config.data.batch_size=4"]
    small += ["--config.clip.frames=4", "--config.clip.height=112", "--config.clip.width=112"]
    small += ["--config.clip.seconds=4", "--config.clip.text=40"]
    checkpoint = [f"--config.checkpoint={tiny_checkpoint}", f"--config.report={tmp_path}/r.json"]

    def run(*more):
        command = [sys.executable, "-m", "ugc_jax.cli", "plan"]
        return tpu_compiler.run([*command, *more])

    done = run(*words(tmp_path), *checkpoint, *small)
    assert done.returncode == 0, done.stderr
    assert "4 chips v5e" in done.stdout
    assert "attention splash (auto)" in done.stdout
    assert ": fits" in done.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["fits"]
    assert report["arguments"] < report["peak"] < 1 << 30
    assert report["row"]["tokens"] == 512
    assert report["compute"] == dataclasses.asdict(Compute("bfloat16", attention="splash"))
    done = run(*words(tmp_path, "v5e:3x5"), *checkpoint, *small)
    assert done.returncode == 2
    assert "topology v5e:3x5" in done.stderr
