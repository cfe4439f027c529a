"""Compile a job's programs: whether they fit, and the least time that they take.

Plans for sft and grpo by their configs, and for caption and serve (--job caption): how many slots
fit, tokens a second and clips an hour at most.

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
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax

from ugc_jax import files
from ugc_jax.data import pipeline
from ugc_jax.data.batching import Batch, BucketKey
from ugc_jax.data.planning import parse_mixture
from ugc_jax.errors import UserError
from ugc_jax.generate.captioner import CHUNK
from ugc_jax.generate.defaults import PUBLISHED, Defaults
from ugc_jax.generate.live import USUAL_PROMPT
from ugc_jax.generate.settings import PlacesConfig, SamplingConfig
from ugc_jax.hf.tokenizer import load_chat_tokenizer
from ugc_jax.jobs.caption import used_mesh
from ugc_jax.jobs.serve import most_new_tokens
from ugc_jax.media.presets import ClipSettings, PresetSettings
from ugc_jax.models.compute import ComputeConfig
from ugc_jax.models.qwen2_5_omni.config import SIZES, OmniConfig
from ugc_jax.plan.floors import Duration
from ugc_jax.plan.generation import GenerationPlan, Prompts, plan_generation
from ugc_jax.plan.grpo import GrpoPlan, plan_grpo
from ugc_jax.plan.memory import (
    chip_in,
    gib,
    local_devices,
    local_mesh,
    topology_devices,
    topology_mesh,
)
from ugc_jax.plan.remat import grpo_peak, least_remat, sft_peak
from ugc_jax.plan.sft import StepPlan, plan_sft
from ugc_jax.plan.shapes import TypicalClip, batch_shapes, describe, largest, model_of
from ugc_jax.rl.rollout import Rollout
from ugc_jax.rl.settings import GRPO_SHORT, GrpoConfig
from ugc_jax.serve.settings import NewTokensConfig
from ugc_jax.settings import Schema, check_minimum, short_names
from ugc_jax.sharding import MESH_AXES, MeshConfig, check_heads, make_mesh, shard_count
from ugc_jax.train.run import resolve_weights
from ugc_jax.train.settings import SFT_SHORT, SftConfig
from ugc_jax.train.state import Setup

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Settings of plan, besides those of the job."""

    # whose programs to plan (none: of the job whose config or settings are given)
    job: Literal["sft", "grpo", "caption", "serve"] | None = None
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionPlanConfig(PlanConfig):
    """Settings of caption that its programs depend on."""

    checkpoint: str = PUBLISHED  # directory, or hub id such as Qwen/Qwen2.5-Omni-3B
    revision: str | None = None  # branch, tag or commit of a hub id
    caption_tokens: int | None = None  # of a caption on average (none: the most, max_new_tokens)
    clip: PresetSettings = PresetSettings()
    sampling: SamplingConfig = SamplingConfig()
    engine: PlacesConfig = PlacesConfig()
    mesh: MeshConfig = MeshConfig(data=1, fsdp=1, tensor=1)
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self):
        check_minimum(self, caption_tokens=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServePlanConfig(CaptionPlanConfig):
    """Settings of serve that its programs depend on."""

    limits: NewTokensConfig = NewTokensConfig()


JOBS = {
    "sft": SftPlanConfig, "grpo": GrpoPlanConfig, "caption": CaptionPlanConfig,
    "serve": ServePlanConfig,
}  # fmt: skip
# The names of earlier versions of what is now `typical`.
_CLIP = {f"clip.{name}": key for name, key in short_names(typical=TypicalClip).items()}
_GENERATION = short_names(
    clip=PresetSettings, sampling=SamplingConfig, engine=PlacesConfig, compute=ComputeConfig
)


def _joined(*shorts: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """Short names of several jobs, which may have them for settings of different sections."""
    names = dict.fromkeys(name for short in shorts for name in short)
    return {name: tuple({one[name]: 0 for one in shorts if name in one}) for name in names}


SETTINGS = Schema(
    *JOBS.values(), short=_joined(SFT_SHORT, GRPO_SHORT, _GENERATION, _CLIP), by=("job", JOBS)
)


def main(config: PlanConfig, args: list[str]) -> int:
    """Exit status 0, or 1 when something does not fit."""
    job = _job(config)
    if config.sweep is not None:
        return _sweep(config, job)
    plan, facts = job.plan(config, quiet=config.json)
    figures = {"settings": dataclasses.asdict(config), **facts, **plan.figures()}
    tried = _knobs(config, job, plan) if config.knobs and not plan.fits else []
    if tried:
        figures["knobs"] = [{"setting": words, **one.figures()} for words, one in tried]
    if config.json:
        print(json.dumps(figures, indent=2))
    else:
        print(plan.table())
        for words, one in tried:
            verdict = "fits" if one.fits else "does not fit"
            print(f"  with {words}: {gib(_peak(one))} of {gib(one.chip.hbm)} GiB, {verdict}")
    if config.report is not None:
        files.write_json(config.report, figures, "choose another file", indent=2)
    return 0 if plan.fits else 1


def _job(config: PlanConfig) -> "_Training | _Generation":
    if isinstance(config, CaptionPlanConfig):
        return _Generation(config)
    return _Training(config)


def _peak(plan: StepPlan | GrpoPlan | GenerationPlan) -> int:
    """The highest peak of one chip."""
    return max(one.peak for one in plan.programs) if isinstance(plan, GrpoPlan) else plan.peak


# ---- sft and grpo --------------------------------------------------------------------------------


class _Training:
    """Plans of a training config. All are of the same data."""

    HEAD = (
        "slice", "chips", "rows", "GiB a chip", "of", "fits", "s a step", "MFU", "bound",
        "examples/s", "hours", "chip-hours",
    )  # fmt: skip

    def __init__(self, config: SftPlanConfig | GrpoPlanConfig):
        self.model = model_of(config.checkpoint, config.revision)
        self.source = _source(config, self.model)

    def mesh(self, config) -> jax.sharding.Mesh:
        """Return the mesh of the slice or of this machine."""
        if config.topology is None:
            return local_mesh(config.mesh)
        return topology_mesh(config.topology, config.mesh)

    def plan(self, config, quiet: bool) -> tuple[StepPlan | GrpoPlan, dict]:
        """Compile; returns also facts for JSON. quiet: print nothing."""
        mesh = self.mesh(config)
        key, rows = self.source.key, config.data.batch_size
        batch = batch_shapes(key, rows, self.model, mesh, config.loop.accumulate)
        setup = self._setup(config, mesh, batch, quiet)
        facts = {"row": key._asdict(), "compute": dataclasses.asdict(setup.compute)}  # not auto
        duration = self.source.duration(config)
        if isinstance(config, GrpoConfig):
            config.check_rows(mesh, Rollout(setup, config.rollout).mesh)
            return plan_grpo(setup, config.grpo, config.rollout, batch, duration), facts
        return plan_sft(setup, batch, duration), facts

    def _setup(self, config, mesh: jax.sharding.Mesh, batch: Batch, quiet: bool) -> Setup:
        """The setup of a run; compute.remat=auto is chosen for the chips of the mesh."""
        setup = config.setup(self.model, mesh, Setup.steps)  # of no effect on the plan
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
            remat = f"; remat {setup.compute.remat} (auto)" * (config.compute.remat == "auto")
            print(f"{describe(batch)}; attention {setup.compute.attention}{chosen}{remat}")
        return setup

    def knobs(self, config, plan: StepPlan | GrpoPlan) -> Iterator[dict]:
        """Yield {setting: value} of the settings that need less memory."""
        mesh, optimizer, loop = self.mesh(config), config.optimizer, config.loop
        rows = config.data.batch_size // (loop.accumulate * shard_count("batch", mesh))
        if config.compute.remat in ("none", "dots"):
            yield {"compute.remat": "full"}
        if rows % 2 == 0:
            yield {"loop.accumulate": loop.accumulate * 2}
        if isinstance(config, GrpoConfig):
            parts = config.rollout.parts
            if config.data.batch_size // parts % 2 == 0:
                yield {"rollout.parts": parts * 2}
        if optimizer.name == "adamw":
            if optimizer.mu_dtype != "bfloat16":
                yield {"optimizer.mu_dtype": "bfloat16"}
            yield {"optimizer.mu_dtype": None, "optimizer.name": "adafactor"}
        if config.master == "float32":
            yield {"master": "bfloat16"}

    def for_slice(self, config):
        """Return the config with a batch that the mesh divides."""
        parts = shard_count("batch", self.mesh(config)) * config.loop.accumulate
        if isinstance(config, GrpoConfig):
            parts *= config.grpo.minibatches
        rows = -(-config.data.batch_size // parts) * parts
        return dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=rows))

    def facts(self, config) -> dict:
        """Return what the sweep's JSON says of a slice besides its plan."""
        return {"rows": config.data.batch_size}

    def row(self, words: str, config, plan: StepPlan | GrpoPlan) -> tuple[str, ...]:
        """Return the cells of a slice in the sweep's table."""
        if isinstance(plan, GrpoPlan):
            seconds = plan.seconds
            bound = max(plan.programs, key=lambda one: one.floors.step).name
        else:
            seconds, bound = plan.floors.step, plan.floors.bound
        run = self.source.duration(config).figures(plan.chips, seconds)
        return (
            words, str(plan.chips), str(config.data.batch_size), gib(_peak(plan)),
            gib(plan.chip.hbm), "yes" if plan.fits else "NO", f"{seconds:.3f}", f"{plan.mfu:.0%}",
            bound, f"{run['examples_per_second']:,.1f}", f"{run['hours']:,.2f}",
            f"{run['chip_hours']:,.1f}",
        )  # fmt: skip


# ---- caption and serve ---------------------------------------------------------------------------


class _Generation:
    """Plans of captions."""

    HEAD = (
        "slice", "chips", "slots", "that fit", "GiB a chip", "of", "fits", "ms a step", "tokens/s",
        "s of prefill", "clips/hour", "hours", "chip-hours",
    )  # fmt: skip

    def __init__(self, config: CaptionPlanConfig):
        if config.checkpoint == PUBLISHED and not Path(PUBLISHED).is_dir():
            self.model, self.defaults = SIZES["3b"](), Defaults.published(PUBLISHED)
            return
        self.model = model_of(config.checkpoint, config.revision)
        folder = Path(config.checkpoint)
        if folder.is_dir():
            self.defaults = Defaults.of(config.checkpoint, resolve_weights(config.checkpoint))
        else:
            self.defaults = Defaults.published(config.checkpoint)

    def mesh(self, config: CaptionPlanConfig) -> jax.sharding.Mesh:
        """Return the mesh of the devices that the job would use; of one device, too."""
        local = config.topology is None
        devices = local_devices() if local else topology_devices(config.topology)
        mesh = used_mesh(config.mesh, devices) or make_mesh(devices=devices[:1])
        check_heads(mesh, self.model.text.num_attention_heads)
        return mesh

    def plan(self, config: CaptionPlanConfig, quiet: bool) -> tuple[GenerationPlan, dict]:
        """Compile; returns also facts for JSON. quiet: print nothing."""
        mesh, model = self.mesh(config), self.model
        clip = ClipSettings(preset=config.clip.preset)
        _, sampling = self.defaults.apply(clip, config.sampling)
        longest = 0
        if isinstance(config, ServePlanConfig):
            most = most_new_tokens(config.limits, sampling, model)
            sampling = dataclasses.replace(sampling, max_new_tokens=most)
            longest = min(USUAL_PROMPT, model.text.max_position_embeddings - most)
        key = config.typical.prompt(model, sampling.max_new_tokens)
        device = mesh.devices.flat[0]
        slab = CHUNK[device.platform] if mesh.size == 1 else 0
        compute = config.compute.resolve(device, model.text.head_dim, slab)
        mean = min(config.caption_tokens or sampling.max_new_tokens, sampling.max_new_tokens)
        prompts = Prompts(key, max(longest, key.tokens), sampling, mean, config.typical.clips)
        if not quiet:
            print(
                f"prompts of {key.tokens} tokens, {key.grids} grids of {key.windows} windows and "
                f"{key.chunks} chunks of sound; {compute.dtype}, weights {compute.weights}, cache "
                f"{compute.cache}, attention {compute.attention}"
            )
        return plan_generation(model, compute, mesh, prompts, config.engine.batch_size), {}

    def knobs(self, config: CaptionPlanConfig, plan: GenerationPlan) -> Iterator[dict]:
        """Yield {setting: value} of the settings that need less memory of a chip."""
        compute, share = config.compute, shard_count("batch", self.mesh(config))
        if plan.compute.dtype != "bfloat16":
            yield {"compute.dtype": "bfloat16"}
        int8 = [
            f"compute.{name}" for name in ("weights", "cache") if getattr(compute, name) != "int8"
        ]
        for name in int8:
            yield {name: "int8"}
        if len(int8) == 2:
            yield dict.fromkeys(int8, "int8")
        if plan.slots >= 2 * share:
            yield {"engine.batch_size": plan.slots // 2}
        tensor = 2 * (config.mesh.tensor or 1)
        if self.model.text.num_key_value_heads % tensor == 0:
            change = {"mesh.tensor": tensor}
            if config.topology is not None:
                chips = math.prod(map(int, re.findall(r"\d+", config.topology.partition(":")[2])))
                if chips < share * tensor:
                    change["topology"] = _next_slice(config.topology)
            yield change

    def for_slice(self, config: CaptionPlanConfig) -> CaptionPlanConfig:
        """Return the config, which is for any slice."""
        return config

    def facts(self, config: CaptionPlanConfig) -> dict:
        """Return what the sweep's JSON says of a slice besides its plan."""
        return {}

    def row(self, words: str, config: CaptionPlanConfig, plan: GenerationPlan) -> tuple[str, ...]:
        """Return the cells of a slice in the sweep's table."""
        run = plan.figures()
        return (
            words, str(plan.chips), str(plan.slots), str(plan.most), gib(plan.peak),
            gib(plan.chip.hbm), "yes" if plan.fits else "NO", f"{run['step_seconds'] * 1e3:.2f}",
            f"{plan.tokens_per_second:,.0f}", f"{plan.prefill_seconds:.3f}",
            f"{run['clips_per_hour']:,.0f}", f"{run['duration']['hours']:,.2f}",
            f"{run['duration']['chip_hours']:,.2f}",
        )  # fmt: skip


def _next_slice(topology: str) -> str:
    """The next slice: its shortest side is doubled; after a single chip come four."""
    name, _, sides = topology.partition(":")
    sizes = [int(size) for size in sides.split("x")]
    if sizes == [1, 1]:
        return f"{name}:2x2"
    sizes[sizes.index(min(sizes))] *= 2
    return f"{name}:{'x'.join(map(str, sorted(sizes)))}"


# ---- several slices ------------------------------------------------------------------------------


def _sweep(config: PlanConfig, job: _Training | _Generation) -> int:
    """Plan for each slice of config.sweep; prints a table or JSON."""
    if config.topology is not None:
        raise UserError("topology and sweep are both set; name all slices in sweep")
    slices = [_slice(config, words) for words in config.sweep.split(",")]
    figures, rows = [], [job.HEAD]
    for number, (words, topology, mesh) in enumerate(slices, 1):
        logger.info("%d of %d: %s", number, len(slices), words)
        here = job.for_slice(dataclasses.replace(config, topology=topology, mesh=mesh, sweep=None))
        plan, _ = job.plan(here, quiet=True)
        figures.append({"slice": words, **job.facts(here), **plan.figures()})
        rows.append(job.row(words, here, plan))
    if config.json:
        print(json.dumps(figures, indent=2))
    else:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)))
    if config.report is not None:
        files.write_json(config.report, figures, "choose another file", indent=2)
    return 0 if all(one["fits"] for one in figures) else 1


def _slice(config: PlanConfig, words: str) -> tuple[str, str, MeshConfig]:
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


# ---- what needs less memory ----------------------------------------------------------------------


def _knobs(
    config: PlanConfig, job: _Training | _Generation, plan
) -> list[tuple[str, StepPlan | GrpoPlan | GenerationPlan]]:
    """Plan with each of the settings that need less memory; returns (setting, plan)."""
    found = []
    for change in job.knobs(config, plan):
        shown = {key: value for key, value in change.items() if value is not None}
        words = " ".join(f"{key}={value}" for key, value in shown.items())
        logger.info("it does not fit; trying %s", words)
        try:
            found.append((words, job.plan(_changed(config, change), quiet=True)[0]))
        except UserError as error:
            logger.info("%s: %s", words, error)
    return found


def _changed(config: PlanConfig, change: dict) -> PlanConfig:
    """A config with other values of some settings."""
    for key, value in change.items():
        section, _, name = key.rpartition(".")
        if section:
            name, value = section, dataclasses.replace(getattr(config, section), **{name: value})
        config = dataclasses.replace(config, **{name: value})
    return config


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
