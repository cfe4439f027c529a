"""Timing prefill and decoding on made-up clips, ours beside the reference's on the same cores (the `bench` job)."""

import dataclasses
import statistics
import time

import jax
import numpy as np

from ugc_jax.config import OmniConfig
from ugc_jax.data.batching import Buckets, bucket_of, collate
from ugc_jax.data.features import log_mel, patchify
from ugc_jax.data.positions import layout
from ugc_jax.data.prompt import Text, Video
from ugc_jax.data.schema import Example
from ugc_jax.generate.engine import Engine
from ugc_jax.generate.sampling import SamplingConfig

TEXT_TOKENS = (15, 17)  # before and after the clip: about what a short question takes
SAMPLE_RATE = 16000


@dataclasses.dataclass(frozen=True)
class Workload:
    """A batch of equal clips: frames (2 a second) of height x width pixels and seconds of sound; tokens to generate."""

    batch_size: int
    frames: int
    height: int
    width: int
    seconds: float
    new_tokens: int


@dataclasses.dataclass(frozen=True)
class Run:
    """One timed run: seconds of both phases, and the tokens i32[B, new_tokens] (an ended row is padded)."""

    prefill: float
    decode: float
    tokens: np.ndarray


def examples(work: Workload, config: OmniConfig, seed: int = 0) -> list[Example]:
    """Clips of noise, each different; what is in them makes no difference to the time."""
    rng = np.random.default_rng(seed)

    def one() -> Example:
        frames = rng.integers(0, 256, (work.frames, work.height, work.width, 3), dtype=np.uint8)
        picture = patchify(frames, config.vision)
        mel = log_mel(rng.uniform(-0.5, 0.5, round(work.seconds * SAMPLE_RATE)).astype(np.float32))
        before, after = (
            Text(rng.integers(0, config.tokens.pad_token_id, n).tolist()) for n in TEXT_TOKENS
        )
        clip = Video(picture.grid, seconds_per_grid=1.0, audio_frames=len(mel))
        return Example(*layout([before, clip, after], config), vision=(picture,), mels=(mel,))

    return [one() for _ in range(work.batch_size)]


def run_ours(engine: Engine, prompts: list[Example], new_tokens: int) -> Run:
    """Greedy generation by `engine`, from host arrays to host arrays. The first call also compiles."""
    batch = collate(
        prompts, bucket_of(prompts[0], Buckets(), engine.config), len(prompts), engine.config
    )
    next_position = np.array([prompt.next_position for prompt in prompts], np.int32)
    key_ids = np.zeros(len(prompts), np.uint32)
    begun = time.perf_counter()
    prefilled = jax.block_until_ready(engine.prefill(batch))
    prefill = time.perf_counter() - begun
    begun = time.perf_counter()
    generated = engine.decode(
        batch, prefilled, next_position, SamplingConfig(max_new_tokens=new_tokens), key_ids
    )
    return Run(prefill, time.perf_counter() - begun, generated.tokens[:, :new_tokens])


def run_reference(model, inputs: dict, new_tokens: int) -> Run:
    """Greedy generation by the reference (hf/reference.py). Its prefill is a generation of one token."""
    import torch

    def generate(count: int) -> tuple[float, np.ndarray]:
        begun = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=count, do_sample=False)
        return time.perf_counter() - begun, out[:, inputs["input_ids"].shape[1] :].numpy()

    prefill, _ = generate(1)
    whole, tokens = generate(new_tokens)
    padded = np.full((len(tokens), new_tokens), model.config.pad_token_id)
    padded[:, : tokens.shape[1]] = tokens
    return Run(prefill, whole - prefill, padded)


def medians(runs: list[Run]) -> dict[str, float]:
    """Median seconds of both phases and of their sum."""
    return {
        "prefill_seconds": statistics.median(run.prefill for run in runs),
        "decode_seconds": statistics.median(run.decode for run in runs),
        "total_seconds": statistics.median(run.prefill + run.decode for run in runs),
    }


def agreement(first: Run, second: Run) -> float:
    """Share of equal tokens, position by position."""
    return float((first.tokens == second.tokens).mean())
