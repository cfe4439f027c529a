"""Token layout and TMRoPE positions against the reference's routines and the spec's examples."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from ugc_jax.data.prompt import (
    AUDIO,
    TEXT,
    VISION,
    Medium,
    Text,
    chunk_slices,
    layout,
    medium_tokens,
    vision_rows,
)
from ugc_jax.models.qwen2_5_omni.config import omni_3b

CONFIG = omni_3b()
IDS = CONFIG.tokens


def lay(*pieces):
    return layout(pieces, CONFIG)


# ---- spec 3.3, worked examples -------------------------------------------------------------------


def test_text_only():
    out = lay(Text([5, 6, 7]))
    assert out.tokens.tolist() == [5, 6, 7]
    assert out.positions.tolist() == [[0, 1, 2]] * 3
    assert out.next_position == 3
    assert out.source.tolist() == [TEXT] * 3
    dtypes = [out.tokens.dtype, out.positions.dtype, out.source.dtype, out.row.dtype]
    assert dtypes == [np.int32, np.int32, np.int8, np.int32]


def test_targets_follow_their_text():
    out = lay(
        Text([1, 2]), Medium("video", (2, 4, 4), 1.0, 30), Text([3]), Text([4, 5], target=True)
    )
    assert out.target.dtype == bool
    assert out.target.tolist() == [False] * (len(out.tokens) - 2) + [True] * 2
    whole = lay(Text([1, 2]), Medium("video", (2, 4, 4), 1.0, 30), Text([3, 4, 5]))
    for ours, theirs in zip(out[:-1], whole[:-1], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_image_example():
    out = lay(Text([1, 2]), Medium("image", (1, 4, 6)), Text([3]))
    t, h, w = out.positions.tolist()
    assert t == [0, 1, 2] + [3] * 6 + [6, 7]
    assert h == [0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7]
    assert w == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7]
    assert out.next_position - len(out.tokens) == -3


def test_video_example():
    out = lay(Text([1]), Medium("video", (2, 4, 4), 1.0))
    t, h, w = out.positions.tolist()
    assert t == [0, 1] + [2] * 4 + [27] * 4 + [28]
    assert h == [0, 1] + [2, 2, 3, 3] * 2 + [28]
    assert w == [0, 1] + [2, 3, 2, 3] * 2 + [28]
    assert out.next_position - len(out.tokens) == 29 - 11


def test_video_with_sound_example():
    frames = 54 * 4
    out = lay(Text([1]), Medium("video", (3, 2, 2), 1.0, frames), Text([2]))
    ends, sound = [56, 56, 57], [*range(52, 56)]
    assert out.positions[0].tolist() == [0, 1, 1, 2, 27, *range(2, 52), 52, *sound, *ends]
    assert out.positions[1].tolist() == [0, 1, 1, 2, 2, *range(2, 52), 2, *sound, *ends]
    video, audio = [IDS.video_token_id], [IDS.audio_token_id]
    opening = [IDS.vision_start_token_id, IDS.audio_start_token_id]
    closing = [IDS.audio_end_token_id, IDS.vision_end_token_id]
    inside = [*video * 2, *audio * 50, *video, *audio * 4]
    assert out.tokens.tolist() == [1, *opening, *inside, *closing, 2]
    assert out.next_position - len(out.tokens) == -5


def test_walk_lags_below_one_frame_per_second():
    sizes = [
        s.stop - s.start
        for s in chunk_slices(np.array([0, 0, 0, 100, 100, 100, 200, 200, 200]), 50)
    ]
    assert sizes == [3, 1, 2, 1, 2]
    assert chunk_slices(np.array([], int), 50) == [slice(0, 0)]


def test_sound_that_ends_before_the_picture_sets_the_next_position():
    # spec 7.1: 12 frames at 2 fps, 4.4 s of sound
    out = lay(Text([1]), Medium("video", (6, 4, 4), 1.0, 440))
    assert out.positions.max() >= out.next_position
    assert out.next_position == out.positions[0, -1] + 1


def test_sound_too_short_for_a_token_leaves_its_markers():
    """The reference fails here with one grid (maximum of nothing); text follows the picture."""
    out = lay(
        Text([1]), Medium("video", (1, 4, 4), 1.0, 2), Medium("audio", mel_frames=2), Text([2])
    )
    assert out.positions[0].tolist() == [0, 1, 1, 2, 2, 2, 2, 4, 4, 5, 6, 7]
    assert (out.source == AUDIO).sum() == 0


# ---- feature rows --------------------------------------------------------------------------------


def test_rows_count_through_all_media_and_are_taken_once():
    pictures = Medium("image", (1, 6, 10)), Medium("video", (2, 4, 6), 1.0, 437)
    out = lay(
        Text([1]),
        *pictures,
        Medium("audio", mel_frames=201),
        Medium("audio", mel_frames=2),
        Medium("video", (1, 2, 2), 1.0),
        Medium("audio", mel_frames=7),
    )
    vision, audio = (list(map(tuple, out.row[out.source == kind])) for kind in (VISION, AUDIO))
    assert len(set(vision)) == len(vision) == 15 + 12 + 1
    assert len(set(audio)) == len(audio) == 109 + 50 + 0 + 2
    assert sorted({grid for grid, _ in vision}) == [0, 1, 2, 3]
    # 437 frames are 3 chunks; 201 frames 2, the second of 1 frame without a token; 2 frames 1
    assert sorted({chunk for chunk, _ in audio}) == [0, 1, 2, 3, 6]
    assert (out.source == VISION).tolist() == np.isin(
        out.tokens, (IDS.image_token_id, IDS.video_token_id)
    ).tolist()
    assert (out.source == AUDIO).tolist() == (out.tokens == IDS.audio_token_id).tolist()
    assert not out.row[out.source == TEXT].any()


@pytest.mark.parametrize("frames", [0, 1, 2, 3, 4, 5, 199, 200, 201, 1234])
def test_tokens_are_counted_without_laying_them_out(frames):
    grid = (3, 6, 10)
    for piece in (
        Medium("audio", mel_frames=frames),
        Medium("video", grid, 1.0, frames),
        Medium("video", grid, 1.0),
        Medium("image", (1, 4, 2)),
    ):
        assert medium_tokens(piece, CONFIG) == len(lay(piece).tokens)


# ---- parity with transformers --------------------------------------------------------------------

AV = lambda t, h, w, frames, fps=2.0: Medium("video", (t, h, w), 2 / fps, frames)  # noqa: E731
CASES = {
    "text": [Text([9, 8, 7])],
    "image": [Text([9]), Medium("image", (1, 8, 12)), Text([8, 7])],
    "two images": [
        Text([9]),
        Medium("image", (1, 8, 12)),
        Medium("image", (1, 2, 40)),
        Text([8, 7]),
    ],
    "audio": [Text([9]), Medium("audio", mel_frames=437), Text([8])],
    "video": [Text([9, 9]), Medium("video", (5, 6, 10), 1.0), Text([8])],
    "video at its own rate": [Text([9, 9]), Medium("video", (5, 6, 10), 2 / 1.894), Text([8])],
    "tall strip": [Text([9]), Medium("video", (1, 120, 2), 1.0), Text([8])],
    "image, video, audio": [
        Text([9]),
        Medium("image", (1, 4, 4)),
        Text([7, 7]),
        Medium("video", (3, 4, 6), 1.0),
        Medium("audio", mel_frames=301),
        Text([8]),
    ],
    "sound as long": [Text([9]), AV(4, 6, 4, 400), Text([8])],
    "sound shorter": [Text([9]), AV(6, 4, 4, 440), Text([8])],
    "sound longer": [Text([9]), AV(4, 4, 6, 1234), Text([8])],
    "sound under 40 ms": [Text([9]), AV(4, 4, 4, 2), Text([8])],
    "one grid": [Text([9]), AV(1, 4, 4, 30), Text([8])],
    "one tall grid": [Text([9]), AV(1, 80, 4, 30), Text([8])],
    "two videos with sound": [
        Text([9]),
        AV(3, 4, 4, 300),
        Text([7]),
        AV(2, 6, 4, 900, 1.5),
        Text([8]),
    ],
    "with sound, image, audio": [
        Text([9]),
        AV(3, 4, 4, 350),
        Medium("image", (1, 4, 6)),
        Text([7]),
        Medium("audio", mel_frames=77),
        Text([8]),
    ],
    "slow": [Text([9]), AV(5, 4, 6, 2000, 0.3), Text([8])],
    "slower than a chunk": [Text([9]), AV(4, 2, 4, 3000, 0.25), Text([8])],
    **{
        f"{fps} fps": [Text([9]), AV(60, 2, 4, 3000, fps), Text([8])]
        for fps in (0.5, 1.98, 7.5, 10.25, 23.976, 29.97)
    },
}


@pytest.fixture(scope="module")
def reference():
    """The model's position routine on the 3B's special ids, without building a model."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as modeling

    cls = modeling.Qwen2_5OmniPreTrainedModelForConditionalGeneration
    fields = dict(vars(IDS) | {"position_id_per_seconds": 25, "seconds_per_chunk": 2})
    model = SimpleNamespace(config=SimpleNamespace(**fields), spatial_merge_size=2)
    model.get_chunked_index = cls.get_chunked_index.__get__(model)
    model.get_llm_pos_ids_for_vision = cls.get_llm_pos_ids_for_vision.__get__(model)

    def positions(tokens, pieces):
        pictures = [p for p in pieces if getattr(p, "kind", None) == "image"]
        videos = [p for p in pieces if getattr(p, "kind", None) == "video"]
        sounds = [getattr(p, "mel_frames", None) for p in pieces]
        sounds = [frames for frames in sounds if frames is not None]
        ids = torch.tensor(np.asarray(tokens)[None], dtype=torch.long)
        out, _ = cls.get_rope_index(
            model,
            ids,
            torch.tensor([p.grid for p in pictures]) if pictures else None,
            torch.tensor([p.grid for p in videos]) if videos else None,
            torch.ones_like(ids),
            any(v.mel_frames is not None for v in videos),
            torch.tensor(sounds) if sounds else None,
            torch.tensor([v.seconds_per_grid for v in videos]) if videos else None,
        )
        return out[:, 0].numpy()

    return positions


