"""ugc_jax.annotate.app behind ugc_jax.web: what people can do, and what attackers cannot."""

import io
import json
import zipfile
from pathlib import Path

import anyio.from_thread
import pytest
from annotating import PASSWORD, Person
from fake_annotation import BOTH, PICTURE, SOUND, VALUES, annotate, project
from starlette.testclient import TestClient

from ugc_jax import files
from ugc_jax.annotate import app as application
from ugc_jax.annotate import media
from ugc_jax.annotate.answers import Agreed, Question
from ugc_jax.annotate.imports import Imported
from ugc_jax.annotate.store import Store
from ugc_jax.data import annotation
from ugc_jax.judge.client import JudgeError
from ugc_jax.web import server
from ugc_jax.web.gate import Gate
from ugc_jax.web.limits import Rate

NASTY = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;"
FACTS = {
    "seconds": 2.0, "times": [0.0, 0.5, 1.0], "strip": [0.25], "sound": True, "picture": True,
    "notes": [NASTY],
}  # fmt: skip


def write_media(root: Path, clip: int):
    """Files of the right names with other content."""
    folder = application.media_folder(root, clip)
    folder.mkdir(parents=True)
    files.write_json(folder / "facts.json", FACTS)
    for names in media.OF_STAGE.values():
        for name in names:
            (folder / name).write_bytes(f"{name} of {clip}".encode() * 10)


class Site:
    """An application with a store, and people who visit it without a network."""

    def __init__(
        self, tmp_path: Path, accounts: bool = True, clips: int = 3, asker=None, **settings
    ):
        self.store = project(str(tmp_path / "annotate.sqlite"), clips=clips, **settings)
        self.media = tmp_path / "media"
        for clip in range(1, clips + 1):
            write_media(self.media, clip)
        if accounts:
            people = {"olga": "owner", "adam": "adjudicator", "anna": "annotator",
                      "bert": "annotator"}  # fmt: skip
            for name, role in people.items():
                self.store.accounts.add(name, PASSWORD, role)
        self.gate = Gate(
            self.store.accounts,
            local=None if accounts else application.LOCAL,
            rate=Rate(1000, 10_000),
            name_rate=Rate(0.001, 8),
        )
        guidelines = application.read_guidelines(None)
        one = application.Project(self.store, self.media, guidelines, asker)
        created = application.create(one, self.gate)
        self.app = server.protected(created, "127.0.0.1", application.BODY_LIMIT)

    def person(self, name: str | None = None) -> Person:
        visitor = Person.__new__(Person)
        visitor.client = TestClient(self.app, base_url="http://127.0.0.1", follow_redirects=False)
        visitor.csrf = ""
        if name is not None:
            assert visitor.log_in(name).status_code == 303
        return visitor


@pytest.fixture(scope="module", autouse=True)
def one_loop():
    """All requests are of one event loop: to start one for each takes a quarter of the time."""
    with anyio.from_thread.start_blocking_portal() as portal, pytest.MonkeyPatch.context() as patch:
        patch.setattr(TestClient, "portal", portal)
        yield


@pytest.fixture
def site(tmp_path) -> Site:
    made = Site(tmp_path)
    yield made
    made.store.close()


# ---- what people do ------------------------------------------------------------------------------


