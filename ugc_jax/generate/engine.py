"""Batch generation: five jitted programs, each compiled once per bucket of its input shapes.

    patches -> encode_vision -\
    mel     -> encode_audio ---> embed -> prefill (first logits, KV cache) -> decode (a loop)

Prompts are right-padded and their cache is read-only, so that any number of samples share it. The
generated tokens go to a second, small cache at the same index in all rows, so that each step writes
one slice whatever the lengths of the prompts. Shapes: B prompts, G samples of each, R = B * G rows
(row b * G + g), T prompt tokens, N new tokens, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ugc_jax.data.batching import Batch
from ugc_jax.generate import sampling
from ugc_jax.generate.settings import NEW_TOKENS
from ugc_jax.models.compute import Compute
from ugc_jax.models.layers import in_chunks
from ugc_jax.models.qwen2_5_omni import decoder, thinker
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.sharding import abstract, batch_shardings, replicated, shardings

# For this encoder's shapes, XLA's own matrix product is a quarter faster than YNNPACK's on a CPU.
CPU_VISION = {"xla_cpu_experimental_ynn_fusion_type": ""}


class Generated(NamedTuple):
    """The generated tokens of each row; padding rows have length 0.

    tokens: i32[R, N], the end-of-text token included and the pad id after it. lengths: i32[R].
    stopped: bool[R], true where the row has an end-of-text token, false where it reached the limit.
    logprobs: f32[R, N], of each token under the distribution that it was sampled from (see
    `sampling.next_token`), 0 after the end.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    stopped: np.ndarray
    logprobs: np.ndarray


def finish_reason(stopped: bool) -> str:
    """Return "stop" for a row that has an end-of-text token, "length" for one at the limit."""
    return "stop" if stopped else "length"


class Prefilled(NamedTuple):
    """The input of decoding: logits f32[B, V] of the first new token, the prompts' cache."""

    logits: jax.Array
    cache: decoder.Cache


