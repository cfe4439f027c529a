"""The pages of `ugc-jax annotate` in a headless Chromium: keys, two browsers, reloads, looks.

With UGC_JAX_SCREENSHOTS=DIR the screenshots go there, else into the test's folder.
"""

import os
import shutil
import time
from pathlib import Path

import pytest
from annotating import PASSWORD, Person, add_account, command, running
from browser import (
    LAPTOP,
    PHONE,
    axe_core,
    chromium,
    faults,
    is_wider_than_its_window,
    photograph,
    resize,
)
from clips import random_scene, write_clip
from fake_annotation import BOTH, PICTURE, SOUND, VALUES

from ugc_jax.annotate.store import Store
from ugc_jax.files import to_lines

pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

PEOPLE = {"olga": "owner", "adam": "adjudicator", "anna": "annotator", "bert": "annotator"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("annotate") / "clips"
    folder.mkdir()
    write_clip(folder / "clip-1.mp4", seconds=3.0, fps=10, size=(270, 480), scene=random_scene(3))
    for number in range(2, 5):
        shutil.copy(folder / "clip-1.mp4", folder / f"clip-{number}.mp4")
    return folder


@pytest.fixture
def site(clips, tmp_path):
    """start(*flags) -> (address, output) of a server with four people."""
    import contextlib

    with contextlib.ExitStack() as stack:

        def start(*flags: str) -> tuple[str, Path]:
            output = tmp_path / "project"
            store_flags = [flag for flag in flags]
            add_account(clips, output, "olga", "owner", *store_flags)
            store = Store(str(output / "annotate.sqlite"))
            for name, role in PEOPLE.items():
                if name != "olga":
                    store.accounts.add(name, PASSWORD, role)
            store.close()
            address, _ = stack.enter_context(running(clips, output))
            return address, output

        yield start


class Hands:
    """Somebody at a browser who uses the keyboard alone."""

    def __init__(self, driver, address: str, name: str | None = None):
        self.driver, self.address = driver, address
        driver.get("about:blank")
        driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
        resize(driver, *LAPTOP)
        driver.get_log("browser")
        self.open("/")
        if name is not None:
            self.type(name, Keys.TAB, PASSWORD, Keys.ENTER)
            self.wait(lambda: self.path() == "/")

    def open(self, path: str):
        self.driver.get(self.address + path)

    def path(self) -> str:
        return self.driver.current_url.removeprefix(self.address)

    def type(self, *keys: str):
        ActionChains(self.driver).send_keys(*keys).perform()

    def alt(self, key: str):
        ActionChains(self.driver).key_down(Keys.ALT).send_keys(key).key_up(Keys.ALT).perform()

    def done(self):
        chain = ActionChains(self.driver).key_down(Keys.CONTROL).send_keys(Keys.ENTER)
        chain.key_up(Keys.CONTROL).perform()

    def wait(self, holds, seconds: float = 15):
        WebDriverWait(self.driver, seconds, 0.05).until(lambda _: holds())

    def find(self, css: str):
        return self.driver.find_element("css selector", css)

    def text(self, css: str) -> str:
        return self.find(css).get_property("textContent").strip()

    def script(self, code: str):
        return self.driver.execute_script(f"return {code}")

    def saved(self):
        self.wait(lambda: self.text("[data-main] .saved").startswith("Saved"))

    def place(self) -> float:
        return self.script("document.querySelector('video, audio').currentTime")

    def errors(self) -> list:
        """What the browser complained of; a refused save is an answer, no fault of the page."""
        return [
            one["message"]
            for one in self.driver.get_log("browser")
            if "status of 4" not in one["message"]
        ]


def hear(hands: Hands):
    """Fill stage 1 by keys with SOUND."""
    hands.alt("1")
    hands.type(Keys.SPACE)  # Narration
    hands.alt("2")
    hands.type(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)  # from the first, Positive, to Neutral
    hands.alt("3")
    hands.type(Keys.SPACE)
    hands.alt("4")
    hands.type(Keys.ENTER, "a bell", Keys.TAB, "1", Keys.TAB, "1.5")
    hands.alt("5")
    hands.type(SOUND["caption"])


def see(hands: Hands):
    """Fill stage 2 by keys with PICTURE."""
    hands.alt("1")
    hands.type(Keys.ENTER, "SALE")
    hands.alt("2")
    hands.type(Keys.ENTER, "cup", Keys.TAB, Keys.BACKSPACE, "2", Keys.TAB, "red", Keys.TAB, "left")
    hands.alt("4")
    hands.type(PICTURE["caption"])


def shots(tmp_path: Path) -> Path:
    return Path(os.environ.get("UGC_JAX_SCREENSHOTS", tmp_path))


def test_a_clip_by_keyboard_alone(browser, site, tmp_path):
    address, output = site()
    hands = Hands(browser, address, "anna")
    hands.type(Keys.ENTER)  # the button has the focus
    hands.wait(lambda: hands.path() == "/works/1/sound")
    assert hands.script("document.querySelectorAll('video').length") == 0
    hands.wait(lambda: hands.script("document.querySelector('audio').readyState") >= 3)
    hands.alt("p")
    hands.wait(lambda: hands.place() > 0.2)
    hands.alt("p")
    assert hands.script("document.querySelector('audio').paused")
    before = hands.place()
    hands.alt(".")
    hands.wait(lambda: abs(hands.place() - before - 0.5) < 0.01)
    hands.alt("s")
    assert hands.script("document.querySelector('audio').playbackRate") == 0.5
    hands.alt("a")
    hands.alt(".")
    hands.alt("b")
    assert "loop" in hands.text(".place")
    hands.alt("p")
    begin, seen = time.monotonic(), []
    while time.monotonic() - begin < 3:
        seen.append(hands.place())
    hands.alt("p")
    assert min(seen) >= before + 0.45  # it came round, and not below the loop's begin
    assert max(seen) <= before + 1.2
    assert any(later < earlier for earlier, later in zip(seen, seen[1:], strict=False))
    hear(hands)
    hands.saved()
    photograph(browser, shots(tmp_path) / "annotate-hear.png")
    hands.done()
    hands.wait(lambda: hands.path() == "/works/1/picture")
    assert hands.script("document.querySelectorAll('audio').length") == 0
    hands.wait(lambda: hands.script("document.querySelector('video').readyState") >= 2)
    assert hands.script("document.querySelector('video').muted")
    for number in (2, 3, 4):  # frame by frame
        hands.alt(".")
        hands.wait(lambda number=number: f"picture {number} of 30" in hands.text(".place"))
        assert (number - 1) / 10 <= hands.place() < number / 10
    hands.alt(",")
    hands.wait(lambda: "picture 3 of 30" in hands.text(".place"))
    see(hands)
    hands.saved()
    photograph(browser, shots(tmp_path) / "annotate-see.png")
    hands.done()
    hands.wait(lambda: hands.path() == "/works/1/both")
    assert "a bell (1 – 1.5 s)" in hands.text(".said")
    assert "2 × cup, red, left" in hands.text(".said")
    hands.alt("1")
    hands.type(BOTH["caption"])
    hands.saved()
    photograph(browser, shots(tmp_path) / "annotate-both.png")
    hands.done()
    hands.wait(lambda: hands.path() == "/")
    assert hands.errors() == []
    store = Store(str(output / "annotate.sqlite"))
    (agreed,) = store.agreed()
    from ugc_jax.data import annotation

    said = {stage: annotation.to_json(getattr(agreed, stage)) for stage in VALUES}
    assert said == VALUES
    assert all(answer.seconds > 0 for answer in store.answers())  # time was taken
    history = store.history(1)
    assert set(history[0].seconds) <= {"voice_source", "tone", "music", "sounds", "caption"}
    assert len(history[0].seconds) >= 2
    store.close()


def test_other_keys(browser, site):
    address, _ = site()
    hands = Hands(browser, address, "anna")
    hands.type(Keys.ENTER)
    hands.wait(lambda: hands.path() == "/works/1/sound")
    hands.alt("h")
    assert hands.script("document.getElementById('keys').open")
    hands.type(Keys.ESCAPE)
    assert not hands.script("document.getElementById('keys').open")
    for is_open in (True, False, True):
        assert hands.script("document.getElementById('guide').open") == is_open
        hands.alt("g")
    hands.alt("g")
    hands.alt("n")
    hands.type("a dog", Keys.TAB)
    hands.wait(lambda: hands.script("document.querySelector('audio').readyState") >= 1)
    hands.alt(".")
    hands.alt("t")
    assert hands.script("document.activeElement.value") == "0.50"
    hands.saved()
    hands.alt("x")
    assert hands.script("document.querySelectorAll('.rows > .row').length") == 0
    hands.wait(lambda: hands.text("[data-main] .saved") == "Saved, version 2")
    hands.alt("u")
    hands.wait(lambda: hands.text("[data-main] .saved").startswith("Undone"))
    assert hands.script("document.querySelector('.rows input').value") == "a dog"
    hands.alt("r")
    hands.wait(lambda: hands.text("[data-main] .saved").startswith("Redone"))
    assert hands.script("document.querySelectorAll('.rows > .row').length") == 0
    hands.done()  # incomplete: the field is named and has the focus
    hands.wait(lambda: "voice_source is missing" in hands.text("[data-main] .saved"))
    assert hands.script("document.activeElement.closest('[data-field]').dataset.field") == (
        "voice_source"
    )
    hands.alt("k")
    hands.type("It", Keys.TAB, "no sound", Keys.ENTER)
    hands.wait(lambda: hands.path() == "/")
    assert "It does not play: no sound" in hands.text("table")
    assert hands.errors() == []


def test_a_reload_loses_nothing(browser, site):
    address, output = site()
    hands = Hands(browser, address, "anna")
    hands.type(Keys.ENTER)
    hands.wait(lambda: hands.path() == "/works/1/sound")
    hands.alt("5")
    for turn in range(6):  # with the save done, under way, or not begun
        hands.type(f"part {turn} ")
        time.sleep(0.25 * turn)
        browser.refresh()
        expected = "".join(f"part {one} " for one in range(turn + 1))
        hands.wait(lambda e=expected: hands.script("document.querySelector('textarea').value") == e)
        hands.alt("5")
        hands.type(Keys.END)
        hands.script("document.activeElement.setSelectionRange(1e6, 1e6)")
    store = Store(str(output / "annotate.sqlite"))
    hands.wait(lambda: store.last(1, "sound").value.get("caption") == expected)
    store.close()
    # nor does a server that is away
    browser.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    hands.type("offline")
    hands.wait(lambda: "server is not reached" in hands.text("[data-main] .saved"))
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline | {"offline": False})
    hands.saved()
    browser.refresh()
    assert hands.script("document.querySelector('textarea').value").endswith("offline")


