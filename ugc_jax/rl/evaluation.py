"""The evaluation of a GRPO run: rewards of the greedy completion of each prompt."""

import contextlib

import jax
import numpy as np

from ugc_jax.data.pipeline import Pipeline
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.rl import metrics as report
from ugc_jax.rl import supported
from ugc_jax.rl.rewards.runner import BatchRewards, Rewards, completion_texts
from ugc_jax.rl.rollout import Rollout
from ugc_jax.rl.rows import Completions
from ugc_jax.rl.settings import GrpoConfig
from ugc_jax.train.feed import placed_batches
from ugc_jax.train.meter import Meter
from ugc_jax.train.state import TrainState
from ugc_jax.train.stopping import StopRequest


def evaluate(
    state: TrainState,
    rollout: Rollout,
    prompts: Pipeline,
    rewards: Rewards,
    tokenizer: ChatTokenizer,
    config: GrpoConfig,
    meter: Meter,
    stop: StopRequest,
) -> tuple[dict[str, float], list[dict]]:
    """Return (metrics, rows of the table "samples") of a state.

    A batch is completed while the rewards of earlier batches are computed. Raises Stopped by `stop`
    between batches, and while it waits for one or for rewards.
    """
    most, batches = config.rollout.sampling.max_new_tokens, []
    size = config.data.batch_size
    placed = placed_batches(prompts, rollout.setup.mesh, size, stop.waiting)
    rollout.load(state)
    try:
        with contextlib.closing(placed):
            for number, arrays in enumerate(placed):
                stop.check()
                entries = prompts.entries(number)
                scores = BatchRewards(rewards, tokenizer, entries, most)
                completions = rollout.greedy(arrays, most, stop.check)
                told = None
                if supported.NAME in rewards.names:
                    rows = jax.device_get(arrays)
                    told = rollout.supported(rows, completions, tokenizer)
                scores.submit(slice(None), completions, told)
                batches.append((entries, completions, scores))
    finally:
        rollout.drop()

    entries = [entry for entries, _, _ in batches for entry in entries]
    real = [row for row, entry in enumerate(entries) if entry is not None]
    leaves = zip(*(completions for _, completions, _ in batches), strict=True)
    completions = Completions(*(np.concatenate(leaf)[real] for leaf in leaves))
    with meter.phases("rewards"):
        known = [scores.result(check=stop.waiting)[:, 0] for _, _, scores in batches]
    values = np.concatenate(known)[real]
    metrics = report.evaluation_metrics(completions, values, rewards.weights, rewards.names)
    sampled = real[: config.loop.samples]
    first = Completions(*(leaf[: len(sampled)] for leaf in completions))
    texts = completion_texts(first, tokenizer)
    samples = [
        {"clip": entries[row].id, "reference": entries[row].answer, "caption": texts[i][0]}
        | report.reward_row(values[i], rewards.names)
        for i, row in enumerate(sampled)
    ]
    return metrics, samples
