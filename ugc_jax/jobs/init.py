"""Write a checkpoint with random weights and a tokenizer, so that every job runs offline."""

import dataclasses
from typing import Literal

from ugc_jax.hf.random_weights import write_random
from ugc_jax.models.qwen2_5_omni.config import SIZES
from ugc_jax.settings import Schema, check_minimum
from ugc_jax.toy import corpus


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Settings of init."""

    output: str  # directory to write
    size: Literal["tiny", "mid", "3b", "7b"] = "tiny"  # 0.9 M, 68 M, 4.7 G or 8.9 G parameters
    seed: int = 0  # of the random weights
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the stored weights
    tokenizer: str | None = None  # directory of a tokenizer to copy; none: build a small one
    overwrite: bool = False  # replace a checkpoint at `output`


SETTINGS = Schema(InitConfig)


def main(config: InitConfig, args: list[str]) -> int:
    """Write the checkpoint tensor by tensor: the 3B size needs the memory of its largest tensor."""
    check_minimum(config, seed=0)
    write_random(
        config.output,
        SIZES[config.size](),
        corpus.LINES,
        seed=config.seed,
        dtype=config.dtype,
        tokenizer=config.tokenizer,
        overwrite=config.overwrite,
    )
    return 0
