"""Labelling runs from the command line: passes, rejected clips, money, limits, train format."""

import asyncio
import json
import shutil
import time

import numpy as np
import pytest
from fake_judge import FakeJudge
from label_job import Job, known

from ugc_jax import cli, files
from ugc_jax.data import annotation
from ugc_jax.data.manifest import read_manifest
from ugc_jax.errors import UserError
from ugc_jax.label import asking, prompts, run
from ugc_jax.label.settings import AskingConfig
from ugc_jax.media.clip import probe
from ugc_jax.media.presets import QUESTION, ClipSettings
from ugc_jax.media.streams import picture_part, sound_part, stills
from ugc_jax.toy import world
from ugc_jax.toy.teacher import VERSION, ErrorModel, Teacher, measure
from ugc_jax.toy.world import WorldSettings


@pytest.fixture
def teacher(clips):
    """A teacher without errors."""
    with Teacher(known(clips), errors=0.0) as server:
        yield server


def test_rows_have_the_train_format_and_their_provenance(job, clips, teacher):
    done = job(teacher)
    assert done.run() == 0
    rows = done.rows()
    assert (len(rows), done.rows("rejected.jsonl")) == (40, [])
    truth = teacher.clips.attributes
    for row, attributes, clip in zip(rows, truth, teacher.clips.paths, strict=True):
        assert row["videos"] == [str(clip)]
        user, assistant = row["messages"]
        assert user == {"role": "user", "content": f"<video>{QUESTION}"}
        assert assistant["content"] == row["solution"]
        assert all(world.check(row["solution"], attributes).values())
        label = row["label"]
        assert (label["teacher"], label["model"], label["model_version"]) == (
            "gemini", "toy", VERSION,
        )  # fmt: skip
        assert (label["prompts"], label["temperature"]) == (prompts.load().hash, 0.2)
        assert label["checks"]["asked_again"] == []
        assert label["checks"]["language"] == "en"
        for stage in annotation.STAGES:
            annotation.read(stage, label[stage])
        assert label["both"] == {"caption": row["solution"]}
    assert sum(row["label"]["cost"] for row in rows) == pytest.approx(done.totals()["cost"])
    read = read_manifest(done.output, ClipSettings())
    assert [one.solution for one in read] == [row["solution"] for row in rows]
    assert read[0].extra == {"label": rows[0]["label"]}


def test_extract_reads_the_rows(job, teacher, tmp_path):
    done = job(teacher)
    assert done.run() == 0
    done.output.write_text(files.to_lines(done.rows()[:2]))
    out = tmp_path / "records"
    words = ["extract", "--config", "world", "--output", str(out), "--workers", "1"]
    assert cli.run([*words, str(done.output)]) == 0
    index = [line.value for line in files.read_lines(out / "index.jsonl", "")]
    assert [one["extra"]["label"]["model_version"] for one in index] == [VERSION] * 2


@pytest.mark.parametrize("kind", ["gemini", "openai"])
def test_a_pass_gets_its_part_alone(job, teacher, kind, monkeypatch):
    """What a server gets: for the sound no picture, for the picture no sound."""
    seen = []
    find = teacher.clips.find

    def note(parts):
        clip, stage = find(parts)
        seen.append((stage, [kind for kind, _ in parts]))
        source = probe(teacher.clips.paths[clip])
        sound, picture = sound_part(source).data, picture_part(source).data
        for _, data in parts:
            assert stage == "both" or data != (sound if stage == "picture" else picture)
            assert stage != "sound" or data == sound
            if stage == "picture" and kind == "gemini":
                assert data == picture
        return clip, stage

    monkeypatch.setattr(teacher.clips, "find", note)
    assert job(teacher, kind).run("--teacher.stills", "2") == 0
    pictures = ["video/mp4"] if kind == "gemini" else ["image/jpeg"] * 2
    both = ["video/mp4"] if kind == "gemini" else [*pictures, "audio/wav"]
    expected = {"sound": ["audio/wav"], "picture": pictures, "both": both}
    assert len(seen) == 120
    assert all(kinds == expected[stage] for stage, kinds in seen)


def test_a_server_that_takes_videos(job, teacher):
    done = job(teacher, "openai")
    assert done.run("--teacher.picture", "video_url") == 0
    assert len(done.rows()) == 40


