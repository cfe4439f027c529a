"""ugc_jax.rl.rewards.local: each reward on cases that are worked out by hand."""

import json
import re

import pytest

from ugc_jax.errors import UserError
from ugc_jax.rl.rewards import local as local_rewards
from ugc_jax.rl.rewards.local import LocalConfig, distinct_runs, length_band, rouge_l


def reward(name, completion, reference=None, metadata=None, **parameters):
    function = local_rewards.local_functions(LocalConfig(**parameters))[name]
    return function("What is it?", completion, reference, metadata or {})


@pytest.mark.parametrize(
    ("count", "score"),
    [(0, 0), (5, 0.5), (10, 1), (15, 1), (20, 1), (30, 0.5), (40, 0), (100, 0)],
)
def test_length_band(count, score):
    assert length_band(count, 10, 20) == pytest.approx(score)
    words = " ".join(["word"] * count)
    band = dict(length_low=10, length_high=20)
    assert reward("length", words, **band) == pytest.approx(score)
    tokens = {"completion_tokens": count}
    assert reward("length", "", metadata=tokens, length_unit="tokens", **band) == pytest.approx(
        score
    )


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("A cat sat on the mat.", 1),
        ("a b a b a b", 2 / 5),  # ab ba ab ba ab
        ("a B, A b", 2 / 3),
        ("cat", 1),
        ("...", 0),
        ("😀" * 99, 0),
        ("", 0),
    ],
)
def test_repetition(text, score):
    assert distinct_runs(text, 2) == pytest.approx(score)
    assert reward("repetition", text, repetition_words=2) == pytest.approx(score)


@pytest.mark.parametrize("unit", [
    "的红色", "ハハハ", "ฮ่า", "ဟား", "하하", "ha", "a", "haha ", "7", "हा", "ـ", "_", "ｗ",
    "é", "e\u0301",
    "😀", "😀 ", "👨‍👩‍👧‍👦", "!", ". ", "?!", "—", "。", "\n", " ", "\u200b", "\u0301",
    "🇹🇭", "1️⃣",
    "=-", "|",
])  # fmt: skip
@pytest.mark.parametrize("before", ["", "A cat sleeps on the mat. ", "一个女人在厨房里做饭。"])
def test_loops_of_any_kind(unit, before):
    text = before + unit * 2000
    assert distinct_runs(text, 4) < 0.1 or not text.strip()
    assert distinct_runs(f"{text} Then it ends.", 4) < 0.1


@pytest.mark.parametrize("text", [
    "一个女人在厨房里做饭，背景里有轻柔的音乐，桌子上放着红色的苹果。",
    "彼女は台所で料理をしていて、背景には静かな音楽が流れています。",
    "ผู้หญิงคนหนึ่งกำลังทำอาหารในครัว",
    "Die Donaudampfschifffahrtsgesellschaftskapitänsmütze liegt auf dem Tisch.",
    "Oh nooooooooo! He laughs: hahahahahahaha!!! 😀😀😀😀 — “Wow…” ...",
    "See https://example.com/watch?v=dQw4w9WgXcQ #oneverylonghashtagforwhichthereisnoreason",
    "A woman cooks | a man sings ---------- the end.",
])  # fmt: skip
def test_ordinary_text_does_not_repeat_itself(text):
    assert distinct_runs(text, 4) > 0.95


def test_repetition_of_english_is_as_ever(shared_data):
    lines = (shared_data / "ugc_videocap/train/grpo_1k.jsonl").read_text("utf-8").splitlines()
    for text in (json.loads(line)["solution"] for line in lines):
        if text.isascii():
            found = re.findall(r"\w+", text.lower())
            runs = [tuple(found[i : i + 4]) for i in range(len(found) - 3)]
            assert distinct_runs(text, 4) == len(set(runs)) / len(runs)


