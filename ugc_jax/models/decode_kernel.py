"""Attention of one new token a row over its caches, as kernels for GPUs (Pallas, by Triton).

XLA takes about fifteen kernels for what two do here, including the rotary embedding and the cache
writes, and its product of the weights with the values keeps few of a GPU's processors
busy. The keys of a prompt are cut into parts; the programs of the first kernel attend to one of
them each, or to a row's own tokens (flash decoding). The second joins these by their maxima and
sums. Blocks without a live key are not read.

Letters as in `attention`: B prompts, G rows of each, T query heads that share a key head, P parts
of a prompt's keys, N keys of a row's own; Q = G * T.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ugc_jax.sharding import on_shards

_LEAST_ROWS = 16  # of a product on tensor cores
WIDTHS = 32, 64, 128  # of heads: powers of 2, whose halves are inputs of such a product
_FLOOR = -1e30  # finite, so that a part without keys stays finite


class Plan(NamedTuple):
    """How a kernel works. block: keys that a program reads at a time. stages: blocks under way."""

    block: int = 64
    warps: int = 4
    stages: int = 3
    programs: int = 256


PLAN = Plan()


def cached_attention(
    q_RNH, prompt, own, *, plan: Plan = PLAN, interpret: bool = False
) -> jax.Array:
    """Return `attention.cached_attention` of the same arguments, on GPUs.

    With a mesh, each device attends with its rows and heads. interpret: run the kernels as plain
    operations, on any device.
    """
    k_BKHS, v_BKSH, mask_BS = prompt
    (k_BKGHN, v_BKGNH, mask_BGN), (new_k, new_v, everywhere) = own
    assert everywhere is None, "the second of a row's own keys is the new one"
    B, K, H, _ = k_BKHS.shape
    G = k_BKGHN.shape[2]
    q_BGKTH = q_RNH.reshape(B, G, K, -1, H)
    news = (x.reshape(B, K, G, H).swapaxes(1, 2) for x in (new_k, new_v))
    arrays = q_BGKTH, *news, k_BKHS, v_BKSH, mask_BS, k_BKGHN, v_BKGNH, mask_BGN
    rows, heads, masks = ("batch", None, "heads", None), ("batch", "heads"), ("batch", None)
    of_prompts, of_rows = (*heads, None, None), (*heads, None, None, None)
    axes = (
        (*rows, None), rows, rows, of_prompts, of_prompts, masks, of_rows, of_rows, (*masks, None),
    )  # fmt: skip

    def attend(q, k, v, k_BKHS, v_BKSH, mask_BS, k_BKGHN, v_BKGNH, mask_BGN):
        q_BGNH = q.reshape(*q.shape[:2], -1, H)
        new = _New((q_BGNH, k, v), (0, 0, 0), None)
        prompt, own = (k_BKHS, v_BKSH, mask_BS), (k_BKGHN, v_BKGNH, mask_BGN)
        return _attend(new, prompt, own, None, plan, interpret)[0]

    return on_shards(attend, arrays, axes).reshape(q_RNH.shape)


def attend_and_cache(
    qkv_RC, rope, prompt, own, slot, *, plan: Plan = PLAN, interpret: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (attention [R, N * H], the row's own keys and values with the new ones in place).

    As `cached_attention` of queries and keys before the rotary embedding, without a mesh.
    qkv_RC: the heads of queries, keys and values side by side, of one new token a row.
    rope: `layers.cos_sin` of the rows, f32[R, 1, 1, H/2] each. prompt: (k_BKHS, v_BKSH, mask_BS).
    own: (k_BKGHN, v_BKGNH, mask_BGN), in the dtype of qkv_RC. slot: i32, the place in `own` of the
    new ones, for which the mask is false.
    """
    B, K, H, _ = prompt[0].shape
    G = own[0].shape[2]
    qkv_BGCH = qkv_RC.reshape(B, G, -1, H)
    N = qkv_BGCH.shape[2] - 2 * K
    rope = tuple(x.reshape(B, G, H // 2) for x in rope)
    new = _New((qkv_BGCH,) * 3, (0, N, N + K), rope)
    out, *own = _attend(new, prompt, own, slot, plan, interpret)
    return out.reshape(len(qkv_RC), -1), *own


class _New(NamedTuple):
    """Queries, keys and values of the new tokens.

    arrays: of each, [B, G, heads, H]. heads: the first head of each in its array. rope: cosines and
    sines f32[B, G, H/2] of queries and keys that are not rotated yet, or None.
    """

    arrays: tuple
    heads: tuple[int, int, int]
    rope: tuple | None


def _attend(new: _New, prompt, own, slot, plan: Plan, interpret: bool) -> tuple:
    """Return (attention [B, G, K, T, H],), and with a slot the row's own keys and values."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    (k_BKHS, v_BKSH, mask_BS), (k_BKGHN, v_BKGNH, mask_BGN) = prompt, own
    B, K, H, S = k_BKHS.shape
    G, N = k_BKGHN.shape[2], k_BKGHN.shape[-1]
    _, first_key, first_value = new.heads
    T = (first_key or new.arrays[0].shape[2]) // K
    Q, half = G * T, H // 2
    block, own_block = _block_of(plan, S), _block_of(plan, N)
    P = _power_of_2(max(1, min(plan.programs // (B * K), 16, pl.cdiv(S, block))) + 1) // 2
    rows, own_rows = _rows(Q), _rows(T)
    halves = pl.ds(0, half), pl.ds(half, half)
    rotates, writes = new.rope is not None, slot is not None

    def kernel(q_ref, new_k_ref, new_v_ref, *refs):
        refs = list(refs)
        cos_ref, sin_ref = (refs.pop(0), refs.pop(0)) if rotates else (None, None)
        k_ref, v_ref, mask_ref, bounds_ref, own_k_ref, own_v_ref, own_mask_ref = refs[:7]
        own_bounds_ref, *refs = refs[7:]
        slot_ref = refs.pop(0) if writes else None
        out_ref, top_ref, total_ref, own_out_ref, own_top_ref, own_total_ref, *caches = refs
        part = pl.program_id(2)

        def rotated(first, second, row):
            """Both halves of heads, rotated by the angles of their rows (see `layers.rotate`)."""
            if not rotates:
                return first, second
            cos, sin = cos_ref[row, :], sin_ref[row, :]
            dtype, first, second = first.dtype, *(x.astype(jnp.float32) for x in (first, second))
            pair = first * cos - second * sin, second * cos + first * sin
            return tuple(x.astype(dtype) for x in pair)

        def queries(row, head):
            return rotated(*(q_ref[row, head, at] for at in halves), row)

        @pl.when(part < P)
        def of_prompt():
            number = jnp.minimum(jnp.arange(rows), Q - 1)
            q = queries(number // T, number % T)
            is_row = jnp.arange(rows) < Q
            first, last = bounds_ref[0], bounds_ref[1]
            each = pl.cdiv(last - first, P)
            start = first + part * each
            stop = jnp.minimum(start + each, last)
            nothing = (
                jnp.zeros((rows, H), jnp.float32), jnp.full((rows,), _FLOOR, jnp.float32),
                jnp.zeros((rows,), jnp.float32),
            )  # fmt: skip
            keys = k_ref, v_ref, mask_ref
            out, top, total = _attend_to_blocks(q, *keys, start, stop, block, nothing)
            triton.store(out_ref.at[pl.ds(0, rows), :], out, mask=is_row[:, None])
            triton.store(top_ref.at[pl.ds(0, rows)], top, mask=is_row)
            triton.store(total_ref.at[pl.ds(0, rows)], total, mask=is_row)

        @pl.when(part >= P)
        def of_row():
            row = part - P
            head = jnp.minimum(jnp.arange(own_rows), T - 1)
            q = queries(jnp.full((own_rows,), row), head)
            is_row = jnp.arange(own_rows) < T
            key = rotated(*(new_k_ref[at] for at in halves), row)
            value = new_v_ref[...]
            if writes:
                for at, one in zip(halves, key, strict=True):
                    caches[0][at, slot_ref[0]] = one
                caches[1][slot_ref[0], :] = value
            scores = sum(
                jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32)[None], axis=1)
                for x, y in zip(q, key, strict=True)
            )
            new_one = (
                jnp.broadcast_to(value.astype(jnp.float32)[None], (own_rows, H)),
                scores * _scale(H), jnp.ones((own_rows,), jnp.float32),
            )  # fmt: skip
            keys = own_k_ref, own_v_ref, own_mask_ref
            bounds = own_bounds_ref[0], own_bounds_ref[1]
            out, top, total = _attend_to_blocks(q, *keys, *bounds, own_block, new_one)
            triton.store(own_out_ref, out, mask=is_row[:, None])
            triton.store(own_top_ref, top, mask=is_row)
            triton.store(own_total_ref, total, mask=is_row)

    def of_head(*shape):
        return pl.BlockSpec((None, None, *shape), lambda b, k, p: (b, k) + (0,) * len(shape))

    def of_prompt(size: int):
        return pl.BlockSpec((None, size), lambda b, k, p: (b, 0))

    def of_part(*shape):
        zeros = (0,) * len(shape)
        return pl.BlockSpec(
            (None, None, None, *shape), lambda b, k, p: (b, k, jnp.minimum(p, P - 1), *zeros)
        )

    def row_of(p):
        return jnp.maximum(p - P, 0)

    def of_row(*shape):
        zeros = (0,) * len(shape)
        return pl.BlockSpec((None, None, None, *shape), lambda b, k, p: (b, k, row_of(p), *zeros))

    def of_rows(size: int):
        return pl.BlockSpec((None, None, size), lambda b, k, p: (b, row_of(p), 0))

    def new_head(first: int):
        return pl.BlockSpec((None, None, None, H), lambda b, k, p: (b, row_of(p), first + k, 0))

    angles = pl.BlockSpec((None, G, half), lambda b, k, p: (b, 0, 0))
    caches = [(of_row(H, N), k_BKGHN), (of_row(N, H), v_BKGNH)]
    inputs = [
        (pl.BlockSpec((None, G, T, H), lambda b, k, p: (b, 0, k, 0)), new.arrays[0]),
        (new_head(first_key), new.arrays[1]),
        (new_head(first_value), new.arrays[2]),
        *((angles, x) for x in new.rope or ()),
        (of_head(H, S), k_BKHS), (of_head(S, H), v_BKSH), (of_prompt(S), mask_BS),
        (of_prompt(2), _bounds(mask_BS, block)), *caches, (of_rows(N), mask_BGN),
        (of_rows(2), _bounds(mask_BGN, own_block)),
    ]  # fmt: skip
    outputs = [
        # More rows, so that a block of a row's may begin at any.
        *((of_part(rows, *last), _floats(B, K, P, Q + own_rows, *last)) for last in ((H,), (), ())),
        *((of_row(own_rows, *last), _floats(B, K, G, T, *last)) for last in ((H,), (), ())),
    ]
    aliases = {}
    if writes:
        # Written in place; two masks' inputs follow them.
        for number, (block_spec, cache) in enumerate(caches, len(inputs) - len(caches) - 2):
            aliases[number] = len(outputs)
            outputs.append((block_spec, jax.ShapeDtypeStruct(cache.shape, cache.dtype)))
        inputs.append((pl.BlockSpec((1,), lambda b, k, p: (0,)), jnp.reshape(slot, 1)))
    in_specs, arrays = zip(*inputs, strict=True)
    out_specs, out_shape = zip(*outputs, strict=True)
    found = pl.pallas_call(
        kernel,
        grid=(B, K, P + G),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        input_output_aliases=aliases,
        compiler_params=triton.CompilerParams(num_warps=plan.warps, num_stages=plan.stages),
        interpret=interpret,
        name="attend_to_parts",
    )(*arrays)
    shape = jax.ShapeDtypeStruct((B, G, K, T, H), new.arrays[0].dtype)
    return _joined(found[:6], shape, interpret), *found[6:]


def _joined(parts, result: jax.ShapeDtypeStruct, interpret: bool) -> jax.Array:
    """Return attention [B, G, K, T, H], in a shape and dtype, of the parts of `_attend`."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    B, G, K, T, H = result.shape
    P, rows, width = parts[0].shape[2], _power_of_2(T), min(H, 32)

    def kernel(out_ref, top_ref, total_ref, own_out_ref, own_top_ref, own_total_ref, result_ref):
        is_row = jnp.arange(rows) < T
        at, of_width = pl.ds((pl.program_id(0) % G) * T, rows), pl.ds(0, width)
        every, masks = pl.ds(0, P), is_row[None]
        out = triton.load(out_ref.at[every, at, of_width], mask=masks[..., None], other=0.0)
        top = triton.load(top_ref.at[every, at], mask=masks, other=_FLOOR)
        total = triton.load(total_ref.at[every, at], mask=masks, other=0.0)
        own_out = triton.load(own_out_ref, mask=is_row[:, None], other=0.0)
        own_top = triton.load(own_top_ref, mask=is_row, other=_FLOOR)
        own_total = triton.load(own_total_ref, mask=is_row, other=1.0)
        highest = jnp.maximum(jnp.max(top, axis=0), own_top)
        weight, own_weight = jnp.exp2(top - highest[None]), jnp.exp2(own_top - highest)
        out = jnp.sum(out * weight[:, :, None], axis=0) + own_out * own_weight[:, None]
        total = jnp.sum(total * weight, axis=0) + own_total * own_weight
        result = (out / total[:, None]).astype(result_ref.dtype)
        triton.store(result_ref, result, mask=is_row[:, None])

    def of_prompt(array, *last):
        return pl.BlockSpec(
            (None, None, *array.shape[2:4], *last),
            lambda i, k, h: (i // G, k, 0, 0, *(h,) * len(last)),
        )

    def of_row(*last):
        return pl.BlockSpec(
            (None, None, None, rows, *last),
            lambda i, k, h: (i // G, k, i % G, 0, *(h,) * len(last)),
        )

    return pl.pallas_call(
        kernel,
        grid=(B * G, K, H // width),
        in_specs=[
            *(
                of_prompt(part, *last)
                for part, last in zip(parts[:3], ((width,), (), ()), strict=True)
            ),
            *(of_row(*last) for last in ((width,), (), ())),
        ],
        out_specs=pl.BlockSpec(
            (None, None, None, rows, width), lambda i, k, h: (i // G, i % G, k, 0, h)
        ),
        out_shape=result,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="join_parts",
    )(*parts)


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _bounds(mask, block: int) -> jax.Array:
    """Return [first, last) of the blocks with live keys, i32[..., 2], of a mask bool[..., S]."""
    *rows, S = mask.shape
    blocks = -(-S // block)
    live = jnp.pad(mask, [(0, 0)] * len(rows) + [(0, blocks * block - S)])
    live = jnp.any(live.reshape(*rows, blocks, block), axis=-1)
    numbers = jnp.arange(blocks, dtype=jnp.int32)
    last = jnp.max(jnp.where(live, numbers + 1, 0), axis=-1)
    first = jnp.min(jnp.where(live, numbers, blocks), axis=-1)
    return jnp.stack([jnp.minimum(first, last), last], axis=-1)


def _block_of(plan: Plan, keys: int) -> int:
    """Keys of a block: a power of 2 that need not be larger than all keys."""
    return min(plan.block, _rows(keys))


def _rows(count: int) -> int:
    """Rows of a product of `count` queries: a power of 2."""
    return max(_LEAST_ROWS, _power_of_2(count))


def _power_of_2(count: int) -> int:
    """Return the next power of 2."""
    return 1 << (count - 1).bit_length()


def _scale(width: int) -> float:
    """The scale of scores, for exponents of 2."""
    return width**-0.5 * math.log2(math.e)


def _attend_to_blocks(q, k_ref, v_ref, mask_ref, start, stop, block: int, carry):
    """Attend with q, both halves [rows, H/2] of some heads, to the keys of some blocks.

    carry: (out f32[rows, H], the largest score f32[rows], the sum of weights f32[rows]).
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    S, half = k_ref.shape[-1], q[0].shape[-1]
    ragged = S % block != 0

    def body(number, carry):
        out, top, total = carry
        at = pl.ds(number * block, block)
        inside = number * block + jnp.arange(block) < S

        def load(ref, where, mask, other):
            return triton.load(ref.at[where], mask=mask, other=other) if ragged else ref[where]

        live = load(mask_ref, at, inside, False)
        scores = sum(
            triton.dot(one, load(k_ref, (pl.ds(i * half, half), at), inside[None], 0.0))
            for i, one in enumerate(q)
        )
        v = load(v_ref, (at, slice(None)), inside[:, None], 0.0)
        scores = jnp.where(live[None], scores * _scale(2 * half), _FLOOR)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        weights = jnp.where(live[None], jnp.exp2(scores - new_top[:, None]), 0.0)
        fade = jnp.exp2(top - new_top)
        out = out * fade[:, None] + triton.dot(weights.astype(v.dtype), v)
        return out, new_top, total * fade + jnp.sum(weights, axis=1)

    return jax.lax.fori_loop(start, jnp.maximum(start, stop), body, carry)