def test_large_parts_are_uploaded_and_deleted(job, teacher):
    done = job(teacher)
    assert done.run("--teacher.inline_mb", "0.01") == 0
    assert len(done.rows()) == 40
    assert teacher.uploads == 0
    assert next(teacher._names) > 1  # some were


def test_verification_on_the_world(tmp_path):
    """The figures that docs/labelling.md gives, on 150 clips."""
    (tmp_path / "train").mkdir()
    settings = WorldSettings(seconds=1.0, fps=4.0, size=56)
    rows = [world.write_example("train", n, settings, tmp_path) for n in range(150)]
    files.write_text(tmp_path / "train.jsonl", files.to_lines(rows))
    with Teacher(tmp_path / "train.jsonl", errors=0.1) as server:
        # No pass tells the order of a sight and a sound: without a second caption its errors stay.
        for flags, least in (([], 0.8), (["--compare_with", "sample"], 0.9)):
            done = Job(server, tmp_path / "train.jsonl", tmp_path / str(len(flags)) / "train.jsonl")
            done.run(*flags)
            found = measure(
                done.output, done.output.with_name("rejected.jsonl"), server.clips, server.model
            )
            assert (found.clips, found.shared > 50, found.own > 30) == (150, True, True)
            assert found.recall >= least
            assert found.precision == 1.0
            assert found.lost <= 0.05
            assert found.wrong_own <= (2 if flags else 8)
            assert found.wrong_shared > 40  # no comparison of its answers finds these


def test_the_error_model_is_half_and_half():
    model = ErrorModel(0.2, seed=3)
    drawn = [model.drawn(n, world.make_clip("train", n)[1]) for n in range(500)]
    shared, own = (sum(len(one[kind]) for one in drawn) for kind in (0, 1))
    assert shared + own == pytest.approx(0.2 * 500 * 10, rel=0.1)
    assert shared == pytest.approx(own, rel=0.15)


def test_what_fails_is_asked_once_more_and_then_rejected(job, clips):
    with Teacher(known(clips), errors=0.1, seed=1) as server:
        done = job(server)
        assert done.run() == 0
        rows, rejected = done.rows(), done.rows("rejected.jsonl")
        again = [row for row in rows if row["label"]["checks"]["asked_again"]]
        assert again
        assert rejected
        assert len(rows) + len(rejected) == 40
        for row in rejected:
            assert row["reason"].startswith("contradiction: ")
            assert {one["pass"] for one in row["label"]["checks"]["asked_again"]} >= {"both"}
            assert row["solution"] == row["label"]["both"]["caption"]
        assert max(one.asked.number for one in server.requests) == 1
    with pytest.raises(UserError, match=r"was rejected by label \(contradiction: .*; train from"):
        read_manifest(done.output.with_name("rejected.jsonl"), ClipSettings())


def test_blocked_and_cut_off_clips_have_a_reason_of_their_own(job, teacher):
    teacher.always = {3: "blocked", 5: "limit", 7: "truncated"}
    done = job(teacher)
    assert done.run() == 0
    reasons = {row["videos"][0][-6:-4]: row["reason"] for row in done.rows("rejected.jsonl")}
    assert reasons["03"].startswith("blocked by the safety filter: SAFETY (pass ")
    assert reasons["05"].startswith("cut off at the limit of tokens; raise teacher.max_tokens")
    assert reasons["07"].startswith("no complete JSON object (pass ")
    assert done.totals()["reasons"]["blocked by the safety filter"] == 1
    before = len(teacher.requests)
    assert done.run() == 0
    assert len(teacher.requests) == before  # final: not paid again


def test_another_version_of_the_model_ends_the_job(job, teacher):
    done = job(teacher)
    assert done.run("--max_cost", "0.03") == 1
    count = len(done.rows())
    teacher.version = "toy-teacher-002"
    with pytest.raises(
        UserError, match=r"answers are of toy-teacher-002 now, those so far of toy-"
    ):
        done.run()
    assert len(done.rows()) == count
    given, sound, made = teacher.tokens
    assert done.totals()["tokens_in"] <= given
    for _ in range(4):  # such an answer never rejects a clip
        with pytest.raises(UserError, match="answers are of toy-teacher-002 now"):
            done.run("--concurrency", "1")
    teacher.version = VERSION
    assert done.run() == 0
    assert {row["label"]["model_version"] for row in done.rows()} == {VERSION}
    assert len(done.rows()) == 40