class Engine:
    """The jitted programs that generate with one model; the parameters are arguments.

    params, in all methods: the tree of the thinker, with stacked or unrolled layers, on `mesh` or
    on one device. With a mesh, B must be a multiple of its data * fsdp size.
    """

    def __init__(self, config: OmniConfig, compute: Compute, mesh: jax.sharding.Mesh | None = None):
        self.config, self.compute, self.mesh = config, compute, mesh
        bind, on_cpu = functools.partial, jax.default_backend() == "cpu"
        self._encoders = {
            name: jax.jit(
                bind(_static(encode), config=config, compute=compute),
                compiler_options=CPU_VISION if on_cpu and name == "vision" else None,
            )
            for name, encode in thinker.ENCODERS.items()
        }
        self._embed = jax.jit(bind(_embed, compute=compute))
        self._prefill = jax.jit(bind(_prefill, config=config, compute=compute))
        self._decode = jax.jit(
            bind(_decode, config=config, compute=compute),
            static_argnames=("mode", "size", "samples"),
            # Every process reads the whole result, rows on other processes' devices included.
            out_shardings=None if mesh is None else replicated(mesh),
        )

    def generate(
        self,
        params,
        batch: Batch,
        options: sampling.SamplingConfig,
        key_ids,
        samples: int = 1,
    ) -> Generated:
        """Complete each row of `batch`, `samples` times.

        key_ids: u32[R]; a row's random numbers depend on its id and `options.seed` alone. Stops
        when every row has stopped or `options.max_new_tokens` is reached.
        """
        prefilled = self.prefill(params, batch)
        return self.decode(params, batch, prefilled, options, key_ids, samples)

    def prefill(self, params, batch: Batch, media: dict[str, jax.Array] | None = None) -> Prefilled:
        """Run the encoders and the decoder on the prompts. media: a result of `encode`, if any.

        Returns device arrays (asynchronously).
        """
        with self._on_mesh():
            batch = self._place(batch)
            media = media or self.encode(params, batch)
            x = self._embed(params, batch.tokens, batch.splice, media)
            return self._prefill(params, x, batch.positions, batch.segment_ids)

    def encode(self, params, batch: Batch) -> dict[str, jax.Array]:
        """Return the rows of each encoder by modality, as `thinker.encode_media`."""
        with self._on_mesh():
            media = self._place(batch.media)
            return {name: run(params, *media[name]) for name, run in self._encoders.items()}

    def decode(
        self,
        params,
        batch: Batch,
        prefilled: Prefilled,
        options: sampling.SamplingConfig,
        key_ids,
        samples: int = 1,
    ) -> Generated:
        """Generate after `prefill` of the same batch; see `generate`."""
        keys = np.asarray(key_ids, np.uint32)
        rows = batch.tokens, batch.segment_ids, batch.next_position, keys
        limits, static = _decode_options(options)
        with self._on_mesh():
            rows = self._place(rows)
            generated = self._decode(params, *prefilled, *rows, *limits, **static, samples=samples)
        return Generated(*jax.device_get(generated))

    def trace(
        self, params, batch: Batch, options: sampling.SamplingConfig, samples: int = 1
    ) -> dict[str, jax.stages.Traced]:
        """Trace the programs of `generate`, in their order, to compile them or count operations.

        params, batch: of jax.ShapeDtypeStructs on the mesh.
        """

        def split(shapes):
            return abstract(shapes, batch_shardings(self.mesh, shapes))

        def key_value(shape):
            axes = None, "batch", "heads", None, None
            return abstract(shape, shardings(self.mesh, shape, axes))

        keys = jax.ShapeDtypeStruct((len(batch.tokens) * samples,), "uint32")
        limits, static = _decode_options(options)
        with self._on_mesh():
            encoders = {
                name: encode.trace(params, *batch.media[name])
                for name, encode in self._encoders.items()
            }
            media = split({name: encode.out_info for name, encode in encoders.items()})
            embed = self._embed.trace(params, batch.tokens, batch.splice, media)
            x = split(embed.out_info)
            prefill = self._prefill.trace(params, x, batch.positions, batch.segment_ids)
            logits, cache = prefill.out_info
            prefilled = Prefilled(split(logits), decoder.Cache(*map(key_value, cache)))
            rows = batch.tokens, batch.segment_ids, batch.next_position, split(keys)
            decode = self._decode.trace(
                params, *prefilled, *rows, *limits, **static, samples=samples
            )
        return encoders | dict(embed=embed, prefill=prefill, decode=decode)

    def programs(self) -> dict[str, int]:
        """Return how many programs each stage has compiled so far: one for each bucket."""
        stages = self._encoders | {
            "embed": self._embed,
            "prefill": self._prefill,
            "decode": self._decode,
        }
        return {name: stage._cache_size() for name, stage in stages.items()}

    def _on_mesh(self):
        return jax.set_mesh(self.mesh) if self.mesh is not None else jax.default_device(None)

    def _place(self, arrays):
        if self.mesh is None:
            return arrays
        return jax.device_put(arrays, batch_shardings(self.mesh, arrays))


def _decode_options(options: sampling.SamplingConfig) -> tuple[tuple, dict]:
    """Return the last arguments of `_decode`: the traced and the static ones."""
    options = options.resolve()
    size = next(size for size in NEW_TOKENS if size >= options.max_new_tokens)
    mode, knobs = sampling.split(options)
    limits = np.uint32(options.seed), np.int32(options.max_new_tokens), knobs
    return limits, {"mode": mode, "size": size}


def _static(function):
    """Make config and compute keyword arguments of `function(params, config, compute, ...)`."""

    @functools.wraps(function)
    def call(params, *arrays, config, compute):
        return function(params, config, compute, *arrays)

    return call


def _embed(params, tokens_BT, splice_BT, media, *, compute) -> jax.Array:
    """Embed and splice in a separate program: prefill is then compiled for T alone."""
    return thinker.splice(thinker.embed(params, compute, tokens_BT), splice_BT, media)


