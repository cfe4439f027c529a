"""The web application of a project: pages for people, and the calls of their script.

/works/...      the three stages of a clip (any role)        /api/...  JSON
/clips/...      clips in dispute, and those that are agreed (adjudicator, owner)
/questions/...  questions and answers (adjudicator, owner)
/agreement      /people /log /project (owner)
"""

import io
import re
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jinja2
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as PathNumber
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException as StarletteHTTPException

from ugc_jax import __version__
from ugc_jax.annotate import agreement, exports, fields, media, questions
from ugc_jax.annotate.answers import Agreed, Question
from ugc_jax.annotate.store import ROLES, Refused, Store, text_fault
from ugc_jax.data import annotation
from ugc_jax.data.annotation import STAGES
from ugc_jax.errors import UserError
from ugc_jax.judge.client import JudgeError
from ugc_jax.web.accounts import Account
from ugc_jax.web.gate import Gate, Visit
from ugc_jax.web.streams import Folder, Outside, stream

BODY_LIMIT = 1 << 20  # bytes of a request
PROPOSING_SECONDS = 20.0  # of one request for questions of all clips
LOCAL = Account("local", "owner")  # who annotates where nobody has an account
_DECIDERS = ("adjudicator", "owner")
_HERE = Path(__file__).parent


class Project(NamedTuple):
    """media: folder with a folder of files a clip. guidelines: by stage. asker: for questions."""

    store: Store
    media: Path
    guidelines: Mapping[str, str]
    asker: questions.Asker | None = None


class SaveBody(BaseModel):
    """A save: the version that it follows, the form's state, seconds of work by field."""

    model_config = ConfigDict(extra="forbid", strict=True)
    base: int
    value: dict[str, Any]
    seconds: dict[str, float | int] = {}
    kind: Literal["autosave", "submit"] = "autosave"


class StepBody(BaseModel):
    """An undo or a redo after a version."""

    model_config = ConfigDict(extra="forbid", strict=True)
    base: int
    back: bool


class DecideBody(BaseModel):
    """What an adjudicator decides: all stages. base: as of `Store.decide`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    base: int
    values: dict[str, dict[str, Any]]


async def _form(request: Request) -> dict[str, str]:
    """The texts of a form."""
    sent = await request.form(max_files=0, max_fields=100)
    texts = {name: value for name, value in sent.items() if isinstance(value, str)}
    if fault := text_fault(texts):
        raise Refused(422, fault)
    return texts


Form = Annotated[dict[str, str], Depends(_form)]
Number = Annotated[int, PathNumber(ge=1, le=2**31 - 1)]  # what a database takes as an id


def media_folder(root: Path, clip: int) -> Path:
    """Return the folder of a clip's files."""
    return root / f"{clip:06}"


def read_guidelines(path: Path | None) -> dict[str, str]:
    """Return {stage: text} of a file with the headings [sound], [picture], [both]; None: ours.

    Raises UserError for a file without one of them, or with text that belongs to none.
    """
    from ugc_jax import files

    path = path or _HERE / "guidelines.txt"
    text = files.read_text(path, "give a text file").replace("\r\n", "\n")
    before, *parts = re.split(rf"^\[({'|'.join(STAGES)})\][ \t]*$", text, flags=re.MULTILINE)
    headings, texts = parts[::2], map(str.strip, parts[1::2])
    for stage in STAGES:
        if (count := headings.count(stage)) != 1:
            raise UserError(
                f"guidelines: {path} has {count or 'no'} line{'s' * (count > 1)} [{stage}]; write "
                "it once, and what it tells below"
            )
    if before.strip():
        raise UserError(f"guidelines: {path} has text above its first heading; move it below")
    return dict(zip(headings, texts, strict=True))


def create(project: Project, gate: Gate) -> FastAPI:
    """Return the application; `web.server.protected` adds its limits and headers."""
    app = FastAPI(
        title="ugc-jax annotate", version=__version__, docs_url=None, redoc_url=None,
        openapi_url=None, dependencies=[Depends(gate.guard)],
    )  # fmt: skip
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    pages = _Pages(project, gate)
    _handle_errors(app, pages)
    _add_login(app, project, gate, pages)
    _add_works(app, project, gate, pages)
    _add_clips(app, project, gate, pages)
    _add_questions(app, project, gate, pages)
    _add_owner(app, project, gate, pages)
    return app


