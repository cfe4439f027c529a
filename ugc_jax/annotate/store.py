"""A project's database: clips, who works on which, every save, what is agreed, questions, the log.

    clip: waiting -> ready -> (dispute ->) agreed
    work: sound -> picture -> both -> done, or skipped; k of them make a clip
    save: version 1, 2, ... of a stage; a save names the version it follows, so none is lost

Every method is one transaction. What a user may not do raises Refused, with the HTTP status that
says why.
"""

import json
import math
import os
import time
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import sqlalchemy as sa

from ugc_jax.annotate import tables as t
from ugc_jax.annotate.answers import Agreed, Answer, Question
from ugc_jax.data import annotation
from ugc_jax.data.annotation import STAGES, Stage
from ugc_jax.errors import UserError
from ugc_jax.evals.tasks import clip_id
from ugc_jax.files import escaped
from ugc_jax.web import accounts
from ugc_jax.web.database import Database

if TYPE_CHECKING:
    from ugc_jax.annotate.imports import Imported

FINAL = ("submit", "revise", "correct", "import")  # kinds of saves that are answers
_AHEAD = {"sound": "picture", "picture": "both", "both": "done"}
_LONGEST_REASON = 500

Drafts = Literal["first", "after", "never"]
ROLES = ("annotator", "adjudicator", "owner")


class Refused(Exception):
    """What a user may not do now. status: of HTTP. detail: for a program."""

    def __init__(self, status: int, message: str, **detail):
        super().__init__(message)
        self.status, self.detail = status, detail


class Settings(NamedTuple):
    """Settings of a project.

    annotators: of a clip. drafts: when the teacher's draft of a stage is shown. lock: seconds for
    which a clip is kept for who took it, from the last save on. threshold: agreement of a field
    below which the adjudicator decides. questions: that are proposed for a clip.
    """

    annotators: int = 1
    drafts: Drafts = "after"
    lock: float = 1800.0
    threshold: float | None = None
    questions: int = 4


class Saved(NamedTuple):
    """The last save of a stage; version 0 if there is none."""

    version: int
    value: dict
    seconds: dict
    kind: str = ""
    time: float = 0.0
    can_undo: bool = False
    can_redo: bool = False


class Work(NamedTuple):
    """A work with its clip."""

    id: int
    clip: int
    path: str
    name: str
    annotator: str
    stage: str
    locked_until: float


