"""A checkpoint's tensors: their names in all forms of spec 1.1, and their values on the host.

Our names and the shapes follow from the declared tree (models/params.py).
"""

from pathlib import Path

import jax
import numpy as np

from ugc_jax.errors import UserError
from ugc_jax.models.params import Shape, Tensor, locate
from ugc_jax.models.qwen2_5_omni.names import MODULES, OUTSIDE_THINKER, THINKER


def canonical_name(name: str) -> str | None:
    """Return our name of a tensor stored in any form of spec 1.1; None if outside the thinker."""
    if name.startswith(OUTSIDE_THINKER):
        return None
    name = name.removeprefix(THINKER)
    for module, ours in MODULES.items():
        if name.startswith(module):
            return ours + name.removeprefix(module)
    return name


def module_name(name: str) -> str:
    """Return transformers 5's name of the module or tensor that we call `name`."""
    for module, ours in MODULES.items():
        if name.startswith(ours):
            return module + name.removeprefix(ours)
    return name


def check_tensors(
    stored: dict[str, tuple[Path, str, Shape]], expected: dict[str, Shape], where: Path
):
    """Raise UserError unless the stored tensors have exactly the expected names and shapes.

    stored: {our name: (its file, its name there, its shape)}. where: names the checkpoint.
    """
    for name, (path, label, _) in stored.items():
        if name not in expected:
            raise UserError(
                f"{path}: unknown tensor {label}; this is not (only) a Qwen2.5-Omni thinker"
            )
    missing = [name for name in expected if name not in stored]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"{where}: tensor {missing[0]} is missing{more}; copy the checkpoint again")
    for name, expected_shape in expected.items():
        path, label, shape = stored[name]
        if tuple(shape) != expected_shape:
            raise UserError(
                f"{path}: tensor {label} has shape {list(shape)}, but config.json asks for "
                f"{list(expected_shape)}; they do not belong together"
            )


def read_tensor(params: dict, tensor: Tensor) -> np.ndarray:
    """Return the values of `tensor` on the host, from a stacked or an unrolled tree.

    Shards are joined layer by layer, so that the host never holds a whole stack. Raises UserError
    if other processes hold shards of it.
    """
    array, row = locate(params, tensor)
    if not array.is_fully_addressable:
        raise UserError(
            f"{tensor.name} is sharded over several processes; "
            "write Orbax there and convert that in one process"
        )
    if row is None:
        return jax.device_get(array)
    out = np.empty(tensor.shape, array.dtype)
    for shard in array.addressable_shards:
        first = shard.index[0].start or 0
        if shard.replica_id == 0 and first <= row < first + len(shard.data):
            out[shard.index[1:]] = shard.data[row - first]
    return out
