"""The training loop: step, report, evaluate, save, stop well; whatever kind of work the steps are.

    Work.step -> Done, whose metrics are read when the next step is under way
    every so often: Work.evaluate and its sample texts, a checkpoint

The work of SFT is train/supervised.py, that of GRPO rl/loop.py. The device is waited for only at an
evaluation, a checkpoint and the end, and wherever the work itself waits for it.
"""

import contextlib
import dataclasses
import io
import logging
from typing import Any, Literal, NamedTuple, NoReturn, Protocol

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from ugc_jax.errors import UserError
from ugc_jax.generate.settings import NEW_TOKENS
from ugc_jax.train.checkpoint import Checkpoints
from ugc_jax.train.meter import Meter, peak_flops
from ugc_jax.train.metrics import MetricsWriter
from ugc_jax.train.state import TrainState
from ugc_jax.train.stopping import StopRequest

logger = logging.getLogger(__name__)

PROFILED = 3  # steps of a profiler trace
SHOWN = 11  # figures of a line on the terminal; the files have them all


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How long to train, and what to do on the way."""

    steps: int | None = None  # steps in all; without it, `epochs` decides
    epochs: float = 1.0  # passes over the training data
    accumulate: int = 1  # parts of a batch that pass through the model one after the other
    log_every: int = 10  # steps between lines of metrics
    eval_every: int = 0  # steps between evaluations, besides those before a checkpoint
    save_every: int = 200  # steps between checkpoints; the last step has one, too
    keep: int = 2  # latest checkpoints that stay, besides the one of the best evaluation
    profile: int | None = None  # first of three steps that a profiler trace is taken of
    wandb: str | None = None  # project of Weights & Biases to report to
    seed: int = 0  # of a new adapter's weights
    export: Literal["last", "best"] = "last"  # which checkpoint becomes the exported model
    export_dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of its weights

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) or value is None:
                continue
            if field.name in ("eval_every", "samples", "seed"):
                if value < 0:
                    raise UserError(f"loop.{field.name} is {value}; use 0 or more")
            elif value <= 0:
                raise UserError(f"loop.{field.name} is {value}; use a positive number")

    def check_export(self, evaluation: str | None):
        """UserError for a best checkpoint without data (`data.eval`) to tell it by."""
        if self.export == "best" and evaluation is None:
            raise UserError("loop.export=best needs data.eval; set it, or use export=last")


@dataclasses.dataclass(frozen=True)
class LoopConfig(RunConfig):
    """What only SFT does on the way."""

    samples: int = 4  # clips of the evaluation data that are captioned at every evaluation
    sample_tokens: int = 256  # longest of these captions

    def __post_init__(self):
        super().__post_init__()
        if self.sample_tokens > NEW_TOKENS[-1]:
            raise UserError(
                f"loop.sample_tokens is {self.sample_tokens}; use at most {NEW_TOKENS[-1]}"
            )


class Done(NamedTuple):
    """What a step leaves besides the new state.

    metrics: scalars, which may still be computed. Besides those to report: "finite" (0 where loss
      or gradient was not, and nothing was changed), "tokens" and "examples" of the updates.
    before, after: states of the data iterator around the step.
    replay: this process's arrays (numpy), to see the step again.
    flops: of the updates on all devices; 0 where nobody knows them.
    tables: rows of each of the work's `tables`, but for the samples of an evaluation.
    """

    metrics: dict[str, Any]
    before: dict
    after: dict
    replay: dict[str, np.ndarray]
    flops: float = 0.0
    tables: dict[str, list[dict]] = {}


class StepRefused(Exception):
    """A step that cannot be done, said in one line with its remedy; the state is as it was.

    data: state of the data iterator before the step.
    """

    def __init__(self, reason: str, data: dict):
        super().__init__(reason)
        self.data = data


class Work(Protocol):
    """What a run does step by step. A context manager: it reads data while it is open.

    mesh: of its state. last: number of the last step. updates: of the optimizer in a step, so that
    step n ends at state.step == n * updates. waits: its metrics are there when a step returns.
    columns: the figures that are reported, the most telling first. tables: its tables of texts.
    evaluates: whether there is anything to evaluate.
    """

    mesh: jax.sharding.Mesh
    last: int
    updates: int
    waits: bool
    columns: tuple[str, ...]
    tables: tuple[str, ...]
    evaluates: bool

    def step(self, state: TrainState, meter: Meter) -> tuple[TrainState, Done]:
        """The next step; state is used up. Raises StepRefused before it changes anything."""

    def evaluate(self, state: TrainState) -> tuple[dict[str, float], list[dict]]:
        """(Figures by column, rows of the table "samples") of a state."""

    def __enter__(self) -> "Work": ...

    def __exit__(self, *_): ...


class Loop:
    """One run; `run` goes from a state to the last step, or until it is told to stop."""

    def __init__(
        self, work: Work, config: RunConfig, output: str, checkpoints: Checkpoints, settings: dict
    ):
        """output: the run's directory, local or an etils path.

        settings: the run's, stored with every checkpoint.
        """
        self._work, self.config, self.output = work, config, epath.Path(output)
        self.checkpoints, self.settings = checkpoints, settings
        self._meter = Meter(peak_flops(work.mesh))
        self._pending: tuple[int, Done] | None = None
        self._writer: MetricsWriter | None = None  # process 0 has one

    def run(self, state: TrainState) -> tuple[TrainState, int]:
        """Train on; returns (state, exit status): 0, 143 after SIGTERM, 130 after Ctrl-C.

        state is used up; the work's data stand after its step. Raises UserError when the disk
        refuses, and, after saving the state before it, when a step is refused or its loss or
        gradient is not finite.
        """
        work = self._work
        begin, last = int(state.step) // work.updates, work.last
        with contextlib.ExitStack() as stack:
            stack.enter_context(jax.set_mesh(work.mesh))
            stop = stack.enter_context(StopRequest())
            if jax.process_index() == 0:
                self._writer = MetricsWriter(
                    self.output, begin, self.settings, self.config.wandb, work.columns, work.tables
                )
                stack.callback(self._writer.close)
            stack.enter_context(work)
            trace = stack.enter_context(_Trace(self.config.profile, self.output / "profile"))
            bar = tqdm(total=last, initial=begin, unit="step", desc="training", disable=None)
            self._bar = stack.enter_context(bar)
            for step in range(begin + 1, last + 1):
                trace.before(step)
                state, done = self._step(step, state)
                previous, self._pending = self._pending, (step, done)
                self._settle(previous, state)
                stopping = stop.after(step)
                due = stopping or self._is_due(step)
                if due or work.waits:
                    self._settle(self._pending, state)
                    self._pending = None
                if due:
                    with self._meter.excluded():
                        self._visit(step, state, done, stopping)
                if stopping:
                    logger.info("stopped after step %d of %d; run again to go on", step, last)
                    break
            self.checkpoints.wait()
        return state, stop.status

    # ---- a step ----------------------------------------------------------------------------------

    def _step(self, step: int, state: TrainState) -> tuple[TrainState, Done]:
        try:
            return self._work.step(state, self._meter)
        except StepRefused as refused:
            self._settle(self._pending, state)
            folder = self._save_before(step, state, refused.data)
            raise UserError(
                f"step {step}: {refused}; {folder} holds the state before it: run again to go on"
            ) from None

    def _settle(self, pending: tuple[int, Done] | None, state: TrainState):
        """Read and report the metrics of a step; stop the run if they are not finite.

        state: what came out of that step or of the one after it.
        """
        if pending is None:
            return
        step, done = pending
        metrics = jax.device_get(done.metrics)
        values = {name: float(value) for name, value in metrics.items() if value is not None}
        if not values["finite"]:
            self._stop_broken(step, values, state, done)
        self._meter.count(values["tokens"], values["examples"], done.flops)
        self._bar.update()
        telling = self._work.columns[0]
        if telling in values:
            self._bar.set_postfix_str(f"{telling} {values[telling]:.4f}")
        if step % self.config.log_every == 0 or step == self._work.last:
            self.checkpoints.check()
            self._report(step, values | self._meter.rates())
            for name, rows in done.tables.items():
                self._tell(name, step, rows)

    def _report(self, step: int, values: dict[str, float | None]):
        if self._writer is None:
            return
        values = {name: values[name] for name in self._work.columns if name in values}
        self._writer.metrics(step, values)
        shown = [f"{name} {_short(value)}" for name, value in values.items() if value is not None]
        logger.info("step %d/%d: %s", step, self._work.last, "  ".join(shown[:SHOWN]))

    def _tell(self, table: str, step: int, rows: list[dict]):
        if rows and self._writer is not None:
            self._writer.texts(table, step, rows)

    def _stop_broken(self, step: int, values: dict, state: TrainState, done: Done) -> NoReturn:
        """Save what is needed to see the step again, and say how."""
        folder = self.output / "not_finite"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step{step}_process{jax.process_index()}.npz"
        content = io.BytesIO()
        np.savez(content, **done.replay)
        path.write_bytes(content.getvalue())
        if int(state.step) == (step - 1) * self._work.updates:
            healthy = state._replace(healthy=jax.device_put(True, state.healthy.sharding))
            before = f"{self._save_before(step, healthy, done.before)} holds the state before it"
        else:  # some updates of the step were done: what came before it is gone
            self.checkpoints.wait()
            before = f"the run goes on after step {self.checkpoints.latest or 0}"
        raise UserError(
            f"step {step}: loss is {values['loss']} and the gradient's norm {values['grad_norm']}; "
            f"its batch is {path}, and {before}: run again to replay it (with JAX_DEBUG_NANS=1 to "
            "see where it arises), or with a lower optimizer.learning_rate to go on"
        )

    def _save_before(self, step: int, state: TrainState, data: dict) -> epath.Path:
        """The checkpoint of the state before a step."""
        self.checkpoints.save(step - 1, state, data, self.settings)
        self.checkpoints.wait()
        return self.checkpoints.folder / str(step - 1)

    # ---- between steps ---------------------------------------------------------------------------

    def _is_due(self, step: int) -> bool:
        return self._is_save(step) or self._is_evaluation(step)

    def _is_save(self, step: int) -> bool:
        return step % self.config.save_every == 0 or step == self._work.last

    def _is_evaluation(self, step: int) -> bool:
        every = self.config.eval_every
        return self._work.evaluates and (self._is_save(step) or (every > 0 and step % every == 0))

    def _visit(self, step: int, state: TrainState, done: Done, stopping: bool):
        """Evaluate and save, as is due after a step; only save when the run is to stop."""
        figures, refused = None, None
        if self._is_evaluation(step) and not stopping:
            try:
                figures, rows = self._work.evaluate(state)
                self._report(step, figures)
                self._tell("samples", step, rows)
            except UserError as error:  # what was learnt so far is not lost by it
                refused = error
        if self._is_save(step) or stopping or refused is not None:
            self.checkpoints.save(step, state, done.after, self.settings, figures)
            if self._writer is not None:
                self._writer.publish()
        if refused is not None:
            self.checkpoints.wait()
            raise refused


class _Trace:
    """The profiler's trace of a few steps; a context manager."""

    def __init__(self, first: int | None, folder: epath.Path):
        """first: the step that it begins with; None for no trace."""
        self._first, self._folder, self._last = first, folder, None

    def before(self, step: int):
        """To be called before each step."""
        if step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._last = step + PROFILED - 1
        elif self._last is not None and step > self._last:
            self._end()

    def __enter__(self) -> "_Trace":
        return self

    def __exit__(self, *_):
        if self._last is not None:
            self._end()

    def _end(self):
        jax.profiler.stop_trace()
        self._last = None
        logger.info("%s: profiler trace; open it with TensorBoard or xprof", self._folder)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
