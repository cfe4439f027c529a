"""The page of `ugc-jax serve` in a headless Chromium: answers, keys, faults, looks.

With UGC_JAX_SCREENSHOTS=DIR the screenshots go there, else into the test's folder.
"""

import json
import os
import subprocess
import wave
from pathlib import Path

import pytest
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
from PIL import Image
from serving import running

pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

KEY = "a-key-of-this-test-only"
CLIP = dict(frames=4, min_pixels=784, max_pixels=12544)
MARKUP = "<img src=x onerror=document.title=1>'s clip.mp4"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    size = dict(fps=10, size=(180, 320), scene=random_scene(3))
    write_clip(folder / MARKUP, seconds=1.2, **size)
    write_clip(folder / "silent.mp4", seconds=1.2, audio=False, **size)
    (folder / "broken.mp4").write_bytes(b"no clip" * 100)
    Image.new("RGB", (84, 56), "grey").save(folder / "grey.png")
    with wave.open(str(folder / "silence.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 8000))
    (folder / "large.mp4").write_bytes(bytes(2_000_000))
    return folder


@pytest.fixture(scope="module")
def served(folder, tiny_checkpoint):
    """A server with a key, whose answers have 24 tokens."""
    flags = ["--max_new_tokens", "24", "--limits.upload", "2", "--media_root", str(folder)]
    environment = {"UGC_JAX_API_KEY": KEY}
    with running(tiny_checkpoint, folder, *flags, environment=environment) as served:
        yield served


class Visit:
    """Somebody at the page."""

    def __init__(self, driver, address: str, key: str | None = KEY, size=LAPTOP):
        self.driver, self.address = driver, address
        resize(driver, *size)
        driver.get("about:blank")
        driver.get_log("browser")
        driver.get(address)
        driver.execute_script("sessionStorage.clear()")
        driver.refresh()
        self.wait(lambda: self.find("#key").is_displayed())
        if key is not None:
            self.type(key, Keys.ENTER)
            self.wait(lambda: self.find("#tool").is_displayed())

    def wait(self, holds, seconds: float = 60):
        WebDriverWait(self.driver, seconds, 0.05).until(lambda _: holds())

    def find(self, css: str):
        return self.driver.find_element("css selector", css)

    def text(self, css: str) -> str:
        return self.find(css).get_property("textContent").strip()

    def script(self, code: str):
        return self.driver.execute_script(f"return {code}")

    def type(self, *keys: str):
        ActionChains(self.driver).send_keys(*keys).perform()

    def choose(self, path: Path):
        self.find("#file").send_keys(str(path))

    def done(self):
        self.wait(lambda: self.text("#state") in ("Done.", "Stopped."))

    def focus(self) -> str:
        return self.script("document.activeElement.id || document.activeElement.tagName")

    def errors(self) -> list[str]:
        """What the browser complained of, but for refusals and media that it cannot play."""
        return [
            one["message"]
            for one in self.driver.get_log("browser")
            if "status of 4" not in one["message"]
        ]


def test_a_caption_by_keyboard_alone(browser, served, folder, tiny_captioner):
    visit = Visit(browser, served.address)
    assert visit.text("#model") == "tiny"
    assert visit.focus() == "file"
    visit.choose(folder / MARKUP)
    visit.wait(lambda: visit.script("document.querySelector('video')?.readyState") >= 2)
    assert visit.script("document.querySelector('video').src").startswith("blob:")
    assert visit.text("#name").startswith(MARKUP)
    assert visit.focus() == "start"
    visit.type(Keys.ENTER)
    visit.done()
    caption = tiny_captioner.caption([folder / MARKUP], max_new_tokens=24, **CLIP)[0].caption
    assert visit.script("document.querySelector('.caption').textContent") == caption
    words = visit.script("[...document.querySelectorAll('.caption .word')].map(e => e.textContent)")
    assert "".join(words) == caption  # nothing but spans of words
    assert len(words) >= len(caption.split())
    figures = dict(
        zip(
            visit.script("[...document.querySelectorAll('.figures dt')].map(e => e.textContent)"),
            visit.script("[...document.querySelectorAll('.figures dd')].map(e => e.textContent)"),
            strict=True,
        )
    )
    assert figures["tokens"] == "24"
    assert 0 < float(figures["s to the first token"]) <= float(figures["s in all"])
    rate = 24 / float(figures["s in all"])
    assert float(figures["tokens/s in all"]) == pytest.approx(rate, rel=0.05, abs=0.1)
    assert "cut off" in visit.text(".end")
    # A file's name stays text.
    assert visit.text(".group h2") == MARKUP
    assert visit.script("document.title") == "Try the captioner"
    assert visit.script("document.querySelectorAll('img').length") == 0
    assert visit.focus() == "start"
    assert visit.errors() == []
    # All that was loaded is of the server.
    loaded = visit.script("performance.getEntriesByType('resource').map(e => e.name)")
    assert loaded
    assert all(one.startswith((served.address, f"blob:{served.address}")) for one in loaded)


def test_the_curl_line_gives_the_same_answer(browser, served, folder):
    visit = Visit(browser, served.address)
    visit.choose(folder / MARKUP)
    visit.find("#question").send_keys('What\'s 100 % "new"?', Keys.CONTROL, Keys.ENTER)
    visit.done()
    line = visit.text(".request pre")
    assert KEY not in line
    run = subprocess.run(
        ["bash", "-c", line], cwd=folder, capture_output=True, text=True, timeout=60,
        env=os.environ | {"UGC_JAX_API_KEY": KEY},
    )  # fmt: skip
    events = [one.removeprefix("data: ") for one in run.stdout.strip().split("\n\n")]
    assert events.pop() == "[DONE]"
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    assert text.strip() == visit.text(".caption") != ""
    assert visit.text(".asked") == 'What\'s 100 % "new"?'


def test_sound_and_picture_alone(browser, served, folder, tiny_captioner):
    visit = Visit(browser, served.address)
    visit.choose(folder / MARKUP)
    for box in ("picture", "sound"):
        visit.find(f"input[value={box}]").send_keys(Keys.SPACE)
    visit.find("#question").send_keys("What?", Keys.CONTROL, Keys.ENTER)
    visit.done()
    texts = visit.script("[...document.querySelectorAll('.caption')].map(e => e.textContent)")
    assert len(texts) == 3
    mute = tiny_captioner.caption(
        [folder / MARKUP], question="What?", max_new_tokens=24, audio=False, **CLIP
    )
    assert texts[1] == mute[0].caption
    shown = []
    for way in ("both", "picture", "sound"):
        place = f"[data-way={way}] .inputs"
        visit.find(f"{place} summary").send_keys(Keys.ENTER)
        visit.wait(lambda place=place: visit.text(f"{place} .shown").endswith(("s", "sound.")))
        count = f"document.querySelectorAll('{place} .frames img').length"
        mel = f"document.querySelectorAll('{place} .mel').length"
        shown.append((visit.script(count), visit.script(mel)))
    assert shown == [(4, 1), (4, 0), (0, 1)]
    visit.wait(lambda: visit.script("[...document.images].every(i => i.naturalWidth > 0)"))
    assert "s of sound" in visit.text("[data-way=both] .shown")
    assert visit.errors() == []


def test_words_have_the_colours_of_their_evidence(
    browser, served, folder, tiny_captioner, tmp_path
):
    """On a phone and by keyboard: one stop a caption, arrow keys among its words, seconds shown."""
    visit = Visit(browser, served.address, size=PHONE)
    visit.choose(folder / MARKUP)
    visit.find("#colours").send_keys(Keys.SPACE)
    visit.find("#start").send_keys(Keys.ENTER)
    visit.done()
    caption = visit.script("document.querySelector('.caption').textContent")
    how = dict(by_time=True, max_new_tokens=24, **CLIP)
    (told,) = tiny_captioner.explain([folder / MARKUP], [caption], **how)
    words = [word for word in told.words if word.content]
    kinds = visit.script("[...document.querySelectorAll('.caption .e-word')].map(e => e.className)")
    assert kinds == [f"e-word e-{word.verdict}" for word in words]
    legend = visit.text(".e-legend")
    for verdict, share in told.shares.items():
        assert (f"{round(100 * share)} %" in legend) or not share, verdict
    stops = visit.script("[...document.querySelectorAll('.e-word')].filter(e => e.tabIndex === 0)")
    assert len(stops) == 1
    visit.script("document.querySelector('.caption .e-word').focus()")
    assert visit.text(".e-tip").startswith(f"{words[0].text}: ")
    visit.type(Keys.ARROW_RIGHT)
    assert visit.text(".e-tip").startswith(f"{words[1].text}: ")
    bars = visit.script("[...document.querySelectorAll('.e-curve')].map(e => e.childElementCount)")
    assert bars == [len(told.times)] * 2
    assert not is_wider_than_its_window(browser)
    shots = Path(os.environ.get("UGC_JAX_SCREENSHOTS", tmp_path))
    photograph(browser, shots / "evidence.png", whole=False)
    assert faults(browser, axe_core(tmp_path)) == []
    visit.type(Keys.ESCAPE)
    assert visit.script("document.querySelectorAll('.e-tip').length") == 0
    assert visit.errors() == []
    loaded = visit.script("performance.getEntriesByType('resource').map(e => e.name)")
    assert all(one.startswith((served.address, f"blob:{served.address}")) for one in loaded)


def test_pictures_and_sounds(browser, served, folder):
    visit = Visit(browser, served.address)
    for name, kind in (("grey.png", "image_url"), ("silence.wav", "input_audio")):
        visit.choose(folder / name)
        enabled = "[...document.querySelectorAll('fieldset input:enabled')].map(e => e.value)"
        assert visit.script(enabled) == ["both"]
        visit.find("#start").send_keys(Keys.ENTER)
        visit.wait(lambda name=name: visit.text(".group h2") == name)
        visit.done()
        assert visit.text(".caption") != ""
        assert f'"type":"{kind}"' in visit.text(".request pre")
    visit.find(".request summary").send_keys(Keys.ENTER)
    visit.find(".request button").send_keys(Keys.ENTER)
    visit.wait(lambda: visit.text(".request span") != "")
    assert visit.errors() == []


def test_links_have_the_servers_rules(browser, served, folder):
    visit = Visit(browser, served.address)
    rules = visit.text("#link-help")
    assert "fetches no links from the network" in rules
    assert "file:// links below" in rules
    answers = []
    for link in (f"file://{folder}/silent.mp4", "https://example.com/a.mp4", "file:///etc/passwd"):
        box = visit.find("#link")
        box.clear()
        box.send_keys(link, Keys.ENTER)
        visit.wait(lambda link=link: visit.text(".group h2") == link)
        visit.done()
        answers.append((visit.text(".caption"), visit.text("article .bad")))
    assert "not played here" in visit.text("#name")
    (caption, fault), (_, unfetched), (_, outside) = answers
    assert (caption != "", fault) == (True, "")
    assert "this server fetches no URLs" in unfetched
    assert "no such file below the server's media_root" in outside
    assert visit.errors() == []


def test_dropping(browser, served):
    visit = Visit(browser, served.address)
    dropped = (
        "(() => { const held = new DataTransfer(); %s;"
        "document.body.dispatchEvent(new DragEvent('drop', "
        "{dataTransfer: held, bubbles: true, cancelable: true})); })()"
    )
    file = "new File([new Uint8Array(3000)], 'a.wav', {type: 'audio/wav'})"
    visit.script(dropped % f"held.items.add({file})")
    assert visit.text("#name") == "a.wav, 3 kB"
    visit.wait(lambda: "cannot show" in visit.text("#preview"))  # as it is no sound
    visit.script(dropped % "held.setData('text/uri-list', 'https://example.com/a.mp4')")
    assert visit.find("#link").get_property("value") == "https://example.com/a.mp4"
    assert visit.text("#preview") == ""


def test_stop(browser, served, folder):
    visit = Visit(browser, served.address)
    visit.choose(folder / MARKUP)
    for box in ("picture", "sound"):
        visit.find(f"input[value={box}]").send_keys(Keys.SPACE)
    slow = dict(offline=False, latency=3000, uploadThroughput=-1, downloadThroughput=-1)
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", slow)
    visit.find("#start").send_keys(Keys.ENTER)
    assert visit.focus() == "stop"
    visit.type(Keys.ENTER)
    visit.done()
    fast = slow | dict(latency=0)
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", fast)
    assert visit.text(".figures") == ""
    assert visit.text("#state") == visit.text(".end") == "Stopped."
    assert len(visit.driver.find_elements("css selector", "article")) == 1  # the rest never began
    assert visit.focus() == "start"
    metrics = {"Authorization": f"Bearer {KEY}"}
    visit.wait(
        lambda: "\nugc_jax_requests_under_way 0.0" in served.get("/metrics", headers=metrics).text
    )


def test_faults_are_the_servers_one_line(browser, served, folder):
    visit = Visit(browser, served.address, key=None)
    assert visit.find("#tool").is_displayed() is False
    assert visit.text("#key-error") == ""
    visit.type("wrong", Keys.ENTER)
    visit.wait(lambda: "needs its key" in visit.text("#key-error"))
    assert visit.focus() == "key-text"
    visit.type(KEY, Keys.ENTER)
    visit.wait(lambda: visit.find("#tool").is_displayed())
    assert visit.script("localStorage.length") == 0
    assert visit.script("document.cookie") == ""
    visit.find("#start").send_keys(Keys.ENTER)
    assert "Give a clip first" in visit.text("#fault")
    visit.choose(folder / "large.mp4")
    assert visit.text("#fault") == "large.mp4 has 2.00 MB; this server takes files up to 1.50 MB"
    visit.choose(folder / "broken.mp4")
    visit.wait(lambda: "cannot show" in visit.text("#preview"))
    visit.find("#start").send_keys(Keys.ENTER)
    visit.done()
    fault = visit.text("article .bad")
    assert fault.startswith("messages[0].content[0].video_url: ")
    assert "\n" not in fault
    visit.choose(folder / "silent.mp4")
    visit.find("input[value=both]").send_keys(Keys.SPACE)
    visit.find("#start").send_keys(Keys.ENTER)
    assert visit.text("#fault").startswith("Choose what the model gets")


def test_what_needs_a_key(served):
    for path in ("/", "/static/try.js", "/static/evidence.js", "/static/icon.svg"):
        page = served.get(path)
        assert page.status_code == 200, path
        assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "tiny" not in served.get("/").text  # nor the model's name
    for path in ("/v1/models", "/static", "/metrics", "//", "/static/../v1/models"):
        assert served.get(path).status_code in (401, 404), path
    models = served.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).json()
    takes = models["data"][0]["ugc_jax"]
    assert (takes["upload"], takes["urls"], takes["files"]) == (2_000_000, False, True)


@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_accessible_and_fits(browser, served, folder, tmp_path, size, theme):
    axe = axe_core(tmp_path)
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    shots = Path(os.environ.get("UGC_JAX_SCREENSHOTS", tmp_path))
    found = {}

    def look(name: str):
        photograph(browser, shots / f"{size[0]}-{theme}-{name}.png", whole=name == "done")
        assert not is_wider_than_its_window(browser), name
        if listed := faults(browser, axe):
            found[name] = listed

    visit = Visit(browser, served.address, key=None, size=size)
    visit.type("wrong", Keys.ENTER)
    visit.wait(lambda: visit.text("#key-error") != "")
    look("key")
    visit.type(KEY, Keys.ENTER)
    visit.wait(lambda: visit.find("#tool").is_displayed())
    look("empty")
    visit.choose(folder / MARKUP)
    for box in ("picture", "sound"):
        visit.find(f"input[value={box}]").send_keys(Keys.SPACE)
    visit.find("#question").send_keys("What is for sale?", Keys.CONTROL, Keys.ENTER)
    visit.done()
    visit.find("[data-way=both] .inputs summary").send_keys(Keys.ENTER)
    visit.find("[data-way=picture] .request summary").send_keys(Keys.ENTER)
    visit.wait(lambda: visit.script("[...document.images].length >= 5"))
    visit.wait(lambda: visit.script("[...document.images].every(i => i.naturalWidth > 0)"))
    visit.choose(folder / "broken.mp4")
    visit.find("#start").send_keys(Keys.ENTER)
    visit.done()
    visit.choose(folder / MARKUP)
    visit.wait(lambda: visit.script("document.querySelector('video')?.readyState") >= 2)
    look("done")
    dark = visit.script("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 26)"
    assert dark == (theme == "dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert found == {}
