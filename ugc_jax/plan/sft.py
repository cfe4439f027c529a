"""Whether a train step fits: it is compiled for TPUs that need not be there."""

import dataclasses
import math
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from ugc_jax.data.batching import BucketKey, collate_rows, size_of_media
from ugc_jax.data.planning import ExampleSet, RowsConfig, make_plan
from ugc_jax.data.prompt import Video
from ugc_jax.data.schema import Batch
from ugc_jax.errors import UserError
from ugc_jax.hf.config import load_config
from ugc_jax.models.qwen2_5_omni.config import HOP, SAMPLE_RATE, SIZES, OmniConfig
from ugc_jax.plan.chips import GIB, Chip, chip_of
from ugc_jax.plan.flops import step_flops
from ugc_jax.sharding import MeshConfig, abstract, batch_shardings, check_batch, make_mesh
from ugc_jax.train.start import begin_from
from ugc_jax.train.state import Setup, abstract_state
from ugc_jax.train.step import train_step

# The compiler's library looks for a TPU where it is loaded: for minutes, and with loud complaints.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any; the topology says what is compiled for
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # beside a job that trains, or plans, on this machine
}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclasses.dataclass(frozen=True)
class Clip:
    """A typical clip, to plan for where no records are."""

    frames: int = 32  # taken from it
    height: int = 420  # of a frame, in pixels; a multiple of 28
    width: int = 224  # of a frame, in pixels; a multiple of 28
    seconds: float = 24.0  # of sound
    text: int = 500  # tokens of prompt and caption; for grpo, of the prompt

    def bucket(self, data: RowsConfig, model: OmniConfig) -> BucketKey:
        """The shape of a training row of such clips, packed or not, as `data` says."""
        patch = model.vision.patch_size
        grid = (self.frames // 2, self.height // patch, self.width // patch)
        sound = round(self.seconds * SAMPLE_RATE / HOP)
        size = size_of_media([Video(grid, 1.0, sound)], model)
        size = size._replace(tokens=size.tokens + self.text)
        if size.tokens > data.tokens:
            raise UserError(
                f"clip: takes {size.tokens} tokens, and a row has data.tokens={data.tokens}; "
                "raise that or plan for a smaller clip"
            )
        one = ExampleSet("clip", np.zeros(1, np.int64), np.array([size]), digest="", draws=1)
        return max(make_plan([one], data, steps=1).buckets)


class Memory(NamedTuple):
    """What a program takes, in bytes of one chip.

    outputs: those that do not take the place of arguments. temporaries: all of them; they take
    turns. peak: the most that is held at a time. The compiler stops at a program that does not fit;
    then peak is what it says that it wanted, and the others are None.
    """

    arguments: int | None
    outputs: int | None
    temporaries: int | None
    peak: int


class StepPlan(NamedTuple):
    """What one train step takes. Bytes are of one chip, operations of all chips together.

    arguments: state and batch. outputs, temporaries, peak: see `Memory`.
    model_flops, executed_flops: see `flops.step_flops`.
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

    @property
    def fits(self) -> bool:
        """Whether the peak is no more than a chip has."""
        return self.peak <= self.chip.hbm

    def figures(self) -> dict:
        """The plan for JSON."""
        return {**self._asdict(), "chip": self.chip._asdict(), "fits": self.fits}

    def table(self) -> str:
        """The plan for people, a figure a line."""
        fastest = self.model_flops / (self.chips * self.chip.flops)
        verdict = "fits" if self.fits else "DOES NOT FIT"
        rows = {
            "arguments": gib(self.arguments),
            "outputs": gib(self.outputs),
            "temporaries": gib(self.temporaries),
            "peak": f"{gib(self.peak)} of {gib(self.chip.hbm)}: {verdict}",
            "model": f"{self.model_flops / 1e12:,.1f} TFLOP a step, {fastest:.2f} s at 100 % MFU",
            "executed": f"{self.executed_flops / 1e12:,.1f} TFLOP with what is computed again",
            "compiled in": f"{self.compile_seconds:.0f} s",
        }
        head = f"{self.chips} chips {self.chip.name}; each needs"
        return "\n".join([head, *(f"  {name:<14}{text}" for name, text in rows.items())])


def model_of(checkpoint: str, revision: str | None = None) -> OmniConfig:
    """The config of a checkpoint; of one that is not on this disk, of the size its name tells."""
    words = re.split("[^0-9a-z]+", checkpoint.lower())
    sizes = [size for size in SIZES if size in words]
    if sizes and not Path(checkpoint).is_dir():
        return SIZES[sizes[0]]()
    return load_config(begin_from(checkpoint, revision, weights=False))


def topology_mesh(name: str, config: MeshConfig) -> jax.sharding.Mesh:
    """A mesh over a described TPU slice such as "v5e:4x4".

    Raises UserError if the TPU compiler is not installed, if it does not know the topology, and as
    `sharding.make_mesh`.
    """
    from jax.experimental import topologies

    for variable, value in _NO_TPU.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_platforms", "cpu")  # nothing runs here; a TPU that is here stays free
    # Without this the compiler takes a v4 chip for two devices; a program finds one.
    options = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
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
    return make_mesh(**dataclasses.asdict(config), devices=slice_.devices)


def batch_shapes(
    key: BucketKey, rows: int, model: OmniConfig, mesh: jax.sharding.Mesh, accumulate: int = 1
) -> Batch:
    """The global Batch of a bucket: a jax.ShapeDtypeStruct with its sharding for every field.

    Raises UserError if the mesh does not divide the rows of each accumulated part.
    """
    check_batch(mesh, rows, accumulate)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype),
        collate_rows([], key, 1, model),
    )
    return abstract(shapes, batch_shardings(mesh, shapes))


def describe(batch: Batch) -> str:
    """The shapes of a batch for people."""
    rows, tokens = batch.tokens.shape
    grids, chunks = batch.media["vision"].patches.shape, batch.media["audio"].mel.shape
    return (
        f"{rows} rows of {tokens} tokens, {grids[1]} grids of {grids[2]} windows and {chunks[1]} "
        "chunks of sound"
    )


def plan_step(setup: Setup, batch: Batch) -> StepPlan:
    """Compile the train step for the devices of `setup.mesh`; batch: of `batch_shapes`.

    Raises UserError if the devices are of no chip in the table.
    """
    chip = chip_in(setup.mesh)
    step, state, begun = train_step(setup), abstract_state(setup), time.perf_counter()
    with jax.set_mesh(setup.mesh):
        memory = compiled_memory(step.trace(state, batch))
    if memory.arguments is None:
        memory = memory._replace(arguments=shard_bytes((state, batch)))
    seconds = time.perf_counter() - begun
    return StepPlan(
        chip=chip,
        chips=setup.mesh.size,
        **memory._asdict(),
        model_flops=step_flops(setup, batch),
        executed_flops=step_flops(setup, batch, remat=True),
        compile_seconds=seconds,
    )


def chip_in(mesh: jax.sharding.Mesh) -> Chip:
    """What the mesh is made of. Raises UserError if it is no chip in the table."""
    kind = mesh.devices.flat[0].device_kind
    chip = chip_of(kind)
    if chip is None:
        raise UserError(f"the memory of {kind} is not known; name a topology of v4 to v7x TPUs")
    return chip


def compiled_memory(program: jax.stages.Traced) -> Memory:
    """Compile a program for the mesh that it was traced for."""
    try:
        memory = program.lower().compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        peak = wanted_bytes(str(error))
        if peak is None:
            raise
        return Memory(None, None, None, peak)
    return Memory(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
    )


def wanted_bytes(message: str) -> int | None:
    """What a program wanted, if this message of the compiler says that it is too much."""
    found = re.search(r"Ran out of memory.*?(?:Used|temporaries \() *([\d.]+)([KMGT]?)", message)
    return found and round(float(found[1]) * _UNITS[found[2]])


def shard_bytes(tree) -> int:
    """Bytes of one device's part of a tree of jax.ShapeDtypeStructs with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def gib(count: int | None) -> str:
    """Bytes for people."""
    return "unknown" if count is None else f"{count / GIB:.2f} GiB"
