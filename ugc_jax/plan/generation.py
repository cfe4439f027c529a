"""Whether captioning or serving fits on a chip, and how fast it is at most.

The programs of the engine (generate/engine.py) are compiled: encoders, embeddings and prefill of a
group of prompts, and a chunk of decode steps. While any of them runs, the weights and the caches of
all slots are on the chip; a slot is one of the engine's places, with one completion each.
"""

import dataclasses
import math
from typing import NamedTuple

import jax

from ugc_jax.data.batching import BucketKey
from ugc_jax.generate.decode import DecodeState
from ugc_jax.generate.engine import Engine, new_tokens_bucket, plan_places, prefill_tokens
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.generate.weights import abstract_weights
from ugc_jax.models.compute import Compute
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.plan.chips import Chip
from ugc_jax.plan.floors import Work, floors_of
from ugc_jax.plan.flops import program_flops
from ugc_jax.plan.memory import chip_in, compiled_memory, gib, shard_bytes
from ugc_jax.plan.program import Program
from ugc_jax.plan.shapes import batch_shapes
from ugc_jax.sharding import round_up_rows


class Prompts(NamedTuple):
    """What is to be completed.

    key: shape of a prompt. longest: tokens of the longest one, which the slots have room for.
    sampling: resolved. mean: new tokens of a completion on average. count: completions of the run.
    """

    key: BucketKey
    longest: int
    sampling: SamplingConfig
    mean: float
    count: int


class GenerationPlan(NamedTuple):
    """Memory and least times of all programs: bytes of one chip, operations of all together.

    weights: their bytes. slots: completions that decode at a time. slot: bytes of the caches of one
    on its chip. most: slots that would fit, decoding and prefill beside each other. tokens,
    new_tokens: that a slot has room for. group: prompts that are prefilled together. least: bytes
    that a step must read on a chip, weights and caches once each. programs: of a group, and
    "decode", of one step. prompts, compute: what is planned for.
    """

    chip: Chip
    chips: int
    weights: int
    slots: int
    slot: int
    most: int
    tokens: int
    new_tokens: int
    group: int
    least: int
    programs: tuple[Program, ...]
    prompts: Prompts
    compute: Compute

    @property
    def fits(self) -> bool:
        """Whether every program's peak fits on a chip."""
        return all(program.fits(self.chip) for program in self.programs)

    @property
    def peak(self) -> int:
        """The highest peak of the programs."""
        return max(program.peak for program in self.programs)

    @property
    def decode(self) -> Program:
        """A step of decoding."""
        return self.programs[-1]

    @property
    def tokens_per_second(self) -> float:
        """Tokens that all slots together generate at most, while nothing is prefilled."""
        return self.slots / self.decode.floors.step

    @property
    def prefill_seconds(self) -> float:
        """The least time of encoders and prefill of one prompt, of a full group."""
        return sum(program.floors.step for program in self.programs[:-1]) / self.group

    @property
    def clip_seconds(self) -> float:
        """The least time of all chips for one clip: its prefill, and its share of the steps.

        Prefill gives the first token. All slots are busy.
        """
        return self.prefill_seconds + (self.prompts.mean - 1) / self.tokens_per_second

    def figures(self) -> dict:
        """Return the plan for JSON."""
        seconds = self.clip_seconds
        hours = self.prompts.count * seconds / 3600
        return {
            **self._asdict(),
            "chip": self.chip._asdict(),
            "programs": [program.figures() for program in self.programs],
            "compute": dataclasses.asdict(self.compute),
            "prompts": {
                "row": self.prompts.key._asdict(), "mean": self.prompts.mean,
                "sampling": dataclasses.asdict(self.prompts.sampling),
            },
            "fits": self.fits,
            "peak": self.peak,
            "step_seconds": self.decode.floors.step,
            "tokens_per_second": self.tokens_per_second,
            "prefill_seconds": self.prefill_seconds,
            "clip_seconds": seconds,
            "clips_per_hour": 3600 / seconds,
            "duration": {
                "clips": self.prompts.count, "hours": hours, "chip_hours": hours * self.chips
            },
        }  # fmt: skip

    def table(self) -> str:
        """Return the plan as text, a program a line."""

        def line(name, *figures):
            return f"  {name:<11}" + "".join(f"{figure:>13}" for figure in figures)

        chips = f"{self.chips} chips" if self.chips > 1 else "1 chip"
        rows = [
            f"{chips} {self.chip.name}; GiB that each needs of its {gib(self.chip.hbm)}; TFLOP of "
            f"all and ms at least, for {_counted(self.group, 'prompt')} and for a step of decoding",
            line("", "held besides", "arguments", "temporaries", "peak", "TFLOP", "ms", "by"),
        ]
        for program in self.programs:
            memory = program.memory
            sizes = program.held, memory.arguments, memory.temporaries, program.peak
            floors, verdict = program.floors, "" if program.fits(self.chip) else "  DOES NOT FIT"
            work = f"{program.flops / 1e12:,.2f}", f"{floors.step * 1e3:,.2f}", floors.bound
            rows.append(line(program.name, *map(gib, sizes), *work) + verdict)
        verdict = "it fits" if self.fits else "it DOES NOT FIT"
        count, figures = self.prompts.count, self.figures()
        return "\n".join([
            *rows,
            f"weights {gib(self.weights)} GiB, {_counted(self.slots, 'slot')} of {self.tokens} + "
            f"{self.new_tokens} tokens, {gib(self.slot)} GiB each on its chip; about {self.most} "
            f"would fit; {verdict}",
            f"decoding gives at most {self.tokens_per_second:,.0f} tokens/s; a clip takes at least "
            f"{self.prefill_seconds:.3f} s of encoders and prefill, {self.clip_seconds:.3f} s with "
            f"its share of {self.prompts.mean:g} tokens",
            f"at most {3600 / self.clip_seconds:,.0f} clips/hour; {count:,} clips in "
            f"{figures['duration']['hours']:,.2f} hours, "
            f"{figures['duration']['chip_hours']:,.2f} chip-hours, at least",
        ])  # fmt: skip


