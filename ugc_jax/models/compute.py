"""Settings of how a model runs: dtype, attention kernel, rematerialisation."""

import dataclasses
import typing
from typing import TYPE_CHECKING, Literal

from ugc_jax.errors import UserError
from ugc_jax.settings import check_minimum

if TYPE_CHECKING:
    import jax

ON_GPUS = "cudnn", "flash"  # attention that runs on GPUs, and with it our kernels for decoding
FLASH_WIDTHS = 16, 32, 64, 128  # head widths: powers of 2 whose blocks a processor's memory holds
# Compute capabilities whose processors have the 130 KiB of shared memory that flash's blocks take:
# data center GPUs (A100, H100, H200, B200, ...). Others, such as 8.9, have 99 KiB.
FLASH_CAPABILITIES = "8.0", "9.0", "10.0", "10.3"


@dataclasses.dataclass(frozen=True)
class Compute:
    """How the model runs.

    Norm statistics, softmax, rotary angles and log-probabilities are float32 in any dtype.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations and matrix products
    # what the backward pass computes again: none, full (each layer), dots (all but the results of
    # linears and of attention by splash or flash)
    remat: Literal["none", "full", "dots"] = "none"
    slab: int = 0  # tokens (patches, sound positions) that a tower works on at a time; 0: all
    # of the decoder: xla anywhere, splash on TPUs, cudnn or flash on GPUs (with kernels of our own
    # for decoding, and cudnn's in the encoders)
    attention: Literal["xla", "splash", "cudnn", "flash"] = "xla"
    # of the matrices and of the keys and values that a decode step reads (models/int8.py); auto:
    # dtype
    weights: Literal["auto", "int8"] = "auto"
    cache: Literal["auto", "int8"] = "auto"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), typing.get_args(field.type)
            if choices and value not in choices:
                raise UserError(f"{field.name} is {value!r}; use one of {', '.join(choices)}")


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How the model runs."""

    # of activations and matrix products (auto: bfloat16 on TPUs and GPUs, float32 on CPUs)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    # what the backward pass computes again: none, full (each layer), dots (all but the results of
    # linears and of attention by splash or flash), auto (in training, the least that fits)
    remat: Literal["none", "full", "dots", "auto"] = "none"
    # tokens that an encoder works on at a time, which bounds its memory; 0: all (default: what the
    # job and the devices need)
    slab: int | None = None
    # kernel of the decoder's attention (auto: in bfloat16 flash on data center GPUs and cudnn on
    # others, splash on TPUs, else xla; flash: our own, without cudnn's mask of tokens x tokens)
    attention: Literal["auto", "xla", "splash", "cudnn", "flash"] = "auto"
    # of the decoder's matrices, to generate (auto: dtype; int8: half of the memory of bfloat16)
    weights: Literal["auto", "int8"] = "auto"
    # of the keys and values of tokens so far, to generate (auto: dtype; int8: half of the memory)
    cache: Literal["auto", "int8"] = "auto"
    # folder for compiled programs, which further runs load (auto: one below ~/.cache/ugc_jax; off:
    # none)
    compilation_cache: str = "auto"

    def __post_init__(self):
        check_minimum(self, slab=0)

    def resolve(self, device: "jax.Device", head_width: int, slab: int = 0) -> Compute:
        """Return how a model runs on devices like `device`; head_width: of its decoder's attention.

        slab: the job's choice, if this section has none. Raises UserError for an attention that
        these devices cannot run.
        """
        dtype, attention = self.dtype, self.attention
        if dtype == "auto":
            dtype = "float32" if device.platform == "cpu" else "bfloat16"
        if attention == "auto":
            kernels = {"tpu": ("splash",), "gpu": ("flash", "cudnn")}.get(device.platform, ())
            fitting = (one for one in kernels if not _obstacle(one, device, head_width, dtype))
            attention = next(fitting, "xla")
        elif obstacle := _obstacle(attention, device, head_width, dtype):
            raise UserError(f"compute.attention={attention} {obstacle}; set compute.attention=auto")
        slab = slab if self.slab is None else self.slab
        # Without a plan (plan/remat.py), what takes least memory.
        remat = "full" if self.remat == "auto" else self.remat
        return Compute(dtype, remat, slab, attention, self.weights, self.cache)

    def check_no_int8(self, who: str):
        """Raise UserError for weights or caches in int8, which are to generate with.

        who: what cannot use them, such as "training".
        """
        for name in ("weights", "cache"):
            if getattr(self, name) == "int8":
                raise UserError(
                    f"compute.{name}=int8 is for generation, and {who} has no use for it; set "
                    f"compute.{name}=auto"
                )


def wrong_platform(attention: str, platform: str) -> str | None:
    """Return what else an attention needs than "cpu", "gpu" or "tpu"; None if it runs there.

    The text goes on a sentence that begins with the attention.
    """
    needed = {"splash": "tpu", "cudnn": "gpu", "flash": "gpu"}.get(attention, platform)
    if needed == platform:
        return None
    return f"needs a {needed.upper()}, and the devices are {platform.upper()}s"


def _obstacle(attention: str, device: "jax.Device", head_width: int, dtype: str) -> str | None:
    """As `wrong_platform`, with all that is known of the devices and the model.

    jax finds no GPU without cuDNN, and splash attention takes any head dimension.
    """
    if attention not in ON_GPUS or device.platform != "gpu":
        return wrong_platform(attention, device.platform)
    capability = str(device.compute_capability)  # of an AMD GPU, which has no cuDNN, a name
    generation = capability.partition(".")[0]
    if not generation.isdecimal() or int(generation) < 8:
        return f"needs compute capability 8.0 or higher, and {device.device_kind} has {capability}"
    if attention == "flash" and capability not in FLASH_CAPABILITIES:
        *some, last = FLASH_CAPABILITIES
        return (
            f"needs compute capability {', '.join(some)} or {last}, and {device.device_kind} has "
            f"{capability}"
        )
    if attention == "flash" and head_width not in FLASH_WIDTHS:
        *some, last = map(str, FLASH_WIDTHS)
        widths = f"{', '.join(some)} or {last}"
        return f"needs a head dimension of {widths}, and the model's is {head_width}"
    if attention == "cudnn" and (head_width % 8 or head_width > 128):
        return f"needs a head dimension of 8, 16, ..., 128, and the model's is {head_width}"
    if dtype != "bfloat16":
        return f"computes in bfloat16, and compute.dtype is {dtype}"
    return None
