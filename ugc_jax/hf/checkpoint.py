"""Import: safetensors (Hugging Face) or Orbax, straight into JAX arrays, sharded or not.

Each shard that this process holds is allocated once, filled from the files by several threads, and
passed to JAX, which on a CPU uses it without a copy. So loading needs the memory of the parameters
and of a block of 8 MiB a thread. An accelerator's host needs that of AHEAD_BYTES and of two arrays;
so does a CPU while it converts to int8.
"""

import logging
import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from ugc_jax.errors import UserError
from ugc_jax.files import read_json
from ugc_jax.hf import mapping, orbax_store
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.hf.tensorfile import FLOATS, Header, Part, TensorFile, empty_aligned, float_dtype
from ugc_jax.models import int8
from ugc_jax.models.params import Leaf, Tensor, build_tree, get_leaf, leaves, tensors
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import OmniConfig

logger = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
BAR_BYTES = 1 << 30  # smaller checkpoints load quickly and get no progress bar
READERS = 8  # threads
AHEAD_BYTES = 1 << 30  # of the next arrays, another of which is read below this sum


def load_params(
    checkpoint: str | Path,
    config: OmniConfig,
    dtype: str | None = None,
    stacked: bool = True,
    shardings: dict | None = None,
    in_int8: bool = False,
) -> dict:
    """Return the thinker's parameters as a nested dict of jax.Array (see models/params.py).

    checkpoint: a directory (full or thinker-only, any name form of spec 1.1, one file or several
      with an index; or what `convert` wrote with to="orbax"), or a hub id.
    dtype: "float32", "bfloat16", or None to keep what is stored.
    stacked: layer stacks on a leading axis, or tuples of per-layer dicts.
    shardings: the same tree with a jax.sharding.Sharding at every leaf; each process reads only its
      slices. None: this process's first device.
    in_int8: convert the matrices that decoding reads (`thinker.is_decoding_matrix`) one after the
      other, as they are loaded; their scales are further leaves, split as they are.
    Raises UserError naming the file and the tensor for one that is missing, unknown, duplicated,
    truncated, or of a wrong shape or dtype.
    """
    directory = resolve_checkpoint(checkpoint)
    out_dtype = None if dtype is None else float_dtype(dtype)
    tree = leaves(thinker.declare(config), stacked)
    if shardings is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = build_tree((leaf.path, device) for leaf in tree)
    if orbax_store.is_store(directory):
        params = orbax_store.read_params(directory, config, out_dtype, stacked, shardings)
        if not in_int8:
            return params
        return build_tree(
            item for leaf in tree for item in _items(leaf, get_leaf(params, leaf.path), in_int8)
        )

    stored = Checkpoint(directory)
    stored.check(config)
    if stored.outside:
        count = len(stored.outside)
        logger.info("%s: %d tensors outside the thinker are ignored", directory, count)
    dtypes = {leaf.path: out_dtype or stored.dtype_of(leaf) for leaf in tree}
    total = sum(math.prod(leaf.shape) * dtypes[leaf.path].itemsize for leaf in tree)
    is_quiet = total < BAR_BYTES or not logger.isEnabledFor(logging.INFO)
    hidden = is_quiet or None  # None: displayed on a terminal only
    items = []
    with tqdm(total=total, unit="B", unit_scale=True, desc="loading", disable=hidden) as bar:
        for leaf, array in _arrays(stored, tree, dtypes, shardings):
            items += _items(leaf, array, in_int8)
            bar.update(array.nbytes)
    return build_tree(items)


def _items(leaf: Leaf, array: jax.Array, in_int8: bool) -> list[tuple[tuple, jax.Array]]:
    """The (path, array) of a leaf, and of its scales where it is converted."""
    if not (in_int8 and thinker.is_decoding_matrix(leaf)):
        return [(leaf.path, array)]
    values, scale = int8.quantized(array)
    return [(leaf.path, values.block_until_ready()), ((*leaf.path[:-1], int8.SCALE), scale)]


