"""The folder in which docs_commands.py runs a page: files of the names that the pages use.

All clips are of the synthetic world, all models the tiny random one; each hub id of the pages is in
a cache of the hub, and a hub, a judge and a teacher answer on this machine (tests/fake_*.py).
"""

import contextlib
import io
import json
import shutil
import ssl
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import fake_hub  # noqa: E402
from fake_judge import FakeJudge, fair  # noqa: E402

HUB_IDS = (
    "Qwen/Qwen2.5-Omni-3B", "Qwen/Qwen2.5-Omni-7B", "openinterx/UGC-VideoCaptioner",
    "AVoCaDO-Captioner/AVoCaDO",
)  # fmt: skip
TEACHER_PORT = 8000  # of docs/labelling.md
CAPTION = "A red circle moves to the left on a dark background while a low tone sounds."


def fill(folder: Path, job: Callable[[str], None], environment: dict[str, str]):
    """Write the files into `folder`, once, and set variables of `environment`.

    job: runs a line of `ugc-jax` in the folder.
    """
    environment |= {"HF_HOME": str(folder.parent / "hub"), "HF_HUB_OFFLINE": "1"}
    if (folder / "ready").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job("init --output tiny")
    job("world --output world --train 12 --test 6")
    _clips(folder)
    _models(folder, environment)
    _manifests(folder)
    _benchmarks(folder)
    _tiny_run(folder, job)
    _results(folder, job)
    job("annotate clips --output project --load qa")
    _certificate(folder)
    (folder / "keys").write_text("a-key-of-this-page\n")
    (folder / "my_rewards.py").write_text(
        "REWARDS = {'brand': lambda prompt, completion, reference, metadata: 1.0}\n"
    )
    (folder / "ready").write_text("")


def _write(path: Path, content: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, "utf-8")


def _lines(path: Path, rows: list[dict]):
    _write(path, "".join(json.dumps(row) + "\n" for row in rows))


def _world(folder: Path, split: str) -> list[tuple[Path, dict]]:
    """(clip, row of the manifest) of a split."""
    rows = map(json.loads, (folder / f"world/{split}.jsonl").read_text().splitlines())
    return [(folder / "world" / row["videos"][0], row) for row in rows]


def _clips(folder: Path):
    """clip.mp4, film.mp4, films, clips with clips/train and clips/test, shards of tar files."""
    train, test = _world(folder, "train"), _world(folder, "test")
    places = {"clip.mp4": train[0], "film.mp4": train[1], "my_clip.mp4": train[2]}
    places |= {f"{name}.mp4": train[n] for n, name in enumerate("ab", 3)}
    places |= {f"films/{name}.mp4": train[n] for n, name in enumerate(("one", "two"))}
    places |= {f"clips/{name}.mp4": train[n] for n, name in enumerate("ab", 3)}
    places |= {f"clips/train/t{n}.mp4": train[n] for n in range(5, 12)}
    places |= {f"clips/test/e{n}.mp4": one for n, one in enumerate(test)}
    for name, (clip, _) in places.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clip, folder / name)
    # The teacher knows clips by their content: a manifest of all of them.
    rows = [row | {"videos": [str(folder / name)]} for name, (_, row) in places.items()]
    _lines(folder / "truth.jsonl", rows)
    (folder / "shards").mkdir()
    for number in range(128):
        with tarfile.open(folder / f"shards/clips-{number:06d}.tar", "w") as archive:
            key = f"{number:06d}"
            for suffix, data in ((".mp4", train[0][0].read_bytes()), (".txt", CAPTION.encode())):
                info = tarfile.TarInfo(key + suffix)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def _models(folder: Path, environment: dict[str, str]):
    """The tiny model under the hub's ids, in the form of the hub's cache, and as a folder."""
    for name in HUB_IDS:
        place = Path(environment["HF_HOME"]) / "hub" / f"models--{name.replace('/', '--')}"
        _write(place / "refs/main", "1" * 40)
        shutil.copytree(folder / "tiny", place / "snapshots" / ("1" * 40), dirs_exist_ok=True)
    shutil.copytree(folder / "tiny", folder / "models/my-copy")


