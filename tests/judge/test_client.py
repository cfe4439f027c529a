"""ugc_jax.judge.client against a real HTTP server that misbehaves on demand."""

import asyncio
import collections
import dataclasses
import gc
import json
import signal
import subprocess
import sys
import time
import types
from email.utils import formatdate

import pytest
from fake_judge import FakeJudge, Reply

from ugc_jax import extras
from ugc_jax.errors import EnvironmentFailure, UserError
from ugc_jax.judge import client as module
from ugc_jax.judge.client import Judge, JudgeConfig, Malformed, Overloaded, Refused, Unreachable
from ugc_jax.judge.messages import integer

openai = pytest.importorskip("openai")


@pytest.fixture
def server():
    server = FakeJudge(lambda question: {"score": 4})
    yield server
    server.stop()


@pytest.fixture
def config(server):
    """Of the server, with retries that do not take long."""
    return JudgeConfig(model="fake", base_url=server.url, backoff=0.01, timeout=5)


def score(answer):
    return integer(answer, "score", 1, 5)


def ask(config, *questions, repeats=(0,)):
    """(what came of each question: a score or the error; the judge's usage)."""

    async def run():
        judge = Judge(config)
        asked = (judge.ask(question, score, n) for n in repeats for question in questions)
        found = await asyncio.gather(*asked, return_exceptions=True)
        await judge.close()
        return found, judge.usage

    return asyncio.run(run())


def replaced(config, **changes):
    return dataclasses.replace(config, **changes)


def test_a_question_and_what_it_cost(server, config):
    found, usage = ask(replaced(config, price_in=2.0, price_out=50.0), "Rate it.")
    assert found == [4]
    assert dataclasses.asdict(usage) == {
        "answered": 1, "cached": 0, "failed": 0, "requests": 1,
        "tokens_in": 100, "tokens_out": 10, "cost": pytest.approx((200 + 500) / 1e6),
        "spent": pytest.approx((200 + 500) / 1e6),
    }  # fmt: skip
    (request,) = server.requests
    assert (request["model"], request["temperature"]) == ("fake", 0.0)
    assert [m["role"] for m in request["messages"]] == ["system", "user"]
    assert "max_tokens" not in request


def test_what_the_server_is_told(server, config):
    ask(replaced(config, temperature=None, max_tokens=7), [{"role": "user", "content": "Hello"}])
    (request,) = server.requests
    assert "temperature" not in request
    assert request["max_tokens"] == 7
    assert request["messages"] == [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=429),
        Reply(status=500),
        Reply(status=500, body=b"<html>oops</html>", headers={"Content-Type": "text/html"}),
        Reply(status=503),
        Reply(status=408),
        Reply(hang_up=True),
        Reply(text="Four."),
        Reply(text='{"score": 40}'),
        Reply(text='{"rating": 4}'),
        Reply(text=""),
        Reply(body=b"<html>200, but a page</html>", headers={"Content-Type": "text/html"}),
        Reply(body=b'{"choices": ['),
        Reply(body=b'{"choices": []}'),
        Reply(body=b'{"choices": [{"message": null}]}'),
        Reply(body=b'{"choices": [{"message": {"content": null}}], "usage": null}'),
        Reply(body=b"[]"),
        Reply(body=b"null"),
    ],
    ids=str,
)
def test_one_bad_reply_costs_one_request(server, config, reply):
    server.script = [reply]
    found, usage = ask(config, "Rate it.")
    assert found == [4]
    assert (usage.answered, usage.failed, usage.requests) == (1, 0, 2)


def test_a_malformed_answer_is_asked_again_with_the_reason(server, config):
    server.script = [Reply(text='{"score": 40}')]
    ask(config, "Rate it.")
    first, second = (request["messages"] for request in server.requests)
    assert second[:2] == first
    assert second[2] == {"role": "assistant", "content": '{"score": 40}'}
    assert "not a whole number from 1 to 5" in second[3]["content"]


def test_prose_for_ever(server, config):
    server.answer = lambda question: "It is good."
    (error,), usage = ask(config, "Rate it.")
    assert isinstance(error, Malformed)
    assert "no JSON object: 'It is good.'" in str(error)
    assert (usage.requests, usage.failed) == (3, 1)


