"""A teacher of the synthetic world: a local server that knows its clips, and errs at a known rate.

    python -m ugc_jax.toy.teacher world/train.jsonl --port 8123

It speaks Gemini's REST protocol (also uploads) and OpenAI's chat completions. A clip is known by
the picture and the sound that a request brings, and what is not brought is not told: a request with
sound alone is answered with what is heard. All answers follow from the seed, the clip, what is
asked and which question it is of those about this clip, not from the order of the requests.

The error model. Each of the ten attributes of a clip is, with probability `errors`, stated wrongly:

    shared   in half of the cases every answer about the clip has the same wrong value, also further
             samples and answers to the question asked again; nothing in the answers betrays it
    own      in the other half one answer alone has it, drawn among the first answers that state it
    again    an answer to a question that was asked again has `errors / 4` of own errors anew: half
             of `errors` is own ones, spread over the two passes that state an attribute

Faults of the transport and of the server are drawn apart, from `faults`; see `FAULTS`.
"""

import argparse
import base64
import dataclasses
import hashlib
import io
import itertools
import json
import random
import re
import select
import socket
import sys
import threading
import time
import wave
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import av
from PIL import Image

from ugc_jax import files
from ugc_jax.errors import UserError
from ugc_jax.media.clip import probe
from ugc_jax.media.streams import picture_part, sound_part, stills
from ugc_jax.toy import world

VERSION = "toy-teacher-001"
HEARD = ("sound", "pitch", "rhythm")
SEEN = ("shape", "colour", "motion", "background", "change", "text")
STATED = {"sound": HEARD, "picture": SEEN, "both": tuple(world.VALUES)}
SAMPLES = 2  # answers to the question about both parts that differ by their seed
# Of the server and the transport. `counts`: the server counts the tokens, as it has answered whole.
FAULTS = (
    "busy", "error", "dropped", "broken", "late",  # no answer that counts
    "truncated", "blocked", "limit",  # an answer that is of no use, and counts
)  # fmt: skip
COUNTS = ("truncated", "blocked", "limit")
MOST_FAULTS = 2  # in a row about one question
SECOND_TOKENS = {"AUDIO": 32, "VIDEO": 258}


class Asked(NamedTuple):
    """What a request asks. number: 0 for the first question of a stage and sample, then 1, ..."""

    clip: int
    stage: str
    sample: int
    number: int


class Drawn(NamedTuple):
    """The errors of a clip: attribute -> wrong value.

    own: attribute -> (the stage and the sample that have it, wrong value).
    """

    shared: Mapping[str, str]
    own: Mapping[str, tuple[tuple[str, int], str]]


class Request(NamedTuple):
    """A request as it came. outcome: "answered", a fault, or "gone" if nobody took the answer.

    tokens: as the server counts them. tokens_sound: of tokens_in.
    """

    asked: Asked
    outcome: str
    tokens_in: int
    tokens_sound: int
    tokens_out: int


class ErrorModel:
    """Which statements are wrong; see the top of this file."""

    def __init__(self, errors: float, seed: int = 0):
        self.errors, self.seed = errors, seed

    def drawn(self, clip: int, attributes: Mapping[str, str]) -> Drawn:
        """Return the errors of the first answers about a clip."""
        shared, own = {}, {}
        for name, value in attributes.items():
            chance = self._random("clip", clip, name)
            if (luck := chance.random()) >= self.errors:
                continue
            wrong = self._wrong(chance, name, value, attributes)
            if luck < self.errors / 2:
                shared[name] = wrong
            else:
                places = [("both", sample) for sample in range(SAMPLES)]
                places += [(stage, 0) for stage in ("sound", "picture") if name in STATED[stage]]
                own[name] = chance.choice(places), wrong
        return Drawn(shared, own)

    def told(self, asked: Asked, attributes: Mapping[str, str]) -> dict[str, str]:
        """Return the attributes as the answer has them."""
        shared, own = self.drawn(asked.clip, attributes)
        told = dict(attributes) | shared
        for name in STATED[asked.stage]:
            if name in shared:
                continue
            if asked.number == 0:
                if name in own and own[name][0] == (asked.stage, asked.sample):
                    told[name] = own[name][1]
                continue
            chance = self._random("again", *asked, name)
            if chance.random() < self.errors / 4:
                told[name] = self._wrong(chance, name, attributes[name], attributes)
        return {name: told[name] for name in STATED[asked.stage]}

    def _wrong(self, chance, name: str, value: str, attributes: Mapping[str, str]) -> str:
        # A background that turns into itself would be no statement.
        others = {value} | ({attributes["background"]} if name == "change" else set())
        others |= {attributes["change"]} if name == "background" else set()
        return chance.choice([one for one in world.VALUES[name] if one not in others])

    def _random(self, *what) -> random.Random:
        return random.Random(repr((self.seed, *what)))


