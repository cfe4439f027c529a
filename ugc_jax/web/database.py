"""A database by URL: SQLite (embedded, one process) or Postgres (a team)."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event

from ugc_jax.errors import UserError

BUSY_SECONDS = 30  # that a connection waits for the lock of another one
CONNECTIONS = 40  # at most; as many as threads that serve requests


class Database:
    """Transactions on the tables of some metadata, which are created where they are missing.

    A transaction of `write` is on the disk when its block ends: a kill or a loss of power after
    that loses nothing, one before it leaves nothing of it.
    """

    def __init__(self, url: str, *metadata: sa.MetaData):
        """url: sqlite:///FILE, postgresql://USER:PASSWORD@HOST/NAME, or the path of a SQLite file.

        Raises UserError if the database cannot be opened.
        """
        address = _address(url)
        self.is_sqlite = address.get_backend_name() == "sqlite"
        self.name = address.render_as_string(hide_password=True)
        self._turn = threading.Lock()  # fair, as SQLite's own waiting is not
        options = {"timeout": BUSY_SECONDS} if self.is_sqlite else {}
        try:
            self.engine = sa.create_engine(
                address, connect_args=options, pool_size=CONNECTIONS // 2,
                max_overflow=CONNECTIONS // 2, pool_pre_ping=not self.is_sqlite,
            )  # fmt: skip
            if self.is_sqlite:
                event.listen(self.engine, "connect", _set_up_sqlite)
                event.listen(self.engine, "begin", _begin)
            for one in metadata:
                with self.write() as connection:
                    one.create_all(connection)
        except ImportError:
            raise UserError(
                f"database {self.name}: no driver is installed; pip install 'ugc_jax[postgres]'"
            ) from None
        except sa.exc.DatabaseError as error:
            reason = str(error.orig).strip().splitlines()[0]
            raise UserError(
                f"database {self.name}: cannot be opened ({reason}); check its address and rights"
            ) from None

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a transaction that sees one state of the whole database."""
        level = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        with self.engine.connect().execution_options(**level) as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Open a transaction that is committed at the end of the block, undone by an exception."""
        turn = self._turn if self.is_sqlite else contextlib.nullcontext()
        with (
            turn,
            self.engine.connect().execution_options(immediate=True) as connection,
            connection.begin(),
        ):
            yield connection

    def close(self):
        """Close all connections."""
        self.engine.dispose()


def _address(url: str) -> sa.URL:
    if "://" not in url:
        return sa.URL.create("sqlite", database=str(Path(url)))
    try:
        address = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise UserError(
            "database: not an address of a database; give postgresql://USER@HOST/NAME or a file"
        ) from None
    kind = address.get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise UserError(f"database: {kind} is not supported; give postgresql://... or a file")
    if address.drivername == "postgresql":
        address = address.set(drivername="postgresql+psycopg")
    return address


def _set_up_sqlite(connection, _):
    connection.isolation_level = None  # transactions begin by `_begin`, not by Python's guess
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {setting}").close()


def _begin(connection):
    """Begin as a writer at once: a reader that becomes one may find that it has to start again."""
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
