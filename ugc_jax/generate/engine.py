"""Continuous batching: prompts wait, are prefilled, take free places, and leave as their rows end.

    groups of prompts -> encoders -> embed -> prefill -> first tokens
        -> insert into free places -> advance: start rows, k steps -> finished rows out -> ...

Rows under a constraint have a state of their own, which goes one step while the others go a chunk:
the host says before each of their tokens which ones may come.

Two users of the same programs: `Engine.run` for a stream of prompts, whose places are filled again
while others decode, and `Engine.generate` for one batch. The host looks at the rows once a chunk of
steps; the next group is prefilled while it waits for the chunk. The programs are pure functions of
generate/decode.py, each compiled once per bucket of its input shapes; parameters and state are
their arguments.
"""

import dataclasses
import functools
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import jax
import numpy as np

from ugc_jax.data.batching import Batch, Shared
from ugc_jax.errors import UserError
from ugc_jax.generate import decode, sampling, scoring
from ugc_jax.generate.decode import DecodeState, Prefilled
from ugc_jax.generate.settings import NEW_TOKENS, SamplingConfig
from ugc_jax.models.compute import Compute
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.sharding import (
    abstract,
    batch_shardings,
    replicated,
    round_up_rows,
    shard_count,
    shardings,
)

logger = logging.getLogger(__name__)

# For this encoder's shapes, XLA's own matrix product is a quarter faster than YNNPACK's on a CPU.
CPU_VISION = {"xla_cpu_experimental_ynn_fusion_type": ""}
# Sizes of the places' prompt caches. A step reads all of it, and a larger one is another program.
PROMPT_TOKENS = (
    128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768,
)  # fmt: skip
# Most prompts that decode at a time where nothing else limits them.
MOST_PLACES = {"cpu": 32, "accelerator": 64}
FEW_PLACES = 4  # of constrained prompts; a quarter of the places where that is more
# Steps of a chunk. A row that ends waits for half of them on average. To begin a chunk takes an
# H200 some 4 ms, more than a step (docs/performance.md): on accelerators a chunk is longer, but it
# is over, too, once an eighth of the rows has ended.
STEPS = {"cpu": 8, "accelerator": 32}
# Sizes that decoding goes on with as rows end, where it does. The time of a step depends on them
# most on a CPU, which also compiles faster.
_SIZES = tuple(2**i for i in range(9, -1, -1))
_SIZES_CPU = tuple(sorted({*_SIZES, *(3 * 2**i for i in range(8))}, reverse=True))
LEAST_ROWS = 8  # of these sizes, on an accelerator
FOLLOWS = {"cpu": 4, "accelerator": 8}  # how many times smaller the next size is that follows
MOVE_STEPS = 64  # that a row may still take, for which it is worth to move it
TOO_LARGE = "exceeds the device's memory"  # the end of such an error
RowPolicy = Literal["fixed", "shrinking", "following"]  # see Engine.run
CANCELLED = "cancelled"  # the error of a completion that nobody waits for any more


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

    @classmethod
    def empty(cls, rows: tuple[int, ...], max_new_tokens: int, pad: int) -> "Generated":
        """Return arrays without tokens, to `put` into. rows: their leading axes."""
        N = new_tokens_bucket(max_new_tokens)
        return cls(
            np.full((*rows, N), pad, np.int32),
            np.zeros(rows, np.int32),
            np.zeros(rows, bool),
            np.zeros((*rows, N), np.float32),
        )

    def put(self, row: tuple[int, ...], one: "Finished"):
        """Write a completion, which has no error, into a row."""
        n = len(one.tokens)
        self.tokens[row][:n], self.logprobs[row][:n] = one.tokens, one.logprobs
        self.lengths[row], self.stopped[row] = n, one.stopped


class Matcher(Protocol):
    """How far a completion has come under its constraint."""

    def allow(self, bits_W: np.ndarray):
        """Write the tokens that may come next: u32, a bit for each token, lowest first.

        Raises UserError if the constraint is too complex, which ends the completion.
        """

    def take(self, token: int):
        """Go on by a token that may come. Raises UserError as `allow`."""


class Constraint(Protocol):
    """What a completion must satisfy. first: u32[W], the tokens that may begin it."""

    first: np.ndarray

    def matcher(self) -> Matcher:
        """Return the beginning of a completion."""


class Request(NamedTuple):
    """What to do with one prompt: a completion for each of `key_ids`.

    tag: given back with each completion. sampling: resolved. key_ids: u32, which together with
    sampling.seed decide a completion's random numbers.

    streams: yield its tokens after each chunk of steps, too. top_logprobs: whether to give the
    `sampling.TOP` most likely tokens beside each. spreads: samples take a place each, as far as
    there are any, rather than following each other in one. cancelled: called with the number of a
    sample before each chunk; where it is true, the sample ends with the error CANCELLED.
    constraint: of each sample. keep: called with the prompt's rows of the encoders, numpy by
    modality, after each of its prefills; not of `Group.shared`.
    """

    tag: object
    sampling: SamplingConfig
    key_ids: Sequence[int]
    streams: bool = False
    top_logprobs: bool = False
    spreads: bool = False
    cancelled: Callable[[int], bool] | None = None
    constraint: Constraint | None = None
    keep: Callable[[dict[str, np.ndarray]], None] | None = None


class Group(NamedTuple):
    """Prompts of one bucket that are prefilled together.

    batch: B rows, on the host or on the mesh. requests: of the rows; None for an empty row.
    media: `Engine.encode` of the batch, if it is at hand. shared: of prompts that begin alike,
    whose batch has no media then (`batching.collate_shared`).
    """

    batch: Batch
    requests: Sequence[Request | None]
    media: dict[str, jax.Array] | None = None
    shared: Shared | None = None


class Top(NamedTuple):
    """The most likely tokens in the place of each of n tokens, i32[n, K], most likely first.

    logprobs: f32[n, K], of the same distribution as those of the tokens; -inf: cannot be sampled.
    """

    tokens: np.ndarray
    logprobs: np.ndarray


class Finished(NamedTuple):
    """One completion. sample: its number in Request.key_ids. tokens: i32[n], the end-of-text token
    included. logprobs: f32[n]. error: why there is none; that of a prompt which exceeds the
    device's memory is given once, for all its samples. top: if the request asks for it.
    """

    tag: object
    sample: int
    tokens: np.ndarray
    logprobs: np.ndarray
    stopped: bool
    error: str | None = None
    top: Top | None = None


class Streamed(NamedTuple):
    """The new tokens of a completion that is not finished, which `Finished` has again."""

    tag: object
    sample: int
    tokens: np.ndarray
    logprobs: np.ndarray
    top: Top | None = None


class Source(Protocol):
    """Where groups come from while others decode."""

    def take(self, wait: bool, free: int) -> Group | None:
        """Return the next group; None if there is none now, or, with `wait`, none any more.

        Where it raises that the device's memory is exhausted, it is called again, when less of it
        is in use.

        free: places that are free, which a group of fewer prompts than usual may be taken for.
        Negative: prompts wait for one already, and only constrained ones have another.
        """


