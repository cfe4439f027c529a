"""Write a small checkpoint with random weights and a tokenizer, so that every job runs offline."""

import dataclasses
import logging
from pathlib import Path
from typing import Literal

import numpy as np

from ugc_jax.errors import UserError
from ugc_jax.hf.export import TOKENIZER_FILES, copy_files, new_directory, write_thinker
from ugc_jax.hf.random_weights import random_tensor
from ugc_jax.hf.tensorfile import Output, array_output, float_dtype
from ugc_jax.hf.tokenizer import build_tokenizer, load_tokenizer, special_token_ids
from ugc_jax.models.params import Tensor, tensors
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import SIZES, OmniConfig
from ugc_jax.toy import corpus

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Settings of init."""

    output: str  # directory to write
    size: Literal["tiny", "mid", "3b"] = "tiny"  # 0.9 M, 68 M or 4.7 G parameters
    seed: int = 0  # of the random weights
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the stored weights
    tokenizer: str | None = None  # directory of a tokenizer to take instead of building a small one
    overwrite: bool = False  # replace a checkpoint at `output`


CONFIG = InitConfig


def main(config: InitConfig, args: list[str]) -> int:
    """Write the checkpoint tensor by tensor: the 3B size needs the memory of its largest tensor."""
    if config.seed < 0:
        raise UserError(f"seed is {config.seed}; use 0 or more")
    model = SIZES[config.size]()
    if config.tokenizer is not None:
        model = _with_tokenizer(model, Path(config.tokenizer))
    dtype = float_dtype(config.dtype)

    def output(tensor: Tensor) -> Output:
        return array_output(
            tensor.name, tensor.shape, dtype, lambda: random_tensor(tensor, config.seed)
        )

    with new_directory(config.output, config.overwrite) as folder:
        write_thinker(folder, model, output, source=None, dtype=config.dtype)
        if config.tokenizer is None:
            build_tokenizer(model, corpus.LINES, folder)
        else:
            copy_files(Path(config.tokenizer), folder, TOKENIZER_FILES)
    count = sum(int(np.prod(tensor.shape)) for tensor in tensors(thinker.declare(model)))
    logger.info("%s: %s, %s random parameters", config.output, config.size, f"{count:,}")
    return 0


def _with_tokenizer(model: OmniConfig, directory: Path) -> OmniConfig:
    """`model` with a tokenizer's vocabulary, rounded up to 128s so that devices can share it."""
    tokenizer = load_tokenizer(directory)
    size = -(-(max(tokenizer.get_vocab().values()) + 1) // 128) * 128
    text = dataclasses.replace(model.text, vocab_size=size)
    return dataclasses.replace(model, text=text, tokens=special_token_ids(tokenizer, directory))