def answer(asked: Asked, told: Mapping[str, str], phrasing: int) -> dict:
    """Return the JSON object that answers, in the form of data/annotation.py."""
    if asked.stage == "both":
        return {"caption": world.write_caption(dict(told), phrasing)}
    if asked.stage == "sound":
        noise = "{rhythm} {pitch} {sound}".format(**told)
        return {
            "voice_source": "None",
            "tone": "Neutral",
            "music": told["sound"] == "music",
            "sounds": [{"what": noise, "start": None, "end": None}],
            "caption": f"{noise.capitalize()} can be heard in the clip.",
        }
    stays = told["change"] == told["background"]
    text = told["text"]
    shown = "No word is shown." if text == world.NO_TEXT else f"The word {text} is shown."
    thing = {"name": told["shape"], "count": 1, "color": told["colour"], "position": ""}
    return {
        "text": [] if text == world.NO_TEXT else [text],
        "objects": [thing],
        "background_change": "" if stays else f"The background turns {told['change']}.",
        "caption": "A {colour} {shape} moves {motion} over a {background} background that ends "
        "{change}. {shown}".format(**told, shown=shown),
    }


# ---- clips ---------------------------------------------------------------------------------------


def picture_print(data: bytes) -> str:
    """Return a digest of the packets of a video's picture, the same in every container."""
    digest = hashlib.sha256()
    with av.open(io.BytesIO(data)) as file:
        for packet in file.demux(file.streams.video[0]):
            digest.update(bytes(packet))
    return digest.hexdigest()


def sound_print(data: bytes) -> str:
    """Return a digest of the samples of a WAV file."""
    with wave.open(io.BytesIO(data)) as file:
        return hashlib.sha256(file.readframes(file.getnframes())).hexdigest()


def sound_packets_print(data: bytes) -> str:
    """Return a digest of the packets of a video's sound."""
    digest = hashlib.sha256()
    with av.open(io.BytesIO(data)) as file:
        for packet in file.demux(file.streams.audio[0]):
            digest.update(bytes(packet))
    return digest.hexdigest()


def kinds_of(data: bytes) -> set[str]:
    """Return the kinds of the streams of a file: "video", "audio"."""
    with av.open(io.BytesIO(data)) as file:
        return {stream.type for stream in file.streams}


