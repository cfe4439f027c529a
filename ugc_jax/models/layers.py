"""What the three towers share: linear, norms, rotation, attention, the loop over layers.

Modules are flax.linen in its functional subset (compact, no mutable collections). Parameters carry
the leaf names and the shapes of the Hugging Face checkpoint, so a linear's weight is (out, in) and
conversion is a renaming.
Letters: B batch, T query, S key, D model width, N heads, K key/value heads, G = N / K, H head
width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ugc_jax.sharding import Axes, constrain

MASKED = -1e30  # finite, so that a row with nothing to attend to stays finite


def param(module: nn.Module, name: str, shape: tuple[int, ...], axes: Axes) -> jax.Array:
    """Declare a parameter with the logical names of its dimensions (see `sharding.Rules`).

    Values come from a checkpoint; the initialiser only serves `jax.eval_shape`.
    """
    return module.param(name, nn.with_partitioning(nn.initializers.zeros, axes), shape, jnp.float32)


def declared(module: nn.Module, inputs=lambda: ()):
    """A module's parameters, computing nothing: a tree of boxes with shapes and logical axes.

    inputs: a function that makes the arguments of the module's call; it is only traced.
    """
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs()))["params"]


class Weight(nn.Module):
    """A lone tensor called `weight`: embedding tables and kernels."""

    shape: tuple[int, ...]
    axes: Axes

    @nn.compact
    def __call__(self):
        return param(self, "weight", self.shape, self.axes)


class Linear(nn.Module):
    """y[..., out] = x[..., in] @ weight[out, in].T + bias[out], computed in x's dtype."""

    features: int
    axes: Axes  # logical names of (out, in)
    bias: bool = True

    @nn.compact
    def __call__(self, x):
        weight = param(self, "weight", (self.features, x.shape[-1]), self.axes)
        y = jnp.einsum("...i,oi->...o", x, weight.astype(x.dtype))
        if self.bias:
            y = y + per_channel(param(self, "bias", (self.features,), self.axes[:1]), y)
        return y


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis; statistics in float32, the weight in x's dtype."""

    eps: float

    @nn.compact
    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return normed.astype(x.dtype) * per_channel(
            param(self, "weight", x.shape[-1:], ("embed",)), x
        )


class LayerNorm(nn.Module):
    """Layer norm over the last axis, in float32 inside."""

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
        gate = Linear(self.features, ("mlp", "embed"), self.bias, name="gate_proj")(x)
        up = Linear(self.features, ("mlp", "embed"), self.bias, name="up_proj")(x)
        return Linear(x.shape[-1], ("embed", "mlp"), self.bias, name="down_proj")(
            nn.silu(gate) * up
        )


def per_channel(vector: jax.Array, like: jax.Array) -> jax.Array:
    """vector[C] with leading axes of size one and the dtype of `like`[..., C]."""
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


def gelu(x: jax.Array) -> jax.Array:
    """Exact (erf) GELU, as torch's default."""
    return jax.nn.gelu(x, approximate=False)


def rotation(angles_BTh: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Angles f32[B, T, H/2] -> (cosines, sines) f32[B, T, 1, H/2], for all layers at once."""
    return jnp.cos(angles_BTh)[:, :, None], jnp.sin(angles_BTh)[:, :, None]


def rotate(x_BTNH: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary embedding in float32, half-split: elements i and i + H/2 turn by angle i."""
    cos, sin = rotation
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x_BTNH.dtype)


