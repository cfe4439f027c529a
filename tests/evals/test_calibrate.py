"""ugc_jax.evals.calibrate and its job: how far judges of the same captions agree."""

import json

import numpy as np
import pytest
from scipy.stats import kendalltau

from ugc_jax import cli
from ugc_jax.errors import UserError
from ugc_jax.evals.calibrate import Source, calibrate, calibration_table, tau_b


def result(name, judge, scores, task="final_caption", rows=None, **protocol):
    """A result of one task. scores: of clip 0, 1, ...; None: failed. rows: more facts of clips."""
    clips = [
        {"id": str(n), "prediction": f"{name} {n}"}
        | ({"failure": "judge"} if score is None else {"score": float(score)})
        | (rows[n] if rows else {})
        for n, score in enumerate(scores)
    ]
    columns = sorted({key for row in rows or () for key in row} & {"visual", "audio"})
    facts = {"score": 0.0, "n": 1, "failed": 0, "interval": None, "unit": "percent"}
    facts |= dict.fromkeys(columns, 0.0)
    facts |= {"intervals": dict.fromkeys(columns), "protocol": {"judge": judge, **protocol}}
    return {"version": 1, "name": name, "tasks": {task: facts}, "clips": {task: clips}}


def pair_of(*results, task="final_caption"):
    """The figures of the only pair of judges."""
    found = calibrate([Source(f"{n}.json", one) for n, one in enumerate(results)])
    (pair,) = found["tasks"][task]["pairs"]
    return pair


def test_by_hand():
    """Four clips, two models, two judges; too few for intervals."""
    pair = pair_of(
        result("m", "a", [20, 40, 60, 80]),  # 50
        result("n", "a", [40, 40, 40, 40]),  # 40
        result("m", "b", [40, 60, 60, 60]),  # 55
        result("n", "b", [60, 60, 60, 60]),  # 60
    )
    assert pair["judges"] == ["a", "b"]
    assert pair["means"] == {"m": [50, 55], "n": [40, 60]}
    assert pair["order"] == {"value": -1.0, "interval": None}
    assert pair["bias"]["value"] == pytest.approx(12.5)
    assert {m: f["value"] for m, f in pair["by_model"].items()} == {"m": 5.0, "n": 20.0}
    # equal: clip 2 of m; distances 20, 20, 0, 20 and four times 20
    assert pair["equal"]["value"] == pytest.approx(100 / 8)
    assert pair["distance"]["value"] == pytest.approx(17.5)
    # a prefers n, -, m, m; b prefers n, -, -, -: one clip on which both decide, and they agree
    assert pair["preference"] == {"value": 100.0, "interval": None, "n": 1}
    # m: 3 of 6 pairs are ties of b, the others agree; n is constant: no tau
    assert pair["clip"]["value"] == pytest.approx(3 / np.sqrt(6 * 3))


def test_failures_and_other_captions_are_left_out_and_counted():
    first = result("m", "a", [20, 40, None, 80, 100])
    second = result("m", "b", [20, None, 60, 60, 0])
    second["clips"]["final_caption"][4]["prediction"] = "another caption"
    pair = pair_of(first, second)
    assert (pair["clips"], pair["strangers"], pair["left_out"]) == (2, 1, 0)
    assert pair["means"] == {"m": [50, 40]}
    assert pair["order"] is None  # of one model
    assert pair["preference"] is None
    third, fourth = result("n", "a", [0, 0, 0, None]), result("n", "b", [0, 0, 0, 0])
    pair = pair_of(first, second, third, fourth)
    assert (pair["clips"], pair["left_out"]) == (1, 3)  # clip 0 alone is scored in all four
    text = calibration_table(calibrate([Source("", one) for one in (first, second, third, fourth)]))
    assert "3 clips that not all results have scored are left out" in text
    assert "1 ids with other captions" in text


def test_no_clip_in_common():
    pair = pair_of(result("m", "a", [1, None]), result("m", "b", [None, 1]))
    assert (pair["clips"], pair["bias"], pair["order"]) == (0, None, None)