def test_an_answer_that_is_cut_off_is_none(server, config):
    """Even a complete object may be a draft; the same question is asked again."""
    server.script = [Reply(text='{"score": 1}', finish_reason="length")]
    found, usage = ask(config, "Rate it.")
    assert found == [4]
    first, second = (request["messages"] for request in server.requests)
    assert first == second
    server.script = [Reply(text='{"score": 1}', finish_reason="length")] * 9
    (error,), _ = ask(config, "Rate it again.")
    assert isinstance(error, Malformed)
    assert "cut off at the limit of tokens; raise judge.max_tokens" in str(error)


@pytest.mark.parametrize(
    ("reason", "fault"),
    [
        ("length", "limit of tokens"),
        ("MAX_TOKENS", "limit of tokens"),
        ("content_filter", "content filter"),
        ("abort", "broken off"),
    ],
)
def test_what_looks_like_a_verdict_in_a_broken_reply(server, config, tmp_path, reason, fault):
    """A draft that ends where the reply was cut: no answer, and nothing in the cache."""
    cache = tmp_path / "judge.jsonl"
    server.script = [Reply(text='Not {"score": 1}', finish_reason=reason)] * 3
    (error,), _ = ask(replaced(config, cache=str(cache)), "Rate it.")
    assert isinstance(error, Malformed)
    assert fault in str(error)
    assert cache.read_text() == ""
    found, _ = ask(replaced(config, cache=str(cache)), "Rate it.")
    assert found == [4]


def test_a_refusal_beside_a_verdict(server, config):
    message = {"role": "assistant", "content": '{"score": 1}', "refusal": "I can't rate people."}
    body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
    server.script = [Reply(body=body)] * 3
    (error,), _ = ask(config, "Rate it.")
    assert isinstance(error, Malformed)
    assert "the judge refuses: I can't rate people." in str(error)


class TestRedirects:
    def ask(self, server, config, location, status=307):
        server.script = [Reply(status=status, headers={"Location": location})]
        return ask(config, "Rate it.")

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_another_host_gets_no_captions(self, server, config, status):
        other = FakeJudge(lambda question: {"score": 1})
        try:
            (error,), usage = self.ask(server, config, f"{other.url}/chat/completions?k=s", status)
        finally:
            other.stop()
        assert isinstance(error, UserError)
        assert str(error) == (
            f"judge fake: {server.url[:-3]} redirects to {other.url[:-3]} (HTTP {status}), and "
            "captions are not sent to another host; set judge.base_url to the address that "
            "answers, if you trust it"
        )
        assert not other.requests
        assert usage.requests == 1

    @pytest.mark.parametrize(
        "location",
        [
            "http://localhost:{port}/v1/chat/completions",  # another name
            "https://127.0.0.1:{port}/v1/chat/completions",
            "//example.invalid/v1/chat/completions",
            "ftp://127.0.0.1:{port}/v1",
            "http://127.0.0.1:{port}@example.invalid/v1",
        ],
    )
    def test_another_name_or_scheme_is_another_host(self, server, config, location):
        port = server.url.split(":")[2].split("/")[0]
        (error,), _ = self.ask(server, config, location.format(port=port))
        assert isinstance(error, UserError)
        assert "captions are not sent to another host" in str(error)
        assert len(server.requests) == 1

    @pytest.mark.parametrize("status", [307, 308])
    @pytest.mark.parametrize("location", ["/v2/chat/completions", "{url}/chat/completions"])
    def test_the_same_host_is_followed(self, server, config, location, status):
        found, _ = self.ask(server, config, location.format(url=server.url), status)
        assert found == [4]
        assert server.questions == ["Rate it."] * 2

    def test_an_address_that_cannot_be_read(self, server, config):
        (error,), _ = self.ask(server, config, "http://x:port/v1")
        assert isinstance(error, UserError)
        assert "redirects to an address that cannot be read" in str(error)

    def test_a_redirect_that_loses_the_question(self, server, config):
        (error,), _ = self.ask(server, config, "/v2/chat/completions", 302)
        assert isinstance(error, UserError)
        assert "the question would be lost" in str(error)

    @pytest.mark.parametrize(
        ("asked", "target", "is_followed"),
        [
            ("http://a/v1", "https://a/v1", True),
            ("https://a/v1", "http://a/v1", False),
            ("https://a/v1", "https://a:8443/v1", False),
            ("https://a/v1", "https://a:443/v2", True),
            ("https://a/v1", "https://a.b/v1", False),
            ("https://a/v1", "https://user:secret@b/v1", False),
        ],
    )
    def test_origins(self, asked, target, is_followed):
        client = openai.DefaultAsyncHttpxClient()
        request = client.build_request("POST", asked)
        response = types.SimpleNamespace(url=request.url, headers={"location": target})
        response.has_redirect_location, response.status_code = True, 308
        if is_followed:
            asyncio.run(module._check_redirect(response))
            return
        with pytest.raises(UserError, match="redirects to") as caught:
            asyncio.run(module._check_redirect(response))
        assert "secret" not in str(caught.value)


