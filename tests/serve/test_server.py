"""`ugc-jax serve` as a process: clients (openai, curl, lmms-eval's requests), and abuse of it."""

import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest
from clips import write_clip
from PIL import Image
from serving import NAME, body, data_url, image, running, video

from ugc_jax import cli
from ugc_jax.errors import UserError

KEY = "a-key-of-this-test-only"
BEARER = {"Authorization": f"Bearer {KEY}"}
CLIP = dict(frames=4, min_pixels=784, max_pixels=12544)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Clips below media/, and a file beside it."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "media").mkdir()
    write_clip(folder / "media/a.mp4", seconds=1.2, fps=10, size=(96, 64), seed=1)
    write_clip(folder / "secret.mp4", seconds=1.2, fps=10, size=(96, 64))
    (folder / "key").write_text(f"{KEY}\n")
    return folder


@pytest.fixture(scope="module")
def served(folder, tiny_checkpoint):
    flags = ["--media_root", str(folder / "media"), "--urls", "--clip_memory", "2"]
    flags += ["--limits.header_timeout", "2", "--limits.body_timeout", "3", "--clip_timeout", "20"]
    with running(tiny_checkpoint, folder, *flags) as served:
        yield served


@pytest.fixture
def client(served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.address}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def caption(folder, tiny_captioner) -> str:
    """The caption of a.mp4 by the captioner itself."""
    clip = folder / "media/a.mp4"
    return tiny_captioner.caption([clip], max_new_tokens=8, **CLIP)[0].caption


def is_alive(served) -> bool:
    return served.get("/health").json() == {"status": "ok"} and served.process.poll() is None


# ---- clients -------------------------------------------------------------------------------------


def test_a_clip_has_its_caption(served, client, folder, caption):
    clip = folder / "media/a.mp4"
    for url in (f"file://{clip}", data_url(clip)):
        parts = body(video(url))["messages"]
        whole = client.chat.completions.create(model=NAME, messages=parts, max_tokens=8)
        assert whole.choices[0].message.content == caption
        assert whole.choices[0].finish_reason == "length"
        assert whole.usage.completion_tokens == 8
        assert whole.usage.prompt_tokens_details.audio_tokens > 0
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + 8
    with client.chat.completions.create(
        model=NAME, messages=parts, max_tokens=8, stream=True,
        stream_options={"include_usage": True},
    ) as stream:  # fmt: skip
        *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == caption
    assert [chunk.choices[0].finish_reason for chunk in chunks].count("length") == 1
    assert (last.choices, last.usage.completion_tokens) == ([], 8)
    assert client.models.list().data[0].id == NAME
    assert client.models.retrieve(NAME).id == NAME


def test_answers_have_evidence(client, folder, tiny_captioner):
    clip = folder / "media/a.mp4"
    ask = dict(model=NAME, messages=body(video(f"file://{clip}"))["messages"], max_tokens=8)
    whole = client.chat.completions.create(**ask, n=2, extra_body={"evidence": True})
    text = whole.choices[0].message.content
    (told,) = tiny_captioner.explain([clip], [text], max_new_tokens=8, **CLIP)
    for choice in whole.choices:
        words = choice.model_extra["evidence"]["words"]
        assert [word["word"] for word in words] == [word.text for word in told.words]
        for word, same in zip(words, told.words, strict=True):
            np.testing.assert_allclose(word["logprobs"], same.logprobs, atol=2e-3)
    both = {"evidence": True, "evidence_by_time": True}
    *chunks, last = list(client.chat.completions.create(**ask, stream=True, extra_body=both))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    evidence = last.choices[0].model_extra["evidence"]
    assert len(evidence["words"][0]["curve"]["audio"]) == len(evidence["times"]) == 2
    hello = [{"role": "user", "content": "Hello"}]
    for field, fields, more in (
        ("evidence", {"evidence": True}, {"messages": hello}),
        ("evidence_by_time", {"evidence_by_time": True}, {}),
        ("evidence", {"evidence": 3}, {}),
    ):
        with pytest.raises(openai.BadRequestError, match=f"{field}: ") as refused:
            client.chat.completions.create(**ask | more, extra_body=fields)
        assert refused.value.param == field


