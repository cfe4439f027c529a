"""Extracted clips on disk: ArrayRecord shards that TFDS can read, and an index for planning.

A folder holds
  clips-train.array_record-00000-of-00004 ...   the records: frames, log-mel, messages
  dataset_info.json, features.json              what tfds.builder_from_directory(folder) reads
  extraction.json                               the settings and versions that made it
  index.jsonl                                   one line a record, without pictures and sound
  shards.json                                   written last: sizes of shards, checksum of the index
  removed.jsonl, README.md                      what was removed and stays out; the data card
A folder without shards.json is incomplete.
"""

import dataclasses
import functools
import hashlib
import io
import os
import shutil
import tempfile
import threading
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from ugc_jax import files, remote
from ugc_jax.data.example import MediumInput, RawMedium, medium_input, medium_size
from ugc_jax.data.prompt import Medium
from ugc_jax.errors import UserError, environment_failure
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY, MEL_BINS

NAME, SPLIT, VERSION = "clips", "train", "1.0.0"
INDEX, EXTRACTION, SHARDS = "index.jsonl", "extraction.json", "shards.json"
# Options of a reader that reads single records: no read-ahead.
RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"
FETCHES = 8  # remote files that are fetched at a time
EXTRACT_AGAIN = "run ugc-jax extract again with the same settings"


@dataclasses.dataclass(frozen=True)
class Storage:
    """How frames and sound are stored."""

    format: Literal["jpeg", "png"] = "jpeg"  # of the frames; png is exact and about 3 times larger
    quality: int = 95  # of JPEG frames, 1 to 100; colours are kept at full resolution
    mel: Literal["float16", "float32"] = "float16"  # of the log-mel; float32 is exact

    def __post_init__(self):
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality is {self.quality}; use 1 to 100")


class IndexEntry(NamedTuple):
    """The facts of a record that are known without opening it.

    id: the manifest's line or the clip's path. messages: as `prompt.pieces` takes them.
    solution: of a GRPO row. extra: the manifest's other columns.
    media: the sizes of the media, in the order in which messages name them.
    """

    id: str
    messages: list[dict]
    solution: str | None
    extra: dict
    media: tuple[Medium, ...]

    @property
    def prompt(self) -> list[dict]:
        """The messages without the last answer."""
        has_answer = self.messages[-1]["role"] == "assistant"
        return self.messages[:-1] if has_answer else self.messages

    @property
    def answer(self) -> str | None:
        """The last answer of the messages, or else the solution; None without either."""
        last = self.messages[-1]
        return text_of(last) if last["role"] == "assistant" else self.solution

    @property
    def question(self) -> str:
        """The text of the user's last turn."""
        return text_of([turn for turn in self.messages if turn["role"] == "user"][-1])


class MediumFacts(NamedTuple):
    """A medium of a record, as index and record store it in JSON.

    mel_frames: None without sound. instants: seconds of the frames on the file's clock.
    fps: of the file. notes: what was reduced or is missing.
    """

    kind: str
    path: str
    frames: int
    height: int
    width: int
    seconds_per_grid: float
    mel_frames: int | None
    has_sound: bool
    fps: float
    instants: list[float]
    notes: list[str]

    def medium(self) -> Medium:
        """Return its size in a prompt."""
        size = self.frames, self.height, self.width
        return medium_size(self.kind, size, self.seconds_per_grid, self.mel_frames, GEOMETRY.vision)


def text_of(message: dict) -> str:
    """Return the text of a message."""
    content = message["content"]
    parts = [{"text": content}] if isinstance(content, str) else content
    return "".join(part.get("text", "") for part in parts)


def with_texts(messages: list[dict], system: str | None, question: str | None) -> list[dict]:
    """Return messages with another system prompt, and another text of the user's last turn.

    None keeps what they have. The media of the turn stay, before the question.
    """
    if system is not None:
        rest = [turn for turn in messages if turn["role"] != "system"]
        messages = [{"role": "system", "content": system}, *rest]
    if question is not None:
        number = max(n for n, turn in enumerate(messages) if turn["role"] == "user")
        content = messages[number]["content"]
        parts = [] if isinstance(content, str) else content
        media = [part for part in parts if "text" not in (part.get("type"), *part)]
        asked = {"role": "user", "content": [*media, {"type": "text", "text": question}]}
        messages = [*messages[:number], asked, *messages[number + 1 :]]
    return messages


# ---- one record ----------------------------------------------------------------------------------


