"""ugc_jax.label.select: duplicates that were planted, clusters that are known, quotas."""

import itertools

import numpy as np
import pytest

from ugc_jax.data.annotation import Picture, Sound, to_json
from ugc_jax.errors import UserError
from ugc_jax.label import select as module
from ugc_jax.label.select import (
    Quota,
    attributes,
    centred,
    find_duplicates,
    read_quotas,
    select,
)


def rows(n, dims=32, seed=0):
    """Rows as an encoder's: a large common part, and each its own."""
    rng = np.random.default_rng(seed)
    return (10 + rng.normal(size=(n, dims))).astype(np.float32)


def blank(n):
    return [{}] * n


def test_planted_duplicates_are_found():
    vision, audio = rows(40), rows(40, seed=1)
    rng = np.random.default_rng(2)
    copies = {10: 3, 20: 3, 35: 30, 39: 0}
    for copy, of in copies.items():
        vision[copy] = vision[of] + 0.05 * rng.normal(size=32)
        audio[copy] = audio[of] + 0.05 * rng.normal(size=32)
    found = select({"vision": vision, "audio": audio}, blank(40), 5)
    assert {row: near.row for row, near in found.duplicates.items()} == copies
    assert all(0.95 <= near.similarity <= 1.0001 for near in found.duplicates.values())
    assert not {one.row for one in found.chosen} & copies.keys()


def test_the_same_picture_with_another_sound_is_no_duplicate():
    vision, audio = rows(40), rows(40, seed=1)
    vision[7] = vision[2]
    assert select({"vision": vision, "audio": audio}, blank(40), 5).duplicates == {}


def test_two_identical_rows_alone():
    vision = np.repeat(rows(1), 2, axis=0)
    found = select({"vision": vision, "audio": np.zeros((2, 8))}, blank(2), 2)
    assert found.duplicates == {1: (0, 1.0)}
    assert [one.row for one in found.chosen] == [0]
    assert found.short == (
        "1 rows are chosen instead of 2: there are no others (without 1 duplicates)",
    )


def test_duplicates_across_blocks(monkeypatch):
    vision = rows(50)
    vision[40:] = vision[:10]
    whole = select({"vision": vision}, blank(50), 12)
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert select({"vision": vision}, blank(50), 12) == whole
    assert {row: near.row for row, near in whole.duplicates.items()} == {
        40 + n: n for n in range(10)
    }


def clusters():
    """60 rows of six directions, 30 of the first and 6 of each other; (rows, cluster of each)."""
    rng = np.random.default_rng(3)
    of = np.array([0] * 30 + [one for one in range(1, 6) for _ in range(6)])
    centres = 3 * np.eye(6, 24)
    return (5 + centres[of] + 0.3 * rng.normal(size=(60, 24))).astype(np.float32), of


def test_each_known_cluster_is_covered_before_one_twice():
    x, of = clusters()
    found = select({"vision": x}, blank(60), 6, duplicate=1.1)
    assert sorted(of[[one.row for one in found.chosen]]) == [0, 1, 2, 3, 4, 5]
    assert found.chosen[0].row < 30  # the largest cluster gains most
    gains = [one.gain for one in found.chosen]
    assert gains == sorted(gains, reverse=True)
    assert found.coverage == pytest.approx(sum(gains), abs=1e-4)
    # every row that was not chosen is nearest to the chosen one of its cluster
    chosen = {one.row for one in found.chosen}
    for row, near in found.nearest.items():
        if row not in chosen:
            assert of[near.row] == of[row]
    assert len(found.nearest) == 59  # all but the first


def test_the_greedy_choice_is_that_of_all_gains_computed():
    x = rows(30, dims=5)
    found = select({"vision": x}, blank(30), 10, duplicate=1.1)
    unit = centred({"vision": x}).astype(np.float64)
    similar = np.maximum(unit @ unit.T, 0)
    best, expected = np.zeros(30), []
    for _ in range(10):
        gains = np.maximum(similar - best[:, None], 0).sum(axis=0).round(6)  # ties
        gains[expected] = -1
        expected.append(int(gains.argmax()))
        best = np.maximum(best, similar[:, expected[-1]])
    assert [one.row for one in found.chosen] == expected
    assert found.coverage == pytest.approx(best.mean(), abs=1e-5)


def test_the_coverage_is_near_the_best_one():
    x = rows(12, dims=4)
    found = select({"vision": x}, blank(12), 3, duplicate=1.1)
    unit = centred({"vision": x})
    similar = np.maximum(unit @ unit.T, 0)
    best = max(
        similar[:, list(rows)].max(axis=1).mean() for rows in itertools.combinations(range(12), 3)
    )
    assert (1 - 1 / np.e) * best <= found.coverage <= best + 1e-6


def test_a_shorter_count_is_the_beginning():
    x = rows(50)
    long = select({"vision": x}, blank(50), 20).chosen
    assert select({"vision": x}, blank(50), 8).chosen == long[:8]


def test_equal_rows_are_chosen_in_their_order():
    found = select({"vision": np.eye(6, dtype=np.float32)}, blank(6), 6)
    assert [one.row for one in found.chosen] == [0, 1, 2, 3, 4, 5]


def test_a_clip_without_sound_is_compared_by_its_picture():
    vision, audio = rows(30), rows(30, seed=1)
    audio[[4, 9]] = 0
    vision[9] = vision[4]
    x = centred({"vision": vision, "audio": audio})
    assert np.linalg.norm(x, axis=1) == pytest.approx(np.ones(30), abs=1e-5)
    assert set(find_duplicates(x, {"vision": vision, "audio": audio}, 0.95)) == {9}


# ---- quotas --------------------------------------------------------------------------------------

