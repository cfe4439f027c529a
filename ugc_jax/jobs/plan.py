"""Compile an sft or grpo config's programs: whether they fit, and the least time of a step.

For a TPU slice (--topology) it needs the TPU compiler (pip install "jax[tpu]"), but neither a TPU
nor the weights; without one, it plans for the accelerators of this machine. If the checkpoint is
not on this disk, plans for the size in its name (3b or 7b); without the records, for rows of
typical clips. The times are floors: data-sheet speeds, no pauses. Where something does not fit, the
nearest settings that need less memory are tried, one after the other. Exit status 1 when something
does not fit.
"""

import dataclasses
import functools
import json
import logging
import math
import typing
from pathlib import Path

from ugc_jax import files
from ugc_jax.data import pipeline
from ugc_jax.data.batching import BucketKey
from ugc_jax.data.planning import DataConfig, parse_mixture
from ugc_jax.errors import UserError
from ugc_jax.hf.tokenizer import load_chat_tokenizer
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.plan.floors import Duration
from ugc_jax.plan.grpo import GrpoPlan, plan_grpo
from ugc_jax.plan.memory import chip_in, gib, local_mesh, topology_mesh
from ugc_jax.plan.remat import grpo_peak, least_remat, sft_peak
from ugc_jax.plan.sft import StepPlan, plan_sft
from ugc_jax.plan.shapes import TypicalClip, batch_shapes, describe, largest, model_of
from ugc_jax.rl.rollout import Rollout
from ugc_jax.rl.settings import GRPO_SHORT, GrpoConfig
from ugc_jax.settings import Schema, short_names
from ugc_jax.sharding import MESH_AXES, MeshConfig, shard_count
from ugc_jax.train.run import resolve_weights
from ugc_jax.train.settings import SFT_SHORT, SftConfig
from ugc_jax.train.state import Setup

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Settings of plan, besides those of sft or grpo."""

    # TPU slice: v5e:4x4, v6e:2x4, v5p:2x2x2, v4:2x2x4, tpu7x:2x2x1, ... (default: the accelerators
    # of this machine)
    topology: str | None = None
    # several slices in one table, with meshes: v5e:2x4,v5e:4x4/tensor=2,v6e:2x4/data=2. The batch
    # is enlarged where it has too few rows
    sweep: str | None = None
    knobs: bool = True  # where it does not fit, try the nearest settings that need less memory
    json: bool = False  # print the figures as JSON, not as text
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
    if config.sweep is not None:
        return _sweep(config)
    if config.topology is None:
        mesh = local_mesh(config.mesh)
    else:
        mesh = topology_mesh(config.topology, config.mesh)
    model = model_of(config.checkpoint, config.revision)
    source = _source(config, model)
    setup = _setup(config, model, mesh, source, quiet=config.json)
    plan = _plan(config, setup, source)
    tried = _knobs(config, model, mesh, source) if config.knobs and not plan.fits else []
    about = {"settings": dataclasses.asdict(config), "row": source.key._asdict()}
    about["compute"] = dataclasses.asdict(setup.compute)  # without auto
    figures = about | plan.figures()
    if tried:
        figures["knobs"] = [{"setting": words, **one.figures()} for words, one in tried]
    if config.json:
        print(json.dumps(figures, indent=2))
    else:
        print(plan.table())
        for words, one in tried:
            print(f"  with {words}: {_peak(one)}")
    if config.report is not None:
        files.write_json(config.report, figures, "choose another file", indent=2)
    return 0 if plan.fits else 1


def _setup(config, model: OmniConfig, mesh, source: "_Source", quiet: bool = False) -> Setup:
    """The setup of a run; compute.remat=auto is chosen for the chips of the mesh."""
    batch = _batch(config, model, mesh, source)
    setup = config.setup(model, mesh, Setup.steps)  # of no effect on the plan
    if config.compute.remat == "auto":
        if isinstance(config, GrpoConfig):
            peak = functools.partial(
                grpo_peak, options=config.grpo, config=config.rollout, prompts=batch
            )
        else:
            peak = functools.partial(sft_peak, batch=batch)
        setup = least_remat(setup, peak, chip_in(mesh).hbm)
    if not quiet:
        chosen = " (auto)" if config.compute.attention == "auto" else ""
        remat = f"; remat {setup.compute.remat} (auto)" if config.compute.remat == "auto" else ""
        print(f"{describe(batch)}; attention {setup.compute.attention}{chosen}{remat}")
    return setup


def _batch(config, model: OmniConfig, mesh, source: "_Source"):
    return batch_shapes(source.key, config.data.batch_size, model, mesh, config.loop.accumulate)


def _plan(config, setup: Setup, source: "_Source") -> StepPlan | GrpoPlan:
    batch = _batch(config, setup.model, setup.mesh, source)
    duration = source.duration(config)
    if isinstance(config, GrpoConfig):
        config.check_rows(setup.mesh, Rollout(setup, config.rollout).mesh)
        return plan_grpo(setup, config.grpo, config.rollout, batch, duration)
    return plan_sft(setup, batch, duration)


# ---- several slices ------------------------------------------------------------------------------


def _sweep(config) -> int:
    """Plan for each slice of config.sweep; prints a table or JSON."""
    if config.topology is not None:
        raise UserError("topology and sweep are both set; name all slices in sweep")
    slices = [_slice(config, words) for words in config.sweep.split(",")]
    model = model_of(config.checkpoint, config.revision)
    source = _source(config, model)
    figures, rows = [], [SWEEP_HEAD]
    for number, (words, topology, mesh_config) in enumerate(slices, 1):
        logger.info("%d of %d: %s", number, len(slices), words)
        mesh = topology_mesh(topology, mesh_config)
        here = dataclasses.replace(config, mesh=mesh_config, data=_enough_rows(config, mesh))
        plan = _plan(here, _setup(here, model, mesh, source, quiet=True), source)
        figures.append({"slice": words, "rows": here.data.batch_size, **plan.figures()})
        rows.append(_sweep_row(words, here, plan, source))
    if config.json:
        print(json.dumps(figures, indent=2))
    else:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)))
    if config.report is not None:
        files.write_json(config.report, figures, "choose another file", indent=2)
    return 0 if all(one["fits"] for one in figures) else 1


SWEEP_HEAD = (
    "slice", "chips", "rows", "GiB a chip", "of", "fits", "s a step", "MFU", "bound", "examples/s",
    "hours", "chip-hours",
)  # fmt: skip


def _sweep_row(words: str, config, plan: StepPlan | GrpoPlan, source: "_Source") -> tuple[str, ...]:
    if isinstance(plan, GrpoPlan):
        seconds, peak = plan.seconds, max(one.peak for one in plan.programs)
        bound = max(plan.programs, key=lambda one: one.floors.step).name
    else:
        seconds, peak, bound = plan.floors.step, plan.peak, plan.floors.bound
    run = source.duration(config).figures(plan.chips, seconds)
    return (
        words, str(plan.chips), str(config.data.batch_size), gib(peak), gib(plan.chip.hbm),
        "yes" if plan.fits else "NO", f"{seconds:.3f}", f"{plan.mfu:.0%}", bound,
        f"{run['examples_per_second']:,.1f}", f"{run['hours']:,.2f}", f"{run['chip_hours']:,.1f}",
    )  # fmt: skip


def _slice(config, words: str) -> tuple[str, str, MeshConfig]:
    """(itself, topology, mesh) of TOPOLOGY[/data=N][/fsdp=N][/tensor=N]."""
    topology, *sizes = words.strip().split("/")
    given = dict(size.partition("=")[::2] for size in sizes)
    if not given.keys() <= set(MESH_AXES) or not all(
        text.removeprefix("-").isdecimal() for text in given.values()
    ):
        raise UserError(
            f"sweep: {words}: write TOPOLOGY/data=N/fsdp=N/tensor=N, of which any size may miss"
        )
    mesh = dataclasses.replace(config.mesh, **{name: int(text) for name, text in given.items()})
    return words.strip(), topology, mesh


def _enough_rows(config, mesh) -> DataConfig:
    """The data's settings with a batch that the mesh divides."""
    parts = shard_count("batch", mesh) * config.loop.accumulate
    if isinstance(config, GrpoConfig):
        parts *= config.grpo.minibatches
    return dataclasses.replace(config.data, batch_size=-(-config.data.batch_size // parts) * parts)


# ---- what needs less memory ----------------------------------------------------------------------


def _knobs(config, model: OmniConfig, mesh, source: "_Source") -> list[tuple[str, typing.Any]]:
    """Plan with each of the settings that need less memory; returns (setting, plan)."""
    is_grpo, optimizer, loop = isinstance(config, GrpoConfig), config.optimizer, config.loop
    rows = config.data.batch_size // (loop.accumulate * shard_count("batch", mesh))
    changes: list[tuple[str, dict]] = []
    if config.compute.remat in ("none", "dots"):
        changes.append(("compute.remat", {"compute": {"remat": "full"}}))
    if rows % 2 == 0:
        changes.append(("loop.accumulate", {"loop": {"accumulate": loop.accumulate * 2}}))
    if is_grpo and config.data.batch_size // config.rollout.parts % 2 == 0:
        changes.append(("rollout.parts", {"rollout": {"parts": config.rollout.parts * 2}}))
    if optimizer.name == "adamw":
        if optimizer.mu_dtype != "bfloat16":
            changes.append(("optimizer.mu_dtype", {"optimizer": {"mu_dtype": "bfloat16"}}))
        changes.append(("optimizer.name", {"optimizer": {"name": "adafactor", "mu_dtype": None}}))
    if config.master == "float32":
        changes.append(("master", {"master": "bfloat16"}))
    found = []
    for name, change in changes:
        section, _, key = name.rpartition(".")
        value = change[section][key] if section else change[key]
        words = f"{name}={value}"
        logger.info("it does not fit; trying %s", words)
        other = _changed(config, change)
        try:
            setup = _setup(other, model, mesh, source, quiet=True)
            found.append((words, _plan(other, setup, source)))
        except UserError as error:
            logger.info("%s: %s", words, error)
    return found


def _changed(config, change: dict):
    """A config with other values of some settings."""
    new = {
        name: dataclasses.replace(getattr(config, name), **value)
        if isinstance(value, dict)
        else value
        for name, value in change.items()
    }
    return dataclasses.replace(config, **new)


def _peak(plan: StepPlan | GrpoPlan) -> str:
    is_grpo = isinstance(plan, GrpoPlan)
    peak = max(one.peak for one in plan.programs) if is_grpo else plan.peak
    verdict = "fits" if plan.fits else "does not fit"
    return f"{gib(peak)} of {gib(plan.chip.hbm)} GiB, {verdict}"


# ---- the data ------------------------------------------------------------------------------------


class _Source(typing.NamedTuple):
    """The largest row of a run, and how much there is to train on.

    examples: in a row, on average. clips: of an epoch.
    """

    key: BucketKey
    examples: float
    clips: float

    def duration(self, config) -> Duration:
        """Return the examples of a step and the steps of the config's run."""
        each = self.examples * config.data.batch_size
        steps = config.loop.steps or math.ceil(config.loop.epochs * self.clips / each)
        return Duration(each, steps)


def _source(config: PlanConfig, model: OmniConfig) -> _Source:
    """The maximum of each size over the shapes of the run's rows, and the run's examples."""
    data, is_grpo = config.data, isinstance(config, GrpoConfig)
    packing = not is_grpo and config.packing
    if not all(Path(folder).is_dir() for folder, _ in parse_mixture(data.train)):
        logger.warning("%s: not found; planning for rows of typical clips", data.train)
        clip = config.typical
        key = clip.bucket(data, model, packing)
        return _Source(key, clip.examples(data, model, packing), clip.clips)
    base = resolve_weights(config.checkpoint, config.revision, weights=False)
    tokenizer = load_chat_tokenizer(base, model.tokens)
    source = data, tokenizer, model, (), config.loop.steps, config.loop.epochs
    rows = pipeline.prompt_batches(*source) if is_grpo else pipeline.training(*source, packing)
    plan = rows.plan
    each = len(plan.items) / (len(plan) * plan.batch_size)
    return _Source(largest(plan.buckets), each, plan.steps_per_epoch * plan.batch_size * each)