def test_a_login_in_another_tab_goes_on_here(browser, site):
    address, output = site()
    hands = Hands(browser, address, "anna")
    hands.type(Keys.ENTER)
    hands.wait(lambda: hands.path() == "/works/1/sound")
    form = browser.current_window_handle
    browser.switch_to.new_window("tab")
    hands.open("/")
    hands.find("form[action='/logout'] button").send_keys(Keys.ENTER)
    hands.wait(lambda: hands.path() == "/login")
    other = browser.current_window_handle
    browser.switch_to.window(form)
    hands.alt("5")
    hands.type("without a session")
    hands.wait(lambda: "session has ended" in hands.text("[data-main] .saved"))
    for name, words in (("bert", "Not saved: the page is too old"), ("anna", "Saved")):
        browser.switch_to.window(other)
        hands.open("/")
        if hands.path() == "/":  # bert's, who logs out
            hands.find("form[action='/logout'] button").send_keys(Keys.ENTER)
        hands.wait(lambda: hands.path() == "/login")
        hands.find("[name=name]").send_keys(name, Keys.TAB, PASSWORD, Keys.ENTER)
        hands.wait(lambda: hands.path() == "/")
        browser.switch_to.window(form)
        hands.type("!")
        hands.wait(lambda w=words: hands.text("[data-main] .saved").startswith(w))
    browser.switch_to.window(other)
    browser.close()
    browser.switch_to.window(form)
    store = Store(str(output / "annotate.sqlite"))
    assert store.last(1, "sound").value["caption"] == "without a session!!"
    store.close()


