"""One step of GRPO, from prompts to updates: read `Grpo.step`.

    prompts -> Rollout: G completions each -> rewards -> advantages -> rows
    -> log-probabilities before the updates -> policy steps, by iteration and minibatch

To read a whole step: this file, rollout.py, generate/engine.py, rewards/runner.py, advantages.py,
rows.py, objective.py, train/step.py, train/losses.py. options.py has the formulas; resampling.py is
dynamic sampling, which is off by default; skipping.py is about steps that nothing is learned from.

A part of the prompts is sampled while the rewards of the previous part are computed. A step waits
for its updates, as the next rollout needs them. The samples of a step depend only on the number of
its batch, which is the state of the data: a resumed run repeats them exactly.
"""

import functools
import logging
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ugc_jax import sharding
from ugc_jax.data.pipeline import BatchIterator, Pipeline
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.errors import UserError
from ugc_jax.rl import metrics as report
from ugc_jax.rl import resampling, supported
from ugc_jax.rl.advantages import (
    Advantages,
    advantages,
    overlong_penalty,
    token_counts,
    token_weights,
)
from ugc_jax.rl.evaluation import evaluate
from ugc_jax.rl.objective import mix_reference, policy_step, token_logprobs
from ugc_jax.rl.rewards.runner import BatchRewards, Rewards
from ugc_jax.rl.rollout import Media, Rollout, RolloutPart
from ugc_jax.rl.rows import Completions, Groups, PolicyBatch, minibatch, policy_rows, slots
from ugc_jax.rl.settings import GrpoConfig
from ugc_jax.rl.skipping import Outcomes
from ugc_jax.train.feed import Feed, PlacedBatch, StepRefused
from ugc_jax.train.loop import StepResult
from ugc_jax.train.meter import Clock, Meter
from ugc_jax.train.state import Setup, TrainState, state_shardings
from ugc_jax.train.step import jit_step
from ugc_jax.train.stopping import StopRequest

logger = logging.getLogger(__name__)


class PromptBatch(NamedTuple):
    """A batch of prompts, sampled and scored.

    media: the encoders' rows on the mesh, or None where the encoders are trained.
    """

    placed: PlacedBatch
    media: Media | None
    groups: Groups


