"""Our prompts as inputs of the reference, transformers on torch: for tests and `bench` only.

Uses the reference's model, position ids and generation loop; not its processor, which needs
torchvision. torch and transformers are imported when called.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ugc_jax.data.example import Example
from ugc_jax.data.features import VisionInput
from ugc_jax.data.prompt import VISION
from ugc_jax.models.qwen2_5_omni.config import PIXEL_MEAN, PIXEL_STD, OmniConfig


def load_reference(checkpoint: str | Path, dtype: str = "float32"):
    """Return a directory's Qwen2_5OmniThinkerForConditionalGeneration: eval mode, CPU, SDPA."""
    import torch
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration as Thinker

    model = Thinker.from_pretrained(
        checkpoint, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    ).eval()
    # transformers 5 leaves these unset for a thinker from a full checkpoint, which then never stops
    # (spec 5.2).
    model.generation_config.eos_token_id = model.config.eos_token_id
    model.generation_config.pad_token_id = model.config.pad_token_id
    return model


def reference_inputs(
    examples: Sequence[Example],
    config: OmniConfig,
    seconds_per_grid: Sequence[float] = (),
    audio_in_video: bool = False,
) -> dict:
    """Return keyword arguments of the reference's `forward` and `generate`: a left-padded batch.

    seconds_per_grid: of each video of the batch in order. audio_in_video: whether the videos have
    sound; the reference takes one flag for the whole batch.
    """
    import torch

    length = max(len(example.tokens) for example in examples)
    tokens = np.full((len(examples), length), config.tokens.pad_token_id, np.int64)
    mask = np.zeros_like(tokens)
    for row, example in enumerate(examples):
        tokens[row, length - len(example.tokens) :] = example.tokens
        mask[row, length - len(example.tokens) :] = 1
    inputs = {"input_ids": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(mask)}

    pictures = [
        pair
        for example in examples
        for pair in zip(_is_video(example, config), example.vision, strict=True)
    ]
    for name, grid_name, videos in (
        ("pixel_values", "image_grid_thw", False),
        ("pixel_values_videos", "video_grid_thw", True),
    ):
        chosen = [picture for is_video, picture in pictures if is_video == videos]
        if chosen:
            patches = [reference_patches(picture, config) for picture in chosen]
            inputs[name] = torch.from_numpy(np.concatenate(patches))
            inputs[grid_name] = torch.tensor([picture.grid for picture in chosen])
    if "video_grid_thw" in inputs:
        inputs["video_second_per_grid"] = torch.tensor(list(seconds_per_grid), dtype=torch.float32)
        inputs["use_audio_in_video"] = audio_in_video
    mels = [mel for example in examples for mel in example.mels]
    if mels:
        frames = max(map(len, mels))
        features = np.zeros((len(mels), config.audio.num_mel_bins, frames), np.float32)
        valid = np.zeros((len(mels), frames), np.int32)
        for i, mel in enumerate(mels):
            features[i, :, : len(mel)] = mel.T
            valid[i, : len(mel)] = 1
        inputs["input_features"] = torch.from_numpy(features)
        inputs["feature_attention_mask"] = torch.from_numpy(valid)
    return inputs


def reference_patches(picture: VisionInput, config: OmniConfig) -> np.ndarray:
    """Return patches f32[t * h * w, patch_dim] in the reference's order, normalised (spec 4.2)."""
    merge = config.vision.spatial_merge_size
    patches = picture.patches.reshape(-1, config.vision.patch_dim)
    coords = picture.coords.reshape(-1, 2)
    grid = np.repeat(np.arange(len(picture.patches)), picture.coords[0, ..., 0].size)
    row, column = coords.T
    order = np.lexsort((column % merge, row % merge, column // merge, row // merge, grid))
    order = order[row[order] >= 0]
    mean, std = (
        np.repeat(np.float32(value), config.vision.patch_dim // 3)
        for value in (PIXEL_MEAN, PIXEL_STD)
    )
    return (patches[order].astype(np.float32) / 255 - mean) / std


def _is_video(example: Example, config: OmniConfig) -> list[bool]:
    """For each picture of the example, whether its tokens are video tokens."""
    takes = example.source == VISION
    ends = np.cumsum([picture.grid[0] for picture in example.vision])
    owner = np.searchsorted(ends, example.row[takes, 0], side="right")
    first = [example.tokens[takes][owner == i][0] for i in range(len(example.vision))]
    return [bool(token == config.tokens.video_token_id) for token in first]
