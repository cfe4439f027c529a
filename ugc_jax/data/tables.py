"""Data sets of Hugging Face, and Parquet files -> rows as dicts.

    folder that `save_to_disk` wrote · *.parquet, local or a URL · OWNER/NAME of the hub

Media stay what they are in the data set: paths, hf:// URLs, or bytes (`embedded`); none is decoded
or downloaded here.
"""

import contextlib
import datetime
import glob
import io
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from ugc_jax import files, remote
from ugc_jax.data import embedded
from ugc_jax.errors import EnvironmentFailure, UnreadableFile, UserError, require_extra

Rows = Iterable[tuple[str, dict]]  # (id, columns)
_ID = re.compile(r"(?:hf://datasets/)?([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")
_BATCH = 256  # rows that are read at a time


def is_saved(path: str) -> bool:
    """Whether a local folder is one that `save_to_disk` of datasets wrote."""
    names = ("dataset_dict.json", "state.json")
    return any(os.path.isfile(os.path.join(path, name)) for name in names)


def is_parquet(path: str) -> bool:
    """Whether a manifest's name is one of Parquet files."""
    return path.lower().endswith(".parquet")


def hub_id(path: str) -> tuple[str, str | None] | None:
    """Return (OWNER/NAME, revision) of a data set's name on the hub; None for any other text.

    hf://datasets/OWNER/NAME, or OWNER/NAME if there is no such file here; @REVISION may follow.
    """
    found = _ID.fullmatch(path)
    if found is None or os.path.lexists(path) or Path(found[1]).suffix in (".jsonl", ".json"):
        return None
    return found[1], found[2]


def read_saved(path: str, split: str | None, media: Collection[str] = ()) -> Rows:
    """Return the rows of a folder of `save_to_disk`. split: of a folder with several.

    media: columns in which the bytes of a file become its path (`embedded`).
    Raises EnvironmentFailure without datasets, UserError for a folder that it cannot read.
    """
    import_datasets(path)
    from datasets import load_from_disk

    with _one_line(path):
        found = load_from_disk(path)
    return _rows(_of_split(found, path, split), os.path.basename(os.path.abspath(path)), media)


def read_hub(
    name: str,
    revision: str | None,
    subset: str | None,
    split: str | None,
    media: Collection[str] = (),
) -> Rows:
    """Return the rows of a data set of the hub, which is cached on this machine.

    media: as of `read_saved`. Raises as `read_saved`, and UserError if it cannot be fetched.
    """
    import_datasets(name)
    from datasets import load_dataset

    with _one_line(name):
        found = load_dataset(name, subset, revision=revision)
    return _rows(_of_split(found, name, split), name, media)


def read_parquet(path: str, media: Collection[str] = ()) -> Rows:
    """Yield the rows of Parquet files; a local path may be a pattern.

    media: as of `read_saved`. A file that has bytes of files is written once more as an Arrow file,
    to the cache of datasets, as Parquet packs them. Raises as `read_saved`.
    """
    import_datasets(path)
    import pyarrow
    import pyarrow.parquet

    paths = [path]
    if glob.has_magic(path) and not os.path.lexists(path) and not remote.is_url(path):
        paths = sorted(glob.glob(path, recursive=True))
        if not paths:
            raise UserError(f"{path}: matches no file")
    for one in paths:
        raw = remote.read_bytes(one) if remote.is_url(one) else files.read_bytes(one, "name a file")
        try:
            table = pyarrow.parquet.ParquetFile(io.BytesIO(raw))
            if embedded.columns_of(table.schema_arrow, media):
                yield from _of_parquet(one, media)
                continue
            number = 0
            for batch in table.iter_batches(_BATCH):
                for row in batch.to_pylist():
                    yield f"{os.path.basename(one)}[{number}]", plain(row)
                    number += 1
        except pyarrow.ArrowException as error:
            text = " ".join(str(error).split())
            raise UserError(f"{one}: no Parquet file ({text:.120}); write it again") from None


def _of_parquet(path: str, media: Collection[str]) -> Rows:
    from datasets import load_dataset

    with _one_line(path):
        data = load_dataset("parquet", data_files=[path], split="train")
    return _rows(data, os.path.basename(path), media)


def plain(row: dict) -> dict:
    """Return a row as JSON can hold it: times as text; of bytes only that they are there."""
    return {name: _plain(value) for name, value in row.items()}


def import_datasets(path: str) -> None:
    """Raise EnvironmentFailure, with the command that installs it, without the extra `datasets`."""
    require_extra("datasets", f"{path}: reading it")


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, dict):
        return plain(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return value.tolist() if hasattr(value, "tolist") else value


def _of_split(found, name: str, split: str | None):
    """Return the one data set that is to be read of what `datasets` returned."""
    if not isinstance(found, dict):
        if split is not None:
            raise UserError(f"split: {name} has no splits; leave it out")
        return found
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        given = "is not given" if split is None else f"is {split}"
        raise UserError(f"split {given}; {name} has {', '.join(map(str, found))}: choose one")
    return found[split]


def _rows(data, name: str, media: Collection[str] = ()) -> Iterator[tuple[str, dict]]:
    count, columns = len(data), embedded.columns_of(data.data.schema, media)
    if paths := embedded.paths(data, columns) if columns else None:
        data = data.remove_columns(columns)  # or all their bytes would be read
    # As Arrow has them, so that datasets decodes no media.
    batches = data.with_format("arrow").iter(_BATCH) if data.column_names else ()
    rows = (row for batch in batches for row in batch.to_pylist())
    for number in range(count):
        own = {column: values[number] for column, values in (paths or {}).items()}
        yield f"{name}[{number}]", plain(next(rows, {}) | own)


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn what `datasets` raises in the block into one line."""
    try:
        yield
    except (UserError, EnvironmentFailure):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        kind = UnreadableFile if isinstance(error, OSError) else UserError
        raise kind(
            f"{name}: datasets cannot read it ({type(error).__name__}: {text:.200}); check the "
            "name, the subset and the account of the hub (hf auth login)"
        ) from None
