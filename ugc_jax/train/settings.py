"""The settings of a training run, section by section; rl/settings.py has GRPO's."""

import dataclasses
from typing import ClassVar, Literal

from jax.sharding import Mesh

from ugc_jax.data.planning import DataConfig
from ugc_jax.errors import UserError
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.models.compute import ComputeConfig
from ugc_jax.models.lora import LoraConfig
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.settings import check_minimum
from ugc_jax.sharding import MeshConfig, check_heads
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
    # first of three steps that a profiler trace is taken of; SIGUSR1 or `touch OUTPUT/profile.now`
    # asks for the next three
    profile: int | None = None
    # seconds without progress after which the processes of a distributed run end (those that are
    # lost are named); steps that took longer before get three times as long
    hang_seconds: float = 45.0
    wandb: str | None = None  # project of Weights & Biases to report to
    seed: int = 0  # of a new adapter's weights
    export: Literal["last", "best"] = "last"  # which checkpoint becomes the exported model
    export_dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of its weights
    samples: int = 4  # captions of the evaluation data that every evaluation writes to a table

    def __post_init__(self):
        counts = ("steps", "accumulate", "log_every", "save_every", "keep", "profile")
        check_minimum(self, **dict.fromkeys(counts, 1), eval_every=0, seed=0, samples=0)
        if not self.hang_seconds >= 5:  # a report comes every second
            raise UserError(f"hang_seconds is {self.hang_seconds:g}; use 5 or more")
        if self.epochs <= 0:
            raise UserError(f"epochs is {self.epochs}; use a positive number")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run."""

    KIND: ClassVar[str]  # of training: "sft" or "grpo"
    # Prefixes of the settings that decide what a checkpoint holds: a run cannot be resumed with
    # other values of them.
    FIXED: ClassVar[tuple[str, ...]] = (
        "trainable.", "lora.rank", "lora.targets", "optimizer.name", "optimizer.mu_dtype", "master",
    )  # fmt: skip
    # Settings that may change, but not between 0 and other values.
    FIXED_ZERO: ClassVar[tuple[str, ...]] = ()

    checkpoint: str  # directory, a run's output, or hub id of the initial weights
    output: str  # directory of the run, local or gs://...
    revision: str | None = None  # branch, tag or commit of a hub id
    master: Literal["float32", "bfloat16"] = "float32"  # dtype of the weights that learn
    distributed: bool = False  # one of several processes (hosts) that train together
    data: DataConfig
    trainable: Trainable = Trainable()
    lora: LoraConfig = LoraConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    compute: ComputeConfig = ComputeConfig()
    loop: LoopConfig = LoopConfig()

    def __post_init__(self):
        self.compute.check_no_int8("training")
        if self.loop.export == "best" and self.data.eval is None:
            raise UserError("loop.export=best needs data.eval; set it, or use export=last")

    def setup(self, model: OmniConfig, mesh: Mesh, steps: int) -> Setup:
        """Return the train step's Setup. steps: of the whole run.

        Raises UserError as `Setup`, and if the mesh does not divide the decoder's heads.
        """
        check_heads(mesh, model.text.num_attention_heads)
        return Setup(
            model,
            mesh,
            compute=self.compute.resolve(mesh.devices.flat[0], model.text.head_dim),
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

    KIND: ClassVar[str] = "sft"
    packing: bool = True  # several examples in a row of data.tokens; false: one, in its bucket
    # share of the examples in which sound, picture or both are hidden, so that the model also knows
    # what to expect without them (see docs/evidence.md); 0 for checkpoints that know it already
    hide_media: float = 0.0
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=256)  # of the sample captions

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.hide_media <= 1:
            raise UserError(f"hide_media is {self.hide_media}; use a share from 0 to 1")


# Short names of the settings of sft and grpo.
SHORT = {
    "train": "data.train",
    "eval": "data.eval",
    "batch_size": "data.batch_size",
    "tokens": "data.tokens",
    "learning_rate": "optimizer.learning_rate",
    "steps": "loop.steps",
    "epochs": "loop.epochs",
    "dtype": "compute.dtype",
    "attention": "compute.attention",
    "remat": "compute.remat",
}
# Also the names of earlier versions.
SFT_SHORT = SHORT | {
    "max_new_tokens": "sampling.max_new_tokens",
    "loop.sample_tokens": "sampling.max_new_tokens",
    "data.packing": "packing",
}
