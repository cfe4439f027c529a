"""Attention: in plain XLA for every tower, and the kernels that the decoder may use instead.

Letters: B batch, T query, S key, N heads, K key/value heads, G = N / K, H head width.
"""

import functools
import math

import jax
import jax.numpy as jnp

from ugc_jax.errors import UserError
from ugc_jax.models import flash_kernel
from ugc_jax.models.compute import ON_GPUS, wrong_platform
from ugc_jax.models.layers import KERNEL_RESULT
from ugc_jax.sharding import on_shards, platform, shard_count

MASKED = -1e30  # finite, so that a row without keys stays finite
_LANES = 128  # splash attention works on blocks of a multiple of this


def causal_attention(
    q_BTNH, k_BTKH, v_BTKH, segments_BT, implementation: str, shared_prompt: bool = False
) -> jax.Array:
    """Return `attention(..., causal=True)`, computed by `implementation` (see `compute.Compute`).

    The kernels never hold the [T, T] scores; with a mesh, each device runs one on its own rows and
    heads. Raises UserError if the mesh (or, without one, the default device) cannot run it.
    """
    if wrong := wrong_platform(implementation, platform()):
        raise UserError(f"attention={implementation} {wrong}; use attention=xla")
    if implementation == "xla":
        return attention(
            q_BTNH, k_BTKH, v_BTKH, segments_BT, causal=True, shared_prompt=shared_prompt
        )
    kernel = {
        "splash": splash_attention,
        "cudnn": cudnn_attention,
        "flash": flash_kernel.flash_attention,
    }[implementation]
    kernel = functools.partial(kernel, shared_prompt=shared_prompt)
    return sharded_heads(kernel, q_BTNH, k_BTKH, v_BTKH, segments_BT)


def tower_attention(q_BTNH, k_BTNH, v_BTNH, segments_BT, implementation: str) -> jax.Array:
    """Return `attention` of an encoder, not causal.

    implementation: that of the decoder. With cudnn or flash it is cuDNN's kernel; otherwise, or for
    a head width that cuDNN does not take, plain XLA. Raises UserError as `causal_attention`.
    """
    H = q_BTNH.shape[-1]
    if implementation not in ON_GPUS or H % 8 or H > 128:
        return attention(q_BTNH, k_BTNH, v_BTNH, segments_BT)
    if wrong := wrong_platform(implementation, platform()):
        raise UserError(f"attention={implementation} {wrong}; use attention=xla")
    kernel = functools.partial(cudnn_attention, causal=False)
    return sharded_heads(kernel, q_BTNH, k_BTNH, v_BTNH, segments_BT)


