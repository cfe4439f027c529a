"""Random weights under the names of a checkpoint, as `init` writes them."""

import math
import zlib

import numpy as np

from ugc_jax.models.params import Tensor
from ugc_jax.models.qwen2_5_omni.names import LOOKED_UP


def random_tensor(tensor: Tensor, seed: int) -> np.ndarray:
    """f32 values of one tensor, whatever the order of calls.

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
