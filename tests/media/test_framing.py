"""Frame choice and frame size against the spec's rules and torch's rounding."""

import numpy as np
import pytest

from ugc_jax.errors import UserError
from ugc_jax.media import framing
from ugc_jax.media.presets import ClipSettings, resolve


def source(frames, fps, width=640, height=360):
    return framing.Source(
        "clip.mp4", "video", width, height, fps, frames, frames / fps, 0, False, 0.0, None
    )


def indices(total, rate, /, **settings):
    return framing.plan_frames(
        source(total, rate), resolve(ClipSettings(**settings))
    ).indices.tolist()


def test_rounded_linspace_equals_torch():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    for _ in range(1000):
        first, total = random.integers(0, 50), random.integers(2, 3000)
        count = int(random.integers(2, min(769, total + 1)))
        last = int(first + total - 1)
        expected = torch.linspace(int(first), last, count).round().long()
        np.testing.assert_array_equal(framing._rounded_linspace(int(first), last, count), expected)


@pytest.mark.parametrize(
    ("frames", "fps", "settings", "count"),
    [
        (132, 25, {}, 10),  # 10.56
        (300, 30, {}, 20),
        (300, 29.97, {}, 20),  # 20.02
        (50, 25, {}, 4),
        (25, 25, {}, 4),  # min_frames
        (3, 25, {}, 2),
        (1, 25, {}, 2),  # the reference refuses one frame
        (100_000, 25, {}, 768),
        (300, 30, dict(fps=1.0), 10),
        (300, 30, dict(frames=7), 8),  # 3.5 rounds to 4 pairs
        (300, 30, dict(frames=5), 4),  # 2.5 rounds to 2 pairs
        (5, 30, dict(frames=16), 4),
        (300, 30, dict(max_frames=6), 6),
        (300, 30, dict(min_frames=29, max_frames=40), 30),
        (300, 30, dict(start=2.0, end=4.0), 4),
        (300, 30, dict(preset="upstream"), 32),
        (5, 30, dict(preset="upstream"), 32),
        (300, 30, dict(preset="upstream", fps=2.0), 20),
    ],
)
def test_frame_count(frames, fps, settings, count):
    found = indices(frames, fps, **settings)
    assert len(found) == count
    assert 0 <= min(found) <= max(found) < frames


def test_frame_choice():
    assert indices(6, 1, frames=4) == [0, 2, 3, 5]
    assert indices(6, 1, frames=4, preset="upstream") == [0, 1, 3, 5]
    assert indices(300, 30, start=2.01, end=4.99, frames=2) == [61, 149]
    assert indices(300, 30, start=9.0, end=100.0, frames=2) == [270, 299]
    assert indices(1, 30) == [0, 0]


def test_sample_fps():
    plan = framing.plan_frames(source(132, 25), resolve(ClipSettings()))
    assert plan.sample_fps == pytest.approx(10 / 132 * 25)
    plan = framing.plan_frames(source(300, 30), resolve(ClipSettings(start=2, end=4)))
    assert plan.sample_fps == pytest.approx(4 / 61 * 30)


@pytest.mark.parametrize("settings", [dict(start=10.5), dict(start=2.01, end=2.02)])
def test_empty_range_is_refused(settings):
    with pytest.raises(UserError, match=r"clip.mp4: no frame between start=.* lasts 10.00 s"):
        indices(300, 30, **settings)


@pytest.mark.parametrize(
    ("frames", "size", "settings", "expected"),
    [
        (300, (1280, 720), {}, (560, 1008)),
        (300, (64, 64), {}, (336, 336)),
        (23_040, (1920, 1080), {}, (336, 644)),  # 768 frames share total_pixels
        (300, (1280, 720), dict(max_pixels=50_176), (168, 280)),
        (300, (1280, 720), dict(preset="upstream"), (252, 448)),
        (300, (720, 1280), dict(preset="upstream"), (448, 252)),
    ],
)
def test_frame_size(frames, size, settings, expected):
    plan = framing.plan_frames(source(frames, 30, *size), resolve(ClipSettings(**settings)))
    assert (plan.height, plan.width) == expected
