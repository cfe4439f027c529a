"""A headless Chromium for tests of pages; without it, its driver or selenium they are skipped."""

import base64
import contextlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--mute-audio",
)  # fmt: skip
LAPTOP, PHONE = (1440, 900), (390, 844)


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator:
    """Yield a driver of its own; profile: a folder for it."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium with its driver; apt-get install chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()


def resize(driver, width: int, height: int):
    """Give the page a size in CSS pixels; a narrow one is a phone's."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def is_wider_than_its_window(driver) -> bool:
    """Whether the page scrolls sideways."""
    return driver.execute_script(
        "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
    )


def photograph(driver, path: Path, whole: bool = False):
    """Write a PNG of the window, or of the whole page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": whole})
    path.write_bytes(base64.b64decode(shot["data"]))


def axe_core(folder: Path) -> str:
    """The source of axe-core, from npm; the test is skipped where npm cannot fetch it."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm, which fetches axe-core")
    run = [npm, "pack", "axe-core@4", "--silent"]
    packed = subprocess.run(run, cwd=folder, capture_output=True, text=True, timeout=120,
                            env=os.environ | {"npm_config_fetch_retries": "0"})  # fmt: skip
    if packed.returncode:
        pytest.skip(f"npm cannot fetch axe-core: {packed.stderr.strip()[:200]}")
    with tarfile.open(folder / packed.stdout.split()[-1]) as archive:
        return archive.extractfile("package/axe.min.js").read().decode()


def faults(driver, axe: str) -> list[str]:
    """What axe finds serious or critical: "rule: element"."""
    driver.execute_script(axe)
    result = driver.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run(document, {resultTypes: ['violations']}).then(done, e => done(String(e)));"
    )
    assert isinstance(result, dict), result
    return [
        f"{one['id']}: {node['html'][:150]}"
        for one in result["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
