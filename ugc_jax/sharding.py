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
    """Return the PartitionSpec of an array with these logical axes (None: not split).

    With its shape and a mesh, a dimension whose size the mesh axes do not divide is not split: that
    is correct and only takes more memory. Raises KeyError for a name that is not in RULES.
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
    """How devices share the work. One size may be -1: all remaining devices.

    None, in rollout.mesh: the size that the training's mesh has.
    """

    data: int | None = 1  # copies of the model, each with its part of the batch
    fsdp: int | None = -1  # devices that share the weights, each with its part of the batch
    # devices that share each layer's heads, feed-forward width and vocabulary
    tensor: int | None = 1


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices=None) -> Mesh:
    """Return a mesh over all devices (default: jax.devices()); one size may be -1: the rest.

    Raises UserError if the sizes do not use all devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _mesh_sizes("mesh", (data, fsdp, tensor), len(devices))
    return jax.make_mesh(
        sizes, MESH_AXES, devices=devices, axis_types=(AxisType.Auto,) * len(MESH_AXES)
    )


def reshape_mesh(mesh: Mesh, data: int | None, fsdp: int | None, tensor: int | None) -> Mesh:
    """Return a mesh of other sizes over the same devices in the same order; None keeps a size.

    Raises UserError as `make_mesh`.
    """
    given = dict(zip(MESH_AXES, (data, fsdp, tensor), strict=True))
    sizes = [mesh.shape[name] if size is None else size for name, size in given.items()]
    sizes = _mesh_sizes("rollout mesh", sizes, mesh.size)
    return Mesh(mesh.devices.reshape(sizes), MESH_AXES, axis_types=mesh.axis_types)


def _mesh_sizes(what: str, sizes: Sequence[int], devices: int) -> tuple[int, ...]:
    """The sizes of the axes, -1 replaced; UserError if their product is not `devices`.

    what: names the mesh in messages.
    """
    named = " ".join(f"{name}={size}" for name, size in zip(MESH_AXES, sizes, strict=True))
    if None in sizes:
        raise UserError(f"{what} {named}: give each size a number; at most one is -1, the rest")
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"{what} {named}: sizes are positive, at most one is -1")
    known = math.prod(size for size in sizes if size != -1)
    filled = tuple(devices // known if size == -1 else size for size in sizes)
    if not devices or math.prod(filled) != devices:
        needed = f"a multiple of {known}" if -1 in sizes else known
        raise UserError(f"{what} {named} needs {needed} devices, {devices} found")
    return filled


def shardings(mesh: Mesh, shapes, axes):
    """Return NamedShardings of a tree of arrays or shapes. axes: a like tree of logical axes."""
    return jax.tree.map(
        lambda leaf, names: NamedSharding(mesh, spec(names, leaf.shape, mesh)), shapes, axes
    )


def abstract(shapes, shardings):
    """Return jax.ShapeDtypeStructs of a tree of arrays or shapes, with shardings of a like tree."""
    return jax.tree.map(
        lambda leaf, split: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split),
        shapes,
        shardings,
    )


def reshard(x: jax.Array, source: NamedSharding, target: NamedSharding) -> jax.Array:
    """Return x, of sharding `source`, with sharding `target`: for use in a program.

    The shardings are of meshes with the same devices in the same order. If the target splits one
    dimension, x is first split between all devices along it (all-to-all, permutation), then
    gathered. Asked for the target at once, the compiler may gather all of x on each device.
    """
    pairs = zip(x.shape, target.shard_shape(x.shape), strict=True)
    split = [place for place, (size, part) in enumerate(pairs) if part != size]
    if len(split) == 1 and x.shape[split[0]] % target.mesh.size == 0:
        for sharding in (source, target):
            x = jax.lax.with_sharding_constraint(x, _along(sharding, split[0], x.ndim))
    return jax.lax.with_sharding_constraint(x, target)


def _along(split: NamedSharding, place: int, rank: int) -> NamedSharding:
    """All devices along one dimension; those first that it is already split between."""
    names = split.spec[place] if place < len(split.spec) else None
    names = (names,) if isinstance(names, str) else names or ()
    others = tuple(name for name in split.mesh.axis_names if name not in names)
    axes = [None] * rank
    axes[place] = (*names, *others)
    return NamedSharding(split.mesh, PartitionSpec(*axes))


