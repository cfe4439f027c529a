"""The parts of data_life.sh that are no jobs: the teacher's server, people at browsers, the truth.

python launch/data_life.py label MANIFEST LABELS ERRORS
python launch/data_life.py caught MANIFEST LABELS ERRORS
python launch/data_life.py annotate MANIFEST PROJECT
python launch/data_life.py agreed MANIFEST EXPORT
python launch/data_life.py answers CAPTIONS FOLDER
"""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from ugc_jax import files
from ugc_jax.annotate import agreement, imports
from ugc_jax.data.annotation import STAGES
from ugc_jax.toy import world
from ugc_jax.toy.teacher import Asked, Clips, ErrorModel, Teacher, answer, measure

# Whether the scripts of a page have run; its media may still load.
LOADED = "return performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd > 0"
JOB = [sys.executable, "-m", "ugc_jax.cli"]
REMEDY = "run data_life.sh again"
# Annotators and the share of their statements that are wrong; the owner decides, and never errs.
PEOPLE = {"ada": 0.02, "ben": 0.1, "cem": 0.2}
ANNOTATORS = 2  # of them for each clip
OWNER = "olga"
PASSWORD = "a password of this example"


def rows(path: Path) -> list[dict]:
    return [line.value for line in files.read_lines(path, REMEDY)]


def truth(manifest: Path) -> dict[str, dict[str, str]]:
    """The attributes of each clip of a manifest of the world, by the name of its file."""
    return {Path(row["videos"][0]).name: row["attributes"] for row in rows(manifest)}


# ---- the teacher ---------------------------------------------------------------------------------


def label(manifest: Path, labels: Path, errors: float):
    with Teacher(manifest, errors=errors) as teacher:
        words = ["label", str(manifest.with_suffix("")), "--output", str(labels)]
        words += ["--teacher.kind", "gemini", "--model", "toy", "--base_url", teacher.url]
        # Captions of the world are short.
        words += ["--min_words", "8", "--compare_with", "sample", "--question", world.QUESTION]
        done = subprocess.run([*JOB, *words])
    if done.returncode:
        sys.exit(done.returncode)


def caught(manifest: Path, labels: Path, errors: float):
    rejected = labels.with_name("rejected.jsonl")
    found = measure(labels, rejected, Clips(manifest), ErrorModel(errors))
    print(found)
    print(f"precision {found.precision:.1%}, recall {found.recall:.1%} of errors in one pass only")


# ---- people --------------------------------------------------------------------------------------


