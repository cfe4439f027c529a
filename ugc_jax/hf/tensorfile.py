"""A streaming reader and writer of safetensors: 8-byte length, JSON header, little-endian tensors.

The safetensors package holds all tensors of a file in memory to write it, and keeps all mapped
pages while it reads. For a checkpoint of 9 GB that takes too much memory.
"""

import json
import math
import mmap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from ugc_jax.errors import UserError

BLOCK_BYTES = 32 << 20  # copied between two releases of mapped pages
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


class TensorFile:
    """A mapped safetensors file.

    headers: {tensor name: Header}. metadata: the header's `__metadata__`.
    Raises UserError naming the file (and the tensor) if it is truncated or not of this format.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                if size < 8:
                    raise UserError(f"{path}: truncated: {size} bytes; download the file again")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror}); download the file again"
            ) from None
        data = 8 + int.from_bytes(self._map[:8], "little")
        if data > size:
            raise UserError(
                f"{path}: truncated, or no safetensors file: {size} bytes, "
                f"its header alone claims {data}; download the file again"
            )
        try:
            content = json.loads(self._map[8:data], object_pairs_hook=self._unique)
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

    def read_into(self, out: np.ndarray, name: str, index: tuple[slice, ...] = ()):
        """Fill `out` with `tensor[index]` in out.dtype, with one block of the file in memory."""
        header = self.headers[name]
        count = math.prod(header.shape)
        flat = np.frombuffer(self._map, FLOATS[header.code], count, header.start)
        stored = flat.reshape(header.shape)[index]
        rows = max(1, BLOCK_BYTES * len(stored) // max(stored.nbytes, 1))
        for row in range(0, len(stored), rows):
            out[row : row + rows] = stored[row : row + rows]
            self._release()

    def copy_to(self, file, name: str):
        """Write the tensor's bytes unchanged to an open binary file."""
        header = self.headers[name]
        for start in range(header.start, header.start + header.nbytes, BLOCK_BYTES):
            file.write(self._map[start : min(start + BLOCK_BYTES, header.start + header.nbytes)])
            self._release()

    def _release(self):
        """Release the mapped pages, which count as this process's memory."""
        self._map.madvise(mmap.MADV_DONTNEED)


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