@pytest.mark.parametrize(
    ("text", "reason", "score"),
    [
        ("A cat. A dog!", "stop", 1),
        ("He says “no.” ", "stop", 1),
        ("猫がいる。", "stop", 1),
        ("「猫がいる。」", "stop", 1),
        ("猫がいる", "stop", 0),
        ("एक बिल्ली है।", "stop", 1),
        ("هل هذه قطة؟", "stop", 1),
        ("ကြောင်။", "stop", 1),
        ("มีแมวอยู่", "stop", 1),  # Thai has no full stop
        ("A cat. A dog", "stop", 0),
        ("A cat.", "length", 0),
        ("", "stop", 0),
    ],
)
def test_format_by_default(text, reason, score):
    assert reward("format", text, metadata={"finish_reason": reason}) == score


def test_format_by_pattern():
    pattern = r"<seen>.+</seen>\s*<heard>.+</heard>"
    assert reward("format", "<seen>a\nb</seen>\n<heard>c</heard>", format_pattern=pattern) == 1
    assert reward("format", "Well: <seen>a</seen><heard>c</heard>", format_pattern=pattern) == 0


def test_rouge():
    assert rouge_l("The cat sat.", "the cat sat") == 1
    assert rouge_l("the cat", "the dog barks") == pytest.approx(2 * 1 / 5)
    assert rouge_l("", "the dog") == rouge_l("", "") == 0
    assert reward("rouge", "the cat", "the dog barks") == pytest.approx(0.4)


def test_rouge_of_other_scripts():
    assert rouge_l("一个女人在厨房里做饭", "一个女人在厨房里跳舞。") == pytest.approx(0.8)
    assert rouge_l("ผู้หญิงทำอาหาร", "ผู้หญิงร้องเพลง") > 0.4
    assert rouge_l("बिल्ली सोती है।", "बिल्ली खाती है") == pytest.approx(2 / 3)
    assert rouge_l("cafe\u0301 ＡＢＣ", "café abc") == 1


def test_length_of_other_scripts():
    band = dict(length_low=10, length_high=20)
    assert reward("length", "一个女人在厨房里做饭。", **band) == 1
    assert reward("length", "一个女人做饭", **band) == pytest.approx(0.6)
    assert reward("length", "बिल्ली सोती है।", **band) == pytest.approx(0.3)


def test_rouge_equals_the_packages(shared_data):
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    lines = (shared_data / "ugc_videocap/train/grpo_1k.jsonl").read_text("utf-8").splitlines()
    captions = [json.loads(line)["solution"] for line in lines[:40]]
    captions = [text for text in captions if text.isascii() and "_" not in text]
    assert len(captions) > 10
    for text, reference in zip(captions, captions[1:], strict=False):
        expected = scorer.score(reference, text)["rougeL"].fmeasure
        assert rouge_l(text, reference) == pytest.approx(expected, rel=1e-12)


def test_dialogue():
    reference = 'A man says, "Hello there." A girl answers, "Go away!"'
    assert reward("dialogue", reference, reference) == 1
    assert reward("dialogue", 'A man says, "Hello there."', reference) == pytest.approx(2 / 3)
    lines = {"dialogue": [{"speaker": "the man", "text": "Hello there"}]}
    assert reward("dialogue", 'A man says, "Hello there."', None, lines) == 1
    assert reward("dialogue", "Nobody speaks.", None, {"dialogue": []}) == 1


@pytest.mark.parametrize("name", ["rouge", "dialogue"])
def test_what_cannot_be_told_is_no_zero(name):
    with pytest.raises(ValueError, match="the row has no"):
        reward(name, "A cat.")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"length_low": 0},
            r"^length_low is 0 .* length_high is 400; give 0 <",
        ),
        ({"length_low": 50, "length_high": 40}, "length_low is 50 and .*length_high is 40; give"),
        ({"repetition_words": 0}, r"^repetition_words is 0; use 1 or more"),
        ({"format_pattern": "("}, r"^format_pattern '\(' is not a regular expression"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    with pytest.raises(UserError, match=message):
        LocalConfig(**parameters)