class TestRoutes:
    """Ways that captions take because of the environment are logged."""

    @pytest.fixture(autouse=True)
    def _clean(self, monkeypatch):
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)

    def test_none(self, server, config, caplog):
        ask(config, "Rate it.")
        assert not caplog.records

    def test_a_proxy(self, server, config, caplog, monkeypatch):
        port = server.url.split(":")[2].split("/")[0]
        monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{port}")
        found, _ = ask(replaced(config, base_url="http://judge.invalid/v1"), "Rate it.")
        assert found == [4]  # the proxy answered
        (line,) = [record.getMessage() for record in caplog.records]
        assert f"http://judge.invalid go through the proxy http://127.0.0.1:{port} of" in line
        assert "no_proxy=judge.invalid" in line
        assert "secret" not in line
        caplog.clear()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        ask(config, "Rate it.")
        assert not caplog.records

    def test_an_address_of_the_environment(self, server, config, caplog, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        found, _ = ask(replaced(config, base_url=None), "Rate it.")
        assert found == [4]
        assert "from the environment variable OPENAI_BASE_URL" in caplog.text


def test_errors_for_ever(server, config):
    server.script = [Reply(status=500)] * 9
    (error,), usage = ask(replaced(config, retries=2), "Rate it.")
    assert isinstance(error, Overloaded)
    assert "3 attempts failed" in str(error)
    assert "HTTP 500" in str(error)
    assert usage.requests == 3


def test_late_answers(server, config):
    server.script = [Reply(delay=1.0)]
    found, usage = ask(replaced(config, timeout=0.3), "Rate it.")
    assert found == [4]
    server.delay = 1.0
    begun = time.monotonic()
    (error,), usage = ask(replaced(config, timeout=0.2, retries=1), "Rate that.")
    assert isinstance(error, Overloaded)
    assert time.monotonic() - begun < 1.8  # the server takes 2 s
    assert usage.requests == 2


def test_a_question_that_is_refused_is_not_asked_again(server, config):
    server.script = [Reply(status=400)]
    (error, fine), usage = ask(replaced(config, concurrency=1), "Rate it.", "Rate that.")
    assert isinstance(error, Refused)
    assert fine == 4
    assert usage.requests == 2


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=401),
        Reply(status=404),
        Reply(status=429, body=b'{"error": {"message": "pay", "code": "insufficient_quota"}}'),
    ],
    ids=str,
)
def test_a_wrong_key_or_model_is_a_users_mistake(server, config, reply):
    server.script = [reply]
    (error,), _ = ask(config, "Rate it.")
    assert isinstance(error, UserError)
    assert "judge fake: HTTP" in str(error)
    assert "OPENAI_API_KEY" in str(error)
    assert "\n" not in str(error)


def test_a_mistake_after_all_who_asked_are_cancelled_is_not_logged(server, config, caplog):
    """As in a run that another question's mistake has ended."""
    server.script = [Reply(delay=0.1, status=401)]

    async def run():
        judge = Judge(config)
        asking = asyncio.create_task(judge.ask("Rate it.", score))
        while not judge._running:
            await asyncio.sleep(0)
        (task,) = judge._running.values()
        asking.cancel()
        await asyncio.wait([task])  # not among those that `close` waits for
        await judge.close()

    asyncio.run(run())
    gc.collect()
    assert not caplog.records


