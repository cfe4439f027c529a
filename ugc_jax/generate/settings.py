"""The settings of generating captions and answers. Imports no jax."""

import dataclasses
from typing import Literal

from ugc_jax.errors import UserError
from ugc_jax.media.presets import ClipSettings
from ugc_jax.settings import in_section

# Bucket sizes of the cache for generated tokens; a program is compiled for each that is used.
NEW_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Settings of sampling captions."""

    temperature: float = 0.0  # 0: greedy; otherwise logits are divided by it
    top_k: int = 0  # keep the k most likely tokens; 0: all
    top_p: float = 1.0  # keep the most likely tokens that together reach this probability; 1: all
    # > 1 makes tokens of the prompt and of the caption so far less likely
    repetition_penalty: float = 1.0
    max_new_tokens: int = 512  # a caption that reaches it ends with finish_reason "length"
    seed: int = 0  # of the sampling; a clip's random numbers depend on its name, too

    def __post_init__(self):
        for name, holds, remedy in (
            ("temperature", self.temperature >= 0, "use 0 for greedy or a positive number"),
            ("top_k", self.top_k >= 0, "use 0 to keep all tokens"),
            ("top_p", 0 < self.top_p <= 1, "use a number in (0, 1]"),
            ("repetition_penalty", self.repetition_penalty > 0, "use 1 for none"),
            (
                "max_new_tokens",
                1 <= self.max_new_tokens <= NEW_TOKENS[-1],
                f"use 1 to {NEW_TOKENS[-1]}",
            ),
            ("seed", 0 <= self.seed < 2**32, "use 0 to 4294967295"),
        ):
            if not holds:
                raise UserError(f"{name} is {getattr(self, name)}; {remedy}")


@dataclasses.dataclass(frozen=True)
class AskConfig(ClipSettings, SamplingConfig):
    """Settings of a model that answers first; `question` replaces the questions of the tasks."""

    checkpoint: str | None = None  # directory or hub id of a model to ask; none: use predictions
    revision: str | None = None  # branch, tag or commit of a hub id
    videos: str | None = None  # folder of the clips, named <id>.mp4 or with another suffix
    batch_size: int = 8  # answers generated together
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: float32 on CPU, else bfloat16
    workers: int | None = None  # threads that read clips ahead; one a core, at most 8, without it

    def __post_init__(self):
        with in_section("ask."):
            super().__post_init__()
        if self.checkpoint is not None and self.videos is None:
            raise UserError("ask.checkpoint needs ask.videos: the folder of the clips")
        if self.videos is not None and self.checkpoint is None:
            raise UserError("ask.videos needs ask.checkpoint: the model to ask about the clips")
