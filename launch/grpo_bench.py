"""Measure what a shared prompt saves: a whole GRPO step, shared and plain, side by side.

    ugc-jax init --size mid --output runs/mid
    python launch/grpo_bench.py runs/mid

A step samples G completions of a prompt with picture and sound, and makes one update of the decoder
with them (no reference). Plain is the same with `shared_prompt=False`: the prompt is encoded,
prefilled and trained on once for each completion. Both alternate; prints their medians.
"""

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from ugc_jax import sharding
from ugc_jax.data.batching import Buckets, bucket_of, collate
from ugc_jax.generate.benchmark import Workload, examples
from ugc_jax.hf.checkpoint import load_params
from ugc_jax.hf.config import load_config
from ugc_jax.rl.advantages import token_weights
from ugc_jax.rl.objective import policy_step
from ugc_jax.rl.options import GrpoOptions
from ugc_jax.rl.rollout import Rollout, RolloutConfig
from ugc_jax.rl.rows import policy_rows, slots
from ugc_jax.train.state import Setup, create_state
from ugc_jax.train.step import jit_step


def stepper(checkpoint: Path, shared: bool, samples: int, new_tokens: int) -> Callable:
    """Return a function that makes one step and returns its seconds {"rollout", "update"}."""
    model, mesh = load_config(checkpoint), sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    setup, options = Setup(model, mesh), GrpoOptions(beta=0.0, shared_prompt=shared)
    sampling = dataclasses.replace(RolloutConfig().sampling, max_new_tokens=new_tokens)
    rollout = Rollout(setup, RolloutConfig(samples=samples, sampling=sampling), shared)
    update = jit_step(functools.partial(policy_step, options=options, samples=samples), setup)
    (prompt,) = examples(Workload(batch_size=1, frames=24, seconds=8.5), model)
    key = bucket_of(prompt, Buckets(), model)
    prompts = collate([prompt], key, 1, model)
    advantages = np.linspace(-1, 1, samples, dtype=np.float32)[None]
    held = [create_state(load_params(checkpoint, model), setup)]

    def step(draw: int) -> dict[str, float]:
        start = time.perf_counter()
        rollout.load(held[0])
        generated, media = rollout.join(list(rollout.sample(prompts, draw)))
        rollout.drop()
        sampled = time.perf_counter()
        weights = token_weights(generated.lengths, options, new_tokens)
        size = slots(generated.lengths, new_tokens, shared)
        rows = policy_rows(prompts, generated, advantages, weights, size, model, shared, False)
        held[0], metrics = update(held[0], rows._replace(media=media))
        jax.block_until_ready(metrics)
        return {"rollout": sampled - start, "update": time.perf_counter() - sampled}

    kind = f"{key.tokens} tokens of prompt, {samples} completions of {new_tokens}"
    print(f"{'shared' if shared else 'plain '}: {kind}", flush=True)
    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    steps = {
        name: stepper(args.checkpoint, name == "shared", args.samples, args.new_tokens)
        for name in ("shared", "plain")
    }
    for step in steps.values():
        step(0)  # compiles
    runs = {name: [] for name in steps}
    for repeat in range(1, args.repeats + 1):
        for name, step in steps.items():
            runs[name].append(step(repeat))
    medians = {}
    for name, seconds in runs.items():
        phases = {name: statistics.median(run[name] for run in seconds) for name in seconds[0]}
        medians[name] = statistics.median(sum(run.values()) for run in seconds)
        print(f"{name}: {medians[name]:.2f} s ({phases})")
    print(f"plain / shared: {medians['plain'] / medians['shared']:.2f}")


if __name__ == "__main__":
    main()