def test_a_run_that_ends_at_once_keeps_the_rows_of_earlier_ones(job, clips, monkeypatch):
    with Teacher(known(clips), errors=0.3, seed=2) as server:
        done = job(server)
        rejected = done.output.with_name("rejected.jsonl")
        assert done.run() in (0, 1)
        before = [files.read_text(path, "") for path in (done.output, rejected)]
        assert before[1]

        async def fail(self):
            raise UserError("no network")

        monkeypatch.setattr(run.Run, "label", fail)
        with pytest.raises(UserError, match="no network"):
            done.run()
        assert [files.read_text(path, "") for path in (done.output, rejected)] == before
        assert done.totals()["open"] == 0
        # Rows that were verified otherwise do not stand beside rows of these settings.
        with pytest.raises(UserError, match="no network"):
            done.run("--min_words", "500")
        assert done.rows() == done.rows("rejected.jsonl") == []
        monkeypatch.undo()
        asked = len(server.requests)
        assert done.run() in (0, 1)
        assert [files.read_text(path, "") for path in (done.output, rejected)] == before
        assert len(server.requests) == asked


def test_max_cost_stops_cleanly(job, teacher, caplog):
    done = job(teacher)
    assert done.run("--max_cost", "0.04") == 1
    totals = done.totals()
    assert 0.02 < totals["cost"] <= 0.04
    assert totals["is_out_of_budget"]
    assert totals["unknown"] == 0
    assert 0 < len(done.rows()) < 40
    assert totals["open"] == 40 - len(done.rows())
    assert done.run() == 0
    whole = job(teacher, name="whole")
    assert whole.run() == 0
    assert done.rows() == whole.rows()
    assert len(teacher.answers()) == 120


def test_dry_run_asks_nothing(job, teacher, capsys):
    done = job(teacher)
    assert done.run("--dry_run") == 0
    out = capsys.readouterr().out
    assert "clips     40 (0 cannot be read)" in out
    assert "requests  120 (0 more have their answer)" in out
    assert teacher.requests == []
    assert not done.output.exists()
    cost = float(out.split("cost")[1].split()[0])
    assert done.run("--max_cost", "0.04") == 1
    assert done.run("--dry_run") == 0
    out = capsys.readouterr().out
    assert f"({len(teacher.requests)} more have their answer)" in out
    assert 0 < float(out.split("cost")[1].split()[0]) < cost


def test_a_dry_run_counts_second_captions_apart(job, teacher, capsys):
    done = job(teacher)
    assert done.run() == 0
    assert done.run("--dry_run", "--compare_with", "sample") == 0
    assert "requests  40 (120 more have their answer)" in capsys.readouterr().out
    assert done.run("--compare_with", "sample") == 0
    assert len(teacher.requests) == 160
    assert done.run("--dry_run", "--compare_with", "sample") == 0
    assert "requests  0 (160 more have their answer)" in capsys.readouterr().out
    with pytest.raises(UserError, match="asked with another teacher"):
        done.run("--dry_run", "--teacher.temperature", "0.9")


def test_a_second_teacher_may_come_and_go(job, teacher):
    done = job(teacher)
    second = ["--compare_with", "teacher", "--second.kind", "gemini", "--second.model", "other"]
    second += ["--second.base_url", teacher.url]
    assert done.run() == 0
    rows = done.rows()
    assert done.run(*second) == 0
    assert len(teacher.requests) == 160
    assert done.rows()[0]["label"]["second"]["model"] == "other"
    assert done.run() == 0
    assert (done.rows(), len(teacher.requests)) == (rows, 160)
    with pytest.raises(UserError, match="asked with another second"):
        done.run(*second, "--second.temperature", "0.9")


def test_a_price_table_counts_the_cost(job, teacher):
    done = job(teacher)
    assert done.run() == 0
    given, sound, made = teacher.tokens
    assert sound > 0
    expected = ((given - sound) * 1 + sound * 3 + made * 2) / 1e6
    assert done.totals()["cost"] == pytest.approx(expected)