def test_retry_after_holds_all_questions(server, config):
    server.script = [Reply(status=429, delay=0.2, headers={"Retry-After": "0.5"})]
    server.script += [Reply(delay=0.4)]
    found, usage = ask(replaced(config, concurrency=2), *map(str, range(4)))
    assert found == [4] * 4
    refused, beside, *later = server.times
    assert beside - refused < 0.2
    assert all(when - refused >= 0.7 for when in later)
    assert usage.requests == 5


def test_retry_after_as_a_date(server, config):
    assert module.retry_after({"retry-after": "7"}) == 7
    date = formatdate(time.time() + 5, usegmt=True)
    assert module.retry_after({"retry-after": date}) == pytest.approx(4.5, abs=1)
    assert module.retry_after({"retry-after": "soon"}) is None
    assert module.retry_after({}) is None


def test_no_room_for_longer_than_the_wait(server, config):
    server.script = [Reply(status=429, headers={"Retry-After": "3600"})]
    (error,), _ = ask(config, "Rate it.")
    assert isinstance(error, Overloaded)
    assert "too many requests" in str(error)


def test_concurrency(server, config):
    server.delay = 0.05
    found, _ = ask(replaced(config, concurrency=3), *map(str, range(12)))
    assert found == [4] * 12
    assert server.most == 3


def test_rate(server, config):
    ask(replaced(config, requests_per_minute=1200), *map(str, range(10)))  # one each 50 ms
    assert server.times[-1] - server.times[0] >= 9 * 0.05 - 0.03
    assert server.times[5] - server.times[0] >= 5 * 0.05 - 0.03  # evenly, not in bursts


def test_a_server_that_dies_and_comes_back_loses_nothing(server, config, caplog):
    caplog.set_level("INFO")

    async def run():
        judge = Judge(replaced(config, concurrency=4))
        server.delay = 0.1
        asked = [asyncio.create_task(judge.ask(str(n), score)) for n in range(12)]
        await asyncio.sleep(0.15)
        await asyncio.to_thread(server.stop)
        await asyncio.sleep(0.4)
        assert not all(task.done() for task in asked)
        await asyncio.to_thread(server.start)
        found = await asyncio.gather(*asked)
        await judge.close()
        return found, judge.usage

    found, usage = asyncio.run(run())
    assert found == [4] * 12
    assert usage.failed == 0
    told = [record.getMessage() for record in caplog.records if record.name == module.__name__]
    assert len(told) == 2
    assert "cannot be reached" in told[0]
    assert "waiting for it, up to 10 minutes" in told[0]
    assert "answers again" in told[1]


def test_a_server_that_stays_away(server, config):
    server.stop()
    begun = time.monotonic()
    wait = 0.3 / 60
    (first, second), usage = ask(
        replaced(config, wait=wait, backoff=0.05), "Rate it.", "Rate that."
    )
    assert isinstance(first, Unreachable)
    assert isinstance(second, Unreachable)
    assert 0.3 <= time.monotonic() - begun < 10
    assert usage.failed == 2
    server.start()


def test_one_broken_connection_is_no_outage(server, config, caplog):
    server.script = [Reply(hang_up=True)]
    found, _ = ask(replaced(config, backoff=0.2, concurrency=1), "Rate it.", "Rate that.")
    assert found == [4, 4]
    assert not caplog.records


def test_a_question_that_the_server_dies_of_has_an_end(server, config):
    def break_off(question):
        if question == "poison":
            raise OSError
        return {"score": 4}

    server.answer = break_off

    async def run():
        judge = Judge(replaced(config, retries=2))
        poison = asyncio.create_task(judge.ask("poison", score))
        for number in range(10**6):
            assert await judge.ask(str(number), score) == 4
            if poison.done():
                return poison.exception()

    error = asyncio.run(asyncio.wait_for(run(), 10))
    assert isinstance(error, Overloaded)
    assert "4 attempts failed" in str(error)


