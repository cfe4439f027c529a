"""The jobs that a user meets first, run as the command line runs them."""

import importlib.util
import json
import os
import re
import shutil
import sys

import fake_vllm
import numpy as np
import pytest
from clips import write_clip
from safetensors.numpy import load_file, save_file

from ugc_jax import cli
from ugc_jax.errors import UserError
from ugc_jax.generate.captioner import Caption, Captioner
from ugc_jax.generate.defaults import Defaults
from ugc_jax.jobs import caption

SMALL = [
    "--config.frames=4", "--config.min_pixels=784", "--config.max_pixels=12544",
    "--config.question=What is it?", "--config.max_new_tokens=8", "--config.batch_size=2",
]  # fmt: skip


@pytest.fixture
def run(tiny_checkpoint, monkeypatch):
    """`run(job, *words)` -> exit status, on the tiny checkpoint."""
    monkeypatch.setattr(cli, "set_up_logging", lambda level: None)
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
        def stream(*_, **__):
            yield Caption("a.mp4", "A cat.", (1,), 2, 1, "stop", 0.1)
            raise KeyboardInterrupt

        monkeypatch.setattr(tiny_captioner, "run", stream)
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
    for word, message in (
        ("mesh.data=64", "mesh data=64 fsdp=1 tensor=1 needs 64 devices, 8 found"),
        ("mesh.data=0", "data=0 .* sizes are positive"),
        ("mesh.tensor=-2", "-2"),
        ("data=4", r"^--config\.data has another name now; write --mesh\.data"),
        ("tensor=4", r"^--config\.tensor has another name now; write --mesh\.tensor"),
    ):
        with pytest.raises(UserError, match=message):
            run("caption", f"--config.{word}", clips / "a.mp4")


def test_example_config(pytestconfig):
    path = pytestconfig.rootpath / "configs" / "caption_upstream.py"
    for name, temperature in ((str(path), 0.2), (f"{path}:greedy", 0), ("caption_upstream", 0.2)):
        config, words = caption.SETTINGS.parse([f"--config={name}", "--checkpoint=x", "a.mp4"])
        clip, sampling = Defaults("x").apply(config.clip, config.sampling)
        assert (clip.preset, clip.frames, clip.fps, words) == ("upstream", 32, None, ["a.mp4"])
        assert (sampling.temperature, sampling.max_new_tokens) == (temperature, 1024)


class TestBadInput:
    """What a shell sees: one clear line, the right exit status, and a batch that goes on."""

    @pytest.fixture
    def main(self, monkeypatch, capsys):
        """`main(*words)` -> (exit status, stderr) of `ugc-jax *words`."""
        monkeypatch.setattr(cli, "set_up_logging", lambda level: None)
        monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)

        def call(*words):
            monkeypatch.setattr(sys, "argv", ["ugc-jax", *map(str, words)])
            return cli.main(), capsys.readouterr().err

        return call

    @pytest.mark.usefixtures("shared_captioner")
    def test_clips(self, main, clips, tiny_checkpoint, tmp_path):
        whole = (clips / "a.mp4").read_bytes()
        broken = {
            "text.mp4": b"these are words, not a video\n" * 100,
            "empty.mp4": b"",
            "half.mp4": whole[: len(whole) // 2],
            "most.mp4": whole[: len(whole) * 9 // 10],
        }
        for name, content in broken.items():
            (tmp_path / name).write_bytes(content)
        write_clip(tmp_path / "one_frame.mp4", seconds=0.1, fps=10, size=(96, 64))
        out = tmp_path / "out.jsonl"
        words = [*SMALL, f"--config.checkpoint={tiny_checkpoint}", f"--config.output={out}"]
        status, err = main("caption", *words, tmp_path, tmp_path / "missing.mp4", clips / "a.mp4")
        assert status == 0
        assert f"captioned 2, skipped 0, failed {len(broken) + 1}" in err
        records = {record["video"]: record for record in lines(out)}
        for name in (*broken, "missing.mp4"):
            record = records.pop(str(tmp_path / name))
            assert list(record) == ["video", "error"]
            assert record["error"].startswith(f"{tmp_path / name}: ")
            assert "\n" not in record["error"]
            assert "unexpected" not in record["error"]
        assert all(record["new_tokens"] for record in records.values())
        assert main("caption", *words, tmp_path / "half.mp4", "missing.mp4")[0] == 1

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("lm_head.weight", None, "tensor lm_head.weight is missing"),
            ("lm_head.weight", np.zeros((3, 5), np.float32), "has shape [3, 5], but config.json"),
            ("extra.weight", np.zeros(2, np.float32), "unknown tensor extra.weight"),
        ],
        ids=["missing", "wrong shape", "unknown"],
    )
    def test_tensors(self, main, clips, tiny_checkpoint, tmp_path, name, change, message):
        folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
        tensors = load_file(folder / "model.safetensors")
        tensors.pop(name, None)
        if change is not None:
            tensors[name] = change
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        status, err = main("caption", f"--config.checkpoint={folder}", clips / "a.mp4")
        assert status == 2
        assert err.startswith(f"ugc-jax caption: {folder / 'model.safetensors'}: ")
        assert message in err
        assert err.count("\n") == 1

    @pytest.mark.parametrize("job", ["caption", "inspect"])
    def test_config_without_a_field(self, main, clips, tiny_checkpoint, tmp_path, job):
        folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
        content = json.loads((folder / "config.json").read_text())
        del content["text_config"]["hidden_size"]
        (folder / "config.json").write_text(json.dumps(content))
        status, err = main(job, f"--config.checkpoint={folder}", clips / "a.mp4")
        assert status == 2
        assert "text_config" in err
        assert "hidden_size" in err
        assert err.count("\n") == 1

    def test_no_checkpoint(self, main, clips, tmp_path):
        status, err = main("caption", f"--config.checkpoint={tmp_path}", clips / "a.mp4")
        assert (status, err.count("\n")) == (2, 1)
        assert "config.json: no such file" in err


