"""Clips as the encoders of a checkpoint see and hear them: rows pooled over time.

    clips -> data/reading.py -> batches -> Engine.encode -> rows [B, n, D] of each encoder -> pooled

On disk a line a clip, so that a run that was killed continues, and another count asks nothing
again.
"""

import base64
import contextlib
import dataclasses
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ugc_jax import files
from ugc_jax.data.batching import Batch, BucketKey, Buckets, collate
from ugc_jax.data.reading import Prompt, read_prompts
from ugc_jax.data.workers import ReadingConfig
from ugc_jax.errors import UserError, environment_failure
from ugc_jax.media.presets import ClipSettings

if TYPE_CHECKING:  # importing this file must not import jax
    from ugc_jax.generate.captioner import Captioner

logger = logging.getLogger(__name__)

MODALITIES = ("vision", "audio")  # in the order in which Batch.splice numbers their rows
PARTS = 2  # equal parts of a clip whose rows are averaged apart: what comes first counts
Embedding = dict[str, np.ndarray]  # modality -> f16[(PARTS + 1) D]; zeros for a clip without it


class EmbeddingFile:
    """The embeddings of clips in a JSON Lines file that later runs continue; a context manager."""

    def __init__(self, path: str | Path, how: Mapping):
        """Read the file, or begin it. how: weights and clip settings, as JSON.

        A half-written last line, of a killed run, is removed. Embeddings of other weights or
        settings are removed, too, with a warning. Raises UserError for a file of something else.
        """
        self.path = Path(path)
        self._known: dict[tuple, Embedding] = {}
        head = {"embeddings": dict(how)}
        lines = [files.to_json(head)]
        if self.path.exists():
            lines += self._read(head)
        files.write_text(self.path, "".join(f"{line}\n" for line in lines))
        try:
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._refused(error) from None

    def __enter__(self) -> "EmbeddingFile":
        return self

    def __exit__(self, *_):
        self._file.close()

    def get(self, clip: str) -> Embedding | None:
        """Return the embedding of a clip whose file has not changed since."""
        return self._known.get(_identity(clip))

    def put(self, clip: str, embedding: Embedding):
        """Append an embedding. Raises UserError if the disk cannot be written."""
        key = _identity(clip)
        row = dict(zip(("clip", "size", "modified"), key, strict=True))
        row |= {name: base64.b64encode(embedding[name]).decode() for name in MODALITIES}
        try:
            self._file.write(files.to_json(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._refused(error) from None
        self._known[key] = embedding

    def _read(self, head: dict) -> list[str]:
        """Return the lines that stay, without the first, and fill `_known`."""
        remedy = "name another file for the embeddings"
        kept = []
        for line in files.read_lines(self.path, remedy, errors="surrogateescape"):
            if not line.whole:
                logger.info("%s: removed a half-written last line", self.path)
                break
            row = line.value
            if line.number == 1:
                if not isinstance(row, dict) or "embeddings" not in row:
                    raise UserError(f"{self.path}: has no embeddings; {remedy}")
                if row != head:
                    logger.warning(
                        "%s: its embeddings are of another checkpoint or other clip settings; made "
                        "again", self.path,
                    )  # fmt: skip
                    break
                continue
            try:
                key = row["clip"], row["size"], row["modified"]
                self._known[key] = {
                    name: np.frombuffer(base64.b64decode(row[name]), np.float16)
                    for name in MODALITIES
                }
            except (TypeError, LookupError, ValueError):
                raise UserError(f"{self.path}:{line.number}: is no embedding; {remedy}") from None
            kept.append(line.text)
        return kept

    def _refused(self, error: OSError) -> Exception:
        fault = f"{self.path}: cannot be written ({error}); {files.FULL_DISK}"
        return environment_failure(error, self.path) or UserError(fault)


def _identity(clip: str) -> tuple:
    try:
        stat = os.stat(clip)
    except OSError:
        return str(clip), None, None
    return str(clip), stat.st_size, stat.st_mtime_ns


def embed(
    captioner: "Captioner",
    clips: Sequence[str],
    settings: ClipSettings,
    reading: ReadingConfig,
    batch_size: int,
) -> Iterator[tuple[str, Embedding | UserError]]:
    """Yield the embedding of each clip, or why it has none, not in their order.

    settings: resolved. Raises EnvironmentFailure, which is no clip's.
    """
    waiting: dict[BucketKey, list[tuple[str, Prompt]]] = {}
    settings = dataclasses.replace(settings, max_tokens=None)
    how = settings, captioner.tokenizer, captioner.config, Buckets(), reading
    with contextlib.closing(read_prompts(clips, *how, ahead=2 * batch_size)) as read:
        for clip, prompt in read:
            if isinstance(prompt, UserError):
                yield clip, prompt
                continue
            group = waiting.setdefault(prompt.bucket, [])
            group.append((clip, prompt))
            if len(group) == batch_size:
                yield from _encode(captioner, waiting.pop(prompt.bucket), batch_size)
            elif sum(map(len, waiting.values())) >= 8 * batch_size:
                longest = max(waiting, key=lambda key: len(waiting[key]))
                yield from _encode(captioner, waiting.pop(longest), batch_size)
        for group in waiting.values():
            yield from _encode(captioner, group, batch_size)


def _encode(captioner: "Captioner", group: Sequence[tuple[str, Prompt]], batch_size: int):
    """Yield (clip, embedding) of clips of one bucket."""
    key = group[0][1].bucket
    examples = [prompt.example for _, prompt in group]
    batch = collate(examples, key, batch_size, captioner.config)
    rows = captioner.engine.encode(captioner.params, batch)
    rows = {name: captioner.engine.to_host(rows[name]) for name in MODALITIES}
    for b, (clip, _) in enumerate(group):
        yield clip, pool(batch, rows, b)


def pool(batch: Batch, rows: Mapping[str, np.ndarray], b: int) -> Embedding:
    """Return the embedding of row `b` of a batch: means of its parts, and the spread of all of it.

    rows: of `thinker.encode_media`, [B, n, D], in the order of time; those that no token takes are
    padding.
    """
    taken, first, pooled = batch.splice[b], 0, {}
    for name in MODALITIES:
        count, width = rows[name].shape[1:]
        places = taken[(taken >= first) & (taken < first + count)] - first
        own = rows[name][b, places].astype(np.float32)
        pooled[name] = np.zeros((PARTS + 1, width), np.float32)
        if len(own):
            # One row, of a still, is in each part.
            cuts = np.linspace(0, len(own), PARTS + 1).astype(int)
            pooled[name][:PARTS] = [
                own[min(start, len(own) - 1) : max(stop, start + 1)].mean(axis=0)
                for start, stop in itertools.pairwise(cuts)
            ]
            pooled[name][PARTS] = own.std(axis=0)
        limit = np.finfo(np.float16).max
        pooled[name] = pooled[name].ravel().clip(-limit, limit).astype(np.float16)
        first += count
    return pooled