class Person:
    """Somebody at a browser of their own. errors: the share of statements that are wrong."""

    def __init__(self, driver, address: str, name: str, truth: Mapping[str, dict]):
        self.driver, self.address, self.name, self.truth = driver, address, name, truth
        driver.get(f"{address}/login")
        self.find('input[name="name"]').send_keys(name)
        self.find('input[name="password"]').send_keys(PASSWORD)
        self.follow(self.find("main button, form.narrow button"))

    def find(self, css: str, root=None):
        return (root or self.driver).find_element("css selector", css)

    def all(self, css: str, root=None) -> list:
        return (root or self.driver).find_elements("css selector", css)

    def follow(self, element):
        """Click what leads to another page, and wait for it."""
        page = self.find("html")
        self.click(element)
        self.wait_for_another(page)

    def click(self, element):
        """Click, in the middle of the window: what is at its foot may be covered."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def wait_for_another(self, page):
        from selenium.common.exceptions import NoSuchElementException, WebDriverException

        end = time.monotonic() + 30
        while time.monotonic() < end:
            with contextlib.suppress(NoSuchElementException, WebDriverException):
                if self.driver.execute_script(LOADED) and self.find("html") != page:
                    return
            time.sleep(0.01)
        said = [one.text for one in self.all(".saved.bad, [role=alert]")]
        sys.exit(f"{self.name}: {self.driver.current_url} leads nowhere: {' '.join(said)}")

    def values(self, clip: str, errors: float) -> dict[str, dict]:
        """What this person says about a clip in each stage."""
        chance = random.Random(f"{self.name} {clip}")
        facts = self.truth[clip]
        told = dict(facts)
        for name, value in facts.items():
            if chance.random() < errors:
                # A background does not turn into itself.
                taken = {value, told["background"], told["change"]}
                told[name] = chance.choice([one for one in world.VALUES[name] if one not in taken])
        phrasing = chance.randrange(len(world.PHRASINGS))
        return {stage: answer(Asked(0, stage, 0, 0), told, phrasing) for stage in STAGES}

    def fill(self, root, value: Mapping, fields: str = "[data-field]"):
        """Type the values of a stage's fields into its form."""
        for field in self.all(fields, root):
            kind, said = field.get_attribute("data-kind"), value[field.get_attribute("data-field")]
            if kind in ("choice", "yes_no"):
                option = str(said).lower() if kind == "yes_no" else said
                self.click(self.find(f'input[value="{option}"]', field))
            elif kind in ("line", "text"):
                box = self.find("input, textarea", field)
                box.clear()
                box.send_keys(said)
            else:
                for remove in self.all("[data-remove]", field):
                    self.click(remove)
                for item in said:
                    self.click(self.find("[data-add]", field))
                    self._fill_row(self.all(".rows > .row", field)[-1], item)

    def _fill_row(self, row, item):
        for box in self.all("[data-part]", row):
            text = item if isinstance(item, str) else item[box.get_attribute("data-part")]
            if text not in (None, ""):
                box.clear()
                box.send_keys(str(text))

    def annotate(self, errors: float, bar: tqdm):
        """Annotate clips while there are any for this person."""
        from selenium.webdriver.common.keys import Keys

        while True:
            self.driver.get(f"{self.address}/")
            self.follow(self.find('form[action="/next"] button'))
            if self.driver.current_url.endswith("/done"):
                if "being prepared" not in self.find("main").text:
                    return
                time.sleep(0.5)
            while "/works/" in self.driver.current_url:
                form = self.find("form[data-main]")
                stage, clip = form.get_attribute("data-stage"), self.find("h1 .muted").text
                self.fill(form, self.values(clip, errors)[stage])
                page = self.find("html")
                self.find("textarea", form).send_keys(Keys.CONTROL, Keys.ENTER)
                self.wait_for_another(page)
                if stage == "both":
                    bar.update()

    def decide(self) -> int:
        """Correct what is in dispute, and the final captions of these clips; returns how many."""
        decided = 0
        while True:
            self.driver.get(f"{self.address}/clips?state=dispute")
            links = self.all("tbody a")
            if not links:
                return decided
            self.follow(links[0])
            right = self.values(self.find("h1 .muted").text, 0.0)
            for part in self.all("form.decide [data-stage]"):
                stage = part.get_attribute("data-stage")
                fields = "[data-field]" if stage == "both" else "[data-field].marked"
                self.fill(part, right[stage], fields)
            self.follow(self.find("form.decide .main"))
            decided += 1

    def accept_questions(self) -> int:
        """Have questions proposed and accept them; returns how many."""
        self.driver.get(f"{self.address}/questions")
        while proposing := self.all('form[action="/questions"] button'):
            self.follow(proposing[0])
        accepted = 0
        for link in [one.get_attribute("href") for one in self.all("tbody a")]:
            self.driver.get(link)
            while proposed := self.all("form.question.proposed [value=accept]"):
                self.follow(proposed[0])
                accepted += 1
        return accepted


