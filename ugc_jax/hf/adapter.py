"""A LoRA adapter alone, in the files of the peft package: a small safetensors and its config.

Peft's names are those of the modules that it wraps, here of transformers 5's
Qwen2_5OmniThinkerForConditionalGeneration; read are those of transformers 4, too.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from ugc_jax.errors import UserError
from ugc_jax.files import read_json, write_json
from ugc_jax.hf import mapping
from ugc_jax.hf.export import ADAPTER_CONFIG, new_directory
from ugc_jax.hf.tensorfile import FLOATS, TensorFile, array_output, write_tensors
from ugc_jax.models import lora
from ugc_jax.models.lora import LoraConfig
from ugc_jax.models.params import Tensor, build_tree, locate, tensors
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.models.qwen2_5_omni.names import PEFT_MODULES

WEIGHTS = "adapter_model.safetensors"
_WRAPPED = "base_model.model."  # peft's name of the model that it wraps
_LEAVES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
# Settings of peft under which the same tensors mean something else, and what we can read.
_PLAIN = {
    "peft_type": "LORA", "bias": "none", "use_rslora": False, "use_dora": False, "lora_bias": False,
    "fan_in_fan_out": False, "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None,
}  # fmt: skip


def save_adapter(
    adapter: dict,
    config: OmniConfig,
    settings: LoraConfig,
    out_dir: str | Path,
    base: str = "",
    overwrite: bool = False,
):
    """Write an adapter's leaves (stacked, in their dtype) for `load_adapter` and peft.

    base: hub id or directory of the model that it belongs to, for the record.
    Raises UserError as `export.new_directory`.
    """
    names = "|".join(settings.names)
    content = _PLAIN | {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": 0.0,
        "target_modules": rf"{PEFT_MODULES}\.({names})",
        "inference_mode": True,
    }
    outputs = []
    for tensor in _tensors(config, settings):
        read = functools.partial(mapping.read_tensor, adapter, tensor)
        name = _WRAPPED + mapping.module_name(tensor.name)
        outputs.append(array_output(name, tensor.shape, locate(adapter, tensor)[0].dtype, read))
    with new_directory(out_dir, overwrite) as folder:
        write_tensors(folder / WEIGHTS, outputs)
        write_json(folder / ADAPTER_CONFIG, content, indent=2)


def load_adapter(directory: str | Path, config: OmniConfig) -> tuple[dict, LoraConfig]:
    """(leaves f32 of numpy, stacked; the settings) of an adapter that peft or we wrote.

    Raises UserError for an adapter of another kind or model, naming the field or the tensor.
    """
    path = Path(directory) / ADAPTER_CONFIG
    content = read_json(path, "give an adapter's folder, as a LoRA run's adapter/")
    for name, plain in _PLAIN.items():
        value = content.get(name, plain)
        if value != plain and (value or plain):
            raise UserError(f"{path}: {name} is {value!r}; only {plain!r} can be read")
    rank, alpha = content.get("r"), content.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
        raise UserError(f"{path}: r is {rank!r}, lora_alpha {alpha!r}; copy the adapter again")
    file = TensorFile(Path(directory) / WEIGHTS)
    stored = {_canonical(name): header for name, header in file.headers.items()}
    known = {tensor.name: tensor for tensor in _tensors(config, LoraConfig(rank, alpha))}
    targets = {_target(known[name]) for name in stored if name in known}
    table = {name: tensor for name, tensor in known.items() if _target(tensor) in targets}
    for name in sorted(table.keys() ^ stored.keys()):
        problem = "is missing" if name in table else "is not of the decoder's linears"
        raise UserError(f"{file.path}: {name} {problem}; give a whole adapter of this model")
    if not table:
        raise UserError(f"{file.path}: holds no tensors; give a whole adapter of this model")
    leaves: dict[tuple, np.ndarray] = {}
    for name, tensor in table.items():
        header = stored[name]
        if header.shape != tensor.shape or header.code not in FLOATS:
            raise UserError(
                f"{file.path}: {name} is {header.code}{list(header.shape)}, "
                f"not a float of {list(tensor.shape)}; give a whole adapter of this model"
            )
        stack = (config.text.num_hidden_layers, *tensor.shape)
        leaf = leaves.setdefault(tensor.path, np.empty(stack, np.float32))
        file.read_into(leaf[tensor.layer], header.name)
    settings = LoraConfig(rank, float(alpha), ",".join(sorted(targets)))
    return build_tree(leaves.items()), settings


def _tensors(config: OmniConfig, settings: LoraConfig) -> list[Tensor]:
    """Every tensor of an adapter, named as the base model's tensors are."""
    table = []
    for tensor in tensors(lora.declare(config, settings)):
        linear, _, leaf = tensor.name.rpartition(".")
        table.append(dataclasses.replace(tensor, name=f"{linear}.{_LEAVES[leaf]}"))
    return table


def _target(tensor: Tensor) -> str:
    return tensor.path[-2]


def _canonical(name: str) -> str:
    """A stored tensor's name as `_tensors` has it."""
    return mapping.canonical_name(name.removeprefix(_WRAPPED)) or name
