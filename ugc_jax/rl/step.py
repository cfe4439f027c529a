"""The work of GRPO's loop: one step from prompts to updates. options.py has the objective.

    Feed -> prompts -> Rollout: G completions each -> rewards -> advantages -> rows
    -> log-probabilities before the updates -> policy steps, by iteration and minibatch

A part of the prompts is sampled while the rewards of the part before it are computed. A step waits
for its updates, as the next rollout needs them. What a step draws depends on the number of its
batches alone, which is the state of the data: a run that goes on repeats it exactly.
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
from ugc_jax.data.records import Entry
from ugc_jax.data.schema import Batch
from ugc_jax.errors import UserError
from ugc_jax.rl import metrics as report
from ugc_jax.rl.advantages import (
    Advantages,
    advantages,
    overlong_penalty,
    token_counts,
    token_weights,
)
from ugc_jax.rl.rewards.runner import Rewards
from ugc_jax.rl.rewards.scoring import Scoring, completion_texts
from ugc_jax.rl.rollout import Media, Rollout
from ugc_jax.rl.rows import Completions, PolicyBatch, policy_rows, slots
from ugc_jax.rl.settings import GrpoConfig
from ugc_jax.rl.update import policy_step, score_step, sync_reference
from ugc_jax.train.feed import Fed, Feed
from ugc_jax.train.loop import Done, StepRefused
from ugc_jax.train.meter import Clock, Meter
from ugc_jax.train.state import Setup, TrainState

logger = logging.getLogger(__name__)


class Draw(NamedTuple):
    """A batch of prompts and what became of it. All rows in numpy, but for what is said.

    rows: this process's prompts. entries: None for an empty row. media: the encoders' rows on the
    mesh, or None where the encoders learn. rewards: f32[B, G, R]. result: of these rewards alone.
    """

    rows: Batch
    entries: list[Entry | None]
    completions: Completions
    media: Media | None
    rewards: np.ndarray
    result: Advantages


class Chosen(NamedTuple):
    """The groups that a step learns from, one a row. places: (which draw, row of it) of each."""

    places: list[tuple[int, int]]
    entries: list[Entry | None]
    completions: Completions
    rewards: np.ndarray
    result: Advantages


class Grpo:
    """A `train.loop.Work`: group-relative policy optimization."""

    waits, tables = True, ("completions", "samples")

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
        """batches: of `prompts`, standing where the run goes on. Raises UserError for a batch that
        cannot be shared out as the settings say.
        """
        options, rollout = config.grpo, config.rollout
        self.setup, self.config, self.mesh = setup, config, setup.mesh
        self.updates, self.last = options.updates, setup.steps // options.updates
        self.evaluates = evaluation is not None
        self.columns = report.columns(rewards.names)
        self._prompts, self._batches, self._evaluation = prompts, batches, evaluation
        self._rewards, self._tokenizer = rewards, tokenizer
        self._rollout = Rollout(setup, rollout, options.shared_prompt)
        config.check_rows(setup.mesh, self._rollout.mesh)
        self._shared = options.shared_prompt
        self._copies = 1 if self._shared else rollout.samples  # rows of a group
        self._policy_step = policy_step(setup, options, rollout.samples, rollout.temperature)
        self._score = score_step(setup, options, rollout.temperature)
        self._score_reference = score_step(setup, options, rollout.temperature, of_reference=True)
        self._sync = sync_reference(setup, options.reference_mix)

    def __enter__(self) -> "Grpo":
        self._feed = Feed(self._batches, self.mesh, self.config.data.batch_size)
        return self

    def __exit__(self, *_):
        self._feed.close()

    def step(self, state: TrainState, meter: Meter) -> tuple[TrainState, Done]:
        """Sample, score and learn.

        Raises StepRefused for prompts that cannot be read, and if there is nothing to learn from.
        """
        clock = Clock()
        fed = meter.wait(self._feed.take)
        before, after = fed.before, fed.after
        with clock("rollout"):
            self._rollout.load(state)
        try:
            draws = [self._draw(fed, clock)]
            while self._is_wanting(draws):
                fed = meter.wait(self._feed.take)
                after = fed.after
                draws.append(self._draw(fed, clock))
        except StepRefused as refused:  # the step begins with the first draw
            raise StepRefused(str(refused), before) from None
        self._rollout.drop()
        failures = self._rewards.failures()
        chosen = self._choose(draws)
        if not chosen.result.used.any():
            counts = [f"{name} {count} times" for name, count in failures.items() if count]
            told = f"failed: {', '.join(counts) or 'none'}"
            raise StepRefused(f"no two completions of a group have their rewards ({told})", before)
        with clock("update"):
            batch = self._rows(draws, chosen)
            tokens = jnp.sum(batch.inputs.segment_ids > 0) * self.config.grpo.iterations
            state, metrics = self._update(state, batch)
        if not any(one["tokens"] for one in metrics):
            logger.warning(
                "every completion was cut off at rollout.max_new_tokens=%d, and the step teaches "
                "nothing; raise that, or set grpo.mask_truncated=false",
                self.config.rollout.max_new_tokens,
            )
        figures = report.of_updates(metrics) | self._of_draws(draws, chosen, clock.seconds)
        figures |= {
            "tokens": tokens,
            "examples": sum(entry is not None for entry in chosen.entries),
        }
        texts = report.completion_rows(
            chosen.entries, chosen.completions, chosen.rewards, chosen.result, self._rewards.names,
            self._tokenizer,
        )  # fmt: skip
        replay = chosen.completions._asdict() | {"rewards": chosen.rewards}
        return state, Done(figures, before, after, replay, tables={"completions": texts})

    # ---- prompts to groups -----------------------------------------------------------------------

    def _draw(self, fed: Fed, clock: Clock) -> Draw:
        """Complete and score a batch of prompts. StepRefused where rewards are refused for good."""
        number = fed.before["step"]
        entries = self._prompts.entries(number)
        scoring = self._scoring(entries)
        parts = []
        for part in range(self.config.rollout.parts):
            with clock("rollout"):
                parts.append(self._rollout.sample(fed.arrays, number, part))
            scoring.begin(parts[-1].rows, parts[-1].completions)
        completions, media = self._rollout.joined(parts)
        try:
            with clock("reward"):
                rewards = scoring.result()
        except UserError as error:  # such as a judge's key that is refused from now on
            raise StepRefused(str(error), fed.before) from None
        result = self._advantages(rewards, completions)
        return Draw(fed.rows, entries, completions, media, rewards, result)

    def _is_wanting(self, draws: Sequence[Draw]) -> bool:
        """Whether to draw once more, to replace groups that say nothing."""
        there = sum(draw.result.informative.sum() for draw in draws)
        return there < self.config.data.batch_size and len(draws) <= self.config.further

    def _choose(self, draws: Sequence[Draw]) -> Chosen:
        """The first draw's groups; further draws' take the place of those that say nothing."""
        places = [(0, row) for row in range(len(draws[0].entries))]
        spare = iter(
            (number, int(row))
            for number, draw in enumerate(draws[1:], 1)
            for row in np.flatnonzero(draw.result.informative)
        )
        if len(draws) > 1:
            for row in np.flatnonzero(~draws[0].result.informative):
                places[row] = next(spare, places[row])

        def take(of_draw) -> np.ndarray:
            leaves = [of_draw(draw) for draw in draws]
            return np.stack([leaves[number][row] for number, row in places])

        fields = Completions._fields
        completions = Completions(
            *(take(lambda draw, name=name: getattr(draw.completions, name)) for name in fields)
        )
        rewards = take(lambda draw: draw.rewards)
        entries = [draws[number].entries[row] for number, row in places]
        result = self._advantages(rewards, completions)
        return Chosen(places, entries, completions, rewards, result)

    def _advantages(self, rewards: np.ndarray, completions: Completions) -> Advantages:
        options = self.config.grpo
        most = self.config.rollout.max_new_tokens
        penalty = overlong_penalty(completions.lengths, options, most)
        return advantages(rewards, self._rewards.weights, options, penalty)

    def _scoring(self, entries: Sequence[Entry | None]) -> Scoring:
        most = self.config.rollout.max_new_tokens
        return Scoring(self._rewards, self._tokenizer, entries, most)

    def _of_draws(self, draws: Sequence[Draw], chosen: Chosen, seconds: dict[str, float]) -> dict:
        completions, result = (
            type(of[0])(*map(np.concatenate, zip(*of, strict=True)))
            for of in ([draw.completions for draw in draws], [draw.result for draw in draws])
        )
        rewards = np.concatenate([draw.rewards for draw in draws])
        return report.of_draws(completions, rewards, result, self._rewards.names) | {
            "draws": len(draws),
            "replaced": float(np.mean([number > 0 for number, _ in chosen.places])),
            "generated_tokens_per_second": int(completions.lengths.sum()) / seconds["rollout"],
            **{f"{name}_seconds": value for name, value in seconds.items()},
        }

    # ---- groups to updates -----------------------------------------------------------------------

    def _rows(self, draws: Sequence[Draw], chosen: Chosen) -> PolicyBatch:
        """The rows of the chosen groups, on the mesh.

        Each draw is laid out by the processes that fed it, and its rows change places on the mesh.
        """
        size, most = self.config.data.batch_size, self.config.rollout.max_new_tokens
        shared, model, made = self._shared, self.setup.model, chosen.completions
        counts = token_counts(made.lengths, made.stopped, chosen.result.used, self.config.grpo)
        weights, copies, places = self._weights(counts), self._copies, slots(counts, most, shared)
        local = list(sharding.local_rows(self.mesh, size))
        placed = []
        for number, draw in enumerate(draws):
            own = np.zeros((2, *counts.shape), np.float32)
            for row, (of, there) in enumerate(chosen.places):
                if of == number:
                    own[:, there] = chosen.result.values[row], weights[row]
            completions = Completions(*(leaf[local] for leaf in draw.completions))
            keep_media = draw.media is None
            rows = policy_rows(
                draw.rows, completions, *own[:, local], places, model, shared, keep_media
            )
            batch = sharding.place_batch(self.mesh, rows, size * copies)
            placed.append(batch._replace(media=draw.media))
        if len(draws) == 1:
            return placed[0]
        index = np.array([number * size + row for number, row in chosen.places])
        index = (index[:, None] * copies + np.arange(copies)).ravel()
        return _gathered(placed, index)

    def _weights(self, counts: np.ndarray) -> np.ndarray:
        """f32[B, G], the weight of a token of each completion, minibatch by minibatch."""
        options, most = self.config.grpo, self.config.rollout.max_new_tokens
        weights = np.zeros(counts.shape, np.float32)
        for part in range(options.minibatches):
            taken = counts[part :: options.minibatches]
            rows = taken if self._shared else taken.reshape(-1, 1)
            of_rows = token_weights(rows, options, most, self.setup.accumulate)
            weights[part :: options.minibatches] = of_rows.reshape(taken.shape)
        return weights

    def _update(self, state: TrainState, batch: PolicyBatch) -> tuple[TrainState, list[dict]]:
        """Make the updates of a step: (state, the metrics of each), when they are done."""
        options, done = self.config.grpo, int(state.step)
        if options.updates > 1:
            batch = batch._replace(old=self._score(state, batch))
        if options.beta:
            batch = batch._replace(reference=self._score_reference(state, batch))
        metrics = []
        for number in range(options.updates):
            part = _minibatch(
                batch, number % options.minibatches, options.minibatches, self._copies
            )
            state, told = self._policy_step(state, part)
            metrics.append(told)
            if options.reference_sync and (done + number + 1) % options.reference_sync == 0:
                state = self._sync(state)
        return state, jax.device_get(metrics)

    # ---- evaluation ------------------------------------------------------------------------------

    def evaluate(self, state: TrainState) -> tuple[dict[str, float], list[dict]]:
        """Mean rewards of the likeliest completions of the evaluation's prompts, and some texts."""
        size, most = self.config.data.batch_size, self.config.rollout.max_new_tokens
        made = []
        self._rollout.load(state)
        for number, rows in enumerate(self._evaluation):
            arrays = sharding.place_batch(self.mesh, rows, size)
            entries = self._evaluation.entries(number)
            scoring = self._scoring(entries)
            completions = self._rollout.greedy(arrays, most)
            scoring.begin(slice(None), completions)
            made.append((entries, completions, scoring))
        self._rollout.drop()
        entries = [entry for entries, _, _ in made for entry in entries]
        real = [row for row, entry in enumerate(entries) if entry is not None]
        completions = Completions(
            *(np.concatenate(leaves)[real] for leaves in zip(*(c for _, c, _ in made), strict=True))
        )
        rewards = np.concatenate([scoring.result()[:, 0] for _, _, scoring in made])[real]
        names, weights = self._rewards.names, self._rewards.weights
        lengths, stopped = completions.lengths, completions.stopped
        figures = report.of_evaluation(lengths, stopped, rewards, weights, names)
        shown = real[: self.config.loop.samples]
        texts = completion_texts(
            Completions(*(x[: len(shown)] for x in completions)), self._tokenizer
        )
        rows = [
            {"clip": entries[row].id, "reference": entries[row].answer, "caption": texts[i][0]}
            | report.reward_row(rewards[i], names)
            for i, row in enumerate(shown)
        ]
        return figures, rows


@jax.jit
def _gathered(batches: list[PolicyBatch], index: np.ndarray) -> PolicyBatch:
    """The rows `index` of all batches one after the other."""
    return jax.tree.map(lambda *leaves: _on_devices(jnp.concatenate(leaves)[index]), *batches)


@functools.partial(jax.jit, static_argnames=("parts", "copies"))
def _part_of(batch: PolicyBatch, part: int, parts: int, copies: int) -> PolicyBatch:
    """The groups part, part + parts, ... of `copies` rows each; each device keeps its rows."""

    def take(leaf):
        groups = leaf.reshape(len(leaf) // (parts * copies), parts, copies, *leaf.shape[1:])
        return _on_devices(groups[:, part].reshape(len(leaf) // parts, *leaf.shape[1:]))

    return jax.tree.map(take, batch)


def _minibatch(batch: PolicyBatch, part: int, parts: int, copies: int) -> PolicyBatch:
    return batch if parts == 1 else _part_of(batch, part, parts, copies)


def _on_devices(rows: jax.Array) -> jax.Array:
    """Rows split over the devices that share a batch."""
    return sharding.constrain(rows, ("batch",) + (None,) * (rows.ndim - 1))