def attention(
    q_BTNH, k_BSKH, v_BSKH, segments_BT, *, causal: bool = False, block: int = 256
) -> jax.Array:
    """Self-attention (T = S) inside segments -> [B, T, N, H] in q's dtype; grouped when K < N.

    segments_BT: i32, a query attends to keys of its own segment. Padding is a segment like any
      other (0), so no row is ever empty.
    causal: a query attends to no later key. Computed in blocks of `block` queries against the keys
      before the block's end: half the work, and scores of B * N * block * S floats at most.
    Scores and softmax are float32.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BKGTH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKHS, v_BKSH = k_BSKH.transpose(0, 2, 3, 1), v_BSKH.transpose(0, 2, 1, 3)

    def queries(start: int, stop: int, keys: int):
        mask_BTS = segments_BT[:, start:stop, None] == segments_BT[:, None, :keys]
        if causal:
            mask_BTS &= (jnp.arange(start, stop)[:, None] >= jnp.arange(keys)[None])[None]
        scores = _scores(q_BKGTH[:, :, :, start:stop], k_BKHS[..., :keys], mask_BTS[:, None, None])
        return softmax_weighted([(scores, v_BKSH[:, :, :keys])])

    if not causal:
        out_BKGTH = queries(0, T, T)
    else:
        blocks = [
            queries(start, min(start + block, T), min(start + block, T))
            for start in range(0, T, block)
        ]
        out_BKGTH = jnp.concatenate(blocks, axis=3)
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def cached_attention(q_BNH, parts) -> jax.Array:
    """Attention of one new token over several caches at once. Returns [B, N, H].

    parts: list of (k_BKHS, v_BKSH, mask_BS bool); the softmax runs over all of them together.
    """
    B, N, H = q_BNH.shape
    K = parts[0][0].shape[1]
    q_BKGTH = q_BNH.reshape(B, K, N // K, 1, H)
    scored = [(_scores(q_BKGTH, k, mask_BS[:, None, None, None]), v) for k, v, mask_BS in parts]
    return softmax_weighted(scored).reshape(B, N, H)


def _scores(q_BKGTH, k_BKHS, mask) -> jax.Array:
    """Scaled, masked scores f32[B, K, G, T, S]; mask is broadcastable to them."""
    scores = jnp.einsum("bkgth,bkhs->bkgts", q_BKGTH, k_BKHS, preferred_element_type=jnp.float32)
    return jnp.where(mask, scores * q_BKGTH.shape[-1] ** -0.5, MASKED)


def softmax_weighted(scored) -> jax.Array:
    """Values weighted by the softmax over the keys of all parts -> [B, K, G, T, H].

    scored: list of (scores f32[B, K, G, T, S], v[B, K, S, H]). Normalised after the product with
    the values, which saves a pass over the scores.
    """
    top = jnp.max(jnp.stack([jnp.max(scores, axis=-1) for scores, _ in scored]), axis=0)[..., None]
    top = jax.lax.stop_gradient(top)
    total, out = 0.0, 0.0
    for scores, v in scored:
        weights = jnp.exp(scores - top)
        total += jnp.sum(weights, axis=-1, keepdims=True)
        out += jnp.einsum(
            "bkgts,bksh->bkgth", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
    return (out / total).astype(scored[0][1].dtype)


def run_layers(layer, params, x, per_layer=None, *, remat: str = "none"):
    """Run a stack of equal layers: x, out = layer(params_i, x, per_layer_i) for each layer i.

    params: a dict of leaves stacked on a leading layer axis (`jax.lax.scan`, one compiled layer:
      for training and accelerators), or a tuple of dicts (unrolled, no slicing: for a CPU).
    per_layer: what each layer gets beside its input, `split_like` the params. remat: see
      `config.Compute`.
    Returns (x, outs stacked on the layer axis).
    """

    def body(x, inputs):
        return layer(inputs[0], x, inputs[1])

    if remat == "full":
        body = jax.checkpoint(body, prevent_cse=isinstance(params, tuple))
    if not isinstance(params, tuple):
        return jax.lax.scan(body, x, (params, per_layer))
    outs = []
    for inputs in zip(params, per_layer or [None] * len(params), strict=True):
        x, out = body(x, inputs)
        outs.append(out)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)


def split_like(params, stacked):
    """A tree stacked on the layer axis -> `per_layer` of `run_layers`, beside `params`."""
    if not isinstance(params, tuple):
        return stacked
    return tuple(jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(len(params)))


def in_slabs(function, arrays, row_tokens: int, slab: int):
    """`function(*arrays)`, a few rows of the arrays' leading axis at a time.

    row_tokens: tokens in a row. slab: tokens to work on at a time, in whole rows and at least one;
      0: all at once. One program whatever the number of slabs; it bounds the activations.
    """
    total = arrays[0].shape[0]
    most = max(slab // row_tokens, 1) if slab else total
    rows = max(n for n in range(1, min(most, total) + 1) if total % n == 0)
    if rows == total:
        return function(*arrays)
    slabs = tuple(array.reshape(total // rows, rows, *array.shape[1:]) for array in arrays)
    out = jax.lax.map(lambda slab: function(*slab), slabs)
    return jax.tree.map(lambda leaf: leaf.reshape(total, *leaf.shape[2:]), out)


def split_heads(x_BTD: jax.Array, heads: int) -> jax.Array:
    """[B, T, heads * H] -> [B, T, heads, H], heads split over the mesh as their projections are."""
    B, T, D = x_BTD.shape
    return constrain(x_BTD.reshape(B, T, heads, D // heads), ("batch", None, "heads", None))
