"""A checkpoint's tensors: their names in all the forms that are met, and their values on the host.

The names and shapes themselves follow from the declared tree (models/params.py).
"""

import jax
import numpy as np

from ugc_jax.errors import UserError
from ugc_jax.models.params import Tensor, locate
from ugc_jax.models.qwen2_5_omni.names import MODULES, OUTSIDE_THINKER, THINKER


def canonical_name(name: str) -> str | None:
    """Our name of a tensor stored in any form of spec 1.1; None for the other models'."""
    if name.startswith(OUTSIDE_THINKER):
        return None
    name = name.removeprefix(THINKER)
    for module, ours in MODULES.items():
        if name.startswith(module):
            return ours + name.removeprefix(module)
    return name


def module_name(name: str) -> str:
    """The name that transformers 5 gives to the module or tensor that we call `name`."""
    for module, ours in MODULES.items():
        if name.startswith(ours):
            return module + name.removeprefix(ours)
    return name


def read_tensor(params: dict, tensor: Tensor) -> np.ndarray:
    """The values of `tensor` on the host, out of a stacked or an unrolled tree.

    Shards are put together layer by layer, so that no whole stack is held on the host. Raises
    UserError if other processes hold parts of it.
    """
    array, row = locate(params, tensor)
    if not array.is_fully_addressable:
        raise UserError(
            f"{tensor.name} is spread over several processes; "
            "write Orbax there and convert that in one"
        )
    if row is None:
        return jax.device_get(array)
    out = np.empty(tensor.shape, array.dtype)
    for shard in array.addressable_shards:
        first = shard.index[0].start or 0
        if shard.replica_id == 0 and first <= row < first + len(shard.data):
            out[shard.index[1:]] = shard.data[row - first]
    return out
