"""What the three towers share: linear, norms, rotary embedding, the loop over layers.

Modules are flax.linen in its functional subset (compact, no mutable collections). Parameters carry
the leaf names and the shapes of the Hugging Face checkpoint, so a linear's weight is (out, in) and
conversion only renames.
Letters: B batch, T tokens, D model width, N heads, H head width.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from ugc_jax.models.int8 import SCALE
from ugc_jax.models.params import param
from ugc_jax.sharding import Axes, constrain, platform

# Names of results for `remat`: of an attention kernel, and of a linear.
KERNEL_RESULT, LINEAR_RESULT = "attention_kernel", "linear"


class Joined(NamedTuple):
    """Linears of the same vectors as one, whose results come one after the other."""

    name: str
    parts: tuple[str, ...]


# Block of a decoder layer -> its linears that `thinker.for_decoding` joins.
JOINED = {
    "self_attn": Joined("qkv_proj", ("q_proj", "k_proj", "v_proj")),
    "mlp": Joined("gate_up_proj", ("gate_proj", "up_proj")),
}


class Weight(nn.Module):
    """A single tensor called `weight`: embedding tables and kernels."""

    shape: tuple[int, ...]
    axes: Axes

    @nn.compact
    def __call__(self):
        return param(self, "weight", self.shape, self.axes)


class Linear(nn.Module):
    """y[..., out] = x[..., in] @ weight[out, in].T + bias[out], computed in x's dtype.

    If its parameters have `lora_a` [r, in] and `lora_b` [out, r], too (models/lora.py), (x A^T) B^T
    is added. If they have `scale` [out], the weight is in int8 (models/int8.py).
    """

    features: int
    axes: Axes  # logical names of (out, in)
    bias: bool = True
    zeros: tuple[int, int] = (0, 0)  # appended outputs that are 0, and inputs that do not count

    @nn.compact
    def __call__(self, x):
        outputs, inputs = self.zeros
        weight = param(self, "weight", (self.features, x.shape[-1] - inputs), self.axes)
        weight = _with_zeros(weight, outputs, inputs)
        if self.has_variable("params", SCALE):
            y = product("...i,oi->...o", x, weight, jnp.float32)
            scale = _with_zeros(self.get_variable("params", SCALE), outputs)
            y = (y * per_channel(scale, y)).astype(x.dtype)
        else:
            y = product("...i,oi->...o", x, weight)
        if self.has_variable("params", "lora_a"):
            a, b = (self.get_variable("params", name) for name in ("lora_a", "lora_b"))
            a, b = _with_zeros(a, 0, inputs), _with_zeros(b, outputs, 0)
            low = jnp.einsum("...i,ri->...r", x, a.astype(x.dtype))
            y = y + jnp.einsum("...r,or->...o", low, b.astype(x.dtype))
        if self.bias:
            bias = param(self, "bias", (self.features,), self.axes[:1])
            y = y + per_channel(_with_zeros(bias, outputs), y)
        return checkpoint_name(y, LINEAR_RESULT)


def _with_zeros(array: jax.Array, *counts: int) -> jax.Array:
    """Return the array with so many zeros appended on each axis."""
    return jnp.pad(array, [(0, count) for count in counts]) if any(counts) else array


def product(spec: str, x: jax.Array, weight: jax.Array, dtype=None) -> jax.Array:
    """Return einsum(spec, x, weight) of x[..., i] and weight[o, i], in `dtype` (None: x's)."""
    weight, wide = weight.astype(x.dtype), dtype
    if platform() == "cpu":
        return _product_on_cpu(x, weight, dtype or x.dtype)
    return jnp.einsum(spec, x, weight, preferred_element_type=wide).astype(dtype or x.dtype)


def product_of_few(spec: str, x: jax.Array, weight: jax.Array, dtype) -> jax.Array:
    """Return `product` of few x with a weight of many outputs, the vocabulary.

    On a CPU it is computed as [o, ...], and what reads it so takes less time, too.
    """
    if platform() != "cpu":
        return product(spec, x, weight, dtype)
    x_RI = x.reshape(-1, x.shape[-1])
    y_OR = _product_on_cpu(weight.astype(x.dtype), x_RI, dtype)
    return y_OR.T.reshape(*x.shape[:-1], -1)


def _product_on_cpu(x: jax.Array, weight: jax.Array, dtype) -> jax.Array:
    """`product`, of matrices: for an x of more axes, XLA would transpose the weight each time."""
    x_RI, rows, wide = x.reshape(-1, x.shape[-1]), math.prod(x.shape[:-1]), dtype
    outputs = len(weight)
    if x.dtype == jnp.bfloat16:
        # A CPU computes a bfloat16 product two to five times as fast if it may return float32,
        # and that of one vector seven times as fast beside another one.
        wide = jnp.float32
        x_RI, weight = (
            jnp.pad(one, [(0, 1), (0, 0)]) if len(one) == 1 else one for one in (x_RI, weight)
        )
    y_RO = jnp.einsum("ri,oi->ro", x_RI, weight, preferred_element_type=wide)[:rows, :outputs]
    return y_RO.astype(dtype).reshape(*x.shape[:-1], -1)


class RMSNorm(nn.Module):
    """RMS norm over the last axis; statistics in float32, the weight applied in x's dtype."""

    eps: float

    @nn.compact
    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return normed.astype(x.dtype) * per_channel(
            param(self, "weight", x.shape[-1:], ("embed",)), x
        )


class LayerNorm(nn.Module):
    """Layer norm over the last axis, computed in float32."""

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        mean = jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(x32 - mean), axis=-1, keepdims=True)
        normed = (x32 - mean) * jax.lax.rsqrt(variance + self.eps)
        weight = param(self, "weight", x.shape[-1:], ("embed",))
        bias = param(self, "bias", x.shape[-1:], ("embed",))
        return (normed * per_channel(weight, normed) + per_channel(bias, normed)).astype(x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    features: int
    bias: bool

    @nn.compact
    def __call__(self, x):
        joined = JOINED["mlp"].name
        # cuBLAS's fast kernels need rows of whole 16 bytes, in and out; without them a product of
        # the vision encoder (3420 wide) takes up to three times as long.
        odd = platform() == "gpu" and not self.has_variable("params", joined)
        zeros = -self.features % 8 if odd else 0

        def project(name: str, features: int):
            return Linear(features, ("mlp", "embed"), self.bias, (zeros, 0), name=name)(x)

        if self.has_variable("params", joined):
            gate, up = jnp.split(project(joined, 2 * self.features), 2, axis=-1)
        else:
            gate, up = project("gate_proj", self.features), project("up_proj", self.features)
        # A CPU has the SiLU of float32 in half the time; training elsewhere would have to keep it.
        wide = jnp.float32 if platform() == "cpu" else x.dtype
        hidden = (nn.silu(gate.astype(wide)) * up).astype(x.dtype)
        down = Linear(x.shape[-1], ("embed", "mlp"), self.bias, (0, zeros), name="down_proj")
        return down(hidden)


def per_channel(vector: jax.Array, like: jax.Array) -> jax.Array:
    """Return vector[C] with leading axes of size one and the dtype of `like`[..., C]."""
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


def gelu(x: jax.Array) -> jax.Array:
    """Return the exact (erf) GELU, torch's default."""
    return jax.nn.gelu(x, approximate=False)


def cos_sin(angles_BTh: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return (cosines, sines) f32[B, T, 1, H/2] of angles f32[B, T, H/2], for all layers."""
    return jnp.cos(angles_BTh)[:, :, None], jnp.sin(angles_BTh)[:, :, None]


def rotate(x_BTNH: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return the rotary embedding of x, in float32: elements i and i + H/2 rotate by angle i.

    rope: of `cos_sin`.
    """
    cos, sin = rope
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x_BTNH.dtype)


def run_layers(layer, params, x, per_layer=None, *, remat: str = "none"):
    """Run a stack of equal layers: x, out = layer(params_i, x, per_layer_i) for each layer i.

    Returns (x, outs in the form of params: stacked on the layer axis, or a tuple).

    params: a dict of leaves stacked on a leading layer axis (`jax.lax.scan`, one compiled layer:
      for training and accelerators), or a tuple of dicts (unrolled, no slicing: for a CPU).
    per_layer: each layer's further input, `split_like` the params; of unrolled layers, numbers are
      constants. remat: see `compute.Compute`.
    """

    def body(x, inputs, constant=None):
        params, own = inputs
        return layer(params, x, own if constant is None else constant)

    if remat != "none":
        body = jax.checkpoint(
            body, prevent_cse=isinstance(params, tuple), policy=_remat_policy(remat)
        )
    if not isinstance(params, tuple):
        # On a CPU a few layers in a row run faster than one at a time.
        return jax.lax.scan(body, x, (params, per_layer), unroll=4 if platform() == "cpu" else 1)
    # The layers that are alike are traced once, which is most of the time to a cached program.
    body, outs = jax.jit(body, static_argnums=2), []
    for one, own in zip(params, per_layer or [None] * len(params), strict=True):
        x, out = body(x, (one, None), own) if isinstance(own, np.generic) else body(x, (one, own))
        outs.append(out)
    return x, tuple(outs)


def _remat_policy(remat: str):
    """The policy of `jax.checkpoint`: which results the backward pass takes from memory."""
    policies = jax.checkpoint_policies
    if remat == "full":
        return policies.nothing_saveable
    # Names, not all products: beside an adapter, that would keep two where their sum is enough.
    return policies.save_only_these_names(KERNEL_RESULT, LINEAR_RESULT)


def split_like(params, stacked):
    """Return a tree stacked on the layer axis in the form of `params`: as it is, or a tuple."""
    if not isinstance(params, tuple):
        return stacked
    return tuple(jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(len(params)))


def in_chunks(function, arrays, row_tokens: int, chunk_tokens: int):
    """Return `function(*arrays)`, computed on chunks of rows of the leading axis by `lax.map`.

    This bounds the activations. row_tokens: tokens in a row. chunk_tokens: tokens in a chunk, which
    has at least one row; 0: all rows are one chunk.
    """
    total = arrays[0].shape[0]
    most = max(chunk_tokens // row_tokens, 1) if chunk_tokens else total
    rows = max(n for n in range(1, min(most, total) + 1) if total % n == 0)
    if rows == total:
        return function(*arrays)
    chunks = tuple(array.reshape(total // rows, rows, *array.shape[1:]) for array in arrays)
    out = jax.lax.map(lambda chunk: function(*chunk), chunks)
    return jax.tree.map(lambda leaf: leaf.reshape(total, *leaf.shape[2:]), out)


def split_heads(x_BTD: jax.Array, heads: int) -> jax.Array:
    """Reshape [B, T, heads * H] to [B, T, heads, H], split over the mesh as the projections are."""
    B, T, D = x_BTD.shape
    return constrain(x_BTD.reshape(B, T, heads, D // heads), ("batch", None, "heads", None))