def features(storage: Storage):
    """Return the TFDS features of a record; media are stored one after the other."""
    import tensorflow_datasets as tfds  # slow to import

    frame = tfds.features.Image(shape=(None, None, 3), encoding_format=storage.format)
    mel = tfds.features.Tensor(
        shape=(None, MEL_BINS), dtype=np.dtype(storage.mel).type, encoding="bytes"
    )
    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "messages": tfds.features.Text(),  # JSON
            "solution": tfds.features.Text(),  # "" where there is none
            "extra": tfds.features.Text(),  # JSON
            "media": tfds.features.Text(),  # JSON: a list of MediumFacts
            "frames": tfds.features.Sequence(frame),
            "mel": mel,
        }
    )


def encode_record(line: dict, media: Sequence[RawMedium], storage: Storage) -> bytes:
    """Serialize a record, a tf.train.Example, of its index line and its frames and sounds."""
    from tensorflow_datasets.core.example_serializer import ExampleSerializer
    from tensorflow_datasets.proto import tf_example_pb2  # needs no tensorflow

    spec = _features(storage)
    mels = [np.zeros((0, MEL_BINS), storage.mel)]
    mels += [raw.mel.astype(storage.mel) for raw in media if raw.mel is not None]
    frames = [frame for raw in media if raw.frames is not None for frame in raw.frames]
    example = {
        "id": files.escaped(line["id"]),
        "messages": files.to_json(line["messages"]),
        "solution": line["solution"] or "",
        "extra": files.to_json(line["extra"]),
        "media": files.to_json(line["media"]),
        "frames": [io.BytesIO(_encode_frame(frame, storage)) for frame in frames],
        "mel": np.concatenate(mels),
    }
    record = ExampleSerializer(spec.get_serialized_info()).serialize_example(
        spec.encode_example(example)
    )
    # The order of its fields is another in every process; sorted, equal records are equal bytes.
    return tf_example_pb2.Example.FromString(record).SerializeToString(deterministic=True)


def _import_parser():
    """Import what `decode_record` needs: where a source is opened, and not in one of its threads.

    While this package is imported, etils replaces `import` in all threads; what Orbax or another
    library imports meanwhile would be a lazy module, even where it is a function.
    """
    from tensorflow_datasets.proto import tf_example_pb2  # noqa: F401


def decode_record(record: bytes, facts: Sequence[MediumFacts], mel_dtype: str) -> list[RawMedium]:
    """Return the media of a record. mel_dtype: "float16" or "float32", as it was stored."""
    from tensorflow_datasets.proto import tf_example_pb2  # needs no tensorflow

    fields = tf_example_pb2.Example.FromString(record).features.feature
    frames = iter(fields["frames"].bytes_list.value)
    mel = np.frombuffer(fields["mel"].bytes_list.value[0], mel_dtype).reshape(-1, MEL_BINS)
    media, place = [], 0
    for fact in facts:
        pictures, sound = None, None
        if fact.frames:
            pictures = np.empty((fact.frames, fact.height, fact.width, 3), np.uint8)
            for number in range(fact.frames):
                pictures[number] = Image.open(io.BytesIO(next(frames)))
        if fact.mel_frames is not None:
            sound = mel[place : place + fact.mel_frames].astype(np.float32)
            place += fact.mel_frames
        media.append(RawMedium(fact.kind, pictures, fact.seconds_per_grid, sound))
    return media


@functools.cache
def _features(storage: Storage):
    return features(storage)


def _encode_frame(frame: np.ndarray, storage: Storage) -> bytes:
    file = io.BytesIO()
    # subsampling 0: coloured letters of a few pixels stay readable
    options = (
        dict(quality=storage.quality, subsampling=0)
        if storage.format == "jpeg"
        else dict(compress_level=3)
    )
    Image.fromarray(frame).save(file, storage.format, **options)
    return file.getvalue()


# ---- the folder ----------------------------------------------------------------------------------


def shard_name(number: int, count: int) -> str:
    """Return the file name of a shard, as TFDS names the shards of a data set."""
    return f"{NAME}-{SPLIT}.array_record-{number:05d}-of-{count:05d}"