def of_items(split: NamedSharding) -> NamedSharding:
    """Return the sharding of each x[i] of an array x whose leading dimension is not split."""
    return NamedSharding(split.mesh, PartitionSpec(*split.spec[1:]))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that has the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits the leading dimension, of any rank, over the batch axes."""
    return NamedSharding(mesh, spec(("batch",)))


def batch_shardings(mesh: Mesh, batch):
    """Return NamedShardings that split the leading dimension of every leaf over the batch axes."""
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, spec(("batch",) + (None,) * (leaf.ndim - 1))), batch
    )


def check_batch(mesh: Mesh, rows: int, microbatches: int = 1):
    """Raise UserError unless the mesh splits the rows of every microbatch of a batch evenly."""
    devices = shard_count("batch", mesh)
    if rows % (microbatches * devices):
        times = f"{microbatches} microbatches times " if microbatches > 1 else ""
        raise UserError(
            f"batch of {rows} rows is not a multiple of {times}{devices} devices that share it; "
            "change the batch size, the number of microbatches or the mesh"
        )


def check_heads(mesh: Mesh, heads: int, setting: str = "mesh.tensor"):
    """Raise UserError unless the mesh splits a decoder's attention heads evenly.

    Otherwise every device would compute all of them. setting: the name of the mesh's size.
    """
    devices = shard_count("heads", mesh)
    if heads % devices:
        *some, last = (str(size) for size in range(1, heads + 1) if heads % size == 0)
        raise UserError(
            f"{setting} is {devices}, which does not divide the model's {heads} attention heads; "
            f"use {', '.join(some)} or {last}"
        )


def round_up_rows(mesh: Mesh | None, rows: int) -> int:
    """Return the next batch size that the mesh splits evenly; without a mesh, `rows`."""
    devices = 1 if mesh is None else shard_count("batch", mesh)
    return -(-rows // devices) * devices


def local_rows(mesh: Mesh, batch_size: int) -> tuple[int, ...]:
    """Return the rows of a global batch that this process feeds to its devices, ascending.

    They may have gaps: a mesh orders TPUs by their position in the torus, not by their hosts.
    Raises UserError if the mesh does not divide the batch.
    """
    check_batch(mesh, batch_size)
    indices = row_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return tuple(sorted({row for (rows,) in indices for row in range(*rows.indices(batch_size))}))


def place_batch(mesh: Mesh, batch, batch_size: int):
    """Return the global batch, split over the mesh, from this process's rows (`local_rows`, numpy).

    batch_size: rows of the global batch.
    """

    def place(leaf, sharding):
        return jax.make_array_from_process_local_data(sharding, leaf, (batch_size, *leaf.shape[1:]))

    return jax.tree.map(place, batch, batch_shardings(mesh, batch))


def constrain(x: jax.Array, axes: Axes) -> jax.Array:
    """Return x, split by its logical axes over the mesh of `jax.set_mesh`; without a mesh, x.

    (`nn.with_logical_constraint` is silently dropped under `with mesh:`; this one is not.)
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    split = spec(axes, x.shape, mesh)
    if mesh.manual_axes:  # of `on_rows`: x is what one device of them has
        split = _without(split, mesh.manual_axes)
    return jax.lax.with_sharding_constraint(x, split)


def platform() -> str:
    """Return "cpu", "gpu" or "tpu", of the mesh of `jax.set_mesh` or else of the default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def shard_count(axis: str, mesh=None) -> int:
    """Return into how many shards a mesh splits a logical axis; 1 without a mesh.

    mesh: None is that of `jax.set_mesh`.
    """
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    return 1 if mesh.empty else math.prod(mesh.shape[name] for name in RULES[axis])


def on_rows(
    function, weight: jax.Array, weight_axes: Axes, rows: tuple, others: tuple = (), dtype=None
):
    """Return `function(weight, rows, others)`, computed by each device on its rows of a batch.

    The gradient of the weight is summed up on each device, in the weight's dtype, and over devices
    once. (With constraints alone, a loop inside adds up a gradient over all devices in each of its
    passes: the whole weight, every time.)

    weight: of two dimensions with these axes, of which "embed" is gathered; in the function it is
    whole but for `tensor`. rows: arrays [B, ...]; others: arrays that every device has. The results
    are trees of arrays [B, ...]. dtype: that the function rounds the weight to anyway, to gather it
    in.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards = shard_count("batch")
    if shards == 1 or rows[0].shape[0] % shards:
        whole = tuple(None if name == "embed" else name for name in weight_axes)
        return function(constrain(weight, whole), rows, others)
    manual = set(RULES["batch"])
    split = spec(weight_axes, weight.shape, mesh)
    split = _without(split, set(MESH_AXES) - manual)
    gathered = [(place, names) for place, names in enumerate(split) if names]

    @jax.custom_vjp
    def whole(shard):
        out = shard if dtype is None else shard.astype(dtype)
        for place, names in gathered:
            out = jax.lax.all_gather(out, names, axis=place, tiled=True)
        return out.astype(shard.dtype)

    def backward(_, gradient):
        for place, names in gathered:
            gradient = jax.lax.psum_scatter(gradient, names, scatter_dimension=place, tiled=True)
        return (gradient,)

    whole.defvjp(lambda shard: (whole(shard), None), backward)
    batch = PartitionSpec(RULES["batch"])
    return jax.shard_map(
        lambda shard, rows, others: function(whole(shard), rows, others),
        in_specs=(split, batch, PartitionSpec()),
        out_specs=batch,
        axis_names=manual,
        check_vma=False,
    )(weight, rows, others)


def _without(split: PartitionSpec, axes) -> PartitionSpec:
    """A PartitionSpec without some mesh axes."""
    kept = []
    for names in split:
        names = (names,) if isinstance(names, str) else names or ()
        kept.append(tuple(name for name in names if name not in axes) or None)
    return PartitionSpec(*kept)


def on_shards(function, arrays: tuple, axes: tuple[Axes, ...]) -> jax.Array:
    """Return `function(*arrays)`, computed by each device on its shards: for kernels.

    axes: logical axes of each array; the result is split as the first one. Without a mesh, it is
    one call with the whole arrays.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(*arrays)
    specs = tuple(spec(names, x.shape, mesh) for x, names in zip(arrays, axes, strict=True))
    # check_vma=False: kernels do not declare over which mesh axes their results vary.
    mapped = jax.shard_map(function, in_specs=specs, out_specs=specs[0], check_vma=False)
    return mapped(*arrays)