class Store:
    """The database of a project."""

    def __init__(
        self,
        url: str,
        changes: Mapping[str, Any] = types.MappingProxyType({}),
        clock: Callable[[], float] = time.time,
    ):
        """url: as of Database. clock: seconds since 1970. Raises UserError if it cannot be opened.

        changes: of the project's settings, which are otherwise those of the last time; recorded in
        the log.
        """
        self.database = Database(url, accounts.METADATA, t.METADATA)
        self.accounts = accounts.Accounts(self.database, ROLES, clock)
        self._now = clock
        with self.database.write() as c:
            row = c.execute(sa.select(t.settings).where(t.settings.c.name == "project")).first()
            before = {} if row is None else json.loads(row.value)
            self.settings = Settings(**before | changes)
            value = json.dumps(self.settings._asdict())
            if row is None:
                c.execute(sa.insert(t.settings).values(name="project", value=value))
            elif row.value != value:
                c.execute(sa.update(t.settings).values(value=value))
            if row is None or row.value != value:
                self._log(c, "", "settings", "", self.settings._asdict())
                ready = sa.select(t.clips.c.id).where(t.clips.c.state == "ready")
                for clip in c.execute(ready).scalars().all():  # fewer annotators may be enough now
                    self._settle_if_complete(c, clip)

    def close(self):
        """Close the database."""
        self.database.close()

    # ---- clips ----------------------------------------------------------------------------------

    def add_clips(self, paths: Iterable[str]):
        """Add the clips that are not known yet. paths: all those within the folder of clips.

        A new path with the id of a clip whose path is gone is that clip, which was moved.
        UserError for two clips of one id: annotated, they could not be exported.
        """
        given = dict.fromkeys(map(escaped, paths))
        with self.database.write() as c:
            known = {row.path: row for row in c.execute(sa.select(t.clips))}
            names = {row.name: row for row in known.values()}
            added: dict[str, str] = {}  # name -> path
            for path in given:
                name = clip_id(path)
                row = known.get(path) or names.get(name)
                other = added.get(name) or (row.path if row is not None else path)
                if other != path and other in given:
                    raise UserError(
                        f"{other} and {path}: two clips with the id {name}; rename one of the files"
                    )
                added[name] = path
                if row is None:
                    new = dict(path=path, name=name, state="waiting", added=self._now())
                    c.execute(sa.insert(t.clips).values(new))
                    continue
                if row.state == "absent":
                    self._set_clip(c, row.id, state="waiting")
                if row.path != path:
                    self._set_clip(c, row.id, path=path)
                    self._log(c, "", "move", f"clip {row.id}", {"from": row.path, "to": path})

    def waiting(self) -> list[tuple[int, str]]:
        """Return (id, path) of clips whose media are not prepared."""
        query = sa.select(t.clips.c.id, t.clips.c.path).where(t.clips.c.state == "waiting")
        with self.database.read() as c:
            return [tuple(row) for row in c.execute(query.order_by(t.clips.c.id))]

    def to_prepare(self, has_media: Callable[[int], bool]) -> list[tuple[int, str]]:
        """Return (id, path) of clips that wait, were unreadable before, or have lost their media.

        has_media: whether the media of a clip, by its id, are there.
        """
        query = sa.select(t.clips.c.id, t.clips.c.path, t.clips.c.state)
        with self.database.read() as c:
            rows = c.execute(query.where(t.clips.c.state != "absent").order_by(t.clips.c.id)).all()
        return [
            (row.id, row.path)
            for row in rows
            if row.state in ("waiting", "broken") or not has_media(row.id)
        ]

    def prepared(self, clip: int, fault: str = ""):
        """Record that a clip's media are there, or why they cannot be made."""
        with self.database.write() as c:
            self._lock_seats(c)
            state = self._clip(c, clip).state
            if state not in ("dispute", "agreed"):  # which stay, also without their media
                is_agreed = set(self._agreed(c, clip)) == set(STAGES)  # imported before its file
                state = "broken" if fault else "agreed" if is_agreed else "ready"
            self._set_clip(c, clip, state=state, note=fault)
            if state == "ready":
                self._settle_if_complete(c, clip)  # answers may have been imported, too

    def clips(self) -> list[sa.Row]:
        """Return the rows of all clips with the numbers of works that are done, open, skipped."""

        def count(*stages: str):
            return sa.func.count(sa.case((t.works.c.stage.in_(stages), 1)))

        query = (
            sa.select(
                t.clips,
                count("done").label("done"),
                count(*STAGES).label("open"),
                count("skipped").label("skipped"),
            )
            .outerjoin(t.works)
            .group_by(t.clips.c.id)
            .order_by(t.clips.c.id)
        )
        with self.database.read() as c:
            return list(c.execute(query))

    def clip(self, clip: int) -> sa.Row:
        """Return the row of a clip; Refused 404 if there is none."""
        with self.database.read() as c:
            return self._clip(c, clip)

    # ---- works: who annotates which clip --------------------------------------------------------

    def next_work(self, annotator: str) -> int | None:
        """Return the work to continue with, else take a free clip; None if there is none.

        Clips that others have begun come first, so that clips are finished.
        """
        now, seats = self._now(), self.settings.annotators
        with self.database.write() as c:
            self._lock_seats(c)
            for row in c.execute(
                sa.select(t.works)
                .where(t.works.c.annotator == annotator, t.works.c.stage.in_(STAGES))
                .order_by(t.works.c.id)
            ).all():
                if self._keep(c, row, now):
                    return row.id
            taken = sa.func.count(sa.case((_active(now), 1)))
            mine = sa.select(t.works.c.clip).where(t.works.c.annotator == annotator)
            clip = c.execute(
                sa.select(t.clips.c.id)
                .outerjoin(t.works)
                .where(t.clips.c.state == "ready", t.clips.c.id.not_in(mine))
                .group_by(t.clips.c.id)
                .having(taken < seats)
                .order_by(taken.desc(), t.clips.c.id)
                .limit(1)
            ).scalar()
            if clip is None:
                return None
            new = dict(clip=clip, annotator=annotator, stage="sound", taken=now)
            inserted = sa.insert(t.works).values(locked_until=now + self.settings.lock, **new)
            work = c.execute(inserted).inserted_primary_key[0]
            self._log(c, annotator, "take", f"work {work}", {"clip": clip})
            return work

    def work(self, work: int, annotator: str) -> Work:
        """Return a work of this annotator; Refused 404 for another's, as for none."""
        with self.database.read() as c:
            return self._work(c, work, annotator)

    def works(self, annotator: str | None = None) -> list[sa.Row]:
        """Return works with path and name of their clips, the latest first; None: of all."""
        query = sa.select(t.works, t.clips.c.path, t.clips.c.name).join(t.clips)
        if annotator is not None:
            query = query.where(t.works.c.annotator == annotator)
        with self.database.read() as c:
            return list(c.execute(query.order_by(t.works.c.id.desc())))

    def skip(self, work: int, annotator: str, reason: str):
        """Leave a clip for good, for a reason; its seat is free again."""
        reason = reason.strip()
        if not reason:
            raise Refused(422, "say why this clip is skipped")
        if len(reason) > _LONGEST_REASON:
            raise Refused(422, f"the reason is longer than {_LONGEST_REASON} characters")
        with self.database.write() as c:
            self._open_work(c, work, annotator)
            self._end(c, work, "skipped", reason)
            self._log(c, annotator, "skip", f"work {work}", {"reason": reason})

    # ---- stages and saves -----------------------------------------------------------------------

    def open_stage(self, work: int, annotator: str, stage: str) -> sa.Row:
        """Return the row of a stage, and open it if it is the work's next.

        Refused 403 for a stage before which another is not done, 409 if the lock was lost.
        """
        with self.database.write() as c:
            found = self._work(c, work, annotator)
            _check_reached(found, stage)
            if found.stage in STAGES:
                self._open_work(c, work, annotator)
            row = self._stage(c, work, stage)
            if row is None:
                new = dict(work=work, stage=stage, drafts=self.settings.drafts, opened=self._now())
                c.execute(sa.insert(t.stages).values(new))
                row = self._stage(c, work, stage)
            shows = row.drafts == "first" or (row.drafts == "after" and row.answered is not None)
            if shows and row.draft_shown is None and self._draft(c, found.clip, stage):
                self._set_stage(c, work, stage, draft_shown=self._now())
                self._log(c, annotator, "draft", f"work {work}", {"stage": stage, "as": row.drafts})
                row = self._stage(c, work, stage)
            return row

    def may_have(self, work: int, annotator: str, stage: str) -> Work:
        """Return the work if it is so far that the media of `stage` may be had.

        That is in the stage itself, and of all in stage both and afterwards: who sees must not hear
        again, and no stage's media come before it. Refused 403 otherwise.
        """
        found = self.work(work, annotator)
        if found.stage in ("both", "done") or found.stage == stage:
            return found
        raise Refused(403, f"the {stage} of this clip is not open in stage {found.stage}")

    def save(
        self,
        work: int,
        annotator: str,
        stage: str,
        base: int,
        value: Any,
        seconds: Any,
        kind: Literal["autosave", "submit"] = "autosave",
    ) -> Saved:
        """Add a version to a stage; return it. It is on the disk when this returns.

        base: the version that the annotator had seen; Refused 409 if there is a later one.
        kind: "submit" ends the stage; an earlier one is then submitted as a correction. With
          the teacher's draft shown after the own answer, the first submit only shows it.
        Refused 422 for an answer that is not complete, which names the field.
        """
        _check_form(stage, value)
        with self.database.write() as c:
            if kind == "submit":
                self._lock_seats(c)
            found = self._open_work(c, work, annotator)
            _check_reached(found, stage)
            row = self._stage(c, work, stage)
            earlier = found.stage != stage
            if row is None or (earlier and found.stage != "both"):
                raise Refused(403, f"stage {stage} is not open")
            last = self._last(c, work, stage)
            _check_follows(last, base)
            label = kind
            if earlier:
                label = "correct" if kind == "submit" else "autosave"
            elif kind == "submit" and row.answered is not None:
                label = "revise"
            if kind == "submit":
                value = _complete(stage, value)
            times = self._times(row, seconds)
            saved = self._add(c, work, stage, last.version + 1, label, value, times)
            if kind == "submit":
                self._log(
                    c, annotator, label, f"work {work}", {"stage": stage, "version": saved.version}
                )
                if not earlier:
                    self._submitted(c, found, row, annotator)
        return saved

    def step(self, work: int, annotator: str, stage: str, base: int, back: bool) -> Saved:
        """Undo (or redo) the last change of the open stage; return the new version."""
        with self.database.write() as c:
            found = self._open_work(c, work, annotator)
            if found.stage != stage and not (found.stage == "both" and stage in STAGES):
                raise Refused(403, f"stage {stage} is not open")
            last = self._last(c, work, stage)
            _check_follows(last, base)
            if not (last.can_undo if back else last.can_redo):
                raise Refused(409, f"there is nothing to {'undo' if back else 'redo'}")
            rows = self._versions(c, work, stage)
            source = rows[-1].source + (-1 if back else 1)
            value = next(row.value for row in rows if row.version == source)
            kind = "undo" if back else "redo"
            return self._add(c, work, stage, base + 1, kind, value, last.seconds, source)

    def last(self, work: int, stage: str) -> Saved:
        """Return the last save of a stage."""
        with self.database.read() as c:
            return self._last(c, work, stage)

    def history(self, work: int) -> list[sa.Row]:
        """Return the answers of a work, corrections included, in the order of time."""
        query = sa.select(t.saves).where(t.saves.c.work == work, t.saves.c.kind.in_(FINAL))
        with self.database.read() as c:
            return list(c.execute(query.order_by(t.saves.c.id)))

    def draft(self, clip: int, stage: str) -> dict | None:
        """Return the teacher's draft of a stage, if there is one."""
        with self.database.read() as c:
            return self._draft(c, clip, stage)

    # ---- answers and what is agreed -------------------------------------------------------------

    def answers(self, clip: int | None = None) -> list[Answer]:
        """Return the answers of all stages that are done; clip: of one clip."""
        with self.database.read() as c:
            return self._answers(c, clip)

    def agreed(self) -> list[Agreed]:
        """Return the clips that have agreed stages or questions, in the order of their addition."""
        with self.database.read() as c:
            values = self._all_agreed(c)
            asked: dict[int, list[Question]] = {}
            query = sa.select(t.questions, t.clips.c.name).join(t.clips)
            for row in c.execute(
                query.where(t.questions.c.state == "accepted").order_by(t.questions.c.id)
            ):
                asked.setdefault(row.clip, []).append(_question(row))
            rows = c.execute(sa.select(t.clips).order_by(t.clips.c.id)).all()
        return [
            Agreed(
                row.name, row.path, **values.get(row.id, {}), questions=tuple(asked.get(row.id, ()))
            )
            for row in rows
            if row.id in values or row.id in asked
        ]

    def agreed_of(self, clip: int) -> dict[str, sa.Row]:
        """Return {stage: the row that holds} of a clip."""
        with self.database.read() as c:
            return self._agreed(c, clip)

    def count_agreed(self, clip: int) -> int:
        """Return the number of a clip's agreed rows, earlier versions included, for `decide`."""
        with self.database.read() as c:
            return self._count_agreed(c, clip)

    def disputes(self, clip: int) -> dict[str, tuple[str, ...]]:
        """Return {stage: its fields in dispute} of a clip."""
        return self._disputes(self.answers(clip))

    def decide(self, clip: int, who: str, values: dict[str, Any], base: int):
        """Set what is agreed of a clip, by an adjudicator.

        base: number of the clip's agreed rows that the adjudicator had seen; Refused 409 if there
        are more. Refused 422 for an incomplete answer.
        """
        read = {stage: _complete(stage, value) for stage, value in values.items()}
        if set(read) != set(STAGES):
            raise Refused(422, f"give all stages: {', '.join(STAGES)}")
        with self.database.write() as c:
            self._lock_seats(c)
            row = self._clip(c, clip)
            if row.state not in ("dispute", "agreed"):
                raise Refused(409, "the clip's annotators are not done")
            if self._count_agreed(c, clip) != base:
                raise Refused(409, "another adjudicator has decided meanwhile; load the page again")
            now = {stage: one.value for stage, one in self._agreed(c, clip).items()}
            for stage in STAGES:
                if now.get(stage) != read[stage]:
                    self._agree(c, clip, stage, read[stage], "adjudicator", who)
            self._set_clip(c, clip, state="agreed")
            self._log(c, who, "adjudicate", f"clip {clip}", {"fields": self._disputed(c, clip)})

    def take_in(self, imported: "Imported", origin: str) -> dict[str, int]:
        """Import clips with what is agreed, questions, drafts and answers; return the counts.

        A clip is known by its path, else by its id; an unknown one is added without a file.
        An agreed stage, a question and an annotator's work that are here already are kept.
        """
        counts = dict.fromkeys(("clips", "stages", "questions", "drafts", "answers"), 0)
        with self.database.write() as c:
            self._lock_seats(c)
            rows = c.execute(sa.select(t.clips).order_by(t.clips.c.id)).all()
            by_path = {row.path: row.id for row in rows}
            by_name: dict[str, list[int]] = {}
            for row in rows:
                by_name.setdefault(row.name, []).append(row.id)

            def find(name: str, path: str = "") -> int:
                named = by_name.setdefault(name, [])
                clip = by_path.get(path, named[0] if len(named) == 1 else None)
                if clip is None:
                    new = dict(path=path or name, name=name, state="absent", added=self._now())
                    clip = c.execute(sa.insert(t.clips).values(new)).inserted_primary_key[0]
                    by_path[path or name] = clip
                    named.append(clip)
                return clip

            clips = {
                one.clip: find(escaped(one.clip), escaped(one.path)) for one in imported.agreed
            }
            counts["clips"] = len(clips)
            for item in imported.agreed:
                self._take_agreed(c, clips[item.clip], item, counts)
            for stage, said in imported.drafts.items():
                for name, value in said.items():
                    clip = clips.get(name) or find(escaped(name))
                    self._take_draft(c, clip, stage, value, origin)
                    counts["drafts"] += 1
            works: dict[tuple[str, str], list[Answer]] = {}
            for answer in imported.answers:
                works.setdefault((answer.clip, answer.annotator), []).append(answer)
            for (name, annotator), answers in works.items():
                clip = clips.get(name) or find(escaped(name))
                counts["answers"] += self._take_work(c, clip, annotator, answers)
                if self._clip(c, clip).state == "ready":
                    self._settle_if_complete(c, clip)
            self._log(c, "", "import", origin, counts)
        return counts

    # ---- questions ------------------------------------------------------------------------------

    def questions(self, clip: int | None = None) -> list[sa.Row]:
        """Return questions with the name of their clips; clip: of one."""
        query = sa.select(t.questions, t.clips.c.name).join(t.clips).order_by(t.questions.c.id)
        if clip is not None:
            query = query.where(t.questions.c.clip == clip)
        with self.database.read() as c:
            return list(c.execute(query))

    def propose(self, clip: int, questions: Sequence[Question], who: str) -> int:
        """Add proposals that the clip does not have yet, rejected ones included; count them."""
        with self.database.write() as c:
            self._lock_seats(c)
            known = {(row.task, row.question) for row in self._questions(c, clip)}
            new = [one for one in questions if (one.task, one.question) not in known]
            for one in new:
                self._ask(c, clip, one, "proposed", who)
            self._log(c, who, "propose", f"clip {clip}", {"count": len(new)})
        return len(new)

    def judge(
        self,
        question: int,
        who: str,
        base: int,
        verdict: Literal["accept", "reject"],
        text: str | None = None,
        answer: str | None = None,
    ):
        """Accept a question, with another text or answer if given, or reject it.

        base: the version that the person had seen; Refused 409 if there is a later one.
        """
        with self.database.write() as c:
            chosen = t.questions.c.id == question
            row = c.execute(sa.select(t.questions).where(chosen).with_for_update()).first()
            if row is None:
                raise Refused(404, "there is no such question")
            if row.version != base:
                raise Refused(409, "the question was changed meanwhile; load the page again")
            new = {"state": "accepted" if verdict == "accept" else "rejected"}
            if verdict == "accept":
                words = {
                    "question": _edited(row.question, text),
                    "answer": _edited(row.answer, answer),
                }
                if not all(words.values()):
                    raise Refused(422, "question and answer must not be empty")
                if row.options and words["answer"] not in row.options:
                    raise Refused(422, f"the answer is none of {', '.join(row.options)}")
                if words != {"question": row.question, "answer": row.answer}:
                    new |= words | {"source": "person"}
            new |= {"version": base + 1, "by": who, "time": self._now()}
            c.execute(sa.update(t.questions).where(chosen).values(new))
            before = {
                name: getattr(row, name) for name in ("question", "answer", "state", "source")
            }
            self._log(c, who, verdict, f"question {question}", {"before": before})

    def ask(self, clip: int, question: Question, who: str):
        """Add a person's own question, which is accepted."""
        if not question.question.strip() or not question.answer.strip():
            raise Refused(422, "question and answer must not be empty")
        with self.database.write() as c:
            self._clip(c, clip)
            self._ask(c, clip, question, "accepted", who)
            self._log(c, who, "ask", f"clip {clip}", {"question": question.question})

    # ---- log and backup -------------------------------------------------------------------------

    def log(self, who: str, action: str, target: str = "", **detail):
        """Add an entry to the audit log."""
        with self.database.write() as c:
            self._log(c, who, action, target, detail)

    def audit(self, limit: int = 200, before: int | None = None) -> list[sa.Row]:
        """Return entries of the log, the latest first. before: only those of a smaller id."""
        query = sa.select(t.audit).order_by(t.audit.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(t.audit.c.id < before)
        with self.database.read() as c:
            return list(c.execute(query))

    def back_up(self, path: Path) -> int:
        """Write all tables but the sessions, of one moment, into a new SQLite file; count rows.

        The file is a project's database: use it in place of annotate.sqlite. UserError if it
        exists or cannot be written.
        """
        new = path.with_name(f"{path.name}.new")
        try:
            if os.path.lexists(path):
                raise UserError(f"backup: {path} exists; choose another file")
            path.parent.mkdir(parents=True, exist_ok=True)
            new.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"backup: {path} cannot be written ({error.strerror}); choose another file"
            ) from None
        copy, count = Database(str(new), accounts.METADATA, t.METADATA), 0
        names = {table.name for table in accounts.METADATA.sorted_tables} - {"sessions"}
        ours = [one for one in accounts.METADATA.sorted_tables if one.name in names]
        with self.database.read() as c, copy.write() as to:
            for table in (*ours, *t.METADATA.sorted_tables):
                result = c.execution_options(yield_per=1000).execute(sa.select(table))
                for part in result.mappings().partitions():
                    to.execute(sa.insert(table), [dict(row) for row in part])
                    count += len(part)
        with copy.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        copy.close()
        for end in ("-wal", "-shm"):
            new.with_name(new.name + end).unlink(missing_ok=True)
        new.replace(path)
        return count

    # ---- within a transaction -------------------------------------------------------------------

    def _log(self, c: sa.Connection, who: str, action: str, target: str, detail: dict):
        row = dict(time=self._now(), who=who, action=action, target=target, detail=detail)
        c.execute(sa.insert(t.audit).values(row))

    def _lock_seats(self, c: sa.Connection):
        """Let one transaction at a time decide who takes a clip, and what is agreed of it."""
        c.execute(sa.select(t.settings).where(t.settings.c.name == "project").with_for_update())

    def _clip(self, c: sa.Connection, clip: int) -> sa.Row:
        row = c.execute(sa.select(t.clips).where(t.clips.c.id == clip)).first()
        if row is None:
            raise Refused(404, "there is no such clip")
        return row

    def _set_clip(self, c: sa.Connection, clip: int, **values):
        c.execute(sa.update(t.clips).where(t.clips.c.id == clip).values(values))

    def _work(self, c: sa.Connection, work: int, annotator: str, lock: bool = False) -> Work:
        query = sa.select(t.works, t.clips.c.path, t.clips.c.name).join(t.clips)
        query = query.where(t.works.c.id == work, t.works.c.annotator == annotator)
        row = c.execute(query.with_for_update(of=t.works) if lock else query).first()
        if row is None:
            raise Refused(404, "you have no such work")
        return Work(*(getattr(row, name) for name in Work._fields))

    def _open_work(self, c: sa.Connection, work: int, annotator: str) -> Work:
        """Return a work that is not ended, with its lock renewed. Refused 409 if it was lost."""
        now = self._now()
        if self._work(c, work, annotator).locked_until < now:
            self._lock_seats(c)  # always before the row of a work, so that none waits for another
        found = self._work(c, work, annotator, lock=True)
        if found.stage not in STAGES:
            raise Refused(409, f"this clip is {found.stage}")
        if not self._keep(c, found, now):
            raise Refused(
                409, "the lock has expired and the clip was given to another annotator; what you "
                "saved before is kept",
            )  # fmt: skip
        return found

    def _keep(self, c: sa.Connection, work, now: float) -> bool:
        """Renew the lock of a work; false if it has expired and all seats are taken."""
        if work.locked_until < now:
            others = sa.select(sa.func.count()).select_from(t.works)
            others = others.where(
                t.works.c.clip == work.clip, t.works.c.id != work.id, _active(now)
            )
            if c.execute(others).scalar() >= self.settings.annotators:
                return False
        until = now + self.settings.lock
        c.execute(sa.update(t.works).where(t.works.c.id == work.id).values(locked_until=until))
        return True

    def _end(self, c: sa.Connection, work: int, stage: str, reason: str = ""):
        values = dict(stage=stage, ended=self._now(), reason=reason)
        c.execute(sa.update(t.works).where(t.works.c.id == work).values(values))

    def _stage(self, c: sa.Connection, work: int, stage: str) -> sa.Row | None:
        chosen = t.stages.c.work == work, t.stages.c.stage == stage
        return c.execute(sa.select(t.stages).where(*chosen)).first()

    def _set_stage(self, c: sa.Connection, work: int, stage: str, **values):
        chosen = t.stages.c.work == work, t.stages.c.stage == stage
        c.execute(sa.update(t.stages).where(*chosen).values(values))

    def _versions(self, c: sa.Connection, work: int, stage: str) -> list[sa.Row]:
        chosen = t.saves.c.work == work, t.saves.c.stage == stage
        return list(c.execute(sa.select(t.saves).where(*chosen).order_by(t.saves.c.version)))

    def _last(self, c: sa.Connection, work: int, stage: str) -> Saved:
        chosen = t.saves.c.work == work, t.saves.c.stage == stage
        query = sa.select(t.saves).where(*chosen)
        row = c.execute(query.order_by(t.saves.c.version.desc()).limit(1)).first()
        if row is None:
            return Saved(0, {}, {})
        newest = row.version
        if row.kind in ("undo", "redo"):  # the version before the chain of them
            query = sa.select(sa.func.max(t.saves.c.version)).where(*chosen)
            newest = c.execute(query.where(t.saves.c.kind.not_in(("undo", "redo")))).scalar()
        return Saved(
            row.version, row.value, row.seconds, row.kind, row.time, row.source > 1,
            row.kind in ("undo", "redo") and row.source < newest,
        )  # fmt: skip

    def _add(
        self, c: sa.Connection, work: int, stage: str, version: int, kind: str, value: dict,
        seconds: dict, source: int | None = None,
    ) -> Saved:  # fmt: skip
        row = dict(work=work, stage=stage, version=version, kind=kind, time=self._now())
        row |= dict(value=value, seconds=seconds, source=source or version)
        c.execute(sa.insert(t.saves).values(row))
        return self._last(c, work, stage)

    def _times(self, row: sa.Row, seconds: Any) -> dict[str, float]:
        """Return the seconds of each field; none can be longer than the stage is open."""
        limit = max(0.0, self._now() - row.opened)
        names = annotation.fields_of(row.stage)
        given = seconds if isinstance(seconds, dict) else {}
        return {
            name: round(min(max(float(one), 0.0), limit), 1)
            for name, one in given.items()
            if name in names and isinstance(one, int | float) and math.isfinite(one)
        }

    def _submitted(self, c: sa.Connection, found: Work, row: sa.Row, annotator: str):
        """Go on after the answer of the open stage: to the draft, the next stage, or the end."""
        now, stage = self._now(), row.stage
        if row.answered is None:
            self._set_stage(c, found.id, stage, answered=now)
            if row.drafts == "after" and self._draft(c, found.clip, stage) is not None:
                return
        self._set_stage(c, found.id, stage, done=now)
        ahead = _AHEAD[stage]
        if ahead != "done":
            c.execute(sa.update(t.works).where(t.works.c.id == found.id).values(stage=ahead))
            return
        self._end(c, found.id, "done")
        self._settle_if_complete(c, found.clip)

    def _settle_if_complete(self, c: sa.Connection, clip: int):
        done = sa.select(sa.func.count()).select_from(t.works)
        done = done.where(t.works.c.clip == clip, t.works.c.stage == "done")
        if c.execute(done).scalar() >= self.settings.annotators:
            self._settle(c, clip)

    def _settle(self, c: sa.Connection, clip: int):
        """Decide whether the answers of a clip agree; if so, they are what is agreed."""
        from ugc_jax.annotate.agreement import merge

        answers = self._answers(c, clip, finished=True)
        if disputes := self._disputes(answers):
            self._set_clip(c, clip, state="dispute")
            self._log(c, "", "dispute", f"clip {clip}", {"fields": disputes})
            return
        for stage in STAGES:
            value = annotation.to_json(merge([one.value for one in answers if one.stage == stage]))
            self._agree(c, clip, stage, value, "annotators", "")
        self._set_clip(c, clip, state="agreed")
        self._log(c, "", "agree", f"clip {clip}", {})

    def _disputes(self, answers: Sequence[Answer]) -> dict[str, tuple[str, ...]]:
        if len({one.annotator for one in answers}) < 2:
            return {}
        from ugc_jax.annotate import agreement

        threshold = self.settings.threshold
        found = agreement.measure(answers).disputes(
            agreement.DISPUTED if threshold is None else threshold
        )
        return {one.stage: tuple(one.fields) for one in found}

    def _disputed(self, c: sa.Connection, clip: int) -> dict[str, tuple[str, ...]]:
        return self._disputes(self._answers(c, clip, finished=True))

    def _answers(self, c: sa.Connection, clip: int | None, finished: bool = False) -> list[Answer]:
        latest = (
            sa.select(t.saves.c.work, t.saves.c.stage, sa.func.max(t.saves.c.id).label("id"))
            .where(t.saves.c.kind.in_(FINAL))
            .group_by(t.saves.c.work, t.saves.c.stage)
            .subquery()
        )
        query = (
            sa.select(t.saves, t.works.c.annotator, t.clips.c.name)
            .join(latest, latest.c.id == t.saves.c.id)
            .join(t.works, t.works.c.id == t.saves.c.work)
            .join(t.clips, t.clips.c.id == t.works.c.clip)
            .join(
                t.stages,
                (t.stages.c.work == t.saves.c.work) & (t.stages.c.stage == t.saves.c.stage),
            )
            .where(t.stages.c.done.is_not(None), t.works.c.stage != "skipped")
            .order_by(t.works.c.clip, t.works.c.id, t.saves.c.id)
        )
        if clip is not None:
            query = query.where(t.works.c.clip == clip)
        if finished:
            query = query.where(t.works.c.stage == "done")
        return [
            Answer(
                row.name,
                row.stage,
                row.annotator,
                annotation.read(row.stage, row.value),
                float(sum(row.seconds.values())),
            )  # fmt: skip
            for row in c.execute(query)
        ]

    def _draft(self, c: sa.Connection, clip: int, stage: str) -> dict | None:
        chosen = t.drafts.c.clip == clip, t.drafts.c.stage == stage
        return c.execute(sa.select(t.drafts.c.value).where(*chosen)).scalar()

    def _agree(self, c: sa.Connection, clip: int, stage: str, value: dict, origin: str, by: str):
        chosen = t.agreed.c.clip == clip, t.agreed.c.stage == stage
        last = c.execute(sa.select(sa.func.max(t.agreed.c.version)).where(*chosen)).scalar() or 0
        row = dict(clip=clip, stage=stage, version=last + 1, value=value, origin=origin, by=by)
        c.execute(sa.insert(t.agreed).values(time=self._now(), **row))

    def _agreed(self, c: sa.Connection, clip: int) -> dict[str, sa.Row]:
        query = sa.select(t.agreed).where(t.agreed.c.clip == clip).order_by(t.agreed.c.version)
        return {row.stage: row for row in c.execute(query)}

    def _count_agreed(self, c: sa.Connection, clip: int) -> int:
        query = sa.select(sa.func.count()).select_from(t.agreed).where(t.agreed.c.clip == clip)
        return c.execute(query).scalar()

    def _all_agreed(self, c: sa.Connection) -> dict[int, dict[str, Stage]]:
        found: dict[int, dict[str, Stage]] = {}
        for row in c.execute(sa.select(t.agreed).order_by(t.agreed.c.version)):
            found.setdefault(row.clip, {})[row.stage] = annotation.read(row.stage, row.value)
        return found

    def _questions(self, c: sa.Connection, clip: int) -> list[sa.Row]:
        return list(c.execute(sa.select(t.questions).where(t.questions.c.clip == clip)))

    def _ask(self, c: sa.Connection, clip: int, one: Question, state: str, who: str):
        row = dict(clip=clip, kind=one.kind, question=one.question, answer=one.answer)
        row |= dict(options=list(one.options), task=one.task, source=one.source, state=state)
        row |= dict(row=one.row)
        c.execute(sa.insert(t.questions).values(version=1, by=who, time=self._now(), **row))

    def _take_agreed(self, c: sa.Connection, clip: int, item: Agreed, counts: dict[str, int]):
        agreed = self._agreed(c, clip)
        for stage in STAGES:
            value = getattr(item, stage)
            if value is not None and stage not in agreed:
                self._agree(c, clip, stage, annotation.to_json(value), "import", "")
                counts["stages"] += 1
        asked = {(row.task, row.question) for row in self._questions(c, clip)}
        for one in item.questions:
            if (one.task, one.question) not in asked:
                self._ask(c, clip, one, "accepted", "")
                counts["questions"] += 1
        if set(self._agreed(c, clip)) == set(STAGES) and self._clip(c, clip).state == "ready":
            self._set_clip(c, clip, state="agreed")

    def _take_draft(self, c: sa.Connection, clip: int, stage: str, value: Stage, origin: str):
        chosen = t.drafts.c.clip == clip, t.drafts.c.stage == stage
        c.execute(sa.delete(t.drafts).where(*chosen))
        row = dict(clip=clip, stage=stage, value=annotation.to_json(value), origin=origin)
        c.execute(sa.insert(t.drafts).values(row))

    def _take_work(
        self, c: sa.Connection, clip: int, annotator: str, answers: Sequence[Answer]
    ) -> int:
        """Add an annotator's answers of a clip, in the order of the stages; count them."""
        chosen = t.works.c.clip == clip, t.works.c.annotator == annotator
        if c.execute(sa.select(t.works.c.id).where(*chosen)).first() is not None:
            return 0
        by_stage, now, stage = {one.stage: one for one in answers}, self._now(), "sound"
        values = dict(clip=clip, annotator=annotator, stage=stage, taken=now, locked_until=now)
        work = c.execute(sa.insert(t.works).values(values)).inserted_primary_key[0]
        count = 0
        while stage in by_stage:
            one = by_stage[stage]
            row = dict(work=work, stage=stage, drafts="never", opened=now, answered=now, done=now)
            c.execute(sa.insert(t.stages).values(row))
            seconds = {"caption": one.seconds}
            value = annotation.to_json(one.value)
            self._add(c, work, stage, 1, "import", value, seconds)
            stage, count = _AHEAD[stage], count + 1
        ended = now if stage == "done" else None
        chosen = t.works.c.id == work
        c.execute(sa.update(t.works).where(chosen).values(stage=stage, ended=ended))
        return count


