"""ugc_jax.annotate.agreement: agreement by field, by annotator, disputes, what is agreed on."""

import pytest

from ugc_jax.annotate import agreement
from ugc_jax.annotate.agreement import measure, merge, similarity
from ugc_jax.annotate.answers import Answer
from ugc_jax.data.annotation import Both, Picture, Sound, SoundEvent, Thing

HEARD = Sound("Narration", "Neutral", True, (), "A man speaks slowly over music.")
SEEN = Picture(("SALE",), (Thing("car", 2, "red", "left"),), "", "Two red cars.")


def heard(clip, annotator, seconds=10.0, **fields):
    return Answer(clip, "sound", annotator, HEARD_WITH(**fields), seconds)


def HEARD_WITH(**fields):
    return Sound(**{name: getattr(HEARD, name) for name in vars(HEARD)} | fields)


def field(report, name, stage="sound"):
    return next(one for one in report.fields if (one.stage, one.field) == (stage, name))


def test_alpha_of_the_published_example():
    # Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), C: three observers with
    # missing data; nominal alpha 0.691.
    rows = {
        "A": "* * * * * 3 4 1 2 1 1 3 3 * 3",
        "B": "1 * 2 1 3 3 4 3 * * * * * * *",
        "C": "* * 2 1 3 4 4 * 2 1 1 3 3 * 4",
    }
    said = [
        heard(f"clip{number}", name, tone=label)
        for name, row in rows.items()
        for number, label in enumerate(row.split())
        if label != "*"
    ]
    assert field(measure(said), "tone").alpha == pytest.approx(0.691, abs=5e-4)


def test_options_agree_or_not():
    said = [
        heard("x", "ann", tone="Positive"),
        heard("x", "ben", tone="Positive"),
        heard("x", "cid", tone="Negative"),
        heard("y", "ann", tone="Neutral"),
        heard("y", "ben", tone="Neutral"),
    ]
    report = measure(said)
    assert report.clips["x", "sound"]["tone"] == pytest.approx(1 / 3)  # one of three pairs
    assert report.clips["y", "sound"]["tone"] == 1.0
    tone = field(report, "tone")
    assert (tone.mean, tone.clips) == (pytest.approx(2 / 3), 2)
    assert field(report, "music") == ("sound", "music", 1.0, 2, None)  # chance explains it all


def test_each_annotator_against_the_others():
    said = [
        heard("x", "ann", 10.0, tone="Positive"),
        heard("x", "ben", 20.0, tone="Positive"),
        heard("x", "cid", 30.0, tone="Negative"),
        heard("z", "cid", 50.0),  # alone: of it only the time counts
    ]
    tones = {one.annotator: one for one in measure(said).annotators if one.field == "tone"}
    assert {name: one.mean for name, one in tones.items()} == {"ann": 0.5, "ben": 0.5, "cid": 0.0}
    assert {name: one.seconds for name, one in tones.items()} == {"ann": 10, "ben": 20, "cid": 40}
    assert tones["cid"].clips == 1


def test_the_last_answer_of_an_annotator_counts():
    said = [heard("x", "ann", tone="Negative"), heard("x", "ben"), heard("x", "ann")]
    assert measure(said).clips["x", "sound"]["tone"] == 1.0


def test_no_agreement_without_a_second_answer():
    assert measure([heard("x", "ann")]) == ((), (), {})
    assert measure([]) == ((), (), {})


def test_disputes_by_the_threshold():
    other = Answer("y", "picture", "ben", Picture((), SEEN.objects, "", SEEN.caption))
    said = [
        heard("x", "ann"),
        heard("x", "ben", tone="Negative", caption="Birds."),
        Answer("y", "picture", "ann", SEEN),
        other,
        heard("z", "ann"),
        heard("z", "ben"),
    ]
    report = measure(said)
    assert report.disputes() == (
        ("x", "sound", {"tone": 0.0, "caption": 0.0}),
        ("y", "picture", {"text": 0.0}),
    )
    assert report.disputes({"tone": 0.5}) == (("x", "sound", {"tone": 0.0}),)
    assert report.disputes(0.0) == ()
    assert [one.clip for one in report.disputes(1.0)] == ["x", "y"]


def test_on_screen_texts_match_one_to_one_and_forgive_a_letter():
    assert similarity("text", ("BIG SALE today",), ("big sale todey!",)) == 1.0
    assert similarity("text", ("SALE", "OPEN"), ("SALE",)) == pytest.approx(2 / 3)
    assert similarity("text", ("SALE", "SALE"), ("SALE",)) == pytest.approx(2 / 3)
    assert similarity("text", ("SALE",), ("CLOSED",)) == 0.0
    assert similarity("text", (), ()) == 1.0
    assert similarity("text", (), ("SALE",)) == 0.0
    assert similarity("text", ("!!",), ("??",)) == 0.0  # punctuation alone is compared as it is


def test_objects_agree_by_name_count_colour_and_position():
    car = Thing("car", 2, "red", "left")
    assert similarity("objects", (car,), (Thing("Car", 2, "Red", "left"),)) == 1.0
    assert similarity("objects", (car,), (Thing("car", 3, "red", "left"),)) == 0.75
    assert similarity("objects", (car,), (Thing("car", 2, "blue", "left"),)) == 0.75
    assert similarity("objects", (car,), (Thing("dog", 2, "red", "left"),)) == 0.0
    # The order does not count, and one that is missing on one side does.
    dog = Thing("dog")
    assert similarity("objects", (car, dog), (dog, car)) == 1.0
    assert similarity("objects", (car, dog), (dog,)) == pytest.approx(2 / 3)


def test_sounds_of_one_name_at_other_times_differ():
    bell = SoundEvent("bell", 1.0, 2.0)
    assert similarity("sounds", (bell,), (SoundEvent("bell", 1.4, 2.2),)) == 1.0
    assert similarity("sounds", (bell,), (SoundEvent("bell", 5.0, 6.0),)) == 0.0
    assert similarity("sounds", (bell,), (SoundEvent("bell"),)) == 1.0  # its time is not known
    assert similarity("sounds", (bell,), (SoundEvent("drum", 1.0, 2.0),)) == 0.0


def test_captions_agree_as_rouge_l():
    from rouge_score.rouge_scorer import RougeScorer

    a, b = "the cat sat on the mat today", "a cat sat on a red mat"
    expected = RougeScorer(["rougeL"]).score(a, b)["rougeL"].fmeasure
    assert similarity("caption", a, b) == pytest.approx(expected)
    assert similarity("background_change", "", "It turns dark.") == 0.0
    assert similarity("background_change", "", "") == 1.0


def test_merge_takes_the_majority_and_the_most_central():
    stages = [
        HEARD_WITH(tone="Negative", music=False, caption="Birds."),
        HEARD_WITH(caption="A man speaks slowly over soft music."),
        HEARD_WITH(),
    ]
    merged = merge(stages)
    assert (merged.tone, merged.music) == ("Neutral", True)
    assert merged.caption == "A man speaks slowly over soft music."
    assert merge([Both("a b c"), Both("x")]) == Both("a b c")  # no majority: the first
    with pytest.raises(ValueError, match="no answer"):
        merge([])


def test_every_field_has_a_threshold():
    from ugc_jax.data.annotation import STAGES, fields_of

    assert set(agreement.DISPUTED) == {name for stage in STAGES for name in fields_of(stage)}
