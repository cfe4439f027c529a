"""Files of one folder as HTTP answers with byte ranges; no path leads out of the folder."""

import os
from pathlib import Path

from starlette.responses import FileResponse


class Outside(Exception):
    """A name that leads out of the folder, or to nothing that may be read in it."""


class Folder:
    """A folder whose files are served."""

    def __init__(self, root: str | Path):
        self.root = Path(os.path.realpath(root))

    def file(self, *parts: str) -> Path:
        """Return the real path of a file below the folder. Raises Outside.

        parts: names of folders and of the file, relative; links are followed, and refused where
        they lead out.
        """
        for part in parts:
            if not part or "\0" in part or os.path.isabs(part) or ".." in Path(part).parts:
                raise Outside(repr(part)[:80])
        path = Path(os.path.realpath(self.root.joinpath(*parts)))
        if not path.is_relative_to(self.root) or not path.is_file():
            raise Outside(repr("/".join(parts))[:80])
        return path


def stream(path: Path, media_type: str) -> FileResponse:
    """Return the answer with a file's bytes, or the range of them that a request names.

    It is not cached: another account of the same browser must not find it there.
    """
    return FileResponse(path, media_type=media_type, headers={"Cache-Control": "no-store"})