def test_samples_seeds_stops_and_logprobs(client):
    ask = dict(model=NAME, messages=[{"role": "user", "content": "Hello"}], max_tokens=6)
    sampled = dict(n=3, temperature=1.5, seed=7)
    first, again = (client.chat.completions.create(**ask, **sampled) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.message.content for choice in again.choices] == texts
    assert len(set(texts)) > 1
    assert first.usage.completion_tokens == 18
    other = client.chat.completions.create(**ask, **sampled | dict(seed=-(2**40)))
    assert [choice.message.content for choice in other.choices] != texts
    greedy = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
    content = greedy.choices[0].logprobs.content
    assert len(content) == 6
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token  # greedy
        assert token.logprob == token.top_logprobs[0].logprob < 0
    text = greedy.choices[0].message.content
    stopped = client.chat.completions.create(**ask, stop=[text[3:6]])
    assert stopped.choices[0].message.content == text[: text.index(text[3:6])].strip()
    assert stopped.choices[0].finish_reason == "stop"


def test_a_conversation_with_several_media(client, served, folder):
    out = io.BytesIO()
    Image.fromarray(np.full((56, 84, 3), 90, np.uint8)).save(out, "PNG")
    silence = wav(0.5)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [
            {"type": "text", "text": "First a picture:"},
            image(data_url(out.getvalue(), "image/png")),
            {"type": "input_audio", "input_audio": {
                "data": base64.b64encode(silence).decode(), "format": "wav"}},
        ]},
        {"role": "assistant", "content": "It is grey."},
        {"role": "user", "content": [video(f"file://{folder}/media/a.mp4"),
                                     {"type": "text", "text": "And this?"}]},
    ]  # fmt: skip
    whole = client.chat.completions.create(model=NAME, messages=messages, max_tokens=4)
    assert whole.choices[0].message.content
    parts = served.post({"model": NAME, "messages": messages}, "/v1/inputs").json()["data"]
    assert [part["kind"] for part in parts] == ["image", "audio", "video"]
    assert [part["frames"] for part in parts] == [1, 0, 4]
    assert [round(part["audio_seconds"], 1) for part in parts] == [0.0, 0.5, 1.2]
    shown = Image.open(io.BytesIO(base64.b64decode(parts[2]["pictures"][0])))
    assert shown.format == "JPEG"
    assert list(shown.size) == parts[2]["size"]
    assert Image.open(io.BytesIO(base64.b64decode(parts[1]["mel"]))).size == (50, 128)


def wav(seconds: float) -> bytes:
    import wave

    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(2 * int(16000 * seconds)))
    return out.getvalue()


def test_settings_of_one_request(served, folder):
    url = f"file://{folder}/media/a.mp4"

    def inputs(**clip) -> dict:
        return served.post(body(video(url), clip=clip), "/v1/inputs").json()["data"][0]

    assert (inputs()["frames"], inputs()["audio_seconds"] > 1) == (4, True)
    assert (inputs(frames=2)["frames"], inputs(fps=5)["frames"]) == (2, 6)
    assert inputs(audio=False)["audio_seconds"] == 0
    heard = inputs(picture=False)
    assert (heard["kind"], heard["frames"], heard["audio_seconds"] > 1) == ("audio", 0, True)
    wrong = served.post(body(video(url), clip=dict(fps=-1)))
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "clip.fps")


def test_an_answer_in_json(client):
    schema = {
        "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
        "additionalProperties": False,
    }  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    whole = client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": "A number"}], max_tokens=64,
        response_format=form,
    )  # fmt: skip
    if whole.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(whole.choices[0].message.content)["n"], int)
    assert whole.choices[0].message.content.lstrip().startswith("{")


