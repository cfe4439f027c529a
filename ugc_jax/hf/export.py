"""Export of the parameter tree to Hugging Face's files: thinker only, full, or merged (spec 1.5).

A checkpoint is written into a hidden folder beside its destination, which is renamed at the end, so
that readers never see an incomplete checkpoint.
"""

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from ugc_jax.errors import UserError, environment_failure
from ugc_jax.files import read_json, write_json
from ugc_jax.hf import mapping, orbax_store, processor
from ugc_jax.hf.checkpoint import INDEX, SINGLE, Checkpoint
from ugc_jax.hf.config import REMEDY, load_config
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.hf.tensorfile import (
    FLOATS,
    Output,
    TensorFile,
    array_output,
    float_dtype,
    write_tensors,
)
from ugc_jax.hf.trained import TRAINED, Trained, write_trained
from ugc_jax.models.params import Tensor, locate, tensors
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.models.qwen2_5_omni.hf_config import thinker_section, to_full, to_hf
from ugc_jax.models.qwen2_5_omni.names import THINKER

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
PROCESSOR_FILES = (
    "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json",
)  # fmt: skip
GENERATION = "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"


def save_thinker(
    params: dict,
    config: OmniConfig,
    out_dir: str | Path,
    source: str | Path | None = None,
    dtype: str | None = None,
    max_shard_bytes: float = 5e9,
    overwrite: bool = False,
    trained: Trained | None = None,
    full: bool = False,
):
    """Write a checkpoint of the thinker, as Qwen2_5OmniThinkerForConditionalGeneration reads it.

    params: stacked or unrolled tree.
    source: checkpoint directory from which config.json (the thinker's section), tokenizer and
      preprocessor files are copied, and generation_config.json, with missing token ids added.
    dtype: "float32", "bfloat16" or None to keep that of the arrays.
    max_shard_bytes: size of a file, unless one tensor is larger.
    trained: written to captioner.json.
    full: write it in the form of the full model, without talker and token2wav, as
      Qwen2_5OmniForConditionalGeneration and vLLM read it. What the source lacks for that is added:
      preprocessor_config.json, the chat template, an empty spk_dict.pt.
    Raises UserError if out_dir is not empty and `overwrite` is false.
    """
    out_dtype = None if dtype is None else float_dtype(dtype)
    output = functools.partial(tensor_output, params, dtype=out_dtype)
    main_dtype = dtype or _main_dtype(params)
    with new_directory(out_dir, overwrite) as folder:
        write_thinker(folder, config, output, source, main_dtype, max_shard_bytes, full)
        write_trained(folder, trained)


def save_orbax(
    params: dict,
    config: OmniConfig,
    out_dir: str | Path,
    source: str | Path | None = None,
    overwrite: bool = False,
    trained: Trained | None = None,
):
    """Write a stacked tree as an Orbax checkpoint, with config.json and the tokenizer.

    `load_params` reads it. source, overwrite, trained and errors as in `save_thinker`.
    """
    with new_directory(out_dir, overwrite) as folder:
        orbax_store.write_params(params, folder)
        write_side_files(folder, config, _main_dtype(params), source)
        write_trained(folder, trained)


def save_merged(
    params: dict,
    config: OmniConfig,
    source_full: str | Path,
    out_dir: str | Path,
    overwrite: bool = False,
    trained: Trained | None = None,
):
    """Write a full checkpoint: `source_full` with its thinker replaced.

    Every thinker tensor has the name, file and dtype of the source; talker, token2wav, spk_dict.pt
    and all other files are copied byte by byte, except captioner.json, which is of its thinker.
    trained: as in `save_thinker`. Raises UserError if the source is thinker-only or of another
    config, and as `save_thinker`.
    """
    source = resolve_checkpoint(source_full)
    _require_same(source, config)
    base = Checkpoint(source)
    base.check(config)
    if not base.outside:
        raise UserError(
            f"{source}: holds no talker and no token2wav tensors; "
            "to merge, give a full Qwen2.5-Omni checkpoint"
        )
    table = {tensor.name: tensor for tensor in tensors(thinker.declare(config))}
    with new_directory(out_dir, overwrite) as folder:
        for path in sorted(source.rglob("*")):
            relative = path.relative_to(source)
            is_hidden = relative.parts[0].startswith(".")  # files of the hub's client
            if (
                path.is_file()
                and str(relative) not in (*base.files, INDEX, TRAINED)
                and not is_hidden
            ):
                (folder / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / relative)
        weight_map, total = {}, 0
        for name, file in base.files.items():
            outputs = [_merged_output(params, table, file, tensor) for tensor in file.headers]
            write_tensors(folder / name, outputs, file.metadata)
            weight_map |= dict.fromkeys(file.headers, name)
            total += sum(header.nbytes for header in file.headers.values())
        if base.index is not None:
            _write_index(folder, weight_map, base.index.get("metadata", {}), total)
        write_trained(folder, trained)


def _main_dtype(params: dict) -> str:
    """The dtype of the parameters for config.json."""
    return thinker.head(params).dtype.name


