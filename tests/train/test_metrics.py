"""ugc_jax.train.metrics: the files of a run, and going on with them."""

import json
import sys
from types import SimpleNamespace

import pytest
from etils import epath

from ugc_jax.errors import UserError
from ugc_jax.train import metrics
from ugc_jax.train.metrics import COLUMNS, MetricsWriter


def write(folder, steps, begin=0, **options):
    writer = MetricsWriter(folder, begin, {"a": {"b": 1}}, **options)
    for step in steps:
        writer.metrics(step, {"loss": 1.0 / step, "accuracy": 0.5, "mfu": None})
    return writer


def steps_of(folder, name="metrics.jsonl") -> list[int]:
    return [json.loads(line)["step"] for line in (folder / name).read_text().split("\n")[:-1]]


def test_jsonl_and_csv_say_the_same(tmp_path):
    write(tmp_path, [1, 2]).close()
    first, second = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(second) == {"step": 2, "loss": 0.5, "accuracy": 0.5}
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert header == ",".join(("step", *COLUMNS))
    assert rows[1] == "2,0.5,0.5" + "," * (len(COLUMNS) - 2)


def test_a_line_is_in_the_file_at_once(tmp_path):
    writer = write(tmp_path, [1, 2])
    assert steps_of(tmp_path) == [1, 2]
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 3
    writer.close()


def test_going_on_takes_out_later_and_half_written_lines(tmp_path):
    writer = write(tmp_path, range(1, 6))
    writer.texts("samples", 5, [{"clip": "a", "caption": "line\u2028separator"}])
    writer.texts("samples", 3, [{"clip": "a", "caption": "line\u2028separator"}])
    writer.close()
    for name in ("metrics.jsonl", "metrics.csv"):
        with (tmp_path / name).open("a") as file:
            file.write('{"step": 3, "lo' if name.endswith("jsonl") else "3,0.")
    write(tmp_path, [4], begin=3).close()
    assert steps_of(tmp_path) == [1, 2, 3, 4]
    assert steps_of(tmp_path, "samples.jsonl") == [3]
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["step", "1", "2", "3", "4"]


def test_columns_and_tables_are_those_of_the_run(tmp_path):
    """What is new when a run goes on stands after the columns that it began with."""
    options = dict(columns=("loss", "b"), tables=("completions",))
    writer = write(tmp_path, [1], **options)
    writer.texts("completions", 1, [{"clip": "a", "reward": 0.5, "judge": None}])
    writer.close()
    (row,) = map(json.loads, (tmp_path / "completions.jsonl").read_text().splitlines())
    assert row == {"step": 1, "clip": "a", "reward": 0.5, "judge": None}
    assert not (tmp_path / "samples.jsonl").exists()
    write(tmp_path, [2], begin=1, columns=("accuracy", "loss")).close()
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert rows == ["step,loss,b,accuracy", "1,1.0,,", "2,0.5,,0.5"]


def test_tensorboard_reads_it(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    writer = write(tmp_path, [1, 2])
    writer.texts("samples", 2, [{"clip": "a.mp4", "reference": "Red.", "caption": "Blue|\nred."}])
    writer.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    content, seen = path.read_bytes(), {}
    while content:  # TFRecord: length, its checksum, the event, its checksum
        size = int.from_bytes(content[:8], "little")
        for value in Event.FromString(content[12 : 12 + size]).summary.value:
            seen.setdefault(value.tag, []).append(value)
        content = content[16 + size :]
    assert [value.simple_value for value in seen["loss"]] == [1.0, 0.5]
    (text,) = seen["samples/text_summary"][0].tensor.string_val
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
    assert (line, end) == ((1, {"loss": 1.0, "accuracy": 0.5}), "end")


def test_weights_and_biases_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"loop\.wandb .* pip install wandb"):
        write(tmp_path, [], wandb_project="captions")


def test_a_disk_that_refuses_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: metrics cannot be written \(.*\); free the disk"):
        write(tmp_path / "file", [])


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
