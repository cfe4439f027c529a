"""Time prefill and decoding on clips of noise, ours and the reference's on the same cores.

examples -> ours, reference: functions that return one Run -> measure: a report -> summary: text
"""

import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ugc_jax.data.batching import Buckets, bucket_of, collate
from ugc_jax.data.example import Example
from ugc_jax.data.features import log_mel, patchify
from ugc_jax.data.prompt import Medium, Text, layout
from ugc_jax.errors import UserError
from ugc_jax.generate.engine import Engine
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.models.qwen2_5_omni import decoder, thinker
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY, SAMPLE_RATE, OmniConfig
from ugc_jax.progress import progress

SIDES = ("jax", "plain", "torch", "vllm")  # names of `measure`; plain: ours without int8
SECONDS_PER_GRID = 1.0  # two frames a second
CELL = GEOMETRY.vision.cell_pixels  # frames are whole cells, as after the resize of a real clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """The batch, of equal prompts: a clip and a question, or text alone."""

    batch_size: int = 4  # clips generated together
    frames: int = 16  # of each clip, 2 a second; 0, with seconds 0: text alone
    height: int = 224  # of a frame, in pixels; whole cells of the vision encoder
    width: int = 224  # of a frame, in pixels; whole cells of the vision encoder
    seconds: float = 8.0  # of sound in each clip
    text_tokens: int = 32  # of each prompt, before and after the clip
    new_tokens: int = 64  # to generate for each clip

    def __post_init__(self):
        clip = ("frames", "seconds") if self.has_clip else ()
        for name in ("batch_size", *clip, "text_tokens", "new_tokens"):
            if getattr(self, name) <= 0:
                hint = ", or 0 for both frames and seconds: text alone" if name in clip else ""
                raise UserError(f"{name} is {getattr(self, name)}; use a positive number{hint}")
        for name in ("height", "width"):
            side = getattr(self, name)
            if side <= 0 or side % CELL:
                raise UserError(f"{name} is {side}; use a multiple of {CELL}")

    @property
    def has_clip(self) -> bool:
        """Whether the prompts are more than text."""
        return bool(self.frames or self.seconds)


class Noise(NamedTuple):
    """A prompt of noise before its preprocessing.

    before, after: token ids. frames: u8[n, h, w, 3], 2 a second, and sound: f32[samples]; both None
    for text alone.
    """

    before: list[int]
    frames: np.ndarray | None
    sound: np.ndarray | None
    after: list[int]


@dataclasses.dataclass(frozen=True)
class Run:
    """One timed run: seconds of both phases, and the tokens, i32[B, new_tokens], padded.

    first_logprobs: f32[B], of the first tokens, where they are known.
    """

    prefill: float
    decode: float
    tokens: np.ndarray
    first_logprobs: np.ndarray | None = None


def noise(work: Workload, config: OmniConfig, seed: int = 0) -> list[Noise]:
    """Make the prompts of the workload, each of different noise."""
    rng = np.random.default_rng(seed)
    before = (work.text_tokens - 1) // 2
    texts = before, work.text_tokens - before

    def one() -> Noise:
        frames = sound = None
        if work.has_clip:
            shape = work.frames, work.height, work.width, 3
            frames = rng.integers(0, 256, shape, dtype=np.uint8)
            sound = rng.uniform(-0.5, 0.5, round(work.seconds * SAMPLE_RATE)).astype(np.float32)
        before, after = (rng.integers(0, config.tokens.pad_token_id, n).tolist() for n in texts)
        return Noise(before, frames, sound, after)

    return [one() for _ in range(work.batch_size)]


def preprocess(prompt: Noise, config: OmniConfig) -> Example:
    """Return the prompt as the model takes it."""
    before, after = Text(prompt.before), Text(prompt.after)
    if prompt.frames is None:
        return Example(**layout([before, after], config)._asdict(), vision=(), mels=())
    picture, mel = patchify(prompt.frames, config.vision), log_mel(prompt.sound)
    clip = Medium("video", picture.grid, SECONDS_PER_GRID, len(mel))
    parts = layout([before, clip, after], config)
    return Example(**parts._asdict(), vision=(picture,), mels=(mel,))