def test_three_stages_adjudication_questions_export(tmp_path):
    site = Site(tmp_path, annotators=2, clips=1)
    anna, bert, adam = (site.person(name) for name in ("anna", "bert", "adam"))
    anna.annotate(VALUES)
    bert.annotate(VALUES | {"sound": {**SOUND, "tone": "Positive"}})
    assert "clip-1.mp4" in adam.get("/clips?state=dispute").text
    page = adam.get("/clips/1").text
    assert page.count("in dispute</span>") == 2  # in the table and in the form
    answer = adam.api("/clips/1/decide", {"base": 0, "values": VALUES})
    assert answer.json() == {"next": "/clips?state=dispute"}
    assert adam.api("/clips/1/decide", {"base": 0, "values": VALUES}).status_code == 409
    assert "Propose for 1 clips" in adam.get("/questions").text
    assert adam.form("/questions").status_code == 303
    first, *others = site.store.questions(1)
    assert len(others) == 3
    adam.get("/questions/1")
    said = dict(question=first.question, answer=first.answer)
    assert adam.form(f"/questions/1/{first.id}", verdict="accept", base=1, **said).is_redirect
    assert adam.form(f"/questions/1/{others[0].id}", verdict="reject", base=1).is_redirect
    assert adam.form(f"/questions/1/{others[0].id}", verdict="reject", base=1).status_code == 409
    own = dict(kind="cross", question="What rings?", answer="a bell", options="a bell\r\na horn")
    assert adam.form("/questions/1/ask", **own).is_redirect
    assert adam.form("/questions/1/ask", **own | {"answer": "x"}).status_code == 422
    states = [(row.state, row.source) for row in site.store.questions(1)]
    assert states == [
        ("accepted", "template"), ("rejected", "template"), ("proposed", "template"),
        ("proposed", "template"), ("accepted", "person"),
    ]  # fmt: skip
    assert adam.get("/agreement").text.count("<tr>") > 8
    olga = site.person("olga")
    archive = zipfile.ZipFile(io.BytesIO(olga.form("/export").content))
    row = json.loads(archive.read("train.jsonl"))
    assert row["videos"] == ["clip-1.mp4"]
    assert row["solution"] == BOTH["caption"]
    assert "adjudicate" in olga.get("/log").text
    site.store.close()


def test_questions_of_an_llm(tmp_path):
    answers = [[Question("clip-1", "cross", "What rings?", "a bell", source="llm")]]

    def ask(agreed: Agreed, count: int) -> list[Question]:
        assert (agreed.clip[:5], count) == ("clip-", 3)
        if not answers:
            raise JudgeError("no answer within 60 s")
        return answers.pop()

    site = Site(tmp_path, clips=2, asker=ask, questions=3)
    for name in ("anna", "bert"):
        annotate(site.store, name)
    adam = site.person("adam")
    adam.get("/questions")
    assert adam.form("/questions/1/propose").is_redirect
    sources = [row.source for row in site.store.questions(1)]
    assert sources == ["template"] * 3 + ["llm"]
    failed = adam.form("/questions/2/propose")
    assert failed.status_code == 502
    assert "the LLM gave none (no answer within 60 s)" in failed.text
    assert [row.source for row in site.store.questions(2)] == ["template"] * 3
    site.store.close()


def test_saves_undo_and_conflicts(site):
    anna = site.person("anna")
    work = anna.next()
    anna.get(f"/works/{work}/sound")
    first = anna.save(work, "sound", 0, {"caption": "one"}).json()
    assert first["version"] == 1
    assert first["value"]["caption"] == "one"
    assert anna.save(work, "sound", 1, {"caption": "two"}).json()["can_undo"]
    conflict = anna.save(work, "sound", 1, {"caption": "three"})
    assert conflict.status_code == 409
    assert conflict.json()["value"] == {"caption": "two"}
    undone = anna.api(f"/works/{work}/sound/step", {"base": 2, "back": True}).json()
    assert (undone["value"]["caption"], undone["version"], undone["can_redo"]) == ("one", 3, True)
    wrong = anna.save(work, "sound", 3, {"caption": "one"}, "submit")
    assert wrong.status_code == 422
    assert wrong.json() == {"error": "voice_source is missing", "field": "voice_source"}
    done = anna.save(work, "sound", 3, SOUND, "submit")
    assert done.json()["next"] == f"/works/{work}"
    assert anna.get(f"/works/{work}").headers["location"] == f"/works/{work}/picture"
    assert anna.get(f"/works/{work}/sound").headers["location"] == f"/works/{work}/picture"
    anna.get(f"/works/{work}/picture")
    anna.save(work, "picture", 0, PICTURE, "submit")
    page = anna.get(f"/works/{work}/both").text
    assert "a bell (1 – 1.5 s)" in page
    assert "2 × cup, red, left" in page
    corrected = anna.save(work, "sound", 4, {**SOUND, "music": False}, "submit")
    assert corrected.json()["next"] is None
    assert "correction" in anna.get(f"/works/{work}/both").text
    assert anna.save(work, "both", 0, BOTH, "submit").json()["next"] == "/"


