"""One of the programs of a job: its memory beside the other arrays of a chip, and its floors."""

from typing import NamedTuple

from ugc_jax.plan.chips import Chip
from ugc_jax.plan.floors import Floors, work_figures
from ugc_jax.plan.memory import Memory


class Program(NamedTuple):
    """Memory and operations of one program of several that a job runs.

    held: bytes of one chip in other arrays than its arguments while it runs. memory: its own.
    runs: how often what is planned, such as a GRPO step, runs it. flops: operations of these runs
    on all chips together; executed: with those that the backward pass recomputes. floors: of these
    runs.
    """

    name: str
    held: int
    memory: Memory
    runs: int
    flops: float
    executed: float
    floors: Floors

    @property
    def peak(self) -> int:
        """Peak bytes of one chip while it runs."""
        return self.held + self.memory.peak

    def fits(self, chip: Chip) -> bool:
        """Return whether the compiler accepted it and its peak fits on a chip."""
        return not self.memory.rejected and self.peak <= chip.hbm

    def figures(self) -> dict:
        """Return the program for JSON."""
        memory = self.memory._asdict() | {"work": work_figures(self.memory.work)}
        more = {"memory": memory, "peak": self.peak, "floors": self.floors.figures()}
        return self._asdict() | more
