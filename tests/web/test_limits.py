"""ugc_jax.web.limits: bodies that are too large, announced or not; rates."""

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from ugc_jax.web.limits import BodyLimit, Rate


async def _length(request):
    try:
        return PlainTextResponse(str(len(await request.body())))
    except Exception:  # as frameworks do that read the body before a handler
        return PlainTextResponse("bad", 400)


@pytest.fixture
def client() -> TestClient:
    app = Starlette(routes=[Route("/", _length, methods=["POST"])])
    return TestClient(BodyLimit(app, 1000))


def parts(count: int):
    for _ in range(count):
        yield b"x" * 100


@pytest.mark.parametrize("count", [0, 9, 10])
def test_bodies_within_the_limit(client, count):
    assert client.post("/", content=b"x" * 100 * count).text == str(100 * count)
    assert client.post("/", content=parts(count)).text == str(100 * count)


@pytest.mark.parametrize("count", [11, 1000])
def test_larger_ones(client, count):
    for content in (b"x" * 100 * count, parts(count)):
        answer = client.post("/", content=content)
        assert answer.status_code == 413
        assert answer.text == "the request has more than 1000 bytes"


@pytest.mark.parametrize("announced", ["-1", "1e9", "0x10", "99999999999999999999"])
def test_lengths_that_are_none(client, announced):
    assert client.post("/", headers={"Content-Length": announced}).status_code == 413


def test_rate():
    now = 0.0
    rate = Rate(2.0, 3.0, lambda: now)
    assert [rate.wait("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert rate.wait("b") == 0  # each has its own budget
    now = 0.5
    assert [rate.wait("a"), rate.wait("a") > 0] == [0, True]
    now = 100.0
    assert [rate.wait("a") for _ in range(3)] == [0, 0, 0]  # not more than at the beginning
    assert rate.wait("a") > 0


def test_rate_forgets_the_least_recent(monkeypatch):
    monkeypatch.setattr("ugc_jax.web.limits._MOST_KEYS", 2)
    rate = Rate(0.001, 1, lambda: 0.0)
    for key in "abc":
        assert rate.wait(key) == 0
    assert rate.wait("c") > 0
    assert rate.wait("a") == 0
