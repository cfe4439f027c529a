"""Train a captioner by rewards (GRPO): captions are sampled, scored, and learned from in groups.

Its clips are what `ugc-jax extract` made; a caption on record is only a reference for the rewards.
Begins with a checkpoint, or with the model of an sft run whose output is given. The output gets
checkpoints, metrics, the sampled completions with their rewards, and at the end the trained model
in its folder `model`. Run again, it goes on from the last checkpoint. SIGTERM and Ctrl-C save and
stop; the exit status is then 143 or 130.
"""

import contextlib
import logging

from ugc_jax.data import pipeline
from ugc_jax.rl.rewards.runner import Rewards
from ugc_jax.rl.settings import GrpoConfig
from ugc_jax.rl.step import Grpo
from ugc_jax.train.checkpoint import Checkpoints
from ugc_jax.train.export import export
from ugc_jax.train.loop import Loop
from ugc_jax.train.start import begin, settings_of, start
from ugc_jax.train.state import abstract_state

logger = logging.getLogger(__name__)


CONFIG = GrpoConfig


def main(config: GrpoConfig, args: list[str]) -> int:
    """Exit status 0, or after a signal 143 or 130."""
    data, loop, further = config.data, config.loop, config.further
    base, model, tokenizer, mesh, rows = begin(
        config.checkpoint, config.revision, config.mesh, data.batch_size, config.distributed
    )
    feed = (data, tokenizer, model, rows)
    prompts = pipeline.prompt_batches(*feed, loop.steps, loop.epochs, further)
    draws = f"; a step draws 1 to {1 + further} of them" if further else ""
    logger.info("%s: %s%s", data.train, prompts.plan.describe(), draws)
    evaluation = pipeline.prompt_evaluation(*feed, loop.eval_prompts) if data.eval else None
    setup = config.setup(model, mesh, len(prompts) // (1 + further))
    settings, batches = settings_of(config, model), iter(prompts)
    with (
        contextlib.closing(Rewards(config.rewards)) as rewards,
        Checkpoints(config.output, loop.keep, "eval_reward", "max") as checkpoints,
    ):
        updates = config.grpo.updates
        work = Grpo(setup, config, prompts, batches, rewards, tokenizer, evaluation)
        state = start(base, setup, checkpoints, settings, batches, loop.seed, updates)
        state, status = Loop(work, loop, config.output, checkpoints, settings).run(state)
        if status == 0 and loop.export == "best":
            del state  # two would lie there at a time
            state, _ = checkpoints.restore(abstract_state(setup), checkpoints.best)
    if status == 0:
        export(state, setup, config.output, base, loop.export_dtype)
    return status
