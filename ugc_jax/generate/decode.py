"""Decoding as pure functions on a pytree of slots: `prefill`, `insert`, `start`, `steps`.

    prompts -> prefill -> first_tokens ----------\\
                  \\-> insert (caches into places) -> start (rows) -> steps(k), again and again

P places hold a prompt each; the G rows of a place complete it and share its cache. Row p * G + g
belongs to place p. Each row has its own number of tokens so far, limit, random key and sampling, so
that rows start and end at any time: a result depends neither on the row nor on its neighbours.

Generated tokens of all rows are cached at the same index, `cursor`, which moves round the N places
of the cache: a step writes one slice whatever the rows' lengths. A row's own tokens are the ones
before the cursor; their order in the cache does not matter, as keys have their positions in them.

Letters: B prompts of a prefill, P places, G rows of a place, R = P * G rows, S samples of a prompt,
T prompt tokens, N new tokens, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ugc_jax.generate import sampling
from ugc_jax.models.compute import Compute
from ugc_jax.models.layers import in_chunks
from ugc_jax.models.qwen2_5_omni import decoder, thinker
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.sharding import constrain


class Prefilled(NamedTuple):
    """Prompts after their prefill.

    logits: f32[B, V], of the first new token. cache: of T tokens.
    """

    logits: jax.Array
    cache: decoder.Cache | tuple[decoder.Cache, ...]


class Rows(NamedTuple):
    """What a row is started with, and does not change until it ends.

    key: u32[R, 2], of its random numbers. limit: i32[R], most tokens to generate, 1 to N.
    """

    key: jax.Array
    limit: jax.Array
    knobs: sampling.Knobs


class DecodeState(NamedTuple):
    """P places and R = P * G rows.

    prompt: caches of the places' prompts, T tokens each. own: caches of the rows' generated tokens,
      N places each.
    cursor: i32, the index in `own` that the next step writes.
    length: i32[P], tokens of each prompt, 0 for a place without one. position: i32[P], the position
      of the token after the prompt.
    rows: see Rows.
    token: i32[R], the last token of each row. count: i32[R], tokens generated so far.
    done: bool[R], ended, or never started. A row that is done computes, but nothing of it changes.
    tokens: i32[R, N], generated, the end-of-text token included; beyond `count` of earlier use.
    logprobs: f32[R, N], of each token (see `sampling.next_token`).
    top: i32[R, N, K], top_logprobs: f32[R, N, K], the most likely tokens in the place of each token
      (see `sampling.Sampled`); K = 0 where no row asks for them.
    seen_prompt: bool[P, V], seen: bool[R, V]: tokens that the repetition penalty applies to; [_, 0]
      where no row has one.
    """

    prompt: decoder.Cache | tuple[decoder.Cache, ...]
    own: decoder.Cache | tuple[decoder.Cache, ...]
    cursor: jax.Array
    length: jax.Array
    position: jax.Array
    rows: Rows
    token: jax.Array
    count: jax.Array
    done: jax.Array
    tokens: jax.Array
    logprobs: jax.Array
    top: jax.Array
    top_logprobs: jax.Array
    seen_prompt: jax.Array
    seen: jax.Array


READ = ("count", "done", "tokens", "logprobs", "top", "top_logprobs")  # by the host


def empty_state(
    config: OmniConfig,
    compute: Compute,
    places: int,
    samples: int,
    tokens: int,
    new_tokens: int,
    penalizes: bool,
    stacked: bool,
    ranks: bool = False,
) -> DecodeState:
    """Return a state of P places with G = `samples` rows each, all done.

    tokens: T. new_tokens: N. stacked: the form of the layers, which the caches have, too. ranks: of
    the rows' Mode.
    """
    P, R, N, K = places, places * samples, new_tokens, sampling.TOP if ranks else 0
    vocabulary = config.text.vocab_size if penalizes else 0
    cache = dict(dtype=compute.dtype, stacked=stacked, in_int8=compute.cache == "int8")
    zeros = jnp.zeros
    return DecodeState(
        prompt=decoder.empty_cache(config.text, (P,), tokens, **cache),
        own=decoder.empty_cache(config.text, (P, samples), N, **cache),
        cursor=jnp.int32(0),
        length=zeros(P, jnp.int32),
        position=zeros(P, jnp.int32),
        rows=Rows(
            key=zeros((R, 2), jnp.uint32),
            limit=zeros(R, jnp.int32),
            knobs=sampling.Knobs(
                zeros(R, jnp.float32), zeros(R, jnp.int32), zeros(R, jnp.float32),
                zeros(R, jnp.float32),
            ),
        ),
        token=zeros(R, jnp.int32),
        count=zeros(R, jnp.int32),
        done=jnp.ones(R, bool),
        tokens=zeros((R, N), jnp.int32),
        logprobs=zeros((R, N), jnp.float32),
        top=zeros((R, N, K), jnp.int32),
        top_logprobs=zeros((R, N, K), jnp.float32),
        seen_prompt=zeros((P, vocabulary), bool),
        seen=zeros((R, vocabulary), bool),
    )  # fmt: skip


def state_axes(state: DecodeState) -> DecodeState:
    """Return the logical axes of a state. What the host reads is on every device."""

    def split(leaf):
        return ("batch",) + (None,) * (leaf.ndim - 1) if leaf.ndim else ()

    def whole(leaf):
        return (None,) * leaf.ndim

    axes = jax.tree.map(split, state)
    return axes._replace(
        prompt=decoder.cache_axes(state.prompt),
        own=decoder.cache_axes(state.own),
        **{name: whole(getattr(state, name)) for name in READ},
    )


def prefill(
    params, config: OmniConfig, compute: Compute, x_BTD, positions_B3T, segments_BT
) -> Prefilled:
    """Run the decoder on the spliced embeddings of B prompts, right-padded to T."""
    stacked = not isinstance(params["model"]["layers"], tuple)
    rows_axis = 1 if stacked else 0

    def rows(x_BTD, positions_B3T, segments_BT):
        places = positions_B3T, segments_BT
        hidden, cache = thinker.prefill(params, config, compute, x_BTD, *places)
        last_B11 = jnp.maximum(jnp.sum(segments_BT > 0, axis=1) - 1, 0)[:, None, None]
        last_BD = jnp.take_along_axis(hidden, last_B11, axis=1)[:, 0]
        logits_BV = thinker.next_logits(params, last_BD)
        return logits_BV, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, rows_axis, 0), cache)

    T = x_BTD.shape[1]
    logits_BV, cache = in_chunks(rows, (x_BTD, positions_B3T, segments_BT), T, compute.slab)
    return Prefilled(logits_BV, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, rows_axis), cache))


def prefill_shared(
    params, config: OmniConfig, compute: Compute, x_CTD, positions_C3T, segments_CT, places_CQS
) -> Prefilled:
    """Run the decoder on C rows of Q prompts each that begin alike; the beginning is computed once.

    x_CTD: the spliced embeddings of rows as of `batching.Shared`, whose `places` say where in its
    row each token of a prompt is. Returns the C * Q prompts, in their order, padded to S.
    """
    stacked = not isinstance(params["model"]["layers"], tuple)
    rows_axis = 1 if stacked else 0

    def taken(cache: decoder.Cache, places_CQS) -> decoder.Cache:
        """The prompts' caches [C, Q, ...] of the rows'."""

        def take(axis: int, leaf, places_QS):
            return jnp.moveaxis(jnp.take(leaf, jnp.maximum(places_QS, 0), axis=axis), axis - 1, 0)

        def each(axis: int, leaf):
            return jax.vmap(functools.partial(take, axis), (rows_axis, 0))(leaf, places_CQS)

        return decoder.along_tokens(each, cache)

    def rows(x_CTD, positions_C3T, segments_CT, places_CQS):
        places = positions_C3T, segments_CT
        hidden, cache = thinker.prefill(params, config, compute, x_CTD, *places, shared_prompt=True)
        length_CQ1 = jnp.sum(places_CQS >= 0, axis=2, keepdims=True)
        last_CQ = jnp.take_along_axis(places_CQS, jnp.maximum(length_CQ1 - 1, 0), axis=2)[..., 0]
        last_CQD = jnp.take_along_axis(hidden, jnp.maximum(last_CQ, 0)[..., None], axis=1)
        logits_CQV = thinker.next_logits(params, last_CQD)
        is_cache = lambda node: isinstance(node, decoder.Cache)  # noqa: E731
        return logits_CQV, jax.tree.map(lambda c: taken(c, places_CQS), cache, is_leaf=is_cache)

    arrays = x_CTD, positions_C3T, segments_CT, places_CQS
    logits_CQV, cache = in_chunks(rows, arrays, x_CTD.shape[1], compute.slab)

    def together(leaf):
        return leaf.reshape(-1, *leaf.shape[2:])

    cache = jax.tree.map(lambda leaf: jnp.moveaxis(together(leaf), 0, rows_axis), cache)
    return Prefilled(together(logits_CQV), cache)


def row_keys(seed: int, ids_R) -> jax.Array:
    """Return the keys u32[R, 2] of rows' random numbers. ids_R: u32; equal ids, equal numbers."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.random.key_data(fold(jax.random.key(seed), ids_R))