class Grpo:
    """A `train.loop.Work`: group-relative policy optimization."""

    waits, tables = True, ("completions", "samples")
    best_metric = "eval_reward", "max"

    def __init__(
        self,
        setup: Setup,
        config: GrpoConfig,
        prompts: Pipeline,
        batches: BatchIterator,
        rewards: Rewards,
        tokenizer: ChatTokenizer,
        evaluation: Pipeline | None = None,
    ):
        """batches: of `prompts`. Raises UserError as `GrpoConfig.check_rows`."""
        options, rollout = config.grpo, config.rollout
        self.setup, self.config, self.batches = setup, config, batches
        self.updates, self.evaluates = options.updates, evaluation is not None
        self.columns = report.columns(rewards.names)
        self._prompts, self._evaluation = prompts, evaluation
        self._rewards, self._tokenizer = rewards, tokenizer
        self._rollout = Rollout(setup, rollout, options.shared_prompt)
        config.check_rows(setup.mesh, self._rollout.mesh)
        if supported.NAME in rewards.names:
            supported.check_processes()
        self._outcomes = Outcomes(options.skipped_share, setup.steps // options.updates)
        whole = sharding.replicated(setup.mesh)
        self._advance = jax.jit(lambda step: step + options.updates, out_shardings=whole)
        self._copies = 1 if options.shared_prompt else rollout.samples  # rows of a group
        programs = dict(options=options, temperature=rollout.sampling.temperature)
        update = functools.partial(policy_step, samples=rollout.samples, **programs)
        self._policy_step = jit_step(update, setup)
        logprobs = functools.partial(token_logprobs, setup=setup, **programs)
        self._logprobs = jax.jit(logprobs)
        self._reference_logprobs = jax.jit(functools.partial(logprobs, of_reference=True))
        self._mix_reference = jax.jit(
            functools.partial(mix_reference, mix=options.reference_mix),
            donate_argnums=0,
            out_shardings=state_shardings(setup),
        )

    def __enter__(self) -> "Grpo":
        self._feed = Feed(self.batches, self.setup.mesh, self.config.data.batch_size)
        return self

    def __exit__(self, *_):
        self._feed.close()

    def step(
        self, state: TrainState, meter: Meter, stop: StopRequest
    ) -> tuple[TrainState, StepResult]:
        """Sample, score and update.

        A step without any rewards is skipped (skipping.py): it is counted and changes nothing.
        Raises StepRefused for prompts that cannot be read, for rewards that end the run, and if too
        many steps are skipped; Stopped until the updates begin.
        """
        clock = Clock()
        placed = self._take(meter, stop)
        try:
            with clock("rollout"), meter.phases("rollout"):
                self._rollout.load(state)
            batch = self._sample_and_score(placed, meter, clock, stop)
            batches, places, groups = [batch], None, batch.groups
            if self.config.grpo.dynamic_sampling:
                batches, places, groups = self._resample(batch, meter, clock, stop)
        finally:
            self._rollout.drop()
        number = int(state.step) // self.updates + 1
        if not groups.advantages.used.any():
            self._outcomes.skip(number, groups, self._rewards.failures(), placed.before)
            state = state._replace(step=self._advance(state.step))
            return state, self._result(batches, places, groups, None, [], clock)
        self._outcomes.train(number, groups)
        with clock("update"):
            rows = self._policy_rows(batches, places, groups)
            rows = self._with_logprobs(state, rows)
            state, metrics = self._make_updates(state, rows)
        return state, self._result(batches, places, groups, rows, metrics, clock)

    def evaluate(
        self, state: TrainState, meter: Meter, stop: StopRequest
    ) -> tuple[dict[str, float], list[dict]]:
        """Return mean rewards of greedy completions of the evaluation's prompts, and samples.

        Raises Stopped between batches, and while it waits.
        """
        source = self._evaluation, self._rewards, self._tokenizer, self.config
        return evaluate(state, self._rollout, *source, meter, stop)

    # ---- prompts to groups -----------------------------------------------------------------------

    def _take(self, meter: Meter, stop: StopRequest) -> PlacedBatch:
        return meter.wait(lambda: self._feed.take(stop.waiting))

    def _sample_and_score(
        self, placed: PlacedBatch, meter: Meter, clock: Clock, stop: StopRequest
    ) -> PromptBatch:
        """Sample G completions of each prompt and compute their rewards and advantages.

        Raises StepRefused for an error of the rewards that ends the run; Stopped while it samples.
        """
        config, number = self.config, placed.before["step"]
        entries = self._prompts.entries(number)
        scores = BatchRewards(
            self._rewards, self._tokenizer, entries, config.rollout.sampling.max_new_tokens
        )
        parts = []
        sampled = self._rollout.sample(placed.arrays, number, stop.check)
        while True:
            with clock("rollout"), meter.phases("rollout"):
                part = next(sampled, None)
            if part is None:
                break
            parts.append(part)
            scores.submit(part.rows, part.completions, self._supported(placed, part, clock))
        completions, media = self._rollout.join(parts)
        try:
            with clock("reward"), meter.phases("rewards"):
                rewards = scores.result(check=stop.waiting)
        except UserError as error:  # such as a judge's key that is refused
            raise StepRefused(str(error), placed.before) from None
        groups = Groups(entries, completions, rewards, self._advantages(rewards, completions))
        return PromptBatch(placed, media, groups)

    def _supported(self, placed: PlacedBatch, part: RolloutPart, clock: Clock) -> np.ndarray | None:
        """The reward `evidence` of a part, which the device computes, if it is asked for."""
        if supported.NAME not in self._rewards.names:
            return None
        with clock("evidence"):
            prompts = jax.tree.map(lambda leaf: leaf[part.rows], placed.rows)
            what = prompts, part.completions, self._tokenizer, part.media
            return self._rollout.supported(*what)

    def _advantages(self, rewards: np.ndarray, completions: Completions) -> Advantages:
        options, most = self.config.grpo, self.config.rollout.sampling.max_new_tokens
        penalty = overlong_penalty(completions.lengths, options, most)
        return advantages(rewards, self._rewards.weights, options, penalty)

    def _resample(
        self, first: PromptBatch, meter: Meter, clock: Clock, stop: StopRequest
    ) -> tuple[list[PromptBatch], resampling.Places, Groups]:
        """Dynamic sampling: return (all batches drawn, places of the selected groups, groups)."""

        def draw() -> PromptBatch:
            return self._sample_and_score(self._take(meter, stop), meter, clock, stop)

        batches = resampling.draw(first, draw, self.config.further_batches)
        places = resampling.select([batch.groups.advantages.informative for batch in batches])
        groups = resampling.take([batch.groups for batch in batches], places)
        selected = self._advantages(groups.rewards, groups.completions)
        return batches, places, groups._replace(advantages=selected)

    # ---- groups to updates -----------------------------------------------------------------------

    def _policy_rows(
        self,
        batches: Sequence[PromptBatch],
        places: resampling.Places | None,
        groups: Groups,
    ) -> PolicyBatch:
        """The rows of the groups, on the mesh."""
        completions, result = groups.completions, groups.advantages
        options, most = self.config.grpo, self.config.rollout.sampling.max_new_tokens
        counts = token_counts(completions.lengths, completions.stopped, result.used, options)
        weights = token_weights(counts, options, most, self.setup.accumulate)
        size = slots(counts, most, options.shared_prompt)
        lay_out = functools.partial(self._lay_out, size=size)
        if places is None:
            return lay_out(batches[0], result.values, weights)
        return resampling.lay_out(lay_out, batches, places, result.values, weights, self._copies)

    def _lay_out(
        self, batch: PromptBatch, values: np.ndarray, weights: np.ndarray, size: int
    ) -> PolicyBatch:
        """The rows of a batch, on the mesh; each process lays out the rows that it feeds.

        values, weights: f32[B, G], of its groups.
        """
        mesh, shared = self.setup.mesh, self.config.grpo.shared_prompt
        local = list(sharding.local_rows(mesh, len(weights)))
        completions = Completions(*(leaf[local] for leaf in batch.groups.completions))
        rows = policy_rows(
            batch.placed.rows, completions, values[local], weights[local], size, self.setup.model,
            shared, keep_media=batch.media is None,
        )  # fmt: skip
        rows = sharding.place_batch(mesh, rows, len(weights) * self._copies)
        return rows._replace(media=batch.media)

    def _with_logprobs(self, state: TrainState, rows: PolicyBatch) -> PolicyBatch:
        """The rows with the log-probabilities before the updates that the objective needs."""
        if self.config.grpo.updates > 1:
            rows = rows._replace(old=self._logprobs(state, rows))
        if self.config.grpo.beta:
            rows = rows._replace(reference=self._reference_logprobs(state, rows))
        return rows

    def _make_updates(self, state: TrainState, rows: PolicyBatch) -> tuple[TrainState, list[dict]]:
        """Make the updates of a step and wait for them; returns (state, metrics of each)."""
        options, before = self.config.grpo, int(state.step)
        count, metrics = options.minibatches, []
        for number in range(options.updates):
            part = rows if count == 1 else minibatch(rows, number % count, count, self._copies)
            state, updated = self._policy_step(state, part)
            metrics.append(updated)
            if options.reference_sync and (before + number + 1) % options.reference_sync == 0:
                state = self._mix_reference(state)
        return state, jax.device_get(metrics)

    def _result(
        self,
        batches: Sequence[PromptBatch],
        places: resampling.Places | None,
        groups: Groups,
        rows: PolicyBatch | None,
        updates: list[dict],
        clock: Clock,
    ) -> StepResult:
        """rows: None and updates: empty if the step was skipped."""
        names, seconds, skipped = self._rewards.names, clock.seconds, rows is None
        if not skipped and not any(update["tokens"] for update in updates):
            logger.warning(
                "every completion was cut off at rollout.sampling.max_new_tokens=%d, so the step "
                "trains on nothing; raise that, or set grpo.mask_truncated=false",
                self.config.rollout.sampling.max_new_tokens,
            )
        sampled = groups if places is None else resampling.concatenate([b.groups for b in batches])
        generated = int(sampled.completions.lengths.sum())
        trained = {"finite": 1.0, "tokens": 0.0}
        if not skipped:
            trained = report.update_metrics(updates)
            tokens = jnp.sum(rows.inputs.segment_ids > 0)
            trained["tokens"] = tokens * self.config.grpo.iterations
        metrics = trained | report.sampling_metrics(sampled, names)
        metrics |= {
            "skipped": float(skipped),
            "draws": len(batches),
            "replaced": 0.0 if places is None else float(np.mean([n > 0 for n, _ in places])),
            "generated_tokens_per_second": generated / seconds["rollout"],
            **{f"{name}_seconds": value for name, value in seconds.items()},
            "examples": 0 if skipped else sum(entry is not None for entry in groups.entries),
        }
        texts = report.completion_rows(groups, names, self._tokenizer)
        return StepResult(
            metrics,
            before=batches[0].placed.before,
            after=batches[-1].placed.after,
            replay=groups.completions._asdict() | {"rewards": groups.rewards},
            tables={"completions": texts},
            notable=skipped,
        )
