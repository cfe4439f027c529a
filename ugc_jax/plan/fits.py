"""What fits on given devices, by arithmetic alone: estimates in a second, without a compiler.

The state of a run is counted exactly, from its shapes and shardings; what a step needs besides is
estimated. Against the compiler's figures (docs/training.md, docs/paper.md) the sums are 15 % too
high at most and 12 % too low; `ugc-jax plan` compiles the programs.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import numpy as np

from ugc_jax.generate.engine import place_bytes, prefill_tokens
from ugc_jax.models.compute import ComputeConfig
from ugc_jax.models.params import abstract_params
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import SIZES, OmniConfig
from ugc_jax.plan.memory import shard_bytes
from ugc_jax.rl.settings import GRPO_SHORT, GrpoConfig
from ugc_jax.settings import Schema
from ugc_jax.sharding import make_mesh
from ugc_jax.train.settings import SFT_SHORT, SftConfig
from ugc_jax.train.state import Setup, abstract_state

FITS, TIGHT, NO = "fits", "tight", "no"
PLANNED = "3b", "7b"  # the sizes that have weights
TOKENS, NEW_TOKENS = 3072, 512  # of a prompt of 32 frames and 24 s of sound, and of its caption
_MARGIN = 1.12  # the estimates may be so much too low
_WORK = 8  # bytes a token and feed-forward unit: the activations of one layer
_PUBLISHED = "Qwen/Qwen2.5-Omni-"


class Fit(NamedTuple):
    """Whether a job fits on each device.

    work: "caption", "sft lora", "sft", "grpo lora", "grpo". needs, has: bytes of a device.
    verdict: FITS, TIGHT (between the estimate and what it may be too low) or NO. command: that does
    it here, in its smallest form: a row a device at a time.
    """

    work: str
    size: str
    needs: int
    has: int
    verdict: str
    command: str


def fits(devices: list[jax.Device], memory: int) -> list[Fit]:
    """Return estimates for each size and job; memory: free bytes of each device."""
    found = []
    for size in PLANNED:
        found.append(_caption(size, devices, memory))
        for name in ("sft", "grpo"):
            for variant in (":lora", ""):
                found.append(_training(name, size, variant, devices, memory))
    return found


def verdict(needs: int, has: int) -> str:
    """Return whether bytes that are needed fit into those that are there."""
    return NO if needs > has else FITS if needs * _MARGIN <= has else TIGHT


# ---- captions ------------------------------------------------------------------------------------


def _caption(size: str, devices: list[jax.Device], memory: int) -> Fit:
    """The first of the ways to caption that fits, else the last one."""
    command = f"ugc-jax caption --checkpoint {_PUBLISHED}{size.upper()}"
    if size == "3b":  # that of the published captioner, which is the default
        command = "ugc-jax caption"
    model, ways = SIZES[size](), [(1, "auto", command)]
    if devices[0].platform == "cpu":
        ways.append((1, "bfloat16", f"{command} --dtype bfloat16"))
    ways += [
        (tensor, "auto", f"{command} --mesh.tensor {tensor}")
        for tensor in (2, 4)
        if tensor <= len(devices) and not model.text.num_key_value_heads % tensor
    ]
    for tensor, dtype, words in ways:
        needs = caption_bytes(model, devices[:tensor], dtype)
        fit = Fit("caption", size, needs, memory, verdict(needs, memory), f"{words} clip.mp4")
        if fit.verdict == FITS:
            break
    return fit


def caption_bytes(model: OmniConfig, devices: list[jax.Device], dtype: str = "auto") -> int:
    """Return the bytes of each device for captions of one clip at a time.

    dtype: as of `ComputeConfig`. devices: they share the weights (mesh.tensor).
    """
    compute = ComputeConfig(dtype).resolve(devices[0], model.text.head_dim)
    item = np.dtype(compute.dtype).itemsize
    place = place_bytes(model, TOKENS, NEW_TOKENS, 1, compute.dtype)
    mesh = make_mesh(1, 1, len(devices), devices)
    together = max(TOKENS, prefill_tokens(mesh))
    work = together * model.text.intermediate_size * item * 4
    whole = _weights(model, compute.dtype) + work
    # Half of what the weights leave is for the caches.
    return whole // len(devices) + 2 * place // len(devices)


def _weights(model: OmniConfig, dtype: str) -> int:
    leaves = jax.tree.leaves(abstract_params(thinker.declare(model), dtype))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


# ---- training ------------------------------------------------------------------------------------


def _training(name: str, size: str, variant: str, devices: list[jax.Device], memory: int) -> Fit:
    config, words = _smallest(name, variant, size, len(devices))
    needs = training_bytes(config, SIZES[size](), devices)
    work = f"{name} lora" if variant else name
    command = f"ugc-jax {name} {' '.join(words)}"
    return Fit(work, size, needs, memory, verdict(needs, memory), command)


def training_needs(
    name: str, variant: str, size: str, devices: list[jax.Device], dtype: str = "auto"
) -> int:
    """Return the bytes of each device that a config needs in its smallest form.

    name: "sft" or "grpo". variant: "" or ":lora". dtype: as of `ComputeConfig`.
    """
    config, _ = _smallest(name, variant, size, len(devices), "--dtype", dtype)
    return training_bytes(config, SIZES[size](), devices)


def _smallest(
    name: str, variant: str, size: str, count: int, *further: str
) -> tuple[SftConfig | GrpoConfig, list[str]]:
    """A config with a row a device at a time, and the words that say so on the command line."""
    is_grpo = name == "grpo"
    cls, short = (GrpoConfig, GRPO_SHORT) if is_grpo else (SftConfig, SFT_SHORT)
    schema, words = Schema(cls, short=short), ["--config", f"{name}_{size}{variant}"]
    config, _ = schema.parse(words)
    if is_grpo and count % config.rollout.mesh.tensor:
        words += ["--rollout.mesh.tensor", "1"]
    parts = max(1, round(config.data.batch_size / count))
    if parts * count != config.data.batch_size:
        words += ["--batch_size", str(parts * count)]
    if parts > 1:
        words += ["--loop.accumulate", str(parts)]
        words += ["--rollout.parts", str(parts)] if is_grpo else []
    return schema.parse([*words, *further])[0], words


def training_bytes(
    config: SftConfig | GrpoConfig, model: OmniConfig, devices: list[jax.Device]
) -> int:
    """Return the peak bytes of each device in a step of an sft or grpo config."""
    mesh = make_mesh(**dataclasses.asdict(config.mesh), devices=devices)
    setup = config.setup(model, mesh, Setup.steps)
    rows = max(1, config.data.batch_size // config.loop.accumulate // mesh.size)
    state, tokens = abstract_state(setup), config.data.tokens
    held = shard_bytes(state)
    if not isinstance(config, GrpoConfig):
        return held + _step_bytes(setup, state, rows, tokens)
    samples, new = config.rollout.samples, config.rollout.sampling.max_new_tokens
    update = held + _step_bytes(setup, state, rows, tokens + samples * new)
    # While completions are sampled, the weights are there once more, on the mesh for sampling; on a
    # single device only those that are trained, in the compute dtype. When they move there, token
    # embeddings and head are there twice.
    text, item = model.text, np.dtype(setup.compute.dtype).itemsize
    if mesh.size > 1:
        tensor = config.rollout.mesh.tensor or mesh.shape["tensor"]
        copy = _weights(model, setup.compute.dtype) // tensor
        moving = 2 * text.vocab_size * text.hidden_size * item // tensor
    else:
        copy = shard_bytes(state.params) * item // np.dtype(setup.master).itemsize
        moving = 0
    prompts = max(1, config.data.batch_size // config.rollout.parts // mesh.size)
    caches = prompts * place_bytes(model, tokens, new, samples, setup.compute.dtype)
    prefill = prompts * tokens * text.intermediate_size * _WORK
    return max(update, held + copy + max(moving, caches + prefill))


def _step_bytes(setup: Setup, state, rows: int, tokens: int) -> int:
    """What a train step with `rows` rows of `tokens` tokens on each device needs above its state.

    Gradients, and the trained weights in the compute dtype; the inputs of all layers, from which
    the backward pass computes the rest again (remat), or else the activations of all layers; and
    where the weights are split, token embeddings and head whole.
    """
    text, item = setup.model.text, np.dtype(setup.compute.dtype).itemsize
    trained, master = shard_bytes(state.params), np.dtype(setup.master).itemsize
    cast = trained * item // master if item != master else 0
    inputs = rows * tokens * text.hidden_size * item * text.num_hidden_layers
    layers = 1 if setup.compute.remat == "full" else text.num_hidden_layers
    work = rows * tokens * text.intermediate_size * _WORK * layers
    whole = 0
    if setup.mesh.size > 1:
        kept = master if setup.trainable.embeddings and not setup.lora.rank else item
        whole = 2 * text.vocab_size * text.hidden_size * kept
    return trained + cast + inputs + work + whole
