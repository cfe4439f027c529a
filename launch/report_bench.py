"""Time a report of 999 clips and its opening: python launch/report_bench.py [OUTPUT.json]

Three results of 999 clips of 24 s at 640x360, as UGC-VideoCap has them, with the settings that
`ugc-jax report` has by default (pictures of the 200 worst). Then Chromium, with its driver and
selenium (extra `test`), opens the page: the time until all of it is loaded (the load event), the
median of three; and a frame strip is clicked: does the clip play from that second?
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import browser  # noqa: E402
import fake_results  # noqa: E402
from clips import write_clip  # noqa: E402

CLIPS, SECONDS, SIZE, DIFFERENT = 999, 24.0, (640, 360), 4
WORDS = ("a man", "in red", "walks", "past", "the blue door", "while", "music plays", "and", "cuts")


def write_results(folder: Path, clips: int):
    """Write three results of the caption task with texts of 150 words, and the clips."""
    chance = random.Random(0)

    def text() -> str:
        return " ".join(chance.choices(WORDS, k=100)).capitalize() + "."

    references = [text() for _ in range(clips)]
    for name in ("First", "Second", "Third"):
        made = fake_results.captions(
            name, [tuple(chance.choices(range(1, 6), k=3)) for _ in range(clips)]
        )
        for clip, reference in zip(made["clips"]["final_caption"], references, strict=True):
            clip |= {"reference": reference, "prediction": text()}
        (folder / f"{name}.json").write_text(json.dumps(made))
    (folder / "clips").mkdir()
    for number in range(min(DIFFERENT, clips)):
        write_clip(folder / f"{number}.mp4", seconds=SECONDS, fps=25, size=SIZE)
    for number in range(clips):
        (folder / "clips" / f"clip-{number}.mp4").symlink_to(folder / f"{number % DIFFERENT}.mp4")


def make_page(folder: Path) -> tuple[Path, float]:
    """Run `ugc-jax report`; returns the page and the seconds."""
    page = folder / "report.html"
    command = [sys.executable, "-m", "ugc_jax.cli", "report", "--output", page]
    results = [folder / f"{name}.json" for name in ("First", "Second", "Third")]
    begun = time.monotonic()
    subprocess.run([*command, "--videos", folder / "clips", "--", *results], check=True)
    return page, time.monotonic() - begun


def open_page(driver, page: Path) -> float:
    """Open a page; returns the seconds to its load event."""
    driver.get("about:blank")
    driver.get(page.as_uri())
    return driver.execute_script(
        "return performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"
    )


def play(driver, share: float) -> tuple[float, float]:
    """Click the first frame strip at a share of its width.

    Returns (the second where the clip began to play, the second that was clicked).
    """
    from selenium.webdriver.common.action_chains import ActionChains

    strip = driver.find_element("css selector", ".track.seeks")
    driver.execute_script(
        "arguments[0].scrollIntoView({block: 'center'});"
        "document.addEventListener('playing', e => window.began ??= e.target.currentTime, true)",
        strip,
    )
    width = strip.size["width"]
    offset = round((share - 0.5) * width)
    ActionChains(driver).move_to_element_with_offset(strip, offset, 0).click().perform()
    end = time.monotonic() + 10
    while (began := driver.execute_script("return window.began ?? null")) is None:
        if time.monotonic() > end:
            fault = "return document.querySelector('video')?.error?.message ?? 'it does not play'"
            sys.exit(driver.execute_script(fault))
        time.sleep(0.05)
    return began, (0.5 + offset / width) * float(strip.get_attribute("data-seconds"))


def measure(folder: Path, clips: int = CLIPS) -> dict:
    """Make the page of `clips` clips in `folder`, open and play it, and return all figures."""
    write_results(folder, clips)
    page, seconds = make_page(folder)
    with browser.chromium(folder / "profile") as driver:
        browser.resize(driver, *browser.LAPTOP)
        opened = statistics.median(open_page(driver, page) for _ in range(3))
        began, clicked = play(driver, 0.6)
        version = driver.capabilities["browserVersion"]
        height = driver.execute_script("return document.documentElement.scrollHeight")
    return {
        "date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "chromium": version,
        "clips": clips, "seconds": seconds, "megabytes": page.stat().st_size / 1e6,
        "open_seconds": opened, "height_pixels": height,
        "clicked_second": clicked, "played_from_second": began,
    }  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder))
    text = json.dumps(figures, indent=2) + "\n"
    print(text, end="")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, "utf-8")
