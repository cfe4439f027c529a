"""A LoRA adapter in the files of the peft package: a small safetensors file and its config.

Peft's names are those of the modules that it wraps: transformers 5's
Qwen2_5OmniThinkerForConditionalGeneration. `load_adapter` also reads transformers 4's names.
"""

import dataclasses
from pathlib import Path

import numpy as np

from ugc_jax.errors import UserError
from ugc_jax.files import read_json, write_json
from ugc_jax.hf import mapping
from ugc_jax.hf.export import ADAPTER_CONFIG, new_directory, tensor_output
from ugc_jax.hf.tensorfile import FLOATS, Part, TensorFile, write_tensors
from ugc_jax.hf.trained import Trained, write_trained
from ugc_jax.models import lora
from ugc_jax.models.lora import LoraConfig
from ugc_jax.models.params import Tensor, build_tree, leaves, tensors
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.models.qwen2_5_omni.names import PEFT_MODULES

WEIGHTS = "adapter_model.safetensors"
_WRAPPED = "base_model.model."  # peft's name of the model that it wraps
_LEAVES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
# Settings of peft that change the meaning of the tensors, with the only values supported here.
_SUPPORTED = {
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
    trained: Trained | None = None,
):
    """Write an adapter's leaves (stacked, in their dtype) for `load_adapter` and peft.

    base: hub id or directory of its base model, for adapter_config.json. trained: written to
    captioner.json.
    Raises UserError as `export.new_directory`.
    """
    names = "|".join(settings.names)
    content = _SUPPORTED | {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": 0.0,
        "target_modules": rf"{PEFT_MODULES}\.({names})",
        "inference_mode": True,
    }
    stored, outputs = _tensors(config, settings), []
    linears = {tensor.path[:-1]: place for place, tensor in enumerate(stored)}
    # A and B of a layer's linear side by side.
    for tensor in sorted(stored, key=lambda one: (linears[one.path[:-1]], one.layer)):
        name = _WRAPPED + mapping.module_name(tensor.name)
        outputs.append(tensor_output(adapter, tensor, name=name))
    with new_directory(out_dir, overwrite) as folder:
        write_tensors(folder / WEIGHTS, outputs)
        write_json(folder / ADAPTER_CONFIG, content, indent=2)
        write_trained(folder, trained)


def load_adapter(directory: str | Path, config: OmniConfig) -> tuple[dict, LoraConfig]:
    """Return (stacked numpy leaves, float32; settings) of an adapter that peft or we wrote.

    Raises UserError for an adapter of another kind or model, naming the field or the tensor.
    """
    path = Path(directory) / ADAPTER_CONFIG
    content = read_json(path, "give an adapter's folder, as a LoRA run's adapter/")
    for name, supported in _SUPPORTED.items():
        value = content.get(name, supported)
        if value != supported and (value or supported):
            raise UserError(f"{path}: {name} is {value!r}; only {supported!r} can be read")
    rank, alpha = content.get("r"), content.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float) or alpha <= 0:
        raise UserError(f"{path}: r is {rank!r}, lora_alpha {alpha!r}; copy the adapter again")
    file = TensorFile(Path(directory) / WEIGHTS)
    stored = {}
    for name, header in file.headers.items():
        stored[mapping.canonical_name(name.removeprefix(_WRAPPED)) or name] = header
    known = {tensor.name: tensor for tensor in _tensors(config, LoraConfig(rank, alpha))}
    targets = {known[name].path[-2] for name in stored if name in known}
    expected = {name: tensor for name, tensor in known.items() if tensor.path[-2] in targets}
    for name in sorted(expected.keys() ^ stored.keys()):
        problem = "is missing" if name in expected else "is not of the decoder's linears"
        raise UserError(f"{file.path}: {name} {problem}; give a whole adapter of this model")
    if not expected:
        raise UserError(f"{file.path}: holds no tensors; give a whole adapter of this model")
    stacks = {
        leaf.path: np.empty(leaf.shape, np.float32)
        for leaf in leaves(lora.declare(config, LoraConfig(rank, alpha, ",".join(targets))))
    }
    for name, tensor in expected.items():
        header = stored[name]
        if header.shape != tensor.shape or header.code not in FLOATS:
            raise UserError(
                f"{file.path}: {name} is {header.code}{list(header.shape)}, "
                f"not a float of {list(tensor.shape)}; give a whole adapter of this model"
            )
        file.read(header.name, [Part(stacks[tensor.path][tensor.layer])])
    settings = LoraConfig(rank, float(alpha), ",".join(sorted(targets)))
    return build_tree(stacks.items()), settings


def _tensors(config: OmniConfig, settings: LoraConfig) -> list[Tensor]:
    """Every tensor of an adapter, with the names of our linears and of peft's leaves."""
    result = []
    for tensor in tensors(lora.declare(config, settings)):
        linear, _, leaf = tensor.name.rpartition(".")
        result.append(dataclasses.replace(tensor, name=f"{linear}.{_LEAVES[leaf]}"))
    return result
