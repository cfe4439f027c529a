"""What all teachers have in common: a question, a reply, and the troubles between them."""

import enum
from typing import NamedTuple, Protocol

from ugc_jax.label.material import Material


class Question(NamedTuple):
    """A question about a clip.

    clip: its digest. sample: 0, or 1 for a second answer to the same question. reminder: why the
    last answer to it could not be used; "" for none.
    """

    clip: str
    material: Material
    stage: str
    text: str
    sample: int = 0
    reminder: str = ""


class Tokens(NamedTuple):
    """Tokens that a reply took. sound: those of `given` that are of sound, 0 if unknown."""

    given: int = 0
    made: int = 0
    sound: int = 0


def tokens_told(given: object, made: object, sound: object) -> Tokens | None:
    """Return the tokens that a server tells; None if it tells nothing, or no numbers."""
    found = Tokens(number_of(given), number_of(made), number_of(sound))
    return found._replace(sound=min(found.sound, found.given)) if any(found) else None


class Reply(NamedTuple):
    """What a server answered.

    version: of the model, as the reply names it. tokens: None if the reply does not tell, the
    estimate counts then. fault: why the text is of no use, whatever it is; None if it may be.
    """

    text: str
    version: str
    tokens: Tokens | None
    fault: str | None = None


class Kind(enum.Enum):
    """Kinds of trouble: what is done about them is in asking.py."""

    CONFIG = enum.auto()  # a mistake in the settings: the job ends
    REFUSED = enum.auto()  # the server refuses this question for good
    AWAY = enum.auto()  # the server cannot be reached
    BUSY = enum.auto()  # it has no room now
    FAULT = enum.auto()  # it failed, or its answer did not come whole


class Trouble(Exception):
    """A request without a reply.

    after: seconds that the server asks to wait; None without. lost: it may have been answered, and
    charged, before the connection ended.
    """

    def __init__(self, kind: Kind, reason: str, after: float | None = None, lost: bool = False):
        super().__init__(reason)
        self.kind, self.reason, self.after, self.lost = kind, reason, after, lost


class Teacher(Protocol):
    """A model that answers questions about clips."""

    async def ask(self, question: Question) -> Reply:
        """Return the reply to one request. Raises Trouble."""

    async def close(self):
        """End connections."""


UNNAMED = "unnamed"  # version of a model that replies do not name
BLOCKED = "blocked by the safety filter"
NO_ANSWER = "the reply has no answer"
NO_REPLY = "the reply names no model and has no answer; base_url may be of something else"
CUT_OFF = "cut off at the limit of tokens; raise teacher.max_tokens"
_MOST_TOKENS = 10**9  # that a reply may tell of itself
STATUS = {
    **dict.fromkeys((401, 403, 404), Kind.CONFIG),
    429: Kind.BUSY,
    **dict.fromkeys((502, 503, 504), Kind.AWAY),
    **dict.fromkeys((408, 409), Kind.FAULT),
}


def kind_of_status(status: int) -> Kind:
    """Return what an HTTP status means for a request."""
    return STATUS.get(status, Kind.FAULT if status >= 500 else Kind.REFUSED)


def number_of(tokens: object) -> int:
    """Return a number of tokens as a server tells it; 0 for what is none."""
    is_number = isinstance(tokens, int) and not isinstance(tokens, bool)
    return tokens if is_number and 0 <= tokens <= _MOST_TOKENS else 0