def write_index(directory: epath.Path, lines: Sequence[dict], shards: list[dict], storage: Storage):
    """Write the files that complete a folder of finished shards, shards.json last.

    lines: of index.jsonl, in the order of the shards. shards: {"name", "bytes", "records"} of each.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    identity = DatasetIdentity(
        name=NAME,
        version=tfds.core.Version(VERSION),
        data_dir=str(directory),
        module_name=__name__,
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features(storage))
    info.set_file_format("array_record")
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=NAME, split=SPLIT, filetype_suffix="array_record"
    )
    split = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=[shard["records"] for shard in shards],
        num_bytes=sum(shard["bytes"] for shard in shards),
        filename_template=template,
    )
    info.set_splits(tfds.core.SplitDict([split]))
    try:
        info.write_to_directory(directory)
    except OSError as error:
        fault = f"{directory}: cannot be written ({error}); {files.FULL_DISK}"
        raise environment_failure(error, directory) or UserError(fault) from None
    text = files.to_lines(lines)
    files.write_text(directory / INDEX, text)
    summary = {"index_crc32": zlib.crc32(text.encode()), "shards": shards}
    files.write_json(directory / SHARDS, summary)


def is_records(path: str | epath.Path) -> bool:
    """Return whether a path is a folder that `extract` has made, complete or not."""
    if "://" not in str(path):  # no exception for a name that is too long or of a closed folder
        return any(os.path.exists(os.path.join(path, name)) for name in (EXTRACTION, SHARDS))
    try:
        return any((epath.Path(path) / name).exists() for name in (EXTRACTION, SHARDS))
    except KeyError:  # a scheme that etils does not know, such as ftp://
        return False


def stored_clip(extraction: dict) -> ClipSettings:
    """Return the resolved clip settings of extraction.json.

    Raises KeyError, TypeError or UserError for a file without valid ones.
    """
    clip = dict(extraction["clip"])
    if "media_tokens" not in clip:  # version 0.1.0 had it under the name of the prompt's limit
        clip["media_tokens"] = clip.pop("max_tokens", None)
    return resolve(ClipSettings(**clip))


class RecordSource:
    """Random access to one extracted folder: `source[i]` is (IndexEntry, media for its prompt).

    `entries` needs no record to be opened; `clip` has the settings of the extraction. Each process
    opens a file when it first reads it; a pickled source is only the name of its folder, with the
    checksum of its index. Threads may share a source.
    """

    def __init__(
        self,
        directory: str | epath.Path,
        index_crc32: int | None = None,
        cache: str | None = None,
    ):
        """directory: local, or any path that etils knows (gs://..., s3://...).

        index_crc32: of the index that numbers refer to; None: of any. cache: folder on this machine
        for copies of remote files, each of which is fetched when it is first needed; None: a folder
        for temporary files.
        Raises UserError for a folder that is incomplete, or whose files were cut off or changed.
        """
        self.directory = epath.Path(directory)
        incomplete = (
            "this folder is not a complete extraction; run ugc-jax extract with it as output"
        )
        summary = files.read_json(self.directory / SHARDS, incomplete)
        extraction = files.read_json(self.directory / EXTRACTION, incomplete)
        try:
            self._storage = Storage(**extraction["storage"])
            self.clip = stored_clip(extraction)
        except (KeyError, TypeError, UserError) as error:
            raise UserError(
                f'{self.directory / EXTRACTION}: has no valid "storage" and "clip" ({error}); '
                "run ugc-jax extract again with --overwrite"
            ) from None
        self._shards = summary["shards"]
        _check_sizes(self.directory, self._shards)
        path, remedy = self.directory / INDEX, f"{EXTRACT_AGAIN}, which writes it again"
        text = files.read_text(path, remedy)
        if zlib.crc32(text.encode()) != summary["index_crc32"]:
            raise UserError(f"{path}: changed since it was written; {remedy}")
        self._index_crc32 = summary["index_crc32"]
        if index_crc32 not in (None, self._index_crc32):
            raise UserError(
                f"{self.directory}: its records were removed or written again while they were used;"
                " begin anew, with other output"
            )
        self._lines = [line.value for line in files.parse_lines(text)]
        self.entries: list[IndexEntry] = []
        self._facts: list[list[MediumFacts]] = []
        for line in self._lines:
            facts = [MediumFacts(**fact) for fact in line["media"]]
            media = tuple(fact.medium() for fact in facts)
            self._facts.append(facts)
            self.entries.append(
                IndexEntry(line["id"], line["messages"], line["solution"], line["extra"], media)
            )
        self._readers = {}
        self._lock, self._fetching = threading.Lock(), {}
        self._cache, self._copies = cache, None
        _import_parser()
        if remote.is_url(self.directory):
            self._copies = _folder_of_copies(str(self.directory), self._index_crc32, cache)

    def __reduce__(self):
        return RecordSource, (str(self.directory), self._index_crc32, self._cache)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[IndexEntry, list[MediumInput]]:
        """Raises UserError that names the shard of a record that was not read as written."""
        media = decode_record(self._record(index), self._facts[index], self._storage.mel)
        return self.entries[index], [medium_input(raw, GEOMETRY.vision) for raw in media]

    def notes(self, index: int) -> tuple[str, ...]:
        """Return what was reduced or is missing in the media of a record."""
        return tuple(note for fact in self._facts[index] for note in fact.notes)

    def fetch(self, indices: Iterable[int]) -> None:
        """Copy the files of these records to this machine, several at a time, if they are remote.

        Files of which there are copies are not fetched. Raises UserError that names a file which
        cannot be fetched, after further tries.
        """
        numbers = {self._lines[index]["shard"] for index in indices} - self._readers.keys()
        if self._copies is None or not numbers:
            return
        with ThreadPoolExecutor(min(FETCHES, len(numbers)), "fetch-records") as pool:
            for _ in pool.map(self._copy, numbers):
                pass

    def _record(self, index: int) -> bytes:
        line = self._lines[index]
        shard, position = self._shards[line["shard"]], line["position"]
        path = self.directory / shard["name"]
        for is_last in (self._copies is None, True):
            try:
                record = self._reader(line["shard"]).read([position])[0]
                if zlib.crc32(record) == line["crc32"]:
                    return record
                fault = damaged(path, position)
            except (RuntimeError, ValueError, IndexError) as error:
                if isinstance(error, UserError):  # of the fetching
                    raise
                if (failure := environment_failure(error)) is not None:
                    raise failure from None
                fault = f"{damaged(path, position)} ({error!s:.120})"
            if is_last:
                raise UserError(fault)
            with self._lock:  # the copy may be what is damaged
                self._readers.pop(line["shard"], None)
                (self._copies / shard["name"]).unlink(missing_ok=True)
        raise AssertionError("unreachable")

    def _reader(self, number: int):
        if (reader := self._readers.get(number)) is not None:
            return reader
        from array_record.python.array_record_module import ArrayRecordReader

        # array_record itself opens no s3://, and waits 15 minutes for a gs:// that does not answer.
        name = self._shards[number]["name"]
        path = self.directory / name if self._copies is None else self._copy(number)
        with self._lock:
            if number not in self._readers:
                self._readers[number] = ArrayRecordReader(str(path), options=RANDOM_ACCESS)
            return self._readers[number]

    def _copy(self, number: int) -> Path:
        """Return the copy of a remote file; fetched, unless a process of this machine has."""
        shard = self._shards[number]
        path, url = self._copies / shard["name"], f"{self.directory}/{shard['name']}"
        with self._lock:
            lock = self._fetching.setdefault(number, threading.Lock())
        with lock:
            if path.exists() and path.stat().st_size == shard["bytes"]:
                return path
            with files.replaced(path, "set data.cache to another folder") as new:
                remote.fetch(url, new, size=shard["bytes"])
        return path


def _folder_of_copies(directory: str, crc32: int, cache: str | None) -> Path:
    """Return the folder of the copies of remote records; deletes those of an earlier state.

    Records may have been removed since (`removal`): no copy of them is to stay.
    """
    root = Path(cache) if cache else Path(tempfile.gettempdir(), f"ugc-jax-records-{os.getuid()}")
    place = root / hashlib.sha256(directory.encode()).hexdigest()[:16]
    for other in place.glob("*"):
        if other.name != f"{crc32:08x}":
            shutil.rmtree(other, ignore_errors=True)
    return place / f"{crc32:08x}"


def damaged(path: epath.Path, position: int) -> str:
    """Return the message on a record that cannot be read as it was written."""
    remedy = f"delete this file and {EXTRACT_AGAIN}: only this file is written again"
    return f"{path}: record {position} is damaged; {remedy}"


def _check_sizes(directory: epath.Path, shards: Sequence[dict]):
    """Raise UserError unless all files of shards are there and have their sizes."""
    is_remote = remote.is_url(directory)
    sizes = remote.sizes(str(directory)) if is_remote else {}  # one request
    for shard in shards:
        path, size = directory / shard["name"], shard["bytes"]
        if is_remote:
            found = sizes.get(shard["name"])
        else:
            found = path.stat().length if path.exists() else None
        if found != size:
            state = "missing" if found is None else f"{found} bytes long instead of {size}"
            raise UserError(f"{path}: {state}; {EXTRACT_AGAIN}: only this file is written again")
