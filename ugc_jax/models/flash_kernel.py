"""Causal attention inside segments without a mask in memory: kernels for GPUs (Pallas, by Triton).

FlashAttention-2 (arXiv 2307.08691) with segment ids. A program of the forward kernel has a block of
one head's queries and goes over blocks of keys with a running maximum and sum, so that neither
scores nor a mask of [T, T] exist. It reads only blocks in which its queries have keys: those of
their own segments and, in rows with a shared prompt, before these the prompt's. Both go through one
maximum and sum, whose logarithm the backward kernels read: the gradient is that of one softmax.

Letters as in `attention`: B rows, T tokens, N query heads, K key/value heads, G = N / K, H width;
P parts of the heads that share a key head.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ugc_jax.errors import UserError
from ugc_jax.models.layers import KERNEL_RESULT

_LEAST_BLOCK = 16  # rows of a product on tensor cores
# Scores are exponents of 2. A masked one is so far below the least maximum that its weight is 0.
_MASKED, _LEAST = -1e30, -1e20


class Tiles(NamedTuple):
    """How a kernel works. queries, keys: of a block. stages: blocks under way."""

    queries: int
    keys: int
    warps: int = 8
    stages: int = 2


class Plan(NamedTuple):
    """Tiles of each kernel. programs: at least so many share the gradients of keys and values."""

    forward: Tiles = Tiles(64, 64, warps=4, stages=3)
    queries: Tiles = Tiles(64, 64, warps=4)  # the queries' gradient
    keys: Tiles = Tiles(64, 128, stages=3)  # the gradients of keys and values
    programs: int = 512


PLAN = Plan()


def flash_attention(
    q_BTNH,
    k_BTKH,
    v_BTKH,
    segments_BT,
    *,
    shared_prompt: bool = False,
    plan: Plan = PLAN,
    interpret: bool = False,
) -> jax.Array:
    """Return `attention.attention(..., causal=True)` of the same arguments, but 0 for padding.

    Each segment is one run of tokens, and a shared prompt comes before its completions. T is padded
    to a multiple of the largest block. interpret: run the kernels as plain operations, on any
    device. Raises UserError for float32 otherwise.
    """
    if not interpret and q_BTNH.dtype == jnp.float32:
        raise UserError("attention=flash computes in bfloat16; set dtype=bfloat16 or attention=xla")
    T = q_BTNH.shape[1]
    most = max(_LEAST_BLOCK, 1 << (T - 1).bit_length())  # of a block
    tiles = [
        tiles._replace(queries=min(tiles.queries, most), keys=min(tiles.keys, most))
        for tiles in (plan.forward, plan.queries, plan.keys)
    ]
    padding = -T % max(size for one in tiles for size in (one.queries, one.keys))
    arrays = (
        jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        for x in (q_BTNH, k_BTKH, v_BTKH, segments_BT)
    )
    return _flash(*arrays, _How(Plan(*tiles, plan.programs), shared_prompt, interpret))[:, :T]


class _How(NamedTuple):
    """What is known when the kernels are compiled."""

    plan: Plan
    shared_prompt: bool
    interpret: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _flash(q_BTNH, k_BTKH, v_BTKH, segments_BT, how: _How) -> jax.Array:
    return _forward(q_BTNH, k_BTKH, v_BTKH, segments_BT, how)[0]


def _flash_forward(q_BTNH, k_BTKH, v_BTKH, segments_BT, how: _How):
    out_BTNH, total_BNT = (
        checkpoint_name(x, KERNEL_RESULT)
        for x in _forward(q_BTNH, k_BTKH, v_BTKH, segments_BT, how)
    )
    return out_BTNH, (q_BTNH, k_BTKH, v_BTKH, segments_BT, out_BTNH, total_BNT)


def _flash_backward(how: _How, kept, grad_BTNH):
    *arrays, out_BTNH, total_BNT = kept
    # Of each query, the slope of its sum of weights (FlashAttention-2, D).
    inner_BNT = jnp.einsum(
        "btnh,btnh->bnt", out_BTNH.astype(jnp.float32), grad_BTNH.astype(jnp.float32)
    )
    arrays += grad_BTNH, total_BNT, inner_BNT
    return _queries_gradient(*arrays, how), *_keys_gradients(*arrays, how), None


_flash.defvjp(_flash_forward, _flash_backward)


# ---- the kernels ---------------------------------------------------------------------------------


def _forward(q_BTNH, k_BTKH, v_BTKH, segments_BT, how: _How) -> tuple[jax.Array, jax.Array]:
    """Return (attention [B, T, N, H], the logarithm of the sum of weights f32[B, N, T]).

    That is to base 2, and has no meaning for padding.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    B, T, N, H = q_BTNH.shape
    G, tiles = N // k_BTKH.shape[2], how.plan.forward
    blocks = T // tiles.queries

    def kernel(q_ref, k_ref, v_ref, segments_ref, bounds_ref, out_ref, total_ref):
        q, queries = q_ref[...], _Tokens.block(segments_ref, pl.program_id(2), tiles.queries)

        def body(number, carry):
            out, top, total = carry
            keys = _Tokens.block(segments_ref, number, tiles.keys)
            scores = triton.dot(q, k_ref[keys.at, :].T) * _scale(H)
            scores = jnp.where(_visible(queries, keys, how.shared_prompt), scores, _MASKED)
            new_top = jnp.maximum(top, jnp.max(scores, axis=1))
            weights, fade = jnp.exp2(scores - new_top[:, None]), jnp.exp2(top - new_top)
            v = v_ref[keys.at, :]
            out = out * fade[:, None] + triton.dot(weights.astype(v.dtype), v)
            return out, new_top, total * fade + jnp.sum(weights, axis=1)

        carry = (
            jnp.zeros((tiles.queries, H), jnp.float32),
            jnp.full((tiles.queries,), _LEAST, jnp.float32),
            jnp.zeros((tiles.queries,), jnp.float32),
        )
        out, top, total = _over_keys(body, carry, bounds_ref, how.shared_prompt)
        total = jnp.where(total > 0, total, 1.0)
        out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
        total_ref[...] = top + jnp.log2(total)

    block, row, keys, whole, bounds = _of_queries(T, H, G, tiles.queries)
    return pl.pallas_call(
        kernel,
        grid=(N, B, blocks),
        in_specs=[block, keys, keys, whole, bounds],
        out_specs=[block, row],
        out_shape=[
            jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype),
            jax.ShapeDtypeStruct((B, N, T), jnp.float32),
        ],
        compiler_params=_parameters(tiles),
        interpret=how.interpret,
        name="flash_forward",
    )(q_BTNH, k_BTKH, v_BTKH, segments_BT, _key_bounds(segments_BT, tiles, how.shared_prompt))


