"""Accounts with roles, their passwords (argon2id) and sessions."""

import hashlib
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import argon2
import sqlalchemy as sa

from ugc_jax.errors import UserError
from ugc_jax.web.database import Database

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
SHORTEST, LONGEST = 10, 1000  # characters of a password
SESSION_SECONDS = 12 * 3600
_HASHERS = 2  # passwords that are hashed at a time: each takes 64 MiB

METADATA = sa.MetaData()
_accounts = sa.Table(
    "accounts",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("role", sa.String(32), nullable=False),
    sa.Column("password", sa.String(200), nullable=False),  # argon2's encoded hash
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
)
_sessions = sa.Table(
    "sessions",
    METADATA,
    sa.Column("digest", sa.String(64), primary_key=True),  # of the token, which only the cookie has
    sa.Column("account", sa.ForeignKey("accounts.name"), nullable=False, index=True),
    sa.Column("expires", sa.Double, nullable=False),
)


class Account(NamedTuple):
    """A person. active: false for one who may not log in any more."""

    name: str
    role: str
    active: bool = True


class Accounts:
    """The accounts of a database. Errors of users are UserError."""

    def __init__(
        self, database: Database, roles: Sequence[str], clock: Callable[[], float] = time.time
    ):
        """database: with METADATA. roles: that an account may have. clock: seconds since 1970."""
        self._database, self.roles, self._clock = database, tuple(roles), clock
        self._hasher = argon2.PasswordHasher()
        self._slots = threading.BoundedSemaphore(_HASHERS)
        # Checked where there is no such account, so that the time does not tell.
        self._nobody = self._hash(secrets.token_urlsafe())

    def add(self, name: str, password: str, role: str) -> Account:
        """Add an account. UserError for a bad or taken name, a short password, an unknown role."""
        if NAME.fullmatch(name) is None:
            raise UserError(
                f"account {name!r:.80}: not a name; use up to 64 letters, digits and . _ - @"
            )
        self._check_role(role)
        row = dict(name=name, role=role, password=self._new(password), active=True)
        try:
            with self._database.write() as connection:
                connection.execute(sa.insert(_accounts).values(created=self._clock(), **row))
        except sa.exc.IntegrityError:
            raise UserError(f"account {name}: exists already; choose another name") from None
        return Account(name, role)

    def change(
        self,
        name: str,
        *,
        role: str | None = None,
        password: str | None = None,
        active: bool | None = None,
    ):
        """Change an account and end its sessions.

        UserError if there is none of this name, and if nothing is to be changed.
        """
        changes: dict = {"active": active, "role": role}
        if role is not None:
            self._check_role(role)
        if password is not None:
            changes["password"] = self._new(password)
        changes = {key: value for key, value in changes.items() if value is not None}
        if not changes:
            raise UserError(f"account {name!r:.80}: give a role, a password or whether it is open")
        with self._database.write() as connection:
            chosen = _accounts.c.name == name
            if not connection.execute(sa.update(_accounts).where(chosen).values(changes)).rowcount:
                raise UserError(f"account {name!r:.80}: there is none of this name")
            connection.execute(sa.delete(_sessions).where(_sessions.c.account == name))

    def all(self) -> list[Account]:
        """Return all accounts by name."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(_accounts).order_by(_accounts.c.name)).all()
        return [Account(row.name, row.role, row.active) for row in rows]

    def check(self, name: str, password: str) -> Account | None:
        """Return the account of this name and password if there is one and it is active."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(_accounts).where(_accounts.c.name == name)).first()
        known = row is not None and row.active
        try:
            with self._slots:
                self._hasher.verify(row.password if known else self._nobody, password[:LONGEST])
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return None
        return Account(row.name, row.role) if known else None

    def log_in(self, account: Account) -> str:
        """Begin a session; return its token. Expired sessions are deleted."""
        token, now = new_token(), self._clock()
        row = dict(digest=_digest(token), account=account.name, expires=now + SESSION_SECONDS)
        with self._database.write() as connection:
            connection.execute(sa.delete(_sessions).where(_sessions.c.expires < now))
            connection.execute(sa.insert(_sessions).values(row))
        return token

    def who(self, token: str) -> Account | None:
        """Return the account of a session that has not ended; its role is that of this moment."""
        query = (
            sa.select(_accounts)
            .join(_sessions, _sessions.c.account == _accounts.c.name)
            .where(_sessions.c.digest == _digest(token), _sessions.c.expires > self._clock())
            .where(_accounts.c.active)
        )
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else Account(row.name, row.role)

    def log_out(self, token: str):
        """End a session."""
        with self._database.write() as connection:
            connection.execute(sa.delete(_sessions).where(_sessions.c.digest == _digest(token)))

    def _check_role(self, role: str):
        if role not in self.roles:
            raise UserError(f"role {role!r:.80}: unknown; roles are {', '.join(self.roles)}")

    def _new(self, password: str) -> str:
        if not SHORTEST <= len(password) <= LONGEST:
            raise UserError(f"password: has {len(password)} characters; use at least {SHORTEST}")
        return self._hash(password)

    def _hash(self, password: str) -> str:
        with self._slots:
            return self._hasher.hash(password)


def new_token() -> str:
    """Return 256 random bits as text."""
    return secrets.token_urlsafe(32)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