def examples(work: Workload, config: OmniConfig, seed: int = 0) -> list[Example]:
    """Make the prompts of the workload and preprocess them."""
    return [preprocess(prompt, config) for prompt in noise(work, config, seed)]


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
        tokens, first = generated.tokens[:, :new_tokens], generated.logprobs[:, 0]
        return Run(middle - start, end - middle, tokens, first)

    return run


def reference(
    checkpoint: Path, dtype: str, config: OmniConfig, prompts: list[Example], new_tokens: int
) -> Callable[[], Run]:
    """Return the same by transformers on a CPU; its prefill is the generation of one token."""
    import torch

    from ugc_jax.hf.reference import load_reference, reference_inputs

    model = load_reference(checkpoint, dtype)
    seconds = [SECONDS_PER_GRID] * len(prompts)
    inputs = reference_inputs(prompts, config, seconds, audio_in_video=bool(prompts[0].mels))

    def generate(count: int) -> tuple[float, np.ndarray]:
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=count, do_sample=False)
        return time.perf_counter() - start, out[:, inputs["input_ids"].shape[1] :].numpy()

    def run() -> Run:
        prefill, _ = generate(1)
        whole, tokens = generate(new_tokens)
        return Run(prefill, whole - prefill, padded(tokens, new_tokens, config))

    return run


Side = tuple[dict, Engine]  # the parameters of a model, and its engine


def int8_agreement(plain: Side, small: Side, prompts: list[Example], tokens_BN: np.ndarray) -> dict:
    """Compare the next token's distributions of a model and of the same in int8.

    tokens_BN: i32, generated by the plain one; both sides get them as their earlier tokens, so that
    one difference does not lead to others. Returns "greedy", the share of equal most likely tokens,
    and the divergence KL(plain || small) in nats, "kl" on average and "kl_most" of any token.
    """
    eos = plain[1].config.tokens.eos_token_id
    live_BN = np.cumsum(tokens_BN == eos, axis=1) - (tokens_BN == eos) == 0
    equal, divergences = [], []
    both = (_forced(*side, prompts, tokens_BN) for side in (plain, small))
    for live_B, first_BV, second_BV in zip(live_BN.T, *both, strict=True):
        p, q = (jax.nn.log_softmax(logits, axis=-1) for logits in (first_BV, second_BV))
        kl_B = np.asarray(jnp.sum(jnp.exp(p) * (p - q), axis=-1))
        equal.append(np.asarray(p.argmax(-1) == q.argmax(-1))[live_B])
        divergences.append(kl_B[live_B])
    kl = np.concatenate(divergences)
    return {
        "greedy": float(np.concatenate(equal).mean()),
        "kl": float(kl.mean()),
        "kl_most": float(kl.max()),
    }


def _forced(params: dict, engine: Engine, prompts: list[Example], tokens_BN) -> Iterator[jax.Array]:
    """Yield the logits f32[B, V] of each place of given tokens, by prefill and decode steps."""
    config, compute = engine.config, engine.compute
    B, N = tokens_BN.shape
    batch = collate(prompts, bucket_of(prompts[0], Buckets(), config), B, config)
    step = jax.jit(functools.partial(thinker.decode_step, config=config, compute=compute))
    with engine.on_mesh():
        prefilled = engine.prefill(params, batch)
        yield prefilled.logits
        stacked = isinstance(prefilled.cache, decoder.Cache)
        in_int8 = compute.cache == "int8"
        own = decoder.empty_cache(config.text, (B, 1), N, compute.dtype, stacked, in_int8)
        for n in range(N - 1):
            logits, own = step(
                params, token_R=tokens_BN[:, n], position_R=batch.next_position + n,
                prompt=prefilled.cache, prompt_BT=batch.segment_ids > 0, own=own,
                own_RN=np.broadcast_to(np.arange(N) < n, (B, N)), slot=np.int32(n),
            )  # fmt: skip
            yield logits


