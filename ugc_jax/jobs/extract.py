"""Extract frames and sound of clips into records for training.

MANIFEST is a .jsonl, .json, .csv or .parquet file, tar files of clips (shards/*.tar), a folder of
clips, or a data set of Hugging Face (a folder, or OWNER/NAME). Its rows are as released ({"videos":
[...], "messages": [...]}), a path and a caption, or in the form of another tool (docs/records.md).
Clips and manifests may be URLs (gs://, s3://, https:// ...).

A further run with the same settings continues: finished shards are kept. Clips that cannot be read
are listed in failures.jsonl; the job fails if their share exceeds max_failures. A further run tries
them again, except files that are known to be broken and have not changed.

ugc-jax extract --remove ID[,ID...] RECORDS ... takes records out of extracted folders, for good, by
their ids or the paths of their clips, and lists the runs whose data held them.
"""

import dataclasses
import logging
import os
import shlex
import sys

from etils import epath

from ugc_jax.data.card import write_card
from ugc_jax.data.extract import (
    FAILURES,
    Extraction,
    ExtractionTotals,
    check_media,
    parse_share,
    run_beam,
    run_local,
)
from ugc_jax.data.forms import UNHEEDED
from ugc_jax.data.manifest import Columns, ManifestRow, read_manifest
from ugc_jax.data.records import Storage
from ugc_jax.data.removal import remove
from ugc_jax.data.removed import REMOVED
from ugc_jax.data.workers import ReadingConfig
from ugc_jax.errors import UserError
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.progress import progress
from ugc_jax.settings import Schema, check_minimum, short_names
from ugc_jax.train.runs import runs_with, texts_with

logger = logging.getLogger(__name__)

_MOST = 5  # names that a line lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractConfig(ReadingConfig):
    """Settings of extract."""

    output: str | None = None  # folder of the records, local or gs://...; required but with remove
    media: str | None = None  # folder of the manifest's paths; none: the manifest's own folder
    conversations: bool = False  # read dialogues of LLaVA's and ShareGPT's form (from, value)
    columns: Columns = Columns()
    subset: str | None = None  # of a data set of the Hugging Face hub
    split: str | None = None  # of a data set of Hugging Face; none: its only one
    # share of this process if several write one folder, as 0/8 to 7/8; auto: by SLURM's variables
    # or JAX_PROCESS_ID and JAX_NUM_PROCESSES
    shard: str | None = None
    shard_clips: int = 64  # most clips of a file; a killed run continues after the last whole file
    workers: int | None = None  # processes that read clips; none: one a core
    max_failures: float = 0.1  # largest share of failed clips with which the job succeeds
    retry: bool = False  # also try clips again that are known to be broken
    overwrite: bool = False  # write all files again
    runner: str | None = None  # Apache Beam's runner for a fleet, such as DataflowRunner
    beam_options: str = ""  # flags of that runner, as in a shell
    source: str | None = None  # of the clips, for the data card; a column "source" comes first
    license: str | None = None  # of the clips, for the data card; a column "license" comes first
    remove: str | None = None  # ids or clips to remove from RECORDS, separated by commas
    runs: str = "runs"  # with remove: the folder below which runs are looked for
    clip: ClipSettings = ClipSettings()
    storage: Storage = Storage()


SHORT = short_names(clip=ClipSettings, storage=Storage)
SHORT["max_tokens"] = "clip.media_tokens"  # the name of earlier versions
SETTINGS = Schema(ExtractConfig, short=SHORT)


def main(config: ExtractConfig, manifests: list[str]) -> int:
    """Exit status 0, or 1 when more than max_failures of the clips failed."""
    if config.remove is not None:
        return _remove(config, manifests)
    if config.output is None:
        raise UserError("--output is required: folder of the records, local or gs://...")
    if config.runs != ExtractConfig.runs:
        raise UserError("runs is of a removal; give remove, too, or leave runs out")
    if len(manifests) != 1:
        raise UserError(f"{len(manifests)} manifests are given ({' '.join(manifests)}); give one")
    clip, output = clip_settings(config), epath.Path(config.output)
    rows = read_rows_of(manifests[0], clip, config)
    extraction, totals = write_records(config, rows, manifests[0])
    if totals is None:
        return _unfinished(config, extraction)
    print(totals.summary(output), file=sys.stderr)
    if left_out := extraction.left_out():
        print(
            f"{output}: {len(left_out)} rows are left out, as they were removed "
            f"({_some(sorted(left_out))}); {REMOVED} lists what was",
            file=sys.stderr,
        )
    if fault := too_many_failures(config, totals.failures, len(rows)):
        print(f"ugc-jax extract: {fault}", file=sys.stderr)
        return 1
    return 0


def read_rows_of(manifest: str, clip: ClipSettings, config: ExtractConfig) -> list[ManifestRow]:
    """Return the rows of a manifest as the settings say to read it."""
    how = config.media, config.conversations, config.columns, config.subset, config.split
    return read_manifest(manifest, clip, *how)


