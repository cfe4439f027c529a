"""The training loop: feed, step, report, evaluate, save, stop well.

    Feed (a thread: read, place) -> train_step -> metrics, read when the next step is under way
    every so often: eval_step over the evaluation data, sample captions, a checkpoint

The device is waited for only at an evaluation, a checkpoint and the end.
"""

import contextlib
import dataclasses
import io
import logging
import time
from collections.abc import Callable, Iterable
from typing import Literal, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from tqdm import tqdm

from ugc_jax import sharding
from ugc_jax.data.schema import Batch
from ugc_jax.errors import UserError
from ugc_jax.train.checkpoint import Checkpoints
from ugc_jax.train.feed import Batches, Fed, Feed
from ugc_jax.train.flops import step_flops
from ugc_jax.train.meter import Meter, peak_flops
from ugc_jax.train.metrics import MetricsWriter
from ugc_jax.train.state import Setup, TrainState
from ugc_jax.train.steps import Metrics, eval_step, train_step
from ugc_jax.train.stopping import StopRequest

logger = logging.getLogger(__name__)

PROFILED = 3  # steps of a profiler trace
LOGGED = ("loss", "accuracy", "grad_norm", "learning_rate")  # of the train step's metrics


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long to train, and what to do on the way."""

    steps: int | None = None  # updates in all; without it, `epochs` decides
    epochs: float = 1.0  # passes over the training data
    accumulate: int = 1  # parts of a batch that pass through the model one after the other
    log_every: int = 10  # steps between lines of metrics
    eval_every: int = 0  # steps between evaluations, besides those before a checkpoint
    save_every: int = 200  # steps between checkpoints; the last step has one, too
    keep: int = 2  # latest checkpoints that stay, besides the one of the lowest evaluation loss
    samples: int = 4  # clips of the evaluation data that are captioned at every evaluation
    sample_tokens: int = 256  # longest of these captions
    profile: int | None = None  # first of three steps that a profiler trace is taken of
    wandb: str | None = None  # project of Weights & Biases to report to
    seed: int = 0  # of a new adapter's weights
    export: Literal["last", "best"] = "last"  # which checkpoint becomes the exported model
    export_dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of its weights

    def __post_init__(self):
        for name in ("eval_every", "samples", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"loop.{name} is {getattr(self, name)}; use 0 or more")
        for name in (
            "steps", "epochs", "accumulate", "log_every", "save_every", "keep", "sample_tokens",
            "profile",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"loop.{name} is {value}; use a positive number")


class Loop:
    """One run; `run` goes from a state to the last step, or until it is told to stop."""

    def __init__(
        self,
        setup: Setup,
        config: LoopConfig,
        output: str,
        batch_size: int,
        checkpoints: Checkpoints,
        settings: dict,
        evaluation: Iterable[Batch] | None = None,
        sample: Callable[[TrainState], list[dict]] | None = None,
    ):
        """setup.steps: the last step.

        output: the run's directory, local or an etils path. batch_size: rows of a batch, over all
        processes. settings: the run's, stored with every checkpoint. evaluation: this process's
        rows of the evaluation batches, as often as it is iterated over. sample: makes captions,
        {"clip", "reference", "caption"} of each. Raises UserError for a batch that cannot be
        parted.
        """
        sharding.check_batch(setup.mesh, batch_size, config.accumulate)
        self.setup, self.config, self.output = setup, config, epath.Path(output)
        self.batch_size, self.checkpoints, self.settings = batch_size, checkpoints, settings
        self._evaluation, self._sample = evaluation, sample
        self._train_step, self._eval_step = train_step(setup), eval_step(setup)
        self._peak = peak_flops(setup.mesh)
        self._meter = Meter(self._peak)
        self._flops: dict[tuple, float] = {}  # of a step, by the shapes of its batch
        self._pending: tuple[int, Metrics, Fed] | None = None
        self._writer: MetricsWriter | None = None  # process 0 has one

    def run(self, state: TrainState, batches: Batches) -> tuple[TrainState, int]:
        """Train on; returns (state, exit status): 0, 143 after SIGTERM, 130 after Ctrl-C.

        state is used up. batches: standing after the state's step. Raises UserError when the disk
        refuses, and when loss or gradient is not finite, after saving the state before it.
        """
        begin, last = int(state.step), self.setup.steps
        with contextlib.ExitStack() as stack:
            stack.enter_context(jax.set_mesh(self.setup.mesh))
            stop = stack.enter_context(StopRequest())
            if jax.process_index() == 0:
                self._writer = MetricsWriter(self.output, begin, self.settings, self.config.wandb)
                stack.callback(self._writer.close)
            feed = Feed(batches, self.setup.mesh, self.batch_size)
            stack.callback(feed.close)
            trace = stack.enter_context(_Trace(self.config.profile, self.output / "profile"))
            bar = tqdm(total=last, initial=begin, unit="step", desc="training", disable=None)
            self._bar = stack.enter_context(bar)
            for step in range(begin + 1, last + 1):
                trace.before(step)
                fed = self._meter.wait(feed.take)
                state, metrics = self._dispatch(state, fed)
                previous, self._pending = self._pending, (step, metrics, fed)
                self._settle(previous, state)
                stopping = stop.after(step)
                if stopping or self._is_due(step):
                    self._settle(self._pending, state)
                    self._pending = None
                    with self._meter.excluded():
                        self._visit(step, state, fed, stopping)
                if stopping:
                    logger.info("stopped after step %d of %d; run again to go on", step, last)
                    break
            self.checkpoints.wait()
        return state, stop.status

    # ---- a step ----------------------------------------------------------------------------------

    def _dispatch(self, state: TrainState, fed: Fed) -> tuple[TrainState, Metrics]:
        """Start a step. Compiling it, for a batch of new shapes, is told and not measured."""
        known, begun = self._train_step._cache_size(), time.perf_counter()
        result = self._train_step(state, fed.arrays)
        if self._train_step._cache_size() > known:
            seconds = time.perf_counter() - begun
            self._meter.exclude(seconds)
            rows = fed.arrays.tokens.shape
            logger.info("compiled the step for %d rows of %d tokens in %.1f s", *rows, seconds)
            if self._peak is not None:
                with self._meter.excluded():
                    self._flops[_shapes(fed)] = step_flops(self.setup, fed.arrays)
        return result

    def _settle(self, pending: tuple[int, Metrics, Fed] | None, state: TrainState):
        """Read and report the metrics of a dispatched step; stop the run if they are not finite.

        state: what came out of that step or of the one after it.
        """
        if pending is None:
            return
        step, metrics, fed = pending
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not values["finite"]:
            self._stop_broken(step, values, state, fed)
        self._meter.count(values["tokens"], values["examples"], self._flops.get(_shapes(fed), 0))
        self._bar.update()
        self._bar.set_postfix_str(f"loss {values['loss']:.4f}")
        if step % self.config.log_every == 0 or step == self.setup.steps:
            self.checkpoints.check()
            self._report(step, {name: values[name] for name in LOGGED} | self._meter.rates())

    def _report(self, step: int, values: dict[str, float | None]):
        if self._writer is None:
            return
        self._writer.metrics(step, values)
        shown = "  ".join(
            f"{name} {_short(value)}" for name, value in values.items() if value is not None
        )
        logger.info("step %d/%d: %s", step, self.setup.steps, shown)

    def _stop_broken(self, step: int, values: dict, state: TrainState, fed: Fed) -> NoReturn:
        """Save what is needed to see the step again, and say how."""
        healthy = state._replace(healthy=jax.device_put(True, state.healthy.sharding))
        self.checkpoints.save(step - 1, healthy, fed.before, self.settings)
        self.checkpoints.wait()
        folder = self.output / "not_finite"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step{step}_process{jax.process_index()}.npz"
        content = io.BytesIO()
        np.savez(content, **fed.rows._asdict())
        path.write_bytes(content.getvalue())
        raise UserError(
            f"step {step}: loss is {values['loss']} and the gradient's norm {values['grad_norm']}; "
            f"its batch is {path}, and {self.checkpoints.folder / str(step - 1)} holds the state "
            "before it: run again to replay it (with JAX_DEBUG_NANS=1 to see where it arises), or "
            "with a lower optimizer.learning_rate to go on"
        )

    # ---- between steps ---------------------------------------------------------------------------

    def _is_due(self, step: int) -> bool:
        return self._is_save(step) or self._is_evaluation(step)

    def _is_save(self, step: int) -> bool:
        return step % self.config.save_every == 0 or step == self.setup.steps

    def _is_evaluation(self, step: int) -> bool:
        every = self.config.eval_every
        return self._evaluation is not None and (
            self._is_save(step) or (every > 0 and step % every == 0)
        )

    def _visit(self, step: int, state: TrainState, fed: Fed, stopping: bool):
        """Evaluate, sample and save, as is due after a step; only save when the run is to stop."""
        metrics = None
        if self._is_evaluation(step) and not stopping:
            metrics = self._evaluate(state)
            self._report(step, metrics)
            captions = self._sample(state) if self._sample is not None else []
            if captions and self._writer is not None:
                self._writer.samples(step, captions)
        if self._is_save(step) or stopping:
            self.checkpoints.save(step, state, fed.after, self.settings, metrics)
            if self._writer is not None:
                self._writer.publish()

    def _evaluate(self, state: TrainState) -> dict[str, float]:
        """Mean loss and accuracy over the target tokens of the evaluation data."""
        total = None
        for rows in self._evaluation:
            batch = sharding.place_batch(self.setup.mesh, rows, self.batch_size)
            sums = self._eval_step(state, batch)
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        sums = jax.device_get(total)
        return {
            "eval_loss": float(sums.loss / sums.tokens),
            "eval_accuracy": float(sums.hits / sums.tokens),
        }


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


def _shapes(fed: Fed) -> tuple:
    return tuple(leaf.shape for leaf in fed.rows)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