TONES = [{"tone": "Positive"}] * 80 + [{"tone": "Negative"}] * 15 + [{"tone": "Neutral"}] * 5


def counted(found, values=TONES):
    tones = [values[one.row]["tone"] for one in found.chosen]
    return {tone: tones.count(tone) for tone in ("Positive", "Negative", "Neutral")}


def test_quotas_are_filled():
    quotas = read_quotas(["tone=negative:40%-", "tone=Neutral:3-4"], 20)
    assert quotas == (Quota("tone", "negative", 8, None), Quota("tone", "Neutral", 3, 4))
    found = select({"vision": rows(100)}, TONES, 20, quotas)
    count = counted(found)
    assert count["Negative"] >= 8
    assert 3 <= count["Neutral"] <= 4
    assert sum(count.values()) == 20
    assert found.short == ()
    assert found.counts == {"tone=negative": count["Negative"], "tone=Neutral": count["Neutral"]}
    assert found.chosen[0].fills
    assert all(one.fills == () for one in found.chosen[11:])


def test_a_maximum_holds():
    quotas = read_quotas(["tone=Positive:-5"], 20)
    assert counted(select({"vision": rows(100)}, TONES, 20, quotas))["Positive"] == 5


def test_an_exact_number():
    quotas = read_quotas(["tone=Negative:7"], 20)
    assert counted(select({"vision": rows(100)}, TONES, 20, quotas))["Negative"] == 7


def test_what_cannot_be_filled_is_said_in_one_line():
    quotas = read_quotas(["tone=Neutral:8-", "tone=Positive:-4", "tone=Negative:-2"], 20)
    found = select({"vision": rows(100)}, TONES, 20, quotas)
    assert counted(found) == {"Positive": 4, "Negative": 2, "Neutral": 5}
    assert found.short == (
        "11 rows are chosen instead of 20: the quotas allow no other",
        "quota tone=Neutral: 5 rows instead of 8; 5 clips have it",
    )


def test_quotas_that_contradict_each_other_are_said():
    values = [{"tone": "Positive", "music": "yes"}] * 10 + [{"tone": "Neutral", "music": "no"}] * 10
    quotas = read_quotas(["tone=Positive:6-", "music=yes:-4"], 10)
    found = select({"vision": rows(20)}, values, 10, quotas)
    assert found.short == (
        "quota tone=Positive: 4 rows instead of 6; 10 clips have it, but other quotas leave no "
        "place for them",
    )
    assert len(found.chosen) == 10


def test_scarce_places_go_to_rows_that_fill_two_minimums():
    both, one, other = ({"tone": "Negative", "music": "yes"}, {"tone": "Negative", "music": "no"},
                        {"tone": "Neutral", "music": "yes"})  # fmt: skip
    values = [one] * 10 + [other] * 10 + [both] * 4
    quotas = read_quotas(["tone=Negative:4-", "music=yes:4-"], 4)
    found = select({"vision": rows(24)}, values, 4, quotas)
    assert found.short == ()
    assert found.counts == {"tone=Negative": 4, "music=yes": 4}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("tone", "is not of the form FIELD=VALUE:LOW-HIGH"),
        ("tone=Negative:", "is not of the form"),
        ("tone=Negative:-", "is not of the form"),
        ("mood=Negative:3", "mood is no field of a label; use voice_source, tone"),
        ("tone=Negativ:3", "tone is never Negativ; use one of Positive, Negative, Neutral"),
        ("music=true:-5", "music is never true; use one of yes, no"),
        ("tone=Negative:5-3", "at least 5 and at most 3"),
        ("tone=Negative:1.5-", "1.5 is not a number of rows"),
        ("tone=Negative:1.2.3-", "'1.2.3' is not a number"),
        ("tone=Negative:21-", "the minimums of tone are 21 rows together, and count is 20"),
        ("tone=Negative:1-,tone=negative:2-", "tone=negative has a quota already"),
    ],
)
def test_wrong_quotas(text, match):
    with pytest.raises(UserError, match=match):
        read_quotas(text.split(","), 20)


@pytest.mark.parametrize(
    ("text", "count", "low", "high"),
    [
        ("tone=Neutral:10%-", 5, 1, None),  # none would be less than a tenth
        ("tone=Neutral:20%-", 7, 2, None),
        ("tone=Neutral:-20%", 7, 0, 1),  # two would be more than a fifth
        ("tone=Neutral:7%-29%", 100, 7, 29),
        ("tone=Neutral:50%", 7, 4, 4),
    ],
)
def test_shares_hold_in_whole_rows(text, count, low, high):
    (quota,) = read_quotas([text], count)
    assert (quota.low, quota.high) == (low, high)


@pytest.mark.parametrize(
    ("label", "fault"),
    [
        ({"sound": "barks"}, "sound is 'barks', not the answers of a pass"),
        ({"sound": {"tone": None}}, "sound.tone is None"),
        ({"sound": {"tone": ["Neutral"]}}, r"sound.tone is \['Neutral'\]"),
        ({"sound": {"music": "yes"}}, "sound.music is 'yes'"),
        ({"picture": {"text": 1}}, "picture.text is 1"),
    ],
)
def test_a_label_of_another_form(label, fault):
    with pytest.raises(ValueError, match=fault):
        attributes(label)


def test_attributes_of_a_label():
    label = {
        "sound": to_json(Sound("Narration", "Neutral", True, (), "A man.")),
        "picture": to_json(Picture(("SALE",), (), "", "A shop.")),
    }
    assert attributes(label) == {
        "voice_source": "Narration", "tone": "Neutral", "music": "yes", "sounds": "no",
        "text": "yes", "objects": "no", "background_change": "no",
    }  # fmt: skip
    assert attributes({"both": {"caption": "x"}}) == {}
