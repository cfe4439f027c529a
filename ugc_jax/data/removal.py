"""Records and clips taken out of extracted folders, for good: what a clip's owner may ask for.

removed.jsonl gets the removal first, then each shard that has such a record is written again
without it, then the index. Whatever is killed in between is completed by the next removal from the
folder, and by the next extraction into it.
"""

import difflib
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from ugc_jax import files
from ugc_jax.data import records
from ugc_jax.data.extract import (
    REPORTS,
    Shard,
    ShardReport,
    read_report,
    settle,
    write_folder,
    write_shards,
)
from ugc_jax.data.manifest import ManifestRow
from ugc_jax.data.records import EXTRACT_AGAIN, EXTRACTION, SHARDS, Storage
from ugc_jax.data.removed import Removal, read_removals, removal, write_removals
from ugc_jax.errors import UserError

_CLOSE = 3  # names that a message proposes
_REPORT = re.compile(r"(\d{5})-of-(\d{5})\.json")


class RemovalTotals(NamedTuple):
    """What was done to one folder.

    removed: ids of the records that are gone. records, shards: left, and written again. before: ids
    asked for that had been removed earlier. also: {path of a clip of a removed record: ids of the
    other records that hold it}.
    """

    removed: list[str]
    records: int
    shards: int
    before: list[str]
    also: dict[str, list[str]]


class _Folder(NamedTuple):
    """A complete extraction, without its manifest."""

    directory: epath.Path
    storage: Storage
    shards: list[Shard]
    reports: list[ShardReport]

    def lines(self) -> list[dict]:
        return [line for report in self.reports for line in report.lines]

    def failures(self) -> list[dict]:
        return [failure for report in self.reports for failure in report.failures]


def remove(directories: Sequence[str], names: str) -> dict[str, RemovalTotals]:
    """Remove records from folders; return what was done to each.

    names: ids of records or paths of clips, separated by commas. A path removes all records with
    this clip, an id only the record (and its exact copies). A name is in one folder at least.
    Raises UserError if one is in none of them, or a folder is no complete extraction; then nothing
    is changed.
    """
    folders = [_open(epath.Path(directory)) for directory in directories]
    wanted = [_wanted(folder, names) for folder in folders]
    asked = dict.fromkeys(name for one in wanted for name in one)
    if not asked:
        raise UserError(f"remove: {names!r} names nothing; give ids of records or paths of clips")
    for name in asked:
        if not any(one.get(name) is not None for one in wanted):
            raise UserError(_unknown(name, folders))
    return {
        str(folder.directory): _remove(folder, {k: v for k, v in one.items() if v is not None})
        for folder, one in zip(folders, wanted, strict=True)
    }


def _open(directory: epath.Path) -> _Folder:
    """Read a folder's reports. Raises UserError unless all its shards are finished."""
    content = files.read_json(directory / EXTRACTION, "name a folder that ugc-jax extract wrote")
    try:
        storage, clip = Storage(**content["storage"]), records.stored_clip(content)
    except (KeyError, TypeError, UserError) as error:
        raise UserError(f"{directory / EXTRACTION}: has no valid settings ({error})") from None
    names = [file.name.removesuffix(".next") for file in (directory / REPORTS).glob("*.json*")]
    found = {match[0]: match for match in map(_REPORT.fullmatch, names) if match}
    shards = [
        Shard(str(directory), int(match[1]), int(match[2]), [], clip, storage)
        for _, match in sorted(found.items())
    ]
    reports = [read_report(shard) for shard in shards]
    if not shards or len(shards) != shards[0].count or None in reports:
        raise UserError(
            f"{directory}: this folder is not a complete extraction; {EXTRACT_AGAIN}, then remove"
        )
    return _Folder(directory, storage, shards, reports)


