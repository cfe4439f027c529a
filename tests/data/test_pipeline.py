"""The pipeline: batches are the plan's, whichever process and worker makes them; exact resumption.

Most tests read made-up records (fake_records); `test_real_records` reads extracted ones.
"""

import dataclasses
import errno
import itertools
import json
import operator
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from multiprocessing import resource_tracker, spawn
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from fake_records import FakeSource

from ugc_jax.data import pipeline
from ugc_jax.data.batching import size_of
from ugc_jax.data.example import build_example
from ugc_jax.data.extract import Extraction, run_local
from ugc_jax.data.manifest import read_manifest
from ugc_jax.data.pipeline import (
    evaluation,
    prompt_batches,
    prompt_evaluation,
    prompts,
    training,
)
from ugc_jax.data.planning import DataConfig, prompt_set, training_set
from ugc_jax.data.records import RecordSource, Storage
from ugc_jax.data.workers import ReadingConfig
from ugc_jax.errors import UserError
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import tiny

CONFIG = tiny()
ALL = range(4)


@pytest.fixture(autouse=True)
def fake_folders(monkeypatch):
    monkeypatch.setattr(pipeline, "RecordSource", FakeSource)


def config(**changes):
    return DataConfig(**(dict(train="1-40", batch_size=4, tokens=600, workers=0) | changes))


@pytest.fixture
def start(tokenizer):
    return lambda rows=ALL, steps=None, epochs=1.0, packing=True, **changes: training(
        config(**changes), tokenizer, CONFIG, rows, steps, epochs, packing
    )


def same(a, b):
    """Batches, or arrays, are equal."""
    jax.tree.map(np.testing.assert_array_equal, a, b)


def whole(source, number, tokenizer):
    entry, media = FakeSource(source)[number]
    return build_example(entry.messages, media, tokenizer, CONFIG, generation_prompt=False)


@pytest.mark.parametrize("packing", [True, False])
def test_batches_hold_the_examples_of_the_plan(packing, start, tokenizer):
    folders = ("1-20", "2-11")
    batches = start(train=",".join(folders), packing=packing)
    seen = []
    for number, batch in enumerate(batches):
        step = batches.plan.step(number)
        assert batch.tokens.shape == (4, step.key.tokens)
        assert batch.media["vision"].patches.shape[1:3] == step.key[1:3]
        assert batch.media["audio"].mel.shape[1] == step.key.chunks
        for b, row in enumerate(step.rows):
            assert batch.segment_ids[b].max() == len(row)
            for segment, (source, record) in enumerate(row, start=1):
                example = whole(folders[source], record, tokenizer)
                at = batch.segment_ids[b] == segment
                np.testing.assert_array_equal(batch.tokens[b, at], example.tokens)
                np.testing.assert_array_equal(batch.positions[b][:, at], example.positions)
                np.testing.assert_array_equal(batch.target[b, at], example.target)
                assert example.target.any()
                seen.append((source, record))
    assert sorted(seen) == [(0, i) for i in range(20)] + [(1, i) for i in range(11)]
    assert len(batches) == number + 1


def test_planned_sizes_are_those_of_the_examples(tokenizer):
    source = FakeSource("3-50")
    sizes = training_set("3-50", source.entries, config(), tokenizer, CONFIG).sizes
    for number, size in enumerate(sizes):
        assert tuple(size) == size_of(whole("3-50", number, tokenizer), CONFIG)


@pytest.mark.parametrize("packing", [True, False])
def test_slices_of_all_processes_are_the_global_batch(packing, start):
    together = list(start(packing=packing))
    for parts in ([(0, 2), (1, 3)], [(i,) for i in range(4)]):
        of_processes = [list(start(rows, packing=packing)) for rows in parts]
        for batch, *pieces in zip(together, *of_processes, strict=True):
            joined = jax.tree.map(lambda *rows: np.concatenate(rows), *pieces)
            order = np.argsort(np.concatenate(parts))
            same(batch, jax.tree.map(operator.itemgetter(order), joined))


