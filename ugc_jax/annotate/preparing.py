"""Media of the clips, made in the background while people annotate those that are ready."""

import logging
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from ugc_jax.annotate.app import media_folder
from ugc_jax.annotate.media import Job, prepare
from ugc_jax.annotate.store import Store
from ugc_jax.data.workers import Pool, ReadingConfig
from ugc_jax.errors import EnvironmentFailure, UserError
from ugc_jax.files import escaped
from ugc_jax.media.find import find_clips
from ugc_jax.progress import Progress
from ugc_jax.web.streams import Folder, Outside

logger = logging.getLogger(__name__)

AHEAD = 4  # clips that are under way for each worker


def find(folder: str) -> dict[str, str]:
    """Return {path within the folder, as the store has it: path} of its clips.

    Raises UserError if it is not a folder or has no clips.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: not a folder; name the folder of the clips")
    root = Path(folder)
    return {escaped(str(Path(path).relative_to(root))): path for path in find_clips([folder])}


class Preparing(threading.Thread):
    """Prepares the clips that wait, in the order of their addition; ends when none waits.

    A clip that cannot be read is recorded with the reason, and tried again by the next run.
    """

    def __init__(
        self, store: Store, clips: Mapping[str, str], folder: str, media: Path,
        reading: ReadingConfig,
    ):  # fmt: skip
        """clips: of `find` in `folder`. media: where the files go."""
        super().__init__(name="prepare-clips", daemon=True)
        self._store, self._clips, self._media = store, clips, media
        self._folder, self._root = folder, Folder(folder)
        self._pool = Pool(prepare, reading, name=lambda job: job.clip)
        self._stopped = threading.Event()
        self._broken = 0

    def run(self):
        """Prepare; log what is unreadable, and one line if the machine cannot go on."""
        _remove_leftovers(self._media)
        waiting = self._store.to_prepare(
            lambda clip: (media_folder(self._media, clip) / "facts.json").is_file()
        )
        if not waiting:
            return
        try:
            with Progress(len(waiting), "clip", "preparing") as bar, self._pool as pool:
                ids = []
                outcomes = pool.read(self._jobs(waiting, ids, bar), AHEAD * pool.workers)
                for number, outcome in enumerate(outcomes):
                    fault = str(outcome.value) if isinstance(outcome.value, UserError) else ""
                    self._record(ids[number], fault, bar)
            broken = f"; {self._broken} cannot be read, see Project" if self._broken else ""
            logger.info("all %d clips are prepared%s", len(waiting) - self._broken, broken)
        except Exception as error:
            if self._stopped.is_set():
                return
            if not isinstance(error, EnvironmentFailure):
                raise
            logger.error("preparing stopped: %s; start again to go on", error)

    def stop(self):
        """End the work; what is not finished waits for the next run."""
        self._stopped.set()
        self._pool.close()
        self.join(10)

    def _jobs(self, waiting: list[tuple[int, str]], ids: list[int], bar: Progress) -> Iterator[Job]:
        for clip, path in waiting:
            if self._stopped.is_set():
                return
            try:
                if path not in self._clips:
                    raise UserError(f"{path}: no such file in the folder of clips; copy it there")
                self._root.file(str(Path(self._clips[path]).relative_to(self._folder)))
            except Outside:
                fault = f"{path}: a link that leads out of the folder of clips; copy the file there"
                self._record(clip, fault, bar)
            except UserError as error:
                self._record(clip, str(error), bar)
            else:
                ids.append(clip)
                yield Job(self._clips[path], str(media_folder(self._media, clip)))

    def _record(self, clip: int, fault: str, bar: Progress):
        if fault:
            self._broken += 1
            logger.warning("%s", fault)
        self._store.prepared(clip, fault)
        bar.update()


def _remove_leftovers(media: Path):
    """Remove what processes that were killed have left half made."""
    for folder in media.glob("*.new"):
        process = folder.name.split(".")[-2]
        if process.isdecimal() and not Path("/proc", process).exists():
            shutil.rmtree(folder, ignore_errors=True)
