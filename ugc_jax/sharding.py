"""Mesh, logical-axis rules and constraints: the only file that knows the names of mesh axes.

A parameter names its dimensions logically ("vocab", "heads", ...); `RULES` says which mesh axes
split each of them. Mesh axes: `data` copies parameters and splits the batch, `fsdp` splits both,
`tensor` splits heads, feed-forward width and vocabulary.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ugc_jax.errors import UserError

Axes = tuple[str | None, ...]
MESH_AXES = ("data", "fsdp", "tensor")


# Logical axis -> the mesh axes that split it.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "layers": (),
    "vocab": ("tensor",),
    "embed": ("fsdp",),  # a tower's width, as a parameter's dimension
    "heads": ("tensor",),
    "mlp": ("tensor",),
}


def spec(
    axes: Axes, shape: tuple[int, ...] | None = None, mesh: Mesh | None = None
) -> PartitionSpec:
    """PartitionSpec of an array whose dimensions have these logical names (None: not split).

    With its shape and a mesh, a dimension that its mesh axes do not divide is left whole: correct,
    only less split. Raises KeyError for a name that is not in RULES.
    """
    split = [() if name is None else RULES[name] for name in axes]
    if shape is not None:
        split = [
            names if size % math.prod(mesh.shape[name] for name in names) == 0 else ()
            for names, size in zip(split, shape, strict=True)
        ]
    return PartitionSpec(*(names or None for names in split))


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices share the work. One size may be -1: what is left of the devices."""

    data: int = 1  # copies of the model, each with its part of the batch
    fsdp: int = -1  # devices that share the weights, each with its part of the batch
    tensor: int = 1  # devices that share each layer's heads, feed-forward width and vocabulary


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices=None) -> Mesh:
    """A mesh over all devices; one size may be -1, "what is left". UserError if it does not fit."""
    devices = jax.devices() if devices is None else devices
    sizes = _mesh_sizes("mesh", (data, fsdp, tensor), len(devices))
    return jax.make_mesh(
        sizes, MESH_AXES, devices=devices, axis_types=(AxisType.Auto,) * len(MESH_AXES)
    )


def reshaped(mesh: Mesh, data: int | None, fsdp: int | None, tensor: int | None) -> Mesh:
    """The devices of a mesh, in its order, as one of other sizes; None: the size that it has.

    Raises UserError as `make_mesh`.
    """
    given = dict(zip(MESH_AXES, (data, fsdp, tensor), strict=True))
    sizes = [mesh.shape[name] if size is None else size for name, size in given.items()]
    sizes = _mesh_sizes("rollout mesh", sizes, mesh.size)
    return Mesh(mesh.devices.reshape(sizes), MESH_AXES, axis_types=mesh.axis_types)


def _mesh_sizes(what: str, sizes: Sequence[int], devices: int) -> tuple[int, ...]:
    """Sizes of the axes with -1 replaced by what is left; UserError if the devices do not fit."""
    named = " ".join(f"{name}={size}" for name, size in zip(MESH_AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"{what} {named}: sizes are positive, at most one is -1")
    known = math.prod(size for size in sizes if size != -1)
    filled = tuple(devices // known if size == -1 else size for size in sizes)
    if not devices or math.prod(filled) != devices:
        needed = f"a multiple of {known}" if -1 in sizes else known
        raise UserError(f"{what} {named} needs {needed} devices, {devices} found")
    return filled


def shardings(mesh: Mesh, shapes, axes):
    """NamedShardings of a tree of arrays or shapes, given the matching tree of logical axes."""
    return jax.tree.map(
        lambda leaf, names: NamedSharding(mesh, spec(names, leaf.shape, mesh)), shapes, axes
    )


def abstract(shapes, shardings):
    """jax.ShapeDtypeStructs of a tree of arrays or shapes, with the shardings of a like tree."""
    return jax.tree.map(
        lambda leaf, split: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split),
        shapes,
        shardings,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def rows_split(mesh: Mesh) -> NamedSharding:
    """Split the leading dimension of an array of any rank over the batch axes."""
    return NamedSharding(mesh, spec(("batch",)))


def batch_shardings(mesh: Mesh, batch):
    """NamedShardings that split the leading dimension of every leaf over the batch axes."""
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, spec(("batch",) + (None,) * (leaf.ndim - 1))), batch
    )


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1):
    """Raise UserError unless devices share the rows of each of `accumulate` parts evenly."""
    devices = _parts(mesh, "batch")
    if batch_size % (accumulate * devices):
        times = f"loop.accumulate {accumulate} times the " if accumulate > 1 else "the "
        raise UserError(
            f"data.batch_size is {batch_size}, no multiple of {times}{devices} devices that share "
            "the batch; change it, loop.accumulate or mesh"
        )


def whole_rows(mesh: Mesh | None, batch_size: int) -> int:
    """The next batch size that the mesh splits evenly; without one, the same."""
    devices = 1 if mesh is None else _parts(mesh, "batch")
    return -(-batch_size // devices) * devices


def local_rows(mesh: Mesh, batch_size: int) -> tuple[int, ...]:
    """The rows of a global batch that this process has to feed, ascending: those of its devices.

    They need not follow each other: a mesh orders TPUs by where they lie, not by their hosts.

    Raises UserError if the mesh does not divide the batch.
    """
    check_batch(mesh, batch_size)
    split = NamedSharding(mesh, spec(("batch",)))
    indices = [rows for (rows,) in split.addressable_devices_indices_map((batch_size,)).values()]
    return tuple(sorted({row for rows in indices for row in range(*rows.indices(batch_size))}))


def place_batch(mesh: Mesh, batch, batch_size: int):
    """This process's rows (`local_rows`, numpy) -> the whole batch, split over the mesh."""

    def place(leaf, split):
        return jax.make_array_from_process_local_data(split, leaf, (batch_size, *leaf.shape[1:]))

    return jax.tree.map(place, batch, batch_shardings(mesh, batch))


def constrain(x: jax.Array, axes: Axes) -> jax.Array:
    """Fix how an intermediate is split over the mesh of `jax.set_mesh`; without one, do nothing.

    (`nn.with_logical_constraint` is silently dropped under `with mesh:`; this one is not.)
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, mesh))


def platform() -> str:
    """ "cpu", "gpu" or "tpu": what the mesh of `jax.set_mesh`, or else the default device, is."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def parts(axis: str) -> int:
    """Into how many parts the mesh of `jax.set_mesh` splits a logical axis; without one, 1."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else _parts(mesh, axis)


def _parts(mesh: Mesh, axis: str) -> int:
    return math.prod(mesh.shape[name] for name in RULES[axis])


def on_shards(function, arrays: tuple, axes: tuple[Axes, ...]) -> jax.Array:
    """`function(*arrays)` run by each device on its own part of the arrays: for kernels.

    axes: logical axes of each array; the result is split as the first one. Without a mesh, one call
    on all.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(*arrays)
    specs = tuple(spec(names, x.shape, mesh) for x, names in zip(arrays, axes, strict=True))
    # No check of what varies between devices: kernels do not say it of their results.
    mapped = jax.shard_map(function, in_specs=specs, out_specs=specs[0], check_vma=False)
    return mapped(*arrays)
