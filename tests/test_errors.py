"""ugc_jax.errors: what is a failure of the environment, and what `ugc-jax` says of it."""

import errno
import os
import pickle
import resource
import subprocess
import sys
import uuid

import pytest

from ugc_jax import cli, files
from ugc_jax.errors import (
    EnvironmentFailure,
    OutOfMemory,
    UnreadableFile,
    UserError,
    environment_failure,
)

INSTALL = "install it, or install ugc_jax again"


def linker_error():
    try:
        __import__("ctypes").CDLL("libnowhere.so.7")
    except OSError as error:
        return error


def import_error():
    try:
        import nowhere.part  # noqa: F401
    except ImportError as error:
        return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            import_error(),
            f"the library nowhere does not load (No module named 'nowhere'); {INSTALL}",
        ),
        (
            ImportError("libx.so.1: cannot open shared object file", name="av.audio"),
            "the library av does not load (libx.so.1: cannot open shared object file); " + INSTALL,
        ),
        (ImportError("no luck"), f"a library does not load (no luck); {INSTALL}"),
        (linker_error(), f"a library does not load ({linker_error()}); {INSTALL}"),
        (MemoryError(), "out of memory; free memory or lower workers"),
        (OSError(errno.ENOMEM, "x"), "out of memory; free memory or lower workers"),
        (OSError(errno.ENOSPC, "x", "a/b"), "a/b: the disk is full; free disk space, then run"),
        (OSError(errno.ENOSPC, "x"), "the disk is full; free disk space, then run again to resume"),
        (OSError(errno.EDQUOT, "x", "a"), "a: the disk quota is used up; free disk space"),
        (OSError(errno.EROFS, "x", "a"), "a: the disk is read-only; choose another place"),
        (OSError(errno.EMFILE, "x", "a"), "too many open files; raise the limit (ulimit -n"),
        (OSError(errno.ENFILE, "x"), "too many open files; raise the limit (ulimit -n"),
        (OSError(errno.EAGAIN, "x"), "no thread or process can be started; free memory, raise"),
        (
            RuntimeError("can't start new thread"),
            "no thread or process can be started; free memory, raise",
        ),
        # as array_record raises them, and the dynamic linker
        (
            RuntimeError("open() failed: Too many open files; opening a"),
            "too many open files; raise",
        ),
        (
            RuntimeError("write() failed: No space left on device; at byte 7"),
            "the disk is full; free",
        ),
        (ImportError("libx.so: failed to map: Cannot allocate memory"), "out of memory; free"),
        (EnvironmentFailure("as it is"), "as it is"),
    ],
)
def test_the_environment_is_to_blame(error, line):
    failure = environment_failure(error)
    assert str(failure).startswith(line)
    assert "\n" not in str(failure)
    assert "; " in str(failure) or str(failure) == "as it is"
    assert not isinstance(failure, UserError)
    assert str(pickle.loads(pickle.dumps(failure))) == str(failure)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "a"),
        PermissionError(errno.EACCES, "Permission denied", "a"),
        OSError(errno.EIO, "Input/output error", "a"),  # perhaps of this file alone
        OSError("image file is truncated"),
        RuntimeError("oh"),
        ValueError("Too many open files"),
        UserError("a.mp4: broken; copy it again"),
        ZeroDivisionError(),
    ],
    ids=repr,
)
def test_the_environment_is_not_to_blame(error):
    assert environment_failure(error) is None


def test_the_causes_that_a_traceback_shows_are_followed():
    def raised(how):
        try:
            try:
                raise MemoryError
            except MemoryError as error:
                how(error)
        except ValueError as error:
            return error

    def cause(error):
        raise ValueError("no") from error

    def context(error):
        raise ValueError("no")  # noqa: B904

    def hidden(error):
        raise ValueError("no") from None

    assert str(environment_failure(raised(cause))).startswith("out of memory")
    assert str(environment_failure(raised(context))).startswith("out of memory")
    assert environment_failure(raised(hidden)) is None


def test_a_path_is_named_if_given():
    failure = environment_failure(OSError(errno.EMFILE, "x", "other"), "a.json")
    assert str(failure).startswith("a.json: too many open files; ")


# ---- small files ---------------------------------------------------------------------------------


def test_files_on_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("before")
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=0))
    (tmp_path / f"a.json.{os.getpid()}-{'0' * 8}.new").symlink_to("/dev/full")
    with pytest.raises(EnvironmentFailure) as caught:
        files.write_text(path, "after")
    assert (
        str(caught.value) == f"{path}: the disk is full; free disk space, then run again to resume"
    )
    assert path.read_text() == "before"


def test_files_without_handles(tmp_path, no_handles):
    (tmp_path / "a.json").write_text("{}")
    with (
        no_handles(),
        pytest.raises(EnvironmentFailure, match="a.json: too many open files; raise"),
    ):
        files.read_json(tmp_path / "a.json", "give another")
    with pytest.raises(UnreadableFile, match="no such file; give another"):
        files.read_json(tmp_path / "b.json", "give another")


# ---- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            ModuleNotFoundError("No module named 'av'", name="av"),
            "the library av does not load (No",
        ),
        (MemoryError(), "out of memory; free memory"),
        (OSError(errno.ENOSPC, "x", "out/a"), "out/a: the disk is full; free disk space"),
        (OSError(errno.EMFILE, "x"), "too many open files; raise the limit"),
        (EnvironmentFailure("no; do"), "no; do"),
    ],
)
def test_a_job_ends_in_one_line(monkeypatch, capsys, error, line):
    def run(argv):
        raise error

    monkeypatch.setattr(cli, "run", run)
    monkeypatch.setattr(sys, "argv", ["ugc-jax", "extract", "a.csv"])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    assert cli.main() == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"ugc-jax extract: {line}")


def test_other_errors_are_not_hidden(monkeypatch):
    def run(argv):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(cli, "run", run)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_a_library_that_a_job_imports_is_missing(tmp_path):
    (tmp_path / "av.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'av'\", name='av')"
    )
    (tmp_path / "m.csv").write_text("path,caption\na.mp4,A\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ugc_jax.cli",
            "extract",
            f"--config.output={tmp_path}/out",
            "m.csv",
        ],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=os.getcwd(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    line = f"the library av does not load (No module named 'av'); {INSTALL}"
    assert done.stderr == f"ugc-jax extract: {line}\n"
    assert not (tmp_path / "out").exists()


def test_the_fixture_leaves_handles(no_handles):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with no_handles(), pytest.raises(OSError, match="Too many open files"):
        os.open(os.devnull, os.O_RDONLY)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits
    os.close(os.open(os.devnull, os.O_RDONLY))


def test_what_a_limit_of_the_process_may_be_the_reason_of():
    for error in (MemoryError(), RuntimeError("can't start new thread"), OSError(errno.ENOMEM, "")):
        assert type(environment_failure(error)) is OutOfMemory
    for error in (OSError(errno.ENOSPC, ""), OSError(errno.EMFILE, ""), import_error()):
        assert type(environment_failure(error)) is EnvironmentFailure
