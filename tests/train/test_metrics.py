"""ugc_jax.train.metrics: the files of a run, and going on with them."""

import json
import sys
from types import SimpleNamespace

import pytest
from etils import epath

from ugc_jax.errors import UserError
from ugc_jax.rl.metrics import columns
from ugc_jax.train import metrics
from ugc_jax.train.metrics import COLUMNS, MetricsWriter


def write(folder, steps, begin=0, **options):
    writer = MetricsWriter(folder, begin, {"a": {"b": 1}}, **options)
    for step in steps:
        writer.metrics(step, {"loss": 1.0 / step, "accuracy": 0.5, "mfu": None})
    return writer


def steps_of(folder, name="metrics.jsonl") -> list[int]:
    return [json.loads(line)["step"] for line in (folder / name).read_text().split("\n")[:-1]]


def test_jsonl(tmp_path):
    write(tmp_path, [1, 2]).close()
    first, second = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(second) == {"step": 2, "loss": 0.5, "accuracy": 0.5}


def test_the_table_of_an_older_run_is_left_alone(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n1,1.0\n9,")
    write(tmp_path, [1, 2]).close()
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,1.0\n9,"


def test_a_line_is_in_the_file_at_once(tmp_path):
    writer = write(tmp_path, [1, 2])
    assert steps_of(tmp_path) == [1, 2]
    writer.close()


def test_going_on_takes_out_later_and_half_written_lines(tmp_path):
    writer = write(tmp_path, range(1, 6))
    writer.texts("samples", 5, [{"clip": "a", "caption": "line\u2028separator"}])
    writer.texts("samples", 3, [{"clip": "a", "caption": "line\u2028separator"}])
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    write(tmp_path, [4], begin=3).close()
    assert steps_of(tmp_path) == [1, 2, 3, 4]
    assert steps_of(tmp_path, "samples.jsonl") == [3]


def test_tables_are_those_of_the_run(tmp_path):
    writer = write(tmp_path, [1], tables=("completions",))
    writer.texts("completions", 1, [{"clip": "a", "reward": 0.5, "judge": None}])
    writer.close()
    (row,) = map(json.loads, (tmp_path / "completions.jsonl").read_text().splitlines())
    assert row == {"step": 1, "clip": "a", "reward": 0.5, "judge": None}
    assert not (tmp_path / "samples.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loss", "train/loss"),
        ("grad_norm", "train/grad_norm"),
        ("tokens_per_second", "train/tokens_per_second"),
        ("update_seconds", "train/update_seconds"),
        ("kl", "train/kl"),
        ("eval_loss", "eval/loss"),
        ("eval_reward", "eval/reward"),
        ("eval_rewards/rouge", "eval/rewards/rouge"),
        ("samples", "eval/samples"),
        ("reward", "rollout/reward"),
        ("rewards/rouge/mean", "rollout/rewards/rouge/mean"),
        ("rewards/samples/failed", "rollout/rewards/samples/failed"),
        ("completion_tokens", "rollout/completion_tokens"),
        ("completion_tokens_max", "rollout/completion_tokens_max"),
        ("generated_tokens_per_second", "rollout/generated_tokens_per_second"),
        ("rollout_seconds", "rollout/rollout_seconds"),
        ("completions", "rollout/completions"),
    ],
)
def test_tags_are_grouped(name, expected):
    assert metrics.tag(name) == expected


def test_every_metric_has_a_tag_of_its_own():
    names = [*COLUMNS, *columns(["rouge", "length"])]
    tags = {metrics.tag(name) for name in names}
    assert len(tags) == len(set(names))
    assert {tag.partition("/")[0] for tag in tags} == {"train", "eval", "rollout"}


def test_tensorboard_reads_it(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    writer = write(tmp_path, [1, 2])
    writer.metrics(2, {"eval_loss": 0.25, "reward": 0.75})
    writer.texts("samples", 2, [{"clip": "a.mp4", "reference": "Red.", "caption": "Blue|\nred."}])
    writer.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    content, seen = path.read_bytes(), {}
    while content:  # TFRecord: length, its checksum, the event, its checksum
        size = int.from_bytes(content[:8], "little")
        for value in Event.FromString(content[12 : 12 + size]).summary.value:
            seen.setdefault(value.tag, []).append(value)
        content = content[16 + size :]
    assert [value.simple_value for value in seen["train/loss"]] == [1.0, 0.5]
    assert [value.simple_value for value in seen["eval/loss"]] == [0.25]
    assert [value.simple_value for value in seen["rollout/reward"]] == [0.75]
    assert {tag.partition("/")[0] for tag in seen} == {"train", "eval", "rollout"}
    (text,) = seen["eval/samples/text_summary"][0].tensor.string_val
    assert text.decode().splitlines() == [
        "| clip | reference | caption |",
        "| --- | --- | --- |",
        r"| a.mp4 | Red. | Blue\|<br>red. |",
    ]


def test_weights_and_biases(tmp_path, monkeypatch):
    calls = []
    run = SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
    )
    fake = SimpleNamespace(init=lambda **words: calls.append(words) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        write(tmp_path / "one", [1], wandb_project="captions").close()
    first, line, end, second = calls[:4]
    assert (first["project"], first["name"], first["resume"]) == ("captions", "one", "allow")
    assert first["config"] == {"a": {"b": 1}}
    assert first["id"] == second["id"]
    assert (line, end) == ((1, {"train/loss": 1.0, "train/accuracy": 0.5}), "end")


def test_weights_and_biases_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"loop\.wandb .* pip install wandb"):
        write(tmp_path, [], wandb_project="captions")


def test_a_disk_that_refuses_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: metrics cannot be written \(.*\); free disk space"):
        write(tmp_path / "file", [])


def test_a_copy_that_the_remote_output_refuses_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "is_remote", lambda _: True)
    writer = write(epath.Path(tmp_path / "run"), [1])

    def refuse(self, content):
        raise RuntimeError("403:\nno access")  # remote file systems have errors of their own

    monkeypatch.setattr(type(epath.Path(tmp_path)), "write_bytes", refuse)
    for copy in (writer.publish, writer.close):
        with pytest.raises(UserError) as told:
            copy()
        assert str(told.value) == (
            f"{tmp_path / 'run'}: metrics cannot be written (403: no access); make it writable, "
            "then run again to resume from the last checkpoint"
        )


def test_files_are_copied_to_a_remote_output(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "is_remote", lambda _: True)
    target = epath.Path(tmp_path)
    write(target, [1, 2, 3]).close()
    assert steps_of(tmp_path) == [1, 2, 3]
    writer = write(target, [3], begin=2)
    assert steps_of(tmp_path) == [1, 2, 3]
    writer.metrics(4, {"loss": 0.1})
    writer.publish()
    assert steps_of(tmp_path) == [1, 2, 3, 4]
    writer.close()
    assert list((tmp_path / "tensorboard").iterdir())
