"""UGC-VideoCaptioner in pure JAX: captions of short videos from picture and sound.

from ugc_jax import Captioner
captions = Captioner.from_pretrained("runs/quickstart/checkpoint").caption(["clip.mp4"])
"""

__version__ = "0.1.0"
__all__ = ["Captioner", "__version__"]


def __getattr__(name: str):
    """Import the Captioner, and with it jax, on first use."""
    if name == "Captioner":
        from ugc_jax.generate.captioner import Captioner

        return Captioner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
