"""Parameters, declared once: by the Flax modules, which know each one's shape and logical axes.

`declare_module` traces a module for its shapes and returns a tree of `Param`. A family joins the
trees of its modules and wraps that of a repeated layer in a `Stack` (`thinker.declare`). From this
one tree follow the shapes, logical axes and shardings of the arrays, stacked or unrolled, and the
tensors of a checkpoint with their names in Hugging Face's files.

Stacked, a stack is a dict whose arrays have a leading layer axis; unrolled, it is a tuple of dicts.
A tensor's name is its path joined by dots, with the layer's number after the stack's name:
`model.layers.7.mlp.up_proj.weight` is row 7 of the array at ("model", "layers", "mlp", "up_proj",
"weight"), or the array at ("model", "layers", 7, "mlp", "up_proj", "weight").
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ugc_jax import sharding
from ugc_jax.sharding import Axes

Shape = tuple[int, ...]
Path = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Param:
    """A declared parameter. axes: the logical names of its dimensions."""

    shape: Shape
    axes: Axes


@dataclasses.dataclass(frozen=True)
class Stack:
    """`layers` equal layers; `layer` is the declared tree of one."""

    layers: int
    layer: dict


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint.

    path: of its array in the stacked tree. layer: its row there, or None.
    """

    name: str
    path: tuple[str, ...]
    layer: int | None
    shape: Shape


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of the parameter tree; it consists of `tensors`, in order of its leading axis."""

    path: Path
    shape: Shape
    axes: Axes
    tensors: tuple[Tensor, ...]

    @property
    def is_stacked(self) -> bool:
        """Whether its leading axis counts layers."""
        return len(self.shape) > len(self.tensors[0].shape)


# ---- declaring -----------------------------------------------------------------------------------


def param(module: nn.Module, name: str, shape: Shape, axes: Axes) -> jax.Array:
    """Declare a parameter with the logical names of its dimensions (see `sharding.RULES`).

    Values come from a checkpoint; only `declare_module` uses the initialiser.
    """
    init = nn.with_partitioning(nn.initializers.zeros, axes)
    # Unboxed here, because flax would look up our logical names among the mesh's axes.
    value = module.param(name, init, shape, jnp.float32, unbox=False)
    return value.value if isinstance(value, nn.Partitioned) else value


def declare_module(module: nn.Module, inputs: Callable[[], tuple] = lambda: ()) -> dict:
    """Return the declared tree of a module, in the order of its calls, without computing anything.

    inputs: returns the arguments of the module's call; it is only traced.
    """
    boxes = {}

    def trace():
        # A side effect, because the result of jax.eval_shape would be sorted by name.
        boxes.update(module.init(jax.random.key(0), *inputs())["params"])

    jax.eval_shape(trace)
    return _unboxed(boxes)


def _unboxed(node: dict | nn.Partitioned) -> dict | Param:
    if isinstance(node, nn.Partitioned):
        return Param(node.value.shape, node.names)
    return {name: _unboxed(child) for name, child in node.items()}


def walk(tree: dict) -> Iterator[tuple[tuple[str, ...], Param | Stack]]:
    """Yield (path, node) for each Param and Stack of a declared tree, in its order."""
    for name, child in tree.items():
        if isinstance(child, dict):
            yield from (((name, *path), node) for path, node in walk(child))
        else:
            yield (name,), child


# ---- what follows from the declared tree ---------------------------------------------------------


def leaves(tree: dict, stacked: bool = True) -> list[Leaf]:
    """Return every array of the parameter tree that a declared tree describes, in its order."""
    result = []
    for path, node in walk(tree):
        if isinstance(node, Param):
            tensor = Tensor(".".join(path), path, None, node.shape)
            result.append(Leaf(path, node.shape, node.axes, (tensor,)))
            continue
        for inner, one in walk(node.layer):
            tensors = tuple(
                Tensor(".".join((*path, str(i), *inner)), (*path, *inner), i, one.shape)
                for i in range(node.layers)
            )
            if stacked:
                shape, axes = (node.layers, *one.shape), ("layers", *one.axes)
                result.append(Leaf((*path, *inner), shape, axes, tensors))
            else:
                result += [
                    Leaf((*path, i, *inner), one.shape, one.axes, (tensor,))
                    for i, tensor in enumerate(tensors)
                ]
    return result


def tensors(tree: dict) -> list[Tensor]:
    """Return every tensor of a checkpoint that a declared tree describes, in export order."""
    return [tensor for leaf in leaves(tree) for tensor in leaf.tensors]


def abstract_params(tree: dict, dtype, stacked: bool = True) -> dict:
    """Return the parameter tree with a jax.ShapeDtypeStruct at every leaf."""
    return build_tree(
        (leaf.path, jax.ShapeDtypeStruct(leaf.shape, dtype)) for leaf in leaves(tree, stacked)
    )


def logical_axes(tree: dict, stacked: bool = True) -> dict:
    """Return the parameter tree with each leaf's logical axes in its place."""
    return build_tree((leaf.path, leaf.axes) for leaf in leaves(tree, stacked))


def param_shardings(tree: dict, mesh: jax.sharding.Mesh, stacked: bool = True) -> dict:
    """Return the parameter tree with a NamedSharding at every leaf."""
    shapes = abstract_params(tree, jnp.float32, stacked)
    return sharding.shardings(mesh, shapes, logical_axes(tree, stacked))


# ---- trees of arrays -----------------------------------------------------------------------------


def build_tree(items: Iterable[tuple[Path, Any]]) -> dict:
    """Return the nested dict of (path, value) pairs; integer keys become the items of a tuple."""
    root: dict = {}
    for path, value in items:
        node = root
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return _with_tuples(root)


def _with_tuples(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    children = {key: _with_tuples(child) for key, child in node.items()}
    return tuple(children[i] for i in range(len(children))) if 0 in children else children


def get_leaf(tree: dict, path: Path) -> Any:
    """Return the value at `path` of a nested dict or tuple."""
    for key in path:
        tree = tree[key]
    return tree


def locate(tree: dict, tensor: Tensor) -> tuple[jax.Array, int | None]:
    """Return (array, row) of a tensor in a stacked or unrolled tree; row None: the whole array."""
    node, row = tree, tensor.layer
    for key in tensor.path:
        node = node[key]
        if isinstance(node, tuple):
            node, row = node[tensor.layer], None
    return node, row