def _unfinished(config: ExtractConfig, extraction: Extraction) -> int:
    """Say what other processes have to do yet; returns the exit status of this one's share."""
    share = parse_share(config.shard)
    finished, count, failed, rows = extraction.progress(share)
    print(
        f"{extraction.directory}: share {share.rank}/{share.count} is done; {finished} of {count} "
        "files of all shares are; the process that finishes the last one writes the index",
        file=sys.stderr,
    )
    if fault := too_many_failures(config, failed, rows):
        print(f"ugc-jax extract: {fault}", file=sys.stderr)
        return 1
    return 0


def write_records(
    config: ExtractConfig, rows: list[ManifestRow], name: str
) -> tuple[Extraction, ExtractionTotals | None]:
    """Write the records of rows to config.output, or continue. name: of the rows, in messages.

    The totals are None if other processes (config.shard) have not finished their shares.
    Raises UserError as `Extraction.prepare` and for settings out of range.
    """
    clip = clip_settings(config)
    if unheeded := [column for column in UNHEEDED if any(column in row.extra for row in rows)]:
        logger.warning(
            "%s: the columns %s do not change what is shown of a clip, they are kept for rewards; "
            "cut the clips, or set --start, --fps and so on for all of them",
            name, ", ".join(unheeded),
        )  # fmt: skip
    output = epath.Path(config.output)
    extraction = Extraction(output, rows, clip, config.storage, config.shard_clips)
    share = parse_share(config.shard)
    if config.shard and config.overwrite:
        raise UserError("overwrite would delete what other shares write; delete the folder before")
    if config.shard and config.runner:
        raise UserError("shard and runner both divide the work; give one of them")
    shards = extraction.prepare(config.overwrite, config.retry, share)
    if config.runner is None:
        check_media(shards)
    todo = sum(shard.todo for shard in shards)
    if config.runner is not None and shards:
        run_beam(shards, config.runner, config.beam_options, config)
    else:
        reading = dataclasses.replace(config, workers=config.workers or os.cpu_count())
        failures = run_local(shards, reading)
        for failure in progress(failures, todo, "clip", "extracting"):
            if failure:
                logger.warning("%s", failure)
    totals = extraction.finish_together(shards) if config.shard else extraction.finish(shards)
    if totals is None:
        return extraction, None
    write_card(output, config.source, config.license)
    return extraction, totals


def clip_settings(config: ExtractConfig) -> ClipSettings:
    """Return the resolved clip settings. Raises UserError for settings out of range."""
    check_minimum(config, shard_clips=1)
    if not 0 <= config.max_failures <= 1:
        raise UserError(f"max_failures is {config.max_failures:g}; use a share from 0 to 1")
    if config.clip.max_tokens is not None:
        raise UserError("clip.max_tokens is of a prompt; for records, set clip.media_tokens")
    return resolve(config.clip)


def too_many_failures(config: ExtractConfig, failures: int, rows: int) -> str | None:
    """Return what is wrong if more clips failed than config.max_failures allows, or None."""
    if failures <= config.max_failures * rows:
        return None
    return (
        f"{failures} of {rows} clips failed, more than max_failures {config.max_failures:g} "
        f"allows; {epath.Path(config.output) / FAILURES} says why"
    )


def _remove(config: ExtractConfig, folders: list[str]) -> int:
    """Remove records from folders and print the runs whose data held them."""
    if dataclasses.replace(config, remove=None, runs=ExtractConfig.runs) != ExtractConfig():
        raise UserError("remove takes the folders of records as arguments, and no setting but runs")
    done = remove(folders, config.remove)
    gone = []
    for folder, totals in done.items():
        write_card(epath.Path(folder))
        gone += totals.removed
        names = f" ({_some(totals.removed)})" if totals.removed else ""
        before = f", {_some(totals.before)} removed before" if totals.before else ""
        print(
            f"{folder}: {len(totals.removed)} removed{names}{before}; {totals.records} records "
            f"left, {totals.shards} files written again",
            file=sys.stderr,
        )
        for path, others in totals.also.items():
            logger.warning(
                "%s: %s hold the same clip; to remove them, too: ugc-jax extract --remove %s %s",
                folder, _some(others), shlex.quote(path), shlex.quote(folder),
            )  # fmt: skip
    found, count = runs_with(folders, config.runs)
    print(f"runs below {config.runs} whose data held them: {len(found)} of {count}")
    for run in found:
        print(run.describe())
        for path in texts_with(run.folder, gone):
            print(f"{path}: has texts of them")
    return 0


def _some(names: list[str]) -> str:
    """The first names of a list."""
    return ", ".join(names[:_MOST]) + (f" and {len(names) - _MOST} more" if names[_MOST:] else "")
