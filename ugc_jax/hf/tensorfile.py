"""A streaming reader and writer of safetensors: 8-byte length, JSON header, little-endian tensors.

The safetensors package holds all tensors of a file in memory to write it, and keeps all mapped
pages while it reads. For a checkpoint of 9 GB that takes too much memory.
"""

import json
import math
import os
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from ugc_jax.errors import UserError

BLOCK_BYTES = 8 << 20  # read at a time where values are converted, cut or copied
_MOST_BYTES = 1 << 30  # of one call to the system, which may refuse 2 GiB
FLOATS = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}
_ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}
_CODES = {dtype: code for code, dtype in FLOATS.items()}


def float_dtype(name: str) -> np.dtype:
    """Return the dtype called "float32" or "bfloat16"; UserError for any other name."""
    if name not in ("float32", "bfloat16"):
        raise UserError(f"dtype must be 'float32' or 'bfloat16', got {name!r}")
    return np.dtype(name)


class Header(NamedTuple):
    """A tensor's entry in the header. start: offset from the beginning of the file."""

    name: str
    code: str  # the format's name of the dtype: "BF16", "F32", ...
    shape: tuple[int, ...]
    start: int
    nbytes: int


class Part(NamedTuple):
    """An array to fill with `tensor[index]`; slices without steps, () for the whole tensor."""

    array: np.ndarray
    index: tuple[slice, ...] = ()

    def is_whole_rows(self, shape: tuple[int, ...]) -> bool:
        """Return whether the part is contiguous in a tensor of this shape, and in memory."""
        inner = zip(self.index[1:], shape[1:], strict=False)
        cut = any(len(range(*one.indices(size))) < size for one, size in inner)
        return not cut and self.array.flags.c_contiguous


