"""Whether GRPO fits on a chip: every program of a step is compiled for a described TPU slice.

Each program's memory is added to the other arrays on the chip: while completions are sampled, the
training state stays there.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from ugc_jax.data.batching import Batch
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.plan.chips import Chip
from ugc_jax.plan.floors import Duration, efficiency, floors_of
from ugc_jax.plan.flops import countable, program_flops, step_flops
from ugc_jax.plan.memory import chip_in, compiled_memory, gib, shard_bytes
from ugc_jax.plan.program import Program
from ugc_jax.rl.objective import policy_step, token_logprobs
from ugc_jax.rl.options import GrpoOptions
from ugc_jax.rl.rollout import Rollout, RolloutConfig
from ugc_jax.rl.rows import Completions, PolicyBatch, policy_rows, slots
from ugc_jax.sharding import abstract, batch_shardings
from ugc_jax.train.state import Setup, TrainState, abstract_state, model_params
from ugc_jax.train.step import jit_step


class GrpoPlan(NamedTuple):
    """All programs of a step, in their order."""

    chip: Chip
    chips: int
    programs: tuple[Program, ...]
    duration: Duration | None = None

    @property
    def seconds(self) -> float:
        """The least time of a step: of its programs, one after the other."""
        return sum(program.floors.step for program in self.programs)

    @property
    def mfu(self) -> float:
        """The MFU of the whole step that the floors allow."""
        flops = sum(program.flops for program in self.programs)
        return efficiency(self.chip, self.chips, flops, self.seconds)

    @property
    def fits(self) -> bool:
        """Whether every program's peak fits on a chip."""
        return all(program.fits(self.chip) for program in self.programs)

    def figures(self) -> dict:
        """Return the plan for JSON."""
        programs = [program.figures() for program in self.programs]
        chip = self.chip._asdict()
        found = {**self._asdict(), "chip": chip, "programs": programs, "fits": self.fits}
        found |= {"seconds": self.seconds, "mfu": self.mfu}
        if self.duration is not None:
            found["duration"] = self.duration.figures(self.chips, self.seconds)
        return found

    def table(self) -> str:
        """Return the plan as text, a program a line."""

        def line(name, *figures):
            return f"  {name:<11}" + "".join(f"{figure:>13}" for figure in figures)

        rows = [
            f"{self.chips} chips {self.chip.name}; GiB that each needs of its "
            f"{gib(self.chip.hbm)}, TFLOP of all in a step, seconds at least",
            line("", "held besides", "arguments", "temporaries", "peak", "TFLOP", "runs", "s"),
        ]
        for program in self.programs:
            memory, work = program.memory, f"{program.flops / 1e12:,.1f}"
            sizes = program.held, memory.arguments, memory.temporaries, program.peak
            verdict = "" if program.fits(self.chip) else "  DOES NOT FIT"
            least = f"{program.floors.step:.3f}"
            rows.append(line(program.name, *map(gib, sizes), work, program.runs, least) + verdict)
        needed, executed = (
            sum(getattr(program, name) for program in self.programs) / 1e12
            for name in ("flops", "executed")
        )
        verdict = "it fits" if self.fits else "it DOES NOT FIT"
        rows.append(
            f"in all {needed:,.1f} TFLOP a step, {executed:,.1f} with what is computed again; "
            f"{verdict}"
        )
        rows.append(f"a step takes at least {self.seconds:.2f} s: MFU {self.mfu:.0%} at most")
        if self.duration is not None:
            rows.append(self.duration.text(self.chips, self.seconds))
        return "\n".join(rows)


def plan_grpo(
    setup: Setup,
    options: GrpoOptions,
    config: RolloutConfig,
    prompts: Batch,
    duration: Duration | None = None,
) -> GrpoPlan:
    """Compile the programs of a step for the devices of `setup.mesh`.

    prompts: of `shapes.batch_shapes`. All completions are assumed to have max_new_tokens.
    Raises UserError if the devices are not in the table of chips, and as `Rollout`.
    """
    chip = chip_in(setup.mesh)
    batch = policy_shapes(setup, options, config, prompts)
    programs = (
        *_sampling(setup, options, config, prompts),
        *_learning(setup, options, config, prompts, batch),
    )
    return GrpoPlan(chip, setup.mesh.size, programs, duration)


def policy_shapes(
    setup: Setup, options: GrpoOptions, config: RolloutConfig, prompts: Batch
) -> PolicyBatch:
    """Return the largest PolicyBatch of these prompts: ShapeDtypeStructs on the training mesh."""
    rollout = Rollout(setup, config, options.shared_prompt)
    G, N = config.samples, config.sampling.max_new_tokens
    empty = jax.tree.map(lambda leaf: np.zeros((1, *leaf.shape[1:]), leaf.dtype), prompts)
    zeros = np.zeros((1, G), np.float32)
    tokens = np.zeros((1, G, N), np.int32)
    completions = Completions(tokens, zeros.astype(np.int32), zeros > 0, tokens.astype(np.float32))
    most = slots(np.full((1, G), N), N, options.shared_prompt)
    one = policy_rows(  # of one prompt
        empty, completions, zeros, zeros, most, setup.model, options.shared_prompt,
        keep_media=not rollout.keeps_media,
    )  # fmt: skip
    if rollout.keeps_media:

        def encode(state: TrainState, media: dict) -> dict:
            return thinker.encode_media(
                model_params(state, setup), setup.model, setup.compute, media
            )

        one = one._replace(media=jax.eval_shape(encode, abstract_state(setup), empty.media))
    if options.updates > 1:
        one = one._replace(old=one.rollout)
    if options.beta:
        one = one._replace(reference=one.rollout)
    return _rows(one, len(prompts.tokens) * len(one.tokens), setup.mesh)


