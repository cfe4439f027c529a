"""Dynamic sampling (DAPO): groups of equal rewards are replaced by groups of further prompts.

    draw -> further batches of prompts -> select -> places of the groups to train on

A place is (number of the batch, row in it). The first batch's groups keep their order; one that is
not informative is replaced by an informative one of a further batch.
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
    """Return `first` and as many further `rl.step.PromptBatch`es as its replacements need.

    limit: maximum number of further ones. Raises StepRefused as `draw_batch`, with the data
    iterator's state before `first`.
    """
    batches, missing = [first], np.sum(~first.groups.advantages.informative)
    try:
        while missing > 0 and len(batches) <= limit:
            batches.append(draw_batch())
            missing -= batches[-1].groups.advantages.informative.sum()
    except StepRefused as refused:
        raise StepRefused(str(refused), first.placed.before) from None
    return batches


def select(informative: Sequence[np.ndarray]) -> Places:
    """Return the places of B groups. informative: bool[B] of each batch, the first one first."""
    first, *further = informative
    places = [(0, row) for row in range(len(first))]
    spare = iter(
        (number, int(row)) for number, rows in enumerate(further, 1) for row in np.flatnonzero(rows)
    )
    for row in np.flatnonzero(~first):
        places[row] = next(spare, places[row])
    return places


def take(groups: Sequence[Groups], places: Places) -> Groups:
    """Return the groups at these places, with the advantages that each had in its batch."""

    def rows(*leaves: np.ndarray) -> np.ndarray:
        return np.stack([leaves[number][row] for number, row in places])

    return Groups(
        entries=[groups[number].entries[row] for number, row in places],
        completions=Completions(*map(rows, *(one.completions for one in groups))),
        rewards=rows(*(one.rewards for one in groups)),
        advantages=Advantages(*map(rows, *(one.advantages for one in groups))),
    )


def concatenate(groups: Sequence[Groups]) -> Groups:
    """Return all groups of all batches, one after the other."""
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
    """Return the rows of the groups at these places, on the mesh.

    Each batch is laid out by the processes that fed it, by `lay_out_batch(batch, values, weights)`;
    then the rows are moved on the mesh. values, weights: f32[B, G], of the groups at `places`.
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
    """The rows `index` of the concatenated batches."""

    def gather(*leaves):
        rows = jnp.concatenate(leaves)[index]
        return constrain(rows, ("batch",) + (None,) * (rows.ndim - 1))

    return jax.tree.map(gather, *batches)
