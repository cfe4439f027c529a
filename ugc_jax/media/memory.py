"""A clip in memory, which stands for a file."""

import dataclasses
import numbers

import numpy as np

from ugc_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """Frames, sound, or both from the same second on, instead of a file.

    Examples:
        >>> import numpy as np
        >>> from ugc_jax import Captioner, Clip
        >>> frames = np.zeros((10, 64, 96, 3), np.uint8)
        >>> tone = np.sin(np.arange(8000) / 10).astype(np.float32)
        >>> captioner = Captioner.from_pretrained("tiny")
        >>> clip = Clip(frames=frames, fps=10, waveform=tone, rate=8000, name="tone")
        >>> (result,) = captioner.caption(clip, max_new_tokens=4)
        >>> result.video, result.error
        ('tone', None)

    They are read as those of a file are: the same frames are taken and resized, and the sound is
    resampled to 16 kHz. So a Clip of all frames and all sound of a file has the file's caption.

    frames: u8[n, h, w, 3], RGB, upright, of square pixels. fps: frames a second.
    waveform: f32[samples], mono, -1 to 1. rate: samples a second.
    name: of its results; its random numbers depend on it, as those of a file on the file's name.
    The arrays are not copied. Raises TypeError for what is no array or number, UserError, which
    names the field, for an array of another shape or dtype, for samples that are not finite, for
    rates that are not positive, and for a Clip without frames and sound.
    """

    frames: np.ndarray | None = None
    fps: float | None = None
    waveform: np.ndarray | None = None
    rate: int | None = None
    name: str | None = None

    def __post_init__(self):
        if self.frames is None and self.waveform is None:
            raise UserError("frames and waveform are both None; give one of them")
        if not isinstance(self.name, str | None):
            raise TypeError(f"name: expected a text, got {self.name!r:.60}")
        self._check_rate("frames", "fps", numbers.Real, "a number", 1e-3, 1e6)
        self._check_rate("waveform", "rate", numbers.Integral, "a whole number", 1, 10**7)
        frames, waveform = self.frames, self.waveform
        if frames is not None:
            if frames.dtype != np.uint8:
                raise UserError(f"frames: has dtype {frames.dtype}; give uint8, 0 to 255")
            if frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
                raise UserError(f"frames: has shape {frames.shape}; give [n, h, w, 3], n above 0")
        if waveform is not None:
            if waveform.dtype != np.float32:
                raise UserError(f"waveform: has dtype {waveform.dtype}; give float32, -1 to 1")
            if waveform.ndim != 1 or not waveform.size:
                raise UserError(
                    f"waveform: has shape {waveform.shape}; give [samples], the mean of channels"
                )
            if not np.isfinite(waveform).all():
                raise UserError("waveform: has NaN or infinite samples; replace them")

    def _check_rate(self, name: str, field: str, kind, expected: str, least, most):
        """Check the types of an array and of its rate, and that both are given.

        The bounds of a rate are beyond all cameras; times stay within int32.
        """
        array, rate = getattr(self, name), getattr(self, field)
        if array is None:
            if rate is not None:
                raise UserError(f"{field}: is of {name}, and there is none; leave it out")
            return
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name}: expected a numpy array, got {array!r:.60}")
        if rate is None:
            raise UserError(f"{field}: is None; {name} needs it")
        if isinstance(rate, bool) or not isinstance(rate, kind):
            raise TypeError(f"{field}: expected {expected}, got {rate!r:.60}")
        if not least <= rate <= most:
            raise UserError(f"{field} is {rate}; give {least:g} to {most:g}")
        if isinstance(rate, np.generic):  # for libraries that take Python's own numbers only
            object.__setattr__(self, field, rate.item())
