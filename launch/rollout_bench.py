"""Measure how rollouts are sampled fastest whose completions differ in length.

    ugc-jax init --size mid --output runs/mid
    python launch/rollout_bench.py runs/mid

Each completion has a limit of its own, drawn evenly between --shortest and --longest, which stands
for the end-of-text token of a trained model. Ways to sample the same tokens take turns:

    together            as in training: all rows decode at a time, fewer as they end
    to the end          the same, but with all rows until the longest ends
    follow, rows=N      `rollout.rows`: N completions of a prompt at a time; one follows another
    parts, to the end   prompt after prompt (`rollout.parts`), with all rows until the longest ends

The first round compiles. Prints the medians of the others' seconds, and of the seconds that all
cores computed, which count on a busy machine, and the ratios to the first.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from ugc_jax import sharding
from ugc_jax.data.batching import Buckets, bucket_of, collate
from ugc_jax.generate.benchmark import Workload, device, examples
from ugc_jax.generate.engine import Engine
from ugc_jax.hf.checkpoint import load_params
from ugc_jax.hf.config import load_config
from ugc_jax.rl.rollout import Rollout, RolloutConfig
from ugc_jax.rl.rows import Completions
from ugc_jax.train.state import Setup, create_state


class Limited(Engine):
    """An engine whose completions have limits of their own: limits[key id], i32.

    policy: `rows` of `Engine.run`.
    """

    def __init__(self, *args, limits: np.ndarray, policy: str):
        super().__init__(*args)
        self._limits, self._policy = limits, policy

    def run(self, *args, **how):
        return super().run(*args, **how | dict(rows=self._policy))

    def _first_tokens(self, batch, prefilled, requests, mode):
        first, rows = super()._first_tokens(batch, prefilled, requests, mode)
        limit = rows.limit.copy()
        for row, one in enumerate(requests):
            if one is not None:
                limit[row, : len(one.key_ids)] = self._limits[np.asarray(one.key_ids)]
        return first, rows._replace(limit=limit)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--shortest", type=int, default=32)
    parser.add_argument("--longest", type=int, default=512)
    parser.add_argument("--rows", type=int, nargs="*", default=[2, 4], help="of a prompt")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    model, mesh = load_config(args.checkpoint), sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    setup = Setup(model, mesh)
    state = create_state(load_params(args.checkpoint, model), setup)
    work = Workload(batch_size=args.prompts, frames=8, seconds=4.0)
    clips = examples(work, model)
    key = bucket_of(clips[0], Buckets(), model)
    prompts = collate(clips, key, len(clips), model)
    total = args.prompts * args.samples
    limits = np.linspace(args.shortest, args.longest, total).round().astype(np.int32)
    limits = np.random.default_rng(0).permutation(limits)

    def rollout(rows: int | None, policy: str) -> Rollout:
        sampling = dataclasses.replace(RolloutConfig().sampling, max_new_tokens=args.longest)
        made = Rollout(setup, RolloutConfig(samples=args.samples, rows=rows, sampling=sampling))
        where = model, setup.compute, made.mesh
        made._engine = Limited(*where, limits=limits, policy=policy)
        return made

    def step(made: Rollout, batches: list) -> Completions:
        """A rollout of the batches, one after the other; their key ids are 0, 1, ..."""
        made.load(state)
        out, first = [], 0
        for batch in batches:
            keys = first + np.arange(len(batch.tokens) * args.samples).reshape(-1, args.samples)
            first += keys.size
            parts = list(made._complete(batch, made.config.sampling, keys, lambda: None))
            out.append(made.join(parts)[0])
        made.drop()
        return Completions(*map(np.concatenate, zip(*out, strict=True)))

    one_by_one = [jax.tree.map(lambda x, b=b: x[b : b + 1], prompts) for b in range(args.prompts)]
    ways: dict[str, Callable[[], Completions]] = {}

    def add(name: str, rows: int | None, batches: list, policy: str = "shrinking"):
        made = rollout(rows, policy)
        ways[name] = lambda: step(made, batches)

    add("together", None, [prompts])
    add("to the end", None, [prompts], policy="fixed")
    for rows in args.rows:
        add(f"follow, rows={rows}", rows, [prompts])
    add("parts, to the end", None, one_by_one, policy="fixed")
    for way in ways.values():
        way()  # compiles
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    tokens: dict[str, np.ndarray] = {}
    for _ in range(args.repeats):
        for name, way in ways.items():
            start = time.perf_counter(), time.process_time()
            found = way()
            seconds[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
            tokens[name] = found.tokens
            if not np.array_equal(np.ravel(found.lengths), limits):
                raise SystemExit("a completion ended early: choose another checkpoint")
    print(
        f"{device()}; {args.prompts} prompts of {key.tokens} tokens, {args.samples} completions of "
        f"{args.shortest} to {args.longest} tokens, {limits.sum()} in all, float32"
    )
    medians = {
        name: [statistics.median(one) for one in zip(*measured, strict=True)]
        for name, measured in seconds.items()
    }
    for name, both in medians.items():
        wall, computed = (one / own for one, own in zip(both, medians["together"], strict=True))
        equal = (tokens[name] == tokens["together"]).all(axis=-1).sum()
        print(
            f"  {name:<20}{both[0]:8.2f} s ({wall:.2f} x together)   computed {both[1]:8.2f} s "
            f"({computed:.2f} x together)   {equal} of {total} completions equal"
        )


if __name__ == "__main__":
    main()
