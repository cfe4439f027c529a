"""Decoders that kill, hang or bloat: what workers do in place of reading certain files."""

from collections.abc import Mapping
from pathlib import Path


def hooked_workers(folder: Path, actions: Mapping[str, str]) -> Path:
    """Write a folder for `sys.path`, which workers share, and return it.

    actions: {name of a file: Python statement that is executed before the file is read}.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        f"""
import os, signal, time
from ugc_jax.media import clip

ACTIONS, probe = {dict(actions)!r}, clip.probe

def hooked(path):
    exec(ACTIONS.get(os.path.basename(path), ""))
    return probe(path)

clip.probe = hooked
"""
    )
    return folder