def test_curl(served, folder):
    """As docs/serving.md has it."""
    request = json.dumps(body(video(f"file://{folder}/media/a.mp4"), "What is it?", stream=True))
    words = ["curl", "-sN", f"{served.address}/v1/chat/completions", "-d", request]
    done = subprocess.run(
        [*words, "-H", "Content-Type: application/json"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stdout.startswith("data: {")
    assert done.stdout.endswith("data: [DONE]\n\n")


def test_requests_of_lmms_eval(client):
    """Its OpenAI-compatible model sends the frames of a clip as PNG, with max_tokens 1024."""
    content = []
    for level in range(0, 256, 32):
        out = io.BytesIO()
        Image.fromarray(np.full((64, 96, 3), level, np.uint8)).save(out, "PNG")
        content.append(image(data_url(out.getvalue(), "image/png")))
    content.append({"type": "text", "text": "Describe the video.\nAnswer with one word."})
    payload = {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "You are helpful."}]},
            {"role": "user", "content": content},
        ],
        "model": NAME, "max_tokens": 16, "temperature": 0,
    }  # fmt: skip
    response = client.chat.completions.create(**payload)
    assert isinstance(response.choices[0].message.content, str)
    assert response.usage.completion_tokens <= 16


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (dict(top_k=2**31), "top_k"),  # beyond the programs' int32
        (dict(repetition_penalty=1e39), "repetition_penalty"),  # beyond float32
        (dict(repetition_penalty=1e-39), "repetition_penalty"),
        (dict(clip={"fps": -1}), "clip.fps"),
        (dict(clip={"start": 2, "end": 1}), "clip.start"),
        (dict(response_format={"type": "json_schema", "json_schema": {
            "name": "a", "schema": {"enum": []}}}), "response_format.json_schema.schema"),
    ],
)  # fmt: skip
def test_values_that_nothing_can_compute_with(served, fields, param):
    answer = served.post(body("Hello", **fields))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_the_smallest_values_are_greedy(served):
    def answer(**fields) -> tuple[str, list[float]]:
        whole = served.post(body("Hello", logprobs=True, **fields))
        (choice,) = whole.json()["choices"]
        content = choice["logprobs"]["content"]
        return choice["message"]["content"], [token["logprob"] for token in content]

    text, _ = answer(temperature=0)
    for fields in (dict(temperature=1e-38), dict(temperature=1.0, top_p=1e-300)):
        assert answer(**fields) == (text, [0.0] * 8)


def test_the_type_of_the_body_in_capitals(served):
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert served.post(body("Hello"), headers=headers).status_code == 200


def test_errors_have_openais_form(client, served):
    ask = dict(model=NAME, messages=[{"role": "user", "content": "Hello"}])
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.chat.completions.create(**ask | dict(model="gpt-4o"))
    with pytest.raises(openai.BadRequestError) as found:
        client.chat.completions.create(**ask, presence_penalty=1)
    assert (found.value.param, found.value.code) == ("presence_penalty", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError, match="generates at most 1024"):
        client.chat.completions.create(**ask, max_tokens=2000)
    with pytest.raises(openai.BadRequestError, match="n: use at most"):
        client.chat.completions.create(**ask, n=100)
    with pytest.raises(openai.BadRequestError) as found:
        client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "word " * 200_000}]
        )
    assert served.get("/v1/nothing").json()["error"]["message"] == "Not Found"
    assert served.get("/v1/chat/completions").status_code == 405
    assert served.get("/docs").status_code == 404


def test_figures_for_prometheus(served):
    text = served.get("/metrics", headers=BEARER).text
    for name in ("request_seconds_count", "first_token_seconds_count", "generated_tokens_total"):
        line = next(line for line in text.splitlines() if line.startswith(f"ugc_jax_{name}"))
        assert float(line.split()[1]) > 0
    assert "ugc_jax_engine_places 8.0" in text
    assert "process_resident_memory_bytes" in text


# ---- abuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1/x", "not one of the public internet"),
        ("http://localhost/x", "not one of the public internet"),
        ("http://[::ffff:127.0.0.1]/x", "not one of the public internet"),
        ("http://169.254.169.254/latest/meta-data/", "not one of the public internet"),
        ("http://127.0.0.1:22/", "port 22 is not fetched from"),
        ("file://{folder}/secret.mp4", "no such file below the server's media_root"),
        ("file://{folder}/media/../secret.mp4", "no such file below the server's media_root"),
        ("file://{folder}/media/%2e%2e/secret.mp4", "no such file below the server's media_root"),
        ("file://{folder}/media/<script>alert(1)</script>\n.mp4", "no such file below"),
        ("data:video/mp4;base64,AAAA", "not readable as video"),
        ("data:text/html;base64,PHNjcmlwdD4=", "not readable as video"),
    ],
)  # fmt: skip
def test_media_that_are_refused(served, folder, url, words):
    answer = served.post(body(video(url.format(folder=folder))))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "messages[0].content[0].video_url")
    assert words in error["message"]
    assert "/tmp" not in error["message"]  # nor paths of the server
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert words in served.log.read_text()
    assert is_alive(served)


def test_a_part_of_another_kind(served, folder):
    clip = data_url(folder / "media/a.mp4")
    answer = served.post(body(image(clip)))
    assert answer.json()["error"]["message"].endswith("image_url: holds a video, not a picture")


