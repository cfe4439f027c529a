"""ugc_jax.label.verify and statements: what is right passes, what is wrong is named."""

import asyncio
import contextlib

import pytest
from fake_judge import FakeJudge

from ugc_jax.data import annotation
from ugc_jax.data.annotation import Both, Picture, Sound, SoundEvent, Thing
from ugc_jax.judge.client import Judge, JudgeConfig
from ugc_jax.label import statements, verify
from ugc_jax.label.settings import VerifyConfig
from ugc_jax.label.verify import Answers
from ugc_jax.toy import world
from ugc_jax.toy.teacher import STATED, Asked, ErrorModel, answer

CAPTION = (
    "In a bright kitchen, a woman in a white shirt slices two red tomatoes while upbeat music "
    'plays softly. The text "EASY DINNER" is shown at the top. She speaks to the viewer in a '
    "calm voice."
)
SOUND = Sound(
    "In-Video Voice",
    "Positive",
    True,
    (SoundEvent("soft music"),),
    "Soft music plays; a woman talks.",
)
PICTURE = Picture(
    ("EASY DINNER",), (Thing("shirt", 1, "white"), Thing("tomatoes", 2, "red")), "",
    "A woman in a white shirt slices two red tomatoes.",
)  # fmt: skip
CONFIG = VerifyConfig(min_words=10)


def alone(caption: str, **config) -> list[str]:
    """The checks that a caption fails by itself."""
    answers = Answers(SOUND, PICTURE, Both(caption))
    found = verify.check_alone(answers, VerifyConfig(**{"min_words": 10} | config))
    return [fault.check for fault in found.faults]


def across(caption: str, sound=SOUND, picture=PICTURE, **rest) -> list[str]:
    answers = Answers(sound, picture, Both(caption), **rest)
    return [fault.detail for fault in verify.check_by_rules(answers, CONFIG).faults]


def test_a_right_caption_passes():
    assert alone(CAPTION) == []
    assert across(CAPTION) == []
    checks = verify.check_alone(Answers(SOUND, PICTURE, Both(CAPTION)), CONFIG).checks
    assert checks == {"words": 37, "distinct": 1.0, "language": "en"}


@pytest.mark.parametrize(
    ("caption", "config", "check"),
    [
        (CAPTION[:-10], {}, "complete"),
        (CAPTION, {"min_words": 38}, "length"),
        (CAPTION, {"max_words": 36}, "length"),
        ("The man walks on and on. " * 10, {}, "repetition"),
        (CAPTION, {"language": "de"}, "language"),
        (
            "Eine Frau schneidet in einer hellen Küche zwei rote Tomaten und spricht dabei ruhig "
            "in die Kamera.",
            {},
            "language",
        ),
        ("I'm sorry, but I cannot describe this video for you today.", {}, "refusal"),
        ("Error: the request timed out, and no caption was made at all here.", {}, "refusal"),
    ],
)
def test_what_a_caption_must_hold_alone(caption, config, check):
    assert alone(caption, **config) == [check]


def test_any_language():
    assert alone("一个女人在明亮的厨房里切两个红色的番茄。", language=None) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("white shirt", "black shirt", "the picture alone / the caption: shirt: white / black"),
        ("two red", "two green", "tomatoes: red / green"),
        ("two red", "three red", "tomatoes: two / three"),
        ("EASY DINNER", "LATE LUNCH", "text on the screen: EASY DINNER / LATE LUNCH"),
        ('The text "EASY DINNER" is shown at the top.', "No text is shown.", "EASY DINNER / none"),
        ("upbeat music plays softly", "there is no music", "music: heard / none"),
        ("softly", "loudly", None),  # of "plays": the draft says it of "music"
    ],
)
def test_contradictions_with_the_passes(old, new, said):
    found = across(CAPTION.replace(old, new))
    assert [said in one for one in found] == ([] if said is None else [True])


def test_what_only_one_says_is_no_contradiction():
    assert across("A woman cooks, and talks about her dinner while music plays.") == []
    assert across(CAPTION, picture=Picture(("easy dinner!",), (), "", "A woman cooks.")) == []


def test_a_clip_without_sound_or_picture():
    assert across(CAPTION, sound=None) == []
    assert across(CAPTION, picture=None) == []


