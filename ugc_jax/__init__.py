"""UGC-VideoCaptioner in JAX: captions of short videos from picture and sound.

    from ugc_jax import Captioner

    captioner = Captioner.from_pretrained("runs/quickstart/grpo/model")
    for result in captioner.caption(["clip.mp4"], max_new_tokens=64):
        print(result.caption or result.error)

`caption` and `stream` take the fields of ClipSettings and of SamplingConfig as options. `sft`,
`grpo`, `evaluate` and `compare` do what the jobs of the command line do (docs/python.md). What is
wrong with an input is a UserError.
"""

from typing import TYPE_CHECKING

from ugc_jax.errors import UserError

__version__ = "0.1.0"
__all__ = [
    "Caption",
    "Captioner",
    "Clip",
    "ClipSettings",
    "Comparison",
    "Evaluation",
    "Run",
    "SamplingConfig",
    "UserError",
    "__version__",
    "compare",
    "evaluate",
    "grpo",
    "sft",
]

if TYPE_CHECKING:
    from ugc_jax.api.scoring import Comparison, Evaluation, compare, evaluate
    from ugc_jax.api.training import Run, grpo, sft
    from ugc_jax.generate.captioner import Caption, Captioner
    from ugc_jax.generate.settings import SamplingConfig
    from ugc_jax.media.memory import Clip
    from ugc_jax.media.presets import ClipSettings
else:  # not for type checkers: to them a module with __getattr__ has any attribute

    def __getattr__(name: str):
        """Import the part of the public API, and with some of them jax, on first use."""
        match name:
            case "Caption" | "Captioner":
                from ugc_jax.generate import captioner as module
            case "Clip":
                from ugc_jax.media import memory as module
            case "ClipSettings":
                from ugc_jax.media import presets as module
            case "SamplingConfig":
                from ugc_jax.generate import settings as module
            case "Comparison" | "Evaluation" | "compare" | "evaluate":
                from ugc_jax.api import scoring as module
            case "Run" | "grpo" | "sft":
                from ugc_jax.api import training as module
            case _:
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(module, name)


def __dir__() -> list[str]:
    return __all__
