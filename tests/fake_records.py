"""Stand-ins for extracted folders, made of noise when they are read; numpy only, for workers."""

import os
import sys

import numpy as np

from ugc_jax.data.example import MediumInput
from ugc_jax.data.features import patchify
from ugc_jax.data.prompt import Medium
from ugc_jax.data.records import IndexEntry
from ugc_jax.errors import UserError
from ugc_jax.models.qwen2_5_omni.config import tiny

CONFIG = tiny()
WORDS = ["red", "blue", "circle", "beep", "low", "then", "left", "grows", "music"]


class FakeSource:
    """`FakeSource("SEED-COUNT")`: so many short clips of different sizes, half of them with sound.

    With "-broken" appended, its last record cannot be read.
    """

    def __init__(self, name: str):
        self.name = name
        seed, count = name.split("-")[:2]
        self.seed = int(seed)
        self.entries = [self._entry(number) for number in range(int(count))]

    def __reduce__(self):
        return FakeSource, (self.name,)

    def __len__(self):
        return len(self.entries)

    def fetch(self, numbers):
        """Do nothing: noise is no file."""

    def _entry(self, number: int) -> IndexEntry:
        rng = np.random.default_rng([self.seed, number])
        grid = (int(rng.integers(1, 4)), int(rng.integers(1, 5)) * 2, int(rng.integers(1, 7)) * 2)
        video = Medium("video", grid, 1.0, int(rng.integers(2, 500)) if number % 2 else None)
        question = {
            "role": "user",
            "content": [{"type": "video"}, {"type": "text", "text": "What?"}],
        }
        answer = " ".join(rng.choice(WORDS, rng.integers(1, 30)))
        turns = [question, {"role": "assistant", "content": answer}]
        return IndexEntry(f"{self.name}/{number}", turns, None, {"number": number}, (video,))

    def __getitem__(self, number: int) -> tuple[IndexEntry, list[MediumInput]]:
        if self.name.endswith("broken") and number == len(self) - 1:
            raise UserError(f"{self.name}: record {number} is damaged; {process_state()}")
        (video,) = self.entries[number].media
        rng = np.random.default_rng([self.seed, number, 1])
        t, h, w = video.grid
        frames = rng.integers(0, 256, (2 * t, 14 * h, 14 * w, 3), dtype=np.uint8)
        mel = None
        if video.mel_frames is not None:
            mel = rng.normal(size=(video.mel_frames, 128)).astype(np.float32)
        return self.entries[number], [MediumInput(video, patchify(frames, CONFIG.vision), mel)]


def process_state() -> str:
    """Tells which process this is, and whether jax has started a backend in it."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    started = bridge is not None and bridge.backends_are_initialized()
    return f"process {os.getpid()}, jax started: {started}"
