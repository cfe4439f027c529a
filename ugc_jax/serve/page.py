"""The page to try a captioner, at `/`: static files, whose script uses the API as others do.

They hold nothing of the model or its settings, so they are served without a key; what the page
shows of them comes from /v1/models, which asks for it. The colours of evidence are those of the
report.
"""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from ugc_jax import report

_STATIC = Path(__file__).parent / "static"
_EVIDENCE = ("evidence.js", "evidence.css")  # of the report


def is_open(path: str) -> bool:
    """Return whether a path of a request is the page or one of its files."""
    return path == "/" or path.startswith("/static/")


def routes() -> list[BaseRoute]:
    """Return the routes of the page."""

    async def page(_: Request) -> FileResponse:
        return FileResponse(_STATIC / "index.html")

    async def evidence(request: Request) -> FileResponse:
        return FileResponse(
            Path(report.__file__).parent / "templates" / Path(request.url.path).name
        )

    static = Mount("/static", StaticFiles(directory=_STATIC), name="static")
    return [Route("/", page), *(Route(f"/static/{name}", evidence) for name in _EVIDENCE), static]
