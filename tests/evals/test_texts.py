"""ugc_jax.evals.texts: what is no answer, without taking a caption for it."""

import pytest

from ugc_jax.evals.texts import is_error, is_refusal, is_refused_task, missing


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that request.",
        "I’m sorry, I can’t help with identifying people in this video.",
        "I cannot watch videos.",
        "I am unable to view the video.",
        "Unable to process the video.",
        "Unfortunately, I cannot process video files.",
        "As an AI language model, I don't have access to the video.",
        "I apologize, but I am not able to describe this content.",
        "抱歉，我无法查看视频。",
    ],
)
def test_refused_tasks(text):
    assert is_refused_task(text)
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "Sorry, a song by Justin Bieber, plays while a woman dances.",
        "A man says, \"I'm sorry, I can't help you with the video.\"",
        "The speaker cannot be seen; the video shows a street.",
        "I can't stop the feeling plays over a video of a dog.",
        "We won't back down, sings the crowd.",
        "I'm sorry, I can't tell you what to do. " * 20,
        "",
    ],
)
def test_captions_that_tell_of_people(text):
    assert not is_refused_task(text)


def test_marks_of_missing_values():
    marks = ["nan", "NaN", " None\n", "null", "<NA>", "undefined", "NULL", "NaT", "#N/A"]
    assert [missing(text) for text in marks] == ["NaN", "NaN"] + ["null"] * 7
    assert [missing(text) for text in ("none", "Nan", "null and void", "")] == [None] * 4


def test_messages_of_programs():
    messages = ["Error: rate limit", "[ERROR]: no video", "RuntimeError: CUDA out of memory"]
    messages += ["Traceback (most recent call last):\n", "<html><body>502", "HTTP 429 Too Many"]
    assert all(map(is_error, messages))
    captions = ["Error messages fill a screen.", "A page says: Error: 404.", "Html is taught.", ""]
    assert not any(map(is_error, captions))