def test_the_background():
    stays = Picture((), (), "", "A man stands before a grey background that stays.")
    turns = Picture((), (), "It turns blue.", "A man stands before a background.")
    assert across("The background is grey and turns blue.", picture=stays)
    assert across("The background is grey and stays.", picture=turns)
    assert not across("The background is grey and turns blue.", picture=turns)
    assert not across("In the background, a man turns around.", sound=None, picture=stays)


def test_the_order_of_two_things():
    things = {"circle", "beeps"}
    first = {("circle", "beeps")}
    for text in (
        "A red circle, then slow beeps.",
        "Slow beeps can be heard after the circle appears.",
        "The circle appears before the slow beeps.",
    ):
        assert statements.order(text, things) == first
        assert not statements.order_differences(text, "A circle, then beeps.", things)
        (one,) = statements.order_differences(text, "Beeps, then a circle.", things)
        assert one.said == "order: circle before beeps / beeps before circle"


def test_two_answers_against_one_decide():
    """What the witness says only once is its own mistake."""
    caption = CAPTION.replace("white shirt", "black shirt")
    black = Picture(PICTURE.text, (Thing("shirt", 1, "black"),), "", "A woman in a black shirt.")
    assert across(caption, earlier={"picture": black}) == []
    assert len(across(caption, earlier={"picture": PICTURE})) == 1


def test_every_single_error_of_the_world_but_the_order_is_named():
    """Each attribute wrong in one pass, in every phrasing; a right caption is never flagged."""
    model = ErrorModel(0.0)
    for number in range(60):
        truth = world.make_clip("train", number)[1]
        for phrasing in range(len(world.PHRASINGS)):
            right = model.told(Asked(number, "both", 0, 0), truth)
            assert not toy_faults(truth, right, right, phrasing)
            for name in truth:
                others = [one for one in world.VALUES[name] if one != truth[name]]
                if name in ("background", "change"):
                    others = [
                        one for one in others if one not in (truth["background"], truth["change"])
                    ]
                wrong = dict(right) | {name: others[number % len(others)]}
                faults = toy_faults(truth, wrong, right, phrasing)
                witnesses = {fault.witness for fault in faults}
                expected = {s for s in ("sound", "picture") if name in STATED[s]} | {"second"}
                assert witnesses >= expected, (name, phrasing, faults)


def toy_faults(truth, told, second, phrasing):
    def stage(name):
        picked = {key: truth[key] for key in STATED[name]}
        return annotation.read(name, answer(Asked(0, name, 0, 0), picked, 0))

    both = annotation.read("both", answer(Asked(0, "both", 0, 0), told, phrasing))
    other = (phrasing + 1) % len(world.PHRASINGS)
    second = annotation.read("both", answer(Asked(0, "both", 1, 0), second, other))
    answers = Answers(stage("sound"), stage("picture"), both, second)
    return verify.check_by_rules(answers, CONFIG).faults


async def judged(judge_answers, answers, **config):
    def reply(question):
        return judge_answers["both" if "Two captions" in question else "x"]

    with contextlib.ExitStack() as stack:
        server = FakeJudge(reply)
        stack.callback(server.stop)
        judge = Judge(JudgeConfig(model="m", base_url=server.url, retries=0, malformed=0))
        try:
            return await verify.check_by_judge(answers, VerifyConfig(**config), judge)
        finally:
            await judge.close()


@pytest.mark.parametrize(
    ("verdicts", "share", "faults"),
    [
        (["same", "same"], 1.0, []),
        (["same", "contradicted"], 0.5, ["second"]),
        (["same", "absent", "absent"], 0.333, ["second"]),
        (["same", "same", "absent"], 0.667, []),
    ],
)
def test_an_llm_compares(verdicts, share, faults):
    said = [{"text": f"statement {n}", "verdict": one} for n, one in enumerate(verdicts)]
    answers = Answers(SOUND, PICTURE, Both(CAPTION), Both(CAPTION))
    replies = {"both": {"statements": said}, "x": {"sound": [], "picture": []}}
    verdict = asyncio.run(judged(replies, answers))
    assert [fault.witness for fault in verdict.faults] == faults
    assert verdict.checks == {"contradictions": "m", "second": "m", "agreement": share}
    replies["x"] = {"sound": ["it says no music"], "picture": []}
    verdict = asyncio.run(judged(replies, Answers(SOUND, PICTURE, Both(CAPTION))))
    assert [str(fault) for fault in verdict.faults] == [
        "contradiction: the sound alone / the caption: it says no music"
    ]
