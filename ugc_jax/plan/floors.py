"""The least time of a compiled program: what products, memory and links between chips allow.

Each floor assumes that its part runs at the data sheet's speed without a pause. Products, memory
and collectives that run beside other work overlap at best; a collective beside which nothing is
computed adds to the time. A real step takes longer: kernels start, products do not fill the units.
"""

from typing import NamedTuple

import jax

from ugc_jax.plan.chips import Chip, links_of
from ugc_jax.plan.collectives import Collective, collectives
from ugc_jax.plan.traffic import loop_traffic, program_traffic


class Work(NamedTuple):
    """What one run of a compiled program moves, in bytes of one chip.

    memory: read and written in its memory. sends: its collectives.
    """

    memory: float
    sends: tuple[Collective, ...]

    @property
    def received(self) -> float:
        """Bytes of all collectives."""
        return sum(one.bytes for one in self.sends)

    @property
    def waits(self) -> float:
        """Bytes of those beside which nothing is computed."""
        return sum(one.waits for one in self.sends)


class Floors(NamedTuple):
    """Seconds that a program takes at least.

    products: of the operations executed. memory: of the bytes of HBM. links: of collectives beside
    which something is computed; waits: of the others.
    """

    products: float
    memory: float
    links: float
    waits: float

    @property
    def step(self) -> float:
        """The least time of the whole."""
        return max(self.products, self.memory, self.links) + self.waits

    @property
    def bound(self) -> str:
        """Which floor is the highest: "products", "memory" or "links"."""
        floors = {"products": self.products, "memory": self.memory, "links": self.links}
        return max(floors, key=floors.get)

    def figures(self) -> dict:
        """Return the floors for JSON."""
        return {**self._asdict(), "step": self.step, "bound": self.bound}


def work_of(hlo: str, costly: float = 1.0, of_loop: bool = False) -> Work:
    """Return the work of a program from the compiler's text.

    costly: see `hlo.Program.weights`. of_loop: of one pass through its loop of unknown length.
    """
    traffic = loop_traffic(hlo) if of_loop else program_traffic(hlo, costly)
    return Work(traffic.bytes, collectives(hlo, costly, of_loop))


def floors_of(
    chip: Chip, mesh: jax.sharding.Mesh, executed: float, work: Work | None, runs: float = 1
) -> Floors:
    """Return the floors of `runs` runs of a program.

    executed: operations of all these runs on all chips. work: of one run; None counts products
    alone, as for a program that the compiler rejected.
    """
    products = executed / (mesh.size * chip.flops)
    if work is None:
        return Floors(products, 0.0, 0.0, 0.0)
    speed = chip.link * links_of(list(mesh.devices.flat), chip) if mesh.size > 1 else 1.0
    return Floors(
        products,
        runs * work.memory / chip.bandwidth,
        runs * (work.received - work.waits) / speed,
        runs * work.waits / speed,
    )


def efficiency(chip: Chip, chips: int, model: float, seconds: float) -> float:
    """Return the MFU of a step of so many seconds; model: operations that the model needs."""
    return model / (chips * chip.flops * seconds) if seconds else 0.0


def describe_work(work: Work) -> str:
    """Return the collectives of a program as text: kind, count, bytes."""
    if not work.sends:
        return "none"
    kinds = [f"{one.kind} {one.bytes / 1e9:,.2f} GB ({one.count:,.0f})" for one in work.sends]
    return f"{', '.join(kinds)}; nothing is computed beside {work.waits / 1e9:,.2f} GB"


def work_figures(work: Work | None) -> dict | None:
    """Return a program's work for JSON."""
    if work is None:
        return None
    return {"memory": work.memory, "sends": [one._asdict() for one in work.sends]}


class Duration(NamedTuple):
    """What a run takes at least: examples of a step on average, and steps of the whole run."""

    examples: float
    steps: int

    def figures(self, chips: int, seconds: float) -> dict:
        """Return examples a second, hours and chip-hours for steps of so many seconds."""
        hours = self.steps * seconds / 3600
        return {
            "examples_per_second": self.examples / seconds,
            "steps": self.steps,
            "hours": hours,
            "chip_hours": hours * chips,
        }

    def text(self, chips: int, seconds: float) -> str:
        """Return the same as text."""
        found = self.figures(chips, seconds)
        return (
            f"{found['examples_per_second']:,.1f} examples/s, {self.steps:,} steps in "
            f"{found['hours']:,.2f} hours, {found['chip_hours']:,.1f} chip-hours, at least"
        )
