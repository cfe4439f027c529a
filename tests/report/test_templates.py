"""The page of `ugc-jax report` in a headless Chromium: what a reader finds, and how it looks.

Skipped where chromium, its driver or selenium is absent.
"""

import json
import random
import runpy
import shutil
import urllib.parse
from pathlib import Path

import browser as browsers
import numpy as np
import pytest
from clips import write_clip
from fake_results import DISPLAYS, NASTY, captions, options, result, world

from ugc_jax.files import write_text
from ugc_jax.generate.evidence import explain
from ugc_jax.jobs import report as job
from ugc_jax.report import page as report
from ugc_jax.report.pictures import Playing, make_album
from ugc_jax.report.runs import Run

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium with its driver; apt-get install chromium-driver"
)

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
LAPTOP, PHONE = (1440, 900), (375, 812)
LAUNCH = Path(__file__).resolve().parents[2] / "launch"
# of "A red circle."
EVIDENCE = explain(
    "clip",
    "A red circle.",
    [(0, 1), (1, 5), (5, 12), (12, 13)],
    np.log(
        [[0.9, 0.9, 0.01, 0.9], [0.9, 0.9, 0.01, 0.9], [0.9, 0.2, 0.9, 0.9], [0.9, 0.2, 0.9, 0.9]]
    ),
    [(0.0, 1.0), (1.0, 2.0)],
    np.log([[[0.9] * 4] * 2, [[0.9, 0.2, 0.01, 0.9], [0.9] * 4]]),
).record()


# The completions of two clips, the second one of seven.
GROUPS = [
    {"clip": f"clip-{number}", "prompt": "What?", "completions": [
        {"completion": NASTY, "reward": 0.25, "advantage": -1.0, "tokens": 3,
         "finish_reason": "length", "rewards/rouge": 0.25},
        {"completion": "a better one", "reward": 0.75, "advantage": 1.0, "tokens": 4,
         "finish_reason": "stop", "rewards/rouge": 0.75},
        {"completion": "lost", "tokens": 2, "finish_reason": "stop"},
    ]}
    for number in range(7)
]  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    """The address of a page of two captioners and one of a world, with pictures of two clips."""
    folder = tmp_path_factory.mktemp("page with spaces")
    first = captions("First", [(4, 4, 4), (2, 3, 1), None, (5, 5, 5)] + [(3, 3, 3)] * 21)
    second = captions("Second one", [(4, 4, 4), (2, 3, 1), (1, 1, 1), (1, 1, 1)] + [(3, 3, 3)] * 21)
    first["clips"]["final_caption"][3] |= {"prediction": NASTY + " zebra" * 200, "note": NASTY}
    options(first, "tone", ["Yes", "No", "No", "No"], ["Yes", "Yes", "other", None])
    small = dict(seconds=1.2, fps=10, size=(96, 64))
    write_clip(folder / "clip-1.mp4", **small)
    write_clip(folder / "clip-3.mp4", audio=False, **small)
    third = world("World", [["shape"], [], ["shape", "text"]])
    third["clips"]["world"][1]["evidence"] = EVIDENCE
    results = [first, second, third]
    ids = report.worst_first(results, DISPLAYS)
    album = make_album(str(folder), ids, 10, Playing("link", folder / "report.html"))
    run = Run("grpo", [], [{"step": 5, "groups": GROUPS}])
    content = report.make_page(results, album, DISPLAYS, [run], folded=[1])
    write_text(folder / "report.html", content)
    return (folder / "report.html").as_uri()


@pytest.fixture(params=[LAPTOP, PHONE], ids=["laptop", "phone"])
def opened(browser, page, request):
    yield from visit(browser, page, *request.param)


@pytest.fixture
def laptop(browser, page):
    yield from visit(browser, page, *LAPTOP)


@pytest.fixture
def phone(browser, page):
    yield from visit(browser, page, *PHONE)