def test_two_people_on_one_clip(tmp_path):
    site = Site(tmp_path, clips=1)
    anna, bert = site.person("anna"), site.person("bert")
    work = anna.next()
    assert bert.form("/next").headers["location"] == "/done"
    assert "No clip is left for you" in bert.get("/done").text
    for path in (f"/works/{work}", f"/works/{work}/sound", f"/media/works/{work}/sound.wav"):
        assert bert.get(path).status_code == 404
    assert bert.save(work, "sound", 0, SOUND).status_code == 404
    assert bert.form(f"/works/{work}/skip", why="x").status_code == 404
    site.store._now.now += 1801
    assert bert.next() == 2
    late = anna.save(work, "sound", 0, {"caption": "late"})
    assert late.status_code in (403, 409)
    anna.form(f"/works/{work}/skip", why="x")
    assert site.store.works("anna")[0].stage == "sound"  # a lost work cannot be skipped, either
    site.store.close()


@pytest.mark.parametrize("drafts", ["first", "after", "never"])
def test_the_teachers_draft_is_seen_when_it_may_be(tmp_path, drafts):
    site = Site(tmp_path, clips=1, drafts=drafts)
    said = {
        stage: {"clip-1": annotation.read(stage, {**value, "caption": f"Teacher on {stage}."})}
        for stage, value in VALUES.items()
    }
    site.store.take_in(Imported((Agreed("clip-1", "clip-1.mp4"),), said), "labels")
    anna = site.person("anna")
    work = anna.next()
    for stage, value in VALUES.items():
        seen = []
        for base in (0, 1) if drafts == "after" else (0,):
            page = anna.get(f"/works/{work}/{stage}").text
            seen.append(f"Teacher on {stage}." in page)
            later = list(VALUES)[list(VALUES).index(stage) + 1 :]
            assert not any(f"Teacher on {one}." in page for one in later)
            assert anna.save(work, stage, base, value, "submit").status_code == 200
        assert seen == {"first": [True], "after": [False, True], "never": [False]}[drafts]
    page = anna.get(f"/works/{work}/both").text
    assert ("Teacher on picture." in page) == (drafts != "never")  # side by side at the end
    site.store.close()


def test_media_by_stage_and_range(site):
    anna = site.person("anna")
    work = anna.next()
    order = ("sound.wav", "picture.mp4", "both.mp4")

    def statuses() -> list[int]:
        return [anna.get(f"/media/works/{work}/{name}").status_code for name in order]

    anna.get(f"/works/{work}/sound")
    assert statuses() == [200, 403, 403]
    assert anna.get(f"/media/works/{work}/strip-0.jpg").status_code == 403
    part = anna.get(f"/media/works/{work}/sound.wav", headers={"Range": "bytes=3-7"})
    assert (part.status_code, part.content) == (206, b"nd.wa")
    assert part.headers["content-range"] == "bytes 3-7/140"
    assert part.headers["content-type"] == "audio/wav"
    assert part.headers["cache-control"] == "no-store"
    beyond = anna.get(f"/media/works/{work}/sound.wav", headers={"Range": "bytes=999-"})
    assert beyond.status_code == 416
    anna.save(work, "sound", 0, SOUND, "submit")
    assert statuses() == [403, 200, 403]
    anna.get(f"/works/{work}/picture")
    anna.save(work, "picture", 0, PICTURE, "submit")
    assert statuses() == [200, 200, 200]


def test_no_stage_is_skipped(site):
    anna = site.person("anna")
    work = anna.next()
    for stage in ("picture", "both", "done", "..", "sound%2f..%2fboth"):
        assert anna.get(f"/works/{work}/{stage}").status_code in (403, 404), stage
    for stage in ("picture", "both"):
        for kind in ("autosave", "submit"):
            assert anna.save(work, stage, 0, VALUES[stage], kind).status_code == 403
        step = anna.api(f"/works/{work}/{stage}/step", {"base": 0, "back": True})
        assert step.status_code == 403
    assert anna.save(work, "sound", 0, SOUND, "submit").status_code == 403  # not opened yet
    anna.get(f"/works/{work}/sound")
    assert anna.save(work, "sound", 0, SOUND, "submit").status_code == 200
    again = anna.save(work, "sound", 1, {**SOUND, "music": False}, "submit")
    assert again.status_code == 403  # corrections belong to the last stage
    assert anna.save(work, "both", 0, BOTH, "submit").status_code == 403
    assert site.store.work(work, "anna").stage == "picture"


