"""Compare the throughput of data and of training.

    python launch/data_bench.py --config tiny:runs/quickstart

The settings are those of sft. Three measurements alternate in one run: one thread reads and decodes
records; one worker process of the pipeline makes batches; the step trains on the same batch.
Prints their medians.
"""

import dataclasses
import random
import statistics
import sys
import time
from collections.abc import Callable

import jax

from ugc_jax import sharding
from ugc_jax.data import pipeline
from ugc_jax.data.planning import parse_mixture
from ugc_jax.data.records import RecordSource
from ugc_jax.errors import UserError
from ugc_jax.hf.checkpoint import load_params
from ugc_jax.settings import Schema
from ugc_jax.train.run import open_run
from ugc_jax.train.settings import SFT_SHORT, SftConfig
from ugc_jax.train.state import create_state
from ugc_jax.train.step import jit_step, train_step

TURNS, SECONDS = 5, 4.0  # seconds of one measurement, at least


def rate(work: Callable[[], int]) -> float:
    """Call `work`, which returns how much it has done, repeatedly; returns the rate a second."""
    start, done = time.perf_counter(), 0
    while (seconds := time.perf_counter() - start) < SECONDS:
        done += work()
    return done / seconds


def main():
    config, _ = Schema(SftConfig, short=SFT_SHORT).parse(sys.argv[1:])
    data = dataclasses.replace(config.data, workers=1)
    run = open_run(dataclasses.replace(config, distributed=False))
    model, mesh = run.model, run.mesh
    source = RecordSource(parse_mixture(data.train)[0][0])
    size = sum(file.stat().length for file in source.directory.glob("*.array_record*"))
    numbers = random.Random(0)

    feed = iter(pipeline.training(data, run.tokenizer, model, run.rows, None, 1000, config.packing))
    setup = config.setup(model, mesh, 1000)
    batch = sharding.place_batch(mesh, next(feed), data.batch_size)
    step, state = jit_step(train_step, setup), create_state(load_params(run.weights, model), setup)

    def read() -> int:
        source[numbers.randrange(len(source))]
        return 1

    def make() -> int:
        return int(next(feed).segment_ids.max(axis=1).sum())

    def train() -> int:
        nonlocal state
        state, metrics = step(state, batch)
        return int(metrics["examples"])  # waits for the step

    with jax.set_mesh(mesh):
        train()  # compiles
        works = {"records": read, "batches": make, "step": train}
        rates = {name: [] for name in works}
        for _ in range(TURNS):
            for name, work in works.items():
                rates[name].append(rate(work))
    feed.close()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{len(source)} records of {size / len(source) / 1e3:.1f} kB")
    print(f"one thread reads and decodes  {medians['records']:.3g} records/s")
    print(f"one worker makes batches of   {medians['batches']:.3g} examples/s")
    print(f"the step trains on            {medians['step']:.3g} examples/s")
    print(f"worker / step: {medians['batches'] / medians['step']:.1f}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"data_bench.py: {error}")