def test_workers_change_nothing_and_the_state_is_exact(start):
    """Stopped after k batches with some workers, gone on with others, or in another process."""
    straight = list(start(epochs=4))
    state = None
    taken = 0
    for workers, count in ((2, 3), (0, 2), (1, 100)):
        batches = iter(start(epochs=4, workers=workers))
        if state is not None:
            batches.set_state(pickle.loads(pickle.dumps(state)))
            assert batches.get_state() == state
        for batch in itertools.islice(batches, count):
            same(batch, straight[taken])
            taken += 1
        state = batches.get_state()
        assert state["step"] == taken
        batches.close()
    assert taken == len(straight)
    half = iter(start((2, 3), epochs=4))
    half.set_state(state | {"step": 5})
    same(next(half), jax.tree.map(lambda leaf: leaf[2:], straight[5]))


def test_an_iterator_goes_back_when_it_is_told_to(start):
    batches = iter(start())
    first, begun = next(batches), batches.get_state()
    second = next(batches)
    batches.set_state(begun)
    same(next(batches), second)
    batches.set_state(begun | {"step": 0})
    same(next(batches), first)


def test_the_end_is_the_end(start):
    pipe = start()
    batches = iter(pipe)
    assert len(list(batches)) == len(pipe)
    assert next(batches, None) is None
    again = iter(pipe)
    again.set_state(batches.get_state())
    assert next(again, None) is None
    assert len(list(pipe)) == len(pipe)  # a new pass


def test_state_of_other_data_is_refused(start):
    state = iter(start()).get_state()
    iter(start(epochs=3, workers=4)).set_state(state)  # a longer run goes on
    for changes in ({"train": "1-39"}, {"seed": 1}, {"batch_size": 2}):
        with pytest.raises(UserError, match="at step 0 of other data"):
            iter(start(**changes)).set_state(state)


def test_a_finished_run_goes_on_with_the_whole_of_a_second_epoch(start):
    """What the first epoch left over is in its last step; a plan of two would take it later."""
    settings = dict(train="1-37", packing=False)
    one = start(**settings)
    first = iter(one)
    assert len(list(first)) == len(one)
    state = first.get_state()
    assert state["ends"] == [1.0]
    two = start(**settings, epochs=2)
    unaware = len(two)
    batches = iter(two)
    batches.set_state(pickle.loads(pickle.dumps(state)))
    assert len(two) > unaware
    assert len(list(batches)) == len(two) - len(one)
    taken = Counter(
        entry.id
        for pipe, steps in ((one, range(len(one))), (two, range(len(one), len(two))))
        for entry in itertools.chain.from_iterable(map(pipe.entries, steps))
        if entry is not None
    )
    assert set(taken.values()) == {2}
    assert len(taken) == 37
    # A state of an earlier version does not say where its plan ended; its settings do.
    old = iter(start(**settings, epochs=2))
    old.set_state({"step": state["step"], "data": state["data"]}, (None, 1.0))
    assert old.get_state() == state
    same_length = iter(start(**settings))
    same_length.set_state({"step": state["step"], "data": state["data"]})
    assert same_length.get_state() == state


def test_a_shorter_plan_is_refused_beyond_its_full_steps(start):
    settings = dict(train="1-37", packing=False)
    step = len(start(**settings))
    batches = iter(start(**settings, epochs=2))
    state = batches.get_state() | {"step": step}
    assert iter(start(**settings, epochs=3)).set_state(state, (None, 2.0)) is None
    with pytest.raises(UserError, match=f"at step {step}, beyond the last full one"):
        iter(start(**settings)).set_state(state, (None, 2.0))


def test_load_is_the_step_alone(start):
    pipe = start()
    same(pipe.loader(1), list(pipe)[1])


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_arrive_as_one_line_and_workers_start_no_backend(workers, start):
    """The last record, read after others were laid out, is damaged and tells of its process."""
    assert jax.devices()  # here it is started
    batches = iter(start(train="1-40-broken", shuffle=False, packing=False, workers=workers))
    with pytest.raises(UserError, match=r"1-40-broken: record 39 is damaged") as caught:
        list(batches)
    assert batches.get_state()["step"] > 1
    message = str(caught.value)
    assert "\n" not in message
    process = int(re.search(r"process (\d+)", message)[1])
    assert (process == os.getpid()) == (workers == 0)
    assert f"jax started: {workers == 0}" in message
    batches.close()