def _wanted(folder: _Folder, names: str) -> dict[str, list[Removal] | None]:
    """Return {name: its removals}: [] if it was removed before, None if the folder has no such one.

    A comma separates names unless the whole text is one.
    """
    lines = {line["id"]: line for line in folder.lines()}
    clips = {fact["path"] for line in lines.values() for fact in line["media"]}
    failures = {failure["id"]: failure for failure in folder.failures()}
    clips |= {path for failure in failures.values() for path in failure["media"]}
    before = {name for one in read_removals(folder.directory) for name in (one.id, *one.media)}

    def find(name: str) -> list[Removal] | None:
        if name in clips:
            return [removal(name, "clip", [name])]
        if (line := lines.get(name)) is not None:
            media = [fact["path"] for fact in line["media"]]
            return [removal(name, "record", media, line["messages"], line["solution"])]
        if (failure := failures.get(name)) is not None:  # its texts are not known here
            return [removal(path, "clip", [path]) for path in failure["media"]]
        same = [clip for clip in clips if os.path.realpath(clip) == os.path.realpath(name)]
        if same:
            return [removal(clip, "clip", [clip]) for clip in same]
        return [] if name in before else None

    given = [names] if find(names) is not None else names.split(",")
    return {name: find(name) for name in filter(None, map(str.strip, given))}


def _unknown(name: str, folders: Sequence[_Folder]) -> str:
    known = [line["id"] for folder in folders for line in folder.lines()]
    paths = {f["path"] for folder in folders for line in folder.lines() for f in line["media"]}
    base = os.path.basename(name)
    close = [path for path in sorted(paths) if os.path.basename(path) == base]
    close += difflib.get_close_matches(name, [*known, *sorted(paths - {*known})], _CLOSE, 0.8)
    places = ", ".join(str(folder.directory) for folder in folders)
    remedy = "index.jsonl has the ids and the paths of the clips"
    if close:
        remedy = f"did you mean {' or '.join(list(dict.fromkeys(close))[:_CLOSE])}?"
    return f"{places}: has no record or clip {name!r}; {remedy}"


def _remove(folder: _Folder, wanted: dict[str, list[Removal]]) -> RemovalTotals:
    directory, removals = folder.directory, read_removals(folder.directory)
    new = [one for found in wanted.values() for one in found]
    if new:
        removals += new
        write_removals(directory, removals)
    gone = {line["id"]: line for line in folder.lines() if _is_covered(line, removals)}
    failed = {
        failure["id"]
        for failure in folder.failures()
        if any(one.covers([], None, failure["media"]) for one in removals)
    }
    todo = []
    for shard, report in zip(folder.shards, folder.reports, strict=True):
        ids = [one["id"] for one in (*report.lines, *report.failures)]
        if left := {*ids} & (gone.keys() | failed):
            # Only the ids count: no row is read.
            rows = [ManifestRow(name, [], [], None, {}) for name in ids if name not in left]
            todo.append(shard._replace(rows=rows, shrink=True))
    if todo or not (directory / SHARDS).exists():
        (directory / SHARDS).unlink(missing_ok=True)  # incomplete, until the index is written
        for _ in write_shards(todo, lambda tasks: iter(list(tasks))):
            pass
        write_folder(directory, [read_report(shard) for shard in folder.shards], folder.storage)
    _clean(folder)
    media = {fact["path"] for line in gone.values() for fact in line["media"]}
    left = [line for line in folder.lines() if line["id"] not in gone]
    also = {
        path: ids
        for path in sorted(media)
        if (ids := [one["id"] for one in left if path in [fact["path"] for fact in one["media"]]])
    }
    before = [name for name, found in wanted.items() if not found]
    return RemovalTotals([*gone, *sorted(failed)], len(left), len(todo), before, also)


def _is_covered(line: dict, removals: Sequence[Removal]) -> bool:
    media = [fact["path"] for fact in line["media"]]
    return any(one.covers(line["messages"], line["solution"], media) for one in removals)


def _clean(folder: _Folder):
    """Remove what killed runs have left, which may hold removed records."""
    for shard in folder.shards:
        settle(shard)
    for place in (folder.directory, folder.directory / REPORTS):
        for pattern in ("*.part", "*.new"):
            for file in place.glob(pattern):
                file.unlink(missing_ok=True)
