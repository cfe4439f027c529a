"""Attention of one new token a row over its caches, as kernels for GPUs (Pallas, by Triton).

XLA takes about ten kernels for what two do here, and its product of the weights with the values
keeps few of a GPU's processors busy. The keys of a prompt are cut into parts; the programs of the
first kernel attend to one of them each, or to a row's own tokens (flash decoding). The second joins
these by their maxima and sums. Blocks without a live key are not read.

Letters as in `attention`: B prompts, G rows of each, T query heads that share a key head, P parts
of a prompt's keys, N keys of a row's own; Q = G * T.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ugc_jax.sharding import on_shards

_LEAST_ROWS = 16  # of a product on tensor cores
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
    news = (x.reshape(B, K, G, H) for x in (new_k, new_v))
    arrays = q_BGKTH, k_BKHS, v_BKSH, mask_BS, k_BKGHN, v_BKGNH, mask_BGN, *news
    heads = ("batch", "heads")
    axes = tuple(
        ("batch",) + (None,) * (x.ndim - 1) if x.dtype == bool else heads + (None,) * (x.ndim - 2)
        for x in arrays
    )
    axes = (("batch", None, "heads", None, None), *axes[1:])
    attend = functools.partial(_attend, plan=plan, interpret=interpret)
    return on_shards(attend, arrays, axes).reshape(q_RNH.shape)


def _attend(
    q_BGKTH, k_BKHS, v_BKSH, mask_BS, k_BKGHN, v_BKGNH, mask_BGN, new_k, new_v, *, plan, interpret
) -> jax.Array:
    """Return attention [B, G, K, T, H]. new_k, new_v: [B, K, G, H]."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    B, G, K, T, H = q_BGKTH.shape
    S, N, Q = k_BKHS.shape[-1], k_BKGHN.shape[-1], G * T
    q_BKQH = q_BGKTH.swapaxes(1, 2).reshape(B, K, Q, H)  # one matrix for a prompt's rows
    block, own_block = _block_of(plan, S), _block_of(plan, N)
    P = _power_of_2(max(1, min(plan.programs // (B * K), 16, pl.cdiv(S, block))) + 1) // 2
    rows, own_rows = _rows(Q), _rows(T)

    def kernel(
        q_ref, k_ref, v_ref, mask_ref, bounds_ref, own_k_ref, own_v_ref, own_mask_ref,
        own_bounds_ref, new_k_ref, new_v_ref, out_ref, top_ref, total_ref, own_out_ref,
        own_top_ref, own_total_ref,
    ):  # fmt: skip
        part = pl.program_id(2)

        @pl.when(part < P)
        def of_prompt():
            is_row = jnp.arange(rows) < Q
            q = triton.load(q_ref.at[pl.ds(0, rows), :], mask=is_row[:, None], other=0.0)
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
            is_row = jnp.arange(own_rows) < T
            at = pl.ds((part - P) * T, own_rows)
            q = triton.load(q_ref.at[at, :], mask=is_row[:, None], other=0.0)
            key, value = (ref[...].astype(jnp.float32) for ref in (new_k_ref, new_v_ref))
            top = jnp.sum(q.astype(jnp.float32) * key[None], axis=1) * _scale(H)
            new = (
                jnp.broadcast_to(value[None], (own_rows, H)), top,
                jnp.ones((own_rows,), jnp.float32),
            )  # fmt: skip
            keys = own_k_ref, own_v_ref, own_mask_ref
            bounds = own_bounds_ref[0], own_bounds_ref[1]
            out, top, total = _attend_to_blocks(q, *keys, *bounds, own_block, new)
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

    most = max(rows, (G - 1) * T + own_rows)
    parts = pl.pallas_call(
        kernel,
        grid=(B, K, P + G),
        in_specs=[
            of_head(most, H), of_head(H, S), of_head(S, H), of_prompt(S), of_prompt(2),
            of_row(H, N), of_row(N, H), of_rows(N), of_rows(2), of_row(H), of_row(H),
        ],
        out_specs=[
            *(of_part(rows, *last) for last in ((H,), (), ())),
            *(of_row(own_rows, *last) for last in ((H,), (), ())),
        ],
        out_shape=[
            # More rows, so that a block of a row's may begin at any.
            *(_floats(B, K, P, Q + own_rows, *last) for last in ((H,), (), ())),
            *(_floats(B, K, G, T, *last) for last in ((H,), (), ())),
        ],
        compiler_params=triton.CompilerParams(num_warps=plan.warps, num_stages=plan.stages),
        interpret=interpret,
        name="attend_to_parts",
    )(
        q_BKQH, k_BKHS, v_BKSH, mask_BS, _bounds(mask_BS, block), k_BKGHN, v_BKGNH, mask_BGN,
        _bounds(mask_BGN, own_block), new_k, new_v,
    )  # fmt: skip
    return _joined(parts, q_BGKTH, interpret)


def _joined(parts, q_BGKTH, interpret: bool) -> jax.Array:
    """Return attention [B, G, K, T, H], in q's dtype, of the parts of `_attend`."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    B, G, K, T, H = q_BGKTH.shape
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
        out_shape=jax.ShapeDtypeStruct(q_BGKTH.shape, q_BGKTH.dtype),
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
    """Attend with q [rows, H] to the keys of some blocks.

    carry: (out f32[rows, H], the largest score f32[rows], the sum of weights f32[rows]).
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    S = k_ref.shape[-1]
    ragged = S % block != 0

    def body(number, carry):
        out, top, total = carry
        at = pl.ds(number * block, block)
        if ragged:
            inside = number * block + jnp.arange(block) < S
            k = triton.load(k_ref.at[:, at], mask=inside[None], other=0.0)
            v = triton.load(v_ref.at[at, :], mask=inside[:, None], other=0.0)
            live = triton.load(mask_ref.at[at], mask=inside, other=False)
        else:
            k, v, live = k_ref[:, at], v_ref[at, :], mask_ref[at]
        scores = jnp.where(live[None], triton.dot(q, k) * _scale(q.shape[-1]), _FLOOR)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        weights = jnp.where(live[None], jnp.exp2(scores - new_top[:, None]), 0.0)
        fade = jnp.exp2(top - new_top)
        out = out * fade[:, None] + triton.dot(weights.astype(v.dtype), v)
        return out, new_top, total * fade + jnp.sum(weights, axis=1)

    return jax.lax.fori_loop(start, jnp.maximum(start, stop), body, carry)
