"""Continuous batching: prompts wait, are prefilled, take free places, and leave as their rows end.

    groups of prompts -> encoders -> embed -> prefill -> first tokens
        -> insert into free places -> advance: start rows, k steps -> finished rows out -> ...

Two users of the same programs: `Engine.run` for a stream of prompts, whose places are filled again
while others decode, and `Engine.generate` for one batch. The host looks at the rows once a chunk of
steps; the next group is prefilled while it waits for the chunk. The programs are pure functions of
generate/decode.py, each compiled once per bucket of its input shapes; parameters and state are
their arguments.
"""

import dataclasses
import functools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import numpy as np

from ugc_jax.data.batching import Batch, Shared
from ugc_jax.errors import UserError
from ugc_jax.generate import decode, sampling
from ugc_jax.generate.decode import DecodeState, Prefilled
from ugc_jax.generate.settings import NEW_TOKENS, SamplingConfig
from ugc_jax.models.compute import Compute
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.sharding import abstract, batch_shardings, replicated, round_up_rows, shardings

logger = logging.getLogger(__name__)

# For this encoder's shapes, XLA's own matrix product is a quarter faster than YNNPACK's on a CPU.
CPU_VISION = {"xla_cpu_experimental_ynn_fusion_type": ""}
# Sizes of the places' prompt caches. A step reads all of it, and a larger one is another program.
PROMPT_TOKENS = (
    128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768,
)  # fmt: skip
# Most prompts that decode at a time where nothing else limits them.
MOST_PLACES = {"cpu": 32, "accelerator": 64}
STEPS = 8  # of a chunk; a row that ends waits for half of them on average
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


