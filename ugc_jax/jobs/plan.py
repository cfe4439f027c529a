"""Compile an sft or grpo config's programs for a TPU slice, and say whether they fit there.

Needs the TPU compiler (pip install "jax[tpu]"), but neither a TPU nor the weights. If the
checkpoint is not on this disk, plans for the size in its name (3b or 7b); without the records, for
rows of typical clips. Exit status 1 when something does not fit.
"""

import dataclasses
import logging
from pathlib import Path

from ugc_jax import files
from ugc_jax.data import pipeline
from ugc_jax.data.batching import BucketKey
from ugc_jax.data.planning import parse_mixture
from ugc_jax.hf.tokenizer import load_chat_tokenizer
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.plan.grpo import plan_grpo
from ugc_jax.plan.memory import topology_mesh
from ugc_jax.plan.sft import plan_sft
from ugc_jax.plan.shapes import TypicalClip, batch_shapes, describe, model_of
from ugc_jax.rl.rollout import Rollout
from ugc_jax.rl.settings import GrpoConfig
from ugc_jax.train.run import resolve_weights
from ugc_jax.train.settings import SftConfig
from ugc_jax.train.state import Setup

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Settings of plan, besides those of sft or grpo."""

    topology: str  # TPU slice: v5e:4x4, v6e:2x4, v5p:2x2x2, v4:2x2x4, tpu7x:2x2x1, ...
    report: str | None = None  # JSON file for the figures
    clip: TypicalClip = TypicalClip()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftPlanConfig(PlanConfig, SftConfig): ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrpoPlanConfig(PlanConfig, GrpoConfig): ...


CONFIG = SftPlanConfig, GrpoPlanConfig


def main(config: SftPlanConfig | GrpoPlanConfig, args: list[str]) -> int:
    """Exit status 0, or 1 when something does not fit."""
    mesh = topology_mesh(config.topology, config.mesh)
    model = model_of(config.checkpoint, config.revision)
    key = _bucket(config, model)
    batch = batch_shapes(key, config.data.batch_size, model, mesh, config.loop.accumulate)
    print(f"{describe(batch)}; attention {config.compute.attention}")
    setup = config.setup(model, mesh, Setup.steps)  # of no effect on the plan
    if isinstance(config, GrpoConfig):
        config.check_rows(mesh, Rollout(setup, config.rollout).mesh)
        plan = plan_grpo(setup, config.grpo, config.rollout, batch)
    else:
        plan = plan_sft(setup, batch)
    print(plan.table())
    if config.report is not None:
        about = {"settings": dataclasses.asdict(config), "row": key._asdict()}
        files.write_json(config.report, about | plan.figures(), "choose another file", indent=2)
    return 0 if plan.fits else 1


def _bucket(config: PlanConfig, model: OmniConfig) -> BucketKey:
    """The maximum of each size over the shapes of the run's rows."""
    data, steps = config.data, (config.loop.steps, config.loop.epochs)
    if not all(Path(folder).is_dir() for folder, _ in parse_mixture(data.train)):
        logger.warning("%s: not found; planning for rows of typical clips", data.train)
        return config.clip.bucket(data, model)
    base = resolve_weights(config.checkpoint, config.revision, weights=False)
    tokenizer = load_chat_tokenizer(base, model.tokens)
    rows = pipeline.prompt_batches if isinstance(config, GrpoConfig) else pipeline.training
    buckets = rows(data, tokenizer, model, (), *steps).plan.buckets
    return BucketKey(*map(max, zip(*buckets, strict=True)))
