"""The jobs that a user meets first, run as the command line runs them."""

import json

import pytest

from ugc_jax import cli
from ugc_jax.errors import UserError
from ugc_jax.generate.captioner import Caption, Captioner
from ugc_jax.jobs import caption
from ugc_jax.settings import parse

SMALL = [
    "--config.frames=4", "--config.min_pixels=784", "--config.max_pixels=12544", "--config.question=What is it?",
    "--config.max_new_tokens=8", "--config.batch_size=2",
]  # fmt: skip


@pytest.fixture
def run(tiny_checkpoint, monkeypatch):
    """`run(job, *words)` -> exit status, on the tiny checkpoint."""
    monkeypatch.setattr(cli, "set_up_logging", lambda: None)
    return lambda job, *words: cli.run(
        [job, f"--config.checkpoint={tiny_checkpoint}", *map(str, words)]
    )


@pytest.fixture
def shared_captioner(tiny_captioner, monkeypatch):
    """Let the job use the captioner that is compiled already."""
    monkeypatch.setattr(Captioner, "from_pretrained", lambda *args, **kwargs: tiny_captioner)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.usefixtures("shared_captioner")
class TestCaption:
    def test_folder_to_file_with_failures_and_totals(self, run, clips, tmp_path, capsys, caplog):
        out, report = tmp_path / "out.jsonl", tmp_path / "report.json"
        words = [f"--config.output={out}", f"--config.report={report}", "--config.token_ids=true"]
        assert run("caption", *SMALL, *words, clips, clips / "a.mp4", "missing.mp4") == 0
        records = {record["video"].removeprefix(f"{clips}/"): record for record in lines(out)}
        assert sorted(records) == [
            "a.mp4",
            "b.mp4",
            "below/c.mp4",
            "broken.mp4",
            "missing.mp4",
            "silent.mp4",
        ]
        for name, record in records.items():
            if name in ("broken.mp4", "missing.mp4"):
                assert list(record) == ["video", "error"]
                assert record["error"] in caplog.text
            else:
                assert record["new_tokens"] == len(record["token_ids"])
        totals = json.loads(report.read_text())
        assert (totals["captioned"], totals["skipped"], totals["failed"]) == (4, 0, 2)
        assert totals["new_tokens"] == sum(
            record.get("new_tokens", 0) for record in records.values()
        )
        printed = capsys.readouterr()
        assert printed.out == ""
        assert (
            f"captioned 4, skipped 0, failed 2; compiled {totals['programs']} programs"
            in printed.err
        )

    def test_resume(self, run, clips, tmp_path, capsys):
        out = tmp_path / "out.jsonl"
        assert (
            run("caption", *SMALL, f"--config.output={out}", clips / "a.mp4", clips / "broken.mp4")
            == 0
        )
        first = lines(out)
        out.write_text(out.read_text() + '{"video": "half')
        assert run("caption", *SMALL, f"--config.output={out}", clips) == 0
        assert "captioned 3, skipped 1, failed 1" in capsys.readouterr().err
        second = lines(out)
        assert sorted(record["video"] for record in second) == sorted(
            map(str, clips.rglob("*.mp4"))
        )
        assert [record for record in first if "error" not in record][0] in second

    def test_nothing_left_to_do_loads_no_model(self, run, clips, tmp_path, monkeypatch):
        out = f"--config.output={tmp_path / 'out.jsonl'}"
        assert run("caption", *SMALL, out, clips / "a.mp4") == 0
        monkeypatch.setattr(Captioner, "from_pretrained", None)
        assert run("caption", *SMALL, out, clips / "a.mp4") == 0

    def test_lines_go_to_stdout(self, run, clips, capsys):
        assert run("caption", *SMALL, clips / "a.mp4") == 0
        record = json.loads(capsys.readouterr().out)
        assert record["video"] == str(clips / "a.mp4")
        assert "token_ids" not in record

    def test_nothing_worked(self, run, clips, capsys):
        assert run("caption", *SMALL, clips / "broken.mp4", "missing.mp4") == 1
        assert len(capsys.readouterr().out.splitlines()) == 2

    def test_interrupted_run_keeps_what_it_has(
        self, run, clips, tmp_path, tiny_captioner, monkeypatch
    ):
        def stream(*_):
            yield Caption("a.mp4", "A cat.", (1,), 2, 1, "stop", 0.1)
            raise KeyboardInterrupt

        monkeypatch.setattr(tiny_captioner, "stream", stream)
        with pytest.raises(KeyboardInterrupt):
            run("caption", *SMALL, f"--config.output={tmp_path / 'out.jsonl'}", clips)
        assert [record["caption"] for record in lines(tmp_path / "out.jsonl")] == ["A cat."]


