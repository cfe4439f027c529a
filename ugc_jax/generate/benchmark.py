"""Time prefill and decoding on clips of noise, ours and the reference's on the same cores.

examples -> ours, reference: functions that return one Run -> measure: a report -> summary: text
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from ugc_jax.data.batching import Buckets, bucket_of, collate
from ugc_jax.data.example import Example
from ugc_jax.data.features import log_mel, patchify
from ugc_jax.data.prompt import Medium, Text, layout
from ugc_jax.errors import UserError
from ugc_jax.generate.engine import Engine
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY, SAMPLE_RATE, OmniConfig
from ugc_jax.progress import progress

TEXT_TOKENS = (15, 17)  # before and after the clip: those of a short question
SECONDS_PER_GRID = 1.0  # two frames a second
CELL = GEOMETRY.vision.cell_pixels  # frames are whole cells, as after the resize of a real clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """The batch, of equal clips."""

    batch_size: int = 4  # clips generated together
    frames: int = 16  # of each clip, 2 a second
    height: int = 224  # of a frame, in pixels; whole cells of the vision encoder
    width: int = 224  # of a frame, in pixels; whole cells of the vision encoder
    seconds: float = 8.0  # of sound in each clip
    new_tokens: int = 64  # to generate for each clip

    def __post_init__(self):
        for name in ("batch_size", "frames", "seconds", "new_tokens"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}; use a positive number")
        for name in ("height", "width"):
            side = getattr(self, name)
            if side <= 0 or side % CELL:
                raise UserError(f"{name} is {side}; use a multiple of {CELL}")


@dataclasses.dataclass(frozen=True)
class Run:
    """One timed run: seconds of both phases, and the tokens, i32[B, new_tokens], padded."""

    prefill: float
    decode: float
    tokens: np.ndarray


def examples(work: Workload, config: OmniConfig, seed: int = 0) -> list[Example]:
    """Make the prompts of the workload, each of different noise."""
    rng = np.random.default_rng(seed)

    def one() -> Example:
        frames = rng.integers(0, 256, (work.frames, work.height, work.width, 3), dtype=np.uint8)
        picture = patchify(frames, config.vision)
        mel = log_mel(rng.uniform(-0.5, 0.5, round(work.seconds * SAMPLE_RATE)).astype(np.float32))
        before, after = (
            Text(rng.integers(0, config.tokens.pad_token_id, n).tolist()) for n in TEXT_TOKENS
        )
        clip = Medium("video", picture.grid, SECONDS_PER_GRID, len(mel))
        prompt = layout([before, clip, after], config)
        return Example(**prompt._asdict(), vision=(picture,), mels=(mel,))

    return [one() for _ in range(work.batch_size)]


def ours(
    params: dict, engine: Engine, prompts: list[Example], new_tokens: int
) -> Callable[[], Run]:
    """Return a function that generates greedily, from host to host arrays; it compiles first."""
    bucket = bucket_of(prompts[0], Buckets(), engine.config)
    batch = collate(prompts, bucket, len(prompts), engine.config)
    key_ids = np.zeros(len(prompts), np.uint32)
    options = SamplingConfig(max_new_tokens=new_tokens)

    def run() -> Run:
        start = time.perf_counter()
        prefilled = jax.block_until_ready(engine.prefill(params, batch))
        middle = time.perf_counter()
        generated = engine.decode(params, batch, prefilled, options, key_ids)
        end = time.perf_counter()
        return Run(middle - start, end - middle, generated.tokens[:, :new_tokens])

    return run


def reference(
    checkpoint: Path, dtype: str, config: OmniConfig, prompts: list[Example], new_tokens: int
) -> Callable[[], Run]:
    """Return the same by transformers on a CPU; its prefill is the generation of one token."""
    import torch

    from ugc_jax.hf.reference import load_reference, reference_inputs

    model = load_reference(checkpoint, dtype)
    seconds = [SECONDS_PER_GRID] * len(prompts)
    inputs = reference_inputs(prompts, config, seconds, audio_in_video=True)

    def generate(count: int) -> tuple[float, np.ndarray]:
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=count, do_sample=False)
        return time.perf_counter() - start, out[:, inputs["input_ids"].shape[1] :].numpy()

    def run() -> Run:
        prefill, _ = generate(1)
        whole, tokens = generate(new_tokens)
        padded = np.full((len(tokens), new_tokens), config.tokens.pad_token_id)
        padded[:, : tokens.shape[1]] = tokens
        return Run(prefill, whole - prefill, padded)

    return run


def measure(sides: dict[str, Callable[[], Run]], repeats: int) -> dict:
    """Run the sides in turn, `repeats` times after a first round that compiles and warms up.

    Returns the medians of each side and, with both "jax" and "torch", the ratio of their times and
    the share of equal tokens.
    """
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for round_ in progress(range(repeats + 1), repeats + 1, "round", "bench"):
        for name, run in sides.items():
            timed = run()
            if round_:
                runs[name].append(timed)
    report: dict = {name: _medians(timed) for name, timed in runs.items()}
    if {"jax", "torch"} <= set(sides):
        jax_seconds, torch_seconds = report["jax"], report["torch"]
        report["torch_over_jax"] = {
            phase: torch_seconds[phase] / jax_seconds[phase] for phase in jax_seconds
        }
        same = runs["jax"][0].tokens == runs["torch"][0].tokens
        report["token_agreement"] = float(same.mean())
    return report


def device() -> str:
    """Describe the device and the cores of the measurement."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return f"{jax.devices()[0].device_kind}, {cores} cores"


def summary(report: dict, work: Workload) -> str:
    """Describe the report of `measure` in a few lines."""
    lines = []
    for side in ("jax", "torch"):
        if side in report:
            prefill, decode = (report[side][f"{phase}_seconds"] for phase in ("prefill", "decode"))
            rate = work.batch_size * work.new_tokens / decode
            lines.append(
                f"  {side:<6} prefill {prefill:.3f} s   decode {decode:.3f} s ({rate:.0f} tokens/s)"
            )
    if "torch_over_jax" in report:
        ratio = report["torch_over_jax"]
        lines.append(
            f"  torch / jax: prefill {ratio['prefill_seconds']:.2f}, "
            f"decode {ratio['decode_seconds']:.2f}, together {ratio['total_seconds']:.2f}; "
            f"equal tokens {report['token_agreement']:.1%}"
        )
    return "\n".join(lines)


def _medians(runs: list[Run]) -> dict[str, float]:
    """Return the median seconds of both phases and of their sum."""
    return {
        "prefill_seconds": statistics.median(run.prefill for run in runs),
        "decode_seconds": statistics.median(run.decode for run in runs),
        "total_seconds": statistics.median(run.prefill + run.decode for run in runs),
    }
