"""What a full checkpoint holds beside weights, config and tokenizer, where its source lacks it."""

import io
import pickle
import zipfile
from pathlib import Path

from ugc_jax.data.features import REFERENCE_SAMPLES
from ugc_jax.files import read_json, write_json, write_text
from ugc_jax.hf.tokenizer import REMEDY
from ugc_jax.media.presets import DEFAULT_PRESET, PRESETS
from ugc_jax.models.qwen2_5_omni.config import (
    FFT,
    HOP,
    PIXEL_MEAN,
    PIXEL_STD,
    SAMPLE_RATE,
    OmniConfig,
)
from ugc_jax.models.qwen2_5_omni.tokens import CHAT_TEMPLATE

PREPROCESSOR = "preprocessor_config.json"
TEMPLATES = ("chat_template.jinja", "chat_template.json")
SPEAKERS = "spk_dict.pt"


def complete(folder: Path, config: OmniConfig):
    """Add the files to a folder that already has those of its source."""
    if not (folder / PREPROCESSOR).exists():
        write_json(folder / PREPROCESSOR, preprocessor(config), indent=2)
    if not _has_template(folder):
        write_text(folder / TEMPLATES[0], CHAT_TEMPLATE)
    (folder / SPEAKERS).write_bytes(_no_speakers())


def preprocessor(config: OmniConfig) -> dict:
    """Return preprocessor_config.json as released (spec section 0): for images and for sound.

    For videos the classes' defaults count, as there.
    """
    vision, limits = config.vision, PRESETS[DEFAULT_PRESET]
    return {
        "processor_class": "Qwen2_5OmniProcessor",
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_mean": list(PIXEL_MEAN),
        "image_std": list(PIXEL_STD),
        "min_pixels": limits["image_min_pixels"],
        "max_pixels": limits["image_max_pixels"],
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "sampling_rate": SAMPLE_RATE,
        "feature_size": config.audio.num_mel_bins,
        "n_fft": FFT,
        "hop_length": HOP,
        "chunk_length": REFERENCE_SAMPLES // SAMPLE_RATE,
        "n_samples": REFERENCE_SAMPLES,
        "nb_max_frames": REFERENCE_SAMPLES // HOP,
        "dither": 0.0,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }


def _has_template(folder: Path) -> bool:
    if any((folder / name).exists() for name in TEMPLATES):
        return True
    path = folder / "tokenizer_config.json"
    return path.exists() and bool(read_json(path, REMEDY).get("chat_template"))


def _no_speakers() -> bytes:
    """Return torch's file of an empty dict: transformers' full class does not load without one.

    The format is that of torch.save: a ZIP archive, stored, of a pickle and the format's version.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in (
            ("data.pkl", pickle.dumps({}, protocol=2)),
            ("byteorder", b"little"),
            ("version", b"3\n"),
        ):
            archive.writestr(zipfile.ZipInfo(f"spk_dict/{name}"), data)
    return content.getvalue()
