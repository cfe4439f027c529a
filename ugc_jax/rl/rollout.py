"""Completions by the current policy, on the devices that train it, with the trained weights.

state -> load: cast and reshard, one jit -> a part of the prompts: encode once, prefill once,
decode G samples on one cache -> Completions, and the encoders' rows for the policy step
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ugc_jax import sharding
from ugc_jax.data.batching import Batch
from ugc_jax.errors import UserError
from ugc_jax.generate.engine import Engine
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.rl.rows import Completions
from ugc_jax.settings import check_minimum
from ugc_jax.sharding import MeshConfig
from ugc_jax.train.state import Setup, TrainState, abstract_state, model_axes, model_params

Media = dict[str, jax.Array]  # the encoders' rows by modality


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How completions are sampled."""

    samples: int = 8  # completions of a prompt (G)
    parts: int = 1  # parts of a batch that are sampled one after the other, for smaller caches
    eval_prompts: int = 64  # first prompts of the evaluation data, which are evaluated on
    # of the completions; training divides by the same temperature, but a top_k or top_p draws the
    # tokens from another distribution than is trained
    sampling: SamplingConfig = SamplingConfig(
        temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0, max_new_tokens=512
    )
    # mesh to sample on, of the same devices; a size of none is that of the training's mesh
    mesh: MeshConfig = MeshConfig(data=None, fsdp=None, tensor=None)

    def __post_init__(self):
        check_minimum(self, samples=2, parts=1, eval_prompts=1)
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
    """The completions of one part of a batch of prompts: of its rows `rows`.

    completions: numpy, of the whole part, in every process. media: the encoders' rows, on the mesh
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
            split = sharding.shardings(self.mesh, shapes, model_axes(setup))
            move = functools.partial(_moved, setup=setup, split=split)
            self._weights = jax.jit(move, out_shardings=split)
        here, training = (sharding.row_sharding(mesh) for mesh in (self.mesh, setup.mesh))
        self._take = jax.jit(_take, static_argnames=("part", "parts"), out_shardings=here)
        self._copies = jax.jit(_copies, static_argnames="samples", out_shardings=here)
        self._join = jax.jit(_join, static_argnames="prompts", out_shardings=training)

    def load(self, state: TrainState):
        """Take the policy's weights, in the compute dtype and sharded for the rollout's mesh.

        An adapter is not merged: its product is added to a linear's result, as in training, so that
        a change below the rounding of the weights takes part.
        """
        self._params = self._weights(state)

    def drop(self):
        """Free the weights, before a step that donates their state or needs their memory."""
        self._params = None

    def sample(self, prompts: Batch, draw: int, part: int = 0) -> RolloutPart:
        """Complete the rows part, part + parts, ... of a batch, each G times.

        prompts: the whole batch, one prompt a row, on the training mesh; its rows are a multiple of
        `parts` times the devices that share the rollout's batch. draw: number of the batch in the
        run; with row, sample and the seed it determines all randomness.
        """
        total, G, parts = len(prompts.tokens), self.config.samples, self.config.parts
        numbers = np.arange(part, total, parts)
        keys = (draw * total + numbers[:, None]) * G + np.arange(G)
        taken = self._take(prompts, part=part, parts=parts)
        completions, media = self._generate(taken, self.config.sampling, keys, G)
        return RolloutPart(slice(part, total, parts), completions, media)

    def trace(self, prompts: Batch) -> dict[str, jax.stages.Traced]:
        """Return the traced programs of `load` and `sample`, in their order, to plan with.

        prompts: as in `sample`, but of jax.ShapeDtypeStructs.
        """
        # The same program as of `load`: a jit within another would move the weights differently.
        load = jax.jit(self._weights) if self.mesh == self.setup.mesh else self._weights
        weights = load.trace(abstract_state(self.setup))
        taken = jax.eval_shape(functools.partial(_take, part=0, parts=self.config.parts), prompts)
        samples = self.config.samples
        if not self.shared:
            taken = jax.eval_shape(functools.partial(_copies, samples=samples), taken)
            samples = 1
        taken = sharding.abstract(taken, sharding.batch_shardings(self.mesh, taken))
        split = sharding.shardings(self.mesh, weights.out_info, model_axes(self.setup))
        params = sharding.abstract(weights.out_info, split)
        stages = self._engine.trace(params, taken, self.config.sampling, samples)
        return {"weights": weights} | stages

    def join(self, parts: Sequence[RolloutPart]) -> tuple[Completions, Media | None]:
        """Return the whole batch's completions, in its order, and media on the training mesh."""
        columns = zip(*(part.completions for part in parts), strict=True)
        completions = Completions(*map(_interleaved, columns))
        if parts[0].media is None:
            return completions, None
        media = [part.media for part in parts]
        return completions, self._join(media, prompts=len(completions.lengths))

    def greedy(self, prompts: Batch, max_new_tokens: int) -> Completions:
        """Return the greedy completion of each row of a batch on the training mesh (G = 1)."""
        options = SamplingConfig(max_new_tokens=max_new_tokens)  # greedy
        keys = np.zeros((len(prompts.tokens), 1))
        return self._generate(self._take(prompts, part=0, parts=1), options, keys, 1)[0]

    def _generate(
        self, prompts: Batch, options: SamplingConfig, keys: np.ndarray, samples: int
    ) -> tuple[Completions, Media | None]:
        copies = 1 if self.shared else samples
        if copies > 1:
            prompts = self._copies(prompts, samples=copies)
        engine, params = self._engine, self._params
        keys = (keys % 2**32).astype(np.uint32).ravel()
        media = engine.encode(params, prompts)
        prefilled = engine.prefill(params, prompts, media)
        out = engine.decode(params, prompts, prefilled, options, keys, samples // copies)
        rows = len(out.tokens) // samples
        completions = Completions(
            tokens=out.tokens.reshape(rows, samples, -1),
            lengths=out.lengths.reshape(rows, samples),
            stopped=out.stopped.reshape(rows, samples),
            logprobs=out.logprobs.reshape(rows, samples, -1),
        )
        return completions, media if self.keeps_media else None


def _moved(state: TrainState, setup: Setup, split: dict) -> dict:
    """The weights, resharded leaf by leaf, so that at most one exists unsplit at a time.

    Each is cast before it is moved, which halves the bytes.
    """
    weights, tree = jax.tree.flatten(model_params(state, setup))
    moved = []
    for weight, target in zip(weights, jax.tree.leaves(split), strict=True):
        weight = weight.astype(setup.compute.dtype)  # also the embeddings
        # Not before the previous one has moved.
        weight, *moved[-1:] = jax.lax.optimization_barrier((weight, *moved[-1:]))
        moved.append(jax.lax.with_sharding_constraint(weight, target))
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


def _interleaved(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of parts, part + parts, ... in the order of the batch."""
    return np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])
