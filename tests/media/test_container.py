"""Files that cannot be opened: the machine is to blame, or the file."""

import subprocess
import sys

import av
import pytest
from clips import write_clip
from PIL import Image

from ugc_jax.errors import EnvironmentFailure, UnreadableFile, UserError
from ugc_jax.media import clip as media
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.media.sound import read_sound
from ugc_jax.media.timeline import scan
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY

NO_LIMIT = 1 << 30  # tokens
SMALL = ClipSettings(min_pixels=1, max_pixels=100_000)


def test_no_handles(tmp_path, no_handles):
    write_clip(tmp_path / "clip.mp4", seconds=1)
    source = media.probe(tmp_path / "clip.mp4")
    with no_handles():
        for read in (
            lambda: media.probe(tmp_path / "clip.mp4"),
            lambda: scan(tmp_path / "clip.mp4"),
            lambda: media.read_clip(source, resolve(SMALL), NO_LIMIT, GEOMETRY),
            lambda: read_sound(source, 0.0, None, 9.0),
        ):
            with pytest.raises(EnvironmentFailure, match="^too many open files; raise the limit"):
                read()


LOW_MEMORY = """
import resource, sys
from ugc_jax.data.features import log_mel
from ugc_jax.errors import EnvironmentFailure, environment_failure
from ugc_jax.media.clip import probe, read_clip
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY

def read(path):
    read_clip(probe(path), resolve(ClipSettings(frames=4)), 1 << 30, GEOMETRY)

for path in sys.argv[1:]:
    read(path)  # all libraries are loaded now
pages = int(open("/proc/self/statm").read().split()[0])
for mebibytes in (0, 2, 8, 16):
    limit = pages * resource.getpagesize() + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    for path in sys.argv[1:]:
        try:
            read(path)
        except Exception as error:
            failure = environment_failure(error)
            print(failure if failure is not None else repr(error))
        else:
            print("read")
"""


def test_no_memory(tmp_path):
    """FFmpeg calls the pictures damaged then, and tells of no error."""
    write_clip(tmp_path / "clip.mp4", seconds=0.5, size=(1280, 720))
    Image.effect_noise((3000, 3000), 50).save(tmp_path / "a.jpg")
    done = subprocess.run(
        [sys.executable, "-c", LOW_MEMORY, tmp_path / "clip.mp4", tmp_path / "a.jpg"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    no_stack = "no thread or process can be started"
    assert {line.split(";")[0] for line in lines} <= {"out of memory", no_stack, "read"}
    assert any(line.startswith("out of memory; free memory or lower workers") for line in lines)
    assert lines[0] != "read"


@pytest.mark.parametrize("box", [b"stts", b"stsd"])
def test_a_header_for_which_no_machine_has_the_memory(tmp_path, box):
    """FFmpeg finds no memory for it, which is the fault of the file."""
    path = tmp_path / "clip.mp4"
    write_clip(path, seconds=1)
    content = bytearray(path.read_bytes())
    place = content.index(box) + (8 if box == b"stts" else 12)
    content[place : place + 4] = (0x1FFF_FFFF).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(av.error.MemoryError):
        av.open(str(path))
    with pytest.raises(
        UserError, match="clip.mp4: not readable .*Cannot allocate memory"
    ) as caught:
        media.probe(path)
    assert not isinstance(caught.value, UnreadableFile)


def test_a_file_that_the_system_refuses_is_not_known_to_be_broken(tmp_path, monkeypatch):
    with pytest.raises(UnreadableFile, match="no such file"):
        media.probe(tmp_path / "a.mp4")
    write_clip(tmp_path / "a.mp4", seconds=1)

    def refuse(*_, **__):
        raise av.error.PermissionError(13, "Permission denied")

    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(UnreadableFile, match=r"a.mp4: not readable .*\(Permission denied\)"):
        media.probe(tmp_path / "a.mp4")
