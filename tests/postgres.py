"""A Postgres of Debian's package for tests, in a folder of its own, reached by a socket there."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Yield the URL of an empty database; skips the test where Postgres is not installed."""
    pytest.importorskip("psycopg")
    programs = _programs()
    if programs is None:
        pytest.skip("no Postgres; apt-get install postgresql")
    user = None
    if os.geteuid() == 0:  # Postgres refuses to run as root
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("Postgres does not run as root, and there is no user postgres")
    options = {"user": user.pw_uid, "group": user.pw_gid} if user else {}
    with tempfile.TemporaryDirectory(prefix="ugc-pg-", dir="/tmp") as folder:
        data = Path(folder, "data")
        if user:
            os.chown(folder, user.pw_uid, user.pw_gid)
        quiet = dict(check=True, capture_output=True, cwd="/", **options)
        make = [programs / "initdb", "-D", data, "-A", "trust", "-U", "ugc", "-E", "UTF8"]
        subprocess.run([*make, "--locale=C", "--no-sync"], **quiet)
        start = f"-k {folder} -c listen_addresses='' -c max_connections=60"
        control = [programs / "pg_ctl", "-D", data, "-w", "-l", Path(folder, "log")]
        subprocess.run([*control, "-o", start, "start"], **quiet)
        try:
            yield f"postgresql://ugc@/postgres?host={folder}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
