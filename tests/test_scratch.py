"""ugc_jax.scratch: a folder lives as long as its process; that of a killed one is removed later."""

import os
import signal
import subprocess
import sys

import pytest

from ugc_jax.scratch import ScratchFolder

MAKE = """
import sys, time
from ugc_jax.scratch import ScratchFolder
folder = ScratchFolder("of-a-test-")
(folder.path / "clip.mp4").write_bytes(b"x")
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_the_folder_of_a_killed_process_is_removed_by_the_next(place):
    other = subprocess.Popen(
        [sys.executable, "-c", MAKE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    path = other.stdout.readline().strip()
    (place / "of-a-test-no-lock").mkdir()
    (place / "outside").mkdir()
    (place / "of-a-test-link").symlink_to(place / "outside")
    with ScratchFolder("of-a-test-") as mine:
        assert os.path.exists(f"{path}/clip.mp4")  # its process lives
        other.send_signal(signal.SIGKILL)
        other.wait()
        with ScratchFolder("of-another-"):
            assert os.path.exists(path)
        with ScratchFolder("of-a-test-"):
            assert not os.path.exists(path)
            assert mine.exists()
    assert sorted(os.listdir(place)) == ["of-a-test-link", "of-a-test-no-lock", "outside"]
    other.stdin.close()
    other.stdout.close()


def test_it_ends_with_its_owner(place):
    folder = ScratchFolder("of-a-test-")
    (folder.path / "x").mkdir()
    del folder
    assert os.listdir(place) == []
    done = subprocess.run([sys.executable, "-c", MAKE], input="", capture_output=True, text=True)
    assert done.returncode == 0
    assert os.listdir(place) == []