def test_no_clip_is_without_a_line(clips, teacher, tmp_path, capsys):
    """Broken, silent and copied clips, and a picture."""
    folder = tmp_path / "some"
    folder.mkdir()
    for number in range(3):
        shutil.copy(teacher.clips.paths[number], folder / f"{number}.mp4")
    shutil.copy(teacher.clips.paths[1], folder / "copy.mp4")
    (folder / "broken.mp4").write_bytes(b"no clip")
    silent = picture_part(probe(teacher.clips.paths[4])).data
    (folder / "silent.mp4").write_bytes(silent)
    done = Job(teacher, clips, tmp_path / "train.jsonl")
    (folder / "still.jpg").write_bytes(stills(probe(teacher.clips.paths[4]), 1, 64)[0].data)
    done.words[1:2] = [str(folder), str(folder / "still.jpg")]
    assert done.run("--dry_run") == 0
    assert "clips     7 (2 cannot be read, 1 copies of others)" in capsys.readouterr().out
    assert done.run() == 1  # the broken one is tried again
    assert f"(2 are tried again by a further run); why: {tmp_path}/rejected.jsonl\n" in (
        capsys.readouterr().err
    )
    rows = {row["videos"][0]: row for row in done.rows()}
    rejected = {row["videos"][0]: row for row in done.rows("rejected.jsonl")}
    assert set(rows) | set(rejected) == {
        "some/0.mp4", "some/1.mp4", "some/2.mp4", "some/copy.mp4", "some/broken.mp4",
        "some/silent.mp4", "some/still.jpg",
    }  # fmt: skip
    assert rejected["some/broken.mp4"]["reason"].startswith("unreadable: ")
    assert "messages" not in rejected["some/broken.mp4"]
    copy = rows["some/copy.mp4"]["label"]
    original = rows["some/1.mp4"]["label"]
    assert (copy, original) != (original, copy)
    assert {copy["cost"], original["cost"]} > {0.0}
    assert copy["both"] == original["both"]
    silent = rows.get("some/silent.mp4") or rejected["some/silent.mp4"]
    assert silent["label"].get("sound") is None
    assert [one.asked.stage for one in teacher.requests].count("sound") == 3


def test_the_settings_that_decide_answers_may_not_change(job, teacher, tmp_path):
    done = job(teacher)
    assert done.run("--max_cost", "0.02") == 1
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/sound.txt").write_text("What do you hear?")
    with pytest.raises(UserError, match="asked with another prompts"):
        done.run("--prompts", str(tmp_path / "texts"))
    with pytest.raises(UserError, match=r"teacher \(temperature was 0.2, is 0.9\)"):
        done.run("--teacher.temperature", "0.9")
    assert done.run("--max_cost", "0.02", "--min_words", "500") == 1
    assert done.rows() == []
    reasons = [row["reason"] for row in done.rows("rejected.jsonl")]
    assert all(reason.startswith("length: the caption has ") for reason in reasons)


def test_files_of_others_are_not_replaced(job, teacher):
    done = job(teacher)
    done.output.parent.mkdir()
    done.output.with_name("rejected.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"rejected\.jsonl: exists, .*choose another rejected"):
        done.run()
    assert teacher.requests == []


def test_prompts_may_be_replaced(tmp_path):
    ours = prompts.load()
    (tmp_path / "both.txt").write_text("Describe it. {drafts}")
    theirs = prompts.load(str(tmp_path))
    assert theirs.hash != ours.hash
    assert theirs.texts["sound"] == ours.texts["sound"]
    text = theirs.question("both", None, None, reason="too {short}")
    assert text.startswith("Describe it. Heard: nothing; the video has no sound.")
    assert "too {short}" in text
    (tmp_path / "both.txt").write_text("Describe it.")
    with pytest.raises(UserError, match=r"both\.txt: must have \{drafts\} once"):
        prompts.load(str(tmp_path))
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"has none of sound\.txt"):
        prompts.load(str(tmp_path / "none"))


@pytest.mark.parametrize("kind", ["gemini", "openai"])
def test_a_wrong_key_or_model_ends_the_job_at_once(job, teacher, kind):
    teacher.refuses = 403
    with pytest.raises(UserError, match="HTTP 403: .*; correct model, base_url or the key in "):
        job(teacher, kind).run("--teacher.stills", "2", "--concurrency", "1")


def test_a_refused_question_is_asked_again_by_a_further_run(job, teacher):
    teacher.refuses = 400
    done = job(teacher)
    assert done.run() == 1
    reasons = {row["reason"] for row in done.rows("rejected.jsonl")}
    assert reasons <= {
        f"refused by the server: HTTP 400: injected (pass {one})" for one in ("sound", "picture")
    }
    teacher.refuses = None
    assert done.run() == 0
    assert len(done.rows()) == 40


