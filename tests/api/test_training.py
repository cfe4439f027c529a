"""ugc_jax.sft and ugc_jax.grpo: the figures of the jobs, data of several forms, mistakes."""

import dataclasses
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import ugc_jax
from ugc_jax import UserError
from ugc_jax.api import rows as api_rows
from ugc_jax.api import training
from ugc_jax.cli import run
from ugc_jax.jobs import grpo as grpo_job
from ugc_jax.jobs import sft as sft_job
from ugc_jax.rl.rewards.runner import RewardConfig
from ugc_jax.train import loop
from ugc_jax.train.optimizer import OptimizerConfig
from ugc_jax.train.settings import SftConfig

pytestmark = pytest.mark.usefixtures("one_device")

SMALL = dict(fps=2, min_pixels=56 * 56, max_pixels=56 * 56, workers=1)
OWN = """
def vowels(prompt, completion, reference, metadata):
    if len(completion) % 5 == 0:
        raise ValueError("as a failure is counted alike")
    return sum(letter in "aeiou" for letter in completion) / max(len(completion), 1)

async def later(prompt, completion, reference, metadata):
    return float(metadata["mark"]) * len(completion)

REWARDS = {"vowels": vowels, "later": later}
"""
OF_THE_NAME = ("id", "crc32")  # of a line of the index
TIMES = ("seconds", "per_second", "data_wait", "memory", "mfu")


@pytest.fixture(scope="module")
def train(clips) -> list[dict]:
    """Rows of four clips with their captions."""
    return [
        {"videos": [str(clips / name)], "caption": f"A clip called {name}.", "mark": number}
        for number, name in enumerate(("a.mp4", "b.mp4", "below/c.mp4", "silent.mp4"))
    ]


@pytest.fixture(scope="module")
def folder(train, tmp_path_factory) -> Path:
    """A folder with the rows as a manifest, extracted by the job, and the rewards as a file."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    (folder / "own.py").write_text(OWN)
    words = [f"--{name}={value}" for name, value in SMALL.items()]
    assert run(["extract", *words, "--output", f"{folder}/records", f"{folder}/train.jsonl"]) == 0
    return folder


@pytest.fixture
def options(tiny_checkpoint, tmp_path) -> dict:
    """Options of both: two steps of two rows."""
    return dict(
        checkpoint=tiny_checkpoint,
        output=tmp_path / "python",
        steps=2,
        batch_size=2,
        tokens=256,
        data={"workers": 0},
        loop={"log_every": 1, "export_dtype": "float32"},
    )


def figures(folder: Path) -> list[dict]:
    """The metrics of a run, without its times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not any(part in name for part in TIMES)}
        for line in lines
    ]


def assert_same_runs(one: Path, other: Path):
    assert figures(one) == figures(other) != []
    before, after = (load_file(path / "model/model.safetensors") for path in (one, other))
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def test_sft_has_the_figures_of_the_job(options, train, folder, tiny_checkpoint, tmp_path):
    words = (
        f"--checkpoint {tiny_checkpoint} --output {tmp_path}/job --train {folder}/records "
        f"--eval {folder}/records --steps 2 --batch_size 2 --tokens 256 --data.workers 0 "
        "--learning_rate 0.01 --loop.log_every 1 --loop.samples 1 --max_new_tokens 4 "
        "--loop.export_dtype float32"
    )
    assert run(["sft", *words.split()]) == 0
    options["loop"]["samples"] = 1
    result = ugc_jax.sft(
        train,
        eval=train,
        extract=SMALL,
        max_new_tokens=4,
        optimizer=OptimizerConfig(learning_rate=0.01),
        **options,
    )
    assert_same_runs(tmp_path / "job", Path(result.output))
    # what the run says of itself is what its files say
    steps, losses = result.metrics["loss"]
    assert (steps.dtype, losses.dtype) == (np.int64, np.float64)
    assert steps.tolist() == [1, 2]
    logged = figures(tmp_path / "job")
    assert losses.tolist() == [line["loss"] for line in logged if "loss" in line]
    assert result.metrics["eval_loss"].steps.tolist() == [2]
    assert [row["step"] for row in result.tables["samples"]] == [2]
    assert isinstance(result.config, SftConfig)
    assert (result.config.loop.steps, result.config.optimizer.learning_rate) == (2, 0.01)
    assert result.adapter is None
    assert (result.model / "captioner.json").exists()