def test_a_second_run_asks_nothing(server, config, tmp_path):
    config = replaced(config, cache=str(tmp_path / "judge.jsonl"))
    questions = list(map(str, range(5)))
    ask(config, *questions)
    found, usage = ask(config, *questions, "another")
    assert found == [4] * 6
    assert (usage.cached, usage.answered, usage.requests) == (5, 1, 1)
    for change in ({"model": "other"}, {"temperature": 0.5}):
        _, usage = ask(replaced(config, **change), "0")
        assert usage.requests == 1


def test_repeats_are_questions_of_their_own(server, config):
    _, usage = ask(config, "Rate it.", repeats=(0, 1, 2))
    assert usage.requests == 3


def test_equal_questions_at_a_time_are_asked_once(server, config):
    server.delay = 0.05
    found, usage = ask(config, *["Rate it."] * 8)
    assert found == [4] * 8
    assert usage.requests == 1


def test_a_recorded_answer_that_no_longer_fits_is_asked_anew(server, config, tmp_path):
    config = replaced(config, cache=str(tmp_path / "judge.jsonl"))
    ask(config, "Rate it.")

    async def other():
        judge = Judge(config)
        server.answer = lambda question: {"points": 7}
        return await judge.ask("Rate it.", lambda answer: answer["points"])

    assert asyncio.run(other()) == 7


def test_what_is_known(server, config, tmp_path):
    async def run():
        judge = Judge(replaced(config, cache=str(tmp_path / "judge.jsonl")))
        before = judge.knows("Rate it.", score)
        await judge.ask("Rate it.", score)
        known = [judge.knows("Rate it.", score, repeat) for repeat in (0, 1)]
        unfit = judge.knows("Rate it.", lambda answer: answer["points"])
        # an answer that is made into None is known all the same
        nothing = [await judge.ask("Rate it.", lambda answer: None) for _ in range(2)]
        await judge.close()
        return before, known, unfit, nothing, judge.usage.requests

    assert asyncio.run(run()) == (False, [True, False], False, [None, None], 1)


def test_closing_gives_up_what_is_being_asked(server, config, caplog):
    server.delay = 0.3

    async def run():
        judge = Judge(config)
        asked = asyncio.create_task(judge.ask("Rate it.", score))
        await asyncio.sleep(0.1)
        await judge.close()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(run())
    assert not caplog.records


def test_a_killed_run_goes_on(server, config, tmp_path):
    cache = tmp_path / "judge.jsonl"
    script = f"""
import asyncio
from ugc_jax.judge.client import Judge, JudgeConfig
config = JudgeConfig(model="fake", base_url={server.url!r}, cache={str(cache)!r}, concurrency=2)
judge = Judge(config)
async def run():
    await asyncio.gather(*(judge.ask(str(n), lambda answer: answer["score"]) for n in range(20)))
asyncio.run(run())
"""
    server.delay = 0.1
    run = subprocess.Popen([sys.executable, "-c", script])
    while not cache.exists() or cache.read_bytes().count(b"\n") < 4:
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    recorded = cache.read_bytes().count(b"\n")
    assert recorded < 20
    server.delay = 0.0
    found, usage = ask(replaced(config, cache=str(cache)), *map(str, range(20)))
    assert found == [4] * 20
    assert (usage.cached, usage.answered) == (recorded, 20 - recorded)
    twice = [n for n, count in collections.Counter(server.questions).items() if count > 1]
    assert len(twice) <= 2  # those that the kill cut off


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url is 'localhost:8000'; give an address"),
        ({"temperature": -0.5}, "temperature is -0.5; give 0 or more, or none"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"wait": -1.0}, "wait is -1.0"),
        ({"requests_per_minute": 0.0}, "requests_per_minute is 0.0"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(UserError, match=rf"^{message}"):
        JudgeConfig(**changes)


def test_what_a_judge_needs(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="needs judge.model=NAME"):
        Judge(JudgeConfig())
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        Judge(JudgeConfig(model="gpt"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="answers cannot be kept there"):
        Judge(JudgeConfig(model="gpt", base_url="http://x", cache=str(tmp_path / "file/x")))
    monkeypatch.setattr(extras, "missing", lambda extra: ["openai"])
    with pytest.raises(EnvironmentFailure, match=r"an LLM judge needs openai.*ugc_jax\[judge\]"):
        Judge(JudgeConfig(model="gpt"))
