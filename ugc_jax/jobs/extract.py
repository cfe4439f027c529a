"""Extract frames and sound of clips into records for training.

MANIFEST is a .jsonl file as released ({"videos": [...], "messages": [...]}), a .jsonl or .csv file
with the columns path and caption, or a folder of clips.

A further run with the same settings continues: finished shards are kept. Clips that cannot be read
are listed in failures.jsonl; the job fails if their share exceeds max_failures. A further run tries
them again, except files that are known to be broken and have not changed.
"""

import dataclasses
import logging
import os
import sys

from etils import epath

from ugc_jax.data.extract import FAILURES, Extraction, run_beam, run_local
from ugc_jax.data.manifest import read_manifest
from ugc_jax.data.records import Storage
from ugc_jax.data.workers import ReadingConfig
from ugc_jax.errors import UserError
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.progress import progress
from ugc_jax.settings import Schema, check_minimum, short_names

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractConfig(ReadingConfig):
    """Settings of extract."""

    output: str  # folder of the records, local or gs://...
    media: str | None = None  # folder of the manifest's paths; none: the manifest's own folder
    shard_clips: int = 64  # most clips of a file; a killed run continues after the last whole file
    workers: int | None = None  # processes that read clips; none: one a core
    max_failures: float = 0.1  # largest share of failed clips with which the job succeeds
    retry: bool = False  # also try clips again that are known to be broken
    overwrite: bool = False  # write all files again
    runner: str | None = None  # Apache Beam's runner for a fleet, such as DataflowRunner
    beam_options: str = ""  # flags of that runner, as in a shell
    clip: ClipSettings = ClipSettings()
    storage: Storage = Storage()


SHORT = short_names(clip=ClipSettings, storage=Storage)
SHORT["max_tokens"] = "clip.media_tokens"  # the name of earlier versions
SETTINGS = Schema(ExtractConfig, short=SHORT)


def main(config: ExtractConfig, manifests: list[str]) -> int:
    """Exit status 0, or 1 when more than max_failures of the clips failed."""
    if len(manifests) != 1:
        raise UserError(f"{len(manifests)} manifests are given ({' '.join(manifests)}); give one")
    check_minimum(config, shard_clips=1)
    if not 0 <= config.max_failures <= 1:
        raise UserError(f"max_failures is {config.max_failures:g}; use a share from 0 to 1")
    if config.clip.max_tokens is not None:
        raise UserError("clip.max_tokens is of a prompt; for records, set clip.media_tokens")
    clip = resolve(config.clip)
    rows = read_manifest(manifests[0], clip, config.media)
    output = epath.Path(config.output)
    extraction = Extraction(output, rows, clip, config.storage, config.shard_clips)
    shards = extraction.prepare(config.overwrite, config.retry)
    todo = sum(shard.todo for shard in shards)
    if config.runner is not None and shards:
        run_beam(shards, config.runner, config.beam_options, config)
    else:
        reading = dataclasses.replace(config, workers=config.workers or os.cpu_count())
        failures = run_local(shards, reading)
        for failure in progress(failures, todo, "clip", "extracting"):
            if failure:
                logger.warning("%s", failure)
    totals = extraction.finish(shards)
    print(totals.summary(output), file=sys.stderr)
    if totals.failures > config.max_failures * len(rows):
        print(
            f"ugc-jax extract: {totals.failures} of {len(rows)} clips failed, more than "
            f"max_failures {config.max_failures:g} allows; {output / FAILURES} says why",
            file=sys.stderr,
        )
        return 1
    return 0