class _Pages:
    """Templates -> answers."""

    def __init__(self, project: Project, gate: Gate):
        self._project, self._gate = project, gate
        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader("ugc_jax.annotate"), autoescape=True,
            undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._environment.filters |= {"when": _when, "words": fields.in_words, "span": _span}
        self._environment.globals |= {
            "STAGES": STAGES, "FORMS": fields.FORMS, "TITLES": fields.TITLES,
            "VERSION": __version__, "ROLES": ROLES,
        }  # fmt: skip

    def show(self, request: Request, name: str, status: int = 200, **context) -> HTMLResponse:
        visit = self._visit(request)
        html = self._environment.get_template(name).render(
            account=visit.account, csrf=visit.csrf, is_local=self._gate.local is not None,
            path=request.url.path, settings=self._project.store.settings, **context,
        )  # fmt: skip
        response = HTMLResponse(html, status)
        self._gate.page(request, response)
        return response

    def _visit(self, request: Request) -> Visit:
        try:
            return self._gate.visit(request)
        except HTTPException:  # too many requests: the page that says so
            return Visit("", None, "")

    def fault(self, request: Request, status: int, message: str, **detail) -> Response:
        """The answer to a request that is refused, for a person or for a program."""
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": message, **detail}, status)
        if status == 401 and request.method == "GET":
            return RedirectResponse("/login", 303)
        if request.url.path.startswith("/media/"):
            return Response(message, status, media_type="text/plain")
        return self.show(request, "fault.html", status, code=status, message=message)


def _handle_errors(app: FastAPI, pages: _Pages):
    @app.exception_handler(StarletteHTTPException)
    def refused_by_http(request: Request, error: StarletteHTTPException) -> Response:
        response = pages.fault(request, error.status_code, str(error.detail))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Refused)
    def refused(request: Request, error: Refused) -> Response:
        return pages.fault(request, error.status, str(error), **error.detail)

    @app.exception_handler(UserError)
    def mistaken(request: Request, error: UserError) -> Response:
        return pages.fault(request, 422, str(error))

    @app.exception_handler(Outside)
    def outside(request: Request, error: Outside) -> Response:
        return pages.fault(request, 404, "there is no such file")

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return pages.fault(request, 422, f"{place}: {first['msg']}")


def _see(path: str) -> RedirectResponse:
    return RedirectResponse(path, 303)


# ---- login ---------------------------------------------------------------------------------------


def _add_login(app: FastAPI, project: Project, gate: Gate, pages: _Pages):
    @app.get("/login")
    def login_page(request: Request) -> Response:
        if gate.visit(request).account is not None:
            return _see("/")
        return pages.show(request, "login.html", wrong=False)

    @app.post("/login")
    def log_in(request: Request, form: Form) -> Response:
        name = form.get("name", "")
        found = gate.log_in(request, name, form.get("password", ""))
        if found is None:
            project.store.log("", "login refused", name[:64])
            return pages.show(request, "login.html", 401, wrong=True)
        token, account = found
        project.store.log(account.name, "login")
        response = _see("/")
        gate.welcome(response, token)
        return response

    @app.post("/logout")
    def log_out(request: Request) -> Response:
        response = _see("/login")
        gate.log_out(request, response)
        return response


# ---- the three stages ----------------------------------------------------------------------------


