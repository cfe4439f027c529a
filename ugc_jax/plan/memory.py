"""A program's memory on a chip, from the compiler for a described TPU slice."""

import dataclasses
import importlib.metadata
import math
import os
import re
from typing import NamedTuple

import jax

from ugc_jax.errors import UserError
from ugc_jax.plan.cards import card_of
from ugc_jax.plan.chips import GIB, Chip, chip_of
from ugc_jax.plan.floors import Work, work_of
from ugc_jax.sharding import MeshConfig, make_mesh

# Without these, the compiler's library searches for a TPU for minutes when loaded, with warnings.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any: the topology decides
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # beside a job that trains, or plans, on this machine
}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Memory(NamedTuple):
    """A program's memory, in bytes of one chip, and what it moves.

    outputs: without those that reuse arguments. temporaries: all of them, though not all exist at a
    time. peak: the most in use at a time. The compiler rejects a program that does not fit; then
    peak is the memory that it requires, rounded as in its message, and the others are None. work:
    of the compiled program.
    """

    arguments: int | None
    outputs: int | None
    temporaries: int | None
    peak: int
    work: Work | None = None

    @property
    def rejected(self) -> bool:
        """Whether the compiler rejected the program, even if the rounded peak is that of a chip."""
        return self.temporaries is None


def topology_mesh(name: str, config: MeshConfig) -> jax.sharding.Mesh:
    """Return a mesh over a described TPU slice such as "v5e:4x4".

    Raises UserError as `topology_devices` and `sharding.make_mesh`.
    """
    return make_mesh(**dataclasses.asdict(config), devices=topology_devices(name))


def topology_devices(name: str) -> list[jax.Device]:
    """Return the described devices of a TPU slice such as "v5e:4x4".

    Raises UserError if the TPU compiler is not installed, or if it does not know the topology.
    """
    from jax.experimental import topologies

    for variable, value in _NO_TPU.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_platforms", "cpu")  # nothing runs; a TPU of this machine stays free
    # By default the compiler counts a v4 chip as two devices; jax on a v4 counts one.
    options = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    # Of a slice that is smaller than a host's 2x2 chips, older compilers have to be told so.
    sizes = [int(size) for size in re.findall(r"\d+", name.partition(":")[2])]
    if len(sizes) in (2, 3) and math.prod(sizes) <= 4 and (sizes[0] % 2 or sizes[1] % 2):
        options["chips_per_host_bounds"] = (*sizes, 1)[:3]
    try:
        slice_ = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if "not installed" in reason:
            raise UserError(
                "plan needs the TPU compiler, though no TPU; "
                f'install it: pip install "jax[tpu]=={jax.__version__}"'
            ) from None
        raise UserError(
            f"topology {name}: {reason}; name one such as v5e:4x4, v6e:2x4 or v5p:2x2x2"
        ) from None
    return slice_.devices


def local_mesh(config: MeshConfig) -> jax.sharding.Mesh:
    """Return a mesh over the accelerators of this machine. Raises UserError as `local_devices`."""
    return make_mesh(**dataclasses.asdict(config), devices=local_devices())


def local_devices() -> list[jax.Device]:
    """Return the accelerators of this machine. Raises UserError without any."""
    if jax.devices()[0].platform == "cpu":
        raise UserError(
            "no accelerator here to plan for; name a TPU slice, such as --topology v5e:4x4"
        )
    return jax.devices()


def chip_in(mesh: jax.sharding.Mesh) -> Chip:
    """Return the chip of a mesh's devices; of a device of this machine, with the memory it has.

    Raises UserError if it is not in the tables of chips and cards.
    """
    device = mesh.devices.flat[0]
    kind = device.device_kind
    chip, card = chip_of(kind), card_of(kind)
    # A described device has no memory.
    stats = device.memory_stats() if device.platform == "gpu" else None
    hbm = (stats or {}).get("bytes_limit") or (chip and chip.hbm)
    if hbm is None or not (chip or card):
        raise UserError(
            f"the memory of {kind} is unknown; name a topology of v4 to v7x TPUs, or plan on a "
            "machine with a GPU of the table in ugc_jax/plan/cards.py"
        )
    if chip is None:
        return Chip(card.name, card.flops, hbm, card.bandwidth)
    better = {} if card is None else {"flops": card.flops, "bandwidth": card.bandwidth}
    return chip._replace(hbm=hbm, **better)


def compiled_memory(
    program: jax.stages.Traced, costly: float = 1.0, of_loop: bool = False, counts: bool = True
) -> Memory:
    """Compile a program for the mesh that it was traced for; returns its memory and its work.

    costly, of_loop: see `floors.work_of`. counts: false leaves its work out.
    """
    try:
        compiled = program.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        peak = required_bytes(str(error))
        if peak is None:
            raise
        return Memory(None, None, None, peak)
    memory = compiled.memory_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    parts = memory.argument_size_in_bytes, outputs, memory.temp_size_in_bytes
    # A CPU's compiler leaves the temporaries out of the peak.
    peak = memory.peak_memory_in_bytes
    if peak - memory.argument_size_in_bytes < memory.temp_size_in_bytes / 10:
        peak = sum(parts)
    work = work_of(_text(compiled), costly, of_loop) if counts else None
    return Memory(*parts, peak, work)


def _text(compiled: jax.stages.Compiled) -> str:
    """Return the optimized program. Raises UserError where this jaxlib cannot read it."""
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        try:
            compiler = f"libtpu {importlib.metadata.version('libtpu')}"
        except importlib.metadata.PackageNotFoundError:
            compiler = "the compiler"
        raise UserError(
            f"jax {jax.__version__} cannot read the program that {compiler} made "
            f"({str(error).splitlines()[0]}); install the one that belongs to it: "
            f"pip install 'jax[tpu]=={jax.__version__}'"
        ) from None


def required_bytes(message: str) -> int | None:
    """Return the bytes that a program requires, from the compiler's message; None without any."""
    found = re.search(r"Ran out of memory.*?(?:Used|temporaries \() *([\d.]+)([KMGT]?)", message)
    return found and round(float(found[1]) * _UNITS[found[2]])


def shard_bytes(tree) -> int:
    """Return the bytes of one device's shards of a tree of jax.ShapeDtypeStructs."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def gib(count: int | None) -> str:
    """Return bytes as text in GiB, without the unit."""
    return "unknown" if count is None else f"{count / GIB:.2f}"