def plan_generation(
    model: OmniConfig,
    compute: Compute,
    mesh: jax.sharding.Mesh,
    prompts: Prompts,
    slots: int | None = None,
) -> GenerationPlan:
    """Compile the programs for the devices of a mesh.

    slots: None: as many as the engine plans, half of what the weights leave. Raises UserError if
    the devices are not in the table of chips.
    """
    chip, engine = chip_in(mesh), Engine(model, compute, mesh)
    params = abstract_weights(model, compute, mesh)
    weights, share = shard_bytes(params), round_up_rows(mesh, 1)
    most = prompts.sampling.max_new_tokens
    if slots is None:
        free = max(0, chip.hbm - weights)
        slots = plan_places(engine, prompts.longest, new_tokens_bucket(most), 1, None, free)
    slots = round_up_rows(mesh, slots)
    # As the captioner groups them.
    group = round_up_rows(mesh, max(1, prefill_tokens(mesh) // prompts.key.tokens))
    batch = batch_shapes(prompts.key, group, model, mesh)
    how = dict(options=prompts.sampling, places=slots, tokens=prompts.longest)
    # Kernels would count as if they skipped no block.
    counted = Engine(model, dataclasses.replace(compute, attention="xla"), mesh)
    flops = {
        name: program_flops(traced, model.costly_share)
        for name, traced in counted.trace(params, batch, **how)[0].items()
    }
    traces, state = engine.trace(params, batch, **how)
    least = step_memory(params, state)
    programs, present = [], weights + shard_bytes((state, batch))
    for name, traced in traces.items():
        decodes = name == "decode"
        if decodes:  # beside the caches of a group that waits for slots
            present = weights + shard_bytes(state) + (programs[-1].memory.outputs or 0)
        with jax.set_mesh(mesh):
            memory = compiled_memory(traced, model.costly_share, of_loop=decodes)
        held = 0 if memory.arguments is None else present - memory.arguments
        work = memory.work or (Work(least, ()) if decodes else None)
        floors = floors_of(chip, mesh, flops[name], work)
        programs.append(Program(name, held, memory, 1, flops[name], flops[name], floors))
        present += memory.outputs or 0
    slot = math.ceil(shard_bytes(state) / (slots // share))
    peak = max(program.peak for program in programs)
    fit = max(0, slots // share + (chip.hbm - peak) // slot) * share
    return GenerationPlan(
        chip=chip, chips=mesh.size, weights=weights, slots=slots, slot=slot, most=fit,
        tokens=jax.tree.leaves(state.prompt)[0].shape[-1], new_tokens=state.tokens.shape[1],
        group=group, least=least, programs=tuple(programs), prompts=prompts, compute=compute,
    )  # fmt: skip


def step_memory(params: dict, state: DecodeState) -> int:
    """Return the bytes that a decode step must read on one chip: weights and caches, once each.

    As `traffic.step_bytes`, of all chips.
    """
    model = params["model"]
    read = model["layers"], model["norm"], params["lm_head"], state.prompt, state.own
    return shard_bytes(read)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
