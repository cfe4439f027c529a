"""Plans: what is dropped, order, mixture, shapes, limits, and that longer runs begin alike."""

import logging
import re
from collections import Counter

import numpy as np
import pytest
from fake_records import FakeSource

from ugc_jax.data.batching import BucketKey
from ugc_jax.data.planning import (
    WINDOW,
    DataConfig,
    ExampleSet,
    make_plan,
    pack,
    parse_mixture,
    training_set,
    weighted,
)
from ugc_jax.errors import UserError
from ugc_jax.models.qwen2_5_omni.config import tiny

CONFIG = tiny()


def config(**changes):
    return DataConfig(**(dict(train="x", batch_size=4, tokens=512) | changes))


def some(n, seed=0, name="x", most=300):
    """n examples of all sizes, with holes in the numbers of their records."""
    rng = np.random.default_rng(seed)
    columns = [rng.integers(20, most, n), *(rng.integers(0, k, n) for k in (9, 5, 7))]
    return ExampleSet(name, np.arange(n) * 3 + 1, np.stack(columns, 1), name, n)


def rows_of(plan):
    return [row for step in map(plan.step, range(len(plan))) for row in step.rows]


def drawn(plan):
    return [item for row in rows_of(plan) for item in row]


def test_dropped_examples_are_counted_and_told(tokenizer, caplog):
    entries = FakeSource("1-40").entries
    entries[3] = entries[3]._replace(messages=entries[3].messages[:1])
    sizes = training_set("d", entries, config(tokens=600), tokenizer, CONFIG).sizes
    limits = dict(tokens=int(np.median(sizes[:, 0])), chunks=1)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "ugc_jax"):
        kept = training_set("d", entries, config(**limits), tokenizer, CONFIG)
    assert (kept.sizes[:, 0] <= limits["tokens"]).all()
    assert (kept.sizes[:, 3] <= 1).all()
    assert 3 not in kept.numbers
    (line,) = caplog.messages
    assert line.startswith(f"d: {40 - len(kept.numbers)} of 40 examples are dropped: 1 without an ")
    assert re.search(
        rf"{(sizes[:, 0] > limits['tokens']).sum()} over data.tokens=\d+ \(up to", line
    )


def test_a_corrected_caption_is_other_data(tokenizer):
    entries = FakeSource("3-20").entries
    before = training_set("d", entries, config(tokens=600), tokenizer, CONFIG)
    question, answer = entries[7].messages
    moved = {"role": "user", "content": [{"type": "video", "video": "b"}, *question["content"][1:]]}
    for messages, same in (
        ([moved, answer], True),
        ([question, answer | {"content": "No"}], False),
    ):
        changed = [*entries[:7], entries[7]._replace(messages=messages), *entries[8:]]
        after = training_set("d", changed, config(tokens=600), tokenizer, CONFIG)
        assert (after.digest == before.digest) is same


def test_loss_flags_are_heeded_and_are_other_data(tokenizer, caplog):
    """An example without an answer to learn is dropped; other flags are another fingerprint."""
    entries = FakeSource("3-20").entries
    question, answer = entries[7].messages
    context, learned = answer | {"loss": False}, answer | {"loss": True}

    def changed(*messages):
        return [*entries[:7], entries[7]._replace(messages=list(messages)), *entries[8:]]

    before = training_set("d", entries, config(tokens=600), tokenizer, CONFIG)
    same = training_set("d", changed(question, learned), config(tokens=600), tokenizer, CONFIG)
    assert same.digest == before.digest
    both = [question, context, question | {"content": "And?"}, answer]
    after = training_set("d", changed(*both), config(tokens=600), tokenizer, CONFIG)
    both[1] = answer
    other = training_set("d", changed(*both), config(tokens=600), tokenizer, CONFIG)
    assert len({before.digest, after.digest, other.digest}) == 3
    np.testing.assert_array_equal(after.sizes, other.sizes)
    caplog.clear()
    kept = training_set("d", changed(question, context), config(tokens=600), tokenizer, CONFIG)
    assert 7 not in kept.numbers
    (line,) = caplog.messages
    assert "1 of 20 examples are dropped: 1 whose answers all have loss false" in line
    with pytest.raises(UserError, match="no example to train on; .* loss false"):
        training_set("d", changed(question, context)[7:8], config(), tokenizer, CONFIG)