def _merged_output(params: dict, table: dict[str, Tensor], file: TensorFile, name: str) -> Output:
    header = file.headers[name]
    tensor = table.get(mapping.canonical_name(name) or "")
    if tensor is None:
        copy_bytes = functools.partial(file.copy_to, name=name)
        return Output(name, header.code, header.shape, header.nbytes, copy_bytes)
    return tensor_output(params, tensor, FLOATS[header.code], name)


def tensor_output(
    params: dict, tensor: Tensor, dtype: np.dtype | None = None, name: str | None = None
) -> Output:
    """Return the Output of a tensor of `params`; dtype and name are by default its own."""
    read = functools.partial(mapping.read_tensor, params, tensor)
    dtype = dtype or locate(params, tensor)[0].dtype
    return array_output(name or tensor.name, tensor.shape, dtype, read)


# ---- a checkpoint of the thinker, from any source of tensors -------------------------------------


def write_thinker(
    folder: Path,
    config: OmniConfig,
    output: Callable[[Tensor], Output],
    source: str | Path | None,
    dtype: str,
    max_shard_bytes: float = 5e9,
    full: bool = False,
):
    """Write all files of a checkpoint of the thinker into `folder`.

    output: returns what is stored for a tensor. dtype: for config.json. source, max_shard_bytes,
    full: as in `save_thinker`.
    """
    shards: list[list[Output]] = [[]]
    filled = total = 0
    for item in map(output, tensors(thinker.declare(config))):
        if full:
            item = item._replace(name=THINKER + item.name)
        if shards[-1] and filled + item.nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(item)
        filled += item.nbytes
        total += item.nbytes
    weight_map, count = {}, len(shards)
    for number, shard in enumerate(shards, 1):
        name = SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        write_tensors(folder / name, shard)
        weight_map |= {item.name: name for item in shard}
    if count > 1:
        _write_index(folder, weight_map, {}, total)
    write_side_files(folder, config, dtype, source, full)


def write_side_files(
    folder: Path, config: OmniConfig, dtype: str, source: str | Path | None, full: bool = False
):
    """Write config.json and generation_config.json; copy tokenizer and preprocessor of `source`."""
    content = to_hf(config, dtype)
    # transformers' generate() takes its stop tokens from generation_config.json only, and the
    # released one may lack them (spec 5.2).
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    generation = {name: getattr(config.tokens, name) for name in ids}
    if source is not None:
        source = Path(source)
        _require_same(source, config)
        path = source / "config.json"
        section, _ = thinker_section(read_json(path, REMEDY), str(path))
        replaced = ("architectures", "torch_dtype", "dtype")
        content = section | {name: content[name] for name in replaced}
        copy_files(source, folder, (*TOKENIZER_FILES, *PROCESSOR_FILES))
        if (source / GENERATION).exists():
            generation |= read_json(source / GENERATION, "copy the file again")
    if full:
        content = to_full(content)
        processor.complete(folder, config)
    write_json(folder / "config.json", content, indent=2)
    write_json(folder / GENERATION, generation, indent=2)


def copy_files(source: Path, folder: Path, names: Iterable[str]):
    """Copy the named files that exist in `source`."""
    for name in names:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)


def _require_same(source: Path, config: OmniConfig):
    if load_config(source) != config:
        raise UserError(
            f"{source / 'config.json'}: describes another thinker than the parameters; "
            "give their own base model"
        )


def check_directory(out_dir: str | Path, overwrite: bool) -> Path:
    """Return the absolute path of a directory that may be written.

    Raises UserError if it is a file, or if it is not empty, unless `overwrite` is true and it holds
    a checkpoint.
    """
    if not str(out_dir):
        raise UserError("output is empty; name the directory to write")
    out = Path(out_dir).expanduser().absolute()
    if out.exists() and not out.is_dir():
        raise UserError(f"{out_dir}: is a file; name a directory to write")
    occupied = out.is_dir() and any(out.iterdir())
    if occupied and not overwrite:
        raise UserError(f"{out_dir}: is not empty; name another output, or add --overwrite")
    if occupied and not any((out / name).exists() for name in ("config.json", ADAPTER_CONFIG)):
        raise UserError(
            f"{out_dir}: holds other things than a checkpoint, so it is not overwritten; "
            "name another output"
        )
    return out


@contextlib.contextmanager
def new_directory(out_dir: str | Path, overwrite: bool) -> Iterator[Path]:
    """Yield a hidden folder, renamed to `out_dir` after the block or, if it raises, removed.

    Raises UserError as `check_directory`, and if writing fails.
    """
    out = check_directory(out_dir, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (
        out.with_name(f".{out.name}.{os.getpid()}.{state}") for state in ("partial", "old")
    )
    try:
        partial.mkdir()
        yield partial
        if out.exists():
            out.rename(old)
        partial.rename(out)
    except OSError as error:
        failure = environment_failure(error, out_dir)
        if old.exists() and not out.exists():
            old.rename(out)
        fault = f"{out_dir}: cannot be written ({error}); free disk space or name another output"
        raise failure or UserError(fault) from None
    finally:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _write_index(folder: Path, weight_map: dict[str, str], metadata: dict, total: int):
    """weight_map: {tensor: file}. total: bytes of all tensors."""
    metadata = metadata | {"total_size": total}
    content = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / INDEX, content, indent=2)