def first_tokens(
    logits_BV, tokens_BT, segments_BT, rows_BS: Rows, allowed_BW=None, *, mode: sampling.Mode
) -> sampling.Sampled:
    """Return the first new tokens of S samples of each prompt, with leading axes [B, S].

    logits_BV: of `prefill`. rows_BS: Rows with leading axes [B, S]. allowed_BW: see
    `sampling.next_token`.
    """
    B, S = rows_BS.limit.shape
    rows = jax.tree.map(lambda leaf: leaf.reshape(B * S, *leaf.shape[2:]), rows_BS)
    seen_BV = seen_tokens(tokens_BT, segments_BT, logits_BV.shape[1] if mode.penalizes else 0)
    keys = _step_keys(rows.key, jnp.zeros(B * S, jnp.int32))
    logits, seen = (jnp.repeat(x, S, axis=0) for x in (logits_BV, seen_BV))
    allowed = None if allowed_BW is None else jnp.repeat(allowed_BW, S, axis=0)
    sampled = sampling.next_token(logits, seen, keys, mode, rows.knobs, allowed)
    return jax.tree.map(lambda leaf: leaf.reshape(B, S, *leaf.shape[1:]), sampled)


def seen_tokens(tokens_BT, segments_BT, vocabulary: int) -> jax.Array:
    """Return which tokens each prompt has, bool[B, V]; [B, 0] for a vocabulary of 0."""
    B = len(tokens_BT)
    if vocabulary == 0:
        return jnp.zeros((B, 0), bool)
    rows_B1 = jnp.arange(B)[:, None]
    return jnp.zeros((B, vocabulary), bool).at[rows_B1, tokens_BT].max(segments_BT > 0)


