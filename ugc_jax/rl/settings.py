"""The settings of a GRPO run, section by section."""

import dataclasses
from typing import ClassVar

from jax.sharding import Mesh

from ugc_jax.errors import UserError
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.rl.options import GrpoOptions
from ugc_jax.rl.rewards.runner import RewardConfig
from ugc_jax.rl.rollout import RolloutConfig
from ugc_jax.sharding import check_heads, reshape_mesh, shard_count
from ugc_jax.train.optimizer import OptimizerConfig
from ugc_jax.train.settings import SHORT, LoopConfig, TrainConfig
from ugc_jax.train.state import Setup


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrpoConfig(TrainConfig):
    """Settings of grpo."""

    KIND: ClassVar[str] = "grpo"
    # A checkpoint counts updates and batches of prompts, and may hold a reference.
    FIXED: ClassVar[tuple[str, ...]] = (
        *TrainConfig.FIXED, "grpo.iterations", "grpo.minibatches", "grpo.dynamic_sampling",
        "grpo.resamples",
    )  # fmt: skip
    FIXED_ZERO: ClassVar[tuple[str, ...]] = ("grpo.beta",)

    # small steps, as rewards are noisy; an adapter takes 1e-5
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6, schedule="constant")
    loop: LoopConfig = LoopConfig(log_every=1, save_every=50)  # steps are long
    grpo: GrpoOptions = GrpoOptions()
    rollout: RolloutConfig = RolloutConfig()
    rewards: RewardConfig = RewardConfig()

    def __post_init__(self):
        super().__post_init__()
        if self.grpo.reference_sync and self.lora.rank:
            raise UserError(
                "grpo.reference_sync: an adapter's reference is the frozen model without it; "
                "set it to 0"
            )
        if self.grpo.overlong > self.rollout.sampling.max_new_tokens:
            raise UserError(
                f"grpo.overlong is {self.grpo.overlong}, more than rollout.sampling.max_new_tokens "
                f"{self.rollout.sampling.max_new_tokens}; use a shorter window"
            )

    @property
    def further_batches(self) -> int:
        """Return the maximum number of further batches of a step, by dynamic sampling."""
        return self.grpo.resamples if self.grpo.dynamic_sampling else 0

    def setup(self, model: OmniConfig, mesh: Mesh, steps: int) -> Setup:
        """Return the policy step's Setup. steps: of the whole run.

        Raises UserError as of sft, and if the mesh for sampling does not divide the heads.
        """
        setup = super().setup(model, mesh, steps * self.grpo.updates)
        sampling = reshape_mesh(mesh, **dataclasses.asdict(self.rollout.mesh))
        check_heads(sampling, model.text.num_attention_heads, "rollout.mesh.tensor")
        return dataclasses.replace(setup, reference=self.grpo.beta > 0)

    def check_rows(self, mesh: Mesh, rollout_mesh: Mesh):
        """Raise UserError unless microbatches and parts split evenly over their meshes' devices."""
        batch, parts = self.data.batch_size, self.rollout.parts
        minibatches, accumulate = self.grpo.minibatches, self.loop.accumulate
        for factors, count, devices in (
            (f"grpo.minibatches {minibatches} times loop.accumulate {accumulate}",
             minibatches * accumulate, shard_count("batch", mesh)),
            (f"rollout.parts {parts}", parts, shard_count("batch", rollout_mesh)),
        ):  # fmt: skip
            if batch % (count * devices):
                raise UserError(
                    f"data.batch_size is {batch}, not a multiple of {factors} times the {devices} "
                    "devices that share the batch; change one of them"
                )


# Also the names of earlier versions.
GRPO_SHORT = SHORT | {
    "samples": "rollout.samples",
    "temperature": "rollout.sampling.temperature",
    "max_new_tokens": "rollout.sampling.max_new_tokens",
    "beta": "grpo.beta",
    "functions": "rewards.functions",
    "loop.eval_prompts": "rollout.eval_prompts",
    "rollout.max_new_tokens": "rollout.sampling.max_new_tokens",
    "rollout.temperature": "rollout.sampling.temperature",
    "rollout.top_p": "rollout.sampling.top_p",
    "rollout.top_k": "rollout.sampling.top_k",
    "rollout.seed": "rollout.sampling.seed",
    "rollout.data": "rollout.mesh.data",
    "rollout.fsdp": "rollout.mesh.fsdp",
    "rollout.tensor": "rollout.mesh.tensor",
}