def test_nothing_left_is_an_error(tokenizer):
    for entries, changes, message in (
        (
            FakeSource("1-4").entries,
            {"tokens": 5},
            r"d: no example .* 4 over data.tokens=5 \(up to \d+\)$",
        ),
        ([], {}, "d: it is empty"),
    ):
        with pytest.raises(UserError, match=message):
            training_set("d", entries, config(**changes), tokenizer, CONFIG)


MODES = pytest.mark.parametrize("packing", [True, False])


@MODES
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("n", [1, 5, 333, WINDOW + 5])
def test_every_example_once_an_epoch(n, packing, shuffle):
    one = some(n)
    for epochs in (1, 3):
        plan = make_plan([one], config(shuffle=shuffle), epochs=epochs, packing=packing)
        assert Counter(drawn(plan)) == {(0, number): epochs for number in one.numbers}
        assert len(plan) == pytest.approx(plan.steps_per_epoch * epochs, abs=9)


@MODES
def test_rows_fit_their_static_shape(packing):
    sets = [some(400, 0), some(300, 1)]
    plan = make_plan(sets, config(), epochs=2, packing=packing)
    seen = set()
    for number in range(len(plan)):
        key, rows = plan.step(number)
        seen.add(key)
        assert len(rows) == 4
        for row in rows:
            sizes = [sets[s].sizes[sets[s].numbers.tolist().index(i)] for s, i in row]
            assert packing or len(row) <= 1
            total = np.sum([*sizes, np.zeros(4, int)], axis=0)
            total[2] = max((size[2] for size in sizes), default=0)
            assert (total <= key).all()
    assert len(seen) == len(plan.buckets)
    if packing:
        assert len(seen) == 1
        assert plan.fill > 0.9
        assert next(iter(seen)).tokens == 512
    else:
        assert 1 < len(seen) < 9
        assert sorted(seen) == sorted(seen, key=lambda key: key.tokens)


def test_limits_that_are_given_are_the_shape():
    plan = make_plan([some(200)], config(grids=10, windows=7, chunks=9))
    assert plan.buckets == (BucketKey(512, 10, 7, 9),)


def test_one_shape_for_rows_that_change_places():
    one = some(200)
    many = make_plan([one], config(), packing=False)
    alone = make_plan([one], config(), one_shape=True, packing=False)
    assert len(many.buckets) > 1 == len(alone.buckets)
    assert alone.buckets[0] == BucketKey(*np.max(many.buckets, axis=0))
    assert Counter(drawn(alone)) == Counter(drawn(many))
    assert alone.fingerprint != many.fingerprint


def test_a_packed_shape_has_room_for_the_largest_and_for_the_average():
    """100 short texts and one clip: 6 grids, not six of them per row."""
    sizes = np.array([[40, 0, 0, 0]] * 100 + [[200, 5, 3, 2]])
    lone = ExampleSet("x", np.arange(101), sizes, "x", 101)
    assert make_plan([lone], config()).buckets == (BucketKey(512, 6, 4, 2),)
    clips = lone._replace(sizes=np.array([[100, 4, 1, 3]] * 101))
    # 5.12 clips of average size fill a row, and a tenth of slack
    assert make_plan([clips], config()).buckets == (BucketKey(512, 24, 1, 24),)


@MODES
def test_order_depends_on_the_seed_alone(packing):
    sets = [some(100, 0), some(50, 1)]

    def order(**changes):
        return drawn(make_plan(sets, config(**changes), epochs=2, packing=packing))

    assert order(seed=3) == order(seed=3)
    assert order(seed=3) == order(seed=3, workers=5, read_ahead=7)
    assert order(seed=3) != order(seed=4)


@MODES
def test_epochs_are_shuffled_apart(packing):
    plan = make_plan([some(101)], config(batch_size=1), epochs=2, packing=packing)
    items = drawn(plan)
    assert items[:101] != items[101:]


