"""Load on `ugc-jax serve`: many clients at a time; does each get its answer, and how fast?

    python launch/load_test.py --checkpoint DIR [--requests 500] [--concurrency 1,8,64]
                               [--new_tokens 32] [--broken 0.05] [--vanish 0.05] [--evidence 0]

Starts a server on a free port (or takes one that has the same checkpoint: --address), and sends it
clips of several lengths and sizes, pictures and sounds; some of them broken, some by clients that
leave. Prints, for each number of clients, the latency (median, 95th percentile), the time to the
first token and the tokens per second, beside those of the engine alone on the same clips. Every
request of a client that stays has to have one answer: that of `Captioner.caption`, or a refusal for
a broken clip; the server's memory has to stay flat, and SIGTERM has to end it within its limit.
Exit status 1 otherwise. --evidence: so many further clients ask for evidence with their answers all
the time; the figures are those of the others, then theirs.
"""

import argparse
import http.client
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
os.environ.setdefault("XLA_FLAGS", "")
from clips import write_clip  # noqa: E402
from serving import NAME, Served, data_url, running  # noqa: E402

EVERY = 20  # requests; broken and vanishing ones are some of each 20
GROWTH = 0.1, 64 << 20  # of the memory, as a share and in bytes, that is flat


class Sent(NamedTuple):
    """One request. kind: "whole", "stream", "broken", "gone" or "evidence". fault: what was wrong,
    or None.
    """

    kind: str
    clip: int
    seconds: float
    first: float
    tokens: int
    id: str | None
    fault: str | None


class Round(NamedTuple):
    """All requests of some clients."""

    clients: int
    seconds: float
    sent: list[Sent]

    def faults(self) -> list[str]:
        """What went wrong."""
        faults = [one.fault for one in self.sent if one.fault]
        ids = [one.id for one in self.sent if one.id]
        return faults + (["an answer came twice"] if len(set(ids)) < len(ids) else [])

    def rate(self) -> float:
        """Tokens a second of the requests that were answered, but for those with evidence."""
        return sum(one.tokens for one in self.sent if one.kind != "evidence") / self.seconds

    def line(self) -> str:
        """The figures in one line."""
        answered = sorted(one.seconds for one in self.sent if one.kind in ("whole", "stream"))
        first = [one.first for one in self.sent if one.kind == "stream"]
        p95 = answered[int(0.95 * (len(answered) - 1))]
        told = [one.seconds for one in self.sent if one.kind == "evidence"]
        beside = (
            f"; beside {len(told)} with evidence, {statistics.median(told):.2f} s" if told else ""
        )
        return (
            f"{self.clients} clients: {len(answered)} answers in {self.seconds:.1f} s, latency "
            f"{statistics.median(answered):.2f} s median, {p95:.2f} s p95, first token "
            f"{statistics.median(first):.2f} s, {self.rate():.0f} tokens/s, "
            f"{len(self.faults())} faults{beside}"
        )


def write_clips(folder: Path, count: int = 6) -> list[Path]:
    """Clips of several lengths and sizes, with sound and without."""
    sizes = ((96, 64), (160, 120), (64, 96))
    paths = []
    for number in range(count):
        paths.append(folder / f"clip-{number}.mp4")
        write_clip(
            paths[-1], seconds=1.0 + 0.7 * (number % 4), fps=10, size=sizes[number % 3],
            audio=number % 3 != 2, seed=number,
        )  # fmt: skip
    return paths