class Request(NamedTuple):
    """What to do with one prompt: a completion for each of `key_ids`.

    tag: given back with each completion. sampling: resolved. key_ids: u32, which together with
    sampling.seed decide a completion's random numbers.

    streams: yield its tokens after each chunk of steps, too. top_logprobs: whether to give the
    `sampling.TOP` most likely tokens beside each. spreads: samples take a place each, as far as
    there are any, rather than following each other in one. cancelled: called with the number of a
    sample before each chunk; where it is true, the sample ends with the error CANCELLED.
    """

    tag: object
    sampling: SamplingConfig
    key_ids: Sequence[int]
    streams: bool = False
    top_logprobs: bool = False
    spreads: bool = False
    cancelled: Callable[[int], bool] | None = None


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

        free: places that are free, which a group of fewer prompts than usual may be taken for.
        """


def on_cpu(mesh: jax.sharding.Mesh | None) -> bool:
    """Return whether the programs run on CPUs."""
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    return device.platform == "cpu"


def prefill_tokens(mesh: jax.sharding.Mesh | None) -> int:
    """Return how many tokens of prompts are prefilled together, to use the devices fully."""
    # A CPU is busy with one prompt, and would compute the rows that fill a group up, too.
    return 512 if on_cpu(mesh) else 8192 * round_up_rows(mesh, 1)


def place_bytes(config: OmniConfig, tokens: int, new_tokens: int, samples: int, dtype) -> int:
    """Return the bytes of a place: its caches, and the logits of its rows while they sample."""
    text = config.text
    heads = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    caches = (tokens + samples * new_tokens) * heads * np.dtype(dtype).itemsize
    return caches + samples * text.vocab_size * 4 * 3


def plan_places(
    engine: "Engine", tokens: int, new_tokens: int, samples: int, most: int | None
) -> int:
    """Return how many prompts decode at a time, and log it.

    tokens, new_tokens: of each. Half of the free memory is for caches, the rest for prefill. most:
    of use; None: no limit but that of the platform.
    """
    mesh, tokens = engine.mesh, _prompt_tokens(tokens)
    limit = MOST_PLACES["cpu" if on_cpu(mesh) else "accelerator"]
    each = place_bytes(engine.config, tokens, new_tokens, samples, engine.compute.dtype)
    share = round_up_rows(mesh, 1)
    places = min(limit, most or limit, max(1, int(_for_caches(mesh) // each) * share))
    places = round_up_rows(mesh, places)
    logger.info(
        "decoding at most %d prompts at a time, of %d + %d tokens: %.2f GiB for their caches",
        places, tokens, new_tokens, places * each / 2**30,
    )  # fmt: skip
    return places


def longest_prompt(engine: "Engine", places: int, new_tokens: int, samples: int) -> int:
    """Return the most tokens of a prompt for which so many places leave memory, 0 for none."""
    mesh = engine.mesh
    shape = dict(new_tokens=new_tokens, samples=samples, dtype=engine.compute.dtype)
    most = _for_caches(mesh) / (places // round_up_rows(mesh, 1))
    sizes = (size for size in PROMPT_TOKENS if place_bytes(engine.config, size, **shape) <= most)
    return max(sizes, default=0)


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
    ) -> Iterator[Finished | Streamed]:
        """Complete the prompts of a source; yields each completion when it is finished.

        Streamed only for requests that ask for it. What a chunk of steps gave is yielded while the
        next one runs, so that the caller's work costs the device no time.

        places: prompts that decode at a time; None: as many as the free memory holds, at most
        `most`. new_tokens: most of a request. samples: completions of one prompt that decode at a
        time; further ones of a request follow as these end. tokens: of the longest prompt, if it is
        known; the programs are then compiled for its size alone. check: called before each chunk of
        steps; may raise.

        Greedy tokens are those of the prompt alone, and sampled ones depend on seed and key id
        alone, up to rounding. When the device's memory is exhausted, the places are halved and what
        is unfinished is done again. A prompt that cannot be prefilled beside the others is done
        alone, after them; one that exceeds the memory even so has an `error`.
        """
        run = _Run(self, params, source, places, new_tokens, samples, most, tokens, check)
        yield from run

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
    ) -> tuple[dict[str, jax.stages.Traced], DecodeState]:
        """Trace the programs of `run`, in their order, to compile them or count operations.

        params, batch: of jax.ShapeDtypeStructs on the mesh; a group of prompts. places: None, as
        many as prompts. Returns also the state's shapes. "decode" is a chunk of steps, whose loop
        stands once in the program.
        """

        def split(shapes):
            return abstract(shapes, batch_shardings(self.mesh, shapes))

        places, options = places or len(batch.tokens), options.resolve()
        mode = sampling.mode_of([options])
        with self.on_mesh():
            encoders = {
                name: encode.trace(params, *batch.media[name])
                for name, encode in self._encoders.items()
            }
            media = split({name: encode.out_info for name, encode in encoders.items()})
            embed = self._embed.trace(params, batch.tokens, batch.splice, media)
            x = split(embed.out_info)
            prefill = self._prefill.trace(params, x, batch.positions, batch.segment_ids)
            empty = functools.partial(
                decode.empty_state, self.config, self.compute, places, samples,
                _prompt_tokens(batch.tokens.shape[1]), new_tokens_bucket(options.max_new_tokens),
                mode.penalizes, _is_stacked(params), mode.ranks,
            )  # fmt: skip
            state = jax.eval_shape(empty)
            state = abstract(state, shardings(self.mesh, state, decode.state_axes(state)))
            starts = decode.no_rows(places * samples)
            starts = abstract(starts, jax.tree.map(lambda _: replicated(self.mesh), starts))
            steps = self._advance.trace(params, state, starts, np.int32(STEPS), mode=mode)
        return encoders | dict(embed=embed, prefill=prefill, decode=steps), state

    # ---- programs --------------------------------------------------------------------------------

    def programs(self) -> dict[str, int]:
        """Return how many programs each stage has compiled so far: one for each bucket."""
        stages = self._encoders | {
            "embed": self._embed,
            "prefill": self._prefill,
            "first": self._first,
            "insert": self._insert,
            "decode": self._advance,
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

    def _first_tokens(self, batch: Batch, prefilled: Prefilled, requests) -> tuple:
        """Begin to choose the first tokens of a group.

        Returns (sampling.Sampled with leading axes [B, S], on the device; Rows with the same axes,
        numpy; the Mode). S: most samples of a request.
        """
        B, S = len(requests), max(len(one.key_ids) for one in requests if one is not None)
        configs = [one.sampling if one else SamplingConfig().resolve() for one in requests]
        seeds = [config.seed for config in configs]
        ids = np.zeros((B, S), np.uint32)
        for b, one in enumerate(requests):
            if one is not None:
                ids[b, : len(one.key_ids)] = one.key_ids
        knobs = jax.tree.map(
            lambda leaf: np.repeat(leaf[:, None], S, axis=1), sampling.knobs_of(configs)
        )
        keys = np.asarray(_row_keys(np.array(seeds, np.uint32), ids))
        limits = np.array([config.max_new_tokens for config in configs], np.int32)
        rows = decode.Rows(keys, np.repeat(limits[:, None], S, axis=1), knobs)
        mode = sampling.mode_of(configs)._replace(
            ranks=any(one.top_logprobs for one in requests if one is not None)
        )
        length = None if mode.penalizes else 0  # the program is otherwise that of any length
        prompt = batch.tokens[:, :length], batch.segment_ids[:, :length]
        tokens, segments = self._place(prompt)
        return self._first(prefilled.logits, tokens, segments, rows, mode=mode), rows, mode


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
    ):
        self._engine, self._params, self._source = engine, params, source
        self._most, self._check = most, check
        self._places, self._samples = places or 0, samples
        self._new_tokens, self._tokens = new_tokens_bucket(new_tokens), tokens
        self._stacked = _is_stacked(params)
        self._state: DecodeState | None = None
        self._mode = sampling.Mode(greedy=True, truncates=False, penalizes=False)
        self._again: deque[Group] = deque()  # to be done again
        self._aside: deque[Group] = deque()  # to be done again, one at a time and alone
        self._alone: Group | None = None  # of these, the one that is under way
        self._taken: Group | None = None  # that is being prefilled
        self._finished: dict[int, set[int]] = {}  # id of an unfinished request -> finished samples
        # (id of an unfinished request, sample) -> tokens that were yielded
        self._streamed: dict[tuple[int, int], int] = {}
        self._out: deque[Finished | Streamed] = deque()  # to be yielded
        self._reset()

    def _reset(self):
        self._state = None
        self._ready: deque[_Ready] = deque()
        self._at: list[_Prompt | None] = [None] * self._places
        self._sample: list[int | None] = [None] * (self._places * self._samples)
        self._starts = self._no_rows()

    def _no_rows(self) -> decode.Starts:
        top = sampling.TOP if self._mode.ranks else 0
        return decode.no_rows(self._places * self._samples, top)

    def complete(self, group: Group, prefilled: Prefilled) -> Iterator[Finished]:
        """Complete one group that is prefilled already."""
        if any(group.requests):
            self._accept(group, prefilled)
            yield from self

    def __iter__(self) -> Iterator[Finished | Streamed]:
        while True:
            self._check()
            try:
                self._drop()
                chunk = self._advance()
                yield from self._yielded()
                more = self._fill(wait=not chunk)
                if not (chunk or more or self._ready or self._out):
                    return
                if chunk:
                    self._collect()
                self._insert()
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                self._with_less_memory()

    def _yielded(self) -> Iterator[Finished | Streamed]:
        while self._out:
            yield self._out.popleft()

    # ---- prompts in ------------------------------------------------------------------------------

    def _fill(self, wait: bool) -> bool:
        """Prefill groups as far as places are free or will be; return whether there was one.

        While rows decode, one group a chunk, so that neither starves.
        """
        took = False
        while True:
            waiting = sum(len(ready.waiting) for ready in self._ready)
            free = self._at.count(None) - waiting
            if (free <= 0 and self._ready) or (took and not wait):
                return took
            group = self._take(wait and not self._ready and not self._out, free)
            if group is None:
                return took
            took = True
            if any(group.requests):
                self._prefill(group)

    def _prefill(self, group: Group):
        """Prefill a group and queue it for places."""
        engine, self._taken = self._engine, group
        if self._places == 0:
            self._plan(group.batch.tokens.shape[1])
        prefilled = engine.prefill(self._params, group.batch, group.media, group.shared)
        if group is self._alone and self._places > self._least:
            # Its memory suffices without the caches, which are too many beside such a prompt.
            self._halve()
            self._reset()
        self._accept(group, prefilled)
        self._taken = None

    def _plan(self, tokens: int):
        """Choose how many prompts decode at a time by the memory that is free."""
        self._places = plan_places(
            self._engine, max(tokens, self._tokens), self._new_tokens, self._samples, self._most
        )
        self._reset()

    def _take(self, wait: bool, free: int) -> Group | None:
        """Return the next group to prefill, without the requests that are cancelled."""
        if self._again:
            group = self._again.popleft()
        elif self._alone is not None or self._aside:
            if self._under_way():
                return None
            self._alone = self._aside.popleft() if self._aside else None
            self._reset()  # what the state takes, too
            if self._alone is None:
                return self._take(wait, free)
            group = self._alone
        else:
            group = self._source.take(wait, free)
        if group is None or not any(one and one.cancelled for one in group.requests):
            return group
        requests = [one and self._wanted(one) for one in group.requests]
        kept = group._replace(requests=requests)
        if group is self._alone:
            self._alone = kept
        return kept

    def _under_way(self) -> bool:
        return bool(self._ready) or any(prompt is not None for prompt in self._at)

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
            self._finish(request, Finished(request.tag, sample, *_NO_TOKENS, CANCELLED))
        return request if len(cancelled) < len(todo) else None

    def _accept(self, group: Group, prefilled: Prefilled):
        """Queue a prefilled group for places."""
        with self._engine.on_mesh():
            first, rows, mode = self._engine._first_tokens(group.batch, prefilled, group.requests)
        prompts = deque()
        for row, request in enumerate(group.requests):
            if request is None:
                continue
            own, todo = jax.tree.map(lambda leaf, row=row: leaf[row], rows), self._todo(request)
            size = self._samples if request.spreads else len(todo)
            for i in range(0, len(todo), size):
                part = todo[i : i + size]
                prompts.append(_Prompt(group, row, request, deque(part), set(part), rows=own))
        self._ready.append(_Ready(group, prefilled, prompts, first, mode))

    def _insert(self):
        """Put prompts that wait into free places, and let their rows start with the next chunk."""
        engine = self._engine
        while self._ready:
            ready = self._ready[0]
            free = deque(p for p, prompt in enumerate(self._at) if prompt is None)
            if not ready.waiting:
                self._ready.popleft()
                continue
            if not free:
                return
            if isinstance(ready.first.token, jax.Array):
                self._taken = ready.group  # which is to blame if this fails
                ready.first, self._taken = jax.device_get(ready.first), None
            batch = ready.group.batch
            self._make_room(batch.tokens.shape[1], ready.mode)
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

    def _make_room(self, tokens: int, mode: sampling.Mode):
        """Have a state for prompts of so many tokens, and for their sampling."""
        engine, tokens = self._engine, _prompt_tokens(max(tokens, self._tokens))
        self._mode = self._mode.joined(mode)
        vocabulary = engine.config.text.vocab_size if self._mode.penalizes else 0
        top = sampling.TOP if self._mode.ranks else 0
        if top > self._starts.first.top.shape[1]:
            ranked = self._no_rows().first
            first = self._starts.first._replace(top=ranked.top, top_logprobs=ranked.top_logprobs)
            self._starts = self._starts._replace(first=first)
        with engine.on_mesh():
            if self._state is None:
                self._state = engine._empty(
                    places=self._places, samples=self._samples, tokens=tokens,
                    new_tokens=self._new_tokens, penalizes=self._mode.penalizes,
                    stacked=self._stacked, ranks=self._mode.ranks,
                )  # fmt: skip
                leaf = jax.tree.leaves(self._params)[0]
                if engine.mesh is None and isinstance(leaf, jax.Array):
                    # Committed to its device, as what the other programs make of it is: jit would
                    # compile `insert` again for the bucket that comes first.
                    self._state = jax.device_put(self._state, leaf.sharding)
                return
            state = self._state
            now = jax.tree.leaves(state.prompt)[0].shape[-1], state.seen.shape[1]
            tokens = max(tokens, now[0])
            if (*now, state.top.shape[2]) != (tokens, vocabulary, top):
                self._state = engine._grow(state, tokens=tokens, vocabulary=vocabulary, top=top)

    def _start(self, row: int) -> bool:
        """Let a row begin with the next sample of its place, if there is one."""
        prompt = self._at[row // self._samples]
        if not prompt.queue:
            return False
        sample = self._sample[row] = prompt.queue.popleft()
        which, first, rows = self._starts
        which[row] = True

        def put(leaf, value):
            if value[sample].size:  # the most likely tokens, where the prompt's group has them
                leaf[row] = value[sample]

        jax.tree.map(put, (first, rows), (prompt.first, prompt.rows))
        return True

    def _drop(self):
        """End the samples that are cancelled; their places are free again."""
        for place, prompt in enumerate(self._at):
            if prompt is None or prompt.request.cancelled is None:
                continue
            self._drop_waiting(prompt)
            for row in range(place * self._samples, (place + 1) * self._samples):
                if self._sample[row] is not None and prompt.request.cancelled(self._sample[row]):
                    self._end(prompt, self._sample[row])
                    self._sample[row] = None
                    self._starts.which[row], self._starts.rows.limit[row] = True, 0
                    self._start(row)
            if not prompt.unfinished:
                self._at[place] = None
        for ready in self._ready:
            for prompt in ready.waiting:
                self._drop_waiting(prompt)
            ready.waiting = deque(prompt for prompt in ready.waiting if prompt.unfinished)

    def _drop_waiting(self, prompt: _Prompt):
        """End the samples of a prompt that are cancelled before they began."""
        if prompt.request.cancelled is not None:
            for sample in [one for one in prompt.queue if prompt.request.cancelled(one)]:
                prompt.queue.remove(sample)
                self._end(prompt, sample)

    # ---- tokens out ------------------------------------------------------------------------------

    def _advance(self) -> bool:
        """Begin a chunk of steps; return whether any row is under way."""
        if not any(sample is not None for sample in self._sample):
            return False
        engine = self._engine
        with engine.on_mesh():
            self._state = engine._advance(
                self._params, self._state, self._starts, np.int32(STEPS), mode=self._mode
            )
        self._starts = self._no_rows()
        return True

    def _collect(self):
        """Wait for the chunk; have what it gave yielded, and free the places of ended rows."""
        state = self._state
        done, counts = jax.device_get((state.done, state.count))
        rows = [row for row, sample in enumerate(self._sample) if sample is not None]
        requests = [self._at[row // self._samples].request for row in rows]
        shown = [
            (row, one) for row, one in zip(rows, requests, strict=True) if done[row] or one.streams
        ]
        if not shown:
            return
        tokens, logprobs = jax.device_get((state.tokens, state.logprobs))
        ranked = None
        if any(request.top_logprobs for _, request in shown):
            ranked = jax.device_get((state.top, state.top_logprobs))
        eos = self._engine.config.tokens.eos_token_id
        for row, request in shown:
            place, sample = row // self._samples, self._sample[row]

            def taken(first: int, row=row, request=request) -> tuple:
                part = slice(first, counts[row])  # copied: the state's buffers are used again
                top = Top(*(x[row, part].copy() for x in ranked)) if request.top_logprobs else None
                return tokens[row, part].copy(), logprobs[row, part].copy(), top

            if not done[row]:
                key = id(request), sample
                before = self._streamed.get(key, 0)
                if counts[row] > before:  # not yet again, where it was begun anew
                    self._streamed[key] = int(counts[row])
                    self._out.append(Streamed(request.tag, sample, *taken(before)))
                continue
            ids, logs, top = taken(0)
            stopped = bool(ids[-1] == eos)
            prompt, self._sample[row] = self._at[place], None
            self._end(prompt, sample, Finished(request.tag, sample, ids, logs, stopped, None, top))
            self._start(row)
            if not prompt.unfinished:
                self._at[place] = None

    def _end(self, prompt: _Prompt, sample: int, one: Finished | None = None):
        """Have a completion of a prompt yielded; None: it is cancelled."""
        prompt.unfinished.discard(sample)
        request = prompt.request
        self._finish(request, one or Finished(request.tag, sample, *_NO_TOKENS, CANCELLED))

    def _finish(self, request: Request, one: Finished):
        self._out.append(one)
        self._streamed.pop((id(request), one.sample), None)
        finished = self._finished.setdefault(id(request), set())
        finished.add(one.sample)
        if len(finished) == len(request.key_ids):
            del self._finished[id(request)]

    # ---- memory ----------------------------------------------------------------------------------

    @property
    def _least(self) -> int:
        return round_up_rows(self._engine.mesh, 1)

    def _halve(self):
        self._places = round_up_rows(self._engine.mesh, self._places // 2)
        logger.warning(
            "the device's memory is exhausted: %d prompts decode at a time from now on",
            self._places,
        )

    def _with_less_memory(self):
        """Have done again what the exhausted memory left unfinished, so that it needs less."""
        taken, self._taken, least = self._taken, None, self._least
        if taken is not None and len(taken.requests) <= least:
            # A prompt that cannot be prefilled: what decodes is unharmed, and goes on first.
            self._ready = deque(ready for ready in self._ready if ready.group is not taken)
            if taken is self._alone:
                self._refuse(taken)
                self._alone = None
            else:
                self._aside.append(taken)
            return
        unfinished = [prompt for prompt in self._at if prompt is not None]
        unfinished += [prompt for ready in self._ready for prompt in ready.waiting]
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
        if self._places > least:
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
        reason = f"a prompt of {group.batch.tokens.shape[1]} tokens exceeds the device's memory"
        for request in filter(None, group.requests):
            for sample in self._todo(request):
                self._streamed.pop((id(request), sample), None)
            self._finished.pop(id(request), None)
            self._out.append(Finished(request.tag, 0, *_NO_TOKENS, reason))


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


def _advance(params, state, starts, count, *, mode, config, compute) -> DecodeState:
    state = decode.start(state, *starts, eos=config.tokens.eos_token_id)
    return decode.constrained(decode.steps(params, config, compute, state, mode, count))


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
