"""The workload "mixed" of bench: clips of many lengths, through the engine and in plain batches.

    clips -> engine, batches, reference, peer: functions that return the tokens of every clip
        -> measure

Each clip has a limit of its own, which stands for the end-of-text token of a trained model: random
weights hardly ever give one.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ugc_jax.data.batching import Buckets, bucket_of, collate, group
from ugc_jax.data.example import Example
from ugc_jax.errors import UserError
from ugc_jax.generate.benchmark import (
    SECONDS_PER_GRID,
    Noise,
    Workload,
    agreement,
    describe_first,
    noise,
    preprocess,
)
from ugc_jax.generate.engine import Engine, Group, Listed, Request, prefill_tokens
from ugc_jax.generate.peer import Answer, Peer
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.progress import progress
from ugc_jax.settings import check_minimum

BATCH = 8  # clips of a plain batch
PROMPTS = "its prompts"  # the side that ends with the first token

Tokens = list[np.ndarray]  # of each clip, i32[n]
Side = Callable[[], Answer | Tokens]  # an Answer has its own time


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixedWorkload:
    """Clips of lengths drawn evenly between two, each with sound."""

    clips: int = 64  # number of clips
    shortest: float = 3.0  # seconds of the shortest clip
    longest: float = 28.0  # seconds of the longest clip
    fewest: int = 16  # new tokens of the clip that has fewest
    most: int = 256  # new tokens of the clip that has most
    seed: int = 0  # of lengths, new tokens and noise

    def __post_init__(self):
        check_minimum(self, clips=1, fewest=1, seed=0)
        if not 1 <= self.shortest <= self.longest:
            raise UserError(
                f"shortest is {self.shortest:g} and longest {self.longest:g}; "
                "give 1 <= shortest <= longest"
            )
        if self.most < self.fewest:
            raise UserError(f"most is {self.most}; use at least fewest, {self.fewest}")


class Clip(NamedTuple):
    """A prompt, before and after its preprocessing, and how many tokens to generate after it."""

    prompt: Noise
    example: Example
    limit: int


def clips(work: MixedWorkload, frame: Workload, config: OmniConfig) -> list[Clip]:
    """Make the clips, of noise. frame: has height and width of the frames, 2 a second."""
    rng = np.random.default_rng(work.seed)
    seconds = rng.uniform(work.shortest, work.longest, work.clips)
    limits = rng.integers(work.fewest, work.most + 1, work.clips)
    made = []
    for number, (length, limit) in enumerate(zip(seconds, limits, strict=True)):
        one = dataclasses.replace(
            frame, batch_size=1, frames=2 * round(length), seconds=float(round(length))
        )
        (prompt,) = noise(one, config, seed=work.seed + number)
        made.append(Clip(prompt, preprocess(prompt, config), int(limit)))
    return made


def by_engine(
    params: dict, engine: Engine, work: Sequence[Clip], places: int | None = None
) -> Callable[[], Answer]:
    """Return a function that generates by `Engine.run`. places: see there."""
    config, budget = engine.config, prefill_tokens(engine.mesh)
    numbered = [(number, clip.example) for number, clip in enumerate(work)]
    options = [SamplingConfig(max_new_tokens=clip.limit).resolve() for clip in work]

    def groups():
        waiting: dict = {}
        for number, example in numbered:
            key = bucket_of(example, Buckets(), config)
            members = waiting.setdefault(key, [])
            members.append((number, example))
            if len(members) == max(1, budget // key.tokens):
                yield made(key, waiting.pop(key))
        for key, members in waiting.items():
            yield made(key, members)

    def made(key, members) -> Group:
        rows = max(1, budget // key.tokens)
        batch = collate([example for _, example in members], key, rows, config)
        requests = [Request(number, options[number], [0]) for number, _ in members]
        return Group(batch, requests + [None] * (rows - len(members)))

    def run() -> Answer:
        start = time.perf_counter()
        tokens: Tokens = [None] * len(work)
        first = np.zeros(len(work), np.float32)
        most = max(clip.limit for clip in work)
        for one in engine.run(params, Listed(groups()), places, most, most=len(work)):
            if one.error is not None:
                raise UserError(one.error)
            tokens[one.tag], first[one.tag] = one.tokens, one.logprobs[0]
        return Answer(time.perf_counter() - start, tokens, first)

    return run


def by_batches(params: dict, engine: Engine, work: Sequence[Clip]) -> Callable[[], Tokens]:
    """Return a function that generates batch after batch of one bucket, each to its longest."""
    config = engine.config
    numbered = [(number, clip.example) for number, clip in enumerate(work)]

    def run() -> Tokens:
        tokens: Tokens = [None] * len(work)
        for key, members in group(numbered, BATCH, Buckets(), config):
            batch = collate([example for _, example in members], key, BATCH, config)
            limits = [work[number].limit for number, _ in members]
            options = SamplingConfig(max_new_tokens=max(limits))
            out = engine.generate(params, batch, options, np.zeros(BATCH, np.uint32))
            for row, (number, _) in enumerate(members):
                tokens[number] = out.tokens[row, : min(out.lengths[row], limits[row])]
        return tokens

    return run


def by_reference(
    checkpoint: Path, dtype: str, config: OmniConfig, work: Sequence[Clip]
) -> dict[str, Callable[[], Tokens]]:
    """Return functions that do the same by transformers on a CPU, in left-padded batches in order.

    "transformers" generates; PROMPTS ends with the first token: the part of its time that faster
    decoding cannot save.
    """
    import torch

    from ugc_jax.hf.reference import load_reference, reference_inputs

    model = load_reference(checkpoint, dtype)

    def run(work: Sequence[Clip]) -> Tokens:
        tokens: Tokens = []
        for start in range(0, len(work), BATCH):
            part = work[start : start + BATCH]
            seconds = [SECONDS_PER_GRID] * len(part)
            prompts = [clip.example for clip in part]
            inputs = reference_inputs(prompts, config, seconds, audio_in_video=True)
            most = max(clip.limit for clip in part)
            with torch.inference_mode():
                out = model.generate(**inputs, max_new_tokens=most, do_sample=False)
            rows = out[:, inputs["input_ids"].shape[1] :].numpy()
            tokens += [row[: clip.limit] for row, clip in zip(rows, part, strict=True)]
        return tokens

    prompts = [clip._replace(limit=1) for clip in work]
    return {"transformers": lambda: run(work), PROMPTS: lambda: run(prompts)}


def by_peer(peer: Peer, work: Sequence[Clip]) -> Callable[[], Answer]:
    """Return the same by vLLM; the first run, which is not timed, also asks for log-probs."""
    runs, limits = itertools.count(), [clip.limit for clip in work]
    return lambda: peer.run(limits, logprobs=next(runs) == 0)


def measure(sides: dict[str, Side], repeats: int) -> dict:
    """Run the sides in turn, `repeats` times after a first round that compiles and warms up.

    Returns for each side its median seconds, those of the first round, the ratio of its time to the
    first one's, and, but for PROMPTS, generated tokens a second and what its tokens have in common
    with the first one's (`benchmark.agreement`).
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    answers: dict[str, Answer] = {}  # of the first round
    for _ in progress(range(repeats + 1), repeats + 1, "round", "bench"):
        for name, run in sides.items():
            start = time.perf_counter()
            out = run()
            if not isinstance(out, Answer):
                out = Answer(time.perf_counter() - start, out)
            seconds[name].append(out.seconds)
            answers.setdefault(name, out)
    first, report = next(iter(sides)), {}
    for name, (cold, *warm) in seconds.items():
        median = statistics.median(warm)
        report[name] = {
            "seconds": median,
            "first_seconds": cold,
            "over_engine": median / statistics.median(seconds[first][1:]),
        }
        if name == PROMPTS:
            continue
        both = answers[first], answers[name]
        count = sum(map(len, answers[name].tokens))
        found = agreement(*(one.tokens for one in both), *(one.first_logprobs for one in both))
        report[name] |= {
            "tokens_per_second": count / median,
            "token_agreement": found["tokens"],
            "agreement": found,
        }
    return report


def summary(report: dict) -> str:
    """Describe the report of `measure`, a line a side."""

    def line(name: str, side: dict) -> str:
        tokens = equal = " "
        if name != PROMPTS:
            tokens = f"{side['tokens_per_second']:8.1f} tokens/s   "
            equal = f"   equal tokens {side['token_agreement']:.1%}"
            equal += f"{describe_first(side['agreement']) * (name == 'vllm')}   "
        return (
            f"  {name:<13}{side['seconds']:8.2f} s {tokens}{side['over_engine']:5.2f} x the "
            f"engine's time{equal}(first round {side['first_seconds']:.1f} s)"
        )

    return "\n".join(line(name, side) for name, side in report.items())
