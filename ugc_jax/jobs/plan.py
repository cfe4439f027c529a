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
from ugc_jax.rl.settings import GRPO_SHORT, GrpoConfig
from ugc_jax.settings import Schema, short_names
from ugc_jax.train.run import resolve_weights
from ugc_jax.train.settings import SFT_SHORT, SftConfig
from ugc_jax.train.state import Setup

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Settings of plan, besides those of sft or grpo."""

    topology: str  # TPU slice: v5e:4x4, v6e:2x4, v5p:2x2x2, v4:2x2x4, tpu7x:2x2x1, ...
    report: str | None = None  # JSON file for the figures
    typical: TypicalClip = TypicalClip()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftPlanConfig(PlanConfig, SftConfig): ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrpoPlanConfig(PlanConfig, GrpoConfig): ...


# The names of earlier versions of what is now `typical`.
_CLIP = {f"clip.{name}": key for name, key in short_names(typical=TypicalClip).items()}
_BOTH = {  # names that the two jobs have for settings of different sections
    name: (SFT_SHORT[name], GRPO_SHORT[name])
    for name in SFT_SHORT.keys() & GRPO_SHORT.keys()
    if SFT_SHORT[name] != GRPO_SHORT[name]
}
SETTINGS = Schema(SftPlanConfig, GrpoPlanConfig, short=SFT_SHORT | GRPO_SHORT | _CLIP | _BOTH)


def main(config: SftPlanConfig | GrpoPlanConfig, args: list[str]) -> int:
    """Exit status 0, or 1 when something does not fit."""
    mesh = topology_mesh(config.topology, config.mesh)
    model = model_of(config.checkpoint, config.revision)
    key = _bucket(config, model)
    batch = batch_shapes(key, config.data.batch_size, model, mesh, config.loop.accumulate)
    setup = config.setup(model, mesh, Setup.steps)  # of no effect on the plan
    chosen = " (auto)" if config.compute.attention == "auto" else ""
    print(f"{describe(batch)}; attention {setup.compute.attention}{chosen}")
    if isinstance(config, GrpoConfig):
        config.check_rows(mesh, Rollout(setup, config.rollout).mesh)
        plan = plan_grpo(setup, config.grpo, config.rollout, batch)
    else:
        plan = plan_sft(setup, batch)
    print(plan.table())
    if config.report is not None:
        about = {"settings": dataclasses.asdict(config), "row": key._asdict()}
        about["compute"] = dataclasses.asdict(setup.compute)  # without auto
        files.write_json(config.report, about | plan.figures(), "choose another file", indent=2)
    return 0 if plan.fits else 1


def _bucket(config: PlanConfig, model: OmniConfig) -> BucketKey:
    """The maximum of each size over the shapes of the run's rows."""
    data, is_grpo = config.data, isinstance(config, GrpoConfig)
    packing = not is_grpo and config.packing
    if not all(Path(folder).is_dir() for folder, _ in parse_mixture(data.train)):
        logger.warning("%s: not found; planning for rows of typical clips", data.train)
        return config.typical.bucket(data, model, packing)
    base = resolve_weights(config.checkpoint, config.revision, weights=False)
    tokenizer = load_chat_tokenizer(base, model.tokens)
    source = data, tokenizer, model, (), config.loop.steps, config.loop.epochs
    rows = pipeline.prompt_batches(*source) if is_grpo else pipeline.training(*source, packing)
    buckets = rows.plan.buckets
    return BucketKey(*map(max, zip(*buckets, strict=True)))