def test_a_server_that_is_away_is_waited_for(job, teacher):
    done = job(teacher)
    teacher.refuses = 503
    with pytest.raises(UserError, match="cannot be reached for 0.01 min: HTTP 503"):
        done.run("--wait", "0.01", "--backoff", "0.2", "--concurrency", "1")
    assert done.totals()["open"] == 40


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--teacher.kind", "gemini"], "teacher.model is missing: give the name of the gemini"),
        (["--model", "m"], "teacher.kind is missing: gemini, openai or local"),
        ([], "teacher.kind is missing"),
        (["--teacher.kind", "gemini", "--model", "m"], "GEMINI_API_KEY with Gemini's key is not"),
        (["--teacher.kind", "openai", "--model", "m"], "OPENAI_API_KEY with the teacher's key"),
        (["--compare_with", "teacher"], "needs second.kind and second.model"),
        (["--max_cost", "5"], "max_cost needs teacher.price_in and teacher.price_out"),
        (
            [
                "--teacher.kind",
                "openai",
                "--model",
                "m",
                "--compare_with",
                "teacher",
                "--second.kind",
                "openai",
                "--second.model",
                "n",
                "--second.stills",
                "4",
            ],
            "second.stills is 4, teacher.stills is 16: both teachers get the same stills",
        ),
    ],
)
def test_mistakes_are_told(clips, tmp_path, flags, message):
    output = str(tmp_path / "train.jsonl")
    with pytest.raises(UserError, match=message):
        cli.run(["label", str(clips.parent / "train"), "--output", output, *flags])


def test_requests_a_minute(job, teacher):
    assert job(teacher).run("--requests_per_minute", "1200") == 0
    steps = np.diff(sorted(teacher.times))
    assert len(steps) == 119
    assert np.quantile(steps, 0.1) > 0.02
    assert sorted(teacher.times)[-1] - sorted(teacher.times)[0] > 119 * 0.05 - 0.2


def test_tokens_a_minute(monkeypatch):
    monkeypatch.setattr(asking, "MINUTE", 0.4)

    async def turns() -> list[float]:
        pace, start, times = asking.Pace(AskingConfig(tokens_per_minute=200)), time.monotonic(), []
        for actual in (50, 100, 100, 900, 10):
            sent = await pace.turn(100)
            times.append(time.monotonic() - start)
            pace.correct(sent, actual)
        return times

    first, second, third, fourth, fifth = asyncio.run(turns())
    assert second < 0.2  # 50 + 100
    assert third > 0.3  # 150 + 100 are too many
    assert fourth - third < 0.2
    assert fifth - fourth > 0.3  # the 900 leave


def test_a_second_teacher_and_a_judge(job, clips, teacher):
    """Both ask their own servers; the judge's cost is part of the total."""
    judge = FakeJudge(
        lambda question: (
            {"statements": [{"text": "a", "verdict": "same"}]}
            if "Two captions" in question
            else {"sound": [], "picture": []}
        )
    )
    try:
        with Teacher(known(clips), errors=0.0) as other:
            done = job(teacher)
            flags = [
                "--compare_with", "teacher", "--second.kind", "openai", "--second.model", "other",
                "--second.base_url", f"{other.url}/v1", "--second.picture", "video_url",
                "--judge.model", "judge", "--judge.base_url", judge.url, "--judge.price_in", "1",
            ]  # fmt: skip
            assert done.run(*flags) == 0
            assert {one.asked.stage for one in other.requests} == {"both"}
            assert len(other.requests) == 40
            row = done.rows()[0]["label"]
            assert row["second"]["teacher"] == "openai"
            assert row["checks"]["agreement"] == 1.0
            totals = done.totals()
            assert totals["judge_cost"] == pytest.approx(80 * 100 / 1e6)
            assert totals["cost"] > totals["judge_cost"]
            asked = len(judge.requests)
            assert done.run(*flags) == 0
            assert len(judge.requests) == asked == 80
            assert done.totals()["cost"] == pytest.approx(totals["cost"])
    finally:
        judge.stop()


def test_the_answers_of_a_run_are_json(job, teacher):
    done = job(teacher)
    assert done.run() == 0
    journal = done.output.with_name("train.jsonl.answers.jsonl")
    kinds = [next(iter(json.loads(line))) for line in journal.read_text().splitlines()]
    assert (kinds.count("asked"), kinds.count("answered")) == (120, 120)
