"""launch/paper.sh: what it says without running, its commands, its data, its resuming."""

import ast
import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_results import captions, options, result

from ugc_jax import cli, sharding
from ugc_jax.errors import UserError
from ugc_jax.evals.results import read_result
from ugc_jax.evals.tasks import FORMS
from ugc_jax.models.qwen2_5_omni.config import omni_3b, omni_7b
from ugc_jax.plan import chips
from ugc_jax.plan import grpo as plan_grpo
from ugc_jax.plan.chips import Chip
from ugc_jax.plan.flops import step_flops
from ugc_jax.plan.memory import Memory
from ugc_jax.plan.shapes import TypicalClip, batch_shapes

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = [[], ["--rl-only"], ["--sft-10k"], ["--sft-20k"]]


def load(name: str):
    """A module of launch/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "launch" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


paper, paper_data = load("paper"), load("paper_data")


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def steps(*words):
    args = paper.options([str(word) for word in words])
    return args, paper.steps_of(args)


# ---- without --go --------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", [[], ["--toy"], ["--lora", "--chips=v5e:4x4", "--rows=100"]])
@pytest.mark.parametrize("key", [None, "sk"])
def test_one_screen_that_needs_nothing_installed(variant, kind, key, tmp_path):
    """-S: without any installed package; the folder of the results is not made."""
    words = [*variant, *kind, "--run", str(tmp_path / "run")]
    env = {"PATH": "/none"} | ({"OPENAI_API_KEY": key} if key else {})
    command = [sys.executable, "-I", "-S", str(ROOT / "launch/paper.py"), *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 50
    folder = str(tmp_path)
    assert max(len(line.replace(folder, "")) for line in lines) <= 100
    assert lines[-1].startswith("Nothing ran.")
    assert list(tmp_path.iterdir()) == []
    if "--toy" not in kind:
        assert "chip-hours: an estimate" in done.stdout
        assert ("questions for each model" in done.stdout) == bool(key)
        assert ("captions are left out" in done.stdout) == (not key)


def test_hours():
    args, made = steps("--chips=v5e:4x4")
    work = 1000 * 3 / 16 * 1686e12
    slow, fast = made["sft_1k"].hours
    assert fast == pytest.approx(work / (16 * 197e12 * 0.4) / 3600, rel=0.01)
    assert slow == pytest.approx(2 * fast)
    (_, larger) = steps("--chips=v5e:4x8")
    assert larger["sft_1k"].hours[0] == pytest.approx(slow / 2)
    assert larger["scores base"].hours == made["scores base"].hours  # one chip answers


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sft-10k", "--rl-only"], "not allowed with"),
        (["--toy", "--rows=3"], "leave out --rows"),
        (["--chips=v9"], "--chips v9: give one of"),
        (["--chips=v5e:0"], "--chips v5e:0: give one of"),
        (["--run=gs://bucket/paper"], "give a local or mounted folder"),
        (["--rows=0"], "--rows is 0; give 1 or more"),
        (["--data=/none"], "--data /none: is no folder"),
        (["--videos=/none"], "--videos /none: is no folder"),
        (["--set", "plan=--x"], "--set plan: write JOB=FLAGS, of extract, sft, grpo, evaluate"),
    ],
)
def test_wrong_use(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        paper.options(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_rows_that_are_not_released_are_missed_before_it_runs(tmp_path):
    def said(*words):
        args, made = steps(*words)
        return paper.overview(made, args)

    assert "is to be given" not in said()
    assert "sft_20k.jsonl is to be given, in the folder --data" in said("--sft-20k")
    assert "sft_20k.jsonl is to be given" in said("--sft-20k", f"--data={tmp_path}")
    (tmp_path / "sft_20k.jsonl").touch()
    assert "is to be given" not in said("--sft-20k", f"--data={tmp_path}")


def test_peaks_are_those_of_plan():
    table = {chip.name.lower().partition(" ")[0]: chip.flops for chip in chips._CHIPS.values()}
    assert {name: table[name] / 1e12 for name in paper.TFLOPS} == paper.TFLOPS


@pytest.mark.parametrize(
    "name",
    ["sft_3b", "sft_3b:lora", "grpo_3b", "sft_7b", pytest.param("grpo_7b", marks=pytest.mark.slow)],
)
def test_operations_are_those_of_plan(name, monkeypatch):
    job = name.partition("_")[0]
    config, _ = cli.load_job(job).SETTINGS.parse([f"--config={name}"])
    mesh, size = sharding.make_mesh(), name[-2:] if ":" not in name else name[-7:-5]
    model = {"3b": omni_3b, "7b": omni_7b}[size]()
    key = TypicalClip().bucket(config.data, model, packing=job == "sft")
    batch = batch_shapes(key, config.data.batch_size, model, mesh)
    setup = config.setup(model, mesh, 1)
    setup = dataclasses.replace(
        setup, compute=dataclasses.replace(setup.compute, attention="xla", dtype="bfloat16")
    )
    if job == "sft":
        counted = step_flops(setup, batch)
    else:
        monkeypatch.setattr(plan_grpo, "compiled_memory", lambda *_, **__: Memory(1, 1, 1, 1))
        monkeypatch.setattr(plan_grpo, "chip_in", lambda mesh: Chip("test", 1e12, 1))
        programs = plan_grpo.plan_grpo(setup, config.grpo, config.rollout, batch).programs
        counted = sum(program.flops for program in programs)
        asked = sum(one.flops for one in programs if one.name in ("vision", "audio", "prefill"))
        assert pytest.approx(asked / 1e12 / 16, rel=0.05) == paper.QUESTION_TFLOP[size]
    assert paper.WORK[name] == (pytest.approx(counted / 1e12, rel=0.01), config.data.batch_size)


def test_counts_are_those_of_the_release():
    assert {name: FORMS[name].count for name in paper.TASKS} == paper.TASKS
    parts = ",".join((paper.OPTIONS, *paper.JUDGED)).split(",")
    assert parts == list(paper.TASKS)
    assert [FORMS[name].score is None for name in parts] == [False] * 3 + [True] * 3
    constants = (paper.ROWS_FROM, paper.CLIPS_FROM)
    assert constants == (paper_data.ROWS_FROM, paper_data.CLIPS_FROM)


# ---- the commands --------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", [["--toy"], ["--lora"], [], ["--size=7b"]])
def test_every_job_understands_its_words(variant, kind, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk")
    _, made = steps(*variant, *kind, "--set", "grpo=--steps 2 --beta 0")
    assert list(made)[-1] == "report"
    for step in made.values():
        for job, *words in step.jobs:
            config, arguments = cli.load_job(job).SETTINGS.parse(words)
            assert bool(arguments) == bool(cli.JOBS[job].arguments)
            if job == "grpo":
                assert (config.loop.steps, config.grpo.beta) == (2, 0)


def test_stages_build_on_each_other():
    def checkpoints(*words):
        args, made = steps(*words)
        found = {}
        for step in made.values():
            for job, *rest in step.jobs:
                if job in ("sft", "grpo", "evaluate"):
                    config, _ = cli.load_job(job).SETTINGS.parse(rest)
                    start = config.ask.checkpoint if job == "evaluate" else config.checkpoint
                    found[step.name] = start.removeprefix(f"{args.run}/")
        return found

    base = "Qwen/Qwen2.5-Omni-3B"
    assert checkpoints() == {
        "sft_1k": base,
        "sft_1k+grpo_1k": "sft_1k",
        "scores base": base,
        "scores sft_1k": "sft_1k/model",
        "scores sft_1k+grpo_1k": "sft_1k+grpo_1k/model",
    }
    assert checkpoints("--rl-only")["grpo_1k"] == base
    assert set(checkpoints("--sft-20k")) == {"sft_20k", "scores base", "scores sft_20k"}


def test_a_judge_adds_its_tasks(monkeypatch):
    _, without = steps()
    assert [dict(zip(job[1::2], job[2::2], strict=True))["--task"]
            for job in without["scores base"].jobs] == ["voice_source,tone,ocr"]  # fmt: skip
    _, own = steps("--set", "evaluate=--judge.base_url http://localhost/v1 --judge.model m")
    monkeypatch.setenv("OPENAI_API_KEY", "sk")
    _, openai = steps()
    for made, name in ((own, "m"), (openai, "gpt-4o-2024-08-06")):
        parsed = [
            cli.load_job("evaluate").SETTINGS.parse(list(words))[0]
            for _, *words in made["scores base"].jobs
        ]
        assert [one.task for one in parsed] == [paper.OPTIONS, paper.ANSWERS, paper.CAPTION]
        assert [one.judge.temperature for one in parsed[1:]] == [0.0, 1.0]
        assert {one.judge.model for one in parsed[1:]} == {name}


# ---- running -------------------------------------------------------------------------------------


class Fake:
    """Takes the place of paper.run and of the data: notes the jobs; `broken` fails."""

    def __init__(self, monkeypatch, run):
        self.jobs, self.broken = [], None
        self.words = ["--go", "--run", str(run)]
        monkeypatch.setattr(paper, "run", self.run)
        monkeypatch.setattr(paper, "prepare", lambda args, names: None)
        monkeypatch.setattr(paper, "join", lambda *_: None)

    def run(self, words):
        self.jobs.append(words[words.index("ugc_jax.cli") + 1] if "-m" in words else words[:2])
        return 3 if self.jobs[-1] == self.broken else 0

    def __call__(self, *words):
        self.jobs = []
        return paper.main([*self.words, *words])


@pytest.fixture
def fake(monkeypatch, tmp_path):
    return Fake(monkeypatch, tmp_path / "run")


ALL = ["extract"] * 2 + ["sft", "grpo"] + ["evaluate"] * 3 + ["compare", "report"]


def test_a_stopped_run_continues(fake, capsys):
    fake.broken = "grpo"
    assert fake() == 3
    assert fake.jobs == ALL[:4]
    assert "sft_1k+grpo_1k ended with status 3" in capsys.readouterr().err
    fake.broken = None
    assert fake() == 0
    assert fake.jobs == ALL[3:]
    assert fake() == 0
    assert fake.jobs == []
    assert paper.main(fake.words[1:]) == 0
    assert capsys.readouterr().out.count("  finished\n") >= len(ALL)


def test_other_settings_run_a_step_and_what_builds_on_it_again(fake):
    assert fake() == 0
    assert fake("--set", "grpo=--steps 9") == 0
    assert fake.jobs == ["grpo", "evaluate", "compare", "report"]
    assert fake("--set", "sft=--steps 9") == 0
    assert fake.jobs == ["sft", "grpo", "evaluate", "evaluate", "compare", "report"]


def test_ablations_share_records_and_the_scores_of_the_base(fake):
    assert fake() == 0
    assert fake("--rl-only") == 0
    assert fake.jobs == ["grpo", "evaluate", "compare", "report"]


def test_a_launcher_runs_the_training(fake):
    assert fake("--launcher", "bash tpu.sh") == 0
    assert fake.jobs == [*ALL[:2], ["bash", "tpu.sh"], ["bash", "tpu.sh"], *ALL[4:]]


def test_a_signal_reaches_the_job(tmp_path):
    """It may save what it has; the script ends with its status."""
    waiting = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); "
    waiting += f"open({str(tmp_path / 'started')!r}, 'w'); time.sleep(60)"
    script = f"import paper, sys; sys.exit(paper.run([sys.executable, '-c', {waiting!r}]))"
    env = os.environ | {"PYTHONPATH": str(ROOT / "launch")}
    process = subprocess.Popen([sys.executable, "-c", script], env=env)
    deadline = time.monotonic() + 30
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143


def test_the_shell_script_installs_only_to_run(tmp_path):
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    (tmp_path / "launch/paper.py").write_text("import sys; print('ran', *sys.argv[1:])")
    venv = f'root="{tmp_path}"\npython="{sys.executable}"\nusable() {{ true; }}\n'
    (tmp_path / "launch/venv.sh").write_text(venv + 'install() { echo "install $*"; }\n')

    def run(*words, **env):
        command = ["bash", str(tmp_path / "launch/paper.sh"), *words]
        return subprocess.run(command, env=os.environ | env, capture_output=True, text=True).stdout

    assert run("--toy") == "ran --toy\n"
    assert f"install package --editable {tmp_path}[train,eval,judge]\nran --go" in run("--go")
    assert f"--editable {tmp_path}[train,eval,judge,tpu]\n" in run("--go", EXTRA="tpu")


def test_parts_are_joined_to_one_result(tmp_path):
    parts = [tmp_path / "a.json", tmp_path / "b.json"]
    parts[0].write_text(json.dumps(options(result("m"), "tone", ["Yes", "No"], ["Yes", "Yes"])))
    parts[1].write_text(json.dumps(captions("m", [(1, 2, 3), (4, 5, 5)])))
    paper.join(parts, tmp_path / "whole.json", toy=False)
    whole = read_result(tmp_path / "whole.json")
    assert set(whole["tasks"]) == set(whole["clips"]) == {"tone", "final_caption"}
    assert "needs a judge" in whole["unscored"]["objects"]
    assert whole["average"] is None  # of eight columns


# ---- the data ------------------------------------------------------------------------------------


def release(folder: Path, names=("train_data", "omni_bench_qa")) -> Path:
    """Two training files that share a clip, and two tasks, with the folders of the repository."""
    train, qa = (folder / name for name in names)
    train.mkdir(parents=True)
    qa.mkdir()
    for name, ids in (("sft_1k", "abc"), ("grpo_1k", "cde")):
        rows = [{"videos": [f"train_video/{one}.mp4"], "messages": []} for one in ids]
        (train / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [{"video_id": one, "answer": "Yes", "options": ["Yes", "No"]} for one in "xyz"]
    content = {"question": "?", "valid_count": 3, "samples": samples}
    (qa / "tone.json").write_text(json.dumps(content))
    rows = [{"video_id": one, "ocr": ["a"]} for one in "xyz"]
    (qa / "ocr.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def videos(folder: Path, ids="abcdexyz") -> Path:
    (folder / "below").mkdir(parents=True)
    for one in ids:
        (folder / "below" / f"{one}.mp4").touch()
    return folder


def prepare(tmp_path, source, clips, **settings):
    names, tasks = ["sft_1k", "grpo_1k"], ["tone", "ocr"]
    paper_data.prepare(tmp_path / "out", source, clips, names, tasks, **settings)
    rows = [json.loads(line) for line in (tmp_path / "out/sft_1k.jsonl").read_text().splitlines()]
    return [row["videos"] for row in rows]


@pytest.mark.parametrize("names", [("train_data", "omni_bench_qa"), ("train", "qa")])
def test_manifests(names, tmp_path, capsys):
    source, clips = release(tmp_path / "release", names), videos(tmp_path / "clips")
    paths = prepare(tmp_path, source, clips)
    assert paths == [[str(clips / "below" / f"{one}.mp4")] for one in "abc"]
    out = capsys.readouterr().out
    assert "no clip of training is among the 3 of the benchmark" in out
    assert "1 clips are in both sft_1k and grpo_1k" in out
    tone = tmp_path / "out/qa/tone.json"
    before = tone.stat().st_mtime_ns
    prepare(tmp_path, source, clips)
    assert tone.stat().st_mtime_ns == before  # so that finished steps stay finished
    assert len(prepare(tmp_path, source, clips, rows=2)) == 2
    assert json.loads(tone.read_text())["valid_count"] == 2
    assert len((tmp_path / "out/qa/ocr.jsonl").read_text().splitlines()) == 2


def test_wrong_data(tmp_path, capsys):
    source, clips = release(tmp_path / "release"), videos(tmp_path / "clips", "abcdexy")
    with pytest.raises(UserError, match=r"benchmark: 1 of 3 videos are not .*--allow-missing"):
        prepare(tmp_path, source, clips)
    assert len(prepare(tmp_path, source, clips, allow_missing=True)) == 3
    assert "1 of 3 videos are not in" in capsys.readouterr().out
    other = videos(tmp_path / "other", "q")
    with pytest.raises(UserError, match=r"sft_1k: 3 of 3 videos are not in .*_urls\.txt"):
        prepare(tmp_path, source, other, allow_missing=True)
    with pytest.raises(UserError, match="is no folder; give that of the videos by --videos"):
        prepare(tmp_path, source, tmp_path / "absent")
    train = source / "train_data/sft_1k.jsonl"
    train.write_text(json.dumps({"videos": ["somewhere/y.mp4"]}) + "\n")
    with pytest.raises(UserError, match=r"sft_1k\.jsonl: 1 of its clips are in the benchmark.* y;"):
        prepare(tmp_path, source, clips)
    train.write_text("[]\n")
    with pytest.raises(UserError, match=r"sft_1k\.jsonl:1: has no list `videos`"):
        prepare(tmp_path, source, clips)
    with pytest.raises(UserError, match="no sft_20k.jsonl, of which the rows are not released"):
        paper_data.find_file(source, "sft_20k.jsonl")


def test_the_released_rows(shared_data, tmp_path, capsys):
    source, clips = shared_data / "ugc_videocap", tmp_path / "clips"
    clips.mkdir()
    ids = set()
    for name in ("sft_1k", "grpo_1k"):
        pairs = paper_data.training_rows(source, name, None)
        assert len(pairs) == paper.ROWS[name]
        ids |= {one for one, _ in pairs}
    for task in paper.TASKS:
        text = paper_data.questions(source, task, None)
        rows = text.splitlines() if task == "ocr" else json.loads(text)["samples"]
        assert len(rows) == paper.TASKS[task]
        ids |= {(json.loads(row) if task == "ocr" else row)["video_id"] for row in rows}
    for one in ids:
        (clips / f"{one}.mp4").touch()
    names = ["sft_1k", "grpo_1k"]
    paper_data.prepare(tmp_path / "out", source, clips, names, list(paper.TASKS))
    out = capsys.readouterr().out
    assert "no clip of training is among the 1000 of the benchmark" in out
    assert "55 clips are in both sft_1k and grpo_1k" in out


def test_only_the_library_of_python_before_it_runs():
    tree = ast.parse((ROOT / "launch/paper.py").read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in top if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
