"""Captions whose words a checkpoint finds neither heard nor seen are asked again, then rejected."""

from label_job import known

from ugc_jax.generate.evidence import Explanation, Word
from ugc_jax.jobs import label as jobs_label
from ugc_jax.label import verify
from ugc_jax.label.material import digest_of
from ugc_jax.label.settings import VerifyConfig
from ugc_jax.label.support import Support, Supporter
from ugc_jax.toy.teacher import Teacher
from ugc_jax.words import WORD


class FakeEngine:
    """Finds every word seen, but for the last one of captions of one clip; notes its texts."""

    def __init__(self, doubted: str):
        self.doubted, self.texts = doubted, []

    def explain(self, videos, captions, **options):
        self.texts += captions
        assert options == {"fps": 2.0, "workers": 1}
        told = []
        for video, text in zip(videos, captions, strict=True):
            found = [(match[0], *match.span()) for match in WORD.finditer(text)]
            verdicts = ["seen"] * len(found)
            if self.doubted in video:
                verdicts[-1] = "unsupported"
            words = [
                Word(*word, (0.0, 0.0, 0.0, 0.0), verdict, True)
                for word, verdict in zip(found, verdicts, strict=True)
            ]
            told.append(Explanation(video, text, tuple(words)))
        return told


def test_unsupported_words_are_asked_again_then_rejected(job, clips, monkeypatch):
    paths = [str(clips.parent / f"train/{number:06}.mp4") for number in range(3)]
    engine = FakeEngine(digest_of(paths[1]))

    def make(config, places):
        assert config.verify.explain_with == "checkpoint"
        cache = places.beside("evidence.jsonl")
        return Supporter(lambda: engine, "w", cache, {"fps": 2.0}, {"workers": 1})

    monkeypatch.setattr(jobs_label, "make_supporter", make)
    with Teacher(known(clips), errors=0.0) as teacher:
        done = job(teacher)
        done.words[1:2] = paths
        flags = ["--explain_with", "checkpoint", "--unsupported", "0.01"]
        assert done.run(*flags) == 0
        assert [row["videos"][0] for row in done.rows()] == [paths[0], paths[2]]
        assert [row["label"]["checks"]["unsupported"] for row in done.rows()] == [0, 0]
        (rejected,) = done.rows("rejected.jsonl")
        caption = rejected["solution"]
        last = WORD.findall(caption)[-1]
        count = len(WORD.findall(caption))
        reason = (
            f"evidence: neither sound nor picture supports {100 / count:.0f} % of the caption's "
            f"words ({last}); at most 1 % may be so"
        )
        assert rejected["reason"] == reason
        (again,) = rejected["label"]["checks"]["asked_again"]
        assert again["pass"] == "both"
        assert again["reason"].startswith("evidence: ")
        # A further run takes what was found, and a larger share is allowed without asking anything.
        asked, explained = len(teacher.requests), len(engine.texts)
        assert done.run(*flags) == 0
        assert done.rows("rejected.jsonl") == [rejected]
        assert done.run(*flags[:2], "--unsupported", "0.5") == 0
        assert len(done.rows()) == 3
        assert (len(teacher.requests), len(engine.texts)) == (asked, explained)


def test_the_share_that_is_allowed():
    config = VerifyConfig(unsupported=0.25)
    found = verify.check_support(Support(0.25, ("red",)), config)
    assert (found.faults, found.checks) == ([], {"unsupported": 0.25})
    (fault,) = verify.check_support(Support(0.26, ("red",) * 3), config).faults
    assert "26 % of the caption's words (red); at most 25 %" in fault.detail