def on_cpu(mesh: jax.sharding.Mesh | None) -> bool:
    """Return whether the programs run on CPUs."""
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    return device.platform == "cpu"


def prefill_tokens(mesh: jax.sharding.Mesh | None) -> int:
    """Return how many tokens of prompts are prefilled together, to use the devices fully."""
    # A CPU is busy with one prompt, and would compute the rows that fill a group up, too.
    return 512 if on_cpu(mesh) else 8192 * round_up_rows(mesh, 1)


def chunk_of(mesh: jax.sharding.Mesh | None, rows: int) -> decode.Chunk:
    """Return the chunk of steps after which the host looks at so many rows."""
    if on_cpu(mesh):
        return decode.Chunk(np.int32(STEPS["cpu"]))
    return decode.Chunk(np.int32(STEPS["accelerator"]), np.int32(max(1, rows // 8)))


def shrinking_sizes(
    mesh: jax.sharding.Mesh | None, places: int, samples: int
) -> list[tuple[int, int]]:
    """Return the sizes (places, rows of a place) of a run that shrinks, largest first.

    First the rows of a place become fewer, down to one, then the places.
    """
    # An accelerator computes a few rows in about the time of one.
    sizes, least = (_SIZES_CPU, 1) if on_cpu(mesh) else (_SIZES, LEAST_ROWS)
    share = round_up_rows(mesh, 1)
    rows = [(places, size) for size in sizes if size < samples]
    fewer = [(size, 1) for size in sizes if size < places and size % share == 0]
    smaller = [size for size in rows + fewer if size[0] * size[1] >= least]
    return [(places, samples), *smaller]


def following_sizes(
    mesh: jax.sharding.Mesh | None, places: int, samples: int
) -> list[tuple[int, int]]:
    """Return the sizes of a run that follows its prompts, largest first: few, down to one place."""
    sizes, times = [places], FOLLOWS["cpu" if on_cpu(mesh) else "accelerator"]
    least = round_up_rows(mesh, 1)
    while sizes[-1] > least:
        sizes.append(round_up_rows(mesh, max(least, sizes[-1] // times)))
    return [(size, samples) for size in sizes]


def place_bytes(
    config: OmniConfig, tokens: int, new_tokens: int, samples: int, dtype, cache: str = "auto"
) -> int:
    """Return the bytes of a place: its caches, and the logits of its rows while they sample.

    dtype, cache: as of Compute.
    """
    text = config.text
    heads = 2 * text.num_hidden_layers * text.num_key_value_heads
    # In int8 a head has a scale, too.
    each = text.head_dim + 4 if cache == "int8" else text.head_dim * np.dtype(dtype).itemsize
    caches = (tokens + samples * new_tokens) * heads * each
    return caches + samples * text.vocab_size * 4 * 3


def plan_places(
    engine: "Engine",
    tokens: int,
    new_tokens: int,
    samples: int,
    most: int | None,
    free: float | None = None,
) -> int:
    """Return how many prompts decode at a time, and log it.

    tokens, new_tokens: of each. Half of the free memory is for caches, the rest for prefill. most:
    of use; None: no limit but that of the platform. free: bytes of each device; None: those that
    are free now.
    """
    mesh, tokens = engine.mesh, _prompt_tokens(tokens)
    limit = MOST_PLACES["cpu" if on_cpu(mesh) else "accelerator"]
    dtype, cache = engine.compute.dtype, engine.compute.cache
    each = place_bytes(engine.config, tokens, new_tokens, samples, dtype, cache)
    share = round_up_rows(mesh, 1)
    room = (_for_caches(mesh) if free is None else free / 2) * _splits(engine)
    places = min(limit, most or limit, max(1, int(room // each) * share))
    places = round_up_rows(mesh, places)
    logger.info(
        "decoding at most %d prompts at a time, of %d + %d tokens: %.2f GiB for their caches",
        places, tokens, new_tokens, places * each / 2**30,
    )  # fmt: skip
    return places


def few_places(mesh: jax.sharding.Mesh | None, places: int) -> int:
    """Return how many constrained prompts decode at a time beside so many others."""
    return round_up_rows(mesh, max(min(places, FEW_PLACES), places // 4))


def longest_prompt(engine: "Engine", places: int, new_tokens: int, samples: int) -> int:
    """Return the most tokens of a prompt for which so many places leave memory, 0 for none."""
    mesh = engine.mesh
    compute = engine.compute
    shape = dict(new_tokens=new_tokens, samples=samples, dtype=compute.dtype, cache=compute.cache)
    most = _for_caches(mesh) * _splits(engine) / (places // round_up_rows(mesh, 1))
    sizes = (size for size in PROMPT_TOKENS if place_bytes(engine.config, size, **shape) <= most)
    return max(sizes, default=0)


def _splits(engine: "Engine") -> int:
    """Return over how many devices the heads of a place's caches are split (`sharding.spec`)."""
    if engine.mesh is None:
        return 1
    split = shard_count("heads", engine.mesh)
    return 1 if engine.config.text.num_key_value_heads % split else split


def _for_caches(mesh: jax.sharding.Mesh | None) -> float:
    """Half of the free bytes of a device: the rest is for prefill."""
    devices = jax.local_devices()[:1] if mesh is None else mesh.local_devices
    share = len(devices) if on_cpu(mesh) else 1
    return min(free_memory(device) for device in devices) // share / 2


def free_memory(device: jax.Device) -> int:
    """Return the free bytes of a device; of a CPU, those of the machine."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 8 << 30


class Listed:
    """A Source of groups that are all at hand."""

    def __init__(self, groups: Iterable[Group]):
        self._groups = iter(groups)

    def take(self, wait: bool, free: int) -> Group | None:
        return next(self._groups, None)


def is_exhausted(error: jax.errors.JaxRuntimeError) -> bool:
    """Return whether a program failed for want of the device's memory."""
    return "RESOURCE_EXHAUSTED" in str(error)


def finish_reason(stopped: bool) -> str:
    """Return "stop" for a row that has an end-of-text token, "length" for one at the limit."""
    return "stop" if stopped else "length"


class Engine:
    """The jitted programs that generate with one model; the parameters are arguments.

    params, in all methods: the tree of the thinker, with stacked or unrolled layers, on `mesh` or
    on one device. With a mesh, B and the number of places must be multiples of its data * fsdp
    size.
    """

    def __init__(self, config: OmniConfig, compute: Compute, mesh: jax.sharding.Mesh | None = None):
        self.config, self.compute, self.mesh = config, compute, mesh
        bind, of_cpu = functools.partial, on_cpu(mesh)
        self._encoders = {
            name: jax.jit(
                bind(_static(encode), config=config, compute=compute),
                compiler_options=CPU_VISION if of_cpu and name == "vision" else None,
            )
            for name, encode in thinker.ENCODERS.items()
        }
        self._embed = jax.jit(bind(_embed, compute=compute))
        self._prefill = jax.jit(bind(_prefill, config=config, compute=compute))
        self._prefill_shared = jax.jit(bind(_prefill_shared, config=config, compute=compute))
        self._score = jax.jit(bind(scoring.logprobs, config=config, compute=compute))
        everywhere = None if mesh is None else replicated(mesh)
        self._first = jax.jit(
            bind(decode.first_tokens), static_argnames="mode", out_shardings=everywhere
        )
        state = dict(config=config, compute=compute)
        self._empty = jax.jit(
            bind(_empty, **state),
            static_argnames=(
                "places",
                "samples",
                "tokens",
                "new_tokens",
                "penalizes",
                "stacked",
                "ranks",
            ),
        )
        self._insert = jax.jit(bind(_insert), donate_argnames="state")
        self._grow = jax.jit(bind(_grow), static_argnames=("tokens", "vocabulary", "top"))
        self._move = jax.jit(bind(_move))
        self._advance = jax.jit(
            bind(_advance, **state), static_argnames="mode", donate_argnames="state"
        )

    # ---- a stream --------------------------------------------------------------------------------

    def run(
        self,
        params,
        source: Source,
        places: int | None,
        new_tokens: int,
        samples: int = 1,
        most: int | None = None,
        tokens: int = 0,
        check: Callable[[], None] = lambda: None,
        rows: RowPolicy = "fixed",
    ) -> Iterator[Finished | Streamed]:
        """Complete the prompts of a source; yields each completion when it is finished.

        Streamed only for requests that ask for it. What a chunk of steps gave is yielded while the
        next one runs, so that the caller's work costs the device no time.

        places: prompts that decode at a time; None: as many as the free memory holds, at most
        `most`. new_tokens: most of a request. samples: completions of one prompt that decode at a
        time; further ones of a request follow as these end. tokens: of the longest prompt, if it is
        known; the programs are then compiled for its size alone. check: called before each chunk of
        steps; may raise.

        rows: that decode. "fixed": those of all places, also of empty ones, in one program.
        "shrinking": once no prompt waits, fewer as others end, for runs that are often repeated;
        the source is over then. "following": of as few places as the prompts under way need, for a
        source of which nobody knows how many come. Each of `shrinking_sizes` or `following_sizes`
        is a program.

        Greedy tokens are those of the prompt alone, and sampled ones depend on seed and key id
        alone, up to rounding. When the device's memory is exhausted, the places are halved and what
        is unfinished is done again. A prompt that cannot be prefilled beside the others is done
        alone, after them; one that exceeds the memory even so has an `error`.
        """
        how = most, tokens, check, rows
        yield from _Run(self, params, source, places, new_tokens, samples, *how)

    # ---- one batch -------------------------------------------------------------------------------

    def generate(
        self,
        params,
        batch: Batch,
        options: SamplingConfig,
        key_ids,
        samples: int = 1,
    ) -> Generated:
        """Complete each row of `batch`, `samples` times, all at the same time.

        key_ids: u32[R]; a row's random numbers depend on its id and `options.seed` alone. Stops
        when every row has stopped or `options.max_new_tokens` is reached. Raises UserError for a
        prompt that exceeds the device's memory.
        """
        prefilled = self.prefill(params, batch)
        return self.decode(params, batch, prefilled, options, key_ids, samples)

    def prefill(
        self,
        params,
        batch: Batch,
        media: dict[str, jax.Array] | None = None,
        shared: Shared | None = None,
    ) -> Prefilled:
        """Run the encoders and the decoder on the prompts. media, shared: as of Group.

        Returns device arrays (asynchronously).
        """
        with self.on_mesh():
            batch = self._place(batch if shared is None else shared.batch)
            media = media or self.encode(params, batch)
            x = self._embed(params, batch.tokens, batch.splice, media)
            arrays = x, batch.positions, batch.segment_ids
            if shared is None:
                return self._prefill(params, *arrays)
            return self._prefill_shared(params, *arrays, self._place(shared.places))

    def encode(self, params, batch: Batch) -> dict[str, jax.Array]:
        """Return the rows of each encoder by modality, as `thinker.encode_media`."""
        with self.on_mesh():
            media = self._place(batch.media)
            return {name: run(params, *media[name]) for name, run in self._encoders.items()}

    def score(
        self,
        params,
        rows: scoring.TextRows,
        segments_BCT: np.ndarray,
        media: dict[str, jax.Array] | None = None,
    ) -> np.ndarray:
        """Return the log-probability of each slot's token with the segments of each way, f32[B, C,
        S], in every process.

        segments_BCT: of `scoring.hidden_ways`. media: `encode` of the rows, if it is at hand. The
        ways follow each other, so that the memory is that of a prefill.
        """
        out: list = []
        with self.on_mesh():
            media = media or self.encode(params, rows.batch)
            for c in range(segments_BCT.shape[1]):
                shown = scoring.without_padding(rows, segments_BCT[:, c])
                batch, *ends = self._place((shown.batch, shown.previous, shown.tokens))
                x = self._embed(params, batch.tokens, batch.splice, media)
                out.append(self._score(params, x, batch.positions, batch.segment_ids, *ends))
                if c:  # one way waits in the device's queue, not all of them with their inputs
                    out[c - 1] = self.to_host(out[c - 1])
            return np.stack([self.to_host(one) for one in out], axis=1)

    def decode(
        self,
        params,
        batch: Batch,
        prefilled: Prefilled,
        options: SamplingConfig,
        key_ids,
        samples: int = 1,
    ) -> Generated:
        """Generate after `prefill` of the same batch; see `generate`."""
        options = options.resolve()
        B = len(batch.tokens)
        keys = np.asarray(key_ids, np.uint32).reshape(B, samples)
        real = self.to_host(batch.next_position) > 0
        requests = [Request(b, options, keys[b].tolist()) if real[b] else None for b in range(B)]
        pad = self.config.tokens.pad_token_id
        out = Generated.empty((B, samples), options.max_new_tokens, pad)
        run = _Run(self, params, Listed([]), B, options.max_new_tokens, samples)
        for one in run.complete(Group(batch, requests), prefilled):
            if one.error is not None:
                raise UserError(one.error)
            out.put((one.tag, one.sample), one)
        return Generated(*(leaf.reshape(B * samples, *leaf.shape[2:]) for leaf in out))

    def trace(
        self,
        params,
        batch: Batch,
        options: SamplingConfig,
        samples: int = 1,
        places: int | None = None,
        tokens: int = 0,
    ) -> tuple[dict[str, jax.stages.Traced], DecodeState]:
        """Trace the programs of `run`, in their order, to compile them or count operations.

        params, batch: of jax.ShapeDtypeStructs on the mesh; a group of prompts. places: None, as
        many as prompts. tokens: of the longest prompt, if the places hold longer ones than these.
        Returns also the state's shapes. "decode" is a chunk of steps, whose loop stands once in the
        program.
        """

        places, options = places or len(batch.tokens), options.resolve()
        mode = sampling.mode_of([options])
        with self.on_mesh():
            programs = dict(self._traces(params, batch))
            empty = functools.partial(
                decode.empty_state, self.config, self.compute, places, samples,
                _prompt_tokens(max(tokens, batch.tokens.shape[1])),
                new_tokens_bucket(options.max_new_tokens), mode.penalizes, _is_stacked(params),
                mode.ranks,
            )  # fmt: skip
            state = jax.eval_shape(empty)
            state = abstract(state, shardings(self.mesh, state, decode.state_axes(state)))
            starts = decode.no_rows(places * samples)
            starts = abstract(starts, jax.tree.map(lambda _: replicated(self.mesh), starts))
            chunk = chunk_of(self.mesh, places * samples)
            steps = self._advance.trace(params, state, starts, chunk, mode=mode)
        return programs | dict(decode=steps), state

    def compiling(self, params, group: Group, pool: Executor) -> Iterator[Future]:
        """Let a pool compile the programs of `prefill` for a group; yields as each has begun.

        params: jax.ShapeDtypeStructs with the shardings of the weights, which may still be read.
        `prefill` uses the programs; one that cannot be compiled it compiles again, and fails.
        """

        def compile_one(lowered: jax.stages.Lowered):
            with self.on_mesh():
                lowered.compile()

        shared = group.shared
        with self.on_mesh():
            batch = self._place(group.batch if shared is None else shared.batch)
            places = None if shared is None else self._place(shared.places)
        traces = self._traces(params, batch, places)
        while True:
            # Traced and lowered here, where the caller's jax.config holds, as for `prefill`.
            with self.on_mesh():
                lowered = next((traced.lower() for _, traced in traces), None)
            if lowered is None:
                return
            yield pool.submit(compile_one, lowered)

    def _traces(self, params, batch: Batch, shared=None) -> Iterator[tuple[str, jax.stages.Traced]]:
        """Trace the programs of `prefill`, in their order. shared: `places` of Shared."""

        def on_devices(shapes):  # as the arrays that the programs return
            if self.mesh is not None:
                return abstract(shapes, batch_shardings(self.mesh, shapes))
            there = jax.tree.leaves(params)[0].sharding
            return abstract(shapes, jax.tree.map(lambda _: there, shapes))

        media = {}
        for name, encode in self._encoders.items():
            traced = encode.trace(params, *batch.media[name])
            media[name] = on_devices(traced.out_info)
            yield name, traced
        embed = self._embed.trace(params, batch.tokens, batch.splice, media)
        yield "embed", embed
        arrays = on_devices(embed.out_info), batch.positions, batch.segment_ids
        if shared is None:
            yield "prefill", self._prefill.trace(params, *arrays)
        else:
            yield "prefill", self._prefill_shared.trace(params, *arrays, shared)

    # ---- programs --------------------------------------------------------------------------------

    def programs(self) -> dict[str, int]:
        """Return how many programs each stage has compiled so far: one for each bucket."""
        stages = self._encoders | {
            "embed": self._embed,
            "prefill": self._prefill,
            "first": self._first,
            "insert": self._insert,
            "decode": self._advance,
            "score": self._score,
        }
        sizes = {name: stage._cache_size() for name, stage in stages.items()}
        sizes["prefill"] += self._prefill_shared._cache_size()
        return sizes

    def on_mesh(self):
        """Return the context in which the programs are called."""
        return jax.set_mesh(self.mesh) if self.mesh is not None else jax.default_device(None)

    def to_host(self, array) -> np.ndarray:
        """Return a whole array in every process."""
        if self.mesh is not None and not getattr(array, "is_fully_addressable", True):
            array = jax.jit(lambda x: x, out_shardings=replicated(self.mesh))(array)
        return np.asarray(array)

    def _place(self, arrays):
        if self.mesh is None:
            return arrays
        return jax.device_put(arrays, batch_shardings(self.mesh, arrays))

    def _first_tokens(self, batch: Batch, prefilled: Prefilled, requests, mode) -> tuple:
        """Begin to choose the first tokens of a group, of `_mode_of(requests)`.

        Returns (sampling.Sampled with leading axes [B, S], on the device; Rows with the same axes,
        numpy). S: most samples of a request.
        """
        B, S = len(requests), max(len(one.key_ids) for one in requests if one is not None)
        configs = _configs(requests)
        seeds = [config.seed for config in configs]
        ids = np.zeros((B, S), np.uint32)
        for b, one in enumerate(requests):
            if one is not None:
                ids[b, : len(one.key_ids)] = one.key_ids
        knobs = jax.tree.map(
            lambda leaf: np.repeat(leaf[:, None], S, axis=1), sampling.knobs_of(configs)
        )
        # Waits for what the device computes. By numpy it would not, and 16 clients of serve got a
        # third fewer tokens a second on a CPU (launch/load_test.py).
        keys = np.asarray(_row_keys(np.array(seeds, np.uint32), ids))
        limits = np.array([config.max_new_tokens for config in configs], np.int32)
        rows = decode.Rows(keys, np.repeat(limits[:, None], S, axis=1), knobs)
        allowed = None
        if mode.masks:
            allowed = all_allowed(B, self.config.text.vocab_size)
            for b, one in enumerate(requests):
                if one is not None and one.constraint is not None:
                    allowed[b] = one.constraint.first
            allowed = self._place(allowed)
        length = None if mode.penalizes else 0  # the program is otherwise that of any length
        prompt = batch.tokens[:, :length], batch.segment_ids[:, :length]
        tokens, segments = self._place(prompt)
        first = self._first(prefilled.logits, tokens, segments, rows, allowed, mode=mode)
        return first, rows


def _configs(requests: list[Request | None]) -> list[SamplingConfig]:
    return [one.sampling if one else SamplingConfig().resolve() for one in requests]


def _mode_of(requests: list[Request | None]) -> sampling.Mode:
    """Return what the sampling of a group's first tokens needs."""
    real = [one for one in requests if one is not None]
    return sampling.mode_of(_configs(requests))._replace(
        ranks=any(one.top_logprobs for one in real),
        masks=any(one.constraint is not None for one in real),
    )


def all_allowed(rows: int, vocabulary: int) -> np.ndarray:
    """Return u32[rows, W] that allow every token."""
    return np.full((rows, -(-vocabulary // 32)), 0xFFFFFFFF, np.uint32)


@dataclasses.dataclass(eq=False)
class _Prompt:
    """A prompt of a group under way, or the part of its samples that one place completes.

    queue: samples to start, in their order. unfinished: those without a completion. first: of all
    samples, numpy. rows: decode.Rows with leading axis S.
    """

    group: Group
    row: int
    request: Request
    queue: deque[int]
    unfinished: set[int]
    first: sampling.Sampled | None = None
    rows: decode.Rows | None = None


@dataclasses.dataclass(eq=False)
class _Ready:
    """A prefilled group, of which `waiting` prompts have no place yet.

    first: the first tokens of all its samples, on the device until the first prompt is inserted.
    """

    group: Group
    prefilled: Prefilled
    waiting: deque[_Prompt]
    first: sampling.Sampled
    mode: sampling.Mode


class _Lane:
    """Places that decode together, in one DecodeState; `constrained` ones step by step."""

    def __init__(self, run: "_Run", constrained: bool):
        self._run, self._engine, self.constrained = run, run.engine, constrained
        self._mode = sampling.Mode(greedy=True, truncates=False, penalizes=False, masks=constrained)
        self.reset()

    def reset(self):
        """Forget all prompts, and have no state."""
        self.ready: deque[_Ready] = deque()
        self._sizes = self._all_sizes()
        self._clear(self._sizes[-1 if self._run.rows == "following" else 0])

    def _clear(self, size: tuple[int, int]):
        """Have empty places, and no state."""
        places, self._samples = size
        self._state: DecodeState | None = None
        self._refused = False  # whether the memory was too small for a state beside a prefill
        self._at: list[_Prompt | None] = [None] * places
        self._sample: list[int | None] = [None] * (places * self._samples)
        self._matchers: dict[int, Matcher] = {}  # of the rows under way
        self._starts = self._no_rows()
        self._counts: np.ndarray | None = None  # the rows' tokens after the last chunk

    def _all_sizes(self) -> list[tuple[int, int]]:
        """The sizes (places, rows of a place) that the lane may have, largest first."""
        run, mesh = self._run, self._engine.mesh
        places = few_places(mesh, run.places) if self.constrained else run.places
        of = {"shrinking": shrinking_sizes, "following": following_sizes}.get(run.rows)
        whole = [(places, run.samples)]
        return of(mesh, places, run.samples) if of is not None and places else whole

    def _no_rows(self) -> decode.Starts:
        return decode.no_rows(len(self._sample), sampling.TOP if self._mode.ranks else 0)

    @property
    def free(self) -> int:
        """Places that are free, or may be added, and that no prefilled prompt waits for."""
        places = self._sizes[0][0] if self._run.rows == "following" else len(self._at)
        return places - self._taken - self._waiting

    @property
    def _taken(self) -> int:
        return sum(prompt is not None for prompt in self._at)

    @property
    def _waiting(self) -> int:
        return sum(len(ready.waiting) for ready in self.ready)

    @property
    def has_state(self) -> bool:
        """Whether the lane's caches are in memory."""
        return self._state is not None

    @property
    def is_full(self) -> bool:
        """Whether prompts wait for a place."""
        return self.free <= 0 and bool(self.ready)

    def prompts(self) -> list[_Prompt]:
        """Return the prompts in places, and those that wait for one."""
        placed = [prompt for prompt in self._at if prompt is not None]
        return placed + [prompt for ready in self.ready for prompt in ready.waiting]

    # ---- prompts in ------------------------------------------------------------------------------

    def insert(self):
        """Put prompts that wait into free places, and let their rows start with the next chunk."""
        engine = self._engine
        if self._run.rows == "following" and self._waiting:
            self._follow()
        while self.ready:
            ready = self.ready[0]
            free = deque(p for p, prompt in enumerate(self._at) if prompt is None)
            if not ready.waiting:
                self.ready.popleft()
                continue
            if not free:
                return
            batch = ready.group.batch
            self._make_room(batch.tokens.shape[1], ready.mode)
            if isinstance(ready.first.token, jax.Array):
                self._run.taken = ready.group  # which is to blame if this fails
                ready.first, self._run.taken = jax.device_get(ready.first), None
            places = np.full(len(ready.group.requests), -1, np.int32)
            # A prompt whose samples have several places is inserted into one at a time.
            while ready.waiting and free and places[ready.waiting[0].row] < 0:
                prompt = ready.waiting.popleft()
                prompt.first = jax.tree.map(lambda leaf, row=prompt.row: leaf[row], ready.first)
                place = places[prompt.row] = free.popleft()
                self._at[place] = prompt
                for g in range(self._samples):
                    self._start(place * self._samples + g)
            arrays = engine._place((batch.tokens, batch.segment_ids, batch.next_position))
            with engine.on_mesh():
                self._state = engine._insert(self._state, ready.prefilled.cache, places, *arrays)

    def prepare(self, tokens: int, mode: sampling.Mode):
        """Have a state before the first prompts, of so many tokens, are ready.

        Its programs are traced and loaded while the device computes the prompts. Only where other
        groups are prefilled beside a state in any case, and sizes do not change. If the memory is
        exhausted, `insert` tries again, and fails where the places can be halved.
        """
        if self._state is None and self._run.rows == "fixed" and not self._refused:
            try:
                self._make_room(tokens, mode)
            except jax.errors.JaxRuntimeError as error:
                self._state = None
                self._refused = is_exhausted(error)
                if not self._refused:
                    raise

    def _make_room(self, tokens: int, mode: sampling.Mode):
        """Have a state for prompts of so many tokens, and for their sampling."""
        engine, run = self._engine, self._run
        tokens = _prompt_tokens(max(tokens, run.tokens))
        self._mode = self._mode.joined(mode._replace(masks=self.constrained))
        vocabulary = engine.config.text.vocab_size if self._mode.penalizes else 0
        top = sampling.TOP if self._mode.ranks else 0
        if top > self._starts.first.top.shape[1]:
            ranked = self._no_rows().first
            first = self._starts.first._replace(top=ranked.top, top_logprobs=ranked.top_logprobs)
            self._starts = self._starts._replace(first=first)
        with engine.on_mesh():
            if self._state is None:
                self._state = engine._empty(
                    places=len(self._at), samples=self._samples, tokens=tokens,
                    new_tokens=run.new_tokens, penalizes=self._mode.penalizes,
                    stacked=run.stacked, ranks=self._mode.ranks,
                )  # fmt: skip
                leaf = jax.tree.leaves(run.params)[0]
                if engine.mesh is None and isinstance(leaf, jax.Array):
                    # Committed to its device, as what the other programs make of it is: jit would
                    # compile `insert` again for the bucket that comes first.
                    self._state = jax.device_put(self._state, leaf.sharding)
                if not self.constrained:
                    # Not a step, but the program is made while that of the prompts runs.
                    chunk = chunk_of(engine.mesh, len(self._sample))
                    self._advance(self._no_rows(), None, chunk, self._mode)
                return
            state = self._state
            now = jax.tree.leaves(state.prompt)[0].shape[-1], state.seen.shape[1]
            tokens = max(tokens, now[0])
            if (*now, state.top.shape[2]) != (tokens, vocabulary, top):
                self._state = engine._grow(state, tokens=tokens, vocabulary=vocabulary, top=top)

    def _start(self, row: int):
        """Let a row begin with the next sample of its place, if there is one."""
        prompt = self._at[row // self._samples]
        if prompt is None or not prompt.queue:
            return
        sample = self._sample[row] = prompt.queue.popleft()
        which, first, rows = self._starts
        which[row] = True

        def put(leaf, value):
            if value[sample].size:  # the most likely tokens, where the prompt's group has them
                leaf[row] = value[sample]

        jax.tree.map(put, (first, rows), (prompt.first, prompt.rows))
        if self.constrained:
            self._matchers[row] = prompt.request.constraint.matcher()
            self._match(row, prompt.first.token[sample])

    def drop(self):
        """End the samples that are cancelled; their places are free again."""
        for row, sample in enumerate(self._sample):
            prompt = self._at[row // self._samples]
            if prompt is not None and (cancelled := prompt.request.cancelled) is not None:
                self._drop_waiting(prompt)
                if sample is not None and cancelled(sample):
                    self._stop(row, CANCELLED)
                elif not prompt.unfinished:
                    self._at[row // self._samples] = None
        for ready in self.ready:
            for prompt in ready.waiting:
                self._drop_waiting(prompt)
            ready.waiting = deque(prompt for prompt in ready.waiting if prompt.unfinished)

    def _drop_waiting(self, prompt: _Prompt):
        """End the samples of a prompt that are cancelled before they began."""
        if prompt.request.cancelled is not None:
            for sample in [one for one in prompt.queue if prompt.request.cancelled(one)]:
                prompt.queue.remove(sample)
                self._run.fail(prompt, sample, CANCELLED)

    def _stop(self, row: int, error: str):
        """End the sample of a row, which is still under way on the device."""
        self._starts.which[row], self._starts.rows.limit[row] = True, 0
        prompt = self._at[row // self._samples]
        self._run.fail(prompt, self._sample[row], error)
        self._leave(row)

    def _leave(self, row: int):
        """Let the next sample have the row of one that has ended, or the next prompt its place."""
        place = row // self._samples
        prompt, self._sample[row] = self._at[place], None
        self._matchers.pop(row, None)
        self._start(row)
        if not prompt.unfinished:
            self._at[place] = None

    # ---- size ------------------------------------------------------------------------------------

    def _follow(self):
        """Have places for the prompts that wait, as far as there may be so many."""
        needed = min(self._taken + self._waiting, self._sizes[0][0])
        size = next(size for size in reversed(self._sizes) if size[0] >= needed)
        if size[0] > len(self._at):
            G = self._samples
            taken = [place for place, prompt in enumerate(self._at) if prompt is not None]
            self._move(size, {place: list(range(place * G, (place + 1) * G)) for place in taken})
        elif size[0] < len(self._at) and not self._taken:
            self._clear(size)

    def shrink(self):
        """Go on with fewer rows, where those under way have room in them; nothing may wait."""
        waits = self.ready or any(prompt is not None and prompt.queue for prompt in self._at)
        if waits or self._starts.which.any():
            return
        rows_of: dict[int, list[int]] = {}  # under way, by place
        steps = 0  # that they may take
        for row, sample in enumerate(self._sample):
            if sample is not None:
                place = row // self._samples
                rows_of.setdefault(place, []).append(row)
                steps = max(steps, self._at[place].rows.limit[sample] - self._counts[row])
        if steps < MOVE_STEPS:
            return

        def needed(samples: int) -> int:
            return sum(-(-len(rows) // samples) for rows in rows_of.values())

        fits = [size for size in self._sizes if needed(size[1]) <= size[0]]
        if fits and math.prod(fits[-1]) < len(self._sample):
            self._move(fits[-1], rows_of)

    def _move(self, size: tuple[int, int], rows_of: dict[int, list[int]]):
        """Have another size. rows_of: the rows to keep, by place; those of one may get several."""
        places, samples = size
        parts = [
            (place, rows[i : i + samples])
            for place, rows in rows_of.items()
            for i in range(0, len(rows), samples)
        ]
        old_places = np.full(places, -1, np.int32)
        old_rows = np.full((places, samples), -1, np.int32)
        at: list[_Prompt | None] = [None] * places
        for number, (place, rows) in enumerate(parts):
            old_places[number], old_rows[number, : len(rows)] = place, rows
            at[number] = self._at[place]
            if len(rows) < len(rows_of[place]):
                unfinished = {self._sample[row] for row in rows}
                at[number] = dataclasses.replace(at[number], unfinished=unfinished)
        old_rows = old_rows.ravel()
        if self._state is not None:
            with self._engine.on_mesh():
                self._state = self._engine._move(self._state, old_places, old_rows)
        self._sample = [None if old < 0 else self._sample[old] for old in old_rows]
        new_of = {int(old): row for row, old in enumerate(old_rows) if old >= 0}
        self._matchers = {new_of[row]: matcher for row, matcher in self._matchers.items()}
        self._at, self._samples, starts = at, samples, self._starts
        self._starts = self._no_rows()

        def put(new, old):
            new[list(new_of.values())] = old[list(new_of)]

        jax.tree.map(put, self._starts, starts)

    # ---- tokens out ------------------------------------------------------------------------------

    def advance(self) -> bool:
        """Begin a chunk of steps; return whether any row is under way."""
        allowed, chunk = None, chunk_of(self._engine.mesh, len(self._sample))
        if self.constrained and self._matchers:
            allowed, chunk = self._allowed(), decode.Chunk(np.int32(1))
        if not any(sample is not None for sample in self._sample):
            return False
        engine = self._engine
        ranks = any(prompt is not None and prompt.request.top_logprobs for prompt in self._at)
        with engine.on_mesh():
            self._advance(self._starts, allowed, chunk, self._mode._replace(ranks=ranks))
        self._starts = self._no_rows()
        return True

    def _advance(self, starts: decode.Starts, allowed, chunk: decode.Chunk, mode: sampling.Mode):
        arrays = self._run.params, self._state, starts, chunk, allowed
        self._state = self._engine._advance(*arrays, mode=mode)

    def _allowed(self) -> jax.Array | np.ndarray:
        """The tokens that may come next in each row; a row whose constraint fails is ended."""
        allowed = all_allowed(len(self._sample), self._engine.config.text.vocab_size)
        for row in list(self._matchers):
            while (matcher := self._matchers.get(row)) is not None:
                try:
                    matcher.allow(allowed[row])
                    break
                except UserError as error:
                    self._stop(row, str(error))  # the next sample may begin in its row
        return self._engine._place(allowed)

    def _match(self, row: int, token: int) -> bool:
        """Go on by the new token of a constrained row; return whether it may go on."""
        try:
            self._matchers[row].take(int(token))
        except UserError as error:
            self._stop(row, str(error))
            return False
        return True

    def collect(self):
        """Wait for the chunk; have what it gave yielded, and free the places of ended rows."""
        state, run = self._state, self._run
        done, counts = jax.device_get((state.done, state.count))
        self._counts = counts
        rows = [row for row, sample in enumerate(self._sample) if sample is not None]
        requests = [self._at[row // self._samples].request for row in rows]
        shown = [
            (row, one)
            for row, one in zip(rows, requests, strict=True)
            if done[row] or one.streams or self.constrained
        ]
        if not shown:
            return
        tokens, logprobs = jax.device_get((state.tokens, state.logprobs))
        ranked = None
        if any(request.top_logprobs for _, request in shown):
            ranked = jax.device_get((state.top, state.top_logprobs))
        eos = self._engine.config.tokens.eos_token_id
        for row, request in shown:
            sample = self._sample[row]

            def taken(first: int, row=row, request=request) -> tuple:
                part = slice(first, counts[row])  # copied: the state's buffers are used again
                top = Top(*(x[row, part].copy() for x in ranked)) if request.top_logprobs else None
                return tokens[row, part].copy(), logprobs[row, part].copy(), top

            if done[row]:
                ids, logs, top = taken(0)
                stopped = bool(ids[-1] == eos)
                one = Finished(request.tag, sample, ids, logs, stopped, None, top)
                run.finish(self._at[row // self._samples], one)
                self._leave(row)
                continue
            if self.constrained and not self._match(row, tokens[row, counts[row] - 1]):
                continue
            if request.streams:
                before = run.streamed.get((id(request), sample), 0)
                if counts[row] > before:  # not yet again, where it was begun anew
                    run.streamed[id(request), sample] = int(counts[row])
                    run.out.append(Streamed(request.tag, sample, *taken(before)))


class _Run:
    """The state of `Engine.run`; iterate once."""

    def __init__(
        self,
        engine: Engine,
        params,
        source: Source,
        places: int | None,
        new_tokens: int,
        samples: int,
        most: int | None = None,
        tokens: int = 0,
        check: Callable[[], None] = lambda: None,
        rows: RowPolicy = "fixed",
    ):
        self.engine, self.params, self._source = engine, params, source
        self._most, self._check = most, check
        self.rows, self._over = rows, False
        self.places, self.samples = places or 0, samples
        self.new_tokens, self.tokens = new_tokens_bucket(new_tokens), tokens
        self.stacked = _is_stacked(params)
        self.taken: Group | None = None  # that is being prefilled
        self.out: deque[Finished | Streamed] = deque()  # to be yielded
        # (id of an unfinished request, sample) -> tokens that were yielded
        self.streamed: dict[tuple[int, int], int] = {}
        self._source_waits = False  # until nothing decodes, as its groups exceeded the memory
        self._source_failed = False  # though nothing else was in memory
        self._finished: dict[int, set[int]] = {}  # id of an unfinished request -> finished samples
        self._again: deque[Group] = deque()  # to be done again
        self._aside: deque[Group] = deque()  # to be done again, one at a time and alone
        self._alone: Group | None = None  # of these, the one that is under way
        self._lanes = [_Lane(self, constrained=False)]  # and one of constrained rows, if there are

    def _reset(self):
        for lane in self._lanes:
            lane.reset()

    def complete(self, group: Group, prefilled: Prefilled) -> Iterator[Finished]:
        """Complete one group that is prefilled already."""
        if any(group.requests):
            self._accept(group, prefilled)
            yield from self

    def __iter__(self) -> Iterator[Finished | Streamed]:
        while True:
            self._check()
            try:
                for lane in self._lanes:
                    lane.drop()
                under_way = [lane for lane in self._lanes if lane.advance()]
                yield from self._yielded()
                more = self._fill(wait=not under_way)
                ready = any(lane.ready for lane in self._lanes)
                if not (under_way or more or ready or self.out):
                    return
                for lane in under_way:
                    lane.collect()
                    if self.rows == "following" or self._over:
                        lane.shrink()
                for lane in self._lanes:
                    lane.insert()
            except jax.errors.JaxRuntimeError as error:
                if not is_exhausted(error) or self._source_failed:
                    raise
                self._with_less_memory()

    def _yielded(self) -> Iterator[Finished | Streamed]:
        while self.out:
            yield self.out.popleft()

    # ---- prompts in ------------------------------------------------------------------------------

    def _fill(self, wait: bool) -> bool:
        """Prefill groups as far as places are free or will be; return whether there was one.

        While rows decode, one group a chunk, so that neither starves.
        """
        took = False
        while True:
            if all(lane.is_full for lane in self._lanes) or (took and not wait):
                return took
            idle = wait and not self.out and not any(lane.ready for lane in self._lanes)
            group = self._take(idle, self._lanes[0].free)
            if group is None:
                return took
            took = True
            if any(group.requests):
                self._prefill(group)

    def _take(self, wait: bool, free: int) -> Group | None:
        """Return the next group to prefill, without the requests that are cancelled."""
        if self._again:
            group = self._again.popleft()
        elif self._alone is not None or self._aside:
            if any(lane.prompts() for lane in self._lanes):
                return None
            self._alone = self._aside.popleft() if self._aside else None
            self._reset()  # what the states take, too
            if self._alone is None:
                return self._take(wait, free)
            group = self._alone
        else:
            group = self._ask(wait, free)
        if group is None or not any(one and one.cancelled for one in group.requests):
            return group
        requests = [one and self._wanted(one) for one in group.requests]
        kept = group._replace(requests=requests)
        if group is self._alone:
            self._alone = kept
        return kept

    def _ask(self, wait: bool, free: int) -> Group | None:
        """Take a group of the source; where that exceeds the memory, again when less is in use."""
        decoding = any(lane.prompts() for lane in self._lanes)
        if self._source_waits and decoding:
            return None
        self._source_waits = False
        try:
            group = self._source.take(wait, free)
        except jax.errors.JaxRuntimeError as error:
            if not is_exhausted(error):
                raise
            if decoding:
                self._source_waits = True
                return None
            if not any(lane.has_state for lane in self._lanes):
                self._source_failed = True
                raise
            self._reset()  # what the states take
            return self._ask(wait, free)
        self._over = self.rows == "shrinking" and group is None
        return group

    def _todo(self, request: Request) -> list[int]:
        finished = self._finished.get(id(request), ())
        return [s for s in range(len(request.key_ids)) if s not in finished]

    def _wanted(self, request: Request) -> Request | None:
        """Finish the samples of a request that are cancelled; return it if any is left."""
        if request.cancelled is None:
            return request
        todo = self._todo(request)
        cancelled = [sample for sample in todo if request.cancelled(sample)]
        for sample in cancelled:
            self._finish(request, _failed(request, sample, CANCELLED))
        return request if len(cancelled) < len(todo) else None

    def _prefill(self, group: Group):
        """Prefill a group and queue it for places."""
        engine, self.taken = self.engine, group
        if self.places == 0:
            self._plan(group.batch.tokens.shape[1])
        media = group.media
        keeping = [row for row, one in enumerate(group.requests) if one and one.keep]
        if keeping and media is None:
            media = engine.encode(self.params, group.batch)
        prefilled = engine.prefill(self.params, group.batch, media, group.shared)
        if keeping:  # the device prefills meanwhile
            media = {name: engine.to_host(rows) for name, rows in media.items()}
        for row in keeping:
            # Copies: a view keeps the rows of the whole group.
            own = {name: rows[row].copy() for name, rows in media.items()}
            group.requests[row].keep(own)
        if group is self._alone and self.places > self._least:
            # Its memory suffices without the caches, which are too many beside such a prompt.
            self._halve()
            self._reset()
        self._accept(group, prefilled)
        self.taken = None

    def _plan(self, tokens: int):
        """Choose how many prompts decode at a time by the memory that is free."""
        self.places = plan_places(
            self.engine, max(tokens, self.tokens), self.new_tokens, self.samples, self._most
        )
        self._reset()

    def _accept(self, group: Group, prefilled: Prefilled):
        """Queue a prefilled group for places."""
        mode = _mode_of(group.requests)
        if any(one is not None and one.constraint is None for one in group.requests):
            self._lanes[0].prepare(group.batch.tokens.shape[1], mode)
        with self.engine.on_mesh():
            first, rows = self.engine._first_tokens(group.batch, prefilled, group.requests, mode)
        if mode.masks and len(self._lanes) == 1:
            self._lanes.append(_Lane(self, constrained=True))
        for lane in self._lanes:
            prompts = deque()
            for row, request in enumerate(group.requests):
                if request is None or (request.constraint is not None) != lane.constrained:
                    continue
                own, todo = jax.tree.map(lambda leaf, row=row: leaf[row], rows), self._todo(request)
                size = self.samples if request.spreads else len(todo)
                for i in range(0, len(todo), size):
                    part = todo[i : i + size]
                    prompts.append(_Prompt(group, row, request, deque(part), set(part), rows=own))
            if prompts:
                lane.ready.append(_Ready(group, prefilled, prompts, first, mode))

    # ---- completions out -------------------------------------------------------------------------

    def finish(self, prompt: _Prompt, one: Finished):
        """Have a completion of a prompt yielded."""
        prompt.unfinished.discard(one.sample)
        self._finish(prompt.request, one)

    def fail(self, prompt: _Prompt, sample: int, error: str):
        """End a sample of a prompt without a completion."""
        self.finish(prompt, _failed(prompt.request, sample, error))

    def _finish(self, request: Request, one: Finished):
        self.out.append(one)
        self.streamed.pop((id(request), one.sample), None)
        finished = self._finished.setdefault(id(request), set())
        finished.add(one.sample)
        if len(finished) == len(request.key_ids):
            del self._finished[id(request)]

    # ---- memory ----------------------------------------------------------------------------------

    @property
    def _least(self) -> int:
        return round_up_rows(self.engine.mesh, 1)

    def _halve(self):
        self.places = round_up_rows(self.engine.mesh, self.places // 2)
        logger.warning(
            "the device's memory is exhausted: %d prompts decode at a time from now on",
            self.places,
        )

    def _with_less_memory(self):
        """Have done again what the exhausted memory left unfinished, so that it needs less."""
        taken, self.taken, least = self.taken, None, self._least
        if taken is not None and len(taken.requests) <= least:
            # A prompt that cannot be prefilled: what decodes is unharmed, and goes on first.
            for lane in self._lanes:
                lane.ready = deque(ready for ready in lane.ready if ready.group is not taken)
            if taken is self._alone:
                self._refuse(taken)
                self._alone = None
            else:
                self._aside.append(taken)
            return
        unfinished = [prompt for lane in self._lanes for prompt in lane.prompts()]
        groups = [taken] if taken is not None else []
        for prompt in unfinished:
            if not any(prompt.group is group for group in groups):
                groups.append(prompt.group)
        left = {id(prompt.request) for prompt in unfinished}
        left |= {id(request) for request in (taken.requests if taken else ())}
        alone = self._alone is not None
        groups = [
            group._replace(
                requests=[one if one and id(one) in left else None for one in group.requests]
            )
            for group in groups
        ]
        if self.places > least:
            self._halve()
        elif any(len(group.requests) > least for group in groups):
            groups = [half for group in groups for half in _halves(group, least)]
        elif len(groups) > 1:
            alone = True
        else:
            for group in groups:
                self._refuse(group)
            groups = []
        self._alone = None
        (self._aside if alone else self._again).extendleft(reversed(groups))
        self._reset()

    def _refuse(self, group: Group):
        """Finish the requests of a group that the memory is too small for."""
        reason = f"a prompt of {group.batch.tokens.shape[1]} tokens {TOO_LARGE}"
        for request in filter(None, group.requests):
            for sample in self._todo(request):
                self.streamed.pop((id(request), sample), None)
            self._finished.pop(id(request), None)
            self.out.append(_failed(request, 0, reason))


def _failed(request: Request, sample: int, error: str) -> Finished:
    return Finished(request.tag, sample, *_NO_TOKENS, error)


_NO_TOKENS = np.zeros(0, np.int32), np.zeros(0, np.float32), False


def _halves(group: Group, least: int) -> list[Group]:
    """Both halves of a group with requests, where they can be split."""
    shared = group.shared
    Q = 1 if shared is None else shared.places.shape[1]
    rows_CQ = np.arange(len(group.requests)).reshape(-1, Q)
    C = len(rows_CQ)
    middle = -(-C // 2 // least) * least
    parts = [np.s_[:]]
    if 0 < middle < C:
        parts = [np.s_[:middle], np.s_[middle:]]
    elif Q > 1:  # the prompts of a row
        parts = [np.s_[:, : Q // 2], np.s_[:, Q // 2 :]]
    halves = []
    for part in parts:
        rows = rows_CQ[part].ravel()
        requests = [group.requests[row] for row in rows]
        if not any(requests):
            continue
        batch = jax.tree.map(lambda leaf, rows=rows: leaf[rows], group.batch)
        half = None
        if shared is not None:
            kept = part if isinstance(part, slice) else np.s_[:]
            own = jax.tree.map(lambda leaf, kept=kept: leaf[kept], shared.batch)
            half = Shared(own, shared.places[part])
        halves.append(Group(batch, requests, shared=half))
    return halves


def _empty(**sizes) -> DecodeState:
    return decode.constrained(decode.empty_state(**sizes))


def _insert(state, cache, places_B, tokens_BT, segments_BT, position_B) -> DecodeState:
    arrays = cache, places_B, tokens_BT, segments_BT, position_B
    return decode.constrained(decode.insert(state, *arrays))


def _grow(state, *, tokens, vocabulary, top) -> DecodeState:
    return decode.constrained(decode.grow(state, tokens, vocabulary, top))


def _move(state, places, rows) -> DecodeState:
    return decode.constrained(decode.moved(state, places, rows))


def _advance(params, state, starts, chunk, allowed=None, *, mode, config, compute) -> DecodeState:
    state = decode.start(state, *starts, eos=config.tokens.eos_token_id)
    how = state, mode, chunk, allowed
    return decode.constrained(decode.steps(params, config, compute, *how))


@jax.jit
def _row_keys(seeds_B, ids_BS):
    return jax.vmap(decode.row_keys)(seeds_B, ids_BS)


def _prefill(params, x_BTD, positions_B3T, segments_BT, *, config, compute) -> Prefilled:
    return decode.prefill(params, config, compute, x_BTD, positions_B3T, segments_BT)


def _prefill_shared(params, x, positions, segments, places, *, config, compute) -> Prefilled:
    return decode.prefill_shared(params, config, compute, x, positions, segments, places)


def _is_stacked(params) -> bool:
    return not isinstance(params["model"]["layers"], tuple)


def _prompt_tokens(count: int) -> int:
    """The size of the places' prompt caches for prompts of a bucket of `count` tokens."""
    return next((size for size in PROMPT_TOKENS if size >= count), count)


def new_tokens_bucket(count: int) -> int:
    """Return the bucket size of the cache for `count` new tokens."""
    return next(size for size in NEW_TOKENS if size >= count)


def _static(function):
    """Make config and compute keyword arguments of `function(params, config, compute, ...)`."""

    @functools.wraps(function)
    def call(params, *arrays, config, compute):
        return function(params, config, compute, *arrays)

    return call


def _embed(params, tokens_BT, splice_BT, media, *, compute) -> jax.Array:
    """Embed and splice in a separate program: prefill is then compiled for T alone."""
    return thinker.splice(thinker.embed(params, compute, tokens_BT), splice_BT, media)
