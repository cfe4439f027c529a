"""Dynamic sampling (DAPO): groups whose rewards are all equal give way to those of further prompts.

    draw -> further batches of prompts -> select -> places of the groups that the step learns from

A place is (number of the batch, row of it). The first batch's groups stay, in their order; where
one is not informative, an informative one of a further batch takes its place.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ugc_jax.rl.advantages import Advantages
from ugc_jax.rl.rows import Completions, Groups, PolicyBatch
from ugc_jax.sharding import constrain
from ugc_jax.train.feed import StepRefused

Places = list[tuple[int, int]]


def draw(first, draw_batch: Callable, limit: int) -> list:
    """`first` and as many further `rl.step.PromptBatch`es as are needed to replace its groups.

    limit: the most further ones. Raises StepRefused as `draw_batch`, for the step as a whole.
    """
    batches, wanted = [first], len(first.groups.entries)
    try:
        while (
            sum(batch.groups.advantages.informative.sum() for batch in batches) < wanted
            and len(batches) <= limit
        ):
            batches.append(draw_batch())
    except StepRefused as refused:  # the step begins with the first batch
        raise StepRefused(str(refused), first.placed.before) from None
    return batches


def select(informative: Sequence[np.ndarray]) -> Places:
    """The places of B groups of batches whose groups are informative or not: bool[B] of each."""
    first, *further = informative
    places = [(0, row) for row in range(len(first))]
    spare = iter(
        (number, int(row)) for number, rows in enumerate(further, 1) for row in np.flatnonzero(rows)
    )
    for row in np.flatnonzero(~first):
        places[row] = next(spare, places[row])
    return places


def take(groups: Sequence[Groups], places: Places) -> Groups:
    """The groups at these places; their advantages are still those of the batch of each."""

    def rows(*leaves: np.ndarray) -> np.ndarray:
        return np.stack([leaves[number][row] for number, row in places])

    return Groups(
        entries=[groups[number].entries[row] for number, row in places],
        completions=Completions(*map(rows, *(one.completions for one in groups))),
        rewards=rows(*(one.rewards for one in groups)),
        advantages=Advantages(*map(rows, *(one.advantages for one in groups))),
    )


def joined(groups: Sequence[Groups]) -> Groups:
    """All groups of all batches, one after the other."""
    sizes = enumerate(len(one.entries) for one in groups)
    return take(groups, [(number, row) for number, size in sizes for row in range(size)])


def lay_out(
    lay_out_batch: Callable[..., PolicyBatch],
    batches: Sequence,
    places: Places,
    values: np.ndarray,
    weights: np.ndarray,
    copies: int,
) -> PolicyBatch:
    """The rows of the groups at these places, on the mesh.

    Each batch is laid out by the processes that fed it, `lay_out_batch(batch, values, weights)`,
    and its rows change places on the mesh. values, weights: f32[B, G], of the groups at `places`.
    copies: rows of a group.
    """
    placed = []
    for number, batch in enumerate(batches):
        own = np.zeros((2, *values.shape), np.float32)
        for place, (of, row) in enumerate(places):
            if of == number:
                own[:, row] = values[place], weights[place]
        placed.append(lay_out_batch(batch, *own))
    if len(placed) == 1:
        return placed[0]
    index = np.array([number * len(places) + row for number, row in places])
    return _gather(placed, (index[:, None] * copies + np.arange(copies)).ravel())


@jax.jit
def _gather(batches: list[PolicyBatch], index: np.ndarray) -> PolicyBatch:
    """The rows `index` of all batches one after the other."""

    def gather(*leaves):
        rows = jnp.concatenate(leaves)[index]
        return constrain(rows, ("batch",) + (None,) * (rows.ndim - 1))

    return jax.tree.map(gather, *batches)
