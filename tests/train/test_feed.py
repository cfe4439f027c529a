"""ugc_jax.train.feed: one batch ahead, in order, and where the data stands."""

import errno
import threading

import fake_training as fake
import numpy as np
import pytest

from ugc_jax.errors import UserError
from ugc_jax.sharding import make_mesh
from ugc_jax.train.feed import Feed, StepRefused


class Batches(fake.Batches):
    """Ends after three batches, or breaks there."""

    error = None
    closed = False

    def __next__(self):
        if self.next == 3:
            if self.error is not None:
                raise self.error
            raise StopIteration
        return super().__next__()

    def close(self):
        self.closed = True


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(4, 2, 1)


def test_batches_in_order_with_their_states(mesh):
    batches = Batches(mesh)
    feed = Feed(batches, mesh, fake.ROWS)
    for number in range(3):
        batch = feed.take()
        np.testing.assert_array_equal(batch.arrays.tokens, fake.make_rows(number).tokens)
        np.testing.assert_array_equal(batch.rows.tokens, fake.make_rows(number).tokens)
        assert batch.arrays.tokens.sharding.mesh == mesh
        assert (batch.before, batch.after) == ({"next": number}, {"next": number + 1})
    assert feed.take() is None
    feed.close()
    assert batches.closed


def test_it_reads_one_ahead_and_no_more(mesh):
    batches = Batches(mesh)
    feed = Feed(batches, mesh, fake.ROWS)
    feed.take()
    feed._ahead._next.result()
    feed.close()
    assert batches.next == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError("disk"), OSError),
        (UserError("disk"), StepRefused),
        (OSError(errno.EROFS, ""), StepRefused),  # "the disk is read-only"
    ],
)
def test_what_reading_raises_is_raised_at_its_turn(mesh, error, raised):
    batches = Batches(mesh)
    batches.error = error
    feed = Feed(batches, mesh, fake.ROWS)
    for _ in range(3):
        feed.take()
    with pytest.raises(raised, match="disk") as caught:
        feed.take()
    assert getattr(caught.value, "data", {"next": 3}) == {"next": 3}
    feed.close()