def _add_works(app: FastAPI, project: Project, gate: Gate, pages: _Pages):
    store = project.store
    anyone = Annotated[Account, Depends(gate.require(*ROLES))]

    @app.get("/")
    def home(request: Request, who: anyone) -> Response:
        works = store.works(who.name)
        states: dict[str, int] = {}
        for clip in store.clips():
            states[clip.state] = states.get(clip.state, 0) + 1
        return pages.show(request, "home.html", works=works, states=states)

    @app.post("/next")
    def next_work(who: anyone) -> Response:
        work = store.next_work(who.name)
        return _see("/done" if work is None else f"/works/{work}")

    @app.get("/done")
    def nothing_left(request: Request, who: anyone) -> Response:
        waiting = len(store.waiting())
        return pages.show(request, "done.html", waiting=waiting)

    @app.get("/works/{work}")
    def work_page(work: Number, who: anyone) -> Response:
        stage = store.work(work, who.name).stage
        return _see(f"/works/{work}/{stage if stage in STAGES else 'both'}")

    @app.get("/works/{work}/{stage}")
    def stage_page(request: Request, work: Number, stage: str, who: anyone) -> Response:
        found = store.work(work, who.name)
        row = store.open_stage(work, who.name, stage)
        is_open = found.stage == stage
        if not is_open and found.stage not in ("both", "done"):
            return _see(f"/works/{work}/{found.stage}")  # an earlier stage is closed until then
        shown = STAGES if stage == "both" else (stage,)
        forms, drafts = {}, {}
        for one in shown:
            saved = store.last(work, one)
            forms[one] = (saved, fields.filled(one, saved.value))
            drafts[one] = _draft_for(store, work, found.clip, one, who.name)
        facts = media.read_facts(media_folder(project.media, found.clip))
        return pages.show(
            request, "work.html", work=found, stage=stage, row=row, forms=forms, drafts=drafts,
            history=store.history(work) if stage == "both" else [], facts=facts,
            media=f"/media/works/{work}", is_open=is_open, parts=shown,
            guidelines=project.guidelines[stage],
        )  # fmt: skip

    @app.post("/api/works/{work}/{stage}")
    def save(work: Number, stage: str, body: SaveBody, who: anyone) -> dict:
        saved = store.save(work, who.name, stage, body.base, body.value, body.seconds, body.kind)
        answer = _saved(saved, fields.filled(stage, saved.value))
        if body.kind == "submit":
            ahead = store.work(work, who.name).stage
            corrects = stage != "both" and ahead == "both" and saved.kind == "correct"
            answer["next"] = None if corrects else f"/works/{work}" if ahead != "done" else "/"
        return answer

    @app.post("/api/works/{work}/{stage}/step")
    def step(work: Number, stage: str, body: StepBody, who: anyone) -> dict:
        saved = store.step(work, who.name, stage, body.base, body.back)
        return _saved(saved, fields.filled(stage, saved.value))

    @app.post("/works/{work}/skip")
    def skip(work: Number, form: Form, who: anyone) -> Response:
        parts = (form.get("why", ""), form.get("words", ""))
        store.skip(work, who.name, ": ".join(filter(None, map(str.strip, parts))))
        return _see("/")

    @app.get("/media/works/{work}/{name}")
    def work_media(work: Number, name: str, who: anyone) -> Response:
        stage = next((one for one, names in media.OF_STAGE.items() if name in names), None)
        if stage is None:
            raise HTTPException(404, "there is no such file")
        found = store.may_have(work, who.name, stage)
        return _file(project, found.clip, name)


def _file(project: Project, clip: int, name: str) -> Response:
    path = Folder(project.media).file(media_folder(Path(), clip).name, name)
    return stream(path, media.TYPES[path.suffix])


def _draft_for(store: Store, work: int, clip: int, stage: str, who: str) -> dict | None:
    """The teacher's draft if this annotator may see it in this stage now."""
    row = store.open_stage(work, who, stage)
    if row.draft_shown is None:
        return None
    value = store.draft(clip, stage)
    return None if value is None else fields.filled(stage, value)


def _saved(saved, value: dict) -> dict:
    return {
        "version": saved.version, "value": value, "can_undo": saved.can_undo,
        "can_redo": saved.can_redo,
    }  # fmt: skip


# ---- clips: adjudication -------------------------------------------------------------------------


def _add_clips(app: FastAPI, project: Project, gate: Gate, pages: _Pages):
    store = project.store
    decider = Annotated[Account, Depends(gate.require(*_DECIDERS))]

    @app.get("/clips")
    def clips(request: Request, who: decider, state: str = "") -> Response:
        rows = store.clips()
        counts: dict[str, int] = {}
        for row in rows:
            counts[row.state] = counts.get(row.state, 0) + 1
        chosen = [row for row in rows if state in ("", row.state)]
        return pages.show(request, "clips.html", clips=chosen, counts=counts, state=state)

    @app.get("/clips/{clip}")
    def clip_page(request: Request, clip: Number, who: decider) -> Response:
        row = _decidable(store, clip)
        answers, agreed = store.answers(clip), store.agreed_of(clip)
        columns = [(f"{name} (annotator)", _of(answers, name)) for name in _names(answers)]
        drafts = {one: store.draft(clip, one) for one in STAGES}
        if any(drafts.values()):
            columns.append(("teacher", {one: value for one, value in drafts.items() if value}))
        forms = {}
        for stage in STAGES:
            value = agreed[stage].value if stage in agreed else None
            said = [one.value for one in answers if one.stage == stage]
            if value is None and said:
                value = annotation.to_json(agreement.merge(said))
            forms[stage] = fields.filled(stage, value or {})
        facts = None
        if row.state != "absent":
            facts = media.read_facts(media_folder(project.media, clip))
        return pages.show(
            request, "clip.html", clip=row, columns=columns, forms=forms, facts=facts,
            disputes=store.disputes(clip), media=f"/media/clips/{clip}",
            agreed=agreed, base=store.count_agreed(clip),
            mine=who.name in _names(answers) and who.role != "owner",
        )  # fmt: skip

    @app.post("/api/clips/{clip}/decide")
    def decide(clip: Number, body: DecideBody, who: decider) -> dict:
        if who.role != "owner" and who.name in _names(store.answers(clip)):
            raise Refused(403, "you annotated this clip; another adjudicator decides it")
        store.decide(clip, who.name, body.values, body.base)
        return {"next": "/clips?state=dispute"}

    @app.get("/media/clips/{clip}/{name}")
    def clip_media(clip: Number, name: str, who: decider) -> Response:
        if not any(name in names for names in media.OF_STAGE.values()):
            raise HTTPException(404, "there is no such file")
        _decidable(store, clip)  # not before its annotators are done: a decider may be one of them
        return _file(project, clip, name)


