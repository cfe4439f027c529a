"""A LoRA adapter alone, in the files of the peft package: a small safetensors and its config.

Peft's names are those of the modules that it wraps, here of transformers 5's
Qwen2_5OmniThinkerForConditionalGeneration; read are those of transformers 4, too.
"""

import functools
import json
from pathlib import Path

import numpy as np

from ugc_jax.errors import UserError
from ugc_jax.hf import mapping
from ugc_jax.hf.config import read_json
from ugc_jax.hf.export import ADAPTER_CONFIG, new_directory
from ugc_jax.hf.tensorfile import FLOATS, TensorFile, array_output, write_tensors
from ugc_jax.models import lora
from ugc_jax.models.lora import LoraConfig
from ugc_jax.models.qwen2_5_omni.config import OmniConfig

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
        # The encoders have linears of the same names; these are the decoder's.
        "target_modules": rf"(.*\.)?(model|language_model)\.layers\.\d+\.\w+\.({names})",
        "inference_mode": True,
    }
    outputs = []
    for entry in _entries(config, settings):
        read = functools.partial(mapping.read_tensor, adapter, entry)
        dtype = mapping.locate(adapter, entry)[0].dtype
        outputs.append(array_output(_peft_name(entry), entry.shape, dtype, read))
    with new_directory(out_dir, overwrite) as folder:
        write_tensors(folder / WEIGHTS, outputs)
        (folder / ADAPTER_CONFIG).write_text(json.dumps(content, indent=2) + "\n")


def load_adapter(directory: str | Path, config: OmniConfig) -> tuple[dict, LoraConfig]:
    """(leaves f32 of numpy, stacked; the settings) of an adapter that peft or we wrote.

    Raises UserError for an adapter of another kind or model, naming the field or the tensor.
    """
    path = Path(directory) / ADAPTER_CONFIG
    if not path.exists():
        raise UserError(f"{path}: no such file; give an adapter's folder, as a LoRA run's adapter/")
    content, _ = read_json(path)
    for name, plain in _PLAIN.items():
        value = content.get(name, plain)
        if value != plain and (value or plain):
            raise UserError(f"{path}: {name} is {value!r}; only {plain!r} can be read")
    rank, alpha = content.get("r"), content.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
        raise UserError(f"{path}: r is {rank!r}, lora_alpha {alpha!r}; copy the adapter again")
    file = TensorFile(Path(directory) / WEIGHTS)
    stored = {_canonical(name): header for name, header in file.headers.items()}
    known = {entry.hf_name: entry for entry in _entries(config, LoraConfig(rank, alpha))}
    targets = {_target(known[name]) for name in stored if name in known}
    table = {name: entry for name, entry in known.items() if _target(entry) in targets}
    for name in sorted(table.keys() ^ stored.keys()):
        problem = "is missing" if name in table else "is not of the decoder's linears"
        raise UserError(f"{file.path}: {name} {problem}; give a whole adapter of this model")
    if not table:
        raise UserError(f"{file.path}: holds no tensors; give a whole adapter of this model")
    leaves: dict[tuple, np.ndarray] = {}
    for name, entry in table.items():
        header = stored[name]
        if header.shape != entry.shape or header.code not in FLOATS:
            raise UserError(
                f"{file.path}: {name} is {header.code}{list(header.shape)}, "
                f"not a float of {list(entry.shape)}; give a whole adapter of this model"
            )
        stack = (config.text.num_hidden_layers, *entry.shape)
        leaf = leaves.setdefault(entry.path, np.empty(stack, np.float32))
        file.read_into(leaf[entry.layer], header.name)
    settings = LoraConfig(rank, float(alpha), ",".join(sorted(targets)))
    return mapping.build_tree(leaves.items()), settings


def _entries(config: OmniConfig, settings: LoraConfig) -> list[mapping.Entry]:
    """Every tensor of an adapter, named as the base model's tensors are."""
    table = []
    for path, box in lora.targeted(config, settings).items():
        features, width = box.value.shape
        shapes = {"lora_a": (settings.rank, width), "lora_b": (features, settings.rank)}
        for layer in range(config.text.num_hidden_layers):
            name = ".".join((*path[:2], str(layer), *path[2:]))
            table += [
                mapping.Entry(f"{name}.{_LEAVES[leaf]}", (*path, leaf), layer, shape)
                for leaf, shape in shapes.items()
            ]
    return table


def _target(entry: mapping.Entry) -> str:
    return entry.path[-2]


def _peft_name(entry: mapping.Entry) -> str:
    return f"{_WRAPPED}model.language_{entry.hf_name}"


def _canonical(name: str) -> str:
    """A tensor's name as `_entries` has it."""
    return mapping.canonical_name(name.removeprefix(_WRAPPED)) or name