class Clips:
    """The clips of a manifest of the world, and how they are known again."""

    def __init__(self, manifest: str | Path):
        manifest = Path(manifest)
        rows = [line.value for line in files.read_lines(manifest, "name a manifest of a world")]
        if not all(isinstance(row, dict) and "attributes" in row for row in rows):
            raise UserError(f"{manifest}: is no manifest of a world; name its train.jsonl")
        self.attributes = [row["attributes"] for row in rows]
        self.paths = [manifest.parent / row["videos"][0] for row in rows]
        self.phrasings = [_phrasing(row) for row in rows]
        self.seconds: list[float] = []
        self._by_picture: dict[str, int] = {}
        self._by_sound: dict[str, int] = {}
        self._by_stills: dict[tuple[int, int], dict[str, int]] = {}
        self._lock = threading.Lock()
        for number, path in enumerate(self.paths):
            source = probe(path)
            self.seconds.append(source.length)
            self._by_picture[picture_print(picture_part(source).data)] = number
            if (sound := sound_part(source)) is not None:
                self._by_sound[sound_print(sound.data)] = number
                self._by_sound[sound_packets_print(path.read_bytes())] = number

    def find(self, parts: Sequence[tuple[str, bytes]]) -> tuple[int, str]:
        """Return (number of the clip, stage) of the media of a request: (kind, data) each.

        Raises ValueError for media of no clip, or of different ones.
        """
        found, seen, heard, pictures = set(), False, False, []
        for kind, data in parts:
            if kind.startswith("image/"):
                pictures.append(data)
            elif kind.startswith("audio/"):
                heard = True
                found.add(self._by_sound.get(sound_print(data)))
            else:
                kinds = kinds_of(data)
                seen, heard = seen or "video" in kinds, heard or "audio" in kinds
                found.add(self._by_picture.get(picture_print(data)))
                if "audio" in kinds:
                    found.add(self._by_sound.get(sound_packets_print(data)))
        if pictures:
            seen = True
            found.add(self._of_stills(pictures))
        if len(found) != 1 or None in found:
            raise ValueError(f"the media are of no clip, or of several: {found}")
        stage = "both" if seen and heard else "picture" if seen else "sound"
        return found.pop(), stage

    def _of_stills(self, pictures: Sequence[bytes]) -> int | None:
        side = max(Image.open(io.BytesIO(pictures[0])).size)
        return self.know_stills(len(pictures), side).get(_digest(pictures))

    def know_stills(self, count: int, side: int) -> dict[str, int]:
        """Return the digest of the stills of each clip; they are made once."""
        with self._lock:
            known = self._by_stills.setdefault((count, side), {})
            if not known:
                for number, path in enumerate(self.paths):
                    made = stills(probe(path), count, side)
                    known[_digest(part.data for part in made)] = number
            return known


def _digest(datas) -> str:
    digest = hashlib.sha256()
    for data in datas:
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()


def _phrasing(row: dict) -> int:
    """Return the number of the phrasing of a row's caption."""
    caption, attributes = row["messages"][1]["content"], row["attributes"]
    numbers = range(len(world.PHRASINGS))
    return next(one for one in numbers if world.write_caption(attributes, one) == caption)


# ---- what a verification caught ------------------------------------------------------------------


@dataclasses.dataclass
class Measure:
    """What the verification of a labelling run did about the teacher's errors.

    own, own_caught: wrong statements that one first answer alone has; those whose answer was asked
    again, or whose clip was rejected. shared, shared_rejected: wrong statements that all answers
    share; those of clips that were rejected for other reasons. sound, alarms: clips without an own
    error; those of them that were asked again or rejected. right, right_rejected: clips whose last
    caption is right; those that were rejected. flagged: clips that were asked again or rejected.
    accepted, wrong: statements of accepted captions; those that are wrong, by the kind "shared" or
    "own". first, first_wrong: statements of all first captions, and those that are wrong.
    """

    clips: int = 0
    own: int = 0
    own_caught: int = 0
    shared: int = 0
    shared_rejected: int = 0
    sound: int = 0
    alarms: int = 0
    flagged: int = 0
    right: int = 0
    right_rejected: int = 0
    accepted: int = 0
    wrong_shared: int = 0
    wrong_own: int = 0
    first: int = 0
    first_wrong: int = 0

    @property
    def recall(self) -> float:
        """Share of the own errors that were caught; 1 without any."""
        return self.own_caught / self.own if self.own else 1.0

    @property
    def precision(self) -> float:
        """Share of the flagged clips that have an own error; 1 without any."""
        return 1 - self.alarms / self.flagged if self.flagged else 1.0

    @property
    def lost(self) -> float:
        """Share of the right captions that were rejected."""
        return self.right_rejected / self.right if self.right else 0.0

    def __str__(self) -> str:
        wrong = self.wrong_shared + self.wrong_own
        rows = (
            ("errors in one pass only, caught", self.own_caught, self.own),
            ("errors that all passes share, rejected by chance", self.shared_rejected, self.shared),
            ("clips asked again or rejected that have an own error (precision)",
             self.flagged - self.alarms, self.flagged),
            ("right captions that were rejected", self.right_rejected, self.right),
            ("wrong statements of the first captions", self.first_wrong, self.first),
            ("wrong statements of the accepted captions", wrong, self.accepted),
            ("  of them shared by all passes", self.wrong_shared, wrong),
        )  # fmt: skip
        return "\n".join(
            f"{name:<66}{part:>5} of {whole:<5} {100 * part / max(whole, 1):5.1f} %"
            for name, part, whole in rows
        )