@contextlib.contextmanager
def browser() -> Iterator:
    """A headless Chromium."""
    from selenium import webdriver

    program = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not (program and driver):
        sys.exit("no Chromium with its driver; install them (Debian: apt install chromium-driver)")
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = program
        for flag in ("headless=new", "no-sandbox", "disable-gpu", f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        options.add_argument("--window-size=1280,1000")
        options.page_load_strategy = "eager"
        one = webdriver.Chrome(options, webdriver.ChromeService(driver))
        try:
            yield one
        finally:
            one.quit()


@contextlib.contextmanager
def served(clips: Path, project: Path) -> Iterator[str]:
    """`ugc-jax annotate` with the accounts of all people; yields its address."""
    place = [*JOB, "-q", "annotate", str(clips), "--output", str(project)]
    marker = project / "accounts.txt"
    if not marker.exists():
        for name in (OWNER, *PEOPLE):
            role = "owner" if name == OWNER else "annotator"
            words = [*place, "--account", f"{name}:{role}"]
            subprocess.run(words, input=f"{PASSWORD}\n", text=True, check=True)
        files.write_text(marker, "\n".join((OWNER, *PEOPLE)))
    words = [*place, "--port", "0", "--annotators", str(ANNOTATORS), "--drafts", "never"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().split()[0].rstrip("/")
        finally:
            server.send_signal(signal.SIGINT)


def annotate(manifest: Path, project: Path):
    right, clips = truth(manifest), manifest.with_suffix("")
    failed: list[BaseException] = []
    with served(clips, project) as address:
        start = time.monotonic()
        with tqdm(total=ANNOTATORS * len(right), desc="annotated", unit="clip") as bar:

            def work(name: str, errors: float):
                try:
                    with browser() as driver:
                        person = Person(driver, address, name, right)
                        person.annotate(errors, bar)
                except BaseException as error:
                    failed.append(error)

            people = [threading.Thread(target=work, args=pair) for pair in PEOPLE.items()]
            for one in people:
                one.start()
            for one in people:
                one.join()
        if failed:
            raise failed[0]
        print(f"{len(right)} clips by {len(PEOPLE)} people: {time.monotonic() - start:.0f} s")
        with browser() as driver:
            owner = Person(driver, address, OWNER, right)
            print(f"{owner.decide()} clips in dispute were decided")
            print(f"{owner.accept_questions()} questions were accepted")
            driver.get(f"{address}/questions")
            for warning in owner.all("[role=note]"):
                print(f"warning: {warning.text}")


# ---- what came of it -----------------------------------------------------------------------------


def wrong_share(captions: Mapping[str, str], right: Mapping[str, dict]) -> float:
    """The share of all attributes that captions by clip state wrongly."""
    checks = [world.check(caption, right[clip]) for clip, caption in captions.items()]
    return sum(not good for one in checks for good in one.values()) / sum(map(len, checks))


def agreed(manifest: Path, export: Path):
    right = {Path(name).stem: facts for name, facts in truth(manifest).items()}
    found = imports.read(export)
    report = agreement.measure(found.answers)
    print("field                       agreement   alpha")
    for one in report.fields:
        alpha = "" if one.alpha is None else f"{one.alpha:.2f}"
        print(f"{one.stage + ' ' + one.field:<28}{one.mean:>9.1%}{alpha:>8}")
    print(f"{len(report.disputes())} stages of {len(report.clips)} in dispute")
    for name, errors in PEOPLE.items():
        said = {one.clip: one.value.caption for one in found.answers
                if one.annotator == name and one.stage == "both"}  # fmt: skip
        fields = [one.mean for one in report.annotators if one.annotator == name]
        print(
            f"{name}: {wrong_share(said, right):.1%} of statements wrong (errs in {errors:.0%}), "
            f"agrees with the others by {sum(fields) / len(fields):.1%}"
        )
    final = {one.clip: one.both.caption for one in found.agreed if one.both is not None}
    share = wrong_share(final, right)
    print(f"agreed final captions of {len(final)} clips: {share:.1%} of statements wrong")
    asked = [question for one in found.agreed for question in one.questions]
    kinds = {kind: sum(one.kind == kind for one in asked) for kind in ("sound", "picture", "cross")}
    print(f"{len(asked)} questions: {', '.join(f'{n} {kind}' for kind, n in kinds.items())}")


def answers(captions: Path, folder: Path):
    """Answers to the tasks bgm and ocr, from what captions state."""
    tasks: dict[str, list[dict]] = {"bgm": [], "ocr": []}
    for row in rows(captions):
        stated = world.parse_caption(row.get("caption") or "")
        texts = [] if stated["text"] in (None, world.NO_TEXT) else [stated["text"]]
        clip = {"video_id": Path(row["video"]).stem}
        tasks["bgm"].append(clip | {"prediction": "Yes" if stated["sound"] == "music" else "No"})
        tasks["ocr"].append(clip | {"prediction": json.dumps({"ocr": texts})})
    for name, predictions in tasks.items():
        files.write_text(folder / f"{name}.jsonl", files.to_lines(predictions))


def main(name: str, *words: str):
    parts = {"label": label, "caught": caught, "annotate": annotate, "agreed": agreed,
             "answers": answers}  # fmt: skip
    paths = [Path(word) for word in words[:2]]
    parts[name](*paths, *map(float, words[2:]))


if __name__ == "__main__":
    main(*sys.argv[1:])
