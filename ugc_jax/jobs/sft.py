"""Fine-tune a checkpoint on extracted clips and their captions (`ugc-jax extract` makes them).

The output gets checkpoints, metrics and sample captions, and at the end the trained model, in its
folder `model`, which `caption` and transformers load. Run again, it goes on from the last
checkpoint. SIGTERM and Ctrl-C save and stop; the exit status is then 143 or 130.
"""

import logging

from ugc_jax.data import pipeline
from ugc_jax.train.checkpoint import Checkpoints
from ugc_jax.train.export import export
from ugc_jax.train.loop import Loop
from ugc_jax.train.samples import make_sampler
from ugc_jax.train.settings import SftConfig
from ugc_jax.train.start import begin, settings_of, start
from ugc_jax.train.state import abstract_state
from ugc_jax.train.supervised import Supervised

logger = logging.getLogger(__name__)


CONFIG = SftConfig


def main(config: SftConfig, args: list[str]) -> int:
    """Exit status 0, or after a signal 143 or 130."""
    data, loop, size = config.data, config.loop, config.data.batch_size
    base, model, tokenizer, mesh, rows = begin(
        config.checkpoint, config.revision, config.mesh, size, config.distributed
    )
    training = pipeline.training(data, tokenizer, model, rows, loop.steps, loop.epochs)
    logger.info("%s: %s", data.train, training.plan.describe())
    setup = config.setup(model, mesh, len(training))
    evaluation = pipeline.evaluation(data, tokenizer, model, rows) if data.eval else None
    sample = make_sampler(data, loop.samples, loop.sample_tokens, setup, tokenizer)
    settings, batches = settings_of(config, model), iter(training)
    with Checkpoints(config.output, loop.keep) as checkpoints:
        state = start(base, setup, checkpoints, settings, batches, loop.seed)
        work = Supervised(setup, batches, size, evaluation, sample)
        state, status = Loop(work, loop, config.output, checkpoints, settings).run(state)
        if status == 0 and loop.export == "best":
            del state  # two would lie there at a time
            state, _ = checkpoints.restore(abstract_state(setup), checkpoints.best)
    if status == 0:
        export(state, setup, config.output, base, loop.export_dtype)
    return status
