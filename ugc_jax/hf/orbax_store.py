"""Parameters as an Orbax checkpoint beside config.json and the tokenizer, for sharded storage."""

from pathlib import Path

import jax
import numpy as np

from ugc_jax.hf import mapping
from ugc_jax.models.params import build_tree, get_leaf, leaves
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import OmniConfig

FOLDER = "params"


def is_store(directory: Path) -> bool:
    """Return whether `directory` holds parameters that `write_params` wrote."""
    return (directory / FOLDER / "_METADATA").exists()


def write_params(params: dict, directory: Path):
    """Write a stacked parameter tree under `directory`; each process writes its own shards."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((directory / FOLDER).absolute(), params)


def read_dtypes(directory: Path) -> set[np.dtype]:
    """Return the dtypes of the parameters that `write_params` wrote."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.metadata((directory / FOLDER).absolute()).item_metadata.tree
    return {np.dtype(item.dtype) for item in jax.tree.leaves(tree)}


def read_params(
    directory: Path, config: OmniConfig, dtype: np.dtype | None, stacked: bool, shardings: dict
) -> dict:
    """Return the parameter tree that `write_params` wrote.

    dtype: None keeps the stored one. stacked, shardings: of the returned tree.
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
        names = {
            ".".join(keys): (path, ".".join(keys), item.shape) for keys, item in stored.items()
        }
        mapping.check_tensors(names, {".".join(leaf.path): leaf.shape for leaf in expected}, path)
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
