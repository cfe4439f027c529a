"""Devices that are not here: for which attention they get, and programs made for them."""

from types import SimpleNamespace

import jax
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from ugc_jax.models import attention, layers

TPU = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
TRITON = "@__gpu$xla.gpu.triton"  # how a program for GPUs calls a Pallas kernel


def gpu(kind: str = "NVIDIA H100 80GB HBM3", capability: str = "9.0"):
    """A GPU as jax describes it."""
    return SimpleNamespace(platform="gpu", device_kind=kind, compute_capability=capability)


def lowers_for_gpus(monkeypatch):
    """Have jax lower Pallas kernels for a GPU that is not here: since 0.11 it asks for its kind."""
    try:
        from jax._src.pallas.triton import gpu_info
    except ImportError:
        return
    monkeypatch.setattr(gpu_info, "get_device_kind", lambda: gpu().device_kind)
    monkeypatch.setattr(gpu_info, "get_device_platform", lambda: "gpu")


def traced_for(device, trace, monkeypatch) -> jax.stages.Traced:
    """`trace()`, a jax.stages.Traced, on the platform of `device`."""
    for module in (attention, layers):
        monkeypatch.setattr(module, "platform", lambda: device.platform)
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)  # jax asks for it to trace
    lowers_for_gpus(monkeypatch)
    return trace()


def text_for(device, trace, monkeypatch) -> str:
    """The program of `trace()`, as given to the compiler for `device`."""
    target = {"gpu": "cuda"}.get(device.platform, device.platform)
    return traced_for(device, trace, monkeypatch).lower(lowering_platforms=(target,)).as_text()