def test_grpo_has_the_figures_of_the_job(options, train, folder, tiny_checkpoint, tmp_path):
    """The functions of a file, once by the file and once as functions of this program."""
    words = (
        f"--checkpoint {tiny_checkpoint} --output {tmp_path}/job --train {folder}/records "
        "--steps 2 --batch_size 2 --tokens 256 --data.workers 0 --learning_rate 0.01 --samples 3 "
        "--max_new_tokens 6 --grpo.mask_truncated=false --loop.export_dtype float32 "
        f"--rewards.file {folder}/own.py --functions vowels=1,later=0.5,repetition=0.25 "
        "--rewards.retries 0"
    )
    assert run(["grpo", *words.split()]) == 0
    content: dict = {}
    exec(compile(OWN, "a cell", "exec"), content)  # as in a notebook
    functions = [content["vowels"], (content["later"], 0.5), "repetition=0.25"]
    result = ugc_jax.grpo(
        train,
        rewards={"functions": functions, "retries": 0},
        extract=SMALL,
        learning_rate=0.01,
        samples=3,
        max_new_tokens=6,
        grpo={"mask_truncated": False},
        **options,
    )
    assert_same_runs(tmp_path / "job", Path(result.output))
    assert result.metrics["rewards/vowels/mean"].steps.tolist() == [1, 2]
    assert result.config.rewards.functions == "vowels,later=0.5,repetition=0.25"
    completions = result.tables["completions"]
    assert len(completions) == len((tmp_path / "job/completions.jsonl").read_text().splitlines())
    shares = result.metrics["rewards/vowels/failed"].values
    failed = sum(len(one["completion"]) % 5 == 0 for one in completions)
    assert 6 * shares.sum() == pytest.approx(failed)
    assert failed > 0


class Dataset:
    """What is used of a `datasets.Dataset`: it yields its rows as dicts."""

    def __init__(self, rows):
        self._rows = rows
        self.column_names = list(rows[0])

    def __len__(self):
        return len(self._rows)

    def __iter__(self):
        return iter(self._rows)