def padded(tokens: Iterable[np.ndarray], length: int, config: OmniConfig) -> np.ndarray:
    """Return the tokens of all rows, i32[B, length], with padding after them."""
    rows = list(tokens)
    out = np.full((len(rows), length), config.tokens.pad_token_id, np.int32)
    for row, own in zip(out, rows, strict=True):
        row[: len(own)] = own
    return out


def measure(sides: dict[str, Callable[[], Run]], repeats: int) -> dict:
    """Run the sides in turn, `repeats` times after a first round that compiles and warms up.

    Returns the medians of each side and, of each side beside the first, "jax", the ratio of the
    times and what its tokens have in common with the first one's (`agreement`).
    """
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for _ in progress(range(repeats + 1), repeats + 1, "round", "bench"):
        for name, run in sides.items():
            runs[name].append(run())
    report: dict = {name: _medians(timed[1:]) for name, timed in runs.items()}
    first, *others = sides
    for name in others:
        report[f"{name}_over_{first}"] = {
            phase: report[name][phase] / seconds for phase, seconds in report[first].items()
        }
        both = runs[first][0], runs[name][0]
        report[f"{name}_agreement"] = agreement(
            *(run.tokens for run in both), *(run.first_logprobs for run in both)
        )
    if "torch" in others:
        report["token_agreement"] = report["torch_agreement"]["tokens"]
    return report


def agreement(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], *firsts) -> dict:
    """Compare the tokens i32[n] of each prompt.

    firsts: the log-probs of the first tokens of both, f32[prompts] or None.
    Returns the share of equal "tokens" (of the longer ones), that of equal "first_tokens", and, if
    both log-probs are known, "first_logprob_difference", the largest among equal ones.
    """
    pairs = list(zip(ours, theirs, strict=True))
    same = sum(int((a[: len(b)] == b[: len(a)]).sum()) for a, b in pairs)
    first = np.array([bool((a[:1] == b[:1]).all()) for a, b in pairs])
    found = {
        "tokens": same / sum(max(len(a), len(b)) for a, b in pairs),
        "first_tokens": float(first.mean()),
    }
    known = len(firsts) == 2 and all(one is not None for one in firsts)
    if known and first.any():
        found["first_logprob_difference"] = float(np.abs(np.subtract(*firsts))[first].max())
    return found


def device() -> str:
    """Describe the device and the cores of the measurement."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return f"{jax.devices()[0].device_kind}, {cores} cores"


def summary(report: dict, work: Workload) -> str:
    """Describe the report of `measure` in a few lines."""
    first, *others = (name for name in SIDES if name in report)
    lines = []
    for name in (first, *others):
        prefill, decode = (report[name][f"{phase}_seconds"] for phase in ("prefill", "decode"))
        rate = work.batch_size * work.new_tokens / decode
        lines.append(
            f"  {name:<6} prefill {prefill:.3f} s   decode {decode:.3f} s ({rate:.0f} tokens/s)"
        )
    for name in others:
        ratio, found = report[f"{name}_over_{first}"], report[f"{name}_agreement"]
        lines.append(
            f"  {name} / {first}: prefill {ratio['prefill_seconds']:.2f}, "
            f"decode {ratio['decode_seconds']:.2f}, together {ratio['total_seconds']:.2f}; "
            f"equal tokens {found['tokens']:.1%}{describe_first(found)}"
        )
    if small := report.get("int8"):
        lines.append(
            f"  int8 after the same tokens: most likely token equal {small['greedy']:.2%}, "
            f"KL {small['kl']:.2g} nats, {small['kl_most']:.2g} at most"
        )
    return "\n".join(lines)


def describe_first(found: dict[str, float]) -> str:
    """Describe the first tokens of a result of `agreement`; "" where log-probs are not known."""
    if "first_logprob_difference" not in found:
        return ""
    difference = found["first_logprob_difference"]
    return f", first tokens {found['first_tokens']:.1%}, their log-probs within {difference:.3f}"


def _medians(runs: list[Run]) -> dict[str, float]:
    """Return the median seconds of both phases and of their sum."""
    return {
        "prefill_seconds": statistics.median(run.prefill for run in runs),
        "decode_seconds": statistics.median(run.decode for run in runs),
        "total_seconds": statistics.median(run.prefill + run.decode for run in runs),
    }
