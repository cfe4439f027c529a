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
from ugc_jax.hf.trained import TRAINED, Trained, read_trained
from ugc_jax.media import presets
from ugc_jax.media.presets import ClipSettings, resolve

logger = logging.getLogger(__name__)

PUBLISHED = "openinterx/UGC-VideoCaptioner"  # on the hub; the default checkpoint
# Published captioners and their presets; the hub redirects a renamed repository.
CAPTIONERS = {
    PUBLISHED: "upstream",
    "Memories-ai/UGC-VideoCaptioner": "upstream",
    "AVoCaDO-Captioner/AVoCaDO": "avocado",
    "AudioVisual-Caption/ASID-Captioner-3B": "asid",
    "AudioVisual-Caption/ASID-Captioner-7B": "asid",
    "yaolily/TimeChat-Captioner-GRPO-7B": "timechat",
    "NJU-LINK/OmniCaptioner-IF-3B": "omnicaptioner-if",
    "NJU-LINK/OmniCaptioner-IF-7B": "omnicaptioner-if",
}
_OF_THE_RUN = ("start", "end", "max_tokens")  # clip settings that are not of the model


class Defaults(NamedTuple):
    """What a checkpoint says about its input.

    checkpoint: as the user named it. trained: of its captioner.json, or None. preset: of a
    published captioner, or None.
    """

    checkpoint: str
    trained: Trained | None = None
    preset: str | None = None

    @classmethod
    def of(cls, checkpoint: str | Path, directory: Path) -> "Defaults":
        """Read those of a checkpoint in a local directory. Raises UserError as `read_trained`."""
        trained = read_trained(directory)
        return cls(str(checkpoint), trained, None if trained else _preset_of(checkpoint))

    @classmethod
    def published(cls, checkpoint: str) -> "Defaults":
        """Return those of a hub id that is not on this disk: its preset, if it has one."""
        return cls(checkpoint, None, _preset_of(checkpoint))

    def as_trained(self) -> Trained | None:
        """Return what a converted copy of the checkpoint has to know; None if nothing is known."""
        if self.preset is None:
            return self.trained
        return Trained(
            resolve(ClipSettings(preset=self.preset)), generation.preset_changes(self.preset)
        )

    def apply(
        self, clip: ClipSettings, sampling: SamplingConfig
    ) -> tuple[ClipSettings, SamplingConfig]:
        """Return both resolved. Raises UserError as `presets.resolve`."""
        preset = clip.preset or self.preset
        if preset is None and self.trained is not None:
            own = {k: v for k, v in self.trained.sampling.items() if getattr(sampling, k) is None}
            sampling = dataclasses.replace(sampling, **own)
        trained = None if self.trained is None else self.trained.clip
        clip = resolve(dataclasses.replace(clip, preset=preset), trained)
        return clip, sampling.resolve(preset or presets.DEFAULT_PRESET)

    def notes(self, clip: ClipSettings, sampling: SamplingConfig) -> str:
        """Describe where the settings come from that the user, in `clip` and `sampling`, leaves."""
        preset = clip.preset or self.preset
        resolved = self.apply(clip, sampling)
        if preset:
            which = f"preset {preset}"
            values = presets.preset_changes(preset), generation.preset_changes(preset)
        elif self.trained:
            which = f"{self.checkpoint}: as trained ({TRAINED})"
            values = presets.changes(vars(self.trained.clip)), self.trained.sampling
        else:
            return f"{self.checkpoint}: how it was trained is not known; preset qwen"
        taken = [
            f"{section}.{name}={_short(value)}"
            for section, own, now, theirs in zip(
                ("clip", "sampling"), (clip, sampling), resolved, values, strict=True
            )
            for name, value in theirs.items()
            if value is not None and getattr(own, name) is None and getattr(now, name) == value
        ]
        return f"{which}: {', '.join(taken) or 'its settings are those of preset qwen'}"

    def differences(self, clip: ClipSettings) -> str | None:
        """Describe how resolved clip settings differ from those of training, or return None."""
        if self.trained is None:
            return None
        changed = [
            f"clip.{name} {_short(value)}, now {_short(getattr(clip, name))}"
            for name, value in vars(self.trained.clip).items()
            if name not in _OF_THE_RUN and value != getattr(clip, name)
        ]
        if not changed:
            return None
        return f"{self.checkpoint}: was trained with other settings: {'; '.join(changed)}"

    def report(self, clip: ClipSettings, sampling: SamplingConfig):
        """Log where the settings come from, and warn where they differ from those of training."""
        logger.info("%s", self.notes(clip, sampling))
        if difference := self.differences(self.apply(clip, sampling)[0]):
            logger.warning("%s", difference)


def _short(value) -> str:
    return textwrap.shorten(repr(value), 60, placeholder=" ...")


def _preset_of(checkpoint: str | Path) -> str | None:
    """The preset of a published captioner: by its hub id, or by the folder of a copy of it.

    The folder has the repository's name, or is in the hub's cache.
    """
    path = Path(checkpoint).expanduser()
    parts = path.resolve().parts if path.is_dir() else ()
    for known, preset in CAPTIONERS.items():
        in_cache = f"models--{known.replace('/', '--')}" in parts
        is_copy = parts[-1:] == (Path(known).name,)
        if str(checkpoint) == known or in_cache or is_copy:
            return preset
    return None