def test_unshuffled_and_alone_is_the_order_of_the_folder():
    sizes = np.tile([100, 1, 1, 1], (10, 1))
    one = ExampleSet("x", np.arange(10), sizes, "x", 10)
    plan = make_plan([one], config(shuffle=False), packing=False)
    assert drawn(plan) == [(0, i) for i in range(10)]
    assert [len(row) for row in rows_of(plan)] == [1] * 10 + [0] * 2


@MODES
def test_a_longer_run_begins_with_the_same_steps(packing):
    sets = [some(100, 0), some(70, 1)]
    settings = config()
    endless = make_plan(sets, settings, steps=90, packing=packing)
    assert len(endless) == 90
    for plan in (
        make_plan(sets, settings, steps=1, packing=packing),
        make_plan(sets, settings, steps=40, packing=packing),
        make_plan(sets, settings, epochs=1, packing=packing),
        make_plan(sets, settings, epochs=1.5, packing=packing),
    ):
        full = [n for n in range(len(plan)) if all(plan.step(n).rows)]
        assert len(full) >= len(plan) - len(plan.buckets)
        assert all(plan.step(n) == endless.step(n) for n in full)
        assert plan.fingerprint == endless.fingerprint


@MODES
@pytest.mark.parametrize("epochs", [(1, 2), (0.3, 1.5, 2), (1, 1.25, 4), (2, 3)])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_a_run_made_longer_takes_each_example_as_often_as_all_its_epochs(
    packing, epochs, batch_size
):
    """Stopped at any step, also between the last ones, which have empty rows, or at the end."""
    sets = weighted([some(50, 0), some(23, 1)], [None, None])
    settings = config(batch_size=batch_size)
    first = make_plan(sets, settings, epochs=epochs[0], packing=packing)
    for stop in range(max(0, len(first) - 4), len(first) + 1):
        plan = first
        taken = [item for n in range(stop) for row in plan.step(n).rows for item in row]
        for end in epochs[1:]:
            ends = plan.ends_before(stop)
            before, plan = plan, make_plan(sets, settings, epochs=end, packing=packing, ends=ends)
            assert all(plan.step(n) == before.step(n) for n in range(stop))
            assert plan.ends_before(stop) == ends
            assert plan.fingerprint == first.fingerprint
            further = range(stop, len(plan))
            taken += [item for n in further for row in plan.step(n).rows for item in row]
            stop = len(plan)
        if epochs[-1] == int(epochs[-1]):
            every = {(s, i): epochs[-1] for s, one in enumerate(sets) for i in one.numbers}
            assert Counter(taken) == every


def test_a_run_of_epochs_made_longer_by_steps():
    one = some(50)
    first = make_plan([one], config(batch_size=7))
    ends = first.ends_before(len(first))
    assert ends == (1.0,)
    for steps in range(len(first) - 1, 4 * len(first)):
        longer = make_plan([one], config(batch_size=7), steps, ends=ends)
        assert len(longer) == steps
        shared = range(min(steps, len(first)))
        assert all(longer.step(n) == first.step(n) for n in shared)


def test_part_of_an_epoch():
    plan = make_plan([some(1000)], config(batch_size=1), epochs=0.25)
    assert len(plan) == round(0.25 * plan.steps_per_epoch)
    plan = make_plan([some(1)], config(batch_size=2), epochs=0.01)
    assert len(drawn(plan)) == 1


