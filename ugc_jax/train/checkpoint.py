"""The checkpoints of a run: saved in the background, atomic, restored on any mesh.

    OUTPUT/frozen/              the frozen weights, written once, before the first step
    OUTPUT/checkpoints/STEP/    state: step, trained weights, optimizer; data: the data iterator's
                                state; config: the run's settings
    OUTPUT/evaluations.json     the metrics of each evaluation, by step

A checkpoint is saved before its evaluation, which may take longer than a stopped run has. Earlier
versions evaluated first and stored the metrics in the checkpoint, where they are still read.

A run can be resumed and exported from its directory alone, and a checkpoint holds only what
training changes. Orbax writes each into a temporary folder and renames it when all processes have
written their part: a killed run leaves its last complete checkpoint.
"""

import contextlib
import logging
import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import jax
import orbax.checkpoint as ocp
from etils import epath

from ugc_jax import files
from ugc_jax.errors import UserError, environment_failure
from ugc_jax.files import FULL_DISK
from ugc_jax.train.state import TrainState

logger = logging.getLogger(__name__)

_UNREAD, _UNSAVED = "cannot be read", "a checkpoint cannot be saved"
_DAMAGED = "remove that folder to go on from the checkpoint before it"
_REMEDY = f"complete checkpoints are kept: {FULL_DISK} from the last one"