def test_forms_of_data_give_the_same_records(train, folder, tmp_path):
    config = api_rows.extraction(SMALL)
    read = {}
    odd = [row | {"videos": tuple(map(Path, row["videos"])), "mark": np.int64(3)} for row in train]
    train = [row | {"mark": 3} for row in train]
    (folder / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    sources = {
        "list": odd, "dataset": Dataset(train), "iterator": iter(train),
        "file": folder / "other.jsonl",
    }  # fmt: skip
    for name, data in sources.items():
        place = api_rows.records_of(data, "train", str(tmp_path / name), config)
        index = Path(place, "index.jsonl").read_text().splitlines()
        read[name] = [
            {key: value for key, value in json.loads(line).items() if key not in OF_THE_NAME}
            for line in index
        ]
        assert Path(place).parent == tmp_path / name / "records"
    assert read["list"] == read["dataset"] == read["iterator"] == read["file"]
    index = (Path(place) / "index.jsonl").read_text()
    assert json.loads(index.splitlines()[2])["id"] == "other.jsonl:3"
    (place,) = (tmp_path / "list/records").iterdir()
    assert json.loads((place / "index.jsonl").read_text().splitlines()[2])["id"] == "train[2]"


def test_records_are_extracted_once(train, tmp_path, monkeypatch):
    config = api_rows.extraction(SMALL)
    first = api_rows.records_of(train[:2], "train", str(tmp_path), config)
    with monkeypatch.context() as patch:
        patch.setattr(api_rows.extract, "write_records", lambda *_: pytest.fail("extracted again"))
        assert api_rows.records_of(train[:2], "train", str(tmp_path), config) == first
    others = [
        api_rows.records_of(train[1:2], "train", str(tmp_path), config),
        api_rows.records_of(train[:2], "eval", str(tmp_path), config),
        api_rows.records_of(
            train[:2], "train", str(tmp_path), api_rows.extraction(SMALL | {"quality": 80})
        ),
    ]
    assert len({first, *others}) == 4


def test_too_many_clips_fail(train, clips, options):
    broken = [{"path": str(clips / "broken.mp4"), "caption": "Cut."}, *train[:2]]
    with pytest.raises(UserError, match=r"^train: 1 of 3 clips failed, .*failures.jsonl says why"):
        ugc_jax.sft(broken, extract=SMALL, **options)
    with pytest.raises(UserError, match=r"^train: 1 of 3 clips failed"):  # tried again
        ugc_jax.sft(broken, extract=SMALL, **options)


def test_stopped_and_called_again(options, folder, monkeypatch):
    """The second call goes on, the third one has nothing to do."""
    with monkeypatch.context() as patch:
        patch.setattr(loop.StopRequest, "after", lambda _, step: True)
        patch.setattr(loop.StopRequest, "status", 130)
        with pytest.raises(KeyboardInterrupt):
            ugc_jax.sft(f"{folder}/records", **options)
    steps = []
    write = loop.Loop._report
    monkeypatch.setattr(
        loop.Loop,
        "_report",
        lambda self, step, values: (steps.append(step), write(self, step, values)),
    )
    for _ in range(2):
        result = ugc_jax.sft(f"{folder}/records", **options)
        assert result.metrics["loss"].steps.tolist() == [1, 2]
        assert (Path(result.model) / "config.json").exists()
    assert steps == [2]


SCRIPT = """
import sys
import ugc_jax
from ugc_jax import sharding
import jax

mesh = sharding.make_mesh(devices=jax.devices()[:1])
sharding.make_mesh = lambda **_: mesh
print("begun")
PER_LETTER = 0.5


def letters(prompt, completion, reference, metadata):
    return PER_LETTER * len(completion)


run = ugc_jax.grpo(
    {rows!r}, rewards=[letters], checkpoint={checkpoint!r}, output="out", steps=1, batch_size=1,
    samples=2, max_new_tokens=4, tokens=256, grpo=dict(mask_truncated=False), data=dict(workers=1),
    extract={extract!r},
)
for one in run.tables["completions"]:
    assert one["rewards/letters"] == 0.5 * len(one["completion"]), one
print("ended", run.metrics["rewards/letters/failed"].values)
"""


def test_a_script_without_a_guard(train, tiny_checkpoint, tmp_path):
    """Workers run neither the script nor see its name; its functions and globals are copied."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(rows=train[:1], checkpoint=str(tiny_checkpoint), extract=SMALL))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "begun\nended [0.]\n", done.stderr
    assert done.returncode == 0
    assert " I step 1/1:" in done.stderr  # progress as of the job


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(lerning_rate=1e-3), "lerning_rate: unknown setting; did you mean learning_rate"),
        (
            dict(optimizer={"learning_rat": 1}),
            "optimizer.learning_rat: .*did you mean learning_rate",
        ),
        (
            dict(optimzer={"learning_rate": 1}),
            "optimzer.learning_rate: .*did you mean learning_rate",
        ),
        (dict(optimizer=3), "optimizer: is a section; set one of"),
        (dict(steps="2"), "steps: expected INTEGER.*got '2'"),
        (dict(loop={"steps": 2.5}), "loop.steps: expected INTEGER.*got 2.5"),
        (dict(packing=1), "packing: expected true|false, got 1"),
        (dict(config=3), "config: expected a name, a file or SftConfig, got 3"),
        (dict(checkpoint=None), "option checkpoint is required: directory"),
        (dict(output=3), "output: expected TEXT, got 3"),
        (dict(train=3), "train: expected records, a manifest or a list of dicts, got 3"),
        (dict(train={"path": "a.mp4"}), "train: expected .* list of dicts, got"),
        (dict(train=["a.mp4"]), r"train\[0\]: expected a dict, got 'a.mp4'"),
        (dict(train=[{"path": b"a"}]), r"train\[0\]: b'a' is no JSON value"),
        (dict(eval=[3]), r"eval\[0\]: expected a dict, got 3"),
        (dict(extract={"fsp": 1}), "fsp: unknown setting; did you mean fps"),
        (dict(extract=3), "extract: expected a dict of options"),
        (dict(extract={"output": "x"}), "extract: output is of the job on the command line"),
    ],
)
def test_types_and_names_of_options(options, train, changes, message):
    data = changes.pop("train", train)
    with pytest.raises(TypeError, match=message):
        ugc_jax.sft(data, **{"extract": SMALL} | options | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(steps=0), "loop.steps is 0; use 1 or more"),
        (dict(optimizer={"name": "adma"}), "optimizer.name: expected adamw"),
        (dict(config="sft_3"), "--config sft_3: no such file or name; did you mean sft_3b"),
        (dict(train=[]), "train: holds no rows"),
        (dict(train=[{"caption": "A."}, {}]), r"train\[0\]: has neither .* 1 more bad row\)"),
        (dict(train="nowhere", extract={"fps": 1}), "extract is for data given as rows"),
        (dict(distributed=True), "distributed: each process would extract the rows"),
        (dict(loop={"export": "best"}), "loop.export=best needs data.eval"),
        (dict(checkpoint="/nowhere"), "/nowhere: no such directory"),
    ],
)
def test_a_value_out_of_range_is_a_users_mistake(options, train, changes, message):
    data = changes.pop("train", train)
    with pytest.raises(UserError, match=message):
        ugc_jax.sft(data, **options | changes)
    assert not (options["output"] / "records").exists()  # nothing was extracted before


def word(prompt, completion, reference, metadata):
    return 1.0


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (3, "rewards: expected a list of functions and names, got 3"),
        (word, "rewards: expected a list of functions"),
        ([3], "rewards: expected a function or a name, got 3"),
        ([lambda *_: 1.0], 'has no name for the metrics; give {"name": function}'),
        ([(word, "2")], r"rewards: expected \(function, weight\)"),
        ({"functions": [word], "timeuot": 3}, "rewards.timeuot: .*did you mean rewards.timeout"),
        ({"functions": [word], "timeout": "3"}, "rewards.timeout: expected NUMBER, got '3'"),
    ],
)
def test_types_of_rewards(options, train, rewards, message):
    with pytest.raises(TypeError, match=message):
        ugc_jax.grpo(train, rewards=rewards, extract=SMALL, **options)


def test_rewards_that_are_refused(options, train, folder):
    records = str(folder / "records")

    def length(prompt, completion, reference, metadata):
        return 1.0

    with pytest.raises(UserError, match="rewards: length is a shipped reward"):
        ugc_jax.grpo(records, rewards=[length], **options)
    with pytest.raises(UserError, match="rewards.functions: unknown 'lenght'; there are length"):
        ugc_jax.grpo(train, rewards=["lenght"], extract=SMALL, **options)
    assert not (options["output"] / "records").exists()  # nothing was extracted before
    both = {"functions": [word], "file": str(folder / "own.py")}
    with pytest.raises(UserError, match="own.py, beside functions; give one or the other"):
        ugc_jax.grpo(records, rewards=both, **options)
    lock = threading.Lock()

    def holds(prompt, completion, reference, metadata):
        return float(lock.locked())

    with pytest.raises(UserError, match=r"rewards: holds cannot be copied .* make what it"):
        ugc_jax.grpo(records, rewards=[holds], **options)


def test_a_config_may_be_an_instance(options, train, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(sft_job, "main", lambda config, _: seen.append(config) or 0)
    monkeypatch.setattr(training.Run, "read", classmethod(lambda _, config: config))
    config = ugc_jax.sft("records", **options)
    assert config is seen[0]
    assert (config.data.train, config.data.workers) == ("records", 0)
    again = ugc_jax.sft(config=config, steps=5)
    assert again == dataclasses.replace(config, loop=dataclasses.replace(config.loop, steps=5))
    named = ugc_jax.sft(config="sft_3b:lora", train="records", output=tmp_path)
    assert (named.data.train, named.output) == ("records", str(tmp_path))
    assert named.lora.rank > 0


def test_functions_take_the_settings_of_their_section(options, monkeypatch):
    seen = []
    monkeypatch.setattr(grpo_job, "run_grpo", lambda *given: seen.append(given) or 0)
    monkeypatch.setattr(training.Run, "read", classmethod(lambda _, config: config))
    forms = [
        [word, ("length", 0.5)],
        {"functions": [(word, 1), "length=0.5"]},
        [({"word": word}, 2), "length=0.5"],
    ]
    for rewards in forms:
        config = ugc_jax.grpo("records", rewards=rewards, **{"rewards.timeout": 3} | options)
        assert config.rewards.timeout == 3
        assert seen[-1][1] == {"word": word}
    named = [given[0].rewards.functions for given in seen]
    assert named == [f"word{weight},length=0.5" for weight in ("", "=1.0", "=2.0")]
    with pytest.raises(TypeError, match="two functions have the name word"):
        ugc_jax.grpo("records", rewards=[word, {"word": print}], **options)
    plain = ugc_jax.grpo("records", rewards=RewardConfig(functions="rouge", timeout=2), **options)
    assert (plain.rewards.functions, plain.rewards.timeout) == ("rouge", 2)


def test_ctrl_c_is_no_status(options):
    training._end(0)
    with pytest.raises(KeyboardInterrupt):
        training._end(128 + signal.SIGINT)
    with pytest.raises(SystemExit, match="143"):
        training._end(128 + signal.SIGTERM)


def test_the_extraction_of_a_call_takes_a_config():
    plain = api_rows.extraction({"config": "world"})
    changed = api_rows.extraction({"config": "world", "fps": 1})
    assert (plain.clip.fps, changed.clip.fps) == (2, 1)
    assert plain.clip.min_pixels == changed.clip.min_pixels == 112 * 112
    with pytest.raises(UserError, match="no such file or name"):
        api_rows.extraction({"config": "wrld"})
