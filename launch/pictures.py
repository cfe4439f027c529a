"""Make the pictures of README.md after the quickstart: python launch/pictures.py [runs/quickstart]

docs/images/report.png is the quickstart's page; docs/images/serve.gif is the page of `ugc-jax
serve`, which captions a clip. Needs Chromium with its driver, selenium (extra `test`) and the extra
`serve`.
"""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs/images"
SIZE = (1280, 860)  # CSS pixels
WIDTH = 720  # pixels of the moving picture
PAUSE, LAST = 120, 2500  # milliseconds of a frame, and of the last one


@contextlib.contextmanager
def browser():
    """A headless Chromium of SIZE."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    with tempfile.TemporaryDirectory() as profile:
        for flag in ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options)
        size = dict(width=SIZE[0], height=SIZE[1], deviceScaleFactor=1, mobile=False)
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            yield driver
        finally:
            driver.quit()


def shot(driver) -> Image.Image:
    """The window as a picture."""
    return Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")


def report(driver, run: Path):
    """The browser of clips of the quickstart's page, one of them playing."""
    driver.get((run / "report.html").resolve().as_uri())
    track = driver.find_elements("css selector", ".track.seeks")[0]
    driver.execute_script("document.getElementById('clips').scrollIntoView()")
    track.click()
    time.sleep(2)
    picture = shot(driver)
    picture.quantize(128).save(IMAGES / "report.png", optimize=True)


def serve(driver, run: Path):
    """A clip is dropped and captioned, with evidence; a frame whenever the page has changed."""
    command = [sys.executable, "-m", "ugc_jax.cli", "serve"]
    command += ["--checkpoint", str(run / "grpo/model"), "--name", "quickstart", "--port", "8123"]
    first, clip = sorted((run / "world/test").glob("*.mp4"))[2:4]
    environment = {"PYTHONPATH": str(ROOT)} | dict(os.environ)
    with subprocess.Popen(command, env=environment) as server:
        try:
            _wait(driver, "http://127.0.0.1:8123/")
            driver.find_element("id", "file").send_keys(str(first.resolve()))
            driver.find_element("id", "colours").click()
            driver.find_element("id", "start").click()
            _frames(driver)  # the programs are compiled by now
            _wait(driver, "http://127.0.0.1:8123/")
            driver.find_element("id", "colours").click()
            frames = [shot(driver)]
            driver.find_element("id", "file").send_keys(str(clip.resolve()))
            time.sleep(0.5)
            frames.append(shot(driver))
            driver.find_element("id", "start").click()
            frames += _frames(driver)
        finally:
            server.terminate()
    height = round(SIZE[1] * WIDTH / SIZE[0])
    small = [frame.resize((WIDTH, height), Image.Resampling.LANCZOS) for frame in frames]
    first, *rest = [frame.quantize(200) for frame in small]
    times = [1200, 900, *([PAUSE] * (len(rest) - 2)), LAST]
    moving = dict(save_all=True, append_images=rest, duration=times, loop=0)
    first.save(IMAGES / "serve.gif", optimize=True, **moving)


def _frames(driver) -> list[Image.Image]:
    """The window whenever it has changed, until the answer is there (for three minutes at most)."""
    frames, end = [], time.monotonic() + 180
    while time.monotonic() < end:
        is_over = driver.find_element("id", "start").is_enabled()
        frame = shot(driver)
        if not frames or frame.tobytes() != frames[-1].tobytes():
            frames.append(frame)
        if is_over and len(frames) > 1:
            return frames
    raise SystemExit("pictures.py: no answer within three minutes")


def _wait(driver, address: str):
    """Open a page as soon as its server answers."""
    from selenium.common.exceptions import WebDriverException

    end = time.monotonic() + 120
    while True:
        try:
            driver.get(address)
            time.sleep(1)
            if driver.find_element("id", "tool").is_displayed():
                return
        except WebDriverException:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def main(run: Path):
    """Make both pictures of a quickstart's run."""
    with browser() as driver:
        report(driver, run)
        serve(driver, run)
    for name in ("report.png", "serve.gif"):
        print(f"{IMAGES / name}: {(IMAGES / name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "runs/quickstart"))
