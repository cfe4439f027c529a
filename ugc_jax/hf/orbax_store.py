"""Parameters as an Orbax checkpoint beside config.json and the tokenizer, for sharded storage."""

from pathlib import Path

import jax
import numpy as np

from ugc_jax.errors import UserError
from ugc_jax.hf import mapping
from ugc_jax.models.params import Leaf, build_tree, get_leaf, leaves
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import OmniConfig

FOLDER = "params"


def is_store(directory: Path) -> bool:
    """Whether `directory` holds parameters written by `save`."""
    return (directory / FOLDER / "_METADATA").exists()


def save(params: dict, directory: Path):
    """Write a stacked parameter tree under `directory`, each process its own shards."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((directory / FOLDER).absolute(), params)


def load(
    directory: Path, config: OmniConfig, dtype: np.dtype | None, stacked: bool, shardings: dict
) -> dict:
    """Read what `save` wrote.

    dtype: None keeps the stored one. shardings: of the tree asked for, stacked or not.
    Raises UserError if the stored arrays are not those of `config`.
    """
    import orbax.checkpoint as ocp

    path = (directory / FOLDER).absolute()
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.metadata(path).item_metadata.tree
        stored = {
            tuple(key.key for key in keys): item
            for keys, item in jax.tree_util.tree_leaves_with_path(tree)
        }
        expected = leaves(thinker.declare(config))
        _check(stored, expected, path)
        one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        targets = []
        for leaf in expected:
            sharding = get_leaf(shardings, leaf.path) if stacked else one_device
            target = jax.ShapeDtypeStruct(
                leaf.shape, dtype or stored[leaf.path].dtype, sharding=sharding
            )
            targets.append((leaf.path, target))
        params = checkpointer.restore(path, build_tree(targets))
    if stacked:
        return params
    items = (
        (leaf.path, mapping.read_tensor(params, leaf.tensors[0]))
        for leaf in leaves(thinker.declare(config), stacked=False)
    )
    return jax.device_put(build_tree(items), shardings)


def _check(stored: dict, expected: list[Leaf], path: Path):
    """Raise UserError unless the stored arrays are exactly those expected."""
    for leaf in expected:
        name = ".".join(map(str, leaf.path))
        if leaf.path not in stored:
            raise UserError(f"{path}: array {name} is missing; convert the checkpoint again")
        shape = stored[leaf.path].shape
        if tuple(shape) != leaf.shape:
            raise UserError(
                f"{path}: array {name} has shape {list(shape)}, "
                f"but config.json asks for {list(leaf.shape)}; they do not belong together"
            )
    for unknown in sorted(set(stored) - {leaf.path for leaf in expected}):
        name = ".".join(map(str, unknown))
        raise UserError(f"{path}: unknown array {name}; is this a Qwen2.5-Omni thinker?")