def test_skipping_and_the_owner_reads_why(site):
    anna = site.person("anna")
    work = anna.next()
    assert anna.form(f"/works/{work}/skip", why="", words=" ").status_code == 422
    assert anna.form(f"/works/{work}/skip", why="It upsets me", words="blood").is_redirect
    assert anna.get(f"/works/{work}/sound").status_code == 403
    assert "It upsets me: blood" in site.person("olga").get("/project").text


def test_without_accounts_the_visitor_is_the_owner_until_there_is_one(tmp_path):
    site = Site(tmp_path, accounts=False)
    visitor = site.person()
    assert visitor.get("/").status_code == 200
    assert visitor.annotate(VALUES)
    wrong = visitor.form("/people", name="x", role="annotator", password=PASSWORD)
    assert wrong.status_code == 422
    assert visitor.form("/people", name="olga", role="owner", password=PASSWORD).is_redirect
    assert visitor.get("/").headers["location"] == "/login"
    site.person("olga")
    site.store.close()


def test_the_first_account_of_a_command_ends_the_free_access(tmp_path):
    site = Site(tmp_path, accounts=False)
    visitor = site.person()
    assert visitor.get("/people").status_code == 200
    other = Store(str(tmp_path / "annotate.sqlite"))  # ugc-jax annotate --account, while it serves
    other.accounts.add("olga", PASSWORD, "owner")
    other.close()
    assert visitor.get("/people").headers["location"] == "/login"
    refused = visitor.form("/people", name="eve", role="owner", password=PASSWORD)
    assert refused.status_code == 401
    assert [one.name for one in site.store.accounts.all()] == ["olga"]
    site.store.close()


# ---- attacks -------------------------------------------------------------------------------------

PAGES = ("/", "/done", "/works/1", "/works/1/sound", "/clips", "/clips/1", "/questions",
         "/questions/1", "/agreement", "/people", "/log", "/project",
         "/media/works/1/sound.wav", "/media/clips/1/both.mp4")  # fmt: skip
FORMS = ("/next", "/works/1/skip", "/questions", "/questions/1/propose", "/questions/1/ask",
         "/questions/1/1", "/people", "/people/anna", "/export")  # fmt: skip
CALLS = ("/works/1/sound", "/works/1/sound/step", "/clips/1/decide")


def test_nothing_without_login(site):
    visitor = site.person()
    visitor.get("/login")
    for path in PAGES:
        assert visitor.get(path).status_code in (303, 401), path
    for path in FORMS:
        assert visitor.form(path).status_code == 401, path
    for path in CALLS:
        assert visitor.api(path, {}).status_code in (401, 422), path
        assert visitor.api(path, {"base": 0, "value": {}, "back": True}).status_code in (401, 422)
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert visitor.get(path).status_code == 404


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("anna", ("/clips", "/clips/1", "/questions", "/questions/1", "/agreement", "/people",
                  "/log", "/project", "/media/clips/1/both.mp4")),
        ("adam", ("/people", "/log", "/project")),
    ],
)  # fmt: skip
def test_roles(site, name, refused):
    annotate(site.store, "bert")
    person = site.person(name)
    person.client.cookies.set("role", "owner")
    for path in refused:
        answer = person.get(path, headers={"X-Role": "owner", "X-Forwarded-User": "olga"})
        assert answer.status_code == 403, path
        assert "his is for the role" in answer.text
    assert person.form("/people/" + name, role="owner").status_code == 403
    assert person.form("/people", name="eve", role="owner", password=PASSWORD).status_code == 403
    assert person.form("/export").status_code == 403
    if name == "anna":
        body = {"base": 3, "values": VALUES}
        assert person.api("/clips/1/decide", body).status_code == 403
    roles = {one.name: one.role for one in site.store.accounts.all()}
    assert roles[name] != "owner"
    assert "eve" not in roles


