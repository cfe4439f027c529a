"""ugc_jax.annotate.store: seats, locks, versions, what is agreed; on SQLite and Postgres."""

import json
import threading

import pytest
import sqlalchemy as sa
from fake_annotation import BOTH, PICTURE, SOUND, VALUES, Clock, annotate, project
from postgres import server

from ugc_jax.annotate import tables
from ugc_jax.annotate.answers import Agreed, Answer, Question
from ugc_jax.annotate.imports import Imported
from ugc_jax.annotate.store import Refused, Store
from ugc_jax.data import annotation
from ugc_jax.errors import UserError


@pytest.fixture(scope="module")
def postgres():
    with server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "annotate.sqlite")
    address = request.getfixturevalue("postgres")
    engine = sa.create_engine(address.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()
    return address


@pytest.fixture
def clock() -> Clock:
    return Clock()


def refusal(status: int, words: str):
    return pytest.raises(Refused, match=words, check=lambda error: error.status == status)


def test_a_clip_through_three_stages(url, clock):
    store = project(url, clock)
    work = store.next_work("anna")
    for stage, ahead in (("sound", "picture"), ("picture", "both"), ("both", "done")):
        assert store.work(work, "anna").stage == stage
        store.open_stage(work, "anna", stage)
        clock.now += 60
        store.save(work, "anna", stage, 0, {"caption": "half"}, {"caption": 20})
        seconds = {"caption": 40.04, "nothing": 5, "music": 1e9}
        saved = store.save(work, "anna", stage, 1, VALUES[stage], seconds, "submit")
        assert (saved.version, saved.kind, saved.value) == (2, "submit", VALUES[stage])
        assert saved.seconds["caption"] == 40.0
        assert saved.seconds.get("music", 60) == 60  # not longer than the stage is open
        assert set(saved.seconds) <= set(annotation.fields_of(stage))
        assert store.work(work, "anna").stage == ahead
    (agreed,) = store.agreed()
    read = {stage: annotation.read(stage, value) for stage, value in VALUES.items()}
    assert agreed == Agreed("clip-1", "clip-1.mp4", **read)
    assert [answer.value for answer in store.answers()] == list(read.values())
    assert [answer.seconds for answer in store.answers()] == [100.0, 40.0, 40.0]
    assert [row.state for row in store.clips()] == ["agreed", "ready", "ready"]
    store.close()


def test_stages_cannot_be_skipped(url, clock):
    store = project(url, clock)
    work = store.next_work("anna")
    for stage in ("picture", "both"):
        with refusal(403, f"stage {stage} opens when stage sound is done"):
            store.open_stage(work, "anna", stage)
        with refusal(403, f"stage {stage} opens when"):
            store.save(work, "anna", stage, 0, VALUES[stage], {}, "submit")
        with refusal(403, "not open in stage sound"):
            store.may_have(work, "anna", stage)
    with refusal(404, "no such stage"):
        store.save(work, "anna", "done", 0, {}, {})
    store.open_stage(work, "anna", "sound")
    store.save(work, "anna", "sound", 0, SOUND, {}, "submit")
    assert store.may_have(work, "anna", "picture")
    with refusal(403, "not open in stage picture"):
        store.may_have(work, "anna", "sound")
    with refusal(403, "is not open"):  # corrections belong to the last stage
        store.save(work, "anna", "sound", 1, SOUND, {}, "submit")
    with refusal(404, "no such work"):
        store.work(work, "bert")
    with refusal(404, "no such work"):
        store.save(work, "bert", "picture", 0, PICTURE, {})
    store.close()


@pytest.mark.parametrize(
    ("stage", "value", "words"),
    [
        ("sound", {**SOUND, "tone": "Glad"}, "tone: 'Glad' is none of"),
        ("sound", {"tone": "Positive"}, "voice_source is missing"),
        ("sound", {**SOUND, "caption": "  "}, "caption: is empty"),
        ("sound", {**SOUND, "role": "owner"}, "has the fields"),
        ("sound", [], "has the fields"),
        ("sound", {**SOUND, "sounds": [{"what": "x", "start": -1}]}, "is not a time"),
    ],
)
def test_incomplete_answers(tmp_path, stage, value, words):
    store = project(str(tmp_path / "a.sqlite"))
    work = store.next_work("anna")
    store.open_stage(work, "anna", stage)
    with refusal(422, words):
        store.save(work, "anna", stage, 0, value, {}, "submit")
    assert store.last(work, stage).version == 0
    store.close()


def test_no_save_replaces_another_unseen(url, clock):
    store = project(url, clock)
    work = store.next_work("anna")
    store.open_stage(work, "anna", "sound")
    store.save(work, "anna", "sound", 0, {"caption": "first window"}, {})
    with refusal(409, "another window") as raised:
        store.save(work, "anna", "sound", 0, {"caption": "second window"}, {})
    assert raised.value.detail == {"version": 1, "value": {"caption": "first window"}}
    store.close()


def test_of_many_saves_at_once_one_wins(url):
    store = project(url)
    work = store.next_work("anna")
    store.open_stage(work, "anna", "sound")
    outcomes, conflicts, start = [], [], threading.Barrier(8)

    def save(number: int):
        start.wait()
        try:
            store.save(work, "anna", "sound", 0, {"caption": str(number)}, {})
            outcomes.append(number)
        except Refused as refused:
            conflicts.append(refused.status)

    threads = [threading.Thread(target=save, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(outcomes), conflicts) == (1, [409] * 7)
    assert store.last(work, "sound").value == {"caption": str(outcomes[0])}
    store.close()


def test_no_two_take_one_seat(url):
    store, taken, start = project(url, clips=4, annotators=2), [], threading.Barrier(12)

    def take(number: int):
        start.wait()
        taken.append(store.next_work(f"annotator-{number}"))

    threads = [threading.Thread(target=take, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(filter(None, taken)) == sorted(set(filter(None, taken)))
    assert len([one for one in taken if one]) == 8
    assert {row.open for row in store.clips()} == {2}
    store.close()


def test_two_clips_of_one_id_are_told_before_the_work(tmp_path):
    store = Store(str(tmp_path / "a.sqlite"))
    with pytest.raises(UserError, match=r"a/x\.mp4 and b/x\.mp4: two clips with the id x; rename"):
        store.add_clips(["a/x.mp4", "b/x.mp4"])
    assert store.clips() == []
    store.add_clips(["a/x.mp4"])
    with pytest.raises(UserError, match=r"a/x\.mp4 and x\.mov: two clips with the id x; rename"):
        store.add_clips(["a/x.mp4", "x.mov"])
    store.close()


def test_a_clip_that_was_moved_keeps_its_work(url, clock):
    store = project(url, clock, clips=2)
    annotate(store, "anna")
    store.add_clips(["in/clip-1.mp4", "clip-2.mp4"])
    assert [(row.id, row.path, row.state) for row in store.clips()] == [
        (1, "in/clip-1.mp4", "agreed"), (2, "clip-2.mp4", "ready"),
    ]  # fmt: skip
    assert [one.path for one in store.agreed()] == ["in/clip-1.mp4"]
    entry = next(row for row in store.audit() if row.action == "move")
    assert entry.detail == {"from": "clip-1.mp4", "to": "in/clip-1.mp4"}
    store.close()


def test_answers_that_came_before_the_media_are_settled(url, clock):
    store = Store(url, {"annotators": 2}, clock)
    store.add_clips(["clip-1.mp4", "clip-2.mp4"])
    said = {stage: annotation.read(stage, value) for stage, value in VALUES.items()}
    other = {**said, "sound": annotation.read("sound", SOUND | {"tone": "Positive"})}
    answers = [
        Answer(clip, stage, name, value, 1.0)
        for clip, second in (("clip-1", said), ("clip-2", other))
        for name, values in (("anna", said), ("bert", second))
        for stage, value in values.items()
    ]
    store.take_in(Imported((), {}, tuple(answers)), "export")
    for clip, _ in store.waiting():
        store.prepared(clip)
    assert [row.state for row in store.clips()] == ["agreed", "dispute"]
    store.prepared(2)  # its media were made again
    assert [row.state for row in store.clips()] == ["agreed", "dispute"]
    store.close()


def test_a_lock_expires(url, clock):
    store = project(url, clock, clips=1, lock=600)
    work = store.next_work("anna")
    store.open_stage(work, "anna", "sound")
    assert store.next_work("bert") is None
    clock.now += 599
    store.save(work, "anna", "sound", 0, {"caption": "a"}, {})  # renews the lock
    clock.now += 599
    assert store.next_work("bert") is None
    clock.now += 2
    store.save(work, "anna", "sound", 1, {"caption": "b"}, {})  # late, but nobody took it
    clock.now += 601
    other = store.next_work("bert")
    assert other not in (None, work)
    with refusal(409, "the lock has expired and the clip was given to another"):
        store.save(work, "anna", "sound", 2, {"caption": "c"}, {})
    with refusal(409, "the lock has expired"):
        store.open_stage(work, "anna", "sound")
    assert store.next_work("anna") is None
    store.skip(other, "bert", "I know the speaker")
    assert store.next_work("anna") == work  # what she saved is there
    assert store.last(work, "sound").value == {"caption": "b"}
    store.close()


def test_skipping(url, clock):
    store = project(url, clock, clips=1)
    work = store.next_work("anna")
    for reason, words in (("  ", "say why"), ("x" * 501, "longer than 500")):
        with refusal(422, words):
            store.skip(work, "anna", reason)
    store.skip(work, "anna", " no sound at all ")
    assert store.works("anna")[0].reason == "no sound at all"
    with refusal(403, "opens when"):
        store.open_stage(work, "anna", "sound")
    assert store.next_work("anna") is None
    assert annotate(store, "bert")
    store.close()


def test_undo_and_redo(url, clock):
    store = project(url, clock)
    work = store.next_work("anna")
    store.open_stage(work, "anna", "sound")
    with refusal(409, "nothing to undo"):
        store.step(work, "anna", "sound", 0, back=True)
    for number, text in enumerate("abc"):
        store.save(work, "anna", "sound", number, {"caption": text}, {})

    def step(back: bool) -> str:
        saved = store.last(work, "sound")
        return store.step(work, "anna", "sound", saved.version, back).value["caption"]

    assert [step(True), step(True)] == ["b", "a"]
    assert not store.last(work, "sound").can_undo
    assert [step(False), step(False)] == ["b", "c"]
    with refusal(409, "nothing to redo"):
        step(False)
    assert step(True) == "b"
    last = store.last(work, "sound")
    saved = store.save(work, "anna", "sound", last.version, {"caption": "d"}, {})
    assert not saved.can_redo
    assert [step(True), step(True)] == ["b", "c"]  # also what was undone is a version
    store.close()


@pytest.mark.parametrize("drafts", ["first", "after", "never"])
def test_when_the_teacher_speaks_is_recorded(url, clock, drafts):
    store = project(url, clock, clips=1, drafts=drafts)
    said = annotation.read("sound", {**SOUND, "caption": "The teacher's."})
    labelled = Imported((Agreed("clip-1", "clip-1.mp4"),), {"sound": {"clip-1": said}})
    counts = store.take_in(labelled, "labels.jsonl")
    assert counts == {"clips": 1, "stages": 0, "questions": 0, "drafts": 1, "answers": 0}
    work = store.next_work("anna")
    row = store.open_stage(work, "anna", "sound")
    assert (row.drafts, row.draft_shown is not None) == (drafts, drafts == "first")
    store.save(work, "anna", "sound", 0, SOUND, {}, "submit")
    if drafts == "after":
        assert store.work(work, "anna").stage == "sound"
        assert store.answers() == []  # the stage is not done
        assert store.open_stage(work, "anna", "sound").draft_shown is not None
        changed = {**SOUND, "caption": "Changed after the draft."}
        store.save(work, "anna", "sound", 1, changed, {}, "submit")
        assert [row.kind for row in store.history(work)] == ["submit", "revise"]
        assert [row.value["caption"] for row in store.history(work)][0] == SOUND["caption"]
    assert store.work(work, "anna").stage == "picture"
    shown = [row.detail for row in store.audit() if row.action == "draft"]
    assert shown == ([] if drafts == "never" else [{"stage": "sound", "as": drafts}])
    store.close()


def test_corrections_keep_the_history(url, clock):
    store = project(url, clock, clips=1)
    work = store.next_work("anna")
    for stage in ("sound", "picture"):
        store.open_stage(work, "anna", stage)
        store.save(work, "anna", stage, 0, VALUES[stage], {}, "submit")
    store.open_stage(work, "anna", "both")
    changed = {**SOUND, "voice_source": "In-Video Voice"}
    store.save(work, "anna", "sound", 1, changed, {}, "submit")
    assert store.work(work, "anna").stage == "both"
    store.save(work, "anna", "both", 0, BOTH, {}, "submit")
    rows = [(row.stage, row.kind, row.version) for row in store.history(work)]
    assert rows == [
        ("sound", "submit", 1), ("picture", "submit", 1), ("sound", "correct", 2),
        ("both", "submit", 1),
    ]  # fmt: skip
    assert store.agreed()[0].sound.voice_source == "In-Video Voice"
    store.close()


OTHER = {
    "sound": {**SOUND, "voice_source": "None", "tone": "Negative", "caption": "Wind and a dog."},
    "picture": {**PICTURE, "text": ["NEW"], "caption": "A green field."},
    "both": {"caption": "Something else entirely."},
}


def test_disputes_go_to_the_adjudicator(url, clock):
    store = project(url, clock, clips=2, annotators=2)
    annotate(store, "anna")
    assert [row.state for row in store.clips()] == ["ready", "ready"]
    annotate(store, "bert")  # takes the clip that is begun
    annotate(store, "anna")
    annotate(store, "bert", OTHER)
    assert [row.state for row in store.clips()] == ["agreed", "dispute"]
    fields = store.disputes(2)
    assert set(fields["sound"]) == {"voice_source", "tone"}  # not music and sounds, equal in both
    assert "text" in fields["picture"]
    assert "objects" not in fields["picture"]
    with refusal(409, "annotators are not done"):
        project(url, clock, clips=3, annotators=2).decide(3, "chef", VALUES, 0)
    with refusal(422, "give all stages"):
        store.decide(2, "chef", {"sound": SOUND}, 0)
    store.decide(2, "chef", OTHER | {"both": BOTH}, 0)
    with refusal(409, "another adjudicator"):
        store.decide(2, "eve", VALUES, 0)
    assert store.agreed()[1].both.caption == BOTH["caption"]
    store.decide(2, "eve", VALUES, 3)
    rows = store.agreed_of(2)
    assert {stage: (row.version, row.by) for stage, row in rows.items()} == {
        "sound": (2, "eve"), "picture": (2, "eve"), "both": (1, "chef"),
    }  # fmt: skip
    store.close()


def question(text: str, answer: str = "Yes", **fields) -> Question:
    return Question("clip-1", "sound", text, answer, ("Yes", "No"), **fields)


def test_questions(url, clock):
    store = project(url, clock, clips=1)
    annotate(store, "anna")
    assert store.propose(1, [question("Is there music?"), question("A voice?")], "owner") == 2
    assert store.propose(1, [question("Is there music?")], "owner") == 0
    music, voice = store.questions(1)
    store.judge(music.id, "chef", 1, "accept")
    with refusal(409, "changed meanwhile"):
        store.judge(music.id, "eve", 1, "reject")
    with refusal(422, "none of Yes, No"):
        store.judge(voice.id, "chef", 1, "accept", "A voice?", "Perhaps")
    with refusal(422, "must not be empty"):
        store.judge(voice.id, "chef", 1, "accept", " ", "No")
    with refusal(404, "no such question"):
        store.judge(99, "chef", 1, "accept")
    store.judge(voice.id, "chef", 1, "accept", "Is there a voice?", "No")
    store.judge(voice.id, "chef", 2, "reject")
    store.judge(voice.id, "chef", 3, "accept")
    store.ask(1, Question("clip-1", "cross", "What rings?", "a bell", source="person"), "chef")
    assert store.agreed()[0].questions == (
        question("Is there music?"),
        question("Is there a voice?", "No", source="person"),
        Question("clip-1", "cross", "What rings?", "a bell", source="person"),
    )
    entry = next(row for row in store.audit() if row.detail.get("before", {}).get("answer") == "Yes"
                 and row.target == f"question {voice.id}")  # fmt: skip
    assert entry.detail["before"]["question"] == "A voice?"
    store.close()


def test_import_of_clips_without_files(url, clock):
    store = project(url, clock, clips=1)
    item = Agreed("other", "videos/other.mp4", both=annotation.read("both", BOTH))
    store.take_in(Imported((item, Agreed("clip-1", "elsewhere/clip-1.mp4"))), "qa")
    assert [(row.path, row.state) for row in store.clips()] == [
        ("clip-1.mp4", "ready"), ("videos/other.mp4", "absent"),
    ]  # fmt: skip
    assert store.agreed() == [item]
    store.add_clips(["videos/other.mp4"])
    assert store.waiting() == [(2, "videos/other.mp4")]
    store.close()


def test_an_export_imported_into_another_project(url, clock, tmp_path):
    from ugc_jax.annotate import exports, imports

    store = project(str(tmp_path / "first.sqlite"), clock, annotators=2, clips=2)
    for name in ("anna", "bert"):
        annotate(store, name)
    work = store.next_work("anna")
    store.open_stage(work, "anna", "sound")
    store.save(work, "anna", "sound", 0, SOUND, {"tone": 2.5}, "submit")
    store.propose(1, [question("Is there music?")], "owner")
    store.judge(store.questions()[0].id, "owner", 1, "accept")
    exports.write(tmp_path / "export", store.agreed(), store.answers())
    other = project(url, clock, annotators=2, clips=2)
    for count in (7, 0):
        counts = other.take_in(imports.read(tmp_path / "export"), "export")
        assert counts["answers"] == count
    assert other.agreed() == store.agreed()
    assert other.answers() == store.answers()
    assert [row.state for row in other.clips()] == ["agreed", "ready"]
    assert other.next_work("anna") is not None  # goes on with the second stage of her clip
    store.close()
    other.close()


def test_released_files_through_a_project_are_equal(shared_data, tmp_path):
    from ugc_jax.annotate import exports, imports

    released = shared_data / "ugc_videocap" / "qa"
    store = Store(str(tmp_path / "a.sqlite"))
    counts = store.take_in(imports.read(released), "released")
    assert counts["clips"] >= 999
    store.close()
    store = Store(str(tmp_path / "a.sqlite"))
    exports.write(tmp_path / "export", store.agreed(), store.answers())
    store.close()
    names = sorted(file.name for file in released.iterdir() if file.suffix in (".json", ".jsonl"))
    assert len(names) == 9
    for name in names:
        before, after = (folder / name for folder in (released, tmp_path / "export" / "qa"))
        if name.endswith(".json"):
            assert json.loads(after.read_text()) == json.loads(before.read_text()), name
        else:
            rows = [
                [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
                for file in (before, after)
            ]
            assert rows[1] == rows[0], name


def test_backup_is_a_project(url, clock, tmp_path):
    store = project(url, clock)
    store.accounts.add("anna", "a long password", "owner")
    token = store.accounts.log_in(store.accounts.check("anna", "a long password"))
    annotate(store, "anna")
    path = tmp_path / "backup" / "copy.sqlite"
    assert store.back_up(path) > 10
    with pytest.raises(UserError, match=r"copy\.sqlite exists"):
        store.back_up(path)
    assert [file.name for file in path.parent.iterdir()] == ["copy.sqlite"]
    with pytest.raises(UserError, match=r"copy\.sqlite/second cannot be written"):
        store.back_up(path / "second")
    copy = Store(str(path), {}, clock)
    assert copy.agreed() == store.agreed()
    assert copy.audit() == store.audit()
    assert copy.accounts.check("anna", "a long password").role == "owner"
    assert copy.accounts.who(token) is None
    assert annotate(copy, "anna") == 2  # numbers go on
    store.close()
    copy.close()


def test_settings_are_recorded_when_they_change(url, clock):
    project(url, clock).close()
    project(url, clock).close()
    project(url, clock, drafts="never").close()
    store = project(url, clock)
    assert store.settings.drafts == "never"
    found = [row.detail["drafts"] for row in store.audit() if row.action == "settings"]
    assert found == ["never", "after"]
    store.close()


def test_fewer_annotators_are_enough_from_now_on(url, clock):
    store = project(url, clock, clips=1, annotators=2)
    annotate(store, "anna")
    assert store.agreed() == []
    store.close()
    store = project(url, clock, clips=1, annotators=1)
    assert [row.state for row in store.clips()] == ["agreed"]
    store.close()


def test_a_clip_that_was_imported_in_part_is_annotated(url, clock):
    store = Store(url, {}, clock)
    item = Agreed("a", "a.mp4", both=annotation.read("both", BOTH))
    whole = Agreed("b", "b.mp4", *(annotation.read(one, VALUES[one]) for one in VALUES))
    store.take_in(Imported((item, whole)), "export")
    store.add_clips(["a.mp4", "b.mp4"])
    for clip, _ in store.waiting():
        store.prepared(clip)
    assert [row.state for row in store.clips()] == ["ready", "agreed"]
    store.close()


def test_a_database_that_cannot_be_opened(tmp_path):
    (tmp_path / "x").write_text("not a database, " * 100)
    for url, words in (
        (str(tmp_path / "x"), "file is not a database"),
        (str(tmp_path / "no" / "x"), "unable to open"),
        ("mysql://localhost/x", "mysql is not supported"),
        ("postgresql://anna:secret@127.0.0.1:1/x", "cannot be opened"),
        ("://anna:secret@x", "not an address"),
    ):
        with pytest.raises(UserError, match=words) as raised:
            Store(url)
        assert "secret" not in str(raised.value)


def test_every_value_is_standard_json(tmp_path):
    store = project(str(tmp_path / "a.sqlite"))
    annotate(store, "anna")
    with store.database.read() as connection:
        for row in connection.execute(sa.select(tables.saves)):
            json.dumps(row.value, allow_nan=False)
    store.close()