def _queries_gradient(
    q_BTNH, k_BTKH, v_BTKH, segments_BT, grad_BTNH, total_BNT, inner_BNT, how: _How
) -> jax.Array:
    """Return the gradient of the queries, [B, T, N, H]."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    B, T, N, H = q_BTNH.shape
    G, tiles = N // k_BTKH.shape[2], how.plan.queries

    def kernel(
        q_ref, k_ref, v_ref, segments_ref, grad_ref, total_ref, inner_ref, bounds_ref, out_ref
    ):
        queries = _Tokens.block(segments_ref, pl.program_id(2), tiles.queries)
        q, grad, total, inner = q_ref[...], grad_ref[...], total_ref[...], inner_ref[...]

        def body(number, out):
            keys = _Tokens.block(segments_ref, number, tiles.keys)
            k = k_ref[keys.at, :]
            scores = triton.dot(q, k.T) * _scale(H)
            scores = jnp.where(_visible(queries, keys, how.shared_prompt), scores, _MASKED)
            weights = jnp.exp2(scores - total[:, None])
            slopes = weights * (triton.dot(grad, v_ref[keys.at, :].T) - inner[:, None])
            return out + triton.dot(slopes.astype(k.dtype), k)

        out = jnp.zeros((tiles.queries, H), jnp.float32)
        out = _over_keys(body, out, bounds_ref, how.shared_prompt)
        out_ref[...] = (out * H**-0.5).astype(out_ref.dtype)

    block, row, keys, whole, bounds = _of_queries(T, H, G, tiles.queries)
    return pl.pallas_call(
        kernel,
        grid=(N, B, T // tiles.queries),
        in_specs=[block, keys, keys, whole, block, row, row, bounds],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype),
        compiler_params=_parameters(tiles),
        interpret=how.interpret,
        name="flash_queries_gradient",
    )(
        q_BTNH, k_BTKH, v_BTKH, segments_BT, grad_BTNH, total_BNT, inner_BNT,
        _key_bounds(segments_BT, tiles, how.shared_prompt),
    )  # fmt: skip


def _keys_gradients(
    q_BTNH, k_BTKH, v_BTKH, segments_BT, grad_BTNH, total_BNT, inner_BNT, how: _How
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of keys and values, [B, T, K, H] each.

    A program has a block of keys and goes over blocks of queries, of all heads that share the keys;
    of a part of these heads, if programs were few otherwise.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    B, T, N, H = q_BTNH.shape
    K, tiles = k_BTKH.shape[2], how.plan.keys
    G, blocks = N // K, T // tiles.keys
    P = _parts(G, B * K * blocks, how.plan.programs)
    heads = G // P

    def kernel(
        q_ref, k_ref, v_ref, segments_ref, grad_ref, total_ref, inner_ref, bounds_ref, k_grad_ref,
        v_grad_ref,
    ):  # fmt: skip
        k, v = k_ref[...], v_ref[...]
        keys = _Tokens.block(segments_ref, pl.program_id(2), tiles.keys)

        def of_head(head, grads):
            def body(number, grads):
                k_grad, v_grad = grads
                queries = _Tokens.block(segments_ref, number, tiles.queries)
                q, grad = q_ref[queries.at, head, :], grad_ref[queries.at, head, :]
                total, inner = total_ref[head, queries.at], inner_ref[head, queries.at]
                # Keys are rows here, so that no accumulator needs a transposition.
                scores = triton.dot(k, q.T) * _scale(H)
                seen = _visible(queries, keys, how.shared_prompt, keys_first=True)
                weights = jnp.exp2(jnp.where(seen, scores, _MASKED) - total[None])
                v_grad += triton.dot(weights.astype(grad.dtype), grad)
                slopes = weights * (triton.dot(v, grad.T) - inner[None])
                return k_grad + triton.dot(slopes.astype(q.dtype), q), v_grad

            return jax.lax.fori_loop(bounds_ref[0], bounds_ref[1], body, grads)

        zeros = jnp.zeros((tiles.keys, H), jnp.float32)
        k_grad, v_grad = jax.lax.fori_loop(0, heads, of_head, (zeros, zeros))
        k_grad_ref[...] = (k_grad * H**-0.5).astype(k_grad_ref.dtype)
        v_grad_ref[...] = v_grad.astype(v_grad_ref.dtype)

    queries = pl.BlockSpec((None, T, None, heads, H), lambda n, b, i: (b, 0, n // P, n % P, 0))
    rows = pl.BlockSpec((None, None, heads, T), lambda n, b, i: (b, n // P, n % P, 0))
    block = pl.BlockSpec((None, tiles.keys, None, H), lambda n, b, i: (b, i, n // P, 0))
    result = pl.BlockSpec((None, tiles.keys, None, H), lambda n, b, i: (b, i, n, 0))
    # Parts are summed in float32.
    dtype = k_BTKH.dtype if P == 1 else jnp.float32
    grads = pl.pallas_call(
        kernel,
        grid=(K * P, B, blocks),
        in_specs=[
            queries, block, block, pl.BlockSpec((None, T), lambda n, b, i: (b, 0)), queries, rows,
            rows, pl.BlockSpec((None, None, 2), lambda n, b, i: (b, i, 0)),
        ],
        out_specs=[result, result],
        out_shape=[jax.ShapeDtypeStruct((B, T, K * P, H), dtype)] * 2,
        compiler_params=_parameters(tiles),
        interpret=how.interpret,
        name="flash_keys_gradients",
    )(
        q_BTNH.reshape(B, T, K, G, H), k_BTKH, v_BTKH, segments_BT,
        grad_BTNH.reshape(B, T, K, G, H), total_BNT.reshape(B, K, G, T),
        inner_BNT.reshape(B, K, G, T), _query_bounds(segments_BT, tiles, how.shared_prompt),
    )  # fmt: skip
    k_grad, v_grad = (x.reshape(B, T, K, P, H).sum(axis=3).astype(k_BTKH.dtype) for x in grads)
    return k_grad, v_grad


def _parts(heads: int, programs: int, least: int) -> int:
    """Return into how many equal parts to cut the heads so that `least` programs run, or all."""
    divisors = (n for n in range(1, heads + 1) if heads % n == 0)
    return next((n for n in divisors if programs * n >= least), heads)


class _Tokens(NamedTuple):
    """A block of a row's tokens. at: its slice; number, segment: i32[size] of each."""

    at: object
    number: jax.Array
    segment: jax.Array

    @classmethod
    def block(cls, segments_ref, index, size: int) -> "_Tokens":
        from jax.experimental import pallas as pl

        at = pl.ds(index * size, size)
        return cls(at, index * size + jnp.arange(size), segments_ref[at])