@pytest.mark.parametrize("name", CASES)
def test_positions_equal_the_reference_model(name, reference):
    pieces = CASES[name]
    out = lay(*pieces)
    np.testing.assert_array_equal(out.positions, reference(out.tokens, pieces))
    assert out.next_position == out.positions[0, -1] + 1


def reference_expansion(piece: Medium) -> list[int]:
    """Ids of a video with sound by the reference's processor."""
    processing = pytest.importorskip("transformers.models.qwen2_5_omni.processing_qwen2_5_omni")
    cls = processing.Qwen2_5OmniProcessor
    processor = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2),
        **{"audio_bos_token": "<", "audio_eos_token": ">", "video_token": "v", "audio_token": "a"},
    )
    processor.get_chunked_index = cls.get_chunked_index.__get__(processor)
    text = cls.replace_video_with_audio_token(
        processor,
        {
            "video_grid_thw": np.array([piece.grid]),
            "video_second_per_grid": [piece.seconds_per_grid],
        },
        0,
        {"num_audio_tokens": [CONFIG.audio.tokens(piece.mel_frames)]},
        0,
        position_id_per_seconds=25,
        seconds_per_chunk=2.0,
    )
    ids = {
        "<": IDS.audio_start_token_id,
        ">": IDS.audio_end_token_id,
        "v": IDS.video_token_id,
        "a": IDS.audio_token_id,
    }
    return [IDS.vision_start_token_id, *(ids[letter] for letter in text), IDS.vision_end_token_id]