def test_a_picture_that_swells(served):
    """A header of 60000 x 60000 pixels; 1.8 GB of pixels in a PNG of 50 KB."""
    import struct
    import zlib

    def png(width: int, height: int) -> bytes:
        def box(name: bytes, content: bytes) -> bytes:
            crc = struct.pack(">I", zlib.crc32(name + content))
            return struct.pack(">I", len(content)) + name + content + crc

        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        pixels = zlib.compress(bytes(3 * 100 * 1000))
        begin = b"\x89PNG\r\n\x1a\n" + box(b"IHDR", header)
        return begin + box(b"IDAT", pixels) + box(b"IEND", b"")

    answer = served.post(body(image(data_url(png(60_000, 60_000), "image/png"))))
    assert answer.status_code == 400
    assert "exceeds limit of 178956970 pixels" in answer.json()["error"]["message"]
    assert is_alive(served)


def test_a_clip_that_swells(served, folder, tmp_path):
    """An mp4 whose header lies about its size and its duration."""
    content = bytearray((folder / "media/a.mp4").read_bytes())
    for name, offset in ((b"tkhd", 80), (b"avc1", 28)):
        place = content.index(name) + 4 + offset - 4
        content[place : place + 4] = b"\xff\xff\xff\xff"
    for name in (b"mvhd", b"mdhd"):
        place = content.index(name) + 16
        content[place + 4 : place + 8] = b"\x7f\xff\xff\xff"
    start = time.monotonic()
    answer = served.post(body(video(data_url(bytes(content)))))
    assert answer.status_code in (200, 400)  # what is really in it may still be read
    assert time.monotonic() - start < 60
    assert is_alive(served)


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_of_2_gb(served, announced):
    host, port = served.address.removeprefix("http://").split(":")
    size, block = 2 << 30, bytes(1 << 16)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    )
    head += f"Content-Length: {size}\r\n\r\n" if announced else "Transfer-Encoding: chunked\r\n\r\n"
    sent, found = 0, b""
    before = rss(served.process.pid)
    with socket.create_connection((host, int(port)), timeout=30) as link:
        with contextlib.suppress(OSError):
            link.sendall(head.encode())
            while sent < size:
                part = block if announced else b"%x\r\n" % len(block) + block + b"\r\n"
                link.sendall(part)
                sent += len(block)
        with contextlib.suppress(OSError):
            found = link.recv(4096)
    assert sent < 200 << 20
    if found:
        assert b" 413 " in found.splitlines()[0]
        assert b'"error"' in found
    assert rss(served.process.pid) - before < 250 << 20
    assert "refused (413)" in served.log.read_text()
    assert is_alive(served)


def rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n", b""),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n"
         b"Content-Type: application/json\r\n\r\n{", b" 408 "),
    ],
    ids=["silent", "header", "body"],
)  # fmt: skip
def test_a_slow_client(served, sent, status):
    host, port = served.address.removeprefix("http://").split(":")
    start, found = time.monotonic(), b""
    with socket.create_connection((host, int(port)), timeout=30) as link:
        link.sendall(sent)
        while part := link.recv(4096):
            found += part
    assert 1 < time.monotonic() - start < 8
    assert status in found.partition(b"\r\n")[0]
    assert bool(found) == bool(status)
    assert is_alive(served)


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[" * 200_000, {}, 400),
        (b"model=tiny", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{}", {"Host": "evil.example"}, 400),
    ],
)
def test_bodies_that_are_no_requests(served, content, headers, status):
    assert served.post(content, headers=headers).status_code == status
    assert is_alive(served)


def test_clients_that_go(served, folder):
    """While a clip is read and while tokens come; their places are free again."""
    request = body(video(data_url(folder / "media/a.mp4")), stream=True, max_tokens=1000)
    for reads in (False, True, False, True):
        with httpx2.Client(timeout=60) as http:
            if reads:
                with http.stream(
                    "POST", f"{served.address}/v1/chat/completions", json=request
                ) as answer:
                    next(answer.iter_lines())
            else:
                address, port = served.address.removeprefix("http://").split(":")
                content = json.dumps(request)
                head = "POST /v1/chat/completions HTTP/1.1", f"Host: {address}"
                head += "Content-Type: application/json", f"Content-Length: {len(content)}"
                with socket.create_connection((address, int(port)), timeout=20) as link:
                    link.sendall("\r\n".join([*head, "", content]).encode())
    end = time.monotonic() + 30
    while figure(served, "clients_gone_total") < 4 or figure(served, "engine_running"):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert figure(served, "requests_under_way") == 0
    assert is_alive(served)