def _manifests(folder: Path):
    """Manifests of rows to train on: captions, a teacher's labels, other columns, data sets."""
    clips = [clip.relative_to(folder) for clip, _ in _world(folder, "train")[:4]]
    question = {"role": "user", "content": "<video>Describe the video."}
    answer = {"role": "assistant", "content": CAPTION}
    rows = [{"videos": [str(clip)], "messages": [question, answer]} for clip in clips]
    for name in ("mine", "train"):
        _lines(folder / f"{name}.jsonl", rows)
    prompts = [row | {"messages": [question], "solution": CAPTION} for row in rows]
    _lines(folder / "grpo_1k.jsonl", prompts)
    with contextlib.suppress(ImportError):  # the extra datasets
        from datasets import Dataset

        table = [
            {"clip": str(folder / clip), "long_text": CAPTION, "caption": "Short.",
             "thumbnail": "x", "embedding": [0.0]}
            for clip in clips
        ]  # fmt: skip
        Dataset.from_list(table).to_parquet(str(folder / "rows.parquet"))
        Dataset.from_list(table).save_to_disk(str(folder / "saved/clips"))


def _benchmarks(folder: Path):
    """The released files of UGC-VideoCap and of two other benchmarks, about a, b, e0 to e5."""
    ids = ["a", "b", *(f"e{number}" for number in range(6))]

    def qa(question: str, answers: list, **more) -> str:
        samples = [
            {"video_id": one, "answer": answers[n % len(answers)], **more}
            for n, one in enumerate(ids)
        ]
        return json.dumps({"question": question, "valid_count": len(ids), "samples": samples})

    yes_no, tones = ["Yes", "No"], ["Positive", "Neutral", "Negative"]
    texts = {
        "voice_source": qa("Whose voice?", ["Narration"], options=["Narration", "Dialogue"]),
        "tone": qa("Which tone?", tones, options=tones),
        "BGM": qa("Is there music?", yes_no, options=yes_no),
        "back_ground_change_new": qa("Does the background change?", ["It gets brighter."]),
        "object": qa("Which objects?", ["a circle; a square"]),
        **{f"{kind}_caption_qa": qa("Describe it.", [CAPTION])
           for kind in ("audio", "visual", "final")},
    }  # fmt: skip
    for place in ("qa", "benchmark/qa"):
        for name, text in texts.items():
            _write(folder / place / f"{name}.json", text)
        _lines(folder / place / "ocr.jsonl", [{"video_id": one, "ocr": ["GO"]} for one in ids])
    said = [{"video": f"{one}.mp4", "caption": CAPTION} for one in ids]
    for name in ("captions", "predictions"):
        _lines(folder / f"{name}.jsonl", said)
    tone = [{"video_id": one, "prediction": "Neutral"} for one in ids]
    _lines(folder / "tone.jsonl", tone)
    world = [{"video_id": clip.stem, "caption": CAPTION} for clip, _ in _world(folder, "test")]
    _lines(folder / "said.jsonl", world)
    questions = [
        {"video_id": one, "Question": "Which colour?", "Choice": ["A. red", "B. blue"],
         "Answer": "A"}
        for one in ids
    ]  # fmt: skip
    _write(folder / "daily_omni/qa.json", json.dumps(questions))
    events = [{"VIDEO_COLUMN": one, "EVENTS_COLUMN": ["A tone sounds."]} for one in ids[:2]]
    _write(folder / "events.json", json.dumps(events))