def insert(state: DecodeState, cache, places_B, tokens_BT, segments_BT, position_B) -> DecodeState:
    """Put B prompts into places. Their rows must be done, and be started after it.

    cache: of `prefill`, of at most as many tokens as the state's. places_B: i32; a number outside
    0..P-1 leaves a prompt out.
    """
    P = len(state.length)
    places_B = jnp.where(places_B < 0, P, places_B)  # a negative index would count from the end

    def put(axis: int, old, new):
        size = new.shape
        if old.ndim == new.ndim:  # pad the tokens: see decoder.along_tokens
            pads = [
                (0, o - n if i > axis else 0)
                for i, (o, n) in enumerate(zip(old.shape, size, strict=True))
            ]
            new = jnp.pad(new, pads)
        index = (slice(None),) * axis + (places_B,)
        return old.at[index].set(new.astype(old.dtype), mode="drop")

    axis = 1 if isinstance(state.prompt, decoder.Cache) else 0
    seen_BV = seen_tokens(tokens_BT, segments_BT, state.seen.shape[1])
    return state._replace(
        prompt=jax.tree.map(lambda old, new: put(axis, old, new), state.prompt, cache),
        length=put(0, state.length, jnp.sum(segments_BT > 0, axis=1)),
        position=put(0, state.position, position_B),
        seen_prompt=put(0, state.seen_prompt, seen_BV),
    )


