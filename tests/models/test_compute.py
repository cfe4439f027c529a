"""Settings of how a model runs, and what they become on a device."""

import re
from types import SimpleNamespace

import jax
import pytest
from fake_devices import TPU, gpu

from ugc_jax.errors import UserError
from ugc_jax.models.compute import Compute, ComputeConfig

CPU = SimpleNamespace(platform="cpu", device_kind="cpu")
T4 = gpu("Tesla T4", "7.5")
AMD = gpu("AMD Instinct MI300X", "gfx942")


@pytest.mark.parametrize("change", [{"dtype": "float16"}, {"remat": "all"}, {"attention": "fast"}])
def test_a_way_to_compute_that_does_not_exist(change):
    (name, value), *_ = change.items()
    with pytest.raises(UserError, match=f"{name} is '{value}'; use one of "):
        Compute(**change)


@pytest.mark.parametrize(
    ("device", "head_width", "settings", "dtype", "attention"),
    [
        (CPU, 128, {}, "float32", "xla"),
        (CPU, 128, {"dtype": "bfloat16"}, "bfloat16", "xla"),
        (TPU, 128, {}, "bfloat16", "splash"),
        (TPU, 20, {"dtype": "float32"}, "float32", "splash"),  # heads of any width
        (TPU, 128, {"attention": "xla"}, "bfloat16", "xla"),
        (gpu(), 128, {}, "bfloat16", "flash"),
        (gpu(), 16, {}, "bfloat16", "flash"),
        (gpu(), 80, {}, "bfloat16", "cudnn"),
        (gpu("NVIDIA A100-SXM4-80GB", "8.0"), 128, {}, "bfloat16", "flash"),
        (gpu("NVIDIA GeForce RTX 4090", "8.9"), 128, {}, "bfloat16", "cudnn"),
        (gpu("NVIDIA GeForce RTX 5090", "12.0"), 128, {}, "bfloat16", "cudnn"),
        (gpu(), 128, {"dtype": "float32"}, "float32", "xla"),
        (gpu(), 20, {}, "bfloat16", "xla"),
        (gpu(), 256, {}, "bfloat16", "xla"),
        (gpu(), 128, {"attention": "xla"}, "bfloat16", "xla"),
        (gpu(), 128, {"attention": "cudnn"}, "bfloat16", "cudnn"),
        (T4, 128, {}, "bfloat16", "xla"),
        (AMD, 128, {}, "bfloat16", "xla"),
    ],
)
def test_auto(device, head_width, settings, dtype, attention):
    settings = ComputeConfig(**settings)
    assert settings.resolve(device, head_width) == Compute(dtype, attention=attention)


@pytest.mark.parametrize(
    ("device", "head_width", "settings", "message"),
    [
        (CPU, 128, {"attention": "cudnn"}, "needs a GPU, and the devices are CPUs"),
        (CPU, 128, {"attention": "splash"}, "needs a TPU, and the devices are CPUs"),
        (TPU, 128, {"attention": "cudnn"}, "needs a GPU, and the devices are TPUs"),
        (gpu(), 128, {"attention": "splash"}, "needs a TPU, and the devices are GPUs"),
        (
            gpu(), 128, {"attention": "cudnn", "dtype": "float32"},
            "computes in bfloat16, and compute.dtype is float32",
        ),
        (
            gpu(), 20, {"attention": "cudnn"},
            "needs a head dimension of 8, 16, ..., 128, and the model's is 20",
        ),
        (CPU, 128, {"attention": "flash"}, "needs a GPU, and the devices are CPUs"),
        (
            gpu(), 80, {"attention": "flash"},
            "needs a head dimension of 16, 32, 64 or 128, and the model's is 80",
        ),
        (
            gpu("NVIDIA GeForce RTX 4090", "8.9"), 128, {"attention": "flash"},
            "needs compute capability 8.0, 9.0, 10.0 or 10.3, and NVIDIA GeForce RTX 4090 has 8.9",
        ),
        (
            gpu(), 128, {"attention": "flash", "dtype": "float32"},
            "computes in bfloat16, and compute.dtype is float32",
        ),
        (
            T4, 128, {"attention": "cudnn"},
            "needs compute capability 8.0 or higher, and Tesla T4 has 7.5",
        ),
        (
            AMD, 128, {"attention": "cudnn"},
            "needs compute capability 8.0 or higher, and AMD Instinct MI300X has gfx942",
        ),
    ],
)  # fmt: skip
def test_an_attention_that_the_devices_cannot_run(device, head_width, settings, message):
    full = f"compute.attention={settings['attention']} {message}; set compute.attention=auto"
    with pytest.raises(UserError, match=f"^{re.escape(full)}$"):
        ComputeConfig(**settings).resolve(device, head_width)


def test_the_devices_here_can_run_auto():
    assert jax.devices()[0].platform == "cpu"
    assert ComputeConfig(remat="dots").resolve(jax.devices()[0], 128) == Compute(remat="dots")


@pytest.mark.parametrize(("setting", "slab"), [(None, 512), (0, 0), (64, 64)])
def test_the_slab_is_the_jobs_unless_it_is_set(setting, slab):
    assert ComputeConfig(slab=setting).resolve(CPU, 128, slab=512).slab == slab


def test_a_negative_slab():
    with pytest.raises(UserError, match="slab is -1; use 0 or more"):
        ComputeConfig(slab=-1)
