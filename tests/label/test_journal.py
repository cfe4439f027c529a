"""The journal on a disk that gets full."""

import resource

import pytest

from ugc_jax.errors import UserError
from ugc_jax.label.journal import Journal
from ugc_jax.label.teacher import Reply, Tokens

WHERE = "clip", "both", 0, "gemini toy"


def test_a_line_that_the_disk_takes_in_part_is_not_kept(tmp_path):
    """Such a write raises nothing: it says how much it has written."""
    path = tmp_path / "answers.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    reply = Reply("a" * 100, "v1", Tokens(10, 20), None)
    with Journal(path) as journal:
        number = journal.asked("key")
        before = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, limits[1]))
        try:
            with pytest.raises(UserError, match="answers cannot be kept there"):
                journal.answered("key", number, WHERE, reply, 0.5, None)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == before
        assert (journal.spent, journal.usable("key"), journal.unknown) == (0.0, None, 1)
        journal.answered("key", number, WHERE, reply, 0.5, None)
    with Journal(path) as journal:
        assert (journal.spent, journal.unknown) == (0.5, 0)
        assert journal.usable("key").text == "a" * 100
        assert journal.stages == {WHERE}
