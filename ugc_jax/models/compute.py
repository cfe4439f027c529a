"""Settings of how a model runs: dtype, attention kernel, rematerialisation."""

import dataclasses
import typing
from typing import Literal

from ugc_jax.errors import UserError


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
    # of the decoder: xla anywhere, splash on TPUs, cudnn on GPUs
    attention: Literal["xla", "splash", "cudnn"] = "xla"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), typing.get_args(field.type)
            if choices and value not in choices:
                raise UserError(f"{field.name} is {value!r}; use one of {', '.join(choices)}")