def start(
    state: DecodeState, which_R, first_R: sampling.Sampled, rows: Rows, eos: int
) -> DecodeState:
    """Start the rows `which_R` (bool) at their first token, of `first_tokens`.

    A row of limit 0 ends with it: so is one ended that nobody waits for any more. The most likely
    tokens are left out where the state has no room for them.
    """
    token_R = first_R.token

    def take(new, old):
        return jnp.where(which_R.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    first_RN = which_R[:, None] & (jnp.arange(state.tokens.shape[1]) == 0)[None]
    seen_RV = state.seen
    if seen_RV.shape[1]:
        G = len(state.done) // len(state.length)
        fresh_RV = jnp.repeat(state.seen_prompt, G, axis=0)
        fresh_RV = fresh_RV.at[jnp.arange(len(token_R)), token_R].set(True)
        seen_RV = take(fresh_RV, seen_RV)
    return state._replace(
        rows=jax.tree.map(take, rows, state.rows),
        token=take(token_R, state.token),
        count=take(jnp.ones_like(state.count), state.count),
        done=take((token_R == eos) | (rows.limit <= 1), state.done),
        tokens=jnp.where(first_RN, token_R[:, None], state.tokens),
        logprobs=jnp.where(first_RN, first_R.logprob[:, None], state.logprobs),
        **_ranked(state, first_RN, first_R),
        seen=seen_RV,
    )


def _ranked(state: DecodeState, at_RN, sampled_R: sampling.Sampled) -> dict[str, jax.Array]:
    """The fields `top` and `top_logprobs` with those of new tokens, whose places are `at_RN`."""
    K = state.top.shape[-1]

    def put(old_RNK, new_RK):
        if not K or not new_RK.shape[-1]:
            return old_RNK
        return jnp.where(at_RN[..., None], new_RK[:, None], old_RNK)

    return dict(
        top=put(state.top, sampled_R.top),
        top_logprobs=put(state.top_logprobs, sampled_R.top_logprobs),
    )


def step(
    params,
    config: OmniConfig,
    compute: Compute,
    state: DecodeState,
    mode: sampling.Mode,
    allowed_RW: jax.Array | None = None,
) -> DecodeState:
    """Generate one token of each row that is not done. allowed_RW: see `sampling.next_token`."""
    T = jax.tree.leaves(state.prompt)[0].shape[-1]  # of keys, which come first
    R, N = state.tokens.shape
    G = R // len(state.length)
    indices_1N = jnp.arange(N)[None]
    # A row's earlier tokens but the last, which this step processes, lie in the count - 1 places
    # before the cursor, round the end.
    age_1N = (state.cursor - 1 - indices_1N) % N
    logits_RV, own = thinker.decode_step(
        params,
        config,
        compute,
        state.token,
        jnp.repeat(state.position, G) + state.count - 1,
        state.prompt,
        jnp.arange(T)[None] < state.length[:, None],
        state.own,
        age_1N < state.count[:, None] - 1,
        state.cursor,
    )
    keys_R = _step_keys(state.rows.key, state.count)
    knobs_R = state.rows.knobs
    new_R = sampling.next_token(logits_RV, state.seen, keys_R, mode, knobs_R, allowed_RW)
    token_R = new_R.token
    live_R = ~state.done
    new_RN = live_R[:, None] & (indices_1N == state.count[:, None])
    seen_RV = state.seen
    if seen_RV.shape[1]:
        seen_RV = seen_RV.at[jnp.arange(R), token_R].max(live_R)
    count_R = state.count + live_R
    ended_R = (token_R == config.tokens.eos_token_id) | (count_R >= state.rows.limit)
    return state._replace(
        own=own,
        cursor=(state.cursor + 1) % N,
        token=jnp.where(live_R, token_R, state.token),
        count=count_R,
        done=state.done | ended_R,
        tokens=jnp.where(new_RN, token_R[:, None], state.tokens),
        logprobs=jnp.where(new_RN, new_R.logprob[:, None], state.logprobs),
        **_ranked(state, new_RN, new_R),
        seen=seen_RV,
    )


class Chunk(NamedTuple):
    """When `steps` returns: after so many steps, or once so many rows have ended in this chunk."""

    steps: int | np.int32 | jax.Array
    ends: int | np.int32 | jax.Array = np.int32(2**31 - 1)


def steps(
    params,
    config: OmniConfig,
    compute: Compute,
    state: DecodeState,
    mode: sampling.Mode,
    chunk: Chunk,
    allowed_RW: jax.Array | None = None,
) -> DecodeState:
    """Make a chunk of steps, fewer when no row is left. allowed_RW: of a single step.

    chunk: also fewer, once `chunk.ends` rows have ended.
    """
    # What no step changes stays outside of the loop.
    fixed = ("prompt", "length", "position", "rows", "seen_prompt")
    nothing = dict.fromkeys(fixed)

    def whole(carried: DecodeState) -> DecodeState:
        return carried._replace(**{name: getattr(state, name) for name in fixed})

    def more(loop):
        made, carried = loop
        ended = jnp.sum(carried.done) - jnp.sum(state.done)
        return (made < chunk.steps) & ~jnp.all(carried.done) & (ended < chunk.ends)

    def one(loop):
        made, carried = loop
        stepped = step(params, config, compute, whole(carried), mode, allowed_RW)
        return made + 1, stepped._replace(**nothing)

    _, carried = jax.lax.while_loop(more, one, (jnp.int32(0), state._replace(**nothing)))
    return whole(carried)


def grow(state: DecodeState, tokens: int, vocabulary: int, top: int) -> DecodeState:
    """Return the state with room for prompts of T = `tokens`, the penalty and the top tokens.

    vocabulary: of the model, or 0 where no row has a repetition penalty. top: K.
    """

    def pad(cache: decoder.Cache) -> decoder.Cache:
        more = tokens - cache.k.shape[-1]

        def longer(axis: int, leaf):
            return jnp.pad(
                leaf, [(0, more if a - leaf.ndim == axis else 0) for a in range(leaf.ndim)]
            )

        return decoder.along_tokens(longer, cache)

    def widen(seen):  # no row under way has a penalty: what it has seen has no effect
        return jnp.pad(seen, ((0, 0), (0, vocabulary - seen.shape[1])))

    def deepen(ranked):
        return jnp.pad(ranked, ((0, 0), (0, 0), (0, top - ranked.shape[-1])))

    is_cache = lambda node: isinstance(node, decoder.Cache)  # noqa: E731
    return state._replace(
        prompt=jax.tree.map(pad, state.prompt, is_leaf=is_cache),
        top=deepen(state.top),
        top_logprobs=deepen(state.top_logprobs),
        seen_prompt=widen(state.seen_prompt),
        seen=widen(state.seen),
    )


def moved(state: DecodeState, places, rows) -> DecodeState:
    """Return a state of other sizes, with places and rows of this one.

    places: i32[P'], which place each of the new ones was. rows: i32[R'], which row; those of a new
    place must have been of its prompt. A negative number leaves a place or row empty.
    """
    P = len(places)
    axis = 1 if isinstance(state.prompt, decoder.Cache) else 0

    def take(leaf, which, axis: int = 0):
        return jnp.take(leaf, jnp.maximum(which, 0), axis=axis)

    def take_own(leaf):  # its axes after the layers: places, heads, rows of a place
        leaf = jnp.moveaxis(leaf, axis + 2, axis + 1)
        flat = leaf.reshape(*leaf.shape[:axis], -1, *leaf.shape[axis + 2 :])
        new = take(flat, rows, axis)
        new = new.reshape(*new.shape[:axis], P, -1, *new.shape[axis + 1 :])
        return jnp.moveaxis(new, axis + 1, axis + 2)

    of_places = {name: getattr(state, name) for name in ("length", "position", "seen_prompt")}
    of_rows = {
        name: getattr(state, name)
        for name in (
            "rows", "token", "count", "done", "tokens", "logprobs", "top", "top_logprobs", "seen",
        )
    }  # fmt: skip
    new = state._replace(
        prompt=jax.tree.map(lambda leaf: take(leaf, places, axis), state.prompt),
        own=jax.tree.map(take_own, state.own),
        **jax.tree.map(lambda leaf: take(leaf, places), of_places),
        **jax.tree.map(lambda leaf: take(leaf, rows), of_rows),
    )
    return new._replace(length=jnp.where(places < 0, 0, new.length), done=new.done | (rows < 0))


def constrained(state: DecodeState) -> DecodeState:
    """Return the state, split over the mesh of `jax.set_mesh`."""
    return jax.tree.map(constrain, state, state_axes(state))


def _step_keys(keys_R2, count_R) -> jax.Array:
    """The PRNG key of each row's token number `count_R`."""
    return jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(keys_R2), count_R)


class Starts(NamedTuple):
    """The arguments of `start` after the state. which: bool[R]."""

    which: np.ndarray
    first: sampling.Sampled
    rows: Rows


def no_rows(count: int, top: int = 0) -> Starts:
    """Return the starts of no row (numpy), to be filled in. top: K of the state."""
    ones, zeros = np.ones(count, np.float32), functools.partial(np.zeros, count)
    knobs = sampling.Knobs(zeros(np.float32), zeros(np.int32), ones, ones.copy())
    first = sampling.Sampled(
        zeros(np.int32), zeros(np.float32),
        np.zeros((count, top), np.int32), np.zeros((count, top), np.float32),
    )  # fmt: skip
    return Starts(zeros(bool), first, Rows(np.zeros((count, 2), np.uint32), zeros(np.int32), knobs))
