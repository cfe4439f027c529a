"""Completions by the current policy, on the devices that train it, with the trained weights.

state -> load: cast and reshard, one jit -> groups of prompts: encode once, prefill once, decode G
samples on one cache (`Engine.run`) -> Completions, and the encoders' rows for the policy step
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from ugc_jax import sharding
from ugc_jax.data.batching import Batch
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.errors import UserError
from ugc_jax.generate.decode import DecodeState
from ugc_jax.generate.engine import (
    Engine,
    Finished,
    Generated,
    Group,
    Request,
    prefill_tokens,
)
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.rl import supported
from ugc_jax.rl.rows import Completions
from ugc_jax.settings import check_minimum
from ugc_jax.sharding import MeshConfig
from ugc_jax.train.state import Setup, TrainState, abstract_state, model_axes, model_params

Media = dict[str, jax.Array]  # the encoders' rows by modality


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How completions are sampled."""

    samples: int = 8  # completions of a prompt (G)
    # a fraction 1 / parts of a batch is decoded at a time, for smaller caches; prompts follow as
    # others end
    parts: int = 1
    # completions of a prompt that are decoded at a time, for smaller caches; further ones follow as
    # these end (none: all of them)
    rows: int | None = None
    eval_prompts: int = 64  # first prompts of the evaluation data, which are evaluated on
    # of the completions; training divides by the same temperature, but a top_k or top_p draws the
    # tokens from another distribution than is trained
    sampling: SamplingConfig = SamplingConfig(
        temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0, max_new_tokens=512
    )
    # mesh to sample on, of the same devices; a size of none is that of the training's mesh
    mesh: MeshConfig = MeshConfig(data=None, fsdp=None, tensor=None)

    def __post_init__(self):
        check_minimum(self, samples=2, parts=1, rows=1, eval_prompts=1)
        for name in ("temperature", "top_k", "top_p", "max_new_tokens"):
            if getattr(self.sampling, name) is None:
                raise UserError(f"sampling.{name} is none; give a number")
        if self.sampling.temperature == 0:
            raise UserError("sampling.temperature is 0; use 1, or all samples would be the same")
        if self.sampling.repetition_penalty != 1:
            raise UserError(
                f"sampling.repetition_penalty is {self.sampling.repetition_penalty}; use 1, as "
                "training does not know it"
            )


class RolloutPart(NamedTuple):
    """The completions of one group of a batch of prompts: of its rows `rows`.

    completions: numpy, of the whole group, in every process. media: the encoders' rows, on the mesh
    of the rollout; None where the encoders are trained, as the policy step runs them again.
    """

    rows: slice
    completions: Completions
    media: Media | None


