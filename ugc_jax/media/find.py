"""Command-line words -> clips: files, folders and globs."""

import glob
from collections.abc import Iterable
from pathlib import Path

from ugc_jax.errors import UserError

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".ts", ".mpg", ".mpeg", ".wmv", ".3gp",
)  # fmt: skip


def find_clips(words: Iterable[str]) -> list[str]:
    """Return the clips that `words` name, in their order, each once.

    A folder stands for the videos (VIDEO_SUFFIXES) in it and below it, sorted. A pattern with *, ?
    or [ that is not itself a file stands for the files that it matches. Anything else is taken as a
    file, readable or not. Raises UserError for a folder or a pattern without any clip.
    """
    clips: dict[Path, str] = {}  # resolved path -> path as given
    for word in words:
        path = Path(word)
        found = [word]
        if path.is_dir():
            found = sorted(str(file) for file in path.rglob("*") if _is_video(file))
            if not found:
                looked_for = " ".join(VIDEO_SUFFIXES)
                raise UserError(f"{word}: no videos in this folder (looked for {looked_for})")
        elif glob.has_magic(word) and not path.exists():
            found = sorted(file for file in glob.glob(word, recursive=True) if Path(file).is_file())
            if not found:
                raise UserError(f"{word}: matches no file")
        for clip in found:
            clips.setdefault(Path(clip).resolve(), clip)
    return list(clips.values())


def _is_video(file: Path) -> bool:
    """Decide by the name; hidden files are left out."""
    hidden = file.name.startswith(".")
    return file.suffix.lower() in VIDEO_SUFFIXES and not hidden and file.is_file()
