"""Command-line words -> clips: files, folders and globs."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from ugc_jax import remote
from ugc_jax.errors import UserError

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".divx", ".flv", ".f4v", ".ts", ".mts",
    ".m2ts", ".mpg", ".mpeg", ".m2v", ".vob", ".wmv", ".asf", ".3gp", ".3g2", ".ogv", ".ogm",
    ".mxf",
)  # fmt: skip


def find_clips(words: Iterable[str]) -> list[str]:
    """Return the clips that `words` name, in their order, each once.

    A folder stands for the videos (VIDEO_SUFFIXES) in it and below it, sorted. A pattern with *, ?
    or [ that is not itself a file stands for the files that it matches. Anything else is taken as a
    file. A broken link, a pipe or a folder that may not be listed is found, too, so that it is
    reported as a clip that cannot be read. A link is a clip of its own beside the file it leads to.
    Raises UserError for a folder or a pattern without any clip, and for a URL.
    """
    clips: dict[Path, str] = {}  # place -> path as given
    for word in words:
        if remote.is_url(word):
            raise UserError(f"{word}: is a URL that cannot be read here; download it first")
        found = [word]
        if os.path.isdir(word):
            found = sorted(_in_folder(word))
            if not found:
                looked_for = " ".join(VIDEO_SUFFIXES)
                raise UserError(f"{word}: no videos in this folder (looked for {looked_for})")
        elif glob.has_magic(word) and not os.path.lexists(word):
            matches = glob.glob(word, recursive=True)
            found = sorted(file for file in matches if not os.path.isdir(file))
            if not found:
                raise UserError(f"{word}: matches no file")
        for clip in found:
            clips.setdefault(place(clip), clip)
    return list(clips.values())


def find_by_id(folder: str, setting: str) -> dict[str, str]:
    """Return id -> clip of the videos in a folder and below it; a name without suffix is its id.

    setting: that names the folder, for messages. Raises UserError if it is no folder or has no
    videos, and for two clips with one id.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{setting}: {folder} is not a folder; give the folder of the clips")
    clips: dict[str, str] = {}
    for clip in find_clips([folder]):
        other = clips.setdefault(Path(clip).stem, clip)
        if other != clip:
            raise UserError(f"{clip}: has the same id as {other}; remove one of them")
    return clips


def place(path: str | Path) -> Path:
    """Return the absolute path, its folder without links: the same for all spellings of a name."""
    folder, name = os.path.split(path)
    return Path(os.path.realpath(folder), name)


def _in_folder(folder: str) -> list[str]:
    """Return the videos in a folder and below it, by their names; hidden files are left out.

    Also what cannot be searched, so that it gets an error: closed folders, links to folders.
    """
    found, closed = [], []
    for inner, folders, names in os.walk(
        folder, onerror=lambda error: closed.append(error.filename)
    ):
        # Links to folders are not followed, as they may lead round; each is an error of its name.
        inner_paths = (Path(inner, name) for name in folders if not name.startswith("."))
        closed.extend(str(path) for path in inner_paths if path.is_symlink())
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in VIDEO_SUFFIXES:
                found.append(str(Path(inner, name)))
    return found + closed
