"""Whether a train step fits: it is compiled for TPUs that need not be there."""

import os
import re
import time
from typing import NamedTuple

import jax

from ugc_jax.config import OmniConfig
from ugc_jax.data.batching import BucketKey, collate_rows
from ugc_jax.data.schema import Batch
from ugc_jax.errors import UserError
from ugc_jax.sharding import MeshConfig, batch_shardings, make_mesh
from ugc_jax.train.chips import GIB, Chip, chip_of
from ugc_jax.train.flops import step_flops
from ugc_jax.train.state import Setup, abstract_state
from ugc_jax.train.steps import train_step

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class StepPlan(NamedTuple):
    """What one train step takes. Bytes are of one chip, operations of all chips together.

    arguments: state and batch. outputs: those that do not take the place of arguments.
    temporaries: of the step, the program itself included; None where the compiler gave up, as it
    does when the step does not fit. total: all of these; then by what the compiler said.
    model_flops, executed_flops: see `flops.step_flops`.
    """

    chip: Chip
    chips: int
    arguments: int
    outputs: int | None
    temporaries: int | None
    total: int
    model_flops: float
    executed_flops: float
    compile_seconds: float

    @property
    def fits(self) -> bool:
        return self.temporaries is not None and self.total <= self.chip.hbm

    def table(self) -> str:
        """The plan for people, a line a figure."""
        step_seconds = self.model_flops / self.chips / self.chip.flops
        verdict = "fits" if self.fits else "DOES NOT FIT"
        rows = [
            ("arguments", _gib(self.arguments)),
            ("outputs", _gib(self.outputs)),
            ("temporaries", _gib(self.temporaries)),
            ("total", f"{_gib(self.total)} of {_gib(self.chip.hbm)}: {verdict}"),
            ("operations", f"{self.model_flops / 1e12:,.1f} TFLOP a step"),
            ("executed", f"{self.executed_flops / 1e12:,.1f} TFLOP, with what is computed again"),
            ("fastest step", f"{step_seconds:.2f} s, at 100 % MFU"),
            ("compiled in", f"{self.compile_seconds:.0f} s"),
        ]
        head = f"{self.chips} {self.chip.name} chips; a chip needs"
        return "\n".join([head, *(f"  {name:<14}{text}" for name, text in rows)])


def topology_mesh(name: str, config: MeshConfig) -> jax.sharding.Mesh:
    """A mesh over a described TPU slice such as "v5e:4x4".

    Raises UserError if the TPU compiler is not installed, if it does not know the topology, and as
    `sharding.make_mesh`.
    """
    from jax.experimental import topologies

    # There is no cloud machine to ask, and asking takes minutes.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
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
    return make_mesh(config.data, config.fsdp, config.tensor, devices=slice_.devices)


def batch_shapes(key: BucketKey, rows: int, model: OmniConfig, mesh: jax.sharding.Mesh) -> Batch:
    """The global Batch of a bucket: a jax.ShapeDtypeStruct with its sharding for every field."""
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype),
        collate_rows([], key, 1, model),
    )
    return jax.tree.map(
        lambda shape, split: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=split),
        shapes,
        batch_shardings(mesh, shapes),
    )


def plan_step(setup: Setup, batch: Batch) -> StepPlan:
    """Compile the train step for the devices of `setup.mesh`; batch: of `batch_shapes`.

    Raises UserError if the devices are of no chip in the table.
    """
    kind = setup.mesh.devices.flat[0].device_kind
    chip = chip_of(kind)
    if chip is None:
        raise UserError(f"the memory of {kind} is not known; name a topology of v4 to v7x TPUs")
    step, state, begun = train_step(setup), abstract_state(setup), time.perf_counter()
    arguments = sum(map(_shard_bytes, jax.tree.leaves((state, batch))))
    outputs = temporaries = None
    with jax.set_mesh(setup.mesh):
        try:
            memory = step.lower(state, batch).compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            total = _wanted_bytes(str(error))
        else:
            arguments = memory.argument_size_in_bytes
            outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
            temporaries = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
            total = arguments + outputs + temporaries
    return StepPlan(
        chip=chip,
        chips=setup.mesh.size,
        arguments=arguments,
        outputs=outputs,
        temporaries=temporaries,
        total=total,
        model_flops=step_flops(setup, batch),
        executed_flops=step_flops(setup, batch, remat=True),
        compile_seconds=time.perf_counter() - begun,
    )
