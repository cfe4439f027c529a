"""Settings of how a model runs: dtype, attention kernel, rematerialisation."""

import dataclasses
import typing
from typing import Literal

from ugc_jax.errors import UserError
from ugc_jax.settings import check_minimum


@dataclasses.dataclass(frozen=True)
class Compute:
    """How the model runs.

    Norm statistics, softmax, rotary angles and log-probabilities are float32 in any dtype.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations and matrix products
    # what the backward pass computes again: none, full (each layer), dots (all but the products
    # with weights and splash attention)
    remat: Literal["none", "full", "dots"] = "none"
    slab: int = 0  # tokens (patches, sound positions) that a tower works on at a time; 0: all
    # of the decoder: xla anywhere, splash on TPUs, cudnn on GPUs; auto: see `attention.choose`
    attention: Literal["auto", "xla", "splash", "cudnn"] = "xla"

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
    # what the backward pass computes again: none, full (each layer), dots (all but the products
    # with weights and splash attention)
    remat: Literal["none", "full", "dots"] = "none"
    # tokens that an encoder works on at a time, which bounds its memory; 0: all (default: what the
    # job and the devices need)
    slab: int | None = None
    # kernel of the decoder's attention (auto: splash on TPUs, cudnn on GPUs in bfloat16, else xla)
    attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"

    def __post_init__(self):
        check_minimum(self, slab=0)

    def resolve(self, platform: str, slab: int = 0) -> Compute:
        """Return how the model runs on `platform`: "cpu", "gpu" or "tpu".

        slab: the job's choice, if this has none. The attention stays "auto" if it is: its choice
        depends on the shapes, too. Raises UserError for an attention that cannot run there.
        """
        dtype = self.dtype
        if dtype == "auto":
            dtype = "float32" if platform == "cpu" else "bfloat16"
        check_attention(self.attention, platform, dtype)
        return Compute(dtype, self.remat, slab if self.slab is None else self.slab, self.attention)


def check_attention(attention: str, platform: str, dtype: str):
    """Raise UserError if `attention` of these settings cannot run on `platform` in `dtype`."""
    needed = {"splash": "tpu", "cudnn": "gpu"}.get(attention, platform)
    if needed != platform:
        raise UserError(
            f"compute.attention={attention} needs a {needed.upper()}, and the devices are "
            f"{platform.upper()}s; set compute.attention=auto"
        )
    if attention == "cudnn" and dtype != "bfloat16":
        raise UserError(
            f"compute.attention=cudnn computes in bfloat16, and compute.dtype is {dtype}; "
            "set compute.dtype=bfloat16 or compute.attention=auto"
        )