@MODES
def test_mixture_keeps_its_shares_all_along(packing):
    sets = weighted([some(30, 0), some(300, 1), some(100, 2)], [2.0, 1.0, 1.0])
    assert [one.draws for one in sets] == [215, 108, 108]
    plan = make_plan(sets, config(batch_size=1), epochs=4, packing=packing)
    counts = Counter(s for s, _ in drawn(plan))
    assert [counts[s] for s in range(3)] == [860, 432, 432]
    times = Counter(drawn(plan))  # the small set is walked 28.7 times, the largest 1.44 times
    assert {times[0, i] for i in sets[0].numbers} == {28, 29}
    assert {times[1, i] for i in sets[1].numbers} == {1, 2}
    half = Counter(s for s, _ in drawn(plan)[: len(drawn(plan)) // 8])
    assert half[0] == pytest.approx(107, abs=30)


def test_sets_without_weights_are_read_once_each():
    sets = weighted([some(30, 0), some(300, 1)], [None, None])
    assert Counter(s for s, _ in drawn(make_plan(sets, config()))) == {0: 30, 1: 300}
    assert weighted([some(1000), some(2)], [1e6, 1.0])[1].draws == 1


def test_mixtures_are_read_from_one_word():
    assert parse_mixture("a") == [("a", None)]
    assert parse_mixture("a/b, gs://c/d") == [("a/b", None), ("gs://c/d", None)]
    assert parse_mixture("a=2,run=3/b=0.5") == [("a", 2.0), ("run=3/b", 0.5)]
    assert parse_mixture("run=best") == [("run=best", None)]
    for text in ("", ",", "a=1,b", "a=0,b=1", "a=-1", "a=nan", "a=inf,b=1"):
        with pytest.raises(UserError, match=r"^data: "):
            parse_mixture(text)


def test_fingerprints_tell_data_and_settings_apart():
    one = some(40)
    base = make_plan([one], config()).fingerprint
    for other in (
        make_plan([one], config(seed=1)),
        make_plan([one], config(batch_size=2)),
        make_plan([one], config(), packing=False),
        make_plan([one], config(shuffle=False)),
        make_plan([one], config(tokens=600)),
        make_plan([one, some(3)], config()),
        make_plan([one._replace(digest="y")], config()),
        make_plan([one._replace(sizes=one.sizes + 1)], config()),
        make_plan([one._replace(draws=41)], config()),
    ):
        assert other.fingerprint != base
    assert make_plan([one], config(workers=9), epochs=7).fingerprint == base


def test_description():
    text = make_plan([some(200)], config(grids=10, windows=7, chunks=9)).describe()
    assert text.startswith("23 steps of 4 rows (512 tokens, 10 grids of 7 windows, 9 chunks), 22.2")
    assert "shapes up to 384 tokens" in make_plan([some(200)], config(), packing=False).describe()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "^batch_size is 0; use 1 or more"),
        ({"tokens": -1}, "^tokens is -1"),
        ({"workers": -1}, "^workers is -1; use 0 or more"),
        ({"windows": 0}, "^windows is 0"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(UserError, match=message):
        config(**changes)


# ---- packing: nothing lost, nothing over a limit, rows well filled -------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_rows_hold_every_item_once_within_all_limits(seed):
    rng = np.random.default_rng(seed)
    limit = rng.integers(1, 50, 3)
    sizes = rng.integers(0, limit + 1, (rng.integers(1, 300), 3))
    rows = pack(sizes, limit)
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(sizes)))
    assert all((sizes[row].sum(axis=0) <= limit).all() for row in rows)
    assert all((np.diff(row) > 0).all() for row in rows)
    assert (np.diff([row[0] for row in rows]) > 0).all()


def test_what_fits_exactly_is_found():
    sizes = np.array([[2], [6], [5], [4], [8], [5], [1], [9]])
    rows = [sorted(sizes[row, 0].tolist()) for row in pack(sizes, np.array([10]))]
    assert sorted(rows) == [[1, 9], [2, 8], [4, 6], [5, 5]]


def test_the_scarcest_limit_counts():
    """Two long clips with few tokens never share a row, but each takes a long text along."""
    sizes = np.array([[10, 9], [80, 0], [10, 9], [80, 0]])
    assert [row.tolist() for row in pack(sizes, np.array([100, 10]))] == [[0, 1], [2, 3]]


def test_a_size_that_no_item_has_needs_no_room():
    assert len(pack(np.array([[5, 0], [5, 0]]), np.array([10, 0]))) == 1


def test_rows_of_many_examples_are_nearly_full():
    sizes = np.random.default_rng(0).integers(100, 900, (2000, 1))
    rows = pack(sizes, np.array([4096]))
    assert sizes.sum() / (len(rows) * 4096) > 0.99
