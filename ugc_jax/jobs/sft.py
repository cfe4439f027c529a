"""Fine-tune a checkpoint on extracted clips and their captions (from `ugc-jax extract`).

Writes checkpoints, metrics and sample captions to the output, and at the end the trained model to
its folder `model`, which `caption` and transformers load. Run again, it resumes from the last
checkpoint. SIGTERM and Ctrl-C save and stop; the exit status is then 143 or 130.
"""

import logging

from ugc_jax.data import pipeline
from ugc_jax.hf.trained import Trained
from ugc_jax.plan.chips import peak_flops
from ugc_jax.plan.flops import step_flops
from ugc_jax.plan.remat import device_memory, least_remat, sft_peak
from ugc_jax.plan.shapes import batch_shapes, largest
from ugc_jax.settings import Schema
from ugc_jax.train.run import Together, continue_data, open_run, together, train
from ugc_jax.train.samples import make_sampler
from ugc_jax.train.settings import SFT_SHORT, SftConfig
from ugc_jax.train.supervised import Supervised

logger = logging.getLogger(__name__)

SETTINGS = Schema(SftConfig, short=SFT_SHORT)


def main(config: SftConfig, args: list[str]) -> int:
    """Exit status 0, or after a signal 143 or 130; of a lost distributed run 75."""
    with together(config) as process:
        return _train(config, process)


def _train(config: SftConfig, process: Together) -> int:
    run, data, loop = open_run(config), config.data, config.loop
    source = data, run.tokenizer, run.model, run.rows
    length = loop.steps, loop.epochs
    training = pipeline.training(*source, *length, config.packing, config.hide_media)
    batches = iter(training)
    continue_data(run, batches)
    logger.info("%s: %s", data.train, training.plan.describe())
    evaluation = pipeline.evaluation(*source, config.packing) if data.eval else None
    setup = config.setup(run.model, run.mesh, len(training))
    if config.compute.remat == "auto":
        batch = batch_shapes(
            largest(training.plan.buckets), data.batch_size, run.model, run.mesh, loop.accumulate
        )
        has = device_memory(run.mesh)
        setup = least_remat(setup, lambda setup: sft_peak(setup, batch), has)
    sample = make_sampler(data, loop.samples, config.sampling, setup, run.tokenizer)
    peak = peak_flops(run.mesh)
    count = None if peak is None else step_flops
    work = Supervised(setup, batches, data.batch_size, evaluation, sample, count)
    return train(run, work, Trained(training.shown_clip()), process, peak)