def _decidable(store: Store, clip: int):
    row = store.clip(clip)
    if row.state not in ("dispute", "agreed"):
        raise Refused(403, "this clip opens when its annotators are done")
    return row


def _names(answers) -> list[str]:
    return list(dict.fromkeys(one.annotator for one in answers))


def _of(answers, name: str) -> dict[str, dict]:
    return {one.stage: annotation.to_json(one.value) for one in answers if one.annotator == name}


# ---- questions -----------------------------------------------------------------------------------


def _add_questions(app: FastAPI, project: Project, gate: Gate, pages: _Pages):
    store = project.store
    decider = Annotated[Account, Depends(gate.require(*_DECIDERS))]

    def propose(agreed: Agreed, clip: int, who: str):
        """Add proposals; without an answer of the LLM those of the templates, and Refused 502."""
        count = store.settings.questions
        try:
            found = questions.propose(agreed, count, project.asker)
        except JudgeError as error:
            store.propose(clip, questions.propose(agreed, count), who)
            raise Refused(
                502, f"questions of the templates were added, but the LLM gave none ({error})"
            ) from None
        store.propose(clip, found, who)

    @app.get("/questions")
    def all_questions(request: Request, who: decider) -> Response:
        rows, agreed = store.questions(), {one.path: one for one in store.agreed()}
        clips = [clip for clip in store.clips() if clip.path in agreed]
        counts = {clip.id: dict.fromkeys(("proposed", "accepted", "rejected"), 0) for clip in clips}
        for row in rows:
            if row.clip in counts:
                counts[row.clip][row.state] += 1
        balance = questions.balance(
            question for one in agreed.values() for question in one.questions
        )
        return pages.show(
            request, "questions.html", clips=clips, counts=counts, balance=balance,
            without=sum(not sum(one.values()) for one in counts.values()),
        )  # fmt: skip

    @app.post("/questions")
    def propose_all(who: decider) -> Response:
        """Propose for the clips that have no question yet, as many as a request has time for."""
        end, ids = time.monotonic() + PROPOSING_SECONDS, {one.path: one.id for one in store.clips()}
        asked = {row.clip for row in store.questions()}
        for agreed in store.agreed():
            clip = ids[agreed.path]
            if clip not in asked:
                propose(agreed, clip, who.name)
            if time.monotonic() > end:
                break
        return _see("/questions")

    def found_clip(clip: int) -> tuple[Any, Agreed]:
        row = store.clip(clip)
        for one in store.agreed():
            if one.path == row.path:
                return row, one
        raise Refused(403, "nothing is agreed of this clip yet")

    @app.get("/questions/{clip}")
    def questions_of(request: Request, clip: Number, who: decider) -> Response:
        row, agreed = found_clip(clip)
        stages = {
            one: annotation.to_json(getattr(agreed, one))
            for one in STAGES
            if getattr(agreed, one) is not None
        }
        facts = None
        if row.state == "agreed":
            facts = media.read_facts(media_folder(project.media, clip))
        return pages.show(
            request, "clip_questions.html", clip=row, rows=store.questions(clip), stages=stages,
            facts=facts, media=f"/media/clips/{clip}", kinds=questions.KINDS,
        )  # fmt: skip

    @app.post("/questions/{clip}/propose")
    def propose_one(clip: Number, who: decider) -> Response:
        propose(found_clip(clip)[1], clip, who.name)
        return _see(f"/questions/{clip}")

    @app.post("/questions/{clip}/ask")
    def ask(clip: Number, form: Form, who: decider) -> Response:
        row, _ = found_clip(clip)
        kind = form.get("kind", "")
        if kind not in questions.KINDS:
            raise Refused(422, f"kind: is none of {', '.join(questions.KINDS)}")
        options = [one.strip() for one in form.get("options", "").splitlines() if one.strip()]
        one = Question(
            row.name, kind, form.get("question", "").strip(), form.get("answer", "").strip(),
            tuple(options), source="person",
        )  # fmt: skip
        if options and one.answer not in options:
            raise Refused(422, f"the answer is none of {', '.join(options)}")
        store.ask(clip, one, who.name)
        return _see(f"/questions/{clip}")

    @app.post("/questions/{clip}/{question}")
    def judge(clip: Number, question: Number, form: Form, who: decider) -> Response:
        verdict, base = form.get("verdict", ""), form.get("base", "")
        if verdict not in ("accept", "reject") or re.fullmatch("[0-9]{1,9}", base) is None:
            raise Refused(422, "accept or reject the question")
        words = form.get("question"), form.get("answer")
        store.judge(question, who.name, int(base), verdict, *words)
        return _see(f"/questions/{clip}")