def test_two_browsers_on_one_clip(browser, site, tmp_path_factory):
    address, output = site()
    with chromium(tmp_path_factory.mktemp("second")) as second:
        one = Hands(browser, address, "anna")
        one.type(Keys.ENTER)
        one.wait(lambda: one.path() == "/works/1/sound")
        two = Hands(second, address, "anna")
        two.type(Keys.ENTER)
        two.wait(lambda: two.path() == "/works/1/sound")
        one.alt("5")
        one.type("from the first")
        one.saved()
        two.alt("5")
        two.type("from the second")
        two.wait(lambda: "changed in another window" in two.text("[data-main] .saved"))
        store = Store(str(output / "annotate.sqlite"))
        assert store.last(1, "sound").value["caption"] == "from the first"
        store.close()
        two.type(", and more")  # typed after the conflict was told
        second.refresh()  # its own text is offered, not lost
        area = "document.querySelector('textarea').value"
        assert two.script(area) == "from the first"
        use = two.find("form .note button")
        use.send_keys(Keys.ENTER)
        assert two.script(area) == "from the second, and more"
        two.saved()
        # another person gets another clip
        other = Hands(second, address, "bert")
        other.type(Keys.ENTER)
        other.wait(lambda: other.path() == "/works/2/sound")
        other.open("/works/1/sound")
        assert "You have no such work" in other.text("main")