def test_mistakes_are_told_before_the_model_is_loaded(run, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(Captioner, "from_pretrained", None)
    for words, message in (
        (["--config.preset=none_such", clips], "preset"),
        (["--config.top_p=2", clips], "top_p is 2.0"),
        (["--config.fps=1", "--config.frames=4", clips], "frames"),
        ([tmp_path], "no videos in this folder"),
    ):
        with pytest.raises(UserError, match=message):
            run("caption", *words)


def test_more_devices_than_there_are(run, clips):
    with pytest.raises(UserError, match="devices"):
        run("caption", "--config.data=64", clips / "a.mp4")


def test_example_config(pytestconfig):
    path = pytestconfig.rootpath / "configs" / "caption_upstream.py"
    config, words = parse(caption.CONFIG, [f"--config={path}", "--config.checkpoint=x", "a.mp4"])
    assert (config.preset, config.temperature, config.max_new_tokens, words) == (
        "upstream",
        0.2,
        1024,
        ["a.mp4"],
    )
    assert (
        parse(caption.CONFIG, [f"--config={path}:greedy", "--config.checkpoint=x"])[0].temperature
        == 0
    )


class TestInspect:
    def test_json_agrees_with_caption(self, run, clips, capsys, shared_captioner):
        names = [clips / "a.mp4", clips / "silent.mp4", "missing.mp4"]
        assert run("inspect", *SMALL[:-1], "--config.json=true", *names) == 0
        a, silent, missing = map(json.loads, capsys.readouterr().out.splitlines())
        assert (a["frames"], a["sample_fps"], a["has_audio"]) == (4, pytest.approx(4 / 1.2), True)
        assert a["prompt_tokens"] == a["video_tokens"] + a["audio_tokens"] + a["text_tokens"]
        assert a["video_tokens"] == a["grid"][0] * a["grid"][1] * a["grid"][2] // 4
        assert a["audio_tokens"] == 30  # 1.2 s at 25 tokens a second
        assert a["kv_bytes"] == 2 * 2 * 2 * 16 * 2 * (a["bucket"]["tokens"] + 8)
        assert (silent["has_audio"], silent["audio_tokens"], silent["audio_seconds"]) == (
            False,
            0,
            0,
        )
        assert list(missing) == ["video", "error"]
        assert run("caption", *SMALL, *names[:2]) == 0
        captions = {
            record["video"]: record
            for record in map(json.loads, capsys.readouterr().out.splitlines())
        }
        for seen in (a, silent):
            assert captions[seen["video"]]["prompt_tokens"] == seen["prompt_tokens"]

    def test_table(self, run, clips, capsys):
        assert (
            run("inspect", *SMALL[:-1], clips / "a.mp4", clips / "silent.mp4", clips / "broken.mp4")
            == 0
        )
        a, silent, broken = capsys.readouterr().out.strip().split("\n\n")
        assert a.splitlines()[0] == f"{clips / 'a.mp4'} (video)"
        for row in (
            "picture  4 frames (3.333 a second), grid 2 x",
            "sound    1.",
            "prompt   ",
            "bucket   ",
            "memory   ",
        ):
            assert f"\n  {row}" in a
        assert "\n  sound    none\n" in silent
        assert broken.splitlines()[1].startswith(f"  error    {clips / 'broken.mp4'}")

    def test_nothing_worked(self, run, clips):
        assert run("inspect", clips / "broken.mp4") == 1

    def test_needs_no_weights(self, run, clips, tiny_checkpoint, tmp_path):
        for name in ("config.json", "tokenizer.json"):
            (tmp_path / name).write_bytes((tiny_checkpoint / name).read_bytes())
        assert run("inspect", f"--config.checkpoint={tmp_path}", clips / "a.mp4") == 0