def attention(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    segments_BT,
    *,
    causal: bool = False,
    shared_prompt: bool = False,
    block: int | None = None,
) -> jax.Array:
    """Return self-attention (T = S) inside segments, [B, T, N, H] in q's dtype; grouped if K < N.

    segments_BT: i32, a query attends to keys of its own segment. Padding is a segment, too (0), so
      every query has keys.
    causal: a query attends to no later key. Computed in blocks of `block` queries and the keys up
      to the block's end: half the work, and scores of B * N * block * S floats at most. None: an
      eighth of T, but 64 to 256. Smaller ones waste less, and larger ones compile faster.
    shared_prompt: see `visible_keys`.
    Scores and softmax are float32.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    block = block or min(max(64, T // 8), 256)
    q_BKGTH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKHS, v_BKSH = k_BSKH.transpose(0, 2, 3, 1), v_BSKH.transpose(0, 2, 1, 3)

    def queries(start: int, stop: int, keys: int):
        mask_BTS = visible_keys(segments_BT[:, start:stop], segments_BT[:, :keys], shared_prompt)
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


def visible_keys(segments_BT, segments_BS, shared_prompt: bool) -> jax.Array:
    """Return which keys each query may attend to, bool[B, T, S], without regard to their order.

    These are the keys of its own segment; with shared_prompt also those of segment 1, a prompt of
    which the segments 2, 3, ... are completions.
    """
    queries, keys = segments_BT[:, :, None], segments_BS[:, None, :]
    return (queries == keys) | (keys == 1) & (queries > 1) if shared_prompt else queries == keys


def cached_attention(q_RNH, prompt, own) -> jax.Array:
    """Return attention [R, N, H] of one new token a row over its prompt's keys and the row's own.

    Rows share the caches of their prompts: row b * G + g is sample g of G of prompt b.
    prompt: (k_BKHS, v_BKSH, mask_BS bool). own: list of (k_BKGHS, v_BKGSH, mask_BGS bool or None
    for all). One softmax covers all these keys. Keys and values in int8 are followed by the scales
    of both, f32[B, K, S] or f32[B, K, G, S].
    """
    R, N, H = q_RNH.shape
    k_BKHS, v_BKSH, mask_BS, *scales = prompt
    B, K = k_BKHS.shape[:2]
    # Axis G, in `attention` the heads that share a key head, is here the samples of a prompt; those
    # heads take the axis of the queries, T.
    q_BKGTH = q_RNH.reshape(B, R // B, K, N // K, H).transpose(0, 2, 1, 3, 4)
    scales = [scale[:, :, None, None] for scale in scales]  # over samples and query heads
    scores = _scores(q_BKGTH, k_BKHS, mask_BS[:, None, None, None], *scales[:1])
    scored = [(scores, v_BKSH, *scales[1:])]
    for k_BKGHS, v_BKGSH, mask_BGS, *scales in own:
        mask = True if mask_BGS is None else mask_BGS[:, None, :, None]
        scales = [scale[:, :, :, None] for scale in scales]
        scored.append((_scores(q_BKGTH, k_BKGHS, mask, *scales[:1]), v_BKGSH, *scales[1:]))
    out_BKGTH = softmax_weighted(scored, q_RNH.dtype)
    return out_BKGTH.transpose(0, 2, 1, 3, 4).reshape(R, N, H)


def _scores(q_BKGTH, k_BKHS, mask, scale=None) -> jax.Array:
    """Scaled, masked scores f32[B, K, G, T, S]; mask is broadcastable to them.

    k_BKHS: may have an axis G after K, if each g has keys of its own. scale: of keys in int8,
    broadcastable to the scores.
    """
    keys = "bkhs" if k_BKHS.ndim == 4 else "bkghs"
    k_BKHS = k_BKHS if scale is None else k_BKHS.astype(q_BKGTH.dtype)
    scores = jnp.einsum(f"bkgth,{keys}->bkgts", q_BKGTH, k_BKHS, preferred_element_type=jnp.float32)
    scores = scores if scale is None else scores * scale
    return jnp.where(mask, scores * q_BKGTH.shape[-1] ** -0.5, MASKED)


def softmax_weighted(scored, dtype=None) -> jax.Array:
    """Return values weighted by one softmax over the keys of all items, [B, K, G, T, H].

    scored: list of (scores f32[B, K, G, T, S], v[B, K, S, H] or v[B, K, G, S, H]), for values in
    int8 also their scale, broadcastable to the scores. dtype: of the result; None: of the values.
    The division by the sum comes after the product with the values, which saves a pass over the
    scores.
    """
    dtype = scored[0][1].dtype if dtype is None else dtype
    top = jnp.max(jnp.stack([jnp.max(one[0], axis=-1) for one in scored]), axis=0)[..., None]
    top = jax.lax.stop_gradient(top)
    total, out = 0.0, 0.0
    for scores, v, *scale in scored:
        weights = jnp.exp(scores - top)
        total += jnp.sum(weights, axis=-1, keepdims=True)
        if scale:
            weights, v = weights * scale[0], v.astype(dtype)
        values = "bksh" if v.ndim == 4 else "bkgsh"
        out += jnp.einsum(
            f"bkgts,{values}->bkgth", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
    return (out / total).astype(dtype)


# ---- kernels: causal self-attention inside segments, as `attention(..., causal=True)` ------------


def sharded_heads(kernel, q_BTNH, k_BTKH, v_BTKH, segments_BT) -> jax.Array:
    """Return the result of `kernel`, run by each device on its rows and heads.

    If the mesh splits the query heads into more shards than there are key/value heads, these are
    repeated.
    """
    N, K, split = q_BTNH.shape[2], k_BTKH.shape[2], shard_count("heads")
    if N % split == 0:
        repeats = math.lcm(K, split) // K
        k_BTKH, v_BTKH = (jnp.repeat(x, repeats, axis=2) for x in (k_BTKH, v_BTKH))
    heads = ("batch", None, "heads", None)
    arrays = (q_BTNH, k_BTKH, v_BTKH, segments_BT)
    return on_shards(kernel, arrays, (heads, heads, heads, ("batch", None)))


def splash_attention(
    q_BTNH, k_BTKH, v_BTKH, segments_BT, *, shared_prompt: bool = False, interpret: bool = False
) -> jax.Array:
    """Return splash attention, by a Pallas kernel for TPUs that skips blocks above the diagonal.

    T is padded to a multiple of 128; a multiple of 512 is fastest. interpret: run it as plain
    operations, on any device. shared_prompt: see `visible_keys`; the kernel then reads a mask
    [T, T] for each row, which its heads share, and skips the blocks that are masked throughout.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    B, T, N, H = q_BTNH.shape
    padding = -T % _LANES
    total = T + padding
    block = next(size for size in (512, 256, 128) if total % size == 0)

    def heads_first(x_BTNH):
        return jnp.pad(x_BTNH, ((0, 0), (0, padding), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    make_kernel = functools.partial(
        splash.make_splash_mha_single_device,
        block_sizes=splash.BlockSizes(**{f"block_{name}": block for name in names}),
        residual_checkpoint_name=KERNEL_RESULT,
        interpret=interpret,
    )

    def row(q_NTH, k_KTH, v_KTH, segments_T):
        if shared_prompt:  # segment ids cannot express this mask
            mask_1TT = visible_keys(segments_T[None], segments_T[None], True)
            mask_1TT &= jnp.tri(total, dtype=bool)[None]
            kernel = make_kernel(mask_1TT)
            # The kernel branches on this field, which tracing has turned into an array.
            kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=True)
            return kernel(q_NTH, k_KTH, v_KTH)
        causal = splash.MultiHeadMask([splash.CausalMask((total, total))] * N)
        ids = splash.SegmentIds(segments_T, segments_T)
        return make_kernel(causal)(q_NTH, k_KTH, v_KTH, ids)

    scaled = (q_BTNH.astype(jnp.float32) * H**-0.5).astype(q_BTNH.dtype)
    segments_BT = jnp.pad(segments_BT, ((0, 0), (0, padding)))
    out_BNTH = jax.vmap(row)(*map(heads_first, (scaled, k_BTKH, v_BTKH)), segments_BT)
    return out_BNTH.transpose(0, 2, 1, 3)[:, :T]


def cudnn_attention(
    q_BTNH,
    k_BTKH,
    v_BTKH,
    segments_BT,
    *,
    shared_prompt: bool = False,
    causal: bool = True,
    implementation: str = "cudnn",
) -> jax.Array:
    """Return cuDNN's flash attention, for bfloat16 on GPUs, with a mask [B, 1, T, T] of segments.

    An odd T is padded, as the backward pass needs an even one. shared_prompt: see `visible_keys`.
    implementation: "xla" computes the same on any device. Raises UserError for float32.
    """
    if implementation == "cudnn" and q_BTNH.dtype == jnp.float32:
        raise UserError("attention=cudnn computes in bfloat16; set dtype=bfloat16 or attention=xla")
    T = q_BTNH.shape[1]
    q_BTNH, k_BTKH, v_BTKH, segments_BT = (
        jnp.pad(x, ((0, 0), (0, T % 2)) + ((0, 0),) * (x.ndim - 2))
        for x in (q_BTNH, k_BTKH, v_BTKH, segments_BT)
    )
    mask_B1TT = visible_keys(segments_BT, segments_BT, shared_prompt)[:, None]
    out_BTNH = jax.nn.dot_product_attention(
        q_BTNH, k_BTKH, v_BTKH, mask=mask_B1TT, is_causal=causal, implementation=implementation
    )
    return out_BTNH[:, :T]