def _tiny_run(folder: Path, job: Callable[[str], None]):
    """runs/quickstart as quickstart.sh leaves it, after few steps; runs/mine, records, labels."""
    run = folder / "runs/quickstart"
    shutil.copytree(folder / "tiny", run / "start")
    shutil.copytree(folder / "world", run / "world")
    for split in ("train", "test"):
        job(f"extract --config world --output runs/quickstart/records/{split} world/{split}.jsonl")
    job("sft --config tiny:runs/quickstart --steps 4 --loop.eval_every 4")
    shutil.copytree(run / "sft", run / "grpo")
    shutil.copytree(run / "sft", folder / "runs/mine")
    shutil.copytree(run / "sft", folder / "runs/grpo")
    for name in ("data/records", "data/train", "records/mine", "records/grpo_1k"):
        shutil.copytree(run / "records/train", folder / name)
    label = {"teacher": "gemini", "model": "toy", "tone": "Neutral", "voice_source": "Narration"}
    rows = []
    for clip in sorted((folder / "clips/train").iterdir()):
        question = {"role": "user", "content": "<video>Describe the video."}
        answer = {"role": "assistant", "content": CAPTION}
        rows.append({"videos": [str(clip)], "messages": [question, answer], "label": label})
    for name in ("labels.jsonl", "data/labels.jsonl", "data/train.jsonl"):
        _lines(folder / name, rows)


def _results(folder: Path, job: Callable[[str], None]):
    """results/*.json: of two models, judged by two judges."""
    captions = "--qa qa/final_caption_qa.json --predictions captions.jsonl"
    with judge() as url:
        for name in ("mine", "base"):
            for one in ("gpt-4o", "gemini"):
                settings = f"--judge.model {one} --judge.base_url {url} --name {name}"
                job(f"evaluate {captions} {settings} --output results/{name}.{one}.json")
            shutil.copyfile(folder / f"results/{name}.gpt-4o.json", folder / f"results/{name}.json")
        settings = f"--judge.model gpt-4o --judge.base_url {url} --name base"
        job(
            "evaluate --benchmark daily-omni --benchmark-data daily_omni --map video=video_id "
            f"--predictions captions.jsonl {settings} --output results/base.omni.json"
        )


def _certificate(folder: Path):
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip


# ---- services ------------------------------------------------------------------------------------


def _judgement(question: str) -> dict:
    """What the judge says to each of our questions."""
    if '"units"' in question and "told" not in question:
        return {"units": [{"text": "A circle moves", "kind": "visual"}]}
    if '"invented"' in question:
        return {"events": {"1": "told"}, "invented": []}
    if "contradicted" in question:
        return {str(number): "told" for number in range(1, 21)}
    return fair(question)


@contextlib.contextmanager
def judge() -> Iterator[str]:
    """Serve the judge; yields its address."""
    server = FakeJudge(_judgement)
    try:
        yield server.url
    finally:
        server.stop()


@contextlib.contextmanager
def services(folder: Path) -> Iterator[dict[str, str]]:
    """Serve judge and teacher; yields the variables by which a page's commands find them."""
    from ugc_jax.toy.teacher import Teacher

    with judge() as url, Teacher(folder / "truth.jsonl", errors=0.0) as teacher:
        yield {
            "OPENAI_API_KEY": "a-key", "OPENAI_BASE_URL": url,
            "GEMINI_API_KEY": "a-key", "GOOGLE_GEMINI_BASE_URL": teacher.url,
        }  # fmt: skip


@contextlib.contextmanager
def beside(command: str, folder: Path) -> Iterator[dict[str, str]]:
    """What a command needs besides: a hub to push to, the teacher at its port, four devices."""
    from ugc_jax.toy.teacher import Teacher

    with contextlib.ExitStack() as stack:
        if "ugc-jax push" in command:
            hub = stack.enter_context(fake_hub.running())
            hub.owners.add("USER")
            yield {
                "HF_ENDPOINT": hub.url, "HF_TOKEN": fake_hub.TOKEN, "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1",  # this hub speaks LFS alone
            }  # fmt: skip
        elif f"localhost:{TEACHER_PORT}" in command:
            stack.enter_context(Teacher(folder / "truth.jsonl", errors=0.0, port=TEACHER_PORT))
            yield {}
        elif "--mesh.data 4" in command:
            yield {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
        else:
            yield {}


def fault_of(address: str) -> str:
    """Ask a server for its page; returns "" if it has one, or who may not see it."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(address, timeout=30, context=context) as answer:
            return "" if answer.status == 200 else f"{address}: status {answer.status}"
    except urllib.error.URLError as error:
        return f"{address}: {error}"
