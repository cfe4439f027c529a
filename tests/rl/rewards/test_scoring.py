"""ugc_jax.rl.rewards.scoring: who scores what, and that all get all of it."""

import fake_rl as fake
import numpy as np
import pytest
from fake_records import FakeSource

from ugc_jax.errors import UserError
from ugc_jax.rl.rewards import scoring
from ugc_jax.rl.rewards.scoring import Scoring, completion_texts
from ugc_jax.rl.rows import Completions

B, G, N = 6, 2, 4


@pytest.fixture
def completions(tokenizer):
    """Words of which a row and a sample can be told."""
    tokens = np.zeros((B, G, N), np.int32)
    lengths = np.zeros((B, G), np.int32)
    for row, g in np.ndindex(B, G):
        ids = tokenizer.encode(f" {row}{g}")
        tokens[row, g, : len(ids)] = ids
        lengths[row, g] = len(ids)
    return Completions(tokens, lengths, lengths % 2 == 0, np.zeros((B, G, N), np.float32))


def value(sample):
    return [int(sample.completion), int(sample.metadata["number"])]


def entries():
    made = list(FakeSource("1-6").entries)
    made[2] = None
    return made


def expected():
    rewards = np.array([[[10 * row + g, row] for g in range(G)] for row in range(B)], np.float32)
    rewards[2] = np.nan
    return rewards


def score(rewards, completions, tokenizer):
    one = Scoring(rewards, tokenizer, entries(), N)
    for part in range(2):
        rows = slice(part, B, 2)
        one.submit(rows, Completions(*(leaf[rows] for leaf in completions)))
    return one.result()


def test_parts_are_put_together_and_empty_rows_have_none(completions, tokenizer):
    rewards = fake.Rewards(value)
    np.testing.assert_array_equal(score(rewards, completions, tokenizer), expected())
    assert len(rewards.seen) == 5 * G
    reasons = {sample.metadata["finish_reason"] for sample in rewards.seen}
    assert reasons <= {"stop", "length"}


@pytest.mark.parametrize("count", [2, 3, 8])
def test_processes_share_the_rows(completions, tokenizer, monkeypatch, count):
    """Each row is scored by one of them, and then all have the same."""
    own, seen = [], []
    monkeypatch.setattr(scoring.jax, "process_count", lambda: count)
    for gathered in (False, True):
        for process in range(count):
            monkeypatch.setattr(scoring.jax, "process_index", lambda process=process: process)

            def allgather(mine):
                if mine.dtype == bool:  # whether a reward was refused
                    return np.stack([mine] * count)
                own.append(mine)
                return np.stack(own[:count]) if gathered else np.stack([mine] * count)  # noqa: B023

            monkeypatch.setattr(scoring.multihost_utils, "process_allgather", allgather)
            rewards = fake.Rewards(value)
            result = score(rewards, completions, tokenizer)
            if gathered:
                np.testing.assert_array_equal(result, expected())
            else:
                seen += [sample.metadata["number"] for sample in rewards.seen]
    assert sorted(seen) == sorted([0, 1, 3, 4, 5] * G)


@pytest.mark.parametrize("process", [0, 1])
def test_a_refusal_in_one_process_is_raised_in_all(completions, tokenizer, monkeypatch, process):
    def refused(sample):
        raise UserError("the key is refused")

    monkeypatch.setattr(scoring.jax, "process_count", lambda: 2)
    monkeypatch.setattr(scoring.jax, "process_index", lambda: process)
    flags = np.array([True, False])
    monkeypatch.setattr(scoring.multihost_utils, "process_allgather", lambda mine: flags)
    rewards = fake.Rewards(value if process else refused)
    with pytest.raises(UserError, match="another process" if process else "the key is refused"):
        score(rewards, completions, tokenizer)


def test_texts(completions, tokenizer):
    texts = completion_texts(completions, tokenizer)
    assert texts == [[f"{row}{g}" for g in range(G)] for row in range(B)]