def visit(browser, address: str, width: int, height: int):
    """Open the page; afterwards, see that nothing broke and nothing was asked of a network."""
    browser.get("about:blank")
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(address)
    yield browser
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    asked = {urllib.parse.urlsplit(one["request"]["url"]).scheme for one in requests}
    assert "file" in asked
    assert asked <= {"file", "data"}
    assert "broken" not in browser.title


def find(browser, css: str):
    return browser.find_element("css selector", css)


def texts(browser, css: str) -> list[str]:
    return [one.get_property("textContent") for one in browser.find_elements("css selector", css)]


def choose(browser, name: str, value: str):
    from selenium.webdriver.support.select import Select

    Select(find(browser, f"#{name}")).select_by_value(value)


def names(browser) -> list[str]:
    return texts(browser, ".clip h3")


def test_reads_well(opened):
    """Nothing is wider than the window, and what is touched is large enough."""
    for address in ("", "#task=final_caption&whole=1", "#task=world"):
        opened.execute_script("location.hash = arguments[0]", address)
        width = opened.execute_script("return document.documentElement.scrollWidth")
        assert width <= opened.execute_script("return window.innerWidth")
    small = opened.execute_script(
        "return [...document.querySelectorAll('button, select, input:not([type=checkbox])')]"
        ".filter(one => one.getBoundingClientRect().height < 32).map(one => one.outerHTML)"
    )
    assert small == []
    unnamed = opened.execute_script(
        "return [...document.querySelectorAll('select, input')].filter(one => !one.labels.length"
        " && !one.ariaLabel).map(one => one.id)"
    )
    assert unnamed == []


def test_the_worst_clip(opened):
    assert find(opened, "#count").text == "25 of 25 clips"
    assert names(opened)[:2] == ["clip-1", "clip-10"]
    worst = find(opened, ".clip")
    scores = worst.find_elements("css selector", ".score")
    assert [one.get_property("textContent") for one in scores] == ["40.0", "+0.0 40.0"]
    parts = worst.find_element("css selector", "[data-result='0'] .parts").text
    assert parts.split() == ["visual", "40.0", "audio", "60.0", "details", "20.0"]
    assert texts(opened, ".clip:first-child .reference .body") == ["word word"]
    assert len(names(opened)) == 10


def test_search_and_filters(phone):
    find(phone, "#q").send_keys("ZEBRA")
    assert find(phone, "#count").text == "1 of 25 clips"
    assert names(phone) == ["clip-3"]
    assert "zebra" in texts(phone, "mark")
    assert NASTY in texts(phone, ".clip [data-result='0'] .body")[0]
    find(phone, "#reset").click()
    choose(phone, "show", "failed:missing")
    assert names(phone) == ["clip-2"]
    assert texts(phone, ".clip .said.bad") == ["no score: missing"]
    choose(phone, "show", "all")
    find(phone, "#max").send_keys("50")
    assert names(phone) == ["clip-1"]
    find(phone, "#q").send_keys("nowhere")
    assert texts(phone, "#list") == ["No clip is like this."]


def test_order_and_pages(laptop):
    choose(laptop, "sort", "difference")
    assert names(laptop)[0] == "clip-3"
    assert texts(laptop, ".clip:first-child .delta") == ["−80.0"]
    choose(laptop, "sort", "best")
    assert names(laptop)[0] == "clip-3"
    choose(laptop, "sort", "id")
    assert names(laptop)[:3] == ["clip-0", "clip-1", "clip-10"]
    choose(laptop, "sort", "worst")
    choose(laptop, "by", "details")
    find(laptop, ".pages button:last-child").click()
    find(laptop, ".pages button:last-child").click()
    assert find(laptop, ".pages").text.split("\n")[1] == "3 of 3"
    assert names(laptop)[-1] == "clip-2"  # the failed one comes last
    assert not find(laptop, ".pages button:last-child").is_enabled()