def _active(now: float):
    """Whether a work has a seat: it is done, or open and locked."""
    open_ = t.works.c.stage.in_(STAGES) & (t.works.c.locked_until >= now)
    return (t.works.c.stage == "done") | open_


def _check_follows(last: Saved, base: int):
    """Refuse (409) a change that does not follow the last version."""
    if base != last.version:
        raise Refused(
            409, "the clip was changed in another window; load the page again",
            version=last.version, value=last.value,
        )  # fmt: skip


def _check_reached(work: Work, stage: str):
    order = (*STAGES, "done", "skipped")
    if stage not in STAGES:
        raise Refused(404, f"there is no such stage; stages are {', '.join(STAGES)}")
    if order.index(stage) > order.index(work.stage) or work.stage == "skipped":
        raise Refused(403, f"stage {stage} opens when stage {work.stage} is done")


def _check_form(stage: str, value: Any):
    """Refuse what no page of ours sends: a draft is incomplete, but has the fields of its stage."""
    if stage not in STAGES:
        raise Refused(404, f"there is no such stage; stages are {', '.join(STAGES)}")
    if not isinstance(value, dict) or not set(value) <= set(annotation.fields_of(stage)):
        raise Refused(422, f"stage {stage} has the fields {', '.join(annotation.fields_of(stage))}")
    if fault := text_fault(value):
        raise Refused(422, fault)


def text_fault(value: Any) -> str | None:
    """Return why a JSON value cannot be stored in every database; None if it can."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, RecursionError):
        return "holds what is no text and no number of standard JSON"
    has_null = "\\u0000" in text.replace("\\\\", "")  # not a backslash that is followed by u0000
    return "holds the character U+0000; remove it" if has_null else None


def _complete(stage: str, value: Any) -> dict:
    """Return the value of a complete answer. Refused 422, which names the field."""
    try:
        read = annotation.read(stage, value)
    except ValueError as error:
        raise Refused(422, str(error), field=str(error).split(":")[0].split(" ")[0]) from None
    if not read.caption:
        raise Refused(422, "caption: is empty; describe what there is", field="caption")
    return annotation.to_json(read)


def _question(row: sa.Row) -> Question:
    words = row.question, row.answer, tuple(row.options), row.task, row.source, row.row
    return Question(row.name, row.kind, *words)


def _edited(before: str, given: str | None) -> str:
    """The text of a form; the one before to the letter, unless more than its ends differ."""
    if given is None or given.split() == before.split():
        return before
    return given.strip()
