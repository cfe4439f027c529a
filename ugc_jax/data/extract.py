"""Manifest rows -> a folder of records (`records`), shard by shard, restartable.

A shard is written under a temporary name and renamed when it is complete; then its report (index
lines, failures, size) is written to shards/. A shard with its report is finished; all else that a
killed run leaves is ignored and overwritten. When all shards are finished, the reports become the
index.

A further run reads the failed clips of finished shards again, except those whose content is known
to be broken and has not changed. A shard in which that succeeds is written again; it takes its good
records over. A failure of the environment (no library, memory, disk space, file handles) stops the
job and is not recorded.

Rows that removed.jsonl covers are no rows of a shard: they are not read, and a finished shard that
holds them is written again without them (`removal` does so without the manifest).

Several processes may write one folder, each the shards of its share (`Share`); the one that
finishes the last shard writes the index.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import re
import shlex
import tempfile
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from etils import epath

from ugc_jax import __version__, files, remote
from ugc_jax.data import records, tars
from ugc_jax.data.example import RawMedium, raw_medium
from ugc_jax.data.manifest import ManifestRow
from ugc_jax.data.prompt import media_kinds
from ugc_jax.data.records import MediumFacts, Storage, shard_name
from ugc_jax.data.removed import REMOVED, read_removals
from ugc_jax.data.workers import Outcome, Pool, ReadingConfig, allow
from ugc_jax.errors import UnreadableFile, UserError, environment_failure
from ugc_jax.media.clip import probe, read_clip
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY
from ugc_jax.scratch import ScratchFolder
from ugc_jax.settings import flatten

REPORTS, FAILURES = "shards", "failures.jsonl"
SLOW = 1e6  # bytes a second, as slow as a remote file may come
# Variables with the rank and the number of processes: of SLURM's srun, and of jax's processes.
_RANKS = (("SLURM_PROCID", "SLURM_NTASKS"), ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"))
_ASKED = 3  # files of a bucket that are asked for before the work


class Shard(NamedTuple):
    """The rows of one file, which any host can write.

    number: 0..count - 1. again: ids of the rows of a finished shard to read again; its other rows
    stay as they are, `kept` of them as records. Empty for a shard that is not finished. shrink:
    the shard is finished and has records of none of these rows, which are to go.
    """

    directory: str
    number: int
    count: int
    rows: list[ManifestRow]
    clip: ClipSettings
    storage: Storage
    again: frozenset[str] = frozenset()
    kept: int = 0
    shrink: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether its file exists and is only changed."""
        return self.shrink or bool(self.again)

    @property
    def todo(self) -> int:
        """The number of rows to read."""
        return len(self.again) if self.is_finished else len(self.rows)


class Share(NamedTuple):
    """The shards of one process of `count` that work at the same folder: those of its rank.

    rank: 0..count - 1.
    """

    rank: int
    count: int

    def has(self, number: int) -> bool:
        """Whether a shard is one of this process."""
        return number % self.count == self.rank


ALL = Share(0, 1)


def parse_share(text: str | None, environment: Mapping[str, str] = os.environ) -> Share:
    """Return the share of "2/8", the third of eight; all of None.

    "auto": rank and count are those that SLURM, or the variables of jax's processes, give.
    Raises UserError for any other text, and for "auto" where no variables say it.
    """
    if text is None:
        return ALL
    if text == "auto":
        for rank, count in _RANKS:
            if rank in environment and count in environment:
                text, source = f"{environment[rank]}/{environment[count]}", f" ({rank}/{count})"
                break
        else:
            names = ", or ".join(f"{rank} and {count}" for rank, count in _RANKS)
            raise UserError(f"shard is auto, and neither {names} are set; give --shard RANK/COUNT")
    else:
        source = ""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not int(found[1]) < int(found[2]):
        raise UserError(
            f"shard is {text}{source}; give RANK/COUNT, of 8 processes 0/8 to 7/8, or auto"
        )
    return Share(int(found[1]), int(found[2]))


