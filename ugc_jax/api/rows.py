"""Data of a call -> a folder of extracted records, beside the run that trains on them."""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from ugc_jax import files
from ugc_jax.data.extract import FAILURES
from ugc_jax.data.manifest import ManifestRow, read_rows
from ugc_jax.data.records import SHARDS
from ugc_jax.errors import UserError
from ugc_jax.jobs import extract
from ugc_jax.jobs.extract import ExtractConfig
from ugc_jax.settings import flatten

logger = logging.getLogger(__name__)

MANIFESTS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".tar")
# Settings of extract that are no settings of a call: where it writes, and other work than this.
_OF_THE_JOB = ("output", "overwrite", "runner", "beam_options", "remove", "runs", "shard")


def extraction(options: Mapping[str, Any] | ExtractConfig | None) -> ExtractConfig:
    """Return the settings of an extraction, whose "config" names one of configs/ or a file.

    Raises TypeError as `Schema.from_options`.
    """
    if isinstance(options, ExtractConfig):
        return options
    if not isinstance(options, Mapping | None):
        raise TypeError(f"extract: expected a dict of options of extract, got {options!r:.60}")
    for name in options or {}:
        if name in _OF_THE_JOB:
            raise TypeError(f"extract: {name} is of the job on the command line; leave it out")
    own = {name: value for name, value in (options or {}).items() if name != "config"}
    return extract.SETTINGS.from_options(own, (options or {}).get("config"))


def is_extracted(data) -> bool:
    """Whether data is text for data.train: folders of records, and not rows to extract."""
    return isinstance(data, str | os.PathLike) and not _is_manifest(data)


def records_of(data, name: str, output: str, config: ExtractConfig) -> str:
    """Extract rows to a folder below `output`, unless an earlier call has; returns the folder.

    data: a path of a manifest, a `datasets.Dataset`, or rows as of `manifest.read_rows`. name: of
    the data in messages. The folder has the name and a digest of the rows and settings: other rows
    have another folder. Raises TypeError for data of another type; UserError as `read_rows`, and if
    more clips fail than config.max_failures allows.
    """
    clip = extract.clip_settings(config)
    rows = _rows(data, name, config)
    content = [rows, flatten(clip), flatten(config.storage), config.shard_clips]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
    folder = epath.Path(output) / "records" / f"{name}-{digest}"
    config = dataclasses.replace(config, output=str(folder))
    if (folder / SHARDS).exists():  # complete
        failed = sum(1 for _ in files.read_lines(folder / FAILURES, "delete this folder"))
        if extract.too_many_failures(config, failed, len(rows)) is None:
            return str(folder)
    _, totals = extract.write_records(config, rows, name)
    logger.info("%s", totals.summary(folder))
    if fault := extract.too_many_failures(config, totals.failures, len(rows)):
        raise UserError(f"{name}: {fault}; call again to try them again")
    return str(folder)


def _rows(data, name: str, config: ExtractConfig) -> list[ManifestRow]:
    if _is_manifest(data):
        return extract.read_rows_of(os.fspath(data), config.clip, config)
    if isinstance(data, Mapping | bytes) or not isinstance(data, Iterable):
        raise TypeError(
            f"{name}: expected records, a manifest or a list of dicts, got {data!r:.60}"
        )
    # A datasets.Dataset yields its rows as dicts.
    how = config.clip, config.media, config.conversations
    return read_rows(data, *how, name=name, columns=config.columns)


def _is_manifest(data) -> bool:
    if not isinstance(data, str | os.PathLike):
        return False
    return Path(data).suffix.lower() in MANIFESTS and not Path(data).is_dir()