def test_the_score_of_an_order(laptop):
    """What clips are ordered by is their bold figure, named, and its difference is beside it."""
    choose(laptop, "by", "details")
    choose(laptop, "sort", "difference")
    assert names(laptop)[0] == "clip-3"
    scores = texts(laptop, ".clip:first-child .score")
    assert scores == ["details 100.0", "details −80.0 20.0"]
    parts = texts(laptop, ".clip:first-child [data-result='1'] .parts span")
    assert parts == ["average 20.0", "visual 20.0", "audio 20.0"]
    find(laptop, "#q").send_keys("clip-2")
    assert texts(laptop, ".clip [data-result='0'] .score")[-1] == "details failed"


def test_the_focus_stays_on_a_button(laptop):
    """Pages are turned with the keyboard alone, from either end of the list."""
    from selenium.webdriver.common.keys import Keys

    def focus() -> str:
        return laptop.switch_to.active_element.get_attribute("aria-label")

    laptop.find_elements("css selector", "[aria-label='Next page']")[1].send_keys(Keys.ENTER)
    assert focus() == "Next page"
    laptop.switch_to.active_element.send_keys(Keys.ENTER)
    assert find(laptop, ".pages").text.split("\n")[1] == "3 of 3"
    assert focus() == "Pages"  # there is no next one
    find(laptop, "[aria-label='Previous page']").send_keys(Keys.ENTER)
    assert focus() == "Previous page"


def test_options(laptop):
    choose(laptop, "task", "tone")
    shown = texts(laptop, "#show option")
    assert shown == [
        "all clips", "failed (1)", "failed: empty (1)", "wrong option (2)", "No, said Yes (1)",
        "No, said other (1)",
    ]  # fmt: skip
    choose(laptop, "show", "No→Yes")
    assert names(laptop) == ["clip-1"]
    assert find(laptop, ".clip .said").text == "wrong: said Yes; the answer is No"
    assert find(laptop, "#count").text == "1 of 4 clips"


def test_pictures(laptop):
    loaded = laptop.execute_script(
        "return Promise.all([...document.images].map(one => one.decode()))"
        ".then(() => [...document.images].map(one => [one.alt, one.naturalWidth > 100]))"
    )
    assert loaded == [
        ["Six frames of clip-1", True],
        ["Mel spectrogram of the sound of clip-1", True],
    ]
    choose(laptop, "sort", "best")
    assert texts(laptop, ".clip:first-child .silent") == ["no sound"]


def test_a_view_has_an_address(laptop, page):
    choose(laptop, "task", "world")
    choose(laptop, "show", "wrong:text")
    find(laptop, "#whole").click()
    assert names(laptop) == ["000002"]
    address = laptop.current_url
    laptop.get("about:blank")
    laptop.get(address)
    assert names(laptop) == ["000002"]
    assert find(laptop, "#whole").is_selected()
    laptop.get(f"{page}#task=nothing&result=9&by=x&sort=y&show=z&min=a&page=-4")
    assert find(laptop, "#count").text == "25 of 25 clips"
    assert find(laptop, "#task").get_property("value") == "final_caption"
    laptop.get("about:blank")
    laptop.get(f"{page}#sort=toString&min=%20&max=%20&whole=0")
    assert find(laptop, "#count").text == "25 of 25 clips"
    assert find(laptop, "#sort").get_property("value") == "worst"
    assert not find(laptop, "#whole").is_selected()


def test_links_of_the_table(laptop):
    """A score leads to the clips behind it, a clip's name to that clip alone."""
    find(laptop, ".ours a[href*='result=1&by=visual']").click()
    assert find(laptop, "#result").get_property("value") == "1"
    assert find(laptop, "#by").get_property("value") == "visual"
    assert names(laptop)[:2] == ["clip-2", "clip-3"]
    find(laptop, ".clip:nth-child(2) h3 a").click()
    assert names(laptop) == ["clip-3"]
    laptop.back()


