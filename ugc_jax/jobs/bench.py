"""Time prefill and decoding, and, where torch and transformers are installed, the reference beside them."""

import dataclasses
import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Literal

import jax
from tqdm import tqdm

from ugc_jax.config import Compute
from ugc_jax.errors import UserError
from ugc_jax.generate import benchmark
from ugc_jax.generate.engine import Engine
from ugc_jax.hf.checkpoint import load_params
from ugc_jax.hf.config import load_config
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.jobs import init


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """Settings of bench."""

    checkpoint: str | None = None  # directory or hub id; None: random weights of `size`
    size: Literal["tiny", "mid", "3b"] = "mid"  # of the random weights
    dtype: Literal["float32", "bfloat16"] = (
        "float32"  # of weights and activations, ours and the reference's
    )
    batch_size: int = 4
    frames: int = 16  # of each clip, 2 a second
    height: int = 224  # of a frame, in pixels; a multiple of 28
    width: int = 224
    seconds: float = 8.0  # of sound
    new_tokens: int = 64  # to generate
    repeats: int = 5  # timed runs of each side, in turn; medians are reported
    reference: bool = True  # also time transformers on torch, if installed and the device is a CPU
    output: str | None = None  # JSON file for the figures


CONFIG = BenchConfig


def main(config: BenchConfig, args: list[str]) -> int:
    if args:
        raise UserError(f"bench takes no arguments, got {args[0]!r}; it makes its clips itself")
    work = benchmark.Workload(
        config.batch_size,
        config.frames,
        config.height,
        config.width,
        config.seconds,
        config.new_tokens,
    )
    installed = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    compare = config.reference and installed and jax.default_backend() == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = _checkpoint(config, Path(folder))
        model = load_config(checkpoint)
        stacked = jax.default_backend() != "cpu"
        params = load_params(checkpoint, model, config.dtype, stacked=stacked)
        sides = _sides(
            config, work, checkpoint, Engine(params, model, Compute(config.dtype)), compare
        )
    runs = {name: [] for name in sides}
    bar = tqdm(range(config.repeats + 1), desc="bench", unit="round", disable=None)
    for repeat in bar:
        for name, run in sides.items():
            timed = run()
            if repeat:  # the first round compiles and warms up
                runs[name].append(timed)
    report = {
        "settings": dataclasses.asdict(config),
        "device": f"{jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores",
        **{name: benchmark.medians(timed) for name, timed in runs.items()},
    }
    if compare:
        ours, theirs = report["jax"], report["torch"]
        report["torch_over_jax"] = {phase: theirs[phase] / ours[phase] for phase in ours}
        report["token_agreement"] = benchmark.agreement(runs["jax"][0], runs["torch"][0])
    _print(report, work)
    if config.output:
        Path(config.output).write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _checkpoint(config: BenchConfig, folder: Path) -> Path:
    if config.checkpoint is not None:
        return resolve_checkpoint(config.checkpoint)
    init.main(
        init.InitConfig(output=str(folder / "random"), size=config.size, dtype=config.dtype), []
    )
    return folder / "random"


def _sides(
    config: BenchConfig, work: benchmark.Workload, checkpoint: Path, engine: Engine, compare: bool
) -> dict:
    """Name -> a function without arguments that makes one benchmark.Run."""
    prompts = benchmark.examples(work, engine.config)
    sides = {"jax": lambda: benchmark.run_ours(engine, prompts, config.new_tokens)}
    if compare:
        from ugc_jax.hf import reference

        model = reference.load_reference(checkpoint, config.dtype)
        inputs = reference.reference_inputs(
            prompts, engine.config, [1.0] * config.batch_size, audio_in_video=True
        )
        sides["torch"] = lambda: benchmark.run_reference(model, inputs, config.new_tokens)
    return sides


def _print(report: dict, work: benchmark.Workload):
    tokens = work.batch_size * work.new_tokens
    print(f"{report['device']}; batch {work.batch_size}, {report['settings']['dtype']}, medians")
    for side in ("jax", "torch"):
        if side in report:
            times = report[side]
            rate = tokens / times["decode_seconds"]
            print(
                f"  {side:<6} prefill {times['prefill_seconds']:.3f} s   "
                f"decode {times['decode_seconds']:.3f} s ({rate:.0f} tokens/s)"
            )
    if "torch_over_jax" in report:
        ratio = report["torch_over_jax"]
        print(
            f"  torch / jax: prefill {ratio['prefill_seconds']:.2f}, decode {ratio['decode_seconds']:.2f}, "
            f"together {ratio['total_seconds']:.2f}; equal tokens {report['token_agreement']:.1%}"
        )
