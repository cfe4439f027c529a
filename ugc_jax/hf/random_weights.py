"""Random weights under the names of a checkpoint, as `init` writes them."""

import math
import zlib

import numpy as np

from ugc_jax.hf import mapping


def random_tensor(entry: mapping.Entry, seed: int) -> np.ndarray:
    """f32 values of one tensor, whatever the order of calls.

    Norm weights are 1. Embeddings and biases are normal with deviation 0.02, other weights with
    1 / sqrt(inputs), so that activations keep their size at any width. Biases are not zero, so that
    a model which forgets one is caught.
    """
    *_, module, kind = entry.path
    if kind == "weight" and len(entry.shape) == 1:
        return np.ones(entry.shape, np.float32)
    rng = np.random.default_rng([seed, zlib.crc32(entry.hf_name.encode())])
    small = kind == "bias" or module in ("embed_tokens", "audio_bos_eos_token")
    deviation = 0.02 if small else math.prod(entry.shape[1:]) ** -0.5
    return rng.standard_normal(entry.shape, np.float32) * np.float32(deviation)