def test_results_without_clips(browser, tmp_path):
    """A page of nothing says so; what the first result lacks is shown of the second."""
    made = tmp_path / "report.html"
    write_text(made, report.make_page([result("None")], None, DISPLAYS))
    for driver in visit(browser, made.as_uri(), *LAPTOP):
        assert texts(driver, "#list") == ["These results hold no clips."]
        assert not find(driver, "#controls").is_displayed()
    both = [result("None"), captions("Some", [(1, 1, 1), None])]
    write_text(made, report.make_page(both, None, DISPLAYS))
    for driver in visit(browser, made.as_uri(), *LAPTOP):
        assert find(driver, "#count").text == "2 of 2 clips"
        assert find(driver, "#result").get_property("value") == "1"


def test_clips_of_one_id(browser, tmp_path):
    """Of two worlds, say: they are shown apart, and their link leads to both."""
    worlds = [world("One", [["shape"]]), world("Two", [[]])]
    worlds[1]["clips"]["world"][0]["reference"] = "shape: square"
    write_text(tmp_path / "report.html", report.make_page(worlds, None, DISPLAYS))
    for driver in visit(browser, (tmp_path / "report.html").as_uri(), *LAPTOP):
        assert names(driver) == ["000000", "000000"]
        find(driver, ".clip h3 a").click()
        references = texts(driver, ".clip .reference .body")
        assert references == ["shape: circle, colour: red", "shape: square"]


def test_names_that_every_object_has(browser, tmp_path):
    """A clip may be called what JavaScript finds in any object."""
    made = captions("One", [(1, 1, 1)])
    made["clips"]["final_caption"][0]["id"] = "constructor"
    write_text(tmp_path / "report.html", report.make_page([made], None, DISPLAYS))
    for driver in visit(browser, (tmp_path / "report.html").as_uri(), *LAPTOP):
        assert names(driver) == ["constructor"]
        assert driver.find_elements("css selector", ".media") == []


def test_long_texts_open(laptop):
    choose(laptop, "sort", "best")
    (more,) = laptop.find_elements("css selector", ".clip:first-child .more")
    body = find(laptop, ".clip:first-child [data-result='0'] .body")
    before = body.size["height"]
    more.click()
    assert body.size["height"] > 2 * before
    assert more.get_attribute("aria-expanded") == "true"


def test_keyboard(laptop):
    """The search is reached with the tabulator, and the skip link leads past the tables."""
    from selenium.webdriver.common.keys import Keys

    find(laptop, "body").send_keys(Keys.TAB)
    assert laptop.switch_to.active_element.text == "Skip to the clips"
    laptop.switch_to.active_element.send_keys(Keys.ENTER)
    for _ in range(8):
        laptop.switch_to.active_element.send_keys(Keys.TAB)
        if laptop.switch_to.active_element.get_attribute("id") == "q":
            break
    laptop.switch_to.active_element.send_keys("clip-12")
    assert names(laptop) == ["clip-12"]


def test_dark(laptop):
    """Light on dark and dark on light: at least 4.5 to 1, plots included."""
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        laptop.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        colours = laptop.execute_script(
            "const of = (css, name) => getComputedStyle(document.querySelector(css))[name];"
            "return [of('body', 'backgroundColor'), of('body', 'color'), of('.muted', 'color'),"
            " of('.bad', 'color'), of('nav a', 'color'), of('figure text', 'fill')]"
        )
        page, *inks = map(luminance, colours)
        assert (page < 0.1) == (scheme == "dark")
        for ink in inks:
            assert (max(page, ink) + 0.05) / (min(page, ink) + 0.05) >= 4.5


