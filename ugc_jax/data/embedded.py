"""Clips whose bytes lie in a data set of Hugging Face: where they are in its Arrow files.

Arrow keeps them as they are, one behind the other, so that a clip is read at its place like a
member of a tar file, and none is copied out. Its path is that of the file, the place, and the name
that the data set has for it: clips/data-00000-of-00001.arrow/4096+53211/a.mp4.
"""

import itertools
import os
import re
from collections.abc import Collection, Iterator
from typing import Any

SUFFIX = ".arrow"
_PLACE = re.compile(r"(\d+)\+(\d+)(?:/[^/]*)?")
_NAMELESS = "clip"


def place(name: str) -> tuple[int, int] | None:
    """Return (offset, bytes) of the part of a path behind its Arrow file; None for other text."""
    found = _PLACE.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def columns_of(schema, names: Collection[str]) -> list[str]:
    """Return the columns of an Arrow schema, of these names, that may have the bytes of files."""
    return [field.name for field in schema if field.name in names and _has_bytes(field.type)]


def paths(data, columns: Collection[str]) -> dict[str, list] | None:
    """Return {column: its value in each row} of a `datasets.Dataset`, with paths in place of bytes.

    None if the data set is not one of whole files of this machine.
    """
    import pyarrow

    found: dict[str, list] = {name: [] for name in columns}
    for one in data.cache_files:
        file = os.path.abspath(one["filename"])
        buffer = pyarrow.memory_map(file).read_buffer()
        # Of a buffer, so that the columns lie in it, at addresses that tell their places.
        for batch in pyarrow.ipc.open_stream(buffer):
            for name in columns:
                column = batch.column(batch.schema.get_field_index(name))
                found[name] += _values(column, file, buffer)
    if any(len(values) != data.data.num_rows for values in found.values()):
        return None  # a part of the files, or made in memory
    rows = range(len(data)) if data._indices is None else data._indices.column(0).to_pylist()
    return {name: [values[row] for row in rows] for name, values in found.items()}


def _has_bytes(kind) -> bool:
    import pyarrow.types as types

    if types.is_list(kind) or types.is_large_list(kind):
        return _has_bytes(kind.value_type)
    if types.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
    return _is_bytes(kind)


def _is_bytes(kind) -> bool:
    import pyarrow.types as types

    return types.is_binary(kind) or types.is_large_binary(kind)


def _values(array, file: str, buffer) -> list[Any]:
    """Return the values of an array in a file as Python has them, with paths in place of bytes."""
    import pyarrow.types as types

    if _is_bytes(array.type):
        return [at and f"{at}/{_NAMELESS}" for at in _places(array, file, buffer)]
    if types.is_struct(array.type):
        fields = {
            field.name: column for field, column in zip(array.type, array.flatten(), strict=True)
        }
        named = fields["path"].to_pylist() if "path" in fields else itertools.repeat(None)
        places = _places(fields["bytes"], file, buffer)
        # Without bytes it is a path, as a data set has one that does not embed its files.
        return [
            path if at is None else f"{at}/{os.path.basename(path or '') or _NAMELESS}"
            for path, at in zip(named, places, strict=False)
        ]
    inner = iter(_values(array.flatten(), file, buffer))
    sizes = array.value_lengths().to_pylist()
    return [None if size is None else [*itertools.islice(inner, size)] for size in sizes]


def _places(array, file: str, buffer) -> Iterator[str | None]:
    """Yield FILE/OFFSET+BYTES of each value, None for null."""
    import numpy as np
    import pyarrow.types as types

    if not len(array):
        return
    _, offsets, content = array.buffers()
    kind = np.int64 if types.is_large_binary(array.type) else np.int32
    ends = np.frombuffer(offsets, kind)[array.offset : array.offset + len(array) + 1].tolist()
    start = content.address - buffer.address if content is not None else 0
    for valid, (first, last) in zip(
        array.is_valid().to_pylist(), itertools.pairwise(ends), strict=True
    ):
        yield f"{file}/{start + first}+{last - first}" if valid else None
