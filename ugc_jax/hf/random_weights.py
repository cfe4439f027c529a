"""Random weights under the names of a checkpoint, and a whole checkpoint of them."""

import dataclasses
import logging
import math
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ugc_jax.hf.export import TOKENIZER_FILES, copy_files, new_directory, write_thinker
from ugc_jax.hf.tensorfile import Output, array_output, float_dtype
from ugc_jax.hf.tokenizer import build_tokenizer, load_tokenizer, special_token_ids
from ugc_jax.models.params import Tensor, tensors
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.models.qwen2_5_omni.names import LOOKED_UP

logger = logging.getLogger(__name__)


def random_tensor(tensor: Tensor, seed: int) -> np.ndarray:
    """Return the f32 values of one tensor, which do not depend on the order of calls.

    Norm weights are 1. Embeddings and biases are normal with deviation 0.02, other weights with
    1 / sqrt(inputs), so that activations keep their size at any width. Biases are not zero, so that
    a model which forgets one is caught.
    """
    kind = tensor.path[-1]
    if kind == "weight" and len(tensor.shape) == 1:
        return np.ones(tensor.shape, np.float32)
    rng = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
    small = kind == "bias" or tensor.name in LOOKED_UP
    deviation = 0.02 if small else math.prod(tensor.shape[1:]) ** -0.5
    return rng.standard_normal(tensor.shape, np.float32) * np.float32(deviation)


def write_random(
    out_dir: str | Path,
    config: OmniConfig,
    corpus: Iterable[str],
    *,
    seed: int = 0,
    dtype: str = "float32",
    tokenizer: str | Path | None = None,
    overwrite: bool = False,
):
    """Write a thinker-only checkpoint with random weights, tensor by tensor, and a tokenizer.

    corpus: lines that the tokenizer is built from. dtype: "float32" or "bfloat16", of the weights.
    tokenizer: directory of a tokenizer to copy instead of building one; the vocabulary of `config`
      becomes that tokenizer's, rounded up to a multiple of 128 so that devices can share it.
    Needs the memory of the largest tensor. Raises UserError if out_dir is not empty and `overwrite`
    is false, and for a tokenizer that cannot be used.
    """
    if tokenizer is not None:
        existing = load_tokenizer(tokenizer)
        size = -(-(max(existing.get_vocab().values()) + 1) // 128) * 128
        text = dataclasses.replace(config.text, vocab_size=size)
        ids = special_token_ids(existing, tokenizer)
        config = dataclasses.replace(config, text=text, tokens=ids)
    stored = float_dtype(dtype)

    def output(tensor: Tensor) -> Output:
        return array_output(tensor.name, tensor.shape, stored, lambda: random_tensor(tensor, seed))

    with new_directory(out_dir, overwrite) as folder:
        write_thinker(folder, config, output, source=None, dtype=dtype)
        if tokenizer is None:
            build_tokenizer(config, corpus, folder)
        else:
            copy_files(Path(tokenizer), folder, TOKENIZER_FILES)
    count = sum(math.prod(tensor.shape) for tensor in tensors(thinker.declare(config)))
    logger.info("%s: %s random parameters", out_dir, f"{count:,}")
