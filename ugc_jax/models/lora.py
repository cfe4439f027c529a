"""LoRA: a low-rank correction B A beside a frozen linear's weight W (arXiv 2106.09685).

Its leaves `lora_a` [r, in] and `lora_b` [out, r] are siblings of `weight` in the parameter tree,
stacked like it; `layers.Linear` adds (x A^T) B^T if it has them. An adapter is the tree of only
these leaves.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ugc_jax.errors import UserError
from ugc_jax.models.layers import split_like
from ugc_jax.models.params import Param, Stack, build_tree, get_leaf, leaves, walk
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.models.qwen2_5_omni.names import ADAPTABLE

LEAVES = ("lora_a", "lora_b")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """A low-rank adapter on linears of the decoder."""

    rank: int = 0  # of the correction B A; 0: no adapter
    alpha: float = 16.0  # the correction is weighted by alpha / rank
    # which linears of every decoder layer get one
    targets: str = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"

    def __post_init__(self):
        if self.rank < 0:
            raise UserError(f"rank is {self.rank}; use a positive number, or 0 for no adapter")
        if self.alpha <= 0:
            raise UserError(f"alpha is {self.alpha}; use a positive number")

    @property
    def scale(self) -> float:
        """Factor of the correction B A."""
        return self.alpha / self.rank

    @property
    def names(self) -> tuple[str, ...]:
        """The targets as a tuple."""
        return tuple(filter(None, (name.strip() for name in self.targets.split(","))))


def declare(config: OmniConfig, lora: LoraConfig) -> dict:
    """Return the declared tree (models/params.py) of an adapter.

    The rank of a leaf without an "embed" dimension has that axis, so that every leaf is split over
    devices. Raises UserError for a target that the decoder's layers do not have.
    """
    pairs = []
    for path, weight in _target_weights(config, lora).items():
        (features, width), (out_axis, in_axis) = weight.shape, weight.axes
        rank_axes = [None if axis == "embed" else "embed" for axis in (in_axis, out_axis)]
        pairs += [
            ((*path, "lora_a"), Param((lora.rank, width), (rank_axes[0], in_axis))),
            ((*path, "lora_b"), Param((features, lora.rank), (out_axis, rank_axes[1]))),
        ]
    stack = get_leaf(thinker.declare(config), ADAPTABLE)
    return build_tree([(ADAPTABLE, Stack(stack.layers, build_tree(pairs)))])


def init(config: OmniConfig, lora: LoraConfig, key: jax.Array) -> dict:
    """Return a new adapter, float32: A uniform in +-1 / sqrt(in), as in the peft package, B zero.

    Raises UserError as `declare`.
    """
    targets = _target_weights(config, lora)
    noise = dict(zip(targets, jax.random.split(key, len(targets)), strict=True))
    values = []
    for leaf in leaves(declare(config, lora)):
        value = jnp.zeros(leaf.shape, jnp.float32)
        if leaf.path[-1] == "lora_a":
            bound = leaf.shape[-1] ** -0.5
            linear = leaf.path[len(ADAPTABLE) : -1]
            value = jax.random.uniform(noise[linear], leaf.shape, jnp.float32, -bound, bound)
        values.append((leaf.path, value))
    return build_tree(values)


def _target_weights(config: OmniConfig, lora: LoraConfig) -> dict[tuple[str, ...], Param]:
    """{path of a target inside a layer: its weight}; UserError for an unknown target."""
    layer = get_leaf(thinker.declare(config), ADAPTABLE).layer
    linears = {
        path[-2]: (path[:-1], weight)
        for path, weight in walk(layer)
        if path[-1] == "weight" and len(weight.shape) == 2
    }
    for name in lora.names:
        if name not in linears:
            raise UserError(
                f"lora.targets: no linear is called {name!r}; use some of {', '.join(linears)}"
            )
    if not lora.names:
        raise UserError(f"lora.targets is empty; use some of {', '.join(linears)}")
    return dict(linears[name] for name in lora.names)


def combine(params: dict, adapter: dict, lora: LoraConfig) -> dict:
    """Return the tree for a forward pass: the adapter's leaves beside the weights, B scaled.

    params: with stacked or unrolled layers.
    """
    return _map_linears(
        params,
        adapter,
        lambda linear, pair: linear | pair | {"lora_b": lora.scale * pair["lora_b"]},
    )


def merge(
    params: dict, adapter: dict, lora: LoraConfig, dtype: jax.typing.DTypeLike | None = None
) -> dict:
    """Return the tree with weights W + scale * B A, summed in float32 and cast once.

    dtype: of these weights; None: the one that each has. A young adapter's change is smaller than a
    step of bfloat16 in most weights, so what is stored in float32 is to be merged in float32.
    """

    def merged(linear: dict, pair: dict) -> dict:
        a, b, weight = pair["lora_a"], pair["lora_b"], linear["weight"]
        change = jnp.einsum(
            "...or,...ri->...oi",
            b.astype(jnp.float32),
            a.astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )
        total = weight.astype(jnp.float32) + lora.scale * change
        return linear | {"weight": total.astype(dtype or weight.dtype)}

    return _map_linears(params, adapter, merged)


def _map_linears(params, adapter: dict, change: Callable[[dict, dict], dict]):
    """params with `change(linear, its adapter leaves)` for each linear that the adapter has."""
    if LEAVES[0] in adapter:
        return change(params, adapter)
    if isinstance(params, tuple):
        pairs = zip(params, split_like(params, adapter), strict=True)
        return tuple(_map_linears(layer, part, change) for layer, part in pairs)
    changed = {key: _map_linears(params[key], part, change) for key, part in adapter.items()}
    return params | changed
