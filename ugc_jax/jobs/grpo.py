"""Train a captioner by rewards (GRPO) of groups of sampled captions.

Its clips are from `ugc-jax extract`; their captions are only references for the rewards. Starts
from a checkpoint, or from the model of the sft run whose output is given. Writes checkpoints,
metrics and the sampled completions with their rewards to the output, and at the end the trained
model to its folder `model`. Run again, it resumes from the last checkpoint. SIGTERM and Ctrl-C save
and stop; the exit status is then 143 or 130.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping

from ugc_jax.data import pipeline
from ugc_jax.hf.trained import Trained
from ugc_jax.plan.remat import device_memory, grpo_peak, least_remat
from ugc_jax.plan.shapes import batch_shapes, largest
from ugc_jax.rl.rewards.runner import Rewards
from ugc_jax.rl.settings import GRPO_SHORT, GrpoConfig
from ugc_jax.rl.step import Grpo
from ugc_jax.settings import Schema
from ugc_jax.toy.reward import REWARDS
from ugc_jax.train.run import Together, continue_data, open_run, together, train

logger = logging.getLogger(__name__)

SETTINGS = Schema(GrpoConfig, short=GRPO_SHORT)


def main(config: GrpoConfig, args: list[str]) -> int:
    """Exit status 0, or after a signal 143 or 130; of a lost distributed run 75."""
    return run_grpo(config)


def run_grpo(config: GrpoConfig, functions: Mapping[str, Callable] | None = None) -> int:
    """Train; returns the exit status. functions: own rewards by name, instead of rewards.file."""
    with together(config) as process:
        return _train(config, functions, process)


def check_rewards(config: GrpoConfig, functions: Mapping[str, Callable] | None = None):
    """Raise UserError if a run could not use its rewards. functions: as of `run_grpo`."""
    Rewards(config.rewards, REWARDS, functions).close()


def _train(config: GrpoConfig, functions: Mapping[str, Callable] | None, process: Together) -> int:
    data, loop, further = config.data, config.loop, config.further_batches
    # The rewards come first: a wrong name is told before the weights are read.
    with contextlib.closing(Rewards(config.rewards, REWARDS, functions)) as rewards:
        run = open_run(config)
        source = data, run.tokenizer, run.model, run.rows
        prompts = pipeline.prompt_batches(*source, loop.steps, loop.epochs, further)
        batches = iter(prompts)
        continue_data(run, batches)
        draws = f"; a step draws 1 to {1 + further} of them" if further else ""
        logger.info("%s: %s%s", data.train, prompts.plan.describe(), draws)
        evaluation, count = None, config.rollout.eval_prompts
        if data.eval is not None:
            evaluation = pipeline.prompt_evaluation(*source, count)
        setup = config.setup(run.model, run.mesh, len(prompts) // (1 + further))
        if config.compute.remat == "auto":
            key = largest(prompts.plan.buckets)
            shapes = batch_shapes(key, data.batch_size, run.model, run.mesh)
            options, rollout = config.grpo, config.rollout
            setup = least_remat(
                setup,
                lambda setup: grpo_peak(setup, options, rollout, shapes),
                device_memory(run.mesh),
            )
        work = Grpo(setup, config, prompts, batches, rewards, run.tokenizer, evaluation)
        return train(run, work, Trained(prompts.shown_clip()), process)
