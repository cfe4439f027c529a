"""Batch generation: five jitted programs, each compiled once per bucket of its own shapes.

    patches -> encode_vision -\
    mel     -> encode_audio ---> embed -> prefill (first logits, KV cache) -> decode (a loop)

Prompts are right-padded and their cache is read-only; the tokens generated go to a second, small
cache in step, so that one write a step serves all rows, whatever their lengths. Shapes: B rows, T
prompt tokens, N new tokens, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ugc_jax.config import Compute, OmniConfig
from ugc_jax.data.schema import Batch
from ugc_jax.errors import UserError
from ugc_jax.generate import sampling
from ugc_jax.models import decoder, omni
from ugc_jax.models.layers import in_slabs, split_like
from ugc_jax.sharding import batch_shardings, replicated

NEW_TOKENS = (
    16,
    32,
    64,
    128,
    256,
    512,
    1024,
    2048,
    4096,
)  # sizes of the cache for generated tokens


# For this encoder's shapes, XLA's own matrix product is a quarter faster than YNNPACK's on a CPU.
CPU_VISION = {"xla_cpu_experimental_ynn_fusion_type": ""}


class Generated(NamedTuple):
    """What was generated for each row; padding rows have length 0.

    tokens: i32[B, N], the end-of-text token included and the pad id after it. lengths: i32[B].
    stopped: bool[B], true where the row ended by itself, false where it reached the limit.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    stopped: np.ndarray


class Prefilled(NamedTuple):
    """What decoding starts from: logits f32[B, V] of the first new token, the prompts' cache."""

    logits: jax.Array
    cache: decoder.Cache


class Engine:
    """Generates from batches with one set of parameters; holds the jitted programs.

    params: the tree of models/omni.py, with stacked or unrolled layers, on `mesh` or on one device.
    With a mesh, B must be a multiple of its data * fsdp size.
    """

    def __init__(
        self, params, config: OmniConfig, compute: Compute, mesh: jax.sharding.Mesh | None = None
    ):
        self.params, self.config, self.compute, self.mesh = params, config, compute, mesh
        bind = functools.partial
        self._encode_vision = jax.jit(
            bind(_static(omni.encode_vision), config=config, compute=compute),
            compiler_options=CPU_VISION if jax.default_backend() == "cpu" else None,
        )
        self._encode_audio = jax.jit(
            bind(_static(omni.encode_audio), config=config, compute=compute)
        )
        self._embed = jax.jit(bind(_embed, compute=compute))
        self._prefill = jax.jit(bind(_prefill, config=config, compute=compute))
        self._decode = jax.jit(
            bind(_decode, config=config, compute=compute),
            static_argnames=("mode", "size"),
            # Every process reads the whole result, also of rows that other processes hold.
            out_shardings=None if mesh is None else replicated(mesh),
        )

    def generate(
        self, batch: Batch, next_position, options: sampling.SamplingConfig, key_ids
    ) -> Generated:
        """Complete each row of `batch`.

        next_position: i32[B], position of the first new token. key_ids: u32[B]; with `options.seed`
        they alone decide a row's random numbers. Stops when every row has stopped or
        `options.max_new_tokens` is reached. Raises UserError when that exceeds the largest cache.
        """
        prefilled = self.prefill(batch)
        return self.decode(batch, prefilled, next_position, options, key_ids)

    def prefill(self, batch: Batch) -> Prefilled:
        """Run the encoders and the prompts. Returns device arrays (asynchronously)."""
        with self._on_mesh():
            batch = self._place(batch)
            vision = self._encode_vision(self.params, batch.patches, batch.coords)
            audio = self._encode_audio(self.params, batch.mel, batch.mel_frames)
            x = self._embed(self.params, batch.tokens, batch.splice, vision, audio)
            return self._prefill(self.params, x, batch.positions, batch.segment_ids)

    def decode(
        self,
        batch: Batch,
        prefilled: Prefilled,
        next_position,
        options: sampling.SamplingConfig,
        key_ids,
    ) -> Generated:
        """Generate after `prefill` of the same batch; see `generate`."""
        size = next((size for size in NEW_TOKENS if size >= options.max_new_tokens), None)
        if size is None:
            raise UserError(
                f"max_new_tokens is {options.max_new_tokens}; at most {NEW_TOKENS[-1]} are possible"
            )
        mode, knobs = sampling.split(options)
        rows = (
            batch.tokens,
            batch.segment_ids,
            np.asarray(next_position, np.int32),
            np.asarray(key_ids, np.uint32),
        )
        with self._on_mesh():
            generated = self._decode(
                self.params, *prefilled, *self._place(rows), np.uint32(options.seed),
                np.int32(options.max_new_tokens), knobs, mode=mode, size=size,
            )  # fmt: skip
        return Generated(*jax.device_get(generated))

    def programs(self) -> dict[str, int]:
        """How many programs each stage has compiled so far: as many as it met buckets."""
        stages = {
            "vision": self._encode_vision,
            "audio": self._encode_audio,
            "embed": self._embed,
            "prefill": self._prefill,
            "decode": self._decode,
        }
        return {name: stage._cache_size() for name, stage in stages.items()}

    def _on_mesh(self):
        return jax.set_mesh(self.mesh) if self.mesh is not None else jax.default_device(None)

    def _place(self, arrays):
        return (
            arrays
            if self.mesh is None
            else jax.device_put(arrays, batch_shardings(self.mesh, arrays))
        )


