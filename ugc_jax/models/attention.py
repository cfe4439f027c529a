"""Attention: in plain XLA for every tower, and the kernels that the decoder may use instead.

Letters: B batch, T query, S key, N heads, K key/value heads, G = N / K, H head width.
"""

import math

import jax
import jax.numpy as jnp

from ugc_jax.errors import UserError
from ugc_jax.models.layers import KERNEL_RESULT
from ugc_jax.sharding import on_shards, parts, platform

MASKED = -1e30  # finite, so that a row with nothing to attend to stays finite
_LANES = 128  # splash attention works on blocks of a multiple of this
_NEEDS = {"xla": None, "splash": "tpu", "cudnn": "gpu"}


def causal_attention(q_BTNH, k_BTKH, v_BTKH, segments_BT, implementation: str) -> jax.Array:
    """`attention(..., causal=True)` by the implementation of `config.Compute.attention`.

    The kernels never hold the [T, T] scores; under a mesh each device runs one on its own rows and
    heads. Raises UserError where the mesh (or, without one, the default device) cannot run it.
    """
    check_platform(implementation, platform())
    if implementation == "xla":
        return attention(q_BTNH, k_BTKH, v_BTKH, segments_BT, causal=True)
    kernel = {"splash": splash_attention, "cudnn": cudnn_attention}[implementation]
    return sharded_heads(kernel, q_BTNH, k_BTKH, v_BTKH, segments_BT)


def check_platform(implementation: str, platform: str):
    """Raise UserError if `platform` ("cpu", "gpu" or "tpu") cannot run the implementation."""
    needed = _NEEDS[implementation]
    if needed not in (None, platform):
        raise UserError(
            f"attention={implementation} needs a {needed.upper()}, and this is a "
            f"{platform.upper()}; use attention=xla"
        )


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


# ---- kernels: causal self-attention inside segments, as `attention(..., causal=True)` ------------


def sharded_heads(kernel, q_BTNH, k_BTKH, v_BTKH, segments_BT) -> jax.Array:
    """`kernel` on each device's rows and heads.

    Where the mesh splits the query heads finer than the key/value heads, these are repeated until
    they split, too.
    """
    N, K, split = q_BTNH.shape[2], k_BTKH.shape[2], parts("heads")
    if N % split == 0:
        repeats = math.lcm(K, split) // K
        k_BTKH, v_BTKH = (jnp.repeat(x, repeats, axis=2) for x in (k_BTKH, v_BTKH))
    heads = ("batch", None, "heads", None)
    arrays = (q_BTNH, k_BTKH, v_BTKH, segments_BT)
    return on_shards(kernel, arrays, (heads, heads, heads, ("batch", None)))


def splash_attention(q_BTNH, k_BTKH, v_BTKH, segments_BT, *, interpret: bool = False) -> jax.Array:
    """Splash attention, a Pallas kernel for TPUs that skips the blocks above the diagonal.

    T is padded to a multiple of 128; a multiple of 512 is fastest. interpret: run it as plain
    operations, on any device.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    B, T, N, H = q_BTNH.shape
    padding = -T % _LANES
    total = T + padding
    block = next(size for size in (512, 256, 128) if total % size == 0)

    def heads_first(x_BTNH):
        return jnp.pad(x_BTNH, ((0, 0), (0, padding), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([splash.CausalMask((total, total))] * N),
        block_sizes=splash.BlockSizes(**{f"block_{name}": block for name in names}),
        residual_checkpoint_name=KERNEL_RESULT,
        interpret=interpret,
    )
    scaled = (q_BTNH.astype(jnp.float32) * H**-0.5).astype(q_BTNH.dtype)
    segments_BT = jnp.pad(segments_BT, ((0, 0), (0, padding)))
    out_BNTH = jax.vmap(kernel)(
        *map(heads_first, (scaled, k_BTKH, v_BTKH)), splash.SegmentIds(segments_BT, segments_BT)
    )
    return out_BNTH.transpose(0, 2, 1, 3)[:, :T]


def cudnn_attention(
    q_BTNH, k_BTKH, v_BTKH, segments_BT, *, implementation: str = "cudnn"
) -> jax.Array:
    """Flash attention of cuDNN, for bfloat16 on GPUs; segments are a mask [B, 1, T, T] to it.

    implementation: "xla" computes the same without cuDNN, on any device.
    """
    if implementation == "cudnn" and q_BTNH.dtype == jnp.float32:
        raise UserError("attention=cudnn computes in bfloat16; set dtype=bfloat16 or attention=xla")
    mask_B1TT = (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]
    return jax.nn.dot_product_attention(
        q_BTNH, k_BTKH, v_BTKH, mask=mask_B1TT, is_causal=True, implementation=implementation
    )