@pytest.fixture(scope="module")
def axe(tmp_path_factory) -> str:
    return browsers.axe_core(tmp_path_factory.mktemp("axe"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_axe_finds_no_serious_fault(browser, page, axe, size, scheme):
    """With all that is folded open: tables, plots, a clip's player, evidence, completions."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    for driver in visit(browser, page, *size):
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        found = {}
        for address in ("#task=final_caption&differ=1", "#task=world&sort=id"):
            driver.execute_script("location.hash = arguments[0]", address)
            driver.execute_script("document.querySelectorAll('details').forEach(d => d.open = 1)")
            for button in driver.find_elements("css selector", ".play"):
                driver.execute_script("arguments[0].click()", button)
            found[address] = browsers.faults(driver, axe)
        assert not any(found.values()), found
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.slow
def test_a_page_of_999_clips(tmp_path):
    """It is made in 30 s and opens in 2; a clip plays from the second that is clicked."""
    bench = runpy.run_path(str(LAUNCH / "report_bench.py"))
    figures = bench["measure"](tmp_path)
    assert figures["seconds"] < 30
    assert figures["open_seconds"] < 2
    assert figures["played_from_second"] == pytest.approx(figures["clicked_second"], abs=0.2)


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)" (WCAG 2)."""
    parts = [int(part) / 255 for part in colour.strip("rgb()").split(",")]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_released_results(browser, shared_data, tmp_path):
    """999 real captions and their scores, filtered and read back."""
    released = shared_data / "ugc_videocap"
    qa = json.loads((released / "qa/final_caption_qa.json").read_text())["samples"]
    lines = (released / "results/caption/omni_baseline.jsonl").read_text().splitlines()
    said = {row["video_id"]: row["caption"] for row in map(json.loads, lines)}
    scores = json.loads((released / "results/caption_score/omni_baseline_4o.json").read_text())
    ratings = [scores["evaluations"].get(row["video_id"]) for row in qa]
    keys = ("visual_score", "audio_score", "details_score")
    made = captions("Base", [one and [one[key] for key in keys] for one in ratings])
    for clip, row in zip(made["clips"]["final_caption"], qa, strict=True):
        clip |= {"id": row["video_id"], "reference": row["answer"]}
        if "prediction" in clip:
            clip["prediction"] = said[row["video_id"]]
    (tmp_path / "result.json").write_text(json.dumps(made))
    config = job.ReportConfig(output=str(tmp_path / "report.html"))
    assert job.main(config, [str(tmp_path / "result.json")]) == 0
    sought = [row["video_id"] for row in qa if row["video_id"] in said]
    name = random.Random(0).choice(sought)
    for driver in visit(browser, (tmp_path / "report.html").as_uri(), *LAPTOP):
        find(driver, "#min").send_keys("99")
        best = [one for one in ratings if one and all(one[key] == 5 for key in keys)]
        assert find(driver, "#count").text == f"{len(best)} of 999 clips"
        find(driver, "#reset").click()
        find(driver, "#q").send_keys(name)
        assert names(driver) == [name]
        rating = scores["evaluations"][name]
        mean = sum(rating[key] for key in keys) / 15 * 100
        assert find(driver, ".clip .score").text == f"{mean:.1f}"
        assert texts(driver, ".clip [data-result='0'] .body") == [said[name]]


def test_words_have_the_colours_of_what_they_rest_on(laptop):
    """A content word has its verdict's colour, and on hovering its nats and its curve."""
    laptop.execute_script("location.hash = '#task=world&sort=id'")
    spans = laptop.find_elements("css selector", ".clip .body .e-word")
    told = [(one.text, one.get_attribute("class")) for one in spans]
    assert told == [("red", "e-word e-seen"), ("circle", "e-word e-unsupported")]
    body = texts(laptop, ".clip .text[data-result='2'] .body")
    assert body == ["A red circle."] * 3
    assert texts(laptop, ".e-item") == ["seen 50 %", "no support 50 %"]
    hover = "arguments[0].dispatchEvent(new PointerEvent('pointerenter'))"
    laptop.execute_script(hover, spans[0])
    assert "without picture 1.50" in texts(laptop, ".e-tip")[0]
    heights = [float(one.get_attribute("height")) for one in
               laptop.find_elements("css selector", ".e-curve.e-seen rect")]  # fmt: skip
    assert heights == [26.0, 1.0]
    laptop.execute_script(hover.replace("enter", "leave"), spans[0])
    assert texts(laptop, ".e-tip") == []


def play_at(browser, css: str, share: float) -> float:
    """Click into a strip of the first clip; the second at which its player begins."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    track = find(browser, css)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", track)
    across = track.rect["width"]
    note = (
        "sought = []; document.addEventListener('seeking', e => sought.push(e.target.currentTime)"
    )
    browser.execute_script(f"{note}, true)")
    ActionChains(browser).move_to_element_with_offset(
        track, round((share - 0.5) * across), 0
    ).click().perform()
    WebDriverWait(browser, 20).until(lambda driver: driver.execute_script("return sought.length"))
    browser.execute_script("document.querySelector('.clip video').pause()")
    return browser.execute_script("return sought.shift()")


def test_a_clip_is_played_from_the_second_that_is_clicked(laptop):
    """clip-1 has 1.2 s of picture and sound."""
    laptop.execute_script("location.hash = '#task=final_caption&q=clip-1'")
    assert names(laptop)[0] == "clip-1"
    assert play_at(laptop, ".clip .track:has(.frames)", 0.5) == pytest.approx(0.6, abs=0.02)
    assert play_at(laptop, ".clip .track:has(.mel)", 0.1) == pytest.approx(0.12, abs=0.02)
    assert find(laptop, ".clip .playhead").is_displayed()


def test_a_file_that_went_is_said(browser, page, tmp_path):
    import shutil
    from pathlib import Path
    from urllib.parse import unquote, urlsplit

    from selenium.webdriver.support.ui import WebDriverWait

    shutil.copy(Path(unquote(urlsplit(page).path)), tmp_path / "report.html")
    browser.get((tmp_path / "report.html").as_uri() + "#task=final_caption&q=clip-1")
    find(browser, ".clip .play").click()
    WebDriverWait(browser, 20).until(lambda _: texts(browser, ".media .note.bad"))
    assert texts(browser, ".media .note.bad") == [
        "clip-1.mp4 cannot be played: it is not there, or of a codec that this browser lacks"
    ]
    browser.get_log("browser")


def test_words_that_differ_are_marked(laptop):
    laptop.execute_script("location.hash = '#task=final_caption&q='")
    laptop.execute_script("location.hash = '#task=final_caption&sort=id'")
    first = ".clip .text[data-result='0'] .body"
    assert set(texts(laptop, f"{first} .extra")) >= {"first", "said"}
    assert "word" in texts(laptop, ".clip .reference .lacking")
    find(laptop, "#differ").click()
    assert texts(laptop, ".extra, .lacking") == []
    assert "differ=false" in laptop.current_url


def test_results_are_folded_away(laptop):
    laptop.execute_script("location.hash = '#task=final_caption&sort=id'")
    folded = laptop.find_elements("css selector", ".clip .folded")[0]
    assert folded.find_element("css selector", "summary").text == "Second one"
    inside = folded.find_element("css selector", ".text[data-result='1']")
    assert not inside.is_displayed()
    folded.find_element("css selector", "summary").click()
    assert inside.is_displayed()


def test_completions_are_browsed_by_group(laptop):
    assert find(laptop, "#group-count").text == "step 5: 7 groups, page 1 of 2"
    groups = laptop.find_elements("css selector", "#groups details")
    assert [one.get_property("open") for one in groups] == [True] + [False] * 5
    rows = [row.text for row in groups[0].find_elements("css selector", "li .parts")]
    assert [row.split("\n")[0].split(" advantage")[0] for row in rows] == [
        "reward 0.750", "reward 0.250", "reward none"
    ]  # fmt: skip
    assert "advantage −1.00" in rows[1].replace("\n", " ")
    assert "cut off" in rows[1]
    find(laptop, "#group-after").click()
    assert find(laptop, "#group-count").text == "step 5: 7 groups, page 2 of 2"