class Checkpoint:
    """The safetensors files of a directory.

    tensors: {our name: (file, its header)}. outside: names of tensors outside the thinker.
    files: {file name: TensorFile}. index: the content of the index file, or None.
    Raises UserError for files that are absent, truncated or contradict each other.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.index = None
        names = [SINGLE]
        if not (directory / SINGLE).exists():
            if not (directory / INDEX).exists():
                raise UserError(
                    f"{directory}: holds neither {SINGLE} nor {INDEX}; "
                    "is it a checkpoint in safetensors format?"
                )
            self.index = read_json(directory / INDEX, "download the file again")
            if not isinstance(self.index.get("weight_map"), dict):
                raise UserError(
                    f"{directory / INDEX}: weight_map is missing; download the file again"
                )
            names = sorted(set(self.index["weight_map"].values()))
        for name in names:
            if not (directory / name).exists():
                raise UserError(
                    f"{directory / INDEX}: names {name}, which is absent; download that file too"
                )
        self.files = {name: TensorFile(directory / name) for name in names}
        self.tensors: dict[str, tuple[TensorFile, Header]] = {}
        self.outside: list[str] = []
        for file in self.files.values():
            for header in file.headers.values():
                self._add(file, header)
        for name, file in self.index["weight_map"].items() if self.index else ():
            if name not in self.files[file].headers:
                raise UserError(
                    f"{directory / INDEX}: {file} does not hold the tensor {name}; "
                    "download both files again"
                )

    def _add(self, file: TensorFile, header: Header):
        name = mapping.canonical_name(header.name)
        if name is None:
            self.outside.append(header.name)
            return
        if name in self.tensors:
            other_file, other = self.tensors[name]
            raise UserError(
                f"{file.path}: tensor {header.name} is duplicated: "
                f"{other.name} in {other_file.path.name} is the same; remove one"
            )
        self.tensors[name] = file, header

    def check(self, config: OmniConfig):
        """Raise UserError unless the tensors are exactly those of `config`, in float dtypes."""
        mapping.check_tensors(
            {name: (file.path, at.name, at.shape) for name, (file, at) in self.tensors.items()},
            {tensor.name: tensor.shape for tensor in tensors(thinker.declare(config))},
            self.directory / (SINGLE if self.index is None else INDEX),
        )
        for file, header in self.tensors.values():
            if header.code not in FLOATS:
                raise UserError(
                    f"{file.path}: tensor {header.name} has dtype {header.code}; "
                    f"expected one of {', '.join(FLOATS)}"
                )

    def dtype_of(self, leaf: Leaf) -> np.dtype:
        """Return the stored dtype of a leaf's tensors; UserError if a stack's layers differ."""
        (_, first), *rest = (self.tensors[tensor.name] for tensor in leaf.tensors)
        for file, header in rest:
            if header.code != first.code:
                raise UserError(
                    f"{file.path}: tensor {header.name} has dtype {header.code}, "
                    f"{first.name} has {first.code}; choose one with dtype"
                )
        return FLOATS[first.code]

    def read(self, tensor: Tensor, parts: list[Part]):
        """Fill arrays with slices of the tensor, converted to their dtypes."""
        file, header = self.tensors[tensor.name]
        file.read(header.name, parts)


class _Reading(NamedTuple):
    """A leaf whose shards are being read. shards: {their place in the leaf (`_key`): values}."""

    leaf: Leaf
    dtype: np.dtype
    sharding: jax.sharding.Sharding
    shards: dict[tuple, np.ndarray]
    reads: list[Future]

    @property
    def nbytes(self) -> int:
        return sum(shard.nbytes for shard in self.shards.values())

    def array(self) -> jax.Array:
        """Wait for the shards; return the array on its devices."""
        for read in self.reads:
            read.result()
        shape = self.leaf.shape

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            return self.shards[_key(index, shape)]

        array = jax.make_array_from_callback(shape, self.sharding, shard, dtype=self.dtype)
        return array.block_until_ready()  # frees the host's copy before the next array


def _arrays(
    stored: Checkpoint, tree: list[Leaf], dtypes: dict, shardings: dict
) -> Iterator[tuple[Leaf, jax.Array]]:
    """Yield the leaves' arrays in their order, while the next ones are read."""
    waiting, under_way, nbytes = deque(tree), deque(), 0
    pool = ThreadPoolExecutor(READERS)
    try:
        while waiting or under_way:
            # Beside the first, which goes to its devices as soon as it is read.
            while waiting and (not under_way or nbytes - under_way[0].nbytes < AHEAD_BYTES):
                leaf = waiting.popleft()
                sharding = get_leaf(shardings, leaf.path)
                under_way.append(_read(stored, leaf, dtypes[leaf.path], sharding, pool))
                nbytes += under_way[-1].nbytes
            first = under_way.popleft()
            nbytes -= first.nbytes
            yield first.leaf, first.array()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(
    stored: Checkpoint,
    leaf: Leaf,
    dtype: np.dtype,
    sharding: jax.sharding.Sharding,
    pool: ThreadPoolExecutor,
) -> _Reading:
    """Begin to read a leaf; a shard that several devices hold is read once."""
    shards: dict[tuple, np.ndarray] = {}
    parts: dict[int, list[Part]] = {}  # by the number of the leaf's tensor
    for index in sharding.addressable_devices_indices_map(leaf.shape).values():
        key = _key(index, leaf.shape)
        if key in shards:
            continue
        out = shards[key] = empty_aligned(tuple(len(range(*axis)) for axis in key), dtype)
        if leaf.is_stacked:
            for number, row in zip(range(*key[0]), out, strict=True):
                parts.setdefault(number, []).append(Part(row, index[1:]))
        else:
            parts.setdefault(0, []).append(Part(out, index))
    reads = [pool.submit(stored.read, leaf.tensors[one], parts[one]) for one in parts]
    return _Reading(leaf, dtype, sharding, shards, reads)


def _key(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple:
    return tuple(axis.indices(size) for axis, size in zip(index, shape, strict=True))
