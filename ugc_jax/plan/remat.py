"""The choice of compute.remat=auto: the least recomputation with which a train step fits."""

import dataclasses
import logging
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from ugc_jax.data.batching import Batch
from ugc_jax.generate.engine import free_memory
from ugc_jax.plan.grpo import update_peak
from ugc_jax.plan.memory import compiled_memory, gib
from ugc_jax.rl.options import GrpoOptions
from ugc_jax.rl.rollout import RolloutConfig
from ugc_jax.train.state import Setup, abstract_state
from ugc_jax.train.step import jit_step, train_step

logger = logging.getLogger(__name__)

LEAST_FIRST = ("none", "dots", "full")  # by what the backward pass computes again


def with_remat(setup: Setup, remat: str) -> Setup:
    """Return the setup with another value of compute.remat."""
    return dataclasses.replace(setup, compute=dataclasses.replace(setup.compute, remat=remat))


def least_remat(setup: Setup, peak: Callable[[Setup], int], has: int) -> Setup:
    """Return the setup with the least recomputation whose peak is at most `has` bytes.

    peak: compiles a setup's step and returns its peak bytes on one device. The last choice, "full",
    is not tried: nothing would take less.
    """
    for remat in LEAST_FIRST[:-1]:
        needs = peak(with_remat(setup, remat))
        fits = needs <= has
        logger.info(
            "compute.remat=auto: %s needs %s of %s GiB: %s",
            remat, gib(needs), gib(has), "chosen" if fits else "too much",
        )  # fmt: skip
        if fits:
            return with_remat(setup, remat)
    logger.info("compute.remat=auto: full is chosen")
    return with_remat(setup, "full")


def sft_peak(setup: Setup, batch: Batch) -> int:
    """Return the peak bytes of one device in the train step of SFT."""
    step, state = jit_step(train_step, setup), abstract_state(setup)
    with jax.set_mesh(setup.mesh):
        return compiled_memory(step.trace(state, batch), counts=False).peak


def grpo_peak(setup: Setup, options: GrpoOptions, config: RolloutConfig, prompts: Batch) -> int:
    """Return the peak bytes of one device in the update of GRPO."""
    return update_peak(setup, options, config, prompts)


def device_memory(mesh: jax.sharding.Mesh) -> int:
    """Return the bytes that a program may use on each device of a mesh: those of process 0."""
    devices = mesh.local_devices
    if devices[0].platform == "cpu":
        has = free_memory(devices[0]) // len(devices)
    else:
        has = min((device.memory_stats() or {}).get("bytes_limit", 0) for device in devices)
    # All processes must compile the same program.
    return int(multihost_utils.broadcast_one_to_all(np.int32(has >> 20))) << 20