class ShardReport(NamedTuple):
    """A finished shard. lines: of index.jsonl. failures: of failures.jsonl, see `_failure`."""

    name: str
    bytes: int
    lines: list[dict]
    failures: list[dict]


class ExtractionTotals(NamedTuple):
    """Counts of a finished folder.

    bytes: of its shards. kept: records of earlier runs. again: failed clips of earlier runs that
    were tried again.
    """

    records: int
    failures: int
    bytes: int
    kept: int
    again: int

    def summary(self, directory: epath.Path) -> str:
        """Describe the totals in one line."""
        size = f"{self.bytes / 1e6:.1f} MB"
        if self.records:
            size += f", {self.bytes / self.records / 1e3:.0f} kB each"
        line = (
            f"{directory}: {self.records} records ({size}); {self.failures} clips failed, "
            f"{self.kept} kept from before"
        )
        return f"{line}, {self.again} failed clips tried again" if self.again else line


@dataclasses.dataclass(frozen=True)
class Extraction:
    """The rows to extract, the settings and the output folder."""

    directory: epath.Path
    rows: list[ManifestRow]
    clip: ClipSettings  # resolved
    storage: Storage
    shard_clips: int  # most clips of a shard

    def shards(self) -> list[Shard]:
        """Return all shards, each with its share of the rows, in order, without removed ones."""
        count = -(-len(self.rows) // self.shard_clips)
        bounds = [number * len(self.rows) // count for number in range(count + 1)]
        left_out = self.left_out()
        return [
            Shard(
                str(self.directory),
                number,
                count,
                [row for row in self.rows[first:last] if row.id not in left_out],
                self.clip,
                self.storage,
            )
            for number, (first, last) in enumerate(itertools.pairwise(bounds))
        ]

    def left_out(self) -> frozenset[str]:
        """Return the ids of the rows that removed.jsonl covers."""
        removals = read_removals(self.directory)
        return frozenset(
            row.id
            for row in self.rows
            if any(one.covers(row.messages, row.solution, row.media) for one in removals)
        )

    def prepare(
        self, overwrite: bool = False, retry: bool = False, share: Share = ALL
    ) -> list[Shard]:
        """Prepare the folder; return the shards to write: unfinished, or with clips to try again.

        overwrite: delete an existing extraction. retry: also try clips that are known to be broken.
        share: of this process; other processes may prepare and write theirs at the same time.
        Raises UserError if the folder holds something else or an extraction with other settings.
        """
        settings = self._settings()
        path = self.directory / records.EXTRACTION
        if overwrite and path.exists():
            self._clear()
        elif path.exists():
            self._compare(path, settings)
        elif self.directory.exists() and not self.directory.is_dir():
            raise UserError(f"{self.directory}: is a file; choose another output")
        elif self.directory.exists() and any(map(self._is_strange, self.directory.iterdir())):
            # Another process may have begun meanwhile: extraction.json is its first file.
            if not path.exists():
                raise UserError(f"{self.directory}: holds something else; choose another output")
            self._compare(path, settings)
        shards = [shard for shard in self.shards() if share.has(shard.number)]
        self._clear_partial(shards, share)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fault = f"{self.directory}: cannot be made ({error.strerror}); choose another output"
            raise environment_failure(error, self.directory) or UserError(fault) from None
        if not path.exists():
            versions = {
                name: importlib.metadata.version(name)
                for name in ("av", "numpy", "pillow", "soxr", "array_record")
            }
            versions = {"ugc_jax": __version__, **versions}
            files.write_json(path, settings | {"versions": versions})
        (self.directory / REPORTS).mkdir(exist_ok=True)
        todo = []
        for shard in shards:
            if (report := read_report(shard)) is None:
                todo.append(shard)
                continue
            rows, lines = ({row.id for row in shard.rows}, {line["id"] for line in report.lines})
            settled = {
                failure["id"] for failure in report.failures if _is_broken(failure) and not retry
            }
            again = frozenset(
                rows - lines - settled
            )  # failed ones, and those of taken back removals
            if again or lines - rows:
                kept, shrink = len(lines & rows), bool(lines - rows)
                todo.append(shard._replace(again=again, kept=kept, shrink=shrink))
        # Without it the folder is incomplete, until all shards are written.
        if any(shard.shrink or not shard.is_finished for shard in todo):
            (self.directory / records.SHARDS).unlink(missing_ok=True)
        return todo

    def finish(
        self, written: Sequence[Shard] = (), reports: "Sequence[ShardReport] | None" = None
    ) -> ExtractionTotals:
        """Write the index of all shards and failures.jsonl. All shards must be finished.

        written: the shards of this run, for the totals. reports: of all shards; None: they are
        read.
        """
        if reports is None:
            reports = [read_report(shard) for shard in self.shards()]
        lines, failures = write_folder(self.directory, reports, self.storage)
        new = sum(len(reports[shard.number].lines) - shard.kept for shard in written)
        return ExtractionTotals(
            records=len(lines),
            failures=len(failures),
            bytes=sum(report.bytes for report in reports),
            kept=len(lines) - new,
            again=sum(len(shard.again) for shard in written),
        )

    def finish_together(self, written: Sequence[Shard] = ()) -> ExtractionTotals | None:
        """Do as `finish` if the shards of all processes are finished; else return None.

        The process that finishes the last shard writes the index. Where two do so at once, one may
        have read a report before the other replaced it; so each reads them again after its index.
        """
        while True:
            before = [read_report(shard) for shard in self.shards()]
            if None in before:
                return None
            totals = self.finish(written, before)
            if [read_report(shard) for shard in self.shards()] == before:
                return totals

    def progress(self, share: Share) -> tuple[int, int, int, int]:
        """Return finished and all shards of all processes, failed clips and rows of a share."""
        finished = failed = rows = 0
        shards = self.shards()
        for shard in shards:
            report = read_report(shard)
            finished += report is not None
            if share.has(shard.number):
                rows += len(shard.rows)
                failed += len(report.failures) if report else 0
        return finished, len(shards), failed, rows

    def _clear_partial(self, shards: Sequence[Shard], share: Share):
        """Remove the partial files that killed runs left, but not those of other processes."""
        own = tuple(f"{_record_path(shard).name}." for shard in shards)
        for partial in self.directory.glob("*.part"):
            if share == ALL or partial.name.startswith(own):
                partial.unlink(missing_ok=True)

    @staticmethod
    def _is_strange(file: epath.Path) -> bool:
        """Whether a file of a folder without extraction.json is none of its beginning."""
        return file.name != REMOVED and not file.name.startswith(records.EXTRACTION)

    def _settings(self) -> dict:
        """Return the settings that must not change if finished shards are to be kept."""
        digest = hashlib.sha256(json.dumps(self.rows).encode()).hexdigest()
        return {
            "clip": dataclasses.asdict(self.clip),
            "storage": dataclasses.asdict(self.storage),
            "shard_clips": self.shard_clips,
            "rows": {"count": len(self.rows), "sha256": digest},
        }

    def _clear(self):
        """Remove the files of an extraction, and no others."""
        for name in (records.SHARDS, records.INDEX, FAILURES, "dataset_info.json", "features.json"):
            (self.directory / name).unlink(missing_ok=True)
        for file in self.directory.glob(f"{records.NAME}-{records.SPLIT}.array_record-*"):
            file.unlink()
        if (self.directory / REPORTS).exists():
            (self.directory / REPORTS).rmtree()
        (self.directory / records.EXTRACTION).unlink()

    def _compare(self, path: epath.Path, settings: dict):
        """Raise UserError unless `path` describes an extraction with the same settings."""
        content = files.read_json(path, "--overwrite writes this folder again")
        with contextlib.suppress(KeyError, TypeError, UserError):  # told below, as a difference
            content["clip"] = dataclasses.asdict(records.stored_clip(content))
        before = flatten(content)
        for name, value in flatten(settings).items():
            if before.get(name) == value:
                continue
            field = name.rpartition(".")[2]
            change = f"{field} was {before.get(name)!r:.60} and is now {value!r:.60}"
            if name.startswith("rows."):
                change = "the manifest has changed since"
            raise UserError(
                f"{self.directory}: holds an extraction with other settings ({change}); "
                "choose another output, or add --overwrite to write it again"
            )


def write_folder(
    directory: epath.Path, reports: Sequence[ShardReport], storage: Storage
) -> tuple[list[dict], list[dict]]:
    """Write failures.jsonl and the index of a folder of finished shards; return their lines."""
    shards, lines, failures = [], [], []
    for report in reports:
        shards.append({"name": report.name, "bytes": report.bytes, "records": len(report.lines)})
        lines += report.lines
        failures += report.failures
    files.write_text(directory / FAILURES, files.to_lines(failures), errors="backslashreplace")
    records.write_index(directory, lines, shards, storage)
    return lines, failures


def run_local(shards: list[Shard], config: ReadingConfig) -> Iterator[str]:
    """Write shards; yields "" or the reason of failure for each row that is read.

    Worker processes read the clips. A clip that exceeds their limits or kills its worker fails, and
    the next run tries it again. Raises as `write_shards`.
    """
    if shards:
        clip, storage = shards[0].clip, shards[0].storage
        with _folder_of_clips(shards) as folder:
            read = functools.partial(_read_task, clip=clip, storage=storage, folder=folder)
            with Pool(read, config, name=lambda task: task.row.id) as pool:
                yield from write_shards(
                    shards, lambda tasks: pool.read(tasks, ahead=2 * pool.workers)
                )


def run_beam(shards: list[Shard], runner: str, options: str, config: ReadingConfig):
    """Write shards on a fleet with Apache Beam, one shard an element.

    runner: of Beam ("DirectRunner", "DataflowRunner", ...). options: its flags, as in a shell.
    config: the limits of a clip; each element has one process that reads.
    Its workers need this package, the clips at the manifest's paths, and access to the output.
    Raises UserError without apache-beam.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError(
            "runner: apache-beam is not installed; pip install 'ugc_jax[beam]', or leave runner out"
        ) from None
    try:
        flags = PipelineOptions(shlex.split(options), runner=runner, save_main_session=False)
        pipeline = apache_beam.Pipeline(options=flags)
    except ValueError as error:  # unknown runner, missing flags, or an open quote
        raise UserError(f"runner {runner}: {error!s:.300}; see its page in Beam's manual") from None
    one = ReadingConfig(workers=1, clip_timeout=config.clip_timeout, clip_memory=config.clip_memory)
    with pipeline:
        tasks = pipeline | "Shards" >> apache_beam.Create(shards, reshuffle=True)
        _ = tasks | "Extract" >> apache_beam.Map(_finish_shard, config=one)


def _finish_shard(shard: Shard, config: ReadingConfig):
    for _ in run_local([shard], config):
        pass


# ---- one shard -----------------------------------------------------------------------------------


def _record_path(shard: Shard) -> epath.Path:
    return epath.Path(shard.directory) / shard_name(shard.number, shard.count)


def _report_path(shard: Shard) -> epath.Path:
    return epath.Path(shard.directory) / REPORTS / f"{shard.number:05d}-of-{shard.count:05d}.json"


def _next_path(path: epath.Path) -> epath.Path:
    """The report of a file that is about to replace that of the report `path`."""
    return path.with_name(f"{path.name}.next")


def read_report(shard: Shard) -> ShardReport | None:
    """Return the report of a shard that is finished and complete; None otherwise."""
    path = _report_path(shard)
    # The second after a kill between two renamings; the first again, as another process may have
    # renamed the second meanwhile.
    for place in (path, _next_path(path), path):
        with contextlib.suppress(UserError, OSError, TypeError):
            report = ShardReport(**files.read_json(place, "extract its shard"))
            if _record_path(shard).stat().length == report.bytes:
                return report
    return None


def settle(shard: Shard):
    """Complete the renaming of a report that a kill has prevented, or drop a report of no file."""
    path = _report_path(shard)
    upcoming = _next_path(path)
    if not upcoming.exists():
        return
    report = read_report(shard)
    upcoming.unlink()
    if report is not None:
        _write_report(path, report)


class Task(NamedTuple):
    """A row to read. identity: of its media before that, as of `_identity`.

    members: where its media are that are members of tar files; None for others.
    """

    row: ManifestRow
    identity: list[list[int]] | None
    members: list[tars.Member | None]


def write_shards(
    shards: list[Shard], read: Callable[[Iterator[Task]], Iterator[Outcome]]
) -> Iterator[str]:
    """Write shards, one after the other; yields "" or the reason of failure for each row read.

    read: gives the result of `_read_task` for each task, in order; it may run ahead. Raises
    UserError if the disk cannot be written, EnvironmentFailure if the environment is broken.
    """
    plans = [(shard, read_report(shard) if shard.is_finished else None) for shard in shards]
    results = read(
        _task(row)
        for shard, before in plans
        for row in shard.rows
        if before is None or row.id in shard.again
    )
    for shard, before in plans:
        lines = {line["id"]: line for line in before.lines} if before else {}
        broken = {failure["id"]: failure for failure in before.failures} if before else {}
        failures = []
        with _ShardFile(shard, before) as file:
            for row in shard.rows:
                if before is not None and row.id not in shard.again:
                    if row.id in lines:
                        file.keep(lines[row.id])
                    else:
                        failures.append(broken[row.id])
                    continue
                (_, identity, _), value, _ = next(results)
                if isinstance(value, UserError):
                    known = not isinstance(value, UnreadableFile)
                    failures.append(_failure(row, str(value), identity if known else None))
                    yield str(value)
                else:
                    file.add(*value)
                    yield ""
            file.finish(failures)


class _ShardFile(contextlib.ExitStack):
    """Writes the records of a shard; a finished file is replaced only if its records change.

    lines: of the index, in the order of the records.
    """

    def __init__(self, shard: Shard, before: ShardReport | None):
        super().__init__()
        self.lines: list[dict] = []
        self._shard, self._before, self._final = shard, before, _record_path(shard)
        self._kept: deque[dict] = deque()  # lines whose records are not copied yet
        self._new = self._writer = self._reader = None

    def keep(self, line: dict):
        """Append a record of the finished file, given its line."""
        self._append(line, line["crc32"])
        self._kept.append(line)

    def add(self, line: dict, record: bytes):
        """Append a new record. Raises UserError if the disk cannot be written."""
        with self._disk_errors():
            self._copy()
            self._writer.write(record)
        self._append(line, zlib.crc32(record))

    def finish(self, failures: list[dict]):
        """Complete the file and write its report. Raises as `add`, and for a damaged record.

        Killed between the two, the shard is finished, as its next report is there already.
        """
        report = ShardReport(self._final.name, 0, self.lines, failures)
        path, before = _report_path(self._shard), self._before
        if before is not None and self._writer is None and len(self.lines) == len(before.lines):
            _write_report(path, report._replace(bytes=before.bytes))
            return
        from array_record.python.array_record_module import ArrayRecordReader

        with self._disk_errors():
            self._copy()
            self._writer.close()
            if ArrayRecordReader(str(self._new)).num_records() != len(self.lines):
                raise OSError("it has not all the records that were written")
            size, local = self._new.stat().length, self._new.parent == self._final.parent
        _write_report(_next_path(path), report._replace(bytes=size))
        with self._disk_errors():
            self._new.replace(self._final) if local else self._new.copy(self._final)
            _next_path(path).replace(path)

    def _append(self, line: dict, crc32: int):
        place = {"shard": self._shard.number, "position": len(self.lines), "crc32": crc32}
        self.lines.append(line | place)

    def _copy(self):
        """Open the new file and copy the records that are kept so far."""
        from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

        if self._writer is None:
            folder = str(self._final.parent)
            if "://" in folder:  # an object store takes whole files only
                folder = self.enter_context(tempfile.TemporaryDirectory(prefix="ugc-jax-"))
            self._new = epath.Path(folder) / f"{self._final.name}.{uuid.uuid4().hex[:8]}.part"
            self.callback(self._new.unlink, missing_ok=True)
            self._writer = ArrayRecordWriter(str(self._new), "group_size:1")
        if self._kept and self._reader is None:
            self._reader = ArrayRecordReader(str(self._final), options=records.RANDOM_ACCESS)
        while self._kept:
            line = self._kept.popleft()
            record = self._reader.read([line["position"]])[0]
            if zlib.crc32(record) != line["crc32"]:
                raise UserError(records.damaged(self._final, line["position"]))
            self._writer.write(record)

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            fault = f"{self._final}: cannot be written ({error!s:.200}); {files.FULL_DISK}"
            failure = environment_failure(error, self._final)
            raise failure or UserError(f"{fault}: finished shards are kept") from None


def _write_report(path: epath.Path, report: ShardReport):
    text = files.to_lines([report._asdict()])
    files.write_text(path, text, errors="backslashreplace")


def _failure(row: ManifestRow, error: str, broken: list[list[int]] | None) -> dict:
    """Return the entry of a failed row. broken: the identity of its media; None if not known."""
    return {"id": row.id, "media": row.media, "error": error, "broken": broken}


def _is_broken(failure: dict) -> bool:
    """Whether the media of a failed row are known to be broken, and have not changed since."""
    broken = failure.get("broken")  # earlier versions did not record it
    return broken is not None and broken == _identity(failure["media"])


def _task(row: ManifestRow) -> Task:
    """Return the task of a row. A file that changes while it is read has changed since."""
    members: list[tars.Member | None] = [None] * len(row.media)
    with contextlib.suppress(UserError):  # which the worker raises again, as the row's
        members = [tars.locate(path) for path in row.media]
    return Task(row, _identity(row.media), members)


def _identity(media: list[str]) -> list[list[int]] | None:
    """Return [bytes, time of change in ns] of each file, None if one cannot be found.

    A member of a tar file has its own bytes and the time of the tar file. Of remote files nothing
    is known: each would take a request.
    """
    found = []
    try:
        for path in media:
            tar, _ = tars.split(path)
            if remote.is_url(path):
                return None
            stat = os.stat(tar or path)
            size = tars.locate(path).size if tar else stat.st_size
            found.append([size, stat.st_mtime_ns])
    except (OSError, UserError):
        return None
    return found


def check_media(shards: Sequence[Shard]) -> None:
    """Raise EnvironmentFailure if a library or the right to read the media of shards is missing.

    Of each bucket, up to three files are asked for; a file that is absent is no reason. Other
    machines, as those of Beam, are not checked.
    """
    buckets: dict[tuple[str, str], dict[str, None]] = {}
    for shard in shards:
        for row in shard.rows:
            for path in filter(remote.is_url, row.media):
                url = tars.split(path)[0] or path
                name = remote.protocol(url)
                urls = buckets.setdefault((name, url.partition("://")[2].partition("/")[0]), {})
                if len(urls) < _ASKED:
                    urls[url] = None
    for (name, _), urls in buckets.items():
        remote.file_system(next(iter(urls)))
        if name not in ("http", "https"):  # a web server's answer is about one file
            remote.check_access([*urls])


def _read_task(
    task: Task, clip: ClipSettings, storage: Storage, folder: Path | None = None
) -> tuple[dict, bytes]:
    return extract_row(task.row, clip, storage, task.members, folder)


def extract_row(
    row: ManifestRow,
    clip: ClipSettings,
    storage: Storage,
    members: Sequence[tars.Member | None] | None = None,
    folder: Path | None = None,
) -> tuple[dict, bytes]:
    """Return (index line, record) of a row; each medium has an equal share of media_tokens.

    members: as of `Task`; None: they are looked up. folder: where a medium that is remote or in a
    tar file is while it is read; None: that of temporary files.
    Raises UserError that names the file which cannot be used.
    """
    limit = GEOMETRY.text.max_position_embeddings
    allowance = min(clip.media_tokens or limit, limit) // max(len(row.media), 1)
    kinds = media_kinds(row.messages)
    media = []
    for path, kind, member in zip(
        row.media, kinds, members or [None] * len(row.media), strict=True
    ):
        with _local(path, member, folder) as file:
            media.append(_read(file, path, kind, clip, allowance))
    line = {
        "id": row.id,
        "messages": row.messages,
        "solution": row.solution,
        "extra": row.extra,
        "media": [facts._asdict() for facts, _ in media],
    }
    return line, records.encode_record(line, [raw for _, raw in media], storage)


def _folder_of_clips(shards: list[Shard]) -> contextlib.AbstractContextManager[Path | None]:
    """Return the context of a folder for clips while they are read; None if all are files here.

    What a worker that was killed has left in it goes with it, and after a kill of this process with
    the next one's.
    """
    paths = (path for shard in shards for row in shard.rows for path in row.media)
    if not any(remote.is_url(path) or tars.split(path)[0] for path in paths):
        return contextlib.nullcontext()
    return ScratchFolder("ugc-jax-clips-")


@contextlib.contextmanager
def _local(path: str, member: tars.Member | None, folder: Path | None) -> Iterator[str]:
    """Yield a local file with the content of a path, which may be remote or in a tar file.

    Its name does not show in errors of the block. Raises UnreadableFile if it cannot be fetched.
    """
    member = member or tars.locate(path)
    if member is None and not remote.is_url(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="ugc-jax-", dir=folder) as own:
        file = os.path.join(own, os.path.basename(path).partition("?")[0] or "clip")
        try:
            size = remote.size(path) if member is None else member.size
            if remote.is_url(path):
                allow((size or 0) / SLOW)
            if member is not None:
                tars.copy(member, file)
            else:
                remote.fetch(path, file, size=size)
            yield file
        except OSError as error:
            fault = f"{file}: cannot be written ({error.strerror or error})"
            raise environment_failure(error, file) or UnreadableFile(f"{path}: {fault}") from None
        except UserError as error:
            raise type(error)(str(error).replace(file, path)) from None


def _read(
    file: str, path: str, kind: str, settings: ClipSettings, allowance: int
) -> tuple[MediumFacts, RawMedium]:
    """Read a medium and its facts for the index.

    file: where it is. path: as the manifest calls it. kind: as the messages call it.
    """
    source = probe(file)
    allow(source.length)
    if source.kind != kind:
        raise UserError(f"{path}: is of kind {source.kind}, and the manifest calls it {kind}")
    clip = read_clip(source, settings, allowance, GEOMETRY)
    raw = raw_medium(clip, settings, GEOMETRY.vision)
    frames, height, width = (0, 0, 0) if raw.frames is None else raw.frames.shape[:3]
    facts = MediumFacts(
        kind=kind,
        path=path,
        frames=frames,
        height=height,
        width=width,
        seconds_per_grid=raw.seconds_per_grid,
        mel_frames=None if raw.mel is None else len(raw.mel),
        has_sound=source.has_audio,
        fps=source.fps,
        instants=[round(time, 6) for time in clip.times.tolist()],
        notes=clip.notes,
    )
    return facts, raw