class TensorFile:
    """A safetensors file that is open for reading, by several threads if need be.

    headers: {tensor name: Header}. metadata: the header's `__metadata__`.
    Raises UserError naming the file (and the tensor) if it is truncated or not of this format.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise self._unreadable(error) from None
        weakref.finalize(self, self._file.close)
        size = os.fstat(self._file.fileno()).st_size
        if size < 8:
            raise UserError(f"{path}: truncated: {size} bytes; download the file again")
        data = 8 + int.from_bytes(self._bytes(0, 8), "little")
        if data > size:
            raise UserError(
                f"{path}: truncated, or no safetensors file: {size} bytes, "
                f"its header alone claims {data}; download the file again"
            )
        try:
            content = json.loads(self._bytes(8, data - 8), object_pairs_hook=self._unique)
            self.metadata = content.pop("__metadata__", {})
            self.headers = {name: self._header(name, info, data) for name, info in content.items()}
        except UserError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(
                f"{path}: not a safetensors file: unreadable header; download the file again"
            ) from None
        ends = {header.start + header.nbytes: name for name, header in self.headers.items()}
        end = max(ends, default=data)
        if size != end:
            last = ends.get(end, "none")
            problem = "truncated" if size < end else "too long"
            raise UserError(
                f"{path}: {problem}: {size} bytes, its tensors (the last is {last}) end at {end}; "
                "download the file again"
            )

    def _unique(self, pairs: list[tuple]) -> dict:
        """Return an object of the header; json.loads alone would keep the last of equal names."""
        for name, count in Counter(name for name, _ in pairs).items():
            if count > 1:
                raise UserError(
                    f"{self.path}: tensor {name} is duplicated; export the checkpoint again"
                )
        return dict(pairs)

    def _header(self, name: str, info: dict, data: int) -> Header:
        begin, end = info["data_offsets"]
        header = Header(name, info["dtype"], tuple(info["shape"]), data + begin, end - begin)
        expected = math.prod(header.shape) * _ITEM_BYTES.get(header.code, 0)
        if begin < 0 or header.nbytes < 0 or expected not in (0, header.nbytes):
            raise UserError(
                f"{self.path}: tensor {name}: {header.code}{list(header.shape)} does not fill its "
                f"{header.nbytes} bytes; download the file again"
            )
        return header

    def read(self, name: str, parts: list[Part]):
        """Fill each part's array with its slice of the tensor, in the array's dtype.

        Whole rows of the stored dtype are read into their array; the other parts are filled block
        by block, each of which is read once for all of them.
        """
        header = self.headers[name]
        dtype, count = FLOATS[header.code], header.shape[0]
        row_bytes = header.nbytes // max(count, 1)
        others: list[tuple[Part, range]] = []
        for part in parts:
            rows = range(*part.index[0].indices(count)) if part.index else range(count)
            if part.is_whole_rows(header.shape) and part.array.dtype == dtype:
                self._fill(part.array, header.start + rows.start * row_bytes)
            else:
                others.append((part, rows))
        step = max(1, BLOCK_BYTES // max(row_bytes, 1))
        start = min((rows.start for _, rows in others), default=0)
        stop = max((rows.stop for _, rows in others), default=0)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            if not any(rows.start < last and first < rows.stop for _, rows in others):
                continue
            block = np.empty((last - first, *header.shape[1:]), dtype)
            self._fill(block, header.start + first * row_bytes)
            for part, rows in others:
                low, high = max(first, rows.start), min(last, rows.stop)
                if low < high:
                    values = block[(slice(low - first, high - first), *part.index[1:])]
                    part.array[low - rows.start : high - rows.start] = values

    def copy_to(self, file, name: str):
        """Write the tensor's bytes unchanged to an open binary file."""
        header = self.headers[name]
        end = header.start + header.nbytes
        for start in range(header.start, end, BLOCK_BYTES):
            file.write(self._bytes(start, min(BLOCK_BYTES, end - start)))

    def _bytes(self, start: int, count: int) -> bytes:
        out = np.empty(count, np.uint8)
        self._fill(out, start)
        return out.tobytes()

    def _fill(self, out: np.ndarray, start: int):
        """Read the bytes of the file from `start` on into a contiguous array."""
        left = out.reshape(-1).view(np.uint8)
        while len(left):
            try:
                count = os.preadv(self._file.fileno(), [left[:_MOST_BYTES]], start)
            except OSError as error:
                raise self._unreadable(error) from None
            if count == 0:
                raise UserError(
                    f"{self.path}: truncated while it was read; download the file again"
                )
            left, start = left[count:], start + count

    def _unreadable(self, error: OSError) -> UserError:
        return UserError(f"{self.path}: cannot be read ({error.strerror}); download the file again")


def empty_aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an uninitialised array at a multiple of 64 bytes, which JAX on a CPU does not copy."""
    nbytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes].view(dtype).reshape(shape)


class Output(NamedTuple):
    """A tensor to write: `write(file)` must write exactly `nbytes`."""

    name: str
    code: str
    shape: tuple[int, ...]
    nbytes: int
    write: Callable


def array_output(
    name: str, shape: tuple[int, ...], dtype: np.dtype, read: Callable[[], np.ndarray]
) -> Output:
    """Return the Output of the tensor that `read()` returns when it is written, as `dtype`."""

    def write(file):
        array = np.ascontiguousarray(read(), dtype)
        file.write(array.reshape(-1).view(np.uint8).data)

    return Output(name, _CODES[dtype], shape, math.prod(shape) * dtype.itemsize, write)


def write_tensors(path: Path, tensors: list[Output], metadata: dict | None = None):
    """Write a safetensors file tensor by tensor.

    metadata: of the header; None is {"format": "pt"}, which transformers requires.
    """
    content: dict = {"__metadata__": metadata or {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        info = {"dtype": tensor.code, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        content[tensor.name] = info
        offset = end
    header = json.dumps(content, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format keeps the data 8-byte aligned
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in tensors:
            start = file.tell()
            tensor.write(file)
            written = file.tell() - start
            if written != tensor.nbytes:
                raise RuntimeError(f"{tensor.name}: {written} bytes, not {tensor.nbytes}")
