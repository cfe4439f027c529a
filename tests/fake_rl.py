"""A GRPO run of milliseconds a step: real data, rows and meshes; a toy policy and made-up rewards.

The toy's completions are drawn from its sampling keys and its weights, and its loss depends on all
that a row says, so that a run repeats itself only if everything is as it was.
"""

import concurrent.futures
import dataclasses
import functools
import sys
import tempfile
import zlib
from pathlib import Path

import fake_training as fake
import jax
import jax.numpy as jnp
import numpy as np
from fake_records import FakeSource
from jax.experimental import multihost_utils

from ugc_jax import sharding
from ugc_jax.data import pipeline
from ugc_jax.data.planning import DataConfig
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.hf.tokenizer import build_tokenizer, load_chat_tokenizer
from ugc_jax.models.qwen2_5_omni.config import tiny
from ugc_jax.rl import rollout
from ugc_jax.rl import step as grpo
from ugc_jax.rl.options import GrpoOptions
from ugc_jax.rl.rollout import RolloutConfig
from ugc_jax.rl.rows import Completions
from ugc_jax.rl.settings import GrpoConfig
from ugc_jax.toy import corpus
from ugc_jax.train.checkpoint import Checkpoints
from ugc_jax.train.loop import Loop
from ugc_jax.train.settings import LoopConfig

MODEL = tiny()
NEW_TOKENS = 6
SAMPLING = dataclasses.replace(RolloutConfig().sampling, max_new_tokens=NEW_TOKENS)


def everywhere(array) -> np.ndarray:
    """The whole array, in each process."""
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


class Rollout(rollout.Rollout):
    """Writes noise; `calls` are the draws that it was asked for."""

    calls: list[int]

    def __init__(self, *args):
        super().__init__(*args)
        self.calls = []

    def load(self, state):
        # Rounded, as the last bits depend on how many devices add up the loss.
        self._params = zlib.crc32(np.round(everywhere(state.params["w"]), 3).tobytes())

    def sample(self, prompts, draw, *rest):
        self.calls.append(draw)
        return super().sample(prompts, draw, *rest)

    def _complete(self, prompts, options, keys, check):
        groups, samples = self.config.parts, keys.shape[1]
        for group in range(groups):
            check()
            rows = slice(group, len(prompts.tokens), groups)
            taken = self._take(prompts, part=group, parts=groups)
            yield rollout.RolloutPart(rows, *self._generate(taken, options, keys[rows], samples))

    def _generate(self, prompts, options, keys, samples):
        real = everywhere(prompts.segment_ids).any(axis=1)
        keys = np.asarray(keys).astype(int).reshape(-1, samples)
        out = Completions(
            tokens=np.zeros((*keys.shape, NEW_TOKENS), np.int32),
            lengths=np.zeros(keys.shape, np.int32),
            stopped=np.zeros(keys.shape, bool),
            logprobs=np.zeros((*keys.shape, NEW_TOKENS), np.float32),
        )
        for place in np.ndindex(keys.shape):
            if real[place[0]]:
                rng = np.random.default_rng([self._params, keys[place]])
                out.lengths[place] = n = rng.integers(1, NEW_TOKENS + 1)
                out.stopped[place] = n < NEW_TOKENS
                out.tokens[place][:n] = rng.integers(300, 1000, n)
                out.logprobs[place][:n] = -rng.random(n)
        copies = 1 if self.shared else samples
        media = prompts.tokens[:, :3, None].astype(jnp.float32)
        media = jnp.repeat(media, copies, axis=0)
        rows = {"vision": media, "audio": media[:, :0]}
        return out, rows if self.keeps_media else None


@functools.partial(jax.jit, donate_argnums=0)  # here, so that all runs share the programs
def _policy_step(state, batch):
    slots = batch.advantage + batch.tokens / 100 + batch.rollout
    for more in (batch.old, batch.reference):
        slots += 0 if more is None else more
    x = jnp.sum(batch.weight * slots)
    x += sum(jnp.mean(jnp.sum(leaf, axis=(1, 2))) for leaf in jax.tree.leaves(batch.media)) / 1000
    loss, grads = jax.value_and_grad(lambda p: jnp.mean((p["w"] - x) ** 2))(state.params)
    state, _ = fake.update(state, loss, grads)
    metrics = dict.fromkeys(("loss", "grad_norm", "learning_rate", "entropy", "max_ratio"), loss)
    metrics |= {"mult_prob_error": 1 + loss, "finite": state.finite.astype(jnp.float32)}
    metrics["tokens"] = jnp.sum(batch.weight > 0, dtype=jnp.float32)
    return state, metrics


def jit_step(*_):
    """The policy step: its loss is mean((w - x)^2), x a sum of all that stands in the rows."""
    return _policy_step


