"""ugc_jax.evals.compare and its job: the same clips' differences, and when they are noise."""

import json

import numpy as np
import pytest

from ugc_jax import cli
from ugc_jax.errors import UserError
from ugc_jax.evals.compare import MIN_CLIPS, compare_results, comparison_table, difference
from ugc_jax.evals.results import write_result


def result(name, scores, protocol=None, task="final_caption", **columns):
    """A result of one task; scores: of clip 0, 1, ...; None is a failure."""
    clips = [
        {"id": str(i)}
        | ({"failure": "judge"} if score is None else {"score": score})
        | {column: values[i] for column, values in columns.items() if score is not None}
        for i, score in enumerate(scores)
    ]
    facts = {"score": 0.0, "n": 1, "failed": 0, "interval": None, "intervals": {}}
    facts |= {"unit": "percent", "protocol": protocol or {}} | dict.fromkeys(columns, 0.0)
    facts["intervals"] = dict.fromkeys(columns)
    return {"version": 1, "name": name, "tasks": {task: facts}, "clips": {task: clips}}


class TestDifference:
    def test_verdicts(self):
        rng = np.random.default_rng(0)
        noise = rng.normal(size=500)
        noise -= noise.mean()
        assert difference(noise + 0.5)["verdict"] == "better"
        assert difference(noise - 0.5)["verdict"] == "worse"
        fact = difference(noise + 0.01)
        assert fact["verdict"] == "noise"
        # mean +- 1.96 standard errors, which a bootstrap has to be near
        half = 1.96 * noise.std() / np.sqrt(500)
        assert fact["interval"] == pytest.approx([0.01 - half, 0.01 + half], abs=0.01)

    def test_counts_and_rounding(self):
        fact = difference([1.0, -2.0, 0.0, 1e-13])
        assert (fact["wins"], fact["ties"], fact["losses"]) == (1, 2, 1)

    def test_too_few(self):
        fact = difference([1.0] * (MIN_CLIPS - 1))
        assert (fact["verdict"], fact["interval"], fact["difference"]) == ("too few", None, 1.0)
        assert difference([1.0] * MIN_CLIPS)["verdict"] == "better"
        assert difference([])["difference"] is None

    def test_less_is_better(self):
        fact = difference([-1.0] * 19 + [-2.0, 1.0], is_lower_better=True)
        assert (fact["verdict"], fact["wins"], fact["losses"]) == ("better", 20, 1)
        assert fact["difference"] < 0
        assert fact["interval"][1] < 0
        assert difference([1.0] * 20, is_lower_better=True)["verdict"] == "worse"

    def test_weights_and_groups(self):
        assert difference([10.0, 40.0], [2, 1])["difference"] == 20
        values = [1.0] * 4 * MIN_CLIPS
        clips = [str(n // 4) for n in range(len(values))]
        assert difference(values[:-4], groups=clips[:-4])["verdict"] == "too few"  # clips
        assert difference(values, groups=clips)["verdict"] == "better"


class TestCompare:
    def test_only_clips_that_both_have_scored(self):
        base = result("a", [10, 20, None, 40], audio=[1, 2, 3, 4])
        other = result("b", [11, None, 30, 42], audio=[2, 2, 3, 4])
        facts = compare_results([base, other])["against"][0]["tasks"]["final_caption"]
        assert facts["score"]["difference"] == 1.5
        assert facts["score"]["n"] == 2
        assert facts["audio"]["difference"] == 0.5
        assert facts["only"] == [1, 1]

    def test_tasks_and_protocols_that_differ_are_told(self):
        base = result("a", [1, 2], {"judge": "x", "temperature": 1.0})
        other = result("b", [1, 2], {"judge": "y", "temperature": 1.0})
        third = result("c", [1, 2], task="tone")
        comparison = compare_results([base, other, third])
        assert comparison["against"][0]["tasks"]["final_caption"]["protocol"] == ["judge: x and y"]
        assert comparison["against"][1]["missing"] == ["final_caption", "tone"]
        text = comparison_table(comparison)
        assert "does not compare: judge: x and y" in text
        verdicts = [one["tasks"]["final_caption"] for one in comparison["against"][:1]]
        assert verdicts[0]["score"]["verdict"] == "does not compare"
        assert "of only one result: final_caption, tone" in text

    def test_unknown_judges_do_not_compare(self):
        results = [result(name, [1, 2], {"judge": None, "temperature": None}) for name in "ab"]
        facts = compare_results(results)["against"][0]["tasks"]["final_caption"]
        assert facts["score"]["verdict"] == "does not compare"

    def test_one_id_of_two_clips_is_no_pair(self):
        base, other = result("a", [1, 2, 3]), result("b", [1, 2, 9])
        for one, text in ((base, "a dog"), (other, "a cat")):
            one["clips"]["final_caption"][2]["reference"] = text
        facts = compare_results([base, other])["against"][0]["tasks"]["final_caption"]
        assert (facts["score"]["n"], facts["strangers"]) == (2, 1)
        assert "two different clips" in comparison_table(compare_results([base, other]))

    def test_models_that_saw_the_clips_in_different_ways(self):
        base, other = result("a", [1, 2]), result("b", [1, 2])
        base["asked"], other["asked"] = ({"clip": {"frames": n}} for n in (8, 32))
        assert compare_results([base, other])["against"][0]["asked"] == ["clip.frames: 8 and 32"]
        assert "frames: 8 and 32" in comparison_table(compare_results([base, other]))

    def test_paper_s_gain_from_rl(self, shared_data):
        from ugc_jax.evals.evaluate import Evaluation, take_scores

        folder = shared_data / "ugc_videocap/results/caption_score"
        sft, final = (
            take_scores(Evaluation(name, {}), folder / f"{name}_4o.json", ["final_caption"], {}, {})
            for name in ("1k_sft", "UGC_Videocaptioner")
        )
        facts = compare_results([sft, final])["against"][0]["tasks"]["final_caption"]
        assert facts["score"]["difference"] == pytest.approx(1.05, abs=0.005)
        assert facts["score"]["interval"] == pytest.approx([0.23, 1.90], abs=0.05)
        counts = [facts["score"][name] for name in ("wins", "ties", "losses")]
        assert counts == [400, 243, 356]


class TestJob:
    @pytest.fixture(autouse=True)
    def _quiet(self, monkeypatch):
        monkeypatch.setattr(cli, "set_up_logging", lambda level: None)

    def test_files(self, tmp_path, capsys):
        paths = [tmp_path / f"{name}.json" for name in "ab"]
        write_result(paths[0], result("a", [10, 20, 30]))
        write_result(paths[1], result("b", [12, 21, 33]))
        out = tmp_path / "comparison.json"
        assert cli.run(["compare", f"--config.output={out}", *map(str, paths)]) == 0
        assert "+2.00" in capsys.readouterr().out
        assert json.loads(out.read_text())["against"][0]["name"] == "b"

    def test_nothing_in_common(self, tmp_path):
        paths = [tmp_path / f"{name}.json" for name in "ab"]
        write_result(paths[0], result("a", [10]))
        write_result(paths[1], result("b", [12], task="tone"))
        assert cli.run(["compare", *map(str, paths)]) == 1

    @pytest.mark.parametrize("content", ["", "[]", '{"evaluations": {}}', '{"version": 1}', None])
    def test_no_result(self, tmp_path, content):
        good, bad = tmp_path / "good.json", tmp_path / "bad.json"
        write_result(good, result("a", [10]))
        if content is not None:
            bad.write_text(content)
        with pytest.raises(UserError, match="bad.json"):
            cli.run(["compare", str(good), str(bad)])
        with pytest.raises(UserError, match="two or more results"):
            cli.run(["compare", str(good)])

    def test_output_that_would_be_lost(self, tmp_path):
        path, text = tmp_path / "a.json", tmp_path / "notes.json"
        write_result(path, result("a", [10]))
        text.write_text("[1]")
        for output in (path, text):
            before = output.read_text()
            with pytest.raises(UserError, match="choose another output"):
                cli.run(["compare", f"--config.output={output}", str(path), str(path)])
            assert output.read_text() == before

    def test_equal_names_are_told_apart(self, tmp_path, capsys):
        for name in "ab":
            write_result(tmp_path / f"{name}.json", result("model", [10]))
        assert cli.run(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
        assert "b.json) against model (" in capsys.readouterr().out

    def test_another_version(self, tmp_path):
        path = tmp_path / "old.json"
        write_result(path, result("a", [10]) | {"version": 0})
        with pytest.raises(UserError, match="version 0"):
            cli.run(["compare", str(path), str(path)])