class Rollout:
    """Samples completions; holds the programs and, between `load` and `drop`, the weights."""

    def __init__(self, setup: Setup, config: RolloutConfig, shared: bool = True):
        """shared: False encodes and prefills a prompt again for each sample.

        Raises UserError for a mesh that needs another number of devices.
        """
        self.setup, self.config, self.shared = setup, config, shared
        self.mesh = sharding.reshape_mesh(setup.mesh, **dataclasses.asdict(config.mesh))
        self._engine, self._params = Engine(setup.model, setup.compute, self.mesh), None
        learns = setup.trainable
        self.keeps_media = not (learns.vision or learns.audio or learns.projector)
        # Without jit, which would copy the leaves that are not cast; these are the state's buffers.
        self._weights = functools.partial(model_params, setup=setup)
        if self.mesh != setup.mesh:
            shapes = jax.eval_shape(self._weights, abstract_state(setup))
            source, target = (
                sharding.shardings(mesh, shapes, model_axes(setup))
                for mesh in (setup.mesh, self.mesh)
            )
            move = functools.partial(_moved, setup=setup, source=source, target=target)
            self._weights = jax.jit(move, out_shardings=target)
        here, training = (sharding.row_sharding(mesh) for mesh in (self.mesh, setup.mesh))
        self._take = jax.jit(_take, static_argnames=("part", "parts"), out_shardings=here)
        self._copies = jax.jit(_copies, static_argnames="samples", out_shardings=here)
        self._join = jax.jit(_join, static_argnames="prompts", out_shardings=training)

    def load(self, state: TrainState):
        """Take the policy's weights, in the compute dtype and sharded for the rollout's mesh.

        An adapter is not merged: its product is added to a linear's result, as in training, so that
        a change below the rounding of the weights takes part.
        """
        platform = self.mesh.devices.flat[0].platform
        self._params = thinker.for_decoding(self._weights(state), platform)

    def drop(self):
        """Free the weights, before a step that donates their state or needs their memory."""
        self._params = None

    def sample(
        self, prompts: Batch, draw: int, check: Callable[[], None] = lambda: None
    ) -> Iterator[RolloutPart]:
        """Complete each prompt of a batch G times; yields its groups as they are finished.

        prompts: one a row, on the training mesh; the rows are a multiple of `parts` times the
        devices that share the rollout's batch. draw: number of the batch in the run; with row,
        sample and the seed it determines all randomness. check: called in between, in all processes
        alike; may raise.
        """
        total, G = len(prompts.tokens), self.config.samples
        keys = (draw * total + np.arange(total)[:, None]) * G + np.arange(G)
        yield from self._complete(prompts, self.config.sampling, keys, check)

    def greedy(
        self, prompts: Batch, max_new_tokens: int, check: Callable[[], None] = lambda: None
    ) -> Completions:
        """Return the greedy completion of each row of a batch on the training mesh (G = 1)."""
        options = SamplingConfig(max_new_tokens=max_new_tokens).resolve()  # greedy
        keys = np.zeros((len(prompts.tokens), 1), int)
        parts = self._complete(prompts, options, keys, check)
        return _joined(list(parts))

    def supported(
        self,
        prompts: Batch,
        completions: Completions,
        tokenizer: ChatTokenizer,
        media: Media | None = None,
    ) -> np.ndarray:
        """Return the reward `evidence` of completions, f64[B, G] (`supported.balances`).

        prompts: numpy. media: of a RolloutPart. Between `load` and `drop`.
        """
        what = prompts, completions, tokenizer, media
        return supported.balances(self._engine, self._params, *what)

    def trace(self, prompts: Batch) -> tuple[dict[str, jax.stages.Traced], DecodeState]:
        """Return the traced programs of `load` and `sample`, in their order, and the places' state.

        prompts: as in `sample`, but of jax.ShapeDtypeStructs.
        """
        # The same program as of `load`: a jit within another would move the weights differently.
        load = jax.jit(self._weights) if self.mesh == self.setup.mesh else self._weights
        weights = load.trace(abstract_state(self.setup))
        places, groups, rows, samples = self.sizes(prompts)
        taken = jax.eval_shape(functools.partial(_take, part=0, parts=groups), prompts)
        if not self.shared:
            taken = jax.eval_shape(functools.partial(_copies, samples=samples), taken)
        taken = sharding.abstract(taken, sharding.batch_shardings(self.mesh, taken))
        split = sharding.shardings(self.mesh, weights.out_info, model_axes(self.setup))
        params = sharding.abstract(weights.out_info, split)
        sampling = self.config.sampling
        stages, state = self._engine.trace(params, taken, sampling, rows, places)
        return {"weights": weights} | stages, state

    def sizes(self, prompts: Batch) -> tuple[int, int, int, int]:
        """Return (places, groups of the batch, rows of a place, copies of a prompt that has a place
        for each sample, else 1).
        """
        total, T = prompts.tokens.shape
        samples = self.config.samples
        share = sharding.round_up_rows(self.mesh, 1)
        places = total // self.config.parts
        most = max(1, prefill_tokens(self.mesh) // T)
        size = max(
            rows for rows in range(share, places + 1, share)
            if places % rows == 0 and rows <= max(most, share)
        )  # fmt: skip
        if not self.shared:
            return places * samples, total // size, 1, samples
        rows = self.config.rows or samples
        return places, total // size, min(rows, samples), 1

    def join(self, parts: Sequence[RolloutPart]) -> tuple[Completions, Media | None]:
        """Return the whole batch's completions, in its order, and media on the training mesh."""
        completions = _joined(parts)
        media = [part.media for part in sorted(parts, key=lambda part: part.rows.start)]
        if media[0] is None:
            return completions, None
        return completions, self._join(media, prompts=len(completions.lengths))

    def _complete(
        self,
        prompts: Batch,
        options: SamplingConfig,
        keys: np.ndarray,
        check: Callable[[], None],
    ) -> Iterator[RolloutPart]:
        """Complete each prompt for each of its key ids, keys[row]; yields groups."""
        places, groups, rows, copies = self.sizes(prompts)
        samples = keys.shape[1]
        if copies > 1:
            places, copies = places // copies * samples, samples
        keys = (keys % 2**32).astype(np.uint32)
        source = _Groups(self, prompts, options, keys, groups, copies)
        sizes = places, options.max_new_tokens, min(rows, samples)
        run = self._engine.run(self._params, source, *sizes, check=check, rows="shrinking")
        for one in run:
            if one.error is not None:
                raise UserError(f"rollout: {one.error}; lower data.tokens or max_new_tokens")
            if (part := source.add(one)) is not None:
                yield part
        yield from source.rest()


def _moved(state: TrainState, setup: Setup, source: dict, target: dict) -> dict:
    """The weights, resharded; those of layers layer by layer, so that little lies there twice.

    Each is cast before it moves, which halves the bytes.
    """
    weights, tree = jax.tree.flatten(model_params(state, setup))
    axes = tree.flatten_up_to(model_axes(setup))
    splits = list(zip(jax.tree.leaves(source), jax.tree.leaves(target), strict=True))

    def move(weight: jax.Array, split: tuple[NamedSharding, NamedSharding]) -> jax.Array:
        # The cast is also of the token embeddings, which may be trained in float32.
        return sharding.reshard(weight.astype(setup.compute.dtype), *split)

    moved, stacks = [None] * len(weights), collections.defaultdict(list)
    for number, weight in enumerate(weights):
        if axes[number][:1] == ("layers",):
            stacks[len(weight)].append(number)
        else:
            moved[number] = move(weight, splits[number])
    for numbers in stacks.values():
        rest = [[sharding.of_items(split) for split in splits[number]] for number in numbers]

        def move_layer(layer: list[jax.Array], rest=rest) -> list[jax.Array]:
            return list(map(move, layer, rest))

        layers = jax.lax.map(move_layer, [weights[number] for number in numbers])
        for number, weight in zip(numbers, layers, strict=True):
            moved[number] = weight
    return jax.tree.unflatten(tree, moved)


def _take(batch: Batch, part: int, parts: int) -> Batch:
    """The rows part, part + parts, ..."""

    def take(leaf):  # no -1 in the shapes: without sound, leaves are empty
        return leaf.reshape(len(leaf) // parts, parts, *leaf.shape[1:])[:, part]

    return jax.tree.map(take, batch)


def _copies(batch: Batch, samples: int) -> Batch:
    """Each row `samples` times, one after the other."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, samples, axis=0), batch)


def _join(media: Sequence[Media], prompts: int) -> Media:
    """The media of a batch of `prompts` prompts from those of its parts."""

    def join(*leaves):
        rows = len(leaves[0]) * len(leaves)
        shape = prompts // len(leaves), rows // prompts, *leaves[0].shape[1:]
        by_prompt = [leaf.reshape(shape) for leaf in leaves]
        return jnp.stack(by_prompt, axis=1).reshape(rows, *shape[2:])

    return jax.tree.map(join, *media)


def _joined(parts: Sequence[RolloutPart]) -> Completions:
    """The completions of a batch, in its order, from those of its groups."""
    parts = sorted(parts, key=lambda part: part.rows.start)
    columns = zip(*(part.completions for part in parts), strict=True)
    # Rows of a group: group, group + groups, ...
    return Completions(
        *(np.stack(column, axis=1).reshape(-1, *column[0].shape[1:]) for column in columns)
    )


class _Groups:
    """An `engine.Source` of a batch's groups, which gathers their completions."""

    def __init__(
        self,
        rollout: Rollout,
        prompts: Batch,
        options: SamplingConfig,
        keys: np.ndarray,
        groups: int,
        copies: int,
    ):
        self._rollout, self._prompts, self._options, self._keys = rollout, prompts, options, keys
        self._groups, self._copies, self._next = groups, copies, 0
        self._real = rollout._engine.to_host(prompts.next_position) > 0
        self._media: dict[int, Media | None] = {}
        self._generated: dict[int, Generated] = {}
        self._missing: dict[int, int] = {}

    def take(self, wait: bool, free: int) -> Group | None:
        if self._next == self._groups:
            return None
        group, rollout, copies = self._next, self._rollout, self._copies
        batch = rollout._take(self._prompts, part=group, parts=self._groups)
        if copies > 1:
            batch = rollout._copies(batch, samples=copies)
        numbers = np.arange(group, len(self._prompts.tokens), self._groups)
        keys, requests = self._keys, []
        for i, row in enumerate(numbers):
            each = [keys[row].tolist()] if copies == 1 else keys[row, :, None].tolist()
            for first, ids in enumerate(each):
                tag = group, i, first
                real = self._real[row]
                requests.append(Request(tag, self._options, ids) if real else None)
        media = rollout._engine.encode(rollout._params, batch)
        self._next += 1  # not before: where the memory is exhausted, the engine asks again
        self._media[group] = media if rollout.keeps_media else None
        self._missing[group] = int(self._real[numbers].sum()) * keys.shape[1]
        pad = rollout.setup.model.tokens.pad_token_id
        self._generated[group] = Generated.empty(
            (len(numbers), keys.shape[1]), self._options.max_new_tokens, pad
        )
        return Group(batch, requests, media)

    def add(self, one: Finished) -> RolloutPart | None:
        """Keep a completion; return its group if it is the last one of it."""
        group, row, first = one.tag
        self._generated[group].put((row, first + one.sample), one)
        self._missing[group] -= 1
        return self._part(group) if self._missing[group] == 0 else None

    def rest(self) -> Iterator[RolloutPart]:
        """Yield the groups without any prompt."""
        yield from map(self._part, list(self._missing))

    def _part(self, group: int) -> RolloutPart:
        del self._missing[group]
        rows = slice(group, len(self._prompts.tokens), self._groups)
        completions = Completions(*self._generated.pop(group))
        return RolloutPart(rows, completions, self._media.pop(group))