def _prefill(params, x_BTD, positions_B3T, segments_BT, *, config, compute) -> Prefilled:
    def rows(x_BTD, positions_B3T, segments_BT):
        places = positions_B3T, segments_BT
        hidden, cache = thinker.prefill(params, config, compute, x_BTD, *places)
        last_B11 = jnp.maximum(jnp.sum(segments_BT > 0, axis=1) - 1, 0)[:, None, None]
        logits_BV = thinker.logits(
            thinker.head(params), jnp.take_along_axis(hidden, last_B11, axis=1)[:, 0]
        )
        return logits_BV, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), cache)

    T = x_BTD.shape[1]
    logits_BV, cache = in_chunks(rows, (x_BTD, positions_B3T, segments_BT), T, compute.slab)
    return Prefilled(logits_BV, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), cache))


class _State(NamedTuple):
    step: jax.Array  # tokens generated so far
    token_R: jax.Array
    done_R: jax.Array
    tokens_RN: jax.Array
    logprobs_RN: jax.Array
    seen_RV: jax.Array
    cache: decoder.Cache


def _decode(
    params,
    logits_BV,
    prompt,
    tokens_BT,
    segments_BT,
    position_B,
    key_ids_R,
    seed,
    limit,
    knobs,
    *,
    mode,
    size,
    samples,
    config,
    compute,
) -> Generated:
    B, V = logits_BV.shape
    R = B * samples
    ids = config.tokens
    row_keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(key_ids_R)
    rows = jnp.arange(R)
    prompt_BT = segments_BT > 0
    prompt_layers = thinker.split_cache(params, prompt)

    def for_samples(x):
        return x if samples == 1 else jnp.repeat(x, samples, axis=0)

    position_R, real_R = for_samples(position_B), for_samples(jnp.any(prompt_BT, axis=1))

    def next_token(logits_RV, seen_RV, step):
        keys_R = jax.vmap(jax.random.fold_in, (0, None))(row_keys, step)
        return sampling.next_token(logits_RV, seen_RV, keys_R, mode, knobs)

    def record(before, sampled, cache):
        token_R = jnp.where(before.done_R, ids.pad_token_id, sampled[0])
        logprob_R = jnp.where(before.done_R, 0.0, sampled[1])
        write = functools.partial(
            jax.lax.dynamic_update_slice_in_dim, start_index=before.step, axis=1
        )
        seen_RV = before.seen_RV
        if mode.penalizes:
            seen_RV = seen_RV.at[rows, token_R].set(True)
        return _State(
            step=before.step + 1,
            token_R=token_R,
            done_R=before.done_R | (token_R == ids.eos_token_id),
            tokens_RN=write(before.tokens_RN, token_R[:, None]),
            logprobs_RN=write(before.logprobs_RN, logprob_R[:, None]),
            seen_RV=seen_RV,
            cache=cache,
        )

    def more(state):
        return (state.step < limit) & ~jnp.all(state.done_R)

    def one(state):
        logits_RV, cache = thinker.decode_step(
            params,
            config,
            compute,
            state.token_R,
            position_R + state.step - 1,
            prompt_layers,
            prompt_BT,
            state.cache,
            state.step - 1,
        )
        return record(state, next_token(logits_RV, state.seen_RV, state.step), cache)

    seen_RV = jnp.zeros((R, V if mode.penalizes else 0), bool)
    if mode.penalizes:
        seen_RV = seen_RV.at[rows[:, None], for_samples(tokens_BT)].max(for_samples(prompt_BT))
    start = _State(
        step=jnp.int32(0),
        token_R=jnp.zeros(R, jnp.int32),
        done_R=~real_R,
        tokens_RN=jnp.full((R, size), ids.pad_token_id, jnp.int32),
        logprobs_RN=jnp.zeros((R, size), jnp.float32),
        seen_RV=seen_RV,
        cache=decoder.empty_cache(config.text, B, samples, size, prompt.k.dtype),
    )
    first = next_token(for_samples(logits_BV), seen_RV, jnp.int32(0))
    state = jax.lax.while_loop(more, one, record(start, first, start.cache))
    is_eos_RN = state.tokens_RN == ids.eos_token_id
    stopped_R = jnp.any(is_eos_RN, axis=1)
    lengths_R = jnp.where(stopped_R, jnp.argmax(is_eos_RN, axis=1) + 1, state.step)
    return Generated(
        state.tokens_RN,
        jnp.where(real_R, lengths_R, 0).astype(jnp.int32),
        stopped_R & real_R,
        state.logprobs_RN,
    )
