"""The tables of a project. Times are seconds since 1970; JSON columns hold what `annotation` reads.

`saves`, `agreed` and `audit` are only ever added to: every state that was acknowledged can be read.
"""

import sqlalchemy as sa

METADATA = sa.MetaData()
JSON = sa.JSON(none_as_null=True)


def _table(name: str, *columns) -> sa.Table:
    return sa.Table(name, METADATA, *columns)


def _id() -> sa.Column:
    return sa.Column("id", sa.Integer, primary_key=True, autoincrement=True)


def _text(name: str, **options) -> sa.Column:
    return sa.Column(name, sa.Text, nullable=False, **options)


def _time(name: str = "time", nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.Double, nullable=nullable)


def _clip() -> sa.Column:
    return sa.Column("clip", sa.ForeignKey("clips.id"), nullable=False, index=True)


# Its row "project" is also locked by who takes a seat, so that no two take the same.
settings = _table("settings", sa.Column("name", sa.String(64), primary_key=True), _text("value"))

# state: "waiting" for its media, "broken", "ready" to be annotated, "dispute", "agreed"; "absent"
# for one that was imported without its file. path: within the folder of clips. name: its id.
clips = _table(
    "clips",
    _id(),
    _text("path", unique=True),
    sa.Column("name", sa.Text, nullable=False, index=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    _text("note", default=""),
    _time("added"),
)

# One annotator's work on one clip. stage: the open one of STAGES, or "done", or "skipped".
works = _table(
    "works",
    _id(),
    _clip(),
    sa.Column("annotator", sa.String(64), nullable=False, index=True),
    sa.Column("stage", sa.String(16), nullable=False),
    _time("locked_until"),
    _time("taken"),
    _time("ended", nullable=True),
    _text("reason", default=""),
    sa.UniqueConstraint("clip", "annotator"),
)

# A stage of a work. drafts: the setting under which it was opened. draft_shown: when the teacher's
# draft was. answered: when the own answer was submitted; done: when the stage was left.
stages = _table(
    "stages",
    sa.Column("work", sa.ForeignKey("works.id"), primary_key=True),
    sa.Column("stage", sa.String(16), primary_key=True),
    sa.Column("drafts", sa.String(16), nullable=False),
    _time("opened"),
    _time("draft_shown", nullable=True),
    _time("answered", nullable=True),
    _time("done", nullable=True),
)

# kind: "autosave", "submit", "revise" (after the draft), "correct" (in stage both), "undo", "redo",
# "import".
# source: of an undo or redo, the version whose value it has; else its own. seconds: by field.
saves = _table(
    "saves",
    _id(),
    sa.Column("work", sa.ForeignKey("works.id"), nullable=False),
    sa.Column("stage", sa.String(16), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("source", sa.Integer, nullable=False),
    _time(),
    sa.Column("value", JSON, nullable=False),
    sa.Column("seconds", JSON, nullable=False),
    sa.UniqueConstraint("work", "stage", "version"),
)

# What a teacher said of a stage.
drafts = _table(
    "drafts",
    _id(),
    _clip(),
    sa.Column("stage", sa.String(16), nullable=False),
    sa.Column("value", JSON, nullable=False),
    _text("origin"),
    sa.UniqueConstraint("clip", "stage"),
)

# What holds of a stage. origin: "annotators", "adjudicator", "import".
agreed = _table(
    "agreed",
    _id(),
    _clip(),
    sa.Column("stage", sa.String(16), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("value", JSON, nullable=False),
    sa.Column("origin", sa.String(16), nullable=False),
    sa.Column("by", sa.String(64), nullable=False),
    _time(),
    sa.UniqueConstraint("clip", "stage", "version"),
)

# state: "proposed", "accepted" (as it is or edited), "rejected". row: as of answers.Question.
questions = _table(
    "questions",
    _id(),
    _clip(),
    sa.Column("kind", sa.String(16), nullable=False),
    _text("question"),
    _text("answer"),
    sa.Column("options", JSON, nullable=False),
    sa.Column("task", sa.String(32), nullable=False),
    sa.Column("source", sa.String(16), nullable=False),
    sa.Column("row", sa.Integer, nullable=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("by", sa.String(64), nullable=False),
    _time(),
)

audit = _table(
    "audit",
    _id(),
    _time(),
    sa.Column("who", sa.String(64), nullable=False),
    sa.Column("action", sa.String(32), nullable=False, index=True),
    _text("target", default=""),
    sa.Column("detail", JSON, nullable=False),
)
