"""Prompts of every kind and completions that nobody sampled, for tests of GRPO's steps."""

import cases
import jax
import jax.numpy as jnp
import numpy as np

from ugc_jax import sharding
from ugc_jax.data.batching import BucketKey, collate
from ugc_jax.models.params import param_shardings
from ugc_jax.models.qwen2_5_omni import config as config_lib
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.rl.advantages import token_weights
from ugc_jax.rl.options import GrpoOptions
from ugc_jax.rl.rows import Completions, PolicyBatch, policy_rows, slots
from ugc_jax.train.state import Setup, Trainable, TrainState, create_state

CONFIG = cases.fewer_layers(config_lib.tiny())
KEY = BucketKey(tokens=144, grids=4, windows=2, chunks=4)
G, N = 3, 12
# Picture with sound, sound, text, a picture, and a row without a prompt among them.
PARTS = [
    [4, ("video", 6, 84, 112, 310), 6],
    [3, ("audio", 230), 4],
    [7],
    [],
    [4, ("image", 112, 84), 3],
    [2, ("video", 4, 56, 84, 150), 9],
    [3, ("video", 4, 84, 84, None), 2],
    [5, ("audio", 61), 2],
]
LENGTHS = [
    [12, 1, 5], [3, 12, 7], [1, 2, 12], [0, 0, 0], [6, 4, 9], [2, 11, 8], [12, 12, 3], [5, 5, 1],
]  # fmt: skip


def prompts(count: int = len(PARTS)):
    """A Batch of prompts; the fourth row is empty."""
    rows = [parts or [1] for parts in PARTS[:count]]
    examples = [cases.make_example(CONFIG, parts, seed) for seed, parts in enumerate(rows)]
    batch = collate(examples, KEY, count, CONFIG)
    if count > 3:
        empty = collate([], KEY, 1, CONFIG)
        jax.tree.map(lambda leaf, empty: leaf.__setitem__(3, empty[0]), batch, empty)
    return batch


def completions(count: int = len(PARTS), noise: int = 0) -> Completions:
    """Ragged, of random tokens; noise: of the log-probabilities that they would be drawn with."""
    tokens = np.random.default_rng(0).integers(0, CONFIG.tokens.pad_token_id, (count, G, N))
    lengths = np.array(LENGTHS[:count], np.int32)
    logprobs = np.random.default_rng(noise).normal(-7.6, 0.2, tokens.shape).astype(np.float32)
    return Completions(tokens.astype(np.int32), lengths, lengths < N, logprobs)


def rows(options: GrpoOptions, count: int = len(PARTS), parts: int = 1) -> PolicyBatch:
    """Rows with random advantages and log-probabilities `old` and `reference`.

    One completion is left out. parts: that the batch passes through the model in.
    """
    shared = options.shared_prompt
    advantages = np.random.default_rng(1).normal(size=(count, G)).astype(np.float32)
    counts = np.array(LENGTHS[:count], np.int32)
    counts[1, 1] = 0
    weights = token_weights(counts, options, N, parts)
    size = slots(counts, N, shared)

    def lay_out(noise: int) -> PolicyBatch:
        generated = completions(count, noise)
        return policy_rows(prompts(count), generated, advantages, weights, size, CONFIG, shared)

    return lay_out(0)._replace(old=lay_out(1).rollout, reference=lay_out(2).rollout)


def make_setup(mesh=(1, 1, 1), **changes) -> Setup:
    mesh = sharding.make_mesh(*mesh, devices=jax.devices()[: int(np.prod(mesh))])
    everything = Trainable(vision=True, audio=True, projector=True)
    return Setup(CONFIG, mesh, **{"trainable": everything, "steps": 10, **changes})


def make_state(setup: Setup) -> TrainState:
    params = jax.tree.map(jnp.array, cases.random_params(CONFIG))
    split = param_shardings(thinker.declare(CONFIG), setup.mesh)
    return create_state(jax.device_put(params, split), setup)