@pytest.fixture
def full(site, clips, tmp_path):
    """A project with a clip in dispute, one agreed with questions, one begun with a draft."""
    labels = tmp_path / "labels.jsonl"
    said = {
        stage: {**value, "caption": f"The teacher on {stage}."} for stage, value in VALUES.items()
    }
    row = {"videos": ["clip-3.mp4"], "messages": [], "label": said}
    labels.write_text(to_lines([row]))
    address, output = site("--annotators", "2", "--drafts", "first")
    loaded = command(clips, output, "--load", str(labels))
    assert loaded.returncode == 0, loaded.stderr
    other = VALUES | {
        "sound": {**SOUND, "tone": "Positive", "caption": "A bell rings twice."},
        "picture": {**PICTURE, "text": ["SALT"]},
    }
    anna, bert = Person(address, "anna"), Person(address, "bert")
    for values in (VALUES, VALUES):
        anna.annotate(values)
    for values in (other, VALUES):
        bert.annotate(values)
    olga = Person(address, "olga")
    olga.form("/questions")
    store = Store(str(output / "annotate.sqlite"))
    for row in store.questions()[:3]:
        store.judge(row.id, "olga", 1, "accept")
    store.close()
    return address, output


PAGES = ("/", "/clips", "/clips/1", "/questions", "/questions/2", "/agreement", "/people", "/log",
         "/project")  # fmt: skip