def _sampling(setup, options, config, prompts) -> Iterator[Program]:
    """The programs of `Rollout`."""
    rollout = Rollout(setup, config, options.shared_prompt)
    counted, _ = Rollout(countable(setup), config, options.shared_prompt).trace(prompts)
    traces, state = rollout.trace(prompts)
    _, groups, rows, _ = rollout.sizes(prompts)
    present = shard_bytes((prompts, abstract_state(setup)))  # on a chip, before each program
    outputs = {}
    for name, traced in traces.items():
        runs = 1 if name == "weights" else groups
        if name == "decode":
            # Its loop counts once; prefill gives the first token. A group waits for places.
            rounds = config.parts * -(-config.samples // rows) if options.shared_prompt else 1
            runs = rounds * (config.sampling.max_new_tokens - 1)
            present += shard_bytes(state) - outputs["embed"]
        flops = program_flops(counted[name], setup.model.costly_share) * runs
        with jax.set_mesh(rollout.mesh):
            program = _program(setup, name, traced, present, runs, flops, executed=flops)
        yield program
        # The weights, the encoders' rows and the cache stay on the chip.
        outputs[name] = program.memory.outputs or 0
        if name == "weights" and rollout.mesh == setup.mesh:
            outputs[name] -= _aliased_bytes(traced, abstract_state(setup))
        present += outputs[name]


def _learning(setup, options, config, prompts, batch) -> Iterator[Program]:
    """The programs that run after the rollout has dropped its weights."""
    score = functools.partial(
        token_logprobs, options=options, temperature=config.sampling.temperature
    )
    reference = functools.partial(score, of_reference=True)
    update = _minibatch(batch, options, setup.mesh)
    programs = [("old", score, batch, 1)] if options.updates > 1 else []
    if options.beta > 0:
        programs.append(("reference", reference, batch, 1))
    programs.append(("update", policy_update(options, config), update, options.updates))
    state = abstract_state(setup)
    for name, step, rows, runs in programs:
        present = shard_bytes((prompts, state, batch)) + (rows is not batch) * shard_bytes(rows)
        flops, executed = (step_flops(setup, rows, remat, step) * runs for remat in (False, True))
        bound = functools.partial(step, setup=setup)
        program = jit_step(step, setup) if name == "update" else jax.jit(bound)
        with jax.set_mesh(setup.mesh):
            traced = program.trace(state, rows)
            planned = _program(setup, name, traced, present, runs, flops, executed)
        yield planned


def update_peak(setup: Setup, options: GrpoOptions, config: RolloutConfig, prompts: Batch) -> int:
    """Return the peak bytes of one device while the policy is updated."""
    batch = policy_shapes(setup, options, config, prompts)
    rows, state = _minibatch(batch, options, setup.mesh), abstract_state(setup)
    step = jit_step(policy_update(options, config), setup)
    with jax.set_mesh(setup.mesh):
        memory = compiled_memory(step.trace(state, rows), counts=False)
    if memory.arguments is None:
        return memory.peak
    present = shard_bytes((prompts, state, batch)) + (rows is not batch) * shard_bytes(rows)
    return present - memory.arguments + memory.peak


def policy_update(options: GrpoOptions, config: RolloutConfig) -> Callable:
    """Return the policy step of these settings: `step(state, batch, setup=setup)`."""
    return functools.partial(
        policy_step,
        options=options,
        samples=config.samples,
        temperature=config.sampling.temperature,
    )


def _program(
    setup: Setup,
    name: str,
    traced: jax.stages.Traced,
    present: int,
    runs: int,
    flops: float,
    executed: float,
) -> Program:
    """Compile a program. present: bytes on a chip before it runs, with its arguments."""
    memory = compiled_memory(traced, setup.model.costly_share, of_loop=name == "decode")
    # The arguments of a program that does not even fit alone are unknown.
    held = 0 if memory.arguments is None else present - memory.arguments
    floors = floors_of(chip_in(setup.mesh), setup.mesh, executed, memory.work, runs)
    return Program(name, held, memory, runs, flops, executed, floors)


def _aliased_bytes(weights: jax.stages.Traced, state: TrainState) -> int:
    """Bytes of the state's leaves that are weights unchanged: a rollout does not copy them."""
    jaxpr = weights.jaxpr.jaxpr
    leaves = zip(jaxpr.invars, jax.tree.leaves(state), strict=True)
    return shard_bytes([leaf for variable, leaf in leaves if variable in jaxpr.outvars])


def _minibatch(batch: PolicyBatch, options: GrpoOptions, mesh: jax.sharding.Mesh) -> PolicyBatch:
    """The rows of one update."""
    parts = options.minibatches
    return batch if parts == 1 else _rows(batch, batch.tokens.shape[0] // parts, mesh)


def _rows(batch: PolicyBatch, rows: int, mesh: jax.sharding.Mesh) -> PolicyBatch:
    """The shapes of a batch with `rows` rows, on the mesh."""
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), batch
    )
    return abstract(shapes, batch_shardings(mesh, shapes))
