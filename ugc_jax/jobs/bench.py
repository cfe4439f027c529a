"""Time prefill and decoding on clips of noise, or on text.

Where torch and transformers are installed and the device is a CPU, the reference is timed on the
same weights, inputs and cores, and the tokens of both are compared. So is vLLM, in an environment
of its own (--vllm_python).

With --compute.weights=int8 or --compute.cache=int8, equal clips are also timed without them
("plain"), and the next token's distributions of both are compared: the share of equal most likely
tokens, and the divergence.
"""

import contextlib
import dataclasses
import importlib.util
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Literal

import jax

from ugc_jax import files
from ugc_jax.errors import UserError
from ugc_jax.generate import benchmark, mixed
from ugc_jax.generate import peer as peers
from ugc_jax.generate.captioner import Captioner
from ugc_jax.generate.mixed import MixedWorkload
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.hf.random_weights import write_random
from ugc_jax.models.compute import ComputeConfig
from ugc_jax.models.qwen2_5_omni.config import SIZES
from ugc_jax.settings import Schema, check_minimum, short_names
from ugc_jax.toy import corpus

logger = logging.getLogger(__name__)

# Measured with vLLM 0.32 in float32. Text, frames alone and sound alone agree within 1e-5.
VLLM_NOTE = (
    "  vLLM's tokens agree on text; with sound between frames its log-probs are off (0.07 to "
    "0.16 nats) from transformers', which are ours"
)
MIN_AGREEMENT = 0.9  # share of equal tokens; with less the two sides do not run the same model


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Settings of bench."""

    checkpoint: str | None = None  # directory or hub id; random weights of `size` without it
    size: Literal["tiny", "mid", "3b"] = "mid"  # of the random weights
    tokenizer: str | None = None  # directory of a tokenizer, whose vocabulary `size` gets
    repeats: int = 5  # timed runs of each side, in turn; their medians are reported
    reference: bool = True  # also time the reference, where it can run
    # Python of an environment with vLLM (docs/serving.md), which is timed, too
    vllm_python: str | None = None
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
    """Exit status 0, or 1 when our tokens, without int8, are not those of the reference."""
    check_minimum(config, repeats=1)
    if config.checkpoint is not None and config.tokenizer is not None:
        raise UserError("tokenizer is for random weights; leave it out, or leave checkpoint out")
    if config.vllm_python is not None and shutil.which(config.vllm_python) is None:
        raise UserError(f"vllm_python: {config.vllm_python}: no such program; {peers.REMEDY}")
    work, new_tokens = config.workload, config.workload.new_tokens
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        checkpoint = _checkpoint(config, Path(folder) / "random")
        captioner = Captioner.from_pretrained(checkpoint, **dataclasses.asdict(config.compute))
        params, engine = captioner.params, captioner.engine
        source = checkpoint, engine.compute.dtype, engine.config
        compared = config.reference and _reference_runs()
        in_int8 = "int8" in (config.compute.weights, config.compute.cache)

        def peer(prompts, examples, new_tokens) -> peers.Peer:
            positions = max(len(one.tokens) for one in examples) + new_tokens
            own = Path(folder) / "peer"
            own.mkdir()
            python = config.vllm_python
            return stack.enter_context(peers.Peer(python, *source, prompts, positions, own))

        if config.work == "mixed":
            clips = mixed.clips(config.mixed, work, engine.config)
            sides = {
                "engine": mixed.by_engine(params, engine, clips),
                "batches": mixed.by_batches(params, engine, clips),
            }
            if compared:
                sides |= mixed.by_reference(*source, clips)
            if config.vllm_python is not None:
                prompts, examples, limits = zip(*clips, strict=True)
                sides["vllm"] = mixed.by_peer(peer(prompts, examples, max(limits)), clips)
            report = mixed.measure(sides, config.repeats)
            what, text = f"{len(clips)} mixed clips", mixed.summary(report)
        else:
            prompts = benchmark.noise(work, engine.config)
            examples = [benchmark.preprocess(prompt, engine.config) for prompt in prompts]
            sides = {"jax": benchmark.ours(params, engine, examples, new_tokens)}
            if in_int8:
                whole = dataclasses.replace(config.compute, weights="auto", cache="auto")
                plain = Captioner.from_pretrained(checkpoint, **dataclasses.asdict(whole))
                sides["plain"] = benchmark.ours(plain.params, plain.engine, examples, new_tokens)
            if compared:
                sides["torch"] = benchmark.reference(*source, examples, new_tokens)
            if config.vllm_python is not None:
                vllm = peer(prompts, examples, new_tokens)
                sides["vllm"] = peers.by_peer(vllm, engine.config, len(prompts), new_tokens)
            report = benchmark.measure(sides, config.repeats)
            if in_int8:
                both = (plain.params, plain.engine), (params, engine)
                tokens = sides["plain"]().tokens
                report["int8"] = benchmark.int8_agreement(*both, examples, tokens)
            what, text = f"batch {work.batch_size}", benchmark.summary(report, work)
    print(f"{benchmark.device()}; {what}, {engine.compute.dtype}, medians")
    print(text)
    if config.vllm_python is not None:
        print(VLLM_NOTE)
    if config.output is not None:
        settings = dataclasses.asdict(config)
        content = {"settings": settings, "device": benchmark.device(), **report}
        files.write_json(config.output, content, "choose another file", indent=2)
    if report.get("token_agreement", 1) < MIN_AGREEMENT and not in_int8:
        logger.error("the tokens differ from those of the reference")
        return 1
    return 0


def _checkpoint(config: BenchConfig, folder: Path) -> Path:
    if config.checkpoint is not None:
        return resolve_checkpoint(config.checkpoint)
    dtype = "bfloat16" if config.compute.dtype == "bfloat16" else "float32"
    size = SIZES[config.size]()
    write_random(folder, size, corpus.LINES, dtype=dtype, tokenizer=config.tokenizer)
    return folder


def _reference_runs() -> bool:
    installed = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    return installed and jax.default_backend() == "cpu"