class TestBench:
    SMALL = (
        "--config.size=tiny", "--config.batch_size=2", "--config.frames=2", "--config.height=56",
        "--config.width=84", "--config.seconds=1.5", "--config.new_tokens=4", "--config.repeats=1",
    )  # fmt: skip

    def test_agrees_with_the_reference(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(cli, "set_up_logging", lambda level: None)
        out = tmp_path / "bench.json"
        assert cli.run(["bench", *self.SMALL, f"--config.output={out}"]) == 0
        report = json.loads(out.read_text())
        printed = capsys.readouterr().out
        assert "jax    prefill" in printed
        assert report["jax"]["prefill_seconds"] > 0
        assert report["settings"]["workload"]["frames"] == 2
        if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
            assert report["token_agreement"] == 1
            assert set(report["torch_over_jax"]) == set(report["jax"])
            assert "torch / jax: prefill" in printed

    def test_mixed_clips_beside_the_reference(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(cli, "set_up_logging", lambda level: None)
        out = tmp_path / "bench.json"
        words = ["--work=mixed", "--mixed.clips=2", "--mixed.longest=3", "--mixed.most=17"]
        assert cli.run(["bench", *self.SMALL, *words, f"--output={out}"]) == 0
        report, printed = json.loads(out.read_text()), capsys.readouterr().out
        assert report["transformers"]["token_agreement"] == 1
        assert set(report["its prompts"]) == {"seconds", "first_seconds", "over_engine"}
        assert report["its prompts"]["seconds"] < report["transformers"]["seconds"]
        assert re.search(r"its prompts +[\d.]+ s +[\d.]+ x the engine's time", printed)

    @pytest.mark.parametrize("work", ["batch", "mixed"])
    def test_beside_vllm(self, monkeypatch, tmp_path, capsys, work):
        monkeypatch.setattr(cli, "set_up_logging", lambda level: None)
        (tmp_path / "vllm.py").write_text(fake_vllm.SOURCE)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        out = tmp_path / "bench.json"
        mixed = ["--mixed.clips=2", "--mixed.longest=3", "--mixed.fewest=2", "--mixed.most=4"]
        words = ["--reference=false", f"--vllm_python={sys.executable}", f"--work={work}"]
        assert cli.run(["bench", *self.SMALL, *mixed, *words, f"--output={out}"]) == 0
        report, printed = json.loads(out.read_text()), capsys.readouterr().out
        assert "vLLM's tokens agree on text" in printed
        assert "  vllm  " in printed
        if work == "batch":
            assert report["vllm_over_jax"]["total_seconds"] < 1  # it only adds
            assert report["vllm_agreement"]["tokens"] < 1
        else:
            assert set(report) == {"settings", "device", "engine", "batches", "vllm"}

    def test_a_tokenizer_decides_the_vocabulary(self, monkeypatch, tmp_path, tiny_checkpoint):
        monkeypatch.setattr(cli, "set_up_logging", lambda level: None)
        words = ["--reference=false", f"--tokenizer={tiny_checkpoint}"]
        assert cli.run(["bench", *self.SMALL, *words]) == 0
        words.append(f"--checkpoint={tiny_checkpoint}")
        with pytest.raises(UserError, match="tokenizer is for random weights"):
            cli.run(["bench", *self.SMALL, *words])

    def test_without_the_reference(self, monkeypatch, tmp_path):
        monkeypatch.setattr(cli, "set_up_logging", lambda level: None)
        out = tmp_path / "bench.json"
        words = [*self.SMALL, "--config.reference=false", f"--config.output={out}"]
        assert cli.run(["bench", *words]) == 0
        assert not {"torch", "token_agreement"} & set(json.loads(out.read_text()))

    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("height=30", "height is 30; use a multiple of 28"),
            ("frames=0", "frames is 0; use a positive number"),
            ("repeats=0", "repeats is 0; use 1 or more"),
            (
                "vllm_python=/nowhere/python",
                "vllm_python: /nowhere/python: no such program; give the",
            ),
        ],
    )
    def test_refusals(self, monkeypatch, word, message):
        monkeypatch.setattr(cli, "set_up_logging", lambda level: None)
        with pytest.raises(UserError, match=message):
            cli.run(["bench", f"--config.{word}"])


class TestInspect:
    def test_json_agrees_with_caption(self, run, clips, capsys, shared_captioner):
        names = [clips / "a.mp4", clips / "silent.mp4", "missing.mp4"]
        assert run("inspect", *SMALL[:-1], "--config.json=true", *names) == 0
        a, silent, missing = map(json.loads, capsys.readouterr().out.splitlines())
        assert (a["frames"], a["sample_fps"], a["has_audio"]) == (4, pytest.approx(4 / 1.2), True)
        assert len(a["instants"]) == 4
        assert a["instants"] == sorted(a["instants"])
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
        settings, a, silent, broken = capsys.readouterr().out.strip().split("\n\n")
        assert settings.startswith("settings\n  clip     preset=qwen, frames=4, min_frames=4")
        assert "\n  sampling temperature=0.0, top_k=0, top_p=1.0" in settings
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
