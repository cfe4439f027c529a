"""Features against the reference's own processors, their layouts against first principles."""

import numpy as np
import pytest

from ugc_jax.data import features
from ugc_jax.data.prompt import vision_rows
from ugc_jax.media.clip import resize, smart_resize
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY, PIXEL_MEAN, PIXEL_STD, SAMPLE_RATE

CONFIG = GEOMETRY


# ---- patches -------------------------------------------------------------------------------------


def reference_order(vision, rows):
    """Patches f32[t * h * w, 1176] in the reference's order, normalised as the device does."""
    cells = vision.patches.reshape(vision.grid[0], -1, 4, CONFIG.vision.patch_dim)
    patches = cells[rows[:, 0], rows[:, 1]].reshape(-1, 3, 2 * 14 * 14).astype(np.float32)
    mean, std = np.array(PIXEL_MEAN)[:, None], np.array(PIXEL_STD)[:, None]
    return ((patches / 255 - mean) / std).reshape(len(patches), -1)


@pytest.mark.parametrize(
    "size", [(28, 28), (56, 84), (112, 112), (140, 252), (364, 196), (28, 560)]
)
def test_image_patches_equal_the_reference(size):
    pytest.importorskip("torch")
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    frame = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    processor = module.Qwen2VLImageProcessorPil(size={"shortest_edge": 1, "longest_edge": 1 << 30})
    expected = processor(frame, return_tensors="np")
    vision = features.patchify(frame[None], CONFIG.vision)
    assert vision.grid == tuple(expected["image_grid_thw"][0])
    found = reference_order(vision, vision_rows(vision.grid, CONFIG.vision))
    np.testing.assert_allclose(found, expected["pixel_values"], atol=1e-5)


def test_resize_equals_the_reference():
    pytest.importorskip("torch")
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    frame = np.random.default_rng(1).integers(0, 256, (150, 333, 3), np.uint8)
    processor = module.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 3136, "longest_edge": 30_000}
    )
    expected = processor(frame, return_tensors="np")
    resized = resize(frame, *smart_resize(150, 333, 3136, 30_000, 28))
    vision = features.patchify(resized[None], CONFIG.vision)
    found = reference_order(vision, vision_rows(vision.grid, CONFIG.vision))
    np.testing.assert_allclose(found, expected["pixel_values"], atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [(28, 28), (112, 84), (140, 252)])
def test_patches_are_the_pixels_at_their_coords(count, size):
    """Every real patch holds its pixels, channel first, of both frames; a padded one is zero."""
    height, width = size
    frames = np.random.default_rng(2).integers(1, 256, (count, height, width, 3), np.uint8)
    patches, coords, grid = features.patchify(frames, CONFIG.vision)
    assert grid == (-(-count // 2), height // 14, width // 14)
    assert patches.dtype == np.uint8
    assert coords.dtype == np.int32
    seen = 0
    for place in np.ndindex(coords.shape[:3]):
        row, column = coords[place]
        if row < 0:
            assert column < 0
            assert not patches[place].any()
            continue
        pair = frames[[2 * place[0], min(2 * place[0] + 1, count - 1)]]
        pixels = pair[:, 14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
        np.testing.assert_array_equal(
            patches[place].reshape(3, 2, 14, 14), pixels.transpose(3, 0, 1, 2)
        )
        seen += 1
    assert seen == np.prod(grid)


def test_patchify_refuses_other_sizes():
    with pytest.raises(ValueError, match="multiples of 28"):
        features.patchify(np.zeros((2, 30, 28, 3), np.uint8), CONFIG.vision)


# ---- sound ---------------------------------------------------------------------------------------


def noise_and_beeps(samples):
    random = np.random.default_rng(samples)
    time = np.arange(samples) / SAMPLE_RATE
    beeps = 0.3 * np.sin(2 * np.pi * 440 * time) * (np.sin(2 * np.pi * 2 * time) > 0)
    return (beeps + random.normal(size=samples) * 0.01).astype(np.float32)


@pytest.fixture(scope="module")
def whisper():
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    return transformers.WhisperFeatureExtractor(
        feature_size=128, chunk_length=300, n_fft=400, hop_length=160
    )


@pytest.mark.parametrize(
    "samples", [1, 159, 160, 161, 199, 201, 400, 1000, 80_000, 480_160, 4_799_990, 4_800_000]
)
def test_log_mel_equals_the_reference(whisper, samples):
    waveform = noise_and_beeps(samples)
    expected = whisper(
        waveform,
        sampling_rate=16_000,
        padding="max_length",
        return_attention_mask=True,
        return_tensors="np",
    )
    valid = int(expected["attention_mask"].sum())
    found = features.log_mel(waveform)
    assert found.shape == (valid, 128)
    assert found.dtype == np.float32
    # the extractor's torch path is itself up to 5e-5 away from its exact NumPy path
    assert np.abs(found - expected["input_features"][0].T[:valid]).max() <= 1e-4


def test_log_mel_equals_the_references_exact_path(whisper):
    waveform = noise_and_beeps(80_077)
    waveform[20_000:60_000] = 0
    padded = np.pad(waveform, (0, features.REFERENCE_SAMPLES - len(waveform)))
    expected = whisper._np_extract_fbank_features(padded[None], "cpu")[0].T
    found = features.log_mel(waveform)
    assert np.abs(found - expected[: len(found)]).max() <= 1e-5


def test_log_mel_of_nothing_and_of_silence():
    assert features.log_mel(np.zeros(0, np.float32)).shape == (0, 128)
    np.testing.assert_allclose(features.log_mel(np.zeros(3200, np.float32)), -1.5, rtol=1e-6)


@pytest.mark.parametrize("frames", [0, 1, 199, 200, 201, 437])
def test_chunk_mel(frames):
    mel = np.random.default_rng(0).normal(size=(frames, 128)).astype(np.float32)
    chunks, lengths = features.chunk_mel(mel, CONFIG.audio)
    assert chunks.shape == (-(-frames // 200), 200, 128)
    assert lengths.dtype == np.int32
    np.testing.assert_array_equal(
        np.concatenate([c[:n] for c, n in zip(chunks, lengths, strict=True)] or [mel]), mel
    )
    assert all(not chunk[length:].any() for chunk, length in zip(chunks, lengths, strict=True))
    assert sum(CONFIG.audio.tokens(int(n)) for n in lengths) == CONFIG.audio.tokens(frames)