def visit_all(hands: Hands, output: Path):
    """Yield the name of each page, opened."""
    for page in PAGES:
        hands.open(page)
        yield page.strip("/").replace("/", "-") or "home"
    hands.open("/")
    hands.find("form[action='/next'] button").send_keys(Keys.ENTER)
    hands.wait(lambda: hands.path().endswith("/sound"))
    store = Store(str(output / "annotate.sqlite"))
    work = int(hands.path().split("/")[2])
    yield "sound"
    for stage, ahead in (("sound", "picture"), ("picture", "both")):
        base = store.last(work, stage).version
        store.save(work, "olga", stage, base, VALUES[stage], {}, "submit")
        hands.open(f"/works/{work}/{ahead}")
        yield ahead
    store.close()


@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_are_accessible_and_fit(browser, full, tmp_path, size, theme):
    axe = axe_core(tmp_path)
    address, output = full
    hands = Hands(browser, address, "olga")
    hands.script(f"localStorage.setItem('theme', '{theme}')")
    resize(browser, *size)
    found = {}
    for name in visit_all(hands, output):
        hands.wait(lambda: hands.script("document.readyState") == "complete")
        hands.wait(lambda: hands.script("[...document.images].every(i => i.complete)"))
        path = shots(tmp_path) / f"{size[0]}-{theme}" / f"{name}.png"
        photograph(browser, path, whole=size == PHONE)
        assert hands.script("document.documentElement.dataset.theme") == theme
        assert not is_wider_than_its_window(browser), name
        if listed := faults(browser, axe):
            found[name] = listed
    hands.script("localStorage.removeItem('theme')")
    assert found == {}
    assert hands.errors() == []


def test_adjudication_and_questions(browser, full, tmp_path):
    address, output = full
    hands = Hands(browser, address, "adam")
    hands.open("/clips/1")
    marked = [
        one.text.split("\n")[0] for one in browser.find_elements("css selector", "tr.marked th")
    ]
    assert [text.removesuffix(" in dispute") for text in marked] == ["Tone", "On-screen text"]
    tone = "document.querySelector('input[name=decide-sound-tone]:checked').value"
    for use in browser.find_elements("css selector", "[aria-label^='Use Tone of']"):
        use.send_keys(Keys.ENTER)
        name = "anna" if "anna" in use.get_attribute("aria-label") else "bert"
        assert hands.script(tone) == {"anna": "Neutral", "bert": "Positive"}[name]
    hands.find("[aria-label='Use On-screen text of anna (annotator)']").send_keys(Keys.ENTER)
    photograph(browser, shots(tmp_path) / "annotate-decide.png")
    chosen = hands.script(tone)
    hands.done()
    hands.wait(lambda: hands.path() == "/clips?state=dispute")
    store = Store(str(output / "annotate.sqlite"))
    agreed = store.agreed()[0]
    assert (agreed.sound.tone, agreed.picture.text) == (chosen, ("SALE",))
    hands.open("/questions/2")
    photograph(browser, shots(tmp_path) / "annotate-questions.png")
    forms = browser.find_elements("css selector", "form.question.proposed")
    count = len([row for row in store.questions(2) if row.state == "accepted"])
    box = forms[0].find_element("css selector", "textarea[name=question]")
    box.clear()
    box.send_keys("What is asked by a person?")
    forms[0].find_element("css selector", "button[value=accept]").send_keys(Keys.ENTER)
    hands.wait(lambda: "What is asked by a person?" in hands.driver.page_source)
    rows = [row for row in store.questions(2) if row.state == "accepted"]
    assert len(rows) == count + 1
    assert [row.source for row in rows if row.question == "What is asked by a person?"] == [
        "person"
    ]
    hands.open("/questions")
    assert hands.errors() == []
    store.close()


def test_nothing_comes_from_elsewhere(browser, site):
    """The pages work without a network: all that they load is of the server."""
    address, _ = site()
    hands = Hands(browser, address, "anna")
    hands.type(Keys.ENTER)
    hands.wait(lambda: hands.path() == "/works/1/sound")
    loaded = hands.script("performance.getEntriesByType('resource').map(e => e.name)")
    assert loaded
    assert all(one.startswith(address) for one in loaded)