def test_a_dead_worker_is_told(start):
    batches = iter(start(workers=1, read_ahead=1, epochs=100))
    next(batches)
    (worker,) = children(os.getpid())
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(UserError, match=r"a worker process died at step \d+ .*data.workers"):
        list(batches)
    batches.close()


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (signal.SIGKILL, r"died at step \d+ \(SIGKILL, perhaps for lack of memory\); lower data.w"),
        (signal.SIGSEGV, r"a worker process died at step \d+ \(SIGSEGV\); lower data.workers or"),
        (signal.SIGBUS, r"no shared memory is left .* at step \d+; enlarge /dev/shm of \d+ MiB \("),
    ],
)
def test_what_killed_a_worker_is_told(start, number, line):
    batches = iter(start(workers=2, read_ahead=1, epochs=100))
    next(batches)
    os.kill(children(os.getpid())[0], number)
    with pytest.raises(UserError, match=rf"^data: .*{line}") as caught:
        list(batches)
    assert "\n" not in str(caught.value)
    batches.close()


def test_a_worker_that_dies_before_it_has_begun_is_told(start):
    """It has read nothing of what it is to do, which is more than a pipe holds (64 KiB)."""
    batches = start(workers=2, epochs=100)
    assert len(pickle.dumps(batches.loader)) > 2**16
    resource_tracker.ensure_running()  # it is a Python of its own
    spawn.set_executable(shutil.which("false"))
    try:
        with pytest.raises(UserError, match="^data: a worker process died at step 0 .*workers=0$"):
            next(iter(batches))
    finally:
        spawn.set_executable(sys.executable)


