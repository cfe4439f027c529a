"""Import: safetensors (Hugging Face) or Orbax, straight into JAX arrays, sharded or not.

Each array of the parameter tree is allocated once per shard that this process holds, filled from
the mapped files layer by layer, and handed to JAX, which on a CPU takes it over without a copy. So
loading needs the memory of the parameters and of one 32 MiB block.
"""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from ugc_jax.errors import UserError
from ugc_jax.files import read_json
from ugc_jax.hf import mapping, orbax_store
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.hf.tensorfile import FLOATS, Header, TensorFile, empty_aligned, float_dtype
from ugc_jax.models.params import Leaf, Tensor, build_tree, get_leaf, leaves, tensors
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import OmniConfig

logger = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
BAR_BYTES = 1 << 30  # smaller checkpoints load in a blink and get no progress bar


def load_params(
    checkpoint: str | Path,
    config: OmniConfig,
    dtype: str | None = None,
    stacked: bool = True,
    shardings: dict | None = None,
) -> dict:
    """The thinker's parameters as a nested dict of jax.Array (as models/params.py has it).

    checkpoint: a directory (full or thinker-only, any name form of spec 1.1, one file or several
      with an index; or what `convert` wrote with to="orbax"), or a hub id.
    dtype: "float32", "bfloat16", or None to keep what is stored.
    stacked: layer stacks on a leading axis, or tuples of per-layer dicts.
    shardings: the same tree with a jax.sharding.Sharding at every leaf, of which each process reads
      only its slices; or None for this process's first device.
    Raises UserError naming the file and the tensor for one that is missing, unknown, duplicated,
    truncated, or of a wrong shape or dtype.
    """
    directory = resolve_checkpoint(checkpoint)
    out_dtype = None if dtype is None else float_dtype(dtype)
    wanted = leaves(thinker.declare(config), stacked)
    if shardings is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = build_tree((leaf.path, device) for leaf in wanted)
    if orbax_store.is_store(directory):
        return orbax_store.load(directory, config, out_dtype, stacked, shardings)

    stored = Checkpoint(directory)
    stored.check(config)
    if stored.outside:
        count = len(stored.outside)
        logger.info("%s: %d tensors outside the thinker are left alone", directory, count)
    dtypes = [out_dtype or stored.dtype_of(leaf) for leaf in wanted]
    sizes = [math.prod(leaf.shape) for leaf in wanted]
    total = sum(size * dtype.itemsize for size, dtype in zip(sizes, dtypes, strict=True))
    hidden = total < BAR_BYTES or None  # None: shown on a terminal only
    items = []
    with tqdm(total=total, unit="B", unit_scale=True, desc="loading", disable=hidden) as bar:
        for leaf, size, dtype in zip(wanted, sizes, dtypes, strict=True):
            sharding = get_leaf(shardings, leaf.path)
            items.append((leaf.path, _load_leaf(stored, leaf, dtype, sharding)))
            bar.update(size * dtype.itemsize)
    return build_tree(items)


class Checkpoint:
    """The safetensors of a directory.

    tensors: {our name: (file, its header)}. outside: names of the talker and token2wav.
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
        self._check_index()

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

    def _check_index(self):
        for name, file in (self.index or {}).get("weight_map", {}).items():
            if name not in self.files[file].headers:
                raise UserError(
                    f"{self.directory / INDEX}: {file} does not hold the tensor {name}; "
                    "download both files again"
                )

    def check(self, config: OmniConfig):
        """Raise UserError unless the tensors are exactly those of `config`, in float dtypes."""
        table = {tensor.name: tensor for tensor in tensors(thinker.declare(config))}
        for name, (file, header) in self.tensors.items():
            if name not in table:
                raise UserError(
                    f"{file.path}: unknown tensor {header.name}; "
                    "this is not (only) a Qwen2.5-Omni thinker"
                )
            if header.shape != table[name].shape:
                raise UserError(
                    f"{file.path}: tensor {header.name} has shape {list(header.shape)}, but "
                    f"config.json asks for {list(table[name].shape)}; they do not belong together"
                )
            if header.code not in FLOATS:
                raise UserError(
                    f"{file.path}: tensor {header.name} has dtype {header.code}; "
                    f"expected one of {', '.join(FLOATS)}"
                )
        missing = [name for name in table if name not in self.tensors]
        if missing:
            where = self.directory / (SINGLE if self.index is None else INDEX)
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise UserError(
                f"{where}: tensor {missing[0]} is missing{more}; download the checkpoint again"
            )

    def dtype_of(self, leaf: Leaf) -> np.dtype:
        """The stored dtype of a leaf's tensors; UserError if the layers of a stack differ."""
        (_, first), *rest = (self.tensors[tensor.name] for tensor in leaf.tensors)
        for file, header in rest:
            if header.code != first.code:
                raise UserError(
                    f"{file.path}: tensor {header.name} has dtype {header.code}, "
                    f"{first.name} has {first.code}; choose one with dtype"
                )
        return FLOATS[first.code]

    def read_into(self, out: np.ndarray, tensor: Tensor, index: tuple[slice, ...] = ()):
        """Fill `out` with the slice `index` of the tensor, converted to out.dtype."""
        file, header = self.tensors[tensor.name]
        file.read_into(out, header.name, index)


def _load_leaf(
    stored: Checkpoint, leaf: Leaf, dtype: np.dtype, sharding: jax.sharding.Sharding
) -> jax.Array:
    read = _reader(stored, leaf, dtype)
    array = jax.make_array_from_callback(leaf.shape, sharding, read, dtype=dtype)
    return array.block_until_ready()  # the host's copy dies before the next array is read


def _reader(
    stored: Checkpoint, leaf: Leaf, dtype: np.dtype
) -> Callable[[tuple[slice, ...]], np.ndarray]:
    """A function from a slice of the array to its values; what replicas ask for is read once."""
    shards: dict[tuple, np.ndarray] = {}

    def read(index: tuple[slice, ...]) -> np.ndarray:
        key = tuple(axis.indices(size) for axis, size in zip(index, leaf.shape, strict=True))
        if key not in shards:
            out = shards[key] = empty_aligned(tuple(len(range(*axis)) for axis in key), dtype)
            if leaf.is_stacked:
                for row, tensor in zip(out, leaf.tensors[index[0]], strict=True):
                    stored.read_into(row, tensor, index[1:])
            else:
                stored.read_into(out, leaf.tensors[0], index)
        return shards[key]

    return read