@pytest.mark.parametrize(
    "fps", [0.25, 0.3, 0.5, 1, 1.5, 2, 2.5, 3, 4, 7.5, 12.5, 23.976, 24, 25, 29.97, 30]
)
@pytest.mark.parametrize(("t", "frames"), [(1, 3), (4, 2), (7, 437), (40, 2000), (5, 3000)])
def test_tokens_equal_the_reference_processor(fps, t, frames):
    piece = Medium("video", (t, 4, 6), 2 / fps, frames)
    assert lay(piece).tokens.tolist() == reference_expansion(piece)


@pytest.mark.parametrize("fps", [1.98, 10.25, 11.75])
def test_where_processor_and_model_disagree_the_model_is_followed(fps, reference):
    """Spec 7.4. The reference model agrees on our tokens, and misplaces those of its processor."""
    piece = Medium("video", (400, 2, 4), 2 / fps, 30000)
    ours, theirs = lay(piece), reference_expansion(piece)
    np.testing.assert_array_equal(ours.positions, reference(ours.tokens, [piece]))
    assert ours.tokens.tolist() != theirs
    is_audio = np.array(theirs) == IDS.audio_token_id
    columns = reference(theirs, [piece])[2]
    assert not np.array_equal(columns[is_audio], lay(piece).positions[2, ours.source == AUDIO])


def test_every_case_of_grid_and_sound_keeps_time_order():
    """All video of chunk k comes before all audio of chunk k, and both keep their order."""
    for t, frames in itertools.product((1, 2, 5, 9), (0, 3, 199, 200, 201, 1000)):
        out = lay(Medium("video", (t, 2, 2), 1.0, frames))
        for kind in (VISION, AUDIO):
            assert (np.diff(out.positions[0, out.source == kind]) >= 0).all()
        chunk = np.where(out.source == VISION, 2, 3) + 2 * ((out.positions[0] - 1) // 50)
        assert (np.diff(chunk[out.source != TEXT]) >= 0).all()


# ---- feature rows --------------------------------------------------------------------------------


def test_rows_follow_the_specs_window_order():
    """Spec 2.1: the cells of a [1, 10, 12] grid in window order."""
    rows = vision_rows((1, 10, 12), CONFIG.vision)
    assert rows.dtype == np.int32
    order = np.argsort(rows[:, 1])
    windows = ([0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 15, 18, 19, 20, 21],)
    windows += ([4, 5, 10, 11, 16, 17, 22, 23], [24, 25, 26, 27], [28, 29])
    assert order.tolist() == [cell for window in windows for cell in window]


def test_rows_count_through_the_grids():
    rows = vision_rows((3, 4, 6), CONFIG.vision)
    assert rows.shape == (18, 2)
    assert rows[:, 0].tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert len({tuple(row) for row in rows.tolist()}) == 18