def test_no_room_for_what_workers_do_is_told(start, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(UserError, match="^data: no file for the workers .* TMPDIR .*workers=0$"):
        next(iter(start(workers=1)))


def test_no_room_for_a_lock_is_told(start, monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pipeline.Pipeline, "from_step", no_room)
    with pytest.raises(UserError, match="^data: no shared memory is left .* data.workers=0$"):
        next(iter(start(workers=1)))
    with pytest.raises(OSError, match="No space left"):  # without workers it is another disk
        next(iter(start(workers=0)))


@pytest.mark.parametrize("size", ["64k", "2M"])
def test_small_shared_memory_is_one_line(size, start, tmp_path):
    """In a namespace of its own, /dev/shm is too small for locks, or for batches."""
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    if shutil.which("unshare") is None or subprocess.run([*inside, mount]).returncode:
        pytest.skip("no namespace of its own for /dev/shm")
    code = "import pickle, sys; list(pickle.load(open(sys.argv[1], 'rb')))"
    (tmp_path / "pipe").write_bytes(pickle.dumps(start(workers=2, read_ahead=3, epochs=20)))
    folders = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    words = shlex.join([sys.executable, "-c", code, str(tmp_path / "pipe")])
    command = f"{mount} && exec {words}"
    done = subprocess.run(
        [*inside, command], env=environment, stderr=subprocess.PIPE, text=True, timeout=60
    )
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("ugc_jax.errors.UserError: data: no shared memory is left")
    assert "enlarge /dev/shm of " in line


def children(pid: int) -> list[int]:
    """Grain's worker processes of a process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_text()
        except OSError:
            continue
        if parent == pid and "spawn_main" in command:
            found.append(int(folder.name))
    return found


def test_workers_stay_at_a_signal_to_all_but_not_without_their_parent(start, tmp_path, tokenizer):
    code = (
        "import pickle, sys, time\n"
        "batches = iter(pickle.load(open(sys.argv[1], 'rb')))\n"
        "next(batches), next(batches)  # one of each worker\n"
        "print('begun', flush=True); time.sleep(60)\n"
    )
    (tmp_path / "pipe").write_bytes(pickle.dumps(start(workers=2, epochs=50)))
    folders = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, "-c", code, str(tmp_path / "pipe")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout.readline() == b"begun\n"
        workers = children(parent.pid)
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker, signal.SIGTERM)
            os.kill(worker, signal.SIGINT)
        time.sleep(0.5)
        assert children(parent.pid) == workers
        parent.kill()
    deadline = time.time() + 20
    while any(running(worker) for worker in workers):
        assert time.time() < deadline, "workers outlive their parent"
        time.sleep(0.1)


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# ---- what is used --------------------------------------------------------------------------------


def test_evaluation_is_one_unshuffled_pass(tokenizer):
    data = config(eval="2-13", workers=5, tokens=400)
    pipe = evaluation(data, tokenizer, CONFIG, ALL, packing=False)
    batches = list(pipe)
    assert sum(int(batch.segment_ids.max(axis=1).sum()) for batch in batches) == 13
    same(batches[0], list(pipe)[0])
    by_shape = {}
    for number in range(len(pipe)):
        step = pipe.plan.step(number)
        by_shape.setdefault(step.key, []).extend(item for row in step.rows for item in row)
    assert all(items == sorted(items) for items in by_shape.values())
    with pytest.raises(UserError, match=r"data.eval: name"):
        evaluation(dataclasses.replace(data, eval=None), tokenizer, CONFIG, ALL)


def test_prompts_hold_the_answer_back(tokenizer):
    source = FakeSource("1-6")
    for number, prompt in zip((4, 1), prompts(source, (4, 1), tokenizer, CONFIG), strict=True):
        trained = whole("1-6", number, tokenizer)
        asked = len(prompt.example.tokens)
        same(prompt.example.positions, trained.positions[:, :asked])
        np.testing.assert_array_equal(prompt.example.tokens, trained.tokens[:asked])
        assert not prompt.example.target.any()
        assert trained.target.nonzero()[0][0] == asked
        assert prompt.answer == source.entries[number].messages[-1]["content"]
        assert tokenizer.decode(trained.tokens[trained.target]) == prompt.answer
        assert prompt.entry.extra == {"number": number}


def test_prompts_of_rows_with_a_solution(tokenizer):
    source = FakeSource("1-2")
    entry = source.entries[1]
    source.entries[1] = entry._replace(messages=entry.messages[:1], solution="<answer>x</answer>")
    (prompt,) = prompts(source, [1], tokenizer, CONFIG)
    assert prompt.answer == "<answer>x</answer>"


# ---- batches of prompts --------------------------------------------------------------------------


def rows_config(**changes):
    return DataConfig(**(dict(train="1-20,2-11", batch_size=4, tokens=600, workers=0) | changes))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_prompts_hold_the_answers_back(tokenizer, workers):
    """A prompt a row, which ends where its answer is to begin; its entry is known beside it."""
    pipe = prompt_batches(rows_config(workers=workers), tokenizer, CONFIG, ALL)
    sources = {name: FakeSource(name) for name in ("1-20", "2-11")}
    seen = []
    for number, batch in enumerate(pipe):
        for row, entry in enumerate(pipe.entries(number)):
            length = (batch.segment_ids[row] > 0).sum()
            if entry is None:
                assert length == 0
                continue
            source, record = entry.id.split("/")
            (asked,) = prompts(sources[source], [int(record)], tokenizer, CONFIG)
            np.testing.assert_array_equal(batch.tokens[row, :length], asked.example.tokens)
            np.testing.assert_array_equal(batch.positions[row, :, :length], asked.example.positions)
            assert not batch.target[row].any()
            assert entry.answer == asked.answer
            seen.append(entry.id)
    assert len(seen) == len({*seen}) == 31


def test_sizes_of_prompts_are_those_of_the_examples(tokenizer):
    source = FakeSource("3-30")
    sizes = prompt_set("3-30", source.entries, rows_config(), tokenizer, CONFIG).sizes
    for size, prompt in zip(sizes, prompts(source, range(30), tokenizer, CONFIG), strict=True):
        assert tuple(size) == size_of(prompt.example, CONFIG)


def test_prompts_need_no_answer_but_have_to_fit(tokenizer, caplog):
    entries = FakeSource("1-40").entries
    entries[3] = entries[3]._replace(messages=entries[3].messages[:1])
    whole_set = prompt_set("d", entries, rows_config(), tokenizer, CONFIG)
    assert whole_set.numbers.tolist() == list(range(40))
    assert not caplog.messages
    limit = int(np.median(whole_set.sizes[:, 0]))
    kept = prompt_set("d", entries, rows_config(tokens=limit), tokenizer, CONFIG)
    assert (kept.sizes[:, 0] <= limit).all()
    (line,) = caplog.messages
    dropped = 40 - len(kept.numbers)
    assert f"{dropped} of 40 examples are dropped: {dropped} over data.tokens={limit}" in line


def test_further_batches_have_one_shape(tokenizer):
    pipe = prompt_batches(rows_config(), tokenizer, CONFIG, ALL, steps=3)
    more = prompt_batches(rows_config(), tokenizer, CONFIG, ALL, steps=3, further=2)
    assert (len(pipe), len(more)) == (3, 9)
    assert len(more.plan.buckets) == 1 < len(pipe.plan.buckets)


def test_the_state_of_prompts_is_exact(tokenizer):
    pipe = prompt_batches(rows_config(), tokenizer, CONFIG, ALL, steps=6)
    straight = list(pipe)
    batches = iter(pipe)
    next(batches)
    again = iter(pipe)
    again.set_state(batches.get_state())
    for batch, wanted in zip(again, straight[1:], strict=True):
        same(batch, wanted)


def test_evaluation_of_the_first_prompts(tokenizer):
    data = rows_config(eval="2-13", workers=3)
    pipe = prompt_evaluation(data, tokenizer, CONFIG, ALL, 5)
    entries = [entry for number in range(len(pipe)) for entry in pipe.entries(number)]
    assert {entry.id for entry in entries if entry} == {f"2-13/{number}" for number in range(5)}


# ---- extracted clips -----------------------------------------------------------------------------


def test_real_records(clips, tokenizer, tmp_path, monkeypatch):
    """Clips through extraction and a worker: their captions are the targets; damage is one line."""
    monkeypatch.setattr(pipeline, "RecordSource", RecordSource)
    captions = {"a.mp4": "red left", "below/c.mp4": "blue grows", "silent.mp4": "no music"}
    lines = ["path,caption", *(f"{clips / name},{text}" for name, text in captions.items())]
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    folder = tmp_path / "records"
    clip = resolve(ClipSettings(fps=2.0, min_pixels=4 * 784, max_pixels=12 * 784))
    rows = read_manifest(tmp_path / "manifest.csv", clip)
    extraction = Extraction(epath.Path(folder), rows, clip, Storage(), shard_clips=64)
    assert not any(run_local(extraction.prepare(), ReadingConfig(workers=1)))
    assert extraction.finish().records == 3

    data = config(train=str(folder), workers=1)
    pipe = training(data, tokenizer, CONFIG, ALL, epochs=2)
    told = []
    for batch in pipe:
        for row in range(4):
            for segment in range(1, batch.segment_ids[row].max() + 1):
                at = batch.segment_ids[row] == segment
                told.append(tokenizer.decode(batch.tokens[row, at & batch.target[row]]))
    assert sorted(told) == sorted([*captions.values()] * 2)

    imports = (
        "import sys; from ugc_jax.data import pipeline, records; "
        "assert not {'grain', 'tensorflow_datasets'} & sys.modules.keys(); "
        f"records.RecordSource({str(folder)!r}); pipeline.BatchIterator(None); "
        "assert {'grain', 'tensorflow_datasets.proto'} <= sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", imports], check=True)  # not first in a thread

    (shard,) = folder.glob("*.array_record*")
    content = bytearray(shard.read_bytes())
    content[1000:1100] = bytes(100)
    shard.write_bytes(content)
    with pytest.raises(UserError, match=rf"{shard.name}: record \d is damaged") as caught:
        list(training(data, tokenizer, CONFIG, ALL))
    assert "\n" not in str(caught.value)


def test_loss_flags_reach_the_mask(tokenizer, tmp_path, monkeypatch):
    """From the manifest through a record; of all tokens only the mask differs."""
    monkeypatch.setattr(pipeline, "RecordSource", RecordSource)
    turns = [("user", "One?"), ("assistant", "red"), ("user", "Two?"), ("assistant", "blue left")]
    clip, found = resolve(ClipSettings()), {}
    for name, flag in (("plain", {}), ("flagged", {"loss": False})):
        messages = [{"role": role, "content": text} for role, text in turns]
        messages[1] |= flag
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"messages": messages}))
        rows = read_manifest(tmp_path / f"{name}.jsonl", clip)
        folder = epath.Path(tmp_path / name)
        extraction = Extraction(folder, rows, clip, Storage(), shard_clips=1)
        list(run_local(extraction.prepare(), ReadingConfig(workers=1)))
        extraction.finish()
        data = config(train=str(folder), batch_size=1)
        (batch,) = training(data, tokenizer, CONFIG, range(1))
        found[name] = batch, tokenizer.decode(batch.tokens[batch.target])
    assert found["plain"][1] == "redblue left"
    assert found["flagged"][1] == "blue left"
    same(found["plain"][0].tokens, found["flagged"][0].tokens)