def measure(output: str | Path, rejected: str | Path, clips: Clips, model: ErrorModel) -> Measure:
    """Compare the rows of a labelling run with what the teacher erred in.

    Raises UserError for files that cannot be read.
    """
    by_path = {path.resolve(): number for number, path in enumerate(clips.paths)}
    found = Measure()
    for path, is_accepted in ((Path(output), True), (Path(rejected), False)):
        for line in files.read_lines(path, "name the files of a labelling run"):
            row = line.value
            number = by_path.get((path.parent / row["videos"][0]).resolve())
            if number is not None and row["label"].get("both") is not None:
                _add(found, row, number, is_accepted, clips.attributes[number], model)
    return found


def _add(found: Measure, row: dict, number: int, is_accepted: bool, truth: dict, model: ErrorModel):
    drawn, label = model.drawn(number, truth), row["label"]
    again = {one["pass"] for one in label["checks"]["asked_again"]}
    passes = {("sound", 0): "sound", ("picture", 0): "picture", ("both", 0): "both"}
    if "second" in label:
        passes["both", 1] = "second"
    own = [passes[place] for place, _ in drawn.own.values() if place in passes]
    is_flagged = bool(again) or not is_accepted
    found.clips += 1
    found.own += len(own)
    found.own_caught += sum(one in again or not is_accepted for one in own)
    found.shared += len(drawn.shared)
    found.shared_rejected += 0 if is_accepted else len(drawn.shared)
    found.sound += not own
    found.alarms += is_flagged and not own
    found.flagged += is_flagged
    stated = world.parse_caption(label["both"]["caption"])
    wrong = [name for name, value in truth.items() if stated[name] != value]
    found.right += not wrong
    found.right_rejected += not wrong and not is_accepted
    first = [name for name, (place, _) in drawn.own.items() if place == ("both", 0)]
    found.first += len(truth)
    found.first_wrong += len(first) + len(drawn.shared)
    if is_accepted:
        found.accepted += len(truth)
        found.wrong_shared += sum(name in drawn.shared for name in wrong)
        found.wrong_own += sum(name not in drawn.shared for name in wrong)


# ---- the server ----------------------------------------------------------------------------------