def test_a_role_is_that_of_now(site):
    adam, olga = site.person("adam"), site.person("olga")
    assert adam.get("/clips").status_code == 200
    assert olga.form("/people/adam", role="annotator", active="yes").is_redirect
    assert adam.get("/clips").headers["location"] == "/login"  # the session has ended
    adam.log_in("adam")
    assert adam.get("/clips").status_code == 403
    olga.form("/people/adam", active="no")
    assert adam.get("/").headers["location"] == "/login"
    assert adam.log_in("adam").status_code == 401
    assert olga.form("/people/olga", role="annotator").status_code == 422  # not the own one
    assert olga.form("/people/anna").status_code == 422  # no change


@pytest.mark.parametrize(
    "headers",
    [
        {"X-CSRF-Token": "0" * 64},
        {"X-CSRF-Token": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Origin": "http://[127.0.0.1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_csrf_of_calls(site, headers):
    anna = site.person("anna")
    work = anna.next()
    anna.get(f"/works/{work}/sound")
    body = {"base": 0, "value": {"caption": "forged"}}
    assert anna.api(f"/works/{work}/sound", body, headers=headers).status_code == 403
    assert site.store.last(work, "sound").version == 0
    good = {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"}
    assert anna.api(f"/works/{work}/sound", body, headers=good).status_code == 200


def test_csrf_of_forms(site):
    anna, bert = site.person("anna"), site.person("bert")
    for token in ("", "x", bert.csrf):
        assert anna.client.post("/next", data={"csrf": token}).status_code == 403
    assert anna.client.post("/next").status_code == 403
    plain = anna.client.post("/next", content=f"csrf={anna.csrf}")  # as a form of type text/plain
    assert plain.status_code == 403
    assert site.store.works() == []
    for path in ("/logout", "/next"):
        assert anna.get(path).status_code == 405
    assert anna.form("/logout").is_redirect
    assert anna.get("/").headers["location"] == "/login"


def test_a_planted_session_is_worth_nothing(site):
    attacker = site.person()
    attacker.get("/login")
    planted = attacker.client.cookies["ugc_jax"]
    victim = site.person()
    victim.client.cookies.set("ugc_jax", planted, domain="127.0.0.1", path="/")
    assert victim.log_in("anna").is_redirect
    assert victim.client.cookies["ugc_jax"] != planted  # one cookie: it was replaced
    assert victim.get("/").status_code == 200
    assert attacker.get("/").headers["location"] == "/login"
    # nor does the token of a session that has ended come back
    ended = victim.client.cookies["ugc_jax"]
    victim.form("/logout")
    attacker.client.cookies.clear()
    attacker.client.cookies.set("ugc_jax", ended)
    assert attacker.get("/").headers["location"] == "/login"


def test_the_cookie(site):
    visitor = site.person()
    header = visitor.get("/login").headers["set-cookie"].lower()
    assert "httponly" in header
    assert "samesite=strict" in header
    site.gate.secure, site.gate.cookie = True, "__Host-ugc_jax"
    other = site.person()
    header = other.get("/login").headers["set-cookie"].lower()
    assert header.startswith("__host-ugc_jax=")
    assert "secure" in header
    assert "domain" not in header


ESCAPES = (
    "..%2f..%2fannotate.sqlite", "../../annotate.sqlite", "%2e%2e%2ffacts.json",
    "....//annotate.sqlite", "%2fetc%2fpasswd", "/etc/passwd", "facts.json", "sound.wav%00.png",
    "..%5c..%5cannotate.sqlite", "SOUND.WAV", "000002%2fsound.wav", "sound.wav/..%2ffacts.json",
    "%c0%ae%c0%ae/annotate.sqlite",
)  # fmt: skip


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("place", ["/media/works/1/", "/media/clips/1/", "/static/"])
def test_no_path_leads_out(site, place, name):
    annotate(site.store, "anna")  # so that all media may be had
    for person in (site.person("anna"), site.person("olga")):
        answer = person.get(place + name)
        assert answer.status_code in (303, 401, 403, 404, 405, 400), answer.content[:80]
        assert b"SQLite" not in answer.content
        assert b"root:" not in answer.content
        assert b'"strip"' not in answer.content


@pytest.mark.parametrize("number", ["0", "-1", "99", "1e3", "1;drop", "%27", "9" * 30])
def test_numbers_that_are_none(site, number):
    olga = site.person("olga")
    for path in (f"/works/{number}", f"/works/{number}/sound", f"/media/works/{number}/sound.wav",
                 f"/clips/{number}", f"/media/clips/{number}/both.mp4",
                 f"/questions/{number}"):  # fmt: skip
        assert olga.get(path).status_code in (403, 404, 422), path


@pytest.mark.parametrize("number", ["", "-1", "²", "9" * 30, "9" * 5000])
def test_versions_that_are_none(site, number):
    olga = site.person("olga")
    answer = olga.form("/questions/1/1", verdict="accept", base=number)
    assert answer.status_code == 422
    assert "Accept or reject the question" in answer.text


def test_links_out_of_the_media_are_refused(site):
    folder = application.media_folder(site.media, 1)
    (folder / "sound.wav").unlink()
    (folder / "sound.wav").symlink_to("/etc/passwd")
    anna = site.person("anna")
    work = anna.next()
    anna.get(f"/works/{work}/sound")
    assert anna.get(f"/media/works/{work}/sound.wav").status_code == 404


def test_media_of_others_clips_before_they_are_done(site):
    """An adjudicator who annotates, too, cannot look ahead by the address of the review."""
    adam = site.person("adam")
    work = adam.next()
    adam.get(f"/works/{work}/sound")
    assert adam.get("/media/clips/1/both.mp4").status_code == 403
    assert adam.get("/clips/1").status_code == 403


def test_an_adjudicator_does_not_decide_the_own_clip(tmp_path):
    site = Site(tmp_path, clips=1)
    annotate(site.store, "adam")
    adam = site.person("adam")
    assert "another adjudicator decides" in adam.get("/clips/1").text
    assert adam.api("/clips/1/decide", {"base": 3, "values": VALUES}).status_code == 403
    assert site.person("olga").api("/clips/1/decide", {"base": 3, "values": VALUES}).is_success
    site.store.close()


def test_markup_is_text(tmp_path):
    site = Site(tmp_path, clips=1, annotators=2)
    site.store.add_clips([f"{NASTY}.mp4"])
    for clip, _ in site.store.waiting():
        site.store.prepared(clip, NASTY)
    values = {
        "sound": {**SOUND, "caption": NASTY, "sounds": [{"what": NASTY}]},
        "picture": {**PICTURE, "text": [NASTY], "caption": NASTY, "background_change": NASTY,
                    "objects": [{"name": NASTY, "color": NASTY, "position": NASTY}]},
        "both": {"caption": NASTY},
    }  # fmt: skip
    anna, bert = site.person("anna"), site.person("bert")
    work = anna.annotate(values)
    bert.annotate(VALUES)
    olga = site.person("olga")
    olga.api("/clips/1/decide", {"base": 0, "values": values})
    one = Question("clip-1", "sound", NASTY, NASTY, (NASTY, "x"))
    site.store.propose(1, [one, one._replace(question="free", options=())], "olga")
    site.store.ask(1, one, "olga")
    site.store.log("olga", NASTY[:30], NASTY, what=NASTY)
    skipped = olga.next()
    if skipped:
        olga.form(f"/works/{skipped}/skip", why="x", words=NASTY)
    pages = [anna.get(f"/works/{work}/{stage}").text for stage in VALUES]
    pages += [anna.get("/").text, olga.get("/nothing" + NASTY).text]
    pages += [olga.get(path).text for path in ("/clips", "/clips/1", "/questions", "/questions/1",
                                               "/agreement", "/log", "/project")]  # fmt: skip
    assert sum("&lt;script&gt;" in page for page in pages) >= 7
    for page in pages:
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert page.count("<script") == page.count('<script src="/static/')
        assert ' onerror="' not in page
        assert " style=" not in page
    site.store.close()


def test_headers_of_every_answer(site):
    anna = site.person("anna")
    paths = ("/", "/login", "/nothing", "/people", "/static/annotate.js", "/media/works/9/x")
    for answer in [*map(anna.get, paths), anna.form("/next"), anna.api("/works/9/sound", {})]:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store" or "static" in str(answer.url)


def test_other_names_of_this_machine(site):
    visitor = TestClient(site.app, base_url="http://evil.example:8017", follow_redirects=False)
    assert visitor.get("/login").status_code == 400
    for name in ("localhost", "127.0.0.1:8017", "[::1]:8017"):
        visitor = TestClient(site.app, base_url=f"http://{name}", follow_redirects=False)
        assert visitor.get("/login").status_code == 200, name


def test_guessing_passwords(site):
    visitor = site.person()
    visitor.get("/login")
    answers = [visitor.form("/login", name="anna", password=f"guess {i}") for i in range(10)]
    assert [answer.status_code for answer in answers] == [401] * 8 + [429] * 2
    assert int(answers[-1].headers["retry-after"]) > 60
    assert visitor.form("/login", name="anna", password=PASSWORD).status_code == 429
    refused = [row for row in site.store.audit() if row.action == "login refused"]
    assert len(refused) == 8
    names = [visitor.form("/login", name=f"x{i}", password=PASSWORD) for i in range(60)]
    assert names[0].status_code == 401
    assert names[-1].status_code == 429  # of one address


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'{"base": "0", "value": {}}', b'{"base": 0}',
        b'{"base": 0, "value": {"caption": "x"}, "annotator": "olga"}',
        b'{"base": 0, "value": {}, "kind": "agreed"}', b'{"base": 1e400, "value": {}}',
        b'{"base": 0, "value": ' + b'{"caption":' * 5000 + b"1" + b"}" * 5001,
        b'{"base": 0, "value": {"caption": NaN}}', b"\xff\xfe{}",
    ],
)  # fmt: skip
def test_bodies_of_other_forms(site, body):
    anna = site.person("anna")
    work = anna.next()
    anna.get(f"/works/{work}/sound")
    headers = {"X-CSRF-Token": anna.csrf, "Content-Type": "application/json"}
    answer = anna.client.post(f"/api/works/{work}/sound", content=body, headers=headers)
    assert answer.status_code in (400, 422), answer.text
    assert "error" in answer.json()
    assert site.store.last(work, "sound").version == 0


def test_a_state_of_a_form_that_no_page_sends_does_not_break_the_page(site):
    anna = site.person("anna")
    work = anna.next()
    anna.get(f"/works/{work}/sound")
    odd = {"sounds": [1, None, {"what": ["x"]}, {"start": {}}], "caption": 7, "music": "perhaps",
           "tone": [], "voice_source": "\ud800"}  # fmt: skip
    body = json.dumps({"base": 0, "value": odd})
    headers = {"X-CSRF-Token": anna.csrf, "Content-Type": "application/json"}
    answer = anna.client.post(f"/api/works/{work}/sound", content=body, headers=headers)
    assert answer.status_code in (200, 422)
    assert anna.get(f"/works/{work}/sound").status_code == 200


def test_guidelines_of_ones_own(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("[sound]\r\nListen.\r\n[picture]\r\nLook.\r\n\r\n[both]\r\nBoth.")
    own = application.read_guidelines(path)
    assert own == {"sound": "Listen.", "picture": "Look.", "both": "Both."}
    path.write_text("[sound]\nx\n[music] y\n[note]\n\n[picture] \ny\n[both]\n[end]")
    own = application.read_guidelines(path)
    assert own == {"sound": "x\n[music] y\n[note]", "picture": "y", "both": "[end]"}
    for text, fault in (
        ("[sound]\nx\n[picture]\n[sound]\n[both]\n", r"has 2 lines \[sound\]"),
        ("All:\n[sound]\nx\n[picture]\n[both]\n", "has text above its first heading"),
    ):
        path.write_text(text)
        with pytest.raises(application.UserError, match=fault):
            application.read_guidelines(path)
    path.write_text("[sound]\nx\n[both]\ny")
    with pytest.raises(application.UserError, match=r"own\.txt has no line \[picture\]"):
        application.read_guidelines(path)
