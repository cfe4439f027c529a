"""The page to try a captioner, at `/`: static files, whose script uses the API as others do.

They hold nothing of the model or its settings, so they are served without a key; what the page
shows of them comes from /v1/models, which asks for it.
"""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

_STATIC = Path(__file__).parent / "static"


def is_open(path: str) -> bool:
    """Return whether a path of a request is the page or one of its files."""
    return path == "/" or path.startswith("/static/")


def routes() -> list[BaseRoute]:
    """Return the routes of the page."""

    async def page(_: Request) -> FileResponse:
        return FileResponse(_STATIC / "index.html")

    return [Route("/", page), Mount("/static", StaticFiles(directory=_STATIC), name="static")]
