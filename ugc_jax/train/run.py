"""A training run from its initial weights to its exported model, shared by sft and grpo.

together       the other processes, and the watch over them -> Together
open_run       weights, tokenizer, mesh            -> OpenRun
(the job)      data and steps                      -> loop.Work
continue_data  ... from where an earlier run with the same output stopped
train          create or restore the state, run the loop, export
"""

import contextlib
import dataclasses
import json
import logging
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import jax

from ugc_jax import sharding
from ugc_jax.compilation import keep_compiled
from ugc_jax.data.pipeline import BatchIterator
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.errors import EnvironmentFailure, UnreadableFile, UserError
from ugc_jax.hf.checkpoint import load_params
from ugc_jax.hf.config import load_config
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.hf.tokenizer import load_chat_tokenizer
from ugc_jax.hf.trained import Trained
from ugc_jax.models.compute import Compute
from ugc_jax.models.params import param_shardings
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.settings import flatten
from ugc_jax.train.checkpoint import Checkpoints, read_position
from ugc_jax.train.export import export
from ugc_jax.train.lineage import lineage
from ugc_jax.train.loop import Loop, Work
from ugc_jax.train.optimizer import learning_rates
from ugc_jax.train.phases import Phases
from ugc_jax.train.settings import LoopConfig, TrainConfig
from ugc_jax.train.state import TrainState, abstract_state, create_state
from ugc_jax.train.stopping import Stopped, stopped_at_once
from ugc_jax.watch.hub import RESTART
from ugc_jax.watch.join import join_processes
from ugc_jax.watch.member import Member

logger = logging.getLogger(__name__)

SILENCE = 90.0  # most seconds without a word of a process: jax aborts at 100


class Together(NamedTuple):
    """This process of a run. watch: None if it is the only one."""

    phases: Phases
    watch: Member | None


@contextlib.contextmanager
def together(config: TrainConfig) -> Iterator[Together]:
    """Find the other processes, if `config.distributed`, and stay with them in the block.

    If one of them is lost, hangs or fails, all end, each with a line that says which (watch/): with
    status 75 if another start may succeed, with that of the failure for a user's mistake. Then, and
    after an exception, this process ends here. Raises UserError if no launcher names any processes.
    """
    with Phases(config.loop.hang_seconds) as phases:
        if not config.distributed:
            yield Together(phases, None)
            return
        watch = join_processes(phases.position, min(config.loop.hang_seconds, SILENCE))
        try:
            yield Together(phases, watch)
        except BaseException as error:
            _fail(watch, phases, error)
        watch.finish()


def _fail(watch: Member, phases: Phases, error: BaseException) -> NoReturn:
    """Tell all processes of an exception, and end this one."""
    text, status, trace = " ".join(str(error).split()), RESTART, None
    if isinstance(error, KeyboardInterrupt):
        text, status = "interrupted", 128 + signal.SIGINT
    elif isinstance(error, UserError) and not isinstance(error, UnreadableFile):
        status = 2
    elif not isinstance(error, UserError | EnvironmentFailure):
        # Also of a collective operation, because another process was lost: of several types.
        text, trace = f"{type(error).__name__}: {text}", error
    what = phases.failed or phases.position().what
    watch.fail(f"{text:.1000}", what, status, trace)


class OpenRun(NamedTuple):
    """A run before its data are read.

    weights: directory of the initial weights. rows: those of a global batch that this process
    feeds.
    """

    config: TrainConfig
    weights: Path
    model: OmniConfig
    tokenizer: ChatTokenizer
    mesh: jax.sharding.Mesh
    rows: tuple[int, ...]


def open_run(config: TrainConfig) -> OpenRun:
    """Find the checkpoint and the devices, in the block of `together`.

    Raises UserError if one of them is missing or does not fit the settings.
    """
    weights = resolve_weights(config.checkpoint, config.revision)
    model = load_config(weights)
    tokenizer = load_chat_tokenizer(weights, model.tokens)
    mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
    keep_compiled(config.compute.compilation_cache, mesh.devices.flat[0])
    rows = sharding.local_rows(mesh, config.data.batch_size)
    abstract_state(config.setup(model, mesh, 1))  # refuses what does not fit before data are read
    return OpenRun(config, weights, model, tokenizer, mesh, rows)