class Checkpoints:
    """Saves and restores TrainStates under a run's directory, a local or an etils path (gs://...).

    All processes make the same calls; each writes and reads its own shards.
    """

    def __init__(
        self,
        output: str | epath.PathLike,
        keep: int = 2,
        metric: str = "eval_loss",
        best: Literal["min", "max"] = "min",
    ):
        """keep: number of the latest checkpoints to keep, besides the one of the best `metric`.

        best: whether the lowest or the highest `metric` is the best. Raises UserError for an output
        that cannot be opened.
        """
        self._metric = metric
        root = epath.Path(output)
        root = root if is_remote(root) else root.absolute()
        self.folder, self.frozen = root / "checkpoints", root / "frozen"
        self._evaluations_file = root / "evaluations.json"
        self._sign, self._keep = (-1 if best == "min" else 1), keep
        with _disk_errors(self.folder, "cannot be opened", "choose another output"):
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=_Kept(self._kept), cleanup_tmp_directories=True
                ),
            )
            self._evaluations = self._stored_evaluations()

    @property
    def latest(self) -> int | None:
        """Step of the latest complete checkpoint; None without one."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the checkpoint with the best metric; without any such metric, the latest."""
        return self._best_of(self._manager.all_steps()) or self.latest

    def save_frozen(self, state: TrainState):
        """Write the frozen weights; once a run, before its first `save`."""
        if not state.frozen:
            return
        self._require_space(state.frozen)
        failed = "the frozen weights cannot be saved"
        with _disk_errors(self.folder, failed), ocp.StandardCheckpointer() as saver:
            saver.save(self.frozen, state.frozen, force=True)

    def save(self, step: int, state: TrainState, data: dict, config: dict):
        """Start to save; returns when the state is copied, so that the next step may donate it.

        data: the data iterator's state after `step` steps. config: the run's settings. Both are
        JSON objects. A failure in the background is raised by a later `check`, `save` or `wait`:
        UserError where the disk refuses; earlier checkpoints stay.
        """
        if step == self.latest:
            return
        changing = _changing(state)
        self._require_space(changing)
        with _disk_errors(self.folder, _UNSAVED):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(changing),
                    data=ocp.args.JsonSave(data),
                    config=ocp.args.JsonSave(config),
                ),
                force=True,
            )

    def check(self):
        """Raise UserError if a save in the background has failed; does not wait for one."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def record(self, step: int, metrics: dict[str, float]):
        """Store the metrics of an evaluation after `step`; they choose the best checkpoint.

        A checkpoint that was the best until then is removed, unless it is one of the latest. Raises
        UserError where the disk refuses.
        """
        known = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._evaluations[step] = known
        if jax.process_index() == 0:
            content = {str(number): self._evaluations[number] for number in self._evaluations}
            files.write_json(self._evaluations_file, content)
        steps = self._manager.all_steps()
        if removed := set(steps) - self._kept(steps):
            self.wait()
            with _disk_errors(self.folder, _UNSAVED):
                for old in sorted(removed):
                    self._manager.delete(old)

    def evaluated(self, step: int) -> bool:
        """Whether the state after `step` has been evaluated."""
        return step in self._evaluations

    def config(self, step: int) -> dict:
        """The settings of the run that wrote the checkpoint of `step`."""
        return self._restore(step, config=ocp.args.JsonRestore()).config

    def restore(self, abstract: TrainState, step: int | None = None) -> tuple[TrainState, dict]:
        """Return (state, data iterator's state) of the latest checkpoint, or of that of `step`.

        abstract: `abstract_state(setup)`; its mesh may differ from the one that the state was saved
        from. Raises UserError naming the folder that cannot be read.
        """
        step = self.latest if step is None else step
        target = _changing(abstract)
        is_old = self._is_old(step)
        if is_old:
            target["healthy"] = target.pop("finite")
        loaded = self._restore(
            step, state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore()
        )
        changing = dict(loaded.state)
        if is_old:
            changing["finite"] = changing.pop("healthy")
        frozen = abstract.frozen
        if frozen:
            errors = _disk_errors(self.frozen, _UNREAD, "start again with another output")
            with errors, ocp.StandardCheckpointer() as reader:
                frozen = reader.restore(self.frozen, frozen)
        return abstract._replace(frozen=frozen, **changing), loaded.data

    def wait(self):
        """Wait until all saves are on disk."""
        with _disk_errors(self.folder, _UNSAVED):
            self._manager.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, failure: type | None, *_):
        errors = _disk_errors(self.folder, _UNSAVED)
        with errors if failure is None else contextlib.suppress(Exception):
            self._manager.close()

    def _best_of(self, steps: Iterable[int]) -> int | None:
        """The step with the best metric, of several the last one; None without any metric."""
        scores = [
            (self._sign * metrics[self._metric], step)
            for step in steps
            if self._metric in (metrics := self._evaluations.get(step, {}))
        ]
        return max(scores, default=(None, None))[1]

    def _kept(self, steps: Iterable[int]) -> set[int]:
        """Those of the steps whose checkpoints are to stay."""
        return {*sorted(steps)[-self._keep :], self._best_of(steps)} - {None}

    def _stored_evaluations(self) -> dict[int, dict[str, float]]:
        """The metrics by step up to the latest checkpoint; the steps after it are made again."""
        path, steps = self._evaluations_file, self._manager.all_steps()
        stored = {}
        for step in steps:  # of earlier versions
            if (metrics := self._manager.metrics(step)) is not None:
                stored[step] = metrics
        if path.exists():
            content = files.read_json(path, "remove it; then the latest checkpoint is evaluated")
            stored |= {int(step): metrics for step, metrics in content.items()}
        return {step: stored[step] for step in sorted(stored) if step <= max(steps, default=0)}

    def _restore(self, step: int, **items) -> ocp.args.Composite:
        with _disk_errors(self.folder / str(step), _UNREAD, _DAMAGED):
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _is_old(self, step: int) -> bool:
        """Whether a checkpoint is from before TrainState.healthy was renamed to `finite`."""
        folder = self.folder / str(step)
        with _disk_errors(folder, _UNREAD, _DAMAGED), ocp.StandardCheckpointer() as reader:
            return "healthy" in (reader.metadata(folder / "state").item_metadata or ())

    def _require_space(self, tree):
        """Raise UserError, before anything is written, if a local disk has not the space."""
        if is_remote(self.folder):
            return
        shards = (shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards)
        size = sum(shard.data.nbytes for shard in shards if shard.replica_id == 0)
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise UserError(
                f"{self.folder}: a checkpoint of {size / 1e6:,.0f} MB does not fit, "
                f"{free / 1e6:,.0f} MB are free; {_REMEDY}"
            )


class _Kept:
    """An orbax preservation policy of the function steps -> those to keep."""

    def __init__(self, kept: Callable[[list[int]], set[int]]):
        self._kept = kept

    def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = self._kept(steps)
        return [step in kept for step in steps]


def read_position(output: str | epath.PathLike) -> tuple[dict, dict] | None:
    """Return (data iterator's state, settings) of a run's latest checkpoint; None without one.

    Writes nothing and waits for no other process. Raises UserError for what cannot be read.
    """
    root = epath.Path(output)
    folder = (root if is_remote(root) else root.absolute()) / "checkpoints"
    with _disk_errors(folder, _UNREAD, _DAMAGED):
        steps = ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []
    if not steps:
        return None
    latest = folder / str(max(steps))
    return tuple(
        files.read_json(latest / item / "metadata", _DAMAGED) for item in ("data", "config")
    )


@contextlib.contextmanager
def _disk_errors(path: epath.Path, failed: str, remedy: str = _REMEDY) -> Iterator[None]:
    """Raise what a full or broken disk raises inside the block as a UserError of one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        logger.debug("%s: %s", path, failed, exc_info=True)
        fault = UserError(f"{path}: {failed} ({_reason(error)}); {remedy}")
        raise environment_failure(error, path) or fault from None


def is_remote(path: epath.PathLike) -> bool:
    """Whether an etils path lies outside this machine's file system (gs://...)."""
    return "://" in str(path)


def _changing(state: TrainState) -> dict:
    """The fields of the state in a checkpoint: all but the frozen ones and an empty reference."""
    return {
        name: leaf
        for name, leaf in state._asdict().items()
        if name != "frozen" and (name != "reference" or leaf)
    }


def _reason(error: BaseException) -> str:
    """The system's message: the last part of the first line, which quotes the callers' first."""
    text = str(error).strip() or type(error).__name__
    return re.sub(r" \[os_error.*", "", text.splitlines()[0].rsplit(": ", 1)[-1])
