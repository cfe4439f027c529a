"""UGC-VideoCaptioner in JAX: captions of short videos from picture and sound.

    from ugc_jax import Captioner

    captioner = Captioner.from_pretrained("runs/quickstart/grpo/model")
    for result in captioner.caption(["clip.mp4"], max_new_tokens=64):
        print(result.caption or result.error)

`caption` and `stream` take the fields of ClipSettings and of SamplingConfig as options. What is
wrong with an input is a UserError.
"""

from typing import TYPE_CHECKING

from ugc_jax.errors import UserError

__version__ = "0.1.0"
__all__ = ["Caption", "Captioner", "ClipSettings", "SamplingConfig", "UserError", "__version__"]

if TYPE_CHECKING:
    from ugc_jax.generate.captioner import Caption, Captioner
    from ugc_jax.generate.settings import SamplingConfig
    from ugc_jax.media.presets import ClipSettings
else:  # not for type checkers: to them a module with __getattr__ has any attribute

    def __getattr__(name: str):
        """Import the public API, and with it jax, on first use."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from ugc_jax.generate.captioner import Caption, Captioner
        from ugc_jax.generate.settings import SamplingConfig
        from ugc_jax.media.presets import ClipSettings

        api = dict(
            Caption=Caption,
            Captioner=Captioner,
            ClipSettings=ClipSettings,
            SamplingConfig=SamplingConfig,
        )
        return api[name]


def __dir__() -> list[str]:
    return __all__