class Client:
    """Requests to one server about some clips, whose captions are known."""

    def __init__(self, address: str, clips: list[Path], captions: list[str], new_tokens: int):
        parts = urlsplit(address)
        self._place = parts.hostname, parts.port
        self._urls = [data_url(clip) for clip in clips]
        self._broken = data_url(clips[0].read_bytes()[:1500])
        self._captions, self._new_tokens = captions, new_tokens

    def send(self, number: int, kind: str) -> Sent:
        """Send request `number` and wait for its answer."""
        clip = number % len(self._urls)
        url = self._broken if kind == "broken" else self._urls[clip]
        body = {
            "model": NAME, "max_tokens": self._new_tokens, "temperature": 0,
            "stream": kind in ("stream", "gone"), "messages": [
                {"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}]}
            ],
        }  # fmt: skip
        if kind == "stream":
            body["stream_options"] = {"include_usage": True}
        if kind == "evidence":
            body["evidence"] = True
        start = time.perf_counter()
        link = http.client.HTTPConnection(*self._place, timeout=300)
        first = tokens = 0
        id_ = fault = None
        try:
            link.request(
                "POST", "/v1/chat/completions", json.dumps(body),
                {"Content-Type": "application/json"},
            )  # fmt: skip
            if kind == "gone":  # while the clip is read, or in the middle of the answer
                if number % 2:
                    link.getresponse().readline()
            else:
                answer = link.getresponse()
                if kind == "broken":
                    answer.read()
                    fault = None if answer.status == 400 else f"broken: status {answer.status}"
                elif answer.status != 200:
                    fault = f"status {answer.status}: {answer.read(200)!r}"
                else:
                    text, tokens, id_, first = self._read(answer, kind, start)
                    if text != self._captions[clip]:
                        fault = f"clip {clip}: {text!r:.60}, not {self._captions[clip]!r:.60}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            fault = f"{kind}: {type(error).__name__}: {error}"
        finally:
            link.close()
        return Sent(kind, clip, time.perf_counter() - start, first, tokens, id_, fault)

    @staticmethod
    def _read(answer, kind: str, start: float) -> tuple[str, int, str, float]:
        """Return (text, its tokens, id, seconds to the first token)."""
        if kind in ("whole", "evidence"):
            content = json.loads(answer.read())
            (choice,) = content["choices"]
            if kind == "evidence" and not choice["evidence"]["words"]:
                raise ValueError("no evidence")
            tokens = content["usage"]["completion_tokens"]
            return choice["message"]["content"], tokens, content["id"], 0.0
        text, first, ids, reasons, usage = [], 0.0, set(), [], None
        lines = [line for line in _lines(answer, lambda: time.perf_counter() - start)]
        *events, (last, _) = lines
        if last != "[DONE]":
            raise ValueError(f"the stream ends with {last!r:.80}")
        for line, seconds in events:
            event = json.loads(line)
            ids.add(event["id"])
            usage = event["usage"] or usage
            for choice in event["choices"]:
                text.append(choice["delta"].get("content", ""))
                first = first or (seconds if text[-1] else 0.0)
                reasons += filter(None, [choice["finish_reason"]])
        if len(reasons) != 1 or len(ids) != 1:
            raise ValueError(f"a stream with ends {reasons} and ids {ids}")
        return "".join(text), usage["completion_tokens"], ids.pop(), first or seconds


def _lines(answer, clock):
    """The data of each event, and when it came."""
    while line := answer.readline():
        if line.startswith(b"data: "):
            yield line[6:].decode().rstrip("\n"), clock()


def run(
    client: Client, requests: int, clients: int, broken: float, vanish: float, evidence: int = 0
) -> Round:
    """Send requests by so many clients at a time, beside `evidence` others, who ask for it."""
    numbers, sent, lock = itertools.count(), [], threading.Lock()
    bad, gone = round(EVERY * broken), round(EVERY * vanish)

    def kind(number: int) -> str:
        place = number * 7 % EVERY
        if place < bad + gone:
            return "broken" if place < bad else "gone"
        return "stream" if number % 2 else "whole"

    def work():
        while (number := next(numbers)) < requests:
            one = client.send(number, kind(number))
            with lock:
                sent.append(one)

    over = threading.Event()

    def explain(first: int):
        for number in itertools.count(first):
            if over.is_set():
                return
            one = client.send(number, "evidence")
            with lock:
                sent.append(one)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    beside = [threading.Thread(target=explain, args=(first,)) for first in range(evidence)]
    start = time.perf_counter()
    for thread in threads + beside:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    over.set()
    for thread in beside:
        thread.join()
    return Round(clients, seconds, sent)


def memory(pid: int) -> int:
    """Return the resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Direct:
    """The engine alone, as `ugc-jax caption` uses it."""

    def __init__(self, checkpoint: str, new_tokens: int, places: int, workers: int, clip: dict):
        from ugc_jax import Captioner

        self._captioner = Captioner.from_pretrained(checkpoint)
        self._options = dict(
            max_new_tokens=new_tokens, temperature=0.0, batch_size=places, workers=workers, **clip
        )

    def captions(self, clips: list[Path]) -> list[str]:
        """Return the captions of clips."""
        return [one.caption for one in self._captioner.caption(clips, **self._options)]

    def rate(self, clips: list[Path], requests: int) -> float:
        """Return the tokens a second of so many captions of clips; programs are compiled before."""
        paths = [clips[number % len(clips)] for number in range(requests)]
        for _ in self._captioner.stream(paths[: 4 * self._options["batch_size"]], **self._options):
            pass
        start = time.perf_counter()
        tokens = sum(one.new_tokens for one in self._captioner.stream(paths, **self._options))
        return tokens / (time.perf_counter() - start)


def end(served: Served, client: Client, limit: float) -> list[str]:
    """Send SIGTERM while requests are under way; return what goes wrong."""
    sent: list[Sent] = []
    threads = [
        threading.Thread(target=lambda n=n: sent.append(client.send(n, "whole"))) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    served.process.send_signal(signal.SIGTERM)
    start = time.perf_counter()
    served.process.wait(limit + 10)
    took = time.perf_counter() - start
    for thread in threads:
        thread.join()
    faults = [f"SIGTERM: ended after {took:.1f} s"] if took > limit + 5 else []
    # Refused: with 503, or, where it came after the end, by the system.
    known = ("status 503", "ConnectionRefusedError", "ConnectionResetError", "RemoteDisconnected")
    return faults + [
        f"SIGTERM: {one.fault}"
        for one in sent
        if one.fault and not any(name in one.fault for name in known)
    ]


def main() -> int:
    """Print the figures; exit status 1 if a request has no answer of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--address")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--concurrency", default="1,8,64")
    parser.add_argument("--new_tokens", type=int, default=32)
    parser.add_argument("--broken", type=float, default=0.05)
    parser.add_argument("--vanish", type=float, default=0.05)
    parser.add_argument("--evidence", type=int, default=0)
    parser.add_argument("--places", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    clip = dict(frames=4, min_pixels=784, max_pixels=12544)
    faults = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = write_clips(folder)
        direct = Direct(given.checkpoint, given.new_tokens, given.places, given.workers, clip)
        captions = direct.captions(clips)
        alone = direct.rate(clips, given.requests)
        print(f"the engine alone: {alone:.0f} tokens/s", flush=True)
        flags = ["--batch_size", str(given.places), "--workers", str(given.workers)]
        flags += ["--limits.waiting", "128", "--limits.new_tokens", str(given.new_tokens)]
        if given.address:
            client = Client(given.address, clips, captions, given.new_tokens)
            faults += _rounds(given, client, None, alone)
        else:
            with running(Path(given.checkpoint), folder, *flags) as served:
                client = Client(served.address, clips, captions, given.new_tokens)
                faults += _rounds(given, client, served.process.pid, alone)
                faults += end(served, client, 30.0)
    for fault in faults[:20]:
        print(fault)
    return 1 if faults else 0


def _rounds(given, client: Client, pid: int | None, alone: float) -> list[str]:
    """Run each number of clients; print the figures; return the faults."""
    faults, before = [], 0
    for clients in map(int, given.concurrency.split(",")):
        # Once more where programs were compiled for this number of prompts at a time.
        others = given.broken, given.vanish, given.evidence
        warm = run(client, 4 * clients, clients, *others)
        faults += warm.faults()
        if pid is not None:
            before = memory(pid)
        done = run(client, given.requests, clients, *others)
        faults += done.faults()
        print(f"{done.line()}, {done.rate() / alone:.2f} of the engine alone", flush=True)
        if pid is not None:
            after, (share, more) = memory(pid), GROWTH
            print(f"memory {before >> 20} MB before, {after >> 20} MB after", flush=True)
            if after > before * (1 + share) + more:
                faults.append(f"memory grew from {before >> 20} to {after >> 20} MB")
    return faults


if __name__ == "__main__":
    sys.exit(main())