def _static(function):
    """`function(params, config, compute, *arrays)` with config and compute as keywords."""

    @functools.wraps(function)
    def call(params, *arrays, config, compute):
        return function(params, config, compute, *arrays)

    return call


def _embed(params, tokens_BT, splice_BT, vision_BRD, audio_BRD, *, compute) -> jax.Array:
    """A program of its own, small, so that prefill is compiled for the prompt's length alone."""
    return omni.splice(omni.embed(params, compute, tokens_BT), splice_BT, vision_BRD, audio_BRD)


def _prefill(params, x_BTD, positions_B3T, segments_BT, *, config, compute) -> Prefilled:
    def rows(x_BTD, positions_B3T, segments_BT):
        hidden, cache = decoder.forward(
            params["model"],
            config.text,
            compute,
            x_BTD,
            positions_B3T,
            segments_BT,
            keep_cache=True,
        )
        last_B11 = jnp.maximum(jnp.sum(segments_BT > 0, axis=1) - 1, 0)[:, None, None]
        logits_BV = omni.logits(params, jnp.take_along_axis(hidden, last_B11, axis=1)[:, 0])
        return logits_BV, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), cache)

    T = x_BTD.shape[1]
    logits_BV, cache = in_slabs(rows, (x_BTD, positions_B3T, segments_BT), T, compute.slab)
    return Prefilled(logits_BV, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), cache))


class _State(NamedTuple):
    step: jax.Array  # tokens generated so far
    token_B: jax.Array
    done_B: jax.Array
    tokens_BN: jax.Array
    seen_BV: jax.Array
    cache: decoder.Cache


def _decode(
    params,
    logits_BV,
    prompt,
    tokens_BT,
    segments_BT,
    position_B,
    key_ids_B,
    seed,
    limit,
    knobs,
    *,
    mode,
    size,
    config,
    compute,
) -> Generated:
    B, V = logits_BV.shape
    ids = config.tokens
    row_keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(key_ids_B)
    rows = jnp.arange(B)
    prompt_BT = segments_BT > 0
    prompt_layers = split_like(params["model"]["layers"], prompt)  # once, not at every step

    def choose(logits_BV, seen_BV, step):
        keys_B = jax.vmap(jax.random.fold_in, (0, None))(row_keys, step)
        return sampling.choose(logits_BV, seen_BV, keys_B, mode, knobs)

    def record(state_before, token_B, cache):
        step, _, done_B, tokens_BN, seen_BV, _ = state_before
        token_B = jnp.where(done_B, ids.pad_token_id, token_B)
        tokens_BN = jax.lax.dynamic_update_slice_in_dim(tokens_BN, token_B[:, None], step, axis=1)
        if mode.penalizes:
            seen_BV = seen_BV.at[rows, token_B].set(True)
        return _State(
            step + 1, token_B, done_B | (token_B == ids.eos_token_id), tokens_BN, seen_BV, cache
        )

    def more(state):
        return (state.step < limit) & ~jnp.all(state.done_B)

    def one(state):
        x_BD = omni.embed(params, compute, state.token_B)
        hidden_BD, cache = decoder.decode_step(
            params["model"],
            config.text,
            x_BD,
            position_B + state.step - 1,
            prompt_layers,
            prompt_BT,
            state.cache,
            state.step - 1,
        )
        return record(
            state, choose(omni.logits(params, hidden_BD), state.seen_BV, state.step), cache
        )

    seen_BV = jnp.zeros((B, V if mode.penalizes else 0), bool)
    if mode.penalizes:
        seen_BV = seen_BV.at[rows[:, None], tokens_BT].max(prompt_BT)
    start = _State(
        step=jnp.int32(0),
        token_B=jnp.zeros(B, jnp.int32),
        done_B=~jnp.any(prompt_BT, axis=1),
        tokens_BN=jnp.full((B, size), ids.pad_token_id, jnp.int32),
        seen_BV=seen_BV,
        cache=decoder.empty_cache(config.text, B, size, prompt.k.dtype),
    )
    state = jax.lax.while_loop(
        more, one, record(start, choose(logits_BV, seen_BV, jnp.int32(0)), start.cache)
    )
    is_eos_BN = state.tokens_BN == ids.eos_token_id
    stopped_B = jnp.any(is_eos_BN, axis=1)
    lengths_B = jnp.where(stopped_B, jnp.argmax(is_eos_BN, axis=1) + 1, state.step)
    real_B = jnp.any(prompt_BT, axis=1)
    return Generated(
        state.tokens_BN, jnp.where(real_B, lengths_B, 0).astype(jnp.int32), stopped_B & real_B
    )