def test_weights_and_groups_as_in_the_scores():
    """Errors are in percent of events, and questions about one video are drawn together."""
    rows = [{"weight": 9}, {}]
    pair = pair_of(
        result("m", "a", [10, 90], rows=rows, task="video_salmonn_2"),
        result("m", "b", [20, 90], rows=rows, task="video_salmonn_2"),
        task="video_salmonn_2",
    )
    assert pair["means"]["m"] == pytest.approx([18, 27])
    assert pair["bias"]["value"] == pytest.approx(9)
    rng = np.random.default_rng(0)
    gaps = np.repeat(rng.normal(5, 10, 30), 4)  # equal in the four questions of a video
    clips = [{"clip": str(n // 4)} for n in range(120)]
    zeros = np.zeros(120)
    grouped = pair_of(result("m", "a", zeros, rows=clips), result("m", "b", gaps, rows=clips))
    alone = pair_of(result("m", "a", zeros), result("m", "b", gaps))
    widths = [np.diff(one["bias"]["interval"])[0] for one in (grouped, alone)]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.15)


def test_columns_of_clips_that_have_them():
    rows = [{"visual": 10.0}, {"visual": 20.0, "audio": 5.0}]
    more = [{"visual": 30.0}, {"visual": 20.0, "audio": 6.0}]
    pair = pair_of(result("m", "a", [1, 1], rows=rows), result("m", "b", [1, 1], rows=more))
    values = {name: figure["value"] for name, figure in pair["columns"].items()}
    assert values == {"audio": 1.0, "visual": 10.0}


def test_tau_b_is_that_of_scipy():
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 4, (2, 50, 6)).astype(float)  # with ties
    expected = [kendalltau(a, b).statistic for a, b in zip(x, y, strict=True)]
    assert tau_b(x, y) == pytest.approx(expected, nan_ok=True)


def test_intervals_hold_the_truth():
    """A judge that adds 3 and noise; the interval is that of the textbook."""
    rng = np.random.default_rng(2)
    scores = rng.uniform(20, 80, 400)
    pair = pair_of(result("m", "a", scores), result("m", "b", scores + 3 + rng.normal(0, 10, 400)))
    low, high = pair["bias"]["interval"]
    assert low < 3 < high
    assert high - low == pytest.approx(2 * 1.96 * 10 / 20, rel=0.2)
    low, high = pair["clip"]["interval"]
    assert low < pair["clip"]["value"] < high


def test_judges_are_named_by_what_tells_them_apart():
    four = [
        result("m", "gpt", [1], temperature=0.0),
        result("m", "gpt", [1], temperature=1.0),
        result("m", "gemini", [1], temperature=0.0),
    ]
    found = calibrate([Source("", one) for one in four])["tasks"]["final_caption"]
    assert found["judges"] == [
        "judge gpt, temperature 0.0", "judge gpt, temperature 1.0", "gemini"
    ]  # fmt: skip
    assert len(found["pairs"]) == 3


def test_mistakes(tmp_path):
    def written(name, content):
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return str(path)

    a = written("a.json", result("m", "a", [1]))
    again = written("again.json", result("m", "a", [2]))
    other = written("other.json", result("n", "b", [2]))
    with pytest.raises(UserError, match=r"again\.json: has the scores of m by a for final_caption"):
        cli.run(["calibrate", a, again])
    with pytest.raises(UserError, match="no task has captions of one model that two judges"):
        cli.run(["calibrate", a, other])
    for protocol, told in (("x", "'x'"), ([1], r"\[1\]"), ({"judge": []}, r"{'judge': \[\]}")):
        damaged = result("m", "a", [20])
        damaged["tasks"]["final_caption"]["protocol"] = protocol
        expected = rf"damaged\.json: tasks\.final_caption\.protocol is {told}, not an object of"
        with pytest.raises(UserError, match=expected):
            cli.run(["calibrate", a, written("damaged.json", damaged)])
    with pytest.raises(UserError, match="is one result"):
        cli.run(["calibrate", a])
    with pytest.raises(UserError, match="judges: 1 names for 2 results"):
        cli.run(["calibrate", "--judges", "x", a, again])


def test_the_released_scores(shared_data, tmp_path, capsys):
    """Three models by the released judge, and by two made of it: one kinder, one upside down."""
    folder = shared_data / "ugc_videocap/results"
    said = {
        "UGC": ("UGC_Videocaptioner_4o", "UGC_VideoCaptioner_inference"),
        "SFT": ("1k_sft_4o", "1k_sft_inference"),
        "Omni": ("omni_baseline_4o", "omni_baseline"),
    }
    judges = {"kinder": lambda x: min(100, x + 20), "upside down": lambda x: 120 - x}
    columns = ("visual", "audio", "details")
    places, names = [], []
    for name, (scores, captions) in said.items():
        out = tmp_path / f"{name}.json"
        words = ["--scores", str(folder / f"caption_score/{scores}.json"), "--name", name]
        words += ["--qa", str(shared_data / "ugc_videocap/qa"), "--output", str(out)]
        words += ["--predictions", str(folder / f"caption/{captions}.jsonl")]
        assert cli.run(["evaluate", *words]) == 0
        places, names = [*places, out], [*names, "4o"]
        for judge, of in judges.items():
            content = json.loads(out.read_text())
            for clip in content["clips"]["final_caption"]:
                if "score" in clip:
                    clip |= {column: of(clip[column]) for column in columns}
                    clip["score"] = sum(clip[column] for column in columns) / 3
            places, names = [*places, tmp_path / f"{name} {judge}.json"], [*names, judge]
            places[-1].write_text(json.dumps(content))
    capsys.readouterr()
    out = tmp_path / "calibration.json"
    words = ["--judges", ",".join(names), "--output", str(out), *map(str, places)]
    assert cli.run(["calibrate", *words]) == 0
    shown = capsys.readouterr().out
    assert "kinder (B) against 4o (A), 999 clips of each model" in shown
    task = json.loads(out.read_text())["tasks"]["final_caption"]
    kinder, upside_down, _ = task["pairs"]
    assert [round(one[0], 2) for one in kinder["means"].values()] == [60.01, 58.96, 52.18]
    assert kinder["order"]["value"] == kinder["order"]["interval"][1] == 1
    assert 15 < kinder["bias"]["value"] < 20  # ratings of 5 stay
    assert kinder["clip"]["value"] > 0.9
    assert upside_down["order"] == {"value": -1, "interval": [-1, -1]}
    assert upside_down["clip"]["value"] == pytest.approx(-1)
    assert upside_down["preference"]["value"] == 0
    bias = {name: figure["value"] for name, figure in upside_down["by_model"].items()}
    assert bias["Omni"] == pytest.approx(120 - 2 * 52.1788, abs=0.01)
