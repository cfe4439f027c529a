"""The end of a run: the trained model as checkpoints that `caption` and transformers load.

OUTPUT/model/     the thinker, an adapter merged into its weights, with the tokenizer
OUTPUT/adapter/   the adapter alone, in peft's format, if there is one
"""

import contextlib
import functools
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from etils import epath
from jax.experimental import multihost_utils

from ugc_jax.hf import orbax_store
from ugc_jax.hf.adapter import save_adapter
from ugc_jax.hf.card import own_text, write_card
from ugc_jax.hf.checkpoint import Checkpoint, load_params
from ugc_jax.hf.export import save_thinker
from ugc_jax.hf.tensorfile import FLOATS
from ugc_jax.hf.trained import Trained
from ugc_jax.models.params import param_shardings
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.train.checkpoint import is_remote
from ugc_jax.train.state import Setup, TrainState, merged_params

logger = logging.getLogger(__name__)


def export(state: TrainState, setup: Setup, output: str, base: Path, dtype: str, trained: Trained):
    """Write both; all processes call it, the first one writes. Existing folders are replaced.

    base: directory of the checkpoint that training started from, for config.json and the tokenizer.
    dtype: of the model's weights, "float32" or "bfloat16". An adapter is merged in float32, into
      the weights as `base` stores them, and the sum is cast once.
    trained: written beside the weights, and the model card that is made of it.
    Raises UserError if the disk refuses.
    """
    merge = functools.partial(merged_params, setup=setup, dtype=dtype)
    stored = _finer(base, setup) if setup.lora.rank or dtype == "float32" else None
    origin = trained.training.get("base", {}).get("model") or str(base)
    with jax.set_mesh(setup.mesh):
        merged = jax.jit(merge)(state, stored=stored)
    del stored
    merged, adapter = _on_host(merged), _on_host(state.params if setup.lora.rank else {})
    if jax.process_index() == 0:
        with _local(epath.Path(output) / "model") as folder:
            own = own_text(folder)
            save_thinker(merged, setup.model, folder, base, dtype, overwrite=True, trained=trained)
            write_card(folder, own=own)
        logger.info("%s/model: the trained model", output)
        if setup.lora.rank:
            with _local(epath.Path(output) / "adapter") as folder:
                own = own_text(folder)
                save_adapter(adapter, setup.model, setup.lora, folder, origin, True, trained)
                write_card(folder, own=own)
            logger.info("%s/adapter: the adapter alone", output)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("exported")


def _finer(base: Path, setup: Setup) -> dict | None:
    """The weights of `base` in float32, if the compute dtype rounds them; None if it does not."""
    dtype = jnp.dtype(setup.compute.dtype)
    if dtype == jnp.float32:
        return None
    if orbax_store.is_store(base):
        dtypes = orbax_store.read_dtypes(base)
    else:
        dtypes = {FLOATS[header.code] for _, header in Checkpoint(base).tensors.values()}
    if dtypes == {dtype}:
        return None
    split = param_shardings(thinker.declare(setup.model), setup.mesh)
    return load_params(base, setup.model, "float32", shardings=split)


def _on_host(tree):
    """The tree with whole arrays: of one process unchanged, else gathered from all processes."""
    if jax.process_count() == 1:
        return tree
    cpu = jax.local_devices(backend="cpu")[0]
    return jax.tree.map(
        lambda leaf: jax.device_put(multihost_utils.process_allgather(leaf, tiled=True), cpu), tree
    )


@contextlib.contextmanager
def _local(target: epath.Path) -> Iterator[Path]:
    """A local folder to write to: `target`, or a temporary one that is then copied to it."""
    if not is_remote(target):
        yield Path(target)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / target.name
        yield folder
        target.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            epath.Path(path).copy(target / path.name, overwrite=True)
