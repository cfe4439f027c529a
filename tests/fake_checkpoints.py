"""Checkpoints for tests: a full one of the hub in miniature, made with the safetensors package."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from ugc_jax.models.params import tensors
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.hf_config import to_hf


def random_tensors(config, dtype, seed=0, prefix="thinker.") -> dict[str, np.ndarray]:
    """Random tensors of a thinker; every value is representable in bfloat16."""
    rng = np.random.default_rng(seed)
    values = {}
    for tensor in tensors(thinker.declare(config)):
        array = rng.standard_normal(tensor.shape, np.float32).astype(ml_dtypes.bfloat16)
        values[prefix + tensor.name] = array.astype(dtype)
    return values


def write_thinker(folder: Path, config, values: dict[str, np.ndarray], files: int = 1):
    """A thinker-only checkpoint of the given tensors, in one file or several."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_hf(config, "float32")))
    write_tensors(folder, values, files)


def write_full(
    folder: Path, config, dtype=ml_dtypes.bfloat16, seed: int = 0, files: int = 3
) -> dict[str, np.ndarray]:
    """A full checkpoint; returns all its tensors. Shards mix the thinker's and other tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed + 1)
    rest = {
        "talker.model.embed_tokens.weight": rng.standard_normal((5, 8)).astype(dtype),
        "talker.thinker_to_talker_proj.bias": rng.standard_normal(8).astype(dtype),
        "token2wav.code2wav_dit_model.time_embed.weight": rng.standard_normal((4, 4)).astype(
            np.float32
        ),
        "token2wav.code2wav_bigvgan_model.steps": np.arange(7, dtype=np.int64),
    }
    ours = random_tensors(config, dtype, seed)
    names = list(ours)
    half = len(names) // 2
    order = [*names[:half], *rest, *names[half:]]
    values = {name: (ours | rest)[name] for name in order}
    write_tensors(folder, values, files)
    content = {
        "architectures": ["Qwen2_5OmniModel"],
        "model_type": "qwen2_5_omni",
        "enable_audio_output": True,
        "thinker_config": to_hf(config, np.dtype(dtype).name) | {"user_token_id": 872},
        "torch_dtype": np.dtype(dtype).name,
    }
    (folder / "config.json").write_text(json.dumps(content, indent=1))
    (folder / "spk_dict.pt").write_bytes(bytes(range(256)) * 3)
    (folder / "generation_config.json").write_text('{"thinker_max_new_tokens": 1024}')
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "preprocessor_config.json").write_text('{"padding_side": "right"}')
    (folder / "assets").mkdir()
    (folder / "assets" / "picture.bin").write_bytes(b"\x00\x01")
    return values


def write_tensors(folder: Path, values: dict[str, np.ndarray], files: int = 1):
    """model.safetensors, or `files` shards with an index."""
    if files == 1:
        save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(values)
    weight_map = {}
    for i in range(files):
        part = names[i * len(names) // files : (i + 1) * len(names) // files]
        file = f"model-{i + 1:05d}-of-{files:05d}.safetensors"
        save_file({name: values[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(array.nbytes for array in values.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
