"""Rewards of a batch: each process has its share of the rows computed, all get all of them."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.data.records import IndexEntry
from ugc_jax.errors import UserError
from ugc_jax.generate.engine import finish_reason
from ugc_jax.rl.rewards.runner import Pending, Rewards, Sample
from ugc_jax.rl.rows import Completions


def completion_texts(completions: Completions, tokenizer: ChatTokenizer) -> list[list[str]]:
    """The text of each completion, row by row."""
    return [
        [tokenizer.decode(ids[:n].tolist()).strip() for ids, n in zip(*row, strict=True)]
        for row in zip(completions.tokens, completions.lengths, strict=True)
    ]


class Scoring:
    """The rewards of one batch, submitted part by part while the next part is sampled."""

    def __init__(
        self,
        rewards: Rewards,
        tokenizer: ChatTokenizer,
        entries: Sequence[IndexEntry | None],
        max_new_tokens: int,
    ):
        """entries: of the whole batch's rows; None: an empty row, which has no rewards."""
        self._rewards, self._tokenizer, self._entries = rewards, tokenizer, entries
        self._max_new_tokens = max_new_tokens
        self._pending: list[tuple[list[int], int, Pending]] = []

    def submit(self, rows: slice, completions: Completions):
        """Let this process's share of the completions of these rows be scored; does not wait."""
        numbers = range(len(self._entries))[rows]
        count, own = jax.process_count(), jax.process_index()
        mine = [
            place
            for place, row in enumerate(numbers)
            if place % count == own and self._entries[row] is not None
        ]
        taken = Completions(*(leaf[mine] for leaf in completions))
        texts = completion_texts(taken, self._tokenizer)
        samples = [
            self._sample(self._entries[numbers[place]], texts[i][g], taken, i, g)
            for i, place in enumerate(mine)
            for g in range(taken.lengths.shape[1])
        ]
        rows_of_mine = [numbers[place] for place in mine]
        pending = self._rewards.submit(samples)
        self._pending.append((rows_of_mine, taken.lengths.shape[1], pending))

    def result(self) -> np.ndarray:
        """f32[B, G, R] of all rows, the same in all processes; NaN where there is no reward.

        Raises UserError in all processes if it is raised in one of them.
        """
        size, functions = len(self._entries), len(self._rewards.names)
        rewards = np.full((size, self._pending[0][1], functions), np.nan, np.float32)
        refused = None
        try:
            for rows, samples, pending in self._pending:
                rewards[rows] = pending.result().reshape(len(rows), samples, functions)
        except UserError as error:
            refused = error
        if jax.process_count() > 1:  # all of them come here, or those that do would wait for ever
            if multihost_utils.process_allgather(np.array(refused is not None)).any():
                raise refused or UserError("rewards: another process was refused; see its log")
            # Each row has its rewards in one process, and NaN in the others.
            by_process = np.asarray(multihost_utils.process_allgather(rewards))
            known = ~np.isnan(by_process)
            rewards = np.where(known, by_process, 0).sum(axis=0, dtype=np.float32)
            rewards[~known.any(axis=0)] = np.nan
        elif refused is not None:
            raise refused
        return rewards

    def _sample(
        self, entry: IndexEntry, text: str, completions: Completions, row: int, g: int
    ) -> Sample:
        metadata = entry.extra | {
            "id": entry.id,
            "completion_tokens": int(completions.lengths[row, g]),
            "max_new_tokens": self._max_new_tokens,
            "finish_reason": finish_reason(completions.stopped[row, g]),
        }
        return Sample(entry.question, text, entry.answer, metadata)
