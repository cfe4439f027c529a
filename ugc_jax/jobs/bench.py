"""Time prefill and decoding on clips of noise.

Where torch and transformers are installed and the device is a CPU, the reference is timed on the
same weights, inputs and cores, and the tokens of both are compared.
"""

import dataclasses
import importlib.util
import logging
import tempfile
from pathlib import Path
from typing import Literal

import jax

from ugc_jax import files
from ugc_jax.generate import benchmark, mixed
from ugc_jax.generate.captioner import Captioner
from ugc_jax.generate.mixed import MixedWorkload
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.hf.random_weights import write_random
from ugc_jax.models.compute import ComputeConfig
from ugc_jax.models.qwen2_5_omni.config import SIZES
from ugc_jax.settings import Schema, check_minimum, short_names
from ugc_jax.toy import corpus

logger = logging.getLogger(__name__)

MIN_AGREEMENT = 0.9  # share of equal tokens; with less the two sides do not run the same model


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Settings of bench."""

    checkpoint: str | None = None  # directory or hub id; random weights of `size` without it
    size: Literal["tiny", "mid", "3b"] = "mid"  # of the random weights
    repeats: int = 5  # timed runs of each side, in turn; their medians are reported
    reference: bool = True  # also time the reference, where it can run
    output: str | None = None  # JSON file for the figures
    # batch: equal clips in one batch; mixed: clips of many lengths, through the engine, in plain
    # batches, and in plain batches by the reference
    work: Literal["batch", "mixed"] = "batch"
    workload: benchmark.Workload = benchmark.Workload()
    mixed: MixedWorkload = MixedWorkload()
    compute: ComputeConfig = ComputeConfig(dtype="float32")  # the reference has the same dtype


SETTINGS = Schema(
    BenchConfig,
    short=short_names(workload=benchmark.Workload) | short_names(compute=ComputeConfig),
)


def main(config: BenchConfig, args: list[str]) -> int:
    """Exit status 0, or 1 when our tokens are not those of the reference."""
    check_minimum(config, repeats=1)
    work, new_tokens = config.workload, config.workload.new_tokens
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = _checkpoint(config, Path(folder) / "random")
        captioner = Captioner.from_pretrained(checkpoint, **dataclasses.asdict(config.compute))
        params, engine = captioner.params, captioner.engine
        source = checkpoint, engine.compute.dtype, engine.config
        compared = config.reference and _reference_runs()
        if config.work == "mixed":
            clips = mixed.clips(config.mixed, work, engine.config)
            sides = {
                "engine": mixed.by_engine(params, engine, clips),
                "batches": mixed.by_batches(params, engine, clips),
            }
            if compared:
                sides["transformers"] = mixed.by_reference(*source, clips)
            report = mixed.measure(sides, config.repeats)
            what, text = f"{len(clips)} mixed clips", mixed.summary(report)
        else:
            prompts = benchmark.examples(work, engine.config)
            sides = {"jax": benchmark.ours(params, engine, prompts, new_tokens)}
            if compared:
                sides["torch"] = benchmark.reference(*source, prompts, new_tokens)
            report = benchmark.measure(sides, config.repeats)
            what, text = f"batch {work.batch_size}", benchmark.summary(report, work)
    print(f"{benchmark.device()}; {what}, {engine.compute.dtype}, medians")
    print(text)
    if config.output is not None:
        settings = dataclasses.asdict(config)
        content = {"settings": settings, "device": benchmark.device(), **report}
        files.write_json(config.output, content, "choose another file", indent=2)
    if report.get("token_agreement", 1) < MIN_AGREEMENT:
        logger.error("the tokens differ from those of the reference")
        return 1
    return 0


def _checkpoint(config: BenchConfig, folder: Path) -> Path:
    if config.checkpoint is not None:
        return resolve_checkpoint(config.checkpoint)
    dtype = "bfloat16" if config.compute.dtype == "bfloat16" else "float32"
    write_random(folder, SIZES[config.size](), corpus.LINES, dtype=dtype)
    return folder


def _reference_runs() -> bool:
    installed = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    return installed and jax.default_backend() == "cpu"
