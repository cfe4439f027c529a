"""Compile an sft config's train step for a TPU slice, and say whether it fits there.

Neither a TPU nor the weights are needed, but the TPU compiler: pip install "jax[tpu]". Where the
checkpoint is not on this disk, the size that its name tells is planned for; where the records are
not, rows of typical clips. Exit status 1 when the step does not fit.
"""

import dataclasses
import logging
from pathlib import Path

from ugc_jax.config import SIZES, OmniConfig
from ugc_jax.data import pipeline
from ugc_jax.data.batching import BucketKey
from ugc_jax.data.planning import parse_mixture
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.generate.results import write_json
from ugc_jax.hf.config import load_config
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.hf.tokenizer import load_tokenizer
from ugc_jax.train.plan import Clip, batch_shapes, plan_step, topology_mesh
from ugc_jax.train.settings import SftConfig
from ugc_jax.train.state import Setup

logger = logging.getLogger(__name__)

_RELEASED = {"Qwen/Qwen2.5-Omni-3B": "3b", "Qwen/Qwen2.5-Omni-7B": "7b"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig(SftConfig):
    """Settings of plan, besides those of sft."""

    topology: str  # TPU slice: v5e:4x4, v6e:2x4, v5p:2x2x2, v4:2x2x4, tpu7x:2x2x1, ...
    report: str | None = None  # JSON file for the figures
    clip: Clip = Clip()


CONFIG = PlanConfig


def main(config: PlanConfig, args: list[str]) -> int:
    """Exit status 0, or 1 when the step does not fit."""
    mesh = topology_mesh(config.topology, config.mesh)
    model = _model(config)
    key = _bucket(config, model)
    loop, size = config.loop, config.data.batch_size
    print(
        f"{size} rows of {key.tokens} tokens, {key.grids} grids of {key.windows} windows and "
        f"{key.chunks} chunks of sound; attention {config.compute.attention}"
    )
    setup = config.setup(model, mesh, Setup.steps)  # their number is all the same here
    plan = plan_step(setup, batch_shapes(key, size, model, mesh, loop.accumulate))
    print(plan.table())
    if config.report is not None:
        figures = {**plan._asdict(), "chip": plan.chip._asdict(), "fits": plan.fits}
        settings = dataclasses.asdict(config)
        write_json(config.report, {"settings": settings, "row": key._asdict(), **figures})
    return 0 if plan.fits else 1


def _model(config: PlanConfig) -> OmniConfig:
    if config.checkpoint in _RELEASED:
        return SIZES[_RELEASED[config.checkpoint]]()
    return load_config(resolve_checkpoint(config.checkpoint, config.revision, weights=False))


def _bucket(config: PlanConfig, model: OmniConfig) -> BucketKey:
    """The largest shape of the run's rows."""
    data = config.data
    folders = [folder for folder, _ in parse_mixture(data.train)]
    if not all(Path(folder).is_dir() for folder in folders):
        logger.warning("%s is not here; planning for rows of typical clips", data.train)
        return config.clip.bucket(data, model)
    base = resolve_checkpoint(config.checkpoint, config.revision, weights=False)
    tokenizer = ChatTokenizer(load_tokenizer(base), model.tokens, str(base))
    steps = config.loop.steps, config.loop.epochs
    return max(pipeline.training(data, tokenizer, model, (), *steps).plan.buckets)
