"""Mesh, logical-axis rules and constraints: the only file that knows the names of mesh axes.

A parameter names its dimensions logically ("vocab", "heads", ...); `Rules` says which mesh axes
split each of them. Mesh axes: `data` copies parameters and splits the batch, `fsdp` splits both,
`tensor` splits heads, feed-forward width and vocabulary.
"""

import dataclasses
import math

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ugc_jax.errors import UserError

Axes = tuple[str | None, ...]
MESH_AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class Rules:
    """Logical axis -> mesh axes. A name that is not here is an AttributeError."""

    batch: tuple[str, ...] = ("data", "fsdp")
    layers: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ("tensor",)
    embed: tuple[str, ...] = ("fsdp",)  # a tower's width, as a parameter's dimension
    heads: tuple[str, ...] = ("tensor",)
    mlp: tuple[str, ...] = ("tensor",)

    def spec(
        self, axes: Axes, shape: tuple[int, ...] | None = None, mesh: Mesh | None = None
    ) -> PartitionSpec:
        """PartitionSpec of an array whose dimensions have these logical names (None: not split).

        With its shape and a mesh, a dimension that its mesh axes do not divide is left whole:
        correct, only less split.
        """
        split = [() if name is None else getattr(self, name) for name in axes]
        if shape is not None:
            split = [
                names if size % math.prod(mesh.shape[name] for name in names) == 0 else ()
                for names, size in zip(split, shape, strict=True)
            ]
        return PartitionSpec(*(names or None for names in split))


RULES = Rules()


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices=None) -> Mesh:
    """A mesh over all devices; one size may be -1, "what is left". UserError if it does not fit."""
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(
            f"mesh data={data} fsdp={fsdp} tensor={tensor}: sizes are positive, at most one is -1"
        )
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if not devices or math.prod(sizes) != len(devices):
        raise UserError(
            f"mesh data={data} fsdp={fsdp} tensor={tensor} does not fill the {len(devices)} devices"
        )
    return jax.make_mesh(
        tuple(sizes), MESH_AXES, devices=devices, axis_types=(AxisType.Auto,) * len(MESH_AXES)
    )


def shardings(mesh: Mesh, shapes, axes, rules: Rules = RULES):
    """NamedShardings of a tree of arrays or shapes, given the matching tree of logical axes."""
    return jax.tree.map(
        lambda leaf, names: NamedSharding(mesh, rules.spec(names, leaf.shape, mesh)), shapes, axes
    )


def batch_shardings(mesh: Mesh, batch, rules: Rules = RULES):
    """NamedShardings that split the leading dimension of every leaf over the batch axes."""
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, rules.spec(("batch",) + (None,) * (leaf.ndim - 1))), batch
    )


def constrain(x: jax.Array, axes: Axes, rules: Rules = RULES) -> jax.Array:
    """Fix how an intermediate is split over the mesh of `jax.set_mesh`; without one, do nothing.

    (`nn.with_logical_constraint` is silently dropped under `with mesh:`; this one is not.)
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, rules.spec(axes, x.shape, mesh))
