"""Whether the train step of SFT fits on a chip, and how long it takes at least."""

import time
from typing import NamedTuple

import jax

from ugc_jax.data.batching import Batch
from ugc_jax.plan.chips import Chip
from ugc_jax.plan.floors import (
    Duration,
    Floors,
    Work,
    describe_work,
    efficiency,
    floors_of,
    work_figures,
)
from ugc_jax.plan.flops import step_flops
from ugc_jax.plan.memory import chip_in, compiled_memory, gib, shard_bytes
from ugc_jax.train.state import Setup, abstract_state
from ugc_jax.train.step import jit_step, train_step


class StepPlan(NamedTuple):
    """Memory and operations of one train step: bytes of one chip, operations of all together.

    arguments: state and batch. outputs, temporaries, peak: see `Memory`.
    model_flops, executed_flops: see `flops.step_flops`. floors: of the compiled program; of one
    that the compiler rejected, by the operations alone, and work is None. duration: of the run.
    """

    chip: Chip
    chips: int
    arguments: int
    outputs: int | None
    temporaries: int | None
    peak: int
    model_flops: float
    executed_flops: float
    compile_seconds: float
    floors: Floors
    work: Work | None = None
    duration: Duration | None = None

    @property
    def mfu(self) -> float:
        """The MFU that the floors allow."""
        return efficiency(self.chip, self.chips, self.model_flops, self.floors.step)

    @property
    def fits(self) -> bool:
        """Whether the compiler accepted the step and its peak fits on a chip."""
        return self.temporaries is not None and self.peak <= self.chip.hbm

    def figures(self) -> dict:
        """Return the plan for JSON."""
        found = {**self._asdict(), "chip": self.chip._asdict(), "fits": self.fits}
        found |= {"floors": self.floors.figures(), "mfu": self.mfu, "work": work_figures(self.work)}
        if self.duration is not None:
            found["duration"] = self.duration.figures(self.chips, self.floors.step)
        return found

    def table(self) -> str:
        """Return the plan as text, a figure a line."""
        fastest = self.model_flops / (self.chips * self.chip.flops)
        verdict = "fits" if self.fits else "DOES NOT FIT"
        rows = {
            "arguments": _gib(self.arguments),
            "outputs": _gib(self.outputs),
            "temporaries": _gib(self.temporaries),
            "peak": f"{_gib(self.peak)} of {_gib(self.chip.hbm)}: {verdict}",
            "model": f"{self.model_flops / 1e12:,.1f} TFLOP a step, {fastest:.2f} s at 100 % MFU",
            "executed": f"{self.executed_flops / 1e12:,.1f} TFLOP with what is computed again",
            "compiled in": f"{self.compile_seconds:.0f} s",
        }
        floors = self.floors
        if self.work is not None:
            rows |= {
                "memory moved": f"{self.work.memory / 1e9:,.1f} GB, {floors.memory:.3f} s",
                "between chips": describe_work(self.work),
                "": f"{floors.links:.3f} s beside other work, {floors.waits:.3f} s alone",
            }
        rows["products"] = f"{floors.products:.3f} s"
        rows["a step"] = (
            f"at least {floors.step:.3f} s, by the {floors.bound}: MFU {self.mfu:.0%} at most"
        )
        if self.duration is not None:
            rows["a run"] = self.duration.text(self.chips, floors.step)
        head = f"{self.chips} chips {self.chip.name}; each needs"
        return "\n".join([head, *(f"  {name:<14}{text}" for name, text in rows.items())])


def plan_sft(setup: Setup, batch: Batch, duration: Duration | None = None) -> StepPlan:
    """Compile the train step for the devices of `setup.mesh`; batch: of `batch_shapes`.

    Raises UserError if the devices are not in the table of chips.
    """
    chip = chip_in(setup.mesh)
    step, state, start = jit_step(train_step, setup), abstract_state(setup), time.perf_counter()
    with jax.set_mesh(setup.mesh):
        memory = compiled_memory(step.trace(state, batch), setup.model.costly_share)
    if memory.arguments is None:
        memory = memory._replace(arguments=shard_bytes((state, batch)))
    seconds = time.perf_counter() - start
    executed = step_flops(setup, batch, remat=True)
    return StepPlan(
        chip=chip,
        chips=setup.mesh.size,
        **memory._asdict(),
        model_flops=step_flops(setup, batch),
        executed_flops=executed,
        compile_seconds=seconds,
        floors=floors_of(chip, setup.mesh, executed, memory.work),
        duration=duration,
    )


def _gib(count: int | None) -> str:
    return gib(count) if count is None else f"{gib(count)} GiB"
