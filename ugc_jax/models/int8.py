"""Weights and caches in int8: half of the bytes of bfloat16 that a decode step reads.

Symmetric: x = int8 * scale, and scale is the largest |x| over 127. A weight has a scale for each
row, that is output; its scales are the leaf `scale` beside it, by which `layers.Linear` multiplies
its results. A cache has one for each head and position (`decoder.Cache`), by which attention
multiplies scores and weights. Nothing is converted back in memory.
"""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

SCALE = "scale"
_MOST = 127.0


def quantize(x: jax.Array, axis: int = -1) -> tuple[jax.Array, jax.Array]:
    """Return (int8, f32 scales without `axis`), one scale for all values along `axis`."""
    x = x.astype(jnp.float32)
    most = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    scale = jnp.where(most > 0, most / _MOST, 1.0)
    return jnp.round(x / scale).astype(jnp.int8), jnp.squeeze(scale, axis)


def quantized(weight):
    """Return `quantize(weight)` with the weight's sharding; also of a jax.ShapeDtypeStruct."""
    whole = rows = weight.sharding
    if isinstance(whole, NamedSharding):
        axes = (*whole.spec, *[None] * (weight.ndim - len(whole.spec)))
        rows = NamedSharding(whole.mesh, PartitionSpec(*axes[:-1]))
    if isinstance(weight, jax.ShapeDtypeStruct):
        return (
            jax.ShapeDtypeStruct(weight.shape, jnp.int8, sharding=whole),
            jax.ShapeDtypeStruct(weight.shape[:-1], jnp.float32, sharding=rows),
        )
    return jax.jit(quantize, out_shardings=(whole, rows))(weight)
