"""The settings of a training run, section by section; rl/settings.py has GRPO's."""

import dataclasses
from typing import ClassVar, Literal

from jax.sharding import Mesh

from ugc_jax.data.planning import DataConfig, RowsConfig
from ugc_jax.errors import UserError
from ugc_jax.generate.settings import NEW_TOKENS
from ugc_jax.models.compute import Compute
from ugc_jax.models.lora import LoraConfig
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.settings import check_minimum
from ugc_jax.sharding import MeshConfig
from ugc_jax.train.optimizer import OptimizerConfig
from ugc_jax.train.state import Setup, Trainable


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Length of the training, and what happens in between."""

    steps: int | None = None  # steps in all (default: as many as `epochs` needs)
    epochs: float = 1.0  # passes over the training data
    accumulate: int = 1  # microbatches of a batch, which pass through the model one after the other
    log_every: int = 10  # steps between lines of metrics
    eval_every: int = 0  # steps between evaluations, besides those before a checkpoint
    save_every: int = 200  # steps between checkpoints; the last step has one, too
    keep: int = 2  # latest checkpoints to keep, besides the one of the best evaluation
    profile: int | None = None  # first of three steps that a profiler trace is taken of
    wandb: str | None = None  # project of Weights & Biases to report to
    seed: int = 0  # of a new adapter's weights
    export: Literal["last", "best"] = "last"  # which checkpoint becomes the exported model
    export_dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of its weights

    def __post_init__(self):
        counts = ("steps", "accumulate", "log_every", "save_every", "keep", "profile")
        check_minimum(self, "loop.", **dict.fromkeys(counts, 1), eval_every=0, seed=0)
        if self.epochs <= 0:
            raise UserError(f"loop.epochs is {self.epochs}; use a positive number")


@dataclasses.dataclass(frozen=True)
class SftLoopConfig(LoopConfig):
    """Sample captions of SFT."""

    samples: int = 4  # clips of the evaluation data that are captioned at every evaluation
    sample_tokens: int = 256  # longest of these captions

    def __post_init__(self):
        super().__post_init__()
        check_minimum(self, "loop.", samples=0, sample_tokens=1)
        if self.sample_tokens > NEW_TOKENS[-1]:
            raise UserError(
                f"loop.sample_tokens is {self.sample_tokens}; use at most {NEW_TOKENS[-1]}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run."""

    # Prefixes of the settings that decide what a checkpoint holds: a run cannot be resumed with
    # other values of them.
    FIXED: ClassVar[tuple[str, ...]] = (
        "trainable.", "lora.rank", "lora.targets", "optimizer.name", "master",
    )  # fmt: skip
    # Settings that may change, but not between 0 and other values.
    FIXED_ZERO: ClassVar[tuple[str, ...]] = ()

    checkpoint: str  # directory, a run's output, or hub id of the initial weights
    output: str  # directory of the run, local or gs://...
    revision: str | None = None  # branch, tag or commit of a hub id
    master: Literal["float32", "bfloat16"] = "float32"  # dtype of the weights that learn
    distributed: bool = False  # one of several processes (hosts) that train together
    data: RowsConfig
    trainable: Trainable = Trainable()
    lora: LoraConfig = LoraConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    compute: Compute = Compute()
    loop: LoopConfig = LoopConfig()

    def __post_init__(self):
        if self.loop.export == "best" and self.data.eval is None:
            raise UserError("loop.export=best needs data.eval; set it, or use export=last")

    def setup(self, model: OmniConfig, mesh: Mesh, steps: int) -> Setup:
        """Return the train step's Setup. steps: of the whole run. Raises UserError as `Setup`."""
        return Setup(
            model,
            mesh,
            compute=self.compute,
            trainable=self.trainable,
            lora=self.lora,
            optimizer=self.optimizer,
            steps=steps,
            accumulate=self.loop.accumulate,
            master=self.master,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftConfig(TrainConfig):
    """Settings of sft."""

    data: DataConfig
    loop: SftLoopConfig = SftLoopConfig()
