"""ugc_jax.report.page and jobs/report.py: results become one page that holds all of them."""

import html.parser
import json
import re

import pytest
from fake_results import DISPLAYS, NASTY, captions, options, result, world

from ugc_jax.errors import UserError
from ugc_jax.jobs import report as job
from ugc_jax.report import page as report
from ugc_jax.report.pictures import Album, Picture

RATINGS = [(4, 4, 4), (2, 2, 2), None, (5, 1, 3)]


class Page(html.parser.HTMLParser):
    """Elements, and text by element; `data` is what the script reads."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.texts, self._open = [], [], ""
        self.feed(text)
        self.data = json.loads(self.in_element("script")[0])

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._open = tag

    def handle_data(self, data):
        self.texts.append((self._open, data))

    def in_element(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag and text.strip()]


def page(*results: dict, album: Album | None = None) -> Page:
    return Page(report.make_page(results, album, DISPLAYS))


@pytest.fixture
def one() -> dict:
    return options(captions("One", RATINGS), "tone", ["Yes", "No"], ["Yes", None])


def test_whatever_a_model_says_stays_text(one):
    one["name"] = one["sources"]["qa"] = NASTY
    clip = one["clips"]["final_caption"][0]
    clip |= {"id": NASTY, "reference": NASTY, "prediction": NASTY, "note": NASTY}
    one["tasks"]["final_caption"] |= {"metric": NASTY, "notes": [NASTY], "flags": [NASTY]}
    one["clips"]["tone"][0]["said"] = NASTY
    one["tasks"]["tone"]["confusion"]["said"] = ["Yes", NASTY, "other"]
    one["faults"] = {"duplicate": 1, "unknown": 0, "broken": 0, "listed": [NASTY]}
    made = page(one)
    assert [tag for tag, _ in made.elements].count("script") == 2
    assert not [tag for tag, _ in made.elements if tag == "img"]
    assert not [name for _, attributes in made.elements for name in attributes if name[:2] == "on"]
    row = made.data["tasks"][1]["clips"][0]
    assert row["id"] == row["reference"] == row["of"][0]["prediction"] == NASTY


def test_the_page_asks_for_nothing(one):
    made = page(one, world("W", [[], ["shape"]]))
    links = [a.get("href") or a.get("src") or a.get("xlink:href") for _, a in made.elements]
    assert all(link.startswith(("#", "data:")) for link in links if link)
    (policy,) = [a["content"] for _, a in made.elements if "http-equiv" in a]
    assert policy.startswith("default-src 'none'")
    ids = [attributes["id"] for _, attributes in made.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_two_clips_of_one_id_are_shown_apart(one):
    two = captions("Two", RATINGS)
    two["clips"]["final_caption"][1]["reference"] = "another video"
    clips = page(one, two).data["tasks"][1]["clips"]
    rows = [clip for clip in clips if clip["id"] == "clip-1"]
    assert [row["reference"] for row in rows] == ["word word", "another video"]
    assert [[outcome is not None for outcome in row["of"]] for row in rows] == [
        [True, False],
        [False, True],
    ]
    assert len(clips) == len(RATINGS) + 1


def test_clips_of_all_results(one):
    two = captions("One", [(3, 3, 3), None])
    two["clips"]["final_caption"][0]["score"] = float("nan")
    made = page(one, two)
    data = made.data
    assert data["results"] == ["One", "One (2)"]
    assert data["main"] == "final_caption"
    tone, caption = data["tasks"]
    assert (tone["name"], tone["results"], tone["columns"]) == ("tone", [0], [])
    assert caption["columns"] == [["visual", "visual"], ["audio", "audio"], ["details", "details"]]
    first, _, third, _ = caption["clips"]
    assert first["reference"] == "word"
    assert first["of"][0]["score"] == 80
    assert "score" not in first["of"][1]  # not a number
    assert third["of"] == [{"failure": "missing"}, None]
    assert tone["clips"][0]["of"] == [
        {"score": 100, "prediction": "Yes.", "said": "Yes", "answer": "Yes"}, None
    ]  # fmt: skip


def test_plots(one):
    titles = page(one, world("W", [["shape"]])).in_element("h3")
    assert titles == [
        "UGC-VideoCap", "The synthetic world",
        "Scores", "Length of texts: Caption", "Tone: One",
        "Scores", "Attributes of the world", "Length of texts: World",
    ]  # fmt: skip


def test_results_without_scores():
    made = page(captions("One", [None, None]), result("Two", unscored={"tone": "needs answers"}))
    assert len(made.data["tasks"][0]["clips"]) == 2
    assert page(result("One")).data["main"] is None


def test_worst_first(one):
    other = captions("Two", [(1, 1, 1)] * 6)
    order = ["clip-1", "clip-3", "clip-0", "clip-2", "clip-4", "clip-5"]
    assert report.worst_first([one, other], DISPLAYS) == order


def test_pictures(one):
    album = Album(
        {"clip-1": Picture("data:image/jpeg;base64,AA", None, 2.04, ["mirrored"])},
        ["clip-0"],
        ["x.mp4: bad"],
        ["y"],
    )
    made = page(one, album=album)
    assert made.data["pictures"] == {
        "clip-1": {
            "frames": "data:image/jpeg;base64,AA",
            "mel": None,
            "seconds": 2.04,
            "notes": ["mirrored"],
            "kind": "video",
            "seen": 0.0,
            "heard": 0.0,
            "play": None,
        }
    }
    text = " ".join(made.in_element("p"))
    assert "1 clips have pictures; 1 more were left out" in text
    assert "1 have no file in the folder, clip-0 first" in text
    assert "1 cannot be read: x.mp4: bad" in text


# ---- the job -------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, one) -> list[str]:
    for name, made in (("one.json", one), ("two.json", captions("Two", RATINGS))):
        (tmp_path / name).write_text(json.dumps(made))
    return [str(tmp_path / "one.json"), str(tmp_path / "two.json")]


def test_job(files, tmp_path, clips, capsys):
    output = tmp_path / "new" / "report.html"
    config = job.ReportConfig(output=str(output), videos=str(clips), pictures=1)
    assert job.main(config, files) == 0
    text = output.read_text()
    assert Page(text).data["results"] == ["One", "Two"]
    told = capsys.readouterr()
    assert re.fullmatch(rf"{output}: 4 clips of 2 results, [\d.]+ MB\n", told.out)
    assert "0 clips have pictures" in told.err


def test_mistakes_of_users(files, tmp_path):
    (tmp_path / "other.json").write_text("[]")
    config = job.ReportConfig(output=str(tmp_path / "report.html"))
    with pytest.raises(UserError, match=r"other\.json: not a result of ugc-jax evaluate"):
        job.main(config, [str(tmp_path / "other.json")])
    with pytest.raises(UserError, match="is one of the results"):
        job.main(job.ReportConfig(output=files[0]), files)
    with pytest.raises(UserError, match="pictures is -1"):
        job.ReportConfig(output="x", pictures=-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        job.main(job.ReportConfig(output=str(tmp_path / "file" / "report.html")), files)
