"""The training loop of SFT and GRPO: step, report, evaluate, save, stop.

    Work.step -> StepResult, whose metrics are read while the next step runs
    at intervals: a checkpoint; then Work.evaluate and its sample texts

The work of SFT is train/supervised.py, that of GRPO rl/step.py. The loop waits for the device only
at an evaluation, a checkpoint and the end, and wherever the work itself waits for it.

A stop is heeded after a step and, as Stopped, inside a step before it has changed anything and
inside an evaluation. Then the state and the position of the data after the last whole step are
saved, and the run that goes on begins with what was broken off: that step, or that evaluation.
"""

import contextlib
import io
import logging
from typing import Any, Literal, NamedTuple, NoReturn, Protocol

import jax
import numpy as np
from etils import epath

from ugc_jax.data.pipeline import BatchIterator
from ugc_jax.errors import EnvironmentFailure, UserError
from ugc_jax.progress import Progress
from ugc_jax.train.checkpoint import Checkpoints
from ugc_jax.train.feed import StepRefused
from ugc_jax.train.goodput import FINISHED, STOPPED, Goodput
from ugc_jax.train.meter import Meter
from ugc_jax.train.metrics import MetricsWriter
from ugc_jax.train.phases import Phases
from ugc_jax.train.profile import Trace
from ugc_jax.train.settings import LoopConfig
from ugc_jax.train.state import Setup, TrainState
from ugc_jax.train.stopping import Stopped, StopRequest

logger = logging.getLogger(__name__)

LOG_METRICS = 11  # metrics of a line on the terminal; the files have them all


class StepResult(NamedTuple):
    """What a step returns besides the new state.

    metrics: scalars, perhaps not yet computed. Besides those to report: "finite" (0 where loss or
      gradient was not finite, and nothing was changed), "tokens" and "examples" of the updates.
    before, after: states of the data iterator before and after the step.
    replay: this process's arrays (numpy), to inspect the step later.
    flops: of the updates on all devices; 0 if unknown.
    tables: rows of each of the work's `tables`, except the samples of an evaluation.
    notable: reported even if it is between the steps that are.
    """

    metrics: dict[str, Any]
    before: dict
    after: dict
    replay: dict[str, np.ndarray]
    flops: float = 0.0
    tables: dict[str, list[dict]] = {}
    notable: bool = False


class Work(Protocol):
    """The steps and the evaluation of a kind of training. A context manager: open, it reads data.

    setup: of its train step; its mesh is that of the state.
    batches: the data iterator.
    updates: of the optimizer in a step, so that step n ends at state.step == n * updates.
    waits: whether the metrics are computed when a step returns.
    columns: the metrics that are reported, the most important first.
    tables: names of its tables of texts.
    evaluates: whether it has evaluation data.
    best_metric: (the evaluation's metric that chooses the best checkpoint, which extreme is best).
    """

    setup: Setup
    batches: BatchIterator
    updates: int
    waits: bool
    columns: tuple[str, ...]
    tables: tuple[str, ...]
    evaluates: bool
    best_metric: tuple[str, Literal["min", "max"]]

    def step(
        self, state: TrainState, meter: Meter, stop: StopRequest
    ) -> tuple[TrainState, StepResult]:
        """Make the next step; state is donated.

        Raises StepRefused, or Stopped by `stop`, before it changes anything.
        """

    def evaluate(
        self, state: TrainState, meter: Meter, stop: StopRequest
    ) -> tuple[dict[str, float], list[dict]]:
        """Return (metrics by column, rows of the table "samples") of a state. Raises Stopped."""

    def __enter__(self) -> "Work": ...

    def __exit__(self, *_): ...


