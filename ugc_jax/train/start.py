"""The state that a run begins with: new from a checkpoint's weights, or where it was left."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import NamedTuple

import jax

from ugc_jax import sharding
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.errors import UserError
from ugc_jax.hf import mapping
from ugc_jax.hf.checkpoint import load_params
from ugc_jax.hf.config import load_config
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.hf.tokenizer import load_chat_tokenizer
from ugc_jax.models.qwen2_5_omni import thinker as omni
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.settings import flatten
from ugc_jax.sharding import MeshConfig
from ugc_jax.train.checkpoint import Checkpoints
from ugc_jax.train.feed import Batches
from ugc_jax.train.state import Setup, TrainState, abstract_state, create_state

logger = logging.getLogger(__name__)

# These settings decide what a checkpoint holds.
FIXED = (
    "trainable.", "lora.rank", "lora.targets", "optimizer.name", "master", "grpo.iterations",
    "grpo.minibatches", "grpo.dynamic_sampling", "grpo.resamples",
)  # fmt: skip


def join_processes():
    """Find the other processes of this run. UserError where no launcher tells of any."""
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"distributed: the other processes are not found ({str(error).splitlines()[0]}); "
            "start it with a script of launch/, or leave distributed out"
        ) from None


class Begun(NamedTuple):
    """What a run of sft or grpo begins with.

    base: directory of the weights. rows: those of a global batch that this process has to feed.
    """

    base: Path
    model: OmniConfig
    tokenizer: ChatTokenizer
    mesh: jax.sharding.Mesh
    rows: tuple[int, ...]


def begin(
    checkpoint: str, revision: str | None, mesh: MeshConfig, batch_size: int, distributed: bool
) -> Begun:
    """Find the other processes (if `distributed`), the checkpoint, and the devices.

    checkpoint, revision: as in `begin_from`. Raises UserError where one of them does not fit.
    """
    if distributed:
        join_processes()
    base = begin_from(checkpoint, revision)
    model = load_config(base)
    tokenizer = load_chat_tokenizer(base, model.tokens)
    devices = sharding.make_mesh(**dataclasses.asdict(mesh))
    return Begun(base, model, tokenizer, devices, sharding.local_rows(devices, batch_size))


def begin_from(checkpoint: str, revision: str | None = None, weights: bool = True) -> Path:
    """The directory of weights to begin with: of a checkpoint, or the model that a run exported.

    checkpoint: as `resolve_checkpoint` takes it, or the output of a run, whose folder `model` is
    its result (as exact as its loop.export_dtype). weights: whether they are needed, too. Raises
    UserError, too, for a run without it.
    """
    path = resolve_checkpoint(checkpoint, revision, weights)
    if not (path / "checkpoints").is_dir():
        return path
    if not (path / "model").is_dir():
        raise UserError(
            f"{path}: a run that has not come to its end; run it again to go on, or name a "
            "checkpoint of weights"
        )
    return path / "model"


def settings_of(config, model: OmniConfig) -> dict:
    """What is kept with every checkpoint: the run's settings, and "model", its sizes; for JSON."""
    content = dataclasses.asdict(config) | {"model": dataclasses.asdict(model)}
    return json.loads(json.dumps(content))


def start(
    base: Path,
    setup: Setup,
    checkpoints: Checkpoints,
    settings: dict,
    batches: Batches,
    seed: int = 0,
    updates: int = 1,
) -> TrainState:
    """The latest checkpoint's state, or, without one, a new one, whose frozen part is saved.

    base: directory of the weights for a new run. settings: of `settings_of`; what differs from the
    checkpoint's is told. batches: set to where the state's data stands. seed: of a new adapter.
    updates: of the optimizer in a step of the loop, by which checkpoints are numbered. Raises
    UserError if the checkpoint cannot be read, or the settings do not let it go on.
    """
    step = checkpoints.latest
    if step is None:
        shapes = mapping.abstract_params(setup.model, setup.compute.dtype)
        split = sharding.shardings(setup.mesh, shapes, omni.logical_axes(setup.model))
        state = create_state(load_params(base, setup.model, shardings=split), setup, seed)
        checkpoints.save_frozen(state)
        return state
    folder = checkpoints.folder / str(step)
    check_settings(checkpoints.config(step), settings, str(folder))
    last = setup.steps // updates
    if step > last:
        raise UserError(
            f"{folder}: the run is beyond step {last}, the last one of these settings; "
            "raise loop.steps or loop.epochs, or choose another output"
        )
    state, data = checkpoints.restore(abstract_state(setup))
    batches.set_state(data)
    logger.info("%s: going on after step %d of %d", folder, step, last)
    return state


def check_settings(before: dict, now: dict, folder: str):
    """Tell each setting that differs from the checkpoint's; UserError if training cannot go on.

    before, now: nested settings, as JSON takes them. folder: the checkpoint, in messages.
    """
    old, new = flatten(before), flatten(now)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key):
            continue
        change = f"{key} was {old.get(key)} and is {new.get(key)}"
        if key.startswith("model."):
            raise UserError(
                f"{folder}: is of another model ({change}); give the checkpoint that the run began "
                "with, or choose another output"
            )
        kept = key == "grpo.beta" and bool(old.get(key)) != bool(new.get(key))  # a reference
        if key.startswith(FIXED) or kept:
            raise UserError(
                f"{folder}: {change}, which it does not fit; set it back, or choose another output"
            )
        logger.info("going on with a change: %s", change)