def resolve_weights(checkpoint: str, revision: str | None = None, weights: bool = True) -> Path:
    """Return the directory of the initial weights: of a checkpoint, or a run's exported model.

    checkpoint: as `resolve_checkpoint` takes it, or the output of a run, whose folder `model` has
    its trained weights (in its loop.export_dtype). weights: False: the config and tokenizer are
    enough. Raises UserError as `resolve_checkpoint`, and for a run that has exported no model.
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


def continue_data(run: OpenRun, batches: BatchIterator):
    """Set a run's data iterator to the position in its latest checkpoint, if it has one.

    Before the steps are counted, as their number may depend on where the run stopped before
    (`planning.make_plan`). Raises UserError as `BatchIterator.set_state`.
    """
    if (position := read_position(run.config.output)) is not None:
        data, stored = position
        batches.set_state(data, _length(stored))


def _length(settings: dict) -> tuple[int | None, float]:
    """Return (steps, epochs) of stored settings."""
    loop = flatten(settings)
    return loop.get("loop.steps"), loop.get("loop.epochs", LoopConfig.epochs)


def train(
    run: OpenRun,
    work: Work,
    trained: Trained,
    process: Together,
    peak_flops: float | None = None,
) -> int:
    """Train to the last step and export; resumes an earlier run with the same output.

    trained: exported with the model. process: of `together`. peak_flops: operations a second of all
    devices, for MFU.
    Returns the exit status: 0, or after a signal 143 or 130. Raises UserError as
    `create_or_restore`, `Loop.run` and `export`.
    """
    config, settings = run.config, stored_settings(run.config, run.model)
    logger.info("%s", _describe(run.mesh, work.setup.compute))
    with Checkpoints(config.output, config.loop.keep, *work.best_metric) as checkpoints:
        state = create_or_restore(run, work, checkpoints, settings)
        loop = Loop(
            work, config.loop, config.output, checkpoints, settings, peak_flops, process.phases
        )
        if process.watch is not None:
            process.watch.at_end.append(loop.interrupted)
        state, status = loop.run(state)
        if status == 0 and config.loop.export == "best":
            del state  # frees its memory for the next one
            state, _ = checkpoints.restore(abstract_state(work.setup), checkpoints.best)
    if status == 0:
        dtype = config.loop.export_dtype
        try:
            trained = trained._replace(training=lineage(config, run.weights))
            with process.phases("export"), stopped_at_once():
                export(state, work.setup, config.output, run.weights, dtype, trained)
        except Stopped:
            logger.info("stopped before the model was exported; run again to export it")
            return 128 + signal.SIGTERM
        finally:
            loop.export_ended()
    return status


def _describe(mesh: jax.sharding.Mesh, compute: Compute) -> str:
    """Return in a line what the model runs on, and how; "auto" is resolved by now."""
    split = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    devices = f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}"
    return (
        f"{devices}{f' ({split})' if split else ''}: {compute.dtype}, "
        f"attention {compute.attention}, remat {compute.remat}"
    )


def create_or_restore(
    run: OpenRun, work: Work, checkpoints: Checkpoints, settings: dict
) -> TrainState:
    """Return the latest checkpoint's state, or, without one, a new one, whose frozen part it saves.

    settings: of `stored_settings`; differences from the checkpoint's are logged. The work's data
    iterator is set to the checkpoint's position. Raises UserError if the checkpoint cannot be read
    or does not fit the settings.
    """
    step, setup = checkpoints.latest, work.setup
    if step is None:
        split = param_shardings(thinker.declare(setup.model), setup.mesh)
        params = load_params(run.weights, setup.model, shardings=split)
        state = create_state(params, setup, run.config.loop.seed)
        checkpoints.save_frozen(state)
        return state
    folder, config = checkpoints.folder / str(step), run.config
    stored = checkpoints.config(step)
    check_settings(stored, settings, str(folder), config.FIXED, config.FIXED_ZERO)
    last = setup.steps // work.updates
    if step > last:
        raise UserError(
            f"{folder}: the run is beyond step {last}, the last one of these settings; "
            "raise loop.steps or loop.epochs, or choose another output"
        )
    state, data = checkpoints.restore(abstract_state(setup))
    work.batches.set_state(data, _length(stored))
    logger.info("%s: going on after step %d of %d", folder, step, last)
    if _length(stored) != _length(settings) and step < last:
        optimizer = setup.optimizer
        if optimizer.warmup or optimizer.schedule != "constant":
            rate = float(learning_rates(optimizer, setup.steps)(step * work.updates))
            logger.warning(
                "the learning rate follows the schedule of a run of %d steps from here on: it is "
                "%.3g at step %d (optimizer.schedule=%s)",
                last, rate, step + 1, optimizer.schedule,
            )  # fmt: skip
    return state


def stored_settings(config, model: OmniConfig) -> dict:
    """Return the settings stored with every checkpoint, and "model", its sizes; for JSON."""
    content = dataclasses.asdict(config) | {"model": dataclasses.asdict(model)}
    return json.loads(json.dumps(content))


def check_settings(
    before: dict, now: dict, folder: str, fixed: Sequence[str], fixed_zero: Sequence[str] = ()
):
    """Log each setting that differs from the checkpoint's; UserError if training cannot go on.

    before, now: nested settings, JSON objects. folder: the checkpoint, in messages.
    fixed, fixed_zero: as `TrainConfig.FIXED` and `TrainConfig.FIXED_ZERO`.
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
        zero_differs = key in fixed_zero and bool(old.get(key)) != bool(new.get(key))
        if key.startswith(tuple(fixed)) or zero_differs:
            raise UserError(
                f"{folder}: {change}, which it does not fit; set it back, or choose another output"
            )
        logger.info("going on with a change: %s", change)
