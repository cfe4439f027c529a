"""The limits of a server. Imports no jax and nothing of the web."""

import dataclasses

from ugc_jax.errors import UserError
from ugc_jax.settings import check_minimum


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewTokensConfig:
    """The limit of a completion, on which the compiled programs depend."""

    new_tokens: int | None = None  # most of a completion; none: 1024, or what the checkpoint asks

    def __post_init__(self):
        check_minimum(self, new_tokens=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LimitsConfig(NewTokensConfig):
    """What a request may take, and all together."""

    waiting: int = 64  # completions that may wait for a place; further requests get 429
    choices: int = 16  # most completions of a request (n)
    media: int = 128  # most clips, pictures and sounds of a request
    upload: float = 100.0  # MB of a request's body; also of what a URL leads to
    uploads: float = 2000.0  # MB of the bodies of all requests under way
    timeout: float = 600.0  # seconds of a request, from its first byte to its last
    header_timeout: float = 10.0  # seconds in which a client has to send its header
    body_timeout: float = 60.0  # seconds in which a client has to send its body
    fetch_timeout: float = 30.0  # seconds in which a URL has to be fetched
    shutdown: float = 30.0  # seconds in which requests are finished after SIGTERM or Ctrl-C

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("waiting", "shutdown") else 1e-3
            if value is not None and not least <= value < 1e9:
                raise UserError(f"{field.name} is {value}; use a positive number")
        if self.uploads < self.upload:
            raise UserError(
                f"uploads is {self.uploads:g} MB, below upload ({self.upload:g} MB); raise it"
            )
