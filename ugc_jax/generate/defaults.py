"""The clip settings and the sampling of a checkpoint where the user names none.

Of a model that ugc_jax trained, the clip settings of its training data (hf/trained.py); of a
published captioner, its preset; else the preset qwen. A preset that the user names goes before
these, and single settings of the user go before all.
"""

import dataclasses
import logging
import textwrap
from pathlib import Path
from typing import NamedTuple

from ugc_jax.generate import settings as generation
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.hf.trained import TRAINED, read_trained
from ugc_jax.media import presets
from ugc_jax.media.presets import ClipSettings, resolve

logger = logging.getLogger(__name__)

PUBLISHED = "openinterx/UGC-VideoCaptioner"  # on the hub; the default checkpoint
# Published captioners and their presets; the hub redirects a renamed repository.
CAPTIONERS = {PUBLISHED: "upstream", "Memories-ai/UGC-VideoCaptioner": "upstream"}
_OF_THE_RUN = ("start", "end", "max_tokens")  # clip settings that depend on the clip or the machine


class Defaults(NamedTuple):
    """What a checkpoint says about its input.

    checkpoint: as the user named it. trained: the resolved clip settings of its training data, or
    None. preset: of a published captioner, or None.
    """

    checkpoint: str
    trained: ClipSettings | None = None
    preset: str | None = None

    @classmethod
    def of(cls, checkpoint: str | Path, directory: Path) -> "Defaults":
        """Read those of a checkpoint in a local directory. Raises UserError as `read_trained`."""
        trained = read_trained(directory)
        return cls(str(checkpoint), trained, None if trained else _preset_of(checkpoint))

    def apply(
        self, clip: ClipSettings, sampling: SamplingConfig
    ) -> tuple[ClipSettings, SamplingConfig]:
        """Return both resolved. Raises UserError as `presets.resolve`."""
        preset = clip.preset or self.preset
        clip = resolve(dataclasses.replace(clip, preset=preset), self.trained)
        return clip, sampling.resolve(preset or presets.DEFAULT_PRESET)

    def notes(self, clip: ClipSettings, sampling: SamplingConfig) -> list[str]:
        """Describe which settings come from a preset or from training; the user's are `clip`."""
        preset = clip.preset or self.preset
        resolved = self.apply(clip, sampling)
        if preset:
            values = presets.preset_changes(preset), generation.preset_changes(preset)
            which = f"preset {preset}"
        elif self.trained:
            values = presets.changes(vars(self.trained)), {}
            which = f"{self.checkpoint}: as trained ({TRAINED})"
        else:
            return []
        taken = [
            f"{section}.{name}={_short(value)}"
            for section, own, now, theirs in zip(
                ("clip", "sampling"), (clip, sampling), resolved, values, strict=True
            )
            for name, value in theirs.items()
            if value is not None and getattr(own, name) is None and getattr(now, name) == value
        ]
        return [f"{which}: {', '.join(taken)}"] if taken else []

    def differences(self, clip: ClipSettings) -> str | None:
        """Describe how resolved clip settings differ from those of training, or return None."""
        if self.trained is None:
            return None
        changed = [
            f"clip.{name} {_short(value)}, now {_short(getattr(clip, name))}"
            for name, value in vars(self.trained).items()
            if name not in _OF_THE_RUN and value != getattr(clip, name)
        ]
        if not changed:
            return None
        return f"{self.checkpoint}: was trained with other settings: {'; '.join(changed)}"

    def report(self, clip: ClipSettings, sampling: SamplingConfig):
        """Log where the settings come from, and warn where they differ from those of training."""
        for note in self.notes(clip, sampling):
            logger.info("%s", note)
        if difference := self.differences(self.apply(clip, sampling)[0]):
            logger.warning("%s", difference)


def _short(value) -> str:
    return textwrap.shorten(repr(value), 60, placeholder=" ...")


def _preset_of(checkpoint: str | Path) -> str | None:
    """The preset of a published captioner, by its hub id or by the folder of a copy of it."""
    name, last = str(checkpoint), Path(checkpoint).name
    for known, preset in CAPTIONERS.items():
        if name == known or last == known.rpartition("/")[2] and Path(checkpoint).is_dir():
            return preset
    return None