class Teacher:
    """The server; a context manager. `url` is its address, `requests` what was asked of it."""

    def __init__(
        self,
        manifest: "str | Path | Clips",
        *,
        errors: float = 0.1,
        seed: int = 0,
        faults: float = 0.0,
        delay: float = 0.0,
        late: float = 30.0,
        port: int = 0,
        retry_after: float = 0.05,
    ):
        """manifest: of the world's clips, or what was read of them before.

        errors, seed: of the error model. faults: the share of requests that meet a fault. delay:
        seconds of an answer. late: of the fault of that name. retry_after: of "busy".
        """
        self.clips = manifest if isinstance(manifest, Clips) else Clips(manifest)
        self.model = ErrorModel(errors, seed)
        self.faults, self.delay, self.late, self.retry_after = faults, delay, late, retry_after
        self.version = VERSION
        self.always: dict[int, str] = {}  # clip -> the fault that each request about it meets
        self.refuses: int | None = None  # status with which every question is refused
        self.times: list[float] = []  # when requests came (time.monotonic)
        self.requests: list[Request] = []
        self.open = 0  # requests that are being answered
        self.hold = threading.Event()  # set: answers wait
        self.gone = 0  # answers that nobody took
        self._texts: dict[tuple[int, str, int], list[str]] = {}
        self._times: dict[Asked, int] = {}
        self._in_row: dict[Asked, int] = {}
        self._uploads: dict[str, tuple[str, bytes]] = {}
        self._names = itertools.count(1)
        self._lock = threading.Lock()
        teacher = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                teacher._post(self)

            def do_GET(self):
                teacher._file(self)

            def do_DELETE(self):
                teacher._delete(self)

            def log_message(self, *_):
                pass

        self._server = _Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    def __enter__(self) -> "Teacher":
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    @property
    def tokens(self) -> tuple[int, int, int]:
        """Tokens (in, of sound among them, out) of all answers that count."""
        counted = [one[2:] for one in self.requests if one.outcome in ("answered", *COUNTS)]
        return tuple(map(sum, zip(*counted, strict=True))) if counted else (0, 0, 0)

    def answers(self) -> dict[Asked, int]:
        """Return how often each question was answered whole."""
        found: dict[Asked, int] = {}
        for one in self.requests:
            if one.outcome == "answered":
                found[one.asked] = found.get(one.asked, 0) + 1
        return found

    def _post(self, handler: BaseHTTPRequestHandler):
        length = int(handler.headers["Content-Length"])
        body = handler.rfile.read(length)
        if len(body) < length:  # who asks has gone
            handler.close_connection = True
            return
        path = handler.path.partition("?")[0]
        if path.startswith("/upload/"):
            self._upload(handler, body)
        elif path.endswith(":generateContent"):
            self._answer(handler, *_of_gemini(json.loads(body), self._uploads), _gemini)
        elif path.endswith("/chat/completions"):
            self._answer(handler, *_of_openai(json.loads(body)), _openai)
        else:
            _send(handler, 404, {"error": {"code": 404, "message": f"no such path: {path}"}})

    def _answer(self, handler, parts, text, sample, form):
        if self.refuses is not None:
            _send(handler, self.refuses, _error(self.refuses, "REFUSED"))
            return
        try:
            clip, stage = self.clips.find(parts)
        except ValueError as error:
            _send(handler, 400, {"error": {"code": 400, "message": str(error)}})
            return
        with self._lock:
            self.times.append(time.monotonic())
            self.open += 1
            texts = self._texts.setdefault((clip, stage, sample), [])
            if text not in texts:
                texts.append(text)
            asked = Asked(clip, stage, sample, texts.index(text))
            fault = self._fault(asked)
        told = self.model.told(asked, self.clips.attributes[clip])
        chance = random.Random(repr((self.model.seed, "phrasing", *asked)))
        content = json.dumps(answer(asked, told, chance.randrange(len(world.PHRASINGS))))
        seconds = self.clips.seconds[clip]
        counts = {"TEXT": 1 + len(text) // 4}
        if stage != "sound":
            counts["VIDEO"] = round(seconds * SECOND_TOKENS["VIDEO"])
        if stage != "picture":
            counts["AUDIO"] = round(seconds * SECOND_TOKENS["AUDIO"])
        try:
            time.sleep(self.delay)
            while self.hold.is_set():
                time.sleep(0.01)
            if _has_left(handler.connection):
                raise ConnectionError
            outcome = self._reply(handler, form, fault, content, counts)
        except OSError:  # who asked has gone
            outcome, handler.close_connection = "gone", True
            self.gone += 1
        if outcome == "blocked":
            content = ""
        tokens_out = _count_out(outcome, content)
        with self._lock:
            self.open -= 1
            tokens = sum(counts.values()), counts.get("AUDIO", 0), tokens_out
            self.requests.append(Request(asked, outcome, *tokens))

    def _fault(self, asked: Asked) -> str | None:
        """Draw the fault that the next request of a question meets, None for none."""
        number = self._times[asked] = self._times.get(asked, -1) + 1
        if asked.clip in self.always:
            return self.always[asked.clip]
        chance = random.Random(repr((self.model.seed, "fault", *asked, number)))
        if chance.random() >= self.faults or self._in_row.get(asked, 0) >= MOST_FAULTS:
            self._in_row[asked] = 0
            return None
        self._in_row[asked] = self._in_row.get(asked, 0) + 1
        return chance.choice(FAULTS)

    def _reply(self, handler, form, fault, content, counts) -> str:
        """Send an answer or a fault; returns what it is."""
        tokens_out = _count_out(fault or "answered", content)
        if fault == "busy":
            headers = {"Retry-After": str(self.retry_after)}
            _send(handler, 429, _error(429, "RESOURCE_EXHAUSTED"), headers)
        elif fault == "error":
            _send(handler, 500, _error(500, "INTERNAL"))
        elif fault == "dropped":
            handler.close_connection = True
        elif fault == "late":
            time.sleep(self.late)
            handler.close_connection = True
        elif fault == "broken":
            whole = json.dumps(form(content, "STOP", counts, tokens_out, self.version)).encode()
            _begin(handler, 200, len(whole))
            handler.wfile.write(whole[: len(whole) // 2])
            handler.close_connection = True
        elif fault == "truncated":
            cut = content[: len(content) // 2]
            _send(handler, 200, form(cut, "STOP", counts, tokens_out, self.version))
        elif fault == "blocked":
            _send(handler, 200, form("", "SAFETY", counts, tokens_out, self.version))
        elif fault == "limit":
            cut = content[: len(content) // 3]
            _send(handler, 200, form(cut, "MAX_TOKENS", counts, tokens_out, self.version))
        else:
            _send(handler, 200, form(content, "STOP", counts, tokens_out, self.version))
        return fault or "answered"

    # ---- uploads, in the resumable protocol of Google's file service

    def _upload(self, handler, body: bytes):
        command = handler.headers.get("X-Goog-Upload-Command", "")
        if command == "start":
            name = f"files/f{next(self._names)}"
            kind = handler.headers.get("X-Goog-Upload-Header-Content-Type", "")
            self._uploads[name] = (kind, b"")
            headers = {"X-Goog-Upload-URL": f"{self.url}/upload/v1beta/{name}"}
            _send(handler, 200, {}, headers | {"X-Goog-Upload-Status": "active"})
            return
        name = handler.path.partition("?")[0].removeprefix("/upload/v1beta/")
        kind, before = self._uploads[name]
        self._uploads[name] = (kind, before + body)
        status = "final" if "finalize" in command else "active"
        _send(handler, 200, {"file": self._facts(name)}, {"X-Goog-Upload-Status": status})

    def _file(self, handler):
        name = _file_name(handler.path)
        known = name in self._uploads
        body = self._facts(name) if known else _error(404, "NOT_FOUND")
        _send(handler, 200 if known else 404, body)

    def _delete(self, handler):
        self._uploads.pop(_file_name(handler.path), None)
        _send(handler, 200, {})

    @property
    def uploads(self) -> int:
        """Files that were uploaded and not deleted."""
        return len(self._uploads)

    def _facts(self, name: str) -> dict:
        kind, data = self._uploads[name]
        size = str(len(data))
        uri = f"{self.url}/v1beta/{name}"
        return {"name": name, "uri": uri, "mimeType": kind, "state": "ACTIVE", "sizeBytes": size}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """Show what is wrong, but for a client that has gone."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _file_name(path: str) -> str:
    """Return files/ID of the path of a file, of any version of the API."""
    return re.sub(r"^/v1\w*/", "", path.partition("?")[0])


def _count_out(outcome: str, content: str) -> int:
    part = {"truncated": 2, "limit": 3}.get(outcome, 1)
    return 0 if outcome == "blocked" else 1 + len(content) // part // 4


def _of_gemini(body: dict, uploads: Mapping[str, tuple[str, bytes]]):
    """Return (media, text, sample) of a request of generateContent."""
    body = _camel(body)
    parts, texts = [], []
    for part in body["contents"][0]["parts"]:
        if "text" in part:
            texts.append(part["text"])
        elif "inlineData" in part:
            given = part["inlineData"]
            data = given["data"].replace("-", "+").replace("_", "/")  # both alphabets are taken
            parts.append((given["mimeType"], base64.b64decode(data)))
        else:
            name = re.sub(r".*/v1beta/", "", part["fileData"]["fileUri"])
            parts.append(uploads[name])
    return parts, texts[0], _sample(body.get("generationConfig", {}).get("seed"))


def _camel(value):
    """Return JSON with keys like mimeType: the service takes mime_type, too."""
    if isinstance(value, dict):
        return {re.sub(r"_(\w)", lambda m: m[1].upper(), k): _camel(v) for k, v in value.items()}
    return [_camel(one) for one in value] if isinstance(value, list) else value


def _of_openai(body: dict):
    """Return (media, text, sample) of a request of chat completions."""
    parts, texts = [], []
    user = next(one for one in body["messages"] if one["role"] == "user")
    for part in user["content"]:
        if part["type"] == "text":
            texts.append(part["text"])
        elif part["type"] == "input_audio":
            data = base64.b64decode(part["input_audio"]["data"])
            parts.append((f"audio/{part['input_audio']['format']}", data))
        else:
            head, _, data = part[part["type"]]["url"].partition(",")
            kind = head.removeprefix("data:").removesuffix(";base64")
            parts.append((kind, base64.b64decode(data)))
    return parts, texts[0], _sample(body.get("seed"))


def _sample(seed: int | None) -> int:
    return (seed or 0) % SAMPLES


def _gemini(text: str, finish: str, counts: Mapping[str, int], out: int, version: str) -> dict:
    parts = [{"text": text}] if text else []
    candidate = {"content": {"parts": parts, "role": "model"}, "finishReason": finish, "index": 0}
    details = [{"modality": kind, "tokenCount": count} for kind, count in counts.items()]
    total = sum(counts.values())
    usage = {"promptTokenCount": total, "candidatesTokenCount": out}
    usage |= {"totalTokenCount": total + out, "promptTokensDetails": details}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": version}


def _openai(text: str, finish: str, counts: Mapping[str, int], out: int, version: str) -> dict:
    reason = {"STOP": "stop", "MAX_TOKENS": "length", "SAFETY": "content_filter"}[finish]
    message = {"role": "assistant", "content": text}
    total = sum(counts.values())
    usage = {"prompt_tokens": total, "completion_tokens": out, "total_tokens": total + out}
    usage["prompt_tokens_details"] = {"audio_tokens": counts.get("AUDIO", 0)}
    choice = {"index": 0, "message": message, "finish_reason": reason}
    head = {"id": "1", "object": "chat.completion", "created": 0, "model": version}
    return head | {"choices": [choice], "usage": usage}


def _error(code: int, status: str) -> dict:
    return {"error": {"code": code, "message": "injected", "status": status}}


def _begin(handler, status: int, length: int, headers: Mapping[str, str] | None = None):
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(length))
    handler.end_headers()


def _has_left(connection: socket.socket) -> bool:
    """Return whether the other side has closed a connection."""
    readable, _, _ = select.select([connection], [], [], 0)
    return bool(readable) and not connection.recv(1, socket.MSG_PEEK)


def _send(handler, status: int, body: dict, headers: Mapping[str, str] | None = None):
    data = json.dumps(body).encode()
    _begin(handler, status, len(data), headers)
    handler.wfile.write(data)


def main():
    """Serve until the process ends; the address is the first line that is printed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("manifest")
    for name, kind, default in (
        ("port", int, 0), ("errors", float, 0.1), ("seed", int, 0), ("faults", float, 0.0),
        ("delay", float, 0.0),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=default)
    given = vars(parser.parse_args())
    with Teacher(given.pop("manifest"), **given) as teacher:
        print(teacher.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
