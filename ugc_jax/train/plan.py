"""Whether a training step fits: it is compiled for TPUs that need not be there."""

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

MFU = 0.4  # of a step that goes well, for the estimate of its time


class StepPlan(NamedTuple):
    """What one train step costs. Bytes are those of one chip, operations those of all together.

    arguments: state and batch. temporaries: None if it does not fit: the compiler stops there.
    peak: the most that is held at a time. model_flops: what the model needs. executed_flops: with
    what the backward pass computes again.
    """

    chip: Chip
    chips: int
    fits: bool
    arguments: int
    temporaries: int | None
    peak: int
    model_flops: float
    executed_flops: float
    compile_seconds: float


def topology_devices(name: str) -> list[jax.Device]:
    """Descriptions of the devices of a TPU slice such as "v5e:4x4".

    Raises UserError if the TPU compiler is not installed or does not know the topology.
    """
    from jax.experimental import topologies

    # There is no cloud machine to ask about, and asking takes minutes.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # By default a v4 chip is two devices to the compiler, unlike to a program that runs on it.
    options = {"chip_config_name": "megacore"} if name.startswith("v4") else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if "not installed" in reason:
            reason = f'pip install "jax[tpu]=={jax.__version__}" installs it; no TPU is needed'
            raise UserError(f"the TPU compiler (libtpu) is not installed; {reason}") from None
        raise UserError(
            f"topology {name}: {reason.removeprefix('INVALID_ARGUMENT: ')}; "
            "name one such as v5e:4x4, v6e:2x4 or v5p:2x2x2"
        ) from None


def topology_mesh(name: str, config: MeshConfig) -> jax.sharding.Mesh:
    """The mesh of a run on that slice. UserError as `topology_devices` and `make_mesh`."""
    return make_mesh(config.data, config.fsdp, config.tensor, devices=topology_devices(name))


def batch_shapes(key: BucketKey, rows: int, model: OmniConfig, mesh) -> Batch:
    """The global Batch of a bucket as jax.ShapeDtypeStructs with shardings."""
    row = collate_rows([], key, 1, model)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), row)
    return jax.tree.map(
        lambda shape, split: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=split),
        shapes,
        batch_shardings(mesh, shapes),
    )


def plan_step(setup: Setup, batch: Batch) -> StepPlan:
    """Compile the train step for the devices of `setup.mesh` and look at what it takes.

    batch: of `batch_shapes`.
    """
    device = setup.mesh.devices.flat[0]
    state, begun = abstract_state(setup), time.perf_counter()
    with jax.set_mesh(setup.mesh):
        lowered = train_step(setup).lower(state, batch)
        try:
            memory = lowered.compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            memory, wanted = None, _wanted_bytes(str(error))
    arguments = sum(map(_shard_bytes, jax.tree.leaves((state, batch))))
    print(memory)
