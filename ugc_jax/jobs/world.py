"""Write the offline world: short clips with sound, and captions that can be checked exactly.

DIR/train.jsonl and DIR/test.jsonl are the manifests of DIR/train/*.mp4 and DIR/test/*.mp4; the test
clips have combinations of attributes that no training clip has. A further run keeps existing clips.
"""

import dataclasses
import functools
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from ugc_jax import files
from ugc_jax.errors import UserError
from ugc_jax.progress import progress
from ugc_jax.settings import Schema, check_minimum, short_names
from ugc_jax.toy import world
from ugc_jax.toy.world import WorldSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Settings of world."""

    output: str  # directory to write
    train: int = 2000  # clips for training; 0 for none
    test: int = 200  # clips of combinations that are not in training
    workers: int | None = None  # processes that write clips; none: one a core
    world: WorldSettings = WorldSettings()


SETTINGS = Schema(WorldConfig, short=short_names(world=WorldSettings))


def main(config: WorldConfig, args: list[str]) -> int:
    """Write the clips of each split in parallel, then its manifest."""
    check_minimum(config, train=0, test=0, workers=1)
    folder, settings = Path(config.output), config.world
    _check_settings(folder, settings)
    # Only this process handles Ctrl-C; it stops the others when their clips are complete.
    quiet = dict(initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    with ProcessPoolExecutor(config.workers, get_context("spawn"), **quiet) as pool:
        for split in world.SPLITS:
            (folder / split).mkdir(exist_ok=True)
            count = getattr(config, split)
            write = functools.partial(world.write_example, split, settings=settings, folder=folder)
            rows = pool.map(write, range(count), chunksize=16)
            rows = progress(rows, count, "clip", f"{split} clips")
            files.write_text(folder / f"{split}.jsonl", files.to_lines(rows))
    return 0


def _check_settings(folder: Path, settings: WorldSettings):
    """Write the settings into the folder. UserError if it has clips of other settings."""
    note, content = folder / "world.json", dataclasses.asdict(settings)
    if not note.exists():
        files.write_json(note, content, "choose another output", indent=2)
    existing = files.read_json(note, "choose another output, or delete that folder")
    for name, value in content.items():
        if existing.get(name) != value:
            raise UserError(
                f"{note}: the clips in that folder have {name} {existing.get(name)}, not {value}; "
                "choose another output, or delete that folder"
            )