# ---- agreement, people, log, project -------------------------------------------------------------


def _add_owner(app: FastAPI, project: Project, gate: Gate, pages: _Pages):
    store = project.store
    decider = Annotated[Account, Depends(gate.require(*_DECIDERS))]
    owner = Annotated[Account, Depends(gate.require("owner"))]

    @app.get("/agreement")
    def agreement_page(request: Request, who: decider) -> Response:
        report = agreement.measure(store.answers())
        by_annotator: dict[str, list] = {}
        for one in report.annotators:
            by_annotator.setdefault(one.annotator, []).append(one)
        return pages.show(request, "agreement.html", report=report, annotators=by_annotator)

    @app.get("/people")
    def people(request: Request, who: owner) -> Response:
        return pages.show(request, "people.html", people=store.accounts.all())

    @app.post("/people")
    def add_person(form: Form, who: owner) -> Response:
        name, role = form.get("name", "").strip(), form.get("role", "")
        if not store.accounts.all() and role != "owner":
            raise Refused(422, "the first account is that of an owner: with it, logins begin")
        store.accounts.add(name, form.get("password", ""), role)
        store.log(who.name, "account added", name, role=role)
        return _see("/people")

    @app.post("/people/{name}")
    def change_person(name: str, form: Form, who: owner) -> Response:
        if name == who.name:
            raise Refused(422, "ask another owner to change your own account")
        active = {"yes": True, "no": False}.get(form.get("active", ""))
        changes = dict(role=form.get("role") or None, password=form.get("password") or None)
        store.accounts.change(name, active=active, **changes)
        said = {key: value for key, value in changes.items() if value and key != "password"}
        said |= {"active": active} if active is not None else {}
        said |= {"password": "new"} if changes["password"] else {}
        store.log(who.name, "account changed", name, **said)
        return _see("/people")

    @app.get("/log")
    def log_page(
        request: Request, who: owner, before: Annotated[int, Query(ge=1, le=2**31 - 1)] = 2**31 - 1
    ) -> Response:
        rows = store.audit(200, before)
        return pages.show(request, "log.html", rows=rows, older=rows[-1].id if rows else None)

    @app.get("/project")
    def project_page(request: Request, who: owner) -> Response:
        works = store.works()
        skipped = [row for row in works if row.stage == "skipped"]
        broken = [row for row in store.clips() if row.state == "broken"]
        return pages.show(
            request, "project.html", skipped=skipped, broken=broken, agreed=len(store.agreed()),
            database=store.database.name,
        )  # fmt: skip

    @app.post("/export")
    def export(who: owner) -> Response:
        packed = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(packed, "w") as archive:
            counts = exports.write(folder, store.agreed(), store.answers())
            for name in counts:
                archive.write(Path(folder, name), name, zipfile.ZIP_DEFLATED)
        store.log(who.name, "export", "page", rows=counts)
        name = 'attachment; filename="export.zip"'
        return Response(
            packed.getvalue(), media_type="application/zip", headers={"Content-Disposition": name}
        )


# ---- how values are shown ------------------------------------------------------------------------


def _when(seconds: float | None) -> str:
    """A time as 2026-11-27 02:04 UTC."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _span(seconds: float) -> str:
    """A length as 5 s or 3:20 min."""
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60}:{whole % 60:02} min"