def token_logprobs(state, batch, setup, options, temperature, of_reference=False):
    return batch.rollout * (0.5 if of_reference else state.params["w"][0])


def patch(set_attribute):
    """Put the toy in the place of the model and of the records. set_attribute: as `setattr`."""
    for name, value in (
        ("Rollout", Rollout), ("jit_step", jit_step), ("token_logprobs", token_logprobs),
    ):  # fmt: skip
        set_attribute(grpo, name, value)
    set_attribute(pipeline, "RecordSource", FakeSource)


def make_tokenizer(folder) -> ChatTokenizer:
    build_tokenizer(MODEL, corpus.LINES, Path(folder))
    return load_chat_tokenizer(folder, MODEL.tokens)


class Pending(concurrent.futures.Future):
    """Done at once."""

    def __init__(self, rewards):
        super().__init__()
        self.rewards = rewards
        self.set_result(rewards)


class Rewards:
    """`function(sample)` gives the rewards of a sample; `seen` are all samples."""

    names, weights, judge = ("even", "short"), np.array([1.0, 0.5], np.float32), None

    def __init__(self, function=None):
        self.function = function or self.usual
        self.seen = []

    @staticmethod
    def usual(sample):
        n = sample.metadata["completion_tokens"]
        return [n % 2, 1 / n]

    def submit(self, samples):
        self.seen += samples
        values = [self.function(sample) for sample in samples]
        return Pending(np.array(values, np.float32).reshape(len(samples), 2))

    def failures(self):
        return {"even": 3, "short": 0}

    def close(self):
        pass


class Coarse(Rewards):
    """Of two values, so that many groups say nothing."""

    @staticmethod
    def usual(sample):
        return [float(sample.metadata["completion_tokens"] > 3), 0.0]


# All that a run has a state for.
HARD = dict(
    options=dict(minibatches=2, iterations=2, beta=0.01, dynamic_sampling=True, resamples=2),
    rows={"eval": "2-12"},
)


@dataclasses.dataclass
class Run:
    """What came of `train`."""

    state: object
    status: int
    work: grpo.Grpo


def settings(folder, rows=None, options=None, rollout=None, **loop):
    """The settings of a toy run."""
    data = {"train": "1-40", "batch_size": 8, "tokens": 600, "workers": 0} | (rows or {})
    return GrpoConfig(
        checkpoint="",
        output=str(folder),
        data=DataConfig(**data),
        grpo=GrpoOptions(**{"beta": 0.0} | (options or {})),
        rollout=RolloutConfig(
            **{"samples": 3, "sampling": SAMPLING, "eval_prompts": 5} | (rollout or {})
        ),
        loop=LoopConfig(**{"steps": 4, "log_every": 1, "save_every": 2} | loop),
    )  # fmt: skip


def train(config, mesh, tokenizer, rewards=None, wrap=lambda work: work, phases=None) -> Run:
    """Train, or go on, as jobs/grpo.py does."""
    data, loop_config, further = config.data, config.loop, config.further_batches
    feed = (data, tokenizer, MODEL, sharding.local_rows(mesh, data.batch_size))
    prompts = pipeline.prompt_batches(*feed, loop_config.steps, loop_config.epochs, further)
    evaluation = None
    if data.eval:
        evaluation = pipeline.prompt_evaluation(*feed, config.rollout.eval_prompts)
    setup = config.setup(MODEL, mesh, len(prompts) // (1 + further))
    batches = iter(prompts)
    with Checkpoints(config.output, loop_config.keep, "eval_reward", "max") as checkpoints:
        if checkpoints.latest is None:
            state = fake.create_state(mesh)
            checkpoints.save_frozen(state)
        else:
            state, data_state = checkpoints.restore(fake.abstract_state(mesh))
            batches.set_state(data_state)
        rewards = rewards or Rewards()
        work = wrap(grpo.Grpo(setup, config, prompts, batches, rewards, tokenizer, evaluation))
        settings = dataclasses.asdict(config)
        whole = Loop(work, loop_config, config.output, checkpoints, settings, phases=phases)
        state, status = whole.run(state)
    return Run(state, status, work)


def main(folder, port, process) -> int:
    jax.distributed.initialize(f"localhost:{port}", 2, int(process))
    patch(setattr)
    # Each of two processes feeds two parts of the batch that do not follow each other.
    devices = [jax.devices()[number] for number in (0, 2, 1, 3)]
    mesh = sharding.make_mesh(2, 2, 1, devices)
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer = make_tokenizer(temporary)
    rewards = Coarse()
    run = train(settings(folder, steps=2, **HARD), mesh, tokenizer, rewards)
    print(len(rewards.seen))
    return run.status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
