"""Steps of GRPO that nothing is learned from, and what is said about them.

A step in which no two completions of a prompt have their rewards is skipped: rows that lack a
column that the reward function needs would stop the run at the same step again and again. If many
steps are skipped it is not the rows' fault, and the run stops. What passes (a judge that is down)
is waited for before it comes to this, or ends the run with a checkpoint (rewards/runner.py).

A step whose groups have equal rewards is made, as a KL or an entropy bonus may learn from it.
"""

import logging
from collections import deque
from collections.abc import Mapping

from ugc_jax.rl.rows import Groups
from ugc_jax.train.feed import StepRefused

logger = logging.getLogger(__name__)

WINDOW = 20  # steps that the share of skipped ones is of
LEAST = 5  # a share of fewer steps counts as one of so many, or of the run's if it has fewer
NAMED = 5  # rows that a line names


class Outcomes:
    """What the last steps of a run came to."""

    def __init__(self, share: float, steps: int):
        """share: of the last steps that may be skipped. steps: of the run."""
        self._share, self._least = share, min(LEAST, steps)
        self._skipped: deque[bool] = deque(maxlen=WINDOW)
        self._count = self._equal = 0  # skipped steps so far; steps of equal rewards in a row

    def skip(self, step: int, groups: Groups, failures: Mapping[str, int], before: dict):
        """Count a step that is skipped. Raises StepRefused if they are too many.

        failures: samples by function on which it failed. before: the data's state before the step.
        """
        self._skipped.append(True)
        self._count += 1
        names = [entry.id for entry in groups.entries if entry is not None]
        rows = ", ".join(names[:NAMED]) + (
            f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        )
        counts = [f"{name} {count} times" for name, count in failures.items() if count]
        fault = (
            f"no two completions of a group have their rewards (failed: "
            f"{', '.join(counts) or 'none'}) in the rows {rows}"
        )
        number, last = sum(self._skipped), len(self._skipped)
        if number > self._share * max(last, self._least):
            raise StepRefused(
                f"{fault}, as in {number} of the last {last} steps, more than "
                f"grpo.skipped_share={self._share:g}; correct the rewards or the rows",
                before,
            )
        logger.warning("step %d is skipped (%d so far): %s", step, self._count, fault)

    def train(self, step: int, groups: Groups):
        """Count a step that is made; log it if its groups have equal rewards, at 1, 10, 100, ..."""
        self._skipped.append(False)
        result = groups.advantages
        if result.informative.any():
            self._equal = 0
            return
        self._equal += 1
        if str(self._equal).strip("0") == "1":
            number = result.used.any(axis=1).sum()
            logger.warning(
                "step %d: within each of the %d groups the rewards are equal, so nothing is learned"
                " from them (%d such steps in a row); choose rewards that tell completions apart, "
                "a higher rollout.sampling.temperature, more rollout.samples or other prompts",
                step, number, self._equal,
            )  # fmt: skip