def _visible(queries: _Tokens, keys: _Tokens, shared_prompt: bool, keys_first: bool = False):
    """Return which keys each query may attend to, bool[queries, keys], or bool[keys, queries]."""

    def across(query, key):
        return (query[None], key[:, None]) if keys_first else (query[:, None], key[None])

    query, key = across(queries.segment, keys.segment)
    seen = (query == key) & (query > 0)
    if shared_prompt:
        seen |= (key == 1) & (query > 1)
    query, key = across(queries.number, keys.number)
    return seen & (query >= key)


def _over_keys(body, carry, bounds_ref, shared_prompt: bool):
    """Go over the blocks of keys of `_key_bounds`."""
    if shared_prompt:
        carry = jax.lax.fori_loop(bounds_ref[0], bounds_ref[1], body, carry)
    return jax.lax.fori_loop(bounds_ref[2], bounds_ref[3], body, carry)


def _of_queries(T: int, H: int, G: int, size: int) -> tuple:
    """What a program (head, row, block of queries) reads or writes.

    (a block of tokens of a head, their numbers, a key head, the row's segments, bounds).
    """
    from jax.experimental import pallas as pl

    return (
        pl.BlockSpec((None, size, None, H), lambda n, b, i: (b, i, n, 0)),
        pl.BlockSpec((None, None, size), lambda n, b, i: (b, n, i)),
        pl.BlockSpec((None, T, None, H), lambda n, b, i: (b, 0, n // G, 0)),
        pl.BlockSpec((None, T), lambda n, b, i: (b, 0)),
        pl.BlockSpec((None, None, 4), lambda n, b, i: (b, i, 0)),
    )


def _parameters(tiles: Tiles):
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages)


def _scale(width: int) -> float:
    """The scale of scores, for exponents of 2."""
    return width**-0.5 * math.log2(math.e)


# ---- which blocks are read -----------------------------------------------------------------------


def _key_bounds(segments_BT, tiles: Tiles, shared_prompt: bool) -> jax.Array:
    """Return the blocks of keys that each block of queries has, i32[B, blocks, 4].

    [first, last) of the prompt, without those that belong to the second range; [first, last) of
    the queries' own segments. Both are empty for padding.
    """
    B, T = segments_BT.shape
    number_T = jnp.arange(T, dtype=jnp.int32)
    first_BT, _ = _runs(segments_BT)
    live_BT = segments_BT > 0

    def blocks(x_BT):
        return x_BT.reshape(B, -1, tiles.queries)

    first = jnp.min(blocks(jnp.where(live_BT, first_BT, T)), axis=-1) // tiles.keys
    last = -(-jnp.max(blocks(jnp.where(live_BT, number_T + 1, 0)), axis=-1) // tiles.keys)
    first = jnp.minimum(first, last)
    prompt_last = jnp.max(jnp.where(segments_BT == 1, number_T + 1, 0), axis=-1, keepdims=True)
    prompt_first = jnp.min(jnp.where(segments_BT == 1, number_T, T), axis=-1, keepdims=True)
    needs_prompt = jnp.any(blocks(segments_BT > 1), axis=-1) & shared_prompt
    prompt_last = jnp.minimum(-(-prompt_last // tiles.keys), first)
    prompt_last = jnp.where(needs_prompt, prompt_last, 0)
    prompt_first = jnp.minimum(prompt_first // tiles.keys, prompt_last)
    return jnp.stack([prompt_first, prompt_last, first, last], axis=-1)


def _query_bounds(segments_BT, tiles: Tiles, shared_prompt: bool) -> jax.Array:
    """Return the blocks of queries, [first, last), that each block of keys has: i32[B, blocks, 2].

    They begin with the keys themselves and end with their segments, or, for keys of a shared
    prompt, with the last completion.
    """
    B, T = segments_BT.shape
    number_T = jnp.arange(T, dtype=jnp.int32)
    live_BT = segments_BT > 0
    _, end_BT = _runs(segments_BT)
    if shared_prompt:
        last_B1 = jnp.max(jnp.where(live_BT, number_T + 1, 0), axis=-1, keepdims=True)
        end_BT = jnp.where(segments_BT == 1, last_B1, end_BT)
    end = jnp.max(jnp.where(live_BT, end_BT, 0).reshape(B, -1, tiles.keys), axis=-1)
    last = -(-end // tiles.queries)
    first = jnp.arange(T // tiles.keys, dtype=jnp.int32) * tiles.keys // tiles.queries
    return jnp.stack([jnp.minimum(first[None], last), last], axis=-1)


def _runs(segments_BT) -> tuple[jax.Array, jax.Array]:
    """Return (the first token, the one behind the last) of each token's segment, i32[B, T]."""
    T = segments_BT.shape[1]
    number_T = jnp.arange(T, dtype=jnp.int32)
    differs = segments_BT[:, 1:] != segments_BT[:, :-1]
    begins = jnp.pad(differs, ((0, 0), (1, 0)), constant_values=True)
    ends = jnp.pad(differs, ((0, 0), (0, 1)), constant_values=True)
    first_BT = jax.lax.cummax(jnp.where(begins, number_T, 0), axis=1)
    end_BT = jax.lax.cummin(jnp.where(ends, number_T + 1, T), axis=1, reverse=True)
    return first_BT, end_BT