class Loop:
    """One run; `run` trains from a state to the last step, or until a signal stops it."""

    def __init__(
        self,
        work: Work,
        config: LoopConfig,
        output: str,
        checkpoints: Checkpoints,
        settings: dict,
        peak_flops: float | None = None,
        phases: Phases | None = None,
    ):
        """output: the run's directory, local or an etils path.

        settings: the run's, stored with every checkpoint. peak_flops: operations a second of all
        devices together, for MFU. phases: of this process since its start; None: from now on.
        """
        self._work, self.config, self.output = work, config, epath.Path(output)
        self.checkpoints, self.settings = checkpoints, settings
        self._last = work.setup.steps // work.updates  # step
        self._phases = phases or Phases(config.hang_seconds)
        self._meter = Meter(peak_flops, self._phases)
        self.goodput: Goodput | None = None  # process 0 has one
        self._pending: tuple[int, StepResult] | None = None
        self._writer: MetricsWriter | None = None  # process 0 has one

    def run(self, state: TrainState) -> tuple[TrainState, int]:
        """Train on; returns (state, exit status): 0, 143 after SIGTERM, 130 after Ctrl-C.

        state: donated; the work's data iterator continues after its step. Raises UserError when the
        disk refuses, and, after saving the state before it, when a step is refused or its loss or
        gradient is not finite.
        """
        work, last = self._work, self._last
        first = int(state.step) // work.updates
        # What the checkpoint after `first` lacks if the run was stopped before its evaluation.
        missing = first > 0 and self._is_evaluation(first) and not self.checkpoints.evaluated(first)
        self._done, self._data = first, work.batches.get_state()
        self._phases.step = first
        with contextlib.ExitStack() as stack:
            stack.enter_context(jax.set_mesh(work.setup.mesh))
            stop = stack.enter_context(StopRequest(self._phases.point))
            if jax.process_index() == 0:
                writer = MetricsWriter(
                    self.output, first, self.settings, self.config.wandb, work.tables, not missing
                )
                self._writer = _enter(stack, contextlib.closing(writer))
                self.goodput = Goodput(self.output, first, self._phases)
            _enter(stack, work)
            trace = _enter(stack, Trace(self.config.profile, self.output))
            self._progress = _enter(stack, Progress(last, "step", "training", first))
            stack.enter_context(self._phases("step"))
            try:
                if missing:
                    self._evaluate(first, state, stop)
                for step in range(first + 1, last + 1):
                    self._phases.step = step
                    trace.before(step)
                    state, result = self._step(step, state, stop)
                    previous, self._pending = self._pending, (step, result)
                    self._finish(previous, state)
                    self._done, self._data = step, result.after
                    if self._end_step(step, state, stop):
                        break
            except Stopped:
                self._finish(self._pending, state)
                self._save(state)
                done = self._done
                logger.info("stopped after step %d of %d; run again to go on", done, last)
            with self._phases("checkpoint"):
                self.checkpoints.wait()
        if self.goodput is not None:
            self.goodput.end(STOPPED if stop.status else FINISHED)
            logger.info("in steps that count %s", self.goodput.describe())
        return state, stop.status

    def interrupted(self, reason: str):
        """Note in goodput.json why the run ends, from another thread than its own."""
        if self.goodput is not None:
            self.goodput.end(reason)

    def export_ended(self):
        """Count the seconds after the last step, too."""
        if self.goodput is not None:
            self.goodput.write()

    # ---- a step ----------------------------------------------------------------------------------

    def _step(
        self, step: int, state: TrainState, stop: StopRequest
    ) -> tuple[TrainState, StepResult]:
        try:
            return self._work.step(state, self._meter, stop)
        except StepRefused as refused:
            self._finish(self._pending, state)
            before = self._save_before(step, state, refused.data)
            raise UserError(f"step {step}: {refused}; {before}: run again to go on") from None

    def _finish(self, pending: tuple[int, StepResult] | None, state: TrainState):
        """Read and report the metrics of a step; stop the run if they are not finite.

        state: the result of that step or of the one after it.
        """
        if pending is None:
            return
        step, result = pending
        metrics = jax.device_get(result.metrics)
        values = {name: float(value) for name, value in metrics.items() if value is not None}
        if not values["finite"]:
            self._stop_not_finite(step, values, state, result)
        self._meter.count(values["tokens"], values["examples"], result.flops)
        headline = self._work.columns[0]
        self._progress.update(f"{headline} {values[headline]:.4f}" if headline in values else "")
        if step % self.config.log_every == 0 or step == self._last or result.notable:
            self.checkpoints.check()
            self._report(step, values | self._meter.rates())
            if self.goodput is not None:
                self.goodput.made(step)
                self._writer.scalars(step, self.goodput.values())
            for name, rows in result.tables.items():
                self._write_texts(name, step, rows)

    def _report(self, step: int, values: dict[str, float | None]):
        if self._writer is None:
            return
        values = {name: values[name] for name in self._work.columns if name in values}
        self._writer.metrics(step, values)
        texts = [f"{name} {_short(value)}" for name, value in values.items() if value is not None]
        logger.info("step %d/%d: %s", step, self._last, "  ".join(texts[:LOG_METRICS]))

    def _write_texts(self, table: str, step: int, rows: list[dict]):
        if rows and self._writer is not None:
            self._writer.texts(table, step, rows)

    def _stop_not_finite(
        self, step: int, values: dict, state: TrainState, result: StepResult
    ) -> NoReturn:
        """Save the step's inputs and the state before it; raise UserError with how to replay it."""
        folder = self.output / "not_finite"
        path = folder / f"step{step}_process{jax.process_index()}.npz"
        content = io.BytesIO()
        np.savez(content, **result.replay)
        batch = f"its batch is {path}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.getvalue())
        except OSError as error:
            batch = f"its batch cannot be written to {path} ({error.strerror or error})"
        if int(state.step) == (step - 1) * self._work.updates:
            state = state._replace(finite=jax.device_put(True, state.finite.sharding))
            before = self._save_before(step, state, result.before)
        else:  # the step has made some updates: the state before it is lost
            self.checkpoints.wait()
            before = f"the run goes on after step {self.checkpoints.latest or 0}"
        raise UserError(
            f"step {step}: loss is {values['loss']} and the gradient's norm {values['grad_norm']}; "
            f"{batch}, and {before}: run again to replay it (with JAX_DEBUG_NANS=1 to "
            "see where it arises), or with a lower optimizer.learning_rate to go on"
        )

    def _save_before(self, step: int, state: TrainState, data: dict) -> str:
        """Save the state before a step that fails; returns a clause of the message about it.

        A disk that refuses is part of that message, and does not take its place.
        """
        try:
            with self._phases("checkpoint"):
                self.checkpoints.save(step - 1, state, data, self.settings)
                self.checkpoints.wait()
        except (UserError, EnvironmentFailure) as error:
            return f"the state before it is not saved ({error})"
        return f"{self.checkpoints.folder / str(step - 1)} holds the state before it"

    # ---- between steps ---------------------------------------------------------------------------

    def _is_save(self, step: int) -> bool:
        return step % self.config.save_every == 0 or step == self._last

    def _is_evaluation(self, step: int) -> bool:
        every = self.config.eval_every
        return self._work.evaluates and (self._is_save(step) or (every > 0 and step % every == 0))

    def _end_step(self, step: int, state: TrainState, stop: StopRequest) -> bool:
        """Save and evaluate, whichever is due after a step; returns whether the run is to stop."""
        stopping = stop.after(step)
        saves, evaluates = stopping or self._is_save(step), self._is_evaluation(step)
        if saves or evaluates or self._work.waits:
            self._finish(self._pending, state)
            self._pending = None
        if not (saves or evaluates):
            return False
        with self._meter.excluded():
            if saves:
                self._save(state)
            if stopping:
                last = self._last
                logger.info("stopped after step %d of %d; run again to go on", step, last)
                return True
            if evaluates:
                self._evaluate(step, state, stop)
            if self._writer is not None:
                self._writer.publish()
        return False

    def _save(self, state: TrainState):
        """Save the state after the last whole step."""
        with self._phases("checkpoint"):
            self.checkpoints.save(self._done, state, self._data, self.settings)
        if self.goodput is not None:
            self.goodput.saved(self._done)

    def _evaluate(self, step: int, state: TrainState, stop: StopRequest):
        try:
            with self._phases("evaluation"):
                metrics, rows = self._work.evaluate(state, self._meter, stop)
        except (UserError, EnvironmentFailure) as refused:  # the updates so far are saved
            before = self._save_before(step + 1, state, self._data)
            raise UserError(f"evaluation after step {step}: {refused}; {before}") from None
        self._report(step, metrics)
        self._write_texts("samples", step, rows)
        with self._phases("checkpoint"):
            self.checkpoints.record(step, metrics)


def _enter(stack: contextlib.ExitStack, manager: contextlib.AbstractContextManager):
    """Enter a context manager whose end does not hide an earlier error by one of its own.

    A full disk, for example, refuses the metrics, and then again what closing their file flushes.
    """

    def leave(kind, error, trace):
        try:
            return manager.__exit__(kind, error, trace)
        except Exception as second:
            if error is None or second is error:
                raise
            logger.debug("while the run ended", exc_info=True)

    value = manager.__enter__()
    stack.push(leave)
    return value


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
