"""The settings of a training run, section by section."""

import dataclasses
from typing import Literal

from jax.sharding import Mesh

from ugc_jax.data.planning import DataConfig
from ugc_jax.models.compute import Compute
from ugc_jax.models.lora import LoraConfig
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.sharding import MeshConfig
from ugc_jax.train.groups import Trainable
from ugc_jax.train.loop import LoopConfig
from ugc_jax.train.optimizer import OptimizerConfig
from ugc_jax.train.state import Setup


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Settings of sft."""

    checkpoint: str  # directory, a run's output, or hub id, to begin with
    output: str  # directory of the run, local or gs://...
    revision: str | None = None  # branch, tag or commit of a hub id
    master: Literal["float32", "bfloat16"] = "float32"  # dtype of the weights that learn
    distributed: bool = False  # one of several processes (hosts) that train together
    data: DataConfig
    trainable: Trainable = Trainable()
    lora: LoraConfig = LoraConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    compute: Compute = Compute()
    loop: LoopConfig = LoopConfig()

    def __post_init__(self):
        self.loop.check_export(self.data.eval)

    def setup(self, model: OmniConfig, mesh: Mesh, steps: int) -> Setup:
        """What the train step is made of. steps: of the whole run. UserError as `Setup`."""
        parts = (self.compute, self.trainable, self.lora, self.optimizer)
        return Setup(model, mesh, *parts, steps, self.loop.accumulate, self.master)
