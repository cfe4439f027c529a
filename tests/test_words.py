"""ugc_jax.words: what is a word, in each script."""

import json
import re
import time
import unicodedata

import pytest

from ugc_jax.words import count_words, spaced_words, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Well-known: the CAFÉ's 2 cats, a_b.", "well known the café s 2 cats a_b"),
        ("一个女人，在做饭。", "一 个 女 人 在 做 饭"),
        ("我爱ABC公司 cat猫2024年", "我 爱 abc 公 司 cat 猫 2024 年"),
        ("時々ラーメンを", "時 々 ラ ー メ ン を"),
        ("한국어 텍스트입니다.", "한국어 텍스트입니다"),
        ("สวัสดีครับ ๒๐๒๔", "ส วั ส ดี ค รั บ ๒๐๒๔"),
        ("ພາສາ", "ພ າ ສ າ"),
        ("ភាសាខ្មែរ", "ភា សា ខ្មែ រ"),
        ("မြန်မာဘာသာ", "မြ န် မာ ဘာ သာ"),
        ("བོད་ཡིག", "བོ ད ཡི ག"),
        ("नमस्ते दुनिया है", "नमस्ते दुनिया है"),
        ("আমি বাংলায় গান গাই।", "আমি বাংলায় গান গাই"),
        ("مَشَال كتابٌ، آه", "مَشَال كتابٌ آه"),
        ("Приве́т, мир", "приве́т мир"),
        ("Good 😀👨‍👩‍👧 dog 1️⃣ ☺️!", "good dog 1"),
        ("ＡＢＣ１２ ｶﾞｷﾞ 𝐇𝐢", "abc12 ガ ギ hi"),
        ("co\u00adop می\u200cخواهم 葛\U000e0100", "coop میخواهم 葛"),
        ("İstanbul", "i̇stanbul"),
        ("…!? \u0301", ""),
    ],
)
def test_words(text, expected):
    assert words(text) == [unicodedata.normalize("NFKC", word) for word in expected.split()]


@pytest.mark.parametrize(
    "text", ["Ünïcödé café", "Tiếng Việt", "한국어", "ガギグ", "क़लम", "বাংলায়", "กำลัง", "Ελλάδα"]
)
def test_decomposed_text_has_the_same_words(text):
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        other = unicodedata.normalize(form, text)
        assert words(other) == words(text)
        assert count_words(other) == count_words(text)


def test_english_is_as_ever(shared_data):
    lines = (shared_data / "ugc_videocap/train/grpo_1k.jsonl").read_text("utf-8").splitlines()
    captions = [json.loads(line)["solution"] for line in lines]
    spaceless = re.compile(r"[\u0600-\u06ff\u0e00-\u0fff\u3005-\u9fff]")
    captions = [text for text in captions if not spaceless.search(text)]
    assert len(captions) > 900
    for text in captions:
        assert words(text) == re.findall(r"\w+", text.lower())
        assert spaced_words(text) == " ".join(words(text))
        assert count_words(text) == len(text.split())


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("A well-known cat - it's 3.5 m!", 7),
        ("一个女人，在做饭。", 7),
        ("我爱ABC公司，cat猫 。。。", 8),
        ("สวัสดี ครับ", 7),
        ("नमस्ते दुनिया", 2),
        ("한국어 텍스트", 2),
        ("🎉🎉 猫🎉", 2),
    ],
)
def test_count(text, count):
    assert count_words(text) == count


def test_spaced_words_keep_characters_together():
    assert spaced_words("“我爱，ABC公司！” He said") == "我爱 abc公司 he said"


@pytest.mark.parametrize(
    "unit",
    [
        "的红色",
        "a",
        "a ",
        "\u0301\u0323",
        "ก\u0e4c",
        "\u0e4c",
        " ",
        "a\u200d",
        "ខ្",
        "😀",
        "👨‍👩‍👧‍👦",
        "_.",
        "ｶﾞ",
    ],
)
def test_linear(unit):
    text = "a" + unit * (200_000 // len(unit))
    begun = time.perf_counter()
    words(text)
    count_words(text)
    spaced_words(text)
    assert time.perf_counter() - begun < 5  # quadratic: minutes