def figure(served, name: str) -> float:
    lines = served.get("/metrics", headers=BEARER).text.splitlines()
    return float(next(line for line in lines if line.startswith(f"ugc_jax_{name} ")).split()[1])


def test_the_log_has_no_traceback(served):
    """After all of the above."""
    log = served.log.read_text()
    assert "Traceback" not in log
    assert "<script>alert(1)</script>\\n" not in log.replace("\\\\n", "") or "\n.mp4" not in log
    assert not list(Path(served.log.parent).glob("ugc_jax-serve-*"))


# ---- its limits and its end ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(folder, tiny_checkpoint):
    """A server with a key, two places and one that waits, and little time."""
    flags = ["--batch_size", "2", "--limits.waiting", "1", "--limits.shutdown", "0.05"]
    flags += ["--limits.timeout", "20", "--api_key_file", str(folder / "key")]
    below = folder / "small"
    below.mkdir()
    with running(tiny_checkpoint, below, *flags, environment={"TMPDIR": str(below)}) as served:
        yield served


def test_a_key(small):
    for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": KEY}, {"api-key": KEY}):
        answer = small.post(body("Hello"), headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert small.get("/metrics", headers=headers).status_code == 401
        assert small.get("/health", headers=headers).status_code == 200
    assert small.post(body("Hello"), headers=BEARER).status_code == 200
    assert KEY not in small.log.read_text()


def test_too_many_at_a_time(small):
    answers, lock = [], threading.Lock()

    def ask():
        answer = small.post(body("Hello", max_tokens=400), headers=BEARER)
        with lock:
            answers.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = sorted(answer.status_code for answer in answers)
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 2
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "rate_limit_error"


def test_sigterm_refuses_what_takes_longer(small):
    answers = []

    def ask(**fields):
        answers.append(small.post(body("Hello", max_tokens=1000, **fields), headers=BEARER))

    threads = [threading.Thread(target=ask, kwargs=dict(stream=stream)) for stream in (True, False)]
    for thread in threads:
        thread.start()
    while figure(small, "requests_under_way") < 2:
        time.sleep(0.01)
    address, port = small.address.removeprefix("http://").split(":")
    slow = socket.create_connection((address, int(port)), timeout=20)
    head = "POST /v1/chat/completions HTTP/1.1", f"Host: {address}", f"Authorization: Bearer {KEY}"
    head += "Content-Type: application/json", "Content-Length: 1000", "", "{"
    slow.sendall("\r\n".join(head).encode())
    while figure(small, "requests_under_way") < 3:
        time.sleep(0.01)
    small.process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    assert small.process.wait(15) == 143
    assert time.monotonic() - start < 8
    for thread in threads:
        thread.join()
    assert b" 503 " in (said := slow.recv(4096)), said  # also what is still being sent
    slow.close()
    assert len(answers) == 2
    for answer in answers:
        assert "shutting down" in answer.text
        assert "[DONE]" not in answer.text
    assert not list(small.log.parent.glob("ugc_jax-serve-*"))  # no clips are left
    assert "Traceback" not in small.log.read_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--host", "0.0.0.0"],
            "host 0.0.0.0 is reached by others; put a key into UGC_JAX_API_KEY",
        ),
        (["--api_key_file", "missing"], "No such file"),
        (["--api_key_file", "empty"], "has no key; write one a line"),
        (["--api_key_file", "short"], "a key has at least 16"),
        (["--media_root", "missing"], "media_root: missing is not a folder"),
        (["--url_hosts", "example.com"], "url_hosts needs --urls"),
        (["--port", "99999"], "port is 99999; give 0 to 65535"),
        (["--limits.timeout", "0"], "limits.timeout is 0"),
        (["--limits.uploads", "1"], "below upload"),
        (["--limits.new_tokens", "10000"], "use at most 9216"),
        (["--certificate", "x.pem"], "certificate and certificate_key belong together"),
    ],
)
def test_mistakes_of_users(tmp_path, monkeypatch, flags, words):
    monkeypatch.delenv("UGC_JAX_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "short").write_text("abc\n")
    with pytest.raises(UserError) as found:
        cli.run(["serve", "--checkpoint", "unused", *flags])
    assert words in str(found.value)
