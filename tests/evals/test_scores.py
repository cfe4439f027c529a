"""ugc_jax.evals.scores: released score files give the published table, and failures no zeros."""

import json
import statistics

import pytest

from ugc_jax.errors import UserError
from ugc_jax.evals.scores import RELEASED, TAKEN_FOR, read_scores


@pytest.fixture
def write(tmp_path):
    def write(content) -> str:
        path = tmp_path / "scores.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def ratings(visual, audio, details):
    return {"visual_score": visual, "audio_score": audio, "details_score": details}


# Table 2 and the model zoo, to the digits that the files give; the paper cuts 55.70 to 55.6.
@pytest.mark.parametrize(
    ("name", "score", "visual", "audio", "details"),
    [
        ("omni_baseline_4o", 52.18, 55.70, 48.23, 52.61),
        ("1k_sft_4o", 58.96, 58.40, 61.42, 57.06),
        ("UGC_Videocaptioner_4o", 60.01, 59.38, 62.38, 58.26),
    ],
)
def test_released_files(shared_data, name, score, visual, audio, details):
    path = shared_data / f"ugc_videocap/results/caption_score/{name}.json"
    samples, notes, protocol = read_scores(path)
    assert len(samples) == 999
    assert notes == [TAKEN_FOR]  # and the file's own averages are the same
    assert protocol == RELEASED
    wanted = {"score": score, "visual": visual, "audio": audio, "details": details}
    for column, value in wanted.items():
        assert round(statistics.fmean(sample[column] for sample in samples), 2) == value


def test_failed_calls_are_no_zeros(write):
    bad = [0, None, 6, -1, "4", True, float("nan"), [4]]
    rows = {"good": ratings(4, 3, 5)} | {str(one): ratings(4, one, 4) for one in bad}
    rows |= {"short": {"visual_score": 4}, "null": None, "list": [4, 4, 4]}
    samples = read_scores(write({"evaluations": rows})).samples
    good, *others = samples
    assert good == {"id": "good", "score": 80, "visual": 80, "audio": 60, "details": 100}
    assert len(others) == len(rows) - 1
    assert all(sample.keys() == {"id", "failure", "note"} for sample in others)
    assert others[0] == {
        "id": "0", "failure": "judge", "note": "audio is 0: not a rating from 1 to 5",
    }  # fmt: skip


def test_averages_that_count_zeros_are_told(write):
    rows = {"a": ratings(4, 4, 4), "b": ratings(0, 0, 0)}
    overall = {
        "overall_average_percent": 40.0,
        "overall_visual_average": 2.0,
        "overall_audio_average": 4.0,
    }
    assert read_scores(write({"evaluations": rows} | overall)).notes == [
        TAKEN_FOR,
        "score: the score file states 40.00, its clips give 80.00",
        "visual: the score file states 40.00, its clips give 80.00",
    ]


def test_who_judged_is_known_of_the_released_form_alone(write):
    rows, average = {"a": ratings(4, 4, 4)}, {"overall_visual_average": 4.0}
    assert read_scores(write({"evaluations": rows} | average)).protocol == RELEASED
    for content in (rows, rows | average, {"evaluations": rows}):
        _, notes, protocol = read_scores(write(content))
        assert notes == []
        assert protocol == {"judge": None, "temperature": None, "prompt": None}


def test_clips_by_their_files(write):
    names = {"clips/a.mp4": ratings(4, 4, 4), "b\ud83d": ratings(4, 4, 4)}
    assert [sample["id"] for sample in read_scores(write(names)).samples] == ["a", "b�"]
    with pytest.raises(UserError, match="has the clip 'a' twice"):
        read_scores(write(names | {"a": ratings(4, 4, 4)}))


def test_a_byte_order_mark(write):
    assert read_scores(write("\ufeff" + json.dumps({"a": ratings(4, 4, 4)}))).samples


def test_plain_files_and_other_tasks(write):
    path = write({"a": {"visual": 2.5, "audio": 3, "details": 4}, "overall_visual_average": 2.5})
    assert read_scores(path).samples[0]["visual"] == 50
    assert read_scores(path, "audio_caption").samples == [
        {"id": "a", "score": 70, "audio": 60, "details": 80}
    ]
    for task in ("objects", "tone"):
        with pytest.raises(UserError, match=f"for {task}, only for audio_caption, visual_caption"):
            read_scores(path, task)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "not readable as JSON"),
        ('{"a":' * 99_999, "not readable as JSON"),
        ([], "expected a JSON object"),
        ({}, "has no usable ratings"),
        ({"evaluations": []}, "has no usable ratings"),
        ({"a": ratings(80, 60, 70)}, "has no usable ratings; give .* numbers from 1 to 5"),
        ('{"a": {"visual": 1}, "a": {"visual": 2}}', "has 'a' twice"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_files_that_cannot_be_used(write, content, fault):
    path = write(content)
    with pytest.raises(UserError, match=fault) as caught:
        read_scores(path)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json: no such file; give a score file"):
        read_scores(tmp_path / "nowhere.json")
